"""A short part of `benchmarks/fuzz.py`, whose other surfaces take minutes."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"


@pytest.mark.parametrize(("surface", "count"), [("flags", 150), ("flagfiles", 50)])
def test_random_input_is_refused_or_right(surface, count):
    """In a process of its own, which forks for each case and has no TensorFlow."""
    command = [sys.executable, FUZZ, f"--only={surface}", f"--count={count}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"| {count} |" in result.stdout
