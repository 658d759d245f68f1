"""Checks of the arrays that a user hands to the library."""

import numpy as np


def validate_images(
    images: np.ndarray, *, image_shape: tuple[int | None, ...] | None = None
) -> np.ndarray:
    """Checks that an array is a batch of images in [0, 1].

    Args:
        images: The array to check.
        image_shape: `(height, width, channels)` that a model takes; `None` for a size
            that may be any.

    Returns:
        float32 `[N, height, width, channels]`.

    Raises:
        ValueError: If they are no floats, not of this rank or shape, empty, not finite,
            or outside [0, 1].
    """
    images = _array("images", images)
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            "`images` must be floats in [0, 1]. "
            f"Received: images.dtype={images.dtype}. "
            "Convert values in 0..255 by images.astype('float32') / 255"
        )
    expected = (None, None, None) if image_shape is None else tuple(image_shape)
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
    """Checks that an array holds one class index an example.

    Args:
        labels: The array to check.
        num_classes: Number of classes; labels are 0..`num_classes` - 1. None if it is
            not known.
        num_examples: Number of labels to expect, e.g. `len(images)`.
        name: What the errors call them.

    Returns:
        int64 `[N]`.

    Raises:
        ValueError: If they are no integers, not of rank 1, too few or too many, or out
            of range.
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
            f"`{name}` must be as many as the {num_examples} images. "
            f"Received: len({name})={len(labels)}"
        )
    if labels.dtype.kind not in "iu":  # NumPy calls durations integers
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
        raise ValueError(f"`{name}` is no array. Received: {error}") from error
