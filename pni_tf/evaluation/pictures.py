"""Images that fool a model, with both predictions (Fig. 1 of the paper)."""

import dataclasses

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from pni_tf import plots
from pni_tf.evaluation.results import Result
from pni_tf.evaluation.store import ResultStore
from pni_tf.targets import Target

_CHUNK = 64  # So many images are looked at together.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """Some images and their adversarial twins.

    Attributes:
        attack: Name of the attack.
        indices: Which of the evaluated images they are, `[N]`.
        images: Float32 `[N, H, W, C]` in `[0, 1]`.
        adversarial: The same of their twins.
        labels: True labels `[N]`, which the network gives to the images.
        predictions: Labels `[N]` that it gives to the twins.
        confidences: Probabilities `[N]` of either; of a random network the mean over
            draws.
        epsilon: Scales the perturbation in a figure.
        class_names: One name a class, or None.
    """

    attack: str
    indices: np.ndarray
    images: np.ndarray
    adversarial: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    confidences: tuple[np.ndarray, np.ndarray]
    epsilon: float
    class_names: tuple[str, ...] | None

    def to_json(self) -> list[dict]:
        """Returns an entry for each image, as JSON can hold it."""

        def name(label):
            return self.class_names[label] if self.class_names else str(label)

        return [
            {
                "attack": self.attack,
                "image": int(index),
                "label": name(self.labels[i]),
                "confidence": float(self.confidences[0][i]),
                "adversarial_label": name(self.predictions[i]),
                "adversarial_confidence": float(self.confidences[1][i]),
            }
            for i, index in enumerate(self.indices)
        ]

    def plot(self) -> Figure:
        """Draws them."""
        return plots.plot_adversarial_examples(
            self.images,
            self.adversarial,
            self.labels,
            self.predictions,
            epsilon=self.epsilon,
            class_names=self.class_names,
            confidences=self.confidences,
            title=self.attack,
        )


def turned_around(
    target: Target,
    images: np.ndarray,
    results: list[Result],
    store: ResultStore,
    *,
    count: int,
    draws: int,
    epsilon: float,
    class_names: tuple[str, ...] | None,
) -> Pictures | None:
    """Returns the first images that are right, and wrong under the first attack.

    Both by the mean of the probabilities over some draws. None if there is no such
    image, or the target gives labels only. The store holds the adversarial images.
    """
    result = next((r for r in results if r.kind == "attack"), None)
    if result is None or target.labels_only:
        return None
    with np.load(store.path(result.scenario.name), allow_pickle=False) as file:
        adversarial = file["images"]
    found = []
    # Most that are wrong now were right before, so the first few nearly always do.
    wrong = np.flatnonzero(result.correct_share < 0.5)
    for part in np.split(wrong, range(_CHUNK, len(wrong), _CHUNK)):
        before = _probabilities(target, images[part], draws)
        after = _probabilities(target, adversarial[part], draws)
        labels = result.labels[part]
        turned = (before.argmax(-1) == labels) & (after.argmax(-1) != labels)
        found += [
            (part[i], labels[i], after[i].argmax(), before[i].max(), after[i].max())
            for i in np.flatnonzero(turned)
        ]
        if len(found) >= count:
            break
    if not found:
        return None
    indices, labels, predictions, *confidences = map(
        np.array, zip(*found[:count], strict=True)
    )
    return Pictures(
        attack=result.scenario.name,
        indices=indices,
        images=images[indices],
        adversarial=adversarial[indices],
        labels=labels,
        predictions=predictions,
        confidences=tuple(confidences),
        epsilon=epsilon,
        class_names=class_names,
    )


def _probabilities(target, images, draws):
    if target.stochastic and not target.probabilities:
        return target.predict_mean(images, draws)
    outputs = target.logits(tf.convert_to_tensor(images)).numpy()
    return outputs if target.probabilities else tf.nn.softmax(outputs).numpy()
