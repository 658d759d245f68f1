"""Damaged and hostile model files, given to `load_target`."""

import io
import json
import re
import shutil
import zipfile
from pathlib import Path

import fuzz_command  # noqa: F401  for the path
import keras
import numpy as np
from fuzz_cases import Case, Offence, damaged
from keras import layers

from pni_tf import export_saved_model, inject_pni, load_target

SHAPE = (6, 5, 1)
ODD = (None, True, -1, 0, 1.5, "", "x", [], {}, [1, 2], "__import__('os')", "../x", 7)
TEXTS = (
    b"",
    b"PK",
    b"PK\x03\x04",
    b"words\n",
    b"{}",
    b"\x89HDF\r\n\x1a\n",
    b"\x80\x04N.",
)


def prepare(folder):
    """Writes a `.keras` file, another network's, and an export."""
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).random((5, *SHAPE)).astype("float32")
    for name, units in (("model", 4), ("other", 3)):
        network = keras.Sequential(
            [
                keras.Input(SHAPE),
                layers.Conv2D(3, 2, activation="relu", name="convolution"),
                layers.BatchNormalization(name="norm"),
                layers.Flatten(),
                layers.Dense(units, name="logits"),
            ]
        )
        model = inject_pni(network, "w")
        model.save(folder / f"{name}.keras")
        if name == "model":
            export_saved_model(model, folder / "export")
    expected = _answers(load_target(folder / "model.keras"), images)
    again = _answers(load_target(folder / "export"), images)
    np.testing.assert_allclose(again, expected, atol=1e-5)
    return {"folder": folder, "images": images, "file": expected, "export": again}


def _answers(target, images):
    target = target.noise_free or target
    return target.logits(images).numpy()


def draw(context, generator):
    """Returns a case: a copy of a model, damaged."""
    folder = context["folder"]
    place = folder / "copy"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    kind = generator.choice(("bytes", "bytes", "zip", "config", "export", "export"))
    if generator.random() < 0.05:
        kind = "text"
    if kind == "text":
        path, text = place / "model.keras", generator.choice(TEXTS)
        path.write_bytes(text)
        return _case(f"a file of {text!r}", context, path, None)
    whole = (folder / "model.keras").read_bytes()
    path = place / "model.keras"
    if kind == "bytes":
        how, content = damaged(whole, generator)
        path.write_bytes(content)
        return _case(f"model.keras, {how}", context, path, context["file"])
    if kind in ("zip", "config"):
        make = _changed_members if kind == "zip" else _changed_config
        how, content = make(context, whole, generator)
        path.write_bytes(content)
        # The sums of the archive are right, so it is another model, if it is one.
        return _case(f"model.keras, {how}", context, path, None)
    path = place / "export"
    shutil.copytree(folder / "export", path)
    how = _changed_export(path, generator)
    return _case(f"an export, {how}", context, path, context["export"])


def _case(what, context, path, expected):
    return Case(what, lambda: judge(context, path, expected))


def judge(context, path, expected):
    """Loads it: a clear error, or the answers as before."""
    before = {p.name for p in Path.cwd().iterdir()}
    try:
        found = _answers(load_target(path), context["images"])
    except (ValueError, OSError) as error:
        text = str(error)
        named = str(path.parent) in text or "target" in text.lower()
        if not named or len(text.splitlines()) > 1:
            raise Offence("traceback", f"unclear: {error!r:.600}") from error
        return "refused"
    except Exception as error:
        raise Offence("traceback", repr(error)[:600]) from error
    if {p.name for p in Path.cwd().iterdir()} != before:
        raise Offence("silent", "loading has written a file")
    if expected is not None and not np.array_equal(found, expected):
        raise Offence("silent", "other answers than before")
    return "accepted"


def _members(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _archive(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def _changed_members(context, content, generator):
    members = _members(content)
    name = generator.choice(list(members))
    kind = generator.choice(
        ("missing", "swapped", "other's", "empty", "damaged", "path")
    )
    if kind == "missing":
        del members[name]
    elif kind == "swapped":
        second = generator.choice([other for other in members if other != name])
        members[name], members[second] = members[second], members[name]
        name = f"{name} and {second}"
    elif kind == "other's":
        other = (context["folder"] / "other.keras").read_bytes()
        members[name] = _members(other)[name]
    elif kind == "empty":
        members[name] = b""
    elif kind == "damaged":
        how, members[name] = damaged(members[name], generator)
        name += f", {how}"
    else:
        members["../../outside"] = b"words"
    return f"{kind}: {name}", _archive(members.items())


def _changed_config(context, content, generator):
    members = _members(content)
    config = json.loads(members["config.json"])
    place, path = config, []
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = generator.choice(keys)
        path.append(str(key))
        inside = isinstance(place[key], (dict, list)) and place[key]
        if inside and generator.random() < 0.85:
            place = place[key]
            continue
        if generator.random() < 0.3:
            del place[key]
            path.append("removed")
        elif isinstance(place[key], str) and generator.random() < 0.3:
            place[key] = generator.choice(
                ("Lambda", "builtins", "os", "system", "Dense")
            )
            path.append(f"= {place[key]!r}")
        else:
            place[key] = generator.choice(ODD)
            path.append(f"= {place[key]!r}")
        break
    members["config.json"] = json.dumps(config).encode()
    return f"config.json: {' '.join(path)}", _archive(members.items())


def _changed_export(path, generator):
    files = [p for p in sorted(path.rglob("*")) if p.is_file()]
    file = generator.choice(files)
    name = file.relative_to(path)
    kinds = ("damaged", "damaged", "missing", "empty", "swapped", "unlisted")
    kind = generator.choice(kinds)
    if kind == "damaged":
        how, content = damaged(file.read_bytes(), generator)
        kind += f", {how}"
        file.write_bytes(content)
    elif kind == "missing":
        file.unlink()
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "unlisted":  # and damaged, which the other sums do not show
        sums = path / "assets.extra" / "SHA256SUMS"
        lines = sums.read_text().splitlines(keepends=True)
        sums.write_text("".join(line for line in lines if str(name) not in line))
        if file != sums:
            how, content = damaged(file.read_bytes(), generator)
            file.write_bytes(content)
            kind += f", {how}"
    else:
        other = generator.choice([f for f in files if f != file])
        content = file.read_bytes()
        file.write_bytes(other.read_bytes())
        other.write_bytes(content)
        kind += f" with {re.escape(other.name)}"
    return f"{name} {kind}"
