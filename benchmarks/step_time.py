#!/usr/bin/env python3
"""Measures the training step of configs, on random images.

    python benchmarks/step_time.py configs/pni_w.cfg configs/mnist_pni_w.cfg
    python benchmarks/step_time.py configs/digits_pni_w.cfg --quick

Prints one row for each config: the median time of a training step in the adversarial
phase, how long an epoch and all epochs take at that rate on as many images as the
dataset has, and the peak memory of the process so far. `--steps` are timed after one
that is not.
"""

import statistics
from pathlib import Path

import common

TRAINING_IMAGES = {"digits": 1293, "mnist": 60_000, "cifar10": 50_000}


def recipe(config):
    """Returns the settings of a config, as `bin/train` has them, and its trainer.

    This is the one place in benchmarks/ that reads a config without the command line.
    """
    from absl import flags

    from pni_tf.cli import app, train_flags
    from pni_tf.data import DATASETS, Dataset, Split
    from pni_tf.distribution.workers import Workers
    from pni_tf.training.assembly import compiled_trainer

    if "learning_rate" not in flags.FLAGS:
        train_flags.define()
    flags.FLAGS.unparse_flags()
    # The adversarial phase, and one process.
    argv = ["step_time", f"--flagfile={config}", "--epoch_delay=0", "--strategy=none"]
    flags.FLAGS(app.expand_flagfiles(argv))
    settings = train_flags.settings()
    settings.drop_epochs = [int(epoch) for epoch in settings.drop_epochs]
    info = DATASETS[settings.dataset]
    images, labels = common.random_images(
        settings.batch_size, info.image_shape, info.num_classes
    )
    split = Split((255 * images).astype("uint8"), labels)
    dataset = Dataset(info, split, None, split)
    return settings, compiled_trainer(settings, dataset, Workers()), (images, labels)


def measure(config, steps):
    import tensorflow as tf

    settings, trainer, batch = recipe(config)
    batch = tuple(map(tf.constant, batch))
    step = tf.function(lambda: trainer.train_step(batch), autograph=False)
    step()
    seconds = statistics.median(common.seconds_of(step) for _ in range(steps))
    epoch = seconds * -(-TRAINING_IMAGES[settings.dataset] // settings.batch_size)
    hours = epoch * settings.epochs / 3600
    return (
        f"{Path(config).name:40} {seconds:8.3f} s/step  {epoch / 60:7.1f} min/epoch  "
        f"{hours:7.1f} h for {settings.epochs} epochs  {common.peak_memory():5.1f} GiB"
    )


def main():
    parser = common.parser_of(__doc__)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--steps", type=int, default=3)
    options = common.parse(parser, steps=1)
    for config in options.configs:
        print(measure(config, options.steps), flush=True)


if __name__ == "__main__":
    main()
