"""A run that is watched in a notebook, in a real kernel: what the cell shows, and how often."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from bertmill.show.notebook import NotebookProgress
from small import SMALL, SMALL_OVER_A_STORE

TRAIN = """
import bertmill
seen = []
run = bertmill.pretrain({corpus!r}, "tiny", out={out!r}, steps=6, settings={settings!r},
                        on_metrics=seen.append)
"""
SETTINGS = [*SMALL, "train.log_every_steps=1", "train.validate_every_steps=3"]


class Listening(NotebookClient):
    """A client that keeps every message of the kernel that changes what a cell shows."""

    def process_message(self, message, cell, cell_index):
        self.shown = getattr(self, "shown", [])
        if message["msg_type"] in ("stream", "display_data", "update_display_data"):
            self.shown.append((message["msg_type"], message["content"]))
        return super().process_message(message, cell, cell_index)


@pytest.fixture
def execute(tmp_path):
    """Execute cells in a kernel: what was shown meanwhile, and each cell's outputs."""

    def execute(*sources):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        notebook = nbformat.v4.new_notebook(cells=cells)
        resources = {"metadata": {"path": str(tmp_path)}}
        client = Listening(notebook, timeout=120, resources=resources)
        client.execute()
        return client.shown, [cell.outputs for cell in notebook.cells]

    return execute


@pytest.mark.slow
def test_one_picture_grows_and_the_run_shows_itself(execute, corpus_file, tmp_path):
    train = TRAIN.format(corpus=str(corpus_file), out=str(tmp_path / "run"), settings=SETTINGS)
    records = "[(type(each).__name__, each.step) for each in seen]"
    same = "seen == sorted([*run.history.train, *run.history.held_out], key=lambda r: r.step)"
    more = f"run = bertmill.resume({str(tmp_path / 'run')!r}, steps=7)"
    shown, (_, seen, is_same, last, _) = execute(train, records, same, "run", more)

    kinds = [kind for kind, _ in shown]
    of_the_first = kinds[: kinds.index("display_data", kinds.index("display_data") + 1)]
    # A validation is always drawn, and so is the end; a log interval at most.
    assert 2 <= of_the_first.count("update_display_data") <= 9
    displayed = [content["data"] for kind, content in shown if kind != "stream"]
    assert all("text/plain" in each for each in displayed)
    pictures = [each for each in displayed if "image/png" in each]
    assert len({each["image/png"] for each in pictures[:3]}) == 3
    assert any("pairs/s" in each["text/plain"] for each in pictures)
    printed = "".join(content["text"] for kind, content in shown if kind == "stream")
    assert "\x1b" not in printed and "\r" not in printed
    lines = printed.splitlines()
    assert len(lines) < 20 and not [line for line in lines if line.startswith(("step", "held-out"))]

    trained = [("TrainRecord", step) for step in range(1, 7)]
    held_out = [("HeldOutRecord", 3), ("HeldOutRecord", 6)]
    assert eval(seen[0]["data"]["text/plain"]) == sorted(trained + held_out, key=lambda r: r[1])
    assert is_same[0]["data"]["text/plain"] == "True"

    page = last[0]["data"]["text/html"]
    assert "held-out: MLM loss" in page and "data:image/png;base64," in page
    assert "[MASK]" in page and "%</td>" in page


def test_a_run_and_a_model_say_what_they_are(small_run):
    import bertmill

    assert repr(small_run).endswith(f"finished at step 8: {small_run.folder}")
    told = repr(bertmill.load(small_run.folder))
    assert told.endswith("model: 2 layers, 16 wide, 2 heads, 200 vocabulary entries")


def test_an_exception_of_the_hook_ends_the_session_and_the_run_goes_on(small_store, tmp_path):
    import bertmill

    def stop(record):
        raise KeyError(record.step)

    settings = [*SMALL_OVER_A_STORE, "train.log_every_steps=2"]
    with pytest.raises(KeyError, match="2"):
        bertmill.pretrain(
            small_store.folder,
            "tiny",
            out=tmp_path / "run",
            steps=4,
            settings=settings,
            on_metrics=stop,
        )
    seen = []
    run = bertmill.resume(tmp_path / "run", on_metrics=seen.append)
    assert run.outcome.steps == 4 and [each.step for each in run.history.train] == [2, 4]
    assert seen == [*run.history.train, *run.history.held_out]


def test_a_cell_that_was_stopped_says_how_to_go_on(capsys):
    NotebookProgress().stopped(1234, Path("runs/demo"))
    assert (
        capsys.readouterr().out == "saved at step 1,234; go on with bertmill.resume('runs/demo')\n"
    )
