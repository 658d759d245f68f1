"""The flags of `bin/train`, grouped as its help shows them."""

import math
from pathlib import Path
from types import SimpleNamespace

from absl import flags

from pni_tf.cli import app

DATA = "Data"
MODEL = "Model and noise"
ADVERSARIAL = "Adversarial training"
OPTIMISATION = "Optimisation"
MACHINE = "Machine and reproducibility"
RUN = "Run directory, evaluation and export"
GROUPS = (DATA, MODEL, ADVERSARIAL, OPTIMISATION, MACHINE, RUN)

# Where things lie does not change what a run computes.
# Replicas may come and go: the batches stay the same.
_FREE = (
    "run_dir",
    "data_dir",
    "download",
    "strategy",
    "cluster_timeout",
    "cpu_devices",
    "tpu",
    "checkpoint_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
)


class _NumberParser(flags.FloatParser):
    """Takes fractions such as 8/255 besides numbers, and refuses nan and infinity."""

    def convert(self, argument):
        number = app.number(str(argument))
        if math.isnan(number):
            raise ValueError("expected a finite number or a fraction such as 8/255")
        return number


def _define_number(name, default, description, *, group, lower=0.0, upper=None):
    flags.DEFINE(
        _NumberParser(lower_bound=lower, upper_bound=upper),
        name,
        default,
        description,
        serializer=flags.ArgumentSerializer(),
        module_name=group,
    )


def define() -> None:
    """Defines the flags in absl's global registry."""
    _data()
    _model()
    _adversarial()
    _optimisation()
    _machine()
    _run()
    _checkpoints()


def settings() -> SimpleNamespace:
    """Returns the values of all flags, by name."""
    return SimpleNamespace(**{flag.name: flag.value for flag in _all_flags()})


def serialized() -> str:
    """Returns a flagfile that repeats the command line, defaults included."""
    lines = []
    for group in GROUPS:
        lines.append(f"# {group}")
        found = flags.FLAGS.flags_by_module_dict()[group]
        lines += [flag.serialize() for flag in found if flag.value is not None]
    return "\n".join(lines) + "\n"


def settled() -> str:
    """Returns the flags that decide what a run computes, as a flagfile."""
    lines = serialized().splitlines()
    return "\n".join(line for line in lines if _name(line) not in _FREE)


def differences(flagfile: str) -> list[str]:
    """Returns how the current flags differ from those of an earlier `serialized()`."""
    earlier, current = (
        {_name(line): line for line in text.splitlines() if line.startswith("--")}
        for text in (flagfile, serialized())
    )
    names = [
        name
        for name in {**earlier, **current}
        # A flag that did not exist then had its default.
        if name not in _FREE and (name in earlier or not _is_default(name))
    ]
    return [
        f"{earlier.get(name, f'no --{name}')} in the run directory, "
        f"{current.get(name, f'no --{name}')} now"
        for name in names
        if earlier.get(name) != current.get(name)
    ]


def text_of(path: Path) -> str:
    """Returns the text of the `flags.cfg` of a run.

    Raises:
        ValueError: If it is none.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def read(path: Path) -> dict[str, str]:
    """Returns the values in the `flags.cfg` of a run; nothing if there is none."""
    if not path.is_file():
        return {}
    lines = [line for line in text_of(path).splitlines() if "=" in line]
    return dict(line.removeprefix("--").split("=", 1) for line in lines)


def _is_default(name):
    return flags.FLAGS[name].value == flags.FLAGS[name].default


def _name(line):
    name = line.removeprefix("--").partition("=")[0]
    if name not in flags.FLAGS and name.startswith("no"):
        return name.removeprefix("no")
    return name


def _all_flags():
    modules = flags.FLAGS.flags_by_module_dict()
    return [flag for group in GROUPS for flag in modules[group]]


def _data():
    app.define_data_flags(
        DATA,
        dataset="digits",
        dataset_help="digits (comes with scikit-learn), mnist, fashion_mnist, kmnist, "
        "cifar10, cifar100 or svhn.",
    )
    flags.DEFINE_integer(
        "train_examples",
        None,
        "Number of training images to use; all by default.",
        lower_bound=1,
        module_name=DATA,
    )
    flags.DEFINE_integer(
        "test_examples",
        None,
        "Number of test images to use; all by default.",
        lower_bound=1,
        module_name=DATA,
    )
    _define_number(
        "validation_split",
        0.0,
        "Fraction of the training images that is held out; the best epoch is chosen on "
        "it, never on the test images.",
        upper=0.99,
        group=DATA,
    )


def _model():
    flags.DEFINE_string(
        "model",
        "resnet8",
        "resnet8 (for digits), resnet20, resnet32, resnet44, resnet56, resnet18 or "
        "mnist_cnn.",
        module_name=MODEL,
    )
    _define_number("width", 1.0, "Multiplier of the numbers of channels.", group=MODEL)
    flags.DEFINE_enum(
        "noise",
        "pni",
        ["pni", "rse", "pixeldp"],
        "Trained noise at the location --pni, or a competitor of fixed noise, which "
        "takes no notice of --pni: RSE (random ensembles) or PixelDP. Those two are "
        "meant for --noadversarial and --eval_ensemble.",
        module_name=MODEL,
    )
    flags.DEFINE_enum(
        "pni",
        "w",
        ["w", "a-a", "a-b", "i", "w+a-a", "w+a-b", "none"],
        "Where the noise goes: weights, outputs (a-a) or inputs (a-b) of the layers "
        "with a kernel, the network's input, both, or nowhere.",
        module_name=MODEL,
    )
    flags.DEFINE_enum(
        "pni_granularity",
        "layerwise",
        ["layerwise", "channelwise", "elementwise"],
        "One alpha for each tensor, output channel or element.",
        module_name=MODEL,
    )
    _define_number("pni_alpha", 0.25, "Initial alpha.", group=MODEL)
    flags.DEFINE_enum(
        "pni_sigma",
        "batch",
        ["batch", "example"],
        "Whether the standard deviation of activations is taken over the batch, as in "
        "the paper, or over each example.",
        module_name=MODEL,
    )
    _define_number(
        "rse_first",
        0.2,
        "Standard deviation of RSE's noise before the first convolution.",
        group=MODEL,
    )
    _define_number(
        "rse_others",
        0.1,
        "Standard deviation of RSE's noise before the other convolutions.",
        group=MODEL,
    )
    _define_number(
        "pixeldp_bound",
        0.1,
        "Construction attack bound L of PixelDP, for pixels in [0, 1]: it sets the "
        "scale of the noise.",
        group=MODEL,
    )
    flags.DEFINE_enum(
        "pixeldp_distribution",
        "gaussian",
        ["gaussian", "laplace"],
        "Noise of PixelDP: certificates in the L2 or in the L1 norm.",
        module_name=MODEL,
    )


def _adversarial():
    flags.DEFINE_bool(
        "adversarial",
        True,
        "Train on adversarial images too; else plain training.",
        module_name=ADVERSARIAL,
    )
    _define_number(
        "epsilon",
        8 / 255,
        "Radius of the Linf ball, for pixels in [0, 1]; 8/255 may be written so.",
        group=ADVERSARIAL,
    )
    flags.DEFINE_integer(
        "attack_steps",
        7,
        "PGD steps of the training attack.",
        lower_bound=1,
        module_name=ADVERSARIAL,
    )
    _define_number(
        "attack_step_size",
        2 / 255,
        "PGD step size of the training attack.",
        group=ADVERSARIAL,
    )
    flags.DEFINE_bool(
        "attack_random_start",
        True,
        "Start the training attack at a random point of the ball.",
        module_name=ADVERSARIAL,
    )
    flags.DEFINE_bool(
        "noise_in_attack",
        True,
        "Whether the training attack sees the noise (Table 1).",
        module_name=ADVERSARIAL,
    )
    flags.DEFINE_enum(
        "attack_labels",
        "predicted",
        ["predicted", "true"],
        "Labels that the training attack moves away from.",
        module_name=ADVERSARIAL,
    )
    _define_number(
        "clean_weight",
        0.5,
        "Weight of the clean loss.",
        group=ADVERSARIAL,
    )
    _define_number(
        "adversarial_weight",
        0.5,
        "Weight of the adversarial loss.",
        group=ADVERSARIAL,
    )
    flags.DEFINE_integer(
        "epoch_delay",
        0,
        "Number of first epochs on clean images only.",
        lower_bound=0,
        module_name=ADVERSARIAL,
    )
    flags.DEFINE_integer(
        "validation_draws",
        5,
        "Draws of the expectation over noise in the attack on the validation images.",
        lower_bound=1,
        module_name=ADVERSARIAL,
    )


def _optimisation():
    flags.DEFINE_integer(
        "epochs", 160, "Number of epochs.", lower_bound=1, module_name=OPTIMISATION
    )
    flags.DEFINE_integer(
        "batch_size",
        128,
        "Images in a step, over all replicas.",
        lower_bound=1,
        module_name=OPTIMISATION,
    )
    flags.DEFINE_enum(
        "optimizer", "sgd", ["sgd", "adam"], "Optimizer.", module_name=OPTIMISATION
    )
    _define_number(
        "learning_rate",
        0.1,
        "Initial learning rate; never scaled unless --base_batch_size is given.",
        group=OPTIMISATION,
    )
    flags.DEFINE_integer(
        "base_batch_size",
        None,
        "The batch size that --learning_rate is for: the rate is multiplied by "
        "batch_size / base_batch_size (linear scaling, arXiv:1706.02677).",
        lower_bound=1,
        module_name=OPTIMISATION,
    )
    _define_number(
        "momentum",
        0.9,
        "Momentum of sgd.",
        upper=1.0,
        group=OPTIMISATION,
    )
    flags.DEFINE_bool(
        "nesterov", True, "Nesterov momentum of sgd.", module_name=OPTIMISATION
    )
    flags.DEFINE_enum(
        "schedule",
        "piecewise",
        ["constant", "piecewise", "cosine"],
        "Schedule of the learning rate.",
        module_name=OPTIMISATION,
    )
    flags.DEFINE_integer(
        "warmup_epochs",
        0,
        "Epochs in which the rate rises from 0 before cosine lets it fall.",
        lower_bound=0,
        module_name=OPTIMISATION,
    )
    flags.DEFINE_list(
        "drop_epochs",
        ["80", "120"],
        "Epochs after which piecewise multiplies the rate by --drop_factor.",
        module_name=OPTIMISATION,
    )
    _define_number(
        "drop_factor",
        0.1,
        "See --drop_epochs.",
        group=OPTIMISATION,
    )
    _define_number(
        "weight_decay",
        2e-4,
        "Coupled L2 decay of every parameter but alpha: adds this times the parameter "
        "to its gradient.",
        group=OPTIMISATION,
    )


def _machine():
    app.define_strategy_flags(MACHINE, ["none", "mirrored", "multi_worker", "tpu"])
    flags.DEFINE_bool(
        "sync_batch_norm",
        True,
        "With several replicas, normalise by the statistics of the global batch, so "
        "that they do what one device does; else each by its own part.",
        module_name=MACHINE,
    )
    flags.DEFINE_string(
        "tpu", "local", "Name of the TPU; local on a TPU VM.", module_name=MACHINE
    )
    flags.DEFINE_enum(
        "mixed_precision",
        "none",
        ["none", "float16", "bfloat16"],
        "Compute in 16 bits; noise stays in float32.",
        module_name=MACHINE,
    )
    flags.DEFINE_enum(
        "jit",
        "auto",
        ["auto", "on", "off"],
        "XLA compilation; auto means on a GPU without a strategy.",
        module_name=MACHINE,
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "Seed of weights, noise, data order and attacks.",
        lower_bound=0,
        upper_bound=2**31 - 1,
        module_name=MACHINE,
    )
    flags.DEFINE_bool(
        "deterministic",
        False,
        "Bit-identical results for one seed on one kind of machine; slower.",
        module_name=MACHINE,
    )


def _checkpoints():
    flags.DEFINE_integer(
        "checkpoint_steps",
        None,
        "Steps between checkpoints within an epoch; there is one after each epoch.",
        lower_bound=1,
        module_name=RUN,
    )
    _define_number(
        "checkpoint_minutes",
        10.0,
        "Minutes between checkpoints within an epoch; 0 for none.",
        group=RUN,
    )
    flags.DEFINE_integer(
        "keep_checkpoints",
        2,
        "Number of newest checkpoints to keep.",
        lower_bound=1,
        module_name=RUN,
    )


def _run():
    flags.DEFINE_string(
        "run_dir",
        None,
        "Folder of everything the run writes; the same command continues it. By "
        "default runs/<dataset>_<model>_<noise>.",
        module_name=RUN,
    )
    flags.DEFINE_bool(
        "tensorboard", True, "Write TensorBoard event files.", module_name=RUN
    )
    flags.DEFINE_bool(
        "evaluate", True, "Evaluate and write the report at the end.", module_name=RUN
    )
    flags.DEFINE_bool(
        "compare_undefended",
        False,
        "Also train the same network without any defence, for the table.",
        module_name=RUN,
    )
    flags.DEFINE_integer(
        "eval_draws",
        10,
        "Draws of the noise that score each image.",
        lower_bound=1,
        module_name=RUN,
    )
    flags.DEFINE_list(
        "eval_steps",
        ["7", "40"],
        "Numbers of PGD steps, one row of the table each. The step size is that of "
        "training for as many steps, else 2.5 * epsilon / steps.",
        module_name=RUN,
    )
    flags.DEFINE_integer(
        "eval_expectation",
        20,
        "Draws of the expectation over noise in the last row; 1 leaves it out.",
        lower_bound=1,
        module_name=RUN,
    )
    flags.DEFINE_integer(
        "eval_ensemble",
        1,
        "Above 1, a further column of the table: prediction by the mean of the softmax "
        "over this many draws, attacked through that mean.",
        lower_bound=1,
        module_name=RUN,
    )
    flags.DEFINE_integer(
        "eval_examples",
        None,
        "Number of test images to attack; all by default.",
        lower_bound=1,
        module_name=RUN,
    )
    flags.DEFINE_bool("export", True, "Export a SavedModel.", module_name=RUN)
