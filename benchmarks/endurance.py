#!/usr/bin/env python3
"""Does a long training leak? Memory, open files and traces of hours of small steps.

    python benchmarks/endurance.py --minutes=120
    python benchmarks/endurance.py --quick

Trains resnet8 of a quarter of the width with PNI-W on digits, with validation,
TensorBoard and the history file after each `--steps` steps and a checkpoint each 10
steps, and prints a line a minute. Exit status 1 if, after the first tenth of the time,
memory grew by 2 % or more, anything was traced again, or the number of open files
changed. `--quick` is too short to say anything of leaks, and does not judge.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import common
import keras

import pni_tf
from pni_tf.data import evaluation_batches, training_batches
from pni_tf.training.callbacks import AlphaLogger, EpochTensorBoard, HistoryFile
from pni_tf.training.checkpoints import Checkpoint

BATCH = 64
TRACES = []


class CountedPGD(pni_tf.PGD):
    """PGD that counts how often TensorFlow traces it."""

    def perturb(self, *args, **kwargs):
        TRACES.append(time.time())
        return super().perturb(*args, **kwargs)


class Watch(keras.callbacks.Callback):
    """Prints a line a minute, and stops after the time is over."""

    def __init__(self, minutes):
        super().__init__()
        self.minutes, self.steps, self.rows = minutes, 0, []
        self.start = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        minutes = (time.monotonic() - self.start) / 60
        if minutes >= len(self.rows):
            files = len(os.listdir("/proc/self/fd"))
            row = (minutes, self.steps, resident_mib(), files, len(TRACES))
            self.rows.append(row)
            text = "{:6.1f} min {:7d} steps {:8.1f} MiB {:3d} files {} traces"
            print(text.format(*row), flush=True)
        if minutes >= self.minutes:
            self.model.stop_training = True


def resident_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main():
    parser = common.parser_of(__doc__)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--steps", type=int, default=1000, help="of an epoch")
    options = common.parse(parser, minutes=0, steps=1)
    keras.utils.set_random_seed(0)
    dataset = pni_tf.load_dataset("digits", validation_split=0.1)
    network = pni_tf.build_model(
        "resnet8", width=0.25, input_shape=(8, 8, 1), num_classes=10, seed=0
    )
    trainer = pni_tf.PNIAdversarialModel(
        pni_tf.inject_pni(network, "w", seed=0),
        attack=CountedPGD(epsilon=0.1, step_size=0.025, steps=2),
        validation_draws=2,
        seed=0,
    )
    trainer.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    watch = Watch(options.minutes)
    with tempfile.TemporaryDirectory() as folder:
        history = HistoryFile(Path(folder) / "history.csv")
        checkpoint = Checkpoint(Path(folder) / "checkpoints", steps=10, history=history)
        checkpoint.resume_fit(
            trainer,
            lambda position: training_batches(
                dataset.train, batch_size=BATCH, seed=0, first_epoch=position.epoch
            ),
            epochs=10**6,
            steps_per_epoch=options.steps,
            validation_data=evaluation_batches(dataset.validation, batch_size=BATCH),
            callbacks=[
                AlphaLogger(),
                EpochTensorBoard(folder, write_graph=False),
                history,
                watch,
            ],
            verbose=0,
        )
    warm = watch.rows[len(watch.rows) // 10]
    last = watch.rows[-1]
    growth = last[2] / warm[2] - 1
    print(
        f"after warm-up ({warm[0]:.0f} min): memory {growth:+.2%}, "
        f"{last[3] - warm[3]:+d} open files, {last[4] - warm[4]} traces"
    )
    leaks = growth >= 0.02 or last[3:] != warm[3:]
    sys.exit(leaks and not options.quick)


if __name__ == "__main__":
    main()
