"""Fixtures that several tests share: small text, a small store, a small finished run."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run; a busy machine is no failure.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

SUBJECTS = ["the river", "a farmer", "the old bridge", "my sister", "the market", "a grey crane"]
VERBS = ["crosses", "remembers", "follows", "watches", "feeds"]
OBJECTS = ["the valley", "two horses", "a long road", "the winter rain", "its own shadow"]


def make_documents(count: int, sentences: int = 6) -> list[str]:
    """Documents of plain English, each sentence different, no file made by hand."""
    texts = []
    for d in range(count):
        parts = []
        for s in range(sentences):
            n = d * 31 + s * 7
            words = f"{SUBJECTS[n % 6]} {VERBS[(n // 6) % 5]} {OBJECTS[(n // 3) % 5]}"
            parts.append(f"{words.capitalize()} in year {n % 97}.")
        texts.append(" ".join(parts))
    return texts


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Keep the tests out of the user's cache."""
    os.environ["BERTMILL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(make_documents(60)), "utf-8")
    return path


SMALL = [
    "tokenizer.vocab_size=200",
    "text.held_out_fraction=0.2",
    "pairs.max_length=32",
    "model.hidden_size=16",
    "model.num_attention_heads=2",
    "model.intermediate_size=32",
    "model.hidden_dropout_prob=0.1",
    "model.attention_probs_dropout_prob=0.1",
    "train.batch_size=8",
    "train.log_every_steps=2",
    "train.validate_every_steps=4",
    "train.checkpoint_every_steps=4",
    "schedule.warmup_steps=2",
]


@pytest.fixture(scope="session")
def small_run(corpus_file: Path, tmp_path_factory: pytest.TempPathFactory):
    """A finished run of a small published-BERT network."""
    import bertmill

    out = tmp_path_factory.mktemp("runs") / "small"
    return bertmill.pretrain(str(corpus_file), "tiny", out=out, steps=8, settings=SMALL)


@pytest.fixture(scope="session")
def small_store(small_run):
    from bertmill.data.store import Store
    from bertmill.train.run_folder import RunFolder

    return Store(RunFolder(small_run.folder).read()[1]["store"])


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the data folder {SHARED_DATA}, which is absent")
    return SHARED_DATA


@pytest.fixture
def bertmill(monkeypatch, capsys, tmp_path):
    """Run the command line in this process and folder: status, standard output and error."""
    from bertmill.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["bertmill", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code, *capsys.readouterr()

    return run
