"""Competitors in processes of their own, which take their turns one at a time."""

import concurrent.futures
import multiprocessing
import os
import sys

import common

OURS = ("ours", "ours-unfused", "ours-xla")
PEERS = ("torch-eager", "torch-tuned")


def add_options(parser):
    """Adds the options that describe a training step and where it runs."""
    common.add_step_options(parser)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--precision",
        choices=("float32", "tf32", "bfloat16", "float16"),
        default="float32",
    )


class Worker:
    """A process that holds one competitor and takes a training step when asked to.

    Args:
        name: One of `OURS` or `PEERS`.
        options: What `add_options` parsed.
    """

    def __init__(self, name, options):
        self.name = name
        names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
        os.environ.update(dict.fromkeys(names, str(options.threads)))
        self._process = concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), _make, (name, options)
        )
        self.first_step = self._ask(_time_step)
        self.step()  # PyTorch compiles some graphs in the second step.

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.shutdown()

    def step(self) -> float:
        """Returns the seconds that one training step takes."""
        return self._ask(_time_step)

    def peak_memory(self) -> float:
        """Returns the peak memory of the process so far, in GiB."""
        return self._ask(common.peak_memory)

    def _ask(self, function):
        try:
            return self._process.submit(function).result()
        except concurrent.futures.process.BrokenProcessPool:
            sys.exit(f"{self.name} failed; its error stands above")


def _make(name, options):
    global _step
    batch = common.random_images(options.batch_size)
    _step = (_torch_step if name in PEERS else _tensorflow_step)(name, options, *batch)


def _time_step():
    return common.seconds_of(_step)


def _torch_step(name, options, images, labels):
    import torch_peer

    recipe = name.removeprefix("torch-")
    return torch_peer.Trainer(options, recipe, images, labels).step


def _tensorflow_step(name, options, images, labels):
    import keras
    import tensorflow as tf

    import pni_tf

    tf.config.experimental.enable_tensor_float_32_execution(options.precision == "tf32")
    if options.precision.endswith("16"):
        keras.mixed_precision.set_global_policy(f"mixed_{options.precision}")
    network = common.noisy_network(options, fused=name != "ours-unfused")
    attack = pni_tf.PGD(epsilon=0.031, step_size=0.01, steps=options.attack_steps)
    trainer = pni_tf.PNIAdversarialModel(network, attack=attack, seed=0)
    xla = name == "ours-xla"
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
    trainer.compile(optimizer, jit_compile=xla)
    batch = tf.constant(images), tf.constant(labels)
    step = tf.function(
        lambda: trainer.train_step(batch), jit_compile=xla, autograph=False
    )
    return lambda: float(step()["loss"])
