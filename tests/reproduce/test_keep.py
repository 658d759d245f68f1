"""Filing a report: what is copied, and what its jobs took."""

import importlib
import json
import re
import shutil
from pathlib import Path

import pytest
from reproductions import run, table_of

ROOT = Path(__file__).parents[2]

TABLE, TWIN = "Table 2: where the noise is", "fair twin (no noise)"
PNI = "PNI-W, with PNI"

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


def test_a_kept_report_is_written_again_under_other_titles(keep, tmp_path):
    """Of parts and of jobs: no number is found by them."""
    folder, _ = run(tmp_path / "once", ["table2"], None)
    (folder / "note.txt").write_text("")
    kept = tmp_path / "digits"
    shutil.copytree(folder, kept)
    path = kept / "report.json"
    content = json.loads(path.read_text())
    for named in (*content["jobs"], *content["parts"]):
        named["title"] = "an older title"
    path.write_text(json.dumps(content))
    again = json.loads(
        (keep.written_again(kept, tmp_path / "scratch") / "report.json").read_text()
    )
    first = json.loads((folder / "report.json").read_text())
    assert again["parts"] == first["parts"]
    for name in ("title", "seconds", "done"):
        assert [j[name] for j in again["jobs"]] == [j[name] for j in first["jobs"]]


class TestPage:
    """What the page of results looks for must be in the report."""

    @pytest.fixture
    def kept(self, keep, tmp_path):
        folder, _ = run(tmp_path, ["table2"])
        (folder / "note.txt").write_text("")
        return keep.results_page.Kept(folder)

    @pytest.mark.parametrize(
        ("name", "arguments", "missing"),
        [
            ("cell", ("Table 0", TWIN, "clean"), "part 'Table 0'"),
            ("cell", (TABLE, "twin", "clean"), "row 'twin'"),
            ("cell", (TABLE, TWIN, "dirty"), "column 'dirty'"),
            ("sentences", (TABLE, (TWIN, PNI)), "comparison of "),
            ("sentences", (TABLE, ("PNI", TWIN)), "comparison of "),
            ("no_gain", (TABLE, "twin"), "comparison of (None, 'twin')"),
            ("where_differ", (TABLE, PNI, "twin"), "comparison of "),
            ("same_images", (TABLE, "twin"), "row 'twin' on the same images"),
        ],
    )
    def test_missing(self, name, arguments, missing, kept):
        with pytest.raises(LookupError, match=re.escape(f"report has no {missing}")):
            getattr(kept, name)(*arguments)

    def test_there(self, kept):
        assert kept.cell(TABLE, TWIN, "clean")["value"]
        assert kept.sentences(TABLE, (PNI, TWIN)).count("- ") == 4
        assert "under PGD-7" in kept.where_differ(TABLE, PNI, TWIN)


def test_what_is_not_a_reproduction_is_refused(keep, tmp_path):
    with pytest.raises(SystemExit, match="has no report: run bin/reproduce first"):
        keep.keep(tmp_path)
