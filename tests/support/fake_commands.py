"""Stands for `bin/train` and `bin/evaluate`: writes what they write, in no time.

    python fake_commands.py [--fail=TEXT] [--hang=TEXT] train|evaluate ARGUMENTS

Numbers follow from the arguments. A call whose folder contains TEXT fails, or waits for
SIGTERM. `calls`, at the top of the folder, gets a line for each call.
"""

import json
import random
import signal
import sys
import time
from pathlib import Path

ATTACKS = (
    *("FGSM", "PGD-7", "PGD-20", "PGD-20 EOT-10"),
    *("ZOO-150", "C&W L2 9×10", "C&W L2 9×100", "C&W L2 9×100 EOT-10"),
)
IMAGES, DRAWS = 20, 10
COLUMNS = {
    "model": "model",
    "noise on": "noise_on",
    "noise off": "noise_off",
    "twin": "twin",
    "mean of 5 draws": "mean",
}


def entry(name, draw, images=IMAGES, kind="attack", source=None):
    """Returns the numbers of a scenario, and how many draws are right on each image."""
    right = [draw.randrange(DRAWS + 1) for _ in range(images)]
    share = sum(right) / DRAWS / images
    return right, {
        "scenario": name,
        "kind": kind,
        "source": source,
        "attack": f"Attack({name})" if kind == "attack" else "None",
        "images": images,
        "draws": DRAWS,
        "accuracy_mean": share,
        "accuracy_std": draw.random() / 100,
        "claimed_accuracy": share / 2,
        "upheld": draw.random(),
        "l2_mean_of_claimed": draw.random(),
    }


def train(folder, draw):
    rows = ["epoch,alpha/conv0,alpha/logits"]
    rows += [f"{e},{draw.random():.4f},{draw.random():.4f}" for e in (1, 2)]
    (folder / "history.csv").write_text("\n".join(rows) + "\n")
    (folder / "flags.cfg").write_text("\n".join(sys.argv) + "\n")
    (folder / "model.keras").write_text(str(draw.random()))


def evaluate(folder, draw, flags):
    sources = [flags.get("transfer_from"), "noise-free twin"]
    rows = [{"name": "clean", "kind": "clean"}]
    rows += [{"name": attack} for attack in ATTACKS]
    rows += [{"name": f"transfer from {x}", "source": x} for x in sources if x]
    rows += [{"name": "worst case", "kind": "worst_case"}]
    item = {
        "name": "a check",
        "source": "Table 7",
        "status": "PASS",
        "numbers": {"PGD": draw.random()},
        "meaning": "all is well",
    }
    curve = {str(x): entry(f"x {x}", draw)[1] for x in (0.1, 1.0)}
    picture = {"image": 3, "label": "4", "confidence": 0.9}
    picture |= {"adversarial_label": "9", "adversarial_confidence": 0.99}
    images = IMAGES // 2 if "strong" in flags.get("suite", "") else IMAGES
    columns, lines = {}, ["network,scenario,correct_draws,draws"]
    for column in COLUMNS:
        columns[column] = []
        for row in rows:
            right, numbers = entry(draw=draw, images=images, **row)
            columns[column].append(numbers)
            lines += [f"{column},{row['name']},{count},{DRAWS}" for count in right]
    (folder / "per_example.csv").write_text("\n".join(lines) + "\n")
    content = {
        "model": sys.argv[sys.argv.index("evaluate") + 1],
        "kinds": {name: {"kind": kind, "draws": 1} for name, kind in COLUMNS.items()},
        "columns": columns,
        "curves": {k: dict.fromkeys(COLUMNS, curve) for k in ("epsilon", "steps")},
        "checklist": {"items": [item]},
        "certificates": [
            {
                "method": "a bound",
                "images": 100,
                "draws": 1000,
                "failure": 0.05,
                "certified_accuracy": {"0": 0.8, "0.1": 0.5, "0.2": 0.3},
            }
        ],
        "pictures": [picture],
    }
    (folder / "evaluation.json").write_text(json.dumps(content))


def main():
    words = sys.argv[1:]
    place = next(i for i, w in enumerate(words) if w in ("train", "evaluate"))
    options = dict(word[2:].split("=") for word in words[:place])
    command, *arguments = words[place:]
    flags = dict(a[2:].split("=", 1) for a in arguments if "=" in a and a[:2] == "--")
    folder = Path(flags["run_dir" if command == "train" else "output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    top = next(
        p.parent for p in folder.parents if p.name in ("trainings", "evaluations")
    )
    with (top / "calls").open("a") as file:
        file.write(f"{command} {folder}\n")
    if options.get("fail", "\n") in str(folder):
        sys.exit("some words\nerror: what went wrong")
    if options.get("hang", "\n") in str(folder):
        started = folder / "started"
        signal.signal(signal.SIGTERM, lambda *_: started.write_text("SIGTERM"))
        started.write_text("")
        while started.read_text() != "SIGTERM":
            time.sleep(0.01)
        sys.exit(143)
    draw = random.Random(f"{command} {folder.relative_to(top)}")
    if command == "train":
        train(folder, draw)
    else:
        evaluate(folder, draw, flags)


if __name__ == "__main__":
    main()
