"""The folder of one run: where things lie, and whether it may be written to."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pni_tf import files
from pni_tf.cli import flags
from pni_tf.distribution.cluster import Cluster
from pni_tf.settings.training import TrainingRun


class RunDirectory:
    """Paths of a run. `open` prepares the folder and guards what is in it."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.flags = self.path / "flags.cfg"
        self.history = self.path / "history.csv"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model.keras"
        self.best_model = self.path / "best.keras"
        self.saved_model = self.path / "saved_model"
        self.evaluation = self.path / "evaluation.json"
        self.per_example = self.path / "per_example.csv"
        self.report = self.path / "report.md"
        # Of the evaluation while it runs.
        self.batches = self.path / "unfinished_evaluation"
        self.undefended = self.path / "undefended"
        self.workers = self.path / "workers"
        # Written last.
        self.finished = self.path / "finished"

    @contextlib.contextmanager
    def open(self, settings: TrainingRun, cluster: Cluster | None) -> Iterator[None]:
        """Creates the folder, or checks that it belongs to the same command.

        Keeps other processes from writing it meanwhile. Of a cluster the chief writes;
        the others write logs only.

        Raises:
            ValueError: If the folder holds something else, a run with other flags, or
                another process writes it.
            OSError: If it cannot be written.
        """
        write = cluster is None or cluster.is_chief
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--run_dir={self.path} is a file, not a folder")
        if self.flags.exists():
            different = flags.differences(flags.text_of(self.flags), settings)
            # A start that failed, say for an unknown dataset, leaves nothing to lose.
            if different and (self.checkpoints.exists() or self.model.exists()):
                raise ValueError(
                    f"--run_dir={self.path} belongs to a run with other settings. Use "
                    "another --run_dir, or the same settings:\n  "
                    + "\n  ".join(different)
                )
        elif write and self.path.exists() and set(os.listdir(self.path)) - {files.LOCK}:
            raise ValueError(
                f"--run_dir={self.path} is not empty and is not a run directory "
                "(it lacks flags.cfg). Use another folder"
            )
        if self.finished.exists() or not write:
            yield  # Everything stays as it is.
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if cluster is not None:
                self.workers.mkdir(exist_ok=True)
        except OSError as error:
            raise OSError(f"cannot write to --run_dir={self.path}: {error}") from error
        with files.lock(self.path, f"--run_dir={self.path}"):
            files.write_text(self.flags, flags.flagfile(settings))
            yield

    @contextlib.contextmanager
    def log_of(self, worker: int) -> Iterator[None]:
        """Sends the output of a worker that is not the chief to a file of its own."""
        path = self.workers / f"{worker}.log"
        for attempt in range(100):
            try:
                log = path.open("a", buffering=1)
                break
            except FileNotFoundError:
                # Shared folders show what the chief has made after up to a minute.
                if attempt == 99:
                    raise
                time.sleep(1)
        with log, contextlib.redirect_stdout(log):
            yield
