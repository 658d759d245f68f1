"""Writes the report: Markdown, self-contained HTML, and every number with its file."""

import base64
import html
import json
import re
import shutil
from pathlib import Path

import markdown

from pni_tf import files
from pni_tf.reproduce import sections
from pni_tf.reproduce.cells import Part, Table
from pni_tf.reproduce.jobs import Stamps, duration, in_order
from pni_tf.reproduce.results import Results
from pni_tf.reproduce.runner import shell
from pni_tf.reproduce.scales import Scale
from pni_tf.reproduce.studies import STUDIES

_STYLE = """
body { font-family: sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; font-size: 0.9em; }
th, td { border: 1px solid #ccc; padding: 0.3em 0.6em; text-align: left; }
th { background: #f2f2f2; }
pre { overflow-x: auto; background: #f7f7f7; padding: 0.7em; font-size: 0.85em; }
img { max-width: 100%; }
"""
_READING = """\
How to read a cell: mean ± standard deviation over single draws of the noise (± standard
deviation over training seeds), in percent unless its column says otherwise; below it
what the paper says. A deterministic network has no draws; – is for what does not exist.
PNI-W has its noise on the weights, PNI-I on the images, PNI-A-a and PNI-A-b on the
outputs and on the inputs of convolutions and dense layers. The fair twin is the same
training without noise.

A difference is between verdicts on the same images, taken in pairs, with its 95 %
confidence interval by Student's t. What counts as chance is the choice of images and of
training seeds, or, where there is one seed, the draws of the noise: that says nothing
of other trainings. Of many comparisons one in twenty leaves its interval by chance."""


def write(
    scale: Scale,
    studies: dict[str, list[Part]],
    seeds: int | None,
    stamps: Stamps,
    *,
    note: str = "",
) -> Path:
    """Writes `<root>/report/` from what was run, and returns the folder.

    It holds `report.md`, `report.html`, `report.json`, the figures, and copies of the
    results that the numbers come from, so it can be kept without the networks.

    Args:
        scale: What the studies were run on.
        studies: The parts of each study.
        seeds: Number of training seeds; None for what the scale says.
        stamps: What is known of the jobs in the folder of the reproduction.
        note: What readers must know of this run.
    """
    root = stamps.root
    folder = root / "report"
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    jobs = in_order(j for parts in studies.values() for p in parts for j in p.jobs)
    known = {job: stamps.of(job) for job in jobs}
    for job, stamp in known.items():
        _copy_results(root, folder, job, stamp.is_done)
    results = Results(root, folder, jobs)
    lines = [_head(scale, seeds, known, results, note)]
    content = {"scale": scale.name, "training_seeds": seeds, "parts": []}
    for study, parts in studies.items():
        for i, part in enumerate(parts):
            name = f"{study}_{i + 1}" if len(parts) > 1 else study
            section = sections.make(part, results, name)
            lines += [f"## {part.title}", *section.lines]
            lines.append(_details(root, part, section.attacks, known))
            content["parts"].append(
                {"study": study, "title": part.title, **section.content}
            )
    content["jobs"] = [
        {
            "title": job.title,
            "key": job.key,
            "result": str(job.result),
            "done": stamp.is_done,
            "seconds": stamp.seconds,
            "machine": stamp.machine,
            "command": shell(job, root),
            "failed": stamp.failed,
        }
        for job, stamp in known.items()
    ]
    text = "\n\n".join(filter(None, lines)) + "\n"
    files.write_text(folder / "report.md", text)
    files.write_text(folder / "report.html", _to_html(text, folder, scale.title))
    files.write_text(folder / "report.json", json.dumps(content, indent=1) + "\n")
    return folder


def _copy_results(root, folder, job, is_done):
    for name in job.kept:
        source, copy = root / job.path / name, folder / job.path / name
        if is_done and source.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
        elif (root / "jobs").exists():  # Otherwise only the report was kept.
            copy.unlink(missing_ok=True)


def _head(scale, seeds, known, results, note):
    done = [job for job, stamp in known.items() if stamp.is_done]
    seconds = sum(stamp.seconds for stamp in known.values())
    count = seeds or scale.seeds
    counts = f"{count} training seed{'s' if count > 1 else ''}"
    if seeds is None and len(scale.networks) > 1:
        counts += f" of {scale.main}, {scale.seeds_of_others} of other networks"
    machines = sorted({machine for job in done if (machine := known[job].machine)})
    missing = [name for name in STUDIES if name not in (*scale.studies, "mnist")]
    text = [
        f"# The paper's tables and figures: {scale.title}",
        f"{scale.note} {counts}. "
        f"{len(done)} of {len(known)} jobs are done, in {duration(seconds)} together"
        f"{' by ' if machines else ''}{' and '.join(machines)}.",
        note,
        _other_images(results, done),
        _READING,
        f"Not on this scale: {', '.join(missing)}." if missing else "",
        _failures(known),
    ]
    return "\n\n".join(filter(None, text))


def _other_images(results, done):
    """Returns a warning if evaluations had different images under the same name."""
    found = {}
    for job in done:
        saved = results.evaluations.get(job)
        if saved and saved.data:
            name = f"{saved.dataset}, {saved.data['examples']:,} images"
            titles = found.setdefault(name, {}).setdefault(saved.data["sha256"], [])
            titles.append(job.title)
    lines = [
        f"- {name}, SHA-256 {digest[:12]}: {', '.join(titles)}"
        for name, by_digest in found.items()
        if len(by_digest) > 1
        for digest, titles in by_digest.items()
    ]
    if not lines:
        return ""
    why = "**Not to be compared:** different images under one name (see --data_dir)."
    return why + "\n\n" + "\n".join(lines)


def _failures(known):
    failed = {job: stamp.failed for job, stamp in known.items() if stamp.failed}
    lines = [f"- {job.title}: {html.escape(why)}" for job, why in failed.items()]
    lines += [
        f"- {job.title}: needs one of these"
        for job, stamp in known.items()
        if not stamp.is_done and not failed.keys().isdisjoint(job.needs)
    ]
    return "**Failed:**\n\n" + "\n".join(lines) if lines else ""


def _details(root, part, attacks, known):
    """Returns settings, costs and commands, to be unfolded."""
    commands, cells = [], _cells_by_job(part)
    for job in in_order(part.jobs):
        cost = duration(known[job].seconds) if known[job].is_done else "not run"
        commands.append(f"# {job.title}: {cost}")
        for label, columns in cells.get(job, {}).items():
            commands.append(f"#   {label}: {', '.join(columns)}")
        commands.append(shell(job, root))
    blocks = ["\n".join(lines) for lines in (dict.fromkeys(attacks), commands) if lines]
    inner = "".join(f"<pre>{html.escape(block)}</pre>" for block in blocks)
    return f"<details><summary>Settings, costs and commands</summary>{inner}</details>"


def _cells_by_job(part):
    """Returns by job and label of a row the columns whose cells the job gives."""
    found = {}
    for label, cells in part.rows if isinstance(part, Table) else ():
        for column, cell in zip(part.columns, cells, strict=True):
            for source in cell.sources:
                rows = found.setdefault(source.evaluation, {})
                rows.setdefault(label, []).append(column)
    return found


def _to_html(text, folder, title):
    """Returns the report as one file, with the figures inside it."""

    def inline(match):
        picture = (folder / match[1]).read_bytes()
        return f'src="data:image/png;base64,{base64.b64encode(picture).decode()}"'

    body = markdown.markdown(text, extensions=["tables"])
    body = re.sub(r'src="(figures/[^"]+\.png)"', inline, body)
    title = html.escape(f"pni_tf: {title}")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n"
        "</body>\n</html>\n"
    )
