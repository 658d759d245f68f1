"""Who trains together: TF_CONFIG, a Slurm job step, and who speaks at the meeting."""

import copy
import json
import os
import re
import socket
import tempfile
import threading
from unittest import mock

from cases import accidents, cases
from command_answers import answer_of, check_refused
from free_ports import addresses
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pni_tf.distribution.cluster import Cluster, find_cluster, rendezvous

HOSTS = st.builds(
    "{}:{}".format,
    st.sampled_from(["host1", "[::1]", "10.0.0.3", "gpu-1.cluster"]),
    st.integers(1, 65535),
)
ODD = st.sampled_from(
    (
        *(
            None,
            True,
            -1,
            0,
            1,
            3,
            1.0,
            "0",
            "",
            "worker",
            "chief",
            [],
            [[]],
            {},
            2**70,
        ),
        *("host1:1", ["host1"], ["host1:0"], ["host1:65536"], [":1"], ["a:1", "a:1"]),
        *(["a b:1"], ["host1:1:2"], ["::1:2"], ["é:1"], ["http://a:1"], ["a:1 "]),
        *(["a:１"], ["a:0x1"], ["a\x00b:1"], ["a:1\n"], 1e400, "\ud800", {"worker": 1}),
        *({"ps": ["a:1"]}, {"chief": ["b:1", "c:1"]}, [["type", "worker"]]),
    )
).map(copy.deepcopy)  # They are changed further.


@st.composite
def tf_configs(draw):
    """Draws the text of a TF_CONFIG, of which about half are right."""
    jobs = {"worker": draw(st.lists(HOSTS, max_size=4, unique=True))}
    if draw(st.booleans()):
        jobs["chief"] = draw(st.lists(HOSTS, max_size=1))
    kind = draw(st.sampled_from(list(jobs)))
    task = {"type": kind, "index": draw(st.integers(0, max(1, len(jobs[kind]))))}
    content = {"cluster": jobs, "task": task}
    for _ in range(draw(st.sampled_from((0, 0, 1, 2)))):
        place, keys = content, list(content)
        while keys:
            key = draw(st.sampled_from(keys))
            inside = place[key]
            if not (isinstance(inside, (dict, list)) and inside) or draw(st.booleans()):
                place[draw(st.just(key) | st.sampled_from(keys))] = draw(ODD)
                break
            place, keys = (
                inside,
                list(inside if isinstance(inside, dict) else range(len(inside))),
            )
    text = json.dumps(content)
    damaged = accidents(text.encode()).map(
        lambda b: b.decode("utf-8", "surrogateescape")
    )
    return draw(st.just(text) | st.just(text) | damaged).replace("\x00", "?")


def described(text):
    """Returns what TensorFlow takes a TF_CONFIG for; None if it is wrong."""
    try:
        content = json.loads(text)
        jobs, task = content["cluster"], content["task"]
        chief, worker = jobs.get("chief", []), jobs.get("worker", [])
        kind, index, hosts = task["type"], task["index"], [*chief, *worker]
        right = (
            set(jobs) <= {"chief", "worker"}
            and isinstance(chief, list)
            and isinstance(worker, list)
            and len(chief) <= 1
            and all(
                re.fullmatch(r"([\w.-]+|\[[\dA-Fa-f:.]+\]):\d+", h, re.A) for h in hosts
            )
            and all(0 < int(host.rpartition(":")[2]) < 65536 for host in hosts)
            and len(set(hosts)) == len(hosts)
            and type(index) is int
            and 0 <= index < len(jobs.get(kind, []))
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return (
        Cluster(tuple(hosts), index + len(chief) * (kind == "worker"))
        if right
        else None
    )


@cases(120, 300)
@given(
    tf_configs(),
    st.sampled_from(
        ["train --run_dir=run", "evaluate m --dataset=digits --epsilons=1"]
    ),
)
def test_tf_config(text, command):
    environment, expected = {"TF_CONFIG": text}, described(text)
    argv = [*command.split(), "--strategy=multi_worker"]
    with tempfile.TemporaryDirectory() as folder:
        answer = answer_of(argv, folder, environment)
        if not answer.accepted:
            check_refused(answer, "TF_CONFIG")
            assert not os.listdir(folder)
    assert answer.accepted == (expected is not None)
    if expected is not None:
        with mock.patch.dict(os.environ, environment):
            assert find_cluster() == expected


SLURM = {
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_JOB_ID": "123",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}
ODD_TEXTS = st.sampled_from(
    (
        *("", " ", "a", "-1", "0", "1", "2", "99", "1.5", "nan", "²", "٣", "9" * 5000),
        *("node", "node1,node2", "node[1-", "node[2-1]", "[1-2]", "node[a-b]", "1(x"),
        *("1(x3)", "2(x2),1", "1,1", "(x2)", "node[1-2],", ","),
    )
) | st.text("node[]()-,x012", max_size=8)


@cases(100, 250)
@given(st.dictionaries(st.sampled_from(list(SLURM)), st.none() | ODD_TEXTS, max_size=2))
def test_slurm(changes):
    environment = {k: v for k, v in {**SLURM, **changes}.items() if v is not None}
    with mock.patch.dict(os.environ, environment):
        for name in {"TF_CONFIG", *SLURM} - {*environment}:
            os.environ.pop(name, None)
        try:
            found = find_cluster()
        except ValueError as error:
            assert re.search("srun|TF_CONFIG", str(error))
            assert changes  # Otherwise nothing was wrong.
            return
    assert found.index == int(environment["SLURM_PROCID"])
    assert (
        found.index < len(found.addresses) == int(environment["SLURM_STEP_NUM_TASKS"])
    )
    assert len(set(found.addresses)) == len(found.addresses)


def meet(hosts, index):
    rendezvous(Cluster(hosts, index), agree_on="", timeout=30)


def together(*calls):
    """Calls functions at once; returns what each raised."""
    raised = [None] * len(calls)

    def run(i):
        try:
            calls[i]()
        except Exception as error:
            raised[i] = error

    threads = [threading.Thread(target=run, args=[i]) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["index", "digest", "x"]), inner, max_size=2)
    ),
)


@cases(30, 150)
@given(st.binary(max_size=40) | JSON.map(json.dumps).map(str.encode))
@example(b"[" * 4096)
def test_strangers_at_the_meeting_are_ignored(says):
    """Whoever is not a worker: a port scanner, a browser, a neighbour's program."""
    hosts = addresses(2)

    def stranger():
        while True:  # Try until the chief listens.
            try:
                port = int(hosts[0].rpartition(":")[2])
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    connection.sendall(says)
                break
            except OSError:
                pass
        meet(hosts, 1)

    try:
        index = json.loads(says)["index"]
        assume(index != 1)  # A worker says that.
    except (ValueError, TypeError, LookupError, RecursionError):
        pass
    assert together(lambda: meet(hosts, 0), stranger) == [None, None]


@cases(20, 60)
@given(st.binary(min_size=1, max_size=60) | st.just(b"HTTP/1.1 400 Bad\r\n\r\n"))
def test_something_else_at_the_address_of_the_chief(says):
    assume(says != b"go")
    hosts = addresses(2)

    def other_program():
        with socket.create_server(
            ("127.0.0.1", int(hosts[0].rpartition(":")[2]))
        ) as server:
            connection, _ = server.accept()
            with connection:
                connection.sendall(says)

    _, error = together(other_program, lambda: meet(hosts, 1))
    assert isinstance(error, ValueError)
    assert hosts[0] in str(error)
    assert str(error).isprintable()
