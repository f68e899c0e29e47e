import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
)
from transformers.utils import logging

from bertmill.config import (
    MaskingSection,
    ModelSection,
    PairsSection,
    TextSection,
    TokenizerSection,
    load_recipe,
)
from bertmill.errors import ModelError
from bertmill.model.folder import About, load_model, save_model
from bertmill.model.pretraining import PretrainingModel, initialize, shapes_alone
from bertmill.text.vocabulary import train_tokenizer

logging.set_verbosity_error()
logging.disable_progress_bar()

TOKENIZER = train_tokenizer(
    ["the cat sat on the mat", "a dog ran"], TokenizerSection(vocab_size=60)
)
SECTION = ModelSection(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
)
SECTIONS = {
    "tied": SECTION,
    "untied": SECTION.model_copy(update={"tie_word_embeddings": False}),
    "quick": load_recipe("quick").model.model_copy(
        update={"hidden_size": 16, "intermediate_size": 24}
    ),
}


ABOUT = About(
    text=TextSection(),
    pairs=PairsSection(),
    masking=MaskingSection(),
    token_counts=tuple(range(TOKENIZER.size)),
    overlap_weights=(0.5,) * 8,
)


def make_folder(folder, section=SECTION):
    model = PretrainingModel(section, TOKENIZER.size)
    initialize(model, section, torch.Generator().manual_seed(2))
    folder.mkdir(exist_ok=True)
    save_model(folder, model, TOKENIZER, ABOUT)
    return model


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_a_saved_model_comes_back_bit_by_bit(tmp_path, section):
    model = make_folder(tmp_path, section)
    loaded = load_model(tmp_path)
    assert loaded.new_weights == () and loaded.about == ABOUT
    assert loaded.model.section == section.model_copy(
        update={} if section is SECTIONS["quick"] else {"init": "normal"}
    )
    ours, theirs = model.state_dict(), loaded.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert loaded.tokenizer.identity == TOKENIZER.identity


@pytest.mark.parametrize("section", [SECTIONS["tied"], SECTIONS["untied"]], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("kind", "heads_it_lacks"),
    [
        (BertForPreTraining, ()),
        (AutoModelForMaskedLM, ("cls.seq_relationship", "bert.pooler")),
        (AutoModel, ("cls.",)),
    ],
)
def test_transformers_opens_it_with_no_missing_and_no_odd_key(
    tmp_path, section, kind, heads_it_lacks
):
    make_folder(tmp_path, section)
    _, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert all(key.startswith(heads_it_lacks) for key in info["unexpected_keys"])
    assert bool(info["unexpected_keys"]) == bool(heads_it_lacks)


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM, BertForPreTraining])
def test_folders_of_transformers_open_and_say_what_they_lack(tmp_path, kind):
    config = BertConfig(
        vocab_size=TOKENIZER.size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
    )
    theirs = kind(config).eval()
    theirs.save_pretrained(tmp_path)
    TOKENIZER.save(tmp_path)
    loaded = load_model(tmp_path)
    lacking = {name.split(".")[0] for name in loaded.new_weights}
    assert (
        lacking
        == {
            BertModel: {"masked_token_head", "next_sentence_head"},
            BertForMaskedLM: {"pooler", "next_sentence_head"},
            BertForPreTraining: set(),
        }[kind]
    )
    table = loaded.model.encoder.embeddings.word.weight
    assert torch.equal(table, theirs.get_input_embeddings().weight)


def test_old_names_of_layer_norm_are_known(tmp_path):
    """Published folders of BERT still carry the TensorFlow names."""
    model = make_folder(tmp_path)
    path = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(old, path)
    loaded = load_model(tmp_path).model.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_what_transformers_cannot_compute_is_not_called_bert(tmp_path):
    make_folder(tmp_path, SECTIONS["quick"])
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bertmill"


def rewrite_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**config, **changes}.items() if v != "drop"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "roberta"),
        ({"hidden_act": "silu"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "decoder"),
        ({"hidden_size": 8}, "shape"),
        ({"num_hidden_layers": 3}, "missing|too small"),
        ({"vocab_size": "drop"}, "vocab_size"),
        ({"num_attention_heads": 5}, "divide"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, changes, message):
    make_folder(tmp_path)
    rewrite_config(tmp_path, **changes)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    make_folder(tmp_path)
    bigger = train_tokenizer(["some more words here now"] * 3, TokenizerSection(vocab_size=90))
    assert bigger.size != TOKENIZER.size
    if bigger.size < TOKENIZER.size:
        pytest.fail("the test's tokenizer must be the larger one")
    bigger.save(tmp_path)
    with pytest.raises(ModelError, match="tokenizer has"):
        load_model(tmp_path)


def test_a_part_of_another_width_is_refused_by_its_own_name(tmp_path):
    make_folder(tmp_path)
    path, name = tmp_path / "model.safetensors", "bert.encoder.layer.1.attention.self.key.weight"
    save_file(load_file(path) | {name: torch.zeros(16, 8)}, path)
    with pytest.raises(ModelError, match=r"self\.key\.weight has shape \(16, 8\).*\(16, 16\)"):
        load_model(tmp_path)


def test_a_network_larger_than_its_file_is_refused_before_it_is_made(tmp_path):
    make_folder(tmp_path)
    rewrite_config(tmp_path, hidden_size=65536, intermediate_size=262144, num_hidden_layers=1024)
    with pytest.raises(ModelError, match="too small for the network"):
        load_model(tmp_path)
    for changes in (
        {"num_hidden_layers": 2, "max_position_embeddings": 2**20},
        {"hidden_size": 16, "max_position_embeddings": 512},
        {"intermediate_size": 24, "vocab_size": 2**24},
    ):
        rewrite_config(tmp_path, **changes)
        with pytest.raises(ModelError, match=r"has shape .* as in config\.json"):
            load_model(tmp_path)


def test_a_network_of_any_size_is_counted_in_no_time():
    section = ModelSection(
        hidden_size=65536, num_attention_heads=1024, intermediate_size=2**18, num_hidden_layers=48
    )
    with shapes_alone():
        model = PretrainingModel(section, 2**24)
    assert model.count_parameters()["total"] > 3e12
    assert all(parameter.is_meta for parameter in model.parameters())


def test_the_compiler_of_torch_is_not_loaded_with_a_model(tmp_path):
    make_folder(tmp_path)
    code = f"""
import sys
from bertmill.model.folder import load_model
load_model({str(tmp_path)!r})
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_loaded_model_can_be_trained(tmp_path):
    make_folder(tmp_path)
    parameters = list(load_model(tmp_path).model.parameters())
    assert all(p.requires_grad and p.is_leaf and not p.is_meta for p in parameters)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_cut_file_is_refused(tmp_path, name):
    make_folder(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match=name):
        load_model(tmp_path)


def test_no_pickle_is_read(tmp_path):
    """A folder with pickled weights alone is refused, whatever is in them."""
    make_folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(tmp_path)
