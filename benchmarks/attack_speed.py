#!/usr/bin/env python3
"""Measures the attacks against those of Foolbox and ART at the same settings.

    python benchmarks/attack_speed.py --model=runs/digits_vanilla --attack=pgd
    python benchmarks/attack_speed.py --model=model.keras --attack=zoo --art_examples=10
    python benchmarks/attack_speed.py --model=model.keras --attack=cw --quick

The network is deterministic. The competitors take turns in each round, so a machine
that slows down does so for all. Each runs at the batch size that was fastest for it in
a trial, which also traces and warms up. Foolbox and ART get the forward pass as a
compiled function ("compiled") and, for a Keras model, as their users mostly give it
("plain"). One and the same forward pass judges what they found, after the clock has
stopped. Mean L2 is that of the images beaten. A ratio says how many times faster we
are: the median, least and largest of the rounds.
"""

import dataclasses
import time

import common
import foolbox as fb
import numpy as np
import peers

from pni_tf import PGD, ZOO


class Row:
    """One competitor, which attacks the first `limit` images.

    Its `seconds`, one a round, are those of all images: extrapolated from `limit`.
    """

    def __init__(self, name, run, sizes, limit):
        self.name, self.run, self.sizes, self.limit = name, run, sizes, limit
        self.size, self.seconds, self.found = sizes[0], [], []

    def attack(self, victim, seed, limit=None):
        images = victim.images[: limit or self.limit]
        labels = victim.labels[: len(images)]
        start = time.perf_counter()
        found = in_batches(self.run, images, labels, self.size, seed)
        return found, time.perf_counter() - start

    def try_sizes(self, victim, limit):
        self.attack(victim, 0, limit)
        tried = {}
        for size in self.sizes if len(self.sizes) > 1 else ():
            self.size = size
            tried[size] = self.attack(victim, 0, limit)[1]
        self.size = min(tried, key=tried.get, default=self.size)

    def play(self, victim, seed):
        found, seconds = self.attack(victim, seed)
        self.seconds.append(seconds * len(victim.images) / self.limit)
        self.found.append(found)


def in_batches(run, images, labels, size, seed):
    """Attacks the images in batches of at most `size`."""
    parts = [
        run(images[i : i + size], labels[i : i + size], seed + i)
        for i in range(0, len(images), size)
    ]
    return np.concatenate(parts)


def rows_of(kind, options, victim):
    """Returns the competitors, ours first."""
    count = len(victim.images)
    sizes = sorted({min(size or count, count) for size in options.batch_sizes})
    networks = {"compiled": victim.compiled, "plain": victim.target.logits}
    rows = []

    def add(name, run, sizes=sizes, limit=count):
        rows.append(Row(name, run, sizes, limit))

    if kind == "pgd":
        ours, foolbox, art = peers.pgd_settings(victim, options.steps)
        pgd = PGD(**ours)
        print(f"\n{pgd}")
        add("ours, early_stop=False", peers.Ours(pgd, victim))
        stops = dataclasses.replace(pgd, early_stop=True)
        add("ours, early_stop=True", peers.Ours(stops, victim))
        theirs = fb.attacks.LinfPGD(**foolbox)
        name = "ProjectedGradientDescent"
        for form, network in networks.items():
            run = peers.foolbox_attack(theirs, network, victim.epsilon)
            add(f"Foolbox, {form}", run)
            run = peers.art_attack(name, network, victim, **art, num_random_init=1)
            add(f"ART, {form}", run)
    elif kind == "cw":
        ours, theirs = peers.carlini_wagner(options, True)
        print(f"\n{ours}")
        add("ours", peers.Ours(ours, victim))
        for form, network in networks.items():
            add(f"Foolbox, {form}", peers.foolbox_attack(theirs, network))
    else:
        zoo = ZOO(
            iterations=options.zoo_iterations,
            coordinates=min(128, int(np.prod(victim.target.image_shape))),
            space="box",
            initial_const=1.0,
            binary_search_steps=1,
            patience=max(1, options.zoo_iterations // 10),  # It is ART's default.
            query_noise="none",
        )
        print(f"\n{zoo}")
        first = dataclasses.replace(zoo, early_stop=True)
        add("ours", peers.Ours(zoo, victim))
        add("ours, early_stop=True", peers.Ours(first, victim))
        limit = min(options.art_examples or count, count)
        # ART compiles the forward pass itself, so there is no plain one.
        run = peers.art_attack(
            "ZooAttack",
            victim.compiled,
            victim,
            learning_rate=zoo.learning_rate,
            max_iter=zoo.iterations,
            binary_search_steps=zoo.binary_search_steps,
            initial_const=zoo.initial_const,
            nb_parallel=zoo.coordinates,
            variable_h=zoo.difference,
            use_resize=False,
            use_importance=False,
        )
        add("ART", run, [limit], limit)
    return rows


def compare(kind, options, victim):
    """Lets the competitors take turns and prints the table."""
    rows = rows_of(kind, options, victim)
    for row in rows:
        row.try_sizes(victim, 2 if kind == "zoo" else None)
    for number in range(options.rounds):
        turn = number % len(rows)
        for row in rows[turn:] + rows[:turn]:
            row.play(victim, seed=1000 * (number + options.seed))
    count = len(victim.images)
    before = 100 * (1 - victim.fooled(victim.images).mean())
    print(f"{count} images of {options.dataset}, {options.rounds} rounds, ", end="")
    print(f"seed {options.seed}; accuracy before {before:.2f} %")
    ours = [row for row in rows if row.name.startswith("ours")]
    titles = "".join(f"{'ratio' + row.name[4:]:>32}" for row in ours)
    print(f"{'':24}{'batch':>6}{'seconds':>28}{'left %':>8}{'mean L2':>9}{titles}")
    for row in rows:
        print(line_of(row, ours, victim))
        if kind == "zoo":
            print("    " + signs(row, victim))
        if row.limit < count:
            print(
                f"    EXTRAPOLATED: {row.limit} images were timed, and their seconds "
                f"multiplied by {count / row.limit:g}"
            )


def line_of(row, ours, victim):
    fooled = [victim.fooled(found) for found in row.found]
    lengths = [victim.l2(x)[bad] for x, bad in zip(row.found, fooled, strict=True)]
    length = np.mean(np.concatenate(lengths)) if np.any(fooled) else np.nan
    line = (
        f"{row.name:24}{row.size:>6}"
        f"{common.spread(row.seconds, '.3f'):>28}"
        f"{100 * (1 - np.mean(fooled)):>8.2f}{length:>9.4f}"
    )
    for one in ours:
        line += f"{common.spread(common.ratios(row.seconds, one.seconds)):>32}"
    return line


def signs(row, victim):
    """Says how often pixels rise and fall, and what the last round cost."""
    change = victim.change(row.found[-1])
    up, down = np.sum(change > 1e-6), np.sum(change < -1e-6)
    share = 100 * up / max(up + down, 1)
    # The attack counts the queries of its last batch.
    each = row.run.queries / ((row.limit - 1) % row.size + 1)
    rate = 1e6 * row.seconds[-1] / each / len(victim.images)
    return (
        f"of the pixels changed {share:.1f} % rose, {100 - share:.1f} % fell; "
        f"{each:.0f} queries an image, {rate:.1f} microseconds each"
    )


def main():
    parser = peers.parser_of(__doc__)
    kinds = ("pgd", "cw", "zoo")
    parser.add_argument("--attack", action="append", choices=kinds, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[32, 128, 0], help="0 is all"
    )
    parser.add_argument("--zoo_iterations", type=int, default=1000)
    parser.add_argument("--art_examples", type=int, help="of ART's ZOO; then scaled")
    small = {"rounds": 1, "batch_sizes": [0], "zoo_iterations": 2}
    options = common.parse(parser, **small, **peers.QUICK)
    victim = peers.Victim(options)
    for kind in options.attack:
        compare(kind, options, victim)


if __name__ == "__main__":
    main()
