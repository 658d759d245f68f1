"""Attacks an exported SavedModel with TensorFlow alone.

python examples/attack_with_tensorflow.py runs/digits_pni_w/saved_model

PGD, once on the gradient of a single draw of the noise a step and once on the mean
gradient of several. The noise of the weights is drawn once a call and shared by the
batch, so each draw is a call of its own: copies of an image in one batch would all see
the same draw.
"""

import digits_data
import tensorflow as tf


def mean_gradient(serve, images, labels, draws):
    """Returns the gradient of the cross-entropy, the mean of separate calls."""
    gradients = []
    for _ in range(draws):
        with tf.GradientTape() as tape:
            tape.watch(images)
            logits = serve(images)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        gradients.append(tape.gradient(loss, images))
    return tf.add_n(gradients) / draws


def pgd(serve, images, labels, epsilon, steps, draws):
    """Returns the images after PGD in the Linf ball, from a random start."""
    step_size = 2.5 * epsilon / steps
    low = tf.maximum(images - epsilon, 0.0)
    high = tf.minimum(images + epsilon, 1.0)
    start = images + tf.random.uniform(images.shape, -epsilon, epsilon)
    adversarial = tf.clip_by_value(start, low, high)
    for _ in range(steps):
        gradient = mean_gradient(serve, adversarial, labels, draws)
        adversarial += step_size * tf.sign(gradient)
        adversarial = tf.clip_by_value(adversarial, low, high)
    return adversarial


def main():
    args = digits_data.options(__doc__.splitlines()[0])
    images, labels = digits_data.test_set(args.examples)
    loaded = tf.saved_model.load(args.saved_model)
    # The random starts and the noise repeat; without this they are new each time.
    tf.random.set_seed(0)
    loaded.reseed(0)

    given = images, labels, args.epsilon, args.steps
    found = {
        "none": images,
        "PGD, draws a step: 1": pgd(loaded.serve, *given, draws=1),
        f"PGD, draws a step: {args.draws}": pgd(loaded.serve, *given, args.draws),
        "PGD, found with noise off": pgd(loaded.serve_clean, *given, draws=1),
    }
    digits_data.print_table(loaded, images, labels, found)


if __name__ == "__main__":
    main()
