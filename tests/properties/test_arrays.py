"""Image and label arrays, as a user of the library hands them over."""

import functools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import cases
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

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
GENERATOR = np.random.default_rng(0)
# On a grid that float16 holds too.
IMAGES = GENERATOR.integers(0, 1025, (COUNT, *SHAPE)).astype("float32") / 1024
LABELS = GENERATOR.integers(0, CLASSES, COUNT)
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
WITHOUT_LABELS = ("predict", "substitute")
KINDS = (*ATTACKS, "Transfer", "evaluate", *WITHOUT_LABELS)
SLOW = ("ZOO", "substitute")
MOSTLY_QUICK = (*(kind for kind in KINDS if kind not in SLOW),) * 4 + SLOW


def _locked(x):
    x = x.copy()
    x.setflags(write=False)
    return x


# What keeps the meaning; the library must not see a difference.
SAME = (
    *(lambda x: x, np.asfortranarray, tf.constant, _locked, lambda x: x.tolist()),
    *(lambda x: np.repeat(x, 2, axis=0)[::2], lambda x: x[::-1].copy()[::-1]),
    lambda x: x.astype(x.dtype.newbyteorder(">")),
)
FLOATS = ("float16", "float32", "float64", ">f8")
INTEGERS = ("int16", "int32", "int64", "uint8", "uint64", ">i4")
OTHERS = ("bool", "object", "str", "S8", "complex64", "timedelta64[s]")
RAGGED = [[0], [1, 2]]


@st.composite
def _put(draw, array, value):
    """Draws an array with one wrong value somewhere."""
    array = array.copy()
    array.flat[draw(st.integers(0, array.size - 1))] = draw(value)
    return draw(st.sampled_from((array, tf.constant(array))))


def _of_shape(array, fine):
    """Arrays of other shapes, with values that are fine."""
    shapes = npst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
    return shapes.filter(lambda shape: not fine(shape)).map(
        lambda shape: np.zeros(shape, array.dtype)
    )


RIGHT_IMAGES = st.builds(
    lambda dtype, change: change(IMAGES.astype(dtype)),
    st.sampled_from(FLOATS),
    st.sampled_from(SAME),
)
RIGHT_LABELS = st.builds(
    lambda dtype, change: change(LABELS.astype(dtype)),
    st.sampled_from(INTEGERS),
    st.sampled_from(SAME),
)
WRONG_IMAGES = st.one_of(
    _put(IMAGES, st.floats(width=32).filter(lambda value: not 0 <= value <= 1)),
    _put(IMAGES.astype(float), st.just(1e300)),
    st.sampled_from((*INTEGERS, *OTHERS)).map((IMAGES * 255).astype),
    _of_shape(IMAGES, lambda shape: len(shape) == 4 and np.prod(shape)),
    st.sampled_from((None, "images", {"images": IMAGES}, RAGGED, 0.5, IMAGES[0])),
    # Attacks do not know the size of the images: the network itself refuses these.
    st.sampled_from((IMAGES.transpose(0, 3, 1, 2), IMAGES[:, :4], IMAGES[..., :1])),
)
WRONG_LABELS = st.one_of(
    _put(LABELS, st.integers(-(2**60), 2**60).filter(lambda i: not 0 <= i < CLASSES)),
    st.sampled_from((*FLOATS, *OTHERS)).map(LABELS.astype),
    _of_shape(LABELS, lambda shape: shape == LABELS.shape),
    st.sampled_from((None, "labels", 1, RAGGED, np.eye(CLASSES, dtype=int)[LABELS])),
    st.sampled_from((LABELS[:, None], LABELS[:-1], np.append(LABELS, 0))),
)


def network():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    convolution = layers.Conv2D(3, 2, activation="relu")
    return keras.Sequential(
        [keras.Input(SHAPE), convolution, layers.Flatten(), layers.Dense(CLASSES)]
    )


@pytest.fixture(scope="module")
def call():
    """What is done with images and labels; returns what comes out."""
    target = load_target(network())

    def run(kind, images, labels, targeted):
        if kind == "predict":
            return [target.predict(images)]
        if kind == "substitute":
            options = {"rounds": 2, "epochs": 1, "num_classes": CLASSES}
            found = train_substitute(target.predict, images, model=network(), **options)
            return [found.queries, found.agreement(target.predict, images)]
        if kind == "evaluate":
            scenarios = [Scenario(name="F", attack=ATTACKS["FGSM"])]
            found = evaluate_robustness(target, images, labels, scenarios, batch_size=5)
            return [result.predictions for result in found]
        attack = ATTACKS.get(kind) or Transfer(attack=ATTACKS["FGSM"], source=target)
        # Targeted: the odd labels are what it aims at.
        options = {"towards": labels} if targeted else {}
        labels = (LABELS + 1) % CLASSES if targeted else labels
        return attack.run(target.logits, images, labels, seed=SEED, **options)

    return run


@pytest.fixture(scope="module")
def expected(call):
    """What comes out of the usual arrays."""
    return functools.cache(lambda kind, targeted: call(kind, IMAGES, LABELS, targeted))


@cases(30, 80)
@given(st.sampled_from(MOSTLY_QUICK), RIGHT_IMAGES, RIGHT_LABELS, st.booleans())
def test_other_forms_of_the_same_arrays(call, expected, kind, images, labels, targeted):
    found = call(kind, images, labels, targeted)
    for ours, theirs in zip(found, expected(kind, targeted), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@cases(200, 500)
@given(
    st.tuples(st.sampled_from(KINDS), WRONG_IMAGES, RIGHT_LABELS | WRONG_LABELS)
    | st.tuples(st.sampled_from(KINDS[:-2]), RIGHT_IMAGES, WRONG_LABELS),
    st.booleans(),
)
def test_wrong_arrays_are_refused(call, asked, targeted):
    assume(not (targeted and asked[2] is None))  # That would be untargeted.
    with pytest.raises((ValueError, TypeError)) as error:
        call(*asked, targeted)
    words = "`images`|`labels`|`towards`|incompatible with the layer"
    assert re.search(words, str(error.value))
    assert not isinstance(error.value, tf.errors.OpError)


@cases(20, 50)
@given(WRONG_LABELS)
def test_an_oracle_that_answers_wrongly(answer):
    with pytest.raises((ValueError, TypeError), match="`labels`"):
        train_substitute(lambda images: answer, IMAGES, rounds=1, num_classes=CLASSES)
