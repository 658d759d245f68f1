"""Adversarial training of a random network (eq. 11 of the paper)."""

import functools
import inspect
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pni_tf.attacks.base import Attack, fold_in
from pni_tf.attacks.draws import ExpectationOverNoise
from pni_tf.checks import (
    check_choice,
    check_logits,
    check_number,
    validate_images,
    validate_labels,
)
from pni_tf.files import replacing
from pni_tf.noise.fusion import fuse_batch_norm
from pni_tf.noise.injection import strip_noise
from pni_tf.training.replicas import (
    DistributedModel,
    average_over_replicas,
    share_of_batch,
    states_of_replicas,
)

ATTACK_LABELS = ("predicted", "true")


class PNIAdversarialModel(DistributedModel):
    """Trains the model that it holds on clean and adversarial images.

    The loss is `clean_weight * L(g(x), t) + adversarial_weight * L(g(x_adv), t)` plus
    the model's regularisation, counted once. In each step the clean images pass in
    training mode; the attack then runs on the model in inference mode with its noise
    on; the adversarial images pass in training mode; one update follows. Each of these
    forward passes draws fresh noise. The attack differentiates with respect to the
    images only, and leaves batch statistics alone.

    `fit`, `evaluate` and callbacks are Keras' own, `save` saves the plain model, and
    the metrics are `loss`, `clean_loss`, `clean_accuracy`, `adversarial_loss` and
    `adversarial_accuracy`, also on validation data, where the attack moves away from
    the true labels.

    Args:
        model: A Functional or Sequential classifier that maps images `[N, H, W, C]` in
            `[0, 1]` to logits `[N, K]`.
        attack: The attack of the inner maximisation, or None for plain training.
        clean_weight: Weight of the clean loss, `w_c` in eq. 11. Ignored without attack.
            With 0 and true `attack_labels`, training leaves the clean images out
            altogether, as Madry et al. do, unless `compile` got metrics of them; the
            clean metrics of training are then NaN.
        adversarial_weight: Weight of the adversarial loss, `w_a` in eq. 11.
        attack_labels: Labels that the training attack moves away from: `"predicted"`,
            the argmax of the clean forward pass, which prevents label leaking, or
            `"true"`.
        noise_in_attack: Whether the training attack sees the noise. False is the
            ablation of Table 1.
        epoch_delay: Number of first epochs that train on clean images only; their
            adversarial metrics are NaN.
        validation_attack: The attack on validation data; None takes `attack`.
        validation_draws: Draws of the expectation over noise in `validation_attack`.
        seed: Integer seed of the attack's random start, or None.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        ValueError: If an argument is out of range, or the outputs of `model` are
            probabilities instead of logits.

    Example:

    >>> trainer = PNIAdversarialModel(inject_pni(network), attack=PGD(steps=7))
    >>> trainer.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
    >>> trainer.fit(images, labels, validation_data=(test_images, test_labels))

    Reference: https://arxiv.org/abs/1811.09310, eq. 10-12.
    """

    holds_network = True  # `network_of` asks for it.

    def __init__(
        self,
        model: keras.Model,
        *,
        attack: Attack | None = None,
        clean_weight: float = 0.5,
        adversarial_weight: float = 0.5,
        attack_labels: str = "predicted",
        noise_in_attack: bool = True,
        epoch_delay: int = 0,
        validation_attack: Attack | None = None,
        validation_draws: int = 1,
        seed: int | None = None,
        **kwargs,
    ):
        if not isinstance(model, keras.Model):
            raise ValueError(f"`model` must be a Keras model. Received: model={model}")
        # In the model's dtype policy, or Keras would not scale the loss for float16.
        super().__init__(**{"dtype": model.dtype_policy, **kwargs})
        check_logits(model)
        check_number("clean_weight", clean_weight, minimum=0)
        check_number("adversarial_weight", adversarial_weight, minimum=0)
        check_number("epoch_delay", epoch_delay, minimum=0, integer=True)
        check_number("validation_draws", validation_draws, minimum=1, integer=True)
        if clean_weight + adversarial_weight == 0:
            raise ValueError(
                "`clean_weight` and `adversarial_weight` must not both be zero"
            )
        check_choice("attack_labels", attack_labels, ATTACK_LABELS)
        attacks = {"attack": attack, "validation_attack": validation_attack}
        for name, value in attacks.items():
            if value is not None and not isinstance(value, Attack):
                raise ValueError(
                    f"`{name}` must be a `pni_tf.Attack` such as `PGD()`, or None. "
                    f"Received: {name}={value!r}"
                )
        self.model = model
        self.attack = attack
        self.clean_weight = clean_weight
        self.adversarial_weight = adversarial_weight
        self.attack_labels = attack_labels
        self.noise_in_attack = noise_in_attack
        self.epoch_delay = epoch_delay
        self.validation_attack = validation_attack or attack
        self.validation_draws = validation_draws
        self.seed_generator = keras.random.SeedGenerator(seed)
        self._clean_only = False
        names = ["clean_loss", "clean_accuracy"]
        if self.validation_attack is not None:
            names += ["adversarial_loss", "adversarial_accuracy"]
        self._trackers = {name: keras.metrics.Mean(name=name) for name in names}
        # Hidden in functions: Keras would track the views and save their layers twice.
        fast = fuse_batch_norm(model)
        target = fast if noise_in_attack else fuse_batch_norm(strip_noise(model))
        self._forward = lambda images, training: fast(images, training=training)
        self._training_attack_target = lambda images: target(images, training=False)
        self.built = True

    def call(self, images, training=None):
        return self._forward(images, training)

    def compile(self, optimizer="sgd", loss=None, metrics=None, **kwargs):
        """Configures training; the arguments are those of `keras.Model.compile`.

        `loss` is a `keras.losses.Loss` on logits, by default the sparse categorical
        cross-entropy of integer labels; `metrics` are of the clean predictions.

        Raises:
            ValueError: If `loss` is a name, or expects probabilities.
        """
        if loss is None:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if not isinstance(loss, keras.losses.Loss) or not getattr(
            loss, "_fn_kwargs", {}
        ).get("from_logits", True):
            raise ValueError(
                "`loss` must be a `keras.losses.Loss` on logits, such as "
                "`keras.losses.SparseCategoricalCrossentropy(from_logits=True)`. "
                f"Received: loss={loss!r}"
            )
        metrics = metrics or None  # Keras wants to see the outputs of an empty list
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **kwargs)
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas > 1 and (self.jit_compile is True or self.steps_per_execution > 1):
            raise ValueError(
                "Keras cannot use `jit_compile=True` or `steps_per_execution` above 1 "
                f"with {replicas} replicas: leave them at their defaults. Received: "
                f"jit_compile={self.jit_compile}, "
                f"steps_per_execution={self.steps_per_execution}"
            )
        self._loss_fn = loss
        self._clean_pass = (
            self.clean_weight > 0
            or self.attack_labels == "predicted"
            or bool(metrics or kwargs.get("weighted_metrics"))
        )

    def fit(self, *args, **kwargs):
        """Trains the model; the arguments are those of `keras.Model.fit`.

        Raises:
            ValueError: If NumPy arrays are not images in `[0, 1]`, or not labels of the
                model's classes. The values of other kinds of data are not looked at.
        """
        bound = inspect.signature(super().fit).bind(*args, **kwargs)
        pairs = [(bound.arguments.get("x"), bound.arguments.get("y"))]
        validation = bound.arguments.get("validation_data")
        if isinstance(validation, tuple):
            pairs.append(validation[:2])
        for images, labels in pairs:
            if isinstance(images, np.ndarray):
                validate_images(images)
            if isinstance(labels, np.ndarray) and labels.ndim == 1:
                validate_labels(labels, self.model.output_shape[-1])
        callbacks = bound.arguments.get("callbacks") or []
        if isinstance(callbacks, keras.callbacks.CallbackList):
            raise ValueError("`callbacks` must be a list of callbacks")
        bound.arguments["callbacks"] = [_EpochDelay(), *keras.tree.flatten(callbacks)]
        return super().fit(*bound.args, **bound.kwargs)

    def train_step(self, data):
        images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        share = 1.0
        if self._loss_fn.reduction != "sum":
            share = share_of_batch(tf.shape(images)[0])
            with tf.control_dependencies([tf.convert_to_tensor(share)]):
                # Otherwise a replica without images would fail where the others wait
                # for it already, and the error might be theirs.
                images = tf.identity(images)
        batch = images, labels, sample_weight
        clean = adversarial = None, None
        attacks = self.attack is not None and not self._clean_only
        with tf.GradientTape() as tape:
            if self._clean_pass or not attacks:
                clean = self._loss_and_logits(batch, training=True)
            if attacks:
                target = self._training_attack_target
                with tape.stop_recording():
                    if self.attack_labels == "true":
                        attacked = _class_indices(labels)
                    else:
                        attacked = tf.argmax(clean[1], -1)
                    perturbed = self.attack.perturb(
                        target, images, attacked, seed=self._attack_seed()
                    )
                adversarial = self._loss_and_logits(
                    (perturbed, labels, sample_weight), training=True
                )
            # Read before replicas wait for each other: Keras' list of losses is theirs
            # in common, and the last forward pass has written it.
            loss = self._weighted(clean[0], adversarial[0])
            penalty = self._penalty(loss.dtype)
            scaled_loss = self.optimizer.scale_loss(share * loss + penalty)
        variables = self.trainable_variables
        gradients = tape.gradient(scaled_loss, variables)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        average_over_replicas(states_of_replicas(self.model))
        return self._report(batch, loss + penalty, clean, adversarial)

    def test_step(self, data):
        batch = keras.utils.unpack_x_y_sample_weight(data)
        images, labels, sample_weight = batch
        clean = self._loss_and_logits(batch, training=False)
        adversarial = None, None
        if self.validation_attack is not None:
            target = functools.partial(self._forward, training=False)
            if self.validation_draws > 1:
                target = ExpectationOverNoise(target, self.validation_draws)
            perturbed = self.validation_attack.perturb(
                target, images, _class_indices(labels), seed=self._attack_seed()
            )
            adversarial = self._loss_and_logits(
                (perturbed, labels, sample_weight), training=False
            )
        loss = self._weighted(clean[0], adversarial[0])
        loss += self._penalty(loss.dtype)
        return self._report(batch, loss, clean, adversarial)

    def save(self, filepath, overwrite=True, **kwargs):
        """Saves the model that was trained, without its trainer (see `keras.Model`).

        The file is replaced in one step: an interruption leaves the earlier one.
        """
        path = Path(filepath)
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists, and `overwrite` is False")
        with replacing(path) as scratch:
            self.model.save(scratch, **kwargs)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["seed_generator_state"] = self.seed_generator.state.numpy()

    def load_own_variables(self, store):
        self.seed_generator.state.assign(store["seed_generator_state"])

    def _loss_and_logits(self, batch, training):
        images, labels, sample_weight = batch
        logits = self._forward(images, training)
        return self._loss_fn(labels, logits, sample_weight), logits

    def _weighted(self, clean_loss, adversarial_loss):
        """Returns the loss of eq. 11, without the model's regularisation."""
        if self.attack is None or adversarial_loss is None:
            return clean_loss
        if clean_loss is None:
            return self.adversarial_weight * adversarial_loss
        return (
            self.clean_weight * clean_loss + self.adversarial_weight * adversarial_loss
        )

    def _penalty(self, dtype):
        """Returns the share of one replica in the model's regularisation.

        Gradients are summed over replicas, and Keras has given each its share of the
        loss.
        """
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return sum(tf.cast(p, dtype) for p in self.model.losses) / replicas

    def _attack_seed(self):
        """Returns a fresh seed, a different one on each replica."""
        context = tf.distribute.get_replica_context()
        return fold_in(self.seed_generator.next(), context.replica_id_in_sync_group)

    def _report(self, batch, loss, clean, adversarial):
        images, labels, sample_weight = batch
        # Keras divides a replica's loss by their number; what is shown is undivided.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        count = tf.shape(images)[0]
        self._loss_tracker.update_state(replicas * loss, sample_weight=count)
        parts = {"clean": clean, "adversarial": adversarial}
        for name, (part_loss, logits) in parts.items():
            if logits is not None:
                tracker = self._trackers[f"{name}_loss"]
                tracker.update_state(replicas * part_loss, sample_weight=count)
                correct = tf.argmax(logits, -1) == _class_indices(labels)
                self._trackers[f"{name}_accuracy"].update_state(correct)
        if clean[1] is None:  # Then there are no metrics but those above.
            return self.get_metrics_result()
        return self.compute_metrics(images, labels, clean[1], sample_weight)

    def get_metrics_result(self):
        logs = super().get_metrics_result()
        # Keras gives 0 as the mean over nothing; epochs on clean images have no attack.
        for name, tracker in self._trackers.items():
            logs[name] = tf.where(tracker.count > 0, logs[name], float("nan"))
        return logs


class _EpochDelay(keras.callbacks.Callback):
    """Turns the attack on when the epochs that train on clean images are over."""

    def on_epoch_begin(self, epoch, logs=None):
        clean_only = epoch < self.model.epoch_delay
        if clean_only != self.model._clean_only:
            self.model._clean_only = clean_only
            # The two phases are two graphs; a branch in one would slow down both.
            self.model.make_train_function(force=True)


def _class_indices(labels):
    """Returns integer labels `[N]` for integer labels `[N]`, `[N, 1]` or one-hot."""
    if labels.shape.rank == 2 and labels.shape[-1] != 1:
        return tf.argmax(labels, -1)
    return tf.cast(tf.reshape(labels, [-1]), tf.int64)
