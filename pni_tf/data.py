"""Datasets as arrays, and the batches made of them.

Images are uint8 in memory and float32 in [0, 1] in every batch; networks normalise them
themselves, so that attacks act on [0, 1].
"""

import dataclasses
import math
import os

import numpy as np
import tensorflow as tf

from pni_tf.checks import check_choice, check_number


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset without loading it.

    Attributes:
        name: Key of `DATASETS`.
        image_shape: `(height, width, channels)`.
        num_classes: Number of classes.
        mean, std: Channel means and standard deviations of the training images, in
            units of [0, 1], for a network that normalises; `None` for a network that
            is published without normalisation.
        class_names: One name a class, in the order of the labels.
        augment: Whether training flips and crops (`random_flip_and_crop`).
        source: `<provider>:<name there>`.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    class_names: tuple[str, ...]
    augment: bool
    source: str


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one part of a dataset.

    Attributes:
        images: uint8 `[N, height, width, channels]`, in 0..`scale`.
        labels: int64 `[N]`.
        scale: The stored value that means 1.0.

    Raises:
        ValueError: If the arrays are not of these types and shapes.
    """

    images: np.ndarray
    labels: np.ndarray
    scale: int = 255

    def __post_init__(self):
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(
                "`images` must be uint8 [N, height, width, channels]. "
                f"Received: {self.images.dtype} {list(self.images.shape)}"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"`labels` must be int64 [{len(self.images)}]. "
                f"Received: {self.labels.dtype} {list(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def images_float(self) -> np.ndarray:
        """Returns the images as float32 in [0, 1]."""
        return self.images.astype(np.float32) / np.float32(self.scale)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset in memory; `validation` is `None` unless a split was asked for."""

    info: DatasetInfo
    train: Split
    validation: Split | None
    test: Split


_DIGITS = "0 1 2 3 4 5 6 7 8 9"
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge
    bus butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud
    cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox
    girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
    maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
    pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
    road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
    streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
    trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_FASHION = "T-shirt/top Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Ankle_boot"
_KMNIST = "o ki su tsu na ha ma ya re wo"


def _info(name, shape, names, source, mean=None, std=None, augment=False):
    names = tuple(names.split())
    return DatasetInfo(name, shape, len(names), mean, std, names, augment, source)


def _by_255(*values):
    return tuple(value / 255 for value in values)


_GREY, _COLOUR = (28, 28, 1), (32, 32, 3)
# CIFAR-10's are those of the PNI authors' code, the others the figures in common use.
_CIFAR10_STATS = _by_255(125.3, 123.0, 113.9), _by_255(63.0, 62.1, 66.7)
_CIFAR100_STATS = _by_255(129.3, 124.1, 112.4), _by_255(68.2, 65.4, 70.4)
_SVHN_STATS = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
# These are those of `load_dataset("digits").train.images_float()`, in float64.
_DIGITS_STATS = (0.3058,), (0.3762,)
DATASETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        _info("digits", (8, 8, 1), _DIGITS, "sklearn:digits", *_DIGITS_STATS),
        _info("mnist", _GREY, _DIGITS, "tfds:mnist"),
        _info("fashion_mnist", _GREY, _FASHION, "tfds:fashion_mnist"),
        _info("kmnist", _GREY, _KMNIST, "tfds:kmnist"),
        _info("cifar10", _COLOUR, _CIFAR10, "tfds:cifar10", *_CIFAR10_STATS, True),
        _info("cifar100", _COLOUR, _CIFAR100, "tfds:cifar100", *_CIFAR100_STATS, True),
        _info("svhn", _COLOUR, _DIGITS, "tfds:svhn_cropped", *_SVHN_STATS),
    )
}


def load_dataset(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
    train_examples: int | None = None,
    test_examples: int | None = None,
    validation_split: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Loads a dataset into memory.

    `digits` comes with scikit-learn; every fifth image of each class is its test set.
    All others are read through TensorFlow Datasets (TFDS), which must have prepared
    them, and nothing touches the network unless `download` is set.

    Args:
        name: A key of `DATASETS`.
        data_dir: Folder of TFDS, by default the one that the environment variable
            `TFDS_DATA_DIR` names, else `~/tensorflow_datasets`.
        download: Whether TFDS may download and prepare what it does not find.
        train_examples: Number of training images to use, drawn with `seed` and kept in
            stored order; a smaller number is a subset of a larger. `None` uses all.
        test_examples: Number of test images to use, the first in stored order.
        validation_split: Fraction in [0, 1) of the (remaining) training images that
            `seed` moves from `train` to `validation`.
        seed: Seed of both draws. The test set does not depend on it.

    Raises:
        ValueError: If the name is unknown, a number is out of its range, or the files
            are damaged.
        FileNotFoundError: If the data is not there and was not or cannot be downloaded.

    Example:
        >>> dataset = load_dataset("digits", validation_split=0.1)
        >>> len(dataset.train), len(dataset.validation), len(dataset.test)
        (1293, 144, 360)
    """
    check_choice("name", name, tuple(DATASETS))
    check_number("validation_split", validation_split, minimum=0, below=1)
    info = DATASETS[name]
    provider, _, key = info.source.partition(":")
    digits = provider == "sklearn"
    train, test = _load_digits() if digits else _load_tfds(key, data_dir, download)
    for argument, examples, part in (
        ("train_examples", train_examples, train),
        ("test_examples", test_examples, test),
    ):
        if examples is not None:  # None is all of them.
            check_number(argument, examples, minimum=1, maximum=len(part), integer=True)
    chosen = np.random.default_rng(seed).permutation(len(train))[:train_examples]
    held_out = round(validation_split * len(chosen))
    if validation_split and not 0 < held_out < len(chosen):
        raise ValueError(
            f"`validation_split` would leave one of the two parts of {len(chosen)} "
            f"training images empty. Received: validation_split={validation_split}"
        )
    return Dataset(
        info=info,
        train=_take(train, np.sort(chosen[held_out:])),
        validation=_take(train, np.sort(chosen[:held_out])) if held_out else None,
        test=_take(test, slice(test_examples)),
    )


def _load_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., np.newaxis]
    labels = digits.target.astype(np.int64)
    # Every fifth image of each class, in stored order, which mixes the classes.
    test = np.sort(np.argsort(labels, kind="stable")[::5])
    train = np.setdiff1d(np.arange(len(labels)), test)
    everything = Split(images, labels, scale=16)
    return _take(everything, train), _take(everything, test)


def _load_tfds(name, data_dir, download):
    import tensorflow_datasets as tfds  # Here, because digits do without it.

    data_dir = None if data_dir is None else os.path.expanduser(data_dir)
    builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    folder, root = builder.data_path, builder.data_dir_root
    if not builder.info.splits:
        remedy = (
            "Download it (`download=True`, on the command line `--download`), or name "
            f"the folder that holds `{name}/` (`data_dir=`, `--data_dir=DIR` or the "
            "environment variable TFDS_DATA_DIR), or prepare it on another machine "
            f"with `tfds build {name} --data_dir=DIR` and copy DIR"
        )
        if not download:
            raise FileNotFoundError(f"No prepared dataset in {folder}. {remedy}")
        try:
            no_gcs = tfds.download.DownloadConfig(try_download_gcs=False)
            builder.download_and_prepare(download_config=no_gcs)
        except Exception as error:
            raise FileNotFoundError(
                f"No prepared dataset in {folder}, and downloading it there failed: "
                f"{error!r}. {remedy}"
            ) from error
    try:
        splits = builder.as_dataset(
            split=["train", "test"],
            batch_size=-1,
            as_supervised=True,
            # One file after the other is the stored order; each is read only once.
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
    except tf.errors.OpError as error:
        raise ValueError(
            f"The files in {folder} are damaged. Delete this folder, then download or "
            f"prepare `{name}` in {root} again"
        ) from error
    return [Split(images.numpy(), labels.numpy()) for images, labels in splits]


def _take(split, rows):
    return Split(split.images[rows], split.labels[rows], split.scale)


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
    `seed`, `batch_size` and the number of the epoch alone, so a resumed run sees what
    it would have seen without the interruption.

    Args:
        split: The images to train on.
        batch_size: Images a batch.
        seed: Seed of order and augmentation.
        first_epoch: Number of the epoch to begin with, counted from 0.
        first_step: Number of batches of that epoch to leave out.
        augment: Whether to flip and crop (`random_flip_and_crop`).

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
    steps = steps_per_epoch(split, batch_size)
    check_number("first_epoch", first_epoch, minimum=0, integer=True)
    check_number("first_step", first_step, minimum=0, below=steps, integer=True)
    # One copy, captured by `load`: an array would become a constant of its graph.
    with tf.device("CPU"):
        images, labels = tf.constant(split.images), tf.constant(split.labels)
    base_seed = tf.constant([seed, 0], tf.int64)
    left_out = tf.constant(first_step, tf.int64)

    def batches_of(epoch):
        epoch_seed = tf.random.fold_in(base_seed, epoch)
        rows = tf.range(len(split))
        order = tf.random.experimental.stateless_shuffle(rows, epoch_seed)
        batches = tf.data.Dataset.from_tensor_slices(order).batch(batch_size)
        batches = batches.enumerate().map(
            lambda step, rows: (rows, tf.random.fold_in(epoch_seed, step))
        )
        return batches.skip(tf.where(epoch == first_epoch, left_out, 0))

    def load(rows, batch_seed):
        batch = tf.gather(images, rows)
        if augment:
            batch = random_flip_and_crop(batch, batch_seed)
        return tf.cast(batch, tf.float32) / split.scale, tf.gather(labels, rows)

    epochs = tf.data.Dataset.counter(first_epoch)
    batches = epochs.flat_map(batches_of).map(load, tf.data.AUTOTUNE)
    return batches.prefetch(tf.data.AUTOTUNE)


def evaluation_batches(split: Split, *, batch_size: int) -> tf.data.Dataset:
    """Streams a split once, in stored order, as `training_batches` does."""
    steps_per_epoch(split, batch_size)  # It checks both.
    batches = tf.data.Dataset.from_tensor_slices((split.images, split.labels))
    batches = batches.batch(batch_size).map(
        lambda images, labels: (tf.cast(images, tf.float32) / split.scale, labels)
    )
    return batches.prefetch(tf.data.AUTOTUNE)


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Returns the number of batches that hold every image of a split once.

    Raises:
        ValueError: If `batch_size` is less than 1 or the split is empty.
    """
    check_number("batch_size", batch_size, minimum=1, integer=True)
    if not len(split):
        raise ValueError("`split` must hold at least one image. Received: none")
    return math.ceil(len(split) / batch_size)


def random_flip_and_crop(
    images: tf.Tensor, seed: tf.Tensor, padding: int = 4
) -> tf.Tensor:
    """Flips half of the images, then crops each from its zero-padded self.

    Args:
        images: `[N, height, width, channels]` of any dtype; height and width static.
        seed: Integer `[2]`, as `tf.random.stateless_uniform` takes.
        padding: Pixels by which an image moves at most, in each direction.

    Reference: https://arxiv.org/abs/1512.03385, section 4.2.
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
