"""From any Keras model to its noisy twin and back: `inject_pni`, `strip_noise`.

The models that these functions return are views: they share every variable with their
source, so training one trains the other. `freeze_noise` is the exception: it copies.
"""

import keras
import numpy as np

from pni_tf.checks import check_choice
from pni_tf.noise.graph import (
    PLAIN_CONVOLUTIONS,
    check_convertible,
    leaf_layers,
    noise_wrappers,
    rebuild,
    unwrapped,
    wrappers_of,
)
from pni_tf.noise.layers import (
    FixedNoise,
    NoiseWrapper,
    PNIInput,
    PNIOutput,
    PNIWeight,
    kernels_of,
)

LOCATIONS = ("w", "a-a", "a-b", "i", "w+a-a", "w+a-b", "none")
_CONVOLUTIONS = (
    *PLAIN_CONVOLUTIONS,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)


def inject_pni(
    model: keras.Model,
    location: str = "w",
    *,
    granularity: str = "layerwise",
    initial_alpha: float = 0.25,
    sigma_over: str = "batch",
    exclude: tuple[str, ...] = (),
    seed: int | None = None,
) -> keras.Model:
    """Returns a view of a model with parametric noise injected.

    Args:
        model: A built Functional or Sequential model, nested ones included.
        location: Where the noise goes (Table 2 of the paper). `"w"`: the kernels of
            every layer that has one. `"a-a"`: the outputs of those layers, bias
            included, before batch normalisation. `"a-b"`: their inputs. `"i"`: the
            output of the model's `Normalization` or `Rescaling` layer. `"w+a-a"` and
            `"w+a-b"`: both, with independent alphas. `"none"`: no noise.
        granularity: `"layerwise"`, `"channelwise"` or `"elementwise"`.
        initial_alpha: Initial value of every alpha.
        sigma_over: `"batch"` or `"example"`; see `PNIOutput`. Weight noise ignores it.
        exclude: Names of layers that stay as they are.
        seed: Integer seed from which each layer gets its own, or None.

    Returns:
        A model that shares all variables of `model` and adds the alphas.

    Raises:
        ValueError: If an argument is unknown, the model already has noise, is not
            built, or has a layer that cannot be wrapped; the message names it.
        TypeError: If `model` is neither Functional nor Sequential.

    Example:

    >>> noisy = inject_pni(keras.applications.MobileNetV2(weights=None), "w")

    Reference: https://arxiv.org/abs/1811.09310, section 3.1 and Table 2.
    """
    check_noise_free(model)
    check_choice("location", location, LOCATIONS)
    names = {layer.name for layer in leaf_layers(model)}
    if unknown := sorted(set(exclude) - names):
        raise ValueError(
            f"`exclude` names layers that {model.name!r} does not have: {unknown}. "
            f"Its layers are {sorted(names)}"
        )
    if location == "none":
        return rebuild(model, lambda layer: layer)

    parts = location.split("+")
    if location == "i":
        layers = [_normalisation(model)]
    else:
        layers = filter(kernels_of, leaf_layers(model))
    targets = {id(layer) for layer in layers if layer.name not in exclude}
    if not targets:
        raise ValueError(
            f"{model.name!r} has no layer with a kernel to inject noise into. "
            f"Received: location={location!r}, exclude={exclude!r}"
        )
    seeds, name = seeds_from(seed, len(parts) * len(targets)), None

    def wrap(layer):
        nonlocal name
        if id(layer) not in targets:
            return layer
        name = layer.name
        for part in parts:
            wrapper, suffix = {
                "w": (PNIWeight, "weight"),
                "a-b": (PNIInput, "input"),
            }.get(part, (PNIOutput, "output"))
            own = {"seed": next(seeds), "name": f"{name}_pni_{suffix}"}
            if part != "w":
                own["sigma_over"] = sigma_over
            layer = wrapper(layer, granularity, initial_alpha, **own)
        return layer

    try:
        return rebuild(model, wrap)
    except (TypeError, ValueError) as error:  # Raised where the wrapper is called.
        raise ValueError(
            f"Cannot wrap layer {name!r} of {model.name!r} for location={location!r}: "
            f"{error}. Wrapped layers take one tensor; leave this one out with "
            f"`exclude=({name!r},)`"
        ) from error


def inject_rse(
    model: keras.Model,
    *,
    first: float = 0.2,
    others: float = 0.1,
    seed: int | None = None,
) -> keras.Model:
    """Returns a view of a model with the noise of random self-ensemble (RSE).

    Train it without adversarial examples, and predict by the mean of the softmax over
    several draws: `load_target(model).ensemble(10)`.

    Args:
        model: A built Functional or Sequential model, nested ones included.
        first: Standard deviation of the noise on the input of the first convolution.
        others: Standard deviation on the inputs of the other convolutions.
        seed: Integer seed from which each layer gets its own, or None.

    Returns:
        A model that shares all variables of `model`.

    Raises:
        ValueError: If the model already has noise, is not built, or has no convolution.
        TypeError: If `model` is neither Functional nor Sequential.

    Reference: https://arxiv.org/abs/1712.00673.
    """
    check_noise_free(model)
    convolutions = convolutions_of(model)
    seeds = seeds_from(seed, len(convolutions))
    scales = {id(layer): others if i else first for i, layer in enumerate(convolutions)}

    def wrap(layer):
        if id(layer) not in scales:
            return layer
        name = f"{layer.name}_rse_noise"
        return FixedNoise(layer, scales[id(layer)], seed=next(seeds), name=name)

    return rebuild(model, wrap)


def check_noise_free(model: keras.Model) -> None:
    """Raises an error if a model cannot be rebuilt, or has noise already."""
    check_convertible(model)
    for layer in leaf_layers(model):
        if _contains_noise(layer):
            raise ValueError(
                f"{model.name!r} already has noise, at layer {layer.name!r}. Call "
                "`strip_noise` first"
            )


def convolutions_of(model: keras.Model) -> list[keras.Layer]:
    """Returns the convolutions of a model, of which there must be one."""
    found = [layer for layer in leaf_layers(model) if isinstance(layer, _CONVOLUTIONS)]
    if not found:
        raise ValueError(f"{model.name!r} has no convolution to add noise to")
    return found


def strip_noise(model: keras.Model) -> keras.Model:
    """Returns the noise-free view of a model: its stock layers and their variables.

    Args:
        model: A Functional or Sequential model, with or without noise.

    Returns:
        A model without noise that shares the variables of `model`.

    Raises:
        TypeError: If `model` is neither Functional nor Sequential.
        ValueError: If noise sits inside a layer that cannot be opened.
    """
    check_convertible(model)
    return rebuild(model, lambda layer: _without_hidden_noise(unwrapped(layer)))


def freeze_noise(model: keras.Model, seed: int) -> keras.Model:
    """Returns a deterministic copy of a model with one draw of its noise baked in.

    Weight noise is added to the copied kernels, which leaves stock layers. The noise of
    activations depends on the batch, so there the copy keeps a wrapper that repeats one
    draw of eta, the same for every example, scaled by alpha and the batch's sigma.

    Args:
        model: A Functional or Sequential model with noise.
        seed: Integer that selects the draw.

    Returns:
        A model that shares nothing with `model` and draws no noise.

    Raises:
        TypeError: If `model` is neither Functional nor Sequential.
        ValueError: If noise sits inside a layer that cannot be opened.
    """
    check_convertible(model)
    copy = keras.models.clone_model(model, recursive=True)
    copy.set_weights(model.get_weights())
    wrappers = noise_wrappers(copy)
    # Not the seeds of `inject_pni`, whose first draw this would repeat.
    fresh = seeds_from([seed, 1], len(wrappers))
    seeds = dict(zip(wrappers, fresh, strict=True))
    frozen_alphas = []

    def freeze(layer):
        if not isinstance(layer, NoiseWrapper):
            return _without_hidden_noise(layer)
        inner = freeze(layer.layer)
        if isinstance(layer, PNIWeight):
            layer.seed_generator.state.assign([seeds[layer], 0])
            for kernel, noisy in zip(layer.kernels, layer.noisy_kernels(), strict=True):
                kernel.assign(noisy)
            return inner
        config = {**layer.get_config(), "frozen": True, "seed": seeds[layer]}
        config.pop("layer")
        frozen = type(layer)(inner, **config)
        frozen_alphas.append((frozen, layer.alphas))
        return frozen

    result = rebuild(copy, freeze)
    for frozen, alphas_of_source in frozen_alphas:
        for target, source in zip(frozen.alphas, alphas_of_source, strict=True):
            target.assign(source)
    return result


def alphas(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns the noise coefficients of a model, in the order of its layers.

    Args:
        model: A Keras model.

    Returns:
        From the name of the layer (with the kernel's, where it has several, and
        `.output` or `.input` for the noise of activations) to a float32 array. A nested
        model's name comes first, as in `backbone/conv1`. The sign of alpha has no
        meaning: report its magnitude.
    """
    found = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            nested = alphas(layer).items()
            found.update({f"{layer.name}/{key}": alpha for key, alpha in nested})
        for wrapper in wrappers_of(layer):
            for alpha in wrapper.alphas:
                what = alpha.name.removesuffix("_alpha")
                name = unwrapped(layer).name
                found[name if what == "kernel" else f"{name}.{what}"] = alpha.numpy()
    return found


def _contains_noise(layer):
    # Keras has no public walk over the layers inside a layer.
    return any(isinstance(part, NoiseWrapper) for part in layer._flatten_layers())


def _without_hidden_noise(layer):
    """Returns a layer without noise around it, after a look at what is inside it."""
    if _contains_noise(layer):
        raise ValueError(
            f"Cannot reach the noise inside layer {layer.name!r} "
            f"({type(layer).__name__}). Put the noise wrapper outside it, as in "
            "`PNIWeight(TimeDistributed(layer))`"
        )
    return layer


def _normalisation(model):
    for layer in leaf_layers(model):
        if isinstance(layer, (keras.layers.Normalization, keras.layers.Rescaling)):
            return layer
    raise ValueError(
        'location="i" adds noise to the output of the normalisation layer, and '
        f"{model.name!r} has none. Put a `keras.layers.Normalization` or "
        "`keras.layers.Rescaling` layer right after its input"
    )


def seeds_from(seed, count):
    """Returns an iterator over integer seeds that follow from one, or from None."""
    # Keras wants Python integers, and 31 bits fit every integer dtype of a seed.
    state = np.random.SeedSequence(seed).generate_state(count)
    return iter([int(value >> 1) for value in state])
