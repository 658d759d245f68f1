"""Run directories that are foreign, damaged, half written, or of other flags."""

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from cases import accidents, cases
from command_answers import answer_of, check_refused, contents
from flag_meanings import FLAGS, contradictions
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pni_tf.evaluation import ResultStore

# What may change when a run is continued: where things lie, and who computes.
FREE = {
    *("run_dir", "data_dir", "download", "strategy", "cluster_timeout", "cpu_devices"),
    *("tpu", "checkpoint_steps", "checkpoint_minutes", "keep_checkpoints"),
}
_NAMES = st.sampled_from(sorted(set(FLAGS["train"]) - {"run_dir", "strategy"}))
_WORDS = _NAMES.flatmap(
    lambda name: st.tuples(st.just(name), FLAGS["train"][name].good)
)
_WORDS = st.lists(_WORDS, max_size=3).map(dict)


def begin(folder, flags, run_dir="run"):
    """Gives the command up to where TensorFlow would start."""
    meanings = {
        name: FLAGS["train"][name].meaning(text) for name, text in flags.items()
    }
    assume(not contradictions("train", meanings))
    words = [f"--{name}={text}" for name, text in flags.items()]
    return answer_of(["train", *words, f"--run_dir={run_dir}"], folder)


def check_going_on(first, second):
    """The second command continues where the first stopped, or is refused by name."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ours = begin(folder, first).values
        theirs = begin(folder, second, run_dir="another").values
        (folder / "run" / "checkpoints").mkdir()  # Now there is something to lose.
        before = contents(folder)
        answer = begin(folder, second)
        differing = {n for n in FLAGS["train"] if ours[n] != theirs[n]} - FREE
        if not differing:
            assert answer.accepted, answer
            return
        assert answer.status == 2
        assert answer.err.startswith("error: --run_dir=run belongs to a run with other")
        named = set(re.findall(r"--(\w+)", answer.err)) - {"run_dir"}
        assert named - {f"no{name}" for name in differing} == differing
        assert contents(folder) == before


@pytest.mark.parametrize("name", sorted(set(FLAGS["train"]) - FREE))
@cases(1, 5)
@given(st.data())
def test_another_value_is_refused_by_name(name, data):
    kind = FLAGS["train"][name]
    first, second = (data.draw(kind.good) for _ in range(2))
    assume(kind.meaning(first) != kind.meaning(second))
    room = {"schedule": "cosine", "epochs": f"{2**31 - 1}"}
    check_going_on({**room, name: first}, {**room, name: second})


@cases(40, 200)
@given(_WORDS, _WORDS, st.booleans())
def test_other_flags_are_refused_by_name(first, changes, drop):
    check_going_on(first, changes if drop else {**first, **changes})


@cases(60, 200)
@given(_WORDS, st.data())
def test_a_damaged_flags_cfg(flags, data):
    """It is refused, or still says what it has said."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        before = begin(folder, flags).values
        (folder / "run" / "checkpoints").mkdir()
        path = folder / "run" / "flags.cfg"
        whole = path.read_bytes()
        content = data.draw(accidents(whole) | st.just(whole[: len(whole) // 2]))
        path.write_bytes(content)
        answer = begin(folder, flags)
        if not answer.accepted:
            assert answer.status == 2 and "run" in answer.err.splitlines()[0]
            assert path.read_bytes() == content
            return
        assert answer.values == before
        lines, known = (set(text.decode().splitlines()) for text in (content, whole))
        for line in lines - known:
            name = line.removeprefix("--").partition("=")[0]
            assert not line.startswith("--") or name.removeprefix("no") in FREE


@cases(20, 60)
@given(
    st.sets(st.sampled_from(["thesis.txt", "model.keras", "history.csv", ".lock", "a"]))
)
def test_a_folder_of_something_else_is_left_alone(names):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "run").mkdir()
        for name in names:
            (folder / "run" / name).write_text("words")
        before = contents(folder)
        answer = begin(folder, {})
        if names <= {".lock"}:
            assert answer.accepted
            return
        check_refused(answer, "--run_dir=run")
        assert contents(folder) == before


_ARRAYS = st.dictionaries(
    st.sampled_from(["predictions", "labels", "claimed", "images"]),
    npst.arrays(
        st.sampled_from(["int64", "float32", "bool"]),
        npst.array_shapes(max_dims=3, max_side=3),
        elements=st.integers(0, 1),
    ),
    min_size=1,
)


@cases(80, 300)
@given(_ARRAYS, _ARRAYS, st.data())
def test_a_damaged_result_is_not_trusted(arrays, others, data):
    """Nor is one of other numbers, in an archive whose own sums are right."""
    with tempfile.TemporaryDirectory() as folder:
        store = ResultStore(folder, identity="model")
        store.write("PGD", {"steps": 7}, arrays)
        path = store.path("PGD")
        if data.draw(st.booleans()):
            path.write_bytes(data.draw(accidents(path.read_bytes())))
        else:
            with np.load(path) as file:
                np.savez(path, **{**file, **others})
        found = store.read("PGD", {"steps": 7})
        if found is not None:
            assert found.keys() == arrays.keys()
            for name, array in arrays.items():
                np.testing.assert_array_equal(found[name], array, strict=True)
        assert store.read("PGD", {"steps": 8}) is None
        assert ResultStore(folder, identity="another").read("PGD", {"steps": 7}) is None
