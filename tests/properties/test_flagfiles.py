"""Flagfiles: what is in them, how they are written, and how they include each other."""

import re

from cases import accidents, cases
from command_answers import check_command
from flag_meanings import FLAGS, Invalid, plain
from hypothesis import given
from hypothesis import strategies as st

TRAIN = FLAGS["train"]
ODD_LINES = (
    *("", "   ", "# comment", "// comment", "#", "  # --epochs=0", "--", "epochs=3"),
    *(
        "--flagfile",
        "--flagfile=",
        "--flagfile=missing",
        "--flagfile=.",
        "--flagfile=a",
    ),
    *("--flagfile b", "--flagfile=../a", "--flagfile=~x-y/x", "--flagfile=x\x00y"),
    *("--flagfile\nb", "--flagfile=" + "x" * 300, "--flagfile=b", "b", "\x00", "é"),
    *(
        "--epochs=3\x00",
        "--no_such_flag=1",
        "--epochs = 3",
        "--epochs: 3",
        "--epochs 3",
    ),
    *("--epochs=3 # comment", "\ufeff--epochs=3", "--data_dir=é 😀", "--run_dir=x\ty"),
    *("--adversarial", "--noadversarial", "[train]", "--=", "--seed=1\x0c"),
)
# These rarely contradict each other.
_PLAIN = sorted(set(TRAIN) - {"strategy", "cpu_devices"})
_LINES = st.sampled_from(_PLAIN).flatmap(
    lambda name: st.builds(
        "{}{}={}".format,
        st.sampled_from(("--", "-", " --")),
        st.just(name),
        TRAIN[name].good,
    )
)


@st.composite
def contents_of_files(draw):
    """Draws the bytes of a flagfile, or None for a folder in its place."""
    lines = draw(st.lists(_LINES, max_size=6)) * draw(st.sampled_from((1, 1, 500)))
    for odd in draw(st.lists(st.sampled_from(ODD_LINES), max_size=2)):
        lines.insert(draw(st.integers(0, len(lines))), odd)
    text = draw(st.sampled_from(("\n", "\r\n", "\r", "\n\n"))).join(lines)
    content = text.encode(
        draw(st.sampled_from(("utf-8", "utf-8", "utf-8-sig", "utf-16")))
    )
    return draw(
        st.just(content) | accidents(content) | st.none() | st.binary(max_size=60)
    )


def meaning(files, name, including=()):
    """Returns the values that a flagfile sets, or raises Invalid."""
    if name in including or files.get(name) is None:
        raise Invalid
    try:
        text = files[name].decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Invalid from None
    found, ended = {}, False
    for line in map(str.strip, text.splitlines()):
        if not line or line.startswith(("#", "//")):
            continue
        match = re.fullmatch(r"--?(\w+)(?:=(.*))?", plain(line), re.ASCII)
        flag, value = match.groups() if match else ("", None)
        if line == "--" and not ended:
            ended = True  # Nothing may follow.
        elif ended:
            raise Invalid
        elif flag == "flagfile" and value in files:
            found |= meaning(files, value, (*including, name))
        elif flag in TRAIN and value is not None:
            found[flag] = TRAIN[flag].meaning(value)
        elif value is None and flag.removeprefix("no") in TRAIN:
            name_of_flag = flag.removeprefix("no")
            if not TRAIN[name_of_flag].is_bool:
                raise Invalid
            found[name_of_flag] = flag == name_of_flag
        else:
            raise Invalid
    return found


@cases(100, 400)
@given(
    contents_of_files(),
    st.sampled_from((b"--seed=5\n", b"--seed=x\n", b"--flagfile=a\n")),
    st.sampled_from((["--flagfile=a"], ["--flagfile", "a"], ["-flagfile=a"])),
)
def test_flagfiles(content, second, words):
    files = {"a": content, "b": second}
    try:
        meanings = meaning(files, "a")
    except Invalid:
        meanings = None
    check_command(["train", *words], meanings, files)
