#!/usr/bin/env python3
"""Compares the throughput of evaluation with that of the attack in training.

    python benchmarks/evaluation_speed.py
    python benchmarks/evaluation_speed.py --quick

Each row of the evaluation takes its turn after the training attack. From the time of
the latter per forward-backward pair, and the time of a forward pass, follows what a row
should take for the gradients, queries and scoring passes that it makes; `overhead` is
by how much it takes longer. Tracing and the first batch are left out. `--steps` are
those of the longest attack. `--quick` measures the first two rows.
"""

import statistics
import time

import common
import tensorflow as tf

import pni_tf
from pni_tf.evaluation import Scenario

EPSILON = 8 / 255
DRAWS = 10
SCORING = 6 * DRAWS  # Five sixths of them choose the worst case.


def main():
    parser = common.parser_of(__doc__)
    common.add_step_options(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    options = common.parse(parser, rounds=1, steps=2, **common.QUICK_STEP)
    size = options.batch_size
    images, labels = common.random_images(2 * size)
    model = common.noisy_network(options)
    pair, forward = training_attack(model, images[:size], labels[:size], options)
    few, many = (
        pni_tf.PGD(epsilon=EPSILON, step_size=0.01, steps=steps)
        for steps in (options.attack_steps, options.steps)
    )
    target = pni_tf.load_target(model)
    print(f"\n{'':18} {'s a batch':>10} {'pairs':>6} {'passes':>7} {'overhead':>18}")
    rows = (
        ("clean", None, 1),
        ("FGSM", pni_tf.FGSM(epsilon=EPSILON), 1),
        (f"PGD-{few.steps}", few, 1),
        (f"PGD-{many.steps}", many, 1),
        (f"PGD-{few.steps}, 20 draws", few, 20),
    )
    for name, attack, draws in rows[:2] if options.quick else rows:
        scenario = Scenario(name=name, attack=attack, expectation=draws)
        overheads, seconds = [], []
        for _ in range(options.rounds):
            base, single = pair(), forward()
            taken, result = second_batch(target, images, labels, scenario, size)
            gradients = queries = 0
            if attack is not None:
                gradients = int(result.gradients[-1])
                queries = int(result.queries[-1])
            expected = gradients * base + (queries + SCORING) * single
            seconds.append(taken)
            overheads.append(100 * (taken / expected - 1))
        middle, low = statistics.median(overheads), min(overheads)
        text = f"{middle:+.0f} % ({low:+.0f} to {max(overheads):+.0f})"
        print(
            f"{name:18} {statistics.median(seconds):10.2f} {gradients:6} "
            f"{queries + SCORING:7} {text:>18}",
            flush=True,
        )


def training_attack(model, images, labels, options):
    """Returns functions that time one pair and one forward pass, as training runs."""
    attack = pni_tf.PGD(epsilon=EPSILON, step_size=0.01, steps=options.attack_steps)
    fast = pni_tf.fuse_batch_norm(model)
    images, labels = tf.constant(images), tf.constant(labels)

    @tf.function(autograph=False)
    def forward():
        return fast(images, training=False)

    @tf.function(autograph=False)
    def perturb():
        return attack.perturb(
            lambda x: fast(x, training=False), images, labels, seed=[1, 2]
        )

    perturb(), forward()
    return (
        lambda: common.seconds_of(perturb) / attack.steps,
        lambda: common.seconds_of(forward),
    )


def second_batch(target, images, labels, scenario, size):
    """Returns the seconds that the second of two batches takes, and the result."""
    times = []

    def progress(batches, name):
        for batch in batches:
            start = time.perf_counter()
            yield batch
            times.append(time.perf_counter() - start)

    (result,) = pni_tf.evaluate_robustness(
        target,
        images,
        labels,
        [scenario],
        draws=DRAWS,
        batch_size=size,
        progress=progress,
    )
    return times[-1], result


if __name__ == "__main__":
    main()
