"""Fixtures that several tests share: small text, a small store, a small finished run."""

import os
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run; a busy machine is no failure.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-error",
        action="store_true",
        help="fail where the tests together do not raise every error of the package",
    )


RAISED: set[tuple[str, int, str]] = set()
"""File, line and fault of every error that the package made in these tests."""


def pytest_configure() -> None:
    from bertmill.errors import BertmillError

    make = BertmillError.__init__

    def make_and_note(self, where, what, fix=""):
        caller = sys._getframe(1)
        RAISED.add((caller.f_code.co_filename, caller.f_lineno, what))
        make(self, where, what, fix)

    BertmillError.__init__ = make_and_note


def never_raised() -> list:
    return [site for site in load_errors_page().find_sites() if not was_raised(site)]


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if config.getoption("--every-error"):
        for site in never_raised():
            terminalreporter.write_line(
                f"never raised: src/bertmill/{site.file}:{site.first_line}: {site.what}", red=True
            )


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--every-error") and session.exitstatus == 0 and never_raised():
        session.exitstatus = 1


def was_raised(site) -> bool:
    """Whether a test came by; what the recipe's sections find is told elsewhere, in their words."""
    words = re.compile(re.sub(r"\\{.*?\\}", ".*", re.escape(site.what)))
    return any(
        words.fullmatch(what)
        if site.where == "recipe {name}"
        else file.endswith(f"bertmill/{site.file}") and site.first_line <= line <= site.last_line
        for file, line, what in RAISED
    )


def load_errors_page():
    """The program that makes docs/errors.md, as a module."""
    spec = spec_from_file_location("make_errors", ROOT / "docs" / "make_errors.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    "train.precision=fp32",
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

    return Store(RunFolder(small_run.folder).read()[1].store)


@pytest.fixture(scope="session")
def save_random_model(small_run):
    """Write a model folder of random weights, with the small run's tokenizer, and open it."""
    import torch

    from bertmill.model.folder import load_model, save_model
    from bertmill.model.pretraining import PretrainingModel

    tokenizer = load_model(small_run.folder).tokenizer

    def save(folder, section, about=None, leave_out=()):
        model = PretrainingModel(section, tokenizer.size)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():  # biases and LayerNorm too
            std = 1.5 * parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3
            torch.nn.init.normal_(parameter, std=std, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.data += 1
        folder.mkdir()
        names = [name for name in model.state_dict() if name.startswith(tuple(leave_out))]
        save_model(folder, model, tokenizer, about, names)
        return load_model(folder)

    return save


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


@pytest.fixture
def refused(bertmill):
    """Run the command line, which must fail with one line that holds all of `parts`."""

    def run(args, *parts):
        status, out, err = bertmill(*args)
        assert (status, out) == (2, "")
        check_line(err, parts)

    return run


def check_line(err, parts):
    assert err.endswith("\n") and err.count("\n") == 1
    assert err.startswith("bertmill: ")
    assert len(err) < 400
    for part in map(str, parts):
        assert part in err
