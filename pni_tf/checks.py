"""What is refused, and how it is said: numbers, choices, images, labels, models."""

import math
import numbers

import keras
import numpy as np


def validate_images(
    images: np.ndarray, *, image_shape: tuple[int | None, ...] | None = None
) -> np.ndarray:
    """Returns images in [0, 1] as float32 `[N, height, width, channels]`.

    The last three are `image_shape`, where `None` is any size.

    Raises:
        ValueError: If they are not floats, not of this rank or shape, empty, not
            finite, or outside [0, 1].
    """
    images = _array("images", images)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            "`images` must be floats in [0, 1]. "
            f"Received: images.dtype={images.dtype}. "
            "Convert values in 0..255 by images.astype('float32') / 255"
        )
    expected = image_shape or (None, None, None)
    if images.ndim != 4 or any(
        size not in (None, found)
        for size, found in zip(expected, images.shape[1:], strict=True)
    ):
        sizes = zip(expected, ("height", "width", "channels"), strict=True)
        wanted = ", ".join(str(size or word) for size, word in sizes)
        raise ValueError(
            f"`images` must have the shape [N, {wanted}]. "
            f"Received: images.shape={images.shape}"
        )
    if not images.size:
        raise ValueError(
            "`images` must hold at least one image. "
            f"Received: images.shape={images.shape}"
        )
    low, high = images.min(), images.max()  # Either is NaN if any value is.
    if not np.isfinite([low, high]).all():
        bad = np.count_nonzero(~np.isfinite(images))
        raise ValueError(
            f"`images` must be finite. Received: {bad} values that are NaN or infinite"
        )
    if low < 0 or high > 1:
        looks_like_bytes = low >= 0 and 2 < high <= 255
        raise ValueError(
            f"`images` must be in [0, 1]. Received: values from {low} to {high}. "
            + ("Divide them by 255" if looks_like_bytes else "Rescale or clip them")
        )
    return images.astype(np.float32, copy=False)


def validate_labels(
    labels: np.ndarray,
    num_classes: int | None,
    *,
    num_examples: int | None = None,
    name: str = "labels",
) -> np.ndarray:
    """Returns labels, one class index an example, as int64 `[N]`.

    `num_classes` is None if it is not known; errors call the labels `name`.

    Raises:
        ValueError: If they are not integers, not of rank 1, not `num_examples` of them,
            or not in 0..`num_classes` - 1.
    """
    labels = _array(name, labels)
    if labels.ndim != 1:
        raise ValueError(
            f"`{name}` must be class indices of shape [N]. "
            f"Received: {name}.shape={labels.shape}. "
            f"Convert one-hot rows by {name}.argmax(-1), a column by {name}[:, 0]"
        )
    if num_examples is not None and len(labels) != num_examples:
        raise ValueError(
            f"`{name}` must have one entry for each of the {num_examples} images. "
            f"Received: len({name})={len(labels)}"
        )
    if labels.dtype.kind not in "iu":  # NumPy calls durations integers too.
        raise ValueError(
            f"`{name}` must be integers. "
            f"Received: {name}.dtype={labels.dtype}. Convert by {name}.astype('int64')"
        )
    most = np.iinfo(np.int32).max if num_classes is None else num_classes - 1
    if labels.size and not 0 <= labels.min() <= labels.max() <= most:
        raise ValueError(
            f"`{name}` must be in 0..{most if num_classes else 'K - 1'}. "
            f"Received: values from {labels.min()} to {labels.max()}"
        )
    return labels.astype(np.int64, copy=False)


def _array(name, values):
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"`{name}` is not an array. Received: {error}") from error


def check_number(
    name: str,
    value: float,
    *,
    minimum: float = -math.inf,
    above: float = -math.inf,
    maximum: float = math.inf,
    below: float = math.inf,
    integer: bool = False,
) -> None:
    """Raises a ValueError unless `value` is a finite number within its bounds."""
    kind = numbers.Integral if integer else numbers.Real  # NumPy's scalars are, too.
    if (
        not isinstance(value, kind)
        or isinstance(value, bool)
        or not (minimum <= value <= maximum and above < value < below)
    ):
        words = ("of at least", "above", "at most", "below")
        limits = zip(words, (minimum, above, maximum, below), strict=True)
        known = [f"{word} {limit}" for word, limit in limits if math.isfinite(limit)]
        noun = "an integer" if integer else "a finite number"
        raise ValueError(
            f"`{name}` must be {noun} {' and '.join(known)}. Received: {name}={value!r}"
        )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {tuple(choices)}. Received: {name}={value!r}"
        )


_PROBABILITIES = ("softmax", "softmax_v2", "sigmoid")  # TensorFlow has the second.


def check_logits(model: keras.Model) -> None:
    """Raises a ValueError if the last layer of a model returns probabilities."""
    operation = _last_operation(model)
    activation = getattr(operation, "activation", None)
    # `keras.ops.softmax` in the graph is an operation of the same name as the layer.
    kind = getattr(activation, "__name__", type(operation).__name__)
    if kind.lower() in _PROBABILITIES:
        raise ValueError(
            "The model must return logits, because the gradients of probabilities "
            "vanish and mislead every attack: drop the activation of its last layer "
            "(`activation=None`, or `classifier_activation=None` in "
            f"`keras.applications`). Received: last layer {operation.name!r}, "
            f"{type(operation).__name__} with activation {kind.lower()!r}"
        )


def _last_operation(model):
    """Returns what computes the outputs, inside nested models and wrappers."""
    if isinstance(model, keras.layers.Wrapper):
        return _last_operation(model.layer)
    if not isinstance(model, keras.Model):
        return model
    for operation in reversed(getattr(model, "operations", model.layers)):
        # A linear activation is the idiom for float32 outputs under mixed precision.
        if (
            not isinstance(operation, keras.layers.Activation)
            or operation.activation is not keras.activations.linear
        ):
            return _last_operation(operation)
    return None
