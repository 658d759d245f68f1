"""Certificates by Monte Carlo: what they claim is true of networks that we know."""

import math

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from pni_tf import (
    PGD,
    BoundedSensitivity,
    ExpectationOverNoise,
    FixedNoise,
    PNIAdversarialModel,
    certify,
    freeze_noise,
    inject_pixeldp,
    inject_pni,
    inject_rse,
    load_dataset,
    load_target,
)
from pni_tf.evaluation import certification
from pni_tf.evaluation.certification import round_radii
from pni_tf.evaluation.radii import pixeldp_radius
from pni_tf.noise.graph import noise_wrappers

METHODS = ["PixelDP, Hoeffding", "PixelDP, Clopper-Pearson", "Cohen"]


def half_spaces(distribution="gaussian", weights=(-1000.0, 1000.0)):
    """One pixel, shifted by one half, whose sign under noise is the class."""
    inputs = keras.Input([1, 1, 1])
    conv = keras.layers.Conv2D(1, 1, bias_initializer=keras.initializers.Constant(-0.5))
    outputs = keras.layers.Flatten()(conv(inputs))
    signs = keras.layers.Dense(len(weights), use_bias=False)
    model = keras.Model(inputs, signs(outputs))
    conv.kernel.assign([[[[0.5]]]])
    conv.bias.assign([-0.25])
    signs.kernel.assign([weights])
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
        # Votes have 0.5 + 0.5 erf; 0.05 is seven standard errors of 5,000 draws.
        cohen = by_method["Cohen"]
        probability = scipy.stats.norm.cdf(0.5 * distance / 0.2537)
        expected = scipy.stats.norm.ppf(probability - 0.05) * 0.2537 / 0.5
        assert (cohen.radii >= np.maximum(expected, 0)).all()
        assert cohen.accuracy() == 0.8
        assert cohen.accuracy(0.2) == 0.4  # The last pixel is certified to be wrong.
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
            ({"failure": 1.0}, "`failure` must be .*below 1.*failure=1.0"),
            ({"batch_size": 0}, "`batch_size` must be"),
        ],
    )
    def test_bad_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            certify(half_spaces(), self.pixels, self.labels, **options)


class TestStatistics:
    """Radii from given counts, and where the counts come from."""

    images = np.full([6, 1, 1, 1], 0.49, "float32")  # This is close to the boundary.
    labels = np.zeros(6, int)

    def record(self, monkeypatch, counts=None):
        """Returns what is counted: scores and votes for each call."""
        found = []
        real = certification._counter

        def counter(target):
            count = real(target)

            def recorded(images, draws):
                answer = counts[draws] if counts else count(images, draws)
                found.append(answer)
                return answer

            return recorded

        monkeypatch.setattr(certification, "_counter", counter)
        return found

    def test_radii_follow_from_the_counts(self, monkeypatch):
        """Soft scores, and a selection that disagrees with the votes."""
        scores = np.array([[820.5, 100.25, 79.25], [300.0, 350.0, 350.5]])
        votes = np.array([[900, 70, 30], [210, 200, 590]], "int32")
        selection = np.array([[99, 1, 0], [60, 30, 10]], "int32")
        self.record(monkeypatch, {1000: (scores, votes), 100: (scores, selection)})
        model = half_spaces(weights=(-1000.0, 1000.0, 0.0))
        hoeffding, exact, cohen = certify(
            model, self.images[:2], [0, 2], draws=1000, failure=0.03
        )
        assert hoeffding.predictions.tolist() == [0, 2]
        width = math.sqrt(math.log(2 * 3 / 0.03) / (2 * 1000))
        scale = 0.1 * math.sqrt(2 * math.log(1.25 / 0.05))
        noise = {"scale": scale, "sensitivity": 0.5}
        expected = pixeldp_radius(0.8205 - width, 0.10025 + width, **noise)
        assert expected > 0
        np.testing.assert_allclose(hoeffding.radii, [expected, 0], rtol=1e-6)

        assert exact.predictions.tolist() == [0, 2]
        side = 0.03 / (2 * 3)
        beta = scipy.stats.beta
        expected = [
            pixeldp_radius(
                beta.ppf(side, first, 1001 - first),
                beta.ppf(1 - side, second + 1, 1000 - second),
                **noise,
            )
            for first, second in ((900, 70), (590, 210))
        ]
        assert min(expected) > 0
        np.testing.assert_allclose(exact.radii, expected, rtol=1e-6)

        assert cohen.predictions.tolist() == [0, 0]  # The selection predicts these.
        lower = beta.ppf(0.03, 900, 101)
        expected = scipy.stats.norm.ppf(lower) * scale / 0.5
        np.testing.assert_allclose(cohen.radii, [expected, 0], rtol=1e-6)

    def test_draws_are_fresh_in_selection_estimation_and_each_batch(self, monkeypatch):
        """Six batches of one image, whose votes are nearly even: that 100 draws count

        alike in all of them, or in selection and estimation of all, has a probability
        of 0.06^5 at most.
        """
        found = self.record(monkeypatch)
        options = {"draws": 100, "selection_draws": 100, "batch_size": 1}
        certify(half_spaces(), self.images, self.labels, **options)
        votes = [int(votes[0, 0]) for _, votes in found]
        selection, estimation = votes[::2], votes[1::2]
        assert len(selection) == len(estimation) == 6
        assert 20 < np.mean(votes) < 80
        assert selection != estimation
        assert len(set(selection)) > 1
        assert len(set(estimation)) > 1


class TestWhatIsCertified:
    """The network itself, as it is now."""

    def test_sensitivity_is_that_of_today(self):
        """Both look at a pixel of a third of the size, so at a third of the radii."""
        options = {"draws": 200, "failure": 1e-3}
        pixels, labels = TestOnePixel.pixels, TestOnePixel.labels
        expected = certify(half_spaces(), pixels, labels, **options)
        around = keras.Sequential(
            [keras.Input([1, 1, 1]), keras.layers.Rescaling(3.0), half_spaces()]
        )
        larger = half_spaces()
        (wrapper,) = noise_wrappers(larger)
        wrapper.layer.kernel.assign(3 * wrapper.layer.kernel)
        for model in (around, larger):
            found = certify(model, pixels / 3, labels, **options)
            for ours, theirs in zip(found, expected, strict=True):
                assert theirs.radii.max() > 0
                np.testing.assert_allclose(ours.radii, theirs.radii / 3, rtol=1e-5)

    def test_norm_is_that_of_the_noise(self):
        """Whatever another view of the network has made of the constraint."""
        model = half_spaces("laplace")
        (wrapper,) = noise_wrappers(model)
        wrapper.layer.kernel_constraint = BoundedSensitivity((1, 1))
        pixels = TestOnePixel.pixels
        found = certify(model, pixels, TestOnePixel.labels, draws=100)
        assert {c.norm for c in found} == {"l1"}

    def test_image_around_the_noise_certifies_nothing(self):
        model = half_spaces()
        inputs = keras.Input([1, 1, 1])
        beside = keras.layers.Dense(2, name="beside")(keras.layers.Flatten()(inputs))
        model = keras.Model(inputs, keras.layers.Add()([model(inputs), beside]))
        with pytest.raises(ValueError, match="sees the image"):
            certify(model, TestOnePixel.pixels, TestOnePixel.labels)

    def test_other_noise_certifies_nothing(self):
        inputs = keras.Input([4, 4, 1])
        conv = keras.layers.Conv2D(2, 3, name="conv")
        outputs = keras.layers.Flatten()(conv(inputs))
        model = keras.Model(inputs, keras.layers.Dense(2)(outputs))
        images, labels = np.zeros([2, 4, 4, 1], "float32"), np.zeros(2, int)
        two = inject_pixeldp(model)
        two = keras.Model(
            two.inputs, FixedNoise(keras.layers.ReLU(), 1.0)(two.outputs[0])
        )
        for network in (
            model,
            inject_pni(model),
            inject_rse(model),
            freeze_noise(inject_pixeldp(model), seed=0),
            two,
            "model.keras",
        ):
            with pytest.raises(ValueError, match="needs a network from `inject_pix"):
                certify(network, images, labels)

    def test_one_class(self):
        inputs = keras.Input([4, 4, 1])
        outputs = keras.layers.Flatten()(keras.layers.Conv2D(2, 3)(inputs))
        model = inject_pixeldp(keras.Model(inputs, keras.layers.Dense(1)(outputs)))
        with pytest.raises(ValueError, match="two classes or more. Received: 1"):
            certify(model, np.zeros([2, 4, 4, 1], "float32"), [0, 0])

    def test_nothing_is_certified_at_no_radius(self):
        model = half_spaces()
        found = certify(model, TestOnePixel.pixels, TestOnePixel.labels, draws=1)
        assert all((certificate.radii == 0).all() for certificate in found)
        assert round_radii(found) == [0.0]


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
        assert distance.mean() > 0.9 * radius  # The attack went to the edge.
        found = target.predict_mean(adversarial, 500).argmax(-1)
        if certificate.method != METHODS[0]:  # The others predict by votes.
            found = votes(target, adversarial, 500)
        np.testing.assert_array_equal(found, labels[chosen])
        attacked += chosen.sum()
    assert attacked > 100


def votes(target, images, draws):
    predict = tf.function(lambda: tf.argmax(target.logits(images), -1))
    labels = [predict() for _ in range(draws)]
    counts = tf.reduce_sum(tf.one_hot(labels, target.num_classes), 0)
    return counts.numpy().argmax(-1)
