import gc
import itertools
import os
import shutil
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from pni_tf import (
    PGD,
    PNIAdversarialModel,
    export_saved_model,
    inject_pni,
    load_target,
    strip_noise,
)
from pni_tf.noise.graph import noise_wrappers
from pni_tf.targets import load_model

SHAPE = (6, 6, 1)
NOISY = ("w", "w+a-a")

# Attacks the exports with nothing but TensorFlow, as a stranger would.
STRANGER = """
import sys

STRANGERS = ("keras", "tf_keras", "pni_tf")
for name in STRANGERS:  # TensorFlow would import Keras, if it were there.
    sys.modules[name] = None

import numpy as np
import tensorflow as tf

folder, result = sys.argv[1:]
images = tf.constant(np.load(f"{folder}/images.npy"))
labels = tf.constant(np.load(f"{folder}/labels.npy"))
found = {}

for name in ("w", "w+a-a", "none"):
    loaded = tf.saved_model.load(f"{folder}/{name}")

    def loss(images):
        logits = loaded.serve(images)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)

    def gradient(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            losses = loss(images)
        return tape.gradient(losses, images)

    @tf.function
    def three_gradients(images):
        return tf.while_loop(
            lambda i, found: i < 3,
            lambda i, found: (i + 1, found.write(i, gradient(images))),
            [tf.constant(0), tf.TensorArray(tf.float32, 3)],
            parallel_iterations=1,
        )[1].stack()

    def pgd(images, epsilon=0.1, step_size=0.02, steps=10):
        adversarial = images
        for _ in range(steps):
            adversarial += step_size * tf.sign(gradient(adversarial))
            adversarial = tf.clip_by_value(
                adversarial, images - epsilon, images + epsilon
            )
            adversarial = tf.clip_by_value(adversarial, 0, 1)
        return adversarial

    def replayed(calls, seed=7):
        loaded.reseed(seed)
        return calls()

    found[f"{name}/unseeded"] = [loaded.serve(images) for _ in range(2)]
    found[f"{name}/clean"] = loaded.serve_clean(images)
    five = lambda: [loaded.serve(images) for _ in range(5)]
    found[f"{name}/draws"] = replayed(five)
    found[f"{name}/replayed"] = replayed(five)
    found[f"{name}/other seed"] = replayed(five, seed=8)
    found[f"{name}/mean"] = replayed(lambda: loaded.serve_mean(images, 5))
    found[f"{name}/eager"] = replayed(lambda: [gradient(images) for _ in range(3)])
    found[f"{name}/function"] = replayed(lambda: [tf.function(gradient)(images)])
    found[f"{name}/while"] = replayed(lambda: three_gradients(images))
    adversarial = pgd(images)
    found[f"{name}/before"] = [loss(images) for _ in range(5)]
    found[f"{name}/after"] = [loss(adversarial) for _ in range(5)]

imported = [name for name, module in sys.modules.items() if module is not None]
found["imported"] = [n for n in imported if n.split(".")[0] in STRANGERS]
np.savez(result, **found)
"""


def network(location="w", **options):
    """A small network with everything that inference mode and export could spoil."""
    inputs = keras.Input(SHAPE)
    x = layers.Normalization(mean=[0.3], variance=[0.04])(inputs)
    x = layers.Conv2D(4, 3)(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    x = layers.Flatten()(x)
    x = layers.Dropout(0.5)(x)
    model = keras.Model(inputs, layers.Dense(3)(x))
    mean, variance = model.layers[3].moving_mean, model.layers[3].moving_variance
    mean.assign([0.1, 0.2, -0.3, 0.4])
    variance.assign([0.5, 2.0, 1.0, 3.0])
    return inject_pni(model, location, seed=1, **options)


def linear(kernel=None, **options):
    """A network whose logits are `images / 0.2 - 1.5` times the kernel."""
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Normalization(mean=[0.3], variance=[0.04]),
            layers.Flatten(),
            layers.Dense(3, **options),
        ]
    )
    if kernel is not None:
        model.layers[-1].set_weights([kernel, np.zeros(3)])
    return model


def random_images(count=16):
    return np.random.default_rng(0).uniform(size=(count, *SHAPE)).astype("float32")


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def gradients_of(target, images, labels, seed, count):
    target.reseed(seed)
    found = []
    for _ in range(count):
        images = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(images)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels, target.logits(images)
            )
        found.append(tape.gradient(losses, images).numpy())
    return found


@pytest.fixture(scope="module")
def models():
    keras.utils.set_random_seed(0)
    kernel = np.random.default_rng(1).normal(size=(36, 3))
    return {"w": network("w"), "w+a-a": network("w+a-a"), "none": linear(kernel)}


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    path = tmp_path_factory.mktemp("exports")
    for name, model in models.items():
        export_saved_model(model, path / name)
    images = random_images()
    np.save(path / "images.npy", images)
    np.save(path / "labels.npy", strip_noise(models["w"])(images).numpy().argmax(-1))
    return path


@pytest.fixture(scope="module")
def strangers(folder):
    """What two processes find that know TensorFlow alone."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    results = [folder / "first.npz", folder / "second.npz"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", STRANGER, str(folder), str(result)],
            cwd=folder,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for result in results
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return [dict(np.load(result)) for result in results]


class TestInAnotherProcess:
    def test_neither_keras_nor_pni_tf_is_needed(self, strangers):
        for found in strangers:
            assert found["imported"].size == 0

    @pytest.mark.parametrize("name", [*NOISY, "none"])
    def test_clean_logits_are_those_of_the_noise_free_twin(
        self, name, strangers, models
    ):
        expected = strip_noise(models[name])(random_images(), training=False)
        clean = strangers[0][f"{name}/clean"]
        assert clean.dtype == np.float32
        np.testing.assert_allclose(clean, expected, rtol=1e-4, atol=1e-5)

    def test_normalisation_is_inside(self, strangers, models):
        kernel = models["none"].get_weights()[-2]
        expected = ((random_images() - 0.3) / 0.2).reshape(-1, 36) @ kernel
        np.testing.assert_allclose(strangers[0]["none/clean"], expected, rtol=1e-4)

    def test_a_model_without_noise_serves_its_clean_logits(self, strangers):
        for key in ("none/unseeded", "none/draws", "none/other seed"):
            for draw in strangers[0][key]:
                np.testing.assert_allclose(draw, strangers[0]["none/clean"], rtol=1e-5)

    @pytest.mark.parametrize("name", NOISY)
    def test_noise_is_fresh_at_each_call(self, name, strangers):
        clean = strangers[0][f"{name}/clean"]
        for key in ("unseeded", "draws"):
            draws = [clean, *strangers[0][f"{name}/{key}"]]
            for i, first in enumerate(draws):
                for second in draws[i + 1 :]:
                    assert np.abs(first - second).max() > 1e-3

    @pytest.mark.parametrize("name", NOISY)
    def test_processes_differ_until_they_are_reseeded(self, name, strangers):
        first, second = ([f[f"{name}/{key}"] for key in KEYS] for f in strangers)
        for one, other in zip(first[0], second[0], strict=True):
            assert np.abs(one - other).max() > 1e-3
        np.testing.assert_allclose(first[1], second[1], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", NOISY)
    def test_reseed_replays_and_other_seeds_differ(self, name, strangers):
        _, draws, replayed, other = (strangers[0][f"{name}/{key}"] for key in KEYS)
        np.testing.assert_allclose(replayed, draws, rtol=1e-4, atol=1e-5)
        assert np.abs(other - draws).max(axis=(1, 2)).min() > 1e-3

    @pytest.mark.parametrize("name", NOISY)
    def test_draws_are_those_of_the_model_in_memory(self, name, strangers, models):
        target = load_target(models[name])
        target.reseed(7)
        expected = [target.logits(random_images()) for _ in range(5)]
        draws = strangers[0][f"{name}/draws"]
        np.testing.assert_allclose(draws, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", [*NOISY, "none"])
    def test_mean_is_that_of_the_softmax_of_the_draws(self, name, strangers):
        expected = softmax(strangers[0][f"{name}/draws"]).mean(axis=0)
        mean = strangers[0][f"{name}/mean"]
        np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("way", ["eager", "function", "while"])
    @pytest.mark.parametrize("name", NOISY)
    def test_gradients_are_those_of_the_model_in_memory(
        self, name, way, strangers, models, folder
    ):
        found = strangers[0][f"{name}/{way}"]
        labels = np.load(folder / "labels.npy")
        expected = gradients_of(
            load_target(models[name]), random_images(), labels, 7, len(found)
        )
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
        for one, other in itertools.pairwise(found):  # Each has its own draw.
            assert np.abs(one - other).max() > 1e-4

    @pytest.mark.parametrize("name", [*NOISY, "none"])
    def test_white_box_attack_raises_the_loss(self, name, strangers):
        before, after = (strangers[0][f"{name}/{key}"] for key in ("before", "after"))
        assert after.mean() > before.mean() + 0.5


KEYS = ("unseeded", "draws", "replayed", "other seed")


class TestExport:
    def test_endpoints(self, folder):
        loaded = tf.saved_model.load(folder / "w")
        images = tf.TensorSpec([None, *SHAPE], tf.float32)
        logits = tf.TensorSpec([None, 3], tf.float32)
        expected = {
            "serve": ([images], logits),
            "serve_clean": ([images], logits),
            "serve_mean": ([images, tf.TensorSpec([], tf.int32)], logits),
            "reseed": ([tf.TensorSpec([], tf.int64)], tf.TensorSpec([], tf.int64)),
        }
        for name, (inputs, output) in expected.items():
            (function,) = getattr(loaded, name).concrete_functions
            args, kwargs = function.structured_input_signature
            specs = [*args, *kwargs.values()]
            assert [(s.shape, s.dtype) for s in specs] == [
                (s.shape, s.dtype) for s in inputs
            ]
            found = function.structured_outputs
            assert found.shape.is_compatible_with(output.shape)
            assert found.dtype == output.dtype

    def test_layers_of_one_shape_draw_different_noise(self):
        stack = [keras.Input((4,)), layers.Dense(4), layers.Dense(4)]
        model = inject_pni(keras.Sequential(stack), seed=1)
        image_model = keras.Sequential(
            [keras.Input((2, 2, 1)), layers.Flatten(), *model.layers]
        )
        load_target(image_model).reseed(3)
        first, second = (w.seed_generator.state for w in noise_wrappers(image_model))
        assert (first.numpy() != second.numpy()).any()

    def test_export_leaves_the_noise_of_the_model_alone(self, tmp_path):
        model = network()
        states = [w.seed_generator.state.numpy() for w in noise_wrappers(model)]
        export_saved_model(model, tmp_path / "export")
        for before, wrapper in zip(states, noise_wrappers(model), strict=True):
            np.testing.assert_array_equal(wrapper.seed_generator.state, before)

    def test_another_export_replaces_the_first(self, tmp_path):
        for value in (1.0, 2.0):
            export_saved_model(linear(np.full((36, 3), value)), tmp_path / "export")
        loaded = tf.saved_model.load(tmp_path / "export")
        logits = loaded.serve(random_images())
        expected = 2 * ((random_images() - 0.3) / 0.2).reshape(-1, 36).sum(-1)
        np.testing.assert_allclose(logits[:, 0], expected, rtol=1e-4)
        assert os.listdir(tmp_path) == ["export"]

    def test_a_failed_export_keeps_the_earlier_one(self, tmp_path, monkeypatch):
        export_saved_model(linear(np.ones((36, 3))), tmp_path / "export")

        def no_space(*args, **kwargs):
            raise OSError("No space left on device")

        monkeypatch.setattr(tf.saved_model, "save", no_space)
        with pytest.raises(OSError, match="No space"):
            export_saved_model(linear(np.zeros((36, 3))), tmp_path / "export")
        loaded = tf.saved_model.load(tmp_path / "export")
        logits = loaded.serve(random_images())
        assert np.abs(logits).max() > 1
        assert os.listdir(tmp_path) == ["export"]

    def test_parent_folders_are_made(self, tmp_path):
        export_saved_model(linear(), tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b" / "saved_model.pb").exists()

    @pytest.mark.parametrize("kind", ["folder", "file"])
    def test_something_else_is_not_replaced(self, kind, tmp_path):
        path = tmp_path / "thesis"
        content = path
        if kind == "folder":
            path.mkdir()
            content = path / "chapter.txt"
        content.write_text("words")
        with pytest.raises(ValueError, match=r"thesis.*something else"):
            export_saved_model(linear(), path)
        assert content.read_text() == "words"

    @pytest.mark.parametrize(
        "last",
        [
            {"activation": "softmax"},
            {"activation": "sigmoid"},
        ],
    )
    def test_probabilities_are_refused(self, last, tmp_path):
        for model in (linear(**last), inject_pni(linear(**last))):
            with pytest.raises(ValueError, match="must return logits"):
                export_saved_model(model, tmp_path / "export")
        assert not os.listdir(tmp_path)

    def test_a_subclassed_model_is_refused(self, tmp_path):
        with pytest.raises(TypeError, match="Functional or Sequential"):
            export_saved_model(Subclassed(), tmp_path / "export")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.flatten, self.dense = layers.Flatten(), layers.Dense(3)

    def call(self, images):
        return self.dense(self.flatten(images))


class Module(tf.Module):
    """A model that Keras knows nothing of."""

    def __init__(self, function, *specs):
        super().__init__()
        self.kernel = tf.Variable(np.eye(36, 3), dtype=tf.float32)
        self.serve = tf.function(lambda *x: function(self.kernel, *x), specs)


def flat(images):
    return tf.reshape(tf.cast(images, tf.float32), [-1, 36])


IMAGES = tf.TensorSpec([None, *SHAPE], tf.float32, name="images")


@pytest.fixture(scope="module")
def sources(models, folder):
    """Ways to name one noisy model, which all give the same target."""
    model = models["w"]
    run = folder / "run"
    run.mkdir()
    model.save(run / "model.keras")
    return {
        "model": model,
        "file": run / "model.keras",
        "string": str(run / "model.keras"),
        "run directory": run,
        "export": folder / "w",
        "trainer": PNIAdversarialModel(model, attack=PGD()),
    }


class TestLoadTarget:
    @pytest.mark.parametrize(
        "kind", ["model", "file", "string", "run directory", "export", "trainer"]
    )
    def test_sources(self, kind, sources, models):
        target = load_target(sources[kind])
        assert target.stochastic
        assert (target.image_shape, target.num_classes) == (SHAPE, 3)
        assert target.warnings == ()
        images = random_images()
        clean = strip_noise(models["w"])(images).numpy()
        assert not target.noise_free.stochastic
        assert target.noise_free.image_shape == SHAPE
        np.testing.assert_allclose(
            target.noise_free.logits(tf.constant(images)), clean, rtol=1e-4, atol=1e-5
        )
        labels = target.noise_free.predict(images)
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(labels, clean.argmax(-1))
        # The same draws, wherever the model comes from.
        expected = load_target(models["w"])
        draws = []
        for each in (target, expected):
            each.reseed(5)
            draws.append([each.logits(tf.constant(images)) for _ in range(2)])
        np.testing.assert_allclose(*draws, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("kind", ["model", "export"])
    def test_a_model_without_noise(self, kind, models, folder):
        target = load_target({"model": models["none"], "export": folder / "none"}[kind])
        assert not target.stochastic
        assert target.noise_free is None

    def test_callable(self, models):
        kernel = np.random.default_rng(2).normal(size=(36, 4)).astype("float32")

        def classifier(images):
            return flat(images) @ kernel

        target = load_target(classifier, image_shape=SHAPE)
        assert (target.name, target.num_classes) == ("classifier", 4)
        assert (target.stochastic, target.warnings) == (False, ())
        assert target.noise_free is None
        assert target.reseed is None
        expected = random_images().reshape(-1, 36) @ kernel
        np.testing.assert_array_equal(
            target.predict(random_images()), expected.argmax(-1)
        )

    @pytest.mark.parametrize("kind", ["tf.Module", "keras.Model.export"])
    def test_exports_of_others(self, kind, models, tmp_path):
        if kind == "tf.Module":
            tf.saved_model.save(Module(lambda k, x: flat(x) @ k, IMAGES), tmp_path)
            expected = random_images().reshape(-1, 36)[:, :3]
        else:
            models["none"].export(tmp_path, verbose=False)
            expected = models["none"](random_images())
        target = load_target(tmp_path)
        gc.collect()  # The variables must outlive their loader.
        np.testing.assert_allclose(
            target.logits(tf.constant(random_images())), expected, rtol=1e-4, atol=1e-5
        )
        assert (target.image_shape, target.num_classes) == (SHAPE, 3)
        assert (target.stochastic, target.noise_free) == (False, None)
        images = tf.constant(random_images())
        adversarial = PGD(epsilon=0.1, step_size=0.1, steps=1).perturb(
            target.logits, images, target.predict(images), seed=tf.constant([0, 0])
        )
        assert np.abs(adversarial - images).max() == pytest.approx(0.1, abs=1e-6)

    def test_noise_free_keeps_its_variables_alive(self, folder):
        noise_free = load_target(folder / "w").noise_free
        gc.collect()
        before = noise_free.logits(tf.constant(random_images()))
        gc.collect()
        after = noise_free.logits(tf.constant(random_images()))
        np.testing.assert_allclose(before, after, rtol=1e-5)

    @pytest.mark.parametrize("kind", ["model", "export"])
    def test_probing_leaves_the_seeded_draws_as_they_are(self, kind, models, folder):
        source = {"model": models["w"], "export": folder / "w"}[kind]
        draws = []
        for _ in range(2):
            target = load_target(source)
            target.reseed(2**31 - 1)
            draws.append(target.logits(tf.constant(random_images())))
        np.testing.assert_allclose(*draws, rtol=1e-4, atol=1e-5)


def uniform_noise(images):
    return flat(images)[:, :3] + 1e-3 * tf.random.uniform([3])


class TestProbe:
    KERNEL = np.random.default_rng(3).normal(size=(36, 3)).astype("float32")

    @pytest.mark.parametrize(
        ("function", "warning"),
        [
            (lambda x: flat(x) @ TestProbe.KERNEL, None),
            (lambda x: tf.round(flat(x) * 255) @ TestProbe.KERNEL, "no gradient"),
            (lambda x: flat(tf.cast(255 * x, tf.uint8)) @ TestProbe.KERNEL, "no gra"),
            (lambda x: tf.stop_gradient(flat(x) @ TestProbe.KERNEL), "no gradient"),
            # Saturated inside, and saturated at the end: both hide the gradient.
            (lambda x: tf.tanh(99 + flat(x)) @ TestProbe.KERNEL, "vanishes on 8 of 8"),
            (lambda x: 1e4 * flat(x) @ TestProbe.KERNEL, "vanishes on 8 of 8"),
            (lambda x: tf.sqrt(0 * flat(x)) @ TestProbe.KERNEL, "is not finite"),
            (lambda x: tf.nn.softmax(flat(x) @ TestProbe.KERNEL), "probabilities"),
        ],
    )
    def test_warnings(self, function, warning):
        warnings = load_target(function, image_shape=SHAPE).warnings
        if warning is None:
            assert warnings == ()
        else:
            assert [w for w in warnings if warning in w], warnings

    def test_gradient_that_vanishes_on_some_images(self):
        def half(images):
            on = tf.reshape(tf.cast(tf.range(len(images)) % 2, tf.float32), [-1, 1])
            return flat(images)[:, :3] * on

        (warning,) = load_target(half, image_shape=SHAPE).warnings
        assert "vanishes on 4 of 8" in warning

    def test_softmax_of_a_keras_model(self):
        (warning,) = load_target(linear(activation="softmax")).warnings
        assert "probabilities" in warning

    @pytest.mark.parametrize(
        ("scale", "warns"), [(1 / 255, True), (1 / 127.5, True), (2.0, False)]
    )
    def test_rescaling_for_pixels_up_to_255(self, scale, warns):
        model = keras.Sequential(
            [
                keras.Input(SHAPE),
                layers.Rescaling(scale, name="rescaling"),
                layers.Flatten(),
                layers.Dense(3),
            ]
        )
        warnings = load_target(model).warnings
        assert [("'rescaling'" in w and "[0, 255]" in w) for w in warnings] == (
            [True] if warns else []
        )

    @pytest.mark.parametrize(
        ("source", "stochastic"),
        [
            (lambda: network("w", initial_alpha=0.25), True),
            (lambda: network("w", initial_alpha=1e-4), True),
            (lambda: network("a-b", initial_alpha=1e-4), True),
            (lambda: network("w", initial_alpha=0.0), False),
            (lambda: network("none"), False),
            (lambda: uniform_noise, True),
            (lambda: lambda x: flat(x) @ TestProbe.KERNEL, False),
        ],
    )
    def test_stochastic(self, source, stochastic):
        source = source()
        shape = None if isinstance(source, keras.Model) else SHAPE
        target = load_target(source, image_shape=shape)
        assert target.stochastic is stochastic


def truncated(path):
    linear().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def text(path):
    path.write_text("not a model")


def other_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "not a model")


def garbled_export(path):
    path.mkdir()
    (path / "saved_model.pb").write_bytes(b"garbage")


def export_without_variables(path):
    tf.saved_model.save(Module(lambda k, x: flat(x) @ k, IMAGES), path)
    shutil.rmtree(path / "variables")


def module(function, *specs):
    return lambda path: tf.saved_model.save(Module(function, *specs), path)


def keras_model(outputs, *shapes):
    inputs = [keras.Input(shape) for shape in shapes]
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs(*inputs))


def dense(tensor):
    return layers.Dense(3)(layers.Flatten()(tensor))


class TestBadTargets:
    @pytest.mark.parametrize(
        ("name", "write", "message"),
        [
            ("a.keras", truncated, "damaged or incomplete"),
            ("a.keras", text, "not a `.keras` file"),
            ("a.txt", text, "not a `.keras` file"),
            ("a.keras", other_zip, "Cannot load"),
            ("export", garbled_export, "Cannot load"),
            ("export", export_without_variables, "Cannot load"),
            ("export", lambda path: path.mkdir(), "Expected a SavedModel"),
            (
                "export",
                lambda path: tf.saved_model.save(tf.Module(), path),
                "no signature `serving_default`",
            ),
            (
                "export",
                module(lambda k, x: x @ k, tf.TensorSpec([None, 36], tf.float32)),
                r"\[N, H, W, C\]",
            ),
            (
                "export",
                module(lambda k, x: flat(x) @ k, tf.TensorSpec(None, tf.float32)),
                r"\[N, H, W, C\]",
            ),
            (
                "export",
                module(lambda k, x: flat(x) @ k, tf.TensorSpec([None] * 4, tf.float32)),
                "fixed size",
            ),
            (
                "export",
                module(
                    lambda k, x: flat(x) @ k, tf.TensorSpec([None, *SHAPE], tf.uint8)
                ),
                "float32 images",
            ),
            (
                "export",
                module(lambda k, x, y: flat(x + y) @ k, IMAGES, IMAGES),
                "one batch",
            ),
            ("export", module(lambda k: k), "one batch"),
            (
                "export",
                module(lambda k, x: {"a": flat(x) @ k, "b": x}, IMAGES),
                "one tensor of logits",
            ),
        ],
    )
    def test_files(self, name, write, message, tmp_path):
        path = tmp_path / name
        write(path)
        with pytest.raises(ValueError, match=message) as error:
            load_target(path)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", ["missing.keras", "missing", "no/such/folder"])
    def test_missing(self, name, tmp_path):
        with pytest.raises(FileNotFoundError, match=name):
            load_target(tmp_path / name)

    def test_load_model_refuses_a_folder(self, folder):
        with pytest.raises((ValueError, OSError)):
            load_model(folder / "w")

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (lambda: keras_model(dense, (36,)), r"images \[N, H, W, C\]"),
            (lambda: keras_model(dense, (6, 6)), r"images \[N, H, W, C\]"),
            (
                lambda: keras_model(
                    lambda x: layers.Dense(3)(layers.GlobalAveragePooling2D()(x)),
                    (None, None, 1),
                ),
                "fixed size",
            ),
            (lambda: keras_model(lambda a, b: dense(a + b), SHAPE, SHAPE), "one batch"),
            (lambda: keras_model(lambda a: [dense(a), a], SHAPE), "one tensor"),
            (lambda: keras_model(layers.Dense(3), SHAPE), r"logits \[N, K\]"),
            (Subclassed, r"images \[N, H, W, C\]"),
            (lambda: linear(np.full((36, 3), np.nan)), "not finite"),
            (lambda: linear(np.full((36, 3), np.inf)), "not finite"),
        ],
    )
    def test_models(self, model, message):
        with pytest.raises(ValueError, match=message):
            load_target(model())

    @pytest.mark.parametrize(
        ("source", "shape", "message"),
        [
            (flat, None, "give `image_shape"),
            (flat, (6, 6), "give `image_shape"),
            (lambda x: x, SHAPE, r"logits \[N, K\]"),
            (lambda x: flat(x)[0], SHAPE, r"logits \[N, K\]"),
            (lambda x: flat(x)[:1], SHAPE, r"logits \[N, K\]"),
            (lambda x: flat(x).numpy(), SHAPE, "TensorFlow tensor"),
            (lambda x: flat(x) / 0, SHAPE, "not finite"),
            (3, SHAPE, "a Keras model, a path or a callable"),
        ],
    )
    def test_callables(self, source, shape, message):
        with pytest.raises(ValueError, match=message):
            load_target(source, image_shape=shape)
