"""Sentence vectors to a file: all of them, in order, whole or absent."""

import io
import json
import os
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

import bertmill as package
from bertmill.errors import CorpusError, InputError
from bertmill.use import vectors
from bertmill.use.vectors import open_vectors

TEXTS = [f"{'river ' * (n * 7 % 11)}in Jahr {n}, größer" for n in range(20)]
TEXTS[3], TEXTS[4] = "", "long " * 60


@pytest.fixture
def model(small_run):
    return package.load(small_run.folder)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in.txt").write_text("".join(f"{text}\n" for text in TEXTS), "utf-8")
    return tmp_path / "in.txt"


@pytest.fixture(params=[1, 7, 20, 4096])
def windows(request, monkeypatch):
    """How many texts are read, computed and written at once; the last window is often a part."""
    monkeypatch.setattr(vectors, "_TEXTS_AT_ONCE", request.param)
    return request.param


def test_npy_is_what_embed_computes(windows, model, source, small_run, tmp_path):
    out = tmp_path / "deep" / "out.npy"
    done = package.embed(small_run.folder, source, out)
    found = np.load(out, allow_pickle=False)
    assert (found.dtype, found.shape, found.flags.c_contiguous) == (np.float32, (20, 16), True)
    np.testing.assert_allclose(found, model.embed(TEXTS), rtol=0, atol=1e-6)
    if windows >= 20:
        np.testing.assert_array_equal(found, model.embed(TEXTS))
    assert len(np.unique(found.round(4), axis=0)) == 20
    assert (done.out, done.num_texts, done.hidden_size, done.num_cut) == (out, 20, 16, 1)
    assert done.texts_per_second == pytest.approx(20 / done.seconds)
    # Nothing but the header and the rows, which can be mapped into memory.
    assert out.stat().st_size % 64 == 20 * 16 * 4 % 64
    np.testing.assert_array_equal(np.load(out, mmap_mode="r"), found)
    assert [path.name for path in out.parent.iterdir()] == ["out.npy"]


def test_parquet_has_the_texts_and_their_vectors(windows, model, source, small_run, tmp_path):
    package.embed(small_run.folder, source, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["text", "vector"]
    assert table["text"].to_pylist() == TEXTS
    assert str(table.schema.field("vector").type.value_type) == "float"
    found = np.array(table["vector"].to_pylist(), np.float32)
    np.testing.assert_allclose(found, model.embed(TEXTS), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1, 9, 10, 12_345])
def test_the_header_grows_to_any_number_of_rows(rows, tmp_path):
    """As np.save would have written it, whatever the number of windows."""
    vectors = np.random.default_rng(1).normal(size=(rows, 3)).astype(np.float32)
    with open_vectors(tmp_path / "out.npy", 3) as write:
        for start in range(0, rows, 1000):
            part = vectors[start : start + 1000]
            write([""] * len(part), part)
    np.save(tmp_path / "theirs.npy", vectors)
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


def test_other_types_are_written_as_float32(tmp_path):
    with open_vectors(tmp_path / "out.npy", 2) as write:
        write(["a"], np.array([[1.5, 2.5]], ">f8"))
        write(["b"], np.array([[3.5, 0.5], [0, 1]], np.float32)[:1])
    assert np.load(tmp_path / "out.npy").tolist() == [[1.5, 2.5], [3.5, 0.5]]


@pytest.mark.parametrize(("pool", "normalize"), [("cls", None), ("mean", True), (None, False)])
def test_pooling(pool, normalize, model, source, small_run, tmp_path):
    package.embed(small_run.folder, source, tmp_path / "o.npy", pool=pool, normalize=normalize)
    found = np.load(tmp_path / "o.npy")
    np.testing.assert_array_equal(found, model.embed(TEXTS, pool, normalize))


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_columns(ending, model, small_run, tmp_path):
    lines = ['"body","text"', *(f'"{text}",no' for text in TEXTS)]
    if ending == ".jsonl":
        lines = [json.dumps({"body": text, "text": "no"}) for text in TEXTS]
    (tmp_path / f"in{ending}").write_text("\n".join(lines), "utf-8")
    package.embed(small_run.folder, tmp_path / f"in{ending}", tmp_path / "o.npy", column="body")
    np.testing.assert_array_equal(np.load(tmp_path / "o.npy"), model.embed(TEXTS))


def test_standard_input(monkeypatch, model, small_run, tmp_path):
    data = io.BytesIO("".join(f"{text}\n" for text in TEXTS).encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
    package.embed(small_run.folder, "-", tmp_path / "o.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "o.npy"), model.embed(TEXTS))


def test_others_may_read_it(source, small_run, tmp_path):
    umask = os.umask(0)
    os.umask(umask)
    for ending in (".npy", ".parquet"):
        out = package.embed(small_run.folder, source, tmp_path / f"o{ending}").out
        assert out.stat().st_mode & 0o044 == 0o044 & ~umask


# --- nothing is left of what failed --------------------------------------------------------------


@pytest.mark.parametrize("ending", [".npy", ".parquet"])
@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_end_in_the_middle_leaves_nothing(fault, ending, source, monkeypatch, small_run):
    monkeypatch.setattr(vectors, "_TEXTS_AT_ONCE", 7)
    calls = []
    embed = package.Pretrained.embed_counted

    def fail_later(*args):
        calls.append(1)
        if len(calls) == 3:
            raise fault
        return embed(*args)

    monkeypatch.setattr(package.Pretrained, "embed_counted", fail_later)
    out = source.parent / f"out{ending}"
    wanted = InputError if isinstance(fault, OSError) else KeyboardInterrupt
    with pytest.raises(wanted) as caught:
        package.embed(small_run.folder, source, out)
    if wanted is InputError:
        assert str(caught.value).startswith(f"{out}: cannot be written (No space left on device); ")
    assert list(source.parent.iterdir()) == [source]


@pytest.mark.parametrize("ending", [".npy", ".parquet"])
def test_a_row_that_is_damaged_leaves_nothing(ending, monkeypatch, small_run, tmp_path):
    monkeypatch.setattr(vectors, "_TEXTS_AT_ONCE", 2)
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n' * 5 + '{"text": 3}\n', "utf-8")
    with pytest.raises(CorpusError, match="line 6: column 'text' is int, not text; "):
        package.embed(small_run.folder, tmp_path / "in.jsonl", tmp_path / f"out{ending}")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


# --- what is refused -----------------------------------------------------------------------------


@pytest.fixture
def refuse(refused, small_run, source):
    def refuse(*parts, out="out.npy", file="in.txt", model=small_run.folder, more=(), fix="; "):
        refused(["embed", model, file, "--out", out, *more], *parts, fix)

    return refuse


@pytest.mark.parametrize("out", ["out", "out.NPY", "out.npz", "out.npy.gz", "out.csv"])
def test_an_unknown_ending(out, refuse):
    refuse(f"{out}: does not end in .npy or .parquet", out=out, fix="")


@pytest.mark.parametrize("ending", [".npy", ".parquet"])
def test_an_out_that_exists(ending, refuse, tmp_path):
    (tmp_path / f"out{ending}").write_text("mine", "utf-8")
    refuse(f"out{ending}: already exists", "another --out", out=f"out{ending}")
    assert (tmp_path / f"out{ending}").read_text("utf-8") == "mine"


@pytest.mark.parametrize("out", ["in.txt/out.npy", f"{'x' * 300}.npy", f"{'x' * 300}/out.npy"])
def test_an_out_that_no_file_can_have(out, refuse):
    refuse("cannot be written", out=out)


def test_no_texts(refuse, tmp_path):
    (tmp_path / "empty.txt").write_text("", "utf-8")
    refuse("empty.txt: holds no texts", file="empty.txt")
    refuse("gone.txt", file="gone.txt")
    refuse("FILE: has no name", file="")
    refuse("--out: has no name", out="")
    assert {path.name for path in tmp_path.iterdir()} == {"in.txt", "empty.txt"}


def test_columns_models_and_poolings_that_are_none(refuse, model, tmp_path):
    (tmp_path / "in.csv").write_text("a,b\n1,2\n", "utf-8")
    refuse("in.csv, row 2: has no column 'text' (has a, b)", file="in.csv")
    refuse("gone: does not exist", model="gone")
    refuse("'--pool': 'max' is not one of 'mean', 'cls'", more=["--pool", "max"])
    with pytest.raises(InputError, match="'max' is not known"):
        model.embed("a text", pool="max")
    assert {path.name for path in tmp_path.iterdir()} == {"in.txt", "in.csv"}


def test_a_device_that_is_none(refuse):
    refuse("device", more=["--device", "abacus"])
