"""Attacks an exported SavedModel with the Adversarial Robustness Toolbox (ART).

python examples/attack_with_art.py runs/digits_pni_w/saved_model

The noise of the weights is drawn once a call and shared by the batch. ART's
`EoTTensorFlowV2` puts copies of each image into one batch, which would all see the same
draw, so ART gets a function that averages the logits of separate calls. Beware of the
success that ART reports: it is not against the labels, but the share of images whose
prediction differs from the one before the attack, each of one call.
"""

import digits_data
import numpy as np
import tensorflow as tf
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import TensorFlowV2Classifier
from art.utils import compute_success


def mean_of_calls(serve, draws):
    """Returns ART's view of a network: the mean logits of separate calls."""

    def mean_logits(images, training=False):
        return tf.add_n([serve(images) for _ in range(draws)]) / draws

    return TensorFlowV2Classifier(
        mean_logits,
        nb_classes=10,
        input_shape=(8, 8, 1),
        loss_object=tf.nn.softmax_cross_entropy_with_logits,
        clip_values=(0.0, 1.0),
    )


def main():
    args = digits_data.options(__doc__.splitlines()[0])
    images, labels = digits_data.test_set(args.examples)
    loaded = tf.saved_model.load(args.saved_model)
    # The random starts and the noise repeat; without this they are new each time.
    np.random.seed(0)
    loaded.reseed(0)

    found, claims = {}, {}
    for name, draws, steps in (
        ("none", 1, 0),
        ("PGD, draws a step: 1", 1, args.steps),
        (f"PGD, draws a step: {args.draws}", args.draws, args.steps),
    ):
        classifier = mean_of_calls(loaded.serve, draws)
        attack = ProjectedGradientDescent(
            classifier,
            eps=args.epsilon,
            eps_step=2.5 * args.epsilon / args.steps,
            max_iter=steps,
            num_random_init=1,
            batch_size=len(images),
            verbose=False,
        )
        found[name] = attack.generate(images, labels)
        success = compute_success(classifier, images, labels, found[name])
        claims[name] = 1 - success
    digits_data.print_table(loaded, images, labels, found, claims)


if __name__ == "__main__":
    main()
