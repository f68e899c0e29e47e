"""Hostile input: a small run of the fuzzer, and the cases that everybody thinks of, by name."""

import gzip
import hashlib
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertmill import load
from bertmill.config import TextSection
from bertmill.data.store import Store
from bertmill.errors import BertmillError, CorpusError, ModelError, StoreError, TokenizerError
from bertmill.text.corpus import read_documents
from bertmill.text.files import find_files
from bertmill.text.tokenizer import load_tokenizer

FUZZER = Path(__file__).with_name("run.py")

PREPARE = ["--set", "tokenizer.vocab_size=200", "--set", "text.held_out_fraction=0.0"]

# The peak of a process counts from its start: only a fresh one tells its own.
MEASURE = """
import sys
sys.argv = ["bertmill", *sys.argv[1:]]
from bertmill.cli import main
try:
    main()
finally:
    # Of this program alone: the kernel's ru_maxrss remembers the process that it was forked from.
    status = open("/proc/self/status").read()
    print(int(status.split("VmHWM:")[1].split()[0]) // 1024, file=sys.stderr)
"""


@pytest.mark.parametrize("inputs", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_hostile_inputs(inputs, tmp_path):
    """The same ones in every session: without atheris, they depend on the seed alone."""
    options = ["--plain", "--inputs", str(inputs), "--out", tmp_path / "out"]
    command = [sys.executable, FUZZER, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["inputs"] >= inputs
    assert all(target["accepted"] and target["refused"] for target in report["targets"])


@pytest.mark.slow
def test_the_fuzzer_sees_a_traceback(tmp_path):
    """A reader that raises something else is a failure, and its input is kept."""
    broken = (
        "import runpy, sys; import bertmill.config as c\n"
        "def broken(*args): raise OverflowError('hostile')\n"
        f"sys.path.insert(0, {str(FUZZER.parent)!r}); sys.argv[0] = 'run.py'\n"
        "import targets\n"
        "targets.load_recipe = broken\n"
        f"runpy.run_path({str(FUZZER)!r}, run_name='__main__')\n"
    )
    options = ["--plain", "--inputs", "30", "--target", "recipe", "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", broken, *options], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "OverflowError" in done.stdout
    assert (tmp_path / "out" / "recipe-0").exists()


# --- text ----------------------------------------------------------------------------------------

ODD_TEXTS = {
    "names-of-special-tokens": "[CLS] the [MASK] river [SEP] [PAD] [UNK]. " * 20,
    "nul": "the\0 river\0\0 crosses. \0",
    "right-to-left": "the \u202eriver\u202c crosses \u200f\u05d0\u05d1. \u2067the valley\u2069",
    "one-sentence": "the river crosses the valley",
    "long-sentence": "river " * 5000,
    "long-word": "r" * 100_000,
    "punctuation": "?!.,;:-() " * 300,
    "combining": "e\u0301\u0301\u0301" * 2000,
    "separators": "a\x0b\x0c\x1c\x1d\x85\u2028\u2029b",
    "headings": "= " * 50_000 + "\n" + " = a = \n",
}


@pytest.mark.parametrize("suffix", [".txt", ".tokens", ".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ODD_TEXTS)
def test_odd_text(name, suffix, bertmill, tmp_path):
    path, text = tmp_path / f"odd{suffix}", ODD_TEXTS[name]
    if suffix == ".jsonl":
        path.write_text(json.dumps({"text": text}) + "\n", "utf-8")
    elif suffix == ".parquet":
        pq.write_table(pa.table({"text": [text]}), path)
    else:
        path.write_text(text, "utf-8")
    status, _, err = bertmill("prepare", "--corpus", path, "--out", "store", *PREPARE)
    assert status in (0, 2)
    assert err.count("\n") == (status == 2), err
    if status == 0:
        assert Store(tmp_path / "store").train.num_documents >= 1


def test_names_of_special_tokens_never_become_special_tokens(small_run):
    model = load(small_run.folder)
    tokens = model.encode("[CLS] a [MASK] b [SEP] [PAD]").tokens
    assert [t for t in tokens if t.startswith("[") and t != "[UNK]"] == ["[CLS]", "[SEP]"]


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=list(ODD_TEXTS))
def test_odd_text_in_use(text, bertmill, small_run):
    for args in (
        ["encode", small_run.folder, text],
        ["fill-mask", small_run.folder, f"[MASK]{text}"],
    ):
        if "\0" in text:  # no argument of a process can hold one
            text = text.replace("\0", "\x01")
        status, _, err = bertmill(*args)
        assert status in (0, 2)
        assert err.count("\n") == (status == 2), err


def test_lone_surrogates(small_run, bertmill, tmp_path):
    (tmp_path / "half.jsonl").write_text('{"text": "a \\udc80 b"}\n', "utf-8")
    for args in (
        ["encode", small_run.folder, "a \udc80 b"],
        ["fill-mask", small_run.folder, "[MASK] \udc80"],
        ["prepare", "--corpus", "half.jsonl", "--out", "store"],
        ["prepare", "--corpus", "\udc80.txt", "--out", "store"],
        ["inspect", "\udc80"],
    ):
        status, _, err = bertmill(*args)
        assert (status, err.count("\n")) == (2, 1), err


def test_a_message_cannot_command_the_terminal(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"\x1b[2J\u202e\n" * 5000: 1}) + "\n", "utf-8")
    with pytest.raises(CorpusError) as caught:
        list(read_documents(find_files([str(tmp_path / "a.jsonl")]), TextSection()))
    line = str(caught.value)
    assert line.isprintable() and len(line) < 4000
    assert "\\x1b[2J\\u202e" in line and line.endswith("set text.field=NAME")


def peak_mebibytes(args, cwd, status=0):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=600,
    )
    *lines, peak = done.stderr.splitlines()
    assert done.returncode == status, done.stderr
    assert len(lines) == (status != 0), lines
    return int(peak)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["words", "one-word", "blanks"])
def test_a_line_of_100_megabytes(kind, tmp_path):
    """It is held whole, some times over, but not more; as one document words are too many."""
    unit = {"words": b"the river crosses the valley. ", "one-word": b"r", "blanks": b" "}[kind]
    size = 100_000_000
    path = tmp_path / "long.txt"
    path.write_bytes(b"a river.\n\n" + (unit * (size // len(unit) + 1))[:size] + b"\n")
    args = ["prepare", "--corpus", path, "--out", "store", *PREPARE]
    peak = peak_mebibytes(args, tmp_path, status=2 if kind == "words" else 0)
    assert peak < 2500


@pytest.mark.slow
def test_a_million_documents_of_one_character(tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("\n\n".join("abcdefghij"[i % 10] for i in range(1_000_000)), "utf-8")
    args = ["prepare", "--corpus", path, "--out", "store", *PREPARE]
    assert peak_mebibytes(args, tmp_path) < 1500
    assert Store(tmp_path / "store").train.num_documents == 1_000_000


@pytest.mark.slow
def test_a_small_file_that_unpacks_to_much(tmp_path):
    """Two hundred megabytes of blanks in 200 kB: read as a stream of lines, never whole."""
    with gzip.open(tmp_path / "bomb.txt.gz", "wb") as stream:
        stream.write(b"a river.\n\n")
        for _ in range(200):
            stream.write((b" " * 999 + b"\n") * 1000)
    args = ["prepare", "--corpus", "bomb.txt.gz", "--out", "store", *PREPARE]
    assert peak_mebibytes(args, tmp_path) < 800


# --- stores --------------------------------------------------------------------------------------


@pytest.fixture
def store(small_store, tmp_path):
    return shutil.copytree(small_store.folder, tmp_path / "stranger")


def change_manifest(store, change):
    manifest = json.loads((store / "manifest.json").read_text("utf-8"))
    change(manifest)
    (store / "manifest.json").write_text(json.dumps(manifest), "utf-8")


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "..", "", "a/b", "/dev/zero"])
def test_a_manifest_cannot_name_files_elsewhere(name, store, tmp_path):
    (tmp_path / "secret.arrow").touch()
    change_manifest(store, lambda m: m["splits"]["train"]["shards"][0].update(file=name))
    with pytest.raises(StoreError, match=r"splits\.train\.shards\.0\.file"):
        Store(store)


def put_shard(store, tokens, starts, documents, **options):
    """Write a shard that no prepare would, and the manifest that agrees with it."""
    offsets = [pa.array(np.array(o, np.int32)) for o in (documents, starts)]
    inner = pa.ListArray.from_arrays(offsets[1], pa.array(np.array(tokens, np.uint16)))
    batch = pa.record_batch([pa.ListArray.from_arrays(offsets[0], inner)], names=["sentences"])
    with pa.ipc.new_file(store / "train-00000.arrow", batch.schema, **options) as writer:
        writer.write_batch(batch)
    data = (store / "train-00000.arrow").read_bytes()
    entry = {
        "file": "train-00000.arrow",
        "num_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "blocks": [[len(documents) - 1, len(starts) - 1, len(tokens)]],
    }
    change_manifest(store, lambda m: m["splits"]["train"].update(shards=[entry]))


@pytest.mark.parametrize(
    ("tokens", "starts", "documents", "what"),
    [
        ([7, 8, 60_000], [0, 1, 3], [0, 1, 2], "the id 60000 is not in the vocabulary"),
        ([7, 8, 9], [0, 0, 3], [0, 1, 2], "is empty"),
        ([7, 8, 9], [0, 1, 2], [0, 1, 2], "its sizes are not the manifest's"),
        ([7, 8, 9], [1, 2, 3], [0, 1, 2], "its sizes are not the manifest's"),
        ([7, 8, 9], [0, 1, 3], [0, 2, 2], "is empty"),
        ([7, 8, 9], [0, 2**20, 3], [0, 1, 2], "cannot be read"),
    ],
)
def test_a_shard_that_fits_its_hash_and_nothing_else(tokens, starts, documents, what, store):
    put_shard(store, tokens, starts, documents)
    with pytest.raises(StoreError, match=what):
        Store(store).train.block(0)


def test_a_whole_shard_is_read(store):
    put_shard(store, [7, 8, 9], [0, 1, 3], [0, 1, 2])
    assert Store(store).train.block(0).tokens.tolist() == [7, 8, 9]


def test_counts_that_would_run_code(store, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    np.save(store / "token-counts.npy", np.array([Evil()], object), allow_pickle=True)
    data = (store / "token-counts.npy").read_bytes()
    hashed = {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change_manifest(store, lambda m: m["token_counts"].update(hashed))
    with pytest.raises(StoreError, match=r"token-counts.npy: cannot be read"):
        _ = Store(store).token_counts
    assert not (tmp_path / "ran").exists()


# --- models --------------------------------------------------------------------------------------


@pytest.fixture
def model(small_run, tmp_path):
    return shutil.copytree(small_run.folder / "model", tmp_path / "stranger")


class TouchWhenOpened:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_model_folder_cannot_run_code(model, tmp_path):
    evil = pickle.dumps(TouchWhenOpened(tmp_path / "ran"))
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (model / name).write_bytes(evil)
    (model / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", "utf-8")
    config = json.loads((model / "config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoModel": "modeling_evil.Evil"}
    (model / "config.json").write_text(json.dumps(config), "utf-8")
    load(model).encode("a river")
    for name in ("model.safetensors", "tokenizer.json", "config.json", "bertmill.json"):
        good = (model / name).read_bytes()
        (model / name).write_bytes(evil)
        with pytest.raises(BertmillError):
            load(model)
        (model / name).write_bytes(good)
    assert not (tmp_path / "ran").exists()


def test_export_writes_in_its_folder_alone(model, bertmill, tmp_path):
    """Names with .. and links in the folder lead nowhere."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "../../1_Pooling", "type": "x.models.Pooling"},
    ]
    (model / "modules.json").write_text(json.dumps(modules), "utf-8")
    (model / "sentence_bert_config.json").write_text('{"max_seq_length": 16}', "utf-8")
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}', "utf-8")
    (tmp_path / "victim").write_text("mine", "utf-8")
    for name in ("vocab.txt", "special_tokens_map.json"):
        (model / name).unlink(missing_ok=True)
        (model / name).symlink_to(tmp_path / "victim")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    status, _, err = bertmill("export", model, "--out", "exported", "--license", "mit")
    assert status in (0, 2)
    assert err.count("\n") == (status == 2)
    out = tmp_path / "exported"
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if out not in (p, *p.parents)}
    assert after == before
    assert (tmp_path / "victim").read_text("utf-8") == "mine"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("target", ["/dev/zero", "loop", "/proc/self/mem"])
def test_links_that_never_end(name, target, model, bertmill):
    (model / name).unlink()
    (model / name).symlink_to(model / "loop" if target == "loop" else target)
    (model / "loop").symlink_to(model / "loop")
    if name == "tokenizer.json":
        (model / "vocab.txt").unlink()
    status, _, err = bertmill("encode", model, "a river")
    assert (status, err.count("\n")) == (2, 1), err


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 2**24},
        {"hidden_size": 2**16, "num_attention_heads": 16},
        {"intermediate_size": 2**18},
        {"max_position_embeddings": 2**20},
        {"num_hidden_layers": 1024},
        {"hidden_size": 2**16, "num_hidden_layers": 1024, "vocab_size": 2**24},
        {"hidden_size": 10**300},
    ],
)
def test_a_config_cannot_ask_for_the_memory(changes, model, tmp_path):
    """config.json asks for terabytes, the weights are a few kilobytes."""
    config = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.json").write_text(json.dumps(config | changes), "utf-8")
    assert peak_mebibytes(["encode", model, "a river"], tmp_path, status=2) < 1000


@pytest.mark.parametrize("length", [0, 2**20, 2**40, 2**63 - 1, 2**64 - 1])
def test_weights_whose_header_asks_for_the_memory(length, model):
    weights = model / "model.safetensors"
    weights.write_bytes(length.to_bytes(8, "little") + weights.read_bytes()[8:])
    with pytest.raises(ModelError, match="cannot be read"):
        load(model)


def test_weights_whose_tensors_ask_for_the_memory(model):
    weights = model / "model.safetensors"
    header = {"x": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}
    text = json.dumps(header).encode()
    weights.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 64)
    with pytest.raises(ModelError, match="cannot be read"):
        load(model)


def change_tokenizer(model, change):
    tree = json.loads((model / "tokenizer.json").read_text("utf-8"))
    change(tree)
    (model / "tokenizer.json").write_text(json.dumps(tree), "utf-8")


def test_a_tokenizer_cannot_ask_for_the_memory(model):
    change_tokenizer(model, lambda t: t["model"]["vocab"].update({"zebra": 2**32 - 1}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TokenizerError, match="has the id 4,294,967,295"):
        load_tokenizer(model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_a_tokenizer_that_opens_but_cannot_encode(small_run, model, bertmill):
    """Its model's unknown token is another one, which it lacks."""
    change_tokenizer(model, lambda t: t["model"].update(unk_token="nothing"))
    status, _, err = bertmill("encode", model, "a \u4e2d river")
    assert (status, err.count("\n")) == (2, 1), err


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "bertmill.json", "modules.json"]
)
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, '{"a": 1e9999}'])
def test_json_that_is_deep_or_large(name, text, model, bertmill):
    (model / name).write_text(text, "utf-8")
    status, _, err = bertmill("export", model, "--out", "exported", "--license", "mit")
    assert status in (0, 2)
    assert err.count("\n") == (status == 2), err


def test_a_folder_with_a_pipe_in_it(model, bertmill):
    """A named pipe is no file: reading it would wait for ever."""
    for name in ("config.json", "special_tokens_map.json", "bertmill.json"):
        path = model / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        status, _, err = bertmill("encode", model, "a river")
        assert (status, err.count("\n")) in {(0, 0), (2, 1)}
        path.unlink()


# --- labeled examples, and what is written of them ----------------------------------------------

FEW = {
    "two": (["a", "b"], "the river"),
    "a-rare-class": (["a"] * 11 + ["b"], "the river"),
    "two-numbers": ([0.5, 1.5], "the river"),
    "no-words": (["a", "b"] * 6, " "),
    "one": ([0.5], "the river"),
}


def put_examples(path, labels, text="the river"):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text, "label": label}) + "\n" for label in labels]
    path.write_text("".join(lines), "utf-8")
    return path


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FEW)
def test_tasks_of_few_examples(name, bertmill, small_run, tmp_path):
    """A tenth of them chooses; the rest may be of one class, or nothing."""
    pytest.importorskip("sklearn")
    for split in ("train", "dev"):
        put_examples(tmp_path / "tasks" / "cola" / f"{split}.jsonl", *FEW[name])
    args = ["evaluate", small_run.folder, "--tasks", "tasks", "--probe-only", "--seeds", "4"]
    status, _, err = bertmill(*args)
    refused = name in ("no-words", "one")
    assert (status, err.count("\n")) == (2 * refused, refused), err


def test_a_task_whose_dev_examples_are_no_pairs(refused, small_run, tmp_path):
    pytest.importorskip("sklearn")
    pairs = [{"text": "a", "text_b": "b", "label": label} for label in "xyxyxy"]
    (tmp_path / "tasks" / "t").mkdir(parents=True)
    lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
    (tmp_path / "tasks" / "t" / "train.jsonl").write_text(lines, "utf-8")
    put_examples(tmp_path / "tasks" / "t" / "dev.jsonl", ["x", "y"])
    refused(["evaluate", small_run.folder, "--tasks", "tasks", "--probe-only"], "dev.jsonl")


@pytest.mark.parametrize("label", [1e39, 1e308])
def test_numbers_that_no_network_can_answer(label, refused, small_run, tmp_path):
    path = put_examples(tmp_path / "big.jsonl", [label, 1.5])
    args = ["finetune", small_run.folder, "--train", path, "--dev", path, "--out", "tuned"]
    refused(args, "big.jsonl, line 1", "too large")


def test_classes_that_cannot_be_written(model, refused, tmp_path):
    (tmp_path / "x.jsonl").touch()
    config = json.loads((model / "config.json").read_text("utf-8"))
    config |= {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "\ud800"}}
    (model / "config.json").write_text(json.dumps(config), "utf-8")
    (model / "x.jsonl").write_text('{"text": "a river"}\n', "utf-8")
    refused(["predict", model, model / "x.jsonl", "--out", "y.jsonl"], "config.json", "is damaged")


def test_the_sample_has_no_rows(refused, small_run):
    refused(["embed", small_run.folder, "sample:sotu", "--out", "x.npy"], "sample:sotu")


def test_paradigms_that_differ_in_a_nul(bertmill, small_run, tmp_path):
    pair = {"sentence_good": "a river", "sentence_bad": "river a"}
    lines = [json.dumps({**pair, "paradigm": name}) for name in ("a", "a\0", "a\0")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), "utf-8")
    args = ["evaluate", small_run.folder, "--minimal-pairs", "pairs.jsonl", "--json"]
    status, out, err = bertmill(*args)
    assert status == 0, err
    paradigms = json.loads(out)["paradigms"]
    assert {name: scores["num_pairs"] for name, scores in paradigms.items()} == {"a": 1, "a\0": 2}


@pytest.mark.parametrize(
    "args",
    [
        ["embed", "*", "texts.txt", "--out", "\udc80.parquet"],
        ["export", "*", "--out", "\udc80"],
        ["prepare", "--corpus", "texts.txt", "--out", "\udc80", *PREPARE],
        ["pretrain", "--corpus", "texts.txt", "--steps", "1", "--out", "\udc80", *PREPARE],
        ["similar-words", "*", "a river", "--word", "river", "--among", "a river",
         "--figure", "\udc80.png"],
    ],
)  # fmt: skip
def test_a_name_that_not_every_library_can_open(args, bertmill, small_run, tmp_path):
    (tmp_path / "texts.txt").write_text("the river\n", "utf-8")
    before = sorted(tmp_path.iterdir())
    status, _, err = bertmill(*(str(small_run.folder) if a == "*" else a for a in args))
    assert (status, err.count("\n")) == (2, 1), err
    assert "UTF-8" in err
    assert sorted(tmp_path.iterdir()) == before
