import numpy as np
import pytest
import tensorflow as tf

from pni_tf import checks


class TestValidateImages:
    good = np.random.default_rng(0).random((2, 8, 8, 3))

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_good_images_come_back_as_float32(self, dtype):
        images = self.good.astype(dtype)
        result = checks.validate_images(images, image_shape=(None, None, 3))
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, images.astype(np.float32))
        checks.validate_images(tf.constant(images))

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
            checks.validate_images(images)

    @pytest.mark.parametrize(
        ("image_shape", "message"),
        [
            ((8, 8, 1), r"\[N, 8, 8, 1\].*\(2, 8, 8, 3\)"),
            ((None, 9, 3), r"\[N, height, 9, 3\].*\(2, 8, 8, 3\)"),
        ],
    )
    def test_shape_of_the_model(self, image_shape, message):
        with pytest.raises(ValueError, match=message):
            checks.validate_images(self.good, image_shape=image_shape)


class TestValidateLabels:
    @pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
    def test_good_labels_come_back_as_int64(self, dtype):
        labels = checks.validate_labels(np.arange(10, dtype=dtype), 10, num_examples=10)
        assert labels.dtype == np.int64
        assert labels.tolist() == list(range(10))
        assert checks.validate_labels([3, 1], 10).tolist() == [3, 1]

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (np.eye(4, dtype=int), r"shape \[N\].*\(4, 4\).*one-hot.*argmax"),
            (np.array([0.0, 1.5]), r"must be integers.*float64.*astype\('int64'\)"),
            (np.array([True, False]), "must be integers.*bool"),
            (np.array([0, 10]), r"in 0..9. Received: values from 0 to 10"),
            (np.array([-1, 3]), r"in 0..9. Received: values from -1 to 3"),
            (
                np.array([1, 2, 3]),
                r"one entry for each of the 2 images.*len\(labels\)=3",
            ),
        ],
    )
    def test_bad_labels(self, labels, message):
        with pytest.raises(ValueError, match=message):
            checks.validate_labels(labels, 10, num_examples=2)


class TestCheckNumber:
    @pytest.mark.parametrize(
        ("value", "bounds"),
        [
            (0, {"minimum": 0}),
            (np.float32(1), {"above": 0, "maximum": 1}),
            (np.int64(3), {"minimum": 3, "below": 4, "integer": True}),
            (10**400, {"minimum": 1, "integer": True}),
            (-1e300, {"below": 0}),
        ],
    )
    def test_good_numbers(self, value, bounds):
        checks.check_number("it", value, **bounds)

    @pytest.mark.parametrize(
        ("value", "bounds", "message"),
        [
            (-1, {"minimum": 0}, "`it` must be a finite number of at least 0.*it=-1"),
            (0.0, {"above": 0, "maximum": 1}, "number above 0 and at most 1.*it=0.0"),
            (1, {"minimum": 0, "below": 1}, "of at least 0 and below 1.*it=1"),
            (2.0, {"minimum": 1, "integer": True}, "an integer of at least 1.*it=2.0"),
            (float("nan"), {"minimum": 0}, "a finite number .*it=nan"),
            (float("inf"), {"minimum": 0}, "a finite number .*it=inf"),
            (True, {"minimum": 0}, "it=True"),
            ("1", {"minimum": 0}, "it='1'"),
        ],
    )
    def test_bad_numbers(self, value, bounds, message):
        with pytest.raises(ValueError, match=message):
            checks.check_number("it", value, **bounds)


def test_check_choice():
    checks.check_choice("it", "a", ("a", "b"))
    with pytest.raises(ValueError, match=r"`it` must be one of \('a', 'b'\).*it='c'"):
        checks.check_choice("it", "c", ("a", "b"))
