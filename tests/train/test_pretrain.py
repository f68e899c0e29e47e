"""The loop: what it promises of a run, seen from its folder."""

import io
import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import bertmill
from bertmill.config import load_recipe
from bertmill.data.batch import Batches
from bertmill.errors import BertmillError, RunError, StoreError
from bertmill.model.folder import load_model
from bertmill.model.pretraining import PretrainingModel
from bertmill.show.summary import closing_lines
from bertmill.train.prefetch import NUM_AHEAD
from bertmill.train.run_folder import RunFolder
from small import CLOCKS
from small import SMALL as SETTINGS
from small import SMALL_OVER_A_STORE as OVER_A_STORE


def weights(run: Path) -> dict[str, bytes]:
    tensors = load_file(run / "model" / "model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def moments(run: Path) -> dict[str, bytes]:
    tensors = load_file((run / "model").resolve().parent / "optimizer.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def numbers(run: Path) -> list[dict]:
    """Metrics without what depends on the clock."""
    return [
        {k: v for k, v in record.to_dict().items() if k not in CLOCKS}
        for records in RunFolder(run).metrics()
        for record in records
    ]


@pytest.fixture(scope="module")
def undisturbed(corpus_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    # 40 training documents or so: 30 steps cross several epochs.
    return bertmill.pretrain(str(corpus_file), "tiny", out=out, steps=30, settings=SETTINGS)


def test_a_run_leaves_what_it_promises(undisturbed):
    run = undisturbed.folder
    names = {path.name for path in run.iterdir()}
    assert names >= {"recipe.toml", "run.json", "metrics.jsonl", "loss.png", "model", "checkpoints"}
    assert (run / "model").is_symlink() and not (run / "model").readlink().is_absolute()
    assert load_recipe(run / "recipe.toml") == undisturbed.recipe
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-28", "step-30"]
    assert undisturbed.outcome.finished and undisturbed.outcome.steps == 30
    metrics = RunFolder(run).metrics()
    assert [record.step for record in metrics.train] == list(range(2, 31, 2))
    assert [record.step for record in metrics.held_out] == [4, 8, 12, 16, 20, 24, 28, 30]


def test_the_summary_is_the_last_line_of_the_metrics(undisturbed):
    train, held_out = RunFolder(undisturbed.folder).metrics()
    outcome = undisturbed.outcome
    assert outcome.mlm_loss == train[-1].mlm_loss
    assert outcome.nsp_loss == train[-1].nsp_loss
    assert outcome.held_out.mlm_loss == held_out[-1].scores.mlm_loss
    assert outcome.held_out.num_pairs == held_out[-1].scores.num_pairs > 0


def test_batches_are_made_ahead_once_each_and_the_waiting_is_logged(
    corpus_file, tmp_path, monkeypatch
):
    asked = []
    make = Batches.micro_batches_at

    def counting(self, step, *part):
        asked.append((step, threading.current_thread().name.startswith("bertmill-prefetch")))
        return make(self, step, *part)

    monkeypatch.setattr(Batches, "micro_batches_at", counting)
    run = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "run", steps=6, settings=SETTINGS
    )
    assert asked == [(step, True) for step in range(len(asked))]
    assert 6 <= len(asked) <= 6 + NUM_AHEAD
    assert not [t for t in threading.enumerate() if t.name.startswith("bertmill-prefetch")]
    records = RunFolder(run.folder).metrics().train
    assert len(records) == 3
    assert all(0.0 < record.waiting_fraction < 1.0 for record in records)


def test_what_goes_wrong_while_prefetching_is_raised_as_it_is(corpus_file, tmp_path, monkeypatch):
    make = Batches.micro_batches_at

    def failing(self, step, *part):
        if step == 5:
            raise StoreError("shard", "cannot be read", "prepare the corpus again")
        return make(self, step, *part)

    monkeypatch.setattr(Batches, "micro_batches_at", failing)
    with pytest.raises(StoreError, match="shard: cannot be read; prepare the corpus again"):
        bertmill.pretrain(
            str(corpus_file), "tiny", out=tmp_path / "run", steps=6, settings=SETTINGS
        )
    assert not [t for t in threading.enumerate() if t.name.startswith("bertmill-prefetch")]
    assert [[r.step for r in records] for records in RunFolder(tmp_path / "run").metrics()] == [
        [2, 4],
        [4],
    ]


def test_micro_batches_go_on_to_the_same_bits(corpus_file, tmp_path):
    """With dropout on, whose draws are keyed by the micro-batch too."""
    parts = [*SETTINGS, "train.micro_batch_tokens=60"]
    whole = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "whole", steps=10, settings=parts
    )
    run = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "run", steps=10, settings=parts, stop_after=1e-6
    )
    while not run.outcome.finished:
        run = bertmill.resume(run.folder, stop_after=1e-6)
    assert weights(run.folder) == weights(whole.folder)
    assert moments(run.folder) == moments(whole.folder)
    assert numbers(run.folder) == numbers(whole.folder)


def test_micro_batches_learn_what_whole_batches_do(corpus_file, tmp_path):
    """Without dropout, whose draws differ, the losses are those of whole batches, to rounding."""
    plain = ["model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0"]
    losses = []
    for tokens in (0, 60, 1):
        settings = [*SETTINGS, *plain, f"train.micro_batch_tokens={tokens}"]
        run = bertmill.pretrain(
            str(corpus_file), "tiny", out=tmp_path / str(tokens), steps=20, settings=settings
        )
        metrics = RunFolder(run.folder).metrics()
        losses.append([(r.mlm_loss, r.nsp_loss) for r in metrics.train])
        losses[-1] += [(r.scores.mlm_loss, r.scores.nsp_loss) for r in metrics.held_out]
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-5)


def test_same_recipe_same_bits(undisturbed, corpus_file, tmp_path):
    again = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "again", steps=30, settings=SETTINGS
    )
    assert weights(again.folder) == weights(undisturbed.folder)
    assert numbers(again.folder) == numbers(undisturbed.folder)


def test_a_run_stopped_after_every_few_steps_ends_with_the_same_bits(
    undisturbed, corpus_file, tmp_path
):
    run = bertmill.pretrain(
        str(corpus_file),
        "tiny",
        out=tmp_path / "run",
        steps=30,
        settings=SETTINGS,
        stop_after=1e-6,
    )
    sessions = 1
    while not run.outcome.finished:
        assert run.outcome.steps == sessions and run.outcome.stopped_by is None
        stop_after = 1e-6 if sessions < 6 else None
        run = bertmill.resume(tmp_path / "run", stop_after=stop_after)
        sessions += 1
    assert sessions == 7
    assert weights(run.folder) == weights(undisturbed.folder)
    assert moments(run.folder) == moments(undisturbed.folder)
    assert numbers(run.folder) == numbers(undisturbed.folder)


def test_validation_leaves_no_trace_in_the_weights(undisturbed, corpus_file, tmp_path):
    rarely = [*SETTINGS, "train.validate_every_steps=30", "train.checkpoint_every_steps=30"]
    run = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "run", steps=30, settings=rarely
    )
    assert weights(run.folder) == weights(undisturbed.folder)


def test_held_out_pairs_do_not_depend_on_the_seed(corpus_file, tmp_path):
    runs = [
        bertmill.pretrain(
            str(corpus_file),
            "tiny",
            out=tmp_path / str(seed),
            steps=1,
            settings=SETTINGS,
            seed=seed,
        )
        for seed in (1, 2)
    ]
    one, two = (run.outcome.held_out for run in runs)
    assert one.no_context_nats == two.no_context_nats
    assert (one.num_predictions, one.num_pairs) == (two.num_predictions, two.num_pairs)
    assert one.mlm_loss != two.mlm_loss


def test_a_run_that_grows_goes_on(corpus_file, tmp_path):
    run = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "run", steps=4, settings=SETTINGS
    )
    run = bertmill.resume(run.folder, steps=10)
    assert run.outcome.steps == 10
    assert load_recipe(run.folder / "recipe.toml").train.steps == 10
    again = bertmill.resume(run.folder)
    assert again.outcome.finished and again.outcome.steps == 10
    assert again.outcome.held_out == run.outcome.held_out


def test_without_pairs_there_is_one_loss(corpus_file, tmp_path):
    run = bertmill.pretrain(
        str(corpus_file),
        "tiny",
        out=tmp_path / "run",
        steps=4,
        settings=[*SETTINGS, "pairs.kind=none"],
    )
    assert run.outcome.nsp_loss is None and run.outcome.held_out.nsp_loss is None
    assert run.outcome.mlm_loss > 0


HEADS_OF_PAIRS = {"pooler", "next_sentence_head"}
LOOP = [each for each in SETTINGS if not each.startswith(("model.", "tokenizer."))]


@pytest.mark.parametrize("setting", ["pairs.kind=none", "train.nsp_weight=0"])
def test_what_pairs_would_train_is_not_saved_without_them(setting, corpus_file, tmp_path, capsys):
    """Not in the run, not in a run that goes on from it, and trained where that one has pairs."""

    def pretrain(name, *more, start=None, steps=2):
        recipe = "tiny" if start is None else "continue"
        run = bertmill.pretrain(
            str(corpus_file),
            recipe,
            out=tmp_path / name,
            steps=steps,
            init_from=start,
            settings=[*(SETTINGS if start is None else LOOP), *more],
        )
        return load_model(run.folder), capsys.readouterr().out

    said = "the pooler and the next-sentence head are not trained: the model is saved without them"
    loaded, shown = pretrain("without", setting)
    assert set(loaded.new_parts) == HEADS_OF_PAIRS and said in shown
    config = json.loads((loaded.folder / "config.json").read_text("utf-8"))
    assert config["architectures"][0].endswith("ForMaskedLM")
    loaded, shown = pretrain("on", setting, start=tmp_path / "without")
    assert set(loaded.new_parts) == HEADS_OF_PAIRS and said in shown
    drawn = "all but next_sentence_head, pooler, newly drawn"
    assert "all found" not in shown and drawn in shown
    loaded, shown = pretrain("with", "pairs.kind=segments", start=tmp_path / "on")
    assert not loaded.new_parts and said not in shown and drawn in shown
    kept = loaded.model.pooler.weight
    loaded, shown = pretrain("kept", "pairs.kind=none", start=tmp_path / "with")
    assert not loaded.new_parts and said not in shown  # they were trained before
    assert torch.equal(loaded.model.pooler.weight, kept)


def test_a_run_without_pairs_goes_on_bit_by_bit(corpus_file, tmp_path):
    for name in ("whole", "parts"):
        bertmill.pretrain(
            str(corpus_file),
            "tiny",
            out=tmp_path / name,
            steps=4,
            settings=[*SETTINGS, "pairs.kind=none"],
            stop_after=None if name == "whole" else 1e-9,
        )
    resumed = bertmill.resume(tmp_path / "parts")
    assert set(load_model(resumed.folder).new_parts) == HEADS_OF_PAIRS
    one, other = ((tmp_path / name / "model/model.safetensors") for name in ("whole", "parts"))
    assert one.read_bytes() == other.read_bytes()


def test_without_held_out_text_a_run_says_so(corpus_file, tmp_path, capsys):
    run = bertmill.pretrain(
        str(corpus_file),
        "tiny",
        out=tmp_path / "run",
        steps=2,
        settings=[*SETTINGS, "text.held_out_fraction=0.0"],
    )
    assert run.outcome.held_out is None
    assert "nothing is validated" in capsys.readouterr().out


def test_a_prepared_store_is_a_corpus(corpus_file, tmp_path):
    bertmill.prepare(str(corpus_file), tmp_path / "store", "tiny", settings=SETTINGS)
    run = bertmill.pretrain(
        tmp_path / "store", "tiny", out=tmp_path / "run", steps=2, settings=OVER_A_STORE
    )
    assert run.recipe.text.held_out_fraction == 0.2
    assert run.vocab_size == 200


@pytest.fixture
def spoil(monkeypatch):
    """Make the masked-token loss of the given updates (counted from 0) infinite."""
    honest, calls = PretrainingModel.forward, itertools.count()

    def set_up(*updates):
        def losses(model, batch):
            sums = honest(model, batch)
            return sums._replace(mlm=sums.mlm * torch.inf) if next(calls) in updates else sums

        monkeypatch.setattr(PretrainingModel, "forward", losses)

    return set_up


def test_an_update_that_is_not_finite_is_skipped_and_counted(corpus_file, tmp_path, spoil, capsys):
    spoil(4, 5, 9)
    run = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "run", steps=12, settings=SETTINGS
    )
    train = RunFolder(run.folder).metrics().train
    assert [r.skipped_steps for r in train] == [0, 0, 2, 0, 1, 0]
    # Nothing is left to divide by at step 6; at step 10 the mean is over the step that was made.
    assert [r.mlm_loss is None for r in train] == [False, False, True, False, False, False]
    assert all(math.isfinite(r.mlm_loss) for r in train if r.mlm_loss is not None)
    assert "all 2 updates skipped" in capsys.readouterr().out
    steps = load_file((run.folder / "model").resolve().parent / "optimizer.safetensors")
    assert {int(v) for k, v in steps.items() if k.endswith("/step")} == {12 - 3}
    assert (run.folder / "loss.png").is_file()


def test_skipping_an_update_equals_never_having_made_it(corpus_file, tmp_path, spoil):
    """At a constant rate and without warm-up, only the skipped batch is missing."""
    settings = [*SETTINGS, "schedule.decay=none", "schedule.warmup_steps=0"]
    spoil(7)
    skipped = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "skipped", steps=8, settings=settings
    )
    spoil()
    plain = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "plain", steps=7, settings=settings
    )
    assert weights(skipped.folder) == weights(plain.folder)
    assert moments(skipped.folder) == moments(plain.folder)


def test_a_few_skipped_in_a_row_stop_the_run_with_the_last_checkpoint_whole(
    corpus_file, tmp_path, spoil
):
    spoil(*range(6, 30))
    with pytest.raises(RunError, match=r"not finite at step 12; .* lower optimizer.lr"):
        bertmill.pretrain(
            str(corpus_file), "tiny", out=tmp_path / "run", steps=30, settings=SETTINGS
        )
    # Six were skipped up to step 12; the log before, at step 10, had seen four.
    assert (tmp_path / "run" / "model").resolve().parent.name == "step-8"
    spoil()
    again = bertmill.resume(tmp_path / "run")
    assert again.outcome.finished and again.outcome.steps == 30


def test_skips_in_a_row_are_counted_across_a_resume(corpus_file, tmp_path, spoil):
    spoil(*range(1, 30))
    run = bertmill.pretrain(
        str(corpus_file),
        "tiny",
        out=tmp_path / "run",
        steps=30,
        settings=[*SETTINGS, "train.log_every_steps=30"],
        stop_after=1e-6,
    )
    for made in range(2, 5):
        run = bertmill.resume(run.folder, stop_after=1e-6)
        assert run.outcome.steps == made
    state = json.loads((run.folder / "checkpoints" / "step-4" / "state.json").read_text())
    assert (state["losses"]["skipped"], state["losses"]["skipped_in_a_row"]) == (3, 3)


def test_weights_that_overflow_stop_the_run_with_the_last_checkpoint_whole(corpus_file, tmp_path):
    settings = [*SETTINGS, "optimizer.lr=1e38", "optimizer.clip_norm=0", "schedule.warmup_steps=0"]
    with pytest.raises(RunError, match=r"not finite at step \d+; .* lower optimizer.lr"):
        bertmill.pretrain(
            str(corpus_file), "tiny", out=tmp_path / "run", steps=30, settings=settings
        )
    assert bertmill.load(tmp_path / "run").encode("the river").vectors.shape[0] == 1


def test_the_diagnosis_is_given_at_half_of_the_run_and_at_its_end(corpus_file, tmp_path):
    """Thirty steps of a tiny network learn no context, and are told so."""
    settings = [*SETTINGS, "text.held_out_fraction=0.4"]  # enough to judge
    run = bertmill.pretrain(
        str(corpus_file),
        "tiny",
        out=tmp_path / "run",
        steps=30,
        settings=settings,
        stream=(stream := io.StringIO()),
    )
    lines = [line for line in stream.getvalue().splitlines() if "likely causes" in line]
    assert len(lines) == 2 and "16 so far" in lines[0] and "30 so far" in lines[1]
    assert run.outcome.diagnosis[1] == lines[1] and len(run.outcome.diagnosis) <= 3
    assert "train.steps" in lines[1] and "optimizer.lr" in lines[1]


def test_a_damaged_checkpoint_is_passed_over(corpus_file, tmp_path, capsys, undisturbed):
    run = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "run", steps=8, settings=SETTINGS
    )
    checkpoints = run.folder / "checkpoints"
    path = checkpoints / "step-8" / "optimizer.safetensors"
    flipped = bytearray(path.read_bytes())
    flipped[-1] ^= 1
    path.write_bytes(flipped)
    again = bertmill.resume(run.folder)
    assert "step-8 is damaged (optimizer.safetensors)" in capsys.readouterr().out
    assert again.outcome.steps == 8
    for folder in checkpoints.iterdir():
        (folder / "model" / "model.safetensors").unlink()
    with pytest.raises(RunError, match="no undamaged checkpoint"):
        bertmill.resume(run.folder)


def test_a_changed_store_is_refused(corpus_file, tmp_path):
    bertmill.prepare(str(corpus_file), tmp_path / "store", "tiny", settings=SETTINGS)
    run = bertmill.pretrain(
        tmp_path / "store", "tiny", out=tmp_path / "run", steps=2, settings=OVER_A_STORE
    )
    (tmp_path / "store").rename(tmp_path / "old")
    other = tmp_path / "other.txt"
    other.write_text(corpus_file.read_text() + "\n\nOne more document. It has two sentences.")
    bertmill.prepare(str(other), tmp_path / "store", "tiny", settings=SETTINGS)
    with pytest.raises(BertmillError, match="not the one that the run began with"):
        bertmill.resume(run.folder, steps=4)


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_on_resume(
    undisturbed, corpus_file, tmp_path
):
    shutil.copytree(undisturbed.folder, tmp_path / "run", symlinks=True)
    for name in ("checkpoints", "model"):
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    run = bertmill.resume(tmp_path / "run")
    assert weights(run.folder) == weights(undisturbed.folder)
    assert numbers(run.folder) == numbers(undisturbed.folder)


def test_after_a_fallback_the_damaged_checkpoint_is_gone(corpus_file, tmp_path):
    run = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "run", steps=8, settings=SETTINGS
    )
    checkpoints = run.folder / "checkpoints"
    (checkpoints / "step-8" / "state.json").write_text("{}")
    (checkpoints / ".step-9.part").mkdir()
    stopped = bertmill.resume(run.folder, stop_after=1e-6)
    assert stopped.outcome.steps == 5
    assert sorted(p.name for p in checkpoints.iterdir()) == ["step-4", "step-5"]
    assert (run.folder / "model").resolve().parent.name == "step-5"


def test_a_run_whose_last_validation_was_lost_makes_it_on_resume(corpus_file, tmp_path):
    run = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "run", steps=8, settings=SETTINGS
    )
    metrics = run.folder / "metrics.jsonl"
    kept = [line for line in metrics.read_text().splitlines(True) if '"step": 8' not in line]
    metrics.write_text("".join(kept))
    again = bertmill.resume(run.folder)
    assert again.outcome.held_out == run.outcome.held_out


def test_a_finished_run_whose_metrics_are_gone_is_validated_again(corpus_file, tmp_path):
    run = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "run", steps=2, settings=SETTINGS
    )
    (run.folder / "metrics.jsonl").unlink()
    again = bertmill.resume(run.folder).outcome
    assert again.held_out == run.outcome.held_out and again.mlm_loss is None


def test_a_warm_up_longer_than_the_run_is_said(corpus_file, tmp_path, capsys):
    settings = [*SETTINGS, "schedule.warmup_steps=50"]
    bertmill.pretrain(str(corpus_file), "tiny", out=tmp_path / "run", steps=1, settings=settings)
    assert "warm-up of 50 steps is longer than the run" in capsys.readouterr().out


def test_default_folders_are_numbered(corpus_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [bertmill.pretrain(corpus_file, "tiny", steps=1, settings=SETTINGS) for _ in range(2)]
    assert [str(run.folder) for run in runs] == ["runs/tiny-1", "runs/tiny-2"]


# --- real processes ------------------------------------------------------------------------------


def start(corpus_file: Path, out: Path, *more: str) -> subprocess.Popen:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    command = ["pretrain", "--recipe", "tiny", "--corpus", str(corpus_file), "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "bertmill", *command, "--json", *settings, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process: subprocess.Popen, out: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not any(
        record.step >= step for records in RunFolder(out).metrics() for record in records
    ):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_run_that_is_stopped_goes_on_to_the_same_bits(
    undisturbed, corpus_file, tmp_path, number, status
):
    out = tmp_path / "run"
    # Long enough that the signal finds it running, and the same recipe once it is cut to length.
    process = start(corpus_file, out, "--steps", "1000000", "--set", "schedule.decay=none")
    wait_for_step(process, out, 6)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == status, stderr
    if number != signal.SIGKILL:
        outcome = json.loads(stdout)
        assert outcome["stopped_by"] == number and not outcome["finished"]
        assert (out / "model").resolve().parent.name == f"step-{outcome['steps']}"
    newest = max(int(p.name[5:]) for p in (out / "checkpoints").glob("step-*"))
    end = newest + 10
    resumed = bertmill.resume(out, steps=end)
    assert resumed.outcome.steps == end
    whole = bertmill.pretrain(
        str(corpus_file),
        "tiny",
        out=tmp_path / "whole",
        steps=end,
        settings=[*SETTINGS, "schedule.decay=none"],
    )
    assert weights(resumed.folder) == weights(whole.folder)
    assert numbers(resumed.folder) == numbers(whole.folder)


@pytest.mark.alone
def test_a_budget_is_kept(corpus_file, tmp_path):
    rarely = ("log", "validate", "checkpoint")
    settings = [*SETTINGS, *(f"train.{name}_every_steps=500" for name in rarely)]
    run = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "run", budget="20s", settings=settings
    )
    assert run.outcome.finished
    # How well it is kept is shown on made-up machines (test_schedule.py); this one may be busy.
    # Here: the real clock is wired to it, decisions are on disk, the last step is the decided one.
    assert 15 < run.outcome.seconds < 30
    decisions = RunFolder(run.folder).decisions()
    assert decisions[0].seconds >= 14
    assert run.outcome.steps == decisions[-1].end_step
    last = RunFolder(run.folder).metrics().train[-1]
    assert last.lr < 0.05 * run.recipe.optimizer.lr


def test_checkpoints_come_by_minutes_too(corpus_file, tmp_path):
    settings = [s for s in SETTINGS if "checkpoint" not in s] + ["train.keep_checkpoints=9"]
    for minutes, steps in ((1e-9, [0, 1, 2, 3, 4, 5]), (10.0, [0, 5]), (0.0, [0, 5])):
        run = bertmill.pretrain(
            str(corpus_file),
            "tiny",
            out=tmp_path / str(minutes),
            steps=5,
            settings=[*settings, f"train.checkpoint_every_minutes={minutes}"],
        )
        found = sorted(int(path.name[5:]) for path in (run.folder / "checkpoints").iterdir())
        assert found == steps


def test_labels_that_are_all_the_same_do_not_look_like_success(corpus_file, tmp_path):
    stream, settings = io.StringIO(), [*SETTINGS, "pairs.next_fraction=0.0"]
    out = tmp_path / "run"
    run = bertmill.pretrain(
        str(corpus_file), "tiny", out=out, steps=4, settings=settings, stream=stream
    )
    lines = stream.getvalue().splitlines()
    at = [n for n, line in enumerate(lines) if "next-sentence labels are the same" in line]
    assert len(at) == 2
    assert not any("nsp" in line or "of pairs" in line for line in lines[at[0] + 1 : at[1]])
    assert math.copysign(1.0, run.outcome.held_out.nsp_chance_nats) == 1.0  # 0, not -0
    closing = list(closing_lines(run.folder, run.outcome))
    assert not any("NSP" in line for line in closing)


def press(times):
    """A hook that presses Ctrl-C when the first record comes."""

    def on_metrics(record):
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)

    return on_metrics


def test_an_interrupt_is_answered_at_once_and_saves(corpus_file, tmp_path):
    stream, out = io.StringIO(), tmp_path / "run"
    run = bertmill.pretrain(
        str(corpus_file), "tiny", out=out, steps=30, settings=SETTINGS, stream=stream,
        on_metrics=press(1),
    )  # fmt: skip
    assert run.outcome.stopped_by == signal.SIGINT and run.outcome.steps == 2
    assert "finishing this step ..., then saving; a second signal" in stream.getvalue()
    assert (out / "model").resolve().parent.name == "step-2"


def test_a_second_interrupt_ends_with_how_to_go_on(corpus_file, tmp_path):
    stream, out = io.StringIO(), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        bertmill.pretrain(
            str(corpus_file), "tiny", out=out, steps=30, settings=SETTINGS, stream=stream,
            on_metrics=press(2),
        )  # fmt: skip
    last = stream.getvalue().splitlines()[-1]
    assert last.endswith(f"go on from the last checkpoint with: bertmill pretrain --resume {out}")
    assert bertmill.resume(out, steps=4).outcome.steps == 4
