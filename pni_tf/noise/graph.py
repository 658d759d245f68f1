"""Walks and rebuilds the graph of layers of a Keras model."""

import os
import zipfile

import keras
import tensorflow as tf

from pni_tf.files import cannot_load
from pni_tf.noise.layers import NoiseWrapper

# Convolutions with one kernel, in which they are linear.
PLAIN_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)


def noise_wrappers(model: keras.Model) -> list[NoiseWrapper]:
    """Returns the noise wrappers of a model, each once, in the order of its layers."""
    # Nested models may share a layer.
    found = [w for layer in leaf_layers(model) for w in wrappers_of(layer)]
    return list(dict.fromkeys(found))


def reseed_noise(model: keras.Model, seed: int | tf.Tensor) -> None:
    """Makes the following draws of the noise repeatable, by an integer."""
    start = tf.stack([tf.convert_to_tensor(seed, tf.int64), 0])
    for i, wrapper in enumerate(noise_wrappers(model)):
        state = tf.random.experimental.stateless_fold_in(start, i)
        wrapper.seed_generator.state.assign(state)


def call_layer(layer, *args, **kwargs):
    """Calls a layer of a graph that is rebuilt with what Keras recorded of its call."""
    # Keras records the mask that its input carries as an argument of the layer.
    # The input still carries it, and the wrappers have no such argument.
    if isinstance(layer, NoiseWrapper) and "mask" in kwargs:
        carried = [getattr(tensor, "_keras_mask", None) for tensor in args]
        if kwargs["mask"] is None or any(mask is not None for mask in carried):
            del kwargs["mask"]
    return layer(*args, **kwargs)


def is_convertible(model) -> bool:
    """Whether a layer is a Functional or Sequential model, whose graph is known."""
    return isinstance(model, keras.Sequential) or (
        isinstance(model, keras.Model) and hasattr(model, "operations")
    )


def is_transparent(model) -> bool:
    """Whether a model computes what its graph says, and the graph can be rebuilt."""
    if not is_convertible(model) or not model.built or not hasattr(model, "outputs"):
        return False
    owner = next(c for c in type(model).__mro__ if "call" in vars(c))
    return owner.__module__.startswith("keras.") and not any(
        getattr(layer, "optional", False)  # Keras drops such a layer.
        for layer in model.layers
    )


def rebuild(model, convert, call=None, opens=is_convertible):
    """Rebuilds the graph of a model with each layer replaced by `convert(layer)`.

    Args:
        model: A built Functional or Sequential model; nested ones are rebuilt too.
        convert: Called once for each layer.
        call: Called with each new layer and the arguments of its call, in place of
            `call_layer`. With it, the result is Functional throughout.
        opens: Whether to rebuild a nested model, or else to take it for a layer.
    """
    replaced = {}  # A layer may be shared, also between nested models.

    def replace(layer):
        if id(layer) not in replaced:
            if opens(layer):
                replaced[id(layer)] = rebuild_one(layer)
            elif isinstance(layer, keras.Layer):
                replaced[id(layer)] = convert(layer)
            else:  # This is a plain operation, such as `keras.ops.pad`.
                replaced[id(layer)] = layer
        return replaced[id(layer)]

    def rebuild_one(model):
        arguments = {"clone_function": replace}
        if isinstance(model, keras.Sequential) and call is not None:
            model = keras.Model(model.inputs, model.outputs[0], name=model.name)
        if not isinstance(model, keras.Sequential):
            arguments["call_function"] = call or call_layer
        # Keras would compile the copy, which fails for losses that it cannot serialise.
        compiled, model.compiled = model.compiled, False
        try:
            return keras.models.clone_model(model, **arguments)
        finally:
            model.compiled = compiled

    return rebuild_one(model)


def check_convertible(model) -> None:
    """Raises an error if a model has no graph that can be rebuilt."""
    if not is_convertible(model):
        raise TypeError(
            "Expected a Functional or Sequential Keras model: a subclassed model has "
            f"no graph of layers to rebuild. Received: {model!r}"
        )
    if not model.built:
        raise ValueError(
            f"{model.name!r} is not built, so its kernels are not known. Give it an "
            "input shape with `keras.Input`, or call it once"
        )


def leaf_layers(model):
    """Yields the layers of a model, those of nested models in their place."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            check_convertible(layer)
            yield from leaf_layers(layer)
        else:
            yield layer


def wrappers_of(layer) -> list[NoiseWrapper]:
    """Returns the noise wrappers around a layer, from the inside out."""
    found = []
    while isinstance(layer, NoiseWrapper):
        found.insert(0, layer)
        layer = layer.layer
    return found


def unwrapped(layer):
    """Returns the layer inside all noise wrappers around it."""
    while isinstance(layer, NoiseWrapper):
        layer = layer.layer
    return layer


def network_of(model):
    """Returns the network that a trainer holds; anything else as it is.

    A trainer has the attribute `holds_network`, so that nothing here imports it.
    """
    return model.model if getattr(model, "holds_network", False) else model


def load_model(path: str | os.PathLike) -> keras.Model:
    """Loads a `.keras` file, with any noise layers, in Keras' safe mode.

    Raises:
        ValueError: If it is not a `.keras` file, or a damaged one.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{str(path)!r} is not a `.keras` file, or it is damaged or incomplete: "
            "write it again, or use another copy"
        )
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises many kinds for a damaged file.
        raise cannot_load(path, error) from error
