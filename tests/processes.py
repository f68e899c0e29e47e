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
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["bertmill.api", "bertmill.cli", "matplotlib.backends.backend_agg", "processes"]
)


def run(arguments, limits=None, cwd=None, env=None) -> subprocess.CompletedProcess:
    """Run ``bertmill ARGUMENTS`` to its end.

    `limits` are numbers by the names of `resource`, as ``{"RLIMIT_FSIZE": 6_000}``;
    ``{"free_files": n}`` leaves so many file handles beside those that are open.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("stdout", "stderr")]
        begin = (outputs, limits or {}, Path.cwd() if cwd is None else cwd, env or dict(os.environ))
        process = _SERVER.Process(target=_command, args=([*map(str, arguments)], *begin))
        process.start()
        process.join()
        texts = [path.read_text("utf-8") for path in outputs]
        return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def _command(arguments, outputs, limits, cwd, env) -> None:
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

    sys.argv = ["bertmill", *arguments]
    main()
