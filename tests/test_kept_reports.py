"""The reports in reports/: their numbers are in their files, and still asked for."""

import csv
import importlib
import importlib.resources
import json
import statistics
from pathlib import Path

import keras
import pytest
from report_walk import walk

from pni_tf import alphas
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


@pytest.fixture
def keep(monkeypatch):
    """The script that files reports."""
    monkeypatch.syspath_prepend(REPORTS)
    return importlib.import_module("keep")


@pytest.fixture(params=sorted(path.name for path in REPORTS.glob("*/")))
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
    assert {job["result"]: job["command"] for job in content["jobs"]} == {
        str(job.result): shell(job, root) for job in jobs
    }


def test_the_program_writes_it_again(name, keep, tmp_path):
    """So no word or number of it can be changed by hand, or be left behind."""
    again = keep.written_again(REPORTS / name, tmp_path)
    for file in ("report.md", "report.json"):
        assert (again / file).read_text() == (REPORTS / name / file).read_text()


def test_digits_is_complete():
    content = content_of("digits")
    assert {part["study"] for part in content["parts"]} == {*SCALES["digits"].studies}
    assert all(job["done"] for job in content["jobs"])
    text = (REPORTS / "digits" / "report.md").read_text().lower()
    assert "not run" not in text
    assert "failed" not in text


def test_the_page_of_results_is_that_of_the_reports(keep):
    """Which `python reports/keep.py` writes."""
    page = REPORTS.parent / "docs" / "results.md"
    assert page.read_text() == keep.results_page.text(REPORTS)


def test_the_page_has_the_main_numbers():
    """Typed from the reports, so that a wrong column or row would be noticed."""
    lines = (REPORTS.parent / "docs" / "results.md").read_text().splitlines()
    for line in (
        "| PNI-W, with PNI | 98.88 ± 0.06 (± 0.02) | 85.03 ± 0.41 (± 1.22) | 82.29 ± "
        "0.79 (± 0.57) | 81.60 ± 0.56 (± 0.41) | 45.94 ± 0.11 |",
        "| fair twin (no noise) | 71.46 | 38.11 | 37.56 | 37.48 | 33.00 | 39.14 ± "
        "0.05 |",
        "| RSE, mean of 5 draws | 99.18 ± 0.14 (± 0.65) | 26.28 ± 1.10 (± 6.91) | "
        "22.68 ± 0.84 (± 5.56) | 21.61 ± 0.84 (± 4.83) | 15.44 ± 1.77 |",
        "| fair twin (no noise) | 99.30 | 96.70 | 95.90 | 95.90 | 92.50 |",
    ):
        assert lines.count(line) == 1


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


def test_estimates_of_time_are_from_the_reports(name):
    file = importlib.resources.files("pni_tf.reproduce") / "costs.json"
    costs, found = json.loads(file.read_text())[name], {}
    for job in content_of(name)["jobs"]:
        if job["done"] and job["seconds"] >= 1:  # Otherwise it was there already.
            found.setdefault(job["key"], []).append(job["seconds"])
    means = {key: round(statistics.mean(taken), 1) for key, taken in found.items()}
    assert costs == means
