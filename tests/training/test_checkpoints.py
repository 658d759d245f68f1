"""Checkpoints: a run that was interrupted anywhere ends as the one that was not."""

import csv
import hashlib
import os
import re
import signal
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_trainer import (
    EPSILON,
    assert_same,
    everything,
    examples,
    files_in,
    fit,
    trainer_of,
)

from pni_tf import PGD, PNIAdversarialModel
from pni_tf.training.callbacks import HistoryFile
from pni_tf.training.checkpoints import Checkpoint, Position

STEPS, EPOCHS = 4, 3
IMAGES, LABELS = examples()
ATTACK = PGD(epsilon=EPSILON, steps=1)


def batches(position):
    """Two images a step, the same in every epoch."""
    dataset = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(2)
    return dataset.skip(position.step).concatenate(dataset.repeat())


def named(path):
    """Returns the names of all checkpoints without their digests."""
    return [re.fullmatch(r"(.*)-[0-9a-f]{16}\.npz", name)[1] for name in files_in(path)]


class Dies(keras.callbacks.Callback):
    """Ends the process, as it were, after a step or in the validation of an epoch."""

    def __init__(self, epoch, step):
        super().__init__()
        self.epoch, self.step, self.now = epoch, step, None

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, self.step):
            raise KeyboardInterrupt("killed")

    def on_test_batch_end(self, batch, logs=None):
        if (self.now, STEPS) == (self.epoch, self.step):
            raise KeyboardInterrupt("killed")


def run(folder, *callbacks, seed=0, validation=True, **kwargs):
    """Trains, or continues, in a folder; returns the trainer and its history."""
    metrics = [keras.metrics.SparseCategoricalAccuracy(name="own")]
    trainer = trainer_of(seed, "w+a-a", attack=ATTACK, metrics=metrics)
    history = HistoryFile(folder / "history.csv")
    checkpoint = Checkpoint(folder / "checkpoints", history=history, **kwargs)
    checkpoint.restore(trainer)
    held_out = {}
    if validation:
        held_out = {
            "validation_data": tf.data.Dataset.from_tensors((IMAGES, LABELS)).repeat(),
            "validation_steps": 1,
        }
    with checkpoint.stopping_on(signal.SIGTERM):
        checkpoint.resume_fit(
            trainer,
            batches,
            epochs=EPOCHS,
            steps_per_epoch=STEPS,
            callbacks=[*callbacks, history],
            verbose=0,
            **held_out,
        )
    with history.path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return trainer, [{**row, "seconds": None} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    keras.utils.set_random_seed(0)
    return {
        validation: run(tmp_path_factory.mktemp("whole"), validation=validation)
        for validation in (True, False)
    }


@pytest.mark.parametrize(
    ("dies", "steps", "validation", "made"),
    [
        # The callback that dies is called before a checkpoint of the same step.
        ((0, 0), 1, True, []),
        ((1, 2), 2, True, [(1, 0), (1, 2)]),
        ((1, 2), 3, False, [(0, 3), (1, 0)]),
        ((1, STEPS - 1), 1, False, [(1, 2), (1, 3)]),
        ((1, STEPS - 1), 3, True, [(1, 0), (1, 3)]),
        ((1, STEPS), None, True, [(1, 0), (1, 4)]),  # It dies in the validation.
        ((2, 1), None, False, [(1, 0), (2, 0)]),
    ],
)
def test_a_run_that_died_ends_as_one_that_did_not(
    tmp_path, whole, dies, steps, validation, made
):
    """Weights, optimizer, generators, metrics and history are the very same."""
    with pytest.raises(KeyboardInterrupt, match="killed"):
        run(tmp_path, Dies(*dies), steps=steps, validation=validation)
    assert named(tmp_path / "checkpoints") == [
        f"epoch-{epoch:05d}-step-{step:07d}" for epoch, step in made
    ]
    # Another seed where there is a checkpoint, which brings all that matters.
    resumed, rows = run(
        tmp_path, seed=7 if made else 0, steps=steps, validation=validation
    )
    expected, expected_rows = whole[validation]
    assert_same(everything(resumed), everything(expected))
    assert rows == expected_rows


def test_checkpoints_by_time(tmp_path, monkeypatch):
    """A clock that advances by a minute at each look."""
    ticks = iter(range(0, 10**6, 60))
    clock = SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setattr("pni_tf.training.checkpoints.time", clock)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Dies(0, 3), minutes=0.5, keep=9)
    assert len(named(tmp_path / "checkpoints")) == 3
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "rare", Dies(0, 3), minutes=10, keep=9)
    assert named(tmp_path / "rare" / "checkpoints") == []


class Signals(keras.callbacks.Callback):
    """Sends this process a signal at the begin of a step, or of a validation."""

    def __init__(self, *moments):
        super().__init__()
        self.moments = list(moments)

    def _at(self, moment):
        if moment in self.moments:
            self.moments.remove(moment)
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_begin(self, batch, logs=None):
        self._at(batch)

    def on_test_begin(self, logs=None):
        self._at("validation")


@pytest.mark.parametrize(
    ("moment", "position"),
    [(0, (0, 1)), (2, (0, 3)), (3, (0, 4)), ("validation", (0, 4))],
)
def test_a_signal_makes_a_checkpoint_at_once(tmp_path, whole, moment, position):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        run(tmp_path, Signals(moment))
    assert signal.getsignal(signal.SIGTERM) is handler
    assert Checkpoint(tmp_path / "checkpoints").position() == position
    if moment == 2:  # Above, runs continue from the other positions.
        resumed, rows = run(tmp_path, seed=7)
        assert_same(everything(resumed), everything(whole[True][0]))
        assert rows == whole[True][1]


def test_a_second_signal_does_not_wait(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    with (
        pytest.raises(KeyboardInterrupt, match="SIGINT"),
        checkpoint.stopping_on(signal.SIGINT, signal.SIGTERM),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)


def test_nothing_to_restore(tmp_path):
    trainer = trainer_of()
    before = everything(trainer)
    checkpoint = Checkpoint(tmp_path / "missing")
    assert checkpoint.position() == checkpoint.restore(trainer) == Position(0, 0)
    assert_same(everything(trainer), before)


@pytest.fixture
def two_checkpoints(tmp_path):
    """A checkpoint after each of two epochs, and the values after each."""
    checkpoint = Checkpoint(tmp_path / "checkpoints")
    trainer = trainer_of()
    values = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: values.append(everything(trainer))
    )
    fit(trainer, [checkpoint, record], epochs=2)
    return checkpoint, values


def paths(checkpoint):
    return sorted(checkpoint.directory.iterdir())


def test_restores_the_newest_checkpoint(two_checkpoints):
    checkpoint, values = two_checkpoints
    trainer = trainer_of(seed=1)
    assert checkpoint.position() == checkpoint.restore(trainer) == (2, 0)
    assert_same(everything(trainer), values[1])


@pytest.mark.parametrize("size", [0.0, 0.5, 0.99])
def test_falls_back_to_the_checkpoint_before_a_truncated_one(
    two_checkpoints, size, caplog
):
    checkpoint, values = two_checkpoints
    newest = paths(checkpoint)[-1]
    newest.write_bytes(newest.read_bytes()[: int(size * newest.stat().st_size)])
    trainer = trainer_of(seed=1)
    assert checkpoint.restore(trainer) == (1, 0)
    assert_same(everything(trainer), values[0])
    assert "Skipped a damaged checkpoint" in caplog.text
    assert newest.name in caplog.text
    # From there training runs as it did the first time, and the good file replaces
    # the damaged one.
    fit(trainer, [checkpoint], initial_epoch=1, epochs=2)
    assert_same(everything(trainer), values[1])
    assert named(checkpoint.directory) == [
        "epoch-00001-step-0000000",
        "epoch-00002-step-0000000",
    ]
    assert checkpoint.restore(trainer_of()) == (2, 0)


def test_a_flipped_bit_anywhere_is_found(two_checkpoints):
    checkpoint, values = two_checkpoints
    newest = paths(checkpoint)[-1]
    content = newest.read_bytes()
    trainer = trainer_of(seed=1)
    for position in np.linspace(0, len(content) - 1, 16).astype(int):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        newest.write_bytes(damaged)
        assert checkpoint.restore(trainer) == (1, 0)
    assert_same(everything(trainer), values[0])


def test_error_when_all_checkpoints_are_damaged(two_checkpoints):
    checkpoint, _ = two_checkpoints
    for path in paths(checkpoint):
        path.write_bytes(path.read_bytes()[:100])
    message = "All checkpoints are damaged.*epoch-00002-.*epoch-00001"
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(trainer_of())
    assert len(paths(checkpoint)) == 2  # Nothing is removed.


def test_a_checkpoint_that_cannot_be_read_just_now_is_kept(
    two_checkpoints, monkeypatch
):
    checkpoint, values = two_checkpoints
    with monkeypatch.context() as patched:
        patched.setattr(np, "load", lambda *args, **kwargs: os.open("/", os.O_WRONLY))
        with pytest.raises(OSError, match="Is a directory"):
            checkpoint.restore(trainer_of())
    trainer = trainer_of(seed=1)
    assert checkpoint.restore(trainer) == (2, 0)
    assert_same(everything(trainer), values[1])


def test_fit_does_not_take_the_place_of_checkpoints_that_it_did_not_restore(
    two_checkpoints,
):
    checkpoint, _ = two_checkpoints
    before = paths(checkpoint)
    other = Checkpoint(checkpoint.directory)
    with pytest.raises(ValueError, match="call `restore` first"):
        fit(trainer_of(), [other], epochs=1)
    assert paths(checkpoint) == before


def test_a_signal_that_comes_too_late_for_fit_is_not_lost(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(KeyboardInterrupt, match="SIGTERM"),
        checkpoint.stopping_on(signal.SIGTERM),
    ):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_files_are_left_alone(two_checkpoints):
    checkpoint, _ = two_checkpoints
    other = checkpoint.directory / "epoch-00009.npz"
    other.write_text("mine")
    assert checkpoint.position() == (2, 0)
    checkpoint.on_epoch_end(2, {"loss": 1.0})
    assert other.read_text() == "mine"


def test_a_checkpoint_of_another_network_is_refused(two_checkpoints):
    checkpoint, _ = two_checkpoints
    with pytest.raises(ValueError, match="epoch-00002.*it is of another network"):
        checkpoint.restore(trainer_of(location="w+a-a"))


def test_no_checkpoint_runs_code(two_checkpoints):
    """A pickle inside is refused, even under the right digest."""
    checkpoint, _ = two_checkpoints
    ran = []

    class Attack:
        def __reduce__(self):
            return (ran.append, (1,))

    for path in paths(checkpoint):
        path.unlink()
    evil = checkpoint.directory / "evil.npz"
    values = np.array([Attack()], dtype=object)
    np.savez(evil, values, state=values)
    digest = hashlib.sha256(evil.read_bytes()).hexdigest()[:16]
    evil.rename(checkpoint.directory / f"epoch-00001-step-0000000-{digest}.npz")
    with pytest.raises(ValueError, match="allow_pickle=False"):
        checkpoint.restore(trainer_of())
    assert ran == []


def test_dropout_goes_on_where_it_was(tmp_path):
    """Keras' own files drop the state of its generator."""

    def trainer(seed):
        initializer = keras.initializers.GlorotUniform(0)
        network = keras.Sequential(
            [
                keras.Input((2, 3, 1)),
                keras.layers.Flatten(),
                keras.layers.Dropout(0.5, seed=seed),
                keras.layers.Dense(2, kernel_initializer=initializer),
            ]
        )
        found = PNIAdversarialModel(network, seed=0)
        found.compile(keras.optimizers.Adam(0.1))
        return found

    whole = trainer(seed=3)
    fit(whole, Checkpoint(tmp_path), epochs=1)
    fit(whole, None, initial_epoch=1, epochs=2)
    resumed = trainer(seed=4)
    Checkpoint(tmp_path).restore(resumed)
    fit(resumed, None, initial_epoch=1, epochs=2)
    assert_same(everything(resumed), everything(whole))


def test_resumes_on_two_devices(tmp_path, mirrored_strategy):
    """In a graph; also where `restore` is called outside the strategy's scope."""

    def fresh(seed):
        with mirrored_strategy.scope():
            attack = PGD(epsilon=EPSILON, steps=2)
            return trainer_of(seed, "w+a-a", eager=False, attack=attack)

    whole = fresh(seed=0)
    fit(whole, Checkpoint(tmp_path))
    fit(whole, None, initial_epoch=1, epochs=2)
    resumed = fresh(seed=1)
    assert Checkpoint(tmp_path).restore(resumed) == (1, 0)
    fit(resumed, None, initial_epoch=1, epochs=2)
    assert_same(everything(resumed), everything(whole))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left")])
def test_interruption_while_writing_leaves_the_earlier_files(
    two_checkpoints, monkeypatch, error
):
    checkpoint, values = two_checkpoints
    before = files_in(checkpoint.directory)

    def dies(path, *args, **kwargs):
        with open(path, "wb") as file:
            file.write(b"half a checkpoint")
        raise error

    monkeypatch.setattr(np, "savez", dies)
    kind = type(error) if isinstance(error, OSError) else error
    for epoch in (1, 2):  # A file exists for the first only.
        with pytest.raises(kind, match="cannot write.*No space left|^$"):
            checkpoint.on_epoch_end(epoch, {"loss": 1.0})
        assert files_in(checkpoint.directory) == before
    monkeypatch.undo()
    restored = trainer_of(seed=1)
    assert checkpoint.restore(restored) == (2, 0)
    assert_same(everything(restored), values[1])
    checkpoint.on_epoch_end(2, {"loss": 1.0})
    assert named(checkpoint.directory) == [
        "epoch-00002-step-0000000",
        "epoch-00003-step-0000000",
    ]


def test_a_folder_that_was_deleted_is_an_error(two_checkpoints):
    checkpoint, _ = two_checkpoints
    for path in paths(checkpoint):
        path.unlink()
    checkpoint.directory.rmdir()
    with pytest.raises(OSError, match="cannot write .*newest.npz"):
        checkpoint.on_epoch_end(2, {"loss": 1.0})
    assert not checkpoint.directory.exists()


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_keeps_the_newest_checkpoints(tmp_path, keep):
    checkpoint = Checkpoint(tmp_path, keep=keep)
    checkpoint.set_model(trainer_of())
    checkpoint.on_train_begin()
    for epoch in (8, 9, 99_999):
        checkpoint.on_epoch_end(epoch, {"loss": 1.0})
    assert checkpoint.position() == (100_000, 0)
    epochs = (9, 10, 100_000)[-keep:]
    names = [f"epoch-{epoch:05d}-step-0000000" for epoch in epochs]
    assert named(tmp_path) == sorted(names)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("keep", value) for value in (0, -1, 1.5)),
        *(("steps", value) for value in (0, -1, 1.5)),
        *(("minutes", value) for value in (0, -1, float("nan"))),
    ],
)
def test_options_out_of_range(tmp_path, option, value):
    with pytest.raises(ValueError, match=f"`{option}` must be .* {option}={value}"):
        Checkpoint(tmp_path, **{option: value})


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["loss", "dense/kernel", "norm/moving_mean"])
def test_what_is_not_finite_is_not_saved(tmp_path, what, value):
    trainer = trainer_of()
    checkpoint = Checkpoint(tmp_path)
    checkpoint.set_model(trainer)
    checkpoint.on_train_begin()
    logs = {"loss": 0.5, "adversarial_loss": np.nan}  # It is NaN in epochs of delay.
    checkpoint.on_epoch_end(0, logs)
    if what == "loss":
        logs["loss"] = value
    else:
        (variable,) = (v for v in trainer.weights if v.path.endswith(what))
        variable.assign(np.where(np.arange(variable.shape[-1]) == 1, value, variable))
    checkpoint.on_epoch_end(1, logs)
    assert named(tmp_path) == ["epoch-00001-step-0000000"]
