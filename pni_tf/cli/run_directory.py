"""The folder of one run: where things lie, and whether it may be written to."""

import os
from pathlib import Path

from pni_tf.cli import train_flags


class RunDirectory:
    """Paths of a run. `open` prepares the folder and guards what is in it.

    Args:
        path: The folder.
    """

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
        # Written last.
        self.finished = self.path / "finished"

    def open(self) -> None:
        """Creates the folder, or checks that it belongs to the same command.

        Raises:
            ValueError: If the folder holds something else, or a run with other flags.
            OSError: If it cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--run_dir={self.path} is a file, not a folder")
        if self.flags.exists():
            different = train_flags.differences(self.flags.read_text(encoding="utf-8"))
            # A start that failed, say for an unknown dataset, leaves nothing to lose.
            if different and (self.checkpoints.exists() or self.model.exists()):
                raise ValueError(
                    f"--run_dir={self.path} belongs to a run with other settings. Use "
                    "another --run_dir, or the same settings:\n  "
                    + "\n  ".join(different)
                )
        elif self.path.exists() and any(self.path.iterdir()):
            raise ValueError(
                f"--run_dir={self.path} is not empty and holds no run of this program "
                "(no flags.cfg). Use another folder"
            )
        if self.finished.exists():
            return  # and leave everything as it is
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Written aside and moved, so that an interruption leaves no half of it.
            scratch = self.path / "flags.unfinished"
            scratch.write_text(train_flags.serialized(), encoding="utf-8")
            os.replace(scratch, self.flags)
        except OSError as error:
            raise OSError(f"cannot write to --run_dir={self.path}: {error}") from error
