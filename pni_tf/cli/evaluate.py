"""`bin/evaluate`: the accuracy of a model under attack."""

import contextlib
import dataclasses
import io
from pathlib import Path

from pni_tf.cli import app, flags
from pni_tf.distribution.cluster import find_cluster
from pni_tf.settings.evaluation import ATTACKS, EvaluationRun

USAGE = """\
Evaluates a model under attack: a run directory, a .keras file or a SavedModel.

    bin/evaluate MODEL [--flag=value ...]

    bin/evaluate runs/try --suite=strong --checklist --curves=epsilon,steps,draws
    bin/evaluate runs/try --attacks='fgsm,pgd(steps=40,restarts=2),cw' --examples=200
    bin/evaluate saved_model --dataset=cifar10 --epsilons=8/255 --suite=paper

Of a run directory, the dataset and epsilon are those of the run unless given. After an
interruption, run the same command again to continue; attacks may be added to it."""


def run() -> None:
    """Entry point of `pni-evaluate`."""
    app.run(main, usage=USAGE, settings=EvaluationRun, names=1)


def main(settings: EvaluationRun, model: str) -> None:
    # Before TensorFlow starts, so that a bad value shows at once.
    settings = completed(settings, model)
    specs = flags.parse_attacks(settings.attacks.listed, ATTACKS)
    devices = settings.devices
    cluster = find_cluster() if devices.strategy == "multi_worker" else None
    app.import_tensorflow(devices.cpu_devices, start=cluster is None)
    from pni_tf.cli.evaluate_run import evaluate
    from pni_tf.distribution.workers import connect

    agree_on = f"{model}\n{flags.deciding(settings)}"
    workers = connect(devices, cluster, agree_on)
    output = contextlib.nullcontext()
    if not workers.is_chief:  # The chief prints the tables.
        output = contextlib.redirect_stdout(io.StringIO())
    with output, workers.losing_workers():
        evaluate(Path(model), settings, specs, workers)


def completed(settings: EvaluationRun, model: str) -> EvaluationRun:
    """Returns the settings with those that the model decides.

    Of a run directory these are the dataset, epsilon and the output folder.

    Raises:
        ValueError: If the model does not decide them, and no flag does.
    """
    path = Path(model)
    earlier = flags.values_in(path / "flags.cfg")
    dataset = settings.data.dataset or earlier.get("dataset")
    if dataset is None:
        raise ValueError(
            f"{model} is not a run directory, so --dataset=NAME must say what to "
            "evaluate it on"
        )
    epsilons = settings.attacks.epsilons
    if epsilons is None:
        if "epsilon" not in earlier:
            raise ValueError(
                f"{model} is not a run directory, so --epsilons=8/255 or other radii "
                "must be given. Received: no --epsilons"
            )
        epsilons = (flags.number(earlier["epsilon"]),)
    beside = path / "evaluation" if earlier else f"{model.rstrip('/')}_evaluation"
    return dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, dataset=dataset),
        attacks=dataclasses.replace(settings.attacks, epsilons=epsilons),
        scoring=dataclasses.replace(
            settings.scoring, output_dir=settings.scoring.output_dir or str(beside)
        ),
    )


if __name__ == "__main__":
    run()
