"""What in a network's gradient makes attacks on it misleading."""

import numpy as np
import tensorflow as tf

from pni_tf.attacks.base import _FLOAT16_LOSS_SCALE, LogitsFn

_DEAD = 1e-10  # below this, float32 steps of an optimiser go nowhere


def gradient_warnings(logits_fn: LogitsFn, images, labels=None) -> list[str]:
    """Names a gradient that is missing, not finite or zero.

    Args:
        logits_fn: Callable from images to logits `[N, K]`.
        images: Float32 `[N, H, W, C]` in `[0, 1]`.
        labels: Integers `[N]`: the gradient is that of their cross-entropy. None takes
            the predicted labels: the gradient of any other survives saturated logits.

    Returns:
        Sentences that say how many images are concerned; none if all is well.
    """
    images = tf.convert_to_tensor(images, tf.float32)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = logits_fn(images)
        # As the attacks do: what vanishes without the scale does not vanish for them.
        scale = _FLOAT16_LOSS_SCALE if logits.dtype == tf.float16 else 1.0
        logits = tf.cast(logits, tf.float32)
        if labels is None:
            labels = tf.argmax(logits, -1)
        losses = scale * tf.nn.sparse_softmax_cross_entropy_with_logits(
            tf.cast(labels, tf.int64), logits
        )
    gradient = tape.gradient(losses, images)
    if gradient is None:
        return [
            "no gradient with respect to the images: white-box attacks cannot work; "
            "use attacks that need no gradient (Square, ZOO, substitute, transfer)"
        ]
    size = np.max(np.abs(gradient), axis=tuple(range(1, gradient.shape.rank))) / scale
    found, count = [], len(size)
    if not np.isfinite(size).all():
        found.append(
            f"the gradient is not finite on {np.sum(~np.isfinite(size))} of {count} "
            "images: attacks take such entries for zero"
        )
    if (size < _DEAD).any():
        found.append(
            f"the gradient vanishes on {np.sum(size < _DEAD)} of {count} images: "
            "attacks on the cross-entropy overrate this model; believe APGD-DLR, C&W "
            "and Square more"
        )
    return found
