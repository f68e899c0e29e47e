"""What README and the pages in docs say: commands and Python run as they stand there, links lead
somewhere, and settings and JSON keys exist. Only the training time is cut short.
"""

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path

import pytest

from bertmill import cli
from bertmill.config import Recipe

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
VERBS = {
    "pretrain", "prepare", "cache", "encode", "fill-mask", "inspect", "export",
    "embed", "similar-words", "finetune", "predict", "evaluate", "plan",
}  # fmt: skip
SHORT = "12"  # steps instead of a time budget


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def commands(page):
    whole = [block.replace("\\\n", " ") for block in blocks(page, "sh")]
    lines = [line for block in whole for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def bertmill_commands(page):
    """The page's own, with steps instead of a budget."""
    found = [command[1:] for command in commands(page) if command[0] == "bertmill"]
    for command in found:
        if "--budget" in command:
            at = command.index("--budget")
            command[at : at + 2] = ["--steps", SHORT]
    return found


RUN = [page for page in PAGES if bertmill_commands(page) or blocks(page, "python")]


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


@pytest.fixture(scope="module")
def files(tmp_path_factory, corpus_file):
    """A folder with the files that the reader brings, and the README's run."""
    folder = tmp_path_factory.mktemp("files")
    text = corpus_file.read_text("utf-8")
    # Held out for what is trained on the corpus: other documents.
    (folder / "sentences.txt").write_text(text.replace(" in year", " again in year"), "utf-8")
    (folder / "text").mkdir()
    (folder / "text" / "corpus.txt").write_text(text, "utf-8")
    sentences = re.findall(r"[^.]+\.", text)[:150]
    examples = [{"text": one, "label": "horses" in one} for one in sentences]
    (folder / "tasks" / "rivers").mkdir(parents=True)
    for name in ("train", "dev", "test", "tasks/rivers/train", "tasks/rivers/dev"):
        write_lines(folder / f"{name}.jsonl", examples)
    pair = {"sentence_good": "the river follows the valley", "sentence_bad": "river the the"}
    write_lines(folder / "pairs.jsonl", [pair])
    run_here(["pretrain", "--corpus", "sample:sotu", "--steps", SHORT, "--out", folder / "demo"])
    return folder


@pytest.fixture
def folder(files, tmp_path, monkeypatch):
    """A working folder of its own for each page."""
    shutil.copytree(files, tmp_path, symlinks=True, dirs_exist_ok=True)
    (tmp_path / "runs").mkdir()
    (tmp_path / "demo").rename(tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_here(command):
    """Run a command in this process, which saves four seconds of imports, and return its output."""
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["bertmill", *map(str, command)]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv = argv
    assert ended.value.code == 0, (command, out.getvalue(), err.getvalue())
    return out.getvalue()


def test_readme_is_read_in_three_minutes():
    text = README.read_text("utf-8")
    assert text.count("\n") <= 110
    prose = re.sub(r"^```.*?^```|^\|.*?$|\]\(.*?\)", "", text, flags=re.M | re.S)
    assert len(prose.split()) <= 3 * 250


def test_make_targets_exist():
    targets = {page: [c[1] for c in commands(page) if c[0] == "make"] for page in PAGES}
    assert targets[README] == ["demo", "test"]
    for target in sorted({name for names in targets.values() for name in names}):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_every_verb_is_shown():
    assert {command[0] for page in RUN for command in bertmill_commands(page)} == VERBS
    rows = (ROOT / "docs" / "reference" / "command-line.md").read_text("utf-8")
    assert set(re.findall(r"^\| `([a-z-]+)` \|", rows, re.M)) == VERBS


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_commands_and_python_run(page, folder):
    shutil.rmtree(folder / "runs" / "demo") if page == README else None
    for command in bertmill_commands(page):
        assert run_here(command)
    names = {}
    for program in blocks(page, "python"):
        program = program.replace('budget="150s"', f"steps={SHORT}")
        exec(compile(program, name_of(page), "exec"), names)


@pytest.mark.slow
def test_a_command_runs_in_a_process_of_its_own(folder):
    [command] = [c for c in bertmill_commands(README) if c[0] == "fill-mask"]
    done = subprocess.run(
        [sys.executable, "-m", "bertmill", *command], capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) >= 3


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", re.sub(r"\]\(.*?\)", "", text), re.M)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text("utf-8")):
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), target
        assert found.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(found), (target, anchor)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page):
    for path in re.findall(r"`([\w/]+/\w+\.py)`", page.read_text("utf-8")):
        homes = (ROOT, ROOT / "src" / "bertmill", page.parent)
        assert any((home / path).is_file() for home in homes), path


def test_every_page_is_listed():
    index = ROOT / "docs" / "README.md"
    targets = re.findall(r"\]\(([^)#:]+)[^)]*\)", index.read_text("utf-8"))
    listed = {(index.parent / target).resolve() for target in targets}
    assert [name_of(page) for page in PAGES if page not in {*listed, index}] == []


def test_settings_exist():
    """Settings that pages name, but for the log of what was tried, where some are gone."""
    sections = {
        name: set(field.annotation.model_fields)
        for name, field in Recipe.model_fields.items()
        if name not in ("name", "phases")
    }
    pattern = rf"(?:--set |`|set )({'|'.join(sections)})\.(\w+)\b(?!\()"
    past = {"decisions.md", "experiments.md", "errors.md", "CHANGELOG.md"}
    for page in PAGES:
        for section, key in re.findall(pattern, page.read_text("utf-8")):
            if page.name not in past and key != "jsonl":
                assert key in sections[section], (name_of(page), section, key)


def test_json_keys_of_the_table_are_those_that_are_printed(small_run, small_store):
    import bertmill

    text = (ROOT / "docs" / "reference" / "command-line.md").read_text("utf-8")
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", text))))
    printed = [
        small_run.to_dict(),
        small_run.to_dict()["held_out"],
        bertmill.inspect("base"),
        asdict(bertmill.plan("base", "8xH100")),
        bertmill.inspect(small_store.folder),
        bertmill.inspect(small_run.folder),
        bertmill.inspect(small_run.folder / "model"),
    ]
    missing = {key for values in printed for key in values} - named
    assert missing == set()


def test_metrics_of_the_page_are_those_that_are_written(small_run):
    text = (ROOT / "docs" / "reference" / "run-folder.md").read_text("utf-8")
    named = set(re.findall(r"`([^`]+)`", text))
    lines = (small_run.folder / "metrics.jsonl").read_text("utf-8").splitlines()
    written = {key for line in map(json.loads, lines) if line["split"] == "train" for key in line}
    assert written - named == set()
    files = {one.name.replace("checkpoints", "checkpoints/") for one in small_run.folder.iterdir()}
    assert files - {"lock"} <= named


def test_public_names_are_those_of_the_page():
    import bertmill

    text = (ROOT / "docs" / "reference" / "python.md").read_text("utf-8")
    rows = "".join(re.findall(r"^\| `.*", text, re.M))
    named = set(re.findall(r"`(\w+)", rows))
    assert set(bertmill.__all__) - {"__version__"} - named == {"BertmillError", "Prediction"}
    assert {name for name in re.findall(r"`(\w+)\(", rows) if not hasattr(bertmill, name)} == set()
