"""Phases: one run over several lengths, which goes on over their border to the same bits."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import bertmill
from bertmill.config import load_recipe, recipe_from_dict
from bertmill.errors import BertmillError, InputError, RecipeError
from bertmill.model.folder import load_model
from bertmill.show.contents import describe
from bertmill.show.summary import summarize
from bertmill.show.tables import contents_lines
from bertmill.train.device import open_device
from bertmill.train.run_data import RunData
from bertmill.train.run_folder import RunFolder
from bertmill.train.validate import HeldOut
from small import CLOCKS, SMALL

PHASES = "phases=[{fraction=0.6, max_length=16}, {max_length=32}]"
SETTINGS = [*SMALL, PHASES]


def contents(run: Path) -> list:
    """Weights, moments and losses, bit for bit."""
    checkpoint = (run / "model").resolve().parent
    files = (checkpoint / "model" / "model.safetensors", checkpoint / "optimizer.safetensors")
    metrics = [r.to_dict() for records in RunFolder(run).metrics() for r in records]
    return [
        *({name: t.numpy().tobytes() for name, t in load_file(file).items()} for file in files),
        [{key: value for key, value in each.items() if key not in CLOCKS} for each in metrics],
    ]


@pytest.fixture(scope="module")
def undisturbed(corpus_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("phases") / "run"
    return bertmill.pretrain(corpus_file, "tiny", out=out, steps=10, settings=SETTINGS)


def open_data(run) -> RunData:
    return RunData.open(
        bertmill.Store(RunFolder(run.folder).read()[1].store), run.recipe, open_device("cpu")
    )


def test_a_step_belongs_to_one_phase(undisturbed):
    data = open_data(undisturbed)
    assert [phase.first_step for phase in data.phases] == [0, 6]
    assert [data.phase_of(step).first_step for step in (-1, 0, 5, 6, 9, 100)] == [0, 0, 0, 6, 6, 6]
    for phase, longest in zip(data.phases, (16, 32), strict=True):
        lengths = [n for step in range(4) for n in phase.train.batch_at(step).lengths]
        assert max(lengths) == longest
    epochs = [
        steps * 8 / phase.train.num_examples
        for steps, phase in zip((6, 4), data.phases, strict=True)
    ]
    assert data.count_epochs(10) == pytest.approx(sum(epochs))


def test_the_same_length_again_has_other_draws(undisturbed):
    values = undisturbed.recipe.model_dump()
    values["phases"] = [{"fraction": 0.5, "max_length": 32}, {"max_length": 32}]
    recipe = recipe_from_dict(values, "test")
    store = bertmill.Store(RunFolder(undisturbed.folder).read()[1].store)
    first, second = RunData.open(store, recipe, open_device("cpu")).phases
    assert not np.array_equal(first.train.batch_at(0).token_ids, second.train.batch_at(0).token_ids)


def test_one_phase_is_a_run_without_phases(corpus_file, tmp_path):
    """The phase's length is that of the pairs, and its draws are those of every run before."""
    runs = [
        bertmill.pretrain(corpus_file, "tiny", out=tmp_path / name, steps=4, settings=settings)
        for name, settings in {
            "with": [*SMALL, "phases=[{max_length=24}]"],
            "without": [*SMALL, "pairs.max_length=24"],
        }.items()
    ]
    assert contents(runs[0].folder) == contents(runs[1].folder)


@pytest.mark.parametrize("stops", [[5], [6], [7], range(1, 10)], ids=["5", "6", "7", "all"])
def test_a_run_goes_on_over_the_border_to_the_same_bits(undisturbed, corpus_file, tmp_path, stops):
    def stop(record) -> None:
        if record.step in stops and record.step not in stopped:
            stopped.append(record.step)
            raise RuntimeError("killed")

    stopped: list[int] = []
    every = [*SETTINGS, "train.log_every_steps=1", "train.checkpoint_every_steps=1"]
    whole = bertmill.pretrain(corpus_file, "tiny", out=tmp_path / "w", steps=10, settings=every)
    with pytest.raises(RuntimeError, match="killed"):
        bertmill.pretrain(
            corpus_file, "tiny", out=tmp_path / "r", steps=10, settings=every, on_metrics=stop
        )
    while stopped[-1] < stops[-1]:
        with pytest.raises(RuntimeError, match="killed"):
            bertmill.resume(tmp_path / "r", on_metrics=stop)
    assert bertmill.resume(tmp_path / "r").outcome.finished
    assert contents(tmp_path / "r") == contents(whole.folder)
    assert contents(tmp_path / "r")[:2] == contents(undisturbed.folder)[:2]


def test_losses_are_measured_on_the_pairs_of_the_phase(undisturbed):
    data = open_data(undisturbed)
    for record in RunFolder(undisturbed.folder).metrics().held_out:  # of steps 4, 8 and 10
        yardsticks = data.phase_of(record.step - 1).held_out.yardsticks
        assert record.scores.no_context_nats == yardsticks.no_context_nats
        assert record.scores.nsp_overlap_nats == yardsticks.nsp_overlap_nats
    first, second = (phase.held_out.yardsticks.no_context_nats for phase in data.phases)
    assert first != second


def test_a_model_says_how_long_its_last_sequences_were(undisturbed, corpus_file, tmp_path):
    early = bertmill.pretrain(
        corpus_file, "tiny", out=tmp_path / "run", steps=10, settings=SETTINGS, stop_after=1e-6
    )
    assert early.outcome.steps == 1
    assert load_model(early.folder).about.pairs.max_length == 16
    assert load_model(undisturbed.folder).about.pairs.max_length == 32
    bertmill.export_huggingface(undisturbed.folder, tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text("utf-8")
    assert "sequences of up to 16, from step 6 on 32 tokens" in " ".join(card.split())
    assert "fraction = 0.6" in card


def test_the_best_checkpoint_is_one_of_the_last_phase(corpus_file, tmp_path, monkeypatch):
    """Losses on longer sequences may be higher than any before."""
    losses, score = iter([1.0, 3.0, 4.0]), HeldOut.score  # at steps 4, 8 and 10
    monkeypatch.setattr(
        HeldOut, "score", lambda *given: replace(score(*given), mlm_loss=next(losses))
    )
    run = bertmill.pretrain(corpus_file, "tiny", out=tmp_path / "r", steps=10, settings=SETTINGS)
    assert (run.folder / "best").resolve().parent.name == "step-8"


def test_phases_are_seen_in_what_is_printed(undisturbed, corpus_file, tmp_path, capsys):
    bertmill.pretrain(corpus_file, "tiny", out=tmp_path / "run", steps=10, settings=SETTINGS)
    said = capsys.readouterr().out
    assert "from step 6 on, sequences of up to 32 tokens" in said
    assert said.index("step 6: sequences of up to 32 tokens from here on") > said.index("from step")
    lines = "\n".join(contents_lines(describe(undisturbed.folder), str(undisturbed.folder)))
    assert "8 sequences of up to 16, from step 6 on 32 tokens" in " ".join(lines.split())
    assert "phase 1           fraction=0.6, max_length=16\n" in lines
    assert "phase 2 " in "\n".join(contents_lines(describe("base"), "base"))
    assert "phase" not in "\n".join(contents_lines(describe("tiny"), "tiny"))
    assert summarize(RunFolder(undisturbed.folder)).recipe.longest == 32


def test_steps_may_be_added_before_the_border_and_not_after_it(corpus_file, tmp_path):
    run = bertmill.pretrain(
        corpus_file, "tiny", out=tmp_path / "run", steps=10, settings=SETTINGS, stop_after=1e-6
    )
    longer = bertmill.resume(run.folder, steps=20, stop_after=1e-6)
    assert longer.recipe.phase_starts() == [0, 12]
    done = bertmill.resume(run.folder, steps=10)
    assert done.outcome.finished
    for steps in (11, 30):
        with pytest.raises(InputError, match=r"moves the start of a phase from step 6 to \d+, and"):
            bertmill.resume(run.folder, steps=steps)
    assert bertmill.resume(run.folder).outcome.finished


def test_phases_that_were_changed_are_refused(undisturbed, tmp_path):
    recipe = undisturbed.folder / "recipe.toml"
    kept = recipe.read_text("utf-8")
    recipe.write_text(kept.replace("fraction = 0.6", "fraction = 0.7"), "utf-8")
    with pytest.raises(BertmillError, match=r"phases is .*0\.7.*, the run began with .*0\.6"):
        bertmill.resume(undisturbed.folder)
    recipe.write_text(kept, "utf-8")


def test_a_phase_without_steps_is_not_opened(corpus_file, tmp_path):
    run = bertmill.pretrain(corpus_file, "tiny", out=tmp_path / "r", steps=1, settings=SETTINGS)
    assert [phase.first_step for phase in open_data(run).phases] == [0]
    assert load_model(run.folder).about.pairs.max_length == 16


@pytest.mark.parametrize("name", ["base", "large"])
def test_base_and_large_are_as_published(name):
    recipe = load_recipe(name)
    assert recipe.phase_starts() == [0, 900_000] and recipe.train.steps == 1_000_000
    assert [pairs.max_length for pairs in recipe.phase_pairs()] == [128, 512]
    assert recipe.train.batch_size == 256 and recipe.pairs.max_length == recipe.longest == 512


@pytest.mark.parametrize(
    ("settings", "lengths"),
    [
        (["phases=[]"], [128]),
        (["pairs.max_length=512"], [512]),
        (
            ["pairs.max_length=64", "phases=[{fraction=0.5, max_length=8}, {max_length=16}]"],
            [8, 16],
        ),
        (["phases=[{fraction=0.5, max_length=8}, {fraction=0.5, max_length=16}]"], [8, 16]),
        (["phases=[{max_length=16}]", "pairs.max_length=64"], [64]),
    ],
)
def test_the_later_setting_of_a_length_holds(settings, lengths):
    recipe = load_recipe("base", settings)
    assert [pairs.max_length for pairs in recipe.phase_pairs()] == lengths
    assert recipe.pairs.max_length == lengths[-1]
    assert recipe_from_dict(json.loads(json.dumps(recipe.model_dump())), "again") == recipe


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("phases=[{fraction=0.9, max_length=128}, {max_length=1024}]",
         ["phases: max_length=1024 is above model.max_position_embeddings=512"]),
        ("phases=[{fraction=0.9, max_length=1024}, {max_length=128}]", ["max_length=1024"]),
        ("phases=[{fraction=0.9, max_length=4}, {max_length=128}]", ["phases.0.max_length: 4 is"]),
        ("phases=[{fraction=0.9}, {max_length=128}]", ["phases.0.max_length", "field required"]),
        ("phases=[{max_length=64}, {max_length=128}]", ["do not add up to 1"]),
        ("phases=[{fraction=1.0, max_length=64}, {max_length=128}]", ["do not add up to 1"]),
        ("phases=[{fraction=0.5, max_length=64}, {fraction=0.6, max_length=128}]", ["add up to 1"]),
        ("phases=[{fractoin=0.5, max_length=64}]", ["phases.0.fractoin", "mean 'fraction'"]),
        ("phases=[128, 512]", ["phases.0", "is a section, not a value", "[[phases]]"]),
        ("phases=lots", ["phases: 'lots' is not allowed"]),
        ("train.budget_seconds=60", ["phases: they are shares of the steps", "a single phase"]),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(setting, parts):
    with pytest.raises(RecipeError) as error:
        load_recipe("base", [setting])
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)
