#!/usr/bin/env python3
"""Checks our attacks against those of Foolbox and ART on a deterministic network.

    python benchmarks/attack_agreement.py --model=RUN_DIR

Every pair has the same settings; the results are compared image by image, judged by one
and the same forward pass. Known differences of the others:

- ART's APGD returns the last point of a run, and only where it fools the network, else
  its random start; ours returns the best point, hence the larger L2. To ART, a step has
  raised the loss where it beats the best so far; to ours, as to the authors of APGD,
  where it beats the step before.
- Foolbox's C&W stops an iteration for the whole batch at once, by the sum of the
  losses; ours stops each image by its own.
- Random starts differ, so a few images change sides from seed to seed.
"""

import argparse
import dataclasses

import foolbox as fb
import numpy as np
import peers

from pni_tf.attacks import APGD, PGD, CarliniWagnerL2


@dataclasses.dataclass
class Pair:
    """An attack of ours and theirs, as callables from a batch and a seed."""

    name: str
    ours: object
    peer: str
    theirs: object
    bounded: bool = True


def pairs_of(options, victim):
    epsilon, steps = victim.epsilon, options.steps
    size = 2.5 * epsilon / steps
    network = victim.compiled
    bound = {"eps": epsilon, "max_iter": steps}

    def apgd(loss, name):
        ours = APGD(epsilon=epsilon, steps=options.apgd_steps, loss=loss)
        theirs = peers.art_attack(
            "AutoProjectedGradientDescent",
            network,
            victim,
            **(bound | {"max_iter": options.apgd_steps}),
            eps_step=2 * epsilon,
            nb_random_init=1,
            loss_type=name,
        )
        return Pair(f"APGD-{loss.upper()}", peers.Ours(ours, victim), "ART", theirs)

    pgd = PGD(epsilon=epsilon, step_size=size, steps=steps)
    foolbox_pgd = fb.attacks.LinfPGD(abs_stepsize=size, steps=steps)
    yield Pair(
        f"PGD-{steps}",
        peers.Ours(pgd, victim),
        "Foolbox",
        peers.foolbox_attack(foolbox_pgd, network, epsilon),
    )
    art_pgd = peers.art_attack(
        "ProjectedGradientDescent",
        network,
        victim,
        **bound,
        eps_step=size,
        num_random_init=1,
    )
    yield Pair(f"PGD-{steps}", peers.Ours(pgd, victim), "ART", art_pgd)
    # Without a random start nothing is left to chance.
    still = dataclasses.replace(pgd, random_start=False)
    foolbox_still = fb.attacks.LinfBasicIterativeAttack(
        abs_stepsize=size, steps=steps, random_start=False
    )
    yield Pair(
        f"PGD-{steps}, no random start",
        peers.Ours(still, victim),
        "Foolbox",
        peers.foolbox_attack(foolbox_still, network, epsilon),
    )
    yield apgd("ce", "cross_entropy")
    yield apgd("dlr", "difference_logits_ratio")
    for abort in (False, True):
        shared = {
            "steps": options.cw_steps,
            "binary_search_steps": options.cw_binary_search_steps,
            "initial_const": options.cw_initial_const,
            "confidence": 0,
            "abort_early": abort,
        }
        rate = options.cw_learning_rate
        ours = CarliniWagnerL2(learning_rate=rate, **shared)
        theirs = fb.attacks.L2CarliniWagnerAttack(stepsize=rate, **shared)
        yield Pair(
            f"C&W, abort_early={abort}",
            peers.Ours(ours, victim),
            "Foolbox",
            peers.foolbox_attack(theirs, network),
            bounded=False,
        )


def report(pair, options, victim):
    """Returns the row of a pair: means over the seeds, and the agreement."""
    beaten, lengths, largest, shared = [], [], [0.0, 0.0], []
    seeds = range(options.seed, options.seed + options.seeds)
    for seed in seeds if pair.bounded else seeds[:1]:
        found = [
            run(victim.images, victim.labels, seed) for run in (pair.ours, pair.theirs)
        ]
        fooled = [victim.fooled(x) for x in found]
        if not pair.bounded:  # without a bound, an image that is wrong already counts
            moved = [victim.l2(x) > 1e-6 for x in found]
            fooled = [a & b for a, b in zip(fooled, moved, strict=True)]
        beaten.append([100 * np.mean(x) for x in fooled])
        both = fooled[0] & fooled[1]
        shared.append(100 * np.mean(fooled[0] == fooled[1]))
        if both.any():
            lengths.append([victim.l2(x)[both].mean() for x in found])
        largest = np.maximum(largest, [victim.linf(x) for x in found])
    ours, theirs = np.mean(beaten, 0)
    near, far = np.mean(lengths, 0) if lengths else (np.nan, np.nan)
    return (
        f"| {pair.name} | {pair.peer} | {ours:.2f} | {theirs:.2f} | "
        f"{np.mean(shared):.2f} | {near:.4f} | {far:.4f} | "
        f"{largest[0]:.4f} | {largest[1]:.4f} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    peers.add_options(parser)
    parser.add_argument("--seeds", type=int, default=3, help="of the random starts")
    parser.add_argument("--apgd_steps", type=int, default=100)
    options = parser.parse_args()
    peers.print_machine()
    print("Options:", " ".join(f"{k}={v}" for k, v in vars(options).items()))
    victim = peers.Victim(options)
    before = 100 * victim.fooled(victim.images).mean()
    print(
        f"\n{len(victim.images)} images of {options.dataset}, {before:.2f} % of which "
    )
    print(f"are wrong unattacked; epsilon {victim.epsilon:.4g}; {options.seeds} seeds.")
    print(
        "Success is the share that is wrong afterwards; L2 is the mean over the images"
    )
    print("that both beat.\n")
    print(
        "| attack | peer | success, ours (%) | success, peer (%) | same verdict (%) "
        "| L2, ours | L2, peer | Linf, ours | Linf, peer |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for pair in pairs_of(options, victim):
        print(report(pair, options, victim), flush=True)


if __name__ == "__main__":
    main()
