"""Certified accuracy: what no attack within a radius can change.

Only noise in front of which the sensitivity is bounded certifies anything: that of
PixelDP. Noise on weights (PNI) or of random self-ensemble does not, whatever attacks
find.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

from pni_tf import files
from pni_tf.checks import check_number, validate_images, validate_labels
from pni_tf.evaluation.radii import (
    clopper_pearson_bounds,
    cohen_radius,
    hoeffding_bounds,
    pixeldp_radius,
)
from pni_tf.evaluation.store import ResultStore
from pni_tf.noise.graph import noise_wrappers
from pni_tf.noise.layers import FixedNoise
from pni_tf.noise.pixeldp import bounded_sensitivity
from pni_tf.targets import load_target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certificate:
    """What one method certifies about some images.

    Attributes:
        method: How the radii were computed.
        norm: The norm of the radii: `"l2"` or `"l1"`.
        draws: Draws of the noise that each radius is computed from.
        failure: Probability that the radius of an image is wrong.
        labels: The true labels `[N]`.
        predictions: Predicted labels `[N]`.
        radii: Certified radii `[N]`, 0 where nothing is certified, for pixels in
            `[0, 1]`.
    """

    method: str
    norm: str
    draws: int
    failure: float
    labels: np.ndarray = dataclasses.field(repr=False)
    predictions: np.ndarray = dataclasses.field(repr=False)
    radii: np.ndarray = dataclasses.field(repr=False)

    def accuracy(self, radius: float = 0.0) -> float:
        """Returns the share of images that are right with a radius of at least this.

        At 0 it is the accuracy of the prediction, certified or not.
        """
        correct = self.predictions == self.labels
        return float(np.mean(correct & (self.radii >= radius)))

    def to_json(self, radii: Iterable[float]) -> dict:
        """Returns the certified accuracy at some radii, as JSON can hold it."""
        return {
            "method": self.method,
            "norm": self.norm,
            "draws": int(self.draws),
            "failure": float(self.failure),
            "images": len(self.labels),
            "certified_accuracy": {f"{r:.3g}": self.accuracy(r) for r in radii},
        }


def round_radii(certificates: list[Certificate]) -> list[float]:
    """Returns eight radii, from 0 towards the largest, at which to tabulate.

    Only 0 if nothing is certified.
    """
    largest = max(float(certificate.radii.max()) for certificate in certificates)
    if largest == 0:
        return [0.0]
    return [0.0, *(float(f"{largest * k / 8:.2g}") for k in range(1, 8))]


def certify(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    draws: int = 2000,
    selection_draws: int = 100,
    failure: float = 0.05,
    batch_size: int = 500,
    seed: int = 0,
    store: ResultStore | None = None,
    progress: Callable[[Iterator, str], Iterator] | None = None,
) -> list[Certificate]:
    """Certifies the predictions of a PixelDP network by Monte Carlo.

    The methods are PixelDP's own on the mean softmax, with Hoeffding's bounds, and on
    votes, with those of Clopper and Pearson; each side of each class gets an equal part
    of the failure probability. With Gaussian noise there is also randomized smoothing
    (Cohen et al.), on the same votes, for a class that further draws have selected;
    radii are three to four times larger for the same noise.

    None says much about the Linf ball: one of radius epsilon around an image of `n`
    values is inside the L2 ball of radius `epsilon * sqrt(n)` only.

    Args:
        model: A network from `inject_pixeldp`.
        images: Float32 `[N, H, W, C]` in `[0, 1]`.
        labels: Integers `[N]`.
        draws: Draws of the noise for each image.
        selection_draws: Further draws, from which Cohen's method selects the class.
        failure: Probability that the radius of an image is wrong, in `(0, 1)`.
        batch_size: Images in a forward pass.
        seed: Seed of the noise.
        store: Takes the counts of each finished batch, and gives back those of an
            earlier call with the same settings.
        progress: See `evaluate_robustness`.

    Returns:
        One certificate for each method.

    Raises:
        ValueError: If the model does not have the noise layer of PixelDP and no other
            noise, something of the image goes around it, or an argument is out of
            range.

    Reference: https://arxiv.org/abs/1802.03471, section 3.4;
    https://arxiv.org/abs/1902.02918, section 3.2.
    """
    wrapper = pixeldp_wrapper(model)
    check_number("draws", draws, minimum=1, integer=True)
    check_number("selection_draws", selection_draws, minimum=1, integer=True)
    check_number("batch_size", batch_size, minimum=1, integer=True)
    check_number("failure", failure, above=0, below=1)
    # As the model is now: its normalisation or kernel may have been set since.
    bound = bounded_sensitivity(model, wrapper, wrapper.distribution)
    kernel = tf.cast(tf.convert_to_tensor(wrapper.layer.kernel), "float64")
    noise = {"scale": wrapper.scale, "sensitivity": float(bound.sensitivity(kernel))}
    target = load_target(model)
    if target.num_classes < 2:
        raise ValueError(
            f"A certificate needs two classes or more. Received: {target.num_classes}"
        )
    images = validate_images(images, image_shape=target.image_shape)
    labels = validate_labels(labels, target.num_classes, num_examples=len(images))
    stamp = {
        "images": files.digest(images.tobytes()),
        "draws": [int(draws), int(selection_draws)],
        "batch_size": int(batch_size),
        "seed": int(seed),
    }
    count = _counter(target)

    def counts_of(start):
        """Returns what the draws say about a batch, whatever the other batches."""
        found = store.read_batch("certificates", start, stamp) if store else None
        if found is None:
            (state,) = np.random.SeedSequence([seed, start]).generate_state(1)
            target.reseed(int(state >> 1))
            batch = tf.constant(images[start : start + batch_size])
            _, selection = count(batch, selection_draws)
            scores, votes = count(batch, draws)
            found = {"scores": scores, "votes": votes, "selection": selection}
            if store:
                store.write_batch("certificates", start, stamp, found)
        return found

    starts = range(0, len(images), batch_size)
    parts = [
        counts_of(start)
        for start in (progress(starts, "certificates") if progress else starts)
    ]
    scores, votes, selection = (
        np.concatenate([part[name] for part in parts])
        for name in ("scores", "votes", "selection")
    )
    certified, every = [], np.arange(len(images))
    for method, values, bounds in (
        ("PixelDP, Hoeffding", scores / draws, hoeffding_bounds),
        ("PixelDP, Clopper-Pearson", votes, clopper_pearson_bounds),
    ):
        lower, upper = bounds(values, draws, failure / (2 * target.num_classes))
        predictions = values.argmax(1)
        best = lower[every, predictions]
        upper[every, predictions] = -1
        radii = pixeldp_radius(
            best, upper.max(1), distribution=wrapper.distribution, **noise
        )
        certified.append((method, predictions, radii))
    if wrapper.distribution == "gaussian":
        predictions = selection.argmax(1)
        lower, _ = clopper_pearson_bounds(votes[every, predictions], draws, failure)
        certified.append(("Cohen", predictions, cohen_radius(lower, **noise)))
    return [
        Certificate(
            method=method,
            norm=bound.norm,
            draws=draws,
            failure=failure,
            labels=labels,
            predictions=predictions,
            radii=radii,
        )
        for method, predictions, radii in certified
    ]


def pixeldp_wrapper(model: keras.Model) -> FixedNoise:
    """Returns the noise layer of a PixelDP network.

    Raises:
        ValueError: If it has none, or other noise, or is not a Keras model.
    """
    wrappers = noise_wrappers(model) if isinstance(model, keras.Model) else []
    if len(wrappers) == 1 and isinstance(wrappers[0], FixedNoise):
        (wrapper,) = wrappers
        if wrapper.position == "output" and not wrapper.frozen:
            return wrapper
    raise ValueError(
        "A certificate needs a network from `inject_pixeldp`, because noise anywhere "
        "else, as on weights, certifies nothing; and the network itself, as in a "
        "`.keras` file or a run directory, not an export. Received: "
        f"{type(model).__name__} with {len(wrappers)} noise layer(s): "
        f"{[w.name for w in wrappers][:3]}"
    )


def _counter(target):
    """Returns a function to the sums of the softmax and of votes over some draws."""
    classes = target.num_classes
    shape = tf.TensorSpec([None, *target.image_shape], tf.float32)

    @tf.function(input_signature=[shape, tf.TensorSpec([], tf.int32)], autograph=False)
    def count(images, draws):
        def add(sums, _):
            logits = target.logits(images)
            scores = tf.cast(tf.nn.softmax(logits), tf.float64)
            votes = tf.one_hot(tf.argmax(logits, -1), classes, dtype=tf.int32)
            return sums[0] + scores, sums[1] + votes

        zeros = tf.zeros([tf.shape(images)[0], classes], tf.int32)
        start = (tf.cast(zeros, tf.float64), zeros)
        return tf.foldl(add, tf.range(draws), start, parallel_iterations=1)

    return lambda images, draws: [s.numpy() for s in count(images, draws)]
