"""The reports in reports/: their numbers are in their files, and still asked for."""

import csv
import importlib.resources
import json
import re
import shutil
import statistics
from pathlib import Path

import keras
import pytest
from report_walk import walk
from reproductions import table_of

from pni_tf import alphas
from pni_tf.reproduce import report
from pni_tf.reproduce.jobs import in_order
from pni_tf.reproduce.runner import shell
from pni_tf.reproduce.scales import SCALES
from pni_tf.reproduce.studies import parts_of

REPORTS = Path(__file__).parents[1] / "reports"


def content_of(name):
    return json.loads((REPORTS / name / "report.json").read_text())


def parts_by_study(name, content):
    studies = dict.fromkeys(part["study"] for part in content["parts"])
    seeds = content["training_seeds"]
    return {study: parts_of(study, SCALES[name], seeds) for study in studies}


@pytest.fixture(params=sorted(path.name for path in REPORTS.iterdir()))
def name(request):
    return request.param


def test_every_number_is_in_a_file(name):
    assert walk(REPORTS / name)["cells"] > 20


def test_its_commands_are_those_of_today(name):
    """A number whose command has changed must be measured again."""
    content = content_of(name)
    parts = parts_by_study(name, content)
    jobs = in_order([job for study in parts.values() for p in study for job in p.jobs])
    root = Path("reproduction", name)
    assert {job["title"]: job["command"] for job in content["jobs"]} == {
        job.title: shell(job, root) for job in jobs
    }


def test_its_tables_are_those_of_today(name, tmp_path):
    content = content_of(name)
    shutil.copytree(REPORTS / name, tmp_path / "report")
    parts = parts_by_study(name, content)
    again = report.write(tmp_path, SCALES[name], parts, content["training_seeds"])
    assert table_of(again) == table_of(REPORTS / name)
    said = json.loads((again / "report.json").read_text())["parts"]
    for ours, kept in zip(said, content["parts"], strict=True):
        assert ours.get("comparisons") == kept.get("comparisons")


def test_digits_is_complete():
    content = content_of("digits")
    assert {part["study"] for part in content["parts"]} == {*SCALES["digits"].studies}
    assert all(job["done"] for job in content["jobs"])
    text = (REPORTS / "digits" / "report.md").read_text().lower()
    assert "not run" not in text
    assert "failed" not in text


def test_readme_shows_the_numbers_of_the_reports():
    """Of their main tables, in the columns that its own headings name."""
    kept = []
    for folder in REPORTS.iterdir():
        for part in re.split(r"^## ", (folder / "report.md").read_text(), flags=re.M):
            if part.startswith(("Table 2:", "Table 6:", "MNIST:")):
                rows = [x.strip("| ").split(" | ") for x in part.splitlines()]
                kept += [row for row in rows if len(row) == 8]
    section = (REPORTS.parent / "README.md").read_text()
    section = section.partition("## The paper, table by table")[2].partition("\n## ")[0]
    headings, shown = None, 0
    for line in section.splitlines():
        label, *numbers = line.strip("| ").split(" | ")
        if label == "accuracy (%)":
            headings = numbers
        if not line.startswith("|"):
            headings = None
        if headings in (None, numbers) or label == "---":
            continue
        rows = [
            row
            for row in kept
            if re.fullmatch(rf"{re.escape(label)}( \(paper.*)?", row[0])
        ]
        assert numbers in [columns(row, headings) for row in rows], label
        shown += 1
    assert shown >= 20


@pytest.mark.parametrize(
    "path",
    sorted(REPORTS.glob("*/trainings/*/model.keras")),
    ids=lambda path: path.parent.name,
)
def test_networks_are_those_of_the_report(path):
    model = keras.saving.load_model(path, compile=False)
    with (path.parent / "history.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    found = {f"alpha/{name}": abs(a).mean() for name, a in alphas(model).items()}
    assert found.keys() == {name for name in last if name.startswith("alpha/")}
    for name, alpha in found.items():
        assert alpha == pytest.approx(float(last[name]), rel=1e-5)


def columns(row, headings):
    """Returns what a row of a report has under the headings of the README."""
    ours = [cell.partition("<br>")[0].partition(" (n = ")[0] for cell in row]
    by_heading = {
        "clean": ours[1],
        "PGD-7": ours[2],
        "PGD-7, as in the paper": ours[2],
        "PGD-40": ours[2],
        "PGD-20, expectation over 10 draws": ours[4],
        "PGD-100, expectation over 10 draws": ours[4],
        "worst case": ours[6],
        "strong suite": ours[7],
        "the paper's PGD-7 on CIFAR-10": row[2].partition("<br>paper ")[2],
    }
    return [by_heading[heading] for heading in headings]


def test_estimates_of_time_are_from_the_reports(name):
    file = importlib.resources.files("pni_tf.reproduce") / "costs.json"
    costs, found = json.loads(file.read_text())[name], {}
    for job in content_of(name)["jobs"]:
        if job["done"] and job["seconds"] >= 1:  # else it was there already
            found.setdefault(job["key"], []).append(job["seconds"])
    means = {key: round(statistics.mean(taken), 1) for key, taken in found.items()}
    assert costs == means
