#!/usr/bin/env python3
"""Is a run that was killed the run that was not?

    python benchmarks/kills.py --kills=20
    python benchmarks/kills.py --kills=20 --workers=2
    python benchmarks/kills.py --quick

Trains on digits with `--deterministic` and a checkpoint each 3 steps, without
interruption. Then again, killed (SIGKILL) at random moments, every second time in the
moment in which a checkpoint is being written, and started again by the same command
until it is done. With two workers the victim is drawn, and the survivor must end by
itself with status 75. Exit status 1 if weights, checkpoint or history differ.
"""

import contextlib
import random
import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np

FLAGS = (
    *("--dataset=digits", "--model=mnist_cnn", "--width=0.1", "--pni=w+a-a"),
    *("--train_examples=400", "--test_examples=40", "--validation_split=0.2"),
    *("--validation_draws=2", "--batch_size=20", "--attack_steps=2", "--epsilon=0.1"),
    *("--learning_rate=0.02", "--drop_epochs=20,30", "--deterministic"),
    *("--checkpoint_steps=3", "--notensorboard", "--noevaluate", "--noexport"),
)


def kill(processes, run_dir, generator, while_writing, seconds):
    """Kills a process at a random moment; returns whether it was still running."""
    victim, begin = generator.randrange(len(processes)), time.time()
    # From the import of TensorFlow to the end of the training.
    deadline = time.monotonic() + generator.uniform(1, seconds)
    while time.monotonic() < deadline:
        if processes[victim].poll() is not None:
            return False
        time.sleep(0.01)
    scratch = run_dir / "checkpoints" / "unfinished.newest.npz"

    def being_written():
        with contextlib.suppress(FileNotFoundError):  # An earlier kill leaves one, too.
            return scratch.stat().st_mtime > begin

    while while_writing and processes[victim].poll() is None:
        if being_written():  # It is there for milliseconds, so do not sleep.
            break
    if processes[victim].poll() is not None:
        return False
    writing = being_written()
    processes[victim].kill()
    statuses = [process.wait(timeout=300) for process in processes]
    others = {i: s for i, s in enumerate(statuses) if i != victim}
    done = [p.name[:-21] for p in common.checkpoints(run_dir)]
    print(
        f"killed worker {victim} {'while it wrote' if writing else 'at random'}; "
        f"others ended with {list(others.values())}; newest {done[-1:]}",
        flush=True,
    )
    for index, status in others.items():  # Even if it had not met the victim yet.
        log = common.log_of(run_dir, index).read_text()
        assert status == 75, f"worker {index} ended with {status}:\n{log[-3000:]}"
    return True


def compare(expected, found, tolerance):
    """Returns what differs between two finished runs."""
    newest = [common.checkpoints(run)[-1] for run in (expected, found)]
    names = [path.name.rpartition("-")[0] for path in newest]  # This drops the digest.
    if names[0] != names[1]:
        return [f"checkpoints {names}"]
    ours, theirs = map(common.checkpoint_variables, newest)
    problems = [k for k in ours if not np.array_equal(ours[k], theirs.get(k))]
    rows = [common.history(run) for run in (expected, found)]
    if [r["epoch"] for r in rows[0]] != [r["epoch"] for r in rows[1]]:
        problems.append("epochs of history.csv")
    for a, b in zip(*rows, strict=False):
        for name in a.keys() - {"seconds"}:
            if not np.isclose(a[name], b[name], rtol=tolerance, atol=0, equal_nan=True):
                problems.append(f"epoch {a['epoch']:.0f}: {name} {a[name]} {b[name]}")
    return problems


def main():
    parser = common.parser_of(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = common.parse(parser, kills=1, epochs=1)
    generator = random.Random(options.seed)
    # Metrics of an epoch are added up over the workers, in another order after a kill.
    tolerance = 0 if options.workers == 1 else 1e-6
    flags = (*FLAGS, f"--epochs={options.epochs}")

    def start(run_dir):
        return common.start_training(
            run_dir, flags, workers=options.workers, CUDA_VISIBLE_DEVICES="-1"
        )

    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        seconds = common.seconds_of(lambda: common.finish_training(start(whole), whole))
        print(f"without interruption: {seconds:.0f} s", flush=True)
        kills, run, problems = 0, 0, []
        while kills < options.kills:
            run += 1
            run_dir = Path(folder) / f"killed{run}"
            running = True
            while running and kills < options.kills:
                processes = start(run_dir)
                running = kill(
                    processes, run_dir, generator, kills % 2 == 1, 0.8 * seconds
                )
                kills += running
            common.finish_training(start(run_dir) if running else processes, run_dir)
            found = compare(whole, run_dir, tolerance)
            print(f"run {run} is done, after {kills} kills in all: {found or 'same'}")
            problems += found
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
