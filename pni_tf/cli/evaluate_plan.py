"""Which attacks `bin/evaluate` runs on which target."""

import dataclasses
import hashlib
import json

from pni_tf import __version__, files
from pni_tf.attacks.presets import make_attack
from pni_tf.attacks.substitute import train_substitute
from pni_tf.checks import check_number
from pni_tf.cli.flags import AttackSpec
from pni_tf.evaluation import Scenario, paper_suite, strong_suite, transfer_from
from pni_tf.evaluation.suites import label
from pni_tf.files import slug
from pni_tf.settings.evaluation import Attacks
from pni_tf.targets import Target, load_model, load_target

_MOST_ZOO_IMAGES = 200


class Planner:
    """Makes the scenarios of a target from the settings of the command.

    Args:
        chosen: The attacks that are asked for.
        specs: Those of `--attacks`.
        sources: Targets to transfer from, by name.
        digests: What identifies each source, by name.
        substitutes: Trains and keeps substitutes.
        count: Number of images that will be attacked.
    """

    def __init__(
        self,
        chosen: Attacks,
        specs: list[AttackSpec],
        sources: dict[str, Target],
        digests: dict[str, str],
        substitutes: "Substitutes",
        count: int,
    ):
        self.chosen, self.specs = chosen, specs
        self.sources, self.digests = sources, digests
        self.substitutes, self.count = substitutes, count

    def scenarios(self, column, target, identity) -> list[Scenario]:
        """Returns what to do to a target, clean images first, under unique names.

        Args:
            column: The column of the target in the tables.
            target: The target.
            identity: A digest of the target, by which a substitute is found again.

        Raises:
            ValueError: If an attack of `--attacks` does not have a setting, or has
                nothing to transfer from.
        """
        chosen, scenarios = self.chosen, [Scenario(name="clean")]
        specs = self.specs
        if chosen.suite == "paper":
            specs = [AttackSpec("substitute", {"steps": 7}), *specs]
        for epsilon in chosen.epsilons:
            found = self._suite(target, epsilon)
            for spec in specs:
                if spec.name in ("transfer", "substitute"):
                    found += self._foreign(spec, column, target, identity, epsilon)
                else:
                    found += self._direct(spec, target, epsilon)
            for scenario in found:
                name = scenario.name
                if len(chosen.epsilons) > 1 and scenario.ball is not None:
                    name += f" ε={scenario.ball[1]:.4g}"
                scenario = dataclasses.replace(scenario, name=name)
                if scenario.attack is not None and scenario not in scenarios:
                    scenarios.append(_unique(scenario, scenarios))
        return scenarios

    def _suite(self, target, epsilon):
        if self.chosen.suite == "paper":
            zoo = self.count <= _MOST_ZOO_IMAGES
            if not zoo:
                print(
                    "ZOO is left out: it takes about a million queries an image. With "
                    f"--examples={_MOST_ZOO_IMAGES}, as in the paper, it runs too"
                )
            return paper_suite(target, epsilon=epsilon, sources=self.sources, zoo=zoo)
        if self.chosen.suite == "strong":
            return strong_suite(
                target,
                epsilon=epsilon,
                norm=self.chosen.norm,
                expectation=max(self.chosen.expectation),
                sources=self.sources,
            )
        return []

    def _direct(self, spec, target, epsilon):
        """Returns the rows of an attack on the target itself."""
        settings = dict(spec.settings)
        expectations = self.chosen.expectation
        if "expectation" in settings:
            expectations = [_expectation(spec, settings.pop("expectation"))]
        spec = AttackSpec(spec.name, settings)
        attack = self._attack(spec, spec.name, epsilon, target)
        rule = self.chosen.towards
        name = label(attack) + (f" towards {rule.replace('_', ' ')}" if rule else "")
        return [
            Scenario(
                name=name + (f" EOT-{draws}" if draws > 1 else ""),
                attack=attack,
                expectation=draws,
                towards=rule,
            )
            for draws in expectations
        ]

    def _foreign(self, spec, column, target, identity, epsilon):
        """Returns the rows of PGD on other networks than the target."""
        attack = self._attack(spec, "pgd", epsilon)
        if not spec.settings.get("early_stop"):  # The strong preset stops early.
            attack = dataclasses.replace(attack, early_stop=False)
        if spec.name == "substitute":
            model, version = self.substitutes.of(column, target, identity)
            source = load_target(model)
            return [transfer_from("substitute", source, attack, version=version)]
        sources = self.sources
        if target.noise_free is not None:
            sources = {"noise-free twin": target.noise_free, **sources}
        if not sources and column.kind == "model":
            raise ValueError(
                "transfer needs a model to transfer from: --transfer_from=MODEL"
            )
        return [
            transfer_from(
                name, source, attack, version=self.digests.get(name, identity)[:8]
            )
            for name, source in sources.items()
        ]

    def _attack(self, spec, name, epsilon, target=None):
        try:
            attack = make_attack(
                name,
                self.chosen.preset,
                **{
                    "epsilon": epsilon,
                    "norm": self.chosen.norm,
                    "stochastic": target is not None and target.stochastic,
                    "channels": 3 if target is None else target.image_shape[-1],
                    **spec.settings,
                },
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"--attacks: {spec}: {error}") from error
        for setting in spec.settings:  # C&W, say, has no epsilon.
            if not hasattr(attack, setting):
                raise ValueError(
                    f"--attacks: {spec}: the attack {name!r} has no setting {setting}"
                )
        return attack


class Substitutes:
    """Trains the substitutes of targets, and finds those of an earlier evaluation.

    Args:
        output: Folder of the results.
        seed: Seed of the training.
        images: The images that will be attacked.
        held_out: Images that the training starts from.
        workers: Processes that share the work: the chief trains.

    Attributes:
        facts: What the training of each substitute took, by its column.
    """

    def __init__(self, output, seed, images, held_out, workers):
        self.output, self.seed, self.workers = output, seed, workers
        self.images, self.held_out = images, held_out
        self.facts = {}

    def of(self, column, target, identity):
        """Returns the model, and a digest of all that it depends on."""
        images = hashlib.sha256(self.held_out.tobytes()).hexdigest()
        key = json.dumps([identity, column.name, self.seed, images, __version__])
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
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


def _expectation(spec, draws):
    try:
        check_number("expectation", draws, minimum=1, integer=True)
    except ValueError as error:
        raise ValueError(f"--attacks: {spec}: {error}") from error
    return draws


def _read_substitute(path):
    """Returns the model and its facts, or None if they are not there, or damaged."""
    try:
        content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        facts = content["facts"]
        if content["digest"] == _digest(path, facts):
            return load_model(path), facts
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        pass
    return None


def _digest(path, facts):
    text = json.dumps([facts, files.file_digest(path, name=False)])
    return hashlib.sha256(text.encode()).hexdigest()


def _unique(scenario, scenarios):
    """Returns the scenario under a name that is not taken."""
    taken = {slug(other.name) for other in scenarios}
    name, number = scenario.name, 2
    while slug(name) in taken:
        name, number = f"{scenario.name} #{number}", number + 1
    return dataclasses.replace(scenario, name=name)
