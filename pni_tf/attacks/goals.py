"""What an attack is after, and the losses that lead there (to be ascended)."""

from typing import NamedTuple

import tensorflow as tf

_NEVER = -1e9  # takes a class out of a maximum, and stays finite in float32


class Goal(NamedTuple):
    """Away from the labels, or towards the targets where there are some.

    Every loss takes logits `[N, K]`, returns float32 `[N]`, and is larger where the
    network is closer to being fooled.

    Attributes:
        labels: int64 `[N]`.
        targets: int64 `[N]`, or None for an untargeted attack.
    """

    labels: tf.Tensor
    targets: tf.Tensor | None = None

    @classmethod
    def of(cls, labels, targets=None) -> "Goal":
        """Makes a goal of labels and targets of any integer type."""
        targets = None if targets is None else tf.cast(targets, tf.int64)
        return cls(tf.cast(labels, tf.int64), targets)

    def take(self, rows: tf.Tensor) -> "Goal":
        """Returns the goal of some rows of the batch."""
        targets = None if self.targets is None else tf.gather(self.targets, rows)
        return Goal(tf.gather(self.labels, rows), targets)

    def repeat(self, count: int) -> "Goal":
        """Returns the goal of a batch in which each image comes `count` times."""
        targets = None if self.targets is None else tf.repeat(self.targets, count)
        return Goal(tf.repeat(self.labels, count), targets)

    def fooled(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns 1.0 where the goal is reached, else 0.0.

        The mean over draws is the share of the draws that are fooled.
        """
        predictions = tf.argmax(logits, -1)
        if self.targets is None:
            return tf.cast(predictions != self.labels, tf.float32)
        return tf.cast(predictions == self.targets, tf.float32)

    def cross_entropy(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the cross-entropy of the labels, or minus that of the targets."""
        if self.targets is None:
            return _cross_entropy(self.labels, logits)
        return -_cross_entropy(self.targets, logits)

    def margin(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns by how much the best other logit exceeds that of the label.

        For a targeted goal: by how much the target's logit exceeds the best other one.
        Positive means fooled. The margin of log-probabilities is the same number.
        """
        logits = tf.cast(logits, tf.float32)
        if self.targets is None:
            return _best_other(logits, self.labels) - _pick(logits, self.labels)
        return _pick(logits, self.targets) - _best_other(logits, self.targets)

    def dlr(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns the difference of logits ratio, invariant to shift and scale.

        Reference: https://arxiv.org/abs/2003.01690, eq. 6 and 7.
        """
        logits = tf.cast(logits, tf.float32)
        if self.targets is None:
            top = tf.math.top_k(logits, 3).values
            return self.margin(logits) / (top[:, 0] - top[:, 2] + 1e-12)
        top = tf.math.top_k(logits, 4).values
        gain = _pick(logits, self.targets) - _pick(logits, self.labels)
        return gain / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def cross_entropy(labels: tf.Tensor):
    """Returns the per-example cross-entropy of logits `[N, K]` for integer labels."""
    return Goal.of(labels).cross_entropy


def _cross_entropy(labels, logits):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=labels, logits=tf.cast(logits, tf.float32)
    )


def _pick(logits, classes):
    return tf.gather(logits, classes, axis=1, batch_dims=1)


def _best_other(logits, classes):
    taken = tf.one_hot(classes, tf.shape(logits)[1], on_value=_NEVER, off_value=0.0)
    return tf.reduce_max(logits + taken, axis=1)
