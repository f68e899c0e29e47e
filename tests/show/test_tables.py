"""`inspect` for people: every line readable, and none wider than the terminal."""

import json
import re
import shutil

import pytest

from bertmill.config import recipe_names
from bertmill.show.contents import describe
from bertmill.show.tables import contents_lines
from bertmill.train.run_folder import RunFolder


@pytest.fixture(params=[60, 80, 100])
def width(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


@pytest.fixture
def show(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return lambda target, pairs=1: "\n".join(contents_lines(describe(target, pairs), str(target)))


@pytest.fixture
def targets(small_run, small_store):
    return [small_run.folder, small_run.folder / "model", small_store.folder, *recipe_names()]


def test_lines_fit_the_terminal(targets, width):
    for target in targets:
        lines = list(contents_lines(describe(target, 2), str(target)))
        for line in lines:
            # A word without a space, a path for one, is not torn apart.
            assert len(line) <= width or len(line.split()) <= 2, line
            assert line == line.rstrip() and "\x1b" not in line


def test_no_dictionaries_and_no_sixteen_digits(targets, show):
    for target in targets:
        text = show(target)
        assert not re.search(r"\d\.\d{6,}|[{}]|None|True|False", text.partition("\n")[2])


def test_every_knob_of_a_recipe_is_there(show):
    found, text = describe("d2l")["recipe"], " ".join(show("d2l").split())
    assert (found.pop("name"), found.pop("phases")) == ("d2l", [])
    for section, knobs in found.items():
        for key, value in knobs.items():
            shown = str(value).lower() if isinstance(value, bool) else str(value) or '""'
            assert f"{key}={shown}" in text, (section, key)
    assert "not known before the words" in text
    assert "4,385,920 in the encoder" in show("tiny")


def test_a_run(small_run, show):
    text, scores = show(small_run.folder), small_run.outcome.held_out
    assert text.startswith(f"run {small_run.folder}\n")
    assert re.search(r"steps +8 of 8, 0:00:\d\d of training\n", text)
    assert "bertmill 0.1.0, torch " in text and "first weights     random\n" in text
    assert f"Held-out text, step 8\n{' ' * 29}loss  right" in text
    assert re.search(
        rf"masked language modeling +{scores.mlm_loss:.3f} +{scores.mlm_accuracy:.1%}", text
    )
    assert re.search(rf"no context +{scores.no_context_nats:.3f}\n", text)
    assert re.search(
        rf"shared words +{scores.nsp_overlap_nats:.3f} +{scores.nsp_overlap_accuracy:.1%}\n", text
    )
    assert re.search(r"\n  step  train mlm  held-out  train nsp  held-out  pairs/s\n +4 ", text)
    assert re.search(r"second (follows|is random) +\[CLS\]", text)
    assert "[CLS]" not in show(small_run.folder, 0).partition("Training sequences")[2]
    for line in small_run.outcome.diagnosis:
        assert " ".join(line.split()) in " ".join(text.split())


def test_a_long_run_shows_some_validations_the_last_among_them(small_run, show, tmp_path):
    copy = shutil.copytree(small_run.folder, tmp_path / "copy", symlinks=True)
    last = RunFolder(copy).metrics().held_out[-1]
    lines = [json.dumps(last._replace(step=step).to_dict()) for step in range(10, 1010, 10)]
    (copy / "metrics.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    rows = re.findall(r"^ +([\d,]+) +- +\d\.\d{3} ", show(copy), re.M)
    assert 6 < len(rows) <= 12 and rows[-1] == "1,000"


def test_a_run_without_store_model_and_metrics(small_run, show, tmp_path):
    copy = shutil.copytree(small_run.folder, tmp_path / "copy", symlinks=True)
    for name in ("metrics.jsonl", "model", "diagnosis.json"):
        (copy / name).unlink(missing_ok=True)
    facts = json.loads((copy / "run.json").read_text("utf-8"))
    (copy / "run.json").write_text(json.dumps(facts | {"store": "gone"}), "utf-8")
    text = show(copy)
    assert "steps             0 of 8\n" in text and "Recipe tiny\n" in text
    assert not re.search("^(Losses|Held-out|Data|Model|Diagnosis|Training)", text, re.M)


def test_a_store(small_store, show):
    text = show(small_store.folder)
    tokens = f"{small_store.train.num_tokens:,}"
    assert re.search(rf"\n  train +\d+ +\d+ +{tokens}\n", text)
    assert f"{small_store.tokenizer.size} entries" in text and "sentences=sentencex" in text
    assert re.search(r"\n  an epoch sees +\d\d\.\d% of the tokens$", text)


def test_a_model(small_run, show):
    text = show(small_run.folder / "model")
    assert "[PAD] [UNK] [CLS] [SEP] [MASK]\n" in text and "hidden_size=16" in text


def test_the_recipe_continue_has_no_network_of_its_own(show):
    text = show("continue")
    assert "parameters        those of the model that it begins with\n" in text
    assert "hidden_size" not in text and "lr=0.0001" in text
    assert describe("continue")["parameters"] is None
