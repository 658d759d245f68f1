"""Robust accuracy with honest accounting for random networks."""

from pni_tf.evaluation.robustness import (
    Result,
    Scenario,
    evaluate_robustness,
    standard_scenarios,
)

__all__ = ["Result", "Scenario", "evaluate_robustness", "standard_scenarios"]
