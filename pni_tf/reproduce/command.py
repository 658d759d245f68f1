"""`bin/reproduce`: the paper's tables and figures, by as many runs as they need."""

import dataclasses
import signal
import sys
from pathlib import Path
from typing import Literal

from pni_tf import files
from pni_tf.cli import app
from pni_tf.reproduce import runner
from pni_tf.reproduce.jobs import COSTS, Costs, Job, Stamps, Training, in_order
from pni_tf.reproduce.scales import SCALES, Scale
from pni_tf.reproduce.studies import STUDIES, parts_of
from pni_tf.settings.base import Group, setting
from pni_tf.settings.machine import Source

USAGE = """\
Trains and evaluates what tables and figures of the paper need, and writes one report:
our numbers, the paper's, and those of a stricter evaluation. After an interruption,
run the same command again to continue; it reuses what is there.

    bin/reproduce --study=table2,figure2 --scale=digits"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work(Group):
    """What to reproduce."""

    heading = "Work"

    study: tuple[Literal["all", *STUDIES], ...] = setting(
        ("all",), "Studies; mnist needs --scale=cpu."
    )
    scale: Literal["digits", "cpu", "paper"] = setting(
        "digits",
        "digits: everything on small images, within an hour on 2 CPU cores. cpu: "
        "CIFAR-10 with a short recipe, an hour for a training. paper: the paper's "
        "networks and recipe, for GPUs.",
    )
    networks: tuple[str, ...] | None = setting(
        None,
        "Only jobs that need no other networks than these, named as in the folder "
        "trainings/ but without the seed, such as vanilla,adversarial,pni_w; all by "
        "default.",
    )
    seeds: int | None = setting(
        None,
        "Number of training seeds; by default 2 on digits (1 of the deeper and wider "
        "networks), 1 on the CPU scale and 5 on the paper's.",
    )
    output_dir: str | None = setting(
        None, "Folder of all runs and of the report; by default reproduction/SCALE."
    )
    note: str | None = setting(
        None,
        "What readers of the report must know, for example about the data or the "
        "machine.",
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
    given, machine = settings.work, settings.machine
    scale = SCALES[given.scale]
    studies = _studies(given.study, scale)
    parts = {study: parts_of(study, scale, given.seeds) for study in scale.studies}
    asked = in_order(job for s in studies for part in parts[s] for job in part.jobs)
    jobs = _chosen(asked, given.networks)
    root = Path(given.output_dir or f"reproduction/{scale.name}")
    workers = machine.jobs or (min(runner.cpu_cores(), 8) if scale.small else 1)
    extra = [f"--data_dir={machine.data_dir}"] if machine.data_dir else []
    extra += ["--download"] if machine.download else []
    # Importing it takes a while, and all errors above show before.
    from pni_tf.reproduce import report

    with files.lock(root, f"--output_dir={root}") as lock:
        stamps = Stamps(root)
        costs = Costs(stamps, jobs, COSTS.get(scale.name, {}), workers)
        work = runner.Run(jobs, stamps, costs, workers=workers, extra=extra, lock=lock)
        left, done = costs.left(work.waiting), len(jobs) - work.total
        print(f"{len(jobs)} jobs, {done} of them done. Left: {left}")
        try:
            if given.dry_run:
                for job in work.waiting:
                    print(runner.shell(job, root))
            else:
                work.finish()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # The report takes a second.
            for study in set(parts) - set(studies):
                own = {job for part in parts[study] for job in part.jobs} - {*asked}
                if not any(stamps.of(job).is_done for job in own):
                    # Whatever there is of it belongs to the studies asked for.
                    del parts[study]
            path = root / "note.txt"
            if given.note:
                files.write_text(path, given.note)
            # By default it is that of an earlier call.
            note = path.read_text(encoding="utf-8") if path.exists() else ""
            folder = report.write(scale, parts, given.seeds, stamps, note=note)
            print(f"The report is in {folder}", flush=True)
    return 1 if work.failed else 0


def _studies(names: tuple[str, ...], scale: Scale) -> list[str]:
    if "all" in names:
        return list(scale.studies)
    for name in names:
        if name not in scale.studies:
            raise ValueError(
                f"--scale={scale.name} has no {name}; it has {', '.join(scale.studies)}"
            )
    return [study for study in scale.studies if study in names]


def _chosen(jobs: list[Job], networks: tuple[str, ...] | None) -> list[Job]:
    """Returns the jobs that need only these networks."""
    if networks is None:
        return jobs
    known = dict.fromkeys(job.name for job in jobs if isinstance(job, Training))
    if not networks or not {*networks} <= {*known}:
        raise ValueError(
            f"--networks must be among those that the studies need: "
            f"{', '.join(known)}. Received: --networks={','.join(networks)}"
        )
    return [job for job in jobs if {t.name for t in job.needs or (job,)} <= {*networks}]


if __name__ == "__main__":
    sys.exit(run())
