"""Robust accuracy with honest accounting for random networks."""

from pni_tf.evaluation.certification import Certificate, certify
from pni_tf.evaluation.checklist import Checklist, run_checklist
from pni_tf.evaluation.curves import CURVES, evaluate_curve
from pni_tf.evaluation.results import Result, Scenario, union, worst_cases
from pni_tf.evaluation.robustness import evaluate_robustness
from pni_tf.evaluation.store import ResultStore
from pni_tf.evaluation.suites import (
    paper_suite,
    scenario_of,
    standard_scenarios,
    strong_suite,
    transfer_from,
)

__all__ = [
    "CURVES",
    "Certificate",
    "Checklist",
    "Result",
    "ResultStore",
    "Scenario",
    "certify",
    "evaluate_curve",
    "evaluate_robustness",
    "paper_suite",
    "run_checklist",
    "scenario_of",
    "standard_scenarios",
    "strong_suite",
    "transfer_from",
    "union",
    "worst_cases",
]
