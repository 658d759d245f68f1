"""Keras wrappers that add noise to a layer; they nest in any order.

`PNIOutput(PNIWeight(conv))` is the paper's PNI-W+A-a on one convolution. The noise is
on in training and inference alike; `strip_noise` gives the twin without it.
"""

import os

import keras
import tensorflow as tf

from pni_tf.checks import check_choice, check_number
from pni_tf.noise import formula


class NoiseWrapper(keras.layers.Wrapper):
    """What all wrappers that add noise share. Use one of them, not this class.

    Args:
        layer: The layer to wrap.
        seed: Integer seed of the noise, or None for a random one.
        **kwargs: Arguments of `keras.layers.Layer`. A `dtype` changes nothing: the
            noise is computed in float32, and `layer` keeps its own.

    Attributes:
        alphas: The trained coefficients, if it has any.
        position: What gets the noise: `"kernel"`, or the `"input"` or `"output"` of
            the layer.
    """

    position = "kernel"

    def __init__(self, layer, seed=None, **kwargs):
        # Under mixed precision a policy of its own would give the noise float16 values,
        # even without autocast.
        super().__init__(layer, autocast=False, **{**kwargs, "dtype": "float32"})
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = layer.supports_masking
        self.alphas = []

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def compute_output_spec(self, inputs):
        return self.layer.compute_output_spec(inputs)  # The layer has its own dtype.

    def compute_mask(self, inputs, previous_mask=None):
        return self.layer.compute_mask(inputs, previous_mask)

    # Keras saves no generator state, so a resumed run would replay its first draws.
    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["seed_generator_state"] = self.seed_generator.state.numpy()

    def load_own_variables(self, store):
        own = {key: store[key] for key in list(store.keys())}  # No `items` in a store.
        if "seed_generator_state" in own:
            self.seed_generator.state.assign(own.pop("seed_generator_state"))
        super().load_own_variables(own)

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


class ParametricNoiseWrapper(NoiseWrapper):
    """What the three PNI wrappers share. Use one of them, not this class.

    Args:
        layer: The layer to wrap.
        granularity: `"layerwise"`, `"channelwise"` or `"elementwise"`: how many
            coefficients alpha there are (see `formula.alpha_shape`).
        initial_alpha: Initial value of alpha; the paper's is 0.25.
        seed, **kwargs: See `NoiseWrapper`.
    """

    def __init__(
        self, layer, granularity="layerwise", initial_alpha=0.25, seed=None, **kwargs
    ):
        super().__init__(layer, seed=seed, **kwargs)
        check_choice("granularity", granularity, formula.GRANULARITIES)
        self.granularity = granularity
        self.initial_alpha = initial_alpha

    def _add_alpha(self, name, shape, channel_axes=(-1,)):
        shape = formula.alpha_shape(shape, self.granularity, channel_axes)
        start = keras.initializers.Constant(self.initial_alpha)
        self.alphas.append(self.add_weight(shape, start, "float32", name=name))

    def get_config(self):
        own = {"granularity": self.granularity, "initial_alpha": self.initial_alpha}
        return {**super().get_config(), **own}


class ActivationNoise(NoiseWrapper):
    """Adds noise to the input or output of a layer. Use a subclass, not this class.

    Each element of the batch gets its own noise, and each replica of a distribution
    strategy its own draw.

    Args:
        layer: Any layer with one input and one output tensor.
        frozen: Whether to use the same draw at every call, shared by all examples,
            which makes the layer deterministic (see `freeze_noise`).
        seed: See `NoiseWrapper`; `frozen` needs one.
        **kwargs: See `NoiseWrapper`.
    """

    def __init__(self, layer, frozen=False, seed=None, **kwargs):
        super().__init__(layer, seed=seed, **kwargs)
        if frozen and seed is None:
            raise ValueError("`frozen=True` needs an integer `seed`. Received: None")
        self.frozen = frozen

    def call(self, inputs):
        if self.position == "output":
            return self.add_noise(self.layer(inputs))
        noisy = self.add_noise(inputs)
        # Keras carries the mask on the tensor that the noise replaces. A `mask`
        # argument would be recorded in the graph, where other layers refuse it.
        noisy._keras_mask = getattr(inputs, "_keras_mask", None)
        return self.layer(noisy)

    def add_noise(self, activations):
        """Returns a noisy copy of a batch of activations, in their dtype."""
        values = tf.cast(activations, "float32")
        shape = tf.shape(values)
        if self.frozen:
            # One draw for every example, so that it does not change with the batch.
            seed = tf.constant([self.seed, 0], "int64")
            shape = tf.concat([[1], shape[1:]], 0)
        else:
            seed = formula.fold_in_replica(self.seed_generator.next())
        return tf.cast(self._noisy(values, shape, seed), activations.dtype)

    def get_config(self):
        return {**super().get_config(), "frozen": self.frozen}


def kernels_of(layer):
    """Returns the weights of a layer whose name ends in `kernel`."""
    return [weight for weight in layer.weights if weight.name.endswith("kernel")]


@keras.saving.register_keras_serializable(package="pni_tf")
class PNIWeight(ParametricNoiseWrapper):
    """Adds parametric noise to the kernels of a layer (PNI-W).

    Every weight of the layer whose name ends in `kernel` gets coefficients of its own.
    At each call a noisy copy of the kernel takes its place; the stored kernel never
    changes. One draw is shared by the whole batch, and by all replicas of a
    distribution strategy. Biases and other weights stay free of noise.

    Args:
        layer: Any layer with a kernel: `Dense`, `EinsumDense`, convolutions of every
            kind, recurrent layers, or `Bidirectional` and `TimeDistributed` around one.
        granularity, initial_alpha, seed, **kwargs: See `ParametricNoiseWrapper`.

    Input and output shapes: those of `layer`.

    Raises:
        ValueError: If the layer has no kernel, is a stateful recurrent layer, or
            assigns its kernel when it is called.

    Example:

    >>> layer = PNIWeight(keras.layers.Conv2D(16, 3))
    >>> layer(np.zeros((1, 8, 8, 3))).shape
    TensorShape([1, 6, 6, 16])

    Reference: https://arxiv.org/abs/1811.09310, section 3.1.
    """

    @property
    def kernels(self):
        """The kernels that get noise, in the order of `alphas`."""
        # A property, because Keras would track and save a list attribute again.
        return kernels_of(self.layer)

    def build(self, input_shape):
        if getattr(self.layer, "stateful", False):
            raise ValueError(
                "`PNIWeight` cannot wrap a stateful recurrent layer, because Keras "
                f"does not track its state. Received: layer={self.layer.name!r}"
            )
        super().build(input_shape)
        if not self.kernels:
            raise ValueError(
                "`PNIWeight` needs a layer with a weight whose name ends in 'kernel'. "
                f"Received: layer={self.layer.name!r} "
                f"({type(self.layer).__name__}) with weights "
                f"{[w.name for w in self.layer.weights]}"
            )
        names = [kernel.name for kernel in self.kernels]
        if len(set(names)) < len(names):  # `Bidirectional` has each name twice.
            paths = [kernel.path for kernel in self.kernels]
            common = os.path.commonpath(map(os.path.dirname, paths))
            names = [
                path.removeprefix(common).strip("/").replace("/", "_") for path in paths
            ]
        for name, kernel in zip(names, self.kernels, strict=True):
            axes = formula.output_channel_axes(self.layer, kernel)
            self._add_alpha(f"{name}_alpha", kernel.shape, axes)

    def noisy_kernels(self):
        """Draws noise and returns a float32 noisy copy of each kernel."""
        return [
            formula.parametric_noise(
                tf.cast(kernel.value, "float32"),
                tf.convert_to_tensor(alpha.value),
                self.seed_generator.next(),
            )
            for kernel, alpha in zip(self.kernels, self.alphas, strict=True)
        ]

    def call(self, inputs):
        # Every variable is named, not only the kernels, because an inner scope hides
        # the values that an outer one (`stateless_call`) has set.
        noisy = dict(zip(map(id, self.kernels), self.noisy_kernels(), strict=True))
        mapping = [(v, noisy.get(id(v), v.value)) for v in self.layer.variables]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            before = [scope.get_current_value(v) for v in self.layer.variables]
            outputs = self.layer(inputs)
        # The scope only records updates (of dropout seeds, say) and losses.
        for variable, value in zip(self.layer.variables, before, strict=True):
            update = scope.get_current_value(variable)
            if update is value:
                continue
            if variable.name.endswith("kernel"):
                raise ValueError(
                    "`PNIWeight` cannot wrap a layer that assigns its kernel when it "
                    "is called, because the noise would be stored. "
                    f"Received: layer={self.layer.name!r} ({type(self.layer).__name__})"
                )
            variable.assign(update)
        for loss in scope.losses:
            # A tensor of its own: the same one would count for `layer` once more.
            self.add_loss(tf.identity(loss))
        return outputs


class _ParametricActivationNoise(ParametricNoiseWrapper, ActivationNoise):
    """Parametric noise on activations: common to `PNIOutput` and `PNIInput`."""

    def __init__(
        self,
        layer,
        granularity="layerwise",
        initial_alpha=0.25,
        sigma_over="batch",
        frozen=False,
        seed=None,
        **kwargs,
    ):
        super().__init__(
            layer, granularity, initial_alpha, seed, frozen=frozen, **kwargs
        )
        check_choice("sigma_over", sigma_over, formula.SIGMA_SCOPES)
        self.sigma_over = sigma_over

    def build(self, input_shape):
        super().build(input_shape)
        shape = input_shape
        if self.position == "output":
            shape = self.layer.compute_output_shape(input_shape)
        if not all(size is None or isinstance(size, int) for size in shape):
            raise ValueError(
                f"`{type(self).__name__}` needs one tensor to add noise to. Received: "
                f"shapes {shape} at layer {self.layer.name!r}"
            )
        shape = tuple(shape)[1:]
        if None in formula.alpha_shape(shape, self.granularity):
            raise ValueError(
                f"{self.granularity} noise needs a known size for every axis that "
                f"alpha covers. Received: shape {shape} at layer {self.layer.name!r}; "
                'give the model a fixed input shape, or use granularity="layerwise"'
            )
        self._add_alpha(f"{self.position}_alpha", shape)

    def _noisy(self, values, noise_shape, seed):
        alpha = tf.convert_to_tensor(self.alphas[0].value)
        return formula.parametric_noise(
            values, alpha, seed, sigma_over=self.sigma_over, noise_shape=noise_shape
        )

    def get_config(self):
        return {**super().get_config(), "sigma_over": self.sigma_over}


@keras.saving.register_keras_serializable(package="pni_tf")
class PNIOutput(_ParametricActivationNoise):
    """Adds parametric noise to the output of a layer (PNI-A-a, or PNI-I).

    Args:
        layer: See `ActivationNoise`. Around the network's normalisation layer this is
            the paper's PNI-I.
        granularity: See `ParametricNoiseWrapper`; `"channelwise"` is one alpha for each
            entry of the last axis, `"elementwise"` one for each activation of an
            example.
        initial_alpha: See `ParametricNoiseWrapper`.
        sigma_over: `"batch"` (the paper): sigma is the standard deviation over the
            whole batch, so one prediction depends on its neighbours. `"example"`: one
            standard deviation for each example.
        frozen, seed, **kwargs: See `ActivationNoise`.

    Input and output shapes: those of `layer`.

    Reference: https://arxiv.org/abs/1811.09310, section 4.2.1 and Table 2.
    """

    position = "output"


@keras.saving.register_keras_serializable(package="pni_tf")
class PNIInput(_ParametricActivationNoise):
    """Adds parametric noise to the input of a layer (PNI-A-b).

    The arguments are those of `PNIOutput`.
    """

    position = "input"


DISTRIBUTIONS = ("gaussian", "laplace")


@keras.saving.register_keras_serializable(package="pni_tf")
class FixedNoise(ActivationNoise):
    """Adds noise of a fixed scale to the input or output of a layer.

    Args:
        layer: See `ActivationNoise`.
        scale: Standard deviation of `"gaussian"` noise, or `b` of `"laplace"` noise,
            whose density is `exp(-|x| / b) / 2b`.
        position: `"input"` or `"output"` of the layer.
        distribution: `"gaussian"` or `"laplace"`.
        frozen, seed, **kwargs: See `ActivationNoise`.

    Input and output shapes: those of `layer`.

    Raises:
        ValueError: If an argument is unknown, or the scale is negative.
    """

    def __init__(
        self,
        layer,
        scale,
        position="input",
        distribution="gaussian",
        frozen=False,
        seed=None,
        **kwargs,
    ):
        super().__init__(layer, frozen, seed, **kwargs)
        check_number("scale", scale, minimum=0)
        check_choice("position", position, ("input", "output"))
        check_choice("distribution", distribution, DISTRIBUTIONS)
        self.scale = float(scale)
        self.position = position
        self.distribution = distribution

    def _noisy(self, values, noise_shape, seed):
        if self.distribution == "gaussian":
            return values + self.scale * tf.random.stateless_normal(noise_shape, seed)
        # The difference of two exponential variables; 1 - u is never zero.
        both = tf.concat([[2], noise_shape], 0)
        uniform = tf.random.stateless_uniform(both, seed)
        first, second = tf.unstack(-tf.math.log1p(-uniform))
        return values + self.scale * (first - second)

    def get_config(self):
        own = ("scale", "position", "distribution")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}
