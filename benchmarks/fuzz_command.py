"""Runs a command of the library on one case, and judges its answer."""

import contextlib
import os
import pickle
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from absl import flags
from absl.testing import flagsaver
from fuzz_cases import Offence

from pni_tf.cli import app, evaluate, train

MODULES = {"train": train, "evaluate": evaluate}
REACHED = 99  # the status of a command that has accepted its flags
LONGEST = 20  # seconds


class Answer(NamedTuple):
    """What a command has answered."""

    status: int
    out: str
    err: str
    values: dict | None = None  # of its flags, if it has accepted them


def shown(argv: list[str], environment: dict[str, str] | None = None) -> str:
    """Returns a command line as one would type it, on one line."""
    words = [f"{key}={shlex.quote(text)}" for key, text in (environment or {}).items()]
    text = " ".join([*words, *map(shlex.quote, argv)])
    return text.encode("unicode_escape").decode()[:1500]


def call(argv: list[str]) -> int:
    """Runs a command in this process; returns its status, as the shell sees it."""
    sys.argv = argv
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with flagsaver.flagsaver():  # which removes the flags that it defines, too
            MODULES[argv[0]].run()
    except SystemExit as stop:
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        signal.signal(signal.SIGTERM, handler)
    return 0


def fork(
    argv: list[str],
    folder: Path,
    environment: dict[str, str] | None = None,
    check: Callable[[], None] | None = None,
) -> Answer:
    """Runs a command in a process of its own, up to where it would import TensorFlow.

    Args:
        argv: The command line, from `train` or `evaluate` on.
        folder: Where it runs.
        environment: Further environment variables.
        check: Called where the flags are accepted; may raise an `Offence`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out, err, values = (Path(scratch, name) for name in ("out", "err", "values"))
        child = os.fork()
        if not child:
            signal.alarm(LONGEST)
            os.chdir(folder)
            os.environ.update(environment or {})
            for number, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)

            def reached(*args, **kwargs):
                try:
                    found = {f: flags.FLAGS[f].value for f in flags.FLAGS}
                    if check is not None:
                        check()
                except Offence as offence:
                    found = str(offence)
                values.write_bytes(pickle.dumps(found))
                os._exit(REACHED)

            app.import_tensorflow = reached
            status = call(argv)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        return Answer(
            os.waitstatus_to_exitcode(status),
            out.read_text(errors="replace"),
            err.read_text(errors="replace"),
            pickle.loads(values.read_bytes()) if values.exists() else None,
        )


@contextlib.contextmanager
def held_output():
    """Yields a function that returns what was written to descriptor 2 so far."""
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        sys.stderr.flush()
        os.dup2(file.fileno(), 2)

        def read():
            sys.stderr.flush()
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield read
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)


def check_refusal(answer: Answer, words: list[str] = ()) -> str:
    """Raises an `Offence` unless a command has refused its input cleanly.

    Args:
        answer: What it has answered.
        words: One of which the error must have; empty for any.
    """
    lines = answer.err.splitlines() or [""]
    if "Traceback" in answer.err or answer.status != 2:
        raise Offence("traceback", f"status {answer.status}: {answer.err[-600:]}")
    rest = [line for line in lines[1:] if not line.startswith("See ")]
    if not lines[0].startswith("error: ") or rest:
        raise Offence("traceback", f"not one line of error: {answer.err[-600:]}")
    if words and not any(word in lines[0] for word in words):
        raise Offence("traceback", f"names none of {words!r:.200}: {lines[0][:600]}")
    return "refused"
