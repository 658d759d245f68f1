"""evaluation.json and per_example.csv give back what was written; old ones are read."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pni_tf import PGD
from pni_tf.cli import evaluate
from pni_tf.evaluation import (
    Column,
    Evaluation,
    Result,
    Scenario,
    read_evaluation,
    record,
    union,
)

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests/fixtures/v0.1"


def result(predictions, *, name="clean", attack=None, source=None, **fields):
    labels = np.array([0, 1, 2])
    if attack is not None:
        fields = {
            "claimed": np.array([True, False, True]),
            "l2": np.float32([0.1, 1 / 3, 0.3]),
            "linf": np.float32([0.01, 0.02, 8 / 255]),
            "queries": np.array([1000, 2000, 6000]),
            "gradients": np.array([7, 7, 10]),
            **fields,
        }
    return Result(
        scenario=Scenario(name=name, attack=attack, source=source),
        target="network",
        stochastic=len(predictions) > 1,
        labels=labels,
        predictions=np.array(predictions),
        selection=np.array(predictions),
        seed=3,
        **fields,
    )


@pytest.fixture
def evaluation():
    attack = PGD(epsilon=8 / 255, steps=7)
    towards = np.array([1, 2, 0])
    noisy = [
        result([[0, 1, 2], [0, 1, 1], [0, 1, 0]]),
        result(
            [[1, 1, 2], [0, 0, 1], [2, 1, 0]],
            name="PGD | odd",
            attack=attack,
            towards=towards,
        ),
        result([[1, 1, 2]] * 3, name="transfer from a/b", attack=attack, source="a/b"),
    ]
    plain = [result([[0, 1, 0]], warnings=("odd",))]
    return Evaluation(
        model="m.keras",
        dataset="digits",
        columns={
            Column(kind="mean", draws=5, label="with PNI"): [*noisy, union(noisy)],
            Column(kind="noise_off"): plain,
        },
        curves={"epsilon": {Column(kind="noise_off"): {0.25: plain[0], 1.0: noisy[1]}}},
        data={"examples": 3, "sha256": "0" * 64},
    )


class TestJson:
    def test_gives_back_what_was_written(self, evaluation, tmp_path):
        record.write_json(tmp_path / "a.json", evaluation)
        assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
        content = json.loads((tmp_path / "a.json").read_text())
        assert content["warnings"] == ["warning: clean: odd"]
        found = read_evaluation(tmp_path / "a.json")
        assert (found.model, found.dataset) == ("m.keras", "digits")
        assert found.data == evaluation.data
        assert (found.checklist, found.certificates, found.pictures) == (None, [], [])
        assert found.kinds == {
            "with PNI": Column(kind="mean", draws=5, label="with PNI"),
            "noise off": Column(kind="noise_off", label="noise off"),
        }
        points = found.curves["epsilon"]["noise off"]
        assert list(points) == [0.25, 1.0]
        rows = {"/curves/epsilon/noise off/1.0": points[1.0]}
        results = {"/curves/epsilon/noise off/1.0": evaluation.table["with PNI"][1]}
        for name, written in evaluation.table.items():
            for i, (row, one) in enumerate(
                zip(found.columns[name], written, strict=True)
            ):
                rows[f"/columns/{name}/{i}"] = row
                results[f"/columns/{name}/{i}"] = one
        for pointer, row in rows.items():
            one, entry = results[pointer], content
            for key in pointer.split("/")[1:]:
                entry = entry[int(key) if isinstance(entry, list) else key]
            assert row.pointer == pointer
            assert entry == one.summary()
            assert (row.scenario, row.kind) == (one.scenario.name, one.kind)
            attack = one.scenario.attack
            assert row.attack == (None if attack is None else repr(attack))
            assert (row.source, row.components) == (one.scenario.source, one.components)
            assert (row.images, row.draws, row.expectation) == (3, one.draws, 1)
            for key in ("mean", "std", "vote", "worst"):
                assert row.numbers[f"accuracy_{key}"] == getattr(one, key)
            assert ("upheld" in row.numbers) is (one.claimed is not None)
        kinds = [row.kind for row in found.columns["with PNI"]]
        assert kinds == ["clean", "attack", "attack", "worst_case"]

    def test_of_version_0_1(self):
        """It says neither what a column is nor what a row is."""
        found = read_evaluation(OLD / "pni_w_evaluation" / "evaluation.json")
        assert found.data["examples"] == 16
        assert {name: column.kind for name, column in found.kinds.items()} == {
            "noise on": "noise_on",
            "noise off": "noise_off",
        }
        kinds = [row.kind for row in found.columns["noise on"]]
        assert kinds == ["clean", *["attack"] * 4, "worst_case"]

    def test_of_the_reports(self):
        """With ensembles, and transfers from networks whose name is a path."""
        paths = sorted((ROOT / "reports").rglob("evaluation.json"))
        assert len(paths) > 20
        columns, sources = set(), set()
        for path in paths:
            content, found = json.loads(path.read_text()), read_evaluation(path)
            for name, entries in content["columns"].items():
                assert [
                    row.numbers["accuracy_mean"] for row in found.columns[name]
                ] == [entry["accuracy_mean"] for entry in entries]
                sources |= {row.source for row in found.columns[name]}
            columns |= set(found.kinds.values())
        assert "noise-free twin" in sources
        assert any(source and "/trainings/" in source for source in sources)
        means = {column for column in columns if column.kind == "mean"}
        assert all(column.name == f"mean of {column.draws} draws" for column in means)
        kinds = {column.kind for column in columns}
        assert kinds == {"model", "noise_on", "noise_off", "mean", "twin"}

    @pytest.mark.parametrize(
        "text", [None, "", "[1]", "{}", '{"columns": {"model": [{"scenario": "a"}]}}']
    )
    def test_absent_or_damaged(self, text, tmp_path):
        if text is not None:
            (tmp_path / "a.json").write_text(text)
        assert read_evaluation(tmp_path / "a.json") is None


def test_csv_gives_the_results_back(evaluation, tmp_path):
    table = evaluation.table
    record.write_csv(tmp_path / "a.csv", table)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    shares = record.read_shares(tmp_path / "a.csv")
    assert len(rows) == 3 * len(shares) == 3 * 5
    for network, results in table.items():
        for each in results:
            name = (network, each.scenario.name)
            np.testing.assert_array_equal(shares[name], each.correct_share)
            own = [row for row in rows if (row["network"], row["scenario"]) == name]
            assert [int(row["image"]) for row in own] == [0, 1, 2]
            assert [int(row["label"]) for row in own] == [0, 1, 2]
            predictions = [list(map(int, row["predictions"].split())) for row in own]
            np.testing.assert_array_equal(np.transpose(predictions), each.predictions)
            assert {int(row["draws"]) for row in own} == {each.draws}
            for column, key in (
                *((k, k) for k in ("claimed", "queries", "gradients", "l2", "linf")),
                ("aim", "towards"),
            ):
                cells, values = [row[column] for row in own], getattr(each, key)
                if values is None:
                    assert cells == [""] * 3
                else:
                    found = list(map(float, cells))
                    np.testing.assert_allclose(found, values, rtol=1e-5)
                    whole = column not in ("l2", "linf")
                    assert all(cell.isdigit() for cell in cells) is whole


def test_an_evaluation_of_version_0_1_goes_on(command, tmp_path, monkeypatch):
    """Nothing of what it has is computed again, and its numbers are the same."""
    shutil.copy(OLD / "pni_w.keras", tmp_path)
    folder = tmp_path / "pni_w_evaluation"
    shutil.copytree(OLD / "pni_w_evaluation", folder)
    before = read_evaluation(folder / "evaluation.json")
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    assert len(written) == 8
    monkeypatch.chdir(tmp_path)
    result = command(
        evaluate,
        *("pni_w.keras", "--dataset=digits", "--examples=16", "--epsilons=0.15"),
        *("--attacks=fgsm,pgd(steps=2)", "--towards=next", "--expectation=1,2"),
        *("--draws=2", "--output_dir=pni_w_evaluation"),
    )
    assert (result.status, result.err) == (0, "")
    now = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    assert now == written
    assert (folder / "accuracies.png").exists()
    after = read_evaluation(folder / "evaluation.json")
    assert (after.data, after.kinds) == (before.data, before.kinds)
    for name, rows in before.columns.items():
        for old, new in zip(rows, after.columns[name], strict=True):
            # Today's file says more, and the same of what both say.
            assert new.numbers | old.numbers == new.numbers
            assert dataclasses.replace(new, numbers=old.numbers) == old
