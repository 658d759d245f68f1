"""Attacks an exported SavedModel with Foolbox.

python examples/attack_with_foolbox.py runs/digits_pni_w/saved_model

The noise of the weights is drawn once a call and shared by the batch. Foolbox's wrapper
for expectation over transformation calls the model once a draw and averages the logits,
which is what this noise needs. Beware of the success that Foolbox reports. After one
run it is that of one more call: a single draw, or averaged logits, which no single use
of the network sees. An attack that is repeated keeps whatever any of its runs' draws
got wrong, and fresh draws get many of those images right.
"""

import digits_data
import foolbox as fb
import numpy as np
import tensorflow as tf

RUNS = 10


def main():
    args = digits_data.options(__doc__.splitlines()[0])
    images, labels = map(tf.constant, digits_data.test_set(args.examples))
    loaded = tf.saved_model.load(args.saved_model)
    # The random starts and the noise repeat; without this they are new each time.
    tf.random.set_seed(0)
    loaded.reseed(0)

    one_draw = fb.TensorFlowModel(loaded.serve, bounds=(0, 1))
    mean = fb.models.ExpectationOverTransformationWrapper(one_draw, args.draws)
    step_size = 2.5 * args.epsilon / args.steps
    pgd = fb.attacks.LinfPGD(abs_stepsize=step_size, steps=args.steps)
    found = {"none": images}
    claims = {"none": fb.utils.accuracy(one_draw, images, labels)}
    for name, attack, model in (
        ("PGD, draws a step: 1", pgd, one_draw),
        (f"the same, best of {RUNS} runs", pgd.repeat(RUNS), one_draw),
        (f"PGD, draws a step: {args.draws}", pgd, mean),
    ):
        _, found[name], success = attack(model, images, labels, epsilons=args.epsilon)
        claims[name] = 1 - np.mean(success)
    digits_data.print_table(loaded, images, labels, found, claims)


if __name__ == "__main__":
    main()
