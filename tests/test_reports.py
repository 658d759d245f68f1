"""The reports in reports/: their numbers are in their files, and still asked for."""

import importlib.resources
import json
import re
import shutil
import statistics
from pathlib import Path

import pytest
from report_walk import walk
from reproductions import table_of

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


def test_digits_is_complete():
    content = content_of("digits")
    assert {part["study"] for part in content["parts"]} == {*SCALES["digits"].studies}
    assert all(job["done"] for job in content["jobs"])
    text = (REPORTS / "digits" / "report.md").read_text().lower()
    assert "not run" not in text
    assert "failed" not in text


def test_readme_shows_the_numbers_of_the_report():
    lines = (REPORTS / "digits" / "report.md").read_text().splitlines()
    section = (REPORTS.parent / "README.md").read_text()
    section = section.partition("## The paper, table by table")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines()]
    rows = [row for row in rows if len(row) == 6 and "±" in "".join(row)]
    assert len(rows) == 15
    for label, *numbers in rows:
        starts = (f"| {label} | ", f"| {label} (paper")
        shown = [line for line in lines if line.startswith(starts)]
        assert any(
            all(re.search(rf"\| (.*paper )?{re.escape(n)}\D", row) for n in numbers)
            for row in shown
        )


def test_estimates_of_time_are_from_the_reports(name):
    file = importlib.resources.files("pni_tf.reproduce") / "costs.json"
    costs, found = json.loads(file.read_text())[name], {}
    for job in content_of(name)["jobs"]:
        if job["done"] and job["seconds"] >= 1:  # else it was there already
            found.setdefault(job["key"], []).append(job["seconds"])
    means = {key: round(statistics.mean(taken), 1) for key, taken in found.items()}
    assert costs == means
