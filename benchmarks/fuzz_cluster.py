"""What the environment says of a cluster: TF_CONFIG, or a Slurm job step."""

import json
import os
import re
import tempfile
from pathlib import Path

from fuzz_cases import Case, Offence, damaged
from fuzz_command import REACHED, check_refusal, fork, shown

from pni_tf.distribution import cluster

GOOD = {
    "cluster": {"worker": ["host1:12345", "[::1]:12346", "10.0.0.3:1"]},
    "task": {"type": "worker", "index": 0},
}
ODD = (
    *(None, True, False, 0, 1, -1, 3, 1.0, 0.5, "0", "", " ", "worker", "chief", "ps"),
    *([], [[]], {}, {"worker": 1}, {"chief": ["host0:1"]}, {"ps": ["a:1"]}, "host1:1"),
    *(["host1:1"], ["host1"], ["host1:0"], ["host1:65536"], ["host1:-1"], [":1"]),
    *(["host1:1", "host1:1"], ["a:1", 2], ["a b:1"], ["host1:1:2"], ["::1:2"], ["é:1"]),
    *(["http://a:1"], ["a:1 "], ["a:１"], ["a:0x1"], ["a:1e3"], ["a\x00b:1"], [None]),
    *(["a:1\n"], ["[::1]:5"], 1e400, 2**70, "\ud800", [["worker", ["a:1"]]]),
    *([["type", "worker"], ["index", 0]], {"type": "worker"}, ["worker"], [0]),
    *({"worker": ["a:1"], "chief": ["b:1", "c:1"]}, {"worker": [], "chief": ["b:1"]}),
)
SLURM = {
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_JOB_ID": "123",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
ODD_TEXTS = (
    *("", " ", "a", "-1", "0", "1", "2", "99", "1.5", "1e9", "nan", "²", "٣", "\n"),
    *("9" * 5000, "node", "node1,node2", "node[1-", "node[2-1]", "node[1-2", "[1-2]"),
    *("node[a-b]", "1(x", "1(x3)", "2(x2),1", "1,1", "(x2)", "node[1-2],", ",", "a b"),
)


def prepare(folder):
    cluster_of_slurm()  # imports TensorFlow, once
    return folder


def cluster_of_slurm():
    os.environ.update(SLURM)
    try:
        return cluster.find_cluster()
    finally:
        for name in SLURM:
            del os.environ[name]


def draw(folder, generator):
    """Returns a case of a changed TF_CONFIG, or of a changed Slurm step."""
    if generator.random() < 0.35:
        environment = dict(SLURM)
        for _ in range(generator.choice((1, 1, 2))):
            name = generator.choice(list(SLURM))
            if generator.random() < 0.3:
                environment.pop(name, None)
            else:
                environment[name] = generator.choice(ODD_TEXTS)
        what = " ".join(f"{k}={v[:50]!r}" for k, v in environment.items())
        return Case(what, lambda: judge_slurm(environment))
    content = json.loads(json.dumps(GOOD))
    for _ in range(generator.choice((0, 1, 1, 2))):
        change(content, generator)
    text = json.dumps(content, ensure_ascii=generator.random() < 0.8)
    if generator.random() < 0.25:
        text = damaged(text.encode(errors="replace"), generator)[1].decode(
            "utf-8", "surrogateescape"
        )
    text = text.replace("\x00", "?")  # which no environment can hold
    command = generator.choice((["train"], ["evaluate", "m", "--dataset=digits"]))
    argv = [*command, "--strategy=multi_worker"]
    argv += ["--epsilons=0.1"] if command[0] == "evaluate" else ["--run_dir=run"]
    environment = {"TF_CONFIG": text}
    return Case(shown(argv, environment), lambda: judge_tf_config(argv, environment))


def change(content, generator):
    """Puts something odd in a random place of a JSON value."""
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        if not keys:
            return
        key = generator.choice(keys)
        if isinstance(place[key], (dict, list)) and generator.random() < 0.7:
            place = place[key]
            continue
        if generator.random() < 0.2:
            del place[key]
        elif isinstance(place, dict) and generator.random() < 0.2:
            place[generator.choice(("chief", "more", "", "worker"))] = place[key]
        else:
            place[key] = generator.choice(ODD)
        return


def judge_tf_config(argv, environment):
    with tempfile.TemporaryDirectory() as scratch:
        answer = fork(argv, Path(scratch), environment)
    good = describes_a_cluster(environment["TF_CONFIG"])
    if answer.status != REACHED:
        kind = check_refusal(answer, ["TF_CONFIG"])
        if good:
            raise Offence("silent", f"valid, but refused: {answer.err[:400]}")
        return kind
    if not good:
        raise Offence("silent", "accepted")
    return "accepted"


def describes_a_cluster(text):
    """Returns whether a TF_CONFIG is what TensorFlow documents, for our jobs."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return False
    jobs = content.get("cluster") if isinstance(content, dict) else None
    task = content.get("task") if isinstance(content, dict) else None
    if not isinstance(jobs, dict) or not isinstance(task, dict):
        return False
    if not set(jobs) <= {"chief", "worker"} or len(jobs.get("chief") or ()) > 1:
        return False
    if not all(isinstance(job, list) for job in jobs.values()):
        return False
    addresses = [a for job in jobs.values() for a in job]
    for address in addresses:
        if not isinstance(address, str):
            return False
        match = re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]+)", address)
        if match is None or not 0 < int(match[2]) < 65536:
            return False
    index, kind = task.get("index"), task.get("type")
    return (
        len(set(addresses)) == len(addresses)
        and type(index) is int
        and isinstance(kind, str)
        and 0 <= index < len(jobs.get(kind, ()))
    )


def judge_slurm(environment):
    """Finds the cluster in this process, since TensorFlow reads a part of it."""
    try:
        os.environ.update(environment)
        found = cluster.find_cluster()
    except ValueError as error:
        if not re.search("srun|TF_CONFIG", str(error)):
            raise Offence("traceback", f"no remedy: {error}") from error
        return "refused"
    except Exception as error:
        raise Offence("traceback", repr(error)) from error
    finally:
        for name in environment:
            os.environ.pop(name, None)
    inside = 0 <= found.index < len(found.addresses)
    if not inside or len(set(found.addresses)) < len(found.addresses):
        raise Offence("silent", f"accepted: {found}")
    if len(found.addresses) != int(environment["SLURM_NTASKS"]):
        raise Offence("silent", f"accepted: {found}")
    return "accepted"
