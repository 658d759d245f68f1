"""The balls that bound a perturbation: projection, steepest ascent, random points."""

import tensorflow as tf

_TINY = 1e-12  # It keeps the normalisation of a zero gradient finite.


class _Norm:
    """A norm of the perturbation of an image."""

    @classmethod
    def clip(cls, images, adversarial, epsilon):
        """Returns the adversarial images moved into the ball and into [0, 1]."""
        delta = cls.project(adversarial - images, epsilon)
        return tf.clip_by_value(images + delta, 0.0, 1.0)


class Linf(_Norm):
    """Every pixel changes by at most epsilon."""

    @staticmethod
    def project(delta, epsilon):
        return tf.clip_by_value(delta, -epsilon, epsilon)

    @staticmethod
    def ascent_direction(gradient):
        return tf.sign(gradient)

    @staticmethod
    def random(shape, epsilon, seed):
        return tf.random.stateless_uniform(shape, seed, -epsilon, epsilon)


class L2(_Norm):
    """The Euclidean norm of an image's perturbation is at most epsilon."""

    @staticmethod
    def project(delta, epsilon):
        return delta * tf.minimum(1.0, epsilon / (_norm(delta) + _TINY))

    @staticmethod
    def ascent_direction(gradient):
        return gradient / (_norm(gradient) + _TINY)

    @staticmethod
    def random(shape, epsilon, seed):
        """Uniform in the ball: a random direction and a radius of `u ** (1 / n)`."""
        direction, radius = tf.unstack(
            tf.random.experimental.stateless_split(seed, 2), axis=0
        )
        delta = tf.random.stateless_normal(shape, direction)
        size = tf.cast(tf.reduce_prod(shape[1:]), tf.float32)
        uniform = tf.random.stateless_uniform(
            tf.concat([shape[:1], tf.ones_like(shape[1:])], 0), radius
        )
        return epsilon * uniform ** (1.0 / size) * L2.ascent_direction(delta)


def _norm(values):
    axes = list(range(1, values.shape.rank))
    return tf.sqrt(tf.reduce_sum(values**2, axes, keepdims=True))


NORMS = {"linf": Linf, "l2": L2}
