"""The processes and devices that train together, and how they share.

The global batch stays what it is, and each replica takes an equal part of it. What this
means for noise, batch normalisation and losses is in docs/scaling.md.
"""

import contextlib
import dataclasses
import json
import os
import signal
import threading
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from pni_tf.distribution.cluster import Cluster, WorkerLost, rendezvous
from pni_tf.distribution.deadline import deadline
from pni_tf.files import digest
from pni_tf.settings.machine import Devices


@dataclasses.dataclass(frozen=True)
class Workers:
    """The processes that train together; by default this one alone.

    Attributes:
        strategy: The distribution strategy, or None on one device.
        index: Which worker this is.
        count: Number of workers.
    """

    strategy: tf.distribute.Strategy | None = None
    index: int = 0
    count: int = 1

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes files."""
        return self.index == 0

    @property
    def replicas(self) -> int:
        """Number of devices that share a batch, over all workers."""
        return self.strategy.num_replicas_in_sync if self.strategy else 1

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices of this worker."""
        return tuple(self.strategy.extended.worker_devices) if self.strategy else ()

    def scope(self) -> contextlib.AbstractContextManager:
        """Returns the context in which models are made."""
        return self.strategy.scope() if self.strategy else contextlib.nullcontext()

    def gather(self, values: list[int]) -> np.ndarray:
        """Returns what each worker gave, int64 `[count, len(values)]`.

        All workers must call it, with equally many values; it waits for the last.
        """
        own = np.zeros([self.count, len(values)], np.int64)
        own[self.index] = values
        if self.count == 1:
            return own
        with self.losing_workers():
            found = _sum_over_workers(self.strategy, tf.constant(own))
        # Each worker has counted once for each of its devices.
        return found.numpy() // len(self.devices)

    def barrier(self) -> None:
        """Waits until all workers have come here."""
        self.gather([0])

    @contextlib.contextmanager
    def losing_workers(self) -> Iterator[None]:
        """Turns TensorFlow's errors about a lost peer into `WorkerLost`."""
        try:
            yield
        except _PEER_ERRORS as error:
            if self.count == 1:
                raise
            reason = str(error).strip().splitlines() or [""]
            raise WorkerLost(
                f"worker {self.index} lost its peers: one of them died or cannot be "
                "reached. Run the same command again on all workers to continue from "
                "the last checkpoint. If it happens again and again, look at what "
                f"TensorFlow said: {type(error).__name__}: {reason[0][:200]}"
            ) from error

    def distribute(self, batches: tf.data.Dataset):
        """Shares out every batch evenly over the replicas, as `fit` takes it.

        The batches are of the global size and the same on every worker. None may hold
        fewer examples than there are replicas.
        """
        if self.replicas == 1:
            return batches

        def parts(context):
            replicas = context.num_replicas_in_sync
            here = replicas // context.num_input_pipelines
            first = context.input_pipeline_id * here

            def split(*batch):
                size = tf.shape(batch[0], tf.int64)[0]

                def part(replica):
                    start = replica * size // replicas
                    stop = (replica + 1) * size // replicas
                    return tuple(values[start:stop] for values in batch)

                return tf.data.Dataset.range(first, first + here).map(part)

            return batches.flat_map(split).prefetch(2 * here)

        return self.strategy.distribute_datasets_from_function(parts)

    def check_agreement(self, variables: list) -> None:
        """Compares variables over the workers; all workers must call it.

        Raises:
            RuntimeError: If a variable differs between workers in any byte.
        """
        sums = [int(digest(v.numpy().tobytes())[:14], 16) for v in variables]
        differ = (self.gather(sums) != sums).any(axis=0)
        if differ.any():
            names = [v.path for v, bad in zip(variables, differ, strict=True) if bad]
            raise RuntimeError(
                f"{len(names)} variables differ between workers, such as {names[0]}: "
                "a layer keeps a state of its own on each replica"
            )


@tf.function(reduce_retracing=True, autograph=False)
def _sum_over_workers(strategy, own):
    def add():
        context = tf.distribute.get_replica_context()
        # A tensor of the replica: the argument of a function has no device.
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(own))

    return strategy.experimental_local_results(strategy.run(add))[0]


_PEER_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnknownError,
)


def connect(
    devices: Devices, cluster: Cluster | None = None, agree_on: str = ""
) -> Workers:
    """Returns the workers of a strategy. Call it once, before TensorFlow computes.

    Args:
        devices: The strategy, and what it needs. Without GPUs, `mirrored` takes the
            logical CPUs where there are several.
        cluster: What `find_cluster` returns, for `multi_worker`.
        agree_on: What must be the same for all workers; see `rendezvous`.

    Raises:
        ValueError: If the machine lacks the devices, or workers differ in what they
            must agree on.
        WorkerLost: If a worker cannot be reached in time.
    """
    if devices.strategy == "multi_worker":
        return _multi_worker(cluster, agree_on, devices.cluster_timeout)
    if devices.strategy == "mirrored":
        return Workers(_mirrored())
    return Workers(_tpu(devices.tpu) if devices.strategy == "tpu" else None)


def _mirrored():
    devices = tf.config.list_logical_devices("GPU")
    if not devices:
        devices = tf.config.list_logical_devices("CPU")
        if len(devices) == 1:
            raise ValueError(
                "The strategy 'mirrored' needs GPUs, and TensorFlow sees none: use one "
                "device (`--strategy=none`), or try it on logical CPUs "
                "(`--cpu_devices=2`)"
            )
    try:
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    except json.JSONDecodeError as error:  # TensorFlow reads TF_CONFIG here, too.
        raise ValueError(
            "The environment variable TF_CONFIG is not JSON; unset it. "
            f"Received: TF_CONFIG={os.environ.get('TF_CONFIG')!r}"
        ) from error


def _multi_worker(cluster, agree_on, timeout):
    if len(cluster.addresses) > 1:
        rendezvous(cluster, agree_on=agree_on, timeout=timeout)
    message = (
        f"error: worker {cluster.index} has no connection to all of "
        f"{', '.join(cluster.addresses)} after {timeout:g} seconds: open these ports "
        "between the machines, and see whether the others are alive"
    )
    place = {"index": cluster.index, "count": len(cluster.addresses)}
    # All are there, but ports between them may be closed, or one dies just now.
    with deadline(timeout, message, status=75), Workers(**place).losing_workers():
        strategy = tf.distribute.MultiWorkerMirroredStrategy(
            tf.distribute.cluster_resolver.SimpleClusterResolver(
                tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
                task_type="worker",
                task_id=cluster.index,
                rpc_layer="grpc",
            )
        )
        workers = Workers(strategy, **place)
        workers.barrier()
    if threading.current_thread() is threading.main_thread():
        # TensorFlow has put a handler in the place of ours that does nothing but log.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return workers


def _tpu(name):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (tf.errors.OpError, ValueError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines() or [repr(error)]
        raise ValueError(
            f"No TPU {name!r} can be used: {reason[0][:200]}. TPUs need the package "
            "tensorflow-tpu, on a TPU VM"
        ) from error
