"""The scripts in examples/, on an export, against what the network itself says."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from pni_tf import export_saved_model, inject_pni, load_dataset, strip_noise

EXAMPLES = Path(__file__).parents[1] / "examples"
COUNT, EPSILON, DRAWS, STEPS = 80, 0.1, 3, 8
ONE, SEVERAL = "PGD, draws a step: 1", f"PGD, draws a step: {DRAWS}"
TOOLS = ("tensorflow", "foolbox", "art")


def accuracy(logits, labels):
    return 100 * np.mean(np.argmax(logits, -1) == labels)


def example(name):
    """Imports a script, which is in no package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", test_examples=COUNT)


@pytest.fixture(scope="module")
def network(digits):
    """Accurate without noise, and with so much of it that single draws differ."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    images, labels = digits.train.images_float(), digits.train.labels
    model.fit(images, labels, batch_size=64, epochs=2, verbose=0)
    return inject_pni(model, "w", initial_alpha=0.5)


@pytest.fixture(scope="module")
def tables(network, tmp_path_factory):
    """What the scripts print: of each tool a row an attack, by its name."""
    folder = tmp_path_factory.mktemp("examples")
    export_saved_model(network, folder / "saved_model")
    options = {"epsilon": EPSILON, "steps": STEPS, "draws": DRAWS, "examples": COUNT}
    # Importing ART writes to the home directory.
    environment = {**os.environ, "HOME": str(folder)}
    processes = {}
    for tool in TOOLS:
        # Not `importorskip`: importing ART reconfigures logging.
        if importlib.util.find_spec(tool) is None:
            continue
        script = EXAMPLES / f"attack_with_{tool}.py"
        command = [sys.executable, str(script), str(folder / "saved_model")]
        processes[tool] = subprocess.Popen(
            command + [f"--{name}={value}" for name, value in options.items()],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    found = {}
    for tool, process in processes.items():
        printed, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        found[tool] = parsed(printed)
    return found


def parsed(printed):
    first, head, *lines = printed.splitlines()
    assert first.startswith(f"{COUNT} test images")
    columns = re.split(r"  +", head)
    rows = {}
    for line in lines:
        name, *cells = re.split(r"  +", line)
        rows[name] = dict(zip(columns[1:], cells, strict=True))
        mean, std = rows[name].pop("fresh draws").split(" ± ")
        rows[name].update({"fresh draws": mean, "std": std})
        rows[name] = {column: float(cell) for column, cell in rows[name].items()}
    return rows


@pytest.fixture(params=TOOLS)
def table(request, tables):
    if request.param not in tables:
        pytest.skip(f"{request.param} is not installed")
    return tables[request.param]


def test_clean_accuracies_are_those_of_the_network(table, network, digits):
    images, labels = digits.test.images_float(), digits.test.labels
    clean = accuracy(strip_noise(network)(images), labels)
    assert clean > 80
    assert table["none"]["noise off"] == pytest.approx(clean, abs=0.005)
    draws = [accuracy(network(images), labels) for _ in range(100)]
    spread = np.std(draws, ddof=1)
    assert spread > 1
    # The mean of 20 draws has a standard error of its own.
    assert table["none"]["fresh draws"] == pytest.approx(
        np.mean(draws), abs=5 * spread / 20**0.5
    )
    assert spread / 2 < table["none"]["std"] < 2 * spread
    assert table["none"]["max change"] == 0


def test_attacks_lower_the_accuracy_within_the_bound(table):
    assert {"none", ONE, SEVERAL} <= set(table)
    for name, row in table.items():
        if name != "none":
            assert row["fresh draws"] < table["none"]["fresh draws"] - 10
            assert row["noise off"] < table["none"]["noise off"] - 10
            assert 0.9 * EPSILON < row["max change"] <= EPSILON + 1e-4


def test_foolbox_reports_more_success_than_fresh_draws_confirm(tables):
    if "foolbox" not in tables:
        pytest.skip("foolbox is not installed")
    row = tables["foolbox"]["the same, best of 10 runs"]
    assert row["claimed"] < row["fresh draws"] - 2 * row["std"]


def test_the_mean_gradient_is_of_separate_calls(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    kernels = tf.random.normal([4, 6, 3])
    images, labels = tf.random.uniform([5, 6]), tf.range(5) % 3
    calls = iter(kernels)
    mean = example("attack_with_tensorflow").mean_gradient(
        lambda images: images @ next(calls), images, labels, draws=4
    )
    # By hand: (softmax - one-hot) times the kernel, the mean over the kernels.
    errors = tf.nn.softmax(images @ kernels) - tf.one_hot(labels, 3)
    expected = tf.reduce_mean(errors @ tf.transpose(kernels, [0, 2, 1]), 0)
    np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Please import `gaussian_filter`:DeprecationWarning")
def test_foolbox_averages_separate_calls():
    foolbox = pytest.importorskip("foolbox")
    sizes = []

    def serve(images):
        sizes.append(len(images))
        return tf.fill([len(images), 3], float(len(sizes)))

    model = foolbox.TensorFlowModel(serve, bounds=(0, 1), device="/CPU:0")
    mean = foolbox.models.ExpectationOverTransformationWrapper(model, n_steps=4)
    logits = mean(tf.zeros([2, 8, 8, 1]))
    assert sizes == [2] * 4
    np.testing.assert_allclose(logits, np.full([2, 3], 2.5))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_no_script_needs_pni_tf(path):
    assert not re.search(r"^\s*(import|from) pni_tf", path.read_text(), re.MULTILINE)
