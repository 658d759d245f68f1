"""Parametric Noise Injection (PNI) for TensorFlow and Keras 3.

Noise layers whose strength is trained, the adversarial training that trains them,
the attacks that judge them, and an evaluation that a sceptic believes.

The public names are loaded on first use, so that a command can answer `--help`
without waiting for TensorFlow. Where Keras is imported before this package, as in
`import keras` followed by `import pni_tf`, the layers are registered with Keras at
once and `keras.saving.load_model` finds them.

Reference: He, Rakin, Fan. Parametric Noise Injection: Trainable Randomness to Improve
Deep Neural Network Robustness against Adversarial Attack. CVPR 2019.
https://arxiv.org/abs/1811.09310
"""

import importlib
import os
import sys

__version__ = "0.1.0"

_MODULE_OF = {
    "APGD": "attacks",
    "FGSM": "attacks",
    "PGD": "attacks",
    "ZOO": "attacks",
    "Attack": "attacks",
    "BoundedSensitivity": "sensitivity",
    "CarliniWagnerL2": "attacks",
    "ExpectationOverNoise": "attacks",
    "FixedNoise": "fixed_noise",
    "PNIAdversarialModel": "training",
    "PNIInput": "layers",
    "PNIOutput": "layers",
    "PNIWeight": "layers",
    "RandomSearch": "attacks",
    "Square": "attacks",
    "Transfer": "attacks",
    "alphas": "conversion",
    "build_model": "models",
    "certify": "evaluation",
    "evaluate_robustness": "evaluation",
    "export_saved_model": "export",
    "freeze_pni": "conversion",
    "fuse_batch_norm": "fusion",
    "inject_pixeldp": "pixeldp",
    "inject_pni": "conversion",
    "inject_rse": "fixed_noise",
    "load_dataset": "data",
    "load_target": "export",
    "make_attack": "attacks",
    "run_checklist": "evaluation",
    "strip_pni": "conversion",
    "strong_suite": "evaluation",
    "train_substitute": "attacks",
}

__all__ = [*_MODULE_OF, "__version__"]


def check_backend() -> None:
    """Raises an ImportError if the environment asks Keras for another backend."""
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend != "tensorflow":
        raise ImportError(
            "pni_tf needs Keras to run on TensorFlow: unset KERAS_BACKEND or set it to "
            f"'tensorflow'. Received: KERAS_BACKEND={backend!r}"
        )


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'pni_tf' has no attribute {name!r}")
    check_backend()
    value = getattr(importlib.import_module(f"pni_tf.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "keras" in sys.modules:
    check_backend()
    for _module in ("layers", "fixed_noise"):
        importlib.import_module(f"pni_tf.{_module}")
