#!/usr/bin/env python3
"""Times the training step against PyTorch: competitors take turns in each round.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --model=resnet18 --rounds=3
    python benchmarks/training_step.py --quick --competitors ours

`ours-unfused` is our step on a network in which `pni_tf.fuse_batch_norm` finds nothing
to fuse; `torch_peer.py` says what the two recipes in PyTorch are. A ratio above 1 means
that the first competitor is faster.
"""

import contextlib

import common
import workers


def main():
    parser = common.parser_of(__doc__)
    workers.add_options(parser)
    parser.add_argument(
        "--competitors",
        nargs="+",
        choices=workers.OURS + workers.PEERS,
        default=["ours", "ours-unfused", "torch-eager", "torch-tuned"],
    )
    parser.add_argument("--rounds", type=int, default=10)
    options = common.parse(parser, rounds=1, **common.QUICK_STEP)
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(workers.Worker(name, options))
            for name in options.competitors
        ]
        times = {worker.name: [] for worker in started}
        for _ in range(options.rounds):
            for worker in started:
                times[worker.name].append(worker.step())
        report(started, times)


def report(started, times):
    first = started[0].name
    print(
        f"\n{'':14} {'seconds a step':>28} {f'time / {first}':>20} {'first step':>11} "
        f"{'GiB':>5}"
    )
    for worker in started:
        own = times[worker.name]
        ratios = common.spread(common.ratios(own, times[first]))
        print(
            f"{worker.name:14} {common.spread(own, '.3f'):>28} {ratios:>20} "
            f"{worker.first_step:9.1f} s {worker.peak_memory():5.1f}"
        )


if __name__ == "__main__":
    main()
