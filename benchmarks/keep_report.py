"""Keeps a report of bin/reproduce in reports/, and its costs as estimates for others.

    python benchmarks/keep_report.py reproduction/digits

Copies `report/` to `reports/SCALE`, and writes what each job has taken to
`pni_tf/reproduce/costs.json`. Where training takes long, the networks and the state of
the jobs come too, so that others can go on from them (BUILD.md, "Reports").
"""

import json
import shutil
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COSTS = ROOT / "pni_tf" / "reproduce" / "costs.json"

sys.path.insert(0, str(ROOT))


def main():
    from pni_tf.reproduce.scales import SCALES

    (root,) = map(Path, sys.argv[1:])
    content = json.loads((root / "report" / "report.json").read_text())
    scale = SCALES[content["scale"]]
    folder = ROOT / "reports" / scale.name
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(root / "report", folder)
    done = [job for job in content["jobs"] if job["done"]]
    if not scale.small:
        for result in (Path(job["result"]) for job in done):
            if result.name == "model.keras":
                shutil.copyfile(root / result, folder / result)
        for path in [*(root / "jobs").glob("*.json"), *root.glob("note.txt")]:
            copy = folder / path.relative_to(root)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
    taken = {}
    for job in done:
        if job["seconds"] >= 1:  # else it was there already
            taken.setdefault(job["key"], []).append(job["seconds"])
    costs = json.loads(COSTS.read_text())
    costs[scale.name] = {k: round(statistics.mean(t), 1) for k, t in taken.items()}
    COSTS.write_text(json.dumps(costs, indent=1) + "\n")
    print(f"{folder} and {COSTS} are written")


if __name__ == "__main__":
    main()
