"""Do N replicas do what one device does, and what do two workers cost?

    python benchmarks/replicas.py
    python benchmarks/replicas.py --overhead

Trains resnet8 with PNI-W on digits by `bin/train` for 3 epochs, synchronised batch
normalisation, random start off, on one device, on 2 and 4 logical CPUs and on two
worker processes, and prints how far weights and losses are from those of one device.
PGD takes signs, so a rounding error may flip a pixel, and training magnifies it: the
first row, one device without oneDNN, shows what other rounding alone does.

With `--overhead`: the time of an epoch of resnet20 on two workers, each with one core,
over that of one process with both cores, in turns.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from kills import arrays, finish, free_ports, worker_environment

TRAIN = Path(__file__).parents[1] / "bin" / "train"
COMMON = ("--notensorboard", "--noevaluate", "--noexport", "--noattack_random_start")
DIGITS = (
    *("--dataset=digits", "--model=resnet8", "--epsilon=0.1", "--attack_steps=3"),
    *("--attack_step_size=0.05", "--epochs=3", "--drop_epochs=9", "--batch_size=128"),
)
OVERHEAD = (
    *("--dataset=cifar10", "--model=resnet20", "--train_examples=1536", "--epochs=2"),
    *("--drop_epochs=9", "--checkpoint_minutes=0"),
)


def train(run_dir, flags, *, workers=1, cores=None, **environment):
    """Runs `bin/train`, in as many processes as there are workers."""
    ports = free_ports(workers)
    processes = []
    for index in range(workers):
        command = [sys.executable, TRAIN, *COMMON, *flags, f"--run_dir={run_dir}"]
        variables = {**os.environ, **environment}
        if workers > 1:
            command.append("--strategy=multi_worker")
            variables.update(worker_environment(ports, index))
        if cores is not None:
            command = ["taskset", "-c", cores[index], *command]
        with run_dir.with_suffix(f".{index}.log").open("w") as log:
            processes.append(
                subprocess.Popen(command, env=variables, stdout=log, stderr=log)
            )
    statuses = finish(processes)
    if any(statuses):
        sys.exit(run_dir.with_suffix(".0.log").read_text())
    path = max(run_dir.glob("checkpoints/epoch-*"))
    with (run_dir / "history.csv").open(newline="") as file:
        return arrays(path), list(csv.DictReader(file))


def difference(ours, theirs):
    """Returns the norm of the difference of all weights, over that of the weights."""
    names = [name for name in theirs if theirs[name].dtype == np.float32]
    change = sum(np.sum((ours[name] - theirs[name]) ** 2) for name in names)
    return np.sqrt(change / sum(np.sum(theirs[name] ** 2) for name in names))


def equality(folder):
    print("| learning rate | devices | weights | losses |")
    print("| --- | --- | --- | --- |")
    for rate in ("0.1", "0.001"):
        flags = (*DIGITS, f"--learning_rate={rate}")
        weights, rows = train(folder / f"one_{rate[2:]}", flags)
        for name, options in {
            "one, without oneDNN": {"TF_ENABLE_ONEDNN_OPTS": "0"},
            "2 logical CPUs": {"devices": 2},
            "4 logical CPUs": {"devices": 4},
            "2 workers": {"workers": 2},
        }.items():
            devices = options.pop("devices", 1)
            extra = ("--strategy=mirrored", f"--cpu_devices={devices}")
            run_dir = folder / f"{name}_{rate[2:]}".replace(" ", "_")
            found, theirs = train(
                run_dir, flags + (extra if devices > 1 else ()), **options
            )
            loss = max(
                abs(float(a["loss"]) / float(b["loss"]) - 1)
                for a, b in zip(theirs, rows, strict=True)
            )
            far = difference(found, weights)
            print(f"| {rate} | {name} | {far:.1e} | {loss:.1e} |", flush=True)


def overhead(folder):
    ratios = []
    for turn in range(3):
        seconds = []
        for workers, cores in ((1, ["0,1"]), (2, ["0", "1"])):
            run_dir = folder / f"{turn}-{workers}"
            _, rows = train(run_dir, OVERHEAD, workers=workers, cores=cores)
            seconds.append(float(rows[-1]["seconds"]))  # the first one is traced
        ratios.append(seconds[1] / seconds[0])
        print(f"{seconds[0]:.2f} s, two workers {seconds[1]:.2f} s", flush=True)
    print(f"two workers take {np.median(ratios):.2f} times as long ({ratios})")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--overhead", action="store_true")
    with tempfile.TemporaryDirectory() as folder:
        (overhead if parser.parse_args().overhead else equality)(Path(folder))


if __name__ == "__main__":
    main()
