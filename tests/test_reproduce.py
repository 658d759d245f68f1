"""Planning, running and reporting studies, with commands that only write files."""

import collections
import csv
import dataclasses
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_commands
import pytest

from pni_tf.cli import evaluate, reproduce, train
from pni_tf.reproduce import report, runner
from pni_tf.reproduce.builder import STRONG, paper_results
from pni_tf.reproduce.costs import Costs, duration
from pni_tf.reproduce.jobs import Stamp, Training, in_order
from pni_tf.reproduce.scales import SCALES
from pni_tf.reproduce.studies import parts_of
from pni_tf.reproduce.tables import Alphas, Cell, Claim, Curves, Source, Table
from pni_tf.reproduce.values import read, sentence

DIGITS = SCALES["digits"]
# Writes what bin/train and bin/evaluate write, with numbers drawn from their arguments.
FAKE = Path(__file__).parent / "fake_commands.py"


def commands(*options):
    """Starts the stand-ins as processes."""
    return lambda command: [sys.executable, str(FAKE), *options, command]


@pytest.fixture(autouse=True)
def in_this_process(request, monkeypatch):
    """Runs them here instead, which is quick, but where a test needs processes."""

    class Process:
        has_ended = True

        def __init__(self, command, log, **options):
            self.reason = None
            monkeypatch.setattr(sys, "argv", command[1:])
            try:
                fake_commands.main()
            except SystemExit as stop:
                self.reason = stop.code.splitlines()[-1]

        def wait(self):
            return self.reason

    if "processes" not in request.fixturenames:
        monkeypatch.setattr(runner, "Process", Process)


@pytest.fixture
def processes():
    """Marks a test that needs processes."""


def jobs_of(studies, seeds=1, scale=None):
    scale = scale or DIGITS
    parts = [part for study in studies for part in parts_of(study, scale, seeds)]
    return in_order([job for part in parts for job in part.jobs])


def run(
    root, studies=("table2",), seeds=1, *options, show=lambda line: None, workers=1
):
    jobs = jobs_of(studies, seeds)
    outcome = runner.run(
        jobs,
        root,
        Costs(root, jobs, {}),
        workers=workers,
        command_of=commands(*options),
        show=show,
    )
    parts = {study: parts_of(study, DIGITS, seeds) for study in studies}
    return report.write(root, DIGITS, parts, seeds, outcome), outcome


class TestPlan:
    def test_what_is_needed_comes_first_and_once(self):
        jobs = jobs_of(DIGITS.studies, seeds=2)
        assert len(jobs) == len(set(jobs))
        for i, job in enumerate(jobs):
            assert set(job.needs) <= set(jobs[:i])

    def test_first_seed_comes_first(self):
        jobs = jobs_of(["table2"], seeds=2)
        seeds = [job.seed for job in jobs if isinstance(job, Training)]
        assert seeds == [0] * 7 + [1] * 7

    def test_studies_share_trainings(self):
        both = jobs_of(["table1", "table2"])
        apart = jobs_of(["table1"]) + jobs_of(["table2"])
        assert len(both) == len(set(apart)) < len(apart)

    def test_table2_trains_every_location_and_the_twin(self):
        found = {j.name for j in jobs_of(["table2"]) if isinstance(j, Training)}
        assert found == {
            *("adversarial", "pni_w", "pni_i", "pni_a_a", "pni_a_b"),
            *("pni_w_a_a", "pni_w_a_b"),
        }

    @pytest.mark.parametrize("name", SCALES)
    def test_the_commands_take_all_flags(
        self, name, command, stop_before_tensorflow, tmp_path
    ):
        scale = SCALES[name]
        for job in jobs_of(scale.studies, scale=scale):
            for needed in job.needs:  # evaluation reads the settings of the training
                (tmp_path / needed.path).mkdir(parents=True, exist_ok=True)
                (tmp_path / needed.path / "flags.cfg").write_text(
                    "--dataset=digits\n--epsilon=0.1\n"
                )
            if isinstance(job, Training):
                shutil.rmtree(tmp_path / job.path, ignore_errors=True)
            module = {"train": train, "evaluate": evaluate}[job.command]
            result = command(module, *job.arguments(tmp_path))
            assert result.err == "error: stopped here\n", job


def table_of(folder):
    """Returns the lines of a report that are ours, without those of the paper."""
    text = (folder / "report.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return "\n".join(re.sub(r"<br>paper [^|]*", "", line) for line in lines)


class TestPaper:
    def test_every_number_of_the_paper_is_in_a_table(self):
        scale = SCALES["paper"]
        shown = []
        for study in scale.studies:
            for part in parts_of(study, scale, 1):
                if isinstance(part, Table):
                    shown += [cell.paper for _, row in part.rows for cell in row]
                elif isinstance(part, Alphas):
                    shown += [
                        a for column in part.paper.values() for a in column.values()
                    ]
                elif isinstance(part, Curves):
                    shown += [y for _, ys in part.paper.values() for y in ys]
        shown = {number for value in shown for number in numbers_in(value)}
        ignored = ("parameters", "epsilon", "steps")
        for number in numbers_in(paper_results(), ignored):
            assert number in shown

    def test_a_scale_of_other_networks_shows_them_too(self):
        (table,) = parts_of("table3", DIGITS, 1)
        rows = {label: cells[1].paper for label, cells in table.rows}
        assert rows["resnet8 (paper: ResNet-20), fair twin"] == (39.1, 0.1)
        assert rows["resnet20 (paper: ResNet-32), fair twin"] == (42.1, 0)


def numbers_in(value, ignored=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in ignored:
                yield from numbers_in(inner, ignored)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from numbers_in(inner, ignored)
    elif isinstance(value, int | float):
        yield value


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
        stale = [j for j in jobs_of(["table2"]) if not Stamp(tmp_path, j).is_done]
        assert {j.training.name for j in stale} == {"pni_i"}

    def test_a_training_of_another_recipe_is_kept_and_not_used(
        self, monkeypatch, tmp_path
    ):
        """Whether its flags or the flagfile has changed: nothing of it counts."""
        config = tmp_path / "recipe.cfg"
        config.write_text("--epochs=2\n")
        scale = dataclasses.replace(DIGITS, recipe=(f"--flagfile={config}",))
        monkeypatch.setattr(sys.modules[__name__], "DIGITS", scale)
        run(tmp_path)
        config.write_text("--epochs=3\n")
        assert not any(Stamp(tmp_path, job).is_done for job in jobs_of(["table2"]))
        before = (tmp_path / "calls").read_text()
        folder, outcome = run(tmp_path)
        assert len(outcome.failed) == 7
        for reason in outcome.failed.values():
            assert "run with other settings; remove" in reason
        assert (tmp_path / "calls").read_text() == before
        assert (tmp_path / "trainings/pni_w_seed0/model.keras").exists()
        assert not re.search(r"^\|.*\d ± \d.*\d ± \d", table_of(folder), re.M)

    def test_a_moved_folder_is_still_done(self, tmp_path):
        run(tmp_path / "here")
        (tmp_path / "here").rename(tmp_path / "there")
        jobs = jobs_of(["table2"])
        assert all(Stamp(tmp_path / "there", job).is_done for job in jobs)

    def test_a_failed_run_is_reported_and_the_rest_finished(self, processes, tmp_path):
        lines = []
        folder, outcome = run(
            tmp_path, ["table2"], 1, "--fail=trainings/pni_i_seed0", show=lines.append
        )
        (failed,) = outcome.failed
        assert failed.name == "pni_i"
        assert "what went wrong" in outcome.failed[failed]
        assert {job.training.name for job in outcome.skipped} == {"pni_i"}
        jobs = jobs_of(["table2"])
        done = [job for job in jobs if Stamp(tmp_path, job).is_done]
        assert len(done) == len(jobs) - 1 - len(outcome.skipped)
        assert (
            "training pni_i, seed 0: status 1: error: what went wrong"
            in (folder / "report.md").read_text()
        )
        assert any("failed: training pni_i" in line for line in lines)
        # The next time it works.
        folder, outcome = run(tmp_path)
        assert not outcome.failed
        assert "not run" not in (folder / "report.md").read_text()

    def test_a_result_that_was_damaged_is_made_again(self, tmp_path):
        run(tmp_path)
        result = tmp_path / "evaluations/pni_i_seed0/white_box/evaluation.json"
        result.write_text(result.read_text()[:100])
        jobs = jobs_of(["table2"])
        left = [job.path for job in jobs if not Stamp(tmp_path, job).is_done]
        assert [tmp_path / path for path in left] == [result.parent]

    def test_an_evaluation_alone_may_fail(self, tmp_path):
        _, outcome = run(tmp_path, ["table2"], 1, "--fail=pni_w_seed0/strong")
        assert [job.title for job in outcome.failed] == ["strong of pni_w, seed 0"]
        assert outcome.skipped == []

    def test_several_at_once(self, processes, monkeypatch, tmp_path):
        """Never more than asked for, and none before what it needs."""
        most, running, ended = 0, [], []

        class Watched(runner.Process):
            def __init__(self, command, log, **options):
                nonlocal most
                assert options["threads"] >= 1
                super().__init__(command, log, **options)
                assert {*needs[log.stem]} <= {*ended}
                running.append(log.stem)
                most = max(most, len(running))

            def wait(self):
                reason = super().wait()
                done = self._log.stem
                running.remove(done)
                ended.append(done)
                return reason

        jobs = jobs_of(["table2"])
        needs = {
            Stamp(tmp_path, job).log.stem: [
                Stamp(tmp_path, needed).log.stem for needed in job.needs
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
            f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from pathlib import Path\n"
            "from test_reproduce import run\n"
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
        done = [job for job in jobs if Stamp(tmp_path, job).is_done]
        assert workers - 1 <= len(done) < len(jobs)
        before = (tmp_path / "calls").read_text().splitlines()
        run(tmp_path)
        after = (tmp_path / "calls").read_text().splitlines()
        assert len(after) - len(before) == len(jobs) - len(done)

    def test_a_killed_parent_takes_its_job_along(self, processes, tmp_path):
        script = (
            "import sys\n"
            f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from pathlib import Path\n"
            "from test_reproduce import run\n"
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
            "from pni_tf.cli import reproduce\n"
            "from pni_tf.reproduce import processes, runner\n"
            "from test_reproduce import commands\n"
            "runner._command_of = commands('--hang=pni_w_seed0')\n"
            "processes._end_with = lambda parent: None\n"  # as where there is no prctl
            "sys.argv[1:] = ['--study=figure2', '--seeds=1', '--output_dir=out']\n"
            "reproduce.run()\n"
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
        costs = Costs(tmp_path, [], {})
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
        costs = Costs(tmp_path, [], reference)
        assert costs.of(self.job("madry")) == 5.0
        costs.add(self.job("pni_w"), 60.0)  # three times as slow
        assert costs.of(self.job("madry")) == 15.0
        left = [self.job("madry"), self.job("pni_i"), self.job("vanilla")]
        assert costs.left(left) == "about 39 s and 1 jobs of unknown cost"

    def test_several_jobs_at_once_take_less(self, tmp_path):
        costs = Costs(tmp_path, [], {"training pni_w": 90.0}, workers=2)
        assert costs.left([self.job()]) == "about 45 s"

    def test_seconds_of_interrupted_runs_count(self, tmp_path):
        stamp = Stamp(tmp_path, self.job())
        stamp.write(done=False, seconds=10)
        stamp.write(done=True, seconds=5)
        assert stamp.seconds == 15
        assert not stamp.is_done  # its result is not there

    @pytest.mark.parametrize(
        ("seconds", "words"), [(45, "45 s"), (720, "12 min"), (12600, "3.5 h")]
    )
    def test_duration(self, seconds, words):
        assert duration(seconds) == words


def cells_of(folder, *columns, paper=(), **fields):
    """Returns a cell for each list of accuracies, of which each seed has one."""
    count = len(columns[0])
    trainings = [DIGITS.training("pni_w", seed) for seed in range(count)]
    jobs = [DIGITS.evaluation("white_box", training) for training in trainings]
    entry = {"scenario": "row", "accuracy_std": 0.02, "images": 100, "draws": 1}
    for seed, job in enumerate(jobs):
        content = {
            str(i): [{**entry, "accuracy_mean": column[seed], **fields}]
            for i, column in enumerate(columns)
        }
        (folder / job.path).mkdir(parents=True)
        (folder / job.result).write_text(json.dumps({"columns": content}))
    return [
        Cell(
            sources=tuple(Source(evaluation=j, column=str(i), row="row") for j in jobs),
            paper=paper[i] if paper else None,
        )
        for i in range(len(columns))
    ]


class TestValues:
    def test_draws_and_seeds_are_kept_apart(self, tmp_path):
        (cell,) = cells_of(tmp_path, [0.5, 0.7], draws=10)
        assert read(tmp_path, cell).text() == "60.00 ± 2.00 (± 14.14)"

    def test_standard_error(self, tmp_path):
        """0.6 * 0.4 over 100 images, and a variance of 0.02 over 2 seeds."""
        (cell,) = cells_of(tmp_path, [0.5, 0.7])
        assert read(tmp_path, cell).variance == pytest.approx(0.24 / 100 + 0.02 / 2)

    def test_a_seed_that_was_not_run_is_left_out(self, tmp_path):
        (cell,) = cells_of(tmp_path, [0.5, 0.7])
        (tmp_path / cell.sources[1].evaluation.result).unlink()
        assert read(tmp_path, cell).text() == "50.00 [1 of 2 seeds]"
        (tmp_path / cell.sources[0].evaluation.result).write_text("{")
        assert read(tmp_path, cell) is None

    @pytest.mark.parametrize(
        ("ours", "words"),
        [
            (0.7, "+20.00 points (standard error 6.78; paper +6.80), so it holds"),
            (0.3, "-20.00 points (standard error 6.78; paper +6.80), so the opposite"),
            (0.55, "+5.00 points (standard error 7.05; paper +6.80), so no difference"),
        ],
    )
    def test_sentence(self, ours, words, tmp_path):
        paper = [(45.94, 0.1), 39.14]
        cells = cells_of(tmp_path, [ours], [0.5], paper=paper)
        claim = Claim(text="A against B", ours=cells[0], other=cells[1])
        assert sentence(tmp_path, claim).startswith(f"A against B: {words}")

    def test_few_seeds_show_less(self, tmp_path):
        """The same difference of three standard errors, with one and with two seeds."""
        one = cells_of(tmp_path / "one", [0.7], [0.5])
        claim = Claim(text="A against B", ours=one[0], other=one[1])
        assert sentence(tmp_path / "one", claim).endswith(
            "it holds (one training each)."
        )
        two = cells_of(tmp_path / "two", [0.7, 0.7], [0.5, 0.5])
        claim = Claim(text="A against B", ours=two[0], other=two[1])
        # Student's t of two degrees of freedom: 4.30.
        assert sentence(tmp_path / "two", claim).endswith("so no difference is shown.")

    def test_norms_are_not_judged(self, tmp_path):
        ours, other = cells_of(tmp_path, [1.5], [0.5], paper=[1.97, 1.97])
        ours, other = (
            dataclasses.replace(cell, percent=False) for cell in (ours, other)
        )
        claim = Claim(text="A against B", ours=ours, other=other, judge=False)
        assert sentence(tmp_path, claim) == (
            "A against B: 1.5 against 0.5 (paper: 1.97 against 1.97)."
        )


WORDS = {  # of a row, for the name of its training
    "adversarial": "fair twin",
    "vanilla": "no defence",
    "pni_w_vanilla": "vanilla training",
    "pni_w_without_noise_in_attack": "PNI not in attack",
    "madry": "Madry",
}


def normal(text):
    """Returns the name of a training or the label of a row in one form."""
    for name in sorted(WORDS, key=len, reverse=True):
        if re.fullmatch(rf"{name}(_resnet\w+)?", text):
            text = WORDS[name]
    text = text.lower().replace("pni in attack", "pni_w")
    text = re.sub(r"_resnet\w+", "", text)
    return re.sub(r"[^a-z]", "", text)


def resolve(content, pointer):
    """Returns what a JSON pointer points to."""
    for key in pointer.split("/")[1:]:
        content = content[int(key) if isinstance(content, list) else key]
    return content


def walk(folder):
    """Checks every number of a report against the files; returns how many there are."""
    content = json.loads((folder / "report.json").read_text())
    sections = re.split(r"^## ", (folder / "report.md").read_text(), flags=re.M)[1:]
    counts = collections.Counter()
    for part, text in zip(content["parts"], sections, strict=True):
        assert text.startswith(f"{part['title']}\n")
        assert all(f"- {sentence}" in text for sentence in part["sentences"])
        if "columns" in part:
            counts["cells"] += walk_table(folder, part, text)
        elif "curves" in part:
            for label, line in part["curves"].items():
                file = json.loads((folder / part["files"][label]).read_text())
                points = resolve(file, part["pointers"][label])
                for (x, y), (place, entry) in zip(
                    line.items(), points.items(), strict=True
                ):
                    assert float(x) == pytest.approx(float(place), rel=1e-4)
                    assert y == entry["accuracy_mean"]
                    assert f"{100 * y:.2f}" in text
                    counts["points"] += 1
        elif "pointer" in part:
            file = json.loads((folder / part["file"]).read_text())
            assert resolve(file, part["pointer"])
            assert all(" | ".join(row) in text for row in part["rows"])
            counts["listings"] += 1
        elif "alphas" in part:
            for layer, series in part["alphas"].items():
                assert series == alphas(folder / part["file"], layer)
                counts["series"] += 1
        else:
            for row in part["rows"]:
                for label, found in row["alphas"].items():
                    files = part["files"][label]
                    last = [alphas(folder / f, row["layer"])[-1] for f in files]
                    assert found == last
                    assert f"{sum(last) / len(last):.3f}" in text
                    counts["alphas"] += len(last)
    return counts


def alphas(path, layer):
    with path.open(newline="") as file:
        return [float(row[f"alpha/{layer}"]) for row in csv.DictReader(file)]


def walk_table(folder, part, text):
    count = 0
    for row in part["rows"]:
        (line,) = {x for x in text.splitlines() if x.startswith(f"| {row['label']} | ")}
        shown = line.removesuffix(" |").split(" | ")[1:]
        for cell, shown_cell in zip(row["cells"], shown, strict=True):
            if not cell or cell["value"] is None:
                continue
            found = []
            for seed in cell["seeds"]:
                numbers = json.loads((folder / seed["file"]).read_text())
                number = resolve(numbers, seed["pointer"])
                found.append(1 - number if seed["one_minus"] else number)
                assert seed["mean"] == found[-1]
            mean = sum(found) / len(found)
            assert cell["value"] == pytest.approx(mean, abs=1e-12)
            assert shown_cell.startswith((f"{100 * mean:.2f}", f"{mean:.3g}"))
            count += 1
    return count


ROW_OF = {  # the scenario that a heading promises
    "noise-off-crafted": "transfer from noise-free twin",
    STRONG: "worst case",
}


def column_of(label):
    """The column of the evaluation that the label of a row promises."""
    if "mean of" in label:
        return "mean of 5 draws"
    if "without PNI" in label:
        return "noise off"
    deterministic = ("fair twin", "no defence", "Madry")
    return "model" if any(d in label for d in deterministic) else "noise on"


class TestReport:
    @pytest.mark.parametrize("study", ["table1", "table2", "table3", "table6"])
    def test_cells_are_what_their_headings_say(self, study, tmp_path):
        folder, _ = run(tmp_path, [study], 2)
        (table,) = (p for p in parts_of(study, DIGITS, 2) if isinstance(p, Table))
        lines = (folder / "report.md").read_text().splitlines()
        place = lines.index("|  | " + " | ".join(table.columns) + " |")
        shown = [line.strip("| ").split(" | ") for line in lines[place + 2 :]]
        for (label, cells), (name, *texts) in zip(table.rows, shown, strict=False):
            assert name == label
            for heading, cell, text in zip(table.columns, cells, texts, strict=True):
                for found in cell.sources:
                    assert found.row == ROW_OF.get(heading, heading)
                    assert found.field == "accuracy_mean"
                    assert found.column == column_of(label)
                    by_mean = "mean of" in label
                    kind = "ensemble" if by_mean else "white_box"
                    if heading == STRONG:
                        kind = "strong_ensemble" if by_mean else "strong"
                    assert found.evaluation.kind == kind
                    defence = found.evaluation.training.name
                    assert normal(defence) in normal(label)
                first = text.split("<br>")[0]
                assert first == (read(folder, cell).text() if cell.sources else "–")

    def test_every_number_is_in_a_file(self, tmp_path):
        folder, _ = run(tmp_path, DIGITS.studies, 2)
        counts = walk(folder)
        assert counts.keys() == {"cells", "points", "listings", "series", "alphas"}
        assert "not run" not in (folder / "report.md").read_text().lower()

    def test_each_cell_has_a_command(self, tmp_path):
        folder, _ = run(tmp_path, ["table5"], 1)
        text = (folder / "report.md").read_text()
        block = text[text.index("# transfer_from_adversarial of pni_a_a, seed 0: ") :]
        assert block.splitlines()[1:3] == [
            "#   PNI-A-a: accuracy, A ⇒ B",
            "#   PNI-A-a, without PNI: accuracy, A ⇒ B",
        ]
        assert block.splitlines()[3].startswith("bin/evaluate ")

    def test_what_was_not_run_says_so(self, tmp_path):
        run(tmp_path, ["table2"])
        parts = {"table6": parts_of("table6", DIGITS, 1)}
        folder = report.write(tmp_path, DIGITS, parts, 1)
        text = (folder / "report.md").read_text()
        (rse,) = [line for line in text.splitlines() if line.startswith("| RSE")]
        assert rse.count("not run") == 7
        words = "PNI-W against RSE, both by mean, under PGD-7 as in the paper: not run."
        assert words in text
        (pni,) = [line for line in text.splitlines() if line.startswith("| PNI-W, sin")]
        assert "not run" not in pni

    def test_html_needs_no_other_file(self, tmp_path):
        folder, _ = run(tmp_path, ["figure2", "figure3"])
        page = (folder / "report.html").read_text()
        sources = re.findall(r'src="(.{21})', page)
        assert sources == ["data:image/png;base64"] * 3
        assert "<td>" in page

    def test_commands_can_be_pasted(self, tmp_path):
        folder, _ = run(tmp_path, ["table2"])
        content = json.loads((folder / "report.json").read_text())
        for job, known in zip(content["jobs"], jobs_of(["table2"]), strict=True):
            assert shlex.split(job["command"])[1:] == known.arguments(tmp_path)

    def test_a_report_that_was_kept_alone_keeps_its_numbers(self, tmp_path):
        folder, _ = run(tmp_path / "one", ["table2"])
        shutil.copytree(folder, tmp_path / "two" / "report")
        parts = {"table2": parts_of("table2", DIGITS, 1)}
        kept = report.write(tmp_path / "two", DIGITS, parts, 1)
        assert table_of(kept) == table_of(folder)

    def test_results_that_became_stale_leave_the_report(self, tmp_path):
        folder, _ = run(tmp_path, ["table2"])
        (tmp_path / "trainings/pni_i_seed0/model.keras").write_text("another one")
        parts = {"table2": parts_of("table2", DIGITS, 1)}
        report.write(tmp_path, DIGITS, parts, 1)
        assert not list(folder.glob("evaluations/pni_i_seed0/*/*.json"))
        text = (folder / "report.md").read_text()
        (row,) = [x for x in text.splitlines() if x.startswith("| PNI-I, with PNI")]
        assert row.count("not run") == 7


class TestCommand:
    def test_dry_run(self, command, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        result = command(reproduce, "--study=table7", "--dry_run", "--seeds=1")
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
            reproduce, "--study=table1,table2", *flags, f"--output_dir={tmp_path}"
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
        result = command(reproduce, *flags)
        assert result.status == 2
        assert result.err.startswith("error: ")
        assert all(word in result.err for word in words)

    def test_failure_is_status_1(self, command, monkeypatch, tmp_path):
        monkeypatch.setattr(runner, "_command_of", commands("--fail=pni_w_seed0"))
        flags = ["--study=figure2", "--seeds=1", f"--output_dir={tmp_path}"]
        result = command(reproduce, *flags)
        assert result.status == 1
        assert "failed: training pni_w, seed 0: error: what" in result.out
        monkeypatch.setattr(runner, "_command_of", commands())
        assert command(reproduce, *flags).status == 0
