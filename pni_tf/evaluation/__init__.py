"""Robust accuracy with honest accounting for random networks.

Its public names are those of `pni_tf`, loaded on first use: whoever only reads
results need not wait for TensorFlow.
"""

import pni_tf


def __getattr__(name: str):
    if not pni_tf._MODULE_OF.get(name, "").startswith("evaluation."):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(pni_tf, name)
