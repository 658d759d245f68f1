"""A SavedModel that TensorFlow alone can load and attack."""

import os
import shutil
from pathlib import Path

import keras
import tensorflow as tf

from pni_tf.checks import check_logits
from pni_tf.files import write_sums
from pni_tf.noise.fusion import fuse_batch_norm
from pni_tf.noise.graph import reseed_noise
from pni_tf.noise.injection import strip_noise


def export_saved_model(model: keras.Model, directory: str | os.PathLike) -> None:
    """Writes a SavedModel that TensorFlow alone can load and attack.

    Its endpoints take float32 images `[N, H, W, C]` in `[0, 1]`:

    - `serve(images)`: logits `[N, K]`, noise on, a fresh draw at each call;
    - `serve_clean(images)`: logits with the noise off;
    - `serve_mean(images, n)`: probabilities, the mean softmax over `n` (int32) draws;
    - `reseed(seed)`: sets the noise from an int64 scalar; the calls after it repeat.

    Without `reseed`, each process that loads the model draws noise of its own.
    Gradients with respect to the images flow through `serve` and `serve_clean`.

    Args:
        model: A Functional or Sequential classifier on logits.
        directory: Where to write; an earlier export there is replaced.

    Raises:
        ValueError: If the model returns probabilities, or the directory holds
            something other than a SavedModel.

    Example:

    >>> export_saved_model(model, "saved_model")
    >>> loaded = tf.saved_model.load("saved_model")  # Keep it: it has the variables.
    >>> logits = loaded.serve(images)
    """
    check_logits(model)
    directory = Path(directory)
    if directory.exists() and not (directory / "saved_model.pb").exists():
        raise ValueError(
            "The export goes to a new directory or replaces an earlier export. "
            f"Received: directory={str(directory)!r}, which is something else"
        )
    noisy, noise_free = fuse_batch_norm(model), fuse_batch_norm(strip_noise(model))
    # Saved as False, so that each process that loads the model seeds itself once.
    seeded = tf.Variable(False, trainable=False, name="seeded")

    def reseed(seed):
        reseed_noise(model, seed)
        seeded.assign(True)
        return tf.identity(seed)

    def seed_from_entropy():
        # The raw operation, because zeros mean "from the operating system's entropy"
        # only if no global seed has been set when the graph is made.
        seed = tf.raw_ops.RandomUniformInt(
            shape=tf.zeros([0], tf.int32),
            minval=tf.constant(0, tf.int64),
            maxval=tf.constant(tf.int64.max, tf.int64),
            seed=0,
            seed2=0,
        )
        return reseed(seed)

    def serve(images):
        tf.cond(seeded, lambda: tf.constant(0, tf.int64), seed_from_entropy)
        return tf.cast(noisy(images, training=False), tf.float32)

    def serve_clean(images):
        return tf.cast(noise_free(images, training=False), tf.float32)

    def serve_mean(images, n):
        total = tf.foldl(
            lambda total, _: total + tf.nn.softmax(serve(images)),
            tf.range(n),
            tf.zeros_like(serve_clean(images)),
            parallel_iterations=1,
        )
        return total / tf.cast(n, tf.float32)

    images = tf.TensorSpec([None, *model.input_shape[1:]], tf.float32, name="images")
    archive = keras.export.ExportArchive()
    for part in (model, noisy, noise_free, seeded):
        archive.track(part)
    for endpoint, signature in {
        serve: [images],
        serve_clean: [images],
        serve_mean: [images, tf.TensorSpec([], tf.int32, name="n")],
        reseed: [tf.TensorSpec([], tf.int64, name="seed")],
    }.items():
        archive.add_endpoint(endpoint.__name__, endpoint, input_signature=signature)
    # Written aside and moved, so that an interruption leaves no half-written model.
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = directory.with_name(f"unfinished.{directory.name}")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        archive.write_out(str(scratch), verbose=False)
        write_sums(scratch)
        if directory.exists():
            shutil.rmtree(directory)
        scratch.rename(directory)
    except (OSError, tf.errors.OpError) as error:
        raise OSError(f"cannot write {directory}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
