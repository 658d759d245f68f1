"""What jobs have taken, and what the rest will take."""

import importlib.resources
import json
import statistics
from pathlib import Path

from pni_tf.reproduce.jobs import Job, Stamp, Training


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
