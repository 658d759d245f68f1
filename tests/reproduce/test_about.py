"""The sentences below a table."""

import dataclasses
import json

import pytest
from reproductions import cells_of, results_of

from pni_tf.reproduce import sections
from pni_tf.reproduce.attack_studies import guarantees
from pni_tf.reproduce.cells import Cell, Claim, Table
from pni_tf.reproduce.comparisons import about


def said(folder, *claims):
    """Returns the sentences and the comparisons about claims."""
    said = about(results_of(folder), table_of(claims))
    return said["sentences"], said["comparisons"]


def table_of(claims, row="row", column="PGD-7"):
    rows = [(f"{row} {i}", (cell,)) for i, cell in enumerate(of(claims))]
    return Table(title="T", columns=(column,), rows=tuple(rows), claims=claims)


def write(folder, table):
    """Writes the part of `report.json` that is about a table, and returns it."""
    part = sections.make(table, results_of(folder), "name").content
    content = {"parts": [{"study": "S", "title": table.title, **part}]}
    (folder / "report.json").write_text(json.dumps(content))
    return part


def of(claims):
    return [cell for claim in claims for cell in (claim.ours, claim.other)]


def claim_of(folder, *columns, **options):
    ours, other = cells_of(folder, *columns, **options)
    return Claim(text="A against B", ours=ours, other=other)


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        # Standard errors 6.73 and 6.98, and 1.97 by Student's t.
        (0.7, "+20.00 points (95 % interval +6.74 to +33.26; images not in pairs"),
        (0.3, "-20.00 points (95 % interval -33.26 to -6.74; images not in pairs"),
        (0.55, "+5.00 points (95 % interval -8.77 to +18.77; images not in pairs"),
    ],
)
def test_a_comparison(ours, words, tmp_path):
    differ = "these two differ, which one training each does not show of others"
    verdict = "no difference is shown" if ours == 0.55 else differ
    claim = claim_of(tmp_path, [ours], [0.5], paper=[(45.94, 0.1), 39.14])
    (sentence,), (content,) = said(tmp_path, claim)
    assert sentence == f"A against B: {words}; paper +6.80), so {verdict}."
    assert content["sentence"] == sentence
    assert (content["ours"], content["other"]) == (
        ["row 0", "PGD-7"],
        ["row 1", "PGD-7"],
    )
    assert content["difference"] == pytest.approx(100 * (ours - 0.5))


def test_images_in_pairs_are_not_remarked(tmp_path):
    claim = claim_of(tmp_path, [[1.0, 0.0] * 20], [[1.0, 0.0] * 20])
    (sentence,), _ = said(tmp_path, claim)
    assert "pairs" not in sentence


def test_a_comparison_in_pairs_outlives_the_verdicts_on_images(tmp_path):
    """As long as its numbers are the same: two more images are 5 points."""
    claim = claim_of(tmp_path, [[1.0, 0.0] * 20], [[1.0] * 18 + [0.0] * 22])
    sentences, content = said(tmp_path, claim)
    assert content[0]["paired"]
    write(tmp_path, table_of([claim]))
    (verdicts,) = tmp_path.rglob("per_example.csv")
    verdicts.unlink()
    assert said(tmp_path, claim) == (sentences, content)
    result = tmp_path / claim.ours.sources[0].evaluation.result
    result.write_text(result.read_text().replace("0.5", "0.55"))
    (sentence,), (other,) = said(tmp_path, claim)
    assert "images not in pairs" in sentence
    assert other["difference"] == pytest.approx(10)


def test_a_comparison_in_pairs_outlives_its_words(tmp_path):
    """Whatever title, rows and columns are called by now."""
    claim = claim_of(tmp_path, [[1.0, 0.0] * 20], [[1.0] * 18 + [0.0] * 22])
    first = write(tmp_path, table_of([claim]))["comparisons"][0]
    (verdicts,) = tmp_path.rglob("per_example.csv")
    verdicts.unlink()
    table = table_of([claim], row="line", column="the paper's attack")
    claim = dataclasses.replace(claim, text="In other words")
    table = dataclasses.replace(table, title="Another", claims=(claim,))
    (found,) = write(tmp_path, table)["comparisons"]
    assert found["ours"] == ["line 0", "the paper's attack"]
    for name in ("paired", "interval", "difference", "verdict"):
        assert found[name] == first[name]


def test_another_comparison_of_the_same_difference_does_not_stand_for_it(tmp_path):
    """What was in pairs of others says nothing of these two."""
    columns = ([[1.0, 0.0] * 20], [[1.0] * 18 + [0.0] * 22], [[0.0, 1.0] * 20])
    ours, other, third = cells_of(tmp_path, *columns)
    write(tmp_path, table_of([Claim(text="A against B", ours=ours, other=other)]))
    (verdicts,) = tmp_path.rglob("per_example.csv")
    verdicts.unlink()
    _, (found,) = said(tmp_path, Claim(text="A against B", ours=third, other=other))
    assert not found["paired"]


def test_norms_are_not_judged(tmp_path):
    claim = claim_of(tmp_path, [1.5], [0.5], paper=[1.97, 1.97])
    ours, other = (
        dataclasses.replace(cell, percent=False) for cell in (claim.ours, claim.other)
    )
    claim = Claim(text="A against B", ours=ours, other=other, judge=False)
    (sentence,), _ = said(tmp_path, claim)
    assert sentence == "A against B: 1.5 against 0.5 (paper: 1.97 against 1.97)."


def test_what_was_not_run_comes_last(tmp_path):
    there = claim_of(tmp_path, [0.7], [0.5])
    gone = Claim(text="C against D", ours=there.ours, other=Cell())
    norm = dataclasses.replace(gone, text="E against F", judge=False)
    found, content = said(tmp_path, gone, norm, there)
    assert found[0].startswith("A against B: +20.00 points")
    assert found[1:] == ["Not run: C against D; E against F."]
    assert len(content) == 1


def test_few_images_are_compared_with_the_same_ones(tmp_path):
    """All attacks leave 60 % of 40 images, and 90 % of the 10 that the suite saw."""
    shares = [1.0] * 9 + [0.0] + [1.0, 0.0] * 15
    (weak,) = cells_of(tmp_path / "0", [shares])
    (strong,) = cells_of(tmp_path / "1", [[1.0] * 8 + [0.0] * 2], kind="strong")
    for path in (tmp_path / "1" / "evaluations").rglob("*.*"):
        new = tmp_path / "0" / path.relative_to(tmp_path / "1")
        new.parent.mkdir(parents=True, exist_ok=True)
        path.rename(new)
    table = Table(
        title="T",
        columns=("worst case", "strong suite"),
        rows=(("A", (weak, strong)),),
        worst_cases=(1, 0),
    )
    words = (
        "Strong suite against the worst case of the other attacks, first seed, on the "
        "same 10 images: {} 80.00 against 90.00."
    )
    assert write(tmp_path / "0", table)["sentences"] == [words.format("A")]
    for verdicts in tmp_path.rglob("per_example.csv"):
        verdicts.unlink()
    rows = (("B", (strong, weak)),)  # In other words, and in another order.
    columns = ("strongest", "others")
    table = dataclasses.replace(table, columns=columns, rows=rows, worst_cases=(0, 1))
    assert write(tmp_path / "0", table)["sentences"] == [words.format("B")]
    table = dataclasses.replace(table, worst_cases=None)
    assert write(tmp_path / "0", table)["sentences"] == []


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        (
            {"0": 0.8, "0.1": 0.5, "0.2": 0.4, "0.3": 0.3},
            "at radius 0.2 and at none of",
        ),
        ({"0": 0.8, "0.1": 0.3}, "at none of the radii here"),
        ({"0": 0.8}, "at none of the radii here"),
        ({"0": 0.0, "0.1": 0.0}, "at none of the radii here"),
    ],
)
def test_what_is_certified(shares, words):
    """The accuracy at radius 0 is no guarantee."""
    found = {"method": "M", "images": 10, "draws": 100, "failure": 0.05}
    sentence, _ = guarantees([{**found, "certified_accuracy": shares}])
    assert f"is certified {words}" in sentence
