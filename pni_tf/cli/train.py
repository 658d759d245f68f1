"""`bin/train`: trains, evaluates and exports a network, or goes on where it stopped."""

import contextlib
import copy
from types import SimpleNamespace

from absl import flags

from pni_tf.cli import app, train_flags
from pni_tf.cli.run_directory import RunDirectory
from pni_tf.distribution.cluster import find_cluster

USAGE = """\
Trains a network with parametric noise injection, evaluates it under attack and exports
it. The same command continues an interrupted run.

    bin/train --flagfile=configs/digits_pni_w.cfg [--flag=value ...]"""


def run() -> None:
    """Entry point of `pni-train`."""
    train_flags.define()
    app.run(main, usage=USAGE, groups=train_flags.GROUPS, names=0)


def main() -> None:
    settings = train_flags.settings()
    _check(settings)
    if settings.run_dir is None:
        noise = settings.pni if settings.noise == "pni" else settings.noise
        name = f"{settings.dataset}_{settings.model}_{noise}"
        flags.FLAGS.run_dir = settings.run_dir = f"runs/{name}"
    cluster = find_cluster() if settings.strategy == "multi_worker" else None
    with contextlib.closing(RunDirectory(settings.run_dir)) as directory:
        directory.open(
            write=cluster is None or cluster.is_chief, several=cluster is not None
        )
        _run(settings, directory, cluster)


def _run(settings, directory, cluster):
    if directory.finished.exists():
        what = directory.report if directory.report.exists() else directory.model
        print(f"{directory.path} is finished: see {what}")
        return
    # Workers must find each other before TensorFlow computes anything.
    app.import_tensorflow(settings.cpu_devices, start=cluster is None)
    import keras
    import tensorflow as tf

    from pni_tf.distribution.workers import connect

    keras.utils.set_random_seed(settings.seed)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()
    workers = connect(
        settings.strategy,
        cluster=cluster,
        agree_on=train_flags.settled(),
        timeout=settings.cluster_timeout,
        tpu=settings.tpu,
    )
    output = contextlib.nullcontext()
    if not workers.is_chief:
        output = directory.log_of(workers.index)
    # Peers may die at any time, as while variables are made, which are sent to all.
    with output, workers.losing_workers():
        _train(settings, directory, workers)


def _train(settings, directory, workers):
    from pni_tf.cli import train_run

    dataset = train_run.load(settings)
    train_run.check_batches(settings, dataset, workers.replicas)
    train_run.train(settings, directory, dataset, workers)
    undefended = None
    if settings.compare_undefended:
        undefended = RunDirectory(directory.undefended)
        if workers.is_chief:
            undefended.path.mkdir(exist_ok=True)
        train_run.train(_undefended(settings), undefended, dataset, workers)
    train_run.finish(settings, directory, undefended, dataset, workers)


def _undefended(settings: SimpleNamespace) -> SimpleNamespace:
    plain = copy.copy(settings)
    plain.noise, plain.pni, plain.adversarial = "pni", "none", False
    return plain


def _check(settings: SimpleNamespace) -> None:
    """Refuses flags that contradict each other, before anything is written."""
    for name in ("eval_steps", "drop_epochs"):
        setattr(settings, name, app.integers(name, getattr(settings, name)))
    if settings.drop_epochs != sorted(set(settings.drop_epochs)):
        raise ValueError(
            "--drop_epochs must be in increasing order. "
            f"Received: {settings.drop_epochs}"
        )
    if settings.width <= 0:
        raise ValueError(f"--width must be positive. Received: {settings.width}")
    if not settings.adversarial and not settings.noise_in_attack:
        raise ValueError("--nonoise_in_attack needs --adversarial")
    has_noise = settings.noise != "pni" or settings.pni != "none"
    if not has_noise and not settings.noise_in_attack:
        raise ValueError("--nonoise_in_attack needs noise: give --pni another value")
    if not has_noise and settings.eval_ensemble > 1:
        raise ValueError("--eval_ensemble needs noise: give --pni another value")
    if settings.noise == "pixeldp" and settings.pixeldp_bound <= 0:
        raise ValueError(
            f"--pixeldp_bound must be positive. Received: {settings.pixeldp_bound}"
        )
    if settings.warmup_epochs and settings.schedule != "cosine":
        raise ValueError("--warmup_epochs needs --schedule=cosine")
    if settings.warmup_epochs >= settings.epochs:
        raise ValueError(
            f"--warmup_epochs={settings.warmup_epochs} leaves no epoch of --epochs="
            f"{settings.epochs} for the rate to fall"
        )
    if not settings.adversarial and settings.epoch_delay:
        raise ValueError("--epoch_delay needs --adversarial")
    if settings.epoch_delay >= settings.epochs and settings.adversarial:
        raise ValueError(
            f"--epoch_delay={settings.epoch_delay} leaves no epoch of --epochs="
            f"{settings.epochs} for adversarial training; use --noadversarial for that"
        )
    if settings.adversarial and not settings.clean_weight + settings.adversarial_weight:
        raise ValueError("--clean_weight and --adversarial_weight must not both be 0")
    if settings.strategy != "none" and settings.jit == "on":
        raise ValueError(
            f"--jit=on does not work with --strategy={settings.strategy} in Keras 3"
        )
    app.check_strategy(settings)
    undefended = not has_noise and not settings.adversarial
    if settings.compare_undefended and undefended:
        raise ValueError("--compare_undefended would train the same network twice")


if __name__ == "__main__":
    run()
