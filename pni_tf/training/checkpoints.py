"""Checkpoints from which a run continues as if it had not been interrupted."""

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from absl import logging

from pni_tf.checks import check_number
from pni_tf.distribution.workers import Workers
from pni_tf.files import cannot_load, file_digest, replacing
from pni_tf.training.callbacks import HistoryFile

_NAME = re.compile(r"epoch-(\d{5,})-step-(\d{7,})-([0-9a-f]{16})\.npz")


class Position(NamedTuple):
    """How far training has come: finished epochs, and steps of the one after them."""

    epoch: int = 0
    step: int = 0


class Checkpoint(keras.callbacks.Callback):
    """Saves everything that training needs to continue.

    A checkpoint holds all variables (weights, optimizer, the states of all generators)
    and, within an epoch, its metrics so far, so that a run that is continued by
    `restore` and `resume_fit` equals one that was not interrupted. It is made after
    each epoch, before each validation, and within epochs where `steps` or `minutes` say
    so. It is written aside and moved into place, and its name has a digest of its
    content, so that a damaged file is not mistaken for a good one. Weights or losses
    that are not finite are not saved.

    Args:
        directory: Folder of the checkpoints,
            `epoch-<finished epochs>-step-<steps after them>-<digest>.npz`.
        steps: Number of training steps between checkpoints within an epoch, or None.
        minutes: Minutes between checkpoints within an epoch, or None.
        keep: How many of the newest checkpoints to keep.
        history: Its part of an epoch is saved too.
        workers: The workers that train together. The first one writes; all of them read
            the same folder.

    Raises:
        ValueError: If a number is out of range.

    Example:

    >>> checkpoint = Checkpoint("checkpoints", minutes=10)
    >>> checkpoint.restore(trainer)
    >>> with checkpoint.stopping_on(signal.SIGTERM):
    ...     checkpoint.resume_fit(trainer, batches, epochs=160, steps_per_epoch=391)
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        steps: int | None = None,
        minutes: float | None = None,
        keep: int = 2,
        history: HistoryFile | None = None,
        workers: Workers | None = None,
    ):
        super().__init__()
        check_number("keep", keep, minimum=1, integer=True)
        if steps is not None:
            check_number("steps", steps, minimum=1, integer=True)
        if minutes is not None:
            check_number("minutes", minutes, above=0)
        self.directory = Path(directory)
        self.steps = steps
        self.minutes = minutes
        self.keep = keep
        self.history = history
        self.workers = workers or Workers()
        self._start = Position()  # The next `fit` starts here.
        self._metrics = []  # The metrics so far of the epoch that is continued.
        self._stop = None  # The signal that asks for an end.
        self._restored, self._damaged = False, []

    # ---- reading

    def restore(self, model: keras.Model) -> Position:
        """Loads the newest checkpoint into a compiled model.

        A damaged file is skipped, with a warning, in favour of the one before it.

        Returns:
            Where training continues; `Position(0, 0)` without a checkpoint.

        Raises:
            ValueError: If there are checkpoints, and all are damaged or the newest is
                of another network; or if workers do not see the same ones.
            OSError: If one cannot be read just now, which does not condemn it.
        """
        self._wait_for_the_chief()
        self._restored, self._damaged, position = True, [], Position()
        for found, path in reversed(self._existing()):
            if _digest(path) != _NAME.fullmatch(path.name)[3]:
                self._damaged.append(path)
                continue
            try:
                self._load(model, path)
            except (OSError, MemoryError):
                raise
            except Exception as error:  # NumPy and zipfile raise many kinds
                raise cannot_load(path, error) from error
            position = found
            break
        else:
            if self._damaged:
                raise ValueError(
                    "All checkpoints are damaged: their content does not match the "
                    "digests in their names. Remove the run directory to start again. "
                    f"Received: {[str(path) for path in self._damaged]}"
                )
        for path in self._damaged:
            logging.warning(
                "Skipped a damaged checkpoint: %s: its content does not match the "
                "digest in its name",
                path,
            )
        if (self.workers.gather([*position]) != [[*position]]).any():
            raise ValueError(
                "The workers do not see the same checkpoints: the run directory must "
                f"lie on a file system that all share. Received: {self.directory} at "
                f"{position} on worker {self.workers.index}"
            )
        self._start = position
        return position

    def _wait_for_the_chief(self):
        """Shared folders show new files to some workers up to a minute later."""
        for _ in range(20):
            newest = self.workers.gather([*self.position()])
            if (newest == newest[0]).all():
                break
            time.sleep(5)

    def position(self) -> Position:
        """Returns the position of the newest checkpoint."""
        return max((found for found, _ in self._existing()), default=Position())

    def _load(self, model, path):
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
        variables = _variables(model)
        with np.load(path, allow_pickle=False) as file:
            state = json.loads(str(file["state"]))
            values = [file[name] for name in file.files if name != "state"]
        if [v.shape for v in values] != [tuple(v.shape) for v in variables]:
            raise ValueError(
                f"it is of another network, with {len(values)} variables where this "
                f"one has {len(variables)}, or of other shapes; use another folder"
            )
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        self._metrics = [np.array(values) for values in state["metrics"]]
        if self.history is not None:
            self.history.resume(state["history"])

    def _existing(self):
        """Returns the positions of all checkpoints and their paths, in order."""
        paths = self.directory.glob("epoch-*.npz")
        named = [(_NAME.fullmatch(path.name), path) for path in paths]
        return sorted((Position(int(m[1]), int(m[2])), path) for m, path in named if m)

    # ---- when to write

    @contextlib.contextmanager
    def stopping_on(self, *signals: signal.Signals) -> Iterator[None]:
        """Within it, a signal makes a checkpoint and ends `fit` by KeyboardInterrupt.

        The checkpoint is made after the current step; a second signal does not wait
        for it. One worker that gets the signal stops all.
        """

        def ask(number, frame):
            if self._stop is not None:
                raise KeyboardInterrupt(signal.Signals(number).name)
            self._stop = signal.Signals(number)

        earlier = {number: signal.signal(number, ask) for number in signals}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
        if self._stop is not None:  # It came too late for `fit` to see it.
            raise KeyboardInterrupt(self._stop.name)

    def on_train_begin(self, logs=None):
        if not self._restored and self._existing():
            raise ValueError(
                f"{self.directory} has checkpoints of an earlier training: call "
                "`restore` first, which continues it, or use another folder"
            )
        self._restored = True
        if self.workers.is_chief:
            self.directory.mkdir(parents=True, exist_ok=True)
        self._saved_at = time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._done = self._start.step

    def on_train_batch_end(self, batch, logs=None):
        before, self._done = self._done, self._start.step + batch + 1
        if self._metrics:
            # Not earlier, because Keras makes some metrics in the first step.
            self._add_metrics()
        minutes = (time.monotonic() - self._saved_at) / 60
        due = self.minutes is not None and minutes >= self.minutes
        if self.steps is not None:
            due |= self._done // self.steps > before // self.steps
        due |= self._stop is not None
        # After the last step of an epoch there will be one anyway.
        if self._any(due) and self.params.get("steps") != batch + 1:
            self._save(Position(self._epoch, self._done), logs)
            self._end_if_asked()

    def on_test_begin(self, logs=None):
        self._save(Position(self._epoch, self._done), logs)

    def on_test_batch_end(self, batch, logs=None):
        self._end_if_asked()

    def on_epoch_end(self, epoch, logs=None):
        self._start = Position(epoch + 1)
        self._save(self._start, logs)
        self._end_if_asked()

    def _any(self, flag):
        """Returns whether any worker has the flag set."""
        return self.workers.gather([flag]).any()

    def _end_if_asked(self):
        if self._any(self._stop is not None):
            # The first to leave may take the others down before the chief has written.
            self.workers.barrier()
            raise KeyboardInterrupt((self._stop or signal.SIGTERM).name)

    # ---- writing

    def _save(self, position, logs):
        # By all workers, because metrics are added up over them.
        metrics = [v.numpy().tolist() for v in _metric_variables(self.model)]
        self._saved_at = time.monotonic()
        values = [_array(variable) for variable in _variables(self.model)]
        loss = np.mean((logs or {}).get("loss", 0.0))
        finite = all(np.isfinite(value).all() for value in [loss, *values])
        if not finite or not self.workers.is_chief:
            return
        epoch, step = position
        history = {} if self.history is None or not step else self.history.state()
        state = {"metrics": metrics if step else [], "history": history}
        newest = self.directory / "newest.npz"
        with replacing(newest) as scratch:
            np.savez(scratch, *values, state=json.dumps(state))
        name = f"epoch-{epoch:05d}-step-{step:07d}-{_digest(newest)}.npz"
        os.replace(newest, self.directory / name)
        for path in self._damaged:
            if path.name != name:  # A file of this name is whole now.
                path.unlink(missing_ok=True)
        self._damaged = []
        for _, old in self._existing()[: -self.keep]:
            old.unlink(missing_ok=True)

    def _add_metrics(self):
        """Adds the metrics that an epoch had before it was interrupted."""
        variables = _metric_variables(self.model)
        for variable, value in zip(variables, self._metrics, strict=True):
            variable.assign(variable.numpy() + value)
        self._metrics = []

    # ---- training

    def resume_fit(
        self,
        trainer: keras.Model,
        batches: Callable[[Position], object],
        *,
        epochs: int,
        steps_per_epoch: int,
        callbacks: list[keras.callbacks.Callback] = (),
        validation_data=None,
        validation_steps: int | None = None,
        **kwargs,
    ) -> None:
        """Calls the trainer's `fit`, from where `restore` has found it to be.

        Args:
            trainer: The compiled model.
            batches: Callable from a position to the batches after it, such as
                `training_batches` with its `first_epoch` and `first_step`.
            epochs: Number of epochs of the whole training.
            steps_per_epoch: Steps of a whole epoch.
            callbacks: Further callbacks; this one is called after them.
            validation_data, validation_steps: As of `fit`. Where a distributed dataset
                ends, each replica may have drawn noise for a step that none has
                finished: let it repeat, and give the number of steps.
            **kwargs: Further arguments of `fit`.
        """

        def run(first, last, steps):
            trainer.fit(
                batches(self._start),
                initial_epoch=first,
                epochs=last,
                steps_per_epoch=steps,
                validation_data=validation_data,
                validation_steps=validation_steps,
                callbacks=[*callbacks, self],
                shuffle=False,
                **kwargs,
            )

        epoch, step = self._start
        if 0 < step < steps_per_epoch:
            run(epoch, epoch + 1, steps_per_epoch - step)
        elif step:
            self._finish_epoch(
                trainer, [*callbacks, self], validation_data, validation_steps
            )
        if self._start.epoch < epochs:
            run(self._start.epoch, epochs, steps_per_epoch)

    def _finish_epoch(self, trainer, callbacks, validation_data, validation_steps):
        """Does what is left of an epoch after its last step."""
        epoch = self._start.epoch
        callbacks = keras.callbacks.CallbackList(callbacks, model=trainer)
        callbacks.on_train_begin()
        callbacks.on_epoch_begin(epoch)
        looking = keras.callbacks.LambdaCallback(
            on_test_batch_end=self.on_test_batch_end
        )
        validation = trainer.evaluate(
            validation_data,
            steps=validation_steps,
            callbacks=[looking],
            return_dict=True,
            verbose=0,
        )
        trainer.reset_metrics()
        self._add_metrics()
        logs = {k: float(v) for k, v in trainer.get_metrics_result().items()}
        logs.update({f"val_{name}": value for name, value in validation.items()})
        callbacks.on_epoch_end(epoch, logs)
        callbacks.on_train_end(logs)


# Keras' `save_weights` would drop the generators of layers such as Dropout, and leave
# an optimizer in memory at each call (Keras 3.15).
def _variables(model):
    """Returns all that training changes, except the metrics."""
    metrics = {id(variable) for variable in _metric_variables(model)}
    found = [*model.variables, *model.optimizer.variables]
    return [variable for variable in found if id(variable) not in metrics]


def _metric_variables(model):
    return [variable for metric in model.metrics for variable in metric.variables]


def _array(variable):
    value = variable.numpy()
    # NumPy's files know no bfloat16; all of its values are float32's.
    return value.astype("float32") if value.dtype.name == "bfloat16" else value


def _digest(path):
    return file_digest(path, name=False)[:16]
