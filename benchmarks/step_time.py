#!/usr/bin/env python3
"""Measures the training step and the evaluation of configs, on random images.

    python benchmarks/step_time.py configs/pni_w.cfg configs/mnist_pni_w.cfg

Prints one row for each config: the median time of a training step in the adversarial
phase, how long the configured epochs take at that rate on as many images as the dataset
has, and the peak memory of the process so far.
"""

import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags

from pni_tf.cli import app, train_flags
from pni_tf.training import assembly

STEPS = 3
TRAINING_IMAGES = {"digits": 1293, "mnist": 60_000, "cifar10": 50_000}


def measure(config: str) -> str:
    import numpy as np
    import tensorflow as tf

    from pni_tf.data import DATASETS, Dataset, Split

    flags.FLAGS.unparse_flags()
    flags.FLAGS(app.expand_flagfiles(["step_time", f"--flagfile={config}"]))
    settings = train_flags.settings()
    settings.drop_epochs = [int(epoch) for epoch in settings.drop_epochs]
    settings.epoch_delay = 0  # measure the adversarial phase
    info = DATASETS[settings.dataset]
    generator = np.random.default_rng(0)
    shape = (settings.batch_size, *info.image_shape)
    split = Split(
        generator.integers(0, 256, shape, dtype=np.uint8),
        generator.integers(0, info.num_classes, settings.batch_size),
    )
    trainer = assembly.compiled_trainer(settings, Dataset(info, split, None, split))
    batch = tf.constant(split.images_float()), tf.constant(split.labels)
    step = tf.function(lambda: trainer.train_step(batch), autograph=False)
    step()
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    steps = -(-TRAINING_IMAGES[settings.dataset] // settings.batch_size)
    hours = seconds * steps * settings.epochs / 3600
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return (
        f"{Path(config).name:40} {seconds:8.3f} s/step  {seconds * steps / 60:7.1f} "
        f"min/epoch  {hours:7.1f} h for {settings.epochs} epochs  {memory:5.1f} GiB"
    )


if __name__ == "__main__":
    train_flags.define()
    app.import_tensorflow()
    for config in sys.argv[1:]:
        print(measure(config), flush=True)
