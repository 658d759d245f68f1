"""Damaged and foreign model files, given to `load_target`: an error, or as before."""

import io
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from cases import accidents, cases
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

from pni_tf import export_saved_model, inject_pni, load_target

# Keras' and zipfile's, of what a damaged file asks of them.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SHAPE = (6, 5, 1)
IMAGES = np.random.default_rng(0).random((5, *SHAPE)).astype("float32")
ODD = st.sampled_from(
    (None, True, -1, 0, 1.5, "", "x", [], {}, [1, 2], "__import__('os')", "../x", 7)
)
NAMES = st.sampled_from(("Lambda", "builtins", "os", "system", "Dense"))
FOREIGN = (
    b"",
    b"PK",
    b"PK\x03\x04",
    b"words\n",
    b"{}",
    b"\x89HDF\r\n\x1a\n",
    b"\x80\x04N.",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A `.keras` file, another network's, and an export; with what they answer."""
    folder = tmp_path_factory.mktemp("models")
    keras.utils.set_random_seed(0)
    for name, units in (("other", 3), ("model", 4)):
        convolution = layers.Conv2D(3, 2, activation="relu", name="convolution")
        norm = layers.BatchNormalization(name="norm")
        stack = [keras.Input(SHAPE), convolution, norm, layers.Flatten()]
        network = keras.Sequential([*stack, layers.Dense(units, name="logits")])
        model = inject_pni(network, "w")
        model.save(folder / f"{name}.keras")
    export_saved_model(model, folder / "export")
    found = [answers(folder / name) for name in ("model.keras", "export")]
    np.testing.assert_allclose(*found, atol=1e-5)
    return folder, *found


def answers(path):
    return load_target(path).noise_free.logits(IMAGES).numpy()


def check(path, expected):
    """Loads what may be damaged: a clear error, or the answers as before."""
    before = sorted(os.listdir())
    try:
        found = answers(path)
    except (ValueError, OSError) as error:
        text = str(error)
        assert str(path.parent) in text or "target" in text.lower()
        assert len(text.splitlines()) == 1
    else:
        if expected is not None:
            np.testing.assert_array_equal(found, expected)
    assert sorted(os.listdir()) == before


def check_file(content, expected=None):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        path.write_bytes(content)
        check(path, expected)


@cases(25, 120)
@given(st.data())
def test_damaged_bytes(models, data):
    folder, expected, _ = models
    check_file(data.draw(accidents((folder / "model.keras").read_bytes())), expected)


@cases(10, 40)
@given(st.sampled_from(FOREIGN) | st.binary(max_size=200))
def test_something_else(content):
    check_file(content)


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def check_members(members):
    """As an archive whose sums are right: another model, if it is one."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    check_file(file.getvalue())


@cases(12, 60)
@given(st.data())
def test_damaged_members(models, data):
    members, other = (
        members_of(models[0] / f"{name}.keras") for name in ("model", "other")
    )
    name, second = data.draw(st.permutations(sorted(members)))[:2]
    kind = data.draw(
        st.sampled_from(("missing", "swapped", "other's", "damaged", "path"))
    )
    if kind == "missing":
        del members[name]
    elif kind == "swapped":
        members[name], members[second] = members[second], members[name]
    elif kind == "other's":
        members[name] = other[name]
    elif kind == "damaged":
        members[name] = data.draw(st.just(b"") | accidents(members[name]))
    else:
        members["../../outside"] = b"words"
    check_members(members)


@cases(15, 100)
@given(st.data())
def test_other_words_in_the_config(models, data):
    members = members_of(models[0] / "model.keras")
    place = config = json.loads(members["config.json"])
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
        if not (isinstance(place[key], (dict, list)) and place[key]):
            break
        if data.draw(st.integers(0, 6)) == 0:
            break
        place = place[key]
    if data.draw(st.integers(0, 3)) == 0:
        del place[key]
    else:
        place[key] = data.draw(ODD | NAMES)
    members["config.json"] = json.dumps(config).encode()
    check_members(members)


@cases(10, 60)
@given(st.data())
def test_damaged_exports(models, data):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "export")
        shutil.copytree(models[0] / "export", folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        file, other = data.draw(st.permutations(files))[:2]
        kinds = ("damaged", "missing", "empty", "swapped", "unlisted")
        kind = data.draw(st.sampled_from(kinds))
        content = file.read_bytes()
        if kind in ("damaged", "unlisted"):
            file.write_bytes(data.draw(accidents(content)))
        elif kind == "missing":
            file.unlink()
        elif kind == "empty":
            file.write_bytes(b"")
        else:
            file.write_bytes(other.read_bytes())
            other.write_bytes(content)
        if kind == "unlisted":  # The other sums do not show it.
            sums = folder / "assets.extra" / "SHA256SUMS"
            lines = sums.read_bytes().splitlines(keepends=True)
            name = str(file.relative_to(folder)).encode()
            sums.write_bytes(b"".join(line for line in lines if name not in line))
        check(folder, models[2])
