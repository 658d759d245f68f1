"""Processes of jobs, which end with the one that started them."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

_PACKAGE_FOLDER = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1


class Process:
    """A command, whose output goes to a file.

    Args:
        command: The program and its arguments.
        log: The file, to which it is appended.
        lock: File descriptor that the process holds too.
        threads: CPU threads that it may use; all by default.
    """

    def __init__(
        self,
        command: list[str],
        log: Path,
        *,
        lock: int | None = None,
        threads: int | None = None,
    ):
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"$ {shlex.join(command)}\n".encode())
            file.flush()
            self._begin = file.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=_environment(threads),
                pass_fds=() if lock is None else (lock,),
                start_new_session=True,  # else Ctrl-C would reach it by itself too
                preexec_fn=_end_with(os.getpid()),
            )

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        """Asks it to save its state and end (SIGTERM)."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> str | None:
        """Waits for its end; returns None, or why it failed."""
        status = self._process.wait()
        if status == 0:
            return None
        how = f"status {status}" if status > 0 else f"killed by signal {-status}"
        output = self._log.read_bytes()[self._begin :].decode(errors="replace")
        lines = output.strip().splitlines()
        last = f": {lines[-1]}" if lines else ""
        return f"{how}{last} (see {self._log})"


def _environment(threads):
    path = filter(None, [str(_PACKAGE_FOLDER), os.environ.get("PYTHONPATH")])
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    if threads is not None:
        for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
            found[name] = str(threads)
        found["OMP_NUM_THREADS"] = str(threads)
        found["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # else one takes the whole GPU
    return found


def _end_with(parent):
    """Returns what makes a process end (SIGTERM) when its parent is killed."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)

    def prepare():
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # which has died meanwhile
            os.kill(os.getpid(), signal.SIGTERM)

    return prepare
