"""The commands as a user runs them, in processes of their own."""

import concurrent.futures
import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from forked_commands import Command
from free_ports import addresses

from pni_tf import alphas, load_dataset, load_target, strip_noise
from pni_tf.targets import load_model

BIN = Path(__file__).parents[2] / "bin"
# The scripts find the package themselves, and keep TensorFlow quiet.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("TF_CONFIG", "PYTHONPATH", "TF_CPP_MIN_LOG_LEVEL")
} | {"CUDA_VISIBLE_DEVICES": "-1"}
EPOCHS = 5
# Small, but with every kind of state: momentum, alphas, generators, a schedule.
SETTINGS = (
    "--dataset=digits",
    "--model=mnist_cnn",
    "--width=0.1",
    "--pni=w+a-a",
    "--train_examples=200",
    "--test_examples=40",
    "--validation_split=0.2",
    "--validation_draws=2",
    "--batch_size=20",
    "--attack_steps=2",
    "--epsilon=0.1",
    "--learning_rate=0.02",
    "--drop_epochs=3",
    "--deterministic",
)
WHOLE = (*SETTINGS, f"--epochs={EPOCHS}", "--compare_undefended")
TABLE = ("--eval_steps=2", "--eval_expectation=2", "--eval_draws=3")
ROWS = ("clean", "FGSM", "PGD-2", "PGD-2 EOT-2")
COLUMNS = ("with PNI", "without PNI", "with PNI, best epoch", "no defence")


def start(name, *argv, folder, **environment):
    environment = ENVIRONMENT | environment
    return Command(BIN / name, *argv, folder=folder, environment=environment)


def run(name, *argv, folder):
    """Runs a command to its end; returns status, standard output and error."""
    process = start(name, *argv, folder=folder)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def interrupt(number, *argv, folder, after, name="train"):
    """Sends a signal when a line of the output has matched; returns as `run` does."""
    process = start(name, *argv, folder=folder)
    guard = threading.Timer(300, process.kill)
    guard.start()
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.match(after, line):
            process.send_signal(number)
            break
    out, err = process.communicate()
    guard.cancel()
    return process.returncode, "".join(lines) + out, err


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def full(folder):
    """An uninterrupted run, and the same command once more."""
    argv = (*WHOLE, *TABLE, "--run_dir=full")
    # This one imports TensorFlow itself, of which nothing must be seen.
    first = subprocess.run(
        [sys.executable, BIN / "train", *argv],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    found = {"first": (first.returncode, first.stdout, first.stderr)}
    before = times(folder / "full")
    found["again"] = run("train", *argv, folder=folder)
    found["unchanged"] = times(folder / "full") == before
    return found


def interrupted(folder):
    """The same run, interrupted in every way."""
    argv = (*WHOLE, "--noevaluate", "--noexport", "--run_dir=broken")
    plain = r"broken/undefended: plain training"
    third = rf"Epoch [3-{EPOCHS}]"
    found = {"kill": interrupt(signal.SIGKILL, *argv, folder=folder, after=third)}
    path = newest(folder / "broken")
    os.truncate(path, path.stat().st_size // 2)
    found["truncated"] = path.name
    found["terminate"] = interrupt(signal.SIGTERM, *argv, folder=folder, after=plain)
    second = rf"Epoch [2-{EPOCHS}]"
    found["ctrl-c"] = interrupt(signal.SIGINT, *argv, folder=folder, after=second)
    found["last"] = run("train", *argv, folder=folder)
    return found


def diverging(folder):
    """The first epoch is harmless, the second is not."""
    argv = ("--noadversarial", "--epochs=3", "--drop_epochs=1", "--drop_factor=1e30")
    return run("train", *SETTINGS, *argv, "--run_dir=diverged", folder=folder)


def mirrored(folder, first):
    """A run on two logical CPUs, and the evaluation of another one on them."""
    devices = ("--strategy=mirrored", "--cpu_devices=2")
    argv = ("--epochs=1", "--noevaluate", "--noexport", "--run_dir=mirrored")
    found = [run("train", *SETTINGS, *devices, *argv, folder=folder)]
    first.result()
    argv = ("full", *EVALUATION, *devices, "--output_dir=two")
    return [*found, run("evaluate", *argv, folder=folder)]


def workers(folder):
    """Two workers, of which one gets a signal, twice, and the same again to the end."""
    argv = (*SETTINGS, *TABLE, "--eval_expectation=1", f"--epochs={EPOCHS}")
    argv += ("--noexport", "--run_dir=workers")
    found = {}
    for number in (signal.SIGTERM, signal.SIGKILL, None):
        cluster = {"worker": list(addresses(2))}
        processes = []
        for index in range(2):
            task = {"type": "worker", "index": index}
            config = json.dumps({"cluster": cluster, "task": task})
            extra = ("--strategy=multi_worker", *argv)
            processes.append(start("train", *extra, folder=folder, TF_CONFIG=config))
        guard = threading.Timer(300, lambda all=processes: [p.kill() for p in all])
        guard.start()
        lines = []
        for line in processes[0].stdout:
            lines.append(line)
            if number is not None and re.match(rf"Epoch [2-{EPOCHS}]", line):
                processes[1].send_signal(number)
                break
        ended = [(*p.communicate(), p.returncode) for p in processes]
        guard.cancel()
        found[number.name if number else "last"] = [
            (status, "".join(lines if i == 0 else ()) + out, err)
            for i, (out, err, status) in enumerate(ended)
        ]
    return found


def attacked(folder, first):
    """An evaluation in one go, and the same one interrupted twice and continued."""
    first.result()
    argv = (
        *("full/model.keras", *GIVEN, "--examples=40", "--batch_size=16", "--draws=2"),
        # The last one is long enough for the signals to come in time.
        *("--attacks=fgsm,pgd(steps=3),square(queries=200)", "--expectation=1"),
        "--towards=next",
    )
    found = {"whole": run("evaluate", *argv, "--output_dir=whole", folder=folder)}
    argv = (*argv, "--output_dir=parts")
    for number, row in ((signal.SIGINT, "PGD-3"), (signal.SIGTERM, "Square")):
        found[number.name] = interrupt(
            number, *argv, folder=folder, after=f"noise on: {row}", name="evaluate"
        )
    found["parts"] = run("evaluate", *argv, folder=folder)
    return found


def after_full(name, *argv):
    return lambda folder, first: (first.result(), run(name, *argv, folder=folder))[1]


EVALUATION = (
    "--examples=30",
    "--attacks=pgd(steps=2)",
    "--expectation=1",
    "--draws=2",
    "--batch_size=16",
)
GIVEN = ("--dataset=digits", "--epsilons=1/10")
EVALUATED = {
    "full": ((), "full/evaluation"),
    "full/saved_model": (GIVEN, "full/saved_model_evaluation"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("end to end")


@pytest.fixture(scope="module")
def jobs(folder):
    """All processes, two at a time, in the order in which the tests ask for them."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = {"full": pool.submit(full, folder)}
        for job in (interrupted, diverging, workers):
            found[job.__name__] = pool.submit(job, folder)
        for model, (argv, _) in EVALUATED.items():
            job = after_full("evaluate", model, *EVALUATION, *argv)
            found[model + " evaluated"] = pool.submit(job, folder, found["full"])
        for job in (mirrored, attacked):
            found[job.__name__] = pool.submit(job, folder, found["full"])
        job = after_full("export", "full", "exported")
        found["exported"] = pool.submit(job, folder, found["full"])
        yield found
        for job in found.values():
            job.cancel()


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_table(text):
    """Returns the first Markdown table of a text: from column and row to the cell."""
    lines = re.search(r"^(\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    header, rule, *rows = table
    assert set("".join(rule)) == {"-"}
    assert header[0] == "accuracy (%)"
    return {
        (column, row[0]): cell
        for row in rows
        for column, cell in zip(header[1:], row[1:], strict=True)
    }


class TestTraining:
    def test_output(self, jobs):
        status, out, err = jobs["full"].result()["first"]
        assert (status, err) == (0, "")
        # What is printed is ours and Keras', line by line.
        expected = (
            r"",
            r"full(/undefended)?: (adversarial|plain) training of mnist_cnn \(.+\) on "
            rf"160 images of digits, {EPOCHS} epochs, from the start",
            rf"Epoch \d/{EPOCHS}",
            r"8/8 - \d+s - .*clean_accuracy: .*val_clean_accuracy: .*",
            r"\| .* \|",
            r"40 images, seed 0\. .*",
            r"full/\w+(\.\w+)? +\w.*",
        )
        for line in out.splitlines():
            assert any(re.fullmatch(each, line) for each in expected), line
        assert len(re.findall("^Epoch", out, re.M)) == 2 * EPOCHS

    def test_files(self, jobs, folder):
        _, out, _ = jobs["full"].result()["first"]
        for name in (
            "flags.cfg",
            "history.csv",
            "model.keras",
            "best.keras",
            "evaluation.json",
            "per_example.csv",
            "report.md",
            "accuracies.png",
            "adversarial_examples.png",
            "alphas.png",
            "saved_model/saved_model.pb",
        ):
            assert (folder / "full" / name).stat().st_size > 100, name
        assert newest(folder / "full").name.startswith(f"epoch-{EPOCHS:05d}-step-0000")
        assert list((folder / "full" / "tensorboard").rglob("events.out.*"))
        assert not list((folder / "full").rglob("*unfinished*"))
        # The inventory at the end names nothing that is not there.
        named = re.findall(r"^(full/\S+)  ", out, re.M)
        assert len(named) > 8
        assert all((folder / name).exists() for name in named)

    def test_table_is_that_of_the_files(self, jobs, folder):
        _, out, _ = jobs["full"].result()["first"]
        content = json.loads((folder / "full" / "evaluation.json").read_text())
        table = read_table(out)
        assert read_table((folder / "full" / "report.md").read_text()) == table
        assert set(table) == {(c, r) for c in COLUMNS for r in ROWS}
        per_example = read_csv(folder / "full" / "per_example.csv")
        for (column, row), cell in table.items():
            (found,) = (r for r in content["columns"][column] if r["scenario"] == row)
            numbers = [float(number) for number in cell.split("±")]
            expected = [100 * found["accuracy_mean"], 100 * found["accuracy_std"]]
            assert numbers == pytest.approx(expected[: len(numbers)], abs=0.005)
            random = column in ("with PNI", "with PNI, best epoch")
            assert (len(numbers), found["draws"]) == ((2, 3) if random else (1, 1))
            images = [
                image
                for image in per_example
                if (image["network"], image["scenario"]) == (column, row)
            ]
            correct = [int(r["correct_draws"]) / int(r["draws"]) for r in images]
            assert len(images) == found["images"] == 40
            assert np.mean(correct) == pytest.approx(found["accuracy_mean"])

    def test_report_shows_its_figures(self, jobs, folder):
        jobs["full"].result()
        text = (folder / "full" / "report.md").read_text()
        linked = re.findall(r"\]\((.+?)\)", text)
        assert {"alphas.png", "accuracies.png", "adversarial_examples.png"} < set(
            linked
        )
        assert all((folder / "full" / name).exists() for name in linked)

    def test_history(self, jobs, folder):
        jobs["full"].result()
        rows = read_csv(folder / "full" / "history.csv")
        assert [int(row["epoch"]) for row in rows] == list(range(1, EPOCHS + 1))
        rates = [float(row["learning_rate"]) for row in rows]
        assert (rates[0], rates[-1]) == pytest.approx((0.02, 0.002))
        network = load_model(folder / "full" / "model.keras")
        for name, alpha in alphas(network).items():
            found = float(rows[-1][f"alpha/{name}"])
            assert found == pytest.approx(abs(float(alpha)))
            assert found != 0.25  # It was trained.
        for name in ("clean", "adversarial"):
            for kind in ("loss", "accuracy"):
                values = [float(row[f"val_{name}_{kind}"]) for row in rows]
                assert np.isfinite(values).all()

    def test_trained_network_is_that_of_the_table(self, jobs, folder):
        jobs["full"].result()
        test = load_dataset("digits", test_examples=40).test
        content = json.loads((folder / "full" / "evaluation.json").read_text())
        for column, name in (
            ("without PNI", "full/model.keras"),
            ("no defence", "full/undefended/model.keras"),
        ):
            network = strip_noise(load_model(folder / name))
            predictions = network(test.images_float()).numpy().argmax(-1)
            accuracy = content["columns"][column][0]["accuracy_mean"]
            assert accuracy == np.mean(predictions == test.labels)

    def test_the_same_command_again_does_nothing(self, jobs):
        found = jobs["full"].result()
        status, out, err = found["again"]
        assert (status, err) == (0, "")
        assert out == "full is finished: see full/report.md\n"
        assert found["unchanged"]


def variables(path):
    """Returns the names and values of all variables, generators included."""
    found = load_model(path).variables
    # Keras numbers generators by when they were made.
    names = [re.sub(r"seed_generator_\d+", "seed_generator", v.path) for v in found]
    return list(zip(names, [v.numpy() for v in found], strict=True))


def newest(run_dir):
    """Returns the newest checkpoint of a run."""
    return max((run_dir / "checkpoints").iterdir())


def arrays(path):
    """Returns the names and values of all variables of a checkpoint."""
    with np.load(path, allow_pickle=False) as file:
        return [(name, file[name]) for name in file.files if name != "state"]


def assert_equal(found, expected):
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (name, one), (_, other) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


class TestResuming:
    def test_signals(self, jobs):
        found = jobs["interrupted"].result()
        for name, status in (("kill", -9), ("terminate", 143), ("ctrl-c", 130)):
            code, _, err = found[name]
            assert code == status, err
            assert "Traceback" not in err
            said = "Interrupted. Run the same command again to continue." in err
            assert said is (name != "kill")

    def test_goes_on_where_it_stopped(self, jobs):
        found = jobs["interrupted"].result()
        starts = [
            re.findall(r"from (the start|epoch \d)", found[name][1])
            for name in ("kill", "terminate", "ctrl-c", "last")
        ]
        assert starts[0] == ["the start"]
        # The newest checkpoint was damaged, and the one before it was taken.
        epoch = int(re.search(r"\d+", found["truncated"]).group())
        assert epoch >= 2
        assert starts[1] == [f"epoch {epoch}", "the start"]
        # From here on it is the undefended network that is trained.
        assert starts[2] == ["the start"]
        (last,) = starts[3]
        assert last > "epoch 1"

    def test_a_damaged_checkpoint_is_reported(self, jobs):
        found = jobs["interrupted"].result()
        _, _, err = found["terminate"]
        assert f"damaged checkpoint: broken/checkpoints/{found['truncated']}" in err

    @pytest.mark.parametrize("network", ["", "undefended"])
    def test_ends_in_the_same_weights(self, network, jobs, folder):
        jobs["full"].result()
        status, _, err = jobs["interrupted"].result()["last"]
        assert (status, err) == (0, "")
        whole, broken = folder / "full" / network, folder / "broken" / network
        expected = variables(whole / "model.keras")
        noise = [n for n, _ in expected if re.search("alpha|seed_generator_state", n)]
        assert len(noise) == (0 if network else 2 * 2 * 4)
        assert_equal(variables(broken / "model.keras"), expected)
        # The optimizer and the generator of the attack too.
        checkpoint = arrays(newest(whole))
        assert len(checkpoint) > len(expected) + 8
        assert_equal(arrays(newest(broken)), checkpoint)

    @pytest.mark.parametrize("network", ["", "undefended"])
    def test_ends_in_the_same_history(self, network, jobs, folder):
        jobs["full"].result()
        jobs["interrupted"].result()
        expected, found = (
            read_csv(folder / run_dir / network / "history.csv")
            for run_dir in ("full", "broken")
        )
        for rows in (expected, found):
            assert len(rows) == EPOCHS
            for row in rows:
                del row["seconds"]
        assert found == expected

    def test_ends_in_the_same_best_epoch(self, jobs, folder):
        jobs["full"].result()
        jobs["interrupted"].result()
        found = variables(folder / "broken" / "best.keras")
        assert_equal(found, variables(folder / "full" / "best.keras"))


class TestTrouble:
    def test_a_loss_that_is_not_finite_stops_the_run(self, jobs, folder):
        status, out, err = jobs["diverging"].result()
        assert status == 2
        assert re.fullmatch(
            r"error: NaN or Inf loss .* The last good checkpoint is in "
            r"diverged/checkpoints\. .*--learning_rate.*\n",
            err,
        )
        assert "Epoch 2/3" in out
        run_dir = folder / "diverged"
        assert newest(run_dir).name.startswith("epoch-00001-step-0000000-")
        for name, value in arrays(newest(run_dir)):
            assert np.isfinite(value).all(), name
        assert not (run_dir / "model.keras").exists()


class TestDevices:
    def test_an_evaluation_on_two_devices_is_that_of_one(self, jobs, folder):
        for status, _, err in jobs["mirrored"].result():
            assert (status, err) == (0, "")
        assert "2 replicas on 1 worker(s)" in jobs["mirrored"].result()[0][1]
        jobs["full evaluated"].result()
        one, two = (
            (folder / name / "per_example.csv").read_text()
            for name in ("full/evaluation", "two")
        )
        assert two == one
        assert two.count("\n") == 1 + 2 * 2 * 30

    def test_two_workers_stop_together_and_go_on(self, jobs, folder):
        found = jobs["workers"].result()
        (chief, worker) = found["SIGTERM"]  # One of them got the signal.
        assert (chief[0], worker[0]) == (143, 143)
        assert "Run the same command again to continue" in chief[2]
        (chief, worker) = found["SIGKILL"]
        assert (chief[0], worker[0]) == (75, -signal.SIGKILL)
        # TensorFlow reports the broken connection before.
        assert re.search(r"^error: worker 0 lost its peers: .*\n\Z", chief[2], re.M)
        for status, _, err in found["last"]:
            assert (status, err) == (0, "")
        (chief, worker) = found["last"]
        assert "2 replicas on 2 worker(s), from epoch" in chief[1]
        assert "evaluation.json" in chief[1]
        # The others write aside.
        assert worker[1] == ""
        assert "from epoch" in (folder / "workers" / "workers" / "1.log").read_text()

    def test_what_two_workers_leave(self, jobs, folder):
        jobs["workers"].result()
        run_dir = folder / "workers"
        epochs = [row["epoch"] for row in read_csv(run_dir / "history.csv")]
        assert epochs == [str(i + 1) for i in range(EPOCHS)]
        content = json.loads((run_dir / "evaluation.json").read_text())
        assert set(content["columns"]) == set(COLUMNS) - {"no defence"}
        assert not list(run_dir.rglob("*unfinished*"))


class TestEvaluate:
    @pytest.mark.parametrize("model", EVALUATED)
    def test_files_and_output(self, model, jobs, folder):
        status, out, err = jobs[f"{model} evaluated"].result()
        assert (status, err) == (0, "")
        output = folder / EVALUATED[model][1]
        assert sorted(os.listdir(output)) == [
            ".lock",
            "accuracies.png",
            "evaluation.json",
            "examples",
            "per_example.csv",
            "report.md",
        ]
        assert f"The results are in {EVALUATED[model][1]}\n" in out
        assert "warning: PGD-2: the target is random and the attack takes no" in out
        content = json.loads((output / "evaluation.json").read_text())
        assert (content["model"], content["dataset"]) == (model, "digits")
        table = read_table(out)
        assert read_table((output / "report.md").read_text()) == table
        assert set(table) == {
            (column, row)
            for column in ("noise on", "noise off")
            for row in ("clean", "PGD-2")
        }
        for (column, row), cell in table.items():
            (found,) = (r for r in content["columns"][column] if r["scenario"] == row)
            mean = 100 * found["accuracy_mean"]
            assert float(cell.split("±")[0]) == pytest.approx(mean, abs=0.005)
            assert found["images"] == 30
            if row == "PGD-2":  # The epsilon of a run directory is that of the run.
                assert "epsilon=0.1," in found["attack"]

    def test_the_source_of_a_model_changes_nothing(self, jobs, folder):
        found = []
        for model, (_, output) in EVALUATED.items():
            jobs[f"{model} evaluated"].result()
            found.append(read_csv(folder / output / "per_example.csv"))
        for each in found[1:]:
            assert len(each) == len(found[0]) == 2 * 2 * 30
            assert each == found[0]  # The draws of the noise agree, too.

    def test_clean_images_are_those_of_the_run(self, jobs, folder):
        jobs["full evaluated"].result()
        predictions = []
        for path, column in (
            ("full/per_example.csv", "without PNI"),
            ("full/evaluation/per_example.csv", "noise off"),
        ):
            rows = read_csv(folder / path)
            predictions.append(
                [
                    (row["label"], row["predictions"])
                    for row in rows
                    if (row["network"], row["scenario"]) == (column, "clean")
                ][:30]
            )
        assert predictions[0] == predictions[1]


class TestAttacks:
    def test_an_interruption_loses_nothing_and_changes_nothing(self, jobs, folder):
        found = jobs["attacked"].result()
        for name, status in (("SIGINT", 130), ("SIGTERM", 143)):
            assert found[name][0] == status
            assert (
                found[name][2]
                == "\nInterrupted. Run the same command again to continue.\n"
            )
        for name in ("whole", "parts"):
            assert (found[name][0], found[name][2]) == (0, "")
        # What had been finished was not done again.
        for name, row in (("SIGTERM", "noise on: FGSM"), ("parts", "noise on: PGD-3")):
            assert f"{row} towards next (" in found["SIGINT"][1]
            assert f"{row} towards next (" in found["whole"][1]
            assert f"{row} towards next (" not in found[name][1]
        whole = (folder / "whole" / "per_example.csv").read_text()
        assert len(whole.splitlines()) == 1 + 2 * 40 * 5
        assert (folder / "parts" / "per_example.csv").read_text() == whole

    def test_saved_images_are_those_that_were_scored(self, jobs, folder):
        jobs["attacked"].result()
        target = load_target(folder / "full" / "model.keras").noise_free
        images = load_dataset("digits", test_examples=40).test.images_float()
        rows = read_csv(folder / "whole" / "per_example.csv")
        for name, label in (("pgd-3_towards_next", "PGD-3 towards next"),):
            path = folder / "whole" / "examples" / "noise_off" / f"{name}.npz"
            with np.load(path) as file:
                adversarial, aims = file["images"], file["aims"]
            assert np.abs(adversarial - images).max() <= 0.1 + 1e-6
            found = [
                row
                for row in rows
                if (row["network"], row["scenario"]) == ("noise off", label)
            ]
            predictions = target.predict(adversarial)
            assert [int(row["predictions"]) for row in found] == predictions.tolist()
            assert (aims == [(int(row["label"]) + 1) % 10 for row in found]).all()


class TestExport:
    def test_loads_and_answers_as_the_network_does(self, jobs, folder):
        status, out, err = jobs["exported"].result()
        assert (status, err) == (0, "")
        assert out == "Exported full/model.keras to exported\n"
        network = strip_noise(load_model(folder / "full" / "model.keras"))
        images = load_dataset("digits", test_examples=9).test.images_float()
        expected = network(images, training=False)
        for name in ("exported", "full/saved_model"):
            loaded = tf.saved_model.load(folder / name)
            clean = loaded.serve_clean(images)
            np.testing.assert_allclose(clean, expected, rtol=1e-4, atol=1e-5)
            first, second = loaded.serve(images), loaded.serve(images)
            assert np.abs(first - second).max() > 1e-3
