import collections
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from pni_tf import data

TFDS_NAMES = [name for name in data.DATASETS if name != "digits"]


def load_real(name, **options):
    """Loads prepared TFDS data, or skips the test where there is none."""
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder:
        pytest.skip(f"needs the real {name}: set TFDS_DATA_DIR to prepared TFDS data")
    try:
        return data.load_dataset(name, data_dir=folder, **options)
    except FileNotFoundError:
        pytest.skip(f"needs the real {name}, which TFDS_DATA_DIR={folder} has not")


def prepare_tiny(name, folder, train=20, test=10):
    """Writes a small dataset in TFDS' own format, and returns its images and labels."""
    tfds = pytest.importorskip("tensorflow_datasets")
    info = data.DATASETS[name]
    builder = tfds.builder(info.source.removeprefix("tfds:"), data_dir=folder)
    rng = np.random.default_rng(0)
    written, splits = {}, {}
    for split, count in (("train", train), ("test", test)):
        images = rng.integers(0, 256, (count, *info.image_shape), dtype=np.uint8)
        labels = rng.integers(0, info.num_classes, count)
        features = {"image": images, "label": labels}
        if "coarse_label" in builder.info.features:
            features["coarse_label"] = np.zeros(count, np.int64)
        if "id" in builder.info.features:
            features["id"] = [f"{split}_{index}" for index in range(count)]
        written[split] = images, labels
        splits[split] = tf.data.Dataset.from_tensor_slices(features)
    tfds.dataset_builders.store_as_tfds_dataset(
        name=builder.name,
        version=str(builder.version),
        features=builder.info.features,
        split_datasets=splits,
        data_dir=folder,
        disable_shuffling=True,
    )
    return written


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"reached for the network: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def digits():
    return data.load_dataset("digits")


class TestRegistry:
    def test_every_entry_is_consistent(self):
        for name, info in data.DATASETS.items():
            assert info.name == name
            assert len(set(info.class_names)) == info.num_classes
            assert (info.mean is None) == (info.std is None)
            if info.mean is not None:
                assert len(info.mean) == len(info.std) == info.image_shape[-1]
                assert all(0 < value < 1 for value in info.mean + info.std)

    def test_figures_of_the_papers_recipe(self):
        info = data.DATASETS["cifar10"]
        np.testing.assert_allclose(info.mean, np.array([125.3, 123.0, 113.9]) / 255)
        np.testing.assert_allclose(info.std, np.array([63.0, 62.1, 66.7]) / 255)
        augmented = {name for name, info in data.DATASETS.items() if info.augment}
        assert augmented == {"cifar10", "cifar100"}

    def test_cifar100_classes_are_in_the_published_alphabetical_order(self):
        names = data.DATASETS["cifar100"].class_names
        assert list(names) == sorted(names)

    @pytest.mark.parametrize("name", TFDS_NAMES)
    def test_agrees_with_tfds(self, name, tmp_path, no_network):
        tfds = pytest.importorskip("tensorflow_datasets")
        info = data.DATASETS[name]
        key = info.source.removeprefix("tfds:")
        features = tfds.builder(key, data_dir=tmp_path).info.features
        assert features["image"].shape == info.image_shape
        names = features["label"].names
        assert len(names) == info.num_classes
        if not name.startswith("cifar"):  # TFDS knows CIFAR's only after a download.
            ours = [label.replace("_", " ") for label in info.class_names]
            assert ours == names


class TestDigits:
    def test_is_scikit_learns_data_divided_by_16(self, digits):
        from sklearn.datasets import load_digits

        raw = load_digits()
        images = np.concatenate(
            [digits.train.images_float(), digits.test.images_float()]
        )
        labels = np.concatenate([digits.train.labels, digits.test.labels])

        def sorted_rows(images, labels):
            return sorted(map(tuple, np.column_stack([labels, images.reshape(-1, 64)])))

        assert images.dtype == np.float32
        assert sorted_rows(images, labels) == sorted_rows(raw.images / 16, raw.target)

    def test_split_is_fixed_and_stratified(self, digits):
        assert (len(digits.train), len(digits.test)) == (1437, 360)
        assert digits.validation is None
        counts = np.bincount(digits.test.labels)
        assert counts.min() >= 35 and counts.max() <= 37
        again = data.load_dataset("digits", seed=1)
        np.testing.assert_array_equal(again.train.images, digits.train.images)
        np.testing.assert_array_equal(again.test.images, digits.test.images)
        # The split itself: any change would make results incomparable.
        assert digits.test.labels[:10].tolist() == [0, 2, 4, 7, 1, 6, 8, 9, 5, 3]

    def test_written_down_statistics(self, digits):
        images = digits.train.images_float().astype(np.float64)
        np.testing.assert_allclose(digits.info.mean, [images.mean()], atol=5e-5)
        np.testing.assert_allclose(digits.info.std, [images.std()], atol=5e-5)

    def test_needs_neither_tfds_nor_a_word(self):
        code = (
            "import sys\n"
            "from pni_tf.data import load_dataset\n"
            "sys.stdout.flush(); sys.stderr.write('--loaded--')\n"
            "load_dataset('digits')\n"
            "assert 'tensorflow_datasets' not in sys.modules\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert result.stdout == ""
        assert result.stderr.endswith("--loaded--")


class TestSubsets:
    def test_validation_is_held_out_of_the_training_set(self):
        whole = data.load_dataset("digits").train
        parts = data.load_dataset("digits", validation_split=0.1, seed=3)
        assert (len(parts.train), len(parts.validation)) == (1293, 144)

        def rows(split):
            return collections.Counter(
                (*image.ravel(), label)
                for image, label in zip(split.images, split.labels, strict=True)
            )

        # Together the two are the training set, each image once: so they are disjoint.
        assert rows(parts.train) + rows(parts.validation) == rows(whole)
        assert parts.validation.scale == 16

    def test_seed_decides_what_is_held_out(self):
        one, same, other = (
            data.load_dataset("digits", validation_split=0.1, seed=seed).validation
            for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(one.images, same.images)
        assert not np.array_equal(one.images, other.images)

    def test_examples_are_counted_before_the_validation_split(self):
        dataset = data.load_dataset(
            "digits", train_examples=100, test_examples=7, validation_split=0.2
        )
        sizes = len(dataset.train), len(dataset.validation), len(dataset.test)
        assert sizes == (80, 20, 7)
        whole = data.load_dataset("digits")
        np.testing.assert_array_equal(dataset.test.images, whole.test.images[:7])

    def test_train_examples_are_a_nested_draw_in_stored_order(self):
        def positions(**options):
            images = data.load_dataset("digits", **options).train.images
            return [index_of[image.tobytes()] for image in images]

        stored = data.load_dataset("digits").train.images
        index_of = {image.tobytes(): index for index, image in enumerate(stored)}
        assert len(index_of) == len(stored)  # All images differ, so this is sound.
        small, large = positions(train_examples=50), positions(train_examples=200)
        assert small == sorted(small) and large == sorted(large)
        assert len(small) == 50 and set(small) < set(large)
        assert set(small) != set(positions(train_examples=50, seed=1))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"validation_split": 1.0}, "`validation_split` must be .* below 1.*=1.0"),
            ({"validation_split": -0.1}, "of at least 0 and below 1.*-0.1"),
            ({"validation_split": float("nan")}, "must be a finite number .*nan"),
            ({"validation_split": 1e-4}, "one of the two parts of 1437 .* empty"),
            ({"validation_split": 0.9999}, "one of the two parts of 1437 .* empty"),
            (
                {"train_examples": 0},
                "`train_examples` .* 1 and at most 1437.*=0",
            ),
            (
                {"train_examples": 1438},
                "`train_examples` .* at most 1437.*=1438",
            ),
            (
                {"test_examples": -1},
                "`test_examples` .* 1 and at most 360.*=-1",
            ),
            (
                {"test_examples": 361},
                "`test_examples` .* 1 and at most 360.*=361",
            ),
        ],
    )
    def test_numbers_out_of_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            data.load_dataset("digits", **options)

    def test_unknown_name_lists_the_known_ones(self):
        with pytest.raises(ValueError, match="'digits', 'mnist', .*'svhn'.*'imagenet'"):
            data.load_dataset("imagenet")


class TestTFDS:
    @pytest.mark.parametrize("name", TFDS_NAMES)
    def test_reads_what_tfds_prepared(self, name, tmp_path, no_network):
        written = prepare_tiny(name, tmp_path)
        dataset = data.load_dataset(name, data_dir=tmp_path)
        for split, (images, labels) in written.items():
            loaded = getattr(dataset, split)
            assert loaded.scale == 255
            np.testing.assert_array_equal(loaded.images, images)
            np.testing.assert_array_equal(loaded.labels, labels)

    def test_prepared_data_is_not_downloaded_again(self, tmp_path, no_network):
        prepare_tiny("mnist", tmp_path)
        assert len(data.load_dataset("mnist", data_dir=tmp_path, download=True).test)

    def test_missing_data_says_where_it_looked_and_what_mends_it(
        self, tmp_path, no_network
    ):
        with pytest.raises(FileNotFoundError) as error:
            data.load_dataset("svhn", data_dir=tmp_path)
        message = str(error.value)
        assert str(tmp_path / "svhn_cropped") in message
        for remedy in (
            "`download=True`",
            "`--download`",
            "`--data_dir=DIR`",
            "TFDS_DATA_DIR",
            "`tfds build svhn_cropped --data_dir=DIR`",
        ):
            assert remedy in message
        assert not list(tmp_path.iterdir())

    def test_home_folder_is_expanded(self, tmp_path, monkeypatch, no_network):
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(FileNotFoundError, match=str(tmp_path / "here/mnist")):
            data.load_dataset("mnist", data_dir="~/here")

    def test_failed_download_gives_cause_and_remedy(self, tmp_path, monkeypatch):
        tfds = pytest.importorskip("tensorflow_datasets")

        def fail(self, **kwargs):
            raise OSError("no route to host")

        monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
        with pytest.raises(FileNotFoundError, match="no route to host.*tfds build"):
            data.load_dataset("mnist", data_dir=tmp_path, download=True)

    @pytest.mark.parametrize("damage", ["truncate", "delete"])
    def test_damaged_files(self, damage, tmp_path):
        prepare_tiny("mnist", tmp_path)
        (path,) = tmp_path.glob("mnist/*/*train*")
        if damage == "truncate":
            path.write_bytes(path.read_bytes()[:-20])
        else:
            path.unlink()
        with pytest.raises(ValueError, match="mnist.* damaged. Delete this folder"):
            data.load_dataset("mnist", data_dir=tmp_path)

    def test_empty_folder_is_missing_data(self, tmp_path, no_network):
        prepare_tiny("mnist", tmp_path)
        for path in tmp_path.glob("mnist/*/*"):
            path.unlink()
        with pytest.raises(FileNotFoundError, match="No prepared dataset in .*mnist"):
            data.load_dataset("mnist", data_dir=tmp_path)

    def test_real_mnist(self):
        dataset = load_real("mnist", validation_split=0.1)
        sizes = len(dataset.train), len(dataset.validation), len(dataset.test)
        assert sizes == (54000, 6000, 10000)
        assert np.bincount(dataset.test.labels).tolist() == [
            *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
        ]

    def test_real_cifar10(self):
        dataset = load_real("cifar10")
        assert dataset.train.images.shape == (50000, 32, 32, 3)
        assert np.bincount(dataset.train.labels).tolist() == [5000] * 10
        assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
        # Loose, as a copy that went through JPEG has slightly different pixels.
        images = dataset.train.images_float()
        mean = images.mean((0, 1, 2), dtype=np.float64)
        np.testing.assert_allclose(mean, dataset.info.mean, atol=0.01)


class TestSplit:
    def test_scale_maps_to_one(self):
        images = np.array([0, 4, 16], np.uint8).reshape(3, 1, 1, 1)
        split = data.Split(images, np.zeros(3, np.int64), scale=16)
        assert len(split) == 3
        assert split.images_float().ravel().tolist() == [0, 0.25, 1]

    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (np.zeros((2, 3, 3, 1)), np.zeros(2, int), "`images` must be uint8"),
            (
                np.zeros((2, 3, 3), np.uint8),
                np.zeros(2, int),
                r"N, height.*\[2, 3, 3\]",
            ),
            (np.zeros((2, 3, 3, 1), np.uint8), np.zeros(3, int), r"int64 \[2\].*\[3\]"),
            (np.zeros((2, 3, 3, 1), np.uint8), np.zeros(2), r"int64 \[2\].*float64"),
        ],
    )
    def test_wrong_arrays(self, images, labels, message):
        with pytest.raises(ValueError, match=message):
            data.Split(images, labels)
