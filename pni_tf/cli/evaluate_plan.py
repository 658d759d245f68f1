"""Which attacks `bin/evaluate` runs on which target."""

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np

from pni_tf import __version__, files
from pni_tf.attacks.presets import make_attack
from pni_tf.attacks.substitute import train_substitute
from pni_tf.checks import check_number
from pni_tf.cli.flags import AttackSpec
from pni_tf.distribution.workers import Workers
from pni_tf.evaluation import Scenario, paper_suite, strong_suite, transfer_from
from pni_tf.evaluation.names import NOISE_FREE_TWIN, row_name
from pni_tf.evaluation.suites import label
from pni_tf.files import slug
from pni_tf.settings.evaluation import Attacks
from pni_tf.targets import Target, load_model, load_target

_MOST_ZOO_IMAGES = 200


@dataclasses.dataclass(frozen=True)
class Planner:
    """Makes the scenarios of a target from the settings of the command."""

    chosen: Attacks
    specs: list[AttackSpec]  # Those of `--attacks`.
    # What to transfer from, each with a digest of it, by name.
    sources: dict[str, tuple[Target, str]]
    substitutes: "Substitutes"
    images: int  # Number of images that will be attacked.

    def scenarios(self, column, target, identity) -> list[Scenario]:
        """Returns what to do to a target, clean images first, under unique names.

        By `identity`, a digest of the target, a substitute is found again.

        Raises:
            ValueError: If an attack of `--attacks` does not have a setting, or has
                nothing to transfer from.
        """
        specs, scenarios = self.specs, [Scenario(name="clean")]
        if self.chosen.suite == "paper":
            specs = [AttackSpec("substitute", {"steps": 7}), *specs]
        for epsilon in self.chosen.epsilons:
            found = self._suite(target, epsilon)
            for spec in specs:
                if spec.name in ("transfer", "substitute"):
                    found += self._foreign(spec, column, target, identity, epsilon)
                else:
                    found += self._direct(spec, target, epsilon)
            for scenario in found:
                if len(self.chosen.epsilons) > 1 and scenario.ball is not None:
                    name = f"{scenario.name} ε={scenario.ball[1]:.4g}"
                    scenario = dataclasses.replace(scenario, name=name)
                if scenario.attack is not None and scenario not in scenarios:
                    scenarios.append(_unique(scenario, scenarios))
        return scenarios

    def _suite(self, target, epsilon):
        sources = {name: source for name, (source, _) in self.sources.items()}
        if self.chosen.suite == "paper":
            zoo = self.images <= _MOST_ZOO_IMAGES
            if not zoo:
                print(
                    "ZOO is left out: it takes about a million queries an image. With "
                    f"--examples={_MOST_ZOO_IMAGES}, as in the paper, it runs too"
                )
            return paper_suite(target, epsilon=epsilon, sources=sources, zoo=zoo)
        if self.chosen.suite == "strong":
            return strong_suite(
                target,
                epsilon=epsilon,
                norm=self.chosen.norm,
                expectation=max(self.chosen.expectation),
                sources=sources,
            )
        return []

    def _direct(self, spec, target, epsilon):
        """Returns the rows of an attack on the target itself."""
        settings, expectations = dict(spec.settings), self.chosen.expectation
        with _naming(spec):
            if "expectation" in settings:
                expectations = [settings.pop("expectation")]
                check_number("expectation", *expectations, minimum=1, integer=True)
            attack = self._attack(
                spec.name,
                epsilon,
                settings,
                stochastic=target.stochastic,
                channels=target.image_shape[-1],
            )
        rule = self.chosen.towards
        return [
            Scenario(
                name=row_name(label(attack), draws, rule),
                attack=attack,
                expectation=draws,
                towards=rule,
            )
            for draws in expectations
        ]

    def _foreign(self, spec, column, target, identity, epsilon):
        """Returns the rows of PGD on other networks than the target."""
        with _naming(spec):
            attack = self._attack("pgd", epsilon, spec.settings)
        if not spec.settings.get("early_stop"):  # The strong preset stops early.
            attack = dataclasses.replace(attack, early_stop=False)
        if spec.name == "substitute":
            model, version = self.substitutes.of(column, target, identity)
            source = load_target(model)
            return [transfer_from("substitute", source, attack, version=version)]
        sources = self.sources
        if target.noise_free is not None:
            twin = (target.noise_free, identity)
            sources = {NOISE_FREE_TWIN: twin, **sources}
        if not sources and column.kind == "model":
            raise ValueError(
                "transfer needs a model to transfer from: --transfer_from=MODEL"
            )
        return [
            transfer_from(name, source, attack, version=version[:8])
            for name, (source, version) in sources.items()
        ]

    def _attack(self, name, epsilon, settings, **facts):
        given = {"epsilon": epsilon, "norm": self.chosen.norm, **facts, **settings}
        attack = make_attack(name, self.chosen.preset, **given)
        for setting in settings:  # C&W, say, has no epsilon.
            if not hasattr(attack, setting):
                raise ValueError(f"the attack {name!r} has no setting {setting}")
        return attack


@contextlib.contextmanager
def _naming(spec):
    """Says which entry of `--attacks` an error is about."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"--attacks: {spec}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Substitutes:
    """Trains the substitutes of targets, and finds those of an earlier evaluation."""

    output: Path
    seed: int
    images: np.ndarray  # Those that will be attacked.
    held_out: np.ndarray  # Those that the training starts from.
    workers: Workers
    # What the training of each took, by its column.
    facts: dict[str, dict] = dataclasses.field(default_factory=dict)

    def of(self, column, target, identity):
        """Returns the model, and a digest of all that it depends on."""
        images = files.digest(self.held_out.tobytes())
        key = json.dumps([identity, column.name, self.seed, images, __version__])
        digest = files.digest(key)[:12]
        path = self.output / "substitutes" / f"{slug(column.name)}-{digest}.keras"
        found = _read_substitute(path)
        if found is None and self.workers.is_chief:
            found = self._train(column, target, path)
        self.workers.barrier()  # The others find what the chief has written.
        model, self.facts[column.name] = found or _read_substitute(path)
        return model, digest

    def _train(self, column, target, path):
        print(f"{column}: training a substitute from {len(self.held_out)} images")
        if target.reseed is not None:
            target.reseed(self.seed)
        substitute = train_substitute(
            target.predict,
            self.held_out,
            num_classes=target.num_classes,
            seed=self.seed,
        )
        agreement = substitute.agreement(target.predict, self.images)
        print(
            f"{column}: {substitute.queries} labels asked; the substitute agrees on "
            f"{agreement:.1%} of the images to attack"
        )
        facts = {
            "labels_asked": substitute.queries,
            "held_out_images": len(self.held_out),
            "agreement": agreement,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as scratch:
            substitute.model.save(scratch)
        content = {"facts": facts, "digest": _digest(path, facts)}
        files.write_text(path.with_suffix(".json"), json.dumps(content) + "\n")
        return substitute.model, facts


def _read_substitute(path):
    """Returns the model and its facts, or None if they are not there, or damaged."""
    content = files.read_json(path.with_suffix(".json")) or {}
    facts = content.get("facts")
    try:
        if content.get("digest") == _digest(path, facts):
            return load_model(path), facts
    except (OSError, ValueError):
        pass
    return None


def _digest(path, facts):
    return files.digest(json.dumps([facts, files.file_digest(path, name=False)]))


def _unique(scenario, scenarios):
    """Returns the scenario under a name that is not taken."""
    taken = {slug(other.name) for other in scenarios}
    name, number = scenario.name, 2
    while slug(name) in taken:
        name, number = f"{scenario.name} #{number}", number + 1
    return dataclasses.replace(scenario, name=name)
