"""After an accident to its files a run continues to the same numbers, or is refused."""

import csv
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
from cases import accidents, cases
from command_answers import answer_of, check_refused
from hypothesis import given
from hypothesis import strategies as st

TRAIN = (
    *(
        "train",
        "--dataset=digits",
        "--model=mnist_cnn",
        "--width=0.1",
        "--batch_size=20",
    ),
    *("--train_examples=40", "--test_examples=20", "--validation_split=0.25"),
    *("--validation_draws=1", "--attack_steps=1", "--epochs=2", "--drop_epochs=1"),
    *("--noevaluate", "--noexport", "--notensorboard", "--run_dir=run"),
)
EVALUATE = (
    *("evaluate", "run", "--attacks=fgsm", "--expectation=1", "--examples=8"),
    *("--draws=2", "--batch_size=4"),
)
ODD = (None, "", "x", "nan", "NaN", "-1", "1e999", "0x1", "²", [], {}, True, 10**400)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run, which is also there as if interrupted before its end."""
    folder = tmp_path_factory.mktemp("runs")
    assert answer_of(TRAIN, folder, whole=True).status == 0
    shutil.copytree(folder / "run", folder / "trained")
    for name in ("finished", "model.keras"):
        (folder / "trained" / name).unlink()
    assert answer_of(EVALUATE, folder, whole=True).status == 0
    return folder


def numbers(folder):
    return json.loads((folder / "evaluation" / "evaluation.json").read_text())


def weights(folder):
    return keras.saving.load_model(folder / "model.keras").get_weights()


@st.composite
def damage(draw, path):
    """Does something to a file, by its bytes or by its values."""
    content = path.read_bytes()
    by_values = {".npz": _arrays, ".csv": _table, ".json": _json}.get(path.suffix)
    kinds = ["missing", "half", "bytes", "bytes"] + ["values"] * 4 * (
        by_values is not None
    )
    kind = draw(st.sampled_from(kinds))
    if kind == "missing":
        path.unlink()
    elif kind == "half":  # The power went while it was written.
        half = path.with_name(f"unfinished.{path.name}")
        half.write_bytes(content[: draw(st.integers(0, len(content)))])
    elif kind == "bytes":
        path.write_bytes(draw(st.just(b"") | accidents(content)))
    else:
        by_values(path, draw)
    return kind


def _arrays(path, draw):
    """Writes arrays that differ, in an archive whose own sums are right."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    name = draw(st.sampled_from(sorted(arrays)))
    value = arrays.pop(name)
    kind = draw(
        st.sampled_from(["missing", "float", "shorter", "value", "word", "more"])
    )
    if kind == "float" and value.dtype.kind not in "US":
        arrays[name] = value.astype("float64") + 0.25
    elif kind == "shorter" and value.ndim:
        arrays[name] = value[:-1]
    elif kind == "value" and value.size and value.dtype.kind not in "US":
        value.flat[value.size // 2] = not value.flat[value.size // 2]
        arrays[name] = value
    elif kind == "more":
        arrays |= {name: value, "more": np.zeros(3)}
    elif kind == "word":
        arrays[name] = np.array("word")
    np.savez(path, **arrays)
    of_another_version = kind in ("missing", "word") and draw(st.booleans())
    # The name has its digest.
    if path.parent.name == "checkpoints" and of_another_version:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        path.rename(path.with_name(f"{path.name[:-20]}{digest}.npz"))


def _table(path, draw):
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    row = draw(st.sampled_from(rows))
    place = draw(st.integers(0, len(row) - 1))
    kind = draw(
        st.sampled_from(["cell", "epoch", "missing", "more", "no header", "twice"])
    )
    if kind in ("cell", "epoch"):
        odd = str(draw(st.sampled_from(ODD)))[:50]
        (row if kind == "cell" else rows[-1])[place if kind == "cell" else 0] = odd
    elif kind == "missing":
        del row[place]
    elif kind == "more":
        row += ["1", "2"]
    elif kind == "no header":
        del rows[0]
    else:
        rows.append(rows[-1])
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def _json(path, draw):
    content = json.loads(path.read_text())
    content[draw(st.sampled_from(sorted(content)))] = draw(st.sampled_from(ODD))
    path.write_text(json.dumps(content))


def goes_on(argv, folder):
    """Gives a command again; returns whether it is done, and not refused clearly."""
    answer = answer_of(argv, folder, whole=True)
    if not answer.status:
        assert "Traceback" not in answer.err
        return True
    # Of other settings each is a line, which is meant to be read.
    if "run with other settings" not in answer.err or answer.status != 2:
        check_refused(answer, "run", "--")
    return False


@cases(4, 60)
@given(st.data())
def test_an_evaluation_goes_on(runs, data):
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch, "run")
        shutil.copytree(runs / "run", run)
        found = sorted(run.joinpath("evaluation").rglob("*.*"))
        found = [f for f in found if f.suffix in (".npz", ".json")]
        found += [run / "flags.cfg", run / "model.keras"]
        path = data.draw(st.sampled_from(found))
        data.draw(damage(path))
        # A flagfile that still is one says other things, and so it may.
        if goes_on(EVALUATE, scratch) and path.name != "flags.cfg":
            assert numbers(run) == numbers(runs / "run")


@cases(4, 40)
@given(st.data())
def test_a_training_goes_on(runs, data):
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch, "run")
        shutil.copytree(runs / "trained", run)
        found = sorted((run / "checkpoints").iterdir())
        found += [run / "history.csv", run / "history.csv", run / "flags.cfg"]
        data.draw(damage(data.draw(st.sampled_from(found))))
        if goes_on(TRAIN, scratch):
            for ours, theirs in zip(weights(run), weights(runs / "run"), strict=True):
                np.testing.assert_array_equal(ours, theirs)
            with (run / "history.csv").open(newline="") as file:
                assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
