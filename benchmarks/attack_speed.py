#!/usr/bin/env python3
"""Measures the attacks against those of Foolbox and ART at the same settings.

    python benchmarks/attack_speed.py --model=RUN_DIR --attack=pgd --attack=cw
    python benchmarks/attack_speed.py --model=RUN_DIR --attack=zoo --art_examples=10
    python benchmarks/attack_speed.py --model=RUN_DIR --attack=graph

The network is deterministic. The competitors take turns in each round, so a machine
that slows down does so for all. Each runs at the batch size that was fastest for it in
a trial, which also traces and warms up; `first` is the first run of the trial with its
tracing, at the first batch size (ZOO: of two images). Foolbox and ART get the forward
pass as a compiled function ("compiled") and, for a Keras model, as their users mostly
give it ("plain"). One and the same forward pass judges what they found, after the clock
has stopped. Mean L2 is that of the images beaten. A ratio says how many times faster we
are: the median, least and largest of the rounds.
"""

import argparse
import dataclasses
import resource
import time

import foolbox as fb
import numpy as np
import peers

from pni_tf.attacks import PGD, ZOO, CarliniWagnerL2, ExpectationOverNoise


class Row:
    """One competitor, which attacks the first `limit` images.

    Its `seconds`, one a round, are those of all images: extrapolated from `limit`.
    """

    def __init__(self, name, run, sizes, limit):
        self.name, self.run, self.sizes, self.limit = name, run, sizes, limit
        self.size, self.first, self.seconds, self.found = sizes[0], None, [], []

    def attack(self, victim, seed, limit=None):
        images = victim.images[: limit or self.limit]
        labels = victim.labels[: len(images)]
        start = time.perf_counter()
        found = peers.in_batches(self.run, images, labels, self.size, seed)
        return found, time.perf_counter() - start

    def try_sizes(self, victim, limit):
        self.first = self.attack(victim, 0, limit)[1]
        tried = {}
        for size in self.sizes if len(self.sizes) > 1 else ():
            self.size = size
            tried[size] = self.attack(victim, 0, limit)[1]
        self.size = min(tried, key=tried.get, default=self.size)

    def play(self, victim, seed):
        found, seconds = self.attack(victim, seed)
        self.seconds.append(seconds * len(victim.images) / self.limit)
        self.found.append(found)


def rows_of(kind, options, victim):
    """Returns the competitors, ours first."""
    count = len(victim.images)
    sizes = sorted({min(size or count, count) for size in options.batch_sizes})
    networks = {"compiled": victim.compiled, "plain": victim.target.logits}
    networks = {name: networks[name] for name in options.networks}
    rows = []

    def add(name, run, sizes=sizes, limit=count):
        rows.append(Row(name, run, sizes, limit))

    if kind == "pgd":
        epsilon, steps = victim.epsilon, options.steps
        size = 2.5 * epsilon / steps
        pgd = PGD(epsilon=epsilon, step_size=size, steps=steps)
        print(f"\n{pgd}")
        add("ours, early_stop=False", peers.Ours(pgd, victim))
        if not victim.untrained:
            stops = dataclasses.replace(pgd, early_stop=True)
            add("ours, early_stop=True", peers.Ours(stops, victim))
        theirs = fb.attacks.LinfPGD(abs_stepsize=size, steps=steps)
        settings = dict(eps=epsilon, eps_step=size, max_iter=steps, num_random_init=1)
        for kind_of, network in networks.items():
            add(f"Foolbox, {kind_of}", peers.foolbox_attack(theirs, network, epsilon))
            run = peers.art_attack(
                "ProjectedGradientDescent", network, victim, **settings
            )
            add(f"ART, {kind_of}", run)
    elif kind == "cw":
        shared = {
            "steps": options.cw_steps,
            "binary_search_steps": options.cw_binary_search_steps,
            "initial_const": options.cw_initial_const,
            "confidence": 0,
            "abort_early": True,
        }
        ours = CarliniWagnerL2(learning_rate=options.cw_learning_rate, **shared)
        print(f"\n{ours}")
        add("ours", peers.Ours(ours, victim))
        theirs = fb.attacks.L2CarliniWagnerAttack(
            stepsize=options.cw_learning_rate, **shared
        )
        for kind_of, network in networks.items():
            add(f"Foolbox, {kind_of}", peers.foolbox_attack(theirs, network))
    else:
        zoo = ZOO(
            iterations=options.zoo_iterations,
            coordinates=min(128, int(np.prod(victim.target.image_shape))),
            space="box",
            initial_const=options.zoo_initial_const,
            binary_search_steps=1,
            patience=max(1, options.zoo_iterations // 10),  # ART's
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
    untrained = " (untrained: accuracy means nothing)" if victim.untrained else ""
    print(f"{count} images of {options.dataset}, {options.rounds} rounds, ", end="")
    print(f"seed {options.seed}; accuracy before {before:.2f} %{untrained}")
    ours = [row for row in rows if row.name.startswith("ours")]
    titles = "".join(f"{'ratio' + row.name[4:]:>32}" for row in ours)
    print(
        f"{'':24}{'batch':>6}{'first s':>9}{'median s':>10}{'min-max':>16}"
        f"{'left %':>8}{'mean L2':>9}{titles}"
    )
    for row in rows:
        print(line_of(row, ours, victim))
        if kind == "zoo":
            print("    " + signs(row, victim))
        if row.limit < count:
            print(
                f"    EXTRAPOLATED: {row.limit} images were timed, and their seconds "
                f"multiplied by {count / row.limit:g}"
            )
    for row in ours:
        for size in (50, 7):
            peers.in_batches(row.run, victim.images[:50], victim.labels[:50], size, 0)
        print(f"{row.name}: traced {row.run.traces} time(s), for batches of any size")


def line_of(row, ours, victim):
    fooled = [victim.fooled(found) for found in row.found]
    lengths = [victim.l2(x)[bad] for x, bad in zip(row.found, fooled, strict=True)]
    length = np.mean(np.concatenate(lengths)) if np.any(fooled) else np.nan
    line = (
        f"{row.name:24}{row.size:>6}{row.first:>9.2f}{np.median(row.seconds):>10.3f}"
        f"{min(row.seconds):>9.3f}-{max(row.seconds):<6.3f}"
        f"{100 * (1 - np.mean(fooled)):>8.2f}{length:>9.4f}"
    )
    for one in ours:
        ratios = np.array(row.seconds) / one.seconds
        text = f"{np.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        line += f"{text:>32}"
    return line


def signs(row, victim):
    """Says how often pixels rise and fall, and what the last round cost."""
    change = row.found[-1] - victim.images[: row.limit]
    up, down = np.sum(change > 1e-6), np.sum(change < -1e-6)
    share = 100 * up / max(up + down, 1)
    each = row.run.queries / ((row.limit - 1) % row.size + 1)  # of the last batch
    rate = 1e6 * row.seconds[-1] / each / len(victim.images)
    return (
        f"of the pixels changed {share:.1f} % rose, {100 - share:.1f} % fell; "
        f"{each:.0f} queries an image, {rate:.1f} microseconds each"
    )


def print_graphs(victim):
    """Prints how graph and memory grow with the steps and the draws of PGD."""
    print("\nPGD: size of the graph, and peak memory (MiB) added by running it")
    rows = []
    for steps, draws in ((7, 1), (40, 1), (100, 1), (7, 20), (100, 20)):
        logits = ExpectationOverNoise(victim.target.logits, draws)
        attack = PGD(steps=steps, step_size=0.01, epsilon=0.1)
        ours = peers.Ours(attack, victim, logits)
        concrete = ours.graph.get_concrete_function()
        graph = concrete.graph.as_graph_def()
        size = len(graph.node) + sum(len(f.node_def) for f in graph.library.function)
        rows.append((steps, draws, size, ours))
    for steps, draws, size, ours in rows:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ours(victim.images, victim.labels, 0)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{steps:>4} steps, {draws:>2} draws: {size:>6} operations, "
            f"{(after - before) / 1024:8.1f} more"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    peers.add_options(parser)
    kinds = ("pgd", "cw", "zoo", "graph")
    parser.add_argument("--attack", action="append", choices=kinds, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[32, 128, 0], help="0 is all"
    )
    parser.add_argument(
        "--networks", nargs="+", default=["compiled", "plain"], help="of the others"
    )
    parser.add_argument("--zoo_iterations", type=int, default=1000)
    parser.add_argument("--zoo_initial_const", type=float, default=1.0)
    parser.add_argument("--art_examples", type=int, help="of ART's ZOO; then scaled")
    options = parser.parse_args()
    peers.print_machine()
    print("Options:", " ".join(f"{k}={v}" for k, v in vars(options).items()))
    victim = peers.Victim(options)
    for kind in options.attack:
        if kind == "graph":
            print_graphs(victim)
        else:
            compare(kind, options, victim)


if __name__ == "__main__":
    main()
