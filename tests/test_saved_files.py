"""What was saved loads in a new process, whatever is imported first, and years later.

Keras finds the classes of a file in its registry, which each process must fill anew.
`fixtures/v0.1` holds files of version 0.1, which every later version must read.
"""

import csv
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from forked_commands import Command
from keras import layers

from pni_tf import inject_pixeldp, inject_pni, inject_rse, load_target, strip_noise

ROOT = Path(__file__).parents[1]
V01 = Path(__file__).parent / "fixtures" / "v0.1"
OLD = dict(np.load(V01 / "noise_free_logits.npz"))
IMAGES = OLD.pop("images")
# Other processors add up float32 in another order; the logits are of the order of 1.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}

ORDERS = {
    "first": "import pni_tf, keras, tensorflow",
    "last": "import tensorflow, keras, pni_tf",
    "first, after a look and a reload": """
import importlib.util, pni_tf
importlib.util.find_spec("keras")
importlib.reload(pni_tf)
importlib.util.find_spec("keras")
assert not {"keras", "tensorflow"} & set(sys.modules)
import tensorflow, keras
""",
}
START = """
import runpy, sys
from pathlib import Path
%s
import numpy as np
folder, result = map(Path, sys.argv[1:])
images = np.load(folder / "images.npy")
files = sorted(folder.glob("*.keras"))
"""
LOAD_MODEL = """
models = {file.stem: keras.saving.load_model(file) for file in files}
found = {name: pni_tf.strip_noise(model)(images) for name, model in models.items()}
draws = {f"{name}, noisy": model(images) for name, model in models.items()}
np.savez(result, **found, **draws)
"""
LOAD_TARGET = """
files = [file for file in files if not file.stem.startswith("v0.1")]
targets = {file.stem: pni_tf.load_target(file) for file in files}
found = {n: target.noise_free.logits(images) for n, target in targets.items()}
np.savez(result, **found)
"""
EXPORT = f"""
for file in files:
    if not file.stem.startswith("v0.1"):
        sys.argv = ["bin/export", str(file), str(folder / file.stem)]
        try:
            runpy.run_path({str(ROOT / "bin" / "export")!r}, run_name="__main__")
        except SystemExit as end:
            assert not end.code, end.code
np.savez(result)
"""
SCRIPTS = {"load_model": LOAD_MODEL, "load_target": LOAD_TARGET}
LOADS = (
    ("load_model", "first"),
    ("load_model", "last"),
    ("load_target", "first, after a look and a reload"),
    ("load_target", "last"),
)


def network():
    inputs = keras.Input((8, 8, 1))
    x = layers.Rescaling(2.0, -1.0)(inputs)
    x = layers.ReLU()(layers.Conv2D(2, 3)(x))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def networks():
    """Yields names and networks: of every noise, every location, every granularity."""
    for location, granularity in (
        ("w", "channelwise"),
        ("a-a", "layerwise"),
        ("a-b", "elementwise"),
        ("i", "channelwise"),
        ("w+a-a", "elementwise"),
        ("w+a-b", "layerwise"),
    ):
        yield location, inject_pni(network(), location, granularity=granularity)
    yield "rse", inject_rse(network())
    for distribution in ("gaussian", "laplace"):
        yield distribution, inject_pixeldp(network(), distribution=distribution)


def run(*argv, cwd=None, **environment):
    """Runs Python in a new process, with this copy of the package."""
    return subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


def fork(*argv, cwd=ROOT):
    """Runs a script in a new process that has TensorFlow and Keras, and no more."""
    process = Command(*argv, folder=cwd, environment=os.environ)
    _, stderr = process.communicate(timeout=300)
    return SimpleNamespace(returncode=process.returncode, stderr=stderr)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Starts all processes, two at a time; returns what waits for their results."""
    folder = tmp_path_factory.mktemp("saved")
    np.save(folder / "images.npy", IMAGES)
    old, clean, draws = {}, {}, {}
    for path in V01.glob("*.keras"):
        shutil.copy(path, folder / f"v0.1 {path.name}")
        old[f"v0.1 {path.stem}"] = OLD[path.stem]
    for name, model in networks():
        model.save(folder / f"{name}.keras")
        clean[name] = strip_noise(model)(IMAGES).numpy()
        draws[name] = model(IMAGES).numpy()
    shutil.copytree(V01 / "run", folder / "run")

    def start(name, script, order):
        result, program = folder / f"{name}.npz", folder / f"{name}.py"
        program.write_text(START % ORDERS[order] + script)
        begin = fork if order == "last" else run
        ended = begin(program, folder, result)
        assert not ended.returncode, ended.stderr
        return dict(np.load(result))

    with ThreadPoolExecutor(2) as pool:
        yield SimpleNamespace(
            folder=folder,
            old=old,
            clean=clean,
            draws=draws,
            loads={
                load: pool.submit(start, i, SCRIPTS[load[0]], load[1])
                for i, load in enumerate(LOADS)
            },
            export=pool.submit(start, "exports", EXPORT, "last"),
            train=pool.submit(
                fork, ROOT / "bin" / "train", "--flagfile=run/flags.cfg", cwd=folder
            ),
        )


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, logits in expected.items():
        np.testing.assert_allclose(found[name], logits, err_msg=name, **ROUNDING)


@pytest.mark.parametrize("order", ["first", "last"])
def test_keras_loads_each_file(order, processes):
    """The logits without noise are those of before, and the draws continue."""
    found = processes.loads["load_model", order].result()
    draws = {name: found[f"{name}, noisy"] for name in processes.draws}
    assert_equal(draws, processes.draws)
    clean = {name: logits for name, logits in found.items() if ", noisy" not in name}
    assert_equal(clean, processes.clean | processes.old)


@pytest.mark.parametrize("order", ["first, after a look and a reload", "last"])
def test_load_target_loads_each_file(order, processes):
    assert_equal(processes.loads["load_target", order].result(), processes.clean)


def test_bin_export_loads_each_file(processes):
    processes.export.result()
    loaded = {
        name: tf.saved_model.load(processes.folder / name) for name in processes.clean
    }
    found = {name: export.serve_clean(IMAGES) for name, export in loaded.items()}
    assert_equal(found, processes.clean)


def test_an_export_of_version_0_1_loads():
    loaded = tf.saved_model.load(V01 / "saved_model")
    target = load_target(V01 / "saved_model")
    for logits in (loaded.serve_clean, target.noise_free.logits):
        assert_equal({"": logits(tf.constant(IMAGES))}, {"": OLD["saved_model"]})


def test_a_run_of_version_0_1_goes_on(processes):
    """From its checkpoint after epoch 1 of 2, with its flags, to where it would be."""
    ended = processes.train.result()
    assert not ended.returncode, ended.stderr
    with (processes.folder / "run" / "history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    (path,) = (processes.folder / "run" / "checkpoints").glob("epoch-00002-*")
    found, expected = np.load(path), np.load(V01 / "run_after_epoch_2.npz")
    assert found.files == expected.files
    for name in set(found.files) - {"state"}:
        # Rounding may turn the sign of a small gradient, which moves a pixel by 0.08.
        np.testing.assert_allclose(
            found[name], expected[name], rtol=1e-2, atol=1e-3, err_msg=name
        )


@pytest.mark.parametrize("use", ["import keras", "pni_tf.PGD"])
def test_another_backend_of_keras_is_named(use):
    ended = run("-c", f"import pni_tf\n{use}", KERAS_BACKEND="jax")
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: pni_tf needs Keras to run on TensorFlow")
    assert last.endswith("KERAS_BACKEND='jax'")
