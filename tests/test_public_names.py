"""What people can import, and what they are told about it."""

import doctest
import inspect
import json
import pkgutil
import subprocess
import sys
from functools import cached_property
from importlib import import_module

import pytest

import bertmill

MODULES = ["bertmill", *(m.name for m in pkgutil.walk_packages(bertmill.__path__, "bertmill."))]


@pytest.mark.parametrize("name", bertmill.__all__)
def test_every_public_name_resolves_and_is_documented(name):
    assert getattr(bertmill, name).__doc__


def test_dir_lists_the_public_names():
    assert dir(bertmill) == sorted(bertmill.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="pretrian"):
        bertmill.pretrian  # noqa: B018


HELP = """
from bertmill.cli import main
sys.argv = ["bertmill", "--help"]
try:
    main()
except SystemExit as end:
    assert end.code == 0
"""


@pytest.mark.parametrize("code", ["import bertmill", HELP], ids=["import", "help"])
def test_import_and_help_load_nothing_heavy(code):
    heavy = ("torch", "numpy", "pyarrow", "pydantic", "tokenizers", "matplotlib")
    tell = f"print(json.dumps([m for m in {heavy} if m in sys.modules]), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{code}\n{tell}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stderr) == []
    assert ("pretrain" in done.stdout) == (code == HELP)


def undocumented(module) -> list[str]:
    """Public functions, classes, methods and properties of a module that lack a docstring."""
    missing = []
    for name, thing in vars(module).items():
        ours = getattr(thing, "__module__", None) == module.__name__
        if name.startswith("_") or not ours or not (inspect.isclass(thing) or callable(thing)):
            continue
        # A dataclass or named tuple without a docstring gets its signature as one.
        if not thing.__doc__ or thing.__doc__.startswith(f"{name}("):
            missing.append(name)
        if inspect.isclass(thing):
            missing += [f"{name}.{member}" for member in undocumented_members(thing)]
    return missing


def undocumented_members(cls) -> list[str]:
    missing = []
    for name, member in vars(cls).items():
        if isinstance(member, property):
            member = member.fget
        elif isinstance(member, cached_property):
            member = member.func
        elif isinstance(member, classmethod | staticmethod):
            member = member.__func__
        public = inspect.isfunction(member) and not name.startswith("_")
        if public and member.__module__ == cls.__module__ and not member.__doc__:
            missing.append(name)
    return missing


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_has_a_docstring(name):
    module = import_module(name)
    assert module.__doc__
    assert undocumented(module) == []


@pytest.mark.parametrize("name", ["config", "errors", "text.sentences", "data.randomness"])
def test_examples_in_docstrings_are_right(name):
    result = doctest.testmod(import_module(f"bertmill.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_every_error_of_ours_is_a_bertmill_error_with_three_parts():
    errors = import_module("bertmill.errors")
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind)]
    assert len(kinds) == 9
    for kind in kinds:
        error = kind("where", "is\nwrong", "mend it")
        assert isinstance(error, bertmill.BertmillError)
        assert str(error) == "where: is wrong; mend it"
