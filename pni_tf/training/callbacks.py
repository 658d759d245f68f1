"""Callbacks that Keras does not already have."""

import csv
import functools
import os
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pni_tf.attacks.base import Attack
from pni_tf.files import replacing
from pni_tf.noise.graph import noise_wrappers
from pni_tf.noise.injection import alphas


class Diverged(RuntimeError):
    """The loss or a weight is NaN or infinite."""


class StopDivergence(keras.callbacks.TerminateOnNaN):
    """Raises a `Diverged` after a step whose loss is NaN or infinite."""

    def __init__(self):
        super().__init__(raise_error=True)

    def on_batch_end(self, batch, logs=None):
        try:
            super().on_batch_end(batch, logs)
        except RuntimeError as error:
            raise Diverged(str(error)) from None


class AlphaLogger(keras.callbacks.Callback):
    """Adds the mean magnitude of each layer's alpha to the logs of the epoch.

    The entries are named `alpha/<layer>`. Put this callback before those that record
    the logs (`CSVLogger`, `TensorBoard`), and a `ProgbarLogger` before it to keep the
    entries off the screen.
    """

    def on_epoch_end(self, epoch, logs=None):
        for name, alpha in alphas(self.model.model).items():
            logs[f"alpha/{name}"] = float(np.mean(np.abs(alpha)))


class AdversarialImages(keras.callbacks.Callback):
    """Writes images and their adversarial twins to TensorBoard after each epoch.

    A handful is enough: `[N, H, W, C]` in `[0, 1]`, with labels `[N]`.
    """

    def __init__(self, images, labels, attack: Attack, log_dir: str | os.PathLike):
        super().__init__()
        self.images = tf.constant(images, tf.float32)
        self.labels = tf.constant(labels)
        self.attack = attack
        self.log_dir = str(log_dir)

    def on_train_begin(self, logs=None):
        network = functools.partial(self.model.model, training=False)
        self._perturb = tf.function(
            functools.partial(self.attack.perturb, network, self.images, self.labels),
            autograph=False,
        )
        self._writer = tf.summary.create_file_writer(self.log_dir)

    def on_epoch_end(self, epoch, logs=None):
        # Looking must not change what is trained: the draws that it takes are put back.
        states = [w.seed_generator.state for w in noise_wrappers(self.model.model)]
        before = [state.numpy() for state in states]
        adversarial = self._perturb(seed=tf.constant([0, epoch], tf.int64))
        for state, value in zip(states, before, strict=True):
            state.assign(value)
        epsilon = max(self.attack.epsilon, 1e-12)
        magnified = (adversarial - self.images) / (2 * epsilon) + 0.5
        rows = [self.images, adversarial, tf.clip_by_value(magnified, 0.0, 1.0)]
        grid = tf.concat([tf.concat(tf.unstack(row), axis=1) for row in rows], axis=0)
        with self._writer.as_default(step=epoch):
            tf.summary.image("image, adversarial image, perturbation", grid[None])
        self._writer.flush()

    def on_train_end(self, logs=None):
        self._writer.close()


class EpochTensorBoard(keras.callbacks.TensorBoard):
    """Keras' `TensorBoard` for logs of epochs alone.

    In Keras 3.15 that one calls `tf.summary.scalar` after each step too, which writes
    nothing but keeps each value: some 3 KiB a step, 200 MiB in a training of the paper.
    """

    def on_train_batch_end(self, batch, logs=None):
        pass


class HistoryFile(keras.callbacks.Callback):
    """Writes the logs of each epoch to a CSV file, one row an epoch.

    Unlike `keras.callbacks.CSVLogger`, the file stays right when a run is resumed: rows
    of epochs that are trained again are replaced. Besides the logs there are `epoch`
    (from 1), `learning_rate` (at the first step) and `seconds`.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.path = Path(path)
        self._resumed = {}

    def on_train_begin(self, logs=None):
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> list[dict[str, str]]:
        """Returns the rows of the file; none if it does not exist.

        Raises:
            ValueError: If it is damaged.
        """
        if not self.path.exists():
            return []
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file, strict=True))
            for row in rows:
                # Epochs that differ in their logs leave empty cells.
                [float(row[name]) for name in row if row[name] != ""]
                int(row["epoch"])
        except (csv.Error, KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"it cannot be read ({error!r})") from error
        return rows

    def check(self, epochs: int) -> None:
        """Raises a ValueError unless the rows are those of so many epochs, or more."""
        found = [int(row["epoch"]) for row in self.read()]
        # Where no epoch is left to train, nothing would replace a row that is too many.
        if found != list(range(1, len(found) + 1)):
            raise self._damaged(f"its epochs are not 1, 2, 3, ... but {found}")
        if len(found) < epochs:
            raise self._damaged(f"it lacks some of the {epochs} finished epochs")

    def _damaged(self, reason):
        return ValueError(
            f"{self.path} is damaged: {reason}. Put a copy of it back, or train again "
            "in another folder"
        )

    def state(self) -> dict[str, float]:
        """Returns what is known of the current epoch, for a checkpoint within it."""
        return {
            "learning_rate": self._learning_rate,
            "seconds": round(self._seconds + time.monotonic() - self._start, 3),
        }

    def resume(self, state: dict[str, float]) -> None:
        """Takes over what `state` returned when the first epoch to come was begun."""
        self._resumed = state

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.monotonic()
        # After the epoch the schedule stands at the first step of the next.
        rate = float(self.model.optimizer.learning_rate)
        resumed, self._resumed = self._resumed, {}
        self._learning_rate = resumed.get("learning_rate", rate)
        self._seconds = resumed.get("seconds", 0.0)

    def on_epoch_end(self, epoch, logs=None):
        rows = [old for old in self.read() if int(old["epoch"]) <= epoch]
        rows.append({"epoch": epoch + 1, **(logs or {}), **self.state()})
        # Epochs may differ in their logs, as under `validation_freq=2`.
        columns = dict.fromkeys(name for row in rows for name in row)
        with replacing(self.path) as scratch, scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(rows)
