"""Every number that a report will look for is one that `bin/evaluate` makes."""

import dataclasses
from pathlib import Path

import keras
import pytest
from keras import layers

from pni_tf import inject_pni, load_target
from pni_tf.cli import evaluate, evaluate_run
from pni_tf.cli.evaluate_plan import Planner
from pni_tf.reproduce.cells import Curves, Table
from pni_tf.reproduce.jobs import Evaluation, in_order
from pni_tf.reproduce.scales import DEFENCES, SCALES
from pni_tf.reproduce.studies import parts_of


@pytest.fixture(scope="module")
def targets():
    """A random and a deterministic one, by whether they are random."""
    stack = [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)]
    network = keras.Sequential(stack)
    return {True: load_target(inject_pni(network)), False: load_target(network)}


@pytest.fixture
def plan(targets, command, monkeypatch, tmp_path):
    """Returns the rows by kind of column that an evaluation would make."""

    def plan(job):
        networks = {tmp_path / needed.path: needed for needed in job.needs}
        for folder in networks:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "flags.cfg").write_text("--dataset=digits\n--epsilon=0.1\n")
        found = {}

        def look(model, settings, specs, workers):
            # To certify needs a PixelDP network.
            analyses = dataclasses.replace(settings.analyses, certify=False)
            loaded, identities = evaluate_run._load(model, analyses, ())
            sources = {
                path: (targets[networks[Path(path)].random], "digest")
                for path in settings.attacks.transfer_from or ()
            }
            planner = Planner(settings.attacks, specs, sources, None, 1)
            for column in evaluate_run._chosen(analyses.columns, loaded):
                rows = planner.scenarios(column, loaded[column], identities[column])
                found[column.kind] = [
                    (scenario.source or scenario.name).removeprefix(f"{tmp_path}/")
                    for scenario in rows
                ]
            found["curves"] = list(analyses.curves or ())

        monkeypatch.setattr(evaluate_run, "evaluate", look)
        monkeypatch.setattr(evaluate_run, "_digest", lambda path: "digest")
        monkeypatch.setattr(
            evaluate_run,
            "load_target",
            lambda path, **_: targets[networks[Path(path)].random],
        )
        result = command(evaluate, *job.arguments(tmp_path))
        assert (result.status, result.err) == (0, "")
        return found

    return plan


@pytest.mark.parametrize("defence", DEFENCES)
def test_a_defence_is_random_if_it_has_noise(defence):
    none = "--pni=none" in DEFENCES[defence]
    assert SCALES["digits"].training(defence, 0).random == (not none)


@pytest.mark.parametrize("name", SCALES)
def test_every_row_and_column_will_be_there(name, plan):
    scale = SCALES[name]
    parts = [part for study in scale.studies for part in parts_of(study, scale, 1)]
    jobs = in_order([job for part in parts for job in part.jobs])
    made = {job: plan(job) for job in jobs if isinstance(job, Evaluation)}
    read = set()
    for part in parts:
        for _, cells in part.rows if isinstance(part, Table) else ():
            for source in [source for cell in cells for source in cell.sources]:
                rows = made[source.evaluation][source.column]
                if source.row == "worst_case":  # It is of several attacks.
                    assert len(rows) > 2
                else:
                    assert rows.count(source.row) == 1, source
                read.add((source.evaluation, source.column))
        if isinstance(part, Curves):
            flags = {f for line in part.lines.values() for f in line.evaluation.flags}
            # Otherwise they could not be compared.
            assert len({f for f in flags if "examples" in f}) <= 1
            for line in part.lines.values():
                assert line.column in made[line.evaluation]
                assert part.kind in made[line.evaluation]["curves"]
                read.add((line.evaluation, line.column))
    # Nothing is computed that no table shows.
    for job, columns in made.items():
        of_tables = job.kind not in ("certify", "checklist", "pictures")
        for column in columns if of_tables else ():
            assert column == "curves" or (job, column) in read, (job.title, column)
