"""Two logical CPUs, so that MirroredStrategy has two replicas on any machine.

And what tests of several files share.
"""

import os
import signal
import sys
from types import SimpleNamespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from reproductions import Process

from pni_tf.cli import app
from pni_tf.reproduce import runner

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)


@pytest.fixture(scope="session")
def mirrored_strategy():
    """The one MirroredStrategy of the session: a second would abort collectives."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(autouse=True)
def _fixed_seed():
    keras.utils.set_random_seed(0)


@pytest.fixture
def command(monkeypatch, capfd):
    """Runs a command in this process; returns status, standard output and error."""

    def run(module, *argv):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        handler = signal.getsignal(signal.SIGTERM)
        capfd.readouterr()
        # Which also removes the flags that the command defines.
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
            try:
                module.run()
            finally:
                signal.signal(signal.SIGTERM, handler)
        return SimpleNamespace(
            status=stop.value.code or 0, **capfd.readouterr()._asdict()
        )

    return run


@pytest.fixture
def stop_before_tensorflow(monkeypatch):
    """Lets `bin/train` open its run directory and then stop."""

    def stop(*args, **kwargs):
        raise RuntimeError("stopped here")

    monkeypatch.setattr(app, "import_tensorflow", stop)


@pytest.fixture
def without_processes(monkeypatch):
    """Runs the jobs of a reproduction in this process, which is quick."""
    monkeypatch.setattr(runner, "Process", Process)
