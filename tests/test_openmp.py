"""Idle threads of a command sleep soon, except where the user says how they wait."""

import os
import subprocess
import sys

import pytest

from bertmill.openmp import limit_spinning

OURS = {"GOMP_SPINCOUNT": "200", "KMP_BLOCKTIME": "1"}


@pytest.mark.parametrize(
    ("users", "then"),
    [
        ({}, OURS),
        ({"GOMP_SPINCOUNT": "7"}, OURS | {"GOMP_SPINCOUNT": "7"}),
        ({"KMP_BLOCKTIME": "infinite"}, OURS | {"KMP_BLOCKTIME": "infinite"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
        ({"GOMP_SPINCOUNT": ""}, OURS | {"GOMP_SPINCOUNT": ""}),
    ],
)
def test_the_users_own_setting_stays(users, then):
    environment = {"PATH": "/bin", **users}
    limit_spinning(environment)
    assert environment == {"PATH": "/bin", **then}


WATCH = """
import os, sys
class Watch:
    def find_spec(name, path, target=None):
        if name == "torch":
            print(os.environ["GOMP_SPINCOUNT"], os.environ["KMP_BLOCKTIME"], file=sys.stderr)
sys.meta_path.insert(0, Watch)
from bertmill.cli import main
sys.argv = ["bertmill", "inspect", "tiny", "--json"]
main()
"""


@pytest.mark.parametrize(
    "users", [{}, pytest.param({"GOMP_SPINCOUNT": "7"}, marks=pytest.mark.slow)]
)
def test_a_command_sets_it_before_torch_is_loaded(users):
    """GNU's library itself says so, where torch uses it."""
    kept = {k: v for k, v in os.environ.items() if k not in (*OURS, "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", WATCH],
        env=kept | {"OMP_DISPLAY_ENV": "verbose"} | users,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    then = OURS | users
    assert f"{then['GOMP_SPINCOUNT']} {then['KMP_BLOCKTIME']}\n" in done.stderr
    if "GOMP_" in done.stderr:
        assert f"GOMP_SPINCOUNT = '{then['GOMP_SPINCOUNT']}'" in done.stderr
