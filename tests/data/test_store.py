import json
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bertmill.data.blocks as blocks_module
import bertmill.data.store as store_module
from bertmill.config import TokenizerSection
from bertmill.data.store import EncodedDocuments, Store, StoreWriter, TokenStore, is_store
from bertmill.errors import BertmillError, StoreError
from bertmill.text.tokenizer import Tokenizer, load_tokenizer
from bertmill.text.vocabulary import train_tokenizer

VOCAB = 64

Nested = list[list[list[int]]]
nested_documents = st.lists(
    st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6), min_size=1, max_size=4),
    max_size=12,
)


def tokenizer_of(size: int, folder: Path) -> Tokenizer:
    special = TokenizerSection().special_tokens
    (folder / "vocab.txt").write_text("\n".join([*special, *map(str, range(size - 5))]))
    return load_tokenizer(folder / "vocab.txt")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return tokenizer_of(VOCAB, tmp_path_factory.mktemp("vocabulary"))


def encoded(documents: Nested) -> EncodedDocuments:
    sentences = [sentence for document in documents for sentence in document]
    return EncodedDocuments(
        np.array([i for sentence in sentences for i in sentence], np.int64),
        np.array([len(sentence) for sentence in sentences], np.int64),
        np.array([len(document) for document in documents], np.int64),
    )


def write(
    folder: Path,
    tokenizer: Tokenizer,
    train: Nested,
    held_out: Nested = (),
    block_tokens: int = 2**22,
    shard_blocks: int = 64,
) -> Store:
    """Write document by document, so that every block boundary is possible."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "BLOCK_TOKENS", block_tokens)
        patch.setattr(store_module, "_SHARD_BLOCKS", shard_blocks)
        writer = StoreWriter(folder, tokenizer)
        for split, documents in (("train", train), ("held_out", held_out)):
            for document in documents:
                writer.add(split, encoded([document]))
        writer.close({"note": "kept"})
    return Store(folder)


def nested(split: TokenStore) -> Nested:
    documents = []
    for number in range(split.num_blocks):
        block = split.block(number)
        s, d = block.sentence_starts, block.document_starts
        sentences = [block.tokens[a:b].tolist() for a, b in pairwise(s)]
        documents += [sentences[a:b] for a, b in pairwise(d)]
    return documents


def flat(documents: Nested) -> list[int]:
    return [i for document in documents for sentence in document for i in sentence]


@given(nested_documents, nested_documents, st.integers(1, 30), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read(tmp_path_factory, tokenizer, train, held_out, block, shard):
    folder = tmp_path_factory.mktemp("store")
    store = write(folder, tokenizer, train, held_out, block, shard)
    for split, documents in ((store.train, train), (store.held_out, held_out)):
        assert nested(split) == documents
        assert split.num_documents == len(documents)
        assert split.num_sentences == sum(map(len, documents))
        assert split.num_tokens == len(flat(documents))
        assert split.block_documents.sum() == len(documents)
    counts = Counter(flat(train))
    assert store.token_counts.tolist() == [counts[i] for i in range(VOCAB)]
    shutil.rmtree(folder)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_gather_is_slicing_a_flat_array(spread_store, data):
    store, documents = spread_store
    wanted = np.array(flat(documents))
    edges = store.train.block_token_starts.tolist()
    ranges = []
    for _ in range(data.draw(st.integers(0, 8))):
        block = data.draw(st.integers(0, store.train.num_blocks - 1))
        start = data.draw(st.integers(edges[block], edges[block + 1] - 1))
        ranges.append((start, data.draw(st.integers(1, edges[block + 1] - start))))
    starts, lengths = np.array(ranges, np.int64).reshape(-1, 2).T
    expected = np.concatenate([wanted[:0], *(wanted[s : s + n] for s, n in ranges)])
    got = store.train.gather(starts, lengths)
    assert got.dtype == np.int64
    assert got.tolist() == expected.tolist()


@pytest.fixture(scope="module")
def spread_documents() -> Nested:
    draw = np.random.default_rng(4)
    return [
        [draw.integers(0, VOCAB, draw.integers(1, 9)).tolist() for _ in range(draw.integers(1, 5))]
        for _ in range(60)
    ]


@pytest.fixture(scope="module")
def spread_store(tokenizer, spread_documents, tmp_path_factory) -> tuple[Store, Nested]:
    folder = tmp_path_factory.mktemp("spread")
    store = write(folder, tokenizer, spread_documents, spread_documents[:5], 100, 3)
    store.check()
    return store, spread_documents


def test_blocks_and_shards_are_several(spread_store):
    store, _ = spread_store
    assert store.train.num_blocks > 6
    assert len(list(store.folder.glob("train-*.arrow"))) > 2
    assert len(list(store.folder.glob("held_out-*.arrow"))) == 1


def test_blocks_close_at_their_size(spread_store):
    store, documents = spread_store
    longest = max(len(flat([document])) for document in documents)
    sizes = np.diff(store.train.block_token_starts)
    assert (sizes[:-1] >= 100).all()
    assert (sizes < 100 + longest).all()


def test_any_arrow_tool_reads_a_shard(spread_store):
    store, documents = spread_store
    read = []
    for path in sorted(store.folder.glob("train-*.arrow")):
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        kind = table.schema.field("sentences").type
        assert (kind.value_type.value_type, table.num_columns) == (pa.uint16(), 1)
        read += table.column("sentences").to_pylist()
    assert read == documents


def test_block_is_a_view_of_the_file(spread_store):
    store, _ = spread_store
    before = pa.total_allocated_bytes()
    split = Store(store.folder).train
    block = split.block(1)
    for array in (block.tokens, block.sentence_starts, block.document_starts):
        assert not array.flags.owndata
        assert not array.flags.writeable
    assert pa.total_allocated_bytes() == before
    assert split.block(1) is block


@pytest.mark.parametrize(("size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_ids_are_as_wide_as_the_vocabulary_needs(tmp_path, size, dtype):
    documents = [[[size - 1, 0], [5]]]
    store = write(tmp_path / "store", tokenizer_of(size, tmp_path), documents)
    assert store.train.block(0).tokens.dtype == dtype
    assert nested(store.train) == documents
    assert store.token_counts[size - 1] == 1


def test_empty_splits_can_be_read(tmp_path, tokenizer):
    store = write(tmp_path, tokenizer, [])
    none = np.zeros(0, np.int64)
    assert (store.train.num_blocks, store.train.num_tokens) == (0, 0)
    assert store.train.gather(none, none).size == 0


def test_nothing_added_is_no_document(tmp_path, tokenizer):
    writer = StoreWriter(tmp_path, tokenizer)
    writer.add("train", encoded([]))
    writer.add("train", encoded([[[1]]]))
    writer.add("train", encoded([]))
    writer.close({})
    assert nested(Store(tmp_path).train) == [[[1]]]


def test_manifest_tells_what_it_was_given(spread_store):
    store, _ = spread_store
    assert store.manifest["note"] == "kept"
    assert store.manifest["vocab_size"] == VOCAB
    assert store.manifest["tokenizer_identity"] == store.tokenizer.identity


def test_equal_stores_have_equal_identities(tmp_path, spread_store, tokenizer):
    store, documents = spread_store
    again = write(tmp_path / "again", tokenizer, documents, documents[:5], 100, 3)
    moved = shutil.copytree(store.folder, tmp_path / "moved")
    assert again.identity == Store(moved).identity == store.identity


def test_identity_changes_with_ids_and_tokenizer(tmp_path, tokenizer):
    other = train_tokenizer([" ".join(map(str, range(VOCAB - 5)))] * 2, TokenizerSection())
    stores = [
        write(tmp_path / "a", tokenizer, [[[1, 2], [3]]]),
        write(tmp_path / "b", tokenizer, [[[1], [2, 3]]]),
        write(tmp_path / "c", tokenizer, [[[1, 2], [4]]]),
        write(tmp_path / "d", tokenizer, [[[1, 2], [3]]], [[[1]]]),
        write(tmp_path / "e", other, [[[1, 2], [3]]]),
    ]
    assert len({store.identity for store in stores}) == len(stores)


# --- damage --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, spread_store) -> Path:
    return shutil.copytree(spread_store[0].folder, tmp_path / "store")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def refusal(folder: Path) -> str:
    """The refusal, at the latest when all of the store is read."""
    with pytest.raises(StoreError) as caught:
        Store(folder).check()
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.fix
    return message


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize(
    "name", ["train-00000.arrow", "train-00002.arrow", "held_out-00000.arrow", "token-counts.npy"]
)
def test_damaged_file_is_named(folder, damage, name):
    damage(folder / name)
    assert str(folder / name) in refusal(folder)


def flip_token(folder: Path, shard: str, number: int) -> None:
    """Flip a bit of a block's first token."""
    ids = bytes(Store(folder).train.block(number).tokens)
    content = (folder / shard).read_bytes()
    assert content.count(ids) == 1
    at = content.index(ids)
    (folder / shard).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


def test_opening_reads_no_shard(folder):
    for damaged in [*folder.glob("*.arrow"), folder / "token-counts.npy"]:
        flip(damaged)
    store = Store(folder)
    assert store.train.num_tokens and store.identity and store.tokenizer
    with pytest.raises(StoreError, match=r"train-00000\.arrow: is damaged"):
        store.train.block(0)
    with pytest.raises(StoreError, match=r"token-counts\.npy: is damaged"):
        assert store.token_counts


def test_a_missing_or_cut_file_is_refused_when_the_store_is_opened(folder):
    cut(folder / "train-00001.arrow")
    with pytest.raises(StoreError, match="bytes instead of"):
        Store(folder)
    (folder / "train-00001.arrow").unlink()
    with pytest.raises(StoreError, match="is missing"):
        Store(folder)


def test_only_the_damaged_shard_is_refused(folder, spread_store):
    """A flipped bit anywhere in a shard refuses each of its blocks, and no other shard's."""
    flip_token(folder, "train-00000.arrow", 1)
    train = Store(folder).train
    for number in (0, 1, 0):
        with pytest.raises(StoreError, match=r"train-00000\.arrow: is damaged"):
            train.block(number)
    assert train.block(3).tokens[0] == spread_store[0].train.block(3).tokens[0]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda manifest: manifest.update(vocab_size=10), "is not in the vocabulary"),
        (lambda manifest: manifest["splits"]["train"]["shards"][0]["blocks"][0].__setitem__(0, 1),
         "its sizes are not the manifest's"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_whose_hashes_do(folder, change, what):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=rf"train-00000\.arrow: block 0 cannot be read .*{what}"):
        Store(folder).train.block(0)


def test_a_shard_is_hashed_once_when_its_first_block_is_used(folder, monkeypatch):
    hashed = []
    hash_file = blocks_module.file_sha256
    monkeypatch.setattr(
        blocks_module, "file_sha256", lambda path: hashed.append(path.name) or hash_file(path)
    )
    monkeypatch.setattr(blocks_module, "_MOST_OPEN_BLOCKS", 1)
    train = Store(folder).train
    assert hashed == []
    for number in (0, 1, 2, 3, 0, 3):  # three blocks a shard
        train.block(number)
    assert hashed == ["train-00000.arrow", "train-00001.arrow"]


def test_arrays_outlive_the_block_that_was_forgotten(folder, monkeypatch):
    monkeypatch.setattr(blocks_module, "_MOST_OPEN_BLOCKS", 2)
    train = Store(folder).train
    first = train.block(0)
    wanted = first.tokens.copy()
    open_files = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for number in range(train.num_blocks):
        train.block(number)
    if open_files:
        assert len(list(Path("/proc/self/fd").iterdir())) == open_files
    again = train.block(0)
    assert again is not first
    for tokens in (first.tokens, again.tokens):
        assert (tokens == wanted).all()


def test_a_file_that_was_written_to_later_is_hashed(folder):
    Store(folder).check_changed()
    flip(folder / "train-00002.arrow")
    with pytest.raises(StoreError, match=r"train-00002\.arrow: is damaged"):
        Store(folder).check_changed()


# --- counts kept beside the store ----------------------------------------------------------------


def count(store: Store, what: str = "tokens") -> tuple[list[int], int]:
    """Tokens of each block, and how many blocks had to be counted."""
    counted = []

    def tokens_of(number: int) -> int:
        counted.append(number)
        return len(store.train.block(number).tokens)

    return store.train.count_by_block(what, tokens_of).tolist(), len(counted)


def kept_counts(folder: Path) -> Path:
    [path] = folder.glob("examples-*.bin")
    return path


def test_counts_are_made_once(folder, spread_store):
    wanted = np.diff(spread_store[0].train.block_token_starts).tolist()
    assert count(Store(folder)) == (wanted, len(wanted))
    assert count(Store(folder)) == (wanted, 0)
    assert count(Store(folder), "other")[1] == len(wanted)
    Store(folder).check()
    assert Store(folder).identity == spread_store[0].identity


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink, lambda path: path.write_bytes(b"")])
def test_damaged_counts_are_made_again(folder, damage):
    wanted, _ = count(Store(folder))
    damage(kept_counts(folder))
    assert count(Store(folder)) == (wanted, len(wanted))
    assert count(Store(folder)) == (wanted, 0)


def test_counts_of_another_store_are_not_taken(folder, tmp_path, tokenizer, spread_documents):
    count(Store(folder))
    other = write(tmp_path / "other", tokenizer, spread_documents[::-1], block_tokens=100)
    wanted = np.diff(other.train.block_token_starts).tolist()
    count(other)
    shutil.copy(kept_counts(folder), kept_counts(other.folder))
    assert count(Store(other.folder)) == (wanted, len(wanted))


def test_counts_are_made_where_nothing_can_be_written(folder, monkeypatch, spread_store):
    wanted = np.diff(spread_store[0].train.block_token_starts).tolist()

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    before = sorted(folder.iterdir())
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert count(Store(folder)) == (wanted, len(wanted))
    assert sorted(folder.iterdir()) == before


def test_no_manifest(folder):
    (folder / "manifest.json").unlink()
    assert not is_store(folder)
    assert "manifest.json" in refusal(folder)


def test_no_folder(tmp_path):
    assert str(tmp_path / "none") in refusal(tmp_path / "none")


def test_file_instead_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    assert str(tmp_path / "file") in refusal(tmp_path / "file")


@pytest.mark.parametrize("version", [0, 1, 3, "2", None])
def test_other_format(folder, version):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": version}))
    message = refusal(folder)
    assert "manifest.json" in message
    assert f"format {version!r}" in message


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff", b'{"format": 1}']
)
def test_broken_manifest(folder, data):
    (folder / "manifest.json").write_bytes(data)
    assert "manifest.json" in refusal(folder)


@pytest.mark.parametrize(
    "keys",
    [
        ["format"],
        ["tokenizer_identity"],
        ["token_counts"],
        ["token_counts", "sha256"],
        ["splits"],
        ["splits", "train"],
        ["splits", "held_out"],
        ["splits", "train", "shards"],
        ["splits", "train", "shards", 0, "file"],
        ["splits", "train", "shards", 0, "blocks"],
    ],
    ids=lambda keys: ".".join(map(str, keys)),
)
def test_manifest_without_a_key(folder, keys):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    inner = manifest
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    path.write_text(json.dumps(manifest))
    assert "manifest.json" in refusal(folder)


@pytest.mark.parametrize("value", ["x", [[1, 2]], None])
def test_manifest_whose_blocks_are_nonsense(folder, value):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["splits"]["train"]["shards"][0]["blocks"] = value
    path.write_text(json.dumps(manifest))
    assert "manifest.json" in refusal(folder)


def test_swapped_tokenizer(folder):
    other = train_tokenizer(["another vocabulary"] * 3, TokenizerSection())
    shutil.rmtree(folder / "tokenizer")
    other.save(folder / "tokenizer")
    assert str(folder / "tokenizer") in refusal(folder)


def test_missing_tokenizer_is_named(folder):
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(BertmillError, match="tokenizer"):
        assert Store(folder).tokenizer
