#!/usr/bin/env python3
"""Measures the input pipeline of training alone, on as many images as CIFAR-10 has.

    python benchmarks/input_pipeline.py
    python benchmarks/input_pipeline.py --quick

Prints milliseconds a batch and images a second, without and with augmentation.
"""

import itertools

import common
import numpy as np

from pni_tf.data import Split, training_batches


def main():
    parser = common.parser_of(__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=300)
    options = common.parse(parser, images=100, batch_size=10, batches=10)
    size = options.batch_size
    generator = np.random.default_rng(0)
    shape = (options.images, *common.IMAGE_SHAPE)
    split = Split(
        generator.integers(0, 256, shape, dtype=np.uint8),
        generator.integers(0, 10, options.images),
    )
    for augment in (False, True):
        stream = training_batches(split, batch_size=size, seed=0, augment=augment)
        batches = iter(stream)
        list(itertools.islice(batches, 20))  # The prefetched ones come for nothing.
        rest = itertools.islice(batches, options.batches)
        seconds = common.seconds_of(lambda rest=rest: list(rest)) / options.batches
        print(
            f"batch {size}, augmentation {'on' if augment else 'off'}: "
            f"{1000 * seconds:.2f} ms a batch, {size / seconds:,.0f} images/s"
        )


if __name__ == "__main__":
    main()
