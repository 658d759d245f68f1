"""Which machines train together, and whether all of them are there."""

import contextlib
import dataclasses
import json
import os
import re
import socket
import time

from pni_tf.files import digest

_EXAMPLE = (
    '{"cluster": {"worker": ["host1:12345", "host2:12345"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
# A name or number, or an IPv6 address in brackets; then the port.
_ADDRESS = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):0*([0-9]{1,5})")


class WorkerLost(RuntimeError):
    """A worker cannot be reached, or died. The same command may work later."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run, each a process.

    Attributes:
        addresses: `host:port` of each worker; the first is the chief.
        index: Which of them this process is.
    """

    addresses: tuple[str, ...]
    index: int

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run directory."""
        return self.index == 0


def find_cluster() -> Cluster:
    """Returns the cluster that `TF_CONFIG` describes, else that of a Slurm job step.

    The tasks of `TF_CONFIG` are those of TensorFlow, `chief` (at most one) and
    `worker`. In a Slurm job step each task is a worker; it listens at a port that
    follows from the number of the job.

    Raises:
        ValueError: If there is neither, or one is wrong.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if text:
        return _from_tf_config(text)
    if "SLURM_PROCID" in os.environ:
        return _from_slurm()
    raise ValueError(
        "Several workers need the environment variable TF_CONFIG, on each machine with "
        f"its own index, or a Slurm job step. For example: TF_CONFIG='{_EXAMPLE}'"
    )


def _from_tf_config(text):
    def refuse(what):
        return ValueError(
            f"TF_CONFIG must be like {_EXAMPLE}: {what}. Received: TF_CONFIG={text!r}"
        )

    try:
        content = json.loads(text)
        jobs, task = content["cluster"], content["task"]
        kind, index = task["type"], task["index"]
        names = {*jobs.keys()}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as why:
        raise refuse(f"it cannot be read ({why!r})") from why
    if not names <= {"chief", "worker"}:
        raise refuse(f"the jobs may be chief and worker, not {sorted(names)}")
    if not all(isinstance(job, list) for job in jobs.values()):
        raise refuse("each job must be a list of addresses")
    if len(jobs.get("chief", [])) > 1:
        raise refuse("there may be only one chief")
    addresses = [*jobs.get("chief", []), *jobs.get("worker", [])]
    for address in addresses:
        if not _is_address(address):
            raise refuse(f"{address!r} is not host:port")
    if not addresses or len(set(addresses)) < len(addresses):
        raise refuse("there must be addresses, and all must differ")
    # In Python a bool is an int, so `isinstance` would let it pass.
    if type(index) is not int or not 0 <= index < len(jobs.get(str(kind), [])):
        raise refuse(f"there is no task {index!r} of the job {kind!r}")
    if kind == "worker":
        index += len(jobs.get("chief", []))
    return Cluster(tuple(addresses), index)


def _is_address(address):
    match = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    return match is not None and 0 < int(match[1]) < 2**16


def _from_slurm():
    import tensorflow as tf  # Here, because TF_CONFIG is checked without it.

    try:
        ports = 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=ports,
            # The resolver takes the GPUs of a node for tasks; here they are the
            # processes that srun has started and given their GPUs.
            gpus_per_node=int(os.environ["SLURM_NTASKS"]),
            gpus_per_task=1,
            auto_set_gpu=False,
        )
        addresses = resolver.cluster_spec().job_tasks("worker")
        if resolver.task_id not in range(len(addresses)):  # None if it has no place.
            raise ValueError(f"SLURM_PROCID={os.environ['SLURM_PROCID']} is not a task")
        return Cluster(tuple(addresses), resolver.task_id)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            "Start the command by srun inside a Slurm job, with one task per worker. "
            f"Received: {error!r}"
        ) from error


def rendezvous(cluster: Cluster, *, agree_on: str, timeout: float) -> None:
    """Waits until every worker is there; TensorFlow itself would wait for an hour.

    The chief listens at its address, the others report there, and all start together.
    `agree_on` must be the same for all, such as the flags of the command; `timeout` is
    in seconds.

    Raises:
        WorkerLost: If a worker does not report in time.
        ValueError: If workers differ in `agree_on` or in their cluster.
        OSError: If the address of this worker is taken.
    """
    own = json.dumps([cluster.addresses, agree_on])
    greeting = {"index": cluster.index, "digest": digest(own)}
    deadline = time.monotonic() + timeout
    address = cluster.addresses[cluster.index]
    try:
        server = socket.create_server(("", int(address.rpartition(":")[2])))
    except OSError as error:
        raise OSError(
            f"worker {cluster.index} cannot listen at {address} ({error.strerror}): "
            "another process has the port; stop it, or give the cluster other ports"
        ) from error
    with server:
        if cluster.is_chief:
            _receive(server, cluster, greeting, deadline, timeout)
            return
    _report(cluster, greeting, deadline, timeout)


def _receive(server, cluster, greeting, deadline, timeout):
    """Waits for the reports of all other workers, then sends them on."""
    found = {}
    try:
        while len(found) < len(cluster.addresses) - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection, _ = server.accept()
                connection.settimeout(min(5.0, timeout))
                theirs = json.loads(connection.recv(4096))
                index, theirs = theirs["index"], theirs["digest"]
                if index not in range(1, len(cluster.addresses)):
                    raise ValueError(f"no worker {index!r}")
            except TimeoutError:
                if time.monotonic() < deadline:
                    continue  # Someone has connected and says nothing.
                missing = [
                    f"{i} ({address})"
                    for i, address in enumerate(cluster.addresses)
                    if i and i not in found
                ]
                raise WorkerLost(
                    f"no word from worker {', '.join(missing)} for {timeout:g} seconds"
                ) from None
            except (OSError, ValueError, TypeError, KeyError, RecursionError):
                continue  # It is not one of the workers.
            found[index] = connection  # A worker may have been started again.
            if theirs != greeting["digest"]:
                refusal = (
                    f"worker {index} was started with other flags or another cluster "
                    "than the chief; all workers need the same command"
                )
                for connection in found.values():
                    with contextlib.suppress(OSError):
                        connection.sendall(refusal.encode())
                raise ValueError(refusal)
        for index, connection in found.items():
            try:
                connection.sendall(b"go")
            except OSError as error:
                raise WorkerLost(f"worker {index} went away") from error
        for connection in found.values():  # If they hang up first, the port is free.
            with contextlib.suppress(OSError):
                connection.recv(1)
    finally:
        for connection in found.values():
            connection.close()


def _report(cluster, greeting, deadline, timeout):
    """Reports to the chief, again and again until it answers."""
    host, _, port = cluster.addresses[0].rpartition(":")
    answer = b""
    while not answer:
        left = deadline - time.monotonic()
        if left <= 0:
            raise WorkerLost(
                f"no answer from the chief at {cluster.addresses[0]} for {timeout:g} "
                "seconds, or other workers are missing"
            )
        try:
            # Briefly, because the name of a chief that was moved has a new address.
            address = host.strip("[]"), int(port)
            with socket.create_connection(address, min(left, 5.0)) as chief:
                chief.sendall(json.dumps(greeting).encode())
                chief.settimeout(max(deadline - time.monotonic(), 0.001))
                answer = chief.recv(4096)
        except OSError:
            pass
        if not answer:
            time.sleep(0.1)  # The chief is not there yet, or is being restarted.
    if answer != b"go":
        # It may be another program that listens there, and say anything.
        words = re.sub(r"\s+", " ", answer.decode(errors="replace")).strip()
        raise ValueError(f"the chief at {cluster.addresses[0]} answers: {words!r}")
