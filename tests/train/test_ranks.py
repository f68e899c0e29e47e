"""Many ranks are one run: the same losses on any number, and the same bits on as many.

Ranks are real processes that talk over gloo on this machine.
"""

import json
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bertmill.config import load_recipe
from bertmill.errors import InputError
from bertmill.train import start
from bertmill.train.world import World, open_world
from processes import run_ranks
from small import CLOCKS, SMALL

CPU = torch.device("cpu")
NO_DROPOUT = ["model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0"]
# Both modes and sizes, with micro-batches and without, and text that has no pairs.
SAME_LOSSES = [
    (2, ["train.shard=full", "train.micro_batch_tokens=70"]),
    *(
        pytest.param(size, settings, marks=pytest.mark.slow)
        for size, settings in [
            (4, []),
            (4, ["train.micro_batch_tokens=40"]),
            (4, ["train.shard=full", "train.micro_batch_tokens=40"]),
            (2, ["pairs.kind=none", "train.micro_batch_tokens=40"]),
            (4, ["pairs.kind=none", "train.shard=full"]),
            (2, ["masking.whole_word=true"]),
        ]
    ),
]
SAME_BITS = [
    (2, "full"),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [(2, "none"), (4, "none"), (4, "full")]
    ),
]


@pytest.fixture(scope="module")
def train(corpus_file, tmp_path_factory):
    """Pretrain on so many ranks, once for each way to do it; give the run's folder."""

    @cache
    def begin(size, steps, settings):
        run = tmp_path_factory.mktemp("runs") / "run"
        sets = [part for setting in (*SMALL, *settings) for part in ("--set", setting)]
        arguments = ["pretrain", "--corpus", corpus_file, "--recipe", "tiny", "--out", run]
        succeed(run_ranks(size, [*arguments, "--steps", steps, *sets]))
        return run

    return begin


def succeed(ranks):
    assert [done.returncode for done in ranks] == [0] * len(ranks), ranks
    # Rank 0 alone speaks.
    assert all(done.stdout == done.stderr == "" for done in ranks[1:])


def metrics(run):
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCKS} for line in lines]


def losses(run):
    return np.array([[row["mlm_loss"], row["nsp_loss"] or 0.0] for row in metrics(run)])


def bits(run):
    """All that the newest checkpoint holds, and what was measured on the way there."""
    newest = (run / "model").resolve().parent
    files = {path.name: path.read_bytes() for path in newest.rglob("*.safetensors")}
    assert len(files) > 1
    return newest.name, files, metrics(run)


@pytest.mark.parametrize(("size", "settings"), SAME_LOSSES)
def test_the_losses_are_those_of_one_rank(train, size, settings):
    common = (*NO_DROPOUT, *(each for each in settings if not each.startswith("train.")))
    alone = train(1, 20, common)
    together = train(size, 20, (*NO_DROPOUT, *settings))
    assert len(losses(alone)) == 15
    np.testing.assert_allclose(losses(together), losses(alone), rtol=0, atol=1e-5)
    weights = [load_file(run / "model" / "model.safetensors") for run in (alone, together)]
    for name, values in weights[0].items():
        torch.testing.assert_close(weights[1][name], values, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "shard"), SAME_BITS)
def test_a_run_that_goes_on_has_the_bits_of_one_left_alone(train, size, shard, tmp_path):
    settings = (f"train.shard={shard}", "train.micro_batch_tokens=70", "train.keep_checkpoints=9")
    undisturbed, stopped = train(size, 8, settings), tmp_path / "run"
    shutil.copytree(undisturbed, stopped, symlinks=True)
    shutil.rmtree(stopped / "checkpoints" / "step-8")  # as if it had been killed before
    succeed(run_ranks(size, ["pretrain", "--resume", stopped]))
    assert bits(stopped) == bits(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "full"])
def test_a_run_begun_again_has_the_same_bits(train, shard):
    first = train(4, 8, (f"train.shard={shard}", "train.seed=3"))
    again = train(4, 8, ("train.seed=3", f"train.shard={shard}"))
    assert first != again and bits(first) == bits(again)


@pytest.mark.parametrize(
    ("size", "then"),
    [(2, 1), *(pytest.param(*c, marks=pytest.mark.slow) for c in [(4, 2), (1, 4)])],
)
def test_a_checkpoint_goes_on_with_another_number_of_ranks(train, size, then, tmp_path):
    settings = (*NO_DROPOUT, "train.shard=full", "train.keep_checkpoints=9")
    undisturbed, moved = train(size, 8, settings), tmp_path / "run"
    shutil.copytree(undisturbed, moved, symlinks=True)
    shutil.rmtree(moved / "checkpoints" / "step-8")
    succeed(run_ranks(then, ["pretrain", "--resume", moved]))
    np.testing.assert_allclose(losses(moved), losses(undisturbed), rtol=0, atol=1e-5)
    names = sorted(path.name for path in (moved / "checkpoints" / "step-8").glob("optimizer*"))
    assert names == (
        [f"optimizer-{rank}-of-{then}.safetensors" for rank in range(then)]
        if then > 1
        else ["optimizer.safetensors"]
    )


def test_a_missing_part_of_a_checkpoint_is_named(train, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(train(2, 8, (*NO_DROPOUT, "train.shard=full", "train.keep_checkpoints=9")), run)
    for step in (0, 4, 8):
        (run / "checkpoints" / f"step-{step}" / "optimizer-1-of-2.safetensors").unlink()
    first, second = run_ranks(2, ["pretrain", "--resume", run])
    assert first.returncode == 2 and second.returncode != 0 and second.stderr == ""
    assert "missing or unexpected files: optimizer-1-of-2.safetensors" in first.stdout
    assert first.stderr == (
        f"bertmill: {run}: has no undamaged checkpoint; start again in another folder\n"
    )


# --- what is refused -----------------------------------------------------------------------------


def test_more_ranks_than_rows_are_refused(monkeypatch):
    monkeypatch.setattr(start, "open_world", lambda section: World(CPU, 0, 9))
    recipe = load_recipe("tiny", ["train.batch_size=8"])
    with pytest.raises(InputError, match=r"9 ranks: cannot share the 8 sequences of a step"):
        start._open_world(recipe)


def test_one_device_for_all_ranks_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    section = load_recipe("tiny", ["train.device=cuda:1"]).train
    with pytest.raises(InputError, match=r"train.device=cuda:1: would be the same device for"):
        open_world(section)


def test_ranks_with_other_values_are_refused(monkeypatch):
    monkeypatch.setattr(World, "agree", lambda self, values: {"train.batch_size": 8, "text": "a"})
    values = {"train.batch_size": 16, "text": "a"}
    with pytest.raises(InputError, match=r"train.batch_size: is 16 here and 8 on rank 0"):
        World(CPU, 3, 4).refuse_unless_same(values)


def test_a_rank_with_another_recipe_says_so(corpus_file, tmp_path):
    sets = [part for setting in SMALL for part in ("--set", setting)]
    command = ["pretrain", "--corpus", corpus_file, "--out", tmp_path / "run", *sets]
    own = [["--set", "optimizer.lr=0.1"], ["--set", "optimizer.lr=0.2"]]
    first, second = run_ranks(2, command, own=own)
    assert second.returncode == 2 and first.returncode != 0
    assert second.stderr == (
        "bertmill: rank 1: optimizer.lr: is 0.2 here and 0.1 on rank 0; start all ranks with the "
        "same command on the same text\n"
    )
    assert not (tmp_path / "run").exists()
