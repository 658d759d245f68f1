"""Does a long training leak? Memory, open files and traces of hours of small steps.

    python benchmarks/endurance.py --minutes=120

Trains resnet8 of a quarter of the width with PNI-W on digits, with validation,
TensorBoard and the history file after each 1,000 steps and a checkpoint each 10 steps,
and prints a line a minute. Exit status 1 if, after the first tenth of the time, memory
grew by 2 % or more, anything was traced again, or the number of open files changed.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras

from pni_tf import PGD, PNIAdversarialModel, build_model, inject_pni, load_dataset
from pni_tf.data import evaluation_batches, training_batches
from pni_tf.training.callbacks import AlphaLogger, EpochTensorBoard, HistoryFile
from pni_tf.training.checkpoints import Checkpoint

BATCH = 64
TRACES = []


class CountedPGD(PGD):
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
            row = (minutes, self.steps, resident_mib(), open_files(), len(TRACES))
            self.rows.append(row)
            print(
                "{:6.1f} min {:7d} steps {:8.1f} MiB {:3d} files {} traces".format(
                    *row
                ),
                flush=True,
            )
        if minutes >= self.minutes:
            self.model.stop_training = True


def resident_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files():
    return len(os.listdir("/proc/self/fd"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=120)
    minutes = parser.parse_args().minutes
    keras.utils.set_random_seed(0)
    dataset = load_dataset("digits", validation_split=0.1)
    info = dataset.info
    network = build_model(
        "resnet8",
        width=0.25,
        input_shape=info.image_shape,
        num_classes=info.num_classes,
        mean=info.mean,
        std=info.std,
        seed=0,
    )
    trainer = PNIAdversarialModel(
        inject_pni(network, "w", seed=0),
        attack=CountedPGD(epsilon=0.1, step_size=0.025, steps=2),
        validation_draws=2,
        seed=0,
    )
    trainer.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    watch = Watch(minutes)
    with tempfile.TemporaryDirectory() as folder:
        history = HistoryFile(Path(folder) / "history.csv")
        checkpoint = Checkpoint(Path(folder) / "checkpoints", steps=10, history=history)
        checkpoint.resume_fit(
            trainer,
            lambda position: training_batches(
                dataset.train, batch_size=BATCH, seed=0, first_epoch=position.epoch
            ),
            epochs=10**6,
            steps_per_epoch=1000,
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
    sys.exit(growth >= 0.02 or last[3:] != warm[3:])


if __name__ == "__main__":
    main()
