"""An interrupted evaluation can be continued, and gives what it would have given."""

import contextlib
import dataclasses
import json
import os
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from forked_commands import Command
from keras import layers

from pni_tf import FGSM, PGD, RandomSearch, evaluate_robustness, inject_pni, load_target
from pni_tf.distribution.workers import Workers
from pni_tf.evaluation import ResultStore, Scenario
from pni_tf.files import file_digest, slug

SHAPE = (2, 3, 1)
IMAGES = np.random.default_rng(0).uniform(size=(10, *SHAPE)).astype("float32")
LABELS = np.arange(10) % 3
ROWS = [
    Scenario(name="clean"),
    Scenario(name="FGSM EOT-2", attack=FGSM(epsilon=0.1), expectation=2),
    Scenario(name="random", attack=RandomSearch(epsilon=0.1, samples=3)),
]
# Ten images are three batches.
OPTIONS = {"draws": 2, "batch_size": 4, "seed": 1}
# Two draws score and ten select; before, the attack and its verdict.
CALLS = [12] * 3 + [4 + 12] * 3 + [3 + 12] * 3
ARRAYS = ("predictions", "selection", "claimed", "l2", "linf", "queries", "gradients")


def noisy_model():
    model = keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dense(3)])
    kernel = np.random.default_rng(1).normal(size=(6, 3))
    model.set_weights([kernel, -0.5 * kernel.sum(0)])
    return inject_pni(model, initial_alpha=1.0, seed=1)


def counted(target):
    """The same target with a count of its forward passes."""
    calls = tf.Variable(0)

    def logits(images):
        with tf.control_dependencies([calls.assign_add(1)]):
            return target.logits(images)

    return dataclasses.replace(target, logits=logits), calls


@pytest.fixture(scope="module")
def target():
    return load_target(noisy_model())


@pytest.fixture(scope="module")
def expected(target):
    return evaluate_robustness(target, IMAGES, LABELS, ROWS, **OPTIONS)


def assert_same(found, expected):
    assert [r.scenario for r in found] == [r.scenario for r in expected]
    for one, other in zip(found, expected, strict=True):
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def interrupt_after(count):
    """A progress that stops everything before the batch after so many."""
    left = iter(range(count))

    def progress(batches, name):
        for batch in batches:
            if next(left, None) is None:
                raise KeyboardInterrupt
            yield batch

    return progress


class TestContinued:
    @pytest.mark.parametrize("finished", [1, 4, 9])
    def test_equals_the_uninterrupted_one(self, finished, target, expected, tmp_path):
        target, calls = counted(target)
        if finished < 9:
            with pytest.raises(KeyboardInterrupt):
                evaluate_robustness(
                    target,
                    IMAGES,
                    LABELS,
                    ROWS,
                    store=ResultStore(tmp_path, "model"),
                    progress=interrupt_after(finished),
                    **OPTIONS,
                )
        else:
            evaluate_robustness(
                target,
                IMAGES,
                LABELS,
                ROWS,
                store=ResultStore(tmp_path, "model"),
                **OPTIONS,
            )
        assert calls.numpy() == 1 + sum(CALLS[:finished])
        calls.assign(0)
        found = evaluate_robustness(
            target,
            IMAGES,
            LABELS,
            ROWS,
            store=ResultStore(tmp_path, "model"),
            **OPTIONS,
        )
        assert_same(found, expected)
        # One call checks the gradient; no finished batch is computed again.
        assert calls.numpy() == 1 + sum(CALLS[finished:])
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "clean.npz",
            "fgsm_eot-2.npz",
            "random.npz",
        ]

    def test_batches_lie_in_files_of_their_own_meanwhile(self, target, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            evaluate_robustness(
                target,
                IMAGES,
                LABELS,
                ROWS[1:],
                store=ResultStore(tmp_path / "new" / "folder", "model"),
                progress=interrupt_after(2),
                **OPTIONS,
            )
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        folder = tmp_path / "new" / "folder" / "fgsm_eot-2.batches"
        assert sorted(files) == [folder / "0.npz", folder / "4.npz"]

    def test_what_another_worker_does_not_see_is_computed_again(
        self, target, expected, tmp_path
    ):
        """Else one would wait for the other at another row."""

        class Blind(Workers):
            def gather(self, values):
                return np.array([values, [0] * len(values)])

        options = {**OPTIONS, "store": ResultStore(tmp_path, "model")}
        evaluate_robustness(target, IMAGES, LABELS, ROWS, **options)
        twin, calls = counted(target)
        options["workers"] = Blind()
        found = evaluate_robustness(twin, IMAGES, LABELS, ROWS, **options)
        assert calls.numpy() >= sum(CALLS)
        assert_same(found, expected)

    def test_further_scenarios(self, target, expected, tmp_path):
        target, calls = counted(target)
        store = ResultStore(tmp_path, "model")
        evaluate_robustness(target, IMAGES, LABELS, ROWS[:2], store=store, **OPTIONS)
        calls.assign(0)
        rows = [ROWS[2], ROWS[0], ROWS[1]]
        found = evaluate_robustness(
            target, IMAGES, LABELS, rows, store=store, **OPTIONS
        )
        assert_same(found, [expected[2], expected[0], expected[1]])
        assert calls.numpy() == 1 + sum(CALLS[6:])

    def test_in_another_process(self, expected, tmp_path):
        noisy_model().save(tmp_path / "model.keras")
        (tmp_path / "dies.py").write_text(DIES)
        process = Command(
            tmp_path / "dies.py", tmp_path, folder=tmp_path, environment=os.environ
        )
        _, err = process.communicate(timeout=300)
        assert process.returncode == 9, err
        store = ResultStore(tmp_path / "store", "model")
        finished = sorted(path.name for path in store.directory.rglob("*.npz"))
        assert finished == ["0.npz", "clean.npz"]
        target, calls = counted(load_target(tmp_path / "model.keras"))
        found = evaluate_robustness(
            target, IMAGES, LABELS, ROWS, store=store, **OPTIONS
        )
        assert_same(found, expected)
        assert calls.numpy() == 1 + sum(CALLS[4:])


# Evaluates the same rows, and dies without notice in the fifth batch.
DIES = """
import os, sys
import numpy as np
from pni_tf.attacks.fgsm import FGSM
from pni_tf.attacks.random_search import RandomSearch
from pni_tf.evaluation import ResultStore, Scenario, evaluate_robustness
from pni_tf.targets import load_target

def progress(batches, name):
    for i, batch in enumerate(batches):
        if (name, i) == ("FGSM EOT-2", 1):
            os._exit(9)
        yield batch

evaluate_robustness(
    load_target(sys.argv[1] + "/model.keras"),
    np.random.default_rng(0).uniform(size=(10, 2, 3, 1)).astype("float32"),
    np.arange(10) % 3,
    [
        Scenario(name="clean"),
        Scenario(name="FGSM EOT-2", attack=FGSM(epsilon=0.1), expectation=2),
        Scenario(name="random", attack=RandomSearch(epsilon=0.1, samples=3)),
    ],
    store=ResultStore(sys.argv[1] + "/store", "model"),
    progress=progress,
    draws=2,
    batch_size=4,
    seed=1,
)
"""


@pytest.fixture(scope="module")
def finished(target, tmp_path_factory):
    path = tmp_path_factory.mktemp("store")
    TestChanged.evaluate(target, path)
    return path


class TestChanged:
    ROW = Scenario(name="row", attack=FGSM(epsilon=0.1), towards="next")
    # What differs from the first evaluation.
    CHANGES = (
        {"seed": 2},
        {"draws": 3},
        {"batch_size": 5},
        {"identity": "other"},
        {"labels": LABELS[::-1]},
        {"images": IMAGES[::-1]},
        {"row": dataclasses.replace(ROW, attack=FGSM(epsilon=0.2))},
        {"row": dataclasses.replace(ROW, expectation=2)},
        {"row": dataclasses.replace(ROW, towards="random")},
        {"row": dataclasses.replace(ROW, towards=None)},
    )

    @staticmethod
    def evaluate(target, folder=None, row=ROW, identity="model", **changes):
        settings = {"images": IMAGES, "labels": LABELS, **OPTIONS, **changes}
        store = None if folder is None else ResultStore(folder, identity)
        return evaluate_robustness(target, scenarios=[row], store=store, **settings)

    @pytest.mark.parametrize("change", CHANGES, ids=lambda c: next(iter(c)))
    def test_is_computed_again(self, change, target, finished, tmp_path):
        shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
        target, calls = counted(target)
        self.evaluate(target, tmp_path)
        assert calls.numpy() == 1
        (found,) = self.evaluate(target, tmp_path, **change)
        batches = 2 if "batch_size" in change else 3
        attack = 2 * found.scenario.expectation
        assert calls.numpy() == 2 + batches * (attack + 6 * found.draws)

    def test_the_latest_replaces_the_file(self, target, finished, tmp_path):
        shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
        plain, (target, calls) = target, counted(target)
        found = self.evaluate(target, tmp_path, seed=2)
        assert_same(found, self.evaluate(plain, seed=2))
        calls.assign(0)
        assert_same(self.evaluate(target, tmp_path, seed=2), found)
        assert calls.numpy() == 1
        self.evaluate(target, tmp_path)
        assert calls.numpy() > 2

    def test_batches_of_other_settings_are_not_used(self, target, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            self.evaluate(target, tmp_path, progress=interrupt_after(2))
        found = self.evaluate(target, tmp_path, seed=2)
        assert_same(found, self.evaluate(target, seed=2))

    def test_draws_of_a_deterministic_target_change_nothing(self, target, tmp_path):
        target, calls = counted(target.noise_free)
        self.evaluate(target, tmp_path)
        calls.assign(0)
        row = dataclasses.replace(self.ROW, expectation=5)
        (found,) = self.evaluate(target, tmp_path, row, draws=7)
        assert calls.numpy() == 1
        assert found.draws == 1

    def test_numbers_of_numpy(self, target, tmp_path):
        first = self.evaluate(target, tmp_path)
        target, calls = counted(target)
        numbers = {name: np.int64(value) for name, value in OPTIONS.items()}
        row = dataclasses.replace(self.ROW, expectation=np.int64(1))
        (found,) = self.evaluate(target, tmp_path, row, **numbers)
        assert calls.numpy() == 1
        np.testing.assert_array_equal(found.predictions, first[0].predictions)
        json.dumps(found.summary())  # It raises an error unless this is JSON.


class TestFile:
    SETTINGS = {"attack": "FGSM()", "seed": 1}  # noqa: RUF012
    ARRAYS = {  # noqa: RUF012
        "predictions": np.arange(12).reshape(2, 6),
        "l2": np.float32([0.1, 0.2]),
        "claimed": np.array([True, False]),
    }

    def test_round_trip(self, tmp_path):
        store = ResultStore(tmp_path / "a", identity={"model": [1, None]})
        assert store.read("PGD", self.SETTINGS) is None
        store.write_batch("PGD", 0, self.SETTINGS, self.ARRAYS)
        store.write_batch("PGD", 128, self.SETTINGS, {"l2": np.zeros(3)})
        assert store.read("PGD", self.SETTINGS) is None
        assert store.read_batch("PGD", 64, self.SETTINGS) is None
        read = store.read_batch("PGD", 128, self.SETTINGS)
        np.testing.assert_array_equal(read["l2"], np.zeros(3))
        store.write("PGD", self.SETTINGS, self.ARRAYS)
        assert store.read_batch("PGD", 0, self.SETTINGS) is None
        again = ResultStore(str(tmp_path / "a"), identity={"model": [1, None]})
        read = again.read("PGD", dict(reversed(self.SETTINGS.items())))
        assert set(read) == set(self.ARRAYS)
        for name, array in self.ARRAYS.items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array)
        assert again.read("other", self.SETTINGS) is None
        assert again.read("PGD", {**self.SETTINGS, "seed": 2}) is None
        for identity in (None, {"model": [2, None]}):
            other = ResultStore(tmp_path / "a", identity)
            assert other.read("PGD", self.SETTINGS) is None

    def test_damage_anywhere_is_noticed_or_harmless(self, tmp_path):
        store = ResultStore(tmp_path, "model")
        store.write("PGD", self.SETTINGS, self.ARRAYS)
        path = store.path("PGD")
        content = path.read_bytes()
        noticed = 0
        # All of the end, which says where the rest lies, and a sample of the rest.
        end = len(content) - 60
        places = [*range(0, end, 4), *range(end, len(content))]
        damaged = [content[:place] for place in places]
        for place in places:
            changed = bytearray(content)
            changed[place] ^= 0xFF
            damaged.append(bytes(changed))
        for data in [b"", b"not an archive", *damaged]:
            path.write_bytes(data)
            read = store.read("PGD", self.SETTINGS)
            if read is None:
                noticed += 1
                continue
            assert set(read) == set(self.ARRAYS)  # A changed date would look like this.
            for name, array in self.ARRAYS.items():
                np.testing.assert_array_equal(read[name], array)
        assert noticed > 0.7 * len(damaged)

    @pytest.mark.parametrize(
        "change",
        [
            {"predictions": np.zeros((2, 3), int)},
            {"predictions": np.ones((2, 4), int)},
            {"predictions": np.zeros((2, 4))},
            {"predictions": np.array("word")},
            {"more": np.zeros(2)},
        ],
    )
    def test_other_arrays_are_noticed(self, tmp_path, change):
        """In a whole archive, written by something else."""
        store = ResultStore(tmp_path, identity="m")
        arrays = {"predictions": np.zeros((2, 4), int), "l2": np.ones(4, "float32")}
        store.write("row", {"seed": 1}, arrays)
        assert store.read("row", {"seed": 1}).keys() == arrays.keys()
        with np.load(store.path("row")) as file:
            content = {**file, **change}
        np.savez(store.path("row"), **content)
        assert store.read("row", {"seed": 1}) is None

    @pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", None])
    @pytest.mark.parametrize("finished", [2, 3])
    def test_a_damaged_file_is_computed_again(
        self, damage, finished, target, expected, tmp_path
    ):
        target, calls = counted(target)
        store = ResultStore(tmp_path, "model")
        with contextlib.suppress(KeyboardInterrupt):
            evaluate_robustness(
                target,
                IMAGES,
                LABELS,
                ROWS[:1],
                store=store,
                progress=interrupt_after(finished),
                **OPTIONS,
            )
        path = {2: tmp_path / "clean.batches" / "0.npz", 3: store.path("clean")}
        path = path[finished]
        half = path.read_bytes()[: path.stat().st_size // 2]
        path.write_bytes(half if damage is None else damage)
        calls.assign(0)
        found = evaluate_robustness(
            target, IMAGES, LABELS, ROWS[:1], store=store, **OPTIONS
        )
        assert_same(found, expected[:1])
        # Two batches remain, or all three.
        assert calls.numpy() == {2: 24, 3: 36}[finished]

    def test_content(self, target, tmp_path):
        attacks = {
            "FGSM": FGSM(epsilon=0.1),
            "L2": PGD(epsilon=0.3, steps=3, step_size=0.2, norm="l2"),
        }
        rows = [Scenario(name="clean")]
        rows += [
            Scenario(name=name, attack=attack, expectation=2, towards="next")
            for name, attack in attacks.items()
        ]
        store = ResultStore(tmp_path, identity="model")
        clean, *attacked = evaluate_robustness(
            target, IMAGES, LABELS, rows, store=store, **OPTIONS
        )
        with np.load(store.path("clean")) as file:
            assert set(file.files) == {"settings", "labels", "predictions", "selection"}
            np.testing.assert_array_equal(file["predictions"], clean.predictions)
        for found, norm in zip(attacked, ("linf", "l2"), strict=True):
            assert found.images is None  # They may be large, and are in the file.
            with np.load(store.path(found.scenario.name)) as file:
                content = {name: file[name] for name in file.files}
            settings = json.loads(str(content.pop("settings")))
            assert settings["attack"] == repr(found.scenario.attack)
            assert settings["identity"] == "model"
            assert (settings["expectation"], settings["draws"]) == (2, 2)
            images = content.pop("images")
            assert set(content) == {*ARRAYS, "aims", "labels"}
            # The name that version 0.1 gave it.
            content["towards"] = content.pop("aims")
            for name, array in content.items():
                np.testing.assert_array_equal(array, getattr(found, name))
            assert images.dtype == np.float32
            assert images.min() >= 0 and images.max() <= 1
            change = (images - IMAGES).reshape(10, -1)
            order = {"linf": np.inf, "l2": 2}[norm]
            sizes = np.linalg.norm(change, order, axis=1)
            epsilon = found.scenario.attack.epsilon
            assert 0.5 * epsilon < sizes.max() <= epsilon + 1e-6
            np.testing.assert_allclose(getattr(found, norm), sizes, rtol=1e-5)


def test_file_digest(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
        return path

    file = write("a.keras", "weights")
    digest = file_digest(file)
    assert digest == file_digest(str(file)) == file_digest(write("b.keras", "weights"))
    assert digest != file_digest(write("c.keras", "weight"))
    write("one/saved_model.pb", "graph")
    write("one/variables/data", "weights")
    write("two/variables/data", "weights")  # It is another order.
    write("two/saved_model.pb", "graph")
    first = file_digest(tmp_path / "one")
    assert first == file_digest(tmp_path / "two")
    write("two/variables/data", "others")
    assert first != file_digest(tmp_path / "two")
    write("two/variables/data", "weights")
    write("two/more", "")
    assert first != file_digest(tmp_path / "two")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("PGD-40 EOT-20", "pgd-40_eot-20"),
        ("C&W L2 9×10", "c_w_l2_9_10"),
        ("worst case linf ε=0.03", "worst_case_linf_eps=0.03"),
        ("transfer from runs/plain", "transfer_from_runs_plain"),
        ("../../secret", "secret"),
        ("epsilon 0.0313725", "epsilon_0.0313725"),
    ],
)
def test_slug(name, expected):
    assert slug(name) == expected
    assert "/" not in slug(name)
