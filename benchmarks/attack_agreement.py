#!/usr/bin/env python3
"""Checks our attacks against those of Foolbox and ART on a deterministic network.

    python benchmarks/attack_agreement.py --model=runs/digits_vanilla
    python benchmarks/attack_agreement.py --model=model.keras --quick

Every pair has the same settings; the results are compared image by image, judged by one
and the same forward pass. Success is the share that is wrong afterwards; L2 is the mean
over the images that both beat. Known differences of the others:

- ART's APGD returns the last point of a run, and only where it fools the network, else
  its random start; ours returns the best point, hence the larger L2. To ART, a step has
  raised the loss where it beats the best so far; to ours, as to the authors of APGD,
  where it beats the step before.
- Foolbox's C&W stops an iteration for the whole batch at once, by the sum of the
  losses; ours stops each image by its own.
- Random starts differ, so a few images change sides from seed to seed.
"""

import common
import foolbox as fb
import numpy as np
import peers

from pni_tf import APGD, PGD


def pairs_of(options, victim):
    """Yields the pairs: name, peer, our attack, theirs as a callable."""
    steps, network = options.steps, victim.compiled
    ours, foolbox, art = peers.pgd_settings(victim, steps)
    name, pgd = f"PGD-{steps}", PGD(**ours)
    theirs = fb.attacks.LinfPGD(**foolbox)
    yield name, "Foolbox", pgd, peers.foolbox_attack(theirs, network, victim.epsilon)
    theirs = "ProjectedGradientDescent"
    theirs = peers.art_attack(theirs, network, victim, **art, num_random_init=1)
    yield name, "ART", pgd, theirs
    # Without a random start nothing is left to chance.
    theirs = fb.attacks.LinfBasicIterativeAttack(**foolbox, random_start=False)
    theirs = peers.foolbox_attack(theirs, network, victim.epsilon)
    yield f"{name}, no random start", "Foolbox", PGD(**ours, random_start=False), theirs
    for loss, loss_of_art in (
        ("ce", "cross_entropy"),
        ("dlr", "difference_logits_ratio"),
    ):
        apgd = APGD(epsilon=victim.epsilon, steps=options.apgd_steps, loss=loss)
        theirs = peers.art_attack(
            "AutoProjectedGradientDescent",
            network,
            victim,
            eps=victim.epsilon,
            max_iter=options.apgd_steps,
            eps_step=2 * victim.epsilon,
            nb_random_init=1,
            loss_type=loss_of_art,
        )
        yield f"APGD-{loss.upper()}", "ART", apgd, theirs
    for abort in (False, True):
        carlini_wagner, theirs = peers.carlini_wagner(options, abort)
        theirs = peers.foolbox_attack(theirs, network)
        yield f"C&W, abort_early={abort}", "Foolbox", carlini_wagner, theirs


def row_of(name, peer, attack, theirs, options, victim):
    """Returns the row of a pair: means over the seeds, and the agreement."""
    beaten, lengths, largest, same = [], [], [0.0, 0.0], []
    bounded, ours = not name.startswith("C&W"), peers.Ours(attack, victim)
    seeds = range(options.seed, options.seed + options.seeds)
    for seed in seeds if bounded else seeds[:1]:  # C&W draws nothing.
        found = [run(victim.images, victim.labels, seed) for run in (ours, theirs)]
        fooled = [victim.fooled(x) for x in found]
        if not bounded:  # Unbounded, images that are wrong already count.
            moved = [victim.l2(x) > 1e-6 for x in found]
            fooled = [a & b for a, b in zip(fooled, moved, strict=True)]
        beaten.append([100 * np.mean(x) for x in fooled])
        both = fooled[0] & fooled[1]
        same.append(100 * np.mean(fooled[0] == fooled[1]))
        if both.any():
            lengths.append([victim.l2(x)[both].mean() for x in found])
        largest = np.maximum(largest, [abs(victim.change(x)).max() for x in found])
    lengths = np.mean(lengths, 0) if lengths else (np.nan, np.nan)
    numbers = [f"{x:.2f}" for x in (*np.mean(beaten, 0), np.mean(same))]
    numbers += [f"{x:.4f}" for x in (*lengths, *largest)]
    return " | ".join(["", name, peer, *numbers, ""]).strip()


def main():
    parser = peers.parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="of the random starts")
    parser.add_argument("--apgd_steps", type=int, default=100)
    options = common.parse(parser, seeds=1, apgd_steps=2, **peers.QUICK)
    victim = peers.Victim(options)
    before = 100 * victim.fooled(victim.images).mean()
    print(
        f"\n{len(victim.images)} images of {options.dataset}, {before:.2f} % of which "
        f"are wrong unattacked; epsilon {victim.epsilon:.4g}; {options.seeds} seeds.\n"
    )
    print(
        "| attack | peer | success, ours (%) | success, peer (%) | same verdict (%) "
        "| L2, ours | L2, peer | Linf, ours | Linf, peer |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for pair in pairs_of(options, victim):
        print(row_of(*pair, options, victim), flush=True)


if __name__ == "__main__":
    main()
