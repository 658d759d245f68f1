"""Commands in processes of their own that need not import TensorFlow again.

They are forks of a server that has imported it, which saves three seconds of each.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tensorflow", "keras", "sklearn.datasets"])


class Command:
    """A running script, with what `subprocess.Popen` has of it.

    Args:
        script: Path of the script.
        *argv: Its arguments.
        folder: Its working directory.
        environment: All of its environment variables.
    """

    def __init__(self, script, *argv, folder, environment):
        reader, writer = _SERVER.Pipe(duplex=False)
        self._errors = tempfile.NamedTemporaryFile("r")  # noqa: SIM115
        arguments = [str(script), *map(str, argv)]
        self._process = _SERVER.Process(
            target=_run,
            args=(arguments, folder, dict(environment), writer, self._errors.name),
        )
        self._process.start()
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()))
        self.kill, self.pid = self._process.kill, self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def communicate(self, timeout=None):
        """Waits for the end; returns what is left of its output, and all errors."""
        out = self.stdout.read()
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        return out, self._errors.read()


def _run(arguments, folder, environment, stdout, stderr):
    os.dup2(stdout.fileno(), 1)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_APPEND), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = arguments
    # What the process of a test ignores, its forks need not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
