"""The fused view against the model that it is a view of, on the same draws."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl
from tensorflow.python.eager import context

from pni_tf import (
    PGD,
    PNIAdversarialModel,
    PNIWeight,
    build_model,
    fuse_batch_norm,
    inject_pni,
    strip_noise,
)
from pni_tf.noise.fusion import FusedBatchNormalization
from pni_tf.noise.graph import noise_wrappers
from pni_tf.noise.injection import LOCATIONS

SHAPE = (8, 8, 3)
# Rounding of float32, in units of the largest entry, through a few layers.
TOLERANCE = 2e-5


def examples(count=6, shape=SHAPE):
    return tf.constant(np.random.default_rng(3).random((count, *shape)), "float32")


def randomised(model):
    """Gives every variable a value that no initialiser would."""
    rng = np.random.default_rng(7)
    for variable in model.variables:
        if "variance" in variable.path or "gamma" in variable.path:
            variable.assign(rng.uniform(0.5, 2.0, variable.shape))
        elif "seed" not in variable.path:
            variable.assign(variable + rng.normal(0, 0.1, variable.shape))
    return model


def smooth_network(location="w", seed=3, **options):
    """Pads, strides, a residual connection and biases, and no kink for rounding."""
    inputs = keras.Input(SHAPE)
    x = kl.Rescaling(2.0, -1.0)(inputs)
    x = kl.BatchNormalization()(kl.Conv2D(4, 3, padding="same", use_bias=False)(x))
    shortcut = x = kl.Activation("tanh")(x)
    x = kl.BatchNormalization(epsilon=1e-5)(kl.Conv2D(4, 3, padding="same")(x))
    x = kl.Activation("tanh")(x + shortcut)
    x = kl.Conv2D(6, 3, strides=2)(kl.ZeroPadding2D(1)(x))
    x = kl.Activation("tanh")(kl.BatchNormalization(scale=False)(x))
    outputs = kl.Dense(5)(kl.GlobalAveragePooling2D()(x))
    model = inject_pni(keras.Model(inputs, outputs), location, seed=seed, **options)
    return randomised(model)


def same_draws(model):
    for i, wrapper in enumerate(noise_wrappers(model)):
        wrapper.seed_generator.state.assign([i, 5])


def everything(network, model, images, training):
    """Outputs, all gradients and the state after one call; the state is put back."""
    same_draws(model)
    before = [v.numpy() for v in model.non_trainable_variables]
    sources = [images, *(v.value for v in model.trainable_variables)]
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = network(images, training=training)
        # Not the sum of squares, which normalisation determines.
        weights = np.random.default_rng(9).normal(size=outputs.shape)
        loss = tf.reduce_sum(tf.sin(outputs) * tf.cast(weights, outputs.dtype))
    gradients = tape.gradient(loss, sources)
    after = [v.numpy() for v in model.non_trainable_variables]
    for variable, value in zip(model.non_trainable_variables, before, strict=True):
        variable.assign(value)
    gradients = [g for g in gradients if g is not None]
    # Some are zero but for rounding: that of a bias before batch normalisation is.
    scale = max(np.abs(g).max() for g in gradients)
    return [np.array(a) for a in (outputs, *(g / scale for g in gradients), *after)]


def assert_same(model, images=None, training=False, tolerance=TOLERANCE):
    images = examples() if images is None else images
    fused = fuse_batch_norm(model)
    expected = everything(model, model, images, training)
    found = everything(fused, model, images, training)
    assert len(found) == len(expected)
    assert np.ptp(expected[0]) > 0.01  # Something comes out.
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * (1 + abs(b).max()))
    return fused


def fusions(model):
    """What was made of each batch normalisation: folded or not."""
    return [
        layer.layer is not None
        for layer in model._flatten_layers()
        if isinstance(layer, FusedBatchNormalization)
    ]


@pytest.mark.parametrize("location", LOCATIONS)
class TestLocations:
    @pytest.mark.parametrize("training", [False, True])
    def test_same_function(self, location, training):
        fused = assert_same(smooth_network(location), training=training)
        # Noise on the output of a convolution comes before batch normalisation.
        assert fusions(fused) == [location not in ("a-a", "w+a-a")] * 3

    def test_paper_network(self, location):
        network = build_model(
            "resnet8", input_shape=SHAPE, num_classes=10, mean=[0.5] * 3, std=[0.2] * 3
        )
        model = randomised(inject_pni(network, location, seed=1))
        # ReLU has kinks, where rounding may turn a gradient on or off.
        assert_same(model, training=True, tolerance=1e-3)


def test_granularities_and_sigma_over_examples():
    assert_same(smooth_network("w+a-b", granularity="channelwise"))
    assert_same(smooth_network("w", granularity="elementwise"))
    assert_same(smooth_network("w+a-b", sigma_over="example"))


FOLDABLE = {
    "conv": (SHAPE, kl.Conv2D(4, 3)),
    "conv_bias_off": (SHAPE, kl.Conv2D(4, 3, use_bias=False)),
    "grouped": ((8, 8, 4), kl.Conv2D(6, 3, groups=2)),
    "dilated": (SHAPE, kl.Conv2D(4, 3, dilation_rate=2)),
    "depthwise": (SHAPE, kl.DepthwiseConv2D(3, depth_multiplier=2)),
    "depthwise_1d": ((9, 3), kl.DepthwiseConv1D(3, depth_multiplier=2)),
    "transposed": (SHAPE, kl.Conv2DTranspose(5, 3, strides=2)),
    "transposed_1d": ((9, 3), kl.Conv1DTranspose(5, 3)),
    "transposed_3d": ((4, 4, 4, 2), kl.Conv3DTranspose(3, 2)),
    "causal": ((9, 3), kl.Conv1D(4, 3, padding="causal")),
    "conv_3d": ((4, 4, 4, 2), kl.Conv3D(3, 2)),
    "dense": ((7,), kl.Dense(4)),
    "dense_bias_off": ((5, 7), kl.Dense(4, use_bias=False)),
}


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("kind", FOLDABLE)
def test_foldable_layers(kind, noisy):
    shape, template = FOLDABLE[kind]
    inputs = keras.Input(shape)
    x = type(template).from_config(template.get_config())(inputs)
    model = keras.Model(inputs, kl.BatchNormalization()(x))
    if noisy:
        model = inject_pni(model, "w+a-b", seed=2)
    for training in (False, True):
        fused = assert_same(randomised(model), examples(shape=shape), training=training)
        assert fusions(fused) == [True]


class Doubled(kl.Conv2D):
    """A convolution that is not what its class says."""

    def call(self, inputs):
        return 2 * super().call(inputs)


def two_uses(inputs):
    x = kl.Conv2D(4, 3)(inputs)
    return kl.BatchNormalization()(x) + x


def lora(inputs):
    layer = kl.Conv2D(4, 3)
    x = layer(inputs)
    layer.enable_lora(2)
    return kl.BatchNormalization()(x)


UNFOLDABLE = {
    "activation": lambda x: kl.BatchNormalization()(
        kl.Conv2D(4, 3, activation="relu")(x)
    ),
    "regularised": lambda x: kl.BatchNormalization()(
        kl.Conv2D(4, 3, activity_regularizer="l2")(x)
    ),
    "subclass": lambda x: kl.BatchNormalization()(Doubled(4, 3)(x)),
    "separable": lambda x: kl.BatchNormalization()(kl.SeparableConv2D(4, 3)(x)),
    "in_between": lambda x: kl.BatchNormalization()(kl.ReLU()(kl.Conv2D(4, 3)(x))),
    "first": lambda x: kl.Conv2D(4, 3)(kl.BatchNormalization()(x)),
    "two_uses": two_uses,
    "lora": lora,
}


@pytest.mark.parametrize("kind", UNFOLDABLE)
def test_what_cannot_be_folded(kind):
    inputs = keras.Input(SHAPE)
    model = randomised(keras.Model(inputs, UNFOLDABLE[kind](inputs)))
    for training in (False, True):
        fused = assert_same(model, training=training, tolerance=1e-4)
        assert fusions(fused) == [False]


def test_output_that_is_also_an_output_of_the_model():
    inputs = keras.Input(SHAPE)
    x = kl.Conv2D(4, 3)(inputs)
    model = keras.Model(inputs, [x, kl.BatchNormalization()(x)])
    model = inject_pni(randomised(model), seed=1)
    fused = fuse_batch_norm(model)
    assert fusions(fused) == [False]
    same_draws(model)
    expected = model(examples())
    same_draws(model)
    for a, b in zip(fused(examples()), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_other_axis_stays_as_it_is():
    inputs = keras.Input(SHAPE)
    x = kl.BatchNormalization(axis=1)(kl.Conv2D(4, 3)(inputs))
    model = randomised(keras.Model(inputs, x))
    assert fusions(assert_same(model, training=True)) == []


def test_mask_that_comes_at_run_time():
    """A nested model was built without the mask that its caller has."""
    inputs = keras.Input((6, 3))
    x = kl.BatchNormalization()(kl.Dense(4, use_bias=False)(inputs))
    inner = keras.Model(inputs, kl.GlobalAveragePooling1D()(x))
    inputs = keras.Input((6, 3))
    model = keras.Model(inputs, inner(kl.Masking()(inputs)))
    images = tf.concat([tf.zeros([6, 2, 3]), examples(shape=(4, 3))], 1)
    for training in (False, True):
        assert_same(randomised(model), images, training=training)


def test_mask_stays_as_it_is():
    inputs = keras.Input((6, 3))
    x = kl.Dense(4)(kl.Masking()(inputs))
    model = randomised(keras.Model(inputs, kl.BatchNormalization()(x)))
    images = tf.concat([tf.zeros([6, 2, 3]), examples(shape=(4, 3))], 1)
    assert fusions(assert_same(model, images, training=True)) == []


def test_shared_convolution_is_folded_at_each_call():
    inputs = keras.Input(SHAPE)
    conv = kl.Conv2D(3, 3, padding="same")
    x = kl.BatchNormalization()(conv(inputs))
    model = keras.Model(inputs, kl.BatchNormalization()(conv(x)))
    model = randomised(inject_pni(model, seed=1))
    for training in (False, True):
        assert fusions(assert_same(model, training=training)) == [True, True]


def test_nested_and_sequential_models():
    block = keras.Sequential(
        [keras.Input(SHAPE), kl.Conv2D(3, 3, padding="same"), kl.BatchNormalization()]
    )
    inputs = keras.Input(SHAPE)
    inner = keras.Model(inputs, kl.Activation("tanh")(block(inputs)))
    model = keras.Sequential([keras.Input(SHAPE), inner, kl.Conv2D(2, 3)])
    model.add(kl.BatchNormalization())
    model = randomised(inject_pni(model, seed=1))
    for training in (False, True):
        assert fusions(assert_same(model, training=training)) == [True, True]


def test_frozen_batch_norm_stays_in_inference_mode():
    inputs = keras.Input(SHAPE)
    norm = kl.BatchNormalization()
    model = keras.Model(inputs, norm(kl.Conv2D(4, 3)(inputs)))
    model = randomised(inject_pni(model, seed=1))
    norm.trainable = False
    fused = assert_same(model, training=True)
    before = norm.moving_mean.numpy()
    fused(examples(), training=True)
    np.testing.assert_array_equal(norm.moving_mean, before)


def test_recorded_arguments_are_kept():
    """Keras follows `training` of the call if there is one, else the recorded one."""
    inputs = keras.Input(SHAPE)
    x = kl.BatchNormalization()(kl.Conv2D(4, 3)(inputs), training=True)
    model = randomised(keras.Model(inputs, x))
    for training in (None, False, True):
        assert_same(model, training=training)
    outputs = fuse_batch_norm(model)(examples())
    beta = model.layers[-1].beta
    np.testing.assert_allclose(np.mean(outputs, (0, 1, 2)), beta, atol=1e-5)


def test_mobile_net():
    """Depthwise convolutions and ReLU6, whose kinks need some tolerance."""
    model = keras.applications.MobileNetV2((32, 32, 3), weights=None, classes=10)
    model = randomised(inject_pni(model, seed=1))
    images = examples(2, (32, 32, 3))
    fused = fuse_batch_norm(model)
    assert all(fusions(fused)) and len(fusions(fused)) > 50
    same_draws(model)
    expected = model(images)
    same_draws(model)
    np.testing.assert_allclose(fused(images), expected, atol=1e-4)


def test_moving_statistics_in_closed_form():
    inputs = keras.Input(SHAPE)
    norm = kl.BatchNormalization(momentum=0.75)
    images = examples(2)
    fuse_batch_norm(keras.Model(inputs, norm(inputs)))(images, training=True)
    mean, variance = np.mean(images, (0, 1, 2)), np.var(images, (0, 1, 2))
    np.testing.assert_allclose(norm.moving_mean, 0.25 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, 0.75 + 0.25 * variance, rtol=1e-5)


def test_batch_with_one_value_a_channel():
    model = randomised(
        keras.Sequential([keras.Input((1, 1, 3)), kl.BatchNormalization()])
    )
    assert_same(model, examples(1, (1, 1, 3)), training=True)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("training", [False, True])
def test_mixed_precision(policy, training):
    """bfloat16 has 8 bits: rounding in another order moves the last of them."""
    keras.config.set_dtype_policy(policy)
    try:
        model = smooth_network("w+a-b")
    finally:
        keras.config.set_dtype_policy("float32")
    fused = fuse_batch_norm(model)
    same_draws(model)
    expected = model(examples(), training=training)
    same_draws(model)
    found = fused(examples(), training=training)
    assert found.dtype == expected.dtype
    spread = np.ptp(tf.cast(expected, "float32"))
    difference = tf.cast(found, "float32") - tf.cast(expected, "float32")
    assert np.abs(difference).max() < 0.05 * spread


def test_is_a_view_with_fresh_noise():
    model = smooth_network()
    fused = fuse_batch_norm(model)
    assert {id(v) for v in fused.variables} == {id(v) for v in model.variables}
    assert np.ptp(fused(examples()) - fused(examples())) > 1e-3
    alphas = [v for v in model.variables if "alpha" in v.path]
    for alpha in alphas:
        alpha.assign(tf.zeros_like(alpha))
    np.testing.assert_array_equal(fused(examples()), fused(examples()))


class Tripled(keras.Model):
    """Functional, with a call that its graph does not know of."""

    def call(self, inputs, training=None, mask=None):
        return 3 * super().call(inputs, training=training, mask=mask)


class Opaque(kl.Layer):
    """A layer that Keras cannot trace, so that a Sequential model has no graph."""

    def compute_output_spec(self, inputs):
        raise NotImplementedError

    def call(self, inputs):
        return inputs


def conv_and_norm():
    return [kl.Conv2D(4, 3), kl.BatchNormalization()]


def test_models_that_are_returned_as_they_are():
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    inputs = keras.Input(SHAPE)
    maybe = keras.Input(SHAPE, optional=True)
    opaque = keras.Sequential([*conv_and_norm(), Opaque()])
    opaque(examples())
    for model in (
        Subclassed(),
        keras.Sequential(conv_and_norm()),  # It is not built.
        keras.Sequential([keras.Input(SHAPE), kl.Conv2D(3, 3)]),
        Tripled(inputs, kl.BatchNormalization()(inputs)),
        keras.Model([inputs, maybe], kl.BatchNormalization()(inputs)),
        opaque,
    ):
        assert fuse_batch_norm(model) is model


def test_nested_model_with_a_call_of_its_own():
    inputs = keras.Input(SHAPE)
    x = kl.BatchNormalization()(kl.Conv2D(3, 3, padding="same")(inputs))
    inner = Tripled(inputs, x)
    inputs = keras.Input(SHAPE)
    x = kl.BatchNormalization()(kl.Conv2D(3, 3)(inner(inputs)))
    model = randomised(keras.Model(inputs, x))
    assert fusions(assert_same(model)) == [True]


class LouderNoise(PNIWeight):
    """A wrapper that is not what its class says."""

    def call(self, inputs):
        return 2 * super().call(inputs)


def test_subclass_of_a_wrapper():
    inputs = keras.Input(SHAPE)
    x = LouderNoise(kl.Conv2D(4, 3), seed=1)(inputs)
    model = randomised(keras.Model(inputs, kl.BatchNormalization()(x)))
    assert fusions(assert_same(model)) == [False]


def test_layers_that_change_after_the_view_was_made():
    inputs = keras.Input(SHAPE)
    conv, norm = conv_and_norm()
    model = randomised(keras.Model(inputs, norm(conv(inputs))))
    fused = assert_same(model)
    conv.enable_lora(2)
    conv.lora_kernel_b.assign(tf.ones_like(conv.lora_kernel_b))
    np.testing.assert_allclose(fused(examples()), model(examples()), atol=1e-5)
    conv.activation = keras.activations.tanh
    np.testing.assert_allclose(fused(examples()), model(examples()), atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_regularised_normalisation_keeps_its_loss(training):
    inputs = keras.Input(SHAPE)
    norm = kl.BatchNormalization(activity_regularizer="l2", beta_regularizer="l2")
    model = randomised(keras.Model(inputs, norm(kl.Conv2D(4, 3)(inputs))))
    fused = fuse_batch_norm(model)
    model(examples(), training=training)
    expected = [float(loss) for loss in model.losses]
    fused(examples(), training=training)
    assert [float(loss) for loss in model.losses] == pytest.approx(expected, rel=1e-5)
    assert len(expected) == 2


DTYPES = [  # Of the convolution and of batch normalisation.
    ("float32", "float64"),
    ("float32", "bfloat16"),
    ("mixed_float16", "float32"),
    ("float32", "mixed_float16"),
    ("mixed_bfloat16", "float32"),
    ("float16", "float16"),
    ("float64", "float64"),
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("conv_dtype,norm_dtype", DTYPES)
def test_mixed_dtypes(conv_dtype, norm_dtype, training):
    inputs = keras.Input(SHAPE)
    x = kl.Conv2D(4, 3, dtype=conv_dtype)(inputs)
    model = keras.Model(inputs, kl.BatchNormalization(dtype=norm_dtype)(x))
    fused = fuse_batch_norm(model)
    expected = model(examples(), training=training)
    found = fused(examples(), training=training)
    assert found.dtype == expected.dtype
    atol = 0.03 if "16" in conv_dtype + norm_dtype else 1e-5
    np.testing.assert_allclose(
        tf.cast(found, "float64"), tf.cast(expected, "float64"), atol=atol
    )


def test_compiled_model_with_a_loss_that_keras_cannot_copy():
    model = smooth_network()
    model.compile(loss=lambda labels, logits: tf.reduce_mean(logits))
    fused = assert_same(model)
    assert model.compiled and not fused.compiled
    assert not strip_noise(model).compiled


def test_structured_inputs_and_outputs():
    inputs = {"a": keras.Input(SHAPE), "b": keras.Input(SHAPE)}
    x = kl.Conv2D(3, 3)(inputs["a"] - inputs["b"])
    model = keras.Model(inputs, {"logits": kl.BatchNormalization()(x)})
    images = {"a": examples(), "b": examples()[::-1]}
    fused = fuse_batch_norm(randomised(model))
    assert fusions(fused) == [True]
    np.testing.assert_allclose(
        fused(images)["logits"], model(images)["logits"], atol=1e-5
    )


def test_under_a_functional_call_of_keras():
    """`stateless_call` sets the values of variables; folding must take those."""
    model = smooth_network("none")
    fused = fuse_batch_norm(model)
    trainable = [v.value * 1.5 for v in fused.trainable_variables]
    fixed = [v.value for v in fused.non_trainable_variables]
    outputs, _ = fused.stateless_call(trainable, fixed, examples(), training=False)
    assert np.abs(outputs - fused(examples())).max() > 1e-3
    for variable, value in zip(fused.trainable_variables, trainable, strict=True):
        variable.assign(value)
    np.testing.assert_allclose(outputs, model(examples()), atol=1e-5)


def test_compiled_by_xla():
    fused = fuse_batch_norm(smooth_network("none"))
    compiled = tf.function(fused, jit_compile=True, autograph=False)
    np.testing.assert_allclose(compiled(examples()), fused(examples()), atol=1e-5)


@pytest.mark.parametrize("synchronized", [False, True])
def test_two_replicas_do_what_keras_does(mirrored_strategy, synchronized):
    """Each normalises by its own part of the batch, or all by the whole of it."""
    parts = [examples()[:2], 2 * examples()[2:]]
    found = []
    for fuse in (fuse_batch_norm, lambda model: model):
        with mirrored_strategy.scope():
            norm = kl.BatchNormalization(synchronized=synchronized)
            inputs = keras.Input(SHAPE)
            network = fuse(keras.Model(inputs, norm(inputs)))
        values = iter(parts)
        split = mirrored_strategy.experimental_distribute_values_from_function(
            lambda _, values=values: next(values)
        )
        step = tf.function(
            lambda images, network=network: network(images, training=True),
            autograph=False,
        )
        outputs = mirrored_strategy.run(step, (split,))
        outputs = mirrored_strategy.experimental_local_results(outputs)
        found.append([*outputs, norm.moving_mean, norm.moving_variance])
    whole = [np.concatenate(found[0][:2])] if synchronized else found[0][:2]
    for images in whole:
        np.testing.assert_allclose(np.mean(images, (0, 1, 2)), np.zeros(3), atol=1e-5)
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_training_step_computes_the_same(monkeypatch):
    """Weights, moving statistics and metrics after two compiled steps."""
    results = []
    for fuse in (fuse_batch_norm, lambda model: model):
        monkeypatch.setattr("pni_tf.training.trainer.fuse_batch_norm", fuse)
        keras.utils.set_random_seed(1)
        model = smooth_network("w+a-b")  # `TestLocations` has them all.
        same_draws(model)
        trainer = PNIAdversarialModel(
            # Steps along the sign would turn rounding into differences.
            model,
            attack=PGD(epsilon=0.5, step_size=0.2, steps=3, norm="l2"),
            seed=4,
        )
        trainer.compile(keras.optimizers.SGD(0.1, momentum=0.9))
        labels = tf.constant([0, 1, 2, 3, 4, 0])
        step = tf.function(trainer.train_step, autograph=False)
        logs = [step((examples(), labels)) for _ in range(2)][-1]
        variables = {v.path: v.numpy() for v in model.variables}
        results.append((variables, {name: float(v) for name, v in logs.items()}))
    (fused, fused_logs), (plain, plain_logs) = results
    assert fused_logs == pytest.approx(plain_logs, rel=1e-4)
    for a, b in zip(fused.values(), plain.values(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_attack_computes_no_gradient_of_weights():
    """In the graph that runs: a traced gradient has them until the optimiser came."""
    fused = fuse_batch_norm(smooth_network())
    labels = tf.zeros([6], tf.int64)

    @tf.function(autograph=False)
    def attack(images):
        return PGD(steps=2).perturb(
            lambda x: fused(x, training=False), images, labels, seed=tf.constant([1, 2])
        )

    context.enable_graph_collection()
    attack(examples())
    graphs = context.export_run_metadata().function_graphs
    context.disable_graph_collection()
    kinds = {n.op for g in graphs for n in g.post_optimization_graph.node}
    assert any("Conv2DBackpropInput" in kind for kind in kinds)
    assert not any("Conv2DBackpropFilter" in kind for kind in kinds)
    assert not any("FusedBatchNorm" in kind for kind in kinds)
