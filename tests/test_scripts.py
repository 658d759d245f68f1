"""Every script, and every command that the documentation prints, runs."""

import concurrent.futures
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from printed_commands import printed_commands

from pni_tf import export_saved_model, inject_pni, load_dataset, strip_noise
from pni_tf.cli import evaluate, export, train
from pni_tf.reproduce import command as reproduce

ROOT = Path(__file__).parents[1]
HOST = ROOT / "tests" / "support" / "script_host.py"
PAGES = [
    *(ROOT / "README.md", ROOT / "BUILD.md", *sorted((ROOT / "docs").glob("*.md"))),
    *(ROOT / "examples" / "README.md", ROOT / "benchmarks" / "README.md"),
    *sorted((ROOT / "configs").glob("*.cfg")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
    *sorted((ROOT / "examples").glob("*.py")),
]
COMMANDS = list(dict.fromkeys(c for page in PAGES for c in printed_commands(page)))

PROGRAMS = {
    "bin/train": train,
    "bin/evaluate": evaluate,
    "bin/export": export,
    "bin/reproduce": reproduce,
}
PROGRAMS |= {name.replace("bin/", "pni-"): module for name, module in PROGRAMS.items()}

# Commands that are not run here, by their first words, and why.
NOT_RUN = {
    r"pip|\S+/pip": "it needs a package index; .ci/run installs",
    r"python3? -m (venv|build)|\. |/tmp/fresh/|rm|mkdir|cp": "it changes folders",
    r"pytest|ruff": "it is what runs this test",
    r"git": "it needs the server",
    r"tensorboard": "it is a server of another project",
    r"tfds": "it downloads",
    r"export 'TF_CONFIG|for index|done|wait": "test_docs_scaling.py reads the clusters",
    r"sbatch|srun|scontrol|case|137$|'143|'\['|esac|exit": "it needs Slurm",
    r"kubectl|kubernetes-validate": "test_docs_scaling.py validates the manifest",
    r"python reports/keep.py": "tests/reproduce/test_keep.py shows it",
}

# Scripts with their smallest size, and the number that each promises. Those of the
# second table start processes of their own and need no TensorFlow themselves.
NUMBER = r"-?\d+(\.\d+)?"
SCRIPTS = {
    "attack_agreement": (
        ["--quick", "--model=plain.keras"],
        rf"\n\| PGD-2, no random start \| Foolbox \|( {NUMBER} \|){{7}}\n",
    ),
    "attack_speed": (
        ["--quick", "--model=plain.keras", "--attack=zoo"],
        rf"\nART +2 +{NUMBER} \(.*\({NUMBER}-{NUMBER}\)\n.* queries an image",
    ),
    "endurance": (["--quick"], r" 1 steps +\d+\.\d MiB +\d+ files \d+ traces\n"),
    "evaluation_speed": (["--quick"], rf"\nFGSM +{NUMBER} +1 +61 +[+-]\d+ %"),
    "input_pipeline": (["--quick"], rf"on: {NUMBER} ms a batch, [\d,]+ images/s\n"),
    "step_time": (
        ["--quick", "configs/digits_vanilla.cfg"],
        rf"digits_vanilla.cfg +{NUMBER} s/step .* h for 25 epochs +{NUMBER} GiB\n",
    ),
}
STARTERS = {
    "kills": (["--quick"], r"\nkilled worker 0 .*\nrun 1 is done, after 1 .*: same\n"),
    "replicas": (["--quick"], r"\n\| 0.1 \| 2 logical CPUs \| \d\.\de-\d\d \| \d\.\d"),
    "training_step": (
        ["--quick", "--competitors", "ours"],
        rf"\nours +{NUMBER} \({NUMBER}-{NUMBER}\) .* s +{NUMBER}\n",
    ),
    "training_step --axes": (
        ["--quick", "--axes", "width"],
        rf"\n +1 +{NUMBER} +1\.00 +{NUMBER}\n",
    ),
    "training_step torch": (
        ["--quick", "--competitors", "torch-eager"],
        rf"\ntorch-eager +{NUMBER} \({NUMBER}-{NUMBER}\) ",
    ),
}
SHARED = {"common", "peers", "torch_peer", "workers"}

# What the scripts in examples/ are called with.
COUNT, EPSILON, DRAWS, STEPS_OF_PGD = 80, 0.1, 3, 8
TOOLS = ("tensorflow", "foolbox", "art")
ONE, SEVERAL = "PGD, draws a step: 1", f"PGD, draws a step: {DRAWS}"


def test_the_tables_name_every_script():
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    shown = {name.split()[0] for name in (*SCRIPTS, *STARTERS)}
    assert names == shown | SHARED
    examples = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert examples == {f"attack_with_{tool}" for tool in TOOLS} | {"digits_data"}


@pytest.mark.parametrize("name", [n for n in (*SCRIPTS, *STARTERS) if " " not in n])
def test_a_script_documents_its_command_and_its_smallest_size(name):
    printed = printed_commands(ROOT / "benchmarks" / f"{name}.py")
    assert all(f"python benchmarks/{name}.py" in command for command in printed)
    assert any("--quick" in command for command in printed)


def accuracy(logits, labels):
    return 100 * np.mean(np.argmax(logits, -1) == labels)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", test_examples=COUNT)


@pytest.fixture(scope="module")
def network(digits):
    """Accurate without noise, and with so much of it that single draws differ."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    images, labels = digits.train.images_float(), digits.train.labels
    model.fit(images, labels, batch_size=64, epochs=2, verbose=0)
    return inject_pni(model, "w", initial_alpha=0.5)


def is_missing(name):
    """Returns the package that a script needs and that is not installed, or None."""
    needed = {
        "training_step torch": "torch",
        "attack_with_foolbox": "foolbox",
        "attack_with_art": "art",
        "attack_agreement": "foolbox",
        "attack_speed": "foolbox",
    }.get(name)
    # Not `importorskip`: importing ART reconfigures logging.
    missing = needed is not None and importlib.util.find_spec(needed) is None
    return needed if missing else None


@pytest.fixture(scope="module")
def results(network, tmp_path_factory):
    """What every script has done: status and output, by its name.

    In a folder that looks like the checkout. Two processes work off the jobs: one has
    TensorFlow, the other starts those that start processes.
    """
    folder = tmp_path_factory.mktemp("scripts")
    for name in ("bin", "benchmarks", "examples", "configs"):
        (folder / name).symlink_to(ROOT / name)
    export_saved_model(network, folder / "saved_model")
    strip_noise(network).save(folder / "plain.keras")
    hosted, started = {}, {}
    for tool in TOOLS:
        name = f"attack_with_{tool}"
        options = [f"--epsilon={EPSILON}", f"--steps={STEPS_OF_PGD}"]
        options += [f"--draws={DRAWS}", f"--examples={COUNT}"]
        hosted[name] = [f"examples/{name}.py", "saved_model", *options]
    for jobs, table in ((hosted, SCRIPTS), (started, STARTERS)):
        for name, (options, _) in table.items():
            jobs[name] = [f"benchmarks/{name.split()[0]}.py", *options]
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "python" and words[1] != "-c" and not skipped(command):
            hosted[command] = ["--parse", *words[1:]]  # Most of them import TensorFlow.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda jobs: host(jobs, folder), (hosted, started)))
    return both[0] | both[1]


def host(jobs, folder):
    """Runs jobs in one process; returns their results by their names."""
    jobs = {name: job for name, job in jobs.items() if not is_missing(name)}
    # Importing ART writes to the home directory.
    environment = {**os.environ, "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, HOST],
        input=json.dumps(list(jobs.values())),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return dict(zip(jobs, json.loads(process.stdout), strict=True))


def skipped(command):
    """Returns why a command is not run here, or None."""
    found = (why for words, why in NOT_RUN.items() if re.match(f"({words})", command))
    return next(found, None)


@pytest.mark.parametrize("name", [*SCRIPTS, *STARTERS])
def test_a_script_prints_its_numbers(name, results):
    if missing := is_missing(name):
        pytest.skip(f"{missing} is not installed")
    result = results[name]
    assert result["status"] == 0, result["errors"]
    assert re.search((SCRIPTS | STARTERS)[name][1], result["output"]), result["output"]


@pytest.mark.parametrize("command_line", COMMANDS)
def test_a_printed_command_is_valid(
    command_line, results, command, stop_before_tensorflow, monkeypatch, tmp_path
):
    """All its flags and the files of the checkout that it names, up to its work.

    The work itself is shown in tests/cli/test_end_to_end.py.
    """
    if why := skipped(command_line):
        pytest.skip(why)
    program, *argv = shlex.split(command_line)
    for word in argv:
        if path := re.search(r"(?:^|=)((?:configs|reports|docs)/[\w./]+)", word):
            kept = path[1].removesuffix("model.keras")  # Not every report keeps it.
            assert (ROOT / kept).exists(), f"{path[1]} does not exist"
    if program == "python":
        if argv[0] == "-c":
            exec(argv[1], {})
        else:
            assert results[command_line]["status"] == 0, results[command_line]["errors"]
        return
    assert program in PROGRAMS, "neither run here nor in the table of what is not"
    module = PROGRAMS[program]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    if "--helpshort" in argv:
        assert "--" in command(module, *argv).out
        return
    if module is reproduce:
        result = command(module, *argv, "--dry_run", "--output_dir=out")
        assert result.status == 0, result.err
        assert "The report is in" in result.out
        return
    if module is train:
        argv.append("--run_dir=here")
    elif argv[0].endswith(".keras"):
        (tmp_path / argv[0]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / argv[0]).touch()
    elif "--dataset" not in command_line:
        (tmp_path / argv[0]).mkdir(parents=True)
        flags = "--dataset=digits\n--epsilon=0.15\n"
        (tmp_path / argv[0] / "flags.cfg").write_text(flags)
    task = {"type": "worker", "index": 0}
    cluster = {"cluster": {"worker": ["localhost:12345"]}, "task": task}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    assert command(module, *argv).err == "error: stopped here\n"


def parsed(printed):
    """Returns a table of examples/: a row an attack, by its name."""
    first, head, *lines = printed.splitlines()
    assert first.startswith(f"{COUNT} test images")
    columns = re.split(r"  +", head)
    rows = {}
    for line in lines:
        name, *cells = re.split(r"  +", line)
        rows[name] = dict(zip(columns[1:], cells, strict=True))
        mean, std = rows[name].pop("fresh draws").split(" ± ")
        rows[name].update({"fresh draws": mean, "std": std})
        rows[name] = {column: float(cell) for column, cell in rows[name].items()}
    return rows


@pytest.fixture(params=TOOLS)
def table(request, results):
    name = f"attack_with_{request.param}"
    if missing := is_missing(name):
        pytest.skip(f"{missing} is not installed")
    assert results[name]["status"] == 0, results[name]["errors"]
    return parsed(results[name]["output"])


class TestExamples:
    """What the scripts in examples/ print, against what the network itself says."""

    def test_clean_accuracies_are_those_of_the_network(self, table, network, digits):
        images, labels = digits.test.images_float(), digits.test.labels
        clean = accuracy(strip_noise(network)(images), labels)
        assert clean > 80
        assert table["none"]["noise off"] == pytest.approx(clean, abs=0.005)
        draws = [accuracy(network(images), labels) for _ in range(100)]
        spread = np.std(draws, ddof=1)
        assert spread > 1
        # The mean of 20 draws has a standard error of its own.
        assert table["none"]["fresh draws"] == pytest.approx(
            np.mean(draws), abs=5 * spread / 20**0.5
        )
        assert spread / 2 < table["none"]["std"] < 2 * spread
        assert table["none"]["max change"] == 0

    def test_attacks_lower_the_accuracy_within_the_bound(self, table):
        assert {"none", ONE, SEVERAL} <= set(table)
        for name, row in table.items():
            if name != "none":
                assert row["fresh draws"] < table["none"]["fresh draws"] - 10
                assert row["noise off"] < table["none"]["noise off"] - 10
                assert 0.9 * EPSILON < row["max change"] <= EPSILON + 1e-4

    @pytest.mark.skipif(
        importlib.util.find_spec("foolbox") is None, reason="foolbox is not installed"
    )
    def test_foolbox_reports_more_success_than_fresh_draws_confirm(self, results):
        rows = parsed(results["attack_with_foolbox"]["output"])
        row = rows["the same, best of 10 runs"]
        assert row["claimed"] < row["fresh draws"] - 2 * row["std"]

    def test_the_mean_gradient_is_of_separate_calls(self, monkeypatch):
        monkeypatch.syspath_prepend(ROOT / "examples")
        kernels = tf.random.normal([4, 6, 3])
        images, labels = tf.random.uniform([5, 6]), tf.range(5) % 3
        calls = iter(kernels)
        mean = importlib.import_module("attack_with_tensorflow").mean_gradient(
            lambda images: images @ next(calls), images, labels, draws=4
        )
        # By hand: (softmax - one-hot) times the kernel, the mean over the kernels.
        errors = tf.nn.softmax(images @ kernels) - tf.one_hot(labels, 3)
        expected = tf.reduce_mean(errors @ tf.transpose(kernels, [0, 2, 1]), 0)
        np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-6)
