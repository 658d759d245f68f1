"""Finished batches and results in files, so that an evaluation can be continued."""

import json
import os
import shutil
from pathlib import Path

import numpy as np

from pni_tf import files
from pni_tf.evaluation.record import CLASSES
from pni_tf.files import slug


class ResultStore:
    """Keeps the arrays of each scenario in `<directory>/<name>.npz`.

    While a scenario runs, each finished batch is a file of its own. What is read back
    must be what was written, under the same settings, else it is computed again, so an
    interrupted evaluation may be continued, or extended by further attacks, at no risk.

    Args:
        directory: Where the files lie; made when the first one is written.
        identity: What identifies the model, such as `pni_tf.files.file_digest` of its
            file; a name would not do, since a model may be trained further under the
            same name. Anything that JSON can hold.

    Example:

    >>> store = ResultStore("evaluation/examples", identity=file_digest("m.keras"))
    >>> results = evaluate_robustness(target, images, labels, scenarios, store=store)
    """

    def __init__(self, directory: str | os.PathLike, identity: object):
        self.directory = Path(directory)
        self.identity = identity

    def path(self, name: str) -> Path:
        """Returns the file of a scenario."""
        return self.directory / f"{slug(name)}.npz"

    def read(self, name: str, settings: dict) -> dict[str, np.ndarray] | None:
        """Returns the arrays of a finished scenario, or None if there are none."""
        return self._read(self.path(name), settings)

    def read_batch(self, name: str, start: int, settings: dict):
        """Returns the arrays of a finished batch, or None if there are none."""
        return self._read(self._batches(name) / f"{start}.npz", settings)

    def write(self, name: str, settings: dict, arrays: dict[str, np.ndarray]) -> None:
        """Writes a finished scenario, and drops its batches."""
        self._write(self.path(name), settings, arrays)
        shutil.rmtree(self._batches(name), ignore_errors=True)

    def write_batch(self, name: str, start: int, settings: dict, arrays) -> None:
        """Writes the arrays of the batch that begins at image `start`."""
        self._write(self._batches(name) / f"{start}.npz", settings, arrays)

    def _batches(self, name):
        return self.directory / f"{slug(name)}.batches"

    def _write(self, path, settings, arrays):
        arrays = _renamed(arrays, "towards", CLASSES)
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as scratch:
            stamp = self._stamp(settings, arrays)
            np.savez_compressed(scratch, **arrays, settings=stamp)

    def _read(self, path, settings):
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            stamp = str(arrays.pop("settings"))
            if stamp != self._stamp(settings, arrays):
                return None
            return _renamed(arrays, CLASSES, "towards")
        except Exception:  # NumPy and zipfile raise many kinds for a damaged file
            return None  # Absent or damaged, it is computed again.

    def _stamp(self, settings, arrays):
        parts = []
        for name, value in sorted(arrays.items()):
            parts += [f"{name} {value.dtype.str} {value.shape} ", value.tobytes()]
        digest = files.digest(*parts)
        content = {**settings, "identity": self.identity, "digest": digest}
        return json.dumps(content, sort_keys=True)


def _renamed(arrays, old, new):
    return {new if name == old else name: array for name, array in arrays.items()}


def examples_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Returns the SHA-256 that tells examples from others of the same name."""
    return files.digest(images.tobytes(), labels.tobytes())
