"""Parametric Noise Injection (PNI) for TensorFlow and Keras 3.

Noise layers whose strength is trained, the adversarial training that trains them,
the attacks that judge them, and an evaluation that a sceptic believes.

The public names are loaded on first use, so that a command can answer `--help`
without waiting for TensorFlow. What Keras must know to load our files is registered
as soon as both this package and Keras are imported, in either order.

Reference: He, Rakin, Fan. Parametric Noise Injection: Trainable Randomness to Improve
Deep Neural Network Robustness against Adversarial Attack. CVPR 2019.
https://arxiv.org/abs/1811.09310
"""

import importlib
import os
import sys

__version__ = "0.1.0"

# The public names, by the module that they are loaded from.
_NAMES = {
    "attacks.apgd": "APGD",
    "attacks.base": "Attack Outcome",
    "attacks.carlini_wagner": "CarliniWagnerL2",
    "attacks.draws": """
        ExpectationOverNoise expected_loss probe_gradient value_and_gradient
    """,
    "attacks.fgsm": "FGSM",
    "attacks.pgd": "PGD",
    "attacks.presets": "make_attack",
    "attacks.random_search": "RandomSearch",
    "attacks.square": "Square",
    "attacks.substitute": "train_substitute",
    "attacks.transfer": "Transfer",
    "attacks.zoo.attack": "ZOO",
    "data": "DATASETS load_dataset steps_per_epoch training_batches",
    "evaluation.certification": "Certificate certify",
    "evaluation.checklist": "Checklist run_checklist",
    "evaluation.curves": "evaluate_curve",
    "evaluation.record": "Column read_evaluation",
    "evaluation.report": "Evaluation format_table",
    "evaluation.results": "Result Scenario union worst_cases",
    "evaluation.robustness": "evaluate_robustness",
    "evaluation.store": "ResultStore",
    "evaluation.suites": """
        paper_suite scenario_of standard_scenarios strong_suite transfer_from
    """,
    "export": "export_saved_model",
    "models": "build_model",
    "noise.fusion": "fuse_batch_norm",
    "noise.injection": "alphas freeze_noise inject_pni inject_rse strip_noise",
    "noise.layers": "FixedNoise PNIInput PNIOutput PNIWeight",
    "noise.pixeldp": "BoundedSensitivity inject_pixeldp",
    "settings.training": "Adversarial Computation Network Optimisation Recipe",
    "targets": "Target load_target",
    "training.assembly": "assemble_trainer",
    "training.checkpoints": "Checkpoint",
    "training.trainer": "PNIAdversarialModel",
}
_MODULE_OF = {
    name: module for module, names in _NAMES.items() for name in names.split()
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


def _register() -> None:
    """Registers all layers and constraints with Keras, by importing their modules."""
    check_backend()
    for module in ("noise.layers", "noise.pixeldp"):
        importlib.import_module(f"pni_tf.{module}")


class _AfterKeras:
    """An import hook that registers the layers once Keras has been imported.

    Keras looks a class up in its registry when it loads a file and imports no module to
    find it, so a user who imports `pni_tf` before Keras needs the registration too.
    """

    def find_spec(self, name, path=None, target=None):
        if name != "keras" or self not in sys.meta_path:
            return None
        # Earlier finders have not found it. One of them may be a hook like this, which
        # asks this one: to ask it in turn would never end.
        later = sys.meta_path[sys.meta_path.index(self) + 1 :]
        finders = (getattr(finder, "find_spec", None) for finder in later)
        specs = (find(name, path, target) for find in finders if find)
        spec = next(filter(None, specs), None)
        execute = getattr(getattr(spec, "loader", None), "exec_module", None)
        if execute is not None:

            def execute_and_register(module):
                # The loader of an archive, for one, loads other modules too.
                if module.__name__ != name or self not in sys.meta_path:
                    return execute(module)
                check_backend()
                execute(module)
                _register()
                sys.meta_path.remove(self)

            spec.loader.exec_module = execute_and_register
        return spec


if sys.modules.get("keras") is not None:
    _register()
else:
    sys.meta_path.insert(0, _AfterKeras())
