"""Does bad input of any kind get a clear answer?

    python benchmarks/fuzz.py
    python benchmarks/fuzz.py --seed=1 --only=flags --first=17 --count=1

Throws random input at everything that a user hands over: flags, flagfiles, environment
variables of clusters, arrays, model files, and the files of a run directory. Each case
is drawn from `--seed` and its number alone, so the second line above repeats one.

A case is *refused* cleanly by exit status 2 and one line of error that names what is
wrong (in Python: a ValueError, TypeError or OSError whose message is not TensorFlow's),
or *accepted*. Whether it may be accepted is judged by the modules beside this one: they
know the documentation, and none of the library's own checks. What was damaged must be
refused, computed again, or give the same numbers as before. Everything else is an
offence, and makes the exit status 1: a *traceback* (or a crash, a hang, an error that
calls itself a bug) and a *silent* acceptance (or a valid input that is refused).

Each surface runs in a process of its own, which is started again behind a case that has
killed it. No case asks for sizes that would exhaust the memory of the machine.
"""

import argparse
import contextlib
import importlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fuzz_cases import COLUMNS, Offence, generator_of

SURFACES = {  # name: (module, heading, number of cases)
    "flags": ("fuzz_flags", "flags, up to the import of TensorFlow", 1300),
    "late": ("fuzz_late", "flags that are checked behind it", 120),
    "flagfiles": ("fuzz_flagfiles", "flagfiles", 200),
    "cluster": ("fuzz_cluster", "TF_CONFIG and Slurm", 240),
    "arrays": ("fuzz_arrays", "image and label arrays", 260),
    "models": ("fuzz_models", "model files", 200),
    "runs": ("fuzz_runs", "files of a run directory", 150),
}
LONGEST = 120  # seconds without an answer


def work(surface, seed, cases):
    """Runs cases in this process and prints a line of JSON before and after each."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # as the commands do
    module = importlib.import_module(SURFACES[surface][0])
    # What the library prints must not come between.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with tempfile.TemporaryDirectory() as folder:
        context = module.prepare(Path(folder))
        for number in cases:
            answers.write(json.dumps({"case": number}) + "\n")
            case = module.draw(context, generator_of(seed, surface, number))
            answers.write(json.dumps({"case": number, "what": case.what}) + "\n")
            try:
                kind, reason = case.run(), ""
            except Offence as offence:
                kind, reason = offence.kind, str(offence)
            line = {"case": number, "what": case.what, "kind": kind, "reason": reason}
            answers.write(json.dumps(line) + "\n")


def answers_of(surface, seed, cases):
    """Yields `(case, what, kind, reason)` of each case, from one process or more."""
    cases = list(cases)
    while cases:
        command = [sys.executable, __file__, f"--seed={seed}", f"--only={surface}"]
        command += [f"--first={cases[0]}", f"--count={len(cases)}", "--work"]
        begun = what = None
        with (
            tempfile.TemporaryFile() as err,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err) as process,
        ):
            buffer = b""
            while True:
                ready, _, _ = select.select([process.stdout], [], [], LONGEST)
                chunk = os.read(process.stdout.fileno(), 65536) if ready else b""
                if not chunk:
                    break
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in map(json.loads, lines):
                    begun, what = line["case"], line.get("what")
                    if "kind" in line:
                        cases.remove(begun)
                        yield begun, what, line["kind"], line["reason"]
                        begun = None
            if not ready:
                process.kill()
            status = process.wait()
            err.seek(0)
            last = err.read().decode(errors="replace").strip()[-2000:]
        if cases and begun is None:
            raise RuntimeError(f"{surface} could not begin: {last}")
        if cases:
            cases.remove(begun)
            how = "hangs" if not ready else f"dies with status {status}"
            yield begun, what, "traceback", f"the process {how}: {last}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SURFACES)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, help="cases of each surface")
    parser.add_argument("--show", action="store_true", help="print every case")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        cases = range(options.first, options.first + options.count)
        work(options.only, options.seed, cases)
        return
    start = time.monotonic()
    totals = dict.fromkeys(COLUMNS, 0)
    table = [
        "| surface | cases | refused cleanly | accepted | tracebacks | "
        "silent acceptances |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for surface, (_, heading, count) in SURFACES.items():
        if options.only not in (None, surface):
            continue
        cases = range(options.first, options.first + (options.count or count))
        found = dict.fromkeys(COLUMNS, 0)
        with contextlib.closing(answers_of(surface, options.seed, cases)) as answers:
            for case, what, kind, reason in answers:
                found[kind] += 1
                totals[kind] += 1
                if options.show or kind in COLUMNS[2:]:
                    print(
                        f"{kind}: {what}\n    {reason}\n    again by: python "
                        f"benchmarks/fuzz.py --seed={options.seed} --only={surface} "
                        f"--first={case} --count=1",
                        flush=True,
                    )
        numbers = [sum(found.values()), *found.values()]
        table.append(f"| {heading} | {' | '.join(map(str, numbers))} |")
        print(f"{surface}: {found}, {time.monotonic() - start:.0f} s", flush=True)
    numbers = [sum(totals.values()), *totals.values()]
    table.append(f"| all | {' | '.join(map(str, numbers))} |")
    print("\n" + "\n".join(table))
    print(f"\nSeed {options.seed}, {time.monotonic() - start:.0f} s")
    sys.exit(bool(totals["traceback"] + totals["silent"]))


if __name__ == "__main__":
    main()
