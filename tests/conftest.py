"""What all tests share: the size of a test session, its fixtures, and the errors it raised.

A session of two workers costs what its small runs cost, so that the parts of a run that no test
here is about are made small for every test: see `_cheap_runs`.
"""

import os
import pkgutil
import re
import signal
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before anything imports numpy or torch
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings
from matplotlib.figure import Figure

from bertmill.openmp import limit_spinning
from small import FAST_EXAMPLES, FULL_EXAMPLES, SMALL, make_documents

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
LEFT_TO_TEST_ALL = ("slow", "alone")

limit_spinning()  # as a command does: torch is not imported yet
# A program that was started in the background ignores SIGINT, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# --- the size of a session, and every error ------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast",
        action="store_true",
        help="leave out tests marked slow or alone, say how many, and take a fifth of the examples",
    )
    parser.addoption(
        "--every-error",
        action="store_true",
        help="fail where the tests together do not raise every error of the package",
    )


RAISED: set[tuple[str, int, str]] = set()
"""File, line and fault of every error that the package made in these tests."""

LEFT_OUT: dict[str, int] = {}
"""The number of tests that ``--fast`` left out, by their mark."""


def pytest_configure(config: pytest.Config) -> None:
    # The same examples in every session; a busy machine fails no test.
    count = FAST_EXAMPLES if config.getoption("--fast") else FULL_EXAMPLES
    settings.register_profile("bertmill", deadline=None, derandomize=True, max_examples=count)
    settings.load_profile("bertmill")

    from bertmill.errors import BertmillError

    make = BertmillError.__init__

    def make_and_note(self, where, what, fix=""):
        caller = sys._getframe(1)
        RAISED.add((caller.f_code.co_filename, caller.f_lineno, what))
        make(self, where, what, fix)

    BertmillError.__init__ = make_and_note


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    by_mark = {mark: [] for mark in (None, *LEFT_TO_TEST_ALL)}
    for item in items:
        marks = (mark for mark in LEFT_TO_TEST_ALL if item.get_closest_marker(mark))
        by_mark[next(marks, None)].append(item)
    items[:] = by_mark.pop(None)
    left_out = [item for some in by_mark.values() for item in some]
    if config.getoption("--fast"):
        LEFT_OUT.update({mark: len(some) for mark, some in by_mark.items()})
        config.hook.pytest_deselected(items=left_out)
    else:  # the long ones first, so that no worker waits for the other's last
        items[:0] = left_out


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if hasattr(config, "workeroutput"):  # a worker of pytest-xdist: the controller looks at all
        config.workeroutput |= {"raised": sorted(RAISED), "left_out": LEFT_OUT}
    elif config.getoption("--every-error") and session.exitstatus == 0 and never_raised():
        session.exitstatus = 1


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    output = getattr(node, "workeroutput", {})  # none of a worker that died
    RAISED.update(map(tuple, output.get("raised", [])))
    LEFT_OUT.update(output.get("left_out", {}))


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if config.getoption("--every-error"):
        for site in never_raised():
            terminalreporter.write_line(
                f"never raised: src/bertmill/{site.file}:{site.first_line}: {site.what}", red=True
            )
    if LEFT_OUT:
        counts = " and ".join(f"{count} {mark}" for mark, count in LEFT_OUT.items())
        terminalreporter.write_line(f"{counts} tests are left for make test-all")


def never_raised() -> list:
    return [site for site in load_errors_page().find_sites() if not was_raised(site)]


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


# --- small runs ----------------------------------------------------------------------------------


class Pixel(Figure):
    """A picture that takes no time."""

    def savefig(self, stream):
        stream.write(
            bytes.fromhex(
                "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
                "0000000a49444154789c6360000000020001482af6040000000049454e44ae426082"
            )
        )


@pytest.fixture(scope="session", autouse=True)
def _cheap_runs():
    """Save three quarters of a small run's time, which go into what no test of a run looks at.

    A process that dies loses nothing that it wrote, synced or not; a picture of the losses is only
    looked at by those who take `real_runs`; the peak that a run's speed is a share of is measured
    with a product of any width. A process that a test starts has all this as it is.
    """
    cheap = {
        "os.fsync": lambda descriptor: None,
        "bertmill.show.curves.Figure": Pixel,
        "bertmill.train.device._PEAK_WIDTH": {"cpu": 64, "cuda": 1024},
    }
    real = {name: pkgutil.resolve_name(name) for name in cheap}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cheap.items():
            patch.setattr(name, value)
        yield real


@pytest.fixture
def real_runs(_cheap_runs, monkeypatch):
    """Put back what `_cheap_runs` took."""
    for name, value in _cheap_runs.items():
        monkeypatch.setattr(name, value)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(make_documents(60)), "utf-8")
    return path


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
def meta():
    """The device of tensors without values: a read of one is an error, as a wait is on CUDA."""
    import torch

    def attention_gradient(grad_out, query, key, value, *args, **kwargs):
        return *map(torch.empty_like, (query, key, value)), torch.empty((), device="meta")

    # In torch 2.13 the form for shapes alone takes one argument less than the operator.
    with torch.library._scoped_library("aten", "IMPL") as library:
        name = "_efficient_attention_backward"
        library.impl(name, attention_gradient, "Meta", allow_override=True)
        yield torch.device("meta")


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
