import numpy as np
import pytest
import tensorflow as tf

from pni_tf import data
from pni_tf.data import (
    evaluation_batches,
    random_flip_and_crop,
    steps_per_epoch,
    training_batches,
)


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


class TestTrainingBatches:
    def test_batches_are_the_stored_images_in_unit_range(self, digits):
        steps = steps_per_epoch(digits.train, 100)
        batches = training_batches(digits.train, batch_size=100, seed=0)
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
        steps = steps_per_epoch(split, batch_size)
        batches = training_batches(split, batch_size=batch_size, seed=0)
        orders = [
            take_epoch(batches.skip(epoch * steps), steps)[1] for epoch in range(4)
        ]
        for order in orders:
            assert sorted(order) == list(range(10))
        # Two of 4 random orders of 10 agree with probability 6 / 10! = 2e-6.
        assert len({tuple(order) for order in orders}) == 4

    def test_images_stay_with_their_labels(self):
        split = numbered_split(50)
        batches = training_batches(split, batch_size=8, seed=0)
        for images, labels in batches.take(7).as_numpy_iterator():
            np.testing.assert_array_equal(images, split.images_float()[labels])

    @pytest.mark.parametrize("augment", [False, True])
    def test_resumed_stream_equals_the_uninterrupted_one(self, augment):
        split = numbered_split(11, size=6, channels=2)
        options = {"batch_size": 4, "seed": 5, "augment": augment}
        whole = training_batches(split, **options)
        for epoch in (1, 3):
            resumed = training_batches(split, first_epoch=epoch, **options)
            assert_same_batches(resumed, whole.skip(3 * epoch), steps=7)

    def test_seed_decides_order_and_augmentation(self):
        split = numbered_split(64, size=6)

        def epoch(seed, augment=True):
            return take_epoch(
                training_batches(split, batch_size=16, seed=seed, augment=augment),
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
        batches = training_batches(split, batch_size=16, seed=0, augment=True)
        seen = [images.tobytes() for images, _ in batches.take(6).as_numpy_iterator()]
        # Two of 6 agree with probability below 15 * (2 * 81)^-16.
        assert len(set(seen)) == 6

    def test_images_are_not_constants_of_any_graph(self):
        image = np.full((1, 8, 8, 1), 173, np.uint8)
        split = data.Split(np.repeat(image, 500, axis=0), np.zeros(500, np.int64))
        batches = training_batches(split, batch_size=10, seed=0, augment=True)
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
        steps = steps_per_epoch(digits.train, 128)
        batches = training_batches(digits.train, batch_size=128, seed=0)
        history = model.fit(
            batches, epochs=2, steps_per_epoch=steps, shuffle=False, verbose=0
        )
        assert model.optimizer.iterations == 2 * steps == 24
        assert history.history["loss"][1] < history.history["loss"][0]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_size": 0}, "`batch_size` must be .* at least 1.*=0"),
            ({"batch_size": 2, "first_epoch": -1}, "`first_epoch` must be .*=-1"),
            ({"batch_size": 2, "first_step": 2}, "`first_step` must be .*below 2.*=2"),
        ],
    )
    def test_numbers_out_of_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            training_batches(numbered_split(4), seed=0, **options)

    def test_empty_split(self):
        with pytest.raises(ValueError, match="`split` must hold at least one image"):
            training_batches(numbered_split(0), batch_size=1, seed=0)


class TestEvaluationBatches:
    def test_one_pass_in_stored_order(self, digits):
        batches = evaluation_batches(digits.test, batch_size=100)
        assert [len(labels) for _, labels in batches] == [100, 100, 100, 60]
        images, labels = take_epoch(batches, 4)
        np.testing.assert_array_equal(images, digits.test.images_float())
        np.testing.assert_array_equal(labels, digits.test.labels)
        assert images.dtype == np.float32 and labels.dtype == np.int64

    def test_all_256_levels_divide_as_numpy_does(self):
        images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
        split = data.Split(images, np.zeros(1, np.int64))
        ((batch, _),) = evaluation_batches(split, batch_size=1).as_numpy_iterator()
        np.testing.assert_array_equal(batch, split.images_float())
        assert batch.max() == 1

    def test_bad_input(self):
        with pytest.raises(ValueError, match="`batch_size` must be .* at least 1.*=0"):
            evaluation_batches(numbered_split(4), batch_size=0)
        with pytest.raises(ValueError, match="`split` must hold at least one image"):
            evaluation_batches(numbered_split(0), batch_size=1)


class TestRandomFlipAndCrop:
    def augmented(self, images, seed=0, **options):
        seed = tf.constant([seed, 0], tf.int64)
        return random_flip_and_crop(tf.constant(images), seed, **options).numpy()

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
