"""Robust accuracy: adversarial examples are found on some draws, scored on others."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import math
import queue
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from pni_tf import files
from pni_tf.attacks.base import fold_in
from pni_tf.attacks.carlini_wagner import CarliniWagnerL2
from pni_tf.attacks.draws import ExpectationOverNoise, probe_gradient
from pni_tf.checks import check_number, validate_images, validate_labels
from pni_tf.distribution.workers import Workers
from pni_tf.evaluation.record import RULE
from pni_tf.evaluation.results import Result, Scenario
from pni_tf.evaluation.store import ResultStore, examples_digest
from pni_tf.targets import Target


def evaluate_robustness(
    target: Target,
    images: np.ndarray,
    labels: np.ndarray,
    scenarios: list[Scenario],
    *,
    draws: int = 10,
    batch_size: int = 128,
    seed: int = 0,
    store: ResultStore | None = None,
    progress: Callable[[Iterator, str], Iterator] | None = None,
    workers: Workers | None = None,
) -> list[Result]:
    """Attacks a target and scores the adversarial images on fresh draws.

    Each adversarial image is found once, on draws of its own, and then classified by
    `draws` further forward passes; and by five times as many others, from which `union`
    learns which attack is the worst for the image. A deterministic target is scored
    once. A row depends on its own settings and the seed, not on the other rows, nor on
    the number of devices: batches are shared out whole over the `replicas` of the
    target and over the workers.

    Args:
        target: What `load_target` returns.
        images: Float32 `[N, H, W, C]` in `[0, 1]`.
        labels: Integers `[N]`.
        scenarios: What to evaluate, in the order of the results.
        draws: Number of draws that score each image.
        batch_size: Images in a batch.
        seed: Seed of the noise, where the target can be reseeded, and of the attacks.
        store: Takes the arrays of each finished batch and scenario, and gives back
            those of an earlier evaluation with the same settings.
        progress: Wraps the iterator over batches, as
            `lambda batches, name: tqdm(batches, desc=name)` does.
        workers: Processes that share the work; all of them call this function, with a
            store in a folder that they share, and all get all results.

    Returns:
        One result for each scenario.

    Raises:
        ValueError: If the images or labels are not what the target takes, `draws` or
            `batch_size` is not positive, or several workers have no store.

    Example:

    >>> target = load_target(model)
    >>> results = evaluate_robustness(
    ...     target, images, labels, standard_scenarios(epsilon=8 / 255)
    ... )
    """
    check_number("draws", draws, minimum=1, integer=True)
    check_number("batch_size", batch_size, minimum=1, integer=True)
    workers = workers or Workers()
    if workers.count > 1 and store is None:
        raise ValueError("Several workers need a `store` in a folder that they share")
    images = validate_images(images, image_shape=target.image_shape)
    labels = validate_labels(labels, target.num_classes, num_examples=len(images))
    settings = {
        "images": examples_digest(images, labels),
        "draws": int(draws) if target.stochastic else 1,  # JSON knows no NumPy.
        "batch_size": int(batch_size),
        "seed": int(seed),
    }
    engine = _Engine(target, images, labels, settings, store, workers)
    probe = None
    if any(scenario.gradient_based for scenario in scenarios):
        probe = probe_gradient(target.logits, images[:batch_size], labels[:batch_size])
    results = []
    for scenario in scenarios:
        if target.probabilities and isinstance(scenario.attack, CarliniWagnerL2):
            raise ValueError(
                "The attack of Carlini and Wagner needs logits, and the outputs of "
                f"{target.name!r} look like probabilities: remove the softmax, or take "
                "the logarithm of its outputs"
            )
        warnings = [*target.warnings, *scenario.warnings(target.stochastic)]
        if scenario.gradient_based:
            # What holds of these images replaces what held of random ones.
            before = target.gradient.warnings if target.gradient else ()
            warnings = [w for w in warnings if w not in before] + [*probe.warnings]
        fields = {
            "scenario": scenario,
            "target": target.name,
            "stochastic": target.stochastic,
            "labels": labels,
            "seed": int(seed),
            "warnings": tuple(dict.fromkeys(warnings)),
            "ensemble": target.draws,
        }
        what = scenario.attack, scenario.towards
        same = [r for r in results if (r.scenario.attack, r.scenario.towards) == what]
        if same and not target.stochastic:
            # Without noise there is nothing that an expectation would change.
            results.append(dataclasses.replace(same[0], **fields))
            continue
        arrays = engine.arrays(scenario, progress or (lambda batches, name: batches))
        if store is not None:
            arrays.pop("images", None)
        results.append(Result(**fields, **arrays))
    return results


@dataclasses.dataclass(frozen=True)
class _Engine:
    """Attacks and scores the images of one evaluation, batch by batch.

    Why it is not just a loop: a batch must come out the same on any device and worker,
    in any order, alone or after an interruption. So all its noise follows from the
    settings of its row and its place, and nothing else passes from batch to batch.
    """

    target: Target
    images: np.ndarray
    labels: np.ndarray
    settings: dict[str, str | int]
    store: ResultStore | None
    workers: Workers

    def arrays(self, scenario, progress) -> dict[str, np.ndarray]:
        """Returns the arrays of a `Result`, from the store where it has them."""
        row = {
            **self.settings,
            "attack": repr(scenario.attack),
            RULE: scenario.towards,
            "expectation": int(scenario.expectation) if self.target.stochastic else 1,
        }
        stamp = {**row, "target": self.target.name}
        store, workers = self.store, self.workers
        arrays = store.read(scenario.name, stamp) if store else None
        # Shared folders show a new file to some workers later than to others.
        if workers.gather([arrays is not None]).all():
            return {name: value for name, value in arrays.items() if name != "labels"}

        copies, idle = [self.target], queue.SimpleQueue()
        if getattr(scenario.attack, "source", None) is None:  # There is but one source.
            copies += self.target.replicas
        for copy in copies:  # Each is traced once, and not if there is nothing to do.
            idle.put((copy, functools.cache(lambda c=copy: _compiled(c, scenario))))

        def batch(start):
            part = store.read_batch(scenario.name, start, stamp) if store else None
            if part is None:
                copy, attack_and_score = idle.get()
                try:
                    with tf.device(copy.device):
                        part = self._computed(
                            scenario, row, start, copy, attack_and_score
                        )
                finally:
                    idle.put((copy, attack_and_score))
                if store:
                    store.write_batch(scenario.name, start, stamp, part)
            return part

        starts = range(0, len(self.images), self.settings["batch_size"])
        own = starts[workers.index :: workers.count]
        with _map_over(len(copies)) as map_over:
            shown = zip(progress(own, scenario.name), map_over(batch, own), strict=True)
            parts = [part for _, part in shown]
        if workers.count > 1:
            workers.barrier()
            parts = [store.read_batch(scenario.name, start, stamp) for start in starts]
            workers.barrier()  # The chief removes them when all have them.
            if None in parts:
                raise ValueError(
                    f"A batch of another worker is not in {store.directory}: it must "
                    "lie on a file system that all workers share"
                )
        arrays = {}
        for name in parts[0]:  # The images are the second axis of two arrays.
            axis = 1 if name in ("predictions", "selection") else 0
            arrays[name] = np.concatenate([part[name] for part in parts], axis)
        if store and workers.is_chief:
            store.write(scenario.name, stamp, {"labels": self.labels, **arrays})
        return arrays

    def _computed(self, scenario, row, start, copy, attack_and_score):
        batch = slice(start, start + self.settings["batch_size"])
        noise, source_noise = _seeds(row, start)[:2]
        # The attack's own seed is the same in all rows, so that on a deterministic
        # target more restarts contain the fewer.
        seeds = _seeds([self.settings, scenario.towards], start)[2:]
        # The source first: it may share its generators with the target. And with
        # another seed: two networks of one architecture would draw the same noise.
        for network, seed in (
            (getattr(scenario.attack, "source", None), source_noise),
            (copy, noise),
        ):
            if getattr(network, "reseed", None) is not None:
                network.reseed(seed)
        arrays = attack_and_score()(
            tf.constant(self.images[batch]),
            tf.constant(self.labels[batch]),
            tf.constant(seeds, tf.int64),
            tf.constant(self.settings["draws"]),
        )
        return {name: value.numpy() for name, value in arrays.items()}


@contextlib.contextmanager
def _map_over(copies):
    """Yields `map`; for several copies one that computes ahead, with a thread each."""
    if copies == 1:
        yield map
        return
    pool = concurrent.futures.ThreadPoolExecutor(copies)
    try:
        yield pool.map
    finally:
        # After an interruption, the batches that are waiting are dropped.
        pool.shutdown(cancel_futures=True)


# Attacks may be nearly equal; a choice between them by few draws is mostly noise.
_SELECTION = 5


def _seeds(settings, start):
    """Returns four integers that follow from the settings of a row and its batch.

    A batch that is computed later, or without the batches and rows before it, so sees
    the same noise.
    """
    text = json.dumps([settings, start], sort_keys=True)
    digest = bytes.fromhex(files.digest(text))
    return [int.from_bytes(digest[i : i + 4], "big") >> 1 for i in (0, 4, 8, 12)]


def _compiled(target, scenario):
    """Returns one graph that attacks a batch and classifies it on fresh draws."""
    logits = attacked = target.logits
    # The draws of an ensemble count: its expectation is over as many in all.
    calls = math.ceil(scenario.expectation / target.draws)
    if target.stochastic and calls > 1:
        attacked = ExpectationOverNoise(logits, calls)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, *target.image_shape], tf.float32),
            tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([2], tf.int64),
            tf.TensorSpec([], tf.int32),
        ],
        autograph=False,  # It has nothing to convert, and traces a fifth longer.
    )
    def attack_and_score(images, labels, seed, draws):
        arrays, adversarial = {}, images
        if scenario.attack is not None:
            towards = _classes(
                scenario.towards, attacked, target.num_classes, images, labels, seed
            )
            outcome = scenario.attack.run(
                attacked, images, labels, towards=towards, seed=seed
            )
            adversarial = outcome.images
            change = tf.reshape(adversarial - images, [tf.shape(images)[0], -1])
            arrays = {
                "images": adversarial,
                "claimed": outcome.found,
                "l2": tf.norm(change, axis=1),
                "linf": tf.reduce_max(tf.abs(change), axis=1),
                "queries": outcome.queries,
                "gradients": outcome.gradients,
            }
            if towards is not None:
                arrays["towards"] = towards

        def classify(draws):
            return tf.map_fn(
                lambda _: tf.argmax(logits(adversarial), -1),
                tf.range(draws),
                fn_output_signature=tf.int64,
                parallel_iterations=1,
            )

        arrays["predictions"] = arrays["selection"] = classify(draws)
        if target.stochastic:
            arrays["selection"] = classify(_SELECTION * draws)
        return arrays

    # Traced here, once: calls of a fresh function each time look like retracing.
    return attack_and_score.get_concrete_function()


def _classes(towards, logits_fn, classes, images, labels, seed):
    """Returns the class that a targeted attack aims at for each image, or None."""
    if towards is None:
        return None
    if towards == "next":
        return (labels + 1) % classes
    if towards == "random":
        shift = tf.random.stateless_uniform(
            tf.shape(labels), fold_in(seed, 1), 1, classes, tf.int64
        )
        return (labels + shift) % classes
    own = tf.one_hot(labels, classes, on_value=1e9, off_value=0.0)
    return tf.argmin(logits_fn(images) + own, -1)


def progress_bar(name: str):
    """Returns the `progress` of `evaluate_robustness` for a column."""
    return lambda batches, row: tqdm(
        batches, desc=f"{name}: {row}", leave=False, disable=None
    )
