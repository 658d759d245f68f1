"""What to reproduce on: digits, CIFAR-10 in hours, or the paper's own setting."""

import dataclasses
from collections.abc import Mapping

from pni_tf.reproduce.jobs import Evaluation, Training

# Flags of `bin/evaluate` by name: a value, several with commas between them, or True.
Flags = Mapping[str, float | str | tuple[str, ...]]

# Flags of each defence, after those of a scale's recipe.
DEFENCES = {
    "vanilla": ("--pni=none", "--noadversarial", "--epoch_delay=0"),
    "adversarial": ("--pni=none",),
    "madry": (
        *("--pni=none", "--clean_weight=0", "--adversarial_weight=1"),
        *("--attack_labels=true", "--epoch_delay=0"),
    ),
    "pni_w": ("--pni=w",),
    "pni_i": ("--pni=i",),
    "pni_a_a": ("--pni=a-a",),
    "pni_a_b": ("--pni=a-b",),
    "pni_w_a_a": ("--pni=w+a-a",),
    "pni_w_a_b": ("--pni=w+a-b",),
    "pni_w_vanilla": ("--pni=w", "--noadversarial", "--epoch_delay=0"),
    "pni_w_without_noise_in_attack": ("--pni=w", "--nonoise_in_attack"),
    "rse": ("--noise=rse", "--noadversarial", "--epoch_delay=0"),
    "pixeldp": ("--noise=pixeldp", "--noadversarial", "--epoch_delay=0"),
}
NOT_RANDOM = ("vanilla", "adversarial", "madry")  # Defences without noise.
_FIGURES = ("figure1", "figure2", "figure3")
_ALL = (*(f"table{i}" for i in range(1, 8)), *_FIGURES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """What the studies are run on."""

    name: str  # The value of `--scale`.
    title: str  # What the report says of it.
    recipe: tuple[str, ...]  # Flags of `bin/train` that all trainings share.
    # Flags by the name of a network; the first one stands for the paper's ResNet-20.
    networks: Mapping[str, tuple[str, ...]]
    # Flags of `bin/evaluate` by kind of evaluation, which bound its cost; one that is
    # there already is replaced.
    budget: Mapping[str, Flags]
    seeds: int = 1  # Of the main network, unless `--seeds` says another number.
    seeds_of_others: int = 1
    pgd7: float = 0.01  # Step size of the paper's PGD-7.
    expectation: int = 10  # Draws of the expectation over noise.
    ensemble: int = 5  # Draws of the prediction by mean.
    cw_steps: int = 100  # Iterations of the longer attack of Carlini and Wagner.
    zoo_iterations: int = 150
    # Flags by defence that replace `recipe` and those of `DEFENCES`.
    recipes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    # Defences that are another one under this recipe.
    same: Mapping[str, str] = dataclasses.field(default_factory=dict)
    studies: tuple[str, ...] = _ALL
    small: bool = False  # Whether its jobs are too small for several cores.
    note: str = ""  # What a reader must know of the numbers.

    @property
    def main(self) -> str:
        """The main network."""
        return next(iter(self.networks))

    @property
    def evaluations(self) -> dict[str, Flags]:
        """Flags of `bin/evaluate` by kind."""
        draws = self.expectation
        pgd = f"pgd(steps=7,step_size={self.pgd7})"
        transfer = f"transfer(steps=7,step_size={self.pgd7})"
        strict = f"pgd(steps=20,expectation={draws})"
        white = {"attacks": ("fgsm", pgd, strict, "transfer")}
        mnist = ("pgd(steps=40,step_size=0.01)", f"pgd(steps=100,expectation={draws})")
        cw = (
            "cw(initial_const=0.01,learning_rate=5e-4,steps=10)",
            f"cw(steps={self.cw_steps},expectation={draws})",
        )
        zoo = f"zoo(iterations={self.zoo_iterations})"
        curves = {"attacks": (), "curves": ("epsilon", "steps")}
        in_expectation = {"expectation": draws, "columns": "noise_on"}
        mean = {"ensemble": self.ensemble, "columns": "mean"}
        # Without one of their own, attacks are as the paper has them, or by mean.
        single = {"expectation": 1}
        found = {
            "white_box": white | single,
            "ensemble": white | mean | single,
            "strong": {"suite": "strong", "expectation": draws},
            "strong_ensemble": {"suite": "strong"} | single | mean,
            "mnist": {"attacks": ("fgsm", *mnist, "transfer")} | single,
            "cw": {"attacks": cw} | single,
            "transfer": {"attacks": (transfer,)} | single,
            "zoo": {"attacks": (zoo,)} | single,
            "checklist": {"attacks": (), "checklist": True, "expectation": draws},
            "curves": curves | single,
            "curves_in_expectation": curves | in_expectation,
            "certify": {"attacks": (), "certify": True},
            "pictures": {"attacks": (pgd,), "pictures": 1} | single,
        }
        for kind, flags in self.budget.items():
            kept = {k: v for k, v in found[kind].items() if k not in flags}
            found[kind] = kept | flags
        return found

    def seeds_of(self, network: str | None) -> int:
        """Returns how many training seeds a network has, unless others are asked."""
        return self.seeds if network in (None, self.main) else self.seeds_of_others

    def training(self, defence: str, seed: int, network: str | None = None) -> Training:
        """Returns the training of a defence, of the main network by default."""
        defence = self.same.get(defence, defence)
        name = defence if network in (None, self.main) else f"{defence}_{network}"
        flags = self.recipes.get(defence, (*self.recipe, *DEFENCES[defence]))
        return Training(
            name=name,
            seed=seed,
            flags=(*flags, *self.networks[network or self.main]),
            random=defence not in NOT_RANDOM,
        )

    def evaluation(
        self, kind: str, training: Training, **others: Training
    ) -> Evaluation:
        """Returns an evaluation; `others` are networks by the flag that takes them."""
        flags = self.evaluations[kind]
        if not training.random and "transfer" in flags.get("attacks", ()):
            # A deterministic network has no noise-free twin to transfer from.
            kept = tuple(a for a in flags["attacks"] if a != "transfer")
            flags = flags | {"attacks": kept}
        return Evaluation(
            kind=kind,
            training=training,
            flags=tuple(_flag(name, value) for name, value in flags.items()),
            others=tuple(others.items()),
        )


def _flag(name, value):
    if value is True:
        return f"--{name}"
    return f"--{name}={','.join(value) if isinstance(value, tuple) else value}"


DIGITS = Scale(
    name="digits",
    title="handwritten digits (8×8, scikit-learn), resnet8",
    recipe=("--flagfile=configs/digits.cfg", "--validation_split=0"),
    networks={
        "resnet8": (),
        "resnet20": ("--model=resnet20",),
        "resnet8_width2": ("--width=2",),
    },
    small=True,
    seeds=2,
    pgd7=0.04,
    budget={
        "strong": {"examples": 90, "expectation": 5},
        "strong_ensemble": {"examples": 90},
        "curves": {"examples": 90},
        "curves_in_expectation": {"examples": 90},
        "cw": {"examples": 60},
        "zoo": {
            "attacks": ("zoo(iterations=150,binary_search_steps=3)",),
            "examples": 20,
        },
        "checklist": {"examples": 60},
    },
    note="1,437 training and 360 test images; epsilon 0.15. The paper's numbers beside "
    "ours are for CIFAR-10 and its own networks: compare what they say, not how large "
    "they are.",
)
CPU = Scale(
    name="cpu",
    title="CIFAR-10, resnet20, a recipe for 2 CPU cores",
    recipe=("--flagfile=configs/cpu.cfg",),
    networks={"resnet20": (), "mnist": ("--flagfile=configs/cpu_mnist.cfg",)},
    same={"madry": "adversarial"},
    studies=(*("table1", "table2", "table6", "mnist"), *_FIGURES),
    budget={
        "ensemble": {"examples": 1000},
        "strong": {"examples": 200, "expectation": 5},
        "strong_ensemble": {"examples": 200},
        "mnist": {"examples": 1000},
        "certify": {"examples": 256},
        "curves": {"examples": 256},
        "curves_in_expectation": {"examples": 256},
        "pictures": {"examples": 256},
    },
    note="Another recipe than the paper's: 20 epochs, one step of FGSM from a random "
    "start, true labels, no clean loss (Wong et al., 2020), a learning rate that rises "
    "and falls once. RSE and PixelDP have its optimizer and epochs. So the paper's "
    "numbers beside ours tell where it stands, not what ours should be.",
)
PAPER = Scale(
    name="paper",
    title="CIFAR-10, the paper's networks and recipe",
    recipe=("--flagfile=configs/paper.cfg",),
    networks={
        "resnet20": (),
        "resnet32": ("--model=resnet32",),
        "resnet44": ("--model=resnet44",),
        "resnet56": ("--model=resnet56",),
        "resnet20_width1.5": ("--width=1.5",),
        "resnet20_width2": ("--width=2",),
        "resnet20_width4": ("--width=4",),
        "resnet18": ("--model=resnet18",),
    },
    recipes={
        "rse": ("--flagfile=configs/rse.cfg",),
        "pixeldp": ("--flagfile=configs/pixeldp.cfg",),
    },
    seeds=5,
    seeds_of_others=5,
    budget={
        "cw": {"examples": 1000},
        "zoo": {"examples": 200},
        "checklist": {"examples": 1000},
        "certify": {"examples": 1000},
    },
    expectation=20,
    ensemble=10,
    cw_steps=1000,
    zoo_iterations=1000,
)
SCALES = {scale.name: scale for scale in (DIGITS, CPU, PAPER)}
