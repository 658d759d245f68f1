#!/usr/bin/env python3
"""Measures how the cost of a training step grows, one setting at a time.

    python benchmarks/step_cost.py
    python benchmarks/step_cost.py --axes width --rounds=1
    python benchmarks/step_cost.py --quick

Each point is a process of its own, so its peak memory is its own too. `per unit` is
the time over that of the first row, divided by what a cost proportional to the work
would give: below 1 means that larger is cheaper. `--quick` measures the first value of
each axis.
"""

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
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--rounds", type=int, default=3)
    options = common.parse(parser, rounds=1, axes=["attack_steps"], **common.QUICK_STEP)
    for axis in options.axes:
        values, work = AXES[axis]
        print(f"\n{axis:>20} {'s a step':>10} {'per unit':>10} {'GiB':>6}")
        base = None
        for value in values[:1] if options.quick else values:
            seconds, memory = measure(options, axis, value)
            base = base or seconds / work(value)
            unit = seconds / work(value) / base
            print(f"{value:20} {seconds:10.3f} {unit:10.2f} {memory:6.2f}", flush=True)


def measure(options, axis, value):
    """Returns the median seconds of a step and the peak memory in GiB."""
    point = copy.copy(options)
    if axis == "depth":
        point.model = f"resnet{value}"
    else:
        setattr(point, axis, value)
    with workers.Worker("ours", point) as worker:
        times = [worker.step() for _ in range(options.rounds)]
        return statistics.median(times), worker.peak_memory()


if __name__ == "__main__":
    main()
