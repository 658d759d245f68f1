"""The settings of what a command is computed on, and of where its data lie."""

import dataclasses
from typing import Literal

from pni_tf.settings.base import Group, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(Group):
    """Where a dataset comes from."""

    heading = "Data"

    data_dir: str | None = setting(
        None,
        "Folder of TensorFlow Datasets; by default $TFDS_DATA_DIR, else "
        "~/tensorflow_datasets.",
        free=True,
    )
    download: bool = setting(False, "Download the dataset if it is missing.", free=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices(Group):
    """What an evaluation is computed on."""

    heading = "Machine"

    strategy: Literal["none", "mirrored", "multi_worker"] = setting(
        "none",
        "none: one device. mirrored: all GPUs of this machine. multi_worker: all "
        "devices of all workers that TF_CONFIG or a Slurm job step names.",
        free=True,
    )
    cpu_devices: int = setting(
        1,
        "Split the CPU into as many devices, to try --strategy=mirrored without GPUs.",
        bounds=(1, 64),
        free=True,
    )
    cluster_timeout: int = setting(
        120, "Seconds to wait for the other workers at the start.", free=True
    )

    def __post_init__(self):
        super().__post_init__()
        if self.cpu_devices > 1 and self.strategy != "mirrored":
            raise ValueError(
                f"--cpu_devices={self.cpu_devices} is for --strategy=mirrored"
            )
