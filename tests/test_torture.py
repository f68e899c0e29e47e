"""The short form of `make torture`, and that it would see a difference."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("torture.py")


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(kills):
    done = subprocess.run(
        [sys.executable, PROGRAM, "--kills", str(kills), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kills"] == kills and report["differences"] == []


def test_a_difference_is_seen(small_run, tmp_path):
    torture = runpy.run_path(str(PROGRAM))
    run = torture["RunFolder"](small_run.folder)
    assert torture["_differences"](run, run) == []
    end = torture["_end_of"](run)
    other = end | {"weights": end["weights"][:-1] + b"?", "step": "step-7"}
    torture["_differences"].__globals__["_end_of"] = lambda which: end if which == "a" else other
    assert torture["_differences"]("a", "b") == ["step", "weights"]
