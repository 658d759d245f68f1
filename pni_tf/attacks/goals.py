"""What an attack is after, and the losses that lead there (to be ascended)."""

from typing import NamedTuple

import tensorflow as tf

from pni_tf.checks import validate_images, validate_labels

_NEVER = -1e9  # It takes a class out of a maximum, and stays finite in float32.


class Goal(NamedTuple):
    """Away from the labels, or towards other classes where they are given.

    Every loss takes logits `[N, K]`, returns float32 `[N]`, and is larger where the
    network is closer to being fooled.

    Attributes:
        labels: int64 `[N]`.
        towards: int64 `[N]`, or None for an untargeted attack.
    """

    labels: tf.Tensor
    towards: tf.Tensor | None = None

    @classmethod
    def of(cls, labels, towards=None) -> "Goal":
        """Makes a goal of labels, and of classes to reach, of any integer type."""
        towards = None if towards is None else tf.cast(towards, tf.int64)
        return cls(tf.cast(labels, tf.int64), towards)

    def _check_classes(self, logits):
        if not tf.executing_eagerly():
            return  # A graph has no values to check.
        for name, classes in self._asdict().items():
            if classes is not None:
                validate_labels(classes, logits.shape[-1], name=name)

    def take(self, rows: tf.Tensor) -> "Goal":
        """Returns the goal of some rows of the batch, each as often as it is named."""
        towards = None if self.towards is None else tf.gather(self.towards, rows)
        return Goal(tf.gather(self.labels, rows), towards)

    def fooled(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns 1.0 where the goal is reached, else 0.0.

        The mean over draws is the share of the draws that are fooled.
        """
        self._check_classes(logits)
        predictions = tf.argmax(logits, -1)
        if self.towards is None:
            return tf.cast(predictions != self.labels, tf.float32)
        return tf.cast(predictions == self.towards, tf.float32)

    def cross_entropy(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the cross-entropy of the labels, or minus that of `towards`."""
        self._check_classes(logits)
        sign, labels = (1, self.labels) if self.towards is None else (-1, self.towards)
        return sign * tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels, tf.cast(logits, tf.float32)
        )

    def margin(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns by how much the best other logit exceeds that of the label.

        For a targeted goal: by how much the logit of its class exceeds the best other.
        Positive means fooled. The margin of log-probabilities is the same number.
        """
        self._check_classes(logits)
        logits = tf.cast(logits, tf.float32)
        if self.towards is None:
            return _best_other(logits, self.labels) - _pick(logits, self.labels)
        return _pick(logits, self.towards) - _best_other(logits, self.towards)

    def dlr(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the difference of logits ratio, invariant to shift and scale.

        Reference: https://arxiv.org/abs/2003.01690, eq. 6 and 7.
        """
        logits = tf.cast(logits, tf.float32)
        if self.towards is None:
            top = tf.math.top_k(logits, 3).values
            return self.margin(logits) / (top[:, 0] - top[:, 2] + 1e-12)
        top = tf.math.top_k(logits, 4).values
        gain = _pick(logits, self.towards) - _pick(logits, self.labels)
        return gain / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def prepare(images, labels, towards=None) -> tuple[tf.Tensor, Goal]:
    """Returns the images of a batch as float32, and the goal.

    In a traced function only types and ranks are known; else values are checked too.

    Raises:
        ValueError: If the images are not floats `[N, H, W, C]` in `[0, 1]`, or the
            labels or `towards` not integers `[N]`.
    """
    classes = {"labels": labels}
    if towards is not None:
        classes["towards"] = towards
    if tf.executing_eagerly():
        found = validate_images(images)
        # A tape may watch the tensor that was given, so that one is used.
        images = images if tf.is_tensor(images) else found
        for name, values in classes.items():
            classes[name] = validate_labels(
                values, None, num_examples=len(images), name=name
            )
    else:
        _check_kind("images", images, 4, "floats [N, H, W, C]")
        for name, values in classes.items():
            _check_kind(name, values, 1, "integers [N]")
    return tf.cast(images, tf.float32), Goal.of(**classes)


def _check_kind(name, values, rank, wanted):
    values = tf.convert_to_tensor(values)
    right = values.dtype.is_floating if rank == 4 else values.dtype.is_integer
    if not right or values.shape.rank not in (None, rank):
        raise ValueError(
            f"`{name}` must be {wanted}. Received: {values.dtype.name} {values.shape}"
        )


def _pick(logits, classes):
    return tf.gather(logits, classes, axis=1, batch_dims=1)


def _best_other(logits, classes):
    taken = tf.one_hot(classes, tf.shape(logits)[1], on_value=_NEVER, off_value=0.0)
    return tf.reduce_max(logits + taken, axis=1)
