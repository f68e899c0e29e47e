"""The cache of prepared stores: listed, pruned by age and by size, but for those in use."""

import json
import os
import time
from importlib import metadata

import pytest

import bertmill as package
from bertmill.config import TextSection, TokenizerSection
from bertmill.data.prepare import open_or_prepare
from bertmill.errors import InputError
from bertmill.storage import folder_that_appears_whole

WORDS = TokenizerSection(kind="word", min_frequency=1, vocab_size=100)


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Put a store into an empty cache; it is free, and was used that long ago."""
    monkeypatch.setenv("BERTMILL_CACHE", str(tmp_path / "cache"))

    def prepare(name, days=0, words=20):
        corpus = tmp_path / f"{name}.txt"
        corpus.write_text("\n\n".join(f"Word{n} comes. It goes." for n in range(words)), "utf-8")
        folder = open_or_prepare([str(corpus)], TextSection(), WORDS).folder
        used = time.time() - days * 86400
        os.utime(folder, (used, used))
        return folder

    return prepare


def names(stores):
    return [store.corpus[0].rpartition("/")[2] for store in stores]


def test_what_is_in_the_cache(prepare):
    older, newer = prepare("older", 3), prepare("newer", 1)
    found = package.cache()
    assert names(found.stores) == ["newer.txt", "older.txt"] and found.removed == ()
    assert [store.folder for store in found.stores] == [newer, older]
    assert found.folder == newer.parents[1]
    sizes = [sum(f.stat().st_size for f in s.rglob("*") if f.is_file()) for s in (newer, older)]
    assert [store.num_bytes for store in found.stores] == sizes and found.num_bytes == sum(sizes)
    assert found.stores[1].seconds_unused == pytest.approx(3 * 86400, abs=60)
    assert found.stores[0].num_tokens > 0 and not found.stores[0].in_use


def test_no_cache_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("BERTMILL_CACHE", str(tmp_path / "cache"))
    found = package.cache(older_than="1s", max_size="0")
    assert (found.stores, found.num_bytes) == ((), 0) and list(tmp_path.iterdir()) == []


def test_by_age(prepare):
    older, newer = prepare("older", 3), prepare("newer", 1)
    assert names(package.cache(older_than="2d").removed) == ["older.txt"]
    assert newer.exists() and not older.exists()


def test_by_size_those_that_were_used_last_stay(prepare):
    stores = [prepare(name, days) for name, days in (("one", 3), ("two", 1), ("three", 2))]
    size = package.cache().num_bytes
    found = package.cache(max_size=f"{(size - 1) / 1000:.3f}kB")
    assert names(found.stores) == ["two.txt", "three.txt"] and names(found.removed) == ["one.txt"]
    assert [store.exists() for store in stores] == [False, True, True]
    assert found.num_bytes < size


def test_opening_a_store_is_using_it(prepare):
    older = prepare("older", 3)
    prepare("newer", 1)
    text = TextSection()
    open_or_prepare([str(older.parents[2] / "older.txt")], text, WORDS)
    assert names(package.cache().stores) == ["older.txt", "newer.txt"]


def test_a_store_in_use_stays(prepare):
    folder = prepare("one", 3)
    store = open_or_prepare([str(folder.parents[2] / "one.txt")], TextSection(), WORDS)
    found = package.cache(max_size="0")
    assert found.removed == () and found.stores[0].in_use and folder.exists()
    del store
    assert names(package.cache(max_size="0").removed) == ["one.txt"] and not folder.exists()


def test_unfinished_stores_go_unless_they_are_being_made(prepare):
    stores = prepare("one").parent
    (stores / ".killed.part").mkdir()
    (stores / ".killed.part" / "killed.lock").touch()
    (stores / ".of-an-earlier-version.abcdefgh").mkdir()
    with folder_that_appears_whole(stores / "other", InputError) as folder:
        package.cache()
        assert folder.exists()
        assert sorted(path.name for path in stores.glob(".*")) == [".other.part"]


def test_a_damaged_store_is_listed_and_goes(prepare):
    folder = prepare("one")
    (folder / "manifest.json").unlink()
    (store,) = package.cache().stores
    assert (store.corpus, store.num_tokens) == ((), 0) and store.num_bytes > 0
    assert package.cache(max_size="0").num_bytes == 0 and not folder.exists()


def test_another_version_of_the_libraries_makes_another_store(prepare, monkeypatch):
    first, version = prepare("one"), metadata.version

    def again():
        corpus = str(first.parents[2] / "one.txt")
        return open_or_prepare([corpus], TextSection(), WORDS).folder

    for name in ("sentencex", "tokenizers"):
        with monkeypatch.context() as patch:
            patch.setattr(metadata, "version", lambda n, name=name: version(n) + "1" * (n == name))
            assert again() != first
    assert again() == first


@pytest.mark.parametrize("size", ["much", "", "-1GB", "10XB", "1e9"])
def test_what_is_not_a_size(size, prepare):
    folder = prepare("one")
    with pytest.raises(InputError, match=r"`max_size`: .* is not a size; write 500MB or 10GB"):
        package.cache(max_size=size)
    with pytest.raises(InputError, match=r"`older_than`: .* is not a length of time"):
        package.cache(older_than="soon")
    assert folder.exists()


def test_the_command(prepare, bertmill):
    prepare("older", 3), prepare("newer", 1)
    status, out, err = bertmill("cache", "--older-than", "2d")
    kept, removed, total = out.splitlines()
    assert (status, err) == (0, "") and "unused for 24 hours" in kept and "newer.txt" in kept
    assert removed.startswith("removed") and "unused for 3 days" in removed
    assert ": 1 store, 0." in total
    found = json.loads(bertmill("cache", "--max-size", "0", "--json")[1])
    assert found.keys() == {"folder", "num_bytes", "stores", "removed"}
    assert found["removed"][0].keys() == {
        *("folder", "corpus", "num_tokens", "num_bytes", "seconds_unused", "in_use")
    }
