"""`bin/evaluate`: the accuracy of a model under attack."""

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace

from absl import flags

from pni_tf.cli import app, attack_specs, train_flags
from pni_tf.distribution.cluster import find_cluster

USAGE = """\
Evaluates a model under attack: a run directory, a .keras file or a SavedModel.

    bin/evaluate MODEL [--flag=value ...]

    bin/evaluate runs/try --suite=strong --checklist --curves=epsilon,steps,draws
    bin/evaluate runs/try --attacks='fgsm,pgd(steps=40,restarts=2),cw' --examples=200
    bin/evaluate saved_model --dataset=cifar10 --epsilons=8/255 --suite=paper

Of a run directory, the dataset and epsilon are those of the run unless given. After an
interruption the same command goes on; further attacks may be added to it."""

DATA = "Data"
ATTACK = "Attacks"
ANALYSIS = "Analyses"
OUTPUT = "Scoring and output"
MACHINE = "Machine"

# The short names of pni_tf.attacks.ATTACKS, which would need TensorFlow to be imported,
# and the two that need a further network.
NAMES = (
    *("fgsm", "pgd", "apgd-ce", "apgd-dlr", "apgd-t", "cw", "square", "zoo", "random"),
    *("transfer", "substitute"),
)
COLUMNS = ("model", "noise_on", "noise_off", "mean", "twin")
_DEFAULT = {
    "linf": "fgsm,pgd(steps=7),pgd(steps=40)",
    "l2": "pgd(steps=7),pgd(steps=40)",
}


def run() -> None:
    """Entry point of `pni-evaluate`."""
    define()
    groups = (DATA, ATTACK, ANALYSIS, OUTPUT, MACHINE)
    app.run(main, usage=USAGE, groups=groups, names=1)


def define() -> None:
    """Defines the flags in absl's global registry."""
    app.define_data_flags(
        DATA, dataset_help="Dataset whose test images are attacked: see bin/train."
    )
    flags.DEFINE_integer(
        "examples",
        None,
        "Number of test images; all by default.",
        lower_bound=1,
        module_name=DATA,
    )
    flags.DEFINE_string(
        "attacks",
        None,
        f"List of attacks, of {', '.join(NAMES)}; settings in parentheses, "
        "where expectation=K takes the place of --expectation. By default "
        f"{_DEFAULT['linf']}, or none with --suite. Clean images are always scored.",
        module_name=ATTACK,
    )
    flags.DEFINE_enum(
        "suite",
        None,
        ["paper", "strong"],
        "A set of attacks: those of the PNI paper, or those for claims, all with "
        "expectation over the noise of a random model.",
        module_name=ATTACK,
    )
    flags.DEFINE_enum(
        "preset",
        "reference",
        ["paper", "reference", "strong"],
        "Settings of --attacks that are not given in parentheses.",
        module_name=ATTACK,
    )
    flags.DEFINE_list(
        "epsilons",
        None,
        "Radii of the ball, for pixels in [0, 1]; fractions such as 8/255 are fine. "
        "The curves and the checklist take the first.",
        module_name=ATTACK,
    )
    flags.DEFINE_enum(
        "norm", "linf", ["linf", "l2"], "Norm of the ball.", module_name=ATTACK
    )
    flags.DEFINE_list(
        "expectation",
        ["1", "20"],
        "Draws of the expectation over noise, one row each for --attacks; a suite, the "
        "curves and the checklist take the largest. A deterministic model is attacked "
        "once.",
        module_name=ATTACK,
    )
    flags.DEFINE_enum(
        "towards",
        None,
        ["next", "random", "least_likely"],
        "Makes --attacks targeted, at this class.",
        module_name=ATTACK,
    )
    flags.DEFINE_list(
        "transfer_from",
        None,
        "Models from which examples are transferred, beside the one without noise.",
        module_name=ATTACK,
    )
    flags.DEFINE_integer(
        "substitute_images",
        150,
        "Test images, not among the attacked ones, that `substitute` starts from.",
        lower_bound=1,
        module_name=ATTACK,
    )
    flags.DEFINE_list(
        "curves",
        None,
        "Accuracy of PGD over: epsilon, steps, draws. With figures.",
        module_name=ANALYSIS,
    )
    flags.DEFINE_bool(
        "checklist",
        False,
        "Check for masked gradients and lucky randomness (Linf): Table 7 of the paper "
        "and what came later.",
        module_name=ANALYSIS,
    )
    flags.DEFINE_integer(
        "ensemble",
        1,
        "Above 1, a further column for a random model: prediction by the mean of the "
        "softmax over this many draws, attacked through that mean.",
        lower_bound=1,
        module_name=ANALYSIS,
    )
    flags.DEFINE_bool(
        "certify",
        False,
        "Certified radii of a PixelDP network, and the accuracy over the radius.",
        module_name=ANALYSIS,
    )
    flags.DEFINE_integer(
        "certify_draws",
        2000,
        "Draws of the noise behind each certified radius.",
        lower_bound=1,
        module_name=ANALYSIS,
    )
    flags.DEFINE_integer(
        "pictures",
        0,
        "Number of images to draw that the first attack turns around, with the "
        "predictions and their confidence.",
        lower_bound=0,
        upper_bound=16,
        module_name=ANALYSIS,
    )
    flags.DEFINE_list(
        "columns",
        None,
        "Columns of the table and lines of the curves, from: model or noise_on, "
        "noise_off, mean (of --ensemble), twin; all that there are by default.",
        module_name=ANALYSIS,
    )
    flags.DEFINE_string(
        "twin",
        None,
        "The deterministic model of equal cost, adversarially trained without noise: "
        "a further column, and part of the checklist.",
        module_name=ANALYSIS,
    )
    flags.DEFINE_integer(
        "draws",
        10,
        "Draws of the noise that score each image.",
        lower_bound=1,
        module_name=OUTPUT,
    )
    flags.DEFINE_integer(
        "batch_size", 128, "Images in a batch.", lower_bound=1, module_name=OUTPUT
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "Seed of the noise and the attacks.",
        lower_bound=0,
        upper_bound=2**31 - 1,
        module_name=OUTPUT,
    )
    flags.DEFINE_string(
        "output_dir",
        None,
        "Folder of the results; by default MODEL/evaluation for a run directory, else "
        "MODEL_evaluation.",
        module_name=OUTPUT,
    )
    app.define_strategy_flags(MACHINE, ["none", "mirrored", "multi_worker"])


def main() -> None:
    (model,) = app.arguments()
    settings = parse(model)  # before TensorFlow starts: a bad value shows at once
    app.check_strategy(settings)
    cluster = find_cluster() if settings.strategy == "multi_worker" else None
    app.import_tensorflow(settings.cpu_devices, start=cluster is None)
    from pni_tf.cli.evaluate_run import evaluate
    from pni_tf.distribution.workers import connect

    workers = connect(
        settings.strategy,
        cluster=cluster,
        agree_on=repr({**vars(settings), "data_dir": None}),
        timeout=settings.cluster_timeout,
    )
    output = contextlib.nullcontext()
    if not workers.is_chief:  # which prints the tables
        output = contextlib.redirect_stdout(io.StringIO())
    with output, workers.losing_workers():
        evaluate(settings, workers)


def parse(model: str) -> SimpleNamespace:
    """Returns the settings of an evaluation from the flags.

    Raises:
        ValueError: If a value is not of its form, or something is missing.
    """
    given = flags.FLAGS
    path = Path(model)
    earlier = train_flags.read(path / "flags.cfg")
    dataset = given.dataset or earlier.get("dataset")
    if dataset is None:
        raise ValueError(
            f"{model} is no run directory, so --dataset=NAME must say what to evaluate "
            "it on"
        )
    curves, sources = given.curves, given.transfer_from
    known = {"epsilon", "steps", "draws"}
    if curves is not None and not (curves and {*curves} <= known):
        raise ValueError(
            "--curves must be from: epsilon, steps, draws. "
            f"Received: --curves={','.join(curves)}"
        )
    if sources is not None and not all(sources or [""]):
        raise ValueError(
            "--transfer_from must be a list of models. "
            f"Received: --transfer_from={','.join(sources)}"
        )
    columns = given.columns
    if columns is not None and not (columns and {*columns} <= {*COLUMNS}):
        raise ValueError(
            f"--columns must be from: {', '.join(COLUMNS)}. "
            f"Received: --columns={','.join(columns)}"
        )
    epsilons = given.epsilons
    if epsilons is None:
        epsilons = [earlier.get("epsilon", "")]
    if given.norm != "linf" and (given.checklist or given.suite == "paper"):
        what = "--checklist" if given.checklist else "--suite=paper"
        raise ValueError(f"{what} is for --norm=linf. Received: --norm={given.norm}")
    attacks = given.attacks
    if given.towards and given.suite and not attacks:
        raise ValueError(
            "--towards is for the attacks of --attacks: those of a suite are untargeted"
        )
    if attacks is None:
        attacks = "" if given.suite else _DEFAULT[given.norm]
    beside = path / "evaluation" if earlier else Path(f"{model.rstrip('/')}_evaluation")
    return SimpleNamespace(
        model=path,
        dataset=dataset,
        data_dir=given.data_dir,
        download=given.download,
        examples=given.examples,
        attacks=attack_specs.parse_attacks(attacks, NAMES) if attacks else [],
        suite=given.suite,
        preset=given.preset,
        epsilons=app.numbers("epsilons", epsilons),
        norm=given.norm,
        expectations=app.integers("expectation", given.expectation),
        towards=given.towards,
        transfer_from=[Path(source) for source in sources or ()],
        substitute_images=given.substitute_images,
        curves=curves or [],
        checklist=given.checklist,
        ensemble=given.ensemble,
        certify=given.certify,
        certify_draws=given.certify_draws,
        pictures=given.pictures,
        columns=columns,
        twin=given.twin and Path(given.twin),
        strategy=given.strategy,
        cpu_devices=given.cpu_devices,
        cluster_timeout=given.cluster_timeout,
        draws=given.draws,
        batch_size=given.batch_size,
        seed=given.seed,
        output=Path(given.output_dir or beside),
    )


if __name__ == "__main__":
    run()
