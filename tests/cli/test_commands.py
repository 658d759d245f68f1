import csv
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from absl.flags import FLAGS
from absl.testing import flagsaver
from keras import layers

from pni_tf import data, inject_pixeldp, models
from pni_tf.cli import app, evaluate, export, flags, train
from pni_tf.distribution.cluster import WorkerLost
from pni_tf.settings.base import groups_of
from pni_tf.settings.evaluation import EvaluationRun
from pni_tf.settings.training import TrainingRun
from pni_tf.training import assembly

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.cfg"))
RUNS = {train: TrainingRun, evaluate: EvaluationRun}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test runs in an empty folder; what it writes there is seen."""
    path = tmp_path / "folder"
    path.mkdir()
    monkeypatch.chdir(path)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return path


def assert_refused(result, *words):
    """One clear line on standard error, and status 2."""
    assert result.status == 2, result
    first, *rest = result.err.splitlines()
    assert first.startswith("error: ")
    # Where the command line itself is wrong, the next line says where help is.
    assert all(re.fullmatch(r"See \w+ --helpshort", line) for line in rest), result.err
    for word in words:
        assert word in first
    assert result.out == ""


def parsed(*argv):
    """Parses a command line of `bin/train`, and returns its settings."""
    with flagsaver.flagsaver():
        flags.define(TrainingRun)
        FLAGS(flags.expand_flagfiles(["command", *map(str, argv)]))
        return flags.read(TrainingRun)


def value_of(settings, name):
    """Returns the value of a setting, whatever its group."""
    (found,) = (
        getattr(group, name) for group in groups_of(settings) if hasattr(group, name)
    )
    return found


STEPS = (0, 10, 20, 30, 39)


class TestTrainFlags:
    @pytest.mark.parametrize(
        ("argv", "words"),
        [
            # One of each kind; tests/properties/ has all flags and odd values.
            (["--no_such_flag=1"], ["no_such_flag"]),
            (["digits"], ["expected 0 arguments", "digits"]),
            (["--", "--epochs=2"], ["expected 0 arguments", "--epochs=2"]),
            (["--pni=q"], ["--pni=q", "one of: w, a-a, a-b, i"]),
            (["--epochs=2147483648"], ["--epochs=2147483648", "to 2147483647"]),
            (["--run_dir=a "], ["--run_dir=a ", "empty"]),
            (["--run_dir=a\n--epochs=1"], ["'--run_dir=a\\n--epochs=1'", "line break"]),
            (["--epsilon=1/0"], ["--epsilon=1/0", "such as 8/255"]),
            (["--eval_steps=7,,40"], ["--eval_steps=7,,40", "such as 7,40"]),
        ],
        ids=lambda value: " ".join(value) if value and value[0][:1] == "-" else "",
    )
    def test_bad_flags_are_refused(self, argv, words, command, folder):
        assert_refused(command(train, *argv), *words)
        assert not os.listdir(folder)

    @pytest.mark.parametrize(
        ("argv", "name", "value"),
        [
            (["--epsilon=8/255"], "epsilon", 8 / 255),
            (["--epsilon=0"], "epsilon", 0),
            (["--epsilon", "0.1"], "epsilon", 0.1),
            (["--weight_decay=2e-4"], "weight_decay", 2e-4),
            (["--width=3/2"], "width", 1.5),
            (["--eval_steps=7, 40,100"], "eval_steps", (7, 40, 100)),
            (["--noadversarial"], "adversarial", False),
            (["--adversarial=false"], "adversarial", False),
            (["--epochs=2", "--epochs=3"], "epochs", 3),
            ([], "run_dir", None),
        ],
    )
    def test_good_flags(self, argv, name, value):
        assert value_of(parsed(*argv), name) == value

    @pytest.mark.parametrize(
        ("argv", "rates"),
        [
            # Epochs of 10 steps; the rates of the steps 0, 10, 20, 30 and 39.
            (["--schedule=constant"], [0.2] * 5),
            (["--drop_epochs=1,3"], [0.2, 0.02, 0.02, 0.002, 0.002]),
            (
                ["--schedule=cosine"],
                [0.1 * (1 + math.cos(math.pi * step / 40)) for step in STEPS],
            ),
            (
                ["--schedule=cosine", "--warmup_epochs=2"],
                [0, 0.1, 0.2, 0.1, 0.1 * (1 + math.cos(math.pi * 19 / 20))],
            ),
        ],
    )
    def test_schedules(self, argv, rates):
        settings = parsed(*argv, "--learning_rate=0.2", "--epochs=4")
        optimizer = assembly.make_optimizer(settings.recipe.optimisation, 10)
        optimizer.build([keras.Variable(0.0)])
        found = []
        for step in STEPS:
            optimizer.iterations.assign(step)
            found.append(float(optimizer.learning_rate))
        assert found == pytest.approx(rates, abs=1e-6)

    def test_default_run_directory(self, command, folder, stop_before_tensorflow):
        command(train, "--model=mnist_cnn", "--pni=a-a")
        assert (folder / "runs" / "digits_mnist_cnn_a-a" / "flags.cfg").exists()

    @pytest.mark.parametrize(
        ("argv", "words"),
        [
            (["--dataset=imagenet"], [*data.DATASETS, "imagenet"]),
            (["--model=resnet21"], [*models.MODELS, "resnet21"]),
            (["--width=0.001"], ["width", "0.001"]),
            (["--train_examples=5000"], ["train_examples", "5000", "1437"]),
            (["--test_examples=361"], ["test_examples", "361", "360"]),
            (["--validation_split=1e-9"], ["validation_split"]),
            (
                ["--dataset=mnist", "--data_dir=empty"],
                ["mnist", "--download", "--data_dir", "TFDS_DATA_DIR", "tfds build"],
            ),
        ],
    )
    def test_what_only_the_library_can_refuse(self, argv, words, command, folder):
        result = command(train, "--run_dir=run", *argv)
        assert_refused(result, *words)
        # The right command is not held up by what the wrong one has left behind.
        again = command(train, "--run_dir=run", "--dataset=svhn", "--data_dir=empty")
        assert_refused(again, "svhn_cropped")


class TestRunDirectory:
    def test_other_settings_are_refused_by_name(
        self, command, folder, stop_before_tensorflow
    ):
        first = ["--run_dir=run", "--epochs=3", "--train_examples=50", "--epsilon=0.1"]
        assert_refused(command(train, *first), "stopped here")
        before = (folder / "run" / "flags.cfg").read_text()
        (folder / "run" / "checkpoints").mkdir()
        second = [
            "--run_dir=run",
            "--epochs=4",
            "--test_examples=20",
            "--noadversarial",
            "--epsilon=1/10",
        ]
        result = command(train, *second)
        assert result.status == 2
        assert result.err.startswith("error: --run_dir=run belongs to a run with other")
        found = set(re.findall(r"--(\w+)", result.err)) - {"run_dir"}
        assert found == {
            "epochs",
            "train_examples",
            "test_examples",
            "adversarial",
            "noadversarial",
        }
        for line in (
            "--epochs=3 in the run directory, --epochs=4 now",
            "no --test_examples in the run directory, --test_examples=20 now",
            "--train_examples=50 in the run directory, no --train_examples now",
            "--adversarial in the run directory, --noadversarial now",
        ):
            assert f"\n  {line}\n" in result.err
        assert (folder / "run" / "flags.cfg").read_text() == before
        assert_refused(command(train, *first), "stopped here")

    def test_a_run_of_an_earlier_version_goes_on(
        self, command, folder, stop_before_tensorflow
    ):
        """Its file lacks a flag that has been added since, and had no effect."""
        assert_refused(command(train, "--run_dir=run"), "stopped here")
        (folder / "run" / "checkpoints").mkdir()
        path = folder / "run" / "flags.cfg"
        path.write_text(path.read_text().replace("--noise=pni\n", ""))
        assert_refused(command(train, "--run_dir=run"), "stopped here")
        path.write_text(path.read_text().replace("--noise=pni\n", ""))
        result = command(train, "--run_dir=run", "--noise=rse")
        assert "no --noise in the run directory, --noise=rse now" in result.err

    def test_where_things_lie_may_differ(self, command, folder, stop_before_tensorflow):
        command(train, "--run_dir=run", "--data_dir=a")
        (folder / "run" / "checkpoints").mkdir()
        argv = [f"--run_dir={folder}/run", "--data_dir=b", "--download"]
        assert_refused(command(train, *argv), "stopped here")

    @pytest.mark.parametrize("leftover", ["thesis.txt", "model.keras"])
    def test_a_folder_of_something_else_is_left_alone(self, leftover, command, folder):
        (folder / "run").mkdir()
        (folder / "run" / leftover).write_text("words")
        assert_refused(command(train, "--run_dir=run"), "--run_dir=run", "not empty")
        assert os.listdir(folder / "run") == [leftover]

    def test_an_empty_folder_is_taken(self, command, folder, stop_before_tensorflow):
        (folder / "run").mkdir()
        assert_refused(command(train, "--run_dir=run"), "stopped here")
        assert sorted(os.listdir(folder / "run")) == [".lock", "flags.cfg"]

    @pytest.mark.parametrize(
        ("run_dir", "words"),
        [
            ("file", ["--run_dir=file", "is a file"]),
            ("file/run", ["cannot write", "--run_dir=file/run"]),
            ("/proc/pni_tf", ["cannot write", "--run_dir=/proc/pni_tf"]),
        ],
    )
    def test_unwritable(self, run_dir, words, command, folder):
        (folder / "file").write_text("words")
        assert_refused(command(train, f"--run_dir={run_dir}"), *words)
        assert (folder / "file").read_text() == "words"

    def test_a_folder_in_use_is_refused(self, command, folder, stop_before_tensorflow):
        command(train, "--run_dir=run")
        code = (
            "import fcntl, os, sys\n"
            "fcntl.flock(os.open('run/.lock', os.O_RDWR), fcntl.LOCK_EX)\n"
            "print('locked', flush=True)\n"
            "sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
        ) as other:
            other.stdout.readline()
            argv = ["--run_dir=run", "--seed=9"]
            assert_refused(command(train, *argv), "--run_dir=run is in use")
            other.kill()  # A process that was killed holds nothing.
        assert "--seed=9" not in (folder / "run" / "flags.cfg").read_text()
        assert_refused(command(train, *argv), "stopped here")

    def test_a_finished_run_says_so(self, command, folder, stop_before_tensorflow):
        command(train, "--run_dir=run")
        (folder / "run" / "finished").touch()
        result = command(train, "--run_dir=run")
        assert (result.status, result.err) == (0, "")
        assert result.out.startswith("run is finished")

    def test_flags_are_not_lost_to_an_interruption(
        self, command, folder, stop_before_tensorflow, monkeypatch
    ):
        command(train, "--run_dir=run")
        before = (folder / "run" / "flags.cfg").read_text()

        def full(self, text, *args, **kwargs):
            with self.open("w") as file:
                file.write(text[:9])
            raise OSError("No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
        assert_refused(command(train, "--run_dir=run"), "No space left")
        assert (folder / "run" / "flags.cfg").read_text() == before

    @pytest.mark.parametrize(
        "argv",
        [
            [],
            ["--noadversarial", "--notensorboard", "--compare_undefended"],
            ["--epsilon=8/255", "--attack_step_size=2/255", "--weight_decay=1e-300"],
            ["--eval_steps=1,2", "--drop_epochs=3", "--eval_examples=7", "--seed=9"],
            ["--run_dir=a folder/with=sign", "--data_dir=b c", "--pni=w+a-b"],
            [f"--flagfile={ROOT / 'configs' / 'pni_w.cfg'}", "--width=1.5"],
        ],
    )
    def test_flags_cfg_repeats_the_run(self, argv, folder):
        settings = parsed(*argv)
        text = flags.flagfile(settings)
        (folder / "flags.cfg").write_text(text)
        assert parsed("--flagfile=flags.cfg") == settings
        assert flags.differences(text, settings) == []
        longer = parsed("--flagfile=flags.cfg", "--epochs=1234")
        assert len(flags.differences(text, longer)) == 1

    def test_a_flags_cfg_that_is_no_text(self, command, folder):
        (folder / "run").mkdir()
        (folder / "run" / "flags.cfg").write_bytes(b"--epochs=\xff")
        assert_refused(command(train, "--run_dir=run"), "run/flags.cfg is damaged")
        assert_refused(command(evaluate, "run"), "run/flags.cfg is damaged")

    def test_flags_cfg_is_read_without_the_flags_of_train(self, folder):
        settings = parsed("--dataset=svhn", "--epsilon=0.1", "--run_dir=a=b")
        (folder / "flags.cfg").write_text(flags.flagfile(settings))
        values = flags.values_in(folder / "flags.cfg")
        assert (values["dataset"], values["epsilon"]) == ("svhn", "0.1")
        assert values["run_dir"] == "a=b"
        assert flags.values_in(folder / "none.cfg") == {}


class TestFlagfiles:
    @pytest.fixture
    def nested(self, tmp_path):
        """A flagfile that includes a neighbour, which includes one in a subfolder."""
        base = tmp_path / "configs with space"
        (base / "deep").mkdir(parents=True)
        (base / "outer.cfg").write_text(
            "# comment\n// comment\n\n--flagfile=middle.cfg\n  --epochs=11\n"
        )
        (base / "middle.cfg").write_text("--flagfile=deep/inner.cfg\n--seed=12\n")
        (base / "deep" / "inner.cfg").write_text(
            "--epochs=1\n--seed=1\n--batch_size=13\n-noadversarial\n"
        )
        return base / "outer.cfg"

    @pytest.mark.parametrize("form", ["=", " ", "relative", "single dash"])
    def test_nested_files_from_elsewhere(self, form, nested, folder):
        argv = {
            "=": [f"--flagfile={nested}"],
            " ": ["--flagfile", str(nested)],
            "relative": [f"--flagfile={os.path.relpath(nested)}"],
            "single dash": [f"-flagfile={nested}"],
        }[form]
        recipe = parsed(*argv, "--learning_rate=0.5").recipe
        assert (recipe.optimisation.epochs, recipe.optimisation.batch_size) == (11, 13)
        assert (recipe.computation.seed, recipe.optimisation.learning_rate) == (12, 0.5)
        assert not recipe.adversarial.adversarial

    @pytest.mark.parametrize(("order", "epochs"), [(1, 11), (-1, 2)])
    def test_the_last_flag_wins(self, order, epochs, nested):
        argv = ["--epochs=2", f"--flagfile={nested}"][::order]
        assert parsed(*argv).recipe.optimisation.epochs == epochs

    def test_a_file_may_be_included_twice(self, folder):
        (folder / "base.cfg").write_text("--epochs=5\n")
        (folder / "a.cfg").write_text("--flagfile=base.cfg\n--flagfile=base.cfg\n")
        settings = parsed("--flagfile=a.cfg", "--flagfile=base.cfg")
        assert settings.recipe.optimisation.epochs == 5

    def test_a_value_after_a_double_dash_is_no_flagfile(self):
        argv = ["train", "--", "--flagfile=missing.cfg"]
        assert flags.expand_flagfiles(argv) == argv

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            ({}, ["cannot read the flagfile", "a.cfg", "digits_pni_w.cfg"]),
            ({"a.cfg": None}, ["cannot read the flagfile", "a.cfg"]),
            ({"a.cfg": b"\xff\xfe\x00"}, ["cannot read the flagfile", "a.cfg"]),
            ({"a.cfg": b"--flagfile=a.cfg"}, ["a.cfg includes itself"]),
            (
                {"a.cfg": b"--flagfile=b.cfg", "b.cfg": b"--flagfile=./a.cfg"},
                ["a.cfg includes itself"],
            ),
            ({"a.cfg": b"--flagfile=b.cfg"}, ["cannot read the flagfile", "b.cfg"]),
            ({"a.cfg": b"--flagfile="}, ["cannot read the flagfile"]),
            ({"a.cfg": b"--no_such_flag=1"}, ["no_such_flag"]),
            ({"a.cfg": b"epsilon: 0.1"}, ["expected 0 arguments"]),
            ({"a.cfg": b"--epochs=0"}, ["--epochs=0"]),
            ({"a.cfg": b"--flagfile=a\x00b"}, ["cannot read the flagfile", "null"]),
            ({"a.cfg": b"--flagfile=~x-y/b"}, ["cannot read the", "~x-y/b"]),
            ({"a.cfg": b"--flagfile\na.cfg"}, ["cannot read the flagfile"]),
        ],
    )
    def test_bad_files(self, files, words, command, folder):
        for name, content in files.items():
            if content is None:
                (folder / name).mkdir()
            else:
                (folder / name).write_bytes(content)
        result = command(train, "--flagfile=a.cfg")
        assert_refused(result, *words)
        assert sorted(os.listdir(folder)) == sorted(files)

    def test_marks_and_line_ends_of_other_systems(self, folder):
        (folder / "a.cfg").write_bytes(b"\xef\xbb\xbf--epochs=7\r\n--seed=8\r\n")
        recipe = parsed("--flagfile=a.cfg").recipe
        assert (recipe.optimisation.epochs, recipe.computation.seed) == (7, 8)

    @pytest.mark.parametrize("argv", [["--flagfile="], ["--flagfile"]])
    def test_no_file(self, argv, command):
        assert_refused(command(train, *argv), "cannot read the flagfile")


class TestConfigs:
    @pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
    def test_config(self, config):
        """It is valid, known by its name from anywhere, and names what exists."""
        settings = parsed(f"--flagfile={config}")
        for name in (f"configs/{config.name}", config.name):
            assert parsed(f"--flagfile={name}") == settings
        assert settings.data.dataset in data.DATASETS
        assert settings.recipe.network.model in models.MODELS

    def test_a_neighbour_comes_before_a_config_of_the_same_name(self, folder):
        (folder / "pni_w.cfg").write_text("--epochs=3\n")
        assert parsed("--flagfile=pni_w.cfg").recipe.optimisation.epochs == 3


class TestHelp:
    @pytest.mark.parametrize("module", [train, evaluate])
    @pytest.mark.parametrize("flag", ["--helpshort", "--help", "-h"])
    def test_every_flag_with_its_default(self, module, flag, command):
        result = command(module, flag, "--no_such_flag")
        assert (result.status, result.err) == (0, "")
        with flagsaver.flagsaver():
            before = set(FLAGS)
            flags.define(RUNS[module])
            defined = [FLAGS[name] for name in set(FLAGS) - before]
        assert len(defined) > 10
        entries = dict(
            re.findall(
                r"^  --(?:\[no\])?(\w+): (.*?)(?=^  --|^\S|\Z)", result.out, re.M | re.S
            )
        )
        assert set(entries) == {flag.name for flag in defined}
        for each in defined:
            text = " ".join(entries[each.name].split())
            assert " ".join(each.help.split()) in text
            if each.default is None:
                assert "(default" not in text
            else:
                assert f"(default: {each.default_as_str})" in text

    def test_groups_in_order(self, command):
        lines = command(train, "--helpshort").out.splitlines()
        headings = [group.heading for group in groups_of(TrainingRun())]
        assert [line[:-1] for line in lines if line.rstrip(":") in headings] == headings

    def test_export(self, command):
        result = command(export, "--helpshort")
        assert (result.status, result.err) == (0, "")
        assert "bin/export MODEL DIRECTORY" in result.out

    @pytest.mark.parametrize("module", [train, evaluate, export])
    def test_usage_opens_the_help(self, module, command):
        out = command(module, "--helpshort").out
        assert out.startswith(module.USAGE)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Models and what is none, by name."""
    path = tmp_path_factory.mktemp("models")
    options = {"good.keras": (8, 8, 1), "other_size.keras": (6, 6, 1)}
    for name, shape in options.items():
        stack = [keras.Input(shape), layers.Flatten(), layers.Dense(10)]
        keras.Sequential(stack).save(path / name)
    stack.append(layers.Softmax())
    keras.Sequential(stack).save(path / "probabilities.keras")
    stack = [keras.Input((8, 8, 1)), layers.Conv2D(4, 3), layers.Flatten()]
    network = inject_pixeldp(keras.Sequential([*stack, layers.Dense(10)]))
    network.save(path / "pixeldp.keras")
    whole = (path / "good.keras").read_bytes()
    (path / "truncated.keras").write_bytes(whole[: len(whole) // 2])
    (path / "text.keras").write_text("words")
    (path / "empty").mkdir()
    (path / "garbled").mkdir()
    (path / "garbled" / "saved_model.pb").write_bytes(b"garbage")
    return path


ON_DIGITS = ["--dataset=digits", "--epsilons=0.1"]


class TestEvaluateFlags:
    @pytest.mark.parametrize(
        ("argv", "words"),
        [
            ([], ["expected 1 argument", "[]"]),
            (ON_DIGITS, ["expected 1 argument"]),
            (["a", "b", *ON_DIGITS], ["expected 1 argument", "'a', 'b'"]),
            (["a", "--no_such_flag"], ["no_such_flag"]),
            (["good.keras", "--epsilons=0.1"], ["--dataset=NAME"]),
            (
                ["good.keras", "--dataset=digits", "--epsilons=0.1,nan"],
                ["--epsilons=0.1,nan", "such as 8/255"],
            ),
            (["good.keras", "--dataset=digits"], ["--epsilons="]),
            *(
                (["good.keras", *ON_DIGITS, f"--attacks={value}"], words)
                for value, words in (
                    ("bim", ["'bim'", "fgsm, pgd"]),
                    ("fgsm,,cw", ["''", "such as fgsm"]),
                    ("pgd(steps=7", ["'pgd(steps=7'"]),
                    ("pgd(7)", ["'7' in 'pgd(7)'"]),
                    ("pgd(step=7)", ["pgd(step=7)", "no setting step", "step_size"]),
                    ("pgd(steps=-1)", ["pgd(steps=-1)", "`steps`", "-1"]),
                    ("pgd(expectation=0)", ["`expectation`", "expectation=0"]),
                    ("transfer(expectation=2)", ["no setting expectation"]),
                    ("pgd(steps=many)", ["pgd(steps=many)", "'many'"]),
                    ("pgd(restarts=2,random_start=false)", ["random_start"]),
                    ("square(norm=l2)", ["square(norm=l2)", "linf"]),
                    ("cw(epsilon=0.1)", ["cw(epsilon=0.1)", "no setting epsilon"]),
                    ("pgd(channels=1)", ["pgd(channels=1)", "no setting channels"]),
                    ("pgd(steps=1,steps=2)", ["steps is given twice", "pgd"]),
                    ("pgd(epsilon=nan)", ["'nan'"]),
                )
            ),
            (["good.keras", *ON_DIGITS, "--attacks=transfer"], ["--transfer_from="]),
            (["good.keras", *ON_DIGITS, "--suite=weak"], ["--suite=weak", "strong"]),
            (["good.keras", *ON_DIGITS, "--curves=time"], ["--curves=time", "draws"]),
            (["good.keras", *ON_DIGITS, "--twin=missing.keras"], ["missing.keras"]),
            (
                [
                    *("good.keras", *ON_DIGITS, "--attacks=substitute"),
                    "--substitute_images=360",
                ],
                ["--substitute_images=360", "none of the 360"],
            ),
            (["good.keras", *ON_DIGITS, "--certify"], ["inject_pixeldp", "0 noise"]),
            (["good.keras", *ON_DIGITS, "--ensemble=2"], ["needs a random network"]),
            (["good.keras", *ON_DIGITS, "--columns=both"], ["--columns=both", "twin"]),
            (["good.keras", *ON_DIGITS, "--columns=mean"], ["no mean", "has model"]),
            (["", *ON_DIGITS], ["an argument is empty"]),
            (["good.keras", *ON_DIGITS, "--examples=361"], ["361", "360"]),
            (["missing.keras", *ON_DIGITS], ["missing.keras"]),
            (["truncated.keras", *ON_DIGITS], ["truncated.keras", "damaged"]),
            (["text.keras", *ON_DIGITS], ["text.keras", "not a `.keras` file"]),
            (["empty", *ON_DIGITS], ["empty", "saved_model.pb"]),
            (["garbled", *ON_DIGITS], ["garbled", "Cannot load"]),
            (["good.keras", "--dataset=cats", "--epsilons=1"], ["cats", "cifar10"]),
            (
                [
                    "good.keras",
                    "--dataset=kmnist",
                    "--data_dir=none",
                    "--epsilons=0.1",
                ],
                ["kmnist", "--download", "--data_dir"],
            ),
        ],
        ids=lambda value: " ".join(value),
    )
    def test_bad_flags_are_refused(self, argv, words, command, files, monkeypatch):
        monkeypatch.chdir(files)
        before = sorted(os.listdir(files))
        assert_refused(command(evaluate, *argv), *words)
        assert sorted(os.listdir(files)) == before

    def test_certificates_and_ensemble(self, command, files, folder):
        argv = (
            *("--examples=20", "--attacks=fgsm,pgd(steps=1,expectation=2)"),
            *("--expectation=1", "--draws=2"),
            *("--ensemble=3", "--certify", "--certify_draws=100", "--output_dir=out"),
        )
        result = command(evaluate, files / "pixeldp.keras", *ON_DIGITS, *argv)
        assert (result.status, result.err) == (0, "")
        assert "| accuracy (%) | noise on" in result.out
        assert "mean of 3 draws |" in result.out
        rows = re.findall(r"^\| (FGSM|PGD[^|]*?) +\|", result.out, re.M)
        assert rows == ["FGSM", "PGD-1 EOT-2"]
        table = re.search(r"^\| certified accuracy .*?\n\n", result.out, re.M | re.S)[0]
        with (folder / "out" / "certificates.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 3 * 20
        header, _, *lines = [line.split("|")[1:-1] for line in table.split("\n")[:-2]]
        for line in lines:
            name, *cells = map(str.strip, line)
            found = [row for row in rows if row["method"] == name]
            for radius, cell in zip(map(float, header[1:]), cells, strict=True):
                certified = [
                    row["label"] == row["prediction"] and float(row["radius"]) >= radius
                    for row in found
                ]
                assert float(cell) == pytest.approx(100 * sum(certified) / 20)
        assert (folder / "out" / "certified_accuracy.png").stat().st_size > 1000
        assert f"\n\n{table}" in (folder / "out" / "report.md").read_text()
        content = json.loads((folder / "out" / "evaluation.json").read_text())
        for line, certificate in zip(lines, content["certificates"], strict=True):
            shares = certificate["certified_accuracy"].values()
            assert [float(cell) for cell in line[1:]] == [100 * s for s in shares]

    def test_columns_are_those_asked_for(self, command, files, folder):
        """With the same numbers as among all of them."""
        argv = (
            *(files / "pixeldp.keras", *ON_DIGITS, "--examples=20", "--attacks=fgsm"),
            *("--expectation=1", "--draws=2", "--ensemble=3"),
        )
        found = {}
        for name, chosen in (("all", ()), ("some", ("--columns=mean,noise_off",))):
            result = command(evaluate, *argv, *chosen, f"--output_dir={name}")
            assert (result.status, result.err) == (0, "")
            content = json.loads((folder / name / "evaluation.json").read_text())
            found[name] = content["columns"]
            test = data.load_dataset("digits").test
            images, labels = test.images_float()[:20], test.labels[:20]
            digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
            assert content["data"] == {"examples": 20, "sha256": digest}
        assert list(found["some"]) == ["noise off", "mean of 3 draws"]
        assert list(found["all"]) == ["noise on", *found["some"]]
        for column, rows in found["some"].items():
            for mine, among_all in zip(rows, found["all"][column], strict=True):
                assert mine["accuracy_mean"] == among_all["accuracy_mean"]

    def test_pictures(self, command, folder):
        """Images that are right before the attack and wrong behind it, with the
        confidences that the network itself has: it compares with the mean digits."""
        dataset = data.load_dataset("digits", test_examples=60)
        test, train = dataset.test, dataset.train
        dense = layers.Dense(10)
        model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), dense])
        means = np.stack(
            [train.images_float()[train.labels == i].mean(0).ravel() for i in range(10)]
        )
        dense.set_weights([means.T, -((means**2).sum(1)) / 2])
        model.save(folder / "means.keras")
        images, labels = test.images_float(), test.labels
        before = keras.ops.softmax(model(images)).numpy()
        argv = ("--attacks=pgd(steps=3)", "--pictures=2", "--examples=60")
        result = command(
            evaluate, folder / "means.keras", *ON_DIGITS, *argv, "--output_dir=out"
        )
        assert (result.status, result.err) == (0, "")
        with np.load(folder / "out/examples/model/pgd-3.npz") as file:
            after = keras.ops.softmax(model(file["images"])).numpy()
        right = (before.argmax(-1) == labels) & (after.argmax(-1) != labels)
        content = json.loads((folder / "out" / "evaluation.json").read_text())
        assert [p["image"] for p in content["pictures"]] == [*np.flatnonzero(right)[:2]]
        assert len(content["pictures"]) == 2
        for picture in content["pictures"]:
            i = picture["image"]
            assert picture["label"] == str(labels[i])
            assert picture["adversarial_label"] == str(after[i].argmax())
            assert picture["confidence"] == pytest.approx(before[i].max(), abs=1e-5)
            assert picture["adversarial_confidence"] == pytest.approx(
                after[i].max(), abs=1e-5
            )
        assert (folder / "out" / "pictures.png").stat().st_size > 1000

    def test_images_of_another_size(self, command, files, tmp_path):
        argv = [files / "other_size.keras", *ON_DIGITS, f"--output_dir={tmp_path}/out"]
        assert_refused(command(evaluate, *argv), "[N, 6, 6, 1]", "8, 8, 1")


class TestExportFlags:
    @pytest.mark.parametrize(
        ("argv", "words"),
        [
            ([], ["expected 2 arguments", "[]"]),
            (["good.keras"], ["expected 2 arguments", "good.keras"]),
            (["good.keras", "out", "more"], ["expected 2 arguments", "more"]),
            (["good.keras", "out", "--epochs=1"], ["epochs"]),
            (["missing.keras", "out"], ["missing.keras"]),
            (["empty", "out"], ["empty/model.keras"]),
            (["truncated.keras", "out"], ["truncated.keras", "damaged"]),
            (["text.keras", "out"], ["text.keras", "not a `.keras` file"]),
            (["probabilities.keras", "out"], ["logits", "Softmax"]),
            (["good.keras", "text.keras"], ["text.keras", "something else"]),
            (["good.keras", "empty"], ["empty", "something else"]),
        ],
        ids=lambda value: " ".join(value),
    )
    def test_bad_arguments_are_refused(self, argv, words, command, files, monkeypatch):
        monkeypatch.chdir(files)
        before = sorted(os.listdir(files))
        assert_refused(command(export, *argv), *words)
        assert sorted(os.listdir(files)) == before


class TestApp:
    def run(self, main):
        app.run(main, usage="usage")

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (ValueError("what"), 2),
            (TypeError("what"), 2),
            (OSError("what"), 2),
            (RuntimeError("what"), 2),
            (KeyboardInterrupt(), 130),
            (KeyboardInterrupt("SIGTERM"), 143),
        ],
    )
    def test_status(self, error, status, command):
        def main():
            raise error

        module = SimpleNamespace(__name__="command", run=lambda: self.run(main))
        result = command(module)
        assert result.status == status
        assert ("error: what\n" if status == 2 else "Interrupted") in result.err
        assert "Traceback" not in result.err

    def test_too_little_memory(self, command):
        class ResourceExhaustedError(Exception):
            pass

        def main(error):
            raise error

        for error in (MemoryError(), ResourceExhaustedError("OOM\nmore")):
            module = SimpleNamespace(
                __name__="command", run=lambda e=error: self.run(lambda: main(e))
            )
            assert_refused(command(module), "not enough memory", "would need less")

    def test_bugs_are_one_line_too(self, command):
        module = SimpleNamespace(
            __name__="command", run=lambda: self.run(lambda: {}[1])
        )
        result = command(module)
        assert result.status == 70
        assert result.err == "error: KeyError: 1 (--verbosity=1 shows where)\n"
        with pytest.raises(KeyError):
            command(module, "--verbosity=1")

    def test_a_lost_worker_has_a_status_of_its_own(self, command):
        def main():
            raise WorkerLost("gone")

        module = SimpleNamespace(__name__="command", run=lambda: self.run(main))
        result = command(module)
        assert (result.status, result.err) == (75, "error: gone\n")

    def test_verbosity_shows_the_traceback(self, command):
        def main():
            raise ValueError("what")

        module = SimpleNamespace(__name__="command", run=lambda: self.run(main))
        with pytest.raises(ValueError, match="what"):
            command(module, "--verbosity=1")

    def test_standard_error_is_held_back(self, capfd):
        with app.quiet_stderr():
            os.write(2, b"chatter")
        os.write(2, b"news")
        assert capfd.readouterr().err == "news"

    def test_what_was_held_back_shows_after_an_error(self, capfd):
        with pytest.raises(ImportError), app.quiet_stderr():
            os.write(2, b"the cause")
            raise ImportError
        os.write(2, b" and more")
        assert capfd.readouterr().err == "the cause and more"

    def test_sigterm_is_an_interruption(self, command, folder, monkeypatch):
        def stop(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(app, "import_tensorflow", stop)
        result = command(train, "--run_dir=run")
        assert result.status == 143
        assert result.err == "\nInterrupted. Run the same command again to continue.\n"


class TestInAnotherProcess:
    @pytest.mark.parametrize("name", ["train", "evaluate", "export"])
    def test_help_does_not_wait_for_tensorflow(self, name):
        code = (
            "import runpy, sys\n"
            f"sys.argv = [{name!r}, '--helpshort']\n"
            "try:\n"
            f"    runpy.run_path({str(ROOT / 'bin' / name)!r}, run_name='__main__')\n"
            "except SystemExit as stop:\n"
            "    print(stop.code, {'tensorflow', 'keras'} & set(sys.modules))\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        assert result.stdout.endswith("\n0 set()\n"), result.stderr

    @pytest.mark.parametrize("backend", ["jax", "torch"])
    @pytest.mark.parametrize(
        ("name", "names"), [("train", []), ("evaluate", ["m"]), ("export", ["m", "d"])]
    )
    def test_another_backend_of_keras_is_refused(self, name, names, backend, tmp_path):
        result = subprocess.run(
            [sys.executable, ROOT / "bin" / name, *names],
            env={**os.environ, "KERAS_BACKEND": backend},
            cwd=tmp_path / "folder",
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert f"KERAS_BACKEND='{backend}'" in line
        assert not list((tmp_path / "folder").iterdir())
