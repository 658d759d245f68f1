"""Runs jobs in processes of their own, one after the other or several at once."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pni_tf.reproduce.jobs import Costs, Job, Stamps

_PAUSE = 0.1  # seconds between two looks at the processes


class Run:
    """Runs what is not done yet; what fails is noted, and the rest still runs.

    Args:
        jobs: The jobs, each after those that it needs.
        stamps: What is known of them; it learns what became of them.
        costs: Estimates what is left.
        workers: How many to run at once; they share the CPU cores.
        extra: Further flags of all commands, which change no result.
        lock: File descriptor of the folder's lock, which the jobs hold too: one whose
            parent was killed may live a little longer.

    Attributes:
        failed: The reason for each job that ended with an error.
        skipped: The jobs that needed one of these.
    """

    def __init__(
        self,
        jobs: list[Job],
        stamps: Stamps,
        costs: Costs,
        *,
        workers: int = 1,
        extra: Sequence[str] = (),
        lock: int | None = None,
    ):
        self.stamps, self.costs, self.workers = stamps, costs, workers
        self.extra, self.lock = extra, lock
        self.waiting = [job for job in jobs if not stamps.of(job).is_done]
        self.total = len(self.waiting)
        self.running = {}
        self.failed, self.skipped = {}, []

    def finish(self) -> None:
        """Runs all jobs.

        Ctrl-C and SIGTERM are passed on to the jobs, which save their state; then they
        come out of here as a KeyboardInterrupt. A second one kills the jobs.
        """
        try:
            while self.waiting or self.running:
                self._drop_lost()
                pending = {*self.waiting, *self.running}
                ready = [j for j in self.waiting if pending.isdisjoint(j.needs)]
                for job in ready[: self.workers - len(self.running)]:
                    self._begin(job)
                if not self._collect():
                    time.sleep(_PAUSE)
        except BaseException:
            self._interrupt()
            raise

    def _drop_lost(self):
        """Takes out what needs a job that failed."""
        for job in list(self.waiting):
            lost = [n for n in job.needs if n in self.failed or n in self.skipped]
            if lost:
                self.waiting.remove(job)
                self.skipped.append(job)
                print(f"skipped: {job.title}, which needs {lost[0].title}")

    def _begin(self, job):
        number = self.total - len(self.waiting) + 1
        left = self.costs.left([*self.running, *self.waiting])
        print(f"[{number}/{self.total}] {job.title} ({left} left)")
        self.waiting.remove(job)
        stamp = self.stamps.of(job)
        if stamp.is_blocked:
            self._fail(job, stamp.failed)
            return
        root, log = self.stamps.root, self.stamps.path(job, "log")
        command = [*_command_of(job.command), *job.arguments(root), *self.extra]
        several = self.workers > 1
        threads = max(cpu_cores() // self.workers, 1) if several else None
        process = Process(command, log, lock=self.lock, threads=threads)
        self.running[job] = process, time.monotonic()

    def _collect(self):
        """Takes note of the processes that have ended; returns whether any has."""
        ended = [job for job, (p, _) in self.running.items() if p.poll() is not None]
        for job in ended:
            process, begin = self.running.pop(job)
            reason, seconds = process.failure(), time.monotonic() - begin
            done = reason is None
            self.stamps.write(job, done=done, seconds=seconds, failed=reason)
            if done:
                self.costs.add(job, self.stamps.of(job).seconds)
            else:
                self._fail(job, reason)
        return bool(ended)

    def _interrupt(self):
        """Has all processes save their state, and waits for them."""
        if not self.running:
            return
        processes = [process for process, _ in self.running.values()]
        try:
            for process in processes:
                process.terminate()
            print("Interrupted: the jobs save their state; Ctrl-C again kills them")
            for process in processes:
                process.wait()
        except KeyboardInterrupt:
            for process in processes:
                process.kill()
                process.wait()
        for job, (_, begin) in self.running.items():
            seconds = time.monotonic() - begin
            self.stamps.write(job, done=False, seconds=seconds)

    def _fail(self, job, reason):
        self.failed[job] = reason
        print(f"failed: {job.title}: {reason}")


def shell(job: Job, root: Path) -> str:
    """Returns the command of a job, for a reader to paste."""
    return shlex.join([f"bin/{job.command}", *job.arguments(root)])


def cpu_cores() -> int:
    """Returns how many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _command_of(command):
    return [sys.executable, "-m", f"pni_tf.cli.{command}"]


_PACKAGE_FOLDER = Path(__file__).parents[2]
_PR_SET_PDEATHSIG = 1
_THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")


class Process(subprocess.Popen):
    """A command, whose output goes to a file.

    Args:
        command: The program and its arguments.
        log: The file, to which it is appended.
        lock: File descriptor that the process holds too.
        threads: CPU threads that it may use; all by default.
    """

    def __init__(
        self,
        command: list[str],
        log: Path,
        *,
        lock: int | None = None,
        threads: int | None = None,
    ):
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"$ {shlex.join(command)}\n".encode())
            file.flush()
            self._begin = file.tell()
            super().__init__(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=_environment(threads),
                pass_fds=() if lock is None else (lock,),
                start_new_session=True,  # Otherwise Ctrl-C would reach it, too.
                preexec_fn=_end_with(os.getpid()),
            )

    def failure(self) -> str | None:
        """Waits for its end; returns None, or why it failed."""
        status = self.wait()
        if status == 0:
            return None
        how = f"status {status}" if status > 0 else f"killed by signal {-status}"
        output = self.log.read_bytes()[self._begin :].decode(errors="replace")
        lines = output.strip().splitlines()
        last = f": {lines[-1]}" if lines else ""
        return f"{how}{last} (see {self.log})"


def _environment(threads):
    path = filter(None, [str(_PACKAGE_FOLDER), os.environ.get("PYTHONPATH")])
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    if threads is not None:
        found |= dict.fromkeys(_THREADS, str(threads))
        # Otherwise one process would take the whole GPU.
        found["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    return found


def _end_with(parent):
    """Returns what makes a process end (SIGTERM) when its parent is killed."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)

    def prepare():
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # The parent has died meanwhile.
            os.kill(os.getpid(), signal.SIGTERM)

    return prepare
