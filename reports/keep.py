"""Files a report of bin/reproduce in reports/, and writes what follows from it.

    python reports/keep.py reproduction/digits    # a finished report
    python reports/keep.py                        # those that are here, written again

The first copies `report/` to `reports/SCALE`, and writes what each job has taken to
`pni_tf/reproduce/costs.json`. Where training takes long, the networks and the state of
the jobs come too, so that others can go on from them (BUILD.md, "Reports"). Both write
`docs/results.md`. The second is for a change of the words: no number changes by it.
"""

import contextlib
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

sys.path[:0] = [str(ROOT), str(ROOT / "reports")]

import results_page

from pni_tf.reproduce import report
from pni_tf.reproduce.jobs import Job, Stamp
from pni_tf.reproduce.scales import SCALES
from pni_tf.reproduce.studies import parts_of


def keep(root: Path, top: Path = ROOT) -> Path:
    """Copies a report and its costs into a checkout, and returns the copy.

    Args:
        root: Folder of the reproduction.
        top: The checkout.
    """
    try:
        content = json.loads((root / "report" / "report.json").read_text("utf-8"))
    except FileNotFoundError as error:
        raise SystemExit(
            f"error: {root} has no report: run bin/reproduce first ({error})"
        ) from error
    scale = SCALES[content["scale"]]
    folder = top / "reports" / scale.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / "report", folder)
    done = [job for job in content["jobs"] if job["done"]]
    others = [*root.glob("note.txt")]
    if not scale.small:
        results = [root / job["result"] for job in done]
        others += [path for path in results if path.name == "model.keras"]
        others += (root / "jobs").glob("*.json")
    for path in others:
        copy = folder / path.relative_to(root)
        copy.parent.mkdir(exist_ok=True, parents=True)
        shutil.copyfile(path, copy)
    taken = {}
    for job in done:
        if job["seconds"] >= 1:  # Otherwise it was there already.
            taken.setdefault(job["key"], []).append(job["seconds"])
    path = top / "pni_tf" / "reproduce" / "costs.json"
    costs = json.loads(path.read_text("utf-8"))
    costs[scale.name] = {k: round(statistics.mean(t), 1) for k, t in taken.items()}
    path.write_text(json.dumps(costs, indent=1) + "\n", "utf-8")
    return folder


class KeptStamps:
    """What a kept report says of its jobs, instead of the files of a reproduction.

    Args:
        root: Folder of the reproduction.
        jobs: The entry of `report.json`.
    """

    def __init__(self, root: Path, jobs: list[dict]):
        self.root = root
        self._jobs = {job["result"]: job for job in jobs}

    def of(self, job: Job) -> Stamp:
        """Returns what is known of a job."""
        found = self._jobs[str(job.result)]
        return Stamp(
            is_done=found["done"],
            seconds=found["seconds"],
            failed=found["failed"],
            machine=found["machine"],
        )


def written_again(kept: Path, folder: Path) -> Path:
    """Writes a report that was kept from its own results, and returns its folder.

    Args:
        kept: The report.
        folder: Where to do so. The current directory is there meanwhile, because the
            report names the files as its commands do.
    """
    root = Path("reproduction", kept.name)
    shutil.copytree(kept, folder / root / "report")
    content = json.loads((kept / "report.json").read_text("utf-8"))
    seeds, scale = content["training_seeds"], SCALES[content["scale"]]
    studies = dict.fromkeys(part["study"] for part in content["parts"])
    parts = {study: parts_of(study, scale, seeds) for study in studies}
    stamps = KeptStamps(root, content["jobs"])
    note = (kept / "note.txt").read_text("utf-8")
    with contextlib.chdir(folder):
        report.write(scale, parts, seeds, stamps, note=note)
    return folder / root / "report"


def main() -> None:
    for root in map(Path, sys.argv[1:]):
        print(f"{keep(root)} is written")
    if not sys.argv[1:]:
        for kept in sorted((ROOT / "reports").glob("*/report.json")):
            with tempfile.TemporaryDirectory() as scratch:
                again = written_again(kept.parent, Path(scratch))
                for name in ("report.md", "report.html", "report.json"):
                    shutil.copyfile(again / name, kept.parent / name)
    page = ROOT / "docs" / "results.md"
    page.write_text(results_page.text(ROOT / "reports"), "utf-8")
    print(f"{page} is written")


if __name__ == "__main__":
    main()
