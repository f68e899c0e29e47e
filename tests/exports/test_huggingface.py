"""`export`: what transformers and sentence-transformers make of the folder."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
)
from transformers.utils import logging

import bertmill as package
from bertmill.errors import InputError, ModelError
from bertmill.exports.huggingface import write_pooling
from bertmill.model.folder import load_model
from bertmill.model.pooling import Pooling, read_pooling

logging.set_verbosity_error()
logging.disable_progress_bar()

SENTENCES = [
    "The river crosses the valley.",
    "A farmer remembers two horses in year 7.",
    "Ünbekannte Wörter, 東京!",
    "a crane",
    "",
]
POOLINGS = [Pooling(mode, normalize, 24) for mode in ("mean", "cls") for normalize in (False, True)]


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "folder"
    assert package.export_huggingface(small_run.folder, out) == out
    return out


@pytest.fixture
def source(small_run, tmp_path):
    return shutil.copytree(small_run.folder / "model", tmp_path / "source")


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def model_files_of(folder):
    """All but the page and its picture."""
    files = files_of(folder)
    return {name: files[name] for name in files if name not in ("README.md", "loss.png")}


# --- transformers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "heads_it_lacks"),
    [
        (BertForPreTraining, ()),
        (AutoModelForMaskedLM, ("cls.seq_relationship", "bert.pooler")),
        (AutoModel, ("cls.",)),
    ],
)
def test_transformers_finds_every_tensor_and_none_that_is_odd(exported, kind, heads_it_lacks):
    _, info = kind.from_pretrained(exported, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert all(key.startswith(heads_it_lacks) for key in info["unexpected_keys"])
    assert bool(info["unexpected_keys"]) == bool(heads_it_lacks)


def test_there_is_no_code_and_no_pickle_in_the_folder(exported):
    files = files_of(exported)
    endings = (".json", ".safetensors", ".txt", ".md", ".png")
    assert not [name for name in files if Path(name).suffix not in endings]
    config = json.loads(files["config.json"])
    assert config["model_type"] == "bert" and config["architectures"] == ["BertForPreTraining"]
    assert not [name for name, content in files.items() if b"auto_map" in content]


def test_the_same_weights_and_the_same_vectors(small_run, exported):
    ours, again = load_model(small_run.folder), load_model(exported)
    tensors = again.model.state_dict()
    assert all(torch.equal(t, tensors[name]) for name, t in ours.model.state_dict().items())
    assert (again.about, again.new_weights) == (ours.about, ())
    assert again.tokenizer.identity == ours.tokenizer.identity
    model, tokenizer = AutoModel.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    encoder = package.load(small_run.folder)
    for sentence in SENTENCES:
        inputs = tokenizer(sentence, return_tensors="pt")
        encoding = encoder.encode(sentence)
        assert tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]) == encoding.tokens
        with torch.no_grad():
            hidden = model.eval()(**inputs).last_hidden_state
        np.testing.assert_allclose(hidden.numpy(), encoding.vectors, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM, BertForPreTraining])
def test_heads_that_were_missing_are_left_out(kind, small_run, tmp_path, capsys):
    tokenizer = load_model(small_run.folder).tokenizer
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    theirs = kind(BertConfig(vocab_size=tokenizer.size, num_hidden_layers=2, **sizes)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs")
    out = package.export_huggingface(tmp_path / "theirs", tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["architectures"] == [kind.__name__]
    assert not (out / "bertmill.json").exists()
    again, info = kind.from_pretrained(out, output_loading_info=True)
    assert not (info["missing_keys"] or info["mismatched_keys"] or info["unexpected_keys"])
    wanted, found = theirs.state_dict(), again.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in wanted.items())
    new = load_model(tmp_path / "theirs")
    assert load_model(out).new_weights == new.new_weights
    said = f"left out: {', '.join(new.new_parts)}, which {new.folder} does not have\n"
    assert capsys.readouterr().out == (said if new.new_parts else "")


def test_an_untied_word_level_model(corpus_file, tmp_path):
    """As the reference program's: a decoder of its own, special tokens with other names."""
    changes = [
        "tokenizer.kind=word",
        "tokenizer.min_frequency=1",
        "model.tie_word_embeddings=false",
    ]
    changes += ["tokenizer.mask_token=<mask>", "tokenizer.cls_token=<cls>", "train.batch_size=8"]
    changes += ["model.hidden_size=16", "model.intermediate_size=32", "pairs.max_length=32"]
    run = package.pretrain(
        str(corpus_file), "tiny", out=tmp_path / "run", steps=1, settings=changes
    )
    out = package.export_huggingface(run.folder, tmp_path / "out")
    model, info = BertForPreTraining.from_pretrained(out, output_loading_info=True)
    assert not (info["missing_keys"] or info["mismatched_keys"] or info["unexpected_keys"])
    ours = load_model(run.folder).model
    assert torch.equal(model.cls.predictions.decoder.weight, ours.decoder_weight)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.mask_token == "<mask>" and tokenizer.cls_token == "<cls>"
    text = "the river crosses the unheard-of"
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    assert tokens == package.load(run.folder).encode(text).tokens
    assert (tokens[0], tokens[-2:]) == ("<cls>", ["[UNK]", "[SEP]"])


# --- sentence-transformers -----------------------------------------------------------------------


def open_sentence_transformer(folder):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


def pooled(model, sentence, pooling):
    """What the encoder's own vectors come to, by hand."""
    rows = model.encode(sentence).vectors[0].astype(np.float64)
    vector = rows.mean(0) if pooling.mode == "mean" else rows[0]
    return vector / np.linalg.norm(vector) if pooling.normalize else vector


def test_sentence_vectors_are_means_over_all_tokens(small_run, exported):
    model = open_sentence_transformer(exported)
    found = model.encode(SENTENCES, show_progress_bar=False, batch_size=3)
    ours = package.load(small_run.folder)
    expected = np.stack([ours.encode(text).vectors[0].mean(0) for text in SENTENCES])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-2  # or the test would tell nothing
    assert model.max_seq_length == load_model(small_run.folder).about.pairs.max_length


def test_longer_texts_are_cut_to_the_length_of_training(small_run, exported):
    model = open_sentence_transformer(exported)
    words = ["the"] * 50
    longest = load_model(small_run.folder).about.pairs.max_length
    found = model.encode([" ".join(words)], show_progress_bar=False)[0]
    rows = package.load(small_run.folder).encode(" ".join(words[: longest - 2])).vectors[0]
    assert len(rows) == longest
    np.testing.assert_allclose(found, rows.mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
def test_pooling_of_the_source_is_kept(pooling, source, tmp_path):
    write_pooling(source, pooling, 16)
    assert read_pooling(source, 512) == pooling
    out = package.export_huggingface(source, tmp_path / "out")
    assert read_pooling(out, 512) == pooling
    found = open_sentence_transformer(out).encode(SENTENCES, show_progress_bar=False)
    ours = package.load(source)
    expected = np.stack([pooled(ours, text, pooling) for text in SENTENCES])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
def test_folders_that_sentence_transformers_wrote(pooling, source, tmp_path):
    """Its own files of today, which are others than those that we write."""
    write_pooling(source, pooling, 16)
    model = open_sentence_transformer(source)
    model.save(str(tmp_path / "theirs"))
    assert read_pooling(tmp_path / "theirs", 512) == pooling
    out = package.export_huggingface(tmp_path / "theirs", tmp_path / "out")
    one, two = (
        open_sentence_transformer(folder).encode(SENTENCES, show_progress_bar=False)
        for folder in (tmp_path / "theirs", out)
    )
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-6)


def test_a_folder_that_does_not_say_takes_the_positions_of_the_model(source, tmp_path):
    (source / "bertmill.json").unlink()
    out = package.export_huggingface(source, tmp_path / "out")
    assert read_pooling(out, 512) == Pooling("mean", False, 512)


# --- the folder ----------------------------------------------------------------------------------


def test_an_export_of_an_export_is_the_same(exported, tmp_path):
    again = package.export_huggingface(exported, tmp_path / "again")
    assert model_files_of(again) == model_files_of(exported)
    assert "model.safetensors" in files_of(again)


def test_a_run_and_its_model_folder_export_the_same(small_run, exported, tmp_path):
    """But for the page, which has a run's recipe and losses."""
    again = package.export_huggingface(
        str(small_run.folder / "model"), str(tmp_path / "deep" / "out")
    )
    assert model_files_of(again) == model_files_of(exported)
    assert files_of(exported).keys() - files_of(again).keys() == {"loss.png"}
    assert "README.md" in files_of(again)


def test_others_may_read_it(exported):
    umask = os.umask(0)
    os.umask(umask)
    for path in (exported, *exported.rglob("*")):
        assert path.stat().st_mode & 0o044 == 0o044 & ~umask


def test_the_command_line(small_run, bertmill, tmp_path):
    status, out, err = bertmill("export", small_run.folder, "--to", "huggingface", "--out", "one")
    assert (status, out) == (0, "huggingface: one\n")
    assert err.startswith("no license is named") and err.count("\n") == 1
    status, out, err = bertmill("export", small_run.folder, "--out", "two", "--json")
    assert status == 0 and err.startswith("no license is named") and err.count("\n") == 1
    assert json.loads(out) == {"folder": "two", "to": "huggingface"}
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


# --- what is refused -----------------------------------------------------------------------------


def test_a_network_that_transformers_has_no_class_for(corpus_file, refused, tmp_path):
    changes = ["tokenizer.vocab_size=200", "model.hidden_size=16", "model.intermediate_size=32"]
    changes += ["model.num_attention_heads=2", "train.batch_size=8"]
    run = package.pretrain(
        str(corpus_file), "quick", out=tmp_path / "run", steps=1, settings=changes
    )
    refused(["export", run.folder, "--out", "out"], "run", "rotary", "no class", "; ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["file", "empty", "full"])
def test_an_out_that_exists(kind, small_run, refused, tmp_path):
    if kind == "file":
        (tmp_path / "out").write_text("mine", "utf-8")
    else:
        (tmp_path / "out").mkdir()
    if kind == "full":
        (tmp_path / "out" / "mine.txt").write_text("mine", "utf-8")
    before = sorted(tmp_path.rglob("*"))
    refused(["export", small_run.folder, "--out", "out"], "out: already exists", "another --out")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("to", ["ONNX", "", "HuggingFace"])
def test_an_unknown_format(to, small_run, refused, tmp_path):
    args = ["export", small_run.folder, "--to", to, "--out", "out"]
    refused(args, f"'--to': {to!r} is not one of 'huggingface', 'onnx'")
    assert list(tmp_path.iterdir()) == []


def test_models_that_are_none(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(["export", "gone", "--out", "out"], "gone: does not exist")
    refused(["export", "empty", "--out", "out"], "empty: ", "no config.json")
    refused(["export", "gone"], "Missing option", "--out")


def test_an_out_below_a_file(small_run, refused, tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    refused(["export", small_run.folder, "--out", "file/out"], "file/out: cannot be written", "; ")


def test_an_out_in_a_folder_that_is_read_only(small_run, refused, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "closed").mkdir(mode=0o555)
    refused(["export", small_run.folder, "--out", "closed/out"], "closed/out: cannot be written")


@pytest.mark.parametrize("out", ["x" * 300, "deep/" + "x" * 300, ""])
def test_an_out_that_no_folder_can_have(out, small_run, refused):
    refused(["export", small_run.folder, "--out", out], "; ")


def modules(*kinds, paths=("", "1_Pooling", "2_Normalize", "3", "4")):
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]


GOOD = modules("Transformer", "Pooling")
MODULES = {
    "no-json": "{",
    "empty": "",
    "cut": json.dumps(GOOD)[:40],
    "deep": "[" * 100_000,
    "long-number": "9" * 10_000,
    "null": "null",
    "number": "3",
    "text": '"Transformer"',
    "object": "{}",
    "nothing": "[]",
    "numbers": "[1, 2]",
    "nulls": "[null, null]",
    "no-types": '[{"path": ""}, {"path": "1_Pooling"}]',
    "no-paths": json.dumps([{"type": m["type"]} for m in GOOD]),
    "path-null": json.dumps([GOOD[0], GOOD[1] | {"path": None}]),
    "path-number": json.dumps([GOOD[0], GOOD[1] | {"path": 1}]),
    "path-zero-byte": json.dumps([GOOD[0], GOOD[1] | {"path": "\0"}]),
    "path-half-a-character": json.dumps([GOOD[0], GOOD[1] | {"path": "\ud800"}]),
    "path-long": json.dumps([GOOD[0], GOOD[1] | {"path": "x" * 5000}]),
    "type-list": json.dumps([GOOD[0], GOOD[1] | {"type": ["Pooling"]}]),
    "transformer-alone": json.dumps(modules("Transformer")),
    "pooling-alone": json.dumps(modules("Pooling")),
    "pooling-first": json.dumps(modules("Pooling", "Transformer")),
    "dense": json.dumps(modules("Transformer", "Pooling", "Dense")),
    "dense-before": json.dumps(modules("Transformer", "Dense", "Pooling")),
    "one-more": json.dumps(modules("Transformer", "Pooling", "Normalize", "Dense")),
    "twice": json.dumps(modules("Transformer", "Pooling", "Normalize", "Normalize")),
    "words": json.dumps(modules("BoW", "Pooling")),
    "code": json.dumps([GOOD[0], GOOD[1] | {"type": "evil_module.Evil"}]),
}


@pytest.mark.parametrize("content", MODULES.values(), ids=MODULES)
def test_hostile_modules(content, source, refused, tmp_path):
    write_pooling(source, Pooling("mean", False, 24), 16)
    (source / "modules.json").write_text(content, "utf-8")
    refused(["export", "source", "--out", "out"], "source/modules.json", "mean or cls", "delete")
    assert not (tmp_path / "out").exists()


def test_modules_that_are_not_utf8(source, refused):
    write_pooling(source, Pooling("mean", False, 24), 16)
    (source / "modules.json").write_bytes(b'[{"type": "\xff"}]')
    refused(["export", "source", "--out", "out"], "source/modules.json", "; ")


POOLING = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
CONFIGS = {
    "max": {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False},
    "two": {**POOLING, "pooling_mode_cls_token": True},
    "mean-and-max": {**POOLING, "pooling_mode_max_tokens": True},
    "none": {"word_embedding_dimension": 16},
    "weighted": {"pooling_mode_weightedmean_tokens": True},
    "square-root": {"pooling_mode_mean_sqrt_len_tokens": True},
    "last": {"pooling_mode_lasttoken": True},
    "new-max": {"pooling_mode": "max"},
    "new-list": {"pooling_mode": ["mean", "cls"]},
    "new-number": {"pooling_mode": 3},
    "new-object": {"pooling_mode": {"mean": True}},
    "list": [],
    "null": None,
    "text": "mean",
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_pooling_that_bertmill_does_not_compute(config, source, refused):
    write_pooling(source, Pooling("mean", False, 24), 16)
    (source / "1_Pooling" / "config.json").write_text(json.dumps(config), "utf-8")
    refused(["export", "source", "--out", "out"], "source/modules.json", "mean or cls", "; ")


@pytest.mark.parametrize("length", [0, -1, 2.5, "24", True, [24], float("nan")])
def test_a_max_seq_length_that_is_none(length, source, refused):
    write_pooling(source, Pooling("mean", False, 24), 16)
    (source / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    where = "source/sentence_bert_config.json"
    refused(["export", "source", "--out", "out"], where, "max_seq_length", "; ")


def test_a_max_seq_length_beyond_the_positions_still_encodes(source, tmp_path):
    """The folder that we write must take any text, or the source must be refused."""
    write_pooling(source, Pooling("mean", False, 5000), 16)
    try:
        out = package.export_huggingface(source, tmp_path / "out")
    except (ModelError, InputError):
        return
    text = "the river " * 600
    vectors = open_sentence_transformer(out).encode([text], show_progress_bar=False)
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize("name", ["1_Pooling/config.json", "sentence_bert_config.json"])
def test_files_that_are_missing_or_damaged(name, source, refused):
    write_pooling(source, Pooling("mean", False, 24), 16)
    (source / name).write_text("{", "utf-8")
    where = name if name == "sentence_bert_config.json" else "modules.json"
    refused(["export", "source", "--out", "out"], f"source/{where}", "; ")
    (source / name).unlink()
    if name == "1_Pooling/config.json":  # newer folders tell the length elsewhere, or not at all
        refused(["export", "source", "--out", "out"], "source/modules.json", "; ")


PATHS = [
    "../../etc",
    "..",
    "../",
    "1_Pooling/..",
    "../outside",
    "/etc",
    "{outside}",
    ".",
    "",
    "x/..",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_pooling_outside_the_folder_is_never_read(path, source, tmp_path):
    """A mean pooling lies at every place such a path could lead to; none of them is taken."""
    inner = tmp_path / "inner"
    shutil.move(source, inner / "source")
    write_pooling(inner / "source", Pooling("cls", False, 24), 16)
    shutil.rmtree(inner / "source" / "1_Pooling")
    (inner / "outside").mkdir()
    for folder in (inner / "outside", inner, tmp_path):
        (folder / "config.json").write_text(json.dumps(POOLING), "utf-8")
    found = modules("Transformer", "Pooling", paths=("", path.format(outside=inner / "outside")))
    (inner / "source" / "modules.json").write_text(json.dumps(found), "utf-8")
    with pytest.raises(ModelError, match=r"modules\.json") as caught:
        package.export_huggingface(inner / "source", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_pooling_folder_with_another_name_is_read(source):
    write_pooling(source, Pooling("cls", True, 24), 16)
    (source / "1_Pooling").rename(source / "pool")
    paths = ("", "pool", "2_Normalize")
    found = modules("Transformer", "Pooling", "Normalize", paths=paths)
    (source / "modules.json").write_text(json.dumps(found), "utf-8")
    assert read_pooling(source, 512) == Pooling("cls", True, 24)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
FILES = ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json"]


@given(name=st.sampled_from(FILES), place=st.integers(0, 4), value=json_values)
def test_any_change_is_read_or_refused(tmp_path_factory, name, place, value):
    """Change a whole file or one of its values: a pooling, or one line."""
    folder = tmp_path_factory.mktemp("mutated")
    good = Pooling("mean", True, 24)
    write_pooling(folder, good, 16)
    found = json.loads((folder / name).read_text("utf-8"))
    owner = found[place % 3] if isinstance(found, list) else found
    keys = list(owner)
    if place < len(keys):
        owner[keys[place]] = value
    else:
        found = value
    (folder / name).write_text(json.dumps(found), "utf-8")
    refused = ""
    try:
        pooling = read_pooling(folder, 512)
    except ModelError as error:
        refused = str(error)
    if refused:
        where = name if name == "sentence_bert_config.json" else "modules.json"
        assert where in refused and "\n" not in refused
    else:
        assert pooling.mode in ("mean", "cls") and pooling.max_length >= 1
