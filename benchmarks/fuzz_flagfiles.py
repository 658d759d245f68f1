"""Flagfiles: what is in them, how they are written, and how they include each other."""

import re
import tempfile
from pathlib import Path

from fuzz_cases import Case, Offence, damaged
from fuzz_command import REACHED, check_refusal, fork, shown
from fuzz_flags import check_repeats
from fuzz_values import TRAIN, Invalid, contradiction, value_of

ODD_LINES = (
    *("", "   ", "# comment", "// comment", "#", "  # --epochs=0", "--", "epochs=3"),
    *(
        "--flagfile",
        "--flagfile=",
        "--flagfile=missing",
        "--flagfile=.",
        "--flagfile=a",
    ),
    *("--flagfile b", "--flagfile=../a", "--flagfile=~x-y/x"),
    *("--flagfile=x\x00y", "--flagfile\nb", "b"),
    *("--epochs=3\x00", "\x00", "--no_such_flag=1", "--epochs = 3", "--epochs: 3"),
    *("--epochs 3", "--epochs=3 # comment", "\ufeff--epochs=3", "--data_dir=é 😀"),
    *("--run_dir=x\ty", "--adversarial", "--noadversarial", "[train]", "--=", "é"),
    *("--flagfile=" + "x" * 300, "--helpshortly", "--seed=1\x0c", "--flagfile=b"),
)


def prepare(folder):
    return folder


def draw(folder, generator):
    """Returns a case of a flagfile, and one that it may include."""
    lines = []
    for _ in range(generator.choice((0, 1, 3, 6, 12, 3000))):
        name = generator.choice(list(TRAIN))
        text = generator.choice(TRAIN[name].good)
        lines.append(f"{generator.choice(('--', '--', '-', ' --'))}{name}={text}")
    for _ in range(generator.choice((0, 0, 0, 1, 1, 2))):
        lines.insert(generator.randrange(len(lines) + 1), generator.choice(ODD_LINES))
    end = generator.choice(("\n", "\n", "\r\n", "\r", "\n\n"))
    content = end.join(lines).encode("utf-8", "surrogateescape")
    chance = generator.random()
    what = f"{len(lines)} lines"
    if chance < 0.1:
        content, what = b"\xef\xbb\xbf" + content, what + ", with a mark"
    elif chance < 0.15:
        content, what = "\n".join(lines).encode("utf-16"), what + ", UTF-16"
    elif chance < 0.3:
        content, what = generator.randbytes(generator.randrange(1, 300)), "random bytes"
    elif chance < 0.5:
        how, content = damaged(content, generator)
        what += f", {how}"
    elif chance < 0.53:
        content, what = None, "a folder"
    second = generator.choice((b"--seed=5\n", b"--seed=x\n", b"--flagfile=a\n"))
    form = generator.choice(("--flagfile={}", "--flagfile {}", "-flagfile={}")).format
    argv = ["train", *form("sub/a").split(" ")]
    brief = repr(content if content is None or len(content) < 400 else content[:400])
    what = f"{shown(argv)} with {what} in sub/a: {brief}, in sub/b: {second!r}"
    return Case(what, lambda: judge(argv, content, second))


def judge(argv, content, second):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "work")
        (folder / "sub").mkdir(parents=True)
        if content is None:
            (folder / "sub" / "a").mkdir()
        else:
            (folder / "sub" / "a").write_bytes(content)
        (folder / "sub" / "b").write_bytes(second)
        answer = fork(argv, folder, check=check_repeats)
    try:
        given, bad = meaning({"a": content, "b": second}, "a", ()), False
        bad = contradiction("train", given)
    except Invalid:
        given, bad = {}, True
    if answer.status != REACHED:
        kind = check_refusal(answer)
        if not bad and "run_dir" not in answer.err:
            raise Offence("silent", f"valid, but refused: {answer.err[:400]}")
        return kind
    if bad:
        raise Offence("silent", "accepted")
    if isinstance(answer.values, str):
        raise Offence("silent", answer.values)
    for name, expected in given.items():
        found = value_of(answer.values[name], expected)
        if found != expected:
            raise Offence("silent", f"--{name} became {found!r:.200}")
    return "accepted"


def meaning(files, name, including):
    """Returns the flags that a flagfile sets, or raises Invalid."""
    if name in including or files.get(name) is None:
        raise Invalid
    try:
        text = files[name].decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Invalid from None
    given, ended = {}, False
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith(("#", "//")):
            continue
        if line == "--" and not ended:
            ended = True  # nothing may follow
            continue
        match = re.fullmatch(r"--?(\w+)(?:=(.*))?", line, re.ASCII)
        if ended or match is None:
            raise Invalid
        flag, value = match.groups()
        if flag == "flagfile" and value in files:
            given |= meaning(files, value, (*including, name))
        elif flag in TRAIN and value is not None:
            given[flag] = TRAIN[flag].value(value)
        elif flag in TRAIN and TRAIN[flag].is_bool:
            given[flag] = True
        elif flag[:2] == "no" and flag[2:] in TRAIN and value is None:
            if not TRAIN[flag[2:]].is_bool:
                raise Invalid
            given[flag[2:]] = False
        else:
            raise Invalid
    return given
