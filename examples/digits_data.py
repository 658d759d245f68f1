"""What the attack scripts share: the options, the images and the scoring."""

import argparse

import numpy as np
from sklearn.datasets import load_digits

SCORING_DRAWS = 20


def options(description):
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("saved_model", help="folder of the SavedModel")
    parser.add_argument("--epsilon", type=float, default=0.15, help="Linf radius")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--draws", type=int, default=20, help="averaged in a step")
    parser.add_argument("--examples", type=int, default=100)
    return parser.parse_args()


def test_set(examples):
    """Returns the first test images, float32 `[N, 8, 8, 1]` in [0, 1], and labels."""
    digits = load_digits()
    # Every fifth image of each class; training has seen all the others.
    rows = np.sort(np.argsort(digits.target, kind="stable")[::5])[:examples]
    images = digits.images[rows, ..., np.newaxis] / 16
    return images.astype(np.float32), digits.target[rows].astype(np.int64)


def accuracies(serve, images, labels, draws):
    """Returns the accuracy (%) of each of several draws."""
    predictions = [np.argmax(serve(images), -1) for _ in range(draws)]
    return [100 * np.mean(predicted == labels) for predicted in predictions]


def print_table(loaded, images, labels, found, claims=None):
    """Scores what attacks have found, on draws that they have not seen.

    Args:
        loaded: The SavedModel.
        images, labels: What was attacked.
        found: The adversarial images of each attack, by its name.
        claims: The accuracy in [0, 1] that the tool itself reports, by the same names.
    """
    print(f"{len(images)} test images. Accuracy (%): ", end="")
    print("claimed by the tool, " if claims else "", end="")
    print(f"mean ± std of {SCORING_DRAWS} fresh draws, noise off")
    claimed = f"{'claimed':>10}" if claims else ""
    head = f"{'attack':26}{claimed}{'fresh draws':>16}{'noise off':>12}"
    print(f"{head}{'max change':>13}")
    for name, adversarial in found.items():
        claimed = f"{100 * claims[name]:>10.2f}" if claims else ""
        noisy = accuracies(loaded.serve, adversarial, labels, SCORING_DRAWS)
        noisy = f"{np.mean(noisy):.2f} ± {np.std(noisy, ddof=1):.2f}"
        (clean,) = accuracies(loaded.serve_clean, adversarial, labels, draws=1)
        change = np.abs(adversarial - images).max()
        print(f"{name:26}{claimed}{noisy:>16}{clean:>12.2f}{change:>13.4f}")
