"""Damaged files of a run directory, before its evaluation or training goes on."""

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
from fuzz_cases import Case, Offence, damaged
from fuzz_command import Answer, call, check_refusal, held_output, shown

FLAGS = (
    *("--dataset=digits", "--model=mnist_cnn", "--width=0.1", "--train_examples=40"),
    *("--test_examples=20", "--validation_split=0.25", "--validation_draws=1"),
    *("--batch_size=20", "--attack_steps=1", "--epochs=2", "--drop_epochs=1"),
    *("--eval_steps=1", "--eval_expectation=1", "--eval_draws=2", "--notensorboard"),
    *("--noexport", "--evaluate"),
)
TRAIN = ["train", *FLAGS, "--run_dir=run"]
EVALUATE = ["evaluate", "run", "--attacks=fgsm", "--expectation=1", "--examples=8"]
EVALUATE += ["--draws=2", "--batch_size=4"]
ODD = (None, "", "x", "nan", "NaN", "-1", "1e999", "0x1", "²", [], {}, True, 10**400)


def run(argv):
    """Runs a command in this process."""
    with held_output() as read:
        status = call(list(argv))
        err = read()
    # Warnings may come before the error.
    _, error, last = err.rpartition("\nerror: ")
    if error and "Traceback" not in err:
        err = error.lstrip() + last
    return Answer(status, "", err)


def prepare(folder):
    """Trains and evaluates once; what comes out is what must come out again."""
    os.chdir(folder)
    answer = run([*TRAIN, "--noevaluate"])
    assert answer.status == 0, answer
    # As an interruption before the end leaves it.
    Path("run/finished").unlink()
    flags = Path("run/flags.cfg")
    flags.write_text(flags.read_text().replace("--noevaluate", "--evaluate"))
    shutil.copytree("run", "trained")
    answer = run(EVALUATE)
    assert answer.status == 0, answer
    shutil.copytree("run", "evaluated")
    shutil.rmtree("run")
    shutil.copytree("trained", "run")
    Path("run/model.keras").unlink()
    answer = run(TRAIN)
    assert answer.status == 0, answer
    shutil.copytree("run", "whole")
    return {"evaluation": numbers("evaluated/evaluation"), "training": numbers("whole")}


def numbers(folder):
    return json.loads(Path(folder, "evaluation.json").read_text())


def draw(context, generator):
    """Returns a case: a damaged file, and the command that goes on."""
    evaluate = generator.random() < 0.7
    shutil.rmtree("run", ignore_errors=True)
    shutil.copytree("evaluated" if evaluate else "trained", "run")
    if evaluate:
        files = sorted(Path("run/evaluation").rglob("*.*"))
        files = [f for f in files if f.is_file() and f.suffix in (".npz", ".json")]
        others = [Path("run/flags.cfg"), Path("run/model.keras")]
        path = generator.choice(files * 2 + others)
    else:
        path = generator.choice(
            [
                *sorted(Path("run/checkpoints").iterdir()) * 2,
                *[Path("run/history.csv")] * 3,
                *(Path("run/flags.cfg"), Path("run/model.keras")),
            ]
        )
        if path.name != "model.keras":
            Path("run/model.keras").unlink()  # so that the training goes on
    argv = EVALUATE if evaluate else TRAIN
    how = change(path, generator)
    # A flagfile that still is one says other things, and so it may.
    text = path.name in ("flags.cfg", "history.csv")
    expected = context["evaluation" if evaluate else "training"]
    return Case(
        f"{shown(argv)} behind {path}, {how}", lambda: judge(argv, text, expected)
    )


def change(path, generator):
    """Damages a file, by its bytes or by its values; returns what was done."""
    content = path.read_bytes()
    chance = generator.random()
    if chance < 0.08:
        path.unlink()
        return "missing"
    if chance < 0.15:
        path.write_bytes(b"")
        return "empty"
    changes = {".npz": _arrays, ".csv": _table, ".json": _json}
    if path.suffix in changes and chance < 0.6:
        return changes[path.suffix](path, generator)
    how, content = damaged(content, generator)
    path.write_bytes(content)
    return how


def _arrays(path, generator):
    """Writes arrays that differ, in an archive whose own sums are right."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    name = generator.choice(list(arrays))
    value = arrays[name]
    kinds = ("missing", "float", "shorter", "transposed", "other value", "word", "more")
    kind = generator.choice(kinds)
    if kind == "missing":
        del arrays[name]
    elif kind == "float" and value.dtype.kind not in "US":
        arrays[name] = value.astype("float64") + 0.25
    elif kind == "shorter" and value.ndim:
        arrays[name] = value[:-1]
    elif kind == "transposed" and value.ndim:
        arrays[name] = value.T
    elif kind == "other value" and value.size and value.dtype.kind not in "US":
        value.flat[value.size // 2] = not value.flat[value.size // 2]
    elif kind == "more":
        arrays["more"] = np.zeros(3)
    else:
        arrays[name] = np.array("word")
    np.savez(path, **arrays)
    if path.parent.name == "checkpoints" and generator.random() < 0.5:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        if kind in ("missing", "word"):  # the digest of another version's, say
            path.rename(path.with_name(f"{path.name[:-20]}{digest}.npz"))
            kind += ", with its digest"
    return f"{name}: {kind}"


def _table(path, generator):
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    row = generator.choice(rows)
    place = generator.randrange(len(row))
    kinds = ("cell", "cell", "epoch", "missing", "more", "no header", "twice", "column")
    kind = generator.choice(kinds)
    if kind == "cell":
        row[place] = str(generator.choice(ODD))[:50]
        kind = f"cell {place} of row {rows.index(row)} is {row[place]!r}"
    elif kind == "epoch":
        rows[-1][0] = str(generator.choice(ODD))[:50]
        kind = f"last epoch is {rows[-1][0]!r}"
    elif kind == "missing":
        del row[place]
    elif kind == "more":
        row += ["1", "2"]
    elif kind == "no header":
        del rows[0]
    elif kind == "twice":
        rows.append(rows[-1])
    else:
        for each in rows:
            del each[place]
        kind = f"column {place} missing"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return kind


def _json(path, generator):
    content = json.loads(path.read_text())
    key = generator.choice(list(content))
    content[key] = generator.choice(ODD)
    path.write_text(json.dumps(content))
    return f"{key} = {str(content[key])[:50]!r}"


def judge(argv, text, expected):
    """Goes on: a clear error, or the numbers of the run that nothing happened to."""
    answer = run(argv)
    if answer.status:
        # Of other settings each is a line, which is meant to be read.
        if "run with other settings" in answer.err and answer.status == 2:
            return "refused"
        return check_refusal(answer, ["run", "--"])
    if "Traceback" in answer.err:
        raise Offence("traceback", answer.err[-600:])
    found = numbers("run/evaluation" if argv[0] == "evaluate" else "run")
    if found != expected and not (text and argv[0] == "evaluate"):
        raise Offence("silent", f"other numbers: {_difference(found, expected)}")
    history = Path("run/history.csv")
    if argv[0] == "train" and Path("run/model.keras").stat().st_size:
        with history.open(newline="") as file:
            epochs = [row.get("epoch") for row in csv.DictReader(file)]
        if epochs != ["1", "2"]:
            raise Offence("silent", f"history.csv has the epochs {epochs}")
    return "accepted"


def _difference(found, expected, path=""):
    if type(found) is not type(expected):
        return f"{path}: {found!r:.80} for {expected!r:.80}"
    if isinstance(found, dict):
        pairs = [(k, found.get(k), expected.get(k)) for k in {**found, **expected}]
    elif isinstance(found, list) and len(found) == len(expected):
        pairs = [(i, *both) for i, both in enumerate(zip(found, expected, strict=True))]
    else:
        return f"{path}: {found!r:.80} for {expected!r:.80}"
    for key, ours, theirs in pairs:
        if ours != theirs:
            return _difference(ours, theirs, f"{path}/{key}")
