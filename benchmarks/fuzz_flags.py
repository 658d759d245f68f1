"""Command lines of `train` and `evaluate`, up to where TensorFlow would be imported."""

import math
import re
import tempfile
from pathlib import Path

from absl import flags
from fuzz_cases import Case, Offence
from fuzz_command import REACHED, check_refusal, fork, shown
from fuzz_values import EVALUATE, TRAIN, Invalid, contradiction, value_of

from pni_tf.cli import app, train_flags

TYPOS = (
    *("--epoch=3", "--Epochs=3", "--epochs_=3", "--no-adversarial", "--noepochs"),
    *("--e=3", "---epochs=3", "--=3", "--learning-rate=1", "--nodataset", "--\udcff=1"),
    *("--adversarial=maybe", "--adversarial=", "--nonoise", "--draw=3", "--écart=1"),
    *("–-epochs=3", "epochs=3", "--epochs:3", "--epochs =3", "--no", "--notdownload"),
)


def prepare(folder):
    return folder


def draw(folder, generator):
    """Returns a case of one to four flags, of which most are nasty."""
    command = generator.choice(("train", "train", "evaluate"))
    table = TRAIN if command == "train" else EVALUATE
    words, given, bad = [], {}, False
    for _ in range(generator.choice((1, 1, 1, 2, 3, 4))):
        if generator.random() < 0.07:
            words.append(generator.choice(TYPOS))
            bad = True
            continue
        name = generator.choice(list(table))
        text = table[name].draw(generator)
        try:
            given[name] = table[name].value(text)
        except Invalid:
            bad = True
        form = generator.choice(("--{}={}", "--{}={}", "-{}={}", "--{} {}"))
        if "=" in form or table[name].is_bool:
            words.append(form.replace(" ", "=").format(name, text))
        else:
            words += [f"--{name}", text]
    flag = next((n for n in table if not table[n].is_bool), None)
    if generator.random() < 0.02:
        words.append(f"--{flag}")  # and no value behind it
        bad = True
    argv = [command, *words]
    if command == "evaluate":
        argv[1:1] = ["model", "--dataset=digits", "--epsilons=8/255"]
        given = {"dataset": "digits", "epsilons": [8 / 255], **given}
    bad = bad or contradiction(command, given)
    return Case(shown(argv), lambda: judge(argv, given, bad))


def judge(argv, given, bad):
    """Runs the command; compares with what the documentation says."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "a", "b", "c")  # so that ../x is still in it
        folder.mkdir(parents=True)
        again = check_repeats if argv[0] == "train" else None
        answer = fork(argv, folder, check=again)
    if answer.status != REACHED:
        kind = check_refusal(answer, names_of(argv))
        # The folder of the run may not be one, which the words do not tell.
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


def names_of(argv):
    """Returns the words of which an error should have one."""
    names = set(re.findall(r"-+(?:no)?(\w+)", " ".join(argv)))
    return [*names, *argv[1:], *map(repr, argv[1:]), "arguments besides the flags"]


def check_repeats():
    """Raises an Offence if `flags.cfg` would not repeat the command."""
    before = train_flags.settings()
    path = Path(before.run_dir, "flags.cfg")
    for name in TRAIN:
        flags.FLAGS[name].unparse()
    flags.FLAGS(app.expand_flagfiles(["train", f"--flagfile={path}"]))
    after = train_flags.settings()
    for name, value in vars(before).items():
        again = getattr(after, name)
        both_nan = isinstance(value, float) and math.isnan(value)
        if again != value and not both_nan:
            raise Offence("silent", f"flags.cfg makes --{name}={value!r} {again!r}")
