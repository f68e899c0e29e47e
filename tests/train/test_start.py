"""Plans: one frozen record for a new run and for a resume, resolved once."""

import dataclasses
import json
import tomllib

import pytest
import tomli_w

import bertmill
from bertmill.config import TextSection, load_recipe, recipe_to_toml
from bertmill.errors import BertmillError
from bertmill.text.corpus import read_documents
from bertmill.text.files import find_files
from bertmill.train.request import Request
from bertmill.train.run_folder import RunFolder
from bertmill.train.start import plan_resume, plan_run
from bertmill.train.world import World
from small import SMALL


def request(corpus_file, tmp_path, **more):
    return Request(
        **{
            "corpus": [str(corpus_file)],
            "recipe": "tiny",
            "settings": SMALL,
            "out": str(tmp_path / "run"),
            **more,
        }
    )


def test_a_plan_is_resolved_and_nothing_is_written_yet(corpus_file, tmp_path):
    said = []
    settings = [*(s for s in SMALL if "precision" not in s), "train.steps=3", "train.seed=7"]
    plan = plan_run(request(corpus_file, tmp_path, settings=settings), said.append)
    assert plan.recipe.train.precision in ("fp32", "bf16")
    assert (plan.recipe.train.steps, plan.recipe.train.seed) == (3, 7)
    assert plan.facts.corpus == [str(corpus_file)] and plan.start is None
    assert plan.facts.store_identity == plan.data.store.identity
    assert plan.budget_seconds is None
    assert not (tmp_path / "run").exists()
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.start = 3


def test_given_held_out_text_leaves_nothing_of_the_corpus_out(corpus_file, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("One sentence here. Another one there.\n\nA third one. And a fourth one.\n")
    plan = plan_run(request(corpus_file, tmp_path, held_out=[str(other)]), lambda line: None)
    assert plan.recipe.text.held_out_fraction == 0.0
    assert plan.facts.held_out == [str(other)]


@pytest.fixture
def one_held_out(corpus_file) -> list[str]:
    """Settings that hold out a single document."""
    files = find_files([str(corpus_file)])
    identities = sorted(each.identity for each in read_documents(files, TextSection()))
    fraction = (identities[0] + identities[1]) / 2 / 2**64
    return [*SMALL, f"text.held_out_fraction={fraction}"]


def test_a_held_out_share_that_gives_no_pair_is_not_validated(
    corpus_file, tmp_path, one_held_out, capsys
):
    run = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "run", steps=1, settings=one_held_out
    )
    assert run.outcome.finished and run.outcome.held_out is None
    said = "nothing is validated: the held-out share of the corpus is too little to make a pair of"
    assert said in capsys.readouterr().out


def test_a_single_held_out_document_is_validated_where_no_other_is_needed(
    corpus_file, tmp_path, one_held_out
):
    settings = [*one_held_out, "pairs.kind=none"]
    plan = plan_run(request(corpus_file, tmp_path, settings=settings), lambda line: None)
    assert plan.data.store.held_out.num_documents == 1
    assert plan.data.phases[0].held_out is not None


def test_held_out_text_that_was_given_must_give_pairs(corpus_file, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("One sentence here. Another one there.\n")
    with pytest.raises(BertmillError, match=r"other\.txt: is a single document"):
        plan_run(request(corpus_file, tmp_path, held_out=[str(other)]), lambda line: None)


def test_a_budget_stands_in_the_recipe_of_the_run(corpus_file, tmp_path):
    run = bertmill.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "run", budget=1.5, settings=SMALL
    )
    recipe = load_recipe(run.folder / "recipe.toml")
    assert recipe.train.budget_seconds == 1.5
    assert run.outcome.finished and run.outcome.steps != recipe.train.steps


def as_an_earlier_version_wrote_it(run):
    """Take the budget out of the recipe, and put it into run.json."""
    paths = [run / "recipe.toml", *(run / "checkpoints").glob("*/state.json")]
    for path in paths:
        is_toml = path.suffix == ".toml"
        values = tomllib.loads(path.read_text()) if is_toml else json.loads(path.read_text())
        (values if is_toml else values["recipe"])["train"].pop("budget_seconds")
        path.write_text(tomli_w.dumps(values) if is_toml else json.dumps(values))
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"budget_seconds": 2.5}))


def test_a_run_by_budget_of_an_earlier_version_goes_on_by_its_budget(corpus_file, tmp_path):
    run = bertmill.pretrain(
        str(corpus_file),
        "tiny",
        out=tmp_path / "run",
        budget=2.5,
        settings=SMALL,
        stop_after=1e-6,
    ).folder
    as_an_earlier_version_wrote_it(run)
    folder = RunFolder(run)
    with folder.locked():
        plan = plan_resume(folder, None, [], [], 1, lambda line: None)
    assert plan.budget_seconds == 2.5
    with folder.locked(), pytest.raises(BertmillError, match="the run has a time budget"):
        plan_resume(folder, 20, [], [], 1, lambda line: None)


def test_what_ranks_must_share_goes_through_the_world(corpus_file, tmp_path, monkeypatch):
    """The precision and the folder; with each step clocks, and whether to save or to stop."""
    agreed, compared = [], []
    each, largest = World.each, World.largest

    def keep_each(self, value):
        agreed.append(value)
        return each(self, value)

    def keep_largest(self, *numbers):
        compared.append(numbers)
        return largest(self, *numbers)

    monkeypatch.setattr(World, "each", keep_each)
    monkeypatch.setattr(World, "largest", keep_largest)
    monkeypatch.chdir(tmp_path)
    run = bertmill.pretrain(str(corpus_file), "tiny", budget=1.0, settings=SMALL)
    assert "fp32" in agreed
    assert str(run.folder) in agreed
    steps = [numbers for numbers in compared if len(numbers) > 1]  # not the memory of a rank
    clocks, stops = steps[::2], steps[1::2]
    assert len(clocks) == len(stops) == run.outcome.steps
    assert all(seconds > elapsed > 0 for seconds, elapsed, is_late in clocks)
    assert set(stops) == {(0, False)}


# --- the warm-up of a shorter run ----------------------------------------------------------------

NO_WARMUP = [setting for setting in SMALL if not setting.startswith("schedule.warmup")]


@pytest.mark.parametrize(
    ("settings", "schedule", "line"),
    [
        (["train.steps=500"], (5, 0.0), "warm-up: 5 of 500 steps, in proportion to 10,000 of"),
        (["train.steps=20"], (0, 0.0), "warm-up: 0 of 20 steps"),
        (["train.budget_seconds=40.0"], (10_000, 0.01), "warm-up: 1.0% of the budget, in prop"),
        ([], (10_000, 0.0), None),
        (["train.steps=2_000_000"], (10_000, 0.0), None),
        (["train.steps=500", "schedule.warmup_steps=30"], (30, 0.0), None),
        (["train.budget_seconds=40.0", "schedule.warmup_steps=30"], (30, 0.0), None),
    ],
)
def test_a_run_shorter_than_its_recipe_warms_up_in_proportion(
    settings, schedule, line, corpus_file, tmp_path
):
    said = []
    settings = [*NO_WARMUP, *settings]
    plan = plan_run(request(corpus_file, tmp_path, settings=settings), said.append)
    section = plan.recipe.schedule
    assert (section.warmup_steps, section.warmup_fraction) == schedule
    lines = [each for each in said if "warm-up" in each]
    assert [each.startswith(line) for each in lines] == ([True] if line else [])


def test_a_recipe_of_a_shorter_run_keeps_its_warm_up(corpus_file, tmp_path):
    said = []
    settings = [*NO_WARMUP, "train.budget_seconds=40.0"]
    plan = plan_run(request(corpus_file, tmp_path, settings=settings), said.append)
    own = tmp_path / "own.toml"
    own.write_text(recipe_to_toml(plan.recipe), "utf-8")
    again = plan_run(request(corpus_file, tmp_path, recipe=str(own), settings=[]), said.append)
    assert again.recipe.schedule == plan.recipe.schedule


def test_a_model_that_will_take_shorter_texts(small_run, corpus_file, tmp_path):
    for length, count in ((16, 1), (32, 0), (64, 0)):
        said = []
        settings = [f"pairs.max_length={length}", "train.precision=fp32"]
        wish = {"init_from": str(small_run.folder), "settings": settings, "recipe": "continue"}
        plan_run(request(corpus_file, tmp_path, **wish), said.append)
        line = "the model takes 32 tokens, and will take 16 after this run: more are cut off (pairs"
        assert sum(each.startswith(line) for each in said) == count
        assert sum("after this run" in each for each in said) == count
