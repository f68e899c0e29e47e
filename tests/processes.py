"""Commands in processes of their own, without the seconds that each would import torch for.

A fork server (of `multiprocessing`) has imported what commands import, and computed nothing; each
command is a fork of it that takes the given folder, environment and limits before it begins.
Where a command starts, or what it imports, is not to be seen here: that takes `subprocess`.
"""

import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
from multiprocessing import connection
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "bertmill.api",
        "bertmill.cli",
        "matplotlib.backends.backend_agg",
        "processes",
        "torch.distributed.fsdp",
    ]
)

_SECONDS_TO_END = 15
"""Patience with ranks that were told to end; torchrun has 30."""


def run(arguments, limits=None, cwd=None, env=None) -> subprocess.CompletedProcess:
    """Run ``bertmill ARGUMENTS`` to its end.

    `limits` are numbers by the names of `resource`, as ``{"RLIMIT_FSIZE": 6_000}``;
    ``{"free_files": n}`` leaves so many file handles beside those that are open.
    """
    (done,) = _run_all([(arguments, env or dict(os.environ))], limits, cwd)
    return done


def run_ranks(size, arguments, own=None, first=None) -> list[subprocess.CompletedProcess]:
    """Run ``bertmill ARGUMENTS`` in so many processes as torchrun starts them, to the end of all.

    `own` are more arguments for each of them; `first` is called in each before it begins. The
    first one that fails ends the others, and their store outlives them, as torchrun has it.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    envs = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    more = own or [[]] * size
    commands = [([*arguments, *more[rank]], envs[rank]) for rank in range(size)]
    return _run_all(commands, first=first)


def _run_all(commands, limits=None, cwd=None, first=None) -> list[subprocess.CompletedProcess]:
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for number, (arguments, env) in enumerate(commands):
            outputs = [Path(folder) / f"{name}-{number}" for name in ("stdout", "stderr")]
            begin = (outputs, limits or {}, Path.cwd() if cwd is None else cwd, env)
            words = [*map(str, arguments)]
            process = _SERVER.Process(target=_command, args=(words, *begin, first))
            process.start()
            started.append((process, outputs))
        left = {process.sentinel: process for process, _ in started}
        while left:
            ended = connection.wait(left, _SECONDS_TO_END if len(left) < len(started) else None)
            for sentinel in ended:
                if left.pop(sentinel).exitcode:
                    for other in left.values():
                        other.terminate()
            if not ended:
                for other in left.values():
                    other.kill()
        return [
            subprocess.CompletedProcess(
                command, process.exitcode, *(path.read_text("utf-8") for path in outputs)
            )
            for (command, _), (process, outputs) in zip(commands, started, strict=True)
        ]


def _command(arguments, outputs, limits, cwd, env, first) -> None:
    for number, path in enumerate(outputs, start=1):
        with path.open("wb") as stream:
            os.dup2(stream.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    free_files = limits.pop("free_files", None)
    if free_files is not None:
        limits["RLIMIT_NOFILE"] = len([*Path("/proc/self/fd").iterdir()]) + free_files
    for name, number in limits.items():
        resource.setrlimit(getattr(resource, name), (number, number))
    from bertmill.cli import main

    if first is not None:
        first()
    sys.argv = ["bertmill", *arguments]
    main()
