"""`bin/reproduce`: the paper's tables and figures, by as many runs as they need."""

import dataclasses
import signal
import sys
from pathlib import Path

from pni_tf import files
from pni_tf.cli import app
from pni_tf.settings.base import Group, setting
from pni_tf.settings.machine import Source

USAGE = """\
Trains and evaluates what tables and figures of the paper need, and writes one report:
our numbers, the paper's, and those of a stricter evaluation. The same command goes on
after an interruption, and reuses what is there.

    bin/reproduce --study=table2,figure2 --scale=digits"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work(Group):
    """What to reproduce."""

    heading = "Work"

    study: tuple[str, ...] = setting(
        ("all",),
        "Studies: table1 to table7, figure1 to figure3, mnist (CPU scale), or all.",
    )
    scale: str = setting(
        "digits",
        "digits: everything on small images, within an hour on 2 CPU cores. cpu: "
        "CIFAR-10 with a short recipe, an hour for a training. paper: the paper's "
        "networks and recipe, for GPUs.",
        choices=("digits", "cpu", "paper"),
    )
    networks: tuple[str, ...] | None = setting(
        None,
        "Only what needs no others than these, by the names in the folder trainings/ "
        "without the seed, such as vanilla,adversarial,pni_w; all by default.",
    )
    seeds: int | None = setting(
        None,
        "Number of training seeds; by default 2 on digits (1 of the deeper and wider "
        "networks), 1 on the CPU scale and 5 of the paper's.",
        least=1,
    )
    output_dir: str | None = setting(
        None, "Folder of all runs and of the report; by default reproduction/SCALE."
    )
    note: str | None = setting(
        None,
        "What readers of the report must know, such as of the data or the machine.",
    )
    dry_run: bool = setting(
        False,
        "Only show what is left to do, with an estimate, and write the report from "
        "what is there.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine(Source):
    """Where the data lie, and how many jobs run at once."""

    heading = "Machine"

    jobs: int | None = setting(
        None,
        "Number of jobs to run at once, which share the CPU cores; by default one for "
        "each core (8 at most) on digits, where jobs are small, and one otherwise.",
        least=1,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduction:
    """All settings of `bin/reproduce`."""

    work: Work = Work()
    machine: Machine = Machine()


def run() -> None:
    """Entry point of `pni-reproduce`."""
    app.run(main, usage=USAGE, settings=Reproduction)


def main(settings: Reproduction) -> int:
    from pni_tf.reproduce import report, runner
    from pni_tf.reproduce.jobs import Costs, Stamp, in_order, reference_costs
    from pni_tf.reproduce.scales import SCALES
    from pni_tf.reproduce.studies import parts_of

    given, machine = settings.work, settings.machine
    scale = SCALES[given.scale]
    studies = _studies(given.study, scale)
    root = Path(given.output_dir or f"reproduction/{scale.name}")
    parts = {study: parts_of(study, scale, given.seeds) for study in scale.studies}
    asked = in_order([job for s in studies for part in parts[s] for job in part.jobs])
    jobs = _chosen(asked, given.networks)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write to --output_dir={root}: {error}") from error
    with files.lock(root, f"--output_dir={root}") as lock:
        workers = machine.jobs or _workers(scale)
        costs = Costs(root, jobs, reference_costs(scale.name), workers)
        left = [job for job in jobs if not Stamp(root, job).is_done]
        print(
            f"{len(jobs)} jobs, {len(jobs) - len(left)} of them done. Left: "
            f"{costs.left(left)}"
        )
        outcome = runner.Outcome()
        try:
            if given.dry_run:
                for job in left:
                    print(runner.shell(job, root))
            else:
                outcome = runner.run(
                    jobs,
                    root,
                    costs,
                    workers=workers,
                    extra=_extra(machine),
                    lock=lock,
                )
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it takes a second
            for study in set(parts) - set(studies):
                own = {job for part in parts[study] for job in part.jobs} - {*asked}
                if not any(Stamp(root, job).is_done for job in own):
                    del parts[study]  # what is there is by the studies asked for
            note = _note(root, given.note)
            folder = report.write(root, scale, parts, given.seeds, note=note)
            print(f"The report is in {folder}", flush=True)
    return 1 if outcome.failed else 0


def _studies(names: list[str], scale) -> list[str]:
    from pni_tf.reproduce.studies import STUDIES

    if names == ("all",):
        return list(scale.studies)
    for name in names or [""]:
        if name not in STUDIES:
            raise ValueError(
                f"--study must be all, or from: {', '.join(STUDIES)}. Received: "
                f"--study={','.join(names)}"
            )
        if name not in scale.studies:
            raise ValueError(
                f"--scale={scale.name} has no {name}; it has {', '.join(scale.studies)}"
            )
    return [study for study in scale.studies if study in names]


def _chosen(jobs, networks):
    """Returns the jobs that need only these networks."""
    from pni_tf.reproduce.jobs import Training

    if networks is None:
        return jobs
    known = dict.fromkeys(job.name for job in jobs if isinstance(job, Training))
    if not networks or not {*networks} <= {*known}:
        raise ValueError(
            f"--networks must be from those that the studies need: {', '.join(known)}. "
            f"Received: --networks={','.join(networks)}"
        )
    return [job for job in jobs if {t.name for t in job.needs or (job,)} <= {*networks}]


def _note(root, note):
    """Returns the note, or that of an earlier call."""
    path = root / "note.txt"
    if note:
        files.write_text(path, note)
    return note or (path.read_text(encoding="utf-8") if path.exists() else "")


def _workers(scale):
    """Returns how many jobs of a scale to run at once."""
    from pni_tf.reproduce import runner

    return min(runner.cpu_cores(), 8) if scale.small else 1


def _extra(machine):
    found = [f"--data_dir={machine.data_dir}"] if machine.data_dir else []
    found += ["--download"] if machine.download else []
    return {"train": found, "evaluate": found}


if __name__ == "__main__":
    sys.exit(run())
