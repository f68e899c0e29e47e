"""`pretrain --init-from`: which weights are the source's, which are new, and what is refused."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel
from transformers.utils import logging

import bertmill as package
from bertmill.config import ModelSection, TokenizerSection, load_recipe
from bertmill.data.batch import Batches
from bertmill.data.store import Store
from bertmill.errors import BertmillError
from bertmill.exports.huggingface import write_pooling
from bertmill.model.folder import LoadedModel, load_model
from bertmill.model.pooling import Pooling, default_pooling, read_pooling
from bertmill.model.pretraining import PretrainingModel, initialize
from bertmill.model.transfer import transfer_weights
from bertmill.text.tokenizer import load_tokenizer
from bertmill.train.run_folder import RunFolder
from bertmill.train.validate import score_batches

logging.set_verbosity_error()
logging.disable_progress_bar()

CPU = torch.device("cpu")
NETWORK = [
    "model.hidden_size=16",
    "model.num_attention_heads=2",
    "model.intermediate_size=32",
    "model.max_position_embeddings=48",
]
LOOP = [
    "text.held_out_fraction=0.2",
    "train.batch_size=8",
    "train.precision=fp32",
    "train.log_every_steps=1",
    "train.validate_every_steps=4",
    "train.checkpoint_every_steps=4",
    "schedule.warmup_steps=2",
]
# A prepared store knows how its text was read.
OVER_A_STORE = [setting for setting in LOOP if not setting.startswith("text.")]
OTHER_NAMES = [f"tokenizer.{name}_token=<{name}>" for name in ("pad", "unk", "cls", "sep", "mask")]
ROW_A_TOKEN = (
    "encoder.embeddings.word.weight",
    "masked_token_head.decoder.weight",
    "masked_token_head.bias",
)


def train_source(corpus, out, *settings):
    """A model that has learned something: word frequencies at least."""
    sections = ["tokenizer.vocab_size=200", "pairs.max_length=32", "masking.mask_fraction=0.2"]
    settings = [*NETWORK, *LOOP, *sections, "optimizer.lr=1e-2", *settings]
    settings += ["train.validate_every_steps=30", "train.checkpoint_every_steps=30"]
    return package.pretrain(str(corpus), "tiny", out=out, steps=30, settings=settings)


@pytest.fixture(scope="module")
def source(corpus_file, tmp_path_factory):
    return train_source(corpus_file, tmp_path_factory.mktemp("source") / "tied").folder


@pytest.fixture(scope="module")
def untied_source(corpus_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("source") / "untied"
    return train_source(corpus_file, out, "model.tie_word_embeddings=false").folder


@pytest.fixture(scope="module")
def other_text(tmp_path_factory):
    """Another domain: some words are known, some are not."""
    who = ["The zebra", "A crane", "My quick sister", "The market"]
    does = ["follows the valley", "boils water", "crosses a bridge", "reads the sign"]
    documents = [
        " ".join(f"{who[(d + s) % 4]} {does[(d * s) % 4]} on day {d + s}." for s in range(8))
        for d in range(40)
    ]
    path = tmp_path_factory.mktemp("other") / "other.txt"
    path.write_text("\n\n".join(documents), "utf-8")
    return path


def go_on(corpus, out, source, *settings, steps=1, loop=LOOP, **more):
    """Continue from a model, and return the run with what it said."""
    stream = io.StringIO()
    run = package.pretrain(
        str(corpus),
        out=out,
        init_from=source,
        steps=steps,
        settings=[*loop, *settings],
        stream=stream,
        **more,
    )
    return run, stream.getvalue()


def at_step(run, step):
    return load_model(run.folder / "checkpoints" / f"step-{step}" / "model")


def vocabulary(loaded):
    return loaded.tokenizer.backend.get_vocab(with_added_tokens=True)


def expected_by_a_loop(new, old, fresh):
    """Each tensor of the new model, row by row, from the source or from the fresh one."""
    roles = dict(zip(new.tokenizer.special_tokens, old.tokenizer.special_tokens, strict=True))
    reserved = {*roles, *roles.values()}
    expected = {}
    for name, tensor in old.model.state_dict().items():
        if name not in ROW_A_TOKEN:
            expected[name] = tensor
            continue
        rows = fresh.model.state_dict()[name].clone()
        for token, row in vocabulary(new).items():
            wanted = roles.get(token, None if token in reserved else token)
            if wanted in vocabulary(old):
                rows[row] = tensor[vocabulary(old)[wanted]]
        expected[name] = rows
    return expected


def differing(found, expected):
    assert found.keys() == expected.keys()
    return [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]


def count_known(new, old):
    specials = {*new.tokenizer.special_tokens, *old.tokenizer.special_tokens}
    return 5 + len((set(vocabulary(new)) & set(vocabulary(old))) - specials)


# --- the same vocabulary -------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["run", "model", "exported"])
def test_the_first_weights_are_the_sources_bit_by_bit(folder, source, other_text, tmp_path):
    start = {"run": source, "model": source / "model"}.get(folder)
    if start is None:
        start = package.export_huggingface(source, tmp_path / "exported")
    run, said = go_on(other_text, tmp_path / "run", start)
    old, new = load_model(source), at_step(run, 0)
    assert not differing(new.model.state_dict(), old.model.state_dict())
    assert new.tokenizer.identity == old.tokenizer.identity
    assert "all found" in said and "newly drawn" not in said
    after = at_step(run, 1).model.state_dict()
    assert differing(after, old.model.state_dict())  # and then it trains


def test_an_untied_decoder_goes_along(untied_source, other_text, tmp_path):
    run, said = go_on(other_text, tmp_path / "run", untied_source)
    assert not run.recipe.model.tie_word_embeddings and "newly drawn" not in said
    expected = load_model(untied_source).model.state_dict()
    assert not torch.equal(expected[ROW_A_TOKEN[0]], expected[ROW_A_TOKEN[1]])
    assert not differing(at_step(run, 0).model.state_dict(), expected)


def test_a_tokenizer_that_is_the_same_changes_nothing(source, other_text, tmp_path):
    run, said = go_on(other_text, tmp_path / "run", source, tokenizer=source / "model")
    expected = load_model(source).model.state_dict()
    assert not differing(at_step(run, 0).model.state_dict(), expected)
    assert "another vocabulary" not in said


def test_networks_that_are_no_bert_go_on_too(corpus_file, other_text, tmp_path):
    settings = [*NETWORK[:3], *LOOP, "tokenizer.vocab_size=200", "pairs.max_length=32"]
    first = package.pretrain(
        str(corpus_file), "quick", out=tmp_path / "quick", steps=2, settings=settings
    )
    run, _ = go_on(other_text, tmp_path / "run", first.folder)
    assert (run.recipe.model.position_embedding, run.recipe.model.norm) == ("rotary", "pre")
    expected = load_model(first.folder).model.state_dict()
    assert not differing(at_step(run, 0).model.state_dict(), expected)


def test_the_first_loss_is_that_of_the_source(source, corpus_file, tmp_path):
    still = ["model.hidden_dropout_prob=0.0", "model.attention_probs_dropout_prob=0.0"]
    run, _ = go_on(corpus_file, tmp_path / "run", source, *still)
    store = Store(RunFolder(run.folder).read()[1].store)
    recipe = run.recipe
    batches = Batches(
        store.train, store.tokenizer, recipe.pairs, recipe.masking, 8, recipe.train.seed, "text"
    )
    scores = score_batches(load_model(source).model, [batches.batch_at(0)], CPU)
    assert run.outcome.mlm_loss == pytest.approx(scores.mlm.mean().item(), abs=1e-5)
    assert run.outcome.nsp_loss == pytest.approx(scores.nsp.mean().item(), abs=1e-5)
    fresh = PretrainingModel(recipe.model, store.tokenizer.size)
    initialize(fresh, recipe.model, torch.Generator().manual_seed(1))
    assert run.outcome.mlm_loss < score_batches(fresh, [batches.batch_at(0)], CPU).mlm.mean() - 0.5


# --- another vocabulary --------------------------------------------------------------------------


def check_rows(run, said, source, corpus, tmp_path, *settings):
    """Every row against the loop over dictionaries; the new ones are those of a fresh run."""
    shape = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
    shape += ("max_position_embeddings", "tie_word_embeddings")
    network = [f"model.{key}={json.dumps(getattr(run.recipe.model, key))}" for key in shape]
    settings = [*network, "pairs.max_length=32", "train.batch_size=8", *settings]
    first = package.pretrain(
        str(corpus), "tiny", out=tmp_path / "fresh", steps=1, settings=settings
    )
    new, old, fresh = at_step(run, 0), load_model(source), at_step(first, 0)
    assert new.tokenizer.identity == fresh.tokenizer.identity != old.tokenizer.identity
    expected = expected_by_a_loop(new, old, fresh)
    assert not differing(new.model.state_dict(), expected)
    known, size = count_known(new, old), new.tokenizer.size
    assert 5 < known < size  # or the test would tell nothing
    assert f"{known} of {size} rows come from the model, {size - known} are newly drawn" in said
    drawn = fresh.model.state_dict()[ROW_A_TOKEN[0]]
    assert torch.ne(expected[ROW_A_TOKEN[0]], drawn).any(1).sum() == known


VOCABULARIES = {
    "another-size": ["tokenizer.vocab_size=120"],
    "words": ["tokenizer.kind=word", "tokenizer.min_frequency=1"],
    "other-special-names": ["tokenizer.vocab_size=120", *OTHER_NAMES],
    "words-with-other-special-names": ["tokenizer.kind=word", *OTHER_NAMES],
}


@pytest.mark.parametrize("settings", VOCABULARIES.values(), ids=VOCABULARIES)
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_a_vocabulary_trained_anew(kind, settings, source, untied_source, other_text, tmp_path):
    start = source if kind == "tied" else untied_source
    run, said = go_on(other_text, tmp_path / "run", start, *settings)
    check_rows(run, said, start, other_text, tmp_path, LOOP[0], *settings)


def test_a_tokenizer_that_is_given(source, other_text, tmp_path):
    """As a published vocabulary comes: a text file, in another order."""
    tokens = list(vocabulary(load_model(source)))
    words = sorted(token for token in tokens if not token.startswith("["))[::2]
    path = tmp_path / "vocab.txt"
    lines = ["zebra", "##bra", *words, "[MASK]", "[SEP]", "[CLS]", "[UNK]", "[PAD]", "unheard"]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    run, said = go_on(other_text, tmp_path / "run", source, tokenizer=path)
    check_rows(run, said, source, other_text, tmp_path, LOOP[0], f"tokenizer.path={path}")


def test_a_prepared_store_brings_its_own_vocabulary(source, other_text, tmp_path):
    store = tmp_path / "store"
    changes = ["tokenizer.vocab_size=120", *OTHER_NAMES, LOOP[0]]
    package.prepare(str(other_text), store, "tiny", settings=changes)
    run, said = go_on(store, tmp_path / "run", source, loop=OVER_A_STORE)
    check_rows(run, said, source, store, tmp_path)


def test_a_prepared_store_with_the_models_vocabulary(source, other_text, tmp_path):
    store = tmp_path / "store"
    package.prepare(str(other_text), store, "tiny", tokenizer=source / "model")
    run, said = go_on(store, tmp_path / "run", source, loop=OVER_A_STORE)
    expected = load_model(source).model.state_dict()
    assert not differing(at_step(run, 0).model.state_dict(), expected)
    assert "another vocabulary" not in said


def test_the_recipes_own_tokenizer_is_not_taken_and_that_is_said(source, other_text, tmp_path):
    """Else going on with the recipe of the first run would train another vocabulary."""
    (tmp_path / "mine.toml").write_text("[tokenizer]\nvocab_size = 120\n", "utf-8")
    run, said = go_on(other_text, tmp_path / "run", source, recipe=tmp_path / "mine.toml")
    assert run.vocab_size == load_model(source).tokenizer.size
    assert "the tokenizer is the model's own" in said and "another vocabulary" not in said


def test_rows_that_no_token_has_are_left_behind(source, other_text, tmp_path):
    """Published tables are padded to a round number of rows."""
    tokenizer = load_model(source).tokenizer
    theirs = save_theirs(BertForPreTraining, tmp_path / "theirs", tokenizer, tokenizer.size + 24)
    run, said = go_on(other_text, tmp_path / "run", tmp_path / "theirs")
    table = at_step(run, 0).model.state_dict()[ROW_A_TOKEN[0]]
    assert torch.equal(table, theirs.get_input_embeddings().weight[: tokenizer.size])
    assert "another vocabulary" not in said


NAMES = [["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], ["<p>", "<u>", "<c>", "<s>", "<m>"]]
ENTRIES = st.lists(
    st.sampled_from(["a", "b", "##b", "ab", "é", *NAMES[0], *NAMES[1]]), min_size=3, unique=True
)


@given(entries=st.tuples(ENTRIES, ENTRIES), names=st.tuples(*[st.sampled_from(NAMES)] * 2))
def test_rows_of_any_two_vocabularies(tmp_path_factory, entries, names):
    """Specials by role, and the name of a special token as a word is nobody's."""
    section = ModelSection(
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=4,
        tie_word_embeddings=False,
    )
    made = []
    for seed, (listed, special) in enumerate(zip(entries, names, strict=True)):
        path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
        rest = [name for name in special if name not in listed]
        path.write_text("\n".join(["word", *listed, *rest]), "utf-8")
        keys = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        tokenizer = load_tokenizer(path, TokenizerSection(**dict(zip(keys, special, strict=True))))
        model = PretrainingModel(section, tokenizer.size)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))
        made.append(LoadedModel(path, model, tokenizer, None, ()))
    new, old = made
    fresh = PretrainingModel(section, new.tokenizer.size)
    fresh.load_state_dict(new.model.state_dict())
    expected = expected_by_a_loop(new, old, LoadedModel(new.folder, fresh, new.tokenizer, None, ()))
    num_known = transfer_weights(new.model, new.tokenizer, old)
    assert not differing(new.model.state_dict(), expected)
    assert num_known == count_known(new, old)


# --- folders of transformers ---------------------------------------------------------------------


def save_theirs(kind, folder, tokenizer, vocab_size=None, **changes):
    torch.manual_seed(5)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    sizes |= {"vocab_size": vocab_size or tokenizer.size, "num_hidden_layers": 1}
    model = kind(BertConfig(**sizes | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases too, or nothing tells them from fresh ones
            parameter.normal_(0.0, 0.1)
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return model


@pytest.mark.parametrize(
    ("kind", "new"),
    [
        (BertModel, {"masked_token_head", "next_sentence_head"}),
        (BertForMaskedLM, {"pooler", "next_sentence_head"}),
        (BertForPreTraining, set()),
    ],
)
def test_heads_that_are_missing_are_told_and_new(kind, new, source, other_text, tmp_path):
    save_theirs(kind, tmp_path / "theirs", load_model(source).tokenizer)
    run, said = go_on(other_text, tmp_path / "run", tmp_path / "theirs", seed=7)
    line = next(line for line in said.splitlines() if line.startswith("weights from"))
    assert {
        name for name in ("pooler", "masked_token_head", "next_sentence_head") if name in line
    } == new
    assert ("newly drawn" in line) == bool(new)
    found, expected = at_step(run, 0).model.state_dict(), load_model(tmp_path / "theirs")
    for name, tensor in expected.model.state_dict().items():
        if name.partition(".")[0] not in new:
            assert torch.equal(found[name], tensor), name
    fresh = PretrainingModel(run.recipe.model, run.vocab_size).state_dict()
    for name in (name for name in fresh if name.partition(".")[0] in new):
        is_matrix = found[name].dim() > 1
        # Drawn for this run, as BERT draws: not what reading the folder happened to fill in.
        assert not is_matrix or not torch.equal(found[name], expected.model.state_dict()[name])
        assert not is_matrix or found[name].std().item() == pytest.approx(0.02, rel=0.5)
        assert is_matrix or torch.equal(
            found[name], torch.full_like(found[name], "norm.weight" in name)
        )


# --- sentence vectors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "kept"),
    [
        (Pooling("cls", True, 48), Pooling("cls", True, 48)),
        (
            Pooling("mean", False, 12),
            Pooling("mean", False, 32),
        ),  # as long as what it is trained on
    ],
    ids=str,
)
def test_sentence_vectors_stay_as_the_folder_says(own, kept, source, other_text, tmp_path):
    """In the run, also when it is resumed, in a run that goes on from it, and in its export."""
    folder = tmp_path / "source"
    package.export_huggingface(source, folder)
    shutil.rmtree(folder / "1_Pooling")
    write_pooling(folder, own, 16)
    run, said = go_on(other_text, tmp_path / "run", folder)
    scaled = ", scaled to length 1" if kept.normalize else ""
    wanted = f"{kept.mode}{scaled}, of up to {kept.max_length} tokens"
    assert f"sentence vectors stay as they are there: {wanted}\n" in said
    run = package.resume(run.folder, steps=2, stream=io.StringIO())
    again, said = go_on(other_text, tmp_path / "again", run.folder)
    assert wanted in said
    for each in (run, again):
        assert default_pooling(load_model(each.folder)) == kept
    out = package.export_huggingface(run.folder, tmp_path / "out")
    assert read_pooling(out, 512) == kept
    vectors = [package.load(each).embed(["the river " * 20]) for each in (run.folder, out)]
    np.testing.assert_array_equal(*vectors)
    assert (np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-5)) == kept.normalize


def test_a_length_alone_stays_too(source, other_text, tmp_path):
    """A plain BERT folder says in its tokenizer's file how much it reads."""
    save_theirs(BertForPreTraining, tmp_path / "theirs", load_model(source).tokenizer)
    load_model(source).tokenizer.save(tmp_path / "theirs", 256)
    run, said = go_on(other_text, tmp_path / "run", tmp_path / "theirs")
    assert "mean, of up to 256 tokens" in said
    assert default_pooling(load_model(run.folder)) == Pooling("mean", False, 256)


def test_nothing_is_said_of_a_folder_that_says_nothing(source, other_text, tmp_path):
    run, said = go_on(other_text, tmp_path / "run", source)
    assert "sentence vectors" not in said
    assert "pooling" not in json.loads((run.folder / "model/bertmill.json").read_text("utf-8"))


def test_sentence_vectors_that_are_lost_are_named(source, other_text, tmp_path):
    folder = package.export_huggingface(source, tmp_path / "source")
    modules = (
        (folder / "modules.json").read_text("utf-8").replace("Pooling", "WeightedLayerPooling")
    )
    (folder / "modules.json").write_text(modules, "utf-8")
    run, said = go_on(other_text, tmp_path / "run", folder)
    assert "how it makes sentence vectors is not kept: " in said and "unsupported modules" in said
    assert default_pooling(load_model(run.folder)) == Pooling("mean", False, 32)


# --- the recipe ----------------------------------------------------------------------------------


def test_pairs_masks_and_network_are_the_sources(source, other_text, tmp_path):
    run, _ = go_on(other_text, tmp_path / "run", source)
    about = load_model(source).about
    assert run.recipe.name == "continue"
    assert (run.recipe.pairs, run.recipe.masking) == (about.pairs, about.masking)
    assert run.recipe.model == load_model(source).model.section
    assert run.recipe.optimizer == load_recipe("continue").optimizer
    assert (run.folder / "recipe.toml").is_file()


def test_knobs_of_pairs_and_masks_change_one_at_a_time(source, other_text, tmp_path):
    settings = ["pairs.short_fraction=0.3", "masking.whole_word=true"]
    run, _ = go_on(other_text, tmp_path / "run", source, *settings)
    about = load_model(source).about
    assert run.recipe.pairs == about.pairs.model_copy(update={"short_fraction": 0.3})
    assert run.recipe.masking == about.masking.model_copy(update={"whole_word": True})


def test_dropout_may_change(source, other_text, tmp_path):
    settings = ["model.hidden_dropout_prob=0.3", "model.attention_probs_dropout_prob=0.0"]
    run, _ = go_on(other_text, tmp_path / "run", source, *settings)
    model = run.recipe.model
    assert (model.hidden_dropout_prob, model.attention_probs_dropout_prob) == (0.3, 0.0)
    assert load_model(run.folder).model.section.hidden_dropout_prob == 0.3


def test_the_same_shape_may_be_repeated(source, other_text, tmp_path):
    run, _ = go_on(other_text, tmp_path / "run", source, *NETWORK)
    assert not differing(at_step(run, 0).model.state_dict(), load_model(source).model.state_dict())


def test_sequences_are_fitted_to_the_positions(source, other_text, tmp_path):
    tokenizer = load_model(source).tokenizer
    save_theirs(BertForPreTraining, tmp_path / "theirs", tokenizer, max_position_embeddings=24)
    run, _ = go_on(other_text, tmp_path / "run", tmp_path / "theirs")
    assert run.recipe.pairs.max_length == 24


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--recipe", "base"], ["recipe base: model.", "leave it out"]),
        (["--recipe", "quick"], ["recipe quick: model.", "leave it out"]),
        (["--recipe", "d2l"], ["recipe d2l: model.", "leave it out"]),
        (
            ["--set", "model.hidden_size=32"],
            ["recipe continue: model.hidden_size: is 32", "has 16", "leave it out"],
        ),
        (["--set", "model.num_hidden_layers=3"], ["model.num_hidden_layers: is 3", "has 2"]),
        (["--set", "model.hidden_act=relu"], ["model.hidden_act: is 'relu'", "has 'gelu'"]),
        (["--set", "model.norm=pre"], ["model.norm: is 'pre'", "has 'post'"]),
        (["--set", "model.tie_word_embeddings=false"], ["tie_word_embeddings: is False"]),
        (["--set", "model.max_position_embeddings=64"], ["max_position_embeddings: is 64"]),
        (["--set", "pairs.max_length=49"], ["max_length=49", "max_position_embeddings=48"]),
    ],
)
def test_another_shape(more, parts, source, other_text, refused, tmp_path):
    refused(
        ["pretrain", "--corpus", other_text, "--init-from", source, "--steps", 1, *more], *parts
    )
    assert list(tmp_path.iterdir()) == []


def test_the_recipe_for_going_on_needs_a_model(other_text, refused):
    refused(
        ["pretrain", "--corpus", other_text, "--recipe", "continue", "--steps", 1],
        "--recipe continue",
        "give --init-from",
    )


def test_models_that_are_none(source, other_text, refused, tmp_path):
    command = ["pretrain", "--corpus", other_text, "--steps", 1, "--init-from"]
    refused([*command, "gone"], "gone: does not exist")
    (tmp_path / "empty").mkdir()
    refused([*command, "empty"], "empty: ", "no config.json")
    store = RunFolder(source).read()[1].store
    refused([*command, store], store, "no config.json")
    other = shutil.copytree(source / "model", tmp_path / "other")
    config = json.loads((other / "config.json").read_text("utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"model_type": "roberta"}), "utf-8")
    refused([*command, "other"], "other/config.json: model_type is 'roberta'", "; ")


def test_an_empty_name_is_not_the_folder_one_is_in(other_text, refused):
    """An unset variable."""
    refused(["pretrain", "--corpus", other_text, "--steps", 1, "--init-from", ""], "--init-from")


def test_a_run_of_another_architecture(corpus_file, other_text, refused, tmp_path):
    settings = [*NETWORK[:3], *LOOP, "tokenizer.vocab_size=200", "pairs.max_length=32"]
    package.pretrain(str(corpus_file), "quick", out=tmp_path / "quick", steps=1, settings=settings)
    same = [part for setting in NETWORK[:3] for part in ("--set", setting)]
    command = ["pretrain", "--corpus", other_text, "--init-from", "quick", "--recipe", "tiny"]
    refused([*command, *same, "--set", "model.norm=post"], "model.norm: is 'post'", "has 'pre'")


def test_resume_takes_no_source(source, refused):
    refused(
        ["pretrain", "--resume", source, "--init-from", source],
        "--init-from: cannot be combined with --resume",
        "give only",
    )


# --- resume --------------------------------------------------------------------------------------


def bits(run, name):
    tensors = load_file((run.folder / "model").resolve().parent / name)
    return {key: tensor.numpy().tobytes() for key, tensor in tensors.items()}


def same_run(one, two):
    files = ("model/model.safetensors", "optimizer.safetensors")
    return all(bits(one, name) == bits(two, name) for name in files)


@pytest.fixture
def own_source(source, tmp_path):
    return shutil.copytree(source / "model", tmp_path / "own-source")


@pytest.fixture
def undisturbed(own_source, other_text, tmp_path):
    return go_on(other_text, tmp_path / "undisturbed", own_source, steps=6)[0]


@pytest.fixture
def stopped(own_source, other_text, tmp_path):
    """A run that its session left after the first step."""
    run, _ = go_on(other_text, tmp_path / "stopped", own_source, steps=6, stop_after=1e-6)
    assert run.outcome.steps == 1 and not run.outcome.finished
    return run


def forget_checkpoints(run):
    """Leave what there is before the first checkpoint."""
    shutil.rmtree(run.folder / "checkpoints")
    (run.folder / "model").unlink()


def change_weights(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["cls.predictions.bias"] = tensors["cls.predictions.bias"] + 1.0
    save_file(tensors, path, {"format": "pt"})


def test_a_resumed_run_has_the_same_bits(undisturbed, stopped):
    done = package.resume(stopped.folder)
    assert done.outcome.finished and same_run(done, undisturbed)


def test_a_run_without_a_checkpoint_begins_with_the_source(undisturbed, stopped):
    forget_checkpoints(stopped)
    done = package.resume(stopped.folder)
    assert done.outcome.finished and same_run(done, undisturbed)


def test_a_run_without_a_checkpoint_resumes_from_another_folder(
    undisturbed, other_text, bertmill, monkeypatch, tmp_path
):
    """The source was named from where the run began."""
    settings = [part for setting in LOOP for part in ("--set", setting)]
    command = ["pretrain", "--corpus", other_text, "--init-from", "own-source", "--out", "run"]
    status, out, err = bertmill(*command, "--steps", 6, "--stop-after", "0.001s", *settings)
    assert (status, err) == (0, "") and "not finished at step 1" in out
    run = package.Run(tmp_path / "run", *[None] * 4)
    forget_checkpoints(run)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert same_run(package.resume("../run"), undisturbed)


def test_a_source_that_changed_since_is_refused(stopped, own_source, refused):
    forget_checkpoints(stopped)
    change_weights(own_source)
    refused(["pretrain", "--resume", stopped.folder], own_source, "not those", "new run")


def test_a_source_that_is_gone_is_refused(stopped, own_source, refused):
    forget_checkpoints(stopped)
    shutil.rmtree(own_source)
    refused(["pretrain", "--resume", stopped.folder], own_source, "does not exist")


def test_a_source_that_changed_since_matters_no_more(undisturbed, stopped, own_source):
    change_weights(own_source)
    assert same_run(package.resume(stopped.folder), undisturbed)
    shutil.rmtree(own_source)
    assert same_run(package.resume(stopped.folder), undisturbed)


@pytest.mark.parametrize(
    "value", ["text", 3, [], {}, {"folder": 3, "sha256": "x"}, {"folder": "gone"}]
)
def test_facts_about_the_source_that_are_damaged(value, stopped, refused):
    forget_checkpoints(stopped)
    path = stopped.folder / "run.json"
    facts = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(facts | {"init_from": value}), "utf-8")
    with pytest.raises(BertmillError):
        package.resume(stopped.folder)


def test_a_run_that_an_older_bertmill_began_still_resumes(small_run, tmp_path):
    """Its facts say nothing about a source."""
    run = shutil.copytree(small_run.folder, tmp_path / "old", symlinks=True)
    facts = json.loads((run / "run.json").read_text("utf-8"))
    del facts["init_from"]
    (run / "run.json").write_text(json.dumps(facts), "utf-8")
    assert package.resume(run).outcome.finished


def test_the_recipe_of_a_continued_run_may_be_used_again(source, other_text, tmp_path):
    """Only the shipped recipe has no network; a run's own says `continue` too, and has one."""
    run, _ = go_on(other_text, tmp_path / "run", source)
    again = package.pretrain(
        str(other_text), run.folder / "recipe.toml", out=tmp_path / "again", steps=1
    )
    assert again.recipe.name == "continue" and again.recipe.model == run.recipe.model


def test_the_rest_of_a_recipes_tokenizer_section_is_not_mixed_in(source, other_text, tmp_path):
    """Else the special tokens' names of `d2l` would be looked for in the model's vocabulary."""
    bare = shutil.copytree(source / "model", tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    (tmp_path / "mine.toml").write_text('[tokenizer]\npad_token = "<pad>"\n', "utf-8")
    run, _ = go_on(other_text, tmp_path / "run", bare, recipe=tmp_path / "mine.toml")
    assert run.recipe.tokenizer.pad_token == "[PAD]"
