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


def settings_of(config):
    """Returns the settings of `bin/train --flagfile=CONFIG`, in the adversarial phase.

    This is the one place in benchmarks/ that reads a config without the command.
    """
    from absl.flags import FLAGS

    from pni_tf.cli import flags
    from pni_tf.settings.training import TrainingRun

    if "learning_rate" not in FLAGS:
        flags.define(TrainingRun)
    FLAGS.unparse_flags()
    argv = ["step_time", f"--flagfile={config}", "--epoch_delay=0", "--strategy=none"]
    FLAGS(flags.expand_flagfiles(argv))
    return flags.read(TrainingRun)


def measure(config, steps):
    import tensorflow as tf

    import pni_tf
    from pni_tf.data import DATASETS

    settings = settings_of(config)
    chosen, dataset = settings.recipe.optimisation, settings.data.dataset
    info, size, epochs = DATASETS[dataset], chosen.batch_size, chosen.epochs
    count = -(-TRAINING_IMAGES[dataset] // size)
    trainer = pni_tf.assemble_trainer(settings.recipe, info, steps_per_epoch=count)
    batch = common.random_images(size, info.image_shape, info.num_classes)
    batch = tuple(map(tf.constant, batch))
    step = tf.function(lambda: trainer.train_step(batch), autograph=False)
    step()
    seconds = statistics.median(common.seconds_of(step) for _ in range(steps))
    return (
        f"{Path(config).name:40} {seconds:8.3f} s/step  {seconds * count / 60:7.1f} "
        f"min/epoch  {seconds * count * epochs / 3600:7.1f} h for {epochs} epochs  "
        f"{common.peak_memory():5.1f} GiB"
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
