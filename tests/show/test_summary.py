"""A run's summary: what its folder says, once, for every page that shows it."""

import json
import shutil
from dataclasses import FrozenInstanceError, asdict

import pytest

from bertmill.errors import RunError
from bertmill.show.contents import describe
from bertmill.show.curves import draw_losses
from bertmill.show.summary import closing_lines, score_lines, summarize
from bertmill.train.run_folder import RunFolder


@pytest.fixture
def copied(small_run, tmp_path):
    return RunFolder(shutil.copytree(small_run.folder, tmp_path / "copy", symlinks=True))


def lines_of(run, split):
    text = (run.path / "metrics.jsonl").read_text("utf-8")
    return [line for line in map(json.loads, text.splitlines()) if line["split"] == split]


def test_all_is_what_the_folder_says(small_run):
    run = RunFolder(small_run.folder)
    found = summarize(run)
    assert (found.folder, found.recipe) == (run.path, small_run.recipe)
    assert found.facts.corpus and found.facts.store
    for split, records in found.metrics._asdict().items():
        assert [record.to_dict() for record in records] == lines_of(run, split)
    assert found.metrics.last_step == 8
    assert found.metrics.scores == small_run.outcome.held_out
    assert found.diagnosis == small_run.outcome.diagnosis
    with pytest.raises(FrozenInstanceError):
        found.metrics = None


def test_the_curves(small_run):
    found = RunFolder(small_run.folder).metrics()
    assert found.loss_kinds == ["mlm", "nsp"]
    assert [step for step, _ in found.train_curve("mlm")] == [2, 4, 6, 8]
    assert found.train_curve("nsp")[-1] == (8, small_run.outcome.nsp_loss)
    assert found.held_out_curve("mlm")[-1] == (8, small_run.outcome.held_out.mlm_loss)


def test_a_kind_of_loss_that_was_never_recorded_has_no_curve(copied):
    lines = [line | {"nsp_loss": None} for line in lines_of(copied, "train")]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (copied.path / "metrics.jsonl").write_text(text, "utf-8")
    found = copied.metrics()
    assert found.loss_kinds == ["mlm"] and found.scores is None and found.last_step == 8
    assert draw_losses(found)
    (copied.path / "metrics.jsonl").unlink()
    assert (copied.metrics().loss_kinds, copied.metrics().last_step) == ([], 0)


def test_the_kept_diagnosis_is_read(copied):
    (copied.path / "diagnosis.json").write_text('["nothing was learned"]', "utf-8")
    assert summarize(copied).diagnosis == ("nothing was learned",)


def test_a_run_whose_store_is_gone_has_no_samples(copied):
    facts = json.loads((copied.path / "run.json").read_text("utf-8"))
    (copied.path / "run.json").write_text(json.dumps(facts | {"store": "gone"}), "utf-8")
    assert "pairs" not in describe(copied.path, 3)


def test_what_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a run"):
        summarize(RunFolder(tmp_path))


def test_the_losses_with_their_levels(small_run):
    scores = small_run.outcome.held_out
    mlm, nsp = scores.losses
    assert (mlm.kind, mlm.loss, mlm.accuracy) == ("mlm", scores.mlm_loss, scores.mlm_accuracy)
    assert (nsp.kind, nsp.loss, nsp.accuracy) == ("nsp", scores.nsp_loss, scores.nsp_accuracy)
    assert (mlm.num_answers, nsp.num_answers) == (scores.num_predictions, scores.num_pairs)
    levels = {level.name: level.nats for each in scores.losses for level in each.levels}
    assert levels == {
        "no context": scores.no_context_nats,
        "word frequencies": scores.unigram_nats,
        "label frequencies": scores.nsp_chance_nats,
        "shared words": scores.nsp_overlap_nats,
    }
    bare = dict.fromkeys(name for name in asdict(scores) if name.endswith("nats"))
    bare |= {"nsp_loss": None, "nsp_accuracy": None, "nsp_overlap_accuracy": None}
    (only,) = type(scores)(**asdict(scores) | bare).losses
    assert (only.kind, only.levels) == ("mlm", ())


def test_the_closing_lines(small_run):
    outcome = small_run.outcome
    lines = list(closing_lines(small_run.folder, outcome))
    assert lines[0] == f"MLM loss {outcome.mlm_loss:.3f}, NSP loss {outcome.nsp_loss:.3f}"
    assert lines[1] == f"{outcome.pairs_per_second:.1f} sentence pairs/s on {outcome.device}"
    assert lines[2:4] == list(score_lines(outcome.held_out))
    assert lines[4:] == [f"finished at step 8: {small_run.folder}"]
