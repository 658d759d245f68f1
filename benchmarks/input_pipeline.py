#!/usr/bin/env python3
"""Measures the input pipeline of training alone, on as many images as CIFAR-10 has.

python benchmarks/input_pipeline.py
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import workers

from pni_tf.data import Split, training_batches


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    workers.add_options(parser)
    parser.add_argument("--batches", type=int, default=300)
    settings = parser.parse_args()
    print(workers.machine(settings))
    generator = np.random.default_rng(0)
    split = Split(
        generator.integers(0, 256, (50_000, *workers.IMAGE_SHAPE), dtype=np.uint8),
        generator.integers(0, 10, 50_000),
    )
    for augment in (False, True):
        stream = iter(
            training_batches(
                split, batch_size=settings.batch_size, seed=0, augment=augment
            )
        )
        for _ in range(20):  # the prefetched ones come for nothing
            next(stream)
        start = time.perf_counter()
        for _ in range(settings.batches):
            next(stream)
        seconds = (time.perf_counter() - start) / settings.batches
        print(
            f"batch {settings.batch_size}, augmentation {'on' if augment else 'off'}: "
            f"{1000 * seconds:.2f} ms a batch, {settings.batch_size / seconds:,.0f} "
            "images/s"
        )


if __name__ == "__main__":
    main()
