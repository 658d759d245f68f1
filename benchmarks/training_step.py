#!/usr/bin/env python3
"""Times the training step against PyTorch, and how its cost grows.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --model=resnet18 --rounds=3
    python benchmarks/training_step.py --axes attack_steps batch_size depth width
    python benchmarks/training_step.py --quick --competitors ours

Competitors take turns in each round. `ours-unfused` is our step on a network in which
`pni_tf.fuse_batch_norm` finds nothing to fuse; `torch_peer.py` says what the two
recipes in PyTorch are. A ratio above 1 means that the first competitor is faster.

With `--axes`: our step, one setting at a time. Each point is a process of its own, so
its peak memory is its own too. `per unit` is the time over that of the first row,
divided by what a cost proportional to the work would give: below 1 means that larger is
cheaper. `--quick` measures the first value.
"""

import contextlib
import copy
import statistics

import common
import workers

# The work of a step, in arbitrary units, from the value of the axis. An attack step
# takes a forward pass and an input gradient; the two training passes also the gradient
# of the weights. Each of these is one unit.
AXES = {
    "attack_steps": ((1, 2, 5, 7, 10, 20, 40), lambda steps: 2 * steps + 6),
    "batch_size": ((32, 64, 128, 256, 512), lambda size: size),
    "depth": ((20, 32, 44, 56), lambda depth: depth - 2),
    "width": ((1, 1.5, 2, 4), lambda width: width**2),
}


def main():
    parser = common.parser_of(__doc__)
    workers.add_options(parser)
    parser.add_argument(
        "--competitors",
        nargs="+",
        choices=workers.OURS + workers.PEERS,
        default=["ours", "ours-unfused", "torch-eager", "torch-tuned"],
    )
    parser.add_argument("--axes", nargs="+", choices=AXES, default=[])
    parser.add_argument("--rounds", type=int, default=10)
    options = common.parse(parser, rounds=1, **common.QUICK_STEP)
    for axis in options.axes:
        grow(axis, options)
    if not options.axes:
        compare(options)


def compare(options):
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(workers.Worker(name, options))
            for name in options.competitors
        ]
        times = {worker.name: [] for worker in started}
        for _ in range(options.rounds):
            for worker in started:
                times[worker.name].append(worker.step())
        first = started[0].name
        print(
            f"\n{'':14} {'seconds a step':>28} {f'time / {first}':>20} "
            f"{'first step':>11} {'GiB':>5}"
        )
        for worker in started:
            own = times[worker.name]
            ratios = common.spread(common.ratios(own, times[first]))
            print(
                f"{worker.name:14} {common.spread(own, '.3f'):>28} {ratios:>20} "
                f"{worker.first_step:9.1f} s {worker.peak_memory():5.1f}"
            )


def grow(axis, options):
    values, work = AXES[axis]
    print(f"\n{axis:>20} {'s a step':>10} {'per unit':>10} {'GiB':>6}")
    base = None
    for value in values[:1] if options.quick else values:
        point = copy.copy(options)
        setattr(point, axis, value)
        if axis == "depth":
            point.model = f"resnet{value}"
        with workers.Worker("ours", point) as worker:
            seconds = statistics.median(worker.step() for _ in range(options.rounds))
            memory = worker.peak_memory()
        base = base or seconds / work(value)
        unit = seconds / work(value) / base
        print(f"{value:20} {seconds:10.3f} {unit:10.2f} {memory:6.2f}", flush=True)


if __name__ == "__main__":
    main()
