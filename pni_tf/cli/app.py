"""What the commands share: flagfiles, grouped help, quiet imports, clear errors."""

import contextlib
import math
import os
import signal
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

from absl import flags, logging

from pni_tf import check_backend
from pni_tf.distribution.cluster import WorkerLost

# In a checkout the configs lie beside the package, in an installation inside it.
_CONFIG_FOLDERS = (
    Path(__file__).parents[2] / "configs",
    Path(__file__).parents[1] / "configs",
)
# What TensorFlow's integers and floats of 32 bits hold.
MOST = 2**31 - 1
_LARGEST = 3e38
_NO_MEMORY = "ResourceExhaustedError"
_MAY_BE_EMPTY = ("attacks",)  # which leaves the clean images


def run(
    main: Callable[[], int | None], *, usage: str, groups: tuple[str, ...], names: int
) -> None:
    """Parses the command line, runs a command and exits with its status.

    Statuses: 0 done; 2 bad input, or a machine that lacks something; 70 an error of
    this program; 75 a worker was lost, the same command may work later; 130 and 143
    interrupted by Ctrl-C and SIGTERM, the same command goes on. Each error is one line
    on standard error (with `--verbosity=1`, a traceback).

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
        _check_characters(argv)
        remaining = flags.FLAGS(argv)
        _check_values(groups)
        if len(remaining) != names + 1:
            raise flags.Error(
                f"expected {names} arguments besides the flags, received "
                f"{remaining[1:]}"
            )
        if "" in remaining:
            raise flags.Error("an argument is empty")
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
    except Exception as error:
        if flags.FLAGS["verbosity"].value >= 1:
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


_positional: list[str] = []


def arguments() -> list[str]:
    """Returns the positional arguments of the command line."""
    return list(_positional)


def _check_characters(argv):
    """Refuses what a line of `flags.cfg`, or of an error, cannot hold."""
    for argument in argv[1:]:
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in argument):
            raise flags.Error(
                "an argument holds a line break, another control character or bytes "
                f"that are not UTF-8. Received: {argument!r}"
            )


def _check_values(groups):
    """Refuses values that would be misread later: `--data_dir=$UNSET` is empty."""
    for group in groups:
        for flag in flags.FLAGS.flags_by_module_dict()[group]:
            value = flag.value
            if isinstance(value, int) and value > MOST:
                raise flags.Error(f"flag --{flag.name}={value}: at most {MOST} works")
            if not isinstance(value, str) or flag.name in _MAY_BE_EMPTY:
                continue
            if not value or value != value.strip():
                raise flags.Error(
                    f"flag --{flag.name}={value}: a value must not be empty, nor begin "
                    "or end with a space"
                )


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
    path = name
    try:
        path = (folder / Path(name).expanduser()).resolve()
        if not including and not path.exists():
            shipped = [base / Path(name).name for base in _CONFIG_FOLDERS]
            path = next((p for p in shipped if p.exists()), path)
        if path in including:
            raise flags.Error(f"the flagfile {path} includes itself")
        # Editors of some systems begin a file with a mark, which "-sig" leaves out.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in it, ~nobody
        known = sorted({p.name for base in _CONFIG_FOLDERS for p in base.glob("*.cfg")})
        raise flags.Error(
            f"cannot read the flagfile {str(path)!r}: {error}. "
            f"The configs that come with pni_tf: {', '.join(known)}"
        ) from error
    result = []
    for line in map(str.strip, lines):
        if not line or line.startswith(("#", "//")):
            continue
        flag, _, value = line.lstrip("-").partition("=")
        if flag == "flagfile":  # a value on the next line would be absl's, not ours
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


def import_tensorflow(cpu_devices: int = 1, *, start: bool = True) -> None:
    """Imports TensorFlow and Keras without their chatter; errors still show.

    Args:
        cpu_devices: Number of logical devices to split the CPU into.
        start: Whether to start the devices, which report themselves then.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow Datasets and others import it lazily, and log when they do.
    with quiet_stderr():
        import keras
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        if cpu_devices > 1:
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * cpu_devices
            )
        if start:
            tf.constant(0)
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


def define_strategy_flags(group: str, strategies: list[str]) -> None:
    """Defines --strategy, --cpu_devices and --cluster_timeout.

    Args:
        group: Heading of the flags in the help.
        strategies: Values of --strategy; the first is the default.
    """
    flags.DEFINE_enum(
        "strategy",
        strategies[0],
        strategies,
        "none: one device. mirrored: all GPUs of this machine. multi_worker: all "
        "devices of all workers that TF_CONFIG or a Slurm job step names. tpu: a TPU.",
        module_name=group,
    )
    flags.DEFINE_integer(
        "cpu_devices",
        1,
        "Split the CPU into as many devices, to try --strategy=mirrored without GPUs.",
        lower_bound=1,
        upper_bound=64,
        module_name=group,
    )
    flags.DEFINE_integer(
        "cluster_timeout",
        120,
        "Seconds to wait for the other workers at the start.",
        lower_bound=1,
        module_name=group,
    )


def check_strategy(settings: SimpleNamespace) -> None:
    """Raises a ValueError if the flags of `define_strategy_flags` disagree."""
    if settings.cpu_devices > 1 and settings.strategy != "mirrored":
        raise ValueError(
            f"--cpu_devices={settings.cpu_devices} is for --strategy=mirrored"
        )


def integers(name: str, values: list[str]) -> list[int]:
    """Returns the positive integers of a list flag.

    Raises:
        ValueError: If a value is something else.
    """
    if not values or not all(_is_count(value) for value in values):
        raise ValueError(
            f"--{name} must be a list of positive integers, such as 7,40. "
            f"Received: --{name}={','.join(values)}"
        )
    return [int(value) for value in values]


def _is_count(text):
    # Python refuses to read thousands of digits.
    return text.strip().isdecimal() and len(text) < 20 and 0 < int(text) <= MOST


def number(text: str) -> float:
    """Returns the number or fraction that a text is, or NaN if float32 has none."""
    try:
        # Not of all numbers, since the fraction of 1e999999999 takes hours.
        value = float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ArithmeticError):  # 1/0
        return math.nan
    return value if abs(value) < _LARGEST else math.nan


def numbers(name: str, values: list[str]) -> list[float]:
    """Returns the non-negative numbers or fractions of a list flag.

    Raises:
        ValueError: If a value is something else.
    """
    found = [number(value.strip()) for value in values]
    if not found or not all(value >= 0 for value in found):
        raise ValueError(
            f"--{name} must be non-negative numbers or fractions, such as 8/255. "
            f"Received: --{name}={','.join(values)}"
        )
    return found


def _interrupt(number, frame):
    raise KeyboardInterrupt("SIGTERM")


def _fail(message, status=2):
    # TensorFlow's messages may have many lines, of which the first says what is wrong.
    lines = str(message).strip().splitlines() or [repr(message)]
    own = isinstance(message, str) or not hasattr(message, "op")
    print(f"error: {message if own else lines[0]}", file=sys.stderr)
    sys.stdout.flush()
    sys.exit(status)
