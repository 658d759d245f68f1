"""The wrappers as Keras layers: saving, losses, state, masks, dtypes, strategies.

`test_layers.py` is about the noise itself.
"""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

from pni_tf import PNIInput, PNIOutput, PNIWeight

WRAPPERS = (PNIWeight, PNIOutput, PNIInput)
every_wrapper = pytest.mark.parametrize("wrapper", WRAPPERS)


def values_of(shape, scale=1.0):
    return np.random.default_rng(1).normal(scale=scale, size=shape).astype("float32")


def three_wrappers(layer, seed=3):
    return PNIInput(PNIOutput(PNIWeight(layer, seed=seed), seed=seed), seed=seed)


@every_wrapper
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "bfloat16"])
def test_contract_of_a_keras_layer(wrapper, dtype):
    """What keras-hub's `run_layer_test` checks, with public API only."""
    layer = wrapper(kl.Conv2D(4, 3, dtype=dtype), granularity="channelwise", seed=1)
    images = values_of((2, 5, 5, 3))

    config = layer.get_config()
    json.dumps(config)  # It is plain enough for a `.keras` file.
    assert wrapper.from_config(layer.get_config()).get_config() == config
    revived = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert type(revived) is wrapper
    assert revived.get_config() == config

    revived.build((None, 5, 5, 3))
    assert len(revived.trainable_weights) == 3  # These are kernel, bias and alpha.
    assert len(revived.non_trainable_weights) == 0
    # This is the state of the generator.
    assert len(revived.non_trainable_variables) == 1
    assert all(w.dtype == "float32" for w in revived.alphas)

    symbolic = layer(keras.KerasTensor((None, 5, 5, 3)))
    eager = layer(images)
    assert symbolic.shape == (None, 3, 3, 4)
    assert eager.shape == (2, *symbolic.shape[1:])
    assert symbolic.dtype == eager.dtype.name == layer.layer.compute_dtype
    assert layer.compute_output_shape((None, 5, 5, 3)) == symbolic.shape

    model = keras.Sequential([keras.Input((5, 5, 3)), layer])
    model.compile("sgd", "mse")
    before = [w.numpy() for w in layer.trainable_weights]
    model.fit(images, np.ones((2, 3, 3, 4)), verbose=0)
    for old, new in zip(before, layer.trainable_weights, strict=True):
        assert np.any(old != new.numpy()), new.path


@pytest.mark.parametrize("file", ["model.keras", "model.weights.h5"])
def test_saved_model_goes_on_with_the_next_draw(tmp_path, file):
    def build(seed):
        layers = [kl.Conv2D(3, 2), kl.LSTM(2)]
        return keras.Sequential(
            [
                keras.Input((4, 4, 2)),
                three_wrappers(layers[0], seed),
                kl.Reshape((9, 3)),
                three_wrappers(layers[1], seed),
            ]
        )

    model, images = build(seed=3), values_of((2, 4, 4, 2))
    model.layers[0].alphas[0].assign(0.7)
    draws = [model(images).numpy() for _ in range(3)]
    path = str(tmp_path / file)
    if file.endswith(".keras"):
        model.save(path)
        loaded = keras.saving.load_model(path)
    else:
        model.save_weights(path)
        loaded = build(seed=4)
        loaded.load_weights(path)
    assert len(loaded.weights) == len(model.weights) == 12
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    following = loaded(images).numpy()
    np.testing.assert_array_equal(following, model(images))
    assert not any(np.array_equal(following, draw) for draw in draws)


@every_wrapper
def test_regularizer_sees_the_clean_kernel_and_never_alpha(wrapper, tmp_path):
    dense = kl.Dense(3, kernel_regularizer=keras.regularizers.L2(0.5))
    model = keras.Sequential([keras.Input((4,)), wrapper(dense, initial_alpha=9.0)])
    model.save(tmp_path / "model.keras")
    for each in (model, keras.saving.load_model(tmp_path / "model.keras")):
        each(np.ones((2, 4)))
        (loss,) = each.losses
        kernel = each.layers[0].layer.kernel
        np.testing.assert_allclose(loss, 0.5 * np.sum(kernel.numpy() ** 2), rtol=1e-5)
        (alpha,) = each.layers[0].alphas
        with tf.GradientTape() as tape:
            total = tf.add_n(each.losses)
        gradients = tape.gradient(total, [kernel.value, alpha.value])
        np.testing.assert_allclose(gradients[0], kernel, rtol=1e-5)
        assert gradients[1] is None


@every_wrapper
def test_activity_regularizer_counts_once(wrapper):
    dense = kl.Dense(3, activity_regularizer=keras.regularizers.L2(0.5))
    layer = wrapper(dense, initial_alpha=0.0)
    model = keras.Sequential([keras.Input((4,)), layer])
    images = values_of((2, 4))
    # It is the mean over the batch.
    expected = 0.5 * np.sum(dense(images).numpy() ** 2) / 2
    for _ in range(2):  # The second call replaces what the first has added.
        model(images)
        np.testing.assert_allclose(model.losses, [expected], rtol=1e-5)
    _, _, losses = model.stateless_call(
        model.trainable_variables,
        model.non_trainable_variables,
        images,
        return_losses=True,
    )
    np.testing.assert_allclose(losses, [expected], rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: kl.LSTM(3, dropout=0.5, recurrent_dropout=0.5, seed=1),
        lambda: keras.Sequential([kl.Dense(3), kl.BatchNormalization()]),
    ],
    ids=["dropout seeds", "batch statistics"],
)
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_state_that_the_layer_updates_is_written_back(make, mode):
    """Three training calls equal the stock layer's, which has the same state."""
    stock, layer = make(), PNIWeight(make(), initial_alpha=0.0)
    images = values_of((2, 4, 3))
    stock.build(images.shape)
    layer.build(images.shape)
    layer.layer.set_weights(stock.get_weights())
    run = tf.function if mode == "graph" else lambda function: function
    ours, theirs = (
        run(lambda x: layer(x, training=True)),
        run(lambda x: stock(x, training=True)),
    )
    outputs = [ours(images).numpy() for _ in range(3)]
    expected = [theirs(images).numpy() for _ in range(3)]
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    for mine, other in zip(layer.layer.variables, stock.variables, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
    moved = [layer(images, training=False), layer(images, training=True)]
    assert not np.allclose(*moved)


def test_stateless_call_uses_the_values_it_is_given():
    dense = kl.Dense(3, bias_initializer="ones")
    layer = PNIOutput(PNIWeight(dense, seed=1), seed=1)
    images = values_of((2, 4))
    layer(images)
    stored = [v.numpy() for v in layer.variables]
    values = {v.path: 2 * v.numpy() for v in layer.trainable_variables}
    for alpha in layer.alphas + layer.layer.alphas:
        values[alpha.path] = np.float32(0.0)
    kernel, bias = dense.kernel, dense.bias
    outputs, state = layer.stateless_call(
        [values[v.path] for v in layer.trainable_variables],
        layer.non_trainable_variables,
        images,
    )
    np.testing.assert_allclose(
        outputs, images @ values[kernel.path] + values[bias.path], rtol=1e-5
    )
    for variable, before in zip(layer.variables, stored, strict=True):
        np.testing.assert_array_equal(variable, before)
    for new, old in zip(state, layer.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(new, np.add(old, [0, 1]))
    # The generator's state is one of those values too.
    noisy = [
        layer.stateless_call(layer.trainable_variables, seeds, images)[0]
        for seeds in (state, state, layer.non_trainable_variables)
    ]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert not np.any(np.equal(noisy[0], noisy[2]))


@every_wrapper
@pytest.mark.parametrize("call", ["eager", "functional"])
def test_masks_pass_through(wrapper, call):
    """Padding changes nothing: the mask reaches the LSTM and the pooling after it."""
    layers = [
        kl.Embedding(9, 4, mask_zero=True),
        wrapper(kl.LSTM(3, return_sequences=True), initial_alpha=0.0),
        kl.GlobalAveragePooling1D(),
    ]

    def run(tokens):
        for layer in layers:
            tokens = layer(tokens)
        return tokens

    if call == "functional":
        tokens = keras.Input((None,), dtype="int32")
        run = keras.Model(tokens, run(tokens))
    words = np.array([[3, 1, 4], [1, 5, 8]])
    around = ((0, 0), (2, 4))
    np.testing.assert_allclose(run(np.pad(words, around)), run(words), rtol=1e-5)
    assert not np.allclose(run(np.pad(words, around, "edge")), run(words))


@pytest.fixture(params=["layer", "global", "model"])
def call_mixed(request):
    """Calls a layer whose float16 policy is its own, the global one or a model's.

    The generator starts anew for the call, because building a model draws as well.
    """
    policy = "float32" if request.param == "layer" else "mixed_float16"
    keras.mixed_precision.set_dtype_policy(policy)

    def call(make, images):
        layer = make()
        function = layer
        if request.param == "model":
            inputs = keras.Input(images.shape[1:])
            function = keras.Model(inputs, layer(inputs))
        layer.seed_generator.state.assign([1, 0])
        outputs = function(images)
        assert outputs.dtype == tf.float16
        return np.float32(outputs)

    yield call
    keras.mixed_precision.set_dtype_policy("float32")


def draw(shape):
    return tf.random.stateless_normal(shape, tf.constant([1, 0], "int64")).numpy()


def test_sigma_of_a_kernel_is_float32_under_mixed_precision(call_mixed):
    # In float16 the squares of this kernel underflow, and sigma would be 0.
    kernel = values_of((64, 64), scale=1e-5)

    def make():
        dense = kl.Dense(64, dtype="mixed_float16", use_bias=False)
        dense.build((None, 64))
        dense.kernel.assign(kernel)
        return PNIWeight(dense, initial_alpha=1.0, seed=1)

    outputs = call_mixed(make, 1000 * np.eye(64, dtype="float32"))
    expected = kernel + kernel.std(ddof=1) * draw((64, 64))
    # The least step of a float16 kernel is 6e-8: the noise is 200 times as large.
    np.testing.assert_allclose(outputs / 1000, expected, atol=1e-7)


@pytest.mark.parametrize("wrapper", [PNIOutput, PNIInput])
def test_sigma_of_activations_is_float32_under_mixed_precision(wrapper, call_mixed):
    # In float16 the squares of these activations overflow.
    images = values_of((32, 8), scale=1000.0)
    identity = kl.Activation("linear", dtype="mixed_float16")
    outputs = call_mixed(lambda: wrapper(identity, seed=1), images)
    expected = images + 0.25 * images.std(ddof=1) * draw(images.shape)
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=2)


def test_replicas_share_weight_noise_and_not_activation_noise(mirrored_strategy):
    images = tf.constant(values_of((2, 4)))
    with mirrored_strategy.scope():
        layers = [w(kl.Dense(3), initial_alpha=1.0, seed=1) for w in WRAPPERS]
        for layer in layers:
            layer(images)

    @tf.function
    def step():
        return mirrored_strategy.run(lambda: [layer(images) for layer in layers])

    states = [layer.seed_generator.state.numpy() for layer in layers]
    runs = [
        [
            [o.numpy() for o in mirrored_strategy.experimental_local_results(out)]
            for out in step()
        ]
        for _ in range(2)
    ]
    for layer, state, (first, second), following in zip(
        layers, states, *runs, strict=True
    ):
        shared = isinstance(layer, PNIWeight)
        assert np.array_equal(first, second) == shared
        assert shared or not np.any(first == second)
        assert not any(np.any(first == other) for other in following)
        np.testing.assert_array_equal(layer.seed_generator.state, np.add(state, [0, 2]))
        if shared:  # It is also the noise of one device.
            layer.seed_generator.state.assign(state)
            np.testing.assert_allclose(layer(images), first, rtol=1e-5)
