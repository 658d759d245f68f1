"""The tables of a report and the numbers in them."""

import csv
import dataclasses
import json
import re
import shlex
import shutil

import pytest
from report_walk import walk
from reproductions import DIGITS, cells_of, jobs_of, results_of, run, table_of, write

from pni_tf.reproduce.builder import STRONG
from pni_tf.reproduce.cells import Table
from pni_tf.reproduce.scales import SCALES
from pni_tf.reproduce.studies import parts_of

pytestmark = pytest.mark.usefixtures("without_processes")


class TestValues:
    def test_draws_and_seeds_are_kept_apart(self, tmp_path):
        (cell,) = cells_of(tmp_path, [0.5, 0.7], draws=10)
        assert results_of(tmp_path).value(cell).text() == "60.00 ± 2.00 (± 14.14)"

    def test_a_seed_that_was_not_run_is_left_out(self, tmp_path):
        (cell,) = cells_of(tmp_path, [0.5, 0.7])
        (tmp_path / cell.sources[1].evaluation.result).unlink()
        assert results_of(tmp_path).value(cell).text() == "50.00 [1 of 2 seeds run]"
        (tmp_path / cell.sources[0].evaluation.result).write_text("{")
        assert not results_of(tmp_path).value(cell)


WORDS = {  # Words of a row, for the name of its training.
    "adversarial": "fair twin",
    "vanilla": "no defence",
    "pni_w_vanilla": "vanilla training",
    "pni_w_without_noise_in_attack": "PNI not in attack",
    "madry": "Madry",
}


def normal(text):
    """Returns the name of a training or the label of a row in one form."""
    for name in sorted(WORDS, key=len, reverse=True):
        if re.fullmatch(rf"{name}(_resnet\w+)?", text):
            text = WORDS[name]
    text = text.lower().replace("pni in attack", "pni_w")
    text = re.sub(r"_resnet\w+", "", text)
    return re.sub(r"[^a-z]", "", text)


ROW_OF = {  # The row that a heading promises.
    "noise-off-crafted": "noise-free twin",
    "worst case": "worst_case",
    STRONG: "worst_case",
}


def column_of(label):
    """The kind of column of the evaluation that the label of a row promises."""
    if "mean of" in label:
        return "mean"
    if "without PNI" in label:
        return "noise_off"
    deterministic = ("fair twin", "no defence", "Madry")
    return "model" if any(d in label for d in deterministic) else "noise_on"

    @pytest.mark.parametrize(
        ("row", "column"), [("attack 1", "model"), ("attack 0", "noise_off")]
    )
    def test_what_a_run_did_not_find_is_an_error(self, row, column, tmp_path):
        """It would be called not run, although it was."""
        (cell,) = cells_of(tmp_path, [0.5])
        source = dataclasses.replace(cell.sources[0], row=row, column=column)
        path = tmp_path / source.evaluation.result
        words = f"{path} has no row {row!r} in a column of kind {column!r}. To evaluate"
        with pytest.raises(ValueError, match=re.escape(words)):
            results_of(tmp_path).value(dataclasses.replace(cell, sources=(source,)))

    @pytest.mark.parametrize(
        ("place", "there"),
        [
            ("/other/reproduction/trainings/adversarial_seed0", True),
            ("/other/reproduction/networks/adversarial_seed0", False),
            ("trainings/an_adversarial_seed0", False),
        ],
    )
    def test_a_network_is_known_by_its_run_directory(self, place, there, tmp_path):
        """In whichever folder the reproduction was then."""
        fields = {"scenario": "transfer", "source": place}
        (cell,) = cells_of(tmp_path, [0.5], **fields)
        run = str(DIGITS.training("adversarial", 0).path)
        source = dataclasses.replace(cell.sources[0], row=run)
        results = results_of(tmp_path)
        if there:
            assert results.row(source).source == place
        else:
            with pytest.raises(ValueError, match="has no row 'trainings/adversarial"):
                results.row(source)


class TestReport:
    def test_a_seed_that_claims_nothing_was_run_all_the_same(self, tmp_path):
        run(tmp_path, ["table4"], 2)
        for seed, words in (
            (0, r"0\.\d+ \[none claimed by 1 of 2 seeds\]"),
            (1, "none"),
        ):
            path = f"evaluations/vanilla_seed{seed}/cw/evaluation.json"
            result = tmp_path / path
            content = json.loads(result.read_text())
            for entry in content["columns"]["model"]:
                entry["l2_mean_of_claimed"] = None
            result.write_text(json.dumps(content))
            folder = write(tmp_path, ["table4"], 2)
            text = (folder / "report.md").read_text()
            assert re.search(rf"\| resnet8, no defence \| {words}", text)

    @pytest.mark.parametrize("study", ["table1", "table2", "table3", "table6"])
    def test_cells_are_what_their_headings_say(self, study, tmp_path):
        folder, _ = run(tmp_path, [study], 2)
        (table,) = (p for p in parts_of(study, DIGITS, 2) if isinstance(p, Table))
        results = results_of(folder, jobs_of([study], 2))
        lines = (folder / "report.md").read_text().splitlines()
        place = lines.index("|  | " + " | ".join(table.columns) + " |")
        shown = [line.strip("| ").split(" | ") for line in lines[place + 2 :]]
        for (label, cells), (name, *texts) in zip(table.rows, shown, strict=False):
            assert name == label
            for heading, cell, text in zip(table.columns, cells, texts, strict=True):
                for found in cell.sources:
                    assert found.row == ROW_OF.get(heading, heading)
                    assert found.field == "accuracy_mean"
                    assert found.column == column_of(label)
                    by_mean = "mean of" in label
                    kind = "ensemble" if by_mean else "white_box"
                    if heading == STRONG:
                        kind = "strong_ensemble" if by_mean else "strong"
                    assert found.evaluation.kind == kind
                    defence = found.evaluation.training.name
                    assert normal(defence) in normal(label)
                first = text.split("<br>")[0].removesuffix(" (n = 10)")
                assert first == (results.value(cell).text() if cell.sources else "–")

    def test_every_number_is_in_a_file(self, tmp_path):
        folder, _ = run(tmp_path, DIGITS.studies, 2)
        counts = walk(folder)
        assert counts.keys() == {
            *("cells", "comparisons", "points", "listings", "series", "alphas"),
        }
        assert "not run" not in (folder / "report.md").read_text().lower()

    def test_each_cell_has_a_command(self, tmp_path):
        folder, _ = run(tmp_path, ["table5"], 1)
        text = (folder / "report.md").read_text()
        block = text[text.index("# transfer_from_adversarial of pni_a_a, seed 0: ") :]
        assert block.splitlines()[1:3] == [
            "#   PNI-A-a: accuracy, A ⇒ B",
            "#   PNI-A-a, without PNI: accuracy, A ⇒ B",
        ]
        assert block.splitlines()[3].startswith("bin/evaluate ")

    def test_what_was_not_run_says_so(self, tmp_path):
        run(tmp_path, ["table2"])
        folder = write(tmp_path, ["table6"])
        text = (folder / "report.md").read_text()
        (rse,) = [line for line in text.splitlines() if line.startswith("| RSE")]
        assert rse.count("not run") == 7
        words = (
            "- Not run: PNI-W against RSE, both by mean, under PGD-7 as in the paper; "
        )
        assert words in text
        (pni,) = [line for line in text.splitlines() if line.startswith("| PNI-W, sin")]
        assert "not run" not in pni

    def test_what_claims_nothing_is_not_called_not_run(self, tmp_path):
        folder, _ = run(tmp_path, ["table4"])
        result = tmp_path / "evaluations/vanilla_seed0/cw/evaluation.json"
        content = json.loads(result.read_text())
        for entry in content["columns"]["model"]:
            entry["l2_mean_of_claimed"] = None
        result.write_text(json.dumps(content))
        write(tmp_path, ["table4"])
        text = (folder / "report.md").read_text()
        (row,) = [x for x in text.splitlines() if x.startswith("| resnet8, no defence")]
        assert row.count("none claimed") == 2
        assert "not run" not in text

    def test_fewer_images_are_pointed_out(self, tmp_path):
        folder, _ = run(tmp_path, ["table2"])
        """With what the other attacks do on the same images, which are the first."""
        text = (folder / "report.md").read_text()
        (row,) = [x for x in text.splitlines() if x.startswith("| PNI-I, with PNI")]
        *others, strong = row.strip("| ").split(" | ")
        assert strong.endswith("(n = 10)")
        assert not any("n = " in other for other in others)
        assert f"{STRONG}: 10 images" in text
        path = tmp_path / "evaluations/pni_i_seed0/white_box/per_example.csv"
        with path.open(newline="") as file:
            right = [
                int(line["correct_draws"])
                for line in csv.DictReader(file)
                if (line["network"], line["scenario"]) == ("noise on", "worst case")
            ]
        ours = strong.split(" ")[0]
        assert f"; PNI-I, with PNI {ours} against {sum(right[:10]):.2f}; " in text

    def test_html_needs_no_other_file(self, tmp_path):
        folder, _ = run(tmp_path, ["figure2", "figure3"])
        page = (folder / "report.html").read_text()
        sources = re.findall(r'src="(.{21})', page)
        assert sources == ["data:image/png;base64"] * 3
        assert "<td>" in page

    def test_commands_can_be_pasted(self, tmp_path):
        folder, _ = run(tmp_path, ["table2"])
        content = json.loads((folder / "report.json").read_text())
        for job, known in zip(content["jobs"], jobs_of(["table2"]), strict=True):
            assert shlex.split(job["command"])[1:] == known.arguments(tmp_path)

    def test_a_report_that_was_kept_alone_keeps_its_numbers(self, tmp_path):
        folder, _ = run(tmp_path / "one", ["table2"])
        shutil.copytree(folder, tmp_path / "two" / "report")
        kept = write(tmp_path / "two", ["table2"])
        assert table_of(kept) == table_of(folder)

    def test_a_training_that_was_removed_leaves_the_report(self, tmp_path):
        folder, _ = run(tmp_path, ["figure2"])
        assert list(folder.glob("trainings/pni_w_seed0/*"))
        for path in [*tmp_path.glob("jobs/*"), *tmp_path.glob("trainings/*/*")]:
            path.unlink()
        write(tmp_path, ["figure2"])
        assert not list(folder.glob("trainings/pni_w_seed0/*"))
        assert "Not run." in (folder / "report.md").read_text()

    @pytest.mark.parametrize("digest", ["a" * 64, "b" * 64])
    def test_other_images_under_one_name_are_pointed_out(self, digest, tmp_path):
        run(tmp_path, ["table2"])
        for name, of_these in (("pni_i", "a" * 64), ("pni_w", digest)):
            result = tmp_path / f"evaluations/{name}_seed0/white_box/evaluation.json"
            content = json.loads(result.read_text())
            data = {"examples": 20, "sha256": of_these}
            result.write_text(json.dumps(content | {"dataset": "mnist", "data": data}))
        folder = write(tmp_path, ["table2"])
        text = (folder / "report.md").read_text()
        assert ("**Not to be compared:**" in text) == (digest[0] == "b")
        for name, first in (("pni_i", "a"), ("pni_w", "b")):
            line = f"- mnist, 20 images, SHA-256 {first * 12}: white_box of {name}"
            assert (line in text) == (digest[0] == "b")

    def test_a_scale_says_what_it_lacks(self, tmp_path):
        folder = write(tmp_path, [], scale=SCALES["cpu"])
        text = (folder / "report.md").read_text()
        assert "Not on this scale: table3, table4, table5, table7." in text

    def test_results_that_became_stale_leave_the_report(self, tmp_path):
        folder, _ = run(tmp_path, ["table2"])
        (tmp_path / "trainings/pni_i_seed0/model.keras").write_text("another one")
        write(tmp_path, ["table2"])
        assert not list(folder.glob("evaluations/pni_i_seed0/*/*.json"))
        text = (folder / "report.md").read_text()
        (row,) = [x for x in text.splitlines() if x.startswith("| PNI-I, with PNI")]
        assert row.count("not run") == 7
