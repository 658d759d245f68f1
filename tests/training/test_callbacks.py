"""The callbacks: what they write."""

import csv
import dataclasses

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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pni_tf import FGSM, PGD, alphas
from pni_tf.noise.graph import noise_wrappers
from pni_tf.training.callbacks import AdversarialImages, AlphaLogger, HistoryFile


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def history_file(path, rate=0.1):
    history = HistoryFile(path)
    history.set_model(trainer_of(rate=rate))
    history.on_train_begin()
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


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"words",
        b"epoch,loss\n1,0.5\nx,0.4\n",
        b"epoch,loss\n1,0.5\n2\n",
        b"epoch,loss\n1,0.5\n2,0.4,0.3\n",
        b"epoch,loss\n1,0.5\n2,many\n",
        b"epoch,loss\n1,0.5\n2,0.\x00\n",
        b"epoch,loss\n1,0.5\n2,\xff\n",
        b"1,0.5\n2,0.4\n",
        b"epoch,loss\n1,0.5\n",
        b"epoch,loss\n2,0.5\n1,0.5\n",
    ],
)
def test_a_damaged_history_is_named(tmp_path, content):
    path = tmp_path / "history.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is damaged: .* Put a copy of it"):
        HistoryFile(path).check(2)


def test_a_history_may_be_ahead_of_the_checkpoint(tmp_path):
    path = tmp_path / "history.csv"
    HistoryFile(path).check(0)
    path.write_text("epoch,loss,val\n1,0.5,\n2,0.4,1\n3,0.3,\n")
    HistoryFile(path).check(2)


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
        assert magnitude != pytest.approx(0.25, abs=1e-6)  # It has learned.
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
    grey = 127.5  # It is rounded up or down.
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
