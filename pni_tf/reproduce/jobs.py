"""What a study needs to be run: calls of `bin/train` and of `bin/evaluate`."""

import dataclasses
import importlib.resources
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


class _Job:
    """What trainings and evaluations have in common."""

    @property
    def title(self) -> str:
        return f"{self.key}, seed {self.seed}"

    @property
    def file_name(self) -> str:
        """Its name among the files of all jobs."""
        return "_".join(self.path.parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(_Job):
    """A network to train.

    Args:
        name: Its name, such as `"pni_w"`.
        seed: Seed of weights, noise, data order and attacks.
        flags: Flags of `bin/train`.
        random: Whether the network has noise.
    """

    name: str
    seed: int
    flags: tuple[str, ...]
    random: bool

    command = "train"
    group = "training"
    needs = ()

    @property
    def key(self) -> str:
        """What has the same cost, whatever the seed."""
        return f"training {self.name}"

    @property
    def path(self) -> Path:
        """Its run directory, below the folder of the reproduction."""
        return Path("trainings", f"{self.name}_seed{self.seed}")

    @property
    def result(self) -> Path:
        """The file that it ends with."""
        return self.path / "model.keras"

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
    """A set of attacks on a trained network.

    Args:
        kind: Name of the set, such as `"white_box"`.
        training: The network.
        flags: Flags of `bin/evaluate`.
        others: Further networks by the flag that takes them, such as `"twin"`.
    """

    kind: str
    training: Training
    flags: tuple[str, ...]
    others: tuple[tuple[str, Training], ...] = ()

    command = "evaluate"

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
    def seed(self) -> int:
        return self.training.seed

    @property
    def random(self) -> bool:
        return self.training.random

    @property
    def path(self) -> Path:
        """Its folder, below that of the reproduction."""
        return Path("evaluations", self.training.path.name, self.group)

    @property
    def needs(self) -> tuple[Training, ...]:
        return (self.training, *(training for _, training in self.others))

    @property
    def result(self) -> Path:
        """The file that it ends with."""
        return self.path / "evaluation.json"

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
    """What is known of a job's runs.

    Attributes:
        is_done: Whether it was done, as it is now and on the networks as they are.
        seconds: What all its runs have taken, those that were interrupted too.
        failed: Why the last one failed, or why it cannot run; None if neither is so.
        machine: What it was run by and on, as far as that is known.
        has_other_settings: Whether it was run as it is no longer asked for.
    """

    is_done: bool = False
    seconds: float = 0.0
    failed: str | None = None
    machine: str = ""
    has_other_settings: bool = False


class Stamps:
    """What is known of all jobs: `<root>/jobs/<job>.json`, each of them read once.

    Nothing else may write to the folder meanwhile.

    Args:
        root: Folder of the reproduction.
    """

    def __init__(self, root: Path):
        self.root = root
        self._known, self._digests = {}, {}

    def log(self, job: Job) -> Path:
        """Returns the file for the output of a job."""
        return self.root / "jobs" / f"{job.file_name}.log"

    def of(self, job: Job) -> Stamp:
        """Returns what is known of a job."""
        if job not in self._known:
            self._known[job] = self._read(job)
        return self._known[job]

    def write(
        self, job: Job, *, done: bool, seconds: float, failed: str | None = None
    ) -> None:
        """Adds a run of a job.

        Args:
            job: The job.
            done: Whether it is done.
            seconds: What this run has taken.
            failed: Why it failed, if it did.
        """
        seconds += self.of(job).seconds
        self._digests.pop(job, None)
        self._known = {
            other: stamp
            for other, stamp in self._known.items()
            if other != job and job not in other.needs
        }
        content = {
            "done": done,
            "failed": failed,
            "seconds": seconds,
            "arguments": _settings(job),
            "inputs": self._inputs(job),
            "machine": f"pni_tf {__version__}, {os.cpu_count()} CPU cores "
            f"({platform.machine()})",
        }
        path = self._path(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(content, indent=2) + "\n")

    def _path(self, job):
        return self.root / "jobs" / f"{job.file_name}.json"

    def _read(self, job):
        content = files.read_json(self._path(job))
        if not content:
            return Stamp()
        other = content.get("arguments") != _settings(job)
        current = not other and content.get("inputs") == self._inputs(job)
        failed = content.get("failed") if current else None
        if other and isinstance(job, Training):
            # Hours of work, maybe: to throw them away is not for us.
            failed = (
                f"it was run with other settings; remove {self.root / job.path} and "
                f"{self._path(job)} to train it again"
            )
        seconds = content.get("seconds")
        known = current and isinstance(seconds, int | float)
        return Stamp(
            is_done=bool(
                current
                and content.get("done")
                and _is_whole(self.root / job.result)
                and all(self.of(needed).is_done for needed in job.needs)
            ),
            seconds=round(float(seconds), 1) if known else 0.0,
            failed=failed,
            machine=str(content.get("machine", "")),
            has_other_settings=other,
        )

    def _inputs(self, job):
        """Returns the digests of the networks that a job needs and that are there."""
        for needed in job.needs:
            path = self.root / needed.result
            if needed not in self._digests and path.exists():
                self._digests[needed] = files.file_digest(path, name=False)
        return {
            str(needed.path): self._digests[needed]
            for needed in job.needs
            if needed in self._digests
        }


def _settings(job):
    """Returns what a job is run with: what its flagfiles say now, in any folder."""
    return expand_flagfiles(["", *job.arguments(Path())])[1:]


def _is_whole(path):
    """Returns whether a result is there, and can be read if it is for reports."""
    if path.suffix == ".json":
        return read_evaluation(path) is not None
    return path.exists()


class Costs:
    """Estimates what jobs will take, from those that are done and from other machines.

    Args:
        stamps: What is known of the jobs.
        jobs: All jobs.
        reference: Seconds by the key of a job, measured elsewhere.
        workers: Number of jobs that run at once.
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
        if (known := self._known(job)) is not None:
            return known
        alike = {
            other.key: self._known(other)
            for other in self.jobs
            if (other.group, other.random) == (job.group, job.random)
        }
        found = [seconds for seconds in alike.values() if seconds is not None]
        return statistics.mean(found) if found else None

    def _known(self, job):
        """Returns what a job or its other seeds took, here or elsewhere."""
        if job.key in self.measured:
            return statistics.mean(self.measured[job.key])
        if job.key in self.reference:
            return self._slowness() * self.reference[job.key]
        return None

    def left(self, jobs: list[Job]) -> str:
        """Returns how long the jobs will take, in words."""
        known = [seconds for job in jobs if (seconds := self.of(job)) is not None]
        unknown = len(jobs) - len(known)
        if not known:
            return "an unknown time" if jobs else "nothing"
        words = f"about {duration(sum(known) / self.workers)}"
        return f"{words} and {unknown} jobs of unknown cost" if unknown else words

    def _slowness(self):
        """Returns how much slower this machine is than that of the reference."""
        ratios = [
            statistics.mean(seconds) / self.reference[key]
            for key, seconds in self.measured.items()
            if self.reference.get(key)
        ]
        return statistics.median(ratios) if ratios else 1.0


def reference_costs(scale: str) -> dict[str, float]:
    """Returns what each job of a scale took where it was measured, by its key."""
    file = importlib.resources.files("pni_tf.reproduce") / "costs.json"
    return json.loads(file.read_text(encoding="utf-8")).get(scale, {})


def duration(seconds: float) -> str:
    """Returns a time in words: `"45 s"`, `"12 min"`, `"3.5 h"`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
