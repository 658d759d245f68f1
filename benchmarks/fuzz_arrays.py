"""Image and label arrays, as a user of the library hands them over."""

import re
import warnings

import fuzz_command  # noqa: F401  for the path
import keras
import numpy as np
import tensorflow as tf
from fuzz_cases import Case, Offence

from pni_tf import (
    APGD,
    FGSM,
    PGD,
    ZOO,
    CarliniWagnerL2,
    RandomSearch,
    Square,
    Transfer,
    evaluate_robustness,
    load_target,
    train_substitute,
)
from pni_tf.evaluation import Scenario

SHAPE, CLASSES, COUNT = (6, 5, 3), 4, 8
SEED = tf.constant([1, 2], tf.int64)

# What keeps the meaning; the library must not see a difference.
SAME_IMAGES = {
    "as they are": lambda x: x,
    "float64": lambda x: x.astype("float64"),
    "float16": lambda x: x.astype("float16"),
    "Fortran order": np.asfortranarray,
    "big-endian": lambda x: x.astype(">f4"),
    "big-endian float64": lambda x: x.astype(">f8"),
    "strided": lambda x: np.repeat(x, 2, axis=2)[:, :, ::2],
    "reversed twice": lambda x: x[::-1].copy()[::-1],
    "tensor": tf.constant,
    "lists": lambda x: x.tolist(),
    "read-only": lambda x: _locked(x),
}
WRONG_IMAGES = {
    "uint8": lambda x: (x * 255).astype("uint8"),
    "0..255": lambda x: x * 255,
    "zeros of int64": lambda x: np.zeros(x.shape, int),
    "bool": lambda x: x > 0.5,
    "object": lambda x: x.astype(object),
    "objects that are None": lambda x: np.full(x.shape, None),
    "strings": lambda x: x.astype(str),
    "bytes": lambda x: x.astype("S8"),
    "complex": lambda x: x.astype("complex64"),
    "a tensor of uint8": lambda x: tf.constant((x * 255).astype("uint8")),
    "a NaN": lambda x: _put(x, np.nan),
    "a tensor with a NaN": lambda x: tf.constant(_put(x, np.nan)),
    "infinity": lambda x: _put(x, np.inf),
    "minus infinity": lambda x: _put(x, -np.inf),
    "1.01": lambda x: _put(x, 1.01),
    "-0.01": lambda x: _put(x, -0.01),
    "1e300": lambda x: _put(x.astype("float64"), 1e300),
    "one image": lambda x: x[0],
    "rank 5": lambda x: x[None],
    "rank 2": lambda x: x.reshape(len(x), -1),
    "scalar": lambda x: 0.5,
    "no images": lambda x: x[:0],
    "no rows": lambda x: x[:, :0],
    "no channels": lambda x: x[..., :0],
    "ragged": lambda x: [x[0].tolist(), x[1, :2].tolist()],
    "None": lambda x: None,
    "a word": lambda x: "images",
    "a mapping": lambda x: {"images": x},
}
# Attacks do not know the size of the images: the network itself refuses these.
OTHER_SIZES = {
    "channels first": lambda x: x.transpose(0, 3, 1, 2),
    "too high": lambda x: np.repeat(x, 2, axis=1),
    "one channel": lambda x: x[..., :1],
    "four channels": lambda x: np.concatenate([x, x[..., :1]], -1),
}
SAME_LABELS = {
    "as they are": lambda y: y,
    "int32": lambda y: y.astype("int32"),
    "uint8": lambda y: y.astype("uint8"),
    "int16": lambda y: y.astype("int16"),
    "uint64": lambda y: y.astype("uint64"),
    "big-endian": lambda y: y.astype(">i4"),
    "strided": lambda y: np.repeat(y, 3)[::3],
    "list": lambda y: y.tolist(),
    "tensor": tf.constant,
    "tensor of int32": lambda y: tf.constant(y, tf.int32),
}
WRONG_LABELS = {
    "floats": lambda y: y.astype("float32"),
    "a tensor of floats": lambda y: tf.constant(y, tf.float32),
    "NaN": lambda y: np.full(len(y), np.nan),
    "bool": lambda y: y > 1,
    "one-hot": lambda y: np.eye(CLASSES, dtype=int)[y],
    "column": lambda y: y[:, None],
    "scalar": lambda y: 1,
    "too small": lambda y: _put(y, -1),
    "too large": lambda y: _put(y, CLASSES),
    "a tensor, too large": lambda y: tf.constant(_put(y, CLASSES)),
    "huge": lambda y: _put(y, 2**40),
    "too few": lambda y: y[:-1],
    "too many": lambda y: np.append(y, 0),
    "one": lambda y: y[:1],
    "none": lambda y: y[:0],
    "None": lambda y: None,
    "strings": lambda y: y.astype(str),
    "object": lambda y: y.astype(object),
    "durations": lambda y: y.astype("timedelta64[s]"),
    "ragged": lambda y: [[0], [1, 2]],
    "a word": lambda y: "labels",
}
ATTACKS = {
    "FGSM": FGSM(epsilon=0.1),
    "PGD": PGD(epsilon=0.1, steps=2),
    "PGD with restarts": PGD(epsilon=0.1, steps=1, restarts=2, early_stop=True),
    "APGD": APGD(epsilon=0.1, steps=2),
    "CarliniWagnerL2": CarliniWagnerL2(steps=2, binary_search_steps=1),
    "RandomSearch": RandomSearch(epsilon=0.1, samples=2),
    "Square": Square(epsilon=0.1, queries=3),
    "ZOO": ZOO(iterations=2, binary_search_steps=1),
}


def _network():
    layers = keras.layers
    convolution = layers.Conv2D(3, 2, activation="relu")
    return keras.Sequential(
        [keras.Input(SHAPE), convolution, layers.Flatten(), layers.Dense(CLASSES)]
    )


def _locked(x):
    x = x.copy()
    x.setflags(write=False)
    return x


def _put(x, value):
    x = x.copy()
    x.flat[x.size // 2] = value
    return x


def prepare(folder):
    """Makes a network without noise, and right images and labels."""
    warnings.simplefilter("ignore")
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    # On a grid that float16 holds too.
    images = generator.integers(0, 1025, (COUNT, *SHAPE)).astype("float32") / 1024
    return {
        "target": load_target(_network()),
        "images": images,
        "labels": generator.integers(0, CLASSES, COUNT),
        "expected": {},
    }


def draw(context, generator):
    """Returns a case: a function of the library, with one or two odd arguments."""
    kind = generator.choice(("attack",) * 5 + ("evaluate",) * 3 + tuple(OTHERS))
    wrong_images = {**WRONG_IMAGES, **OTHER_SIZES}
    wrong = generator.choice(("images", "images", "labels", "labels", "both", None))
    name = of_labels = "as they are"
    if kind in ("predict", "substitute"):
        wrong = generator.choice(("images", None))
    pools = [
        wrong_images if wrong in ("images", "both") else SAME_IMAGES,
        WRONG_LABELS if wrong in ("labels", "both") else SAME_LABELS,
    ]
    name, of_labels = (generator.choice(list(pool)) for pool in pools)
    images = pools[0][name](context["images"])
    labels = pools[1][of_labels](context["labels"])
    attack = generator.choice(list(ATTACKS))
    targeted = generator.random() < 0.3
    transfer = generator.random() < 0.1
    what = {
        "attack": f"{attack}{' by transfer' * transfer}{' at targets' * targeted}",
        "evaluate": "evaluate_robustness",
    }.get(kind, kind)
    what += f" with images: {name}; labels: {of_labels}"

    def run():
        if kind == "attack":
            call, key = _attack(context, attack, targeted, transfer)
        elif kind == "evaluate":
            call, key = _evaluate(context), "evaluate"
        else:
            call, key = OTHERS[kind](context), kind
        if key not in context["expected"]:
            context["expected"][key] = call(context["images"], context["labels"])
        return judge(call, images, labels, context["expected"][key], bool(wrong))

    return Case(what, run)


def judge(call, images, labels, expected, wrong):
    """Calls the library; the answer must be an error of ours, or the expected one."""
    try:
        found = call(images, labels)
    except (ValueError, TypeError) as error:
        ours = re.search(
            "`images`|`labels`|`targets`|incompatible with the layer", str(error)
        )
        if isinstance(error, tf.errors.OpError) or not ours:
            raise Offence("traceback", repr(error)[:600]) from error
        if not wrong:
            raise Offence("silent", f"valid, but refused: {error}") from error
        return "refused"
    except Exception as error:
        raise Offence("traceback", repr(error)[:600]) from error
    if wrong:
        raise Offence("silent", "accepted")
    for ours, theirs in zip(found, expected, strict=True):
        if not np.array_equal(ours, theirs):
            raise Offence("silent", "another result than of the usual arrays")
    return "accepted"


def _attack(context, name, targeted, transfer):
    target, attack = context["target"], ATTACKS[name]
    if transfer and not getattr(attack, "early_stop", False):
        attack = Transfer(attack=attack, source=target)

    def call(images, labels):
        # Targeted: the odd labels are what it aims at.
        options = {"targets": labels} if targeted else {}
        labels = (context["labels"] + 1) % CLASSES if targeted else labels
        return attack.run(target.logits, images, labels, seed=SEED, **options)

    return call, (name, targeted, transfer)


def _evaluate(context):
    scenarios = [Scenario(name="clean"), Scenario(name="F", attack=ATTACKS["FGSM"])]

    def call(images, labels):
        found = evaluate_robustness(
            context["target"], images, labels, scenarios, batch_size=5
        )
        return [result.predictions for result in found]

    return call


def _predict(context):
    return lambda images, labels: [context["target"].predict(images)]


def _substitute(context):
    def call(images, labels):
        keras.utils.set_random_seed(0)
        network = _network()
        oracle = context["target"].predict
        options = {"rounds": 2, "epochs": 1, "num_classes": CLASSES}
        found = train_substitute(oracle, images, model=network, **options)
        return [found.queries, found.agreement(oracle, images)]

    return call


def _oracle(context):
    def call(images, labels):
        odd = labels  # what an oracle of someone else returns
        options = {"rounds": 1, "epochs": 1, "num_classes": CLASSES}
        found = train_substitute(lambda images: odd, images, **options)
        return [found.queries]

    return call


OTHERS = {"predict": _predict, "substitute": _substitute, "oracle": _oracle}
