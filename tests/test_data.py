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


def numbered_split(count, size=3, channels=1):
    """A split whose labels number the images, and whose pixels all differ."""
    shape = (count, size, size, channels)
    images = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    return data.Split(images, np.arange(count))


def take_epoch(batches, steps):
    images, labels = zip(*batches.take(steps).as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def assert_same_batches(one, other, steps):
    pairs = zip(
        one.take(steps).as_numpy_iterator(),
        other.take(steps).as_numpy_iterator(),
        strict=True,
    )
    for (images, labels), (other_images, other_labels) in pairs:
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


def ancestors(dataset):
    """A dataset and all that it is made of."""
    return [dataset] + [d for i in dataset._inputs() for d in ancestors(i)]


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
            (
                {"validation_split": 1.0},
                r"`validation_split` must be in \[0, 1\).*=1.0",
            ),
            ({"validation_split": -0.1}, r"must be in \[0, 1\).*-0.1"),
            ({"validation_split": float("nan")}, r"must be in \[0, 1\).*nan"),
            ({"validation_split": 1e-4}, "one of the two parts of 1437 .* empty"),
            ({"validation_split": 0.9999}, "one of the two parts of 1437 .* empty"),
            ({"train_examples": 0}, r"`train_examples` must be in 1..1437.*=0"),
            ({"train_examples": 1438}, r"`train_examples` must be in 1..1437.*=1438"),
            ({"test_examples": -1}, r"`test_examples` must be in 1..360.*=-1"),
            ({"test_examples": 361}, r"`test_examples` must be in 1..360.*=361"),
        ],
    )
    def test_numbers_out_of_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            data.load_dataset("digits", **options)

    def test_unknown_name_lists_the_known_ones(self):
        with pytest.raises(ValueError, match="digits, mnist, .*svhn.*'imagenet'"):
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


class TestTrainingBatches:
    def test_batches_are_the_stored_images_in_unit_range(self, digits):
        steps = data.steps_per_epoch(digits.train, 100)
        batches = data.training_batches(digits.train, batch_size=100, seed=0)
        assert batches.element_spec == (
            tf.TensorSpec([None, 8, 8, 1], tf.float32),
            tf.TensorSpec([None], tf.int64),
        )
        sizes = [len(labels) for _, labels in batches.take(steps + 1)]
        assert sizes == [100] * 14 + [37, 100]  # The last batch is kept.
        images, labels = take_epoch(batches, steps)
        expected = digits.train.images_float()

        def rows(images, labels):
            flat = images.reshape(len(images), -1)
            return sorted(map(tuple, np.column_stack([labels, flat])))

        assert rows(images, labels) == rows(expected, digits.train.labels)

    @pytest.mark.parametrize("batch_size", [1, 4, 10, 64])
    def test_every_epoch_is_a_permutation_and_all_differ(self, batch_size):
        split = numbered_split(10)
        steps = data.steps_per_epoch(split, batch_size)
        batches = data.training_batches(split, batch_size=batch_size, seed=0)
        orders = [
            take_epoch(batches.skip(epoch * steps), steps)[1] for epoch in range(4)
        ]
        for order in orders:
            assert sorted(order) == list(range(10))
        # Two of 4 random orders of 10 agree with probability 6 / 10! = 2e-6.
        assert len({tuple(order) for order in orders}) == 4

    def test_images_stay_with_their_labels(self):
        split = numbered_split(50)
        batches = data.training_batches(split, batch_size=8, seed=0)
        for images, labels in batches.take(7).as_numpy_iterator():
            np.testing.assert_array_equal(images, split.images_float()[labels])

    @pytest.mark.parametrize("augment", [False, True])
    def test_resumed_stream_equals_the_uninterrupted_one(self, augment):
        split = numbered_split(11, size=6, channels=2)
        options = {"batch_size": 4, "seed": 5, "augment": augment}
        whole = data.training_batches(split, **options)
        for epoch in (1, 3):
            resumed = data.training_batches(split, first_epoch=epoch, **options)
            assert_same_batches(resumed, whole.skip(3 * epoch), steps=7)

    def test_seed_decides_order_and_augmentation(self):
        split = numbered_split(64, size=6)

        def epoch(seed, augment=True):
            return take_epoch(
                data.training_batches(split, batch_size=16, seed=seed, augment=augment),
                4,
            )

        (images, labels), (same_images, same_labels) = epoch(0), epoch(0)
        np.testing.assert_array_equal(images, same_images)
        np.testing.assert_array_equal(labels, same_labels)
        assert not np.array_equal(labels, epoch(1)[1])
        # Augmentation leaves the order alone.
        plain_images, plain_labels = epoch(0, augment=False)
        np.testing.assert_array_equal(labels, plain_labels)
        assert not np.array_equal(images, plain_images)

    def test_augmentation_differs_between_epochs_and_batches(self):
        # One and the same image everywhere: only the augmentation tells batches apart.
        image = np.arange(36, dtype=np.uint8).reshape(1, 6, 6, 1)
        split = data.Split(np.repeat(image, 32, axis=0), np.arange(32))
        batches = data.training_batches(split, batch_size=16, seed=0, augment=True)
        seen = [images.tobytes() for images, _ in batches.take(6).as_numpy_iterator()]
        # Two of 6 agree with probability below 15 * (2 * 81)^-16.
        assert len(set(seen)) == 6

    def test_images_are_not_constants_of_any_graph(self):
        image = np.full((1, 8, 8, 1), 173, np.uint8)
        split = data.Split(np.repeat(image, 500, axis=0), np.zeros(500, np.int64))
        batches = data.training_batches(split, batch_size=10, seed=0, augment=True)
        graphs = [
            function.function.graph
            for dataset in ancestors(batches)
            for function in dataset._functions()
        ]
        assert graphs
        for graph in graphs:
            assert graph.as_graph_def().ByteSize() < split.images.size

    def test_fit_takes_the_stream(self, digits):
        import keras

        model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss)
        steps = data.steps_per_epoch(digits.train, 128)
        batches = data.training_batches(digits.train, batch_size=128, seed=0)
        history = model.fit(
            batches, epochs=2, steps_per_epoch=steps, shuffle=False, verbose=0
        )
        assert model.optimizer.iterations == 2 * steps == 24
        assert history.history["loss"][1] < history.history["loss"][0]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_size": 0}, "`batch_size` must be at least 1.*=0"),
            ({"batch_size": 2, "first_epoch": -1}, "`first_epoch` must be .*=-1"),
        ],
    )
    def test_numbers_out_of_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            data.training_batches(numbered_split(4), seed=0, **options)

    def test_empty_split(self):
        with pytest.raises(ValueError, match="`split` must hold at least one image"):
            data.training_batches(numbered_split(0), batch_size=1, seed=0)


class TestEvaluationBatches:
    def test_one_pass_in_stored_order(self, digits):
        batches = data.evaluation_batches(digits.test, batch_size=100)
        assert [len(labels) for _, labels in batches] == [100, 100, 100, 60]
        images, labels = take_epoch(batches, 4)
        np.testing.assert_array_equal(images, digits.test.images_float())
        np.testing.assert_array_equal(labels, digits.test.labels)
        assert images.dtype == np.float32 and labels.dtype == np.int64

    def test_all_256_levels_divide_as_numpy_does(self):
        images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
        split = data.Split(images, np.zeros(1, np.int64))
        ((batch, _),) = data.evaluation_batches(split, batch_size=1).as_numpy_iterator()
        np.testing.assert_array_equal(batch, split.images_float())
        assert batch.max() == 1

    def test_bad_input(self):
        with pytest.raises(ValueError, match="`batch_size` must be at least 1.*=0"):
            data.evaluation_batches(numbered_split(4), batch_size=0)
        with pytest.raises(ValueError, match="`split` must hold at least one image"):
            data.evaluation_batches(numbered_split(0), batch_size=1)


class TestRandomFlipAndCrop:
    def augmented(self, images, seed=0, **options):
        seed = tf.constant([seed, 0], tf.int64)
        return data.random_flip_and_crop(tf.constant(images), seed, **options).numpy()

    def placements(self, image, result, padding):
        """All (flipped, row, column) by which a loop over windows finds `result`."""
        height, width = image.shape[:2]
        margins = [(padding, padding), (padding, padding), (0, 0)]
        found = []
        for flipped in (False, True):
            padded = np.pad(image[:, ::-1] if flipped else image, margins)
            for row in range(2 * padding + 1):
                for column in range(2 * padding + 1):
                    window = padded[row : row + height, column : column + width]
                    if np.array_equal(window, result):
                        found.append((flipped, row, column))
        return found

    @pytest.mark.parametrize(
        ("dtype", "shape", "padding"),
        [("uint8", (7, 9, 3), 4), ("float32", (6, 6, 1), 2), ("uint8", (5, 4, 2), 0)],
    )
    def test_every_result_is_a_window_of_the_padded_image(self, dtype, shape, padding):
        # 1 at least, so that no pixel looks like padding.
        images = np.random.default_rng(0).integers(1, 256, (60, *shape)).astype(dtype)
        results = self.augmented(images, padding=padding)
        assert results.dtype == dtype and results.shape == images.shape
        for image, result in zip(images, results, strict=True):
            assert len(self.placements(image, result, padding)) == 1

    def test_flips_and_offsets_are_uniform_and_independent(self):
        count, padding = 20000, 1
        image = np.arange(1, 10, dtype=np.uint8).reshape(3, 3, 1)
        results = self.augmented(np.repeat(image[None], count, axis=0), padding=padding)
        windows, counts = np.unique(
            results.reshape(count, 9), axis=0, return_counts=True
        )
        # 2 flips of 9 windows, each expected count / 18 = 1111 times with a standard
        # deviation of 32.4: 5.5 of them are exceeded by one of 18 with probability
        # 7e-7.
        assert len(windows) == 18
        assert np.abs(counts - count / 18).max() < 5.5 * 32.4
        placements = [
            self.placements(image, window.reshape(3, 3, 1), padding)
            for window in windows
        ]
        assert len({placement for (placement,) in placements}) == 18

    def test_seed_decides(self):
        images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3))
        one, same, other = (self.augmented(images, seed) for seed in (0, 0, 1))
        np.testing.assert_array_equal(one, same)
        assert not np.array_equal(one, other)


class TestValidateImages:
    good = np.random.default_rng(0).random((2, 8, 8, 3))

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_good_images_come_back_as_float32(self, dtype):
        images = self.good.astype(dtype)
        result = data.validate_images(images, image_shape=(None, None, 3))
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, images.astype(np.float32))
        data.validate_images(tf.constant(images))

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (good[0], r"shape \[N, height, width, channels\].*\(8, 8, 3\)"),
            (good[:0], r"at least one image.*\(0, 8, 8, 3\)"),
            (good * np.nan, "finite. Received: 384 values that are NaN or infinite"),
            (np.where(good < good.max(), good, np.inf), "finite. Received: 1 values"),
            (good * 0 - 0.5, "Received: values from -0.5 to -0.5. Rescale"),
            (good * 0 + 255.0, "values from 255.0 to 255.0. Divide them by 255"),
            (good.astype(np.uint8), r"dtype=uint8.*astype\('float32'\) / 255"),
            (good.astype(int), "must be floats.*dtype=int64"),
            (good > 0.5, "must be floats.*dtype=bool"),
            (np.array(["a"]), "must be floats.*dtype=<U1"),
        ],
    )
    def test_bad_images(self, images, message):
        with pytest.raises(ValueError, match=message):
            data.validate_images(images)

    @pytest.mark.parametrize(
        ("image_shape", "message"),
        [
            ((8, 8, 1), r"\[N, 8, 8, 1\].*\(2, 8, 8, 3\)"),
            ((None, 9, 3), r"\[N, height, 9, 3\].*\(2, 8, 8, 3\)"),
        ],
    )
    def test_shape_of_the_model(self, image_shape, message):
        with pytest.raises(ValueError, match=message):
            data.validate_images(self.good, image_shape=image_shape)


class TestValidateLabels:
    @pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
    def test_good_labels_come_back_as_int64(self, dtype):
        labels = data.validate_labels(np.arange(10, dtype=dtype), 10, num_examples=10)
        assert labels.dtype == np.int64
        assert labels.tolist() == list(range(10))
        assert data.validate_labels([3, 1], 10).tolist() == [3, 1]

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.eye(4, dtype=int), r"shape \[N\].*\(4, 4\).*one-hot.*argmax"),
            (np.array([0.0, 1.5]), r"must be integers.*float64.*astype\('int64'\)"),
            (np.array([True, False]), "must be integers.*bool"),
            (np.array([0, 10]), r"in 0..9. Received: values from 0 to 10"),
            (np.array([-1, 3]), r"in 0..9. Received: values from -1 to 3"),
            (np.array([1, 2, 3]), r"as many as the 2 images.*len\(labels\)=3"),
        ],
    )
    def test_bad_labels(self, labels, message):
        with pytest.raises(ValueError, match=message):
            data.validate_labels(labels, 10, num_examples=2)
