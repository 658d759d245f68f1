#!/usr/bin/env python3
"""Compares the throughput of evaluation with that of the attack in training.

    python benchmarks/evaluation_speed.py

Each row of the evaluation takes its turn after the training attack. From the time of
the latter per forward-backward pair, and the time of a forward pass, follows what a row
should take for the gradients, queries and scoring passes that it makes; `overhead` is
by how much it takes longer. Tracing and the first batch are left out.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import workers

import pni_tf
from pni_tf.data import DATASETS
from pni_tf.evaluation.results import Scenario

EPSILON = 8 / 255
DRAWS = 10
SCORING = 6 * DRAWS  # of them five sixths for the choice of the worst case


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    workers.add_options(parser)
    parser.add_argument("--rounds", type=int, default=3)
    settings = parser.parse_args()
    print(workers.machine(settings))
    size = settings.batch_size
    generator = np.random.default_rng(0)
    images = generator.random((2 * size, *workers.IMAGE_SHAPE), dtype=np.float32)
    labels = generator.integers(0, 10, 2 * size)
    info = DATASETS["cifar10"]
    network = pni_tf.build_model(
        settings.model,
        width=settings.width,
        input_shape=workers.IMAGE_SHAPE,
        num_classes=10,
        mean=info.mean,
        std=info.std,
        seed=0,
    )
    model = pni_tf.inject_pni(network, settings.pni, seed=0)
    target = pni_tf.load_target(model)
    pair, forward = training_attack(model, images[:size], labels[:size], settings)
    pgd = pni_tf.PGD(epsilon=EPSILON, step_size=0.01, steps=7)
    many = pni_tf.PGD(epsilon=EPSILON, step_size=0.01, steps=100)
    attacks = {
        "clean": (None, 1),
        "FGSM": (pni_tf.FGSM(epsilon=EPSILON), 1),
        "PGD-7": (pgd, 1),
        "PGD-100": (many, 1),
        "PGD-7, 20 draws": (pgd, 20),
    }
    scenarios = [
        Scenario(name=name, attack=attack, expectation=draws)
        for name, (attack, draws) in attacks.items()
    ]
    print(
        f"\n{settings.model}, PNI-{settings.pni.upper()}, batch {size}, "
        f"{settings.rounds} rounds"
    )
    print(f"{'':18} {'s a batch':>10} {'pairs':>6} {'passes':>7} {'overhead':>18}")
    for scenario in scenarios:
        overheads, seconds = [], []
        for _ in range(settings.rounds):
            base, single = pair(), forward()
            taken, result = second_batch(target, images, labels, scenario, size)
            gradients = queries = 0
            if scenario.attack is not None:
                gradients = int(result.gradients[-1])
                queries = int(result.queries[-1])
            expected = gradients * base + (queries + SCORING) * single
            seconds.append(taken)
            overheads.append(100 * (taken / expected - 1))
        spread = (
            f"{statistics.median(overheads):+.0f} % "
            f"({min(overheads):+.0f} to {max(overheads):+.0f})"
        )
        print(
            f"{scenario.name:18} {statistics.median(seconds):10.2f} {gradients:6} "
            f"{queries + SCORING:7} {spread:>18}",
            flush=True,
        )


def training_attack(model, images, labels, settings):
    """Returns functions that time one pair and one forward pass, as training runs."""
    attack = pni_tf.PGD(epsilon=EPSILON, step_size=0.01, steps=settings.attack_steps)
    trainer = pni_tf.PNIAdversarialModel(model, attack=attack, seed=0)
    target = trainer._training_attack_target
    images, labels = tf.constant(images), tf.constant(labels)

    @tf.function(autograph=False)
    def perturb():
        return attack.perturb(target, images, labels, seed=tf.constant([1, 2]))

    @tf.function(autograph=False)
    def forward():
        return target(images)

    def timed(function, count):
        function()

        def seconds():
            start = time.perf_counter()
            function()
            return (time.perf_counter() - start) / count

        return seconds

    return timed(perturb, attack.steps), timed(forward, 1)


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
