"""What the commands share: flagfiles, grouped help, quiet imports, clear errors."""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

from absl import flags, logging

from pni_tf import check_backend

# In a checkout the configs lie beside the package, in an installation inside it.
_CONFIG_FOLDERS = (
    Path(__file__).parents[2] / "configs",
    Path(__file__).parents[1] / "configs",
)


def run(
    main: Callable[[], int | None], *, usage: str, groups: tuple[str, ...], names: int
) -> None:
    """Parses the command line, runs a command and exits with its status.

    A bad command line or bad input ends with one line on standard error and status 2
    (with `--verbosity=1`, a traceback); an interruption with status 130 (Ctrl-C) or 143
    (SIGTERM).

    Args:
        main: The command; it reads `flags.FLAGS` and the positional arguments from
            `arguments()`.
        usage: First lines of the help.
        groups: Headings of the flags, in the order of the help; each is the
            `module_name` of the flags under it.
        names: Number of positional arguments.
    """

    def parse(argv):
        argv = expand_flagfiles(argv)
        if {"--help", "-help", "--helpshort", "-helpshort", "-h"} & set(argv[1:]):
            sections = [flags.FLAGS.module_help(group).strip() for group in groups]
            print(usage, *sections, sep="\n\n")
            sys.exit(0)
        remaining = flags.FLAGS(argv)
        if len(remaining) != names + 1:
            raise flags.Error(
                f"expected {names} arguments besides the flags, received "
                f"{remaining[1:]}"
            )
        return remaining

    try:
        try:
            _positional[:] = parse(sys.argv)[1:]
        except (flags.Error, OSError) as error:
            _fail(f"{error}\nSee {Path(sys.argv[0]).name} --helpshort")
        logging.use_absl_handler()
        check_backend()
        signal.signal(signal.SIGTERM, _interrupt)
        sys.exit(main())
    except KeyboardInterrupt as interrupt:
        print("\nInterrupted. The same command goes on.", file=sys.stderr)
        sys.exit(143 if str(interrupt) == "SIGTERM" else 130)
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        if flags.FLAGS.verbosity >= 1:
            raise
        _fail(str(error))


_positional: list[str] = []


def arguments() -> list[str]:
    """Returns the positional arguments of the command line."""
    return list(_positional)


def expand_flagfiles(argv: list[str]) -> list[str]:
    """Replaces each `--flagfile` by the flags in it, nested ones included.

    Unlike absl's own, a relative path inside a flagfile means a neighbour of that file,
    so configs work from any working directory; and a path that does not exist is looked
    up among the configs that come with the package.

    Raises:
        flags.Error: If a file cannot be read, or includes itself.
    """
    expanded = []
    remaining = iter(argv)
    for argument in remaining:
        name, equals, value = argument.lstrip("-").partition("=")
        if argument == "--":
            return [*expanded, argument, *remaining]
        if not argument.startswith("-") or name != "flagfile":
            expanded.append(argument)
            continue
        if not equals:
            value = next(remaining, "")
        expanded += _read_flagfile(value, Path(), ())
    return expanded


def _read_flagfile(name, folder, including):
    path = (folder / Path(name).expanduser()).resolve()
    if not including and not path.exists():
        shipped = [base / Path(name).name for base in _CONFIG_FOLDERS]
        path = next((p for p in shipped if p.exists()), path)
    if path in including:
        raise flags.Error(f"the flagfile {path} includes itself")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        known = sorted({p.name for base in _CONFIG_FOLDERS for p in base.glob("*.cfg")})
        raise flags.Error(
            f"cannot read the flagfile {str(path)!r}: {error}. "
            f"The configs that come with pni_tf: {', '.join(known)}"
        ) from error
    result = []
    for line in map(str.strip, lines):
        if not line or line.startswith(("#", "//")):
            continue
        flag, equals, value = line.lstrip("-").partition("=")
        if flag == "flagfile" and equals:
            result += _read_flagfile(value, path.parent, (*including, path))
        else:
            result.append(line)
    return result


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


def import_tensorflow() -> None:
    """Imports TensorFlow and Keras without their chatter; errors still show."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow Datasets and others import it lazily, and log when they do.
    with quiet_stderr():
        import keras
        import tensorflow as tf

        tf.config.list_physical_devices()
        tf.constant(0)  # the devices report themselves when they are first used
        assert keras


def define_data_flags(
    group: str, *, dataset: str | None = None, dataset_help: str
) -> None:
    """Defines --dataset, --data_dir and --download.

    Args:
        group: Heading of the flags in the help.
        dataset: Default of --dataset.
        dataset_help: Help of --dataset.
    """
    flags.DEFINE_string("dataset", dataset, dataset_help, module_name=group)
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder of TensorFlow Datasets; by default $TFDS_DATA_DIR, else "
        "~/tensorflow_datasets.",
        module_name=group,
    )
    flags.DEFINE_bool(
        "download", False, "Download the dataset if it is missing.", module_name=group
    )


def integers(name: str, values: list[str]) -> list[int]:
    """Returns the positive integers of a list flag.

    Raises:
        ValueError: If a value is something else.
    """
    if not values or not all(v.strip().isdecimal() and int(v) > 0 for v in values):
        raise ValueError(
            f"--{name} must be a list of positive integers, such as 7,40. "
            f"Received: --{name}={','.join(values)}"
        )
    return [int(value) for value in values]


def numbers(name: str, values: list[str]) -> list[float]:
    """Returns the non-negative numbers or fractions of a list flag.

    Raises:
        ValueError: If a value is something else.
    """
    try:
        found = [float(Fraction(value.strip())) for value in values]
    except (ValueError, ArithmeticError):  # 1/0, 1e999
        found = [-1.0]
    if min(found) < 0:
        raise ValueError(
            f"--{name} must be non-negative numbers or fractions, such as 8/255. "
            f"Received: --{name}={','.join(values)}"
        )
    return found


def _interrupt(number, frame):
    raise KeyboardInterrupt("SIGTERM")


def _fail(message):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
