"""The settings of a training."""

import dataclasses
from typing import Literal

from pni_tf.settings.base import FROM_0, Group, setting
from pni_tf.settings.machine import Devices, Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Source):
    """What to train on."""

    dataset: str = setting(
        "digits",
        "digits (comes with scikit-learn), mnist, fashion_mnist, kmnist, cifar10, "
        "cifar100 or svhn.",
    )
    train_examples: int | None = setting(
        None, "Number of training images to use; all by default."
    )
    test_examples: int | None = setting(
        None, "Number of test images to use; all by default."
    )
    validation_split: float = setting(
        0.0,
        "Fraction of the training images that is held out; the best epoch is chosen on "
        "it, never on the test images.",
        bounds=(0, 0.99),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network(Group):
    """The network and the noise in it."""

    heading = "Model and noise"

    model: str = setting(
        "resnet8",
        "resnet8 (for digits), resnet20, resnet32, resnet44, resnet56, resnet18 or "
        "mnist_cnn.",
    )
    width: float = setting(1.0, "Multiplier of the numbers of channels.")
    noise: Literal["pni", "rse", "pixeldp"] = setting(
        "pni",
        "Trained noise at the location --pni, or a competitor of fixed noise, which "
        "ignores --pni: RSE (random self-ensemble) or PixelDP. Those two are meant for "
        "--noadversarial and --eval_ensemble.",
    )
    pni: Literal["w", "a-a", "a-b", "i", "w+a-a", "w+a-b", "none"] = setting(
        "w",
        "Where the noise goes: weights, outputs (a-a) or inputs (a-b) of the layers "
        "with a kernel, the network's input, both, or nowhere.",
    )
    pni_granularity: Literal["layerwise", "channelwise", "elementwise"] = setting(
        "layerwise", "One alpha for each tensor, output channel or element."
    )
    pni_alpha: float = setting(0.25, "Initial alpha.")
    pni_sigma: Literal["batch", "example"] = setting(
        "batch",
        "Whether the standard deviation of activations is taken over the batch, as in "
        "the paper, or over each example.",
    )
    rse_first: float = setting(
        0.2, "Standard deviation of RSE's noise before the first convolution."
    )
    rse_others: float = setting(
        0.1, "Standard deviation of RSE's noise before the other convolutions."
    )
    pixeldp_bound: float = setting(
        0.1,
        "Construction attack bound L of PixelDP, for pixels in [0, 1]: it sets the "
        "scale of the noise.",
    )
    pixeldp_distribution: Literal["gaussian", "laplace"] = setting(
        "gaussian", "Noise of PixelDP: certificates in the L2 or in the L1 norm."
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.width:
            raise ValueError("--width must be positive. Received: --width=0")
        if self.noise == "pixeldp" and not self.pixeldp_bound:
            raise ValueError(
                "--pixeldp_bound must be positive. Received: --pixeldp_bound=0"
            )

    @property
    def has_noise(self) -> bool:
        """Whether there is any noise in the network."""
        return self.noise != "pni" or self.pni != "none"

    @property
    def noise_name(self) -> str:
        """What tables call the noise."""
        return {"pni": "PNI", "rse": "RSE", "pixeldp": "PixelDP"}[self.noise]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adversarial(Group):
    """The training attack and its loss."""

    heading = "Adversarial training"

    adversarial: bool = setting(
        True, "Train on adversarial images too; else plain training."
    )
    epsilon: float = setting(
        8 / 255,
        "Radius of the Linf ball, for pixels in [0, 1]; fractions such as 8/255 are "
        "accepted.",
    )
    attack_steps: int = setting(7, "PGD steps of the training attack.")
    attack_step_size: float = setting(2 / 255, "PGD step size of the training attack.")
    attack_random_start: bool = setting(
        True, "Start the training attack at a random point of the ball."
    )
    noise_in_attack: bool = setting(
        True, "Whether the training attack sees the noise (Table 1)."
    )
    attack_labels: Literal["predicted", "true"] = setting(
        "predicted", "Labels that the training attack moves away from."
    )
    clean_weight: float = setting(0.5, "Weight of the clean loss.")
    adversarial_weight: float = setting(0.5, "Weight of the adversarial loss.")
    epoch_delay: int = setting(
        0, "Number of epochs at the start that use clean images only.", bounds=FROM_0
    )
    validation_draws: int = setting(
        5, "Draws of the expectation over noise in the attack on the validation images."
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.adversarial and not self.noise_in_attack:
            raise ValueError("--nonoise_in_attack needs --adversarial")
        if not self.adversarial and self.epoch_delay:
            raise ValueError("--epoch_delay needs --adversarial")
        if self.adversarial and not self.clean_weight + self.adversarial_weight:
            raise ValueError(
                "--clean_weight and --adversarial_weight must not both be 0"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimisation(Group):
    """The optimizer, its schedule and how long it runs."""

    heading = "Optimisation"

    epochs: int = setting(160, "Number of epochs.")
    batch_size: int = setting(128, "Images in a step, over all replicas.")
    optimizer: Literal["sgd", "adam"] = setting("sgd", "Optimizer.")
    learning_rate: float = setting(
        0.1, "Initial learning rate; never scaled unless --base_batch_size is given."
    )
    base_batch_size: int | None = setting(
        None,
        "The batch size for which --learning_rate is meant: the rate is multiplied by "
        "batch_size / base_batch_size (linear scaling, arXiv:1706.02677).",
    )
    momentum: float = setting(0.9, "Momentum of sgd.", bounds=(0, 1.0))
    nesterov: bool = setting(True, "Nesterov momentum of sgd.")
    schedule: Literal["constant", "piecewise", "cosine"] = setting(
        "piecewise", "Schedule of the learning rate."
    )
    warmup_epochs: int = setting(
        0,
        "Epochs in which the rate rises from 0, before the cosine in which it falls.",
        bounds=FROM_0,
    )
    drop_epochs: tuple[int, ...] = setting(
        (80, 120), "Epochs after which piecewise multiplies the rate by --drop_factor."
    )
    drop_factor: float = setting(0.1, "See --drop_epochs.")
    weight_decay: float = setting(
        2e-4,
        "Coupled L2 decay of every parameter but alpha: adds this times the parameter "
        "to its gradient.",
    )

    def __post_init__(self):
        super().__post_init__()
        if list(self.drop_epochs) != sorted(set(self.drop_epochs)):
            raise ValueError(
                "--drop_epochs must be in increasing order. Received: --drop_epochs="
                f"{','.join(map(str, self.drop_epochs))}"
            )
        if self.warmup_epochs and self.schedule != "cosine":
            raise ValueError("--warmup_epochs needs --schedule=cosine")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"--warmup_epochs={self.warmup_epochs} leaves no epoch of --epochs="
                f"{self.epochs} for the rate to fall"
            )

    @property
    def initial_rate(self) -> float:
        """The learning rate at the start, scaled if --base_batch_size asks for it."""
        scale = self.batch_size / (self.base_batch_size or self.batch_size)
        return self.learning_rate * scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingDevices(Devices):
    """What a training is computed on."""

    strategy: Literal["none", "mirrored", "multi_worker", "tpu"] = setting(
        "none",
        "none: one device. mirrored: all GPUs of this machine. multi_worker: all "
        "devices of all workers that TF_CONFIG or a Slurm job step names. tpu: a TPU.",
        free=True,
    )
    tpu: str = setting("local", "Name of the TPU; local on a TPU VM.", free=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Computation(Group):
    """How a training is computed, and from which seed."""

    heading = "Computation and reproducibility"

    sync_batch_norm: bool = setting(
        True,
        "With several replicas, normalise by the statistics of the global batch, so "
        "that they do what one device does; else each by its own part.",
    )
    mixed_precision: Literal["none", "float16", "bfloat16"] = setting(
        "none", "Compute in 16 bits; noise stays in float32."
    )
    jit: Literal["auto", "on", "off"] = setting(
        "auto", "XLA compilation; auto means on a GPU without a strategy."
    )
    seed: int = setting(
        0, "Seed of weights, noise, data order and attacks.", bounds=FROM_0
    )
    deterministic: bool = setting(
        False, "Bit-identical results for one seed on one kind of machine; slower."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Storage(Group):
    """Where a run lies, and how often it is saved."""

    heading = "Run directory and checkpoints"

    run_dir: str | None = setting(
        None,
        "Folder of everything the run writes; the same command continues it. By "
        "default runs/<dataset>_<model>_<noise>.",
        free=True,
    )
    tensorboard: bool = setting(True, "Write TensorBoard event files.")
    checkpoint_steps: int | None = setting(
        None,
        "Steps between checkpoints within an epoch; there is one after each epoch.",
        free=True,
    )
    checkpoint_minutes: float = setting(
        10.0, "Minutes between checkpoints within an epoch; 0 for none.", free=True
    )
    keep_checkpoints: int = setting(
        2, "How many of the newest checkpoints to keep.", free=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinalEvaluation(Group):
    """What follows the last epoch."""

    heading = "Evaluation and export at the end"

    evaluate: bool = setting(True, "Evaluate and write the report at the end.")
    compare_undefended: bool = setting(
        False, "Also train the same network without any defence, for the table."
    )
    eval_draws: int = setting(10, "Draws of the noise that score each image.")
    eval_steps: tuple[int, ...] = setting(
        (7, 40),
        "Numbers of PGD steps, one row of the table each. The step size is that of "
        "training for as many steps, else 2.5 * epsilon / steps.",
    )
    eval_expectation: int = setting(
        20, "Draws of the expectation over noise in the last row; 1 leaves it out."
    )
    eval_ensemble: int = setting(
        1,
        "Above 1, a further column of the table: prediction by the mean of the softmax "
        "over this many draws, attacked through that mean.",
    )
    eval_examples: int | None = setting(
        None, "Number of test images to attack; all by default."
    )
    export: bool = setting(True, "Export a SavedModel.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides what a training computes: see `pni_tf.assemble_trainer`.

    Raises:
        ValueError: If settings of different groups contradict each other.
    """

    network: Network = Network()
    adversarial: Adversarial = Adversarial()
    optimisation: Optimisation = Optimisation()
    computation: Computation = Computation()

    def __post_init__(self):
        adversarial, epochs = self.adversarial, self.optimisation.epochs
        if not self.network.has_noise and not adversarial.noise_in_attack:
            raise ValueError(
                "--nonoise_in_attack needs noise: give --pni another value"
            )
        if adversarial.adversarial and adversarial.epoch_delay >= epochs:
            raise ValueError(
                f"--epoch_delay={adversarial.epoch_delay} leaves no epoch of --epochs="
                f"{epochs} for adversarial training; use --noadversarial for that"
            )

    @property
    def is_undefended(self) -> bool:
        """Whether it is plain training of a network without noise."""
        return not self.network.has_noise and not self.adversarial.adversarial

    def undefended(self) -> "Recipe":
        """Returns the same recipe without noise and without adversarial images."""
        return dataclasses.replace(
            self,
            network=dataclasses.replace(self.network, noise="pni", pni="none"),
            adversarial=Adversarial(adversarial=False),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """All settings of `bin/train`.

    Raises:
        ValueError: If settings of different groups contradict each other.
    """

    data: Data = Data()
    recipe: Recipe = Recipe()
    devices: TrainingDevices = TrainingDevices()
    storage: Storage = Storage()
    final: FinalEvaluation = FinalEvaluation()

    def __post_init__(self):
        if self.devices.strategy != "none" and self.recipe.computation.jit == "on":
            raise ValueError(
                f"--jit=on does not work with --strategy={self.devices.strategy} in "
                "Keras 3"
            )
        if self.final.eval_ensemble > 1 and not self.recipe.network.has_noise:
            raise ValueError("--eval_ensemble needs noise: give --pni another value")
        if self.final.compare_undefended and self.recipe.is_undefended:
            raise ValueError("--compare_undefended would train the same network twice")
