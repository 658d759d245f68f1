"""Files that are there whole or not at all, locked, summed and named."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from absl import logging

LOCK = ".lock"


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a path beside `path` to write to, and moves it into place at the end.

    Whatever happens meanwhile (an error, a kill, a full disk, a power cut), `path`
    holds either what it held before or all of the new content.

    Args:
        path: The file. Its folder must exist: a run directory that somebody deletes
            while the run continues is not made again, without the rest of its files.

    Raises:
        OSError: If it cannot be written; the message says what to do.
    """
    path = Path(path)
    # The ending stays, because Keras and NumPy go by it.
    scratch = path.with_name(f"unfinished.{path.name}")
    try:
        try:
            yield scratch
            with scratch.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror or error}. Nothing that was there "
            "is lost; make the folder writable or free some space, then give the same "
            "command again"
        ) from error


@contextlib.contextmanager
def lock(directory: str | os.PathLike, what: str) -> Iterator[int]:
    """Keeps other processes from writing to a folder; one that dies lets go.

    Yields the file descriptor: a child process that inherits it keeps the lock, too.

    Args:
        directory: The folder, made if it is missing; its file `.lock` stays.
        what: The folder's name in the error, such as a flag.

    Raises:
        ValueError: If another process has it.
        OSError: If the folder cannot be written.
    """
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        # A file, not the folder itself: locks of folders do not reach across NFS.
        file = (Path(directory) / LOCK).open("a")
    except OSError as error:
        raise OSError(f"cannot write to {what}: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{what} is in use by another process: wait for its end, or use "
                "another folder"
            ) from error
        except OSError as error:
            logging.warning("%s: no lock on this file system (%s)", what, error)
        yield file.fileno()


def write_text(path: str | os.PathLike, content: str) -> None:
    """Writes a text file as UTF-8, whole or not at all (see `replacing`)."""
    with replacing(path) as scratch:
        scratch.write_text(content, encoding="utf-8")


def read_json(path: str | os.PathLike) -> dict | None:
    """Returns the object in a JSON file; None if there is none, or it is damaged."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def digest(*parts: str | bytes) -> str:
    """Returns the SHA-256 digest of texts and bytes, one after the other."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()


def file_digest(path: str | os.PathLike, *, name: bool = True) -> str:
    """Returns the SHA-256 digest of a file, or of all files of a directory.

    Args:
        path: The file or directory.
        name: Whether the names of files count too, as they must for a directory.
    """
    path, found = Path(path), hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            if name:
                found.update(str(file.relative_to(path)).encode())
            found.update(file.read_bytes())
    return found.hexdigest()


def cannot_load(path: str | os.PathLike, error: Exception) -> ValueError:
    """Returns the error to raise for a damaged file, with the first line of another."""
    reason = str(error).strip().splitlines() or [repr(error)]
    return ValueError(f"Cannot load {str(path)!r}: {reason[0]}")


def slug(name: str) -> str:
    """Returns a name as a file name: `PGD-40 EOT-20` becomes `pgd-40_eot-20`."""
    name = name.replace("ε", "eps")
    return re.sub(r"[^a-z0-9.=-]+", "_", name.lower()).strip("_.") or "_"


# Where TensorFlow's layout has room for other people's files.
_SUMS = Path("assets.extra", "SHA256SUMS")


def write_sums(directory: Path) -> None:
    """Writes the digest of each file of an export, as `sha256sum --check` reads it."""
    lines = [
        f"{file_digest(file, name=False)}  {file.relative_to(directory)}\n"
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    ]
    (directory / _SUMS).parent.mkdir()
    (directory / _SUMS).write_text("".join(lines))


def check_sums(directory: Path) -> None:
    """Raises a ValueError if a file of an export is not what was written."""
    if not (directory / _SUMS).exists():
        return  # The export is someone else's, or an older one.
    lines = (directory / _SUMS).read_text(errors="replace").splitlines()
    sums = {directory / line[66:]: line[:64] for line in lines}
    # Other files may lie beside these.
    needed = [directory / "saved_model.pb", *(directory / "variables").glob("*")]
    for file in [*sums, *needed]:
        if not file.is_file() or file_digest(file, name=False) != sums.get(file):
            raise ValueError(
                f"{str(file)!r} is damaged or missing: export the model again, or use "
                "another copy"
            )
