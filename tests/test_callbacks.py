"""The callbacks: what they write, and what a run that died can be resumed from."""

import csv
import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pni_tf import FGSM, PGD, PNIAdversarialModel, alphas, inject_pni
from pni_tf.callbacks import AdversarialImages, AlphaLogger, Checkpoint, HistoryFile
from pni_tf.conversion import noise_wrappers

EPSILON = 0.1


def examples(count=8):
    rng = np.random.default_rng(5)
    images = rng.random((count, 2, 3, 1)).astype("float32")
    return images, rng.integers(0, 2, count)


def trainer_of(seed=0, location="w", eager=True, rate=0.1, attack=None):
    initializer = keras.initializers.GlorotUniform(seed)
    network = keras.Sequential(
        [
            keras.Input((2, 3, 1)),
            kl.Flatten(),
            kl.BatchNormalization(name="norm", center=False, scale=False),
            kl.Dense(2, kernel_initializer=initializer, name="dense"),
        ]
    )
    network = inject_pni(network, location, granularity="channelwise", seed=seed)
    trainer = PNIAdversarialModel(network, attack=attack, seed=seed)
    optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)
    trainer.compile(optimizer, run_eagerly=eager)
    return trainer


def fit(trainer, callbacks, **kwargs):
    kwargs = {"batch_size": 4, "shuffle": False, "verbose": 0, **kwargs}
    return trainer.fit(*examples(), callbacks=callbacks, **kwargs).history


def everything(trainer):
    """Returns the value of all that training depends on."""
    generators = [w.seed_generator for w in noise_wrappers(trainer.model)]
    states = [g.state for g in (*generators, trainer.seed_generator)]
    found = [*trainer.weights, *trainer.optimizer.variables, *states]
    return [variable.numpy() for variable in found]


def assert_same(values, expected):
    for ours, theirs in zip(values, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def files_in(directory):
    return sorted(path.name for path in directory.iterdir())


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


def cut(path, size):
    path.write_bytes(path.read_bytes()[: int(size * path.stat().st_size)])


def test_nothing_to_restore(tmp_path):
    trainer = trainer_of()
    before = everything(trainer)
    checkpoint = Checkpoint(tmp_path / "missing")
    assert checkpoint.epochs() == checkpoint.restore(trainer) == 0
    assert_same(everything(trainer), before)


def test_restores_the_newest_checkpoint(two_checkpoints):
    checkpoint, values = two_checkpoints
    trainer = trainer_of(seed=1)
    assert checkpoint.epochs() == checkpoint.restore(trainer) == 2
    assert_same(everything(trainer), values[1])


@pytest.mark.parametrize("size", [0.0, 0.5, 0.99])
def test_falls_back_to_the_checkpoint_before_a_truncated_one(two_checkpoints, size):
    checkpoint, values = two_checkpoints
    cut(checkpoint.directory / "epoch-00002.weights.h5", size)
    trainer = trainer_of(seed=1)
    assert checkpoint.restore(trainer) == 1
    assert_same(everything(trainer), values[0])
    # From there training goes on as it did the first time.
    fit(trainer, [checkpoint], initial_epoch=1, epochs=2)
    assert_same(everything(trainer), values[1])


def test_error_when_all_checkpoints_are_damaged(two_checkpoints):
    checkpoint, _ = two_checkpoints
    for name in files_in(checkpoint.directory):
        cut(checkpoint.directory / name, 0.5)
    message = "No checkpoint can be read.*epoch-00002.weights.h5: .*epoch-00001"
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(trainer_of())


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
    assert Checkpoint(tmp_path).restore(resumed) == 1
    fit(resumed, None, initial_epoch=1, epochs=2)
    assert_same(everything(resumed), everything(whole))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interruption_while_writing_leaves_the_earlier_file(
    two_checkpoints, monkeypatch, error
):
    checkpoint, values = two_checkpoints
    trainer = checkpoint.model

    def dies(path, **kwargs):
        with open(path, "wb") as file:
            file.write(b"half a checkpoint")
        raise error

    monkeypatch.setattr(trainer, "save_weights", dies)
    for epoch in (1, 2):  # once where a file of the epoch exists, once where not
        with pytest.raises(error):
            checkpoint.on_epoch_end(epoch, {"loss": 1.0})
    monkeypatch.undo()
    restored = trainer_of(seed=1)
    assert checkpoint.restore(restored) == 2
    assert_same(everything(restored), values[1])
    checkpoint.on_epoch_end(2, {"loss": 1.0})  # what was left is not in the way
    assert files_in(checkpoint.directory) == [
        "epoch-00002.weights.h5",
        "epoch-00003.weights.h5",
    ]


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_keeps_the_newest_checkpoints(tmp_path, keep):
    checkpoint = Checkpoint(tmp_path, keep=keep)
    checkpoint.set_model(trainer_of())
    for epoch in (8, 9, 99_999):
        checkpoint.on_epoch_end(epoch, {"loss": 1.0})
    assert checkpoint.epochs() == 100_000
    epochs = (9, 10, 100_000)[-keep:]
    names = [f"epoch-{epoch:05d}.weights.h5" for epoch in epochs]
    assert files_in(tmp_path) == sorted(names)


@pytest.mark.parametrize("keep", [0, -1, 1.5])
def test_checkpoint_must_keep_something(tmp_path, keep):
    with pytest.raises(ValueError, match=f"`keep` must be .* keep={keep}"):
        Checkpoint(tmp_path, keep=keep)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["loss", "dense/kernel", "norm/moving_mean"])
def test_what_is_not_finite_is_not_saved(tmp_path, what, value):
    trainer = trainer_of()
    checkpoint = Checkpoint(tmp_path)
    checkpoint.set_model(trainer)
    logs = {"loss": 0.5, "adversarial_loss": np.nan}  # the latter in epochs of delay
    checkpoint.on_epoch_end(0, logs)
    if what == "loss":
        logs["loss"] = value
    else:
        (variable,) = (v for v in trainer.weights if v.path.endswith(what))
        variable.assign(np.where(np.arange(variable.shape[-1]) == 1, value, variable))
    checkpoint.on_epoch_end(1, logs)
    assert files_in(tmp_path) == ["epoch-00001.weights.h5"]


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def history_file(path, rate=0.1):
    history = HistoryFile(path)
    history.set_model(trainer_of(rate=rate))
    return history


def write_epoch(history, epoch, **logs):
    history.on_epoch_begin(epoch)
    history.on_epoch_end(epoch, logs)


def test_history_has_one_row_an_epoch(tmp_path):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [1, 3], [0.3, 0.2, 0.0]
    )
    trainer = trainer_of(rate=schedule)
    history = HistoryFile(tmp_path / "new" / "history.csv")
    logs = fit(trainer, history, epochs=2, validation_data=examples())
    rows = rows_of(history.path)
    assert rows == history.read()
    assert list(rows[0]) == ["epoch", *logs, "learning_rate", "seconds"]
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for name, values in logs.items():
        assert [float(row[name]) for row in rows] == values
    # Two steps an epoch: the rate of its first step.
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.3, 0.2])
    assert all(float(row["seconds"]) >= 0 for row in rows)
    assert files_in(tmp_path / "new") == ["history.csv"]


def test_history_replaces_rows_of_repeated_epochs(tmp_path):
    path = tmp_path / "history.csv"
    first = history_file(path)
    for epoch in range(4):
        write_epoch(first, epoch, loss=epoch)
    resumed = history_file(path)
    write_epoch(resumed, 2, loss=20)
    assert [(row["epoch"], row["loss"]) for row in rows_of(path)] == [
        ("1", "0"),
        ("2", "1"),
        ("3", "20"),
    ]


def test_history_of_epochs_with_different_logs(tmp_path):
    history = history_file(tmp_path / "history.csv")
    write_epoch(history, 0, loss=1)
    write_epoch(history, 1, loss=2, val_loss=3)
    write_epoch(history, 2, loss=4)
    found = [(row["loss"], row["val_loss"]) for row in rows_of(history.path)]
    assert found == [("1", ""), ("2", "3"), ("4", "")]


def test_history_survives_an_interruption_while_writing(tmp_path, monkeypatch):
    history = history_file(tmp_path / "history.csv")
    write_epoch(history, 0, loss=1)

    def dies(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(csv.DictWriter, "writerows", dies)
    with pytest.raises(KeyboardInterrupt):
        write_epoch(history, 1, loss=2)
    assert [row["loss"] for row in rows_of(history.path)] == ["1"]


def test_alphas_in_the_logs(tmp_path):
    trainer = trainer_of(location="w+a-b")
    for wrapper in noise_wrappers(trainer.model):
        wrapper.alphas[0].assign(-wrapper.alphas[0])
    before, after = (HistoryFile(tmp_path / name) for name in ("before", "after"))
    logs = fit(trainer, [before, AlphaLogger(), after])
    names = {f"alpha/{name}": a for name, a in alphas(trainer.model).items()}
    assert set(names) == {"alpha/dense", "alpha/dense.input"}
    for name, alpha in names.items():
        magnitude = np.abs(alpha).mean()
        assert magnitude != pytest.approx(0.25, abs=1e-6)  # it has learned
        assert logs[name] == [pytest.approx(magnitude)]
        assert float(rows_of(after.path)[0][name]) == logs[name][0]
        assert name not in rows_of(before.path)[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adversarial_images_in_tensorboard(tmp_path, dtype):
    images, labels = examples(5)
    trainer = trainer_of(location="none", rate=0.0)
    attack = FGSM(epsilon=EPSILON)
    fit(
        trainer,
        AdversarialImages(images.astype(dtype), labels, attack, tmp_path),
        epochs=2,
    )

    events = EventAccumulator(str(tmp_path)).Reload()
    (tag,) = events.Tags()["tensors"]
    found = events.Tensors(tag)
    assert [event.step for event in found] == [0, 1]
    # For two classes, FGSM on a linear model has a closed form.
    kernel = trainer.model.get_layer("dense").kernel.numpy()
    direction = np.sign(kernel[:, 1 - labels] - kernel[:, labels])
    direction = direction.T.reshape(images.shape)
    adversarial = np.clip(images + EPSILON * direction, 0, 1)
    magnified = (adversarial - images) / (2 * EPSILON) + 0.5
    rows = [np.concatenate(row, axis=1) for row in (images, adversarial, magnified)]
    for event in found:
        width, height, png = event.tensor_proto.string_val
        assert (int(width), int(height)) == (5 * 3, 3 * 2)
        picture = tf.io.decode_png(png).numpy() / 255
        # A PNG has steps of 1/255.
        np.testing.assert_allclose(picture, np.concatenate(rows), atol=1 / 255)


def test_adversarial_images_without_a_perturbation(tmp_path):
    images, labels = examples(2)
    callback = AdversarialImages(images, labels, FGSM(epsilon=0.0), tmp_path)
    fit(trainer_of(), callback)
    events = EventAccumulator(str(tmp_path)).Reload()
    (tag,) = events.Tags()["tensors"]
    png = events.Tensors(tag)[0].tensor_proto.string_val[2]
    grey = 127.5  # rounded up or down
    np.testing.assert_allclose(tf.io.decode_png(png)[4:], grey, atol=0.5)


def test_attacks_of_the_callback_differ_between_epochs(tmp_path):
    """Its random start follows the epoch, and repeats when the epoch does."""
    images, labels = examples(2)
    pictures = []
    for name in ("a", "b"):
        attack = dataclasses.replace(PGD(), steps=0, epsilon=EPSILON)
        callback = AdversarialImages(images, labels, attack, tmp_path / name)
        fit(trainer_of(), callback, epochs=2)
        events = EventAccumulator(str(tmp_path / name)).Reload()
        (tag,) = events.Tags()["tensors"]
        pictures.append([e.tensor_proto.string_val[2] for e in events.Tensors(tag)])
    assert pictures[0] == pictures[1]
    assert pictures[0][0] != pictures[0][1]


def test_looking_at_images_changes_nothing_that_is_trained(tmp_path):
    images, labels = examples(2)
    weights = []
    for callbacks in ([], [AdversarialImages(images, labels, PGD(), tmp_path)]):
        keras.utils.set_random_seed(0)
        trainer = trainer_of(location="w")
        fit(trainer, callbacks, epochs=2)
        weights.append(everything(trainer))
    assert_same(*weights)
