"""Competitors in processes of their own, which take their turns one at a time."""

import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGE_SHAPE = (32, 32, 3)
OURS = ("ours", "ours-unfused", "ours-folded", "ours-xla")
PEERS = ("torch-eager", "torch-tuned")


def add_options(parser):
    """Adds the options that describe a training step."""
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--width", type=float, default=1)
    parser.add_argument("--pni", default="w", help="where the noise of ours goes")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--attack_steps", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--precision",
        choices=("float32", "tf32", "bfloat16", "float16"),
        default="float32",
    )


class Worker:
    """A process that holds one competitor and takes a training step when asked to.

    Use it as a context manager.

    Args:
        name: One of `OURS` or `PEERS`.
        settings: What `add_options` parsed.
    """

    def __init__(self, name, settings):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._connection, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, name, settings), daemon=True
        )
        threads = str(settings.threads)
        names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
        os.environ.update(dict.fromkeys(names, threads))  # of the new process
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
        self._process.start()
        other.close()
        self.first_step = self._ask("first")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends the process."""
        self._connection.close()
        self._process.join()

    def step(self) -> float:
        """Returns the seconds that one training step takes."""
        return self._ask("step")

    def peak_memory(self) -> float:
        """Returns the peak memory of the process so far, in GiB."""
        return self._ask("memory")

    def profile(self) -> list[tuple[str, float, int]]:
        """Returns kinds of operations with milliseconds and number in one step."""
        return self._ask("profile")

    def _ask(self, what):
        try:
            self._connection.send(what)
            return self._connection.recv()
        except (EOFError, OSError):
            raise SystemExit(f"{self.name} failed; its error stands above") from None


def rounds(workers, count):
    """Lets the workers take turns; returns the seconds of each one's steps."""
    times = {worker.name: [] for worker in workers}
    for _ in range(count):
        for worker in workers:
            times[worker.name].append(worker.step())
    return times


def ratio(times, reference):
    """Returns median, minimum and maximum of the ratio of steps in the same round."""
    ratios = [a / b for a, b in zip(times, reference, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def machine(settings) -> str:
    """Describes processor, threads and versions in one line."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1] for line in lines if line.startswith("model name")]
        model = names[0].strip() if names else model
    packages = []
    for package in ("tensorflow", "keras", "torch"):
        try:
            packages.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return (
        f"{model}, {settings.threads} threads, {settings.device}, "
        f"{settings.precision}; Python {platform.python_version()}, "
        + ", ".join(packages)
    )


def _serve(connection, name, settings):
    import numpy as np

    generator = np.random.default_rng(0)
    images = generator.random((settings.batch_size, *IMAGE_SHAPE), dtype=np.float32)
    labels = generator.integers(0, 10, settings.batch_size)
    make = _torch_step if name in PEERS else _tensorflow_step
    step = make(name, settings, images, labels)
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        if request == "memory":
            usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            connection.send(usage / 2**20)
        elif request == "profile":
            connection.send(_profile(step))
        else:
            start = time.perf_counter()
            step()
            seconds = time.perf_counter() - start
            if request == "first":
                step()  # PyTorch compiles some graphs in the second
            connection.send(seconds)


def _torch_step(name, settings, images, labels):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import torch_peer

    recipe = name.removeprefix("torch-")
    return torch_peer.Trainer(settings, recipe, images, labels).step


def _tensorflow_step(name, settings, images, labels):
    sys.path.insert(0, str(ROOT))
    import keras
    import tensorflow as tf

    import pni_tf
    from pni_tf.data import DATASETS
    from pni_tf.noise import fusion

    tf.config.experimental.enable_tensor_float_32_execution(
        settings.precision == "tf32"
    )
    if settings.precision.endswith("16"):
        keras.mixed_precision.set_global_policy(f"mixed_{settings.precision}")
    if name == "ours-unfused":
        fusion.fuse_batch_norm = lambda model: model
    if name == "ours-folded":
        fusion._has_fused_operation = lambda norm, images: False
    info = DATASETS["cifar10"]
    network = pni_tf.build_model(
        settings.model,
        width=settings.width,
        input_shape=IMAGE_SHAPE,
        num_classes=10,
        mean=info.mean,
        std=info.std,
        weight_decay=2e-4,
        seed=0,
    )
    attack = pni_tf.PGD(epsilon=0.031, step_size=0.01, steps=settings.attack_steps)
    trainer = pni_tf.PNIAdversarialModel(
        pni_tf.inject_pni(network, settings.pni, seed=0), attack=attack, seed=0
    )
    trainer.compile(
        keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        jit_compile=name == "ours-xla",
    )
    batch = tf.constant(images), tf.constant(labels)
    step = tf.function(
        lambda: trainer.train_step(batch),
        jit_compile=name == "ours-xla",
        autograph=False,
    )
    return lambda: float(step()["loss"])


def _profile(step):
    import collections
    import tempfile

    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as directory:
        tf.profiler.experimental.start(directory)
        step()
        tf.profiler.experimental.stop()
        (path,) = Path(directory).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    seconds, counts = collections.Counter(), collections.Counter()
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                label = plane.event_metadata[event.metadata_id].name
                name, _, kind = label.partition(":")
                if kind.isidentifier() and name:
                    seconds[kind] += event.duration_ps / 1e9
                    counts[kind] += 1
    return [(kind, value, counts[kind]) for kind, value in seconds.most_common(15)]
