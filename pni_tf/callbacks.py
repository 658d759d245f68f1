"""Callbacks that Keras does not already have."""

import csv
import math
import os
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from pni_tf.attacks import Attack
from pni_tf.attacks.base import check_number
from pni_tf.conversion import alphas, noise_wrappers


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

    Args:
        images: Float32 `[N, H, W, C]` in `[0, 1]`; a handful.
        labels: Integers `[N]`.
        attack: The attack.
        log_dir: Folder of the event files.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        attack: Attack,
        log_dir: str | os.PathLike,
    ):
        super().__init__()
        self.images = tf.constant(images, tf.float32)
        self.labels = tf.constant(labels)
        self.attack = attack
        self.log_dir = str(log_dir)

    def on_train_begin(self, logs=None):
        network = self.model.model
        self._perturb = tf.function(
            lambda seed: self.attack.perturb(
                lambda images: network(images, training=False),
                self.images,
                self.labels,
                seed=seed,
            )
        )
        self._writer = tf.summary.create_file_writer(self.log_dir)

    def on_epoch_end(self, epoch, logs=None):
        # Looking must not change what is trained: the draws that it takes are put back.
        states = [w.seed_generator.state for w in noise_wrappers(self.model.model)]
        before = [state.numpy() for state in states]
        adversarial = self._perturb(tf.constant([0, epoch], tf.int64))
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


class HistoryFile(keras.callbacks.Callback):
    """Writes the logs of each epoch to a CSV file, one row an epoch.

    Unlike `keras.callbacks.CSVLogger`, the file stays right when a run is resumed: rows
    of epochs that are trained again are replaced. Besides the logs there are `epoch`
    (from 1), `learning_rate` (at the first step) and `seconds`.

    Args:
        path: The file.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.path = Path(path)

    def read(self) -> list[dict[str, str]]:
        """Returns the rows of the file; none if it does not exist."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.monotonic()
        # After the epoch the schedule stands at the first step of the next.
        self._learning_rate = float(self.model.optimizer.learning_rate)

    def on_epoch_end(self, epoch, logs=None):
        row = {
            "epoch": epoch + 1,
            **(logs or {}),
            "learning_rate": self._learning_rate,
            "seconds": round(time.monotonic() - self._start, 3),
        }
        rows = [old for old in self.read() if int(old["epoch"]) <= epoch]
        rows.append(row)
        # Epochs may differ in their logs, as under `validation_freq=2`.
        columns = dict.fromkeys(name for row in rows for name in row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_suffix(".unfinished")
        with scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(rows)
        os.replace(scratch, self.path)


class Checkpoint(keras.callbacks.Callback):
    """Saves everything that training needs to go on, after each epoch.

    A checkpoint holds the weights, the optimizer and the states of all noise
    generators, so that a run that is resumed equals one that was not interrupted. It is
    written aside and moved into place: an interruption while it is written leaves the
    one before. Weights or losses that are not finite are not saved.

    Args:
        directory: Folder of the checkpoints, `epoch-<n>.weights.h5` after n epochs.
        keep: Number of newest checkpoints to keep.

    Raises:
        ValueError: If `keep` is not a positive integer.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2):
        super().__init__()
        check_number("keep", keep, minimum=1, integer=True)
        self.directory = Path(directory)
        self.keep = keep

    def restore(self, model: keras.Model) -> int:
        """Loads the newest checkpoint into a compiled model.

        A damaged file is skipped in favour of the one before it.

        Returns:
            The number of finished epochs; 0 without a checkpoint.

        Raises:
            ValueError: If there are checkpoints, and all are damaged.
        """
        errors = []
        existing = self._existing()
        if existing:
            with model.distribute_strategy.scope():
                model.optimizer.build(model.trainable_variables)
        for epoch, path in reversed(existing):
            try:
                model.load_weights(path)
            except Exception as error:  # h5py and Keras raise many kinds
                reason = str(error).strip().splitlines() or [repr(error)]
                errors.append(f"{path}: {reason[0]}")
                continue
            for line in errors:
                logging.warning("Skipped a damaged checkpoint: %s", line)
            return epoch
        if errors:
            raise ValueError(
                "No checkpoint can be read; remove the run directory to start again. "
                f"Received: {'; '.join(errors)}"
            )
        return 0

    def on_epoch_end(self, epoch, logs=None):
        weights = [variable.numpy() for variable in self.model.weights]
        finite = all(np.isfinite(weight).all() for weight in weights)
        if not finite or not math.isfinite((logs or {}).get("loss", 0.0)):
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"epoch-{epoch + 1:05d}.weights.h5"
        scratch = self.directory / "unfinished.weights.h5"
        self.model.save_weights(scratch, overwrite=True)
        os.replace(scratch, path)
        for _, old in self._existing()[: -self.keep]:
            old.unlink()

    def epochs(self) -> int:
        """Returns the number of finished epochs of the newest checkpoint, or 0."""
        return max((epoch for epoch, _ in self._existing()), default=0)

    def _existing(self):
        found = []
        for path in self.directory.glob("epoch-*.weights.h5"):
            epoch = path.name.removeprefix("epoch-").removesuffix(".weights.h5")
            found.append((int(epoch), path))
        return sorted(found)
