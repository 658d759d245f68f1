"""What a study needs to be run: calls of `bin/train` and of `bin/evaluate`."""

import dataclasses
import functools
import importlib.resources
import json
import os
import platform
import statistics
from pathlib import Path

from pni_tf import __version__, files
from pni_tf.cli.flags import expand_flagfiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
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

    @property
    def key(self) -> str:
        """What has about the same cost."""
        return f"training {self.name}"

    @property
    def title(self) -> str:
        return f"{self.key}, seed {self.seed}"

    @property
    def path(self) -> Path:
        """Its run directory, below the folder of the reproduction."""
        return Path("trainings", f"{self.name}_seed{self.seed}")

    @property
    def needs(self) -> "tuple[Training, ...]":
        return ()

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
class Evaluation:
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
    def name(self) -> str:
        """The kind, and what was transferred from."""
        sources = [t.name for flag, t in self.others if flag == "transfer_from"]
        return "_from_".join([self.kind, *sources])

    @property
    def key(self) -> str:
        """What has about the same cost."""
        return f"{self.name} of {self.training.name}"

    @property
    def title(self) -> str:
        return f"{self.key}, seed {self.training.seed}"

    @property
    def path(self) -> Path:
        """Its folder, below that of the reproduction."""
        return Path("evaluations", self.training.path.name, self.name)

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
            f"--seed={self.training.seed}",
            f"--output_dir={root / self.path}",
        ]


Job = Training | Evaluation


def in_order(jobs: list[Job]) -> list[Job]:
    """Returns the jobs and all that they need, each once, trainings as early as needed.

    All jobs of the first seed come before those of the second, so that an interrupted
    reproduction has all tables, of fewer seeds.
    """
    ordered = {}
    for job in sorted(jobs, key=_seed):
        for needed in sorted(job.needs, key=_seed):
            ordered.setdefault(needed)
        ordered.setdefault(job)
    return list(ordered)


def _seed(job):
    return job.seed if isinstance(job, Training) else job.training.seed


class Stamp:
    """What is known of a job's runs: `<root>/jobs/<job>.json`.

    Args:
        root: Folder of the reproduction.
        job: The job.
    """

    def __init__(self, root: Path, job: Job):
        self.root, self.job = root, job
        name = "_".join(job.path.parts)
        self.path = root / "jobs" / f"{name}.json"
        self.log = root / "jobs" / f"{name}.log"

    def read(self) -> dict:
        """Returns what `write` wrote; nothing if there is none."""
        return files.read_json(self.path) or {}

    def write(self, *, done: bool, seconds: float, failed: str | None = None) -> None:
        """Adds a run; `seconds` counts all of them, those that were interrupted too.

        Args:
            done: Whether the job is done.
            seconds: What this run has taken.
            failed: Why it failed, if it did.
        """
        content = {
            "done": done,
            "failed": failed,
            "seconds": self.seconds + seconds,
            "arguments": self._arguments(),
            "inputs": self._inputs(),
            "machine": f"pni_tf {__version__}, {os.cpu_count()} CPU cores "
            f"({platform.machine()})",
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(self.path, json.dumps(content, indent=2) + "\n")

    @property
    def seconds(self) -> float:
        """What its runs have taken."""
        content = self.read()
        seconds = content.get("seconds")
        known = isinstance(seconds, int | float) and self._is_current(content)
        return float(seconds) if known else 0.0

    @property
    def is_done(self) -> bool:
        """Whether the job was done, as it is now and on the networks as they are."""
        content = self.read()
        return bool(
            content.get("done")
            and _is_whole(self.root / self.job.result)
            and self._is_current(content)
            and all(Stamp(self.root, needed).is_done for needed in self.job.needs)
        )

    @property
    def failed(self) -> str | None:
        """Why its last run failed, or why it cannot run; None if neither is so."""
        content = self.read()
        if isinstance(self.job, Training) and self.has_other_settings:
            # Hours of work, maybe: to throw them away is not for us.
            folder = self.root / self.job.path
            why = f"remove {folder} and {self.path} to train it again"
            return f"it was run with other settings; {why}"
        return content.get("failed") if self._is_current(content) else None

    @property
    def machine(self) -> str:
        """What it was run by and on, as far as that is known."""
        return str(self.read().get("machine", ""))

    @property
    def has_other_settings(self) -> bool:
        """Whether it was run as it is no longer asked for."""
        content = self.read()
        return bool(content) and content.get("arguments") != self._arguments()

    def _is_current(self, content):
        same = content.get("arguments") == self._arguments()
        return same and content.get("inputs") == self._inputs()

    def _arguments(self):
        # With what the flagfiles say now; and the folder may have been moved.
        return expand_flagfiles(["", *self.job.arguments(Path())])[1:]

    def _inputs(self):
        digests = {}
        for needed in self.job.needs:
            path = self.root / needed.result
            if path.exists():
                digest = _digest(path, path.stat().st_mtime_ns)
                digests[str(needed.path)] = digest
        return digests


def _is_whole(path):
    """Returns whether a result is there, and can be read if it is for reports."""
    if path.suffix == ".json":
        return files.read_json(path) is not None
    return path.exists()


@functools.lru_cache(maxsize=1024)
def _digest(path, changed):
    """Returns the digest of a network, which is asked for many times in one plan."""
    return files.file_digest(path, name=False)


class Costs:
    """Estimates what jobs will take, from those that are done and from other machines.

    Args:
        root: Folder of the reproduction.
        jobs: All jobs.
        reference: Seconds by the key of a job, measured elsewhere.
        workers: Number of jobs that run at once.
    """

    def __init__(
        self,
        root: Path,
        jobs: list[Job],
        reference: dict[str, float],
        workers: int = 1,
    ):
        self.reference, self.workers = reference, workers
        self.measured = {}
        self.random = {job.key: _is_random(job) for job in jobs}
        for job in jobs:
            stamp = Stamp(root, job)
            if stamp.is_done:
                self.add(job, stamp.seconds)

    def add(self, job: Job, seconds: float) -> None:
        """Takes note of what a job took."""
        self.measured.setdefault(job.key, []).append(seconds)

    def of(self, job: Job) -> float | None:
        """Returns seconds, as well as they are known; None if nothing is.

        By other seeds, by the reference, or roughly by such jobs of other networks.
        """
        if job.key in self.measured:
            return statistics.mean(self.measured[job.key])
        if job.key in self.reference:
            return self._slowness() * self.reference[job.key]
        return self._of_its_kind(job)

    def _of_its_kind(self, job):
        """Returns what such jobs take of other networks, as random as this one."""
        known = {k: self._slowness() * v for k, v in self.reference.items()}
        known |= {k: statistics.mean(v) for k, v in self.measured.items()}
        found = [
            seconds
            for key, seconds in known.items()
            if key.partition(" ")[0] == job.key.partition(" ")[0]
            and self.random.get(key) == _is_random(job)
        ]
        return statistics.mean(found) if found else None

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


def _is_random(job):
    return (job if isinstance(job, Training) else job.training).random


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
