"""Certificates by Monte Carlo: what they claim is true of networks that we know."""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from pni_tf import (
    PGD,
    ExpectationOverNoise,
    PNIAdversarialModel,
    certify,
    inject_pixeldp,
    inject_pni,
    load_dataset,
    load_target,
)

METHODS = ["PixelDP, Hoeffding", "PixelDP, Clopper-Pearson", "Cohen"]


def half_spaces(distribution="gaussian"):
    """One pixel, shifted by one half, whose sign under noise is the class."""
    inputs = keras.Input([1, 1, 1])
    conv = keras.layers.Conv2D(1, 1, bias_initializer=keras.initializers.Constant(-0.5))
    outputs = keras.layers.Flatten()(conv(inputs))
    signs = keras.layers.Dense(2, use_bias=False)
    model = keras.Model(inputs, signs(outputs))
    conv.kernel.assign([[[[0.5]]]])
    conv.bias.assign([-0.25])
    signs.kernel.assign([[-1000.0, 1000.0]])
    return inject_pixeldp(model, bound=0.1, distribution=distribution, seed=0)


class TestOnePixel:
    """The noise has scale 0.2537 and the sensitivity is 0.5, so the exact radius of

    a pixel is its distance from one half.
    """

    pixels = np.array([0.0, 0.2, 0.45, 0.6, 1.0], "float32").reshape(-1, 1, 1, 1)
    labels = np.array([0, 0, 0, 1, 0])

    def test_radii_are_close_to_the_distance_and_never_above(self):
        """Each of 15 radii is above the truth with probability 0.0001 at most."""
        found = certify(
            half_spaces(), self.pixels, self.labels, draws=5_000, failure=1e-4
        )
        assert [c.method for c in found] == METHODS
        distance = np.abs(self.pixels.ravel() - 0.5)
        for certificate in found:
            assert certificate.predictions.tolist() == [0, 0, 0, 1, 1]
            assert (certificate.radii <= distance).all()
            assert (certificate.norm, certificate.draws) == ("l2", 5_000)
        by_method = dict(zip(METHODS, found, strict=True))
        # Votes have 0.5 + 0.5 erf; four standard errors of 20,000 draws are 1.4 %.
        cohen = by_method["Cohen"]
        probability = scipy.stats.norm.cdf(0.5 * distance / 0.2537)
        expected = scipy.stats.norm.ppf(probability - 0.05) * 0.2537 / 0.5
        assert (cohen.radii >= np.maximum(expected, 0)).all()
        assert cohen.accuracy() == 0.8
        assert cohen.accuracy(0.2) == 0.4  # the last pixel is certified to be wrong
        assert cohen.accuracy(0.5) == 0.0
        exact = by_method["PixelDP, Clopper-Pearson"].radii
        assert (exact >= by_method["PixelDP, Hoeffding"].radii).all()

    def test_laplace_noise_certifies_in_l1(self):
        found = certify(half_spaces("laplace"), self.pixels, self.labels, draws=1000)
        assert [c.method for c in found] == METHODS[:2]
        assert {c.norm for c in found} == {"l1"}
        distance = np.abs(self.pixels.ravel() - 0.5)
        for certificate in found:
            assert (certificate.radii <= distance).all()
            assert certificate.radii.max() > 0.02

    def test_seed_repeats_it(self):
        model = half_spaces()
        options = {"draws": 100, "batch_size": 2}
        first, second, other = (
            certify(model, self.pixels, self.labels, seed=seed, **options)[2].radii
            for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(first, second)
        assert (first != other).any()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"draws": 0}, "`draws` must be"),
            ({"failure": 1.0}, "`failure` must be in .*failure=1.0"),
            ({"batch_size": 0}, "`batch_size` must be"),
        ],
    )
    def test_bad_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            certify(half_spaces(), self.pixels, self.labels, **options)


def test_other_noise_certifies_nothing():
    inputs = keras.Input([4, 4, 1])
    outputs = keras.layers.Flatten()(keras.layers.Conv2D(2, 3, name="conv")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(outputs))
    images, labels = np.zeros([2, 4, 4, 1], "float32"), np.zeros(2, int)
    for network in (model, inject_pni(model)):
        with pytest.raises(ValueError, match="needs a network from `inject_pixeldp`"):
            certify(network, images, labels)


def test_attacks_do_not_beat_certificates_on_digits():
    """PGD in the L2 ball of certified images changes none of their predictions.

    Certificates fail with probability 1e-4 for an image, so with 0.06 at most for 200
    and three methods; an attacked image is classified by 500 draws.
    """
    digits = load_dataset("digits", test_examples=200)
    inputs = keras.Input([8, 8, 1])
    outputs = keras.layers.Conv2D(8, 3, padding="same")(inputs)
    outputs = keras.layers.Flatten()(keras.layers.ReLU()(outputs))
    model = keras.Model(inputs, keras.layers.Dense(10)(outputs))
    model = inject_pixeldp(model, bound=0.1, seed=0)
    trainer = PNIAdversarialModel(model)
    trainer.compile(keras.optimizers.Adam(1e-2))
    images, labels = digits.test.images_float(), digits.test.labels
    trainer.fit(digits.train.images_float(), digits.train.labels, epochs=8, verbose=0)

    target = load_target(model)
    attacked = 0
    certificates = certify(model, images, labels, draws=1000, failure=1e-4)
    for certificate, radius in zip(certificates, (0.03, 0.05, 0.2), strict=True):
        assert certificate.accuracy() > 0.8
        chosen = (certificate.radii >= radius) & (certificate.predictions == labels)
        attack = PGD(norm="l2", epsilon=radius, step_size=radius / 4, steps=10)
        adversarial = tf.function(attack.perturb)(
            ExpectationOverNoise(target.logits, 10),
            tf.constant(images[chosen]),
            tf.constant(labels[chosen]),
        )
        distance = np.linalg.norm(adversarial - images[chosen], axis=(1, 2))
        assert distance.mean() > 0.9 * radius  # the attack went to the edge
        found = target.predict_mean(adversarial, 500).argmax(-1)
        if certificate.method != METHODS[0]:  # their predictions are votes
            found = votes(target, adversarial, 500)
        np.testing.assert_array_equal(found, labels[chosen])
        attacked += chosen.sum()
    assert attacked > 100


def votes(target, images, draws):
    predict = tf.function(lambda: tf.argmax(target.logits(images), -1))
    labels = [predict() for _ in range(draws)]
    counts = tf.reduce_sum(tf.one_hot(labels, target.num_classes), 0)
    return counts.numpy().argmax(-1)
