"""Flags that only the library can judge, after TensorFlow has started."""

import csv
import json
import math
import re
import shutil
import tempfile
from pathlib import Path

import keras
import pytest
from cases import cases
from command_answers import answer_of, check_refused, contents
from hypothesis import given
from hypothesis import strategies as st

TRAIN = (
    *("train", "--dataset=digits", "--model=mnist_cnn", "--width=0.1", "--epochs=1"),
    *(
        "--train_examples=20",
        "--batch_size=20",
        "--attack_steps=1",
        "--test_examples=8",
    ),
    *("--noevaluate", "--noexport", "--notensorboard", "--run_dir=run"),
)
EVALUATE = (
    *("evaluate", "model.keras", "--dataset=digits", "--epsilons=0.1", "--examples=2"),
    *("--expectation=1", "--draws=1", "--output_dir=out", "--attacks=fgsm"),
)
# None where only the numbers can tell: either answer is right.
FLAGS_OF_TRAIN = {
    False: (
        *("--dataset=cats", "--dataset=DIGITS", "--dataset=../digits", "--model=é"),
        *("--dataset=mnist --data_dir=none", "--dataset=svhn --data_dir=/dev/null"),
        *("--model=resnet21", "--width=1e38", "--width=1e9", "--width=1e-30"),
        *("--train_examples=1438", f"--train_examples={2**31 - 1}"),
        *("--test_examples=361", "--validation_split=1e-30", "--weight_decay=1e38"),
        *("--validation_split=0.99 --train_examples=2", "--clean_weight=1e38"),
        "--strategy=tpu --tpu=none",
    ),
    True: (
        *("--epsilon=2.9e38", "--epsilon=1e-45", "--attack_step_size=1e38"),
        *("--momentum=1", f"--seed={2**31 - 1}", f"--base_batch_size={2**31 - 1}"),
        "--checkpoint_minutes=1e-300",
    ),
    None: ("--learning_rate=1e38", "--pni_alpha=1e38", "--adversarial_weight=1e30"),
}
FLAGS_OF_EVALUATE = {
    False: (
        *("--dataset=cats", "--examples=361", f"--examples={2**31 - 1}"),
        *("--twin=missing", "--transfer_from=missing", "--attacks=transfer"),
        *("--attacks=substitute --substitute_images=360", "--norm=l2 --attacks=fgsm"),
        *("--certify", "--ensemble=2", "--columns=mean"),
    ),
    True: (
        *("--epsilons=2.9e38", "--epsilons=0", "--epsilons=0.1,0.1", "--towards=next"),
        *("--norm=l2 --attacks=pgd(steps=1)", "--attacks=fgsm,fgsm", "--columns=model"),
        *("--attacks=apgd-t(steps=1)", f"--seed={2**31 - 1}"),
    ),
}
# What makes an attack quick, and settings of which it may have some.
ATTACKS = {
    **{"fgsm": "", "pgd": "steps=1", "apgd-ce": "steps=1", "apgd-dlr": "steps=1"},
    **{"cw": "steps=1", "square": "queries=1", "zoo": "iterations=1"},
    "random": "samples=1",
}
COUNTS = ("steps", "restarts", "queries", "samples", "iterations", "attack_size")
NUMBERS = ("epsilon", "step_size", "confidence", "learning_rate", "initial_const")
NEVER = ("-1", "true", "none", "word", "1:2", "-0.5")  # They are fine for neither.
NOT_FOR_COUNTS = ("1.5", "1/3", "1e30", "1e-30")


def known(table):
    return st.sampled_from(
        [(words.split(), good) for good, several in table.items() for words in several]
    )


SETTINGS = st.tuples(
    st.sampled_from(list(ATTACKS)), st.sampled_from(COUNTS + NUMBERS)
).flatmap(
    lambda both: st.tuples(
        st.just(both), st.sampled_from((*NEVER, *NOT_FOR_COUNTS, "1"))
    )
)


def run(argv, good, *inputs):
    """Runs a command to its end; returns the folder's files if it was accepted."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for path in inputs:
            shutil.copy(path, folder)
        before = contents(folder)
        answer = answer_of(argv, folder, whole=True)
        after = contents(folder)
    if answer.status:
        assert good is not True, answer
        check_refused(answer)
        assert before.items() <= after.items()
        return None
    assert "Traceback" not in answer.err
    assert good is not False
    return after


@cases(5, 30)
@given(known(FLAGS_OF_TRAIN))
def test_train(chosen):
    words, good = chosen
    files = run([*TRAIN, *words], good)
    if files is not None:
        (row,) = csv.DictReader(files["run/history.csv"].decode().splitlines())
        assert all(math.isfinite(float(value)) for value in row.values())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The file of a network that takes the images of digits."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    stack = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    keras.Sequential(stack).save(path)
    return path


def evaluate(model, words, good):
    files = run([*EVALUATE, *words], good, model)
    if files is not None:
        text = files["out/evaluation.json"].decode()
        assert json.loads(text)
        assert not re.search("NaN|Infinity", text)


@cases(6, 30)
@given(known(FLAGS_OF_EVALUATE))
def test_evaluate(model, chosen):
    evaluate(model, *chosen)


@cases(12, 80)
@given(SETTINGS)
def test_settings_of_attacks(model, chosen):
    (name, key), value = chosen
    quick = ATTACKS[name]
    more = "" if quick.startswith(f"{key}=") else quick
    wrong = value in NEVER or (value in NOT_FOR_COUNTS and key in COUNTS)
    # It means the whole image.
    wrong = wrong and (key, value) != ("attack_size", "none")
    settings = ",".join(filter(None, (f"{key}={value}", more)))
    # An attack may lack the setting.
    evaluate(model, [f"--attacks={name}({settings})"], False if wrong else None)
