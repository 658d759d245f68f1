#!/usr/bin/env python3
"""Measures how the cost of a training step grows, one setting at a time.

    python benchmarks/step_cost.py --figure=benchmarks/step_cost.png

Each point is a process of its own, so its peak memory is its own too. `per unit` is
the time over that of the first row, divided by what a cost proportional to the work
would give: below 1 means that larger is cheaper.
"""

import argparse
import copy
import statistics

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
LABELS = {
    "attack_steps": "attack steps",
    "batch_size": "batch size",
    "depth": "depth of the ResNet",
    "width": "width",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    workers.add_options(parser)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--figure", help="where to draw")
    settings = parser.parse_args()
    print(workers.machine(settings))
    measured = {}
    for axis in settings.axes:
        values, work = AXES[axis]
        print(f"\n{LABELS[axis]:>20} {'s a step':>10} {'per unit':>10} {'GiB':>6}")
        measured[axis] = rows = []
        for value in values:
            seconds, memory = measure(settings, axis, value)
            rows.append((value, seconds, memory))
            first, base, _ = rows[0]
            unit = seconds / base / (work(value) / work(first))
            print(f"{value:20} {seconds:10.3f} {unit:10.2f} {memory:6.2f}", flush=True)
    if settings.figure:
        draw(measured, settings.figure)


def measure(settings, axis, value):
    """Returns the median seconds of a step and the peak memory in GiB."""
    point = copy.copy(settings)
    if axis == "depth":
        point.model = f"resnet{value}"
    else:
        setattr(point, axis, value)
    with workers.Worker("ours", point) as worker:
        times = [worker.step() for _ in range(settings.rounds)]
        return statistics.median(times), worker.peak_memory()


def draw(measured, path):
    """Draws time and memory over each axis; the dotted line is proportional to work."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        2, len(measured), figsize=(3.2 * len(measured), 5), squeeze=False, sharex="col"
    )
    for (axis, rows), (upper, lower) in zip(measured.items(), panels.T, strict=True):
        values, seconds, memory = zip(*rows, strict=True)
        work = AXES[axis][1]
        expected = [seconds[0] * work(v) / work(values[0]) for v in values]
        upper.plot(values, expected, "k:", label="proportional to work")
        upper.plot(values, seconds, "o-", label="measured")
        lower.plot(values, memory, "s-", color="C1")
        upper.set_ylim(0, 1.1 * max(*seconds, *expected))
        lower.set_ylim(0, 1.1 * max(memory))
        lower.set_xlabel(LABELS[axis])
    panels[0][0].set_ylabel("seconds a step")
    panels[1][0].set_ylabel("peak memory (GiB)")
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
