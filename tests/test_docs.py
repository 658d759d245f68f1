"""README and docs: programs run, links lead somewhere, and what is named exists."""

import ast
import re
from pathlib import Path

import keras
import pytest

import pni_tf

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = {page.stem: page for page in sorted((ROOT / "docs").glob("*.md"))}
PAGES = [README, *DOCS.values(), ROOT / "examples" / "README.md"]
PAGES.append(ROOT / "BUILD.md")


def every_page(test):
    return pytest.mark.parametrize(
        "page", PAGES, ids=lambda page: str(page.relative_to(ROOT))
    )(test)


def text_of(page):
    return page.read_text(encoding="utf-8")


def prose_of(page):
    """Returns a page without its programs and commands."""
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)


def programs_of(page):
    return re.findall(r"^```python\n(.*?)^```", text_of(page), re.M | re.S)


def run(page, *smaller):
    """Runs the programs of a page one after the other, as they stand but for sizes."""
    names = {}
    for size, _ in smaller:
        assert size in text_of(page)
    for i, program in enumerate(programs_of(page)):
        for size, small in smaller:
            program = program.replace(size, small)
        exec(compile(program, f"{page.name}, program {i + 1}", "exec"), names)
    return names


# The programs run in this order, in one folder: the files that one page leaves are what
# another begins with.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("docs")


@pytest.fixture(autouse=True)
def _in_the_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_program_of_the_readme():
    names = run(README, ("epochs=10", "epochs=1, steps_per_epoch=2"))
    images = names["images"][:4]
    saved = keras.saving.load_model("noisy.keras")
    for one, other in zip(saved.weights, names["noisy"].weights, strict=True):
        assert (one.numpy() == other.numpy()).all()
    exported = pni_tf.load_target("saved_model").noise_free.logits(images)
    assert abs(exported - pni_tf.strip_noise(saved)(images)).numpy().max() < 1e-3


def test_programs_on_a_model_of_ones_own(folder):
    names = run(DOCS["own-model"], ("epochs=5", "epochs=1"))
    images = names["digits"].test.images_float()[:20]
    noisy, noise_free, frozen = names["again"], names["noise_free"], names["one_draw"]
    assert (noisy(images) != noisy(images)).numpy().any()
    assert (noise_free(images) == noise_free(images)).numpy().all()
    assert (frozen(images) == frozen(images)).numpy().all()
    assert not pni_tf.alphas(keras.saving.load_model("noise_free.keras"))
    assert [path.suffix for path in (folder / "checkpoints").iterdir()] == [".npz"]
    assert pni_tf.load_target("my_saved_model").stochastic
    assert names["ours"].attack.epsilon == 0.15


def test_programs_that_attack():
    names = run(
        DOCS["attacking"],
        ("[:100]", "[:4]"),
        ("steps=20", "steps=2"),
        ("steps=100", "steps=5"),
        ("draws=20", "draws=2"),
        ("[200:350]", "[200:210]"),
        ("rounds=4", "rounds=2"),
        ("samples=100", "samples=5"),
    )
    assert names["target"].stochastic
    assert not names["wrapped"].stochastic
    assert names["oracle"].labels_only
    assert names["substitute"].queries == 20
    change = abs(names["adversarial"] - names["images"]).numpy()
    assert 0 < change.max() <= 0.15 + 1e-6


def test_programs_that_evaluate(capsys):
    names = run(
        DOCS["evaluation"],
        ("[:100]", "[:4]"),
        ("steps=(7, 40)", "steps=(2, 3)"),
        ("=20)", "=2)"),
        ("draws=10)", "draws=2)"),
        ("draws=2000", "draws=20"),
    )
    assert "| worst case" in capsys.readouterr().out
    assert names["worst"].draws == 2
    assert names["certificate"].method == "Cohen"


def test_no_program_is_left_out():
    pages = [page for page in PAGES if programs_of(page)]
    assert pages == [
        README,
        *(DOCS[n] for n in ("attacking", "evaluation", "own-model")),
    ]


def public_names():
    """Returns the names of all functions and classes of the package's modules."""
    names = set()
    for path in (ROOT / "pni_tf").rglob("*.py"):
        for node in ast.parse(text_of(path)).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("page", [README, *DOCS.values()], ids=lambda page: page.stem)
def test_what_users_are_told_of_can_be_imported_from_pni_tf(page):
    code = re.findall(r"`([^`]+)`", prose_of(page)) + programs_of(page)
    named = set(re.findall(r"(?<!import )\bpni_tf\.(\w+)", "\n".join(code)))
    if page.stem != "architecture":  # That page is for those who change the code.
        words = set(re.findall(r"(?<![-./\w])\w+(?![./\w])", "\n".join(code)))
        named |= {w for w in words & public_names() if "_" in w or w[0].isupper()}
    assert named <= {*pni_tf.__all__}
    for name in named:
        getattr(pni_tf, name)


def anchors_of(page):
    """Returns the anchors of a page, as GitHub makes them of its headings."""
    headings = re.findall(r"^#+ (.+)", prose_of(page), re.M)
    return {re.sub(r"[^\w-]", "", h.lower().replace(" ", "-")) for h in headings}


@every_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)]+)\)", prose_of(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


@every_page
def test_files_that_a_page_names_exist(page):
    named = r"(?<![/\w.])(?:bin|configs|benchmarks|examples|tests|pni_tf)/[\w./]*\w"
    text = re.sub(r"\]\([^)]+\)", "]", text_of(page))
    for path in re.findall(named, text):
        assert (ROOT / path).exists(), path


def test_the_readme_links_every_page_and_has_700_words():
    text = text_of(README)
    linked = re.findall(r"\]\((docs/[\w-]+\.md)\)", text)
    assert sorted(linked) == [str(page.relative_to(ROOT)) for page in DOCS.values()]
    assert len(text.split()) <= 700


def test_the_readme_says_once_how_to_run_the_tests():
    """`.ci/run` takes that line."""
    (line,) = [line for line in text_of(README).splitlines() if "&& pytest" in line]
    assert line.startswith(
        "python3 -m venv .venv && . .venv/bin/activate && pip install "
    )


def test_experiments_are_those_of_the_configs():
    """Each config has a row, with the costs and the accuracies of its own header."""
    text = text_of(DOCS["experiments"])
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", text, re.M))
    for config in sorted((ROOT / "configs").glob("*.cfg")):
        header = re.match(r"(#.*\n)+", text_of(config))[0]
        if "#   bin/train" not in header:  # The others include it.
            assert f"`{config.name}`" in text
            continue
        _, cost, expected = rows.pop(config.stem).split(" | ")
        for number in re.findall(r"(?<![-\w])[\d.]*\d(?!\w)", f"{cost} {expected}"):
            assert re.search(rf"(?<![\d.]){number}(?!\.?\d)", header), number
    # These are the scales of bin/reproduce.
    assert set(rows) <= {"digits", "cpu", "paper"}
