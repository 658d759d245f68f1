"""Flags that only the library can judge, behind the import of TensorFlow."""

import json
import os
import re
import shutil
from pathlib import Path

import keras
from fuzz_cases import Case, Offence
from fuzz_command import check_refusal, shown
from fuzz_runs import run

TRAIN = (
    *("--dataset=digits", "--model=mnist_cnn", "--width=0.1", "--train_examples=20"),
    *("--batch_size=20", "--epochs=1", "--attack_steps=1", "--test_examples=8"),
    *("--noevaluate", "--noexport", "--notensorboard", "--run_dir=run"),
)
EVALUATE = (
    *("model.keras", "--dataset=digits", "--epsilons=0.1", "--examples=2"),
    *("--expectation=1", "--draws=1", "--output_dir=out"),
)
# True if the documentation allows it, None if only the numbers can tell.
FLAGS = {
    "train": {
        "--dataset=cats": False,
        "--dataset=DIGITS": False,
        "--dataset=../digits": False,
        "--dataset=mnist --data_dir=none": False,
        "--dataset=svhn --data_dir=/dev/null": False,
        "--model=resnet21": False,
        "--model=é": False,
        "--width=1e38": False,
        "--width=1e9": False,
        "--width=1e-30": False,
        "--train_examples=1438": False,
        "--train_examples=2147483647": False,
        "--test_examples=361": False,
        "--validation_split=1e-30": False,
        "--validation_split=0.99 --train_examples=2": False,
        "--learning_rate=1e38": None,
        "--epsilon=2.9e38": True,
        "--epsilon=1e-45": True,
        "--attack_step_size=1e38": True,
        "--weight_decay=1e38": False,
        "--pni_alpha=1e38": None,
        "--clean_weight=1e38": False,
        "--momentum=1": True,
        "--strategy=tpu --tpu=none": False,
        "--seed=2147483647": True,
        "--checkpoint_minutes=1e-300": True,
        "--base_batch_size=2147483647": True,
    },
    "evaluate": {
        "--dataset=cats": False,
        "--examples=361": False,
        "--examples=2147483647": False,
        "--twin=missing": False,
        "--transfer_from=missing": False,
        "--attacks=transfer": False,
        "--attacks=substitute --substitute_images=360": False,
        "--epsilons=2.9e38": True,
        "--epsilons=0": True,
        "--epsilons=0.1,0.1": True,
        "--norm=l2 --attacks=fgsm": False,
        "--norm=l2 --attacks=pgd(steps=1)": True,
        "--towards=next --attacks=fgsm": True,
        "--strategy=mirrored": False,
        "--attacks=fgsm,fgsm": True,
        "--attacks=apgd-t(steps=1)": True,
        "--seed=2147483647 --attacks=fgsm": True,
    },
}
ATTACKS = ("fgsm", "pgd", "apgd-ce", "apgd-dlr", "cw", "square", "zoo", "random")
COUNTS = ("steps", "restarts", "queries", "samples", "iterations", "attack_size")
NUMBERS = ("epsilon", "step_size", "confidence", "learning_rate", "initial_const")
VALUES = {  # never fine for a count, never fine for a number
    "-1": (True, True),
    "1.5": (True, False),
    "true": (True, True),
    "none": (True, True),
    "word": (True, True),
    "1:2": (True, True),
    "-0.5": (True, True),
    "1/3": (True, False),
    "1e30": (True, False),
    "1e-30": (True, False),
    "1": (False, False),
}


def prepare(folder):
    """Writes a network that takes the images of digits."""
    os.chdir(folder)
    keras.utils.set_random_seed(0)
    stack = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    keras.Sequential(stack).save("model.keras")


def draw(context, generator):
    """Returns a case: one flag, or one setting of an attack."""
    for name in ("run", "out"):
        shutil.rmtree(name, ignore_errors=True)
    if generator.random() < 0.5:
        name, key = generator.choice(ATTACKS), generator.choice(COUNTS + NUMBERS)
        value = generator.choice(list(VALUES))
        quick = {"pgd": "steps", "apgd-ce": "steps", "apgd-dlr": "steps", "cw": "steps"}
        quick |= {"square": "queries", "zoo": "iterations", "random": "samples"}
        more = f",{quick[name]}=1" if name in quick and quick[name] != key else ""
        argv = ["evaluate", *EVALUATE, f"--attacks={name}({key}={value}{more})"]
        good = None if not VALUES[value][key in NUMBERS] else False
    else:
        command = generator.choice(("train", "evaluate"))
        words = generator.choice(list(FLAGS[command]))
        base = {"train": TRAIN, "evaluate": EVALUATE}[command]
        argv, good = [command, *base, *words.split(" ")], FLAGS[command][words]
        if command == "evaluate" and "--attacks" not in words:
            argv.append("--attacks=fgsm")
    return Case(shown(argv), lambda: judge(argv, good))


def judge(argv, good):
    """Runs the command; `good` is None where either answer is right."""
    answer = run(argv)
    keras.mixed_precision.set_global_policy("float32")
    if answer.status:
        kind = check_refusal(answer)
        if good:
            raise Offence("silent", f"valid, but refused: {answer.err[:400]}")
        return kind
    if "Traceback" in answer.err:
        raise Offence("traceback", answer.err[-600:])
    if good is False:
        raise Offence("silent", "accepted")
    if argv[0] == "evaluate":
        text = Path("out", "evaluation.json").read_text()
        if re.search("NaN|Infinity", text) or not json.loads(text):
            raise Offence("silent", "numbers that are not finite")
    return "accepted"
