"""Rows of files: what was written by others comes back, or is refused in one line."""

import csv
import gzip
import io
import json
import lzma
import math
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bertmill.errors import CorpusError
from bertmill.text.rows import ROW_ENDINGS, read_rows, text_of

ROWS = [
    {"text": "The river, the valley.", "label": "0"},
    {"text": "Der zweite, in Zürich", "label": "1"},
    {"text": "第三 😀", "label": ""},
]
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}
SEPARATORS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
"""Where `str.splitlines` ends a line, and no file does."""


def as_csv(rows, **options) -> bytes:
    """A table as Python's csv module writes it, which follows RFC 4180."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, **options).writerows([list(rows[0]), *(row.values() for row in rows)])
    return buffer.getvalue().encode()


def as_tsv(rows, newline="\n") -> bytes:
    lines = [list(rows[0]), *(row.values() for row in rows)]
    return "".join("\t".join(line) + newline for line in lines).encode()


def as_jsonl(rows, **options) -> bytes:
    return "".join(json.dumps(row, **options) + "\n" for row in rows).encode()


def as_parquet(table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.Table.from_pylist(table), buffer)
    return buffer.getvalue()


CONTENTS = {
    ".txt": "".join(f"{row['text']}\n" for row in ROWS).encode(),
    ".jsonl": as_jsonl(ROWS),
    ".csv": as_csv(ROWS),
    ".tsv": as_tsv(ROWS),
    ".parquet": as_parquet(ROWS),
}


@pytest.fixture(scope="session")
def put(tmp_path_factory):
    """Write a file of this name into a folder of its own, or of an earlier file."""

    def put(name, data, folder=None):
        path = (folder or tmp_path_factory.mktemp("rows")) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return put


def read(source) -> list[dict]:
    return [values for _, values in read_rows(str(source))]


def refusal(source) -> str:
    with pytest.raises(CorpusError) as caught:
        read(source)
    assert all([caught.value.where, caught.value.what, caught.value.fix])
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- every kind ----------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", ROW_ENDINGS)
def test_every_kind(put, kind, compression):
    path = put(f"a{kind}{compression}", COMPRESS[compression](CONTENTS[kind]))
    wanted = [{"text": row["text"]} for row in ROWS] if kind == ".txt" else ROWS
    assert read(path) == wanted


@pytest.mark.parametrize("kind", ROW_ENDINGS)
def test_capitals_in_a_name(put, kind):
    assert len(read(put(f"A{kind}.GZ".upper(), gzip.compress(CONTENTS[kind])))) == 3


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv", ".tsv"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("end", [True, False])
def test_byte_order_mark_and_line_ends(put, kind, newline, bom, end):
    text = bom + CONTENTS[kind].decode().replace("\r\n", "\n").replace("\n", newline)
    plain = read(put(f"a{kind}", CONTENTS[kind]))
    assert len(plain) == 3
    assert read(put(f"a{kind}", text if end else text.removesuffix(newline))) == plain


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv", ".tsv"])
def test_a_byte_order_mark_further_on_is_text(put, kind):
    data = {
        ".txt": "\ufeffa\n\ufeffb\n",
        ".jsonl": '\ufeff{"text": "a"}\n{"text": "\ufeffb"}\n',
    }.get(kind, "\ufefftext\na\n\ufeffb\n")
    assert read(put(f"a{kind}", data)) == [{"text": "a"}, {"text": "\ufeffb"}]


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv", ".tsv"])
def test_only_a_line_feed_ends_a_line(put, kind):
    values = [*(f"a{mark}b" for mark in SEPARATORS), *SEPARATORS, f"{SEPARATORS}{SEPARATORS}"]
    rows = [{"text": value, "label": value} for value in values]
    data = {
        ".txt": "".join(f"{value}\n" for value in values).encode(),
        ".jsonl": as_jsonl(rows, ensure_ascii=False),
        ".csv": as_csv(rows),
        ".tsv": as_tsv(rows),
    }[kind]
    assert [row["text"] for row in read(put(f"a{kind}", data))] == values


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (".txt", ""),
        (".jsonl", "\n \n\r\n"),
        (".csv", ""),
        (".csv", "text,label\r\n"),
        (".tsv", ""),
        (".tsv", "text\tlabel\n\n"),
        (".parquet", as_parquet(pa.table({"text": pa.array([], "string")}))),
        (".parquet", as_parquet(pa.table({}))),
    ],
)
def test_no_rows(put, kind, data):
    assert read(put(f"a{kind}", data)) == []


def test_an_empty_line_of_text_is_a_row(put):
    assert read(put("a.txt", "a\n\n b \n")) == [{"text": "a"}, {"text": ""}, {"text": " b "}]


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".tsv"])
def test_an_empty_line_of_a_table_is_none(put, kind):
    lines = CONTENTS[kind].decode().splitlines()
    assert read(put(f"a{kind}", "\n\n".join([*lines, ""]))) == read(put(f"b{kind}", CONTENTS[kind]))


@pytest.mark.parametrize(("kind", "mark"), [(".csv", ","), (".tsv", "\t")])
def test_empty_lines_ahead_of_the_names(put, kind, mark):
    path = put(f"a{kind}", f"\n\ntext{mark}label\na{mark}1\n")
    assert read(path) == [{"text": "a", "label": "1"}]


def test_a_blank_row_of_one_column_is_an_empty_text(put):
    rows = [{"text": "a"}, {"text": ""}, {"text": "b"}, {"text": ""}]
    assert '""' in as_csv(rows).decode()
    assert read(put("a.csv", as_csv(rows))) == read(put("a.tsv", as_tsv(rows))) == rows


def test_rows_are_streamed(put):
    for kind, end in [(".jsonl", b"{"), (".csv", b"a,b,c\n"), (".tsv", b"a\n"), (".txt", b"\xff")]:
        rows = read_rows(str(put(f"a{kind}", CONTENTS[kind] + end)))
        assert [next(rows)[1]["text"] for _ in range(3)] == [row["text"] for row in ROWS]
        with pytest.raises(CorpusError):
            next(rows)


# --- csv and tsv ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ('"aaa","b \r\nbb","ccc"\r\n', ["aaa", "b \r\nbb", "ccc"]),
        ('"aaa","b ""b"" b","ccc"', ["aaa", 'b "b" b', "ccc"]),
        (" aaa , b b,\r\n", [" aaa ", " b b", ""]),
        ('"","""",","\r\n', ["", '"', ","]),
        ('"\n\n","\t",\'x\'\r\n', ["\n\n", "\t", "'x'"]),
        ("a,b\\,c\r\n", ["a", "b\\", "c"]),
    ],
)
def test_csv_as_in_rfc_4180(put, data, wanted):
    (row,) = read(put("a.csv", f"x,y,z\r\n{data}"))
    assert list(row.values()) == wanted


NASTY = [
    "",
    " ",
    '"',
    '""',
    ",",
    "\n",
    "\r\n",
    "\r",
    "a\r",
    "a\nb",
    "a\r\nb\r\n",
    ' "a" ',
    "\t",
    "#",
]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_csv_of_the_csv_module(put, quoting):
    rows = [
        {'"id",': str(i), "a\nb": one, "": two}
        for i, (one, two) in enumerate(zip(NASTY, NASTY[::-1], strict=True))
    ]
    assert read(put("a.csv", as_csv(rows, quoting=quoting))) == rows


characters = st.characters(exclude_categories=["Cs"])
values = st.lists(st.sampled_from([*',"\n\r\t a\x85\u2028é', "\r\n"]) | characters).map("".join)


@given(st.data(), st.integers(1, 3))
def test_csv_round_trip(put, data, num_columns):
    line = st.lists(values, min_size=num_columns, max_size=num_columns)
    names = data.draw(line.filter(lambda names: len(set(names)) == len(names) and names != [""]))
    rows = [dict(zip(names, row, strict=True)) for row in data.draw(st.lists(line, min_size=1))]
    quoting = data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    path = put("a.csv", b"\xef\xbb\xbf" + as_csv(rows, quoting=quoting))
    with path.open(encoding="utf-8-sig", newline="") as file:
        assert list(csv.DictReader(file)) == rows  # so that the oracle itself is no question
    assert read(path) == rows


@given(st.lists(st.tuples(values, values), min_size=1))
def test_tsv_round_trip(put, pairs):
    def plain(text):
        return text.translate(dict.fromkeys(map(ord, "\t\n\r"), "_"))

    rows = [{"text": plain(one), '"label"': plain(other)} for one, other in pairs]
    assert read(put("a.tsv", as_tsv(rows))) == rows


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(values, inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(st.dictionaries(values, json_values, max_size=3)), st.booleans())
@example([{}], True)
def test_jsonl_round_trip(put, rows, ensure_ascii):
    assert read(put("a.jsonl", as_jsonl(rows, ensure_ascii=ensure_ascii))) == rows


def test_csv_of_pandas(put):
    pandas = pytest.importorskip("pandas")
    texts = [text for text in NASTY if text not in ("\r", "a\r")]  # it leaves these unquoted
    frame = pandas.DataFrame({"text": texts, "label": [str(i) for i in range(len(texts))]})
    path = put("a.csv", b"")
    frame.to_csv(path, index=False)
    assert read(path) == frame.to_dict("records")
    theirs = pandas.read_csv(path, dtype=str, keep_default_na=False)
    assert read(path) == theirs.to_dict("records")


def test_tsv_is_never_quoted(put):
    pandas = pytest.importorskip("pandas")
    texts = ['"', '"a', 'a"b', '""', '"a" b', "a,b", "'", "a\\", " a "]
    path = put("a.tsv", "")
    frame = pandas.DataFrame({"text": texts, "label": texts[::-1]})
    path.write_text("".join(f"{a}\t{b}\n" for a, b in [frame.columns, *frame.values]), "utf-8")
    assert read(path) == frame.to_dict("records")
    theirs = pandas.read_csv(path, sep="\t", quoting=csv.QUOTE_NONE, dtype=str)
    assert read(path) == theirs.to_dict("records")


def test_a_long_value_of_csv(put):
    rows = [{"text": "the river " * 50_000, "label": "a"}]
    assert read(put("a.csv", as_csv(rows))) == rows
    assert read(put("a.tsv", as_tsv(rows))) == rows


@pytest.mark.parametrize(
    "data",
    [
        'text\n"a\nb\nc\n',  # would be one value, "a\nb\nc\n"
        'text,label\na,"b\n',
        'text,label\n"a"b,c\n',  # would be "ab"
        "text,label\ra,b\rc,d\r",
    ],
)
def test_damaged_csv(put, data):
    assert "is not CSV" in refusal(put("a.csv", data))


@pytest.mark.parametrize("rest", ["the river;a\n", '"the river, x";a\n', ""])
def test_values_separated_by_semicolons(put, rest):
    line = refusal(put("a.csv", f"text;label\n{rest}"))
    assert (
        "has the one column 'text;label', with semicolons in its name; separate the values with"
        in line
    )
    assert read(put("b.csv", "text;x,label\na,b\n")) == [{"text;x": "a", "label": "b"}]


# --- parquet -------------------------------------------------------------------------------------


def test_parquet_keeps_its_types(put):
    table = pa.table(
        {
            "text": ["a", None, ""],
            "words": [["a", None], [], None],
            "label": pa.array([3, None, -1], "int8"),
            "share": [0.5, math.inf, None],
            "good": [True, False, None],
            "inner": [{"a": [1]}, None, {"a": None}],
            "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
            "large": pa.array(["a", "b", None], "large_string"),
        }
    )
    assert read(put("a.parquet", as_parquet(table))) == table.to_pylist()


def test_many_rows_of_parquet(put):
    """More than are read at once, in several row groups."""
    rows = [{"text": f"text {i}", "label": i} for i in range(2500)]
    path = put("a.parquet", b"")
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    found = list(read_rows(str(path)))
    assert [values for _, values in found] == rows
    assert [where for where, _ in found] == [f"{path}, row {i}" for i in range(1, 2501)]


def test_parquet_that_is_not_utf_8(put):
    raw = pa.array([b"good", b"\xff\xfe"], pa.binary())
    texts = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    path = put("a.parquet", as_parquet(pa.table({"text": texts})))
    message = refusal(path)
    assert message.startswith(f"{path}, row 2: holds a value that cannot be read ('utf-8' codec")
    assert message.endswith("; write it again")


@pytest.mark.parametrize(
    "table",
    [
        pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]),
        pa.table({"text": ["a"], "time": pa.array([2**60], pa.timestamp("us"))}),
        pa.table({"text": ["a"], "day": pa.array([2**30], pa.date32())}),
    ],
    ids=["a name twice", "a time that Python lacks", "a day that Python lacks"],
)
def test_parquet_that_makes_no_rows(put, table):
    path = put("a.parquet", as_parquet(table))
    assert str(path) in refusal(path)


# --- standard input ------------------------------------------------------------------------------


def test_standard_input_of_a_process():
    program = "from bertmill.text.rows import read_rows; print(ascii(list(read_rows('-'))))"
    made = subprocess.run(
        [sys.executable, "-c", program], input="é\r\n\nb".encode(), capture_output=True, check=True
    )
    assert made.stdout.decode().strip() == ascii(
        [(f"standard input, line {i}", {"text": t}) for i, t in enumerate(["é", "", "b"], 1)]
    )


def test_standard_input_stays_open(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")))
    assert read("-") == [{"text": "a"}, {"text": "b"}]
    assert read("-") == []


def test_standard_input_that_is_not_utf_8(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\n\xe9\n")))
    assert "standard input: is not UTF-8 at byte 2 (0xe9)" in refusal("-")


def test_closed_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)  # as Python sets it after <&-
    assert "standard input" in refusal("-")


# --- folders and globs ---------------------------------------------------------------------------


def test_folder_and_glob_are_read_in_the_order_of_names(put):
    first = put("b/z.csv", "text\n3\n")
    folder = first.parents[1]
    for name, data in [
        ("a.txt", "1\n"),
        ("a.txt.gz", gzip.compress(b"2\n")),
        ("c.tokens", "none"),
        ("d.json", "none"),
        ("e.tsv", "text\n4\n"),
    ]:
        put(name, data, folder)
    found = list(read_rows(str(folder)))
    assert [values["text"] for _, values in found] == ["1", "2", "3", "4"]
    assert [where for where, _ in found] == [
        f"{folder}/a.txt, line 1",
        f"{folder}/a.txt.gz, line 1",
        f"{folder}/b/z.csv, row 2",
        f"{folder}/e.tsv, row 2",
    ]
    assert [values["text"] for _, values in read_rows(f"{folder}/*.t[xs][tv]")] == ["1", "4"]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("absent.csv", "does not exist"),
        ("*.csv", "matches no file"),
        ("a.tokens", "unknown kind; use a file whose name ends in .txt, .jsonl, .csv, .tsv"),
        ("", "is a folder without text; put files into it that end in .txt, .jsonl, .csv"),
    ],
)
def test_no_such_source(put, name, what):
    folder = put("a.tokens", "text").parent
    assert what in refusal(folder / name)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "data", "where", "what"),
    [
        (".jsonl", '{"a": 1}\n\n{"a"', "line 3", "is not JSON"),
        (".jsonl", "[" * 200_000, "line 1", "is not JSON"),
        (".jsonl", '{"a": 1' + "0" * 5000 + "}", "line 1", "is not JSON"),
        (".jsonl", '{"a": 1}\n["a"]', "line 2", "is not a JSON object"),
        (".csv", "a,b\n1,2\n1,2,3\n", "row 3", "has 3 values, not 2"),
        (".csv", 'a,b\n"1\n1",2\n1\n', "row 3", "has 1 values, not 2"),
        (".tsv", "a\tb\n1\t2\n1,2\n", "row 3", "has 1 values, not 2"),
        (".tsv", "a\n1\t2\n", "row 2", "has 2 values, not 1"),
    ],
)
def test_a_row_that_does_not_fit(put, kind, data, where, what):
    path = put(f"a{kind}", data)
    assert refusal(path).startswith(f"{path}, {where}: {what}")


@pytest.mark.parametrize(("kind", "data"), [(".csv", 'a,b,"a"\n'), (".tsv", "a\tb\ta\n1\t2\t3\n")])
def test_a_name_twice(put, kind, data):
    path = put(f"a{kind}", data)
    assert refusal(path) == f"{path}: names a column twice; rename one"


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv", ".tsv"])
def test_what_is_not_utf_8(put, kind):
    path = put(f"a{kind}", CONTENTS[kind] + b"ab\xe9\n")
    assert f"{path}: is not UTF-8 at byte {len(CONTENTS[kind]) + 2} (0xe9)" in refusal(path)


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", ROW_ENDINGS)
def test_damaged_files(put, kind, compression):
    whole = COMPRESS[compression](CONTENTS[kind] * 50 if kind == ".txt" else CONTENTS[kind])
    for data in (b"", whole[:-9], whole[: len(whole) // 2], b"no such thing"):
        path = put(f"a{kind}{compression}", data)
        assert refusal(path).startswith(f"{path}: cannot be read to its end")


def test_damaged_parquet(put):
    whole = CONTENTS[".parquet"]
    for data in (b"", b"PAR1", whole[:-1], whole[: len(whole) // 2], whole[::-1]):
        path = put("a.parquet", data)
        assert refusal(path).startswith(f"{path}: cannot be read to its end")


# --- a row's text --------------------------------------------------------------------------------


def test_text_of_a_row():
    assert text_of(("a.csv, row 2", {"text": "Zürich", "label": "1"}), "text") == "Zürich"
    assert text_of(("a.csv, row 2", {"text": ""}), "text") == ""


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"label": 1, "b": 2}, "has no column 'text' (has label, b); name another column"),
        ({str(i): i for i in range(20)}, "has no column 'text' (has 0, 1, 2, 3, 4, 5, 6, 7); "),
        ({"text": None}, "column 'text' is empty, not text"),
        ({"text": 3}, "column 'text' is int, not text"),
        ({"text": ["a"]}, "column 'text' is list, not text"),
        ({"text": b"a"}, "column 'text' is bytes, not text"),
        ({"text": "a\ud800"}, "holds half a character (a lone surrogate, U+D800)"),
    ],
)
def test_no_text_in_a_row(values, what):
    with pytest.raises(CorpusError) as caught:
        text_of(("a.jsonl, line 7", values), "text")
    assert str(caught.value).startswith(f"a.jsonl, line 7: {what}")
