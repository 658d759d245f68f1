"""Planning and running studies, with commands that only write files."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from reproductions import DIGITS, FAKE, commands, jobs_of, run, table_of, write

from pni_tf.cli import evaluate, train
from pni_tf.reproduce import command as command_module
from pni_tf.reproduce import runner
from pni_tf.reproduce.jobs import Costs, Stamps, Training, duration
from pni_tf.reproduce.runner import Process
from pni_tf.reproduce.scales import SCALES

SUPPORT = str(Path(__file__).parents[1] / "support")

pytestmark = pytest.mark.usefixtures("without_processes")


@pytest.fixture
def processes(without_processes, monkeypatch):
    """Lets the jobs of a test run in processes after all."""
    monkeypatch.setattr(runner, "Process", Process)


class TestPlan:
    def test_what_is_needed_comes_first_and_once(self):
        jobs = jobs_of(DIGITS.studies, seeds=2)
        assert len(jobs) == len(set(jobs))
        for i, job in enumerate(jobs):
            assert set(job.needs) <= set(jobs[:i])

    def test_first_seed_comes_first(self):
        jobs = jobs_of(["table2"], seeds=2)
        seeds = [job.seed for job in jobs if isinstance(job, Training)]
        assert seeds == [0] * 8 + [1] * 8

    def test_studies_share_trainings(self):
        both = jobs_of(["table1", "table2"])
        apart = jobs_of(["table1"]) + jobs_of(["table2"])
        assert len(both) == len(set(apart)) < len(apart)

    def test_table2_trains_every_location_and_both_baselines(self):
        found = {j.name for j in jobs_of(["table2"]) if isinstance(j, Training)}
        assert found == {
            *("vanilla", "adversarial", "pni_w", "pni_i", "pni_a_a", "pni_a_b"),
            *("pni_w_a_a", "pni_w_a_b"),
        }

    @pytest.mark.parametrize("name", SCALES)
    def test_the_commands_take_all_flags(
        self, name, command, stop_before_tensorflow, tmp_path
    ):
        scale = SCALES[name]
        for job in jobs_of(scale.studies, scale=scale):
            for needed in job.needs:  # Evaluations read the training's settings.
                (tmp_path / needed.path).mkdir(parents=True, exist_ok=True)
                (tmp_path / needed.path / "flags.cfg").write_text(
                    "--dataset=digits\n--epsilon=0.1\n"
                )
            if isinstance(job, Training):
                shutil.rmtree(tmp_path / job.path, ignore_errors=True)
            module = {"train": train, "evaluate": evaluate}[job.command]
            result = command(module, *job.arguments(tmp_path))
            assert result.err == "error: stopped here\n", job


class TestRunner:
    def test_what_is_done_is_not_done_again(self, tmp_path):
        run(tmp_path)
        calls = (tmp_path / "calls").read_text()
        run(tmp_path)
        assert (tmp_path / "calls").read_text() == calls
        assert len(calls.splitlines()) == len(jobs_of(["table2"]))

    def test_another_study_reuses_trainings(self, tmp_path):
        run(tmp_path)
        run(tmp_path, ["table1", "table2"])
        calls = (tmp_path / "calls").read_text().splitlines()
        assert len(calls) == len(jobs_of(["table1", "table2"]))

    def test_evaluations_of_a_network_that_changed_are_stale(self, tmp_path):
        run(tmp_path)
        (tmp_path / "trainings/pni_i_seed0/model.keras").write_text("another one")
        stamps = Stamps(tmp_path)
        stale = [j for j in jobs_of(["table2"]) if not stamps.of(j).is_done]
        assert {j.training.name for j in stale} == {"pni_i"}

    def test_a_training_of_another_recipe_is_kept_and_not_used(self, tmp_path):
        """Whether its flags or the flagfile has changed: nothing of it counts."""
        config = tmp_path / "recipe.cfg"
        config.write_text("--epochs=2\n")
        scale = dataclasses.replace(DIGITS, recipe=(f"--flagfile={config}",))
        run(tmp_path, scale=scale)
        config.write_text("--epochs=3\n")
        jobs = jobs_of(["table2"], scale=scale)
        assert not any(Stamps(tmp_path).of(job).is_done for job in jobs)
        before = (tmp_path / "calls").read_text()
        folder, outcome = run(tmp_path, scale=scale)
        assert len(outcome.failed) == 8
        for reason in outcome.failed.values():
            assert "run with other settings; remove" in reason
        assert (tmp_path / "calls").read_text() == before
        assert (tmp_path / "trainings/pni_w_seed0/model.keras").exists()
        assert not re.search(r"^\|.*\d ± \d.*\d ± \d", table_of(folder), re.M)

    def test_a_moved_folder_is_still_done(self, tmp_path):
        run(tmp_path / "here")
        (tmp_path / "here").rename(tmp_path / "there")
        jobs = jobs_of(["table2"])
        assert all(Stamps(tmp_path / "there").of(job).is_done for job in jobs)

    def test_a_failed_run_is_reported_and_the_rest_finished(
        self, processes, capsys, tmp_path
    ):
        options = ["--fail=trainings/pni_i_seed0"]
        folder, outcome = run(tmp_path, ["table2"], 1, *options)
        lines = capsys.readouterr().out.splitlines()
        (failed,) = outcome.failed
        assert failed.name == "pni_i"
        assert "what went wrong" in outcome.failed[failed]
        assert {job.training.name for job in outcome.skipped} == {"pni_i"}
        jobs = jobs_of(["table2"])
        done = [job for job in jobs if Stamps(tmp_path).of(job).is_done]
        assert len(done) == len(jobs) - 1 - len(outcome.skipped)
        assert (
            "training pni_i, seed 0: status 1: error: what went wrong"
            in (folder / "report.md").read_text()
        )
        assert any("failed: training pni_i" in line for line in lines)
        # It is still said where nothing is run.
        text = (write(tmp_path, ["table2"]) / "report.md").read_text()
        assert "training pni_i, seed 0: status 1: error: what went wrong" in text
        assert "strong of pni_i, seed 0: needs one of these" in text
        # The next time it works.
        folder, outcome = run(tmp_path)
        assert not outcome.failed
        assert "not run" not in (folder / "report.md").read_text()
        assert "**Failed:**" not in (folder / "report.md").read_text()

    def test_a_result_that_was_damaged_is_made_again(self, tmp_path):
        run(tmp_path)
        result = tmp_path / "evaluations/pni_i_seed0/white_box/evaluation.json"
        result.write_text(result.read_text()[:100])
        jobs = jobs_of(["table2"])
        left = [job.path for job in jobs if not Stamps(tmp_path).of(job).is_done]
        assert [tmp_path / path for path in left] == [result.parent]

    def test_an_evaluation_alone_may_fail(self, tmp_path):
        _, outcome = run(tmp_path, ["table2"], 1, "--fail=pni_w_seed0/strong")
        assert [job.title for job in outcome.failed] == ["strong of pni_w, seed 0"]
        assert outcome.skipped == []

    def test_several_at_once(self, processes, monkeypatch, tmp_path):
        """Never more than asked for, and none before what it needs."""
        most, running, ended = 0, [], []

        class Watched(Process):
            def __init__(self, command, log, **options):
                nonlocal most
                assert options["threads"] >= 1
                super().__init__(command, log, **options)
                assert {*needs[log.stem]} <= {*ended}
                running.append(log.stem)
                most = max(most, len(running))

            def failure(self):
                reason = super().failure()
                done = self.log.stem
                running.remove(done)
                ended.append(done)
                return reason

        jobs = jobs_of(["table2"])
        needs = {
            Stamps(tmp_path).path(job, "log").stem: [
                Stamps(tmp_path).path(needed, "log").stem for needed in job.needs
            ]
            for job in jobs
        }
        monkeypatch.setattr(runner, "Process", Watched)
        folder, outcome = run(tmp_path, workers=3)
        assert not outcome.failed
        assert most == 3
        assert sorted(ended) == sorted(needs)
        assert "not run" not in (folder / "report.md").read_text()

    @pytest.mark.parametrize("workers", [1, 2])
    def test_interruption(self, workers, processes, tmp_path):
        """SIGTERM while a job runs: the job gets it too, and the rest can be done."""
        script = (
            "import signal, sys\n"
            f"sys.path.insert(0, {str(Path(__file__).parents[1] / 'support')!r})\n"
            "from pathlib import Path\n"
            "from reproductions import run\n"
            "def stop(*_): raise KeyboardInterrupt\n"
            "signal.signal(signal.SIGTERM, stop)\n"
            f"run(Path({str(tmp_path)!r}), ['table2'], 1, '--hang=pni_a_a_seed0', "
            f"workers={workers})\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True
        )
        started = tmp_path / "trainings/pni_a_a_seed0/started"
        while not started.exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
        assert started.read_text() == "SIGTERM"
        jobs = jobs_of(["table2"])
        done = [job for job in jobs if Stamps(tmp_path).of(job).is_done]
        assert workers - 1 <= len(done) < len(jobs)
        before = (tmp_path / "calls").read_text().splitlines()
        run(tmp_path)
        after = (tmp_path / "calls").read_text().splitlines()
        assert len(after) - len(before) == len(jobs) - len(done)

    def test_a_killed_parent_takes_its_job_along(self, processes, tmp_path):
        script = (
            "import sys\n"
            f"sys.path.insert(0, {str(Path(__file__).parents[1] / 'support')!r})\n"
            "from pathlib import Path\n"
            "from reproductions import run\n"
            f"run(Path({str(tmp_path)!r}), ['figure2'], 1, '--hang=pni_w_seed0')\n"
        )
        process = subprocess.Popen([sys.executable, "-c", script])
        started = tmp_path / "trainings/pni_w_seed0/started"
        while not started.exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 60
        while started.read_text() != "SIGTERM" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert started.read_text() == "SIGTERM"

    def test_a_job_keeps_the_lock_of_a_parent_that_is_gone(self, processes, tmp_path):
        script = (
            "import sys\n"
            f"sys.path[:0] = [{str(FAKE.parents[1])!r}, {str(FAKE.parent)!r}]\n"
            "from pni_tf.reproduce import command, runner\n"
            "from reproductions import commands\n"
            "runner._command_of = commands('--hang=pni_w_seed0')\n"
            "runner._end_with = lambda parent: None\n"  # So it is without prctl.
            "sys.argv[1:] = ['--study=figure2', '--seeds=1', '--output_dir=out']\n"
            "command.run()\n"
        )
        argv = [sys.executable, "-c", script]
        process = subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.DEVNULL)
        started = tmp_path / "out/trainings/pni_w_seed0/started"
        while not started.exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
        again = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
        started.write_text("SIGTERM")
        assert again.returncode == 2
        assert "--output_dir=out is in use by another process" in again.stderr


class TestCosts:
    def job(self, name="pni_w", seed=0):
        return DIGITS.training(name, seed)

    def test_a_job_that_is_done_tells_of_the_other_seeds(self, tmp_path):
        costs = Costs(Stamps(tmp_path), [], {})
        assert costs.of(self.job()) is None
        costs.add(self.job(), 30.0)
        costs.add(self.job(seed=1), 50.0)
        assert costs.of(self.job(seed=2)) == 40.0

    def test_the_reference_is_scaled_by_what_was_measured(self, tmp_path):
        reference = {
            "training pni_w": 20.0,
            "training pni_i": 8.0,
            "training madry": 5.0,
        }
        costs = Costs(Stamps(tmp_path), [], reference)
        assert costs.of(self.job("madry")) == 5.0
        costs.add(self.job("pni_w"), 60.0)  # It is three times as slow.
        assert costs.of(self.job("madry")) == 15.0
        strong = DIGITS.evaluation("strong", self.job())
        left = [self.job("madry"), self.job("pni_i"), strong]
        assert costs.left(left) == "about 39 s and 1 jobs of unknown cost"

    def test_other_networks_give_a_rough_estimate(self, tmp_path):
        """Of the same kind of job, on networks that are as random."""
        names = ("pni_w", "pni_i", "pixeldp", "vanilla")
        jobs = [self.job(name) for name in names]
        reference = {
            "training pni_w": 20.0,
            "training vanilla": 5.0,
            "strong of x": 7.0,
        }
        costs = Costs(Stamps(tmp_path), jobs, reference)
        costs.add(self.job("pixeldp"), 60.0)
        assert costs.of(self.job("pni_i")) == 40.0
        assert costs.of(self.job("madry")) == 5.0
        assert costs.of(DIGITS.evaluation("strong", self.job())) is None

    def test_several_jobs_at_once_take_less(self, tmp_path):
        costs = Costs(Stamps(tmp_path), [], {"training pni_w": 90.0}, workers=2)
        assert costs.left([self.job()]) == "about 45 s"

    def test_seconds_of_interrupted_runs_count(self, tmp_path):
        Stamps(tmp_path).write(self.job(), done=False, seconds=10)
        stamps = Stamps(tmp_path)
        stamps.write(self.job(), done=True, seconds=5)
        for read in (stamps, Stamps(tmp_path)):
            assert read.of(self.job()).seconds == 15
            assert not read.of(self.job()).is_done  # Its result is not there.

    @pytest.mark.parametrize(
        ("seconds", "words"), [(45, "45 s"), (720, "12 min"), (12600, "3.5 h")]
    )
    def test_duration(self, seconds, words):
        assert duration(seconds) == words


class TestCommand:
    def test_dry_run(self, command, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        result = command(command_module, "--study=table7", "--dry_run", "--seeds=1")
        assert result.status == 0
        lines = result.out.splitlines()
        assert lines[0].startswith("3 jobs, 0 of them done. Left: ")
        assert [line.split()[0] for line in lines[1:4]] == [
            *("bin/train", "bin/train", "bin/evaluate"),
        ]
        assert (
            "Not run."
            in (tmp_path / "reproduction/digits/report/report.md").read_text()
        )

    def test_chosen_networks(self, command, tmp_path):
        flags = ["--networks=pni_w,adversarial", "--seeds=1", "--dry_run"]
        result = command(
            command_module, "--study=table1,table2", *flags, f"--output_dir={tmp_path}"
        )
        assert result.status == 0
        jobs = [line for line in result.out.splitlines() if line.startswith("bin/")]
        folders = {re.search(r"(run|output)_dir=(\S+)", job)[2] for job in jobs}
        assert {str(Path(path).relative_to(tmp_path)) for path in folders} == {
            *("trainings/adversarial_seed0", "trainings/pni_w_seed0"),
            *("evaluations/adversarial_seed0/white_box",),
            *("evaluations/pni_w_seed0/white_box", "evaluations/pni_w_seed0/strong"),
            *("evaluations/adversarial_seed0/strong",),
        }

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["--networks=pni_v"], ["--networks=pni_v", "pni_w_a_a"]),
            (["--networks="], ["--networks="]),
            (["--jobs=0"], ["jobs"]),
            (["--study=table8"], ["--study", "table8", "figure3"]),
            (["--study=table3", "--scale=cpu"], ["--scale=cpu has no table3"]),
            (["--study="], ["--study"]),
            (["--seeds=0"], ["seeds"]),
            (["--output_dir=/proc/x"], ["cannot write to --output_dir=/proc/x"]),
        ],
    )
    def test_bad_flags(self, flags, words, command, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        result = command(command_module, *flags)
        assert result.status == 2
        assert result.err.startswith("error: ")
        assert all(word in result.err for word in words)

    def test_failure_is_status_1(self, command, monkeypatch, tmp_path):
        monkeypatch.setattr(runner, "_command_of", commands("--fail=pni_w_seed0"))
        flags = ["--study=figure2", "--seeds=1", f"--output_dir={tmp_path}"]
        result = command(command_module, *flags)
        assert result.status == 1
        assert "failed: training pni_w, seed 0: error: what" in result.out
        monkeypatch.setattr(runner, "_command_of", commands())
        assert command(command_module, *flags).status == 0

    @pytest.mark.parametrize("ran", [["table2"], ["table2", "table4"]])
    def test_a_study_that_nobody_asked_for_is_left_out(
        self, ran, command, without_processes, tmp_path
    ):
        """Although it shares networks; what was asked for earlier stays."""
        run(tmp_path, ran)
        flags = ["--study=table2", "--seeds=1", "--dry_run"]
        assert command(command_module, *flags, f"--output_dir={tmp_path}").status == 0
        content = json.loads((tmp_path / "report/report.json").read_text())
        assert list(dict.fromkeys(part["study"] for part in content["parts"])) == ran
