"""Runs a command: exit status, errors of one line, and a quiet import of TensorFlow."""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging
from absl.flags import FLAGS
from absl.flags import Error as FlagError

from pni_tf import check_backend
from pni_tf.cli import flags
from pni_tf.distribution.cluster import WorkerLost

_NO_MEMORY = "ResourceExhaustedError"


def run(
    main: Callable[..., int | None],
    *,
    usage: str,
    settings: type | None = None,
    names: int = 0,
) -> None:
    """Parses the command line, runs a command and exits with its status.

    Statuses: 0 done; 1 a job of `bin/reproduce` failed, or nobody reads the output any
    more; 2 bad input, or a machine that lacks something; 70 an error of this program;
    75 a worker was lost, the same command may work later; 130 and 143 interrupted by
    Ctrl-C and SIGTERM, the same command continues. Each error is one line on standard
    error (with `--verbosity=1`, a traceback).

    Args:
        main: The command, called with its settings, if it has any, and with the
            positional arguments.
        usage: First lines of the help.
        settings: The dataclass of its settings, such as `TrainingRun`, or None.
        names: Number of positional arguments.
    """
    headings = () if settings is None else flags.define(settings)
    try:
        try:
            arguments = _parse(sys.argv, usage, headings, names)
        except (FlagError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            _fail(f"{error}\nSee {Path(sys.argv[0]).name} --helpshort")
        logging.use_absl_handler()
        check_backend()
        signal.signal(signal.SIGTERM, _interrupt)
        if settings is not None:
            arguments.insert(0, flags.read(settings))
        sys.exit(main(*arguments))
    except BrokenPipeError:  # The reader of the output has gone, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        print("\nInterrupted. Run the same command again to continue.", file=sys.stderr)
        sys.exit(143 if str(interrupt) == "SIGTERM" else 130)
    except Exception as error:
        if FLAGS["verbosity"].value >= 1:
            raise
        if isinstance(error, WorkerLost):
            _fail(error, status=75)
        # The latter is TensorFlow's, which may not be there yet.
        if isinstance(error, MemoryError) or type(error).__name__ == _NO_MEMORY:
            reason = str(error).strip().splitlines() or ["MemoryError"]
            _fail(
                "not enough memory: fewer images in a batch, or a smaller network, "
                f"would need less ({reason[0]})"
            )
        if isinstance(
            error, (ValueError, TypeError, OSError, RuntimeError, ImportError)
        ):
            _fail(error)
        _fail(f"{type(error).__name__}: {error} (--verbosity=1 shows where)", status=70)


def _parse(argv, usage, headings, names):
    """Sets the flags and returns the positional arguments."""
    argv = flags.expand_flagfiles(argv)
    if {"--help", "-help", "--helpshort", "-helpshort", "-h"} & set(argv[1:]):
        sections = [FLAGS.module_help(heading).strip() for heading in headings]
        print(usage, *sections, sep="\n\n", flush=True)
        sys.exit(0)
    flags.check_characters(argv)
    _, *arguments = FLAGS(argv)
    if len(arguments) != names:
        raise FlagError(
            f"expected {names} arguments besides the flags, received {arguments}"
        )
    if "" in arguments:
        raise FlagError("an argument is empty")
    return arguments


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Holds back what is written to file descriptor 2, and shows it after an error.

    TensorFlow's C++ code logs while it is imported, whatever its settings say.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        saved = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(saved, 2)
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def import_tensorflow(cpu_devices: int = 1, *, start: bool = True) -> None:
    """Imports TensorFlow and Keras without their chatter; errors still show.

    Args:
        cpu_devices: Number of logical devices to split the CPU into.
        start: Whether to start the devices, which report themselves then.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow Datasets and others import it lazily, and log when they do.
    with quiet_stderr():
        import keras  # noqa: F401
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        if cpu_devices > 1:
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * cpu_devices
            )
        if start:
            tf.constant(0)


def _interrupt(number, frame):
    raise KeyboardInterrupt("SIGTERM")


def _fail(message, status=2):
    # TensorFlow's messages may have many lines, of which the first says what is wrong.
    lines = str(message).strip().splitlines() or [repr(message)]
    print(f"error: {lines[0] if hasattr(message, 'op') else message}", file=sys.stderr)
    sys.stdout.flush()
    sys.exit(status)
