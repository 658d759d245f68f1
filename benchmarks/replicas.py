#!/usr/bin/env python3
"""Do N replicas do what one device does, and what do two workers cost?

    python benchmarks/replicas.py
    python benchmarks/replicas.py --overhead
    python benchmarks/replicas.py --quick

Trains resnet8 with PNI-W on digits by `bin/train` for 3 epochs, synchronised batch
normalisation, random start off, on one device, on 2 and 4 logical CPUs and on two
worker processes, and prints how far weights and losses are from those of one device.
PGD takes signs, so a rounding error may flip a pixel, and training magnifies it: the
first row, one device without oneDNN, shows what other rounding alone does. `--quick`
compares two devices with one.

With `--overhead`: the time of an epoch of resnet20 on CIFAR-10 (`TFDS_DATA_DIR` must
have it) on two workers, each with one core, over that of one process with both cores,
in turns.
"""

import tempfile
from pathlib import Path

import common
import numpy as np

COMMON = ("--notensorboard", "--noevaluate", "--noexport", "--noattack_random_start")
DIGITS = (
    *("--dataset=digits", "--model=resnet8", "--epsilon=0.1", "--attack_steps=3"),
    *("--attack_step_size=0.05", "--epochs=3", "--drop_epochs=9", "--batch_size=128"),
)
OVERHEAD = (
    *("--dataset=cifar10", "--model=resnet20", "--train_examples=1536", "--epochs=2"),
    *("--drop_epochs=9", "--checkpoint_minutes=0"),
)
QUICK = (
    *("--model=mnist_cnn", "--width=0.1", "--train_examples=256"),
    *("--test_examples=8", "--epochs=1"),
)
DEVICES = {
    "one, without oneDNN": {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "2 logical CPUs": {"devices": 2},
    "4 logical CPUs": {"devices": 4},
    "2 workers": {"workers": 2},
}


def train(run_dir, flags, devices=1, **options):
    """Trains in a folder; returns the variables and the rows of the history."""
    if devices > 1:
        flags = (*flags, "--strategy=mirrored", f"--cpu_devices={devices}")
    processes = common.start_training(run_dir, (*COMMON, *flags), **options)
    common.finish_training(processes, run_dir)
    newest = common.checkpoints(run_dir)[-1]
    return common.checkpoint_variables(newest), common.history(run_dir)


def difference(ours, theirs):
    """Returns the norm of the difference of all weights, over that of the weights."""
    names = [name for name in theirs if theirs[name].dtype == np.float32]
    change = sum(np.sum((ours[name] - theirs[name]) ** 2) for name in names)
    return np.sqrt(change / sum(np.sum(theirs[name] ** 2) for name in names))


def equality(folder, rates, devices, extra):
    print("| learning rate | devices | weights | losses |")
    print("| --- | --- | --- | --- |")
    for rate in rates:
        flags = (*DIGITS, f"--learning_rate={rate}", *extra)
        weights, rows = train(folder / f"one-{rate}", flags)
        for name in devices:
            run_dir = folder / f"{name}-{rate}".replace(" ", "_")
            found, theirs = train(run_dir, flags, **DEVICES[name])
            loss = max(
                abs(a["loss"] / b["loss"] - 1)
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
            # The first epoch includes the tracing of the graphs.
            seconds.append(rows[-1]["seconds"])
        ratios.append(seconds[1] / seconds[0])
        print(f"{seconds[0]:.2f} s, two workers {seconds[1]:.2f} s", flush=True)
    print(f"two workers take {common.spread(ratios)} times as long")


def main():
    parser = common.parser_of(__doc__)
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--rates", nargs="+", default=["0.1", "0.001"])
    parser.add_argument("--devices", nargs="+", choices=DEVICES, default=list(DEVICES))
    options = common.parse(parser, rates=["0.1"], devices=["2 logical CPUs"])
    with tempfile.TemporaryDirectory() as folder:
        if options.overhead:
            overhead(Path(folder))
        else:
            extra = QUICK * options.quick
            equality(Path(folder), options.rates, options.devices, extra)


if __name__ == "__main__":
    main()
