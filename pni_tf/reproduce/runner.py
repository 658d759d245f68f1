"""Runs jobs one after the other, in processes of their own."""

import ctypes
import dataclasses
import importlib.resources
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pni_tf.reproduce.jobs import Job, Stamp, Training

_PACKAGE_FOLDER = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """What became of the jobs.

    Attributes:
        failed: The reason for each job that ended with an error.
        skipped: The jobs that needed one of these.
    """

    failed: dict[Job, str] = dataclasses.field(default_factory=dict)
    skipped: list[Job] = dataclasses.field(default_factory=list)


class Costs:
    """Estimates what jobs will take, from those that are done and from other machines.

    Args:
        root: Folder of the reproduction.
        jobs: All jobs.
        reference: Seconds by the key of a job, measured elsewhere.
    """

    def __init__(self, root: Path, jobs: list[Job], reference: dict[str, float]):
        self.reference = reference
        self.measured = {}
        for job in jobs:
            stamp = Stamp(root, job)
            if stamp.is_done:
                self.add(job, stamp.seconds)

    def add(self, job: Job, seconds: float) -> None:
        """Takes note of what a job took."""
        self.measured.setdefault(job.key, []).append(seconds)

    def of(self, job: Job) -> float | None:
        """Returns seconds, or None if nothing is known."""
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
        words = f"about {duration(sum(known))}"
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


def run(
    jobs: list[Job],
    root: Path,
    costs: Costs,
    *,
    extra: dict[str, list[str]] | None = None,
    lock: int | None = None,
    command_of: Callable[[str], list[str]] | None = None,
    show: Callable[[str], None] = print,
) -> Outcome:
    """Runs what is not done yet; what fails is noted, and the rest goes on.

    Ctrl-C and SIGTERM are passed on to the job, which saves its state; then they come
    out of here as a KeyboardInterrupt.

    Args:
        jobs: The jobs, each behind those that it needs.
        root: Folder of the reproduction.
        costs: Estimates what is left.
        extra: Further flags by command, which change no result.
        lock: File descriptor of the folder's lock, which the jobs hold too: one whose
            parent was killed may live a little longer.
        command_of: Returns how to start a command; for tests.
        show: Takes a line about each job.
    """
    outcome = Outcome()
    command_of = command_of or _command_of
    open_jobs = [job for job in jobs if not Stamp(root, job).is_done]
    for i, job in enumerate(open_jobs):
        lost = [n for n in job.needs if n in outcome.failed or n in outcome.skipped]
        if lost:
            outcome.skipped.append(job)
            show(f"skipped: {job.title}, which needs {lost[0].title}")
            continue
        left = costs.left(open_jobs[i:])
        show(f"[{i + 1}/{len(open_jobs)}] {job.title} ({left} left)")
        command = [*command_of(job.command), *job.arguments(root)]
        command += (extra or {}).get(job.command, [])
        begin, stamp = time.monotonic(), Stamp(root, job)
        if stamp.has_other_settings and isinstance(job, Training):
            # Hours of work, maybe: to throw them away is not for us.
            outcome.failed[job] = (
                f"it was run with other settings; remove {root / job.path} and "
                f"{stamp.path} to train it again"
            )
            show(f"failed: {job.title}: {outcome.failed[job]}")
            continue
        try:
            reason = _run(command, stamp.log, lock)
        except BaseException:
            stamp.write(done=False, seconds=time.monotonic() - begin)
            raise
        stamp.write(done=reason is None, seconds=time.monotonic() - begin)
        if reason is None:
            costs.add(job, stamp.seconds)
        else:
            outcome.failed[job] = reason
            show(f"failed: {job.title}: {reason}")
    return outcome


def shell(job: Job, root: Path) -> str:
    """Returns the command of a job, for a reader to paste."""
    return shlex.join([f"bin/{job.command}", *job.arguments(root)])


def _command_of(command):
    return [sys.executable, "-m", f"pni_tf.cli.{command}"]


def _run(command, log, lock):
    """Runs a command; returns None, or why it failed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(
        filter(None, [str(_PACKAGE_FOLDER), os.environ.get("PYTHONPATH")])
    )
    with log.open("ab") as file:
        file.write(f"$ {shlex.join(command)}\n".encode())
        file.flush()
        begin = file.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, "PYTHONPATH": path},
            pass_fds=() if lock is None else (lock,),
            start_new_session=True,  # else Ctrl-C would reach it by itself too
            preexec_fn=_end_with(os.getpid()),
        )
        try:
            status = process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            print("Interrupted: the job saves its state", flush=True)
            process.wait()
            raise
    if status == 0:
        return None
    how = f"status {status}" if status > 0 else f"killed by signal {-status}"
    lines = log.read_bytes()[begin:].decode(errors="replace").strip().splitlines()
    last = f": {lines[-1]}" if lines else ""
    return f"{how}{last} (see {log})"


def _end_with(parent):
    """Returns what makes a process end (SIGTERM) when its parent is killed."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)

    def prepare():
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # which has died meanwhile
            os.kill(os.getpid(), signal.SIGTERM)

    return prepare
