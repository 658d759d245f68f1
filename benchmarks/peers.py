"""What the comparisons with Foolbox and ART share: networks, attacks, scoring."""

from types import SimpleNamespace

import common  # It comes first and makes TensorFlow quiet.
import foolbox as fb
import numpy as np
import tensorflow as tf
from art.attacks import evasion as art_attacks
from art.estimators.classification import TensorFlowV2Classifier

import pni_tf

EPSILON = {"digits": 0.15, "mnist": 0.3, "cifar10": 8 / 255}

# ART 1.20 asks Keras for names that Keras 3 no longer has; these were their values.
if not hasattr(tf.keras.losses, "Reduction"):
    tf.keras.losses.Reduction = SimpleNamespace(
        NONE="none", SUM="sum", SUM_OVER_BATCH_SIZE="sum_over_batch_size"
    )


def parser_of(docstring):
    """Returns a parser with the options of both scripts."""
    parser = common.parser_of(docstring)
    parser.add_argument(
        "--model",
        required=True,
        help="run directory, .keras file or SavedModel of a deterministic network",
    )
    parser.add_argument("--dataset", choices=tuple(EPSILON), default="digits")
    parser.add_argument("--data_dir", help="of TensorFlow Datasets")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--epsilon", type=float, help="Linf radius")
    parser.add_argument("--steps", type=int, default=40, help="of PGD")
    parser.add_argument("--cw_steps", type=int, default=200)
    parser.add_argument("--cw_binary_search_steps", type=int, default=9)
    parser.add_argument("--cw_learning_rate", type=float, default=1e-2)
    parser.add_argument("--cw_initial_const", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser


QUICK = {"examples": 2, "steps": 2, "cw_steps": 2, "cw_binary_search_steps": 1}


class Victim:
    """A deterministic network and the images to attack.

    Attributes:
        target: As `pni_tf.load_target` returns it.
        compiled: Its forward pass as a `tf.function`, for batches of any size.
        images, labels: NumPy arrays.
    """

    def __init__(self, options):
        data = pni_tf.load_dataset(
            options.dataset, data_dir=options.data_dir, test_examples=options.examples
        )
        self.images = data.test.images_float()[: options.examples]
        self.labels = data.test.labels[: options.examples]
        self.target = pni_tf.load_target(options.model)
        if self.target.stochastic:
            raise SystemExit("The comparison is of deterministic networks.")
        self.spec = tf.TensorSpec([None, *self.target.image_shape], tf.float32)
        self.compiled = tf.function(
            self.target.logits, input_signature=[self.spec], autograph=False
        )
        self.epsilon = options.epsilon or EPSILON[options.dataset]

    def fooled(self, adversarial):
        """Returns which images, bool `[N]`, one and the same forward pass gets wrong.

        The last bits of logits depend on the size of the batch, so all attacks are
        judged in batches of the same size.
        """
        count = len(adversarial)
        parts = [self.compiled(adversarial[i : i + 100]) for i in range(0, count, 100)]
        return np.argmax(np.concatenate(parts), -1) != self.labels[:count]

    def change(self, adversarial):
        """Returns what an attack has added to the images."""
        return np.float64(adversarial) - self.images[: len(adversarial)]

    def l2(self, adversarial):
        """Returns the Euclidean norm of each change, `[N]`."""
        return np.sqrt(np.sum(self.change(adversarial) ** 2, (1, 2, 3)))


class Ours:
    """An attack of this package as one graph for batches of any size."""

    def __init__(self, attack, victim, logits=None):
        logits = logits or victim.target.logits

        def run(images, labels, seed):
            outcome = attack.run(logits, images, labels, seed=seed)
            return outcome.images, outcome.queries

        self.graph = tf.function(
            run,
            input_signature=[
                victim.spec,
                tf.TensorSpec([None], tf.int64),
                tf.TensorSpec([2], tf.int64),
            ],
            autograph=False,
        )

    def __call__(self, images, labels, seed):
        found, queries = self.graph(images, labels, np.array([seed, len(images)]))
        self.queries = int(np.sum(queries))
        return found.numpy()


def pgd_settings(victim, steps):
    """Returns the settings of PGD: for ours, for Foolbox and for ART."""
    size = 2.5 * victim.epsilon / steps
    return (
        {"epsilon": victim.epsilon, "step_size": size, "steps": steps},
        {"abs_stepsize": size, "steps": steps},
        {"eps": victim.epsilon, "eps_step": size, "max_iter": steps},
    )


def carlini_wagner(options, abort_early):
    """Returns the C&W attack of ours and that of Foolbox."""
    shared = {
        "steps": options.cw_steps,
        "binary_search_steps": options.cw_binary_search_steps,
        "initial_const": options.cw_initial_const,
        "confidence": 0,
        "abort_early": abort_early,
    }
    rate = options.cw_learning_rate
    ours = pni_tf.CarliniWagnerL2(learning_rate=rate, **shared)
    return ours, fb.attacks.L2CarliniWagnerAttack(stepsize=rate, **shared)


def foolbox_attack(attack, network, epsilon=None):
    """Returns a callable that attacks a batch with Foolbox.

    Its C&W attack returns a black image where it fails; this returns the input.
    """
    model = fb.TensorFlowModel(network, bounds=(0, 1))

    def run(images, labels, seed):
        tf.random.set_seed(seed)
        images, labels = tf.constant(images), tf.constant(labels)
        _, found, _ = attack(model, images, labels, epsilons=epsilon)
        found = found.numpy()
        failed = ~np.any(found, axis=(1, 2, 3), keepdims=True)
        return np.where(failed, images, found) if epsilon is None else found

    return run


def art_attack(name, network, victim, **settings):
    """Returns a callable that attacks a batch with ART."""
    classifier = TensorFlowV2Classifier(
        lambda images, training=False: network(images),
        nb_classes=victim.target.num_classes,
        input_shape=victim.target.image_shape,
        loss_object=tf.nn.softmax_cross_entropy_with_logits,
        clip_values=(0.0, 1.0),
    )
    attack = getattr(art_attacks, name)(classifier, verbose=False, **settings)
    predict = attack.estimator.predict

    def counted(x, **options):
        run.queries += len(x)
        return predict(x, **options)

    attack.estimator.predict = counted

    def run(images, labels, seed):
        np.random.seed(seed)
        run.queries = 0
        if name != "ZooAttack":  # That needs batches of one.
            attack.set_params(batch_size=len(images))
        return attack.generate(images, labels)

    return run
