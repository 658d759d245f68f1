"""Any network as an attack sees it."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from pni_tf.attacks.draws import GradientProbe, probe_gradient
from pni_tf.checks import check_number, validate_images, validate_labels
from pni_tf.files import cannot_load, check_sums
from pni_tf.noise.fusion import fuse_batch_norm
from pni_tf.noise.graph import load_model, network_of, noise_wrappers, reseed_noise
from pni_tf.noise.injection import strip_noise

_TAKES = (
    "A target takes one batch of float32 images [N, H, W, C] of a fixed size and "
    "returns one tensor of logits [N, K]. Received:"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A classifier as an attack sees it. Made by `load_target`.

    Attributes:
        name: What it was loaded from.
        logits: Callable from float32 images `[N, H, W, C]` in `[0, 1]` to logits.
        image_shape: `(H, W, C)`.
        num_classes: K.
        stochastic: Whether two calls on the same images differ.
        noise_free: The twin without noise, or None where there is no noise to turn off.
        warnings: What the probe found that makes attacks on it misleading.
        gradient: What it found of the gradient, in numbers; None if it did not look.
        probabilities: Whether the outputs look like probabilities, not logits.
        labels_only: Whether the logits are only the one-hot predicted label.
        reseed: Callable from an integer that makes the following draws repeatable, or
            None.
        draws: Draws of the noise in one call: more than 1 for an ensemble.
        device: The device that it computes on, or None for TensorFlow's choice.
        replicas: The same model on further devices, for evaluations to share the work.
    """

    name: str
    logits: Callable[[tf.Tensor], tf.Tensor] = dataclasses.field(repr=False)
    image_shape: tuple[int, int, int]
    num_classes: int
    stochastic: bool
    noise_free: "Target | None" = None
    warnings: tuple[str, ...] = ()
    gradient: GradientProbe | None = None
    probabilities: bool = False
    labels_only: bool = False
    reseed: Callable[[int], None] | None = dataclasses.field(default=None, repr=False)
    draws: int = 1
    device: str | None = None
    replicas: "tuple[Target, ...]" = dataclasses.field(default=(), repr=False)
    # An exported model's variables are deleted when nothing refers to it any more.
    source: object = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def has_gradient(self) -> bool:
        """Whether there is a gradient with respect to the images."""
        return self.gradient is None or not self.gradient.missing

    def predict(self, images) -> np.ndarray:
        """Returns int64 labels `[N]` of one draw: all that a label-only attack sees.

        Args:
            images: Floats `[N, H, W, C]` in `[0, 1]`; others raise a ValueError.
        """
        images = validate_images(images, image_shape=self.image_shape)
        return tf.argmax(self.logits(tf.convert_to_tensor(images)), -1).numpy()

    def predict_mean(self, images, draws: int = 10) -> np.ndarray:
        """Returns probabilities `[N, K]`: the mean of the softmax over some draws.

        Args:
            images: Floats `[N, H, W, C]` in `[0, 1]`; others raise a ValueError.
            draws: Number of draws, at least 1; see `ensemble`.
        """
        images = validate_images(images, image_shape=self.image_shape)
        logits = tf.function(self.ensemble(draws).logits, autograph=False)
        return tf.nn.softmax(logits(tf.convert_to_tensor(images))).numpy()

    def ensemble(self, draws: int = 10) -> "Target":
        """Returns the target that predicts by the mean of the softmax over some draws.

        This is how random self-ensemble and PixelDP predict. Its logits are the
        logarithms of the mean, each call with fresh draws, and attacks differentiate
        through all of them, which takes the memory of all.

        Args:
            draws: Number of draws, at least 1.

        Raises:
            ValueError: If the target is not random, or returns no logits.
        """
        check_number("draws", draws, minimum=1, integer=True)
        if not self.stochastic or self.labels_only or self.probabilities:
            raise ValueError(
                "An ensemble needs a random network that returns logits. "
                f"Received: {self.name!r}, stochastic={self.stochastic}, "
                f"labels_only={self.labels_only}, probabilities={self.probabilities}"
            )

        def logits(images):
            each = tf.map_fn(
                lambda _: tf.nn.log_softmax(self.logits(images)),
                tf.range(draws),
                fn_output_signature=tf.float32,
                parallel_iterations=1,
            )
            return tf.reduce_logsumexp(each, 0) - np.float32(np.log(draws))

        return dataclasses.replace(
            self,
            name=f"{self.name} (mean of {draws} draws)",
            logits=logits,
            draws=draws * self.draws,
            replicas=tuple(copy.ensemble(draws) for copy in self.replicas),
        )

    def frozen(self, seed: int = 0) -> "Target":
        """Returns the deterministic target that repeats one draw of the noise.

        Attacks that fail even here are defeated by something other than randomness. A
        target that cannot be reseeded raises a ValueError.
        """
        if self.reseed is None:
            raise ValueError(
                "Freezing one draw needs a target that can be reseeded: a network or "
                f"an export of pni_tf. Received: {self.name!r}"
            )

        def logits(images):
            self.reseed(seed)
            return self.logits(images)

        return dataclasses.replace(
            self,
            name=f"{self.name} (draw {seed})",
            logits=logits,
            stochastic=False,
            noise_free=None,
            reseed=None,
            replicas=(),
        )


def load_target(
    source: keras.Model | str | os.PathLike | Callable,
    *,
    image_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    labels_only: bool = False,
    devices: Sequence[str] = (),
) -> Target:
    """Returns a model as the target of attacks, and probes it once.

    Args:
        source: A Keras model, a `.keras` file, a SavedModel directory, a run directory
            of `bin/train`, or a callable from images to logits (a `tf.function` if
            it branches on tensors).
        image_shape: `(H, W, C)`; needed for a callable only.
        num_classes: K; needed with `labels_only`.
        labels_only: Whether `source` is a callable, in any framework, from a NumPy
            array of images to integer labels `[N]`, such as a remote service.
        devices: Devices that each get a copy of the model, such as
            `["GPU:0", "GPU:1"]`, for `evaluate_robustness` to use all of them; for a
            path only.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If the file is not a model, is damaged, does not map images to
            `[N, K]`, or its logits are not finite.

    Example:

    >>> target = load_target("runs/digits_pni_w/saved_model")
    >>> adversarial = PGD(steps=40).perturb(target.logits, images, labels)
    """
    if len(devices) > 0:
        return _on_devices(source, devices)
    source = network_of(source)
    if labels_only:
        return _oracle_target(source, image_shape, num_classes)
    if isinstance(source, keras.Model):
        return _keras_target(source, source.name)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.exists():
            raise FileNotFoundError(
                "Expected a `.keras` file, a SavedModel directory or a run directory. "
                f"There is nothing at {str(path)!r}"
            )
        if (path / "model.keras").exists():
            path = path / "model.keras"
        if path.is_dir():
            return _saved_model_target(path)
        return _keras_target(load_model(path), str(path))
    if not callable(source):
        raise ValueError(
            "`source` must be a Keras model, a path or a callable. "
            f"Received: source={source!r}"
        )
    return _probed(source, image_shape)


def _on_devices(source, devices):
    """Loads a path once for each device; the first copy refers to the others."""
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(
            "Only a file or directory can be loaded on several devices. "
            f"Received: source={source!r}"
        )
    copies, twins = [], []
    for device in devices:
        with tf.device(device):
            copy = load_target(source)
        twin = copy.noise_free and dataclasses.replace(copy.noise_free, device=device)
        copies.append(dataclasses.replace(copy, device=device, noise_free=twin))
        twins.append(twin)
    twin = twins[0] and dataclasses.replace(twins[0], replicas=tuple(twins[1:]))
    return dataclasses.replace(copies[0], noise_free=twin, replicas=tuple(copies[1:]))


def _oracle_target(oracle, image_shape, num_classes):
    """Wraps a function from images to labels; its logits are one-hot."""
    if not callable(oracle) or num_classes is None:
        raise ValueError(
            "With `labels_only`, `source` must be a callable from images to integer "
            "labels; give `num_classes` as well. "
            f"Received: source={oracle!r}, num_classes={num_classes}"
        )

    def labels_of(images):
        labels = oracle(images)
        try:
            return validate_labels(labels, num_classes, num_examples=len(images))
        except ValueError as error:
            raise ValueError(
                f"The oracle must return one integer label an image: {error}"
            ) from error

    def logits(images):
        labels = tf.numpy_function(labels_of, [images], tf.int64)
        return tf.ensure_shape(tf.one_hot(labels, num_classes), [None, num_classes])

    name = getattr(oracle, "__name__", repr(oracle))
    target = _probed(logits, image_shape, name=name)
    warning = (
        "only the labels are known: use transfer, substitute or random search; other "
        "attacks need logits"
    )
    return dataclasses.replace(
        target, warnings=(warning,), labels_only=True, probabilities=False
    )


def _keras_target(model, name):
    def logits_of(network):
        network = fuse_batch_norm(network)
        return lambda images: tf.cast(network(images, training=False), tf.float32)

    # A subclassed model has neither, and several inputs or outputs make a list.
    shape, outputs = (getattr(model, f"{n}_shape", None) for n in ("input", "output"))
    if not (isinstance(shape, tuple) and isinstance(outputs, tuple)) or (
        len(shape) != 4 or None in shape[1:]
    ):
        raise ValueError(
            f"{_TAKES} a model with input shape {shape} and output shape {outputs}"
        )
    warnings = [
        f"layer {layer.name!r} scales its input by {layer.scale}, so the model seems "
        "to expect pixels in [0, 255]; attacks give it [0, 1]"
        for layer in model.layers
        if isinstance(layer, keras.layers.Rescaling) and np.max(layer.scale) < 0.1
    ]
    twin = None
    if noise_wrappers(model):
        quiet = logits_of(strip_noise(model))
        twin = _probed(quiet, shape[1:], name=f"{name} (noise off)")

    return _probed(
        logits_of(model),
        shape[1:],
        name=name,
        warnings=warnings,
        noise_free=twin,
        reseed=functools.partial(reseed_noise, model),
        source=model,
    )


def _saved_model_target(path):
    if not (path / "saved_model.pb").exists():
        raise ValueError(
            "Expected a SavedModel (a directory with `saved_model.pb`) or a run "
            f"directory with `model.keras`. Received: {str(path)!r}"
        )
    check_sums(path)
    try:
        loaded = tf.saved_model.load(path)
    except Exception as error:  # TensorFlow raises many kinds for a damaged export
        raise cannot_load(path, error) from error
    names = [n for n in ("serving_default", "serve") if n in loaded.signatures]
    if not names:
        raise ValueError(
            f"The SavedModel {str(path)!r} has no signature `serving_default`. It has "
            f"{sorted(loaded.signatures)}; wrap one in a callable for `load_target`"
        )
    signature = loaded.signatures[names[0]]
    inputs = signature.structured_input_signature[1]
    outputs = signature.structured_outputs
    spec = next(iter(inputs.values()), None)
    if (
        (len(inputs), len(outputs)) != (1, 1)
        or (spec.dtype, spec.shape.rank) != (tf.float32, 4)
        or None in spec.shape[1:]
    ):
        raise ValueError(
            f"{_TAKES} a SavedModel with inputs {inputs} and outputs {outputs}"
        )
    (name,), (output,) = inputs, outputs
    common = {"image_shape": tuple(spec.shape[1:]), "source": loaded}
    if not hasattr(loaded, "serve_clean"):  # The export is someone else's.
        return _probed(
            lambda images: signature(**{name: images})[output],
            name=str(path),
            **common,
        )
    twin = _probed(loaded.serve_clean, name=f"{path} (noise off)", **common)
    target = _probed(
        loaded.serve,
        name=str(path),
        noise_free=twin,
        reseed=lambda seed: loaded.reseed(tf.constant(seed, tf.int64)),
        **common,
    )
    return target if target.stochastic else dataclasses.replace(target, noise_free=None)


def _probed(logits, image_shape, *, name=None, warnings=(), **fields):
    """Calls the model on random images and returns a Target with what was seen."""
    name = name or getattr(logits, "__name__", repr(logits))
    if image_shape is None or len(image_shape) != 3:
        raise ValueError(
            "A callable has no known input: give `image_shape=(H, W, C)`. "
            f"Received: image_shape={image_shape}"
        )
    generator = np.random.default_rng(0)
    images = tf.constant(generator.uniform(size=(8, *image_shape)), tf.float32)
    outputs = logits(images)
    shape = outputs.shape if tf.is_tensor(outputs) else None
    if shape is None or shape.rank != 2 or shape[0] != len(images):
        raise ValueError(
            "A target returns a TensorFlow tensor of logits [N, K]. "
            f"Received: {type(outputs).__name__} of shape {shape}, N = {len(images)}"
        )
    if not np.isfinite(outputs).all():
        raise ValueError(f"The logits of {name!r} are not finite")
    gradient = probe_gradient(logits, images)
    values = outputs.numpy()
    probabilities = (values >= 0).all() and np.allclose(values.sum(-1), 1, atol=1e-3)
    if probabilities:
        warnings = (
            *warnings,
            "the outputs look like probabilities: attacks need logits, because the "
            "gradients of probabilities vanish",
        )
    # Not exact equality: threads add up floats in an order that may vary.
    first, second = logits(images).numpy(), logits(images).numpy()
    stochastic = np.abs(first - second).max() > 1e-5 * np.abs(first).max()
    return Target(
        name=name,
        logits=logits,
        image_shape=tuple(image_shape),
        num_classes=values.shape[1],
        stochastic=bool(stochastic),
        gradient=gradient,
        probabilities=bool(probabilities),
        warnings=(*gradient.warnings, *warnings),
        **fields,
    )
