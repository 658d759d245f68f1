"""Tables, files and sentences of an evaluation."""

import dataclasses
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from pni_tf import FGSM, PGD, files
from pni_tf.evaluation import Column, Result, Scenario, report, union

ATTACK = PGD(epsilon=8 / 255, steps=7)


def result(labels, predictions, *, name="clean", **fields):
    """A result, of which the scenario's fields may be given too."""
    scenario = {
        key: fields.pop(key)
        for key in ("attack", "expectation", "towards")
        if key in fields
    }
    return Result(
        **{
            "scenario": Scenario(name=name, **scenario),
            "target": "network",
            "stochastic": len(predictions) > 1,
            "labels": np.array(labels),
            "predictions": np.array(predictions),
            "selection": np.array(predictions),
            "seed": 3,
            **fields,
        }
    )


def attacked(predictions, *, name="PGD-7", claimed=(True, False, True), **fields):
    return result(
        [0, 1, 2],
        predictions,
        **{
            "name": name,
            "attack": ATTACK,
            "claimed": np.array(claimed),
            "l2": np.float32([0.1, 1 / 3, 0.3]),
            "linf": np.float32([0.01, 0.02, 8 / 255]),
            "queries": np.array([1000, 2000, 6000]),
            "gradients": np.array([7, 7, 10]),
            **fields,
        },
    )


@pytest.fixture
def columns():
    """Two networks, one of them random and with a row more."""
    noisy = [
        result([0, 1, 2], [[0, 1, 2], [0, 1, 1], [0, 1, 0]]),
        attacked([[1, 1, 2], [0, 0, 1], [2, 1, 0]]),
        attacked([[1, 1, 2]] * 3, name="PGD | odd"),
    ]
    plain = [
        result([0, 1, 2], [[0, 1, 0]]),
        attacked([[1, 0, 0]], claimed=(True, True, True)),
    ]
    return {"with PNI": noisy, "without PNI": plain}


def cells_of(table):
    header, rule, *rows = table.splitlines()
    assert set(rule) <= set("|- ")
    assert len({len(line) for line in (header, rule, *rows)}) == 1
    return [
        [cell.strip() for cell in row.strip("|").split("|")] for row in (header, *rows)
    ]


class TestReport:
    def test_table_cells_are_the_numbers(self, columns):
        del columns["with PNI"][2]
        header, *cells = cells_of(report.format_table(columns))
        assert header == ["accuracy (%)", *columns]
        assert [row[0] for row in cells] == ["clean", "PGD-7"]
        for row, noisy, plain in zip(cells, *columns.values(), strict=True):
            mean, std = map(float, row[1].split("±"))
            assert mean == pytest.approx(100 * noisy.mean, abs=0.005)
            assert std == pytest.approx(100 * noisy.std, abs=0.005)
            assert float(row[2]) == pytest.approx(100 * plain.mean, abs=0.005)

    def test_table_marks_what_was_not_run(self, columns):
        *_, last = report.format_table(columns).splitlines()
        assert re.search(r"33\.33|66\.67", last)
        assert "not run" in last

    def test_description(self, columns):
        sentence = report.describe(columns)
        assert "3 images, seed 3" in sentence
        assert "3 single draws" in sentence
        assert "EOT" not in sentence
        assert "Worst case" not in sentence
        (plain,) = (c for c in columns.values() if not c[0].stochastic)
        assert "draws" not in report.describe({"plain": plain})
        assert "deterministic" in report.describe({"plain": plain})

    def test_description_of_averages_and_worst_cases(self, columns):
        noisy = columns["with PNI"]
        noisy.append(attacked([[0, 1, 2]] * 3, name="longer", expectation=20))
        assert "EOT-k: the attack averages over k draws" in report.describe(columns)
        noisy.append(union(noisy))
        assert "Worst case: for each image" in report.describe(columns)
        assert "Mean of n" not in report.describe(columns)
        noisy.append(attacked([[0, 1, 2]] * 3, ensemble=5))
        assert "Mean of n: each prediction is" in report.describe(columns)

    def test_files(self, columns, tmp_path):
        """One report for both commands: what is shown is what is in the files."""
        noisy, plain = columns.values()
        evaluation = report.Evaluation(
            model="network",
            dataset="digits",
            columns={Column(kind="noise_on"): noisy, Column(kind="twin"): plain},
            curves={"steps": {Column(kind="twin"): {1: plain[1]}}},
        )
        figure = Figure()
        text = report.write(
            tmp_path,
            evaluation,
            title="network, digits",
            intro="As asked.",
            figures={"more": figure},
        )
        whole = (tmp_path / "report.md").read_text()
        assert whole.startswith(f"# network, digits\n\nAs asked.\n\n{text}\n\n")
        for table in (report.format_table, report.format_costs, report.describe):
            assert table(evaluation.table) in text
        assert report.format_settings(evaluation.table) in whole
        linked = re.findall(r"\]\((.+?)\)", whole)
        assert linked == ["accuracies.png", "curve_steps.png", "more.png"]
        names = [*linked, "evaluation.json", "per_example.csv", "report.md"]
        assert os_names(tmp_path) == sorted(names)

    @pytest.mark.parametrize("name", ["report.md", "no_extension"])
    def test_text_is_replaced_in_one_step(self, name, tmp_path):
        path = tmp_path / name
        path.write_text("old and longer")
        files.write_text(path, "new ε ±\n")
        assert path.read_text() == "new ε ±\n"
        assert os_names(tmp_path) == [name]


def os_names(folder):
    return sorted(path.name for path in folder.iterdir())


class TestCosts:
    def test_cells_are_the_numbers(self, columns):
        del columns["with PNI"][2]
        header, *rows = cells_of(report.format_costs(columns))
        assert header[:4] == ["network", "attack", "claimed (%)", "upheld (%)"]
        assert header[4:] == ["mean L2", "mean Linf", "queries", "gradients"]
        # Clean images make no row. Two of three are claimed at first, then all.
        linf = (0.01 + 8 / 255) / 2
        assert rows[0] == [
            "with PNI",
            "PGD-7",
            "66.67",
            f"{100 * 4 / 6:.2f}",  # Images 0 and 2 are wrong in two draws each.
            "0.2",
            f"{linf:.4g}",
            "3,000",
            "8",
        ]
        assert rows[-1][:4] == ["without PNI", "PGD-7", "100.00", "100.00"]
        assert float(rows[-1][4]) == pytest.approx((0.1 + 1 / 3 + 0.3) / 3, rel=1e-3)
        assert len(rows) == 2

    def test_nothing_is_claimed(self):
        row = attacked([[0, 1, 2]], claimed=(False, False, False))
        _, cells = cells_of(report.format_costs({"a": [row]}))
        assert cells[2:] == ["0.00", "-", "-", "-", "3,000", "8"]

    def test_an_average_over_no_noise_is_no_attack_of_its_own(self):
        plain = attacked([[0, 1, 2]], name="PGD-7")
        mean = attacked([[0, 1, 2]], name="PGD-7 EOT-20", expectation=20)
        assert "PGD-7 EOT-20" not in report.format_costs({"a": [plain, mean]})
        assert "PGD-7 EOT-20" in report.format_costs({"a": [mean]})  # It is alone here.
        mean = dataclasses.replace(mean, stochastic=True)
        assert "PGD-7 EOT-20" in report.format_costs({"a": [plain, mean]})

    def test_there_is_no_table_without_attacks(self, columns):
        clean = columns["with PNI"][0]
        assert report.format_costs({"a": [clean, union([clean, clean])]}) == ""


class TestSettings:
    def test_each_attack_has_a_line_with_its_networks(self, columns):
        other = attacked([[0, 1, 2]], name="FGSM", attack=FGSM(epsilon=0.25))
        columns["without PNI"].append(other)
        assert report.format_settings(columns).splitlines() == [
            f"- with PNI, without PNI: PGD-7: `{ATTACK!r}`",
            f"- with PNI: PGD | odd: `{ATTACK!r}`",
            "- without PNI: FGSM: `FGSM(epsilon=0.25)`",
        ]

    def test_expectation_is_said_where_it_was_taken(self):
        row = attacked([[0, 1, 2]] * 2, name="EOT", expectation=20)
        quiet = attacked([[0, 1, 2]], name="EOT", expectation=20)
        assert report.format_settings({"noisy": [row], "quiet": [quiet]}).split(
            "\n"
        ) == [
            f"- noisy: EOT: `{ATTACK!r}`, expectation over 20 draws",
            f"- quiet: EOT: `{ATTACK!r}`",
        ]


def test_warnings_are_grouped_by_their_text():
    rows = [
        result([0], [[0]], warnings=("no gradient",)),
        result([0], [[0]], name="PGD", warnings=("no gradient", "too few steps")),
        result([0], [[0]], name="PGD", warnings=("no gradient",)),
        result([0], [[0]], name="Square"),
    ]
    assert report.format_warnings(rows) == [
        "warning: clean, PGD: no gradient",
        "warning: PGD: too few steps",
    ]
    assert report.format_warnings(rows[-1:]) == []
