"""The lines of a diagnosis: each condition, and that what they advise can be done."""

import dataclasses
import re

import pytest

from bertmill.config import Recipe, load_recipe, recipe_names
from bertmill.train.diagnosis import diagnose_masked_tokens, diagnose_pairs
from bertmill.train.validate import HeldOutScores

UNIGRAM, NO_CONTEXT, OVERLAP = 7.0, 6.0, 0.5
SCORES = HeldOutScores(
    mlm_loss=4.0,
    mlm_accuracy=0.3,
    nsp_loss=0.3,
    nsp_accuracy=0.9,
    num_predictions=1000,
    num_pairs=100,
    unigram_nats=UNIGRAM,
    no_context_nats=NO_CONTEXT,
    nsp_chance_nats=0.69,
    nsp_overlap_nats=OVERLAP,
    nsp_overlap_accuracy=0.77,
)
RECIPE = load_recipe("base")


def scores(**changes):
    return dataclasses.replace(SCORES, **changes)


def masked_tokens(loss, *settings, steps=1000, recipe="base") -> str:
    lines = diagnose_masked_tokens(scores(mlm_loss=loss), load_recipe(recipe, settings), steps)
    assert len(lines) == 1 and "\n" not in lines[0]
    return lines[0]


def assert_knobs_exist(text):
    """Every ``section.key`` is a knob, and a value that is advised can be set."""
    knobs = re.findall(r"\b([a-z]+)\.([a-z_]+)(?:=([\w-]+))?", text)
    assert knobs
    for section, key, value in knobs:
        fields = type(getattr(Recipe(name="any"), section)).model_fields
        assert key in fields, f"{section}.{key}"
        if value:
            changed = load_recipe("base", [f"{section}.{key}={value}"])
            assert getattr(getattr(changed, section), key) == value
    return {f"{section}.{key}" for section, key, _ in knobs}


# --- masked tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [0.0, 4.0, NO_CONTEXT - 0.11])
def test_a_loss_below_the_no_context_level_is_well(loss):
    assert diagnose_masked_tokens(scores(mlm_loss=loss), RECIPE, 1000) == []


@pytest.mark.parametrize(
    ("loss", "is_well"),
    [(5.5, True), (5.89, True), (5.91, False), (6.0, False), (7.0, False), (7.001, False)],
)
def test_a_tenth_of_a_nat_is_near(loss, is_well):
    assert (diagnose_masked_tokens(scores(mlm_loss=loss), RECIPE, 1000) == []) == is_well


def test_exactly_a_tenth_below_is_well():
    level = 0.6  # 0.6 - 0.1 is 0.5 to the bit
    assert diagnose_masked_tokens(scores(mlm_loss=0.5, no_context_nats=level), RECIPE, 9) == []
    assert diagnose_masked_tokens(scores(mlm_loss=0.501, no_context_nats=level), RECIPE, 9)


@pytest.mark.parametrize("loss", [5.95, 6.0, 6.5, UNIGRAM])
def test_a_loss_on_the_level_has_not_learned_the_neighbors(loss):
    line = masked_tokens(loss)
    assert f"held-out MLM loss {loss:.3f} is not 0.1 below the no-context level (6.000)" in line
    assert "word frequencies are learned" in line


@pytest.mark.parametrize("loss", [UNIGRAM + 0.001, 50.0])
def test_a_loss_above_word_frequencies_has_not_even_learned_these(loss):
    line = masked_tokens(loss)
    assert f"held-out MLM loss {loss:.3f} is above that of word frequencies alone (7.000)" in line
    assert "not even these are learned" in line


def test_a_loss_that_is_not_a_number_is_not_called_well():
    assert diagnose_masked_tokens(scores(mlm_loss=float("nan")), RECIPE, 1000)


@pytest.mark.parametrize("missing", ["unigram_nats", "no_context_nats"])
def test_without_a_yardstick_nothing_is_said_of_masked_tokens(missing):
    assert diagnose_masked_tokens(scores(mlm_loss=50.0, **{missing: None}), RECIPE, 1000) == []


@pytest.mark.parametrize(
    ("warmup", "steps", "is_first", "is_none"),
    [
        (1000, 100, True, False),
        (1000, 3999, True, False),
        (1000, 4000, False, False),
        (0, 4000, False, True),
        (0, 0, False, True),
    ],
)
def test_the_warm_up_is_named_where_it_is_to_blame(warmup, steps, is_first, is_none):
    line = masked_tokens(6.0, f"schedule.warmup_steps={warmup}", steps=steps)
    long = f"Likely causes: a warm-up of {warmup:,} steps, long for that (schedule.warmup_steps)"
    assert (long in line) == is_first
    assert ("no warm-up (schedule.warmup_steps)" in line) == is_none
    assert line.count("warm-up") == is_first + is_none
    assert f"too few steps, {steps:,} so far (train.steps or train.budget_seconds)" in line


@pytest.mark.parametrize(
    ("settings", "is_named"),
    [
        (["model.position_embedding=rotary", "model.init=fan-in"], False),
        (["model.position_embedding=rotary", "model.init=normal"], True),
        (["model.position_embedding=absolute", "model.init=fan-in"], True),
    ],
)
def test_the_initialization_is_named_where_it_is_published_berts(settings, is_named):
    assert ("an initialization that" in masked_tokens(6.0, *settings)) == is_named


def test_the_runs_own_numbers_are_told():
    line = masked_tokens(6.0, "optimizer.lr=3e-05", "train.batch_size=1234", steps=5678)
    assert "5,678 so far" in line
    assert "a learning rate of 3e-05" in line and "(optimizer.lr)" in line
    assert "a batch of 1,234 sequences" in line and "(train.batch_size)" in line


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("steps", [10, 10_000_000])
def test_knobs_that_are_named_exist(recipe, steps):
    knobs = assert_knobs_exist(masked_tokens(6.0, recipe=recipe, steps=steps))
    assert {"train.steps", "optimizer.lr", "train.batch_size"} <= knobs


# --- pairs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "is_well"), [(0.3, True), (0.4999, True), (0.5, False)])
def test_pairs_are_well_below_shared_words_alone(loss, is_well):
    assert (diagnose_pairs(scores(nsp_loss=loss)) == []) == is_well


def test_pairs_that_are_not_compared():
    (line,) = diagnose_pairs(scores(nsp_loss=0.69))
    assert "\n" not in line
    assert "held-out NSP loss 0.690 is no better" in line
    assert "(0.500, 77.0% of pairs right)" in line
    assert assert_knobs_exist(line) == {
        "train.steps",
        "train.budget_seconds",
        "train.nsp_weight",
        "pairs.kind",
    }


@pytest.mark.parametrize("missing", ["nsp_loss", "nsp_overlap_nats"])
def test_without_pairs_or_a_yardstick_nothing_is_said_of_pairs(missing):
    assert diagnose_pairs(scores(**{"nsp_loss": 0.9, missing: None})) == []


def test_a_pair_loss_that_is_not_a_number_is_not_called_well():
    assert diagnose_pairs(scores(nsp_loss=float("nan")))


def test_without_training_statistics_nothing_is_said_at_all():
    bare = scores(
        mlm_loss=9.0,
        nsp_loss=0.9,
        unigram_nats=None,
        no_context_nats=None,
        nsp_overlap_nats=None,
        nsp_overlap_accuracy=None,
    )
    assert [*diagnose_masked_tokens(bare, RECIPE, 10), *diagnose_pairs(bare)] == []
