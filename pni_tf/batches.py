"""Deterministic streams of batches from arrays, with the paper's augmentation."""

import math

import tensorflow as tf

from pni_tf.data import Split


def training_batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    first_epoch: int = 0,
    first_step: int = 0,
    augment: bool = False,
) -> tf.data.Dataset:
    """Streams shuffled batches without end, epoch after epoch.

    Each epoch contains every image once; its last batch is smaller where `batch_size`
    does not divide their number. The order and the augmentation of an epoch follow from
    `seed`, `batch_size` and the number of the epoch alone, so a run that is resumed at
    `first_epoch` and `first_step` sees what it would have seen without the
    interruption.

    Args:
        split: The images to train on.
        batch_size: Images a batch.
        seed: Seed of order and augmentation.
        first_epoch: Number of the epoch to begin with, counted from 0.
        first_step: Number of batches of that epoch to leave out.
        augment: Whether to apply `random_flip_and_crop`.

    Returns:
        A `tf.data.Dataset` of `(images, labels)`: float32 `[batch, height, width,
        channels]` in [0, 1] and int64 `[batch]`.

    Raises:
        ValueError: If a number is out of its range or the split is empty.

    Example:
        >>> batches = training_batches(dataset.train, batch_size=128, seed=0)
        >>> steps = steps_per_epoch(dataset.train, 128)
        >>> model.fit(batches, steps_per_epoch=steps, shuffle=False)
    """
    steps_per_epoch(split, batch_size)  # Checks both.
    if first_epoch < 0:
        raise ValueError(
            f"`first_epoch` must be at least 0. Received: first_epoch={first_epoch}"
        )
    if not 0 <= first_step < steps_per_epoch(split, batch_size):
        raise ValueError(
            "`first_step` must be a step of an epoch, from 0. "
            f"Received: first_step={first_step}"
        )
    # One copy, captured by `load`: an array would become a constant of its graph.
    with tf.device("CPU"):
        images, labels = tf.constant(split.images), tf.constant(split.labels)
    base_seed = tf.constant([seed, 0], tf.int64)
    left_out = tf.constant(first_step, tf.int64)

    def batches_of(epoch):
        epoch_seed = tf.random.fold_in(base_seed, epoch)
        order = tf.random.experimental.stateless_shuffle(
            tf.range(len(split)), seed=epoch_seed
        )
        batches = tf.data.Dataset.from_tensor_slices(order).batch(batch_size)
        batches = batches.enumerate().map(
            lambda step, rows: (rows, tf.random.fold_in(epoch_seed, step))
        )
        return batches.skip(tf.where(epoch == first_epoch, left_out, 0))

    def load(rows, batch_seed):
        batch = tf.gather(images, rows)
        if augment:
            batch = random_flip_and_crop(batch, batch_seed)
        return _to_float(batch, split.scale), tf.gather(labels, rows)

    epochs = tf.data.Dataset.counter(first_epoch)
    batches = epochs.flat_map(batches_of).map(load, tf.data.AUTOTUNE)
    return batches.prefetch(tf.data.AUTOTUNE)


def evaluation_batches(split: Split, *, batch_size: int) -> tf.data.Dataset:
    """Streams a split once, in stored order.

    Args:
        split: The images to evaluate on.
        batch_size: Images a batch; the last may be smaller.

    Returns:
        A `tf.data.Dataset` of `(images, labels)` as `training_batches` returns.

    Raises:
        ValueError: If `batch_size` is less than 1 or the split is empty.

    Example:
        >>> model.evaluate(evaluation_batches(dataset.test, batch_size=500))
    """
    steps_per_epoch(split, batch_size)  # Checks both.
    batches = tf.data.Dataset.from_tensor_slices((split.images, split.labels))
    return (
        batches.batch(batch_size)
        .map(lambda images, labels: (_to_float(images, split.scale), labels))
        .prefetch(tf.data.AUTOTUNE)
    )


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Returns the number of batches that hold every image of a split once.

    Raises:
        ValueError: If `batch_size` is less than 1 or the split is empty.
    """
    if batch_size < 1:
        raise ValueError(
            f"`batch_size` must be at least 1. Received: batch_size={batch_size}"
        )
    if not len(split):
        raise ValueError("`split` must hold at least one image. Received: none")
    return math.ceil(len(split) / batch_size)


def random_flip_and_crop(
    images: tf.Tensor, seed: tf.Tensor, padding: int = 4
) -> tf.Tensor:
    """Flips half of the images, then crops each from its zero-padded self.

    Args:
        images: `[N, height, width, channels]` of any dtype; height and width static.
        seed: Integer `[2]`, as `tf.random.stateless_uniform` takes; the same seed gives
            the same result.
        padding: Zeros on each side, in pixels, so that an image moves by at most as
            many in each direction.

    Returns:
        Images of the same shape and dtype.

    Example:
        >>> images = random_flip_and_crop(images, tf.constant([0, 1], tf.int64))

    Reference:
        - [Deep Residual Learning](https://arxiv.org/abs/1512.03385), section 4.2
    """
    count, height, width = tf.shape(images)[0], *images.shape[1:3]
    flip_seed, crop_seed = tf.unstack(tf.random.split(seed))
    flip = tf.random.stateless_uniform([count, 1, 1, 1], flip_seed) < 0.5
    images = tf.where(flip, tf.reverse(images, axis=[2]), images)
    images = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    offsets = tf.random.stateless_uniform(
        [count, 2], crop_seed, maxval=2 * padding + 1, dtype=tf.int32
    )
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.range(width)
    images = tf.gather(images, rows, axis=1, batch_dims=1)
    return tf.gather(images, columns, axis=2, batch_dims=1)


def _to_float(images, scale):
    return tf.cast(images, tf.float32) / scale
