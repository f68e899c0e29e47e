"""A second network is a module: a small one, made here, goes through all of bertmill."""

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import bertmill
from bertmill import export_huggingface
from bertmill.config import MODEL_SECTIONS, ModelSection, NetworkSection, load_recipe
from bertmill.errors import ModelError, RecipeError
from bertmill.exports.onnx import write_onnx
from bertmill.model.architecture import ARCHITECTURES, Architecture, architecture_of
from bertmill.model.folder import load_model
from bertmill.model.kernels import Kernels
from bertmill.model.packed import ActivationBytes, Encoder, PackedTokens, Selection
from bertmill.model.pretraining import PretrainingModel, count_step_flops
from bertmill.train.run_folder import RunFolder

# --- the network ---------------------------------------------------------------------------------


class MeanSection(NetworkSection):
    architecture: Literal["mean"] = "mean"
    own_share: float = 0.5
    """Of a token's own vector; the rest is the mean of its sequence."""


class MeanEncoder(Encoder):
    def __init__(self, section: MeanSection, vocab_size: int, kernels: Kernels) -> None:
        super().__init__()
        self.section, self.kernels = section, kernels
        self.tokens = nn.Embedding(vocab_size, section.hidden_size)
        self.mix = nn.Linear(section.hidden_size, section.hidden_size)

    @property
    def word_embeddings(self) -> nn.Embedding:
        return self.tokens

    def forward(self, packed: PackedTokens, selection: Selection | None = None) -> Tensor:
        each = torch.split(self.tokens(packed.token_ids), list(packed.lengths))
        share = self.section.own_share
        x = torch.cat([share * x + (1 - share) * x.mean(0) for x in each])
        x = x if selection is None else x.index_select(0, selection.at)
        return self.kernels.linear(x, self.mix.weight, self.mix.bias)


def initialize(module: nn.Module, section: MeanSection, generator: torch.Generator) -> None:
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Embedding):
            nn.init.normal_(child.weight, std=section.initializer_range, generator=generator)
        if isinstance(child, nn.Linear):
            nn.init.zeros_(child.bias)


def step_flops(section: MeanSection, lengths: Sequence[int], num_selected: Sequence[int]) -> int:
    return 3 * 2 * section.hidden_size**2 * sum(num_selected)


def activation_bytes(
    section: MeanSection,
    num_tokens: int,
    num_selected: int,
    length: int,
    is_bf16: bool,
    on_cpu: bool,
) -> ActivationBytes:
    row = 4 * section.hidden_size
    return ActivationBytes(2 * num_tokens * row, num_selected * row, num_selected * row, 0)


def to_config(section: MeanSection, kind: str) -> dict[str, Any]:
    return {"architectures": [f"Mean{kind}"], "model_type": "mean", **section.model_dump()}


def from_config(config: Mapping[str, Any], where: object) -> dict[str, Any]:
    return {key: config[key] for key in MeanSection.model_fields if key in config}


MEAN: Architecture = SimpleNamespace(
    SECTION=MeanSection,
    build=MeanEncoder,
    initialize=initialize,
    step_flops=step_flops,
    activation_bytes=activation_bytes,
    MODEL_TYPES=("mean",),
    NAMES={
        "encoder.tokens": "embeddings",
        "encoder.mix": ("mix.upper", "mix.lower"),
        "pooler": "pooler",
        "next_sentence_head": "pairs",
        "masked_token_head.dense": "masks.dense",
        "masked_token_head.norm": "masks.norm",
        "masked_token_head.bias": "masks.bias",
    },
    to_config=to_config,
    from_config=from_config,
    not_in_transformers=lambda section: "is a mean network",
    with_copies=dict,
    with_todays_names=dict,
    pad=None,
)


# --- what becomes of it --------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "mean", MEAN)
        patch.setitem(MODEL_SECTIONS, "mean", MeanSection)
        yield


SETTINGS = [
    "model.architecture=mean",
    "model.own_share=0.25",
    "model.hidden_size=16",
    "tokenizer.vocab_size=200",
    "text.held_out_fraction=0.2",
    "pairs.max_length=32",
    "train.batch_size=8",
    "train.precision=fp32",
    "train.checkpoint_every_steps=2",
    "optimizer.lr=1e-2",
    "schedule.warmup_steps=0",
    "schedule.decay=none",
]


@pytest.fixture(scope="module")
def run(corpus_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("mean") / "run"
    return bertmill.pretrain(str(corpus_file), "tiny", out=out, steps=6, settings=SETTINGS)


def test_it_is_trained_and_its_recipe_read_back(run):
    recipe, _ = RunFolder(run.folder).read()
    assert recipe == run.recipe and isinstance(recipe.model, MeanSection)
    assert (recipe.model.own_share, recipe.model.hidden_size) == (0.25, 16)
    assert run.outcome.held_out.mlm_loss < 5.2  # of a uniform guess among 200 it is 5.3


def test_its_run_goes_on_with_the_same_bits(run, corpus_file, tmp_path):
    out = tmp_path / "run"
    bertmill.pretrain(str(corpus_file), "tiny", out=out, steps=4, settings=SETTINGS)
    bertmill.resume(out, steps=6)
    one, two = (load_model(folder).model.state_dict() for folder in (run.folder, out))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_its_folder_is_its_own(run):
    config = json.loads((run.folder / "model" / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["MeanForPreTraining"], "mean")
    loaded = load_model(run.folder)
    assert loaded.model.section == run.recipe.model and loaded.new_weights == ()
    assert architecture_of(loaded.model.section) is MEAN


def test_it_is_used_like_any_other(run):
    model = bertmill.load(run.folder)
    assert model.embed(["The river crosses the valley.", "A farmer."]).shape == (2, 16)
    assert model.fill_mask("the river crosses the [MASK]")
    assert bertmill.inspect(run.folder)["recipe"]["model"]["architecture"] == "mean"


def test_another_run_begins_with_its_weights(run, corpus_file, tmp_path):
    """With another vocabulary, so that rows of the words are moved."""
    settings = [s for s in SETTINGS if not s.startswith("model.")]
    settings[0] = "tokenizer.vocab_size=150"
    more = bertmill.pretrain(
        str(corpus_file), init_from=run.folder, out=tmp_path / "run", steps=1, settings=settings
    )
    assert isinstance(more.recipe.model, MeanSection)
    start = RunFolder(more.folder).checkpoints / "step-0" / "model"
    old, new = load_model(run.folder), load_model(start)
    token = "river" if "river" in new.tokenizer.backend.get_vocab() else "the"
    rows = [
        each.model.encoder.tokens.weight[each.tokenizer.backend.token_to_id(token)]
        for each in (old, new)
    ]
    assert torch.equal(*rows)
    assert torch.equal(old.model.pooler.weight, new.model.pooler.weight)


def test_its_parameters_and_its_arithmetic_are_counted():
    section = MeanSection(hidden_size=4, num_attention_heads=1)
    assert PretrainingModel(section, 10).count_parameters()["encoder_with_pooler"] == 40 + 2 * 20
    heads = count_step_flops(section, 10, [3], [0], 1, 1)
    assert count_step_flops(section, 10, [3], [2], 1, 1) == heads + 3 * 2 * 16 * 2


def test_what_other_programs_cannot_compute_is_not_exported(run, tmp_path):
    with pytest.raises(ModelError, match="is a mean network, so transformers has no class"):
        export_huggingface(run.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match="is a mean network, which bertmill cannot write as ONNX"):
        write_onnx(tmp_path, load_model(run.folder))
    assert not any(tmp_path.iterdir())


def test_bert_has_no_name_in_recipes():
    assert "architecture" not in load_recipe("tiny").model_dump()["model"]
    assert architecture_of(ModelSection()) is ARCHITECTURES["bert"]


@pytest.mark.parametrize("setting", ["model.architecture=bert", "model.architecture=[1]"])
def test_an_unknown_name_is_refused(setting):
    with pytest.raises(RecipeError, match=r"not a known network.*or choose mean"):
        load_recipe("tiny", [setting])


def test_a_wrong_knob_is_refused_as_in_bert():
    settings = ["model.architecture=mean", "model.norm=pre"]
    with pytest.raises(RecipeError, match=r"model\.norm: is not a known key.*own_share"):
        load_recipe("tiny", settings)
    with pytest.raises(RecipeError, match=r"model\.own_share"):
        load_recipe("tiny", ["model.architecture=mean", "model.own_share=much"])
