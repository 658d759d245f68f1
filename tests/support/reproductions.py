"""Runs studies with commands that only write files, for tests of what uses them."""

import csv
import json
import re
import sys
from pathlib import Path
from unittest import mock

import fake_commands

from pni_tf.reproduce import report, runner
from pni_tf.reproduce.cells import Cell, Source
from pni_tf.reproduce.jobs import Costs, Stamps, in_order
from pni_tf.reproduce.results import Results
from pni_tf.reproduce.scales import SCALES
from pni_tf.reproduce.studies import parts_of

DIGITS = SCALES["digits"]
# Writes what bin/train and bin/evaluate write, with numbers drawn from their arguments.
FAKE = Path(__file__).parent / "fake_commands.py"


def commands(*options):
    """Starts the stand-ins as processes."""
    return lambda command: [sys.executable, str(FAKE), *options, command]


def jobs_of(studies, seeds=1, scale=DIGITS):
    parts = [part for study in studies for part in parts_of(study, scale, seeds)]
    return in_order([job for part in parts for job in part.jobs])


def run(
    root,
    studies=("table2",),
    seeds=1,
    *options,
    workers=1,
    scale=DIGITS,
):
    """Runs studies and writes their report; `options` are those of the stand-ins."""
    jobs = jobs_of(studies, seeds, scale)
    stamps = Stamps(root)
    costs = Costs(stamps, jobs, {})
    with mock.patch.object(runner, "_command_of", commands(*options)):
        work = runner.Run(jobs, stamps, costs, workers=workers)
        work.finish()
    return write(root, studies, seeds, scale, stamps), work


def write(root, studies, seeds=1, scale=DIGITS, stamps=None):
    """Writes the report of what is there, and returns its folder."""
    parts = {study: parts_of(study, scale, seeds) for study in studies}
    return report.write(scale, parts, seeds, stamps or Stamps(root))


def results_of(folder, jobs=None):
    """Returns the results in a folder, by default of the jobs of `cells_of`."""
    if jobs is None:
        trainings = [
            DIGITS.training(name, seed)
            for name in ("pni_w", "adversarial")
            for seed in range(3)
        ]
        kinds = ("white_box", "strong")
        jobs = [DIGITS.evaluation(kind, t) for kind in kinds for t in trainings]
    return Results(folder, folder, jobs)


class Process:
    """Stands for a process: runs its command at once, in this one."""

    def __init__(self, command, log, **options):
        self.reason, argv = None, sys.argv
        sys.argv = command[1:]
        try:
            fake_commands.main()
        except SystemExit as stop:
            self.reason = stop.code.splitlines()[-1]
        finally:
            sys.argv = argv

    def poll(self):
        return 0

    def failure(self):
        return self.reason


def table_of(folder):
    """Returns the lines of a report that are ours, without those of the paper."""
    text = (folder / "report.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return "\n".join(re.sub(r"<br>paper [^|]*", "", line) for line in lines)


def cells_of(folder, *columns, paper=(), defence="pni_w", kind="white_box", **fields):
    """Writes results and returns a cell for each column.

    A column has an accuracy for each seed, or the share of right draws on each image.
    """
    count = len(columns[0])
    trainings = [DIGITS.training(defence, seed) for seed in range(count)]
    jobs = [DIGITS.evaluation(kind, training) for training in trainings]
    entry = {"kind": "attack", "accuracy_std": 0.02, "images": 100, "draws": 1}
    for seed, job in enumerate(jobs):
        rows, lines = [], [["network", "scenario", "correct_draws", "draws"]]
        for i, column in enumerate(columns):
            numbers = {"scenario": f"attack {i}", **entry, **fields}
            shares = column[seed]
            if isinstance(shares, list):
                numbers["accuracy_mean"] = sum(shares) / len(shares)
                numbers["images"] = len(shares)
                draws = numbers["draws"]
                lines += [
                    ["model", f"attack {i}", round(share * draws), draws]
                    for share in shares
                ]
            else:
                numbers["accuracy_mean"] = shares
            rows.append(numbers)
        (folder / job.path).mkdir(parents=True)
        (folder / job.result).write_text(json.dumps({"columns": {"model": rows}}))
        if len(lines) > 1:
            with (folder / job.path / "per_example.csv").open("w", newline="") as file:
                csv.writer(file).writerows(lines)
    return [
        Cell(
            sources=tuple(
                Source(evaluation=job, column="model", row=f"attack {i}")
                for job in jobs
            ),
            paper=paper[i] if paper else None,
        )
        for i in range(len(columns))
    ]
