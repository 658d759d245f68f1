"""What the scripts share: options, machine, networks, statistics, `bin/train`."""

import argparse
import csv
import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # They need no installation.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

IMAGE_SHAPE = (32, 32, 3)
PACKAGES = "pni_tf tensorflow keras torch foolbox adversarial-robustness-toolbox"


def parser_of(docstring):
    """Returns a parser whose help is the docstring of a script."""
    return argparse.ArgumentParser(
        description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def parse(parser, **quick):
    """Parses the command line; prints the machine, the versions and every option.

    Args:
        parser: All options of the script but `--quick`.
        **quick: Their values where the command line has `--quick` and not them.
    """
    small = " ".join(f"--{name}={value}" for name, value in quick.items())
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"the smallest size, to see that the script works: {small}",
    )
    if "--quick" in sys.argv[1:]:
        parser.set_defaults(**quick)
    options = parser.parse_args()
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES.split():
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} CPUs ({cpu_model()}), load {load:.1f} at the start")
    print(", ".join(versions))
    print("Options:", " ".join(f"{k}={v}" for k, v in vars(options).items()))
    return options


def cpu_model():
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else ()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return next(iter(names), platform.processor() or platform.machine())


def add_step_options(parser):
    """Adds the options that describe a training step on CIFAR-10."""
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--width", type=float, default=1)
    parser.add_argument("--pni", default="w", help="where the noise of ours goes")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--attack_steps", type=int, default=7)


QUICK_STEP = {"model": "resnet8", "width": 0.25, "batch_size": 4, "attack_steps": 1}


def noisy_network(options, *, fused=True):
    """Returns the network that `add_step_options` describes, with its noise.

    Args:
        options: What was parsed.
        fused: Whether `pni_tf.fuse_batch_norm` shall know its batch normalisation.
    """
    import keras

    import pni_tf
    from pni_tf.data import DATASETS

    info = DATASETS["cifar10"]
    network = pni_tf.build_model(
        options.model,
        width=options.width,
        input_shape=IMAGE_SHAPE,
        num_classes=10,
        mean=info.mean,
        std=info.std,
        weight_decay=2e-4,
        seed=0,
    )
    if not fused:
        # A subclass may compute something else, so the library leaves it as it is.
        class Unknown(keras.layers.BatchNormalization):
            pass

        def clone(layer):
            same = type(layer) is not keras.layers.BatchNormalization
            return (type(layer) if same else Unknown).from_config(layer.get_config())

        network = keras.models.clone_model(network, clone_function=clone)
    return pni_tf.inject_pni(network, options.pni, seed=0)


def random_images(count, shape=IMAGE_SHAPE, classes=10):
    """Returns float32 images in [0, 1] and int64 labels, as NumPy arrays."""
    generator = np.random.default_rng(0)
    images = generator.random((count, *shape), dtype=np.float32)
    return images, generator.integers(0, classes, count)


def seconds_of(function):
    """Returns how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_memory():
    """Returns the peak memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def ratios(times, reference):
    """Returns the ratio of two competitors in each round."""
    return [a / b for a, b in zip(times, reference, strict=True)]


def spread(values, form=".2f"):
    """Returns the median, and from the least to the most, as a text."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):{form}} ({low:{form}}-{high:{form}})"


def start_training(run_dir, flags, *, workers=1, cores=None, **environment):
    """Starts `bin/train`, in as many processes as there are workers.

    What they print goes to RUN_DIR.INDEX.log.

    Args:
        run_dir: The folder of the run.
        flags: Of the command.
        workers: Number of processes on this machine.
        cores: Of each worker the CPU cores to run on, such as `"0,1"`.
        **environment: Further variables.
    """
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(workers)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for each in sockets:
        each.close()
    processes = []
    for index in range(workers):
        command = [sys.executable, ROOT / "bin" / "train", *flags]
        command.append(f"--run_dir={run_dir}")
        variables = {**os.environ, **environment}
        if workers > 1:
            command.append("--strategy=multi_worker")
            task = {"type": "worker", "index": index}
            cluster = {"cluster": {"worker": addresses}, "task": task}
            variables["TF_CONFIG"] = json.dumps(cluster)
        if cores is not None:
            command = ["taskset", "-c", cores[index], *command]
        with log_of(run_dir, index).open("a") as log:
            processes.append(
                subprocess.Popen(command, env=variables, stdout=log, stderr=log)
            )
    return processes


def finish_training(processes, run_dir):
    """Waits for all workers; ends this script with the log of one that fails."""
    statuses = [process.wait() for process in processes]
    for index, status in enumerate(statuses):
        if status:
            log = log_of(run_dir, index).read_text()
            sys.exit(f"worker {index} ended with status {status}:\n{log[-5000:]}")


def log_of(run_dir, index):
    return Path(f"{run_dir}.{index}.log")


def checkpoint_variables(path):
    """Returns the variables of a checkpoint; the rest of it has times."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name != "state"}


def checkpoints(run_dir):
    """Returns the checkpoints of a run, the newest last."""
    return sorted(run_dir.glob("checkpoints/epoch-*"))


def history(run_dir):
    """Returns the rows of a run's `history.csv`, as numbers."""
    with (run_dir / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: float(value) for name, value in row.items()} for row in rows]
