#!/usr/bin/env python3
"""Times the training step against PyTorch: competitors take turns in each round.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --model=resnet18 --rounds=3

`ours-unfused` is our step without `pni_tf.fuse_batch_norm`, `ours-folded` the step with
batch normalisation folded in the attack and not fused in training; `torch_peer.py` says
what the two recipes in PyTorch are. A ratio above 1 means that ours is faster.
"""

import argparse
import statistics

import workers


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    workers.add_options(parser)
    parser.add_argument(
        "--competitors",
        nargs="+",
        choices=workers.OURS + workers.PEERS,
        default=["ours", "ours-unfused", "torch-eager", "torch-tuned"],
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--profile", action="store_true", help="of each of ours")
    settings = parser.parse_args()
    print(workers.machine(settings))
    print(
        f"{settings.model}, width {settings.width:g}, PNI-{settings.pni.upper()}, "
        f"batch {settings.batch_size}, PGD-{settings.attack_steps}, "
        f"{settings.rounds} rounds"
    )
    started = [workers.Worker(name, settings) for name in settings.competitors]
    times = workers.rounds(started, settings.rounds)
    first, *_ = settings.competitors
    print(
        f"\n{'':14} {'seconds a step':>28} {f'time / {first}':>20} {'first step':>11} "
        f"{'GiB':>5}"
    )
    for worker in started:
        own = times[worker.name]
        spread = f"{statistics.median(own):.3f} ({min(own):.3f}-{max(own):.3f})"
        middle, low, high = workers.ratio(own, times[first])
        ratios = f"{middle:.2f} ({low:.2f}-{high:.2f})"
        print(
            f"{worker.name:14} {spread:>28} {ratios:>20} {worker.first_step:9.1f} s "
            f"{worker.peak_memory():5.1f}"
        )
    for worker in started:
        if settings.profile and worker.name in workers.OURS:
            print(f"\n{worker.name}: milliseconds and number of operations in one step")
            for kind, milliseconds, count in worker.profile():
                print(f"  {kind:36} {milliseconds:9.1f} {count:6}")
    for worker in started:
        worker.close()


if __name__ == "__main__":
    main()
