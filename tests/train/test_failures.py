"""A rank that fails, dies, hangs or is told to stop; and what begins or goes on by itself."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from functools import cache

import pytest
from torch.distributed import TCPStore

import bertmill
from bertmill.train import watch
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
    """The one line that was said on standard error, and the ranks that left a traceback."""
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
    ranks = begin(3, ["train.shard=full"], Fault("hangs", 2, 6))[1]
    found, traced = said(ranks)
    assert f"rank 2 on {HOST}: has stood still" in found and traced == []


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), ("train.shard=full",)])
def test_a_run_that_lost_a_rank_goes_on_to_the_same_bits(settings, begin, undisturbed):
    run, ranks = begin(settings=settings, fault=Fault("is_killed", 1, 6))
    assert newest(run).name == "step-4" and said(ranks)
    succeed(run_ranks(2, ["pretrain", "--resume", run]))
    assert newest(run).name == f"step-{STEPS}"
    assert bits(run) == bits(undisturbed(2, *settings))


def succeed(ranks):
    assert [each.returncode for each in ranks] == [0] * len(ranks), ranks


def test_where_the_store_is_gone_that_is_said(monkeypatch, capsys):
    """As where torchrun was killed, or the machine that holds the store."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    ended = []
    monkeypatch.setattr(watch.os, "_exit", ended.append)
    first = watch.Watch(client, rank=0, size=1, timeout_seconds=1.0)
    port = server.port
    del server
    first.name_culprit()
    assert ended == [2]
    assert capsys.readouterr().err == (
        f"bertmill: the store of all ranks at 127.0.0.1:{port}: no answer (torchrun or its machine "
        "is gone); start all ranks again\n"
    )


def test_ranks_that_are_started_again_do_not_find_what_was_left(monkeypatch):
    """torchrun keeps its store; a machine that came back may have another rank than before."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def start(size):
        found = [""] * size

        def join(rank):
            store = TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
            found[rank] = watch.agree_on_start(store, rank, size)

        # Rank 0 last: the others find what an earlier start left.
        threads = [threading.Thread(target=join, args=(rank,)) for rank in reversed(range(size))]
        for thread in threads:
            thread.start()
            time.sleep(0.2)
        for thread in threads:
            thread.join()
        return found

    starts = [start(size) for size in (3, 2, 3)]
    assert all(len(set(found)) == 1 for found in starts)
    assert len({found[0] for found in starts}) == 3


# --- a rank that is told to stop -----------------------------------------------------------------


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_sigterm_to_one_rank_lets_all_save(rank, begin):
    run, ranks = begin(fault=Fault("is_terminated", rank, 6))
    assert [each.returncode for each in ranks] == [143, 143]
    assert newest(run).name in ("step-6", "step-7")
    assert ranks[0].stdout.endswith(f"go on with: bertmill pretrain --resume {run}\n")
    assert ranks[0].stderr == ranks[1].stderr == ranks[1].stdout == ""


@pytest.mark.slow
def test_sigterm_to_torchrun_lets_all_save(corpus_file, tmp_path):
    run = tmp_path / "run"
    begun = torchrun(["--nproc-per-node=2"], corpus_file, run, tmp_path / "log")
    wait_for(run / "checkpoints" / "step-4")
    begun.send_signal(signal.SIGTERM)
    assert begun.wait() != 0
    log = (tmp_path / "log").read_text()
    assert f"go on with: bertmill pretrain --resume {run}" in log and "bertmill: " not in log
    step = int(newest(run).name[5:])
    assert step >= 4 and f"saved, not finished at step {step}: {run}" in log


def torchrun(options, corpus, run, log, prefix=(), settings=(), env=None):
    """Start a run of very many steps under torchrun; a requeue would give the same command."""
    sets = [f"--set={setting}" for setting in (*SMALL, *QUICK_TO_SAY, *settings)]
    program = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "bertmill"]
    words = ["pretrain", "--corpus", corpus, "--recipe", "tiny", "--out", run, "--resume", "auto"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    with log.open("w") as stream:
        return subprocess.Popen(
            [*prefix, *program, *words, "--steps", "100000", *sets],
            env=env, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def wait_for(path, seconds=120):
    for _ in range(seconds * 5):
        if path.exists():
            return
        time.sleep(0.2)
    raise AssertionError(f"{path} did not come")


# --- a budget ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ranks_end_together_within_a_budget(begin):
    run, ranks = begin(more=("--budget", "4s"))
    succeed(ranks)
    assert "finished at step" in ranks[0].stdout
    seconds = json.loads((newest(run) / "state.json").read_text())["seconds"]
    assert 3 < seconds < 5


# --- a command that starts a run or goes on with it ----------------------------------------------


def again(corpus, out, **more):
    stream = io.StringIO()
    run = bertmill.pretrain(
        corpus, "tiny", out=out, settings=SMALL, or_resume=True, stream=stream, **more
    )
    return run, stream.getvalue().splitlines()[0]


def test_the_same_call_starts_a_run_and_goes_on_with_it(corpus_file, tmp_path):
    out = tmp_path / "run"
    run, line = again(corpus_file, out, steps=4)
    assert line == f"starting a new run in {out}"
    assert run.outcome.finished
    run, line = again(corpus_file, out, steps=4)
    assert line == f"going on from step 4 of {out}"
    run, line = again(corpus_file, out, steps=6)
    assert line == "the run was to have 4 steps, now 6" and run.outcome.steps == 6


@pytest.mark.parametrize("left", ["lock", "recipe.toml"])
def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(
    left, corpus_file, small_run, tmp_path
):
    out = shutil.copytree(small_run.folder, tmp_path / "run", symlinks=True)
    shutil.rmtree(out / "checkpoints")
    for path in out.iterdir():
        if left == "lock" and path.name != "lock":
            path.unlink()
    run, line = again(corpus_file, out, steps=8)
    assert line == (
        f"starting a new run in {out}" if left == "lock" else f"going on from step 0 of {out}"
    )
    assert run.outcome.finished


def test_the_command_of_a_requeue(bertmill, corpus_file, tmp_path):
    words = ["pretrain", "--resume", "auto", "--corpus", corpus_file, "--recipe", "tiny"]
    words += ["--out", "run", "--steps", 4, *(f"--set={setting}" for setting in SMALL)]
    first, second = bertmill(*words), bertmill(*words)
    assert first[0] == second[0] == 0
    assert first[1].startswith("starting a new run in run\n")
    assert second[1].startswith("going on from step 4 of run")


def test_where_to_look_for_a_run_must_be_said(refused, corpus_file):
    words = ["pretrain", "--resume", "auto", "--corpus", corpus_file]
    refused(words, "--resume auto: has no folder to look for a run in; give --out")


@pytest.mark.slow
def test_ranks_agree_on_whether_there_is_a_run(begin):
    run, ranks = begin(more=("--steps", 4, "--resume", "auto"))
    succeed(ranks)
    assert ranks[0].stdout.startswith(f"starting a new run in {run}\n")


# --- a machine that is lost ----------------------------------------------------------------------


@pytest.fixture
def two_machines():
    """Two network namespaces with a cable between them: their names and addresses."""
    names = [f"bertmill-{os.getpid()}-{number}" for number in (1, 2)]
    cables = [f"bm{os.getpid() % 10**7}-{number}" for number in (1, 2)]
    addresses = ["10.99.7.1", "10.99.7.2"]
    if shutil.which("ip") is None or ip("netns", "add", names[0]).returncode:
        pytest.skip("network namespaces are not permitted here, or `ip` (iproute2) is missing")
    with ExitStack() as made:
        for name in names:
            made.callback(ip, "netns", "del", name)
            made.callback(kill_all, name)
        ip("netns", "add", names[1])
        ip("link", "add", cables[0], "netns", names[0], "type", "veth",
           "peer", "name", cables[1], "netns", names[1])  # fmt: skip
        for name, cable, address in zip(names, cables, addresses, strict=True):
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            assert ip("-n", name, "link", "set", cable, "up").returncode == 0
        yield list(zip(names, cables, addresses, strict=True))


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


def kill_all(name):
    for process in ip("netns", "pids", name).stdout.split():
        os.kill(int(process), signal.SIGKILL)


@pytest.mark.slow
def test_a_run_on_two_machines_goes_on_when_one_is_lost(corpus_file, tmp_path, two_machines):
    run, logs = tmp_path / "run", [tmp_path / "log-1", tmp_path / "log-2"]
    agents = []
    for number, ((name, cable, address), log) in enumerate(zip(two_machines, logs, strict=True)):
        known = f"is_host={int(number == 0)},last_call_timeout=3"
        options = [
            "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d",
            "--rdzv-id=test", f"--rdzv-endpoint={two_machines[0][2]}:29511",
            f"--rdzv-conf={known},keep_alive_interval=1", f"--local-addr={address}",
        ]  # fmt: skip
        prefix = ["ip", "netns", "exec", name]
        env = {"GLOO_SOCKET_IFNAME": cable}
        agents.append(torchrun(options, corpus_file, run, log, prefix, env=env))
    wait_for(run / "checkpoints" / "step-8")
    # The cable first: a machine that loses its power says nothing to the others.
    ip("-n", two_machines[1][0], "link", "set", two_machines[1][1], "down")
    kill_all(two_machines[1][0])
    lost = newest(run).name
    for _ in range(600):
        if "going on from step" in logs[0].read_text():
            break
        time.sleep(0.2)
    went_on = int(newest(run).name[5:])
    wait_for(run / "checkpoints" / f"step-{went_on + 8}")
    agents[0].send_signal(signal.SIGTERM)
    for agent in agents:
        agent.wait()
    log = logs[0].read_text()
    assert "no sign of life (killed, stopped, or cut off from the others)" in log
    assert f"going on from {lost.replace('-', ' ')} of {run}" in log
