"""Recipes: what ships, how they are changed, written and refused."""

import pytest
from pydantic import ValidationError

from bertmill.api import parse_duration
from bertmill.config import Recipe, load_recipe, recipe_from_dict, recipe_names, recipe_to_toml
from bertmill.errors import InputError, RecipeError

# Layers, width, heads, feed-forward width.
PUBLISHED = {
    "tiny": (2, 128, 2, 512),
    "mini": (4, 256, 4, 1024),
    "small": (4, 512, 8, 2048),
    "medium": (8, 512, 8, 2048),
    "base": (12, 768, 12, 3072),
    "large": (24, 1024, 16, 4096),
}


def test_shipped_recipes():
    assert recipe_names() == sorted([*PUBLISHED, "quick", "continue", "d2l"])


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipe_is_named_as_its_file_and_survives_toml(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name
    file = tmp_path / "written.toml"
    file.write_text(recipe_to_toml(recipe), "utf-8")
    assert load_recipe(file) == recipe


def test_unusual_text_survives_toml(tmp_path):
    recipe = load_recipe("tiny", ['tokenizer.mask_token="<\\"mäsk\\" \\\\ 東>"'])
    file = tmp_path / "written.toml"
    file.write_text(recipe_to_toml(recipe), "utf-8")
    assert load_recipe(file) == recipe


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes(name):
    recipe = load_recipe(name)
    model = recipe.model
    assert PUBLISHED[name] == (
        model.num_hidden_layers,
        model.hidden_size,
        model.num_attention_heads,
        model.intermediate_size,
    )
    assert model.hidden_act == "gelu"
    assert model.hidden_dropout_prob == model.attention_probs_dropout_prob == 0.1
    assert model.max_position_embeddings == 512
    assert model.tie_word_embeddings
    assert (model.position_embedding, model.norm, model.init) == ("absolute", "post", "normal")
    assert recipe.tokenizer.vocab_size == 30_522


def test_d2l_is_the_teaching_programs_run():
    recipe = load_recipe("d2l")
    assert recipe.tokenizer.kind == "word"
    assert recipe.tokenizer.min_frequency == 5
    assert recipe.tokenizer.special_tokens == ("<pad>", "<unk>", "<cls>", "<sep>", "<mask>")
    assert recipe.pairs.kind == "sentences"
    assert recipe.pairs.max_length == 64
    assert recipe.train.batch_size == 512
    assert recipe.model.hidden_act == "relu"
    assert recipe.model.intermediate_size == 256
    assert recipe.model.hidden_dropout_prob == recipe.model.attention_probs_dropout_prob == 0.2
    assert not recipe.model.tie_word_embeddings
    assert recipe.optimizer.lr == 1e-4
    assert recipe.optimizer.weight_decay == 0.0
    assert recipe.schedule.decay == "none"
    assert recipe.schedule.warmup_steps == 0


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("train.batch_size=8", 8),
        ("train.batch_size = 8", 8),
        ("train.steps=1_000", 1000),
        ("optimizer.lr=2e-3", 2e-3),
        ("optimizer.lr=1", 1.0),
        ("masking.whole_word=true", True),
        ("masking.whole_word=True", True),
        ("masking.whole_word= False ", False),
        ("text.field=Trueish", "Trueish"),
        ("text.field=body", "body"),
        ('text.field="body"', "body"),
        ("text.field=the body", "the body"),
        ("tokenizer.path=some/folder", "some/folder"),
        ("tokenizer.mask_token=<a=b>", "<a=b>"),
        ("tokenizer.path=", ""),
    ],
)
def test_settings_are_toml_or_plain_text(setting, value):
    recipe = load_recipe("tiny", [setting])
    section, key = setting.split("=")[0].strip().split(".")
    assert getattr(getattr(recipe, section), key) == value


def test_the_last_setting_wins():
    assert load_recipe("tiny", ["train.seed=2", "train.seed=3"]).train.seed == 3


def test_settings_leave_the_shipped_recipe_alone():
    load_recipe("tiny", ["train.seed=2"])
    assert load_recipe("tiny").train.seed == 1


@pytest.mark.parametrize("setting", ["batch_size=8", "train.batch_size", "train.=8", "=8", ""])
def test_a_setting_of_another_form_is_refused(setting):
    with pytest.raises(RecipeError, match=r"section\.key=value"):
        load_recipe("tiny", [setting])


@pytest.mark.parametrize(
    "setting",
    [
        'train.batch_size="8"',
        "train.batch_size=8.0",
        "train.batch_size=eight",
        "train.batch_size=",
        "train.batch_size=true",
        "train.batch_size=0",
        "masking.whole_word=1",
        "optimizer.lr=nan",
        "optimizer.lr=inf",
        "optimizer.lr=0.0",
        "text.field=3",
        "text.held_out_fraction=0.6",
        "model.hidden_act=swish",
    ],
)
def test_a_value_out_of_range_or_of_another_type_is_refused(setting):
    key = setting.split("=")[0]
    with pytest.raises(RecipeError, match=f"recipe tiny: {key}: .* is not allowed; "):
        load_recipe("tiny", [setting])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.batchsize=8", "train.batchsize: .*did you mean 'batch_size'"),
        ("trian.batch_size=8", "trian: .*did you mean 'train'"),
        ("train.batch.size=8", "train.batch.size: .*did you mean 'batch_size'"),
        ("name.first=8", "name.first: is not a known key"),
    ],
)
def test_an_unknown_key_is_refused_with_the_known_ones(setting, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("tiny", [setting])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.num_attention_heads=5"], "does not divide"),
        (["pairs.max_length=1024"], "above model.max_position_embeddings"),
        (["masking.mask_token_fraction=0.8", "masking.random_token_fraction=0.3"], "more than 1"),
        (["tokenizer.sep_token=[CLS]"], "five different names"),
        (
            ["model.num_attention_heads=128", "model.position_embedding=rotary"],
            "rotary positions need an even",
        ),
    ],
)
def test_knobs_that_do_not_fit_together_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("tiny", settings)


def test_a_file_without_a_name_is_named_as_its_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nsteps = 3\n", "utf-8")
    recipe = load_recipe(file)
    assert (recipe.name, recipe.train.steps) == ("mine", 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[train]\nsteps =\n", "is not TOML .*line 2"),
        (b"name = '\xff'\n", "is not TOML"),
        (b"train = 5\n", "train: is a section, not a value"),
        (b"[train]\nstep = 5\n", "did you mean 'steps'"),
        (b"[train.more]\nstep = 5\n", "train.more: is not a known key"),
    ],
)
def test_a_broken_file_is_refused(content, message, tmp_path):
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(file)
    assert str(file) in str(caught.value)


def test_an_unknown_recipe_names_the_nearest():
    nearest = r"did you mean 'tiny'.*known names are base, continue, d2l"
    with pytest.raises(RecipeError, match=nearest):
        load_recipe("tinny")


def test_recipe_is_frozen():
    recipe = load_recipe("tiny")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.steps = 3
    with pytest.raises(ValidationError, match="frozen"):
        recipe.name = "other"


def test_recipe_from_dict_names_its_source():
    with pytest.raises(RecipeError, match="recipe here: name: "):
        recipe_from_dict({"name": ""}, "here")
    assert recipe_from_dict({"name": "any"}, "here") == Recipe(name="any")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("1h", 3600),
        ("1h2m3s", 3723),
        ("2d12h", 216_000),
        ("0.5m", 30),
        (" 90s ", 90),
        (90, 90),
        (0.5, 0.5),
    ],
)
def test_parse_duration(text, seconds):
    assert parse_duration(text, "--budget") == seconds


@pytest.mark.parametrize(
    "text",
    ["", "abc", "-5s", "0", "0s", "10x", "30m1h", "1 h", "s", 0, -1, float("nan"), float("inf")],
)
def test_parse_duration_refuses(text):
    with pytest.raises(InputError, match=r"--budget: .* is not a length of time; write 90s"):
        parse_duration(text, "--budget")
