"""What a command answers to a command line, without a process of its own."""

import contextlib
import importlib
import io
import os
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from absl import flags
from absl.testing import flagsaver
from flag_meanings import FLAGS, contradictions, same

from pni_tf.cli import app


class Answer(NamedTuple):
    """What a shell would see, and the values of the flags if they were accepted."""

    status: int
    out: str
    err: str
    values: dict | None = None

    @property
    def accepted(self):
        return self.values is not None


class _Reached(BaseException):
    """Raised where the command would import TensorFlow: its flags are accepted."""


def _reach(*args, **kwargs):
    raise _Reached


def answer_of(argv, folder, environment=None, *, whole=False):
    """Runs `train ...` or `evaluate ...` in a folder.

    What it needs to know of the commands' insides is all in here: their modules, and
    that `app.import_tensorflow` comes when all flags are accepted.

    Args:
        argv: The command line; its first word is the command.
        folder: The working directory.
        environment: Further environment variables.
        whole: Whether to run it to its end; else it stops before TensorFlow starts.
    """
    module = importlib.import_module(f"pni_tf.cli.{argv[0]}")
    values, handler = None, signal.getsignal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        if not whole:
            stack.enter_context(mock.patch.object(app, "import_tensorflow", _reach))
        stack.enter_context(mock.patch.object(sys, "argv", list(argv)))
        stack.enter_context(mock.patch.dict(os.environ, environment or {}))
        stack.enter_context(contextlib.chdir(folder))
        # Which also removes the flags that the command defines.
        stack.enter_context(flagsaver.flagsaver())
        out = stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        err = stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        try:
            module.run()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        except _Reached:
            status, values = 0, {name: flags.FLAGS[name].value for name in flags.FLAGS}
        finally:
            signal.signal(signal.SIGTERM, handler)
    return Answer(status, out.getvalue(), err.getvalue(), values)


def check_refused(answer, *names):
    """Asserts one line of error that has one of the names, and status 2."""
    assert answer.status == 2, answer
    assert "Traceback" not in answer.err, answer.err
    # Warnings may come before the error.
    _, error, text = f"\n{answer.err}".rpartition("\nerror: ")
    assert error, answer.err
    line, *rest = text.splitlines()
    # Where the command line itself is wrong, the next line says where help is.
    assert all(re.fullmatch(r"See \w+ --helpshort", each) for each in rest), text
    assert not names or any(name in line for name in names), (names, line)


def contents(folder):
    """Returns what lies in a folder, to see whether anything was lost or left."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def check_command(argv, meanings, files=None):
    """Checks that a command line is refused in one line, or means what it should.

    Args:
        argv: The command line, in whose folder there are `files` and nothing else.
        meanings: The values of the flags given, by name; None if one is wrong.
        files: Contents of files by name; None is a folder.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "a", "b", "c")  # Even ../x is inside it.
        folder.mkdir(parents=True)
        for name, content in (files or {}).items():
            path = folder / name
            path.mkdir() if content is None else path.write_bytes(content)
        before = contents(Path(scratch))
        answer = answer_of(argv, folder)
        wrong = meanings is None or contradictions(argv[0], meanings)
        if answer.accepted:
            assert not wrong
            for name, expected in meanings.items():
                assert same(answer.values[name], expected), name
            if argv[0] == "train":
                _check_repeats(answer.values, folder, Path(scratch))
            return
        assert contents(Path(scratch)) == before
        names = wrong
        if meanings is None:
            names = re.findall(r"-+(?:no)?(\w+)", " ".join(argv))
            names += [
                *argv[1:],
                *map(repr, argv[1:]),
                "arguments besides",
                *(files or ()),
            ]
        elif not wrong:  # Only the disk can tell whether a folder can be made.
            assert "run_dir" in meanings, answer
            names = ["run_dir"]
        check_refused(answer, *names)


def _check_repeats(values, folder, scratch):
    """What the run keeps of its flags is a flagfile that says the same again."""
    (path,) = scratch.rglob("flags.cfg")
    text = path.read_text()
    again = answer_of(["train", f"--flagfile={path}"], folder)
    # Where no flag names the folder, the command does.
    names = FLAGS["train"].keys() - ({"run_dir"} if values["run_dir"] is None else ())
    assert [name for name in names if again.values[name] != values[name]] == []
    assert path.read_text() == text
