"""Conversion of whole models: where the noise goes, and what is shared.

`test_injection_freeze.py` has the tests of `freeze_noise`, and
`test_injection_errors.py` those of what is refused.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from converted_models import (
    every_model,
    functional_in_sequential,
    images_of,
    network,
)
from keras import layers as kl

from pni_tf import PNIWeight, alphas, freeze_noise, inject_pni, strip_noise
from pni_tf.noise import graph

# Location, and what `alphas` lists for `network`.
TABLE_2 = {
    "w": ["conv1", "conv2", "fc"],
    "a-a": ["conv1.output", "conv2.output", "fc.output"],
    "a-b": ["conv1.input", "conv2.input", "fc.input"],
    "i": ["norm.output"],
    "w+a-a": [f"{n}{s}" for n in ("conv1", "conv2", "fc") for s in ("", ".output")],
    "w+a-b": [f"{n}{s}" for n in ("conv1", "conv2", "fc") for s in ("", ".input")],
    "none": [],
}


def by_hand(source, noisy, images):
    """The forward pass of `network`, its noise written out from each wrapper's seed."""
    wrappers = {w.name: w for w in graph.noise_wrappers(noisy)}

    def add_noise(values, name):
        if name not in wrappers:
            return values
        wrapper = wrappers[name]
        z = tf.random.stateless_normal(values.shape, wrapper.seed_generator.state)
        return values + wrapper.alphas[0] * np.std(values, ddof=1) * z

    def apply(name, values):
        layer = source.get_layer(name)
        kernel = add_noise(layer.kernel.numpy(), f"{name}_pni_weight")
        values = add_noise(values, f"{name}_pni_input")
        values = layer.stateless_call([kernel, layer.bias], [], values)[0]
        return add_noise(values, f"{name}_pni_output")

    values = add_noise(source.get_layer("norm")(images), "norm_pni_output")
    values = source.get_layer("bn")(apply("conv1", values), training=False)
    values = tf.nn.relu(values)
    values = values + apply("conv2", values)
    return apply("fc", tf.reshape(values, (len(images), -1)))


@pytest.mark.parametrize(("location", "keys"), TABLE_2.items())
def test_each_location_of_table_2(location, keys):
    source, images = network(), images_of((6, 6, 3))
    noisy = inject_pni(source, location, initial_alpha=0.5, seed=1)
    assert alphas(noisy) == {key: 0.5 for key in keys}
    assert len(noisy.trainable_weights) == len(source.trainable_weights) + len(keys)
    for count, alpha in enumerate(
        alpha for w in graph.noise_wrappers(noisy) for alpha in w.alphas
    ):
        alpha.assign(0.2 + 0.1 * count)  # Hybrids have independent alphas.
    expected = by_hand(source, noisy, images)
    np.testing.assert_allclose(noisy(images), expected, rtol=1e-4, atol=1e-4)


@every_model
def test_views_share_their_variables_and_strip_gives_the_stock_model(make, count):
    source = make()
    images = images_of((6, 6, 3))
    expected = source(images)
    noisy = inject_pni(source, initial_alpha=1.0)
    assert len(noisy.weights) == len(source.weights) + count
    assert {id(v) for v in source.weights} < {id(v) for v in noisy.weights}
    assert not np.allclose(noisy(images), noisy(images))

    stripped = strip_noise(noisy)
    assert [id(v) for v in stripped.weights] == [id(v) for v in source.weights]
    for view in (stripped, strip_noise(source), inject_pni(source, "none")):
        np.testing.assert_array_equal(view(images), expected)
    np.testing.assert_array_equal(
        inject_pni(source, initial_alpha=0.0)(images), expected
    )


def test_training_one_view_trains_the_others():
    source = network()
    noisy = inject_pni(source)
    stripped = strip_noise(noisy)
    assert stripped.get_layer("conv1") is source.get_layer("conv1")
    before = source.get_weights()
    noisy.compile("sgd", "mse")
    noisy.fit(images_of((6, 6, 3)), np.ones((3, 3)), verbose=0)
    after = source.get_weights()
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))
    for ours, theirs in zip(stripped.get_weights(), after, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    source.set_weights(before)
    np.testing.assert_array_equal(
        stripped.get_layer("fc").kernel, noisy.get_layer("fc_pni_weight").layer.kernel
    )
    np.testing.assert_array_equal(stripped.get_layer("fc").kernel, before[-2])


def test_seed_determines_the_draws_and_every_layer_has_its_own():
    source = keras.Sequential([keras.Input((4,)), kl.Dense(4), kl.Dense(4)])
    source.set_weights([np.eye(4), np.zeros(4)] * 2)
    images = images_of((4,))

    def noisy_with(seed):
        return inject_pni(source, "w+a-a", seed=seed)

    first = noisy_with(1)
    outputs = [first(images), first(images)]
    second = noisy_with(1)
    np.testing.assert_array_equal([second(images), second(images)], outputs)
    for other in (noisy_with(2), noisy_with(None), noisy_with(None)):
        assert not np.any(np.equal(other(images), outputs[0]))
        outputs[0] = other(images)
    wrappers = graph.noise_wrappers(first)
    assert len({w.seed for w in wrappers}) == 4
    (one,), (two,) = (w.noisy_kernels() for w in wrappers if isinstance(w, PNIWeight))
    assert not np.any(np.equal(one, two))


def test_structure_of_inputs_and_outputs_is_kept():
    inputs = {name: keras.Input((4,), name=name) for name in ("left", "right")}
    joined = kl.Concatenate()([kl.Dense(3)(inputs["left"]), inputs["right"]])
    source = keras.Model(inputs, {"a": kl.Dense(2)(joined), "b": kl.ReLU()(joined)})
    values = {name: images_of((4,), seed=len(name)) for name in inputs}
    expected = source(values)
    noisy = inject_pni(source, initial_alpha=1.0)
    for view, same in ((noisy, False), (strip_noise(noisy), True)):
        outputs = view(values)
        assert outputs.keys() == expected.keys()
        for name, output in outputs.items():
            assert np.array_equal(output, expected[name]) == same
    assert freeze_noise(noisy, 1)(values).keys() == expected.keys()


@pytest.mark.parametrize("location", ["w", "a-b"])
def test_masks_survive_conversion(location, tmp_path):
    """Keras records them in a Functional graph as arguments of the recurrent layers."""
    tokens = keras.Input((None,), dtype="int32")
    values = kl.Embedding(9, 4, mask_zero=True)(tokens)
    values = kl.Dense(3)(kl.GRU(3, return_sequences=True)(values))
    values = kl.GlobalAveragePooling1D()(values)
    source = keras.Model(tokens, values)
    words = np.array([[3, 1, 4], [1, 5, 8]])
    padded = np.pad(words, ((0, 0), (2, 4)))
    noisy = inject_pni(source, location, initial_alpha=0.0)
    noisy.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    views = [
        noisy,
        loaded,
        strip_noise(noisy),
        strip_noise(loaded),
        freeze_noise(noisy, 1),
    ]
    for view in views:
        np.testing.assert_allclose(view(padded), source(words), rtol=1e-5, atol=1e-6)


def test_exclude_leaves_layers_as_they_are():
    source = functional_in_sequential()
    noisy = inject_pni(source, "w+a-b", exclude=("conv1", "fc"))
    (head,) = [layer.name for layer in source.layers if isinstance(layer, kl.Dense)]
    assert list(alphas(noisy)) == [
        "network/conv2",
        "network/conv2.input",
        head,
        f"{head}.input",
    ]


def test_alphas_of_layers_with_one_name_are_all_listed():
    def body(name):
        layers = [keras.Input((4,)), kl.Dense(4, name="fc"), kl.LSTM(2, name="rnn")]
        layers.insert(2, kl.Reshape((2, 2)))
        return keras.Sequential(layers, name=name)

    inputs = keras.Input((4,))
    source = keras.Model(inputs, kl.Add()([body("one")(inputs), body("two")(inputs)]))
    noisy = inject_pni(source, granularity="channelwise")
    found = alphas(noisy)
    assert {key: alpha.shape for key, alpha in found.items()} == {
        f"{name}/{key}": shape
        for name in ("one", "two")
        for key, shape in (
            ("fc", (1, 4)),
            ("rnn", (1, 8)),
            ("rnn.recurrent_kernel", (1, 8)),
        )
    }
    graph.noise_wrappers(noisy)[0].alphas[0].assign([[1, 2, 3, 4]])
    np.testing.assert_array_equal(alphas(noisy)["one/fc"], [[1, 2, 3, 4]])
    np.testing.assert_array_equal(alphas(noisy)["two/fc"], [[0.25] * 4])


def test_network_of_keras_applications(tmp_path):
    source = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=0.35, weights=None, classes=4, classifier_activation=None
    )
    images = images_of((32, 32, 3), batch=2)
    kernels = [w for w in source.weights if w.name.endswith("kernel")]
    noisy = inject_pni(source, seed=1)
    assert len(alphas(noisy)) == len(kernels) == 53
    expected = source(images)
    np.testing.assert_array_equal(strip_noise(noisy)(images), expected)
    assert not np.any(np.equal(noisy(images), expected))
    noisy.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), noisy(images))
    assert alphas(loaded).keys() == alphas(noisy).keys()
