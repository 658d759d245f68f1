"""Full disks, vanished folders, damaged and hostile files: an error, nothing lost."""

import json
import os
import resource
import signal
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
from forked_commands import Command
from replica_training import examples, network

from pni_tf import export_saved_model, files, load_target
from pni_tf.cli import evaluate_plan
from pni_tf.files import slug
from pni_tf.targets import load_model

BIN = Path(__file__).parents[2] / "bin"
FLAGS = (
    *("--dataset=digits", "--model=mnist_cnn", "--width=0.1", "--train_examples=40"),
    *("--batch_size=20", "--attack_steps=1", "--epochs=3", "--drop_epochs=2"),
    *("--noevaluate", "--noexport", "--notensorboard"),
)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return network(False)


def clean_outputs(target):
    """What the network computes without noise."""
    return target.noise_free.logits(examples()[0]).numpy()


class TestReplacing:
    def test_is_whole_or_as_before(self, tmp_path):
        path = tmp_path / "file"
        path.write_text("before")
        with pytest.raises(ZeroDivisionError), files.replacing(path) as scratch:
            scratch.write_text("half")
            assert path.read_text() == "before"
            raise ZeroDivisionError
        assert os.listdir(tmp_path) == ["file"]
        with files.replacing(path) as scratch:
            scratch.write_text("after")
        assert path.read_text() == "after"
        assert os.listdir(tmp_path) == ["file"]

    def test_does_not_make_folders_again(self, tmp_path):
        with pytest.raises(OSError, match="cannot write .*gone/file: No such file"):
            files.write_text(tmp_path / "gone" / "file", "words")
        assert not (tmp_path / "gone").exists()

    def test_no_space(self, tmp_path):
        """A limit on the size of files, which root has too."""
        path = tmp_path / "file"
        path.write_text("before")
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, earlier[1]))
        try:
            with pytest.raises(OSError, match="cannot write .*file: File too large"):
                files.write_text(path, "x" * 10_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, earlier)
            signal.signal(signal.SIGXFSZ, handler)
        assert path.read_text() == "before"
        assert os.listdir(tmp_path) == ["file"]


def train(run_dir, limit=None, wait=None):
    """Runs `bin/train`, with a limit on the size of files, or an act after a line."""
    process = Command(
        BIN / "train",
        *FLAGS,
        f"--run_dir={run_dir}",
        folder=run_dir.parent,
        environment=os.environ,
    )
    if limit:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    for line in process.stdout:
        if wait is not None and line.startswith("Epoch 2"):
            wait()
            break
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def test_a_full_disk_loses_nothing(tmp_path):
    """The first checkpoint does not fit; with space, the same command continues."""
    status, _, err = train(tmp_path / "run", limit=20_000)
    assert status == 2
    assert "error: cannot write" in err
    assert "the same command again" in err
    assert len(err.splitlines()) == 1
    assert not list((tmp_path / "run").rglob("*unfinished*"))
    status, _, err = train(tmp_path / "run")
    assert (status, err) == (0, "")
    assert load_target(tmp_path / "run").stochastic


def test_a_run_directory_that_is_deleted_ends_the_run(tmp_path):
    run_dir = tmp_path / "run"
    status, _, err = train(run_dir, wait=lambda: run_dir.rename(tmp_path / "moved"))
    assert status == 2
    assert "error: cannot write" in err
    assert "No such file or directory" in err
    assert len(err.splitlines()) == 1
    assert not run_dir.exists()  # Not even a part of it is left.
    # What was there can still be continued.
    status, _, err = train(tmp_path / "moved")
    assert (status, err) == (0, "")


def test_flipped_bits_of_a_keras_file(model, tmp_path):
    """An error, or the very same function: a bit may be one that nobody reads."""
    path = tmp_path / "model.keras"
    model.save(path)
    expected = clean_outputs(load_target(path))
    content = path.read_bytes()
    refused = 0
    for position in np.linspace(0, len(content) - 1, 24).astype(int):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            target = load_target(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            np.testing.assert_array_equal(clean_outputs(target), expected)
    assert refused > 12


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_export_is_refused(model, tmp_path, damage):
    export_saved_model(model, tmp_path / "export")
    # The sums are what `sha256sum --check` reads.
    sums = tmp_path / "export" / "assets.extra" / "SHA256SUMS"
    subprocess.run(
        ["sha256sum", "--check", "--quiet", sums], cwd=tmp_path / "export", check=True
    )
    load_target(tmp_path / "export")
    for file in sorted((tmp_path / "export").rglob("*.*")):
        if not file.is_file() or not file.stat().st_size:
            continue
        content = bytearray(file.read_bytes())
        if damage == "flip":
            content[len(content) // 2] ^= 16
            file.write_bytes(content)
        elif damage == "cut":
            file.write_bytes(content[:-1])
        else:
            file.unlink()
        with pytest.raises(ValueError, match=f"{file.name}.*damaged|Expected a Saved"):
            load_target(tmp_path / "export")
        content[len(content) // 2] ^= 16 * (damage == "flip")
        file.write_bytes(content)
    load_target(tmp_path / "export")


@pytest.mark.parametrize("name", ["saved_model.pb", "variables"])
def test_sums_that_lack_a_file_are_damaged(model, tmp_path, name):
    export_saved_model(model, tmp_path / "export")
    sums = tmp_path / "export" / "assets.extra" / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    (tmp_path / "export" / "README").write_text("of someone else")
    load_target(tmp_path / "export")
    sums.write_text("".join(line for line in lines if name not in line))
    with pytest.raises(ValueError, match=f"{name}.* is damaged or missing"):
        load_target(tmp_path / "export")


def test_a_damaged_substitute_is_trained_again(tmp_path):
    path = tmp_path / "model.keras"
    network(False).save(path)
    facts = {"labels_asked": 64, "held_out_images": 2, "agreement": 0.5}
    content = {"facts": facts, "digest": evaluate_plan._digest(path, facts)}
    path.with_suffix(".json").write_text(json.dumps(content))
    assert evaluate_plan._read_substitute(path)[1] == facts
    for text in (
        json.dumps(content).replace("0.5", "0.6"),
        json.dumps(facts),
        "[]",
        "",
        "NaN",
        "[" * 100_000,
        json.dumps({"facts": None, "digest": ""}),
    ):
        path.with_suffix(".json").write_text(text)
        assert evaluate_plan._read_substitute(path) is None
    path.with_suffix(".json").write_bytes(b"\xff")
    assert evaluate_plan._read_substitute(path) is None


def test_a_keras_file_runs_no_code(tmp_path, monkeypatch):
    """Keras' safe mode refuses a lambda; nothing of it is executed."""
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "executed"
    inputs = keras.Input((4, 4, 1))
    code = keras.layers.Lambda(
        lambda x: __import__("os").makedirs("executed", exist_ok=True) or x,
        output_shape=(4, 4, 1),
    )
    outputs = keras.layers.Dense(3)(keras.layers.Flatten()(code(inputs)))
    keras.Model(inputs, outputs).save(tmp_path / "evil.keras")
    with pytest.raises(ValueError, match="Cannot load .*evil.keras.*[Ll]ambda"):
        load_model(tmp_path / "evil.keras")
    assert not mark.exists()
    # It would have: this is what the safe mode prevents.
    unsafe = keras.saving.load_model(tmp_path / "evil.keras", safe_mode=False)
    unsafe(np.zeros((1, 4, 4, 1), "float32"))
    assert mark.exists()


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/../b", "..", "a\x00b"])
def test_names_stay_in_their_folder(name):
    found = slug(name)
    assert "/" not in found
    assert "\x00" not in found
    for inside in (found, f"{found}.npz"):
        assert Path("folder", inside).resolve().parent == Path("folder").resolve()
