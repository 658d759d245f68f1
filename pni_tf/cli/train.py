"""`bin/train`: trains, evaluates and exports a network, or continues a run."""

import contextlib
import dataclasses

from pni_tf.cli import app, flags
from pni_tf.cli.run_directory import RunDirectory
from pni_tf.distribution.cluster import find_cluster
from pni_tf.settings.training import TrainingRun

USAGE = """\
Trains a network with parametric noise injection, evaluates it under attack and exports
it. The same command continues an interrupted run.

    bin/train --flagfile=configs/digits_pni_w.cfg [--flag=value ...]"""


def run() -> None:
    """Entry point of `pni-train`."""
    app.run(main, usage=USAGE, settings=TrainingRun)


def main(settings: TrainingRun) -> None:
    network = settings.recipe.network
    if settings.storage.run_dir is None:
        noise = network.pni if network.noise == "pni" else network.noise
        path = f"runs/{settings.data.dataset}_{network.model}_{noise}"
        storage = dataclasses.replace(settings.storage, run_dir=path)
        settings = dataclasses.replace(settings, storage=storage)
    strategy = settings.devices.strategy
    cluster = find_cluster() if strategy == "multi_worker" else None
    directory = RunDirectory(settings.storage.run_dir)
    with directory.open(settings, cluster):
        _run(settings, directory, cluster)


def _run(settings, directory, cluster):
    if directory.finished.exists():
        what = directory.report if directory.report.exists() else directory.model
        print(f"{directory.path} is finished: see {what}")
        return
    devices, computation = settings.devices, settings.recipe.computation
    # Workers must find each other before TensorFlow computes anything.
    app.import_tensorflow(devices.cpu_devices, start=cluster is None)
    import keras
    import tensorflow as tf

    from pni_tf.distribution.workers import connect

    keras.utils.set_random_seed(computation.seed)
    if computation.deterministic:
        tf.config.experimental.enable_op_determinism()
    workers = connect(devices, cluster, flags.deciding(settings))
    output = contextlib.nullcontext()
    if not workers.is_chief:
        output = directory.log_of(workers.index)
    # Peers may die at any time, as while variables are made, which are sent to all.
    with output, workers.losing_workers():
        _train(settings, directory, workers)


def _train(settings, directory, workers):
    from pni_tf.cli import train_finish, train_run
    from pni_tf.data import load_dataset

    recipe, storage = settings.recipe, settings.storage
    data = dataclasses.asdict(settings.data)
    dataset = load_dataset(data.pop("dataset"), seed=recipe.computation.seed, **data)
    train_run.check_batches(recipe.optimisation.batch_size, dataset, workers.replicas)
    train_run.train(recipe, storage, directory, dataset, workers)
    if settings.final.compare_undefended:
        undefended = RunDirectory(directory.undefended)
        if workers.is_chief:
            undefended.path.mkdir(exist_ok=True)
        train_run.train(recipe.undefended(), storage, undefended, dataset, workers)
    train_finish.finish(recipe, settings.final, directory, dataset, workers)


if __name__ == "__main__":
    run()
