"""The programs in README.md run as they stand, but for the number of epochs."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_programs_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(programs) == 3
    library, stranger, attacker = programs
    assert "epochs=10" in library
    exec(library.replace("epochs=10", "epochs=1"), {})
    accuracy = float(capsys.readouterr().out.splitlines()[-1])
    assert 0 <= accuracy <= 1
    assert {"noisy.keras", "noise_free.keras", "saved_model"} <= {
        path.name for path in tmp_path.iterdir()
    }
    names = {}
    exec(stranger, names)  # loads what the first one has exported
    images, loaded = names["images"], names["loaded"]
    first, second = loaded.serve(images).numpy(), loaded.serve(images).numpy()
    assert first.shape == (4, 10)
    assert (first != second).any()
    for size, smaller in (("[:100]", "[:4]"), ("=20", "=2"), ("steps=100", "steps=5")):
        assert size in attacker
        attacker = attacker.replace(size, smaller)
    exec(attacker, {})
    assert "| worst case" in capsys.readouterr().out


def test_commands_name_files_that_exist():
    root = Path(__file__).parents[1]
    for path in re.findall(r"(?<![/\w])(?:configs/\w+\.cfg|bin/\w+)", README):
        assert (root / path).is_file(), path
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        path, _, anchor = link.partition("#")
        assert (root / path).exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)", (root / path).read_text(), re.M)
            assert anchor in [
                re.sub(r"[^\w-]", "", h.lower().replace(" ", "-")) for h in headings
            ]
