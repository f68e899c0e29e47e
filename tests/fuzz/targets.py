"""What is fuzzed: a function a reader, which makes a hostile file of bytes and reads it.

A target is called with bytes and a folder that holds a copy of the good files of `make_seeds`. It
may raise `BertmillError`, in one printable line, and nothing else.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from mutate import Choices, hostile_json

import bertmill
from bertmill import cli
from bertmill.config import TextSection, TokenizerSection, load_recipe
from bertmill.data.batch import Batches
from bertmill.data.store import Store
from bertmill.errors import BertmillError
from bertmill.judge.frozen_pairs import judge_frozen_pairs
from bertmill.model.folder import load_model
from bertmill.show.contents import describe
from bertmill.text.corpus import find_files, read_documents
from bertmill.text.sentences import split_sentences
from bertmill.text.tokenizer import load_tokenizer
from bertmill.train.checkpoint import newest_checkpoint, restore
from bertmill.train.optimizer import make_optimizer
from bertmill.train.run_folder import RunFolder
from bertmill.use.pooling import read_pooling
from bertmill.use.pretrained import Pretrained, load

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import SMALL, make_documents

Read = Callable[[bytes, Path], None]

with torch.device("meta"):  # the first use loads much of torch: once, not in every target's process
    torch.nn.Embedding(1, 1)

# Small enough that an input costs a few milliseconds.
SETTINGS = [
    *SMALL,
    "model.hidden_size=8",
    "model.intermediate_size=8",
    "model.num_hidden_layers=1",
    "model.max_position_embeddings=64",
]
_TEXTS = ["The river crosses the valley.", "[MASK] \0 \u202e ##s [CLS]", "", "a" * 150, "\u4e2d."]


@dataclass(frozen=True)
class Target:
    """A reader to be fuzzed."""

    name: str
    read: Read
    seeds: Callable[[Path], list[bytes]]
    """Good inputs, given the folder of `make_seeds`; the first one must be accepted."""
    weight: float = 1.0
    """Share of the inputs, compared with the other targets."""


def make_seeds(folder: Path) -> None:
    """Make a good file of every kind: text, a run, a store, model folders, frozen pairs."""
    texts = make_documents(24)
    (folder / "corpus.txt").write_text("\n\n".join(texts), "utf-8")
    wordpiece = bertmill.pretrain(
        str(folder / "corpus.txt"), "tiny", out=folder / "run", steps=8, settings=SETTINGS
    )
    words = bertmill.pretrain(
        str(folder / "corpus.txt"),
        "tiny",
        out=folder / "word-run",
        steps=1,
        settings=[*SETTINGS, "tokenizer.kind=word"],
    )
    shutil.copytree(RunFolder(wordpiece.folder).read()[1]["store"], folder / "store")
    bertmill.export(wordpiece.folder, folder / "model")
    shutil.copytree(words.folder / "model", folder / "word-model")
    shutil.rmtree(words.folder)
    (folder / "recipe.toml").write_bytes((folder / "run" / "recipe.toml").read_bytes())
    facts = json.loads((folder / "run" / "run.json").read_text("utf-8"))
    (folder / "run" / "run.json").write_text(json.dumps({**facts, "store": "store"}), "utf-8")


# --- text ----------------------------------------------------------------------------------------


def _documents(path: Path, section: TextSection) -> None:
    """Read a corpus file to its end, and make tokens of it."""
    tokenizer = _tokenizer(path.parent / "model")
    for document in read_documents(find_files([str(path)]), section):
        _ = document.identity
        _, lengths = tokenizer.encode_batch(split_sentences(document.text, section))
        assert (lengths >= 0).all()


@cache
def _tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)


def _file(name: str, **sections: Any) -> Read:
    """Read the bytes as a corpus file of this name, its first byte choosing the section."""
    options = [TextSection(**section) for section in sections.values()] or [TextSection()]

    def read(data: bytes, folder: Path) -> None:
        (folder / name).write_bytes(data[1:])
        _documents(folder / name, options[data[0] % len(options) if data else 0])

    return read


_WAYS: dict[str, Any] = {
    "block": {},
    "line": {"document": "line"},
    "file": {"document": "file", "sentences": "spaced-period"},
    "french": {"language": "fr"},
    "unknown": {"language": "zzz"},
}


def _parquet_bytes(compression: str, texts: Sequence[str | None]) -> bytes:
    out = io.BytesIO()
    table = pa.table({"text": pa.array(texts, pa.string()), "n": list(range(len(texts)))})
    pq.write_table(table, out, compression=compression, row_group_size=3)
    return out.getvalue()


def _text_seeds(_: Path) -> list[bytes]:
    plain = "\n\n".join(make_documents(3, 2)).encode()
    odd = "\ufeffOne [MASK] sentence . two\r\n\r\n\0\u202e\u200f ... !?\n\n\u4e2d\u3002".encode()
    return [b"\0" + plain, b"\1" + odd, b"\2" + b" . ".join([plain, odd])]


def _wikitext_seeds(_: Path) -> list[bytes]:
    text = b" = Title = \n\n a river . a crane . \n = = Part = = \n more . text . \n = Two = \n x\n"
    return [b"\0" + text, b"\1" + text, b"\2" + text]


def _jsonl_seeds(_: Path) -> list[bytes]:
    lines = [json.dumps({"text": text, "id": i}) for i, text in enumerate(make_documents(3, 2))]
    return [b"\0" + "\n".join(lines).encode(), b"\0" + b'{"text": "a \\ud83d\\ude00 b"}\n\n']


def _parquet_seeds(_: Path) -> list[bytes]:
    texts = [*make_documents(3, 1), None, "", "\0 [MASK]"]
    return [b"\0" + _parquet_bytes(kind, texts) for kind in ("none", "snappy", "zstd", "gzip")]


def _compressed(data: bytes, folder: Path) -> None:
    name = ("c.txt.gz", "c.jsonl.xz", "c.txt.zst", "c.parquet.gz")[data[0] % 4 if data else 0]
    (folder / name).write_bytes(data[1:])
    _documents(folder / name, TextSection())


def _compressed_seeds(folder: Path) -> list[bytes]:
    text, lines = _text_seeds(folder)[0][1:], _jsonl_seeds(folder)[0][1:]
    return [
        b"\0" + gzip.compress(text, mtime=0),
        b"\1" + lzma.compress(lines),
        b"\2" + pa.compress(text, "zstd", asbytes=True),
        b"\3" + gzip.compress(_parquet_bytes("none", ["a river.", "b"]), mtime=0),
    ]


# --- recipes -------------------------------------------------------------------------------------


def _recipe(data: bytes, folder: Path) -> None:
    (folder / "fuzzed.toml").write_bytes(data)
    load_recipe(folder / "fuzzed.toml")


def _setting(data: bytes, folder: Path) -> None:
    load_recipe("tiny", data.decode("utf-8", "surrogateescape").split("\n"))


# --- stores --------------------------------------------------------------------------------------


def _use_store(folder: Path) -> None:
    """Open a store and make batches of it."""
    store = Store(folder)
    _ = store.identity, store.token_counts.sum()
    recipe = load_recipe("tiny", ["pairs.max_length=32"])
    for split in (store.train, store.held_out):
        batches = Batches(split, store.tokenizer, recipe.pairs, recipe.masking, 8, 1, "the store")
        batch = batches.batch_at(1)
        assert batch.token_ids.min() >= 0 and batch.token_ids.max() < store.tokenizer.size
    describe(folder, 1)


def _manifest(data: bytes, folder: Path) -> None:
    store = folder / "store"
    (store / "manifest.json").write_bytes(data)
    _use_store(store)


def _manifest_values(data: bytes, folder: Path) -> None:
    _manifest(hostile_json(_json(folder, "store/manifest.json"), Choices(data)).encode(), folder)


@cache
def _pristine(folder: Path, name: str) -> bytes:
    return (folder / "good" / name).read_bytes()


def _json(folder: Path, name: str) -> Any:
    return json.loads(_pristine(folder, name))


def _with_right_hash(folder: Path, name: str, data: bytes) -> None:
    """Put a file into the store as a stranger would: the manifest agrees with it."""
    store = folder / "store"
    (store / name).write_bytes(data)
    manifest = _json(folder, "store/manifest.json")
    shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    for entry in [*shards, manifest["token_counts"]]:
        if entry["file"] == name:
            entry |= {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (store / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    _use_store(store)


def _shard(data: bytes, folder: Path) -> None:
    _with_right_hash(folder, "train-00000.arrow", data)


def _shard_values(data: bytes, folder: Path) -> None:
    """Write offsets and ids that no prepare would, as a whole Arrow file."""
    choices = Choices(data)
    with pa.ipc.open_file(_pristine(folder, "store/train-00000.arrow")) as reader:
        column = reader.get_batch(0).column(0)
    arrays = [column.values.values, column.values.offsets, column.offsets]
    tokens, starts, documents = (array.to_numpy().copy() for array in arrays)
    for _ in range(3):
        if choices.are_over:
            break
        array = choices.pick([tokens, starts, documents])
        number = choices.pick([0, 1, -1, 199, 200, 65535, 2**31 - 1, -(2**31), 2**20])
        array[choices.below(len(array))] = np.array(number).astype(array.dtype)
    kind = choices.pick([pa.uint16(), pa.uint16(), pa.uint32(), pa.int64(), pa.string()])
    inner = _unchecked_list(starts, pa.array(tokens).cast(kind))
    made = None if inner is None else _unchecked_list(documents, inner)
    if made is None:
        return
    name = choices.pick(["sentences", "other"])
    out = io.BytesIO()
    with pa.ipc.new_file(out, pa.schema([(name, made.type)])) as writer:
        for _ in range(choices.pick([1, 2, 0])):
            try:
                writer.write_batch(pa.record_batch([made], names=[name]))
            except pa.ArrowInvalid:  # pyarrow itself will not write it
                return
    _with_right_hash(folder, "train-00000.arrow", out.getvalue())


def _unchecked_list(offsets: Any, values: pa.Array) -> pa.Array | None:
    """Make a list array of offsets that need not rise; None for what pyarrow will not hold."""
    buffers = [None, pa.py_buffer(offsets.tobytes())]
    kind = pa.list_(values.type)
    try:
        return pa.Array.from_buffers(kind, len(offsets) - 1, buffers, children=[values])
    except pa.ArrowInvalid:
        return None


def _token_counts(data: bytes, folder: Path) -> None:
    _with_right_hash(folder, "token-counts.npy", data)


# --- tokenizers ----------------------------------------------------------------------------------


def _use_tokenizer(path: Path, section: TokenizerSection | None = None) -> None:
    tokenizer = load_tokenizer(path, section)
    _ = tokenizer.identity
    for text in _TEXTS:
        ids, _ = tokenizer.encode_words(text)
        tokenizer.decode(ids)
    ids, _ = tokenizer.encode_batch(_TEXTS)
    assert not len(ids) or (ids.min() >= 0 and ids.max() < tokenizer.size)
    tokenizer.save(path.parent / "saved")


def _in_tokenizer(name: str, text: bytes, folder: Path) -> None:
    lone = folder / "tokenizer"
    lone.mkdir(exist_ok=True)
    for other in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (lone / other).write_bytes(_pristine(folder, f"model/{other}"))
    if name != "tokenizer.json":
        (lone / "tokenizer.json").unlink()
    (lone / name).write_bytes(text)
    _use_tokenizer(lone)


def _tokenizer_json(data: bytes, folder: Path) -> None:
    _in_tokenizer("tokenizer.json", data, folder)


def _tokenizer_values(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    name = choices.pick(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"])
    model = choices.pick(["model", "word-model"])
    tree = json.loads(_pristine(folder, f"{model}/{name}"))
    if name == "tokenizer.json":  # not lost among two hundred words
        tree["model"]["vocab"] = dict(list(tree["model"]["vocab"].items())[:12])
    _in_tokenizer(name, hostile_json(tree, choices).encode(), folder)


def _vocabulary(data: bytes, folder: Path) -> None:
    (folder / "vocab.txt").write_bytes(data)
    _use_tokenizer(folder / "vocab.txt", TokenizerSection(lowercase=len(data) % 2 == 0))


def _tokenizer_config(data: bytes, folder: Path) -> None:
    _in_tokenizer("tokenizer_config.json", data, folder)


# --- models --------------------------------------------------------------------------------------


def _use_model(folder: Path) -> None:
    model = load(folder)
    assert model.encode("the river", "[CLS] \0").vectors.ndim == 3
    if not any(name.startswith("masked_token_head") for name in model.new_weights):
        model.fill_mask(f"the {model.tokenizer.mask_token}", 1)
    read_pooling(folder, 512)


def _in_model(name: str, data: bytes, folder: Path) -> None:
    """Open the good model folder with one file put in the place of its own."""
    path = folder / "model" / name
    path.write_bytes(data)
    try:
        _use_model(folder / "model")
    finally:
        path.write_bytes(_pristine(folder, f"model/{name}"))


def _model_file(name: str) -> Read:
    return lambda data, folder: _in_model(name, data, folder)


_MODEL_JSON = (
    "config.json", "bertmill.json", "modules.json", "sentence_bert_config.json",
    "1_Pooling/config.json", "tokenizer_config.json",
)  # fmt: skip


def _model_values(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    name = choices.pick(_MODEL_JSON)
    _in_model(name, hostile_json(_json(folder, f"model/{name}"), choices).encode(), folder)


def _weights_header(data: bytes, folder: Path) -> None:
    """Change the header of the weights: names, shapes, types and offsets."""
    good = _pristine(folder, "model/model.safetensors")
    size = int.from_bytes(good[:8], "little")
    header = hostile_json(json.loads(good[8 : 8 + size]), Choices(data)).encode()
    whole = len(header).to_bytes(8, "little") + header + good[8 + size :]
    _in_model("model.safetensors", whole, folder)


@cache
def _loaded(folder: Path) -> Pretrained:
    return load(folder)


def _encode(data: bytes, folder: Path) -> None:
    if len(data) % 4:
        text = data.decode("utf-8", "surrogateescape")
    else:
        text = data.decode("utf-16-le", "surrogatepass")
    first, *more = text.split("\x1f")
    _loaded(folder / "model").encode(first, more if more else None)


def _fill_mask(data: bytes, folder: Path) -> None:
    text = data.decode("utf-8", "surrogateescape")
    _loaded(folder / "model").fill_mask(text, len(data) % 7)


def _first(name: str) -> Callable[[Path], list[bytes]]:
    return lambda folder: [(folder / name).read_bytes()]


# --- frozen pairs --------------------------------------------------------------------------------

_PAIR = {
    "tokens": ["<cls>", "the", "<mask>", "crosses", "<sep>", "a", "farmer", "valley", "<sep>"],
    "second_starts": 5,
    "masked_at": [2, 6],
    "labels": ["river", "farmer"],
    "kinds": ["mask", "keep"],
    "is_next": 1,
}


@cache
def _word_model(folder: Path) -> Any:
    return load_model(folder)


def _about_values(data: bytes, folder: Path) -> None:
    """Judge by what a stranger's folder says of its training."""
    about = hostile_json(_json(folder, "word-model/bertmill.json"), Choices(data))
    (folder / "word-model" / "bertmill.json").write_text(about, "utf-8")
    _word_model.cache_clear()
    _judge(json.dumps(_PAIR).encode(), folder)


def _judge(lines: bytes, folder: Path) -> None:
    (folder / "pairs.jsonl").write_bytes(lines)
    judge_frozen_pairs(
        _word_model(folder / "word-model"), str(folder / "pairs.jsonl"), torch.device("cpu")
    )


def _frozen_values(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    lines = [hostile_json(_PAIR, choices), json.dumps({**_PAIR, "is_next": False})]
    _judge("\n".join(lines).encode(), folder)


def _frozen_seeds(_: Path) -> list[bytes]:
    return [json.dumps(_PAIR).encode() + b"\n"]


# --- runs ----------------------------------------------------------------------------------------


def _use_run(folder: Path) -> None:
    run = RunFolder(folder)
    run.read()
    run.metrics()
    run.decisions()


_RUN_JSON = ("run.json", "metrics.jsonl")


def _in_run(name: str, data: bytes, folder: Path) -> None:
    path = folder / "run" / name
    path.write_bytes(data)
    try:
        _use_run(folder / "run")
    finally:
        path.write_bytes(_pristine(folder, f"run/{name}"))


def _run_file(name: str) -> Read:
    return lambda data, folder: _in_run(name, data, folder)


def _run_values(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    name = choices.pick(_RUN_JSON)
    lines = _pristine(folder, f"run/{name}").decode()
    trees = [json.loads(lines)] if name == "run.json" else map(json.loads, lines.splitlines())
    text = "".join(hostile_json(tree, choices) + "\n" for tree in trees)
    _in_run(name, text.encode(), folder)


_DECISION = b'{"step": 4, "seconds": 1.5, "scale": 1.0, "end_step": 9}\n'


def _decisions(data: bytes, folder: Path) -> None:
    (folder / "run" / "decisions.jsonl").write_bytes(data)
    _use_run(folder / "run")


def _use_checkpoint(folder: Path) -> None:
    run = RunFolder(folder / "run")
    recipe = load_recipe(folder / "recipe.toml")
    said: list[str] = []
    checkpoint = newest_checkpoint(run, said.append)
    if any("\n" in line for line in said):
        raise AssertionError(f"more than a line: {said}")
    if checkpoint is None:
        return
    loaded = _word_model(folder / "good" / "model")  # its weights are overwritten
    restore(checkpoint, loaded.model, make_optimizer(loaded.model, recipe.optimizer))


def _in_checkpoint(name: str, data: bytes, folder: Path) -> None:
    """Open the newest checkpoint with a file of its own and the hash that it has."""
    checkpoints = folder / "run" / "checkpoints"
    shutil.rmtree(checkpoints)
    shutil.copytree(folder / "good" / "run" / "checkpoints" / "step-8", checkpoints / "step-8")
    newest = checkpoints / "step-8"
    (newest / name).write_bytes(data)
    if name != "state.json":
        state = json.loads((newest / "state.json").read_text("utf-8"))
        state["sha256"][name] = hashlib.sha256(data).hexdigest()
        (newest / "state.json").write_text(json.dumps(state), "utf-8")
    _use_checkpoint(folder)


def _checkpoint_state(data: bytes, folder: Path) -> None:
    _in_checkpoint("state.json", data, folder)


def _checkpoint_values(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    name = choices.pick(["state.json", "optimizer.safetensors"])
    good = _pristine(folder, f"run/checkpoints/step-8/{name}")
    if name == "state.json":
        _in_checkpoint(name, hostile_json(json.loads(good), choices).encode(), folder)
        return
    size = int.from_bytes(good[:8], "little")
    header = hostile_json(json.loads(good[8 : 8 + size]), choices).encode()
    _in_checkpoint(name, len(header).to_bytes(8, "little") + header + good[8 + size :], folder)


def _optimizer(data: bytes, folder: Path) -> None:
    _in_checkpoint("optimizer.safetensors", data, folder)


# --- the command line ----------------------------------------------------------------------------


def command_line(args: Sequence[str]) -> tuple[int, str]:
    """Run the command line in this process; its status and what it said on standard error."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", e) for e in ("strict", "backslashreplace"))
    before, sys.argv = sys.argv, ["bertmill", *args]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            cli.main()
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 1
    finally:
        sys.argv = before
        err.flush()
    return status, err.buffer.getvalue().decode("utf-8")  # type: ignore[attr-defined]


# A verb, its arguments, the files that are hostile. `*` is the folder, `@` the text.
_COMMANDS: list[tuple[list[str], list[str]]] = [
    (["inspect", "*/store", "--json"], ["store/manifest.json", "store/train-00000.arrow"]),
    (["inspect", "*/store"], ["store/manifest.json", "store/tokenizer/tokenizer.json"]),
    (["inspect", "*/run"], ["run/run.json", "run/metrics.jsonl", "run/recipe.toml"]),
    (["inspect", "*/recipe.toml"], ["recipe.toml"]),
    (["inspect", "*/model"], ["model/config.json", "model/bertmill.json"]),
    (["encode", "*/model", "@"], ["model/config.json", "model/tokenizer.json"]),
    (["encode", "*/model", "@", "@", "--json"], ["model/model.safetensors"]),
    (["fill-mask", "*/model", "[MASK] @"], ["model/config.json", "model/tokenizer.json"]),
    (["fill-mask", "*/model", "@", "--top", "@"], ["model/config.json"]),
    (["evaluate", "*/word-model", "--frozen-pairs", "*/pairs.jsonl"], ["pairs.jsonl"]),
    (["evaluate", "*/model", "--held-out", "*/corpus.txt"], ["corpus.txt", "model/bertmill.json"]),
    (["prepare", "--corpus", "*/corpus.txt", "--out", "*/out", "--set", "@"], ["corpus.txt"]),
    (["prepare", "--corpus", "*/corpus.txt", "--out", "*/out"], ["corpus.txt"]),
    (["export", "*/model", "--out", "*/out"], ["model/config.json", "model/modules.json"]),
    (
        ["pretrain", "--corpus", "*/corpus.txt", "--recipe", "*/recipe.toml", "--steps", "1",
         "--out", "*/out"],
        ["corpus.txt", "recipe.toml"],
    ),
    (["pretrain", "--resume", "*/run", "--steps", "9"], [
        "run/run.json", "run/metrics.jsonl", "run/recipe.toml",
        "run/checkpoints/step-8/state.json", "store/manifest.json",
    ]),
    (["@", "@", "@"], ["corpus.txt"]),
    (["encode", "@", "@"], ["corpus.txt"]),
]  # fmt: skip


def _cli(data: bytes, folder: Path) -> None:
    """Run a verb over one hostile file, in a folder of its own."""
    choices = Choices(data)
    args, files = choices.pick(_COMMANDS)
    name = choices.pick(files)
    here = folder / "cli"
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(folder / "good", here, symlinks=True)
    (here / "pairs.jsonl").write_text(json.dumps(_PAIR) + "\n", "utf-8")
    facts = _json(folder, "run/run.json") | {"store": str(here / "store")}
    (here / "run" / "run.json").write_text(json.dumps(facts), "utf-8")
    path = here / name
    way = choices.below(4)
    rest = choices.rest()
    text = rest.decode("utf-8", "surrogateescape").replace("\0", " ")[:2000]
    if rest and way < 3 and path.suffix == ".json":
        path.write_text(hostile_json(json.loads(path.read_bytes()), Choices(rest)), "utf-8")
    elif rest and way < 3:
        good = bytearray(path.read_bytes())
        at = int.from_bytes(rest[:2], "little") % (len(good) + 1)
        good[at : at + (len(rest) if way else 0)] = rest[2:]
        path.write_bytes(good)
    status, said = command_line([a.replace("*", str(here)).replace("@", text) for a in args])
    if status == 2:
        if said.count("\n") != 1 or len(said.splitlines()) != 1 or not said.endswith("\n"):
            raise AssertionError(f"not one line: {said!r}")
        raise BertmillError("cli", said.strip(), "")
    if status:
        raise AssertionError(f"exit status {status}: {said!r}")


# --- the table -----------------------------------------------------------------------------------


def _nothing_changed(_: Path) -> list[bytes]:
    return [b"", bytes(range(0, 250, 7)), b"\1\2\3\4\5\6\7\7"]


def _cli_seeds(_: Path) -> list[bytes]:
    return [bytes([command]) for command in range(len(_COMMANDS))]


TARGETS = [
    Target("text", _file("a.txt", **_WAYS), _text_seeds, 2),
    Target("wikitext", _file("a.tokens", **_WAYS), _wikitext_seeds),
    Target("jsonl", _file("a.jsonl"), _jsonl_seeds),
    Target("parquet", _file("a.parquet"), _parquet_seeds, 2),
    Target("compressed", _compressed, _compressed_seeds),
    Target("recipe", _recipe, _first("recipe.toml"), 2),
    Target("setting", _setting, lambda _: [b"train.steps=8\ntext.language=de"]),
    Target("manifest", _manifest, _first("store/manifest.json")),
    Target("manifest-values", _manifest_values, _nothing_changed, 2),
    Target("shard", _shard, _first("store/train-00000.arrow")),
    Target("shard-values", _shard_values, _nothing_changed),
    Target("token-counts", _token_counts, _first("store/token-counts.npy")),
    Target("tokenizer", _tokenizer_json, _first("model/tokenizer.json")),
    Target("tokenizer-values", _tokenizer_values, _nothing_changed, 2),
    Target("tokenizer-config", _tokenizer_config, _first("model/tokenizer_config.json")),
    Target("vocabulary", _vocabulary, _first("model/vocab.txt")),
    Target("config", _model_file("config.json"), _first("model/config.json")),
    Target("model-values", _model_values, _nothing_changed, 2),
    Target("weights", _model_file("model.safetensors"), _first("model/model.safetensors")),
    Target("weights-header", _weights_header, _nothing_changed),
    Target("about", _model_file("bertmill.json"), _first("model/bertmill.json")),
    Target("about-values", _about_values, _nothing_changed),
    Target("encode", _encode, lambda _: [b"the river [CLS].", "a\0\u202e \u4e2d!".encode()], 2),
    Target("fill-mask", _fill_mask, lambda _: [b"the [MASK] of [MASK]", b"a[MASK]"], 2),
    Target("frozen-pairs", _judge, _frozen_seeds),
    Target("frozen-values", _frozen_values, _nothing_changed, 2),
    Target("run", _run_file("run.json"), _first("run/run.json")),
    Target("metrics", _run_file("metrics.jsonl"), _first("run/metrics.jsonl")),
    Target("decisions", _decisions, lambda _: [_DECISION]),
    Target("run-values", _run_values, _nothing_changed),
    Target("checkpoint-state", _checkpoint_state, _first("run/checkpoints/step-8/state.json"), 0.5),
    Target("checkpoint-values", _checkpoint_values, _nothing_changed, 0.5),
    Target("optimizer", _optimizer, _first("run/checkpoints/step-8/optimizer.safetensors"), 0.5),
    Target("command-line", _cli, _cli_seeds, 0.3),
]
