"""A rank that fails, dies, hangs or is told to stop; and what begins or goes on by itself."""

import socket
from functools import cache

import pytest

from faults import Fault
from processes import run_ranks
from small import SMALL

STEPS = 12
QUICK_TO_SAY = ["train.timeout_seconds=4", "train.validate_every_steps=50"]


@pytest.fixture(scope="module")
def begin(corpus_file, tmp_path_factory):
    """Pretrain on ranks, one of which may have a fault; give the run's folder and the processes."""

    def pretrain(size=2, settings=(), fault=None, more=("--steps", STEPS)):
        run = tmp_path_factory.mktemp("runs") / "run"
        sets = [f"--set={setting}" for setting in (*SMALL, *QUICK_TO_SAY, *settings)]
        arguments = ["pretrain", "--corpus", corpus_file, "--recipe", "tiny", "--out", run, *more]
        return run, run_ranks(size, [*arguments, *sets], first=fault)

    return pretrain


@pytest.fixture(scope="module")
def undisturbed(begin):
    """A run that nothing befell, once for each of the settings."""
    return cache(lambda size, *settings: begin(size, settings)[0])


def said(ranks):
    """What was said of ours on standard error, one line, and where there was a traceback."""
    [line] = [line for each in ranks for line in each.stderr.splitlines() if "bertmill: " in line]
    return line, [rank for rank, each in enumerate(ranks) if "Traceback" in each.stderr]


def bits(run):
    files = ["model/model.safetensors", *(f.name for f in newest(run).glob("optimizer*"))]
    return {name: (newest(run) / name).read_bytes() for name in files}


def newest(run):
    return (run / "model").resolve().parent


# --- a rank that fails ---------------------------------------------------------------------------

HOST = socket.gethostname()


@pytest.mark.parametrize(
    ("kind", "rank", "line"),
    [
        ("raises", 1, f"rank 1 on {HOST}: failed with ZeroDivisionError; go on with: "),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("raises", 0, f"rank 0 on {HOST}: failed with ZeroDivisionError; go on with: "),
                ("is_killed", 1, f"rank 1 on {HOST}: no sign of life (killed, "),
                ("is_killed", 0, f"rank 0 on {HOST}: no sign of life (killed, "),
                ("is_stopped", 1, f"rank 1 on {HOST}: no sign of life (killed, stopped, "),
                ("hangs", 1, f"rank 1 on {HOST}: has stood still for 4 seconds ("),
                ("refuses", 1, "rank 1: a thing: is wrong; put it right"),
                ("refuses", 0, "bertmill: a thing: is wrong; put it right"),
            ]
        ),
    ],
)
def test_one_line_names_the_rank_that_failed(kind, rank, line, begin):
    run, ranks = begin(fault=Fault(kind, rank, 6))
    found, traced = said(ranks)
    assert line in found
    assert traced == ([rank] if kind == "raises" else [])
    if kind != "refuses":
        assert found.endswith(f"bertmill pretrain --resume {run}")
    assert all(each.returncode != 0 for each in ranks)


@pytest.mark.slow
def test_of_three_ranks_the_one_that_hangs_is_named(begin):
    found, traced = said(begin(3, fault=Fault("hangs", 2, 6))[1])
    assert f"rank 2 on {HOST}: has stood still" in found and traced == []


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        pytest.param((), "is_killed", marks=pytest.mark.slow),
        pytest.param(("train.shard=full",), "is_killed", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_lost_a_rank_goes_on_to_the_same_bits(settings, kind, begin, undisturbed):
    run, ranks = begin(settings=settings, fault=Fault(kind, 1, 6))
    assert newest(run).name == "step-4" and said(ranks)
    succeed(run_ranks(2, ["pretrain", "--resume", run]))
    assert newest(run).name == f"step-{STEPS}"
    assert bits(run) == bits(undisturbed(2, *settings))


def succeed(ranks):
    assert [each.returncode for each in ranks] == [0] * len(ranks), ranks
