"""Filing a report: what is copied, and what its jobs took."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
from reproductions import run, table_of

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("without_processes")


@pytest.fixture
def keep(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "reports")
    return importlib.import_module("keep")


@pytest.fixture
def checkout(tmp_path):
    """A folder with only the estimates of a checkout."""
    costs = tmp_path / "checkout/pni_tf/reproduce/costs.json"
    costs.parent.mkdir(parents=True)
    costs.write_text(json.dumps({"digits": {"old": 1.0}, "cpu": {"kept": 2.0}}))
    return tmp_path / "checkout"


def test_a_report_is_filed(keep, checkout, tmp_path):
    root = tmp_path / "digits"
    run(root, ["table2"], 2)
    (root / "note.txt").write_text("a note")
    path = root / "report/report.json"
    content = json.loads(path.read_text())
    for job, seconds in zip(content["jobs"], (20.0, 0.2, 7.0), strict=False):
        job["seconds"] = seconds  # The second was there already.
    path.write_text(json.dumps(content))
    (checkout / "reports/digits").mkdir(parents=True)
    (checkout / "reports/digits/an older report").touch()
    folder = keep.keep(root, checkout)
    assert folder == checkout / "reports/digits"
    assert table_of(folder) == table_of(root / "report")
    assert (folder / "note.txt").read_text() == "a note"
    assert not (folder / "an older report").exists()
    assert not list(folder.rglob("model.keras"))  # Digits are trained in seconds.
    costs = json.loads((checkout / "pni_tf/reproduce/costs.json").read_text())
    first, _, third = (job["key"] for job in content["jobs"][:3])
    assert costs == {"digits": {first: 20.0, third: 7.0}, "cpu": {"kept": 2.0}}


def test_networks_come_too_where_training_takes_long(keep, checkout, tmp_path):
    root = tmp_path / "cpu"
    run(root, ["table2"])
    path = root / "report/report.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"scale": "cpu"}))
    folder = keep.keep(root, checkout)
    for kind in ("trainings/*/model.keras", "jobs/*.json"):
        there = {p.relative_to(root) for p in root.glob(kind)}
        assert {p.relative_to(folder) for p in folder.glob(kind)} == there != set()


def test_a_kept_report_is_written_again_without_its_verdicts(keep, tmp_path):
    folder, _ = run(tmp_path / "once", ["table2"], None)
    (folder / "note.txt").write_text("")
    kept = tmp_path / "digits"
    shutil.copytree(folder, kept)
    again = keep.written_again(kept, tmp_path / "scratch")
    first, second = (
        json.loads((path / "report.json").read_text()) for path in (kept, again)
    )
    assert second["parts"] == first["parts"]
    assert first["parts"][0]["on_the_same_images"]
    assert table_of(again) == table_of(kept)


def test_what_is_not_a_reproduction_is_refused(keep, tmp_path):
    with pytest.raises(SystemExit, match="has no report: run bin/reproduce first"):
        keep.keep(tmp_path)
