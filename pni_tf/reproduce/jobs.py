"""What a study needs to be run: calls of `bin/train` and of `bin/evaluate`."""

import dataclasses
import functools
import json
import operator
import os
import platform
import statistics
from collections.abc import Iterable
from pathlib import Path

from pni_tf import __version__, files
from pni_tf.cli.flags import expand_flagfiles
from pni_tf.evaluation.record import read_evaluation

# By scale and key of a job, the seconds that it took where it was measured.
COSTS = json.loads(Path(__file__).with_name("costs.json").read_text("utf-8"))


class _Job:
    """What trainings and evaluations have in common.

    Folders and files are named below the folder of the reproduction.
    """

    @property
    def result(self) -> Path:
        """The file that it ends with."""
        return self.path / self.result_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(_Job):
    """A network to train."""

    name: str  # Such as `"pni_w"`.
    seed: int  # Of weights, noise, data order and attacks.
    flags: tuple[str, ...]  # Of `bin/train`.
    random: bool  # Whether the network has noise.

    command = "train"
    result_name = "model.keras"
    kept = ("history.csv", "flags.cfg")  # With a report.
    group = "training"
    needs = ()

    @property
    def key(self) -> str:
        """What has the same cost, whatever the seed."""
        return f"training {self.name}"

    @property
    def title(self) -> str:
        """What readers see."""
        return f"training {self.name}, seed {self.seed}"

    @property
    def path(self) -> Path:
        """Its run directory."""
        return Path("trainings", f"{self.name}_seed{self.seed}")

    def arguments(self, root: Path) -> list[str]:
        """Returns the arguments of the command."""
        return [
            *self.flags,
            f"--seed={self.seed}",
            *("--noevaluate", "--noexport", "--notensorboard"),
            f"--run_dir={root / self.path}",
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(_Job):
    """A set of attacks on a trained network."""

    kind: str  # Name of the set, such as `"white_box"`.
    training: Training
    flags: tuple[str, ...]  # Of `bin/evaluate`.
    # Further networks by the flag that takes them, such as `"twin"`.
    others: tuple[tuple[str, Training], ...] = ()

    command = "evaluate"
    result_name = "evaluation.json"
    kept = (result_name,)

    @property
    def group(self) -> str:
        """The kind, and what was transferred from."""
        sources = [t.name for flag, t in self.others if flag == "transfer_from"]
        return "_from_".join([self.kind, *sources])

    @property
    def key(self) -> str:
        """What has the same cost, whatever the seed."""
        return f"{self.group} of {self.training.name}"

    @property
    def title(self) -> str:
        return f"{self.group} of {self.training.name}, seed {self.seed}"

    @property
    def seed(self) -> int:
        return self.training.seed

    @property
    def random(self) -> bool:
        return self.training.random

    @property
    def path(self) -> Path:
        """Its folder."""
        return Path("evaluations", self.training.path.name, self.group)

    @property
    def needs(self) -> tuple[Training, ...]:
        return (self.training, *(training for _, training in self.others))

    def arguments(self, root: Path) -> list[str]:
        """Returns the arguments of the command."""
        others = [f"--{flag}={root / needed.path}" for flag, needed in self.others]
        return [
            str(root / self.training.path),
            *self.flags,
            *others,
            f"--seed={self.seed}",
            f"--output_dir={root / self.path}",
        ]


Job = Training | Evaluation


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """Returns the jobs and all that they need, each once, trainings as early as needed.

    All jobs of the first seed come before those of the second, so that an interrupted
    reproduction has all tables, of fewer seeds.
    """
    by_seed = operator.attrgetter("seed")
    ordered = {}
    for job in sorted(jobs, key=by_seed):
        ordered |= dict.fromkeys([*sorted(job.needs, key=by_seed), job])
    return list(ordered)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stamp:
    """What is known of a job's runs."""

    is_done: bool = False  # As it is now, and on the networks as they are.
    seconds: float = 0.0  # Of all its runs, those that were interrupted too.
    failed: str | None = None  # Why the last one failed, or why it cannot run.
    machine: str = ""  # What it was run by and on.
    is_blocked: bool = False  # Whether a run with other settings is in its place.


class Stamps:
    """What is known of all jobs: `<root>/jobs/<job>.json`, each of them read once.

    Nothing else may write to `root`, the folder of the reproduction, meanwhile.
    """

    def __init__(self, root: Path):
        self.root = root
        self._stamps = {}
        self._digest = functools.cache(lambda p: files.file_digest(p, name=False))

    def path(self, job: Job, ending: str) -> Path:
        """Returns a file of a job: `"json"` has what is known, `"log"` its output."""
        return self.root / "jobs" / f"{'_'.join(job.path.parts)}.{ending}"

    def of(self, job: Job) -> Stamp:
        """Returns what is known of a job."""
        if job not in self._stamps:
            self._stamps[job] = self._read(job)
        return self._stamps[job]

    def write(
        self, job: Job, *, done: bool, seconds: float, failed: str | None = None
    ) -> None:
        """Adds a run of a job: its seconds alone, and why it failed, if it did."""
        content = {
            "done": done,
            "failed": failed,
            "seconds": seconds + self.of(job).seconds,
            "arguments": _settings(job),
            "inputs": self._inputs(job),
            "machine": f"pni_tf {__version__}, {os.cpu_count()} CPU cores "
            f"({platform.machine()})",
        }
        path = self.path(job, "json")
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(content, indent=2) + "\n")
        self._stamps.clear()  # It may be a network that others need.
        self._digest.cache_clear()

    def _read(self, job):
        path = self.path(job, "json")
        content = files.read_json(path)
        if not content:
            return Stamp()
        if content.get("arguments") != _settings(job):
            if isinstance(job, Evaluation):
                return Stamp()
            # Hours of work, maybe: to throw them away is not for us.
            why = (
                f"it was run with other settings; remove {self.root / job.path} and "
                f"{path} to train it again"
            )
            return Stamp(failed=why, is_blocked=True)
        if content.get("inputs") != self._inputs(job):
            return Stamp()
        return Stamp(
            is_done=bool(
                content.get("done")
                and _is_whole(job, self.root / job.result)
                and all(self.of(needed).is_done for needed in job.needs)
            ),
            seconds=round(content.get("seconds", 0.0), 1),
            failed=content.get("failed"),
            machine=content.get("machine", ""),
        )

    def _inputs(self, job):
        """Returns the digests of the networks that a job needs and that are there."""
        return {
            str(needed.path): self._digest(self.root / needed.result)
            for needed in job.needs
            if (self.root / needed.result).exists()
        }


def _settings(job):
    """Returns what a job is run with: what its flagfiles say now, in any folder."""
    return expand_flagfiles(["", *job.arguments(Path())])[1:]


def _is_whole(job, path):
    """Returns whether a result is there, and can be read if it is for reports."""
    if isinstance(job, Evaluation):
        return read_evaluation(path) is not None
    return path.exists()


class Costs:
    """Estimates what jobs will take, from those that are done and from other machines.

    The reference has seconds by the key of a job, measured elsewhere; as many jobs run
    at once as there are workers.
    """

    def __init__(
        self,
        stamps: Stamps,
        jobs: list[Job],
        reference: dict[str, float],
        workers: int = 1,
    ):
        self.jobs, self.reference, self.workers = jobs, reference, workers
        self.measured = {}
        for job in jobs:
            if stamps.of(job).is_done:
                self.add(job, stamps.of(job).seconds)

    def add(self, job: Job, seconds: float) -> None:
        """Takes note of what a job took."""
        self.measured.setdefault(job.key, []).append(seconds)

    def of(self, job: Job) -> float | None:
        """Returns seconds, as well as they are known; None if nothing is.

        By other seeds, by the reference, or roughly by such jobs of other networks.
        """
        known = self._known()
        alike = {
            other.key
            for other in self.jobs
            if (other.group, other.random) == (job.group, job.random)
        }
        keys = {job.key} if job.key in known else alike & known.keys()
        return statistics.mean(known[key] for key in keys) if keys else None

    def _known(self):
        """Returns what jobs took, by their keys: here, or else as the reference says.

        The reference is of a machine that may be faster or slower than this one.
        """
        here = {key: statistics.mean(found) for key, found in self.measured.items()}
        shared = here.keys() & self.reference.keys()
        ratios = [here[key] / self.reference[key] for key in shared] or [1.0]
        slowness = statistics.median(ratios)
        return {key: slowness * s for key, s in self.reference.items()} | here

    def left(self, jobs: list[Job]) -> str:
        """Returns how long the jobs will take, in words."""
        known = [seconds for job in jobs if (seconds := self.of(job)) is not None]
        unknown = len(jobs) - len(known)
        if not known:
            return "an unknown time" if jobs else "nothing"
        words = f"about {duration(sum(known) / self.workers)}"
        return f"{words} and {unknown} jobs of unknown cost" if unknown else words


def duration(seconds: float) -> str:
    """Returns a time in words: `"45 s"`, `"12 min"`, `"3.5 h"`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
