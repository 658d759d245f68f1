"""Transfer: examples made on one network, aimed at another."""

import dataclasses
from typing import Any, ClassVar

from pni_tf.attacks.base import Attack, Outcome, constant_count
from pni_tf.attacks.draws import ExpectationOverNoise, draws_of, expected_loss
from pni_tf.attacks.goals import prepare
from pni_tf.checks import check_number


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Transfer(Attack):
    """Runs an attack on a source network, and judges the images by the target.

    The target is the network given to `run` or `perturb`. Nothing but its verdict is
    asked of it: no gradient, and one query an image (for each draw).

    In the outcome, `found` is the target's vote and `queries` counts the target's
    passes, all of them for the verdict. `gradients` counts those on the source, whose
    queries are not reported: its owner is the attacker.

    Args:
        attack: What runs on the source.
        source: The source: a callable from images to logits, or a `Target`.
        source_name: What `repr` shows for the source; by default its own name.
        source_draws: Draws of the expectation over the noise of a random source.

    Raises:
        ValueError: If `attack` is not an attack or stops early, or `source` is neither
            callable nor a target.

    Example:

    >>> attack = Transfer(attack=PGD(steps=40), source=load_target("runs/digits_plain"))
    >>> outcome = attack.run(target.logits, images, labels)

    Reference: https://arxiv.org/abs/1605.07277.
    """

    needs_gradient: ClassVar[bool] = False

    attack: Attack
    source: Any
    source_name: str | None = None
    source_draws: int = 1

    def __post_init__(self):
        if not isinstance(self.attack, Attack):
            raise ValueError(
                "`attack` must be a `pni_tf.Attack` such as `PGD()`. "
                f"Received: attack={self.attack!r}"
            )
        if getattr(self.attack, "early_stop", False):
            raise ValueError(
                "With early_stop the attack ends as soon as the source is fooled, and "
                "such images hardly transfer: use early_stop=False. "
                f"Received: attack={self.attack!r}"
            )
        if not callable(self._source_logits):
            raise ValueError(
                "`source` must be a callable from images to logits, or a target from "
                f"`load_target`. Received: source={self.source!r}"
            )
        check_number("source_draws", self.source_draws, minimum=1, integer=True)

    def __repr__(self):
        source = self.source
        name = self.source_name
        for attribute in ("name", "__name__"):
            name = name or getattr(source, attribute, None)
        return (
            f"Transfer(attack={self.attack!r}, source={name or repr(source)!r}, "
            f"source_draws={self.source_draws})"
        )

    @property
    def _source_logits(self):
        logits = getattr(self.source, "logits", self.source)  # A Target has logits.
        if self.source_draws > 1:
            logits = ExpectationOverNoise(logits, self.source_draws)
        return logits

    def run(self, logits_fn, images, labels, *, towards=None, seed=None):
        images, goal = prepare(images, labels, towards)
        draws = draws_of(logits_fn)
        outcome = self.attack.run(
            self._source_logits, images, labels, towards=towards, seed=seed
        )
        share = expected_loss(logits_fn, goal.fooled, outcome.images)
        queries = constant_count(outcome.images, draws)
        return Outcome(outcome.images, share > 0.5, queries, outcome.gradients)

    def perturb(self, logits_fn, images, labels, *, towards=None, seed=None):
        # Without the verdict of `run`, so the target is not called at all.
        return self.attack.perturb(
            self._source_logits, images, labels, towards=towards, seed=seed
        )
