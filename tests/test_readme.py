"""The README's commands and Python run as they stand there; only the training time is cut short."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus_file):
    """A working folder with the files that the reader is told to bring."""
    folder = tmp_path_factory.mktemp("readme")
    text = corpus_file.read_text("utf-8")
    (folder / "sentences.txt").write_text(text, "utf-8")
    sentences = re.findall(r"[^.]+\.", text)[:150]
    examples = [{"text": one, "label": "horses" in one} for one in sentences]
    (folder / "tasks" / "rivers").mkdir(parents=True)
    for name in ("train", "dev", "test", "tasks/rivers/train", "tasks/rivers/dev"):
        write_lines(folder / f"{name}.jsonl", examples)
    pair = {"sentence_good": "the river follows the valley", "sentence_bad": "river the the"}
    write_lines(folder / "pairs.jsonl", [pair])
    return folder


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


def test_make_targets_exist():
    targets = [command[1] for command in commands() if command[0] == "make"]
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.slow
def test_commands(folder):
    ran = [command for command in commands() if command[0] == "bertmill"]
    assert {command[1] for command in ran} == {
        "pretrain", "prepare", "encode", "fill-mask", "inspect", "export",
        "embed", "similar-words", "finetune", "predict", "evaluate",
    }  # fmt: skip
    for command in ran:
        if "--budget" in command:
            at = command.index("--budget")
            command[at : at + 2] = ["--steps", "12"]
        done = subprocess.run(
            [sys.executable, "-m", "bertmill", *command[1:]],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout


@pytest.mark.slow
def test_python(folder, monkeypatch):
    monkeypatch.chdir(folder)
    [program] = blocks("python")
    assert 'budget="150s"' in program
    exec(compile(program.replace('budget="150s"', "steps=12"), "README.md", "exec"), {})


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_json_keys_of_the_table_are_those_that_are_printed(small_run, small_store):
    import bertmill

    prose = re.sub(r"^```.*?^```", "", README, flags=re.M | re.S)
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", prose))))
    printed = [
        small_run.to_dict(),
        small_run.to_dict()["held_out"],
        bertmill.inspect("base"),
        bertmill.inspect(small_store.folder),
        bertmill.inspect(small_run.folder),
        bertmill.inspect(small_run.folder / "model"),
    ]
    missing = {key for values in printed for key in values} - named
    assert missing == set()
