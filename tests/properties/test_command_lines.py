"""Command lines of `train` and `evaluate`, up to where TensorFlow would start."""

import re

import pytest
from cases import cases
from command_answers import answer_of, check_command
from flag_meanings import FLAGS, Invalid
from hypothesis import given
from hypothesis import strategies as st

TYPOS = (
    *("--epoch=3", "--Epochs=3", "--epochs_=3", "--no-adversarial", "--noepochs"),
    *("--e=3", "---epochs=3", "--=3", "--learning-rate=1", "--nodataset", "--\udcff=1"),
    *("--adversarial=maybe", "--adversarial=", "--nonoise", "--draw=3", "--écart=1"),
    *("–-epochs=3", "epochs=3", "--epochs:3", "--epochs =3", "--no", "--notdownload"),
)
# The beginning of each command line; `evaluate` needs to know on what.
BEGIN = {"train": ["train"], "evaluate": ["evaluate", "model", "--dataset=digits"]}
BEGIN["evaluate"] += ["--epsilons=8/255"]


@st.composite
def typed_flags(draw, command):
    """Draws words, and what they mean: values by name, or None if one is wrong."""
    table, words, meanings, wrong = FLAGS[command], [], {}, False
    names = st.lists(st.sampled_from(list(table)), min_size=1, max_size=4, unique=True)
    for name in draw(names):
        kind = table[name]
        text = draw(kind.texts())
        try:
            meanings[name] = kind.meaning(text)
        except Invalid:
            wrong = True
        form = draw(st.sampled_from(["--{}={}", "-{}={}", "--{} {}"]))
        if form[-3] == " " and kind.is_bool:
            form = "--{}={}"
        words += [f"--{name}", text] if " " in form else [form.format(name, text)]
    if draw(st.integers(0, 9)) == 0:
        words.append(draw(st.sampled_from((*TYPOS, "--seed"))))  # It lacks a value.
        wrong = True
    return words, None if wrong else meanings


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_all_flags_are_known_here(command, tmp_path):
    out = answer_of([command, "--helpshort"], tmp_path).out
    assert set(re.findall(r"^  --(?:\[no\])?(\w+): ", out, re.M)) == set(FLAGS[command])


@pytest.mark.parametrize(
    ("command", "name"),
    [(command, name) for command in FLAGS for name in FLAGS[command]],
)
def test_edges(command, name):
    """What is just allowed, and what is just not."""
    kind = FLAGS[command][name]
    for text in kind.edges:
        try:
            meanings = {name: kind.meaning(text)}
        except Invalid:
            meanings = None
        check_command([*BEGIN[command], f"--{name}={text}"], meanings)


@cases(150, 700)
@given(typed_flags("train"))
def test_train(typed):
    words, meanings = typed
    check_command([*BEGIN["train"], *words], meanings)


@cases(100, 400)
@given(typed_flags("evaluate"))
def test_evaluate(typed):
    words, meanings = typed
    if meanings is not None:
        meanings = {"dataset": "digits", "epsilons": [8 / 255], **meanings}
    check_command([*BEGIN["evaluate"], *words], meanings)


def _few(command, **options):
    """Some flags with values that are fine alone."""
    return st.fixed_dictionaries({}, optional=options).map(
        lambda chosen: (
            [f"--{name}={text}" for name, text in chosen.items()],
            {name: FLAGS[command][name].meaning(text) for name, text in chosen.items()},
        )
    )


_TRUTH = st.sampled_from(["true", "false"])
_SMALL = st.integers(1, 4).map(str)
_FROM_0 = st.integers(0, 4).map(str)
_PART = st.sampled_from(["0", "0.5"])
_COMMON = {
    "cpu_devices": st.sampled_from("12"),
    "strategy": st.sampled_from(["none", "mirrored"]),
}


@cases(100, 250)
@given(
    _few(
        "train",
        **_COMMON,
        adversarial=_TRUTH,
        noise_in_attack=_TRUTH,
        noise=st.sampled_from(["pni", "rse", "pixeldp"]),
        pni=st.sampled_from(["w", "none"]),
        pixeldp_bound=_PART,
        eval_ensemble=_SMALL,
        epochs=_SMALL,
        warmup_epochs=_FROM_0,
        epoch_delay=_FROM_0,
        schedule=st.sampled_from(["constant", "cosine"]),
        drop_epochs=st.sampled_from(["1", "1,2", "2,1", "2,2"]),
        clean_weight=_PART,
        adversarial_weight=_PART,
        jit=st.sampled_from(["on", "off"]),
        compare_undefended=_TRUTH,
    )
)
def test_flags_of_train_that_contradict_each_other(typed):
    words, meanings = typed
    check_command([*BEGIN["train"], *words], meanings)


@cases(40, 100)
@given(
    _few(
        "evaluate",
        **_COMMON,
        norm=st.sampled_from(["linf", "l2"]),
        suite=st.sampled_from(["paper", "strong"]),
        towards=st.just("next"),
        attacks=st.sampled_from(["", "fgsm"]),
        checklist=_TRUTH,
    )
)
def test_flags_of_evaluate_that_contradict_each_other(typed):
    words, meanings = typed
    check_command([*BEGIN["evaluate"], *words], meanings)
