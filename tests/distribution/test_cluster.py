"""Who trains together: TF_CONFIG, Slurm, and the meeting before TensorFlow starts."""

import json
import socket
import threading

import pytest
from free_ports import addresses

from pni_tf.distribution.cluster import Cluster, WorkerLost, find_cluster, rendezvous

TWO = {"worker": ["a:1", "b:2"]}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in ("TF_CONFIG", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


def config(cluster=TWO, kind="worker", index=0):
    return {"cluster": cluster, "task": {"type": kind, "index": index}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (config(), Cluster(("a:1", "b:2"), 0)),
        (config(index=1), Cluster(("a:1", "b:2"), 1)),
        (config({"worker": ["a:1"]}), Cluster(("a:1",), 0)),
        (config({"chief": ["c:9"], **TWO}, index=1), Cluster(("c:9", "a:1", "b:2"), 2)),
        (config({"chief": ["c:9"], **TWO}, "chief"), Cluster(("c:9", "a:1", "b:2"), 0)),
        (config({"worker": ["[::1]:5", "host.a-b.c:65535"]}, index=1), None),
    ],
)
def test_tf_config(monkeypatch, content, expected):
    monkeypatch.setenv("TF_CONFIG", json.dumps(content))
    found = find_cluster()
    assert found.is_chief == (found.index == 0)
    if expected is not None:
        assert found == expected


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "7",
        "[" * 100_000,
        {"cluster": TWO},
        {"task": {"type": "worker", "index": 0}},
        {"cluster": TWO, "task": {"type": "worker"}},
        config({}),
        config({"worker": []}),
        config({"worker": "a:1"}),
        config({"worker": [1]}),
        config({"worker": ["a"]}),
        config({"worker": ["a:"]}),
        config({"worker": [":1"]}),
        config({"worker": ["a:0"]}),
        config({"worker": ["a:65536"]}),
        config({"worker": ["a:1x"]}),
        config({"worker": ["a b:1"]}),
        config({"worker": ["a:1:2"]}),
        config({"worker": ["::1:2"]}),
        config({"worker": ["http://a:1"]}),
        config([["worker", ["a:1"]]]),
        {"cluster": TWO, "task": [["type", "worker"], ["index", 0]]},
        config({"worker": ["a:1", "a:1"]}),
        config({"chief": ["a:1", "b:1"]}, "chief"),
        config({"ps": ["c:1"], **TWO}),
        config({"chief": ["a:1"], **TWO}),
        config(index=2),
        config(index=-1),
        config(index="0"),
        config(index=True),
        config(index=0.0),
        config(kind="chief"),
        config(kind="evaluator"),
        config(kind=None),
    ],
)
def test_wrong_tf_config(monkeypatch, content):
    text = content if isinstance(content, str) else json.dumps(content)
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG must be like .* Received: TF_CON"):
        find_cluster()


def test_no_cluster():
    with pytest.raises(ValueError, match="TF_CONFIG, .* or a Slurm job step"):
        find_cluster()


@pytest.mark.parametrize(
    ("rank", "address"), [(0, "gpu1:20077"), (1, "gpu1:20078"), (3, "gpu3:20078")]
)
def test_slurm(monkeypatch, rank, address):
    for name, value in {
        "PROCID": rank,
        "JOB_ID": 60077,
        "NTASKS": 4,
        "STEP_NUM_TASKS": 4,
        "STEP_NODELIST": "gpu[1,3]",
        "STEP_TASKS_PER_NODE": "2(x2)",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    found = find_cluster()
    assert found.index == rank
    assert found.addresses[rank] == address
    assert len(set(found.addresses)) == 4


def test_slurm_without_a_step(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "0")
    with pytest.raises(ValueError, match="Start the command by srun"):
        find_cluster()


def meet(calls, timeout):
    """Runs `rendezvous` for several workers at once; returns what each raised."""
    raised = [None] * len(calls)

    def run(i, cluster, agree_on):
        try:
            rendezvous(cluster, agree_on=agree_on, timeout=timeout)
        except Exception as error:
            raised[i] = error

    threads = [
        threading.Thread(target=run, args=(i, *call)) for i, call in enumerate(calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@pytest.mark.parametrize("count", [2, 5])
def test_all_meet(count):
    hosts = addresses(count)
    order = [*range(1, count), 0]  # The chief comes last.
    assert meet([(Cluster(hosts, i), "same") for i in order], 30) == [None] * count
    # The ports are free again, for TensorFlow.
    for host in hosts:
        socket.create_server(("", int(host.rpartition(":")[2]))).close()


def test_who_is_missing_is_named():
    hosts = addresses(3)
    chief, worker = meet([(Cluster(hosts, i), "same") for i in (0, 2)], 1)
    assert isinstance(chief, WorkerLost)
    assert str(chief) == f"no word from worker 1 ({hosts[1]}) for 1 seconds"
    assert isinstance(worker, WorkerLost)
    assert f"no answer from the chief at {hosts[0]}" in str(worker)


def test_workers_with_other_flags_are_refused():
    hosts = addresses(2)
    raised = meet([(Cluster(hosts, 0), "a"), (Cluster(hosts, 1), "b")], 30)
    for error in raised:
        assert isinstance(error, ValueError)
        assert "worker 1 was started with other flags or another cluster" in str(error)


def test_workers_with_another_cluster_are_refused():
    hosts = addresses(3)
    others = (*hosts[:2], "elsewhere:1")
    raised = meet([(Cluster(hosts, 0), ""), (Cluster(others, 1), "")], 30)
    assert all("another cluster" in str(error) for error in raised)


@pytest.mark.parametrize(
    "says",
    [
        b"",
        b"GET / HTTP/1.0\r\n\r\n",
        b'{"index": 1}',
        b"7",
        b'{"index": [], "digest": "x"}',
        b'{"index": 2, "digest": "x"}',
    ],
)
def test_strangers_are_ignored(says):
    hosts = addresses(2)
    port = int(hosts[0].rpartition(":")[2])
    raised = []
    chief = threading.Thread(
        target=lambda: raised.extend(meet([(Cluster(hosts, 0), "")], 30))
    )
    chief.start()
    while True:  # Try until the chief listens.
        try:
            stranger = socket.create_connection(("127.0.0.1", port))
            break
        except ConnectionRefusedError:
            pass
    stranger.sendall(says)
    stranger.close()
    assert meet([(Cluster(hosts, 1), "")], 30) == [None]
    chief.join()
    assert raised == [None]


def test_taken_port():
    hosts = addresses(2)
    with socket.create_server(("", int(hosts[0].rpartition(":")[2]))):
        (error,) = meet([(Cluster(hosts, 0), "")], 1)
    assert isinstance(error, OSError)
    assert f"cannot listen at {hosts[0]}" in str(error)
