"""Auto-PGD against its paper's algorithm in NumPy, closed forms and counts."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf

from pni_tf.attacks import APGD, PGD, ExpectationOverNoise

SEED = tf.constant([3, 4], "int64")
COUNT = 6
LABELS = np.array([0, 1, 2, 0, 1, 2])


def random(*shape, low=0.0, high=1.0, seed=1):
    return np.random.default_rng(seed).uniform(low, high, shape).astype("float32")


IMAGES = np.round(random(COUNT, 4, 4, 1), 1)  # with pixels of exactly 0 and 1
HIDDEN, OUTPUT = random(16, 8, low=-1), random(8, 5, low=-2, high=2, seed=3)


def curved(images):
    """A deterministic network of five classes whose loss oscillates."""
    return tf.sin(6.0 * tf.reshape(images, (-1, 16)) @ HIDDEN) @ OUTPUT


class Counting:
    """A network that counts its calls and the images of them, in graphs too."""

    def __init__(self, network=curved):
        self.network = network
        self.calls, self.images = tf.Variable(0), tf.Variable(0)

    def __call__(self, images):
        self.calls.assign_add(1)
        self.images.assign_add(tf.shape(images)[0])
        return self.network(images)


def traced(attack, logits_fn=curved, images=IMAGES, labels=LABELS, **arguments):
    arguments = {"seed": SEED, **arguments}
    return tf.function(lambda: attack.run(logits_fn, images, labels, **arguments))()


# --- Algorithm 1 --------------------------------------------------------------------


def written_checkpoints(steps):
    """p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)."""
    shares = [Fraction(0), Fraction(22, 100)]
    while True:
        length = max(shares[-1] - shares[-2] - Fraction(3, 100), Fraction(6, 100))
        if shares[-1] + length > 1:
            return [math.ceil(share * steps) for share in shares[1:]]
        shares.append(shares[-1] + length)


def whole_checkpoints(steps):
    """The same in lengths of whole steps, at least one."""
    length = max(22 * steps // 100, 1)
    found = [length]
    while found[-1] < steps:
        length = max(length - max(3 * steps // 100, 1), max(6 * steps // 100, 1))
        found.append(found[-1] + length)
    return [step for step in found if step <= steps]


def test_checkpoints():
    assert APGD(steps=100).checkpoints == [22, 41, 57, 70, 80, 87, 93, 99]
    for steps in (100, 200, 500, 1000, 1900):
        assert APGD(steps=steps).checkpoints == written_checkpoints(steps)
    for steps in range(1, 400):
        assert APGD(steps=steps).checkpoints == whole_checkpoints(steps)


def written_clip(image, point, epsilon, norm):
    delta = point - image
    if norm == "linf":
        delta = np.clip(delta, -epsilon, epsilon)
    else:
        delta = delta * min(1.0, epsilon / (np.linalg.norm(delta) + 1e-12))
    return np.clip(image + delta, 0, 1)


def written_apgd(evaluate, image, start, *, epsilon, norm, steps, rho):
    """Algorithm 1 for one image, from x(0) = start.

    Returns the point with the largest loss and the step size at each checkpoint.
    """
    checkpoints, ends, step_sizes = whole_checkpoints(steps), [0], []
    points, losses = [start], []  # x(k), and f(x(k)) as it was before a return
    eta, halved, before = 2 * epsilon, False, None
    best = (-math.inf, None, None)
    for k in range(steps):
        loss, gradient = evaluate(points[k])
        losses.append(loss)
        if loss > best[0]:
            best = (loss, points[k], gradient)
        before = best[0] if k == 0 else before
        if k in checkpoints:
            risen = sum(losses[i + 1] > losses[i] for i in range(ends[-1], k))
            first = risen < rho * (k - ends[-1])
            second = not halved and best[0] == before
            halved, before = first or second, best[0]
            if halved:
                eta = eta / 2
                _, points[k], gradient = best
            ends.append(k)
            step_sizes.append(eta)
        length = np.linalg.norm(gradient) + 1e-12
        direction = np.sign(gradient) if norm == "linf" else gradient / length
        now = points[k]
        point = written_clip(image, now + eta * direction, epsilon, norm)
        if k > 0:
            point = now + 0.75 * (point - now) + 0.25 * (now - points[k - 1])
        points.append(written_clip(image, point, epsilon, norm))
    return best[1], step_sizes


def unfooled(images):
    """A flatter `curved` that always says class 0: its best point is of largest loss."""
    return curved(images) / 4 + 3 * tf.one_hot(0, 5)


def evaluate_unfooled(point):
    """Returns the cross-entropy of `unfooled` for class 0 and its gradient."""
    inner = 6 * point.reshape(16) @ HIDDEN
    logits = np.sin(inner) @ OUTPUT / 4 + 3 * np.eye(5)[0]
    odds = np.exp(logits) / np.exp(logits).sum()
    slope = (odds - np.eye(5)[0]) / 4
    gradient = HIDDEN @ (6 * np.cos(inner) * (OUTPUT @ slope))
    return -np.log(odds[0]), gradient.reshape(4, 4, 1)


@pytest.mark.parametrize("rho", [0.75, 0.5])
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 0.5)])
def test_run_is_algorithm_1(norm, epsilon, rho):
    """From the first point, which is that of a run of one step."""
    attack = APGD(epsilon=epsilon, norm=norm, steps=50, rho=rho)
    images, labels = random(40, 4, 4, 1, seed=5), np.zeros(40, int)
    first = dataclasses.replace(attack, steps=1)
    start = traced(first, unfooled, images, labels).images.numpy()
    found = traced(attack, unfooled, images, labels)
    assert not np.any(found.found)
    trajectories = set()
    for i in range(40):
        expected, sizes = written_apgd(
            evaluate_unfooled,
            images[i].astype("float64"),
            start[i].astype("float64"),
            epsilon=epsilon,
            norm=norm,
            steps=50,
            rho=rho,
        )
        np.testing.assert_allclose(found.images[i], expected, atol=1e-5)
        trajectories.add(tuple(sizes))
    assert np.all(np.max(np.abs(found.images - start), (1, 2, 3)) > 0.01)
    assert len(trajectories) >= 4  # images halve at checkpoints of their own
