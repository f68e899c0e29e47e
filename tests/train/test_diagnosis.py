"""The lines of a diagnosis: each condition, and that what they advise can be done."""

import dataclasses
import re

import pytest

from bertmill.config import Recipe, load_recipe, recipe_names
from bertmill.train.diagnosis import diagnose, diagnose_masked_tokens, diagnose_pairs
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
    assert len(lines) == 2 and "\n" not in "".join(lines)
    return ". ".join(lines)


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
    ("warmup", "steps", "is_first"),
    [(1000, 100, True), (1000, 3999, True), (1000, 4000, False), (0, 4000, False), (0, 0, False)],
)
def test_the_warm_up_is_named_where_it_is_to_blame(warmup, steps, is_first):
    line = masked_tokens(6.0, f"schedule.warmup_steps={warmup}", steps=steps)
    long = f"likely causes: a warm-up of {warmup:,} steps, long for that (schedule.warmup_steps)"
    assert (long in line) == is_first
    assert line.count("warm-up") == is_first
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
    line = masked_tokens(6.0, "optimizer.lr=3e-05", "schedule.warmup_steps=0", steps=5678)
    assert "5,678 so far" in line
    assert "a learning rate of 3e-05" in line and "(optimizer.lr)" in line


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if name != "d2l"])
@pytest.mark.parametrize("steps", [10, 10_000_000])
def test_knobs_that_are_named_exist(recipe, steps):
    knobs = assert_knobs_exist(masked_tokens(6.0, recipe=recipe, steps=steps))
    assert "train.steps" in knobs


# --- pairs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "is_well"), [(0.3, True), (0.4999, True), (0.5, False)])
def test_pairs_are_well_below_shared_words_alone(loss, is_well):
    assert (diagnose_pairs(scores(nsp_loss=loss)) == []) == is_well


def test_pairs_that_are_not_compared():
    (line,) = diagnose_pairs(scores(nsp_loss=0.69))
    assert "\n" not in line
    assert "held-out NSP loss 0.690 is no better" in line
    assert "(0.500, 77.0% of pairs right)" in line
    assert assert_knobs_exist(line) == {"train.nsp_weight", "pairs.kind"}


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


# --- all of it -----------------------------------------------------------------------------------

BAD = {"mlm_loss": 6.5, "nsp_loss": 0.7}


@pytest.mark.parametrize("train_loss", [6.4, 2.0, None])
@pytest.mark.parametrize("num_pairs", [0, 2, 100])
@pytest.mark.parametrize("num_predictions", [20, 1000])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_a_diagnosis_has_three_lines_at_most(train_loss, num_pairs, num_predictions, fraction):
    found = scores(**BAD, num_pairs=num_pairs, num_predictions=num_predictions)
    recipe = load_recipe("base", [f"pairs.next_fraction={fraction}"])
    lines = diagnose(found, recipe, 1000, train_loss)
    assert 1 <= len(lines) <= 3
    assert max(map(len, lines)) < 300 and "\n" not in "".join(lines)
    is_few = num_predictions < 200 or (num_pairs == 2 and fraction == 0.5)
    assert ("too few to judge" in lines[-1]) == is_few


def test_what_is_well_is_not_spoken_of():
    assert diagnose(SCORES, RECIPE, 1000, 3.9) == []


def test_few_answers_are_not_judged():
    found = scores(**BAD, num_predictions=20, num_pairs=2)
    [line] = diagnose(found, RECIPE, 1000, 2.0)
    assert line.startswith("20 masks and 2 pairs of held-out text are too few to judge")


def test_overfitting_is_reported_instead_of_other_causes():
    [line] = diagnose(scores(mlm_loss=6.5), RECIPE, 1000, 2.25)
    assert "training text, 2.250, is far below that of held-out text, 6.500" in line
    assert "overfitting" in line
    assert diagnose(scores(mlm_loss=4.0), RECIPE, 1000, 3.51) == []


def test_a_recipe_that_repeats_a_reference_is_not_diagnosed():
    assert diagnose(scores(**BAD), load_recipe("d2l"), 50, 6.5) == []
    assert diagnose_masked_tokens(scores(**BAD), load_recipe("d2l"), 25) == []


def test_a_network_that_was_given_is_not_called_wrong():
    assert "model.init" in "".join(diagnose(scores(**BAD), RECIPE, 10_000_000))
    lines = diagnose(scores(**BAD), RECIPE, 10_000_000, is_given=True)
    assert len(lines) == 3 and "model." not in "".join(lines)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_labels_that_are_all_the_same_are_no_success(fraction):
    recipe = load_recipe("base", [f"pairs.next_fraction={fraction}"])
    same = scores(nsp_loss=0.0, nsp_accuracy=1.0, nsp_chance_nats=0.0)
    [line] = diagnose(same, recipe, 1000)
    assert line.startswith(
        f"with pairs.next_fraction={fraction:g} all, or almost all, next-sentence"
    )
    assert [each.kind for each in same.losses] == ["mlm"]
    assert (
        diagnose(SCORES, load_recipe("base", ["pairs.kind=none", "pairs.next_fraction=1"]), 1) == []
    )
