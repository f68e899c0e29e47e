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
from bertmill.evaluation.minimal_pairs import evaluate_minimal_pairs
from bertmill.model.folder import load_model
from bertmill.model.pooling import POOLING_MODES, read_max_length, read_pooling
from bertmill.show.contents import describe
from bertmill.text.corpus import read_documents
from bertmill.text.files import find_files
from bertmill.text.rows import read_rows, text_of
from bertmill.text.sentences import split_sentences
from bertmill.text.tokenizer import load_tokenizer
from bertmill.train.checkpoint import newest_checkpoint, restore_weights
from bertmill.train.moments import restore_moments
from bertmill.train.optimizer import make_optimizer
from bertmill.train.run_folder import RunFolder
from bertmill.train.world import World
from bertmill.use.examples import Columns, read_examples, targets_of, task_of
from bertmill.use.predict import Prediction, make_inputs
from bertmill.use.predictions import with_answers, write_rows
from bertmill.use.pretrained import Pretrained

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from frozen_pairs import score as score_frozen_pairs

from small import SMALL, make_documents

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
    """Make a good file of every kind: text, a run, a store, model folders, a task's examples."""
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
    shutil.copytree(RunFolder(wordpiece.folder).read()[1].store, folder / "store")
    bertmill.export_huggingface(wordpiece.folder, folder / "model")
    shutil.copytree(words.folder / "model", folder / "word-model")
    shutil.rmtree(words.folder)
    (folder / "recipe.toml").write_bytes((folder / "run" / "recipe.toml").read_bytes())
    facts = json.loads((folder / "run" / "run.json").read_text("utf-8"))
    (folder / "run" / "run.json").write_text(json.dumps({**facts, "store": "store"}), "utf-8")
    (folder / "tasks" / "river").mkdir(parents=True)
    for name in ("tasks/river/train.jsonl", "tasks/river/dev.jsonl", "examples.jsonl"):
        (folder / name).write_bytes(_lines(_EXAMPLES["classification"]))
    (folder / "words.jsonl").write_bytes(_lines(_EXAMPLES["words"]))
    (folder / "minimal.jsonl").write_bytes(_lines(_MINIMAL_PAIRS))
    for out, examples in (("tuned", "examples.jsonl"), ("word-tuned", "words.jsonl")):
        path = folder / examples
        bertmill.finetune(folder / "model", path, path, folder / out, epochs=1)


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
    # A lone capital, white space that is not ASCII and a period once made sentencex panic; it takes
    # long over quotes that are never closed.
    capitals = "Vitamin B\u00a0. Then C\u2003. D\u3000! E\u2028? F\u00a0.\u00a0. G".encode()
    quotes = ("\u201cone \u2018two. \u00abThree " * 400).encode()
    return [
        *(b"\0" + plain, b"\1" + odd, b"\2" + b" . ".join([plain, odd])),
        *(b"\0" + capitals, b"\3" + capitals, b"\0" + quotes, b"\0" + b"word " * 2000),
    ]


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


# --- rows and examples ---------------------------------------------------------------------------

_ROW_FILES = ("r.txt", "r.jsonl", "r.csv", "r.tsv", "r.parquet", "r.csv.gz")

_EXAMPLES: dict[str, list[Any]] = {
    "classification": [
        {"text": f"the {word} crosses the valley", "label": i % 3} for i, word in enumerate(
            ["river", "farmer", "crane", "road", "bridge", "train"] * 2
        )
    ],
    "pairs": [
        {"sentence1": "a river", "sentence2": "a crane", "label": label} for label in ("no", "yes")
    ],
    "regression": [{"text": "a river", "label": number} for number in (0.5, 1.5, -2)],
    "words": [{"words": ["the", "river", "", "x"], "labels": ["A", "B", "A", "A"]}] * 6,
}  # fmt: skip

_MINIMAL_PAIRS = [
    {"sentence_good": "The river crosses.", "sentence_bad": "River the crosses.", "paradigm": name}
    for name in ("order", "order", "other")
]


def _lines(trees: Any) -> bytes:
    """Write a line of JSON for each item of a list, or one for anything else."""
    return "".join(
        json.dumps(t) + "\n" for t in (trees if isinstance(trees, list) else [trees])
    ).encode()


def _rows(data: bytes, folder: Path) -> None:
    path = folder / _ROW_FILES[data[0] % len(_ROW_FILES) if data else 0]
    path.write_bytes(data[1:])
    for row in read_rows(str(path)):
        text_of(row, "text")


def _rows_seeds(_: Path) -> list[bytes]:
    table = b'text,label\n"a ""river"", two\nlines",1\n\na crane,2\n'
    return [
        b"\0the river\n\n\xef\xbb\xbf",
        b"\1" + _lines(_EXAMPLES["classification"]),
        b"\2\xef\xbb\xbf" + table,
        b"\3text\tlabel\r\na river\t1\r\n\r\n",
        b"\4" + _parquet_bytes("snappy", ["a river.", "", "\0 [MASK]"]),
        b"\5" + gzip.compress(table, mtime=0),
        b'\2text;label\n"the river";a\n',
    ]


# Numbers that a file may hold in each of these, and Python cannot.
_COLUMN_TYPES = [
    pa.string(), pa.large_string(), pa.binary(), pa.binary(8), pa.int64(), pa.uint64(),
    pa.float64(), pa.float16(), pa.bool_(), pa.date32(), pa.date64(), pa.time32("s"),
    pa.time64("ns"), pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("ms", "Nowhere/Else"),
    pa.timestamp("us", "+99:99"), pa.timestamp("s", "Europe/Berlin"), pa.timestamp("s", ""),
    pa.duration("s"), pa.duration("ns"), pa.decimal128(38, 2), pa.decimal256(76, 70),
    pa.month_day_nano_interval(), pa.null(), pa.uuid(), pa.json_(),
]  # fmt: skip
_NESTED: list[Callable[[pa.Array], pa.Array]] = [
    lambda a: a,
    lambda a: a,
    lambda a: pa.ListArray.from_arrays(pa.array(range(len(a) + 1), pa.int32()), a),
    lambda a: pa.StructArray.from_arrays([a, a], ["a", "b"]),
    lambda a: pa.StructArray.from_arrays([a, a], ["a", "a"]),
    lambda a: pa.MapArray.from_arrays(pa.array(range(len(a) + 1), pa.int32()), a, a),
    lambda a: pa.DictionaryArray.from_arrays(pa.array([0] * len(a), pa.int32()), a),
]


def _parquet_values(data: bytes, folder: Path) -> None:
    """Write columns of types and values that few files have, and read them as examples."""
    choices = Choices(data)
    columns, names = [pa.array(["a river", "a crane"])], ["text"]
    for name in ("label", choices.pick(["x", "text_b", "text", "", "\0", "\u202e"])):
        array = _odd_array(choices)
        columns.append(pa.array(["0", "1"]) if array is None else array)
        names.append(name)
    out = io.BytesIO()
    try:
        pq.write_table(pa.table(columns, names), out)
    except (pa.ArrowException, ValueError, OSError):  # pyarrow itself will not write it
        return
    (folder / "values.parquet").write_bytes(out.getvalue())
    _use_examples(folder / "values.parquet", choices, folder)


def _odd_array(choices: Choices) -> pa.Array | None:
    """Make two values of a type of any bits; None for what pyarrow will not hold."""
    if choices.are_over:
        return None
    kind = choices.pick(_COLUMN_TYPES)
    wrap = choices.pick(_NESTED)
    numbers = [0, 1, -1, 2**31 - 1, -(2**31), 86_400, 2**40, 2**62, -(2**63), 2**63 - 1]
    bits = np.array([choices.pick(numbers) for _ in range(8)], np.int64)
    texts = ["a", "", "\0", "\u202e", "b"]
    try:
        if kind in (pa.string(), pa.large_string(), pa.json_()):
            return wrap(pa.array([choices.pick(texts) for _ in range(2)], pa.string()).cast(kind))
        if kind in (pa.binary(), pa.null()):
            return wrap(pa.array([None if kind == pa.null() else b"\xff\0"] * 2, kind))
        return wrap(pa.Array.from_buffers(kind, 2, [None, pa.py_buffer(bits.tobytes())]))
    except (pa.ArrowException, ValueError, TypeError):
        return None


_KINDS = [None, "classification", "regression", "words", "\u202e"]


def _use_examples(path: Path, choices: Choices, folder: Path) -> None:
    """Read examples and make of them what fine-tuning does before it learns."""
    kind = choices.pick(_KINDS)
    columns = Columns(*(choices.pick([None, "text", "label", "x"]) for _ in range(3)))
    examples = read_examples(str(path), columns, kind)
    targets = targets_of(examples, task_of(examples, "train"), "train")
    inputs = make_inputs(_tokenizer(folder / "model"), examples, 16)
    assert inputs.words is not None or len(targets) == len(examples) == len(inputs.sequences)


def _example_values(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    trees = choices.pick(list(_EXAMPLES.values()))
    tree = json.loads(hostile_json(trees[:4], Choices(data[1:] and choices.rest())))
    (folder / "examples.jsonl").write_bytes(_lines(tree))
    _use_examples(
        folder / "examples.jsonl", Choices(data[-4:] if len(data) % 3 == 2 else b""), folder
    )


def _learn(data: bytes, folder: Path) -> None:
    """Fine-tune on hostile examples, and predict with what came of it."""
    choices = Choices(data)
    name = choices.pick(list(_EXAMPLES))
    trees = json.loads(hostile_json(_EXAMPLES[name][:4], choices))
    path, out = folder / "learn.jsonl", folder / "learned"
    path.write_bytes(_lines(trees))
    shutil.rmtree(out, ignore_errors=True)
    with redirect_stdout(io.StringIO()):
        bertmill.finetune(folder / "model", path, path, out, epochs=1)
    _use_tuned(out, folder)


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
    model = bertmill.load(folder)
    assert model.encode("the river", "[CLS] \0").vectors.ndim == 3
    if not any(name.startswith("masked_token_head") for name in model.new_weights):
        model.fill_mask(f"the {model.tokenizer.mask_token}", 1)
    read_pooling(folder, 512)


def _use_tuned(model: Path, folder: Path) -> None:
    """Open a fine-tuned folder and write its answers, and all that it might answer, to files."""
    loaded = bertmill.load(model)
    task = loaded.require_task_model().task
    texts = "words.jsonl" if task.kind == "words" else "examples.jsonl"
    for ending in ("jsonl", "csv", "parquet"):
        out = folder / f"answers.{ending}"
        out.unlink(missing_ok=True)
        shares = (0.5,) * len(task.labels)
        found = [Prediction(label, 0.5, shares) for label in task.labels] or [0.5]
        write_rows(out, with_answers([{}] * len(found), found, task))
    out.unlink()
    bertmill.predict(model, folder / "good" / texts, out)


def _in_model(
    name: str,
    data: bytes,
    folder: Path,
    model: str = "model",
    use: Callable[[Path], None] = _use_model,
) -> None:
    """Open a good model folder with one file put in the place of its own."""
    path = folder / model / name
    path.write_bytes(data)
    try:
        use(folder / model)
    finally:
        path.write_bytes(_pristine(folder, f"{model}/{name}"))


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


def _with_hostile_header(good: bytes, choices: Choices, only: str = "") -> bytes:
    """Change the header of a safetensors file, or only those tensors with this in their names."""
    size = int.from_bytes(good[:8], "little")
    tree = json.loads(good[8 : 8 + size])
    chosen = {name: value for name, value in tree.items() if only in name}
    changed = json.loads(hostile_json(chosen, choices))
    if isinstance(changed, dict):
        rest = {name: value for name, value in tree.items() if name not in chosen}
        changed = {**rest, **changed}
    header = json.dumps(changed).encode()
    return len(header).to_bytes(8, "little") + header + good[8 + size :]


def _weights_header(data: bytes, folder: Path) -> None:
    """Change the header of the weights: names, shapes, types and offsets."""
    good = _pristine(folder, "model/model.safetensors")
    _in_model("model.safetensors", _with_hostile_header(good, Choices(data)), folder)


def _tuned_config(data: bytes, folder: Path) -> None:
    _in_model("config.json", data, folder, "tuned", lambda model: _use_tuned(model, folder))


_TASK_KEYS = ("architectures", "id2label", "label2id", "problem_type")


def _tuned_values(data: bytes, folder: Path) -> None:
    """Change what a fine-tuned folder says of its task, and the weights of its head."""
    choices = Choices(data)
    model = choices.pick(["tuned", "word-tuned"])
    name = choices.pick(
        ["config.json", "config.json", "tokenizer_config.json", "model.safetensors"]
    )
    good = _pristine(folder, f"{model}/{name}")
    if name == "model.safetensors":
        changed = _with_hostile_header(good, choices, "classifier")
    elif name == "config.json":  # not lost among twenty settings
        config = json.loads(good)
        task = {key: config[key] for key in _TASK_KEYS if key in config}
        change = json.loads(hostile_json(task, choices))
        rest = {key: value for key, value in config.items() if key not in task}
        changed = json.dumps({**rest, **change} if isinstance(change, dict) else change).encode()
    else:
        changed = hostile_json(json.loads(good), choices).encode()
    _in_model(name, changed, folder, model, lambda path: _use_tuned(path, folder))


def _max_length(data: bytes, folder: Path) -> None:
    """Read how long a text may be from either file that may say it."""
    here = folder / "lengths"
    here.mkdir(exist_ok=True)
    names = ("tokenizer_config.json", "sentence_bert_config.json")
    (here / names[len(data) % 2]).write_bytes(data)
    try:
        length = read_max_length(here)
    finally:
        (here / names[len(data) % 2]).unlink()
    assert length is None or length >= 3


def _max_length_seeds(_: Path) -> list[bytes]:
    keys = ("model_max_length", "max_seq_length")
    trees = [{key: 512, "x": [1]} for key in keys] + [{key: int(1e30)} for key in keys]
    texts = [json.dumps(tree) for tree in trees]
    return [(t + " " * ((len(t) + ("max_seq" in t)) % 2)).encode() for t in texts]


@cache
def _loaded(folder: Path) -> Pretrained:
    return bertmill.load(folder)


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


def _texts(data: bytes) -> list[str]:
    """Read bytes as texts, which may be no Unicode."""
    if len(data) % 4:
        text = data.decode("utf-8", "surrogateescape")
    else:
        text = data.decode("utf-16-le", "surrogatepass")
    return text.split("\x1f")


def _embed(data: bytes, folder: Path) -> None:
    texts = _texts(data)
    pool, normalize = [*POOLING_MODES, None][len(data) % 3], [True, False, None][len(texts) % 3]
    vectors = _loaded(folder / "model").embed(texts, pool, normalize)
    assert vectors.shape == (len(texts), 8) and np.isfinite(vectors).all()


def _score(data: bytes, folder: Path) -> None:
    texts = _texts(data)
    scores = _loaded(folder / "model").score(texts, mask_rest_of_word=len(data) % 3 == 1)
    assert scores.shape == (len(texts),) and (scores <= 0).all()


def _similar_words(data: bytes, folder: Path) -> None:
    text, *more = _texts(data)
    word = more[0] if more else text
    found = _loaded(folder / "model").similar_words(text, word, more[1:], 1 + len(data) % 5)
    assert all(abs(similar.cosine) < 1.001 for similar in found)


def _fill_words(data: bytes, folder: Path) -> None:
    """Fill masks with words of several pieces, or with some that are given."""
    text, *targets = _texts(data)
    masks = _loaded(folder / "model").fill_mask(
        text, 1 + len(data) % 7, targets=targets or None, max_pieces=len(data) % 4 or None
    )
    assert all(0 <= f.probability < 1.001 for mask in masks for f in mask)


def _predict(data: bytes, folder: Path) -> None:
    """Predict for texts, pairs of them, and lists of words."""
    texts = _texts(data)
    tuned, by_words = _loaded(folder / "tuned"), _loaded(folder / "word-tuned")
    tuned._task_model.task = tuned.task._replace(is_pair=None)  # as another program's folder
    tuned.task = tuned._task_model.task
    assert len(tuned.predict(texts)) == len(tuned.predict(texts, texts[::-1])) == len(texts)
    lists = [text.split(" ") for text in texts]
    found = by_words.predict([*lists, [], ["", " ", "\0"]])
    assert [len(words) for words in found] == [*map(len, lists), 0, 3]  # type: ignore[arg-type]


_SOME_TEXTS = ["the river crosses\x1friver\x1fa \0\u202e river", "a\x1f\x1f[CLS] [MASK]!"]


def _text_of_use_seeds(*texts: str) -> Callable[[Path], list[bytes]]:
    return lambda _: [text.encode() + b" " * (not len(text.encode()) % 4) for text in texts]


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
    whole = _json(folder, "word-model/bertmill.json")
    whole["pooling"] = {"mode": "cls", "normalize": True, "max_length": 32}
    about = hostile_json(whole, Choices(data))
    (folder / "word-model" / "bertmill.json").write_text(about, "utf-8")
    _word_model.cache_clear()
    _judge(json.dumps(_PAIR).encode(), folder)
    Pretrained(_word_model(folder / "word-model"), torch.device("cpu")).embed("the river")


def _judge(lines: bytes, folder: Path) -> None:
    (folder / "pairs.jsonl").write_bytes(lines)
    score_frozen_pairs(
        _word_model(folder / "word-model"), str(folder / "pairs.jsonl"), torch.device("cpu")
    )


def _frozen_values(data: bytes, folder: Path) -> None:
    choices = Choices(data)
    lines = [hostile_json(_PAIR, choices), json.dumps({**_PAIR, "is_next": False})]
    _judge("\n".join(lines).encode(), folder)


def _frozen_seeds(_: Path) -> list[bytes]:
    return [json.dumps(_PAIR).encode() + b"\n"]


# --- minimal pairs -------------------------------------------------------------------------------


def _minimal_pairs(data: bytes, folder: Path) -> None:
    (folder / "minimal.jsonl").write_bytes(data)
    scores = evaluate_minimal_pairs(
        Pretrained(_word_model(folder / "good" / "model"), torch.device("cpu")),
        str(folder / "minimal.jsonl"),
        len(data) % 2 == 0,
    )
    assert sum(p.num_pairs for p in scores.paradigms.values()) == scores.num_pairs


def _minimal_values(data: bytes, folder: Path) -> None:
    _minimal_pairs(_lines(json.loads(hostile_json(_MINIMAL_PAIRS, Choices(data)))), folder)


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
    checkpoint = newest_checkpoint(run, said.append, World(torch.device("cpu")))
    if any("\n" in line for line in said):
        raise AssertionError(f"more than a line: {said}")
    if checkpoint is None:
        return
    loaded = _word_model(folder / "good" / "model")  # its weights are overwritten
    restore_weights(checkpoint, loaded.model)
    restore_moments(checkpoint.folder, loaded.model, make_optimizer(loaded.model, recipe.optimizer))


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


# A verb, its arguments, the files that are hostile. `*` is the folder, `@` the text, `%` the text
# as a name that leads to no other folder.
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
    (["embed", "*/model", "*/examples.jsonl", "--out", "*/out.npy"], [
        "examples.jsonl", "model/modules.json", "model/1_Pooling/config.json",
    ]),
    (["embed", "*/model", "*/corpus.txt", "--out", "*/out/o%.parquet", "--pool", "cls", "--json"],
     ["corpus.txt"]),
    (["embed", "*/model", "*/%", "--out", "*/out.npy", "--column", "@"], ["corpus.txt"]),
    (["similar-words", "*/model", "the river", "--word", "river", "--among-file",
      "*/examples.jsonl", "--top", "3"], ["examples.jsonl"]),
    (["similar-words", "*/model", "@", "--word", "@", "--among", "@", "--json"], ["corpus.txt"]),
    (["fill-mask", "*/model", "a [MASK]", "--target", "@", "--target", "river"], ["corpus.txt"]),
    (["fill-mask", "*/model", "a [MASK] @", "--max-pieces", "2"], ["corpus.txt"]),
    (
        ["finetune", "*/model", "--train", "*/examples.jsonl", "--dev", "*/examples.jsonl",
         "--out", "*/out", "--epochs", "1", "--max-length", "9"],
        ["examples.jsonl", "model/config.json"],
    ),
    (["finetune", "*/model", "--train", "*/examples.jsonl", "--dev", "*/examples.jsonl",
      "--out", "*/out", "--epochs", "1", "--lr", "@"], ["examples.jsonl"]),
    (["finetune", "*/model", "--train", "*/examples.jsonl", "--dev", "*/%",
      "--out", "*/out", "--epochs", "1", "--label-column", "@"], ["examples.jsonl"]),
    (["finetune", "*/model", "--train", "*/examples.jsonl", "--dev", "*/examples.jsonl",
      "--out", "*/out/%", "--epochs", "1", "--json"], ["examples.jsonl"]),
    (["predict", "*/tuned", "*/examples.jsonl", "--out", "*/out.csv"],
     ["tuned/config.json", "tuned/tokenizer_config.json", "examples.jsonl"]),
    (["predict", "*/word-tuned", "*/words.jsonl", "--out", "*/out.parquet", "--json"],
     ["word-tuned/config.json", "words.jsonl"]),
    (["predict", "*/tuned", "*/corpus.txt", "--out", "*/out/o%.jsonl"], ["corpus.txt"]),
    (["inspect", "*/tuned"], ["tuned/config.json"]),
    (["export", "*/tuned", "--out", "*/out", "--license", "mit"], ["tuned/config.json"]),
    (["export", "*/run", "--out", "*/out"],
     ["run/run.json", "run/metrics.jsonl", "run/recipe.toml", "run/model/bertmill.json"]),
    (["export", "*/model", "--out", "*/out", "--license", "@"], ["corpus.txt"]),
    (["export", "*/tuned", "--out", "*/out/%"], ["corpus.txt"]),
    (["export", "*/model", "--out", "*/out", "--to", "@"], ["corpus.txt"]),
    (["evaluate", "*/model", "--minimal-pairs", "*/minimal.jsonl"], ["minimal.jsonl"]),
    (["evaluate", "*/model", "--minimal-pairs", "*/%", "--json"], ["minimal.jsonl"]),
    (["evaluate", "*/model", "--tasks", "*/tasks", "--probe-only", "--seeds", "1"],
     ["tasks/river/train.jsonl", "tasks/river/dev.jsonl"]),
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
    inside = text.replace("..", "")
    args = [a.replace("*", str(here)).replace("@", text).replace("%", inside) for a in args]
    status, said = command_line(args)
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
    Target("rows", _rows, _rows_seeds),
    Target("parquet-values", _parquet_values, _nothing_changed, 0.5),
    Target("example-values", _example_values, _nothing_changed),
    Target("learn", _learn, _nothing_changed, 0.1),
    Target("recipe", _recipe, _first("recipe.toml"), 2),
    Target(
        "setting",
        _setting,
        lambda _: [b"train.steps=8\ntext.language=de", b"masking.whole_word=True\nname.x=1"],
    ),
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
    Target("tuned-config", _tuned_config, _first("tuned/config.json"), 0.3),
    Target("tuned-values", _tuned_values, _nothing_changed, 0.5),
    Target("max-length", _max_length, _max_length_seeds, 0.5),
    Target("encode", _encode, lambda _: [b"the river [CLS].", "a\0\u202e \u4e2d!".encode()], 2),
    Target("fill-mask", _fill_mask, lambda _: [b"the [MASK] of [MASK]", b"a[MASK]"], 2),
    Target("embed", _embed, _text_of_use_seeds(*_SOME_TEXTS), 0.5),
    Target("score", _score, _text_of_use_seeds(*_SOME_TEXTS), 0.5),
    Target("similar-words", _similar_words, _text_of_use_seeds(*_SOME_TEXTS), 0.5),
    Target(
        "fill-words", _fill_words, _text_of_use_seeds("a [MASK]", "[MASK]\x1friver\x1fa b"), 0.3
    ),
    Target("predict", _predict, _text_of_use_seeds(*_SOME_TEXTS), 0.5),
    Target("minimal-pairs", _minimal_pairs, lambda _: [_lines(_MINIMAL_PAIRS)], 0.3),
    Target("minimal-values", _minimal_values, _nothing_changed, 0.3),
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
