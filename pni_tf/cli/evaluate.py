"""`bin/evaluate`: the accuracy of a model under attack."""

from pathlib import Path

from absl import flags

from pni_tf.cli import app, train_flags

USAGE = """\
Evaluates a model under attack: a run directory, a .keras file or a SavedModel.

    bin/evaluate MODEL [--flag=value ...]

Of a run directory, the dataset and epsilon are those of the run unless given."""

DATA = "Data"
ATTACK = "Attacks"
OUTPUT = "Scoring and output"


def run() -> None:
    """Entry point of `pni-evaluate`."""
    define()
    app.run(main, usage=USAGE, groups=(DATA, ATTACK, OUTPUT), names=1)


def define() -> None:
    """Defines the flags in absl's global registry."""
    flags.DEFINE_string(
        "dataset",
        None,
        "Dataset whose test images are attacked: see bin/train --helpshort.",
        module_name=DATA,
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder of TensorFlow Datasets; by default $TFDS_DATA_DIR, else "
        "~/tensorflow_datasets.",
        module_name=DATA,
    )
    flags.DEFINE_bool(
        "download", False, "Download the dataset if it is missing.", module_name=DATA
    )
    flags.DEFINE_integer(
        "examples",
        None,
        "Number of test images; all by default.",
        lower_bound=1,
        module_name=DATA,
    )
    flags.DEFINE_multi_enum(
        "attack",
        ["clean", "fgsm", "pgd"],
        ["clean", "fgsm", "pgd"],
        "What to evaluate; may be repeated. fgsm is for --norm=linf.",
        module_name=ATTACK,
    )
    flags.DEFINE_list(
        "epsilons",
        None,
        "Radii of the ball, for pixels in [0, 1]; fractions such as 8/255 are fine.",
        module_name=ATTACK,
    )
    flags.DEFINE_list("steps", ["7", "40"], "Numbers of PGD steps.", module_name=ATTACK)
    flags.DEFINE_string(
        "step_size",
        None,
        "Step size of PGD; by default 2.5 * epsilon / steps.",
        module_name=ATTACK,
    )
    flags.DEFINE_enum(
        "norm", "linf", ["linf", "l2"], "Norm of the PGD ball.", module_name=ATTACK
    )
    flags.DEFINE_bool(
        "random_start", True, "Start PGD at a random point.", module_name=ATTACK
    )
    flags.DEFINE_integer(
        "restarts", 1, "Restarts of PGD.", lower_bound=1, module_name=ATTACK
    )
    flags.DEFINE_list(
        "expectation",
        ["1", "20"],
        "Draws of the expectation over noise in PGD, one row each; a deterministic "
        "model is attacked once.",
        module_name=ATTACK,
    )
    flags.DEFINE_integer(
        "draws",
        5,
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


def main() -> None:
    settings = flags.FLAGS
    (model,) = app.arguments()
    path = Path(model)
    earlier = train_flags.read(path / "flags.cfg")
    dataset_name = settings.dataset or earlier.get("dataset")
    if dataset_name is None:
        raise ValueError(
            f"{model} is no run directory, so --dataset=NAME must say what to evaluate "
            "it on"
        )
    # Parsed before TensorFlow starts, so that a bad value shows at once.
    epsilons = app.numbers(
        "epsilons", settings.epsilons or [earlier.get("epsilon", "")]
    )
    step_counts = app.integers("steps", settings.steps)
    expectations = app.integers("expectation", settings.expectation)
    step_size = None
    if settings.step_size is not None:
        (step_size,) = app.numbers("step_size", [settings.step_size])
    suffix = path / "evaluation" if earlier else Path(f"{model.rstrip('/')}_evaluation")
    output = Path(settings.output_dir or suffix)

    app.import_tensorflow()
    from tqdm import tqdm

    from pni_tf import plots
    from pni_tf.attacks import FGSM, PGD
    from pni_tf.data import load_dataset
    from pni_tf.evaluation import Scenario, evaluate_robustness, report
    from pni_tf.export import load_target

    target = load_target(path)
    dataset = load_dataset(
        dataset_name,
        data_dir=settings.data_dir,
        download=settings.download,
        test_examples=settings.examples,
    )
    scenarios = []
    if "clean" in settings.attack:
        scenarios.append(Scenario(name="clean"))
    for epsilon in epsilons:
        at = f" ε={epsilon:.4g}" if len(epsilons) > 1 else ""
        if "fgsm" in settings.attack and settings.norm == "linf":
            scenarios.append(Scenario(name=f"FGSM{at}", attack=FGSM(epsilon=epsilon)))
        for count in step_counts if "pgd" in settings.attack else []:
            attack = PGD(
                epsilon=epsilon,
                step_size=2.5 * epsilon / count if step_size is None else step_size,
                steps=count,
                norm=settings.norm,
                random_start=settings.random_start,
                restarts=settings.restarts,
            )
            for draws in expectations:
                name = f"PGD-{count}" + (f" EOT-{draws}" if draws > 1 else "") + at
                scenarios.append(Scenario(name=name, attack=attack, expectation=draws))
    targets = {"model" if target.noise_free is None else "noise on": target}
    if target.noise_free is not None:
        targets["noise off"] = target.noise_free
    warnings = [*target.warnings, *(w for s in scenarios for w in s.warnings)]
    if target.stochastic and "pgd" in settings.attack and max(expectations) == 1:
        warnings.append(
            "the model is random and no attack takes the expectation over its noise: "
            "its accuracy is overrated; use --expectation=20"
        )
    for warning in warnings:
        print(f"warning: {warning}")
    output.mkdir(parents=True, exist_ok=True)
    columns = {
        name: evaluate_robustness(
            each,
            dataset.test.images_float(),
            dataset.test.labels,
            scenarios,
            draws=settings.draws,
            batch_size=settings.batch_size,
            seed=settings.seed,
            progress=lambda batches, row, name=name: tqdm(
                batches, desc=f"{name}: {row}", leave=False, disable=None
            ),
        )
        for name, each in targets.items()
    }
    table, sentence = report.format_table(columns), report.describe(columns)
    report.write_csv(output / "per_example.csv", columns)
    report.write_json(
        output / "evaluation.json",
        columns,
        model=str(path),
        dataset=dataset_name,
        warnings=warnings,
    )
    title = f"{path.name}, {dataset_name}"
    report.write_text(
        output / "report.md",
        f"# {title}\n\n{table}\n\n{sentence}\n\n![accuracies](accuracies.png)\n",
    )
    figure = plots.plot_accuracies(report.accuracies(columns), title=title)
    figure.savefig(output / "accuracies.png", dpi=120)
    print(f"\n{table}\n\n{sentence}\n\nThe results are in {output}")
