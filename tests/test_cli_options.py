"""The command line is what the functions' signatures and docstrings say."""

import doctest
import inspect
import re
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import typer

import bertmill as package
from bertmill import api, cli
from bertmill.config import TokenizerSection, recipe_names
from bertmill.errors import InputError
from bertmill.model.pooling import POOLING_MODES
from bertmill.model.task import Task

COMMANDS = typer.main.get_command(cli.app).commands
FUNCTIONS = [
    (verb, option, function)
    for verb, modes in cli.VERBS.items()
    for option, function in modes.items()
]
PARAMETERS = [
    (verb, function, name)
    for verb, _, function in FUNCTIONS
    for name in cli.parameters_of(function)
]
IDS = [f"{function.__name__}-{name}" for _, function, name in PARAMETERS]


def default_of(function, name):
    return cli.parameters_of(function)[name].default


def help_of(verb, bertmill):
    """The rows of a verb's help, each as one line, by the option or argument it begins with."""
    lines = bertmill(verb, "--help")[1].splitlines()
    rows = {}
    for line in lines[lines.index("", 3) :]:
        if found := re.match(r"  (\S+)( |$)", line):
            rows[last := found[1]] = line
        elif line.startswith("   "):
            rows[last] += f" {line.strip()}"
    return {name: " ".join(row.split()) for name, row in rows.items()}


def test_every_function_has_a_verb():
    functions = {name for name in api.NAMES if inspect.isfunction(getattr(api, name))}
    assert {function.__name__ for _, _, function in FUNCTIONS} == functions - {"load"}
    assert list(COMMANDS) == list(cli.VERBS)


@pytest.mark.parametrize(("verb", "function", "name"), PARAMETERS, ids=IDS)
def test_every_parameter_is_explained(verb, function, name, bertmill):
    row = help_of(verb, bertmill)[cli.spell(name)]
    text = cli.described(function)[name]
    assert text.endswith(".") and "As in" not in text
    [parameter] = [each for each in COMMANDS[verb].params if each.name == name]
    assert len(parameter.help) > 10 and " ".join(parameter.help.split()) in row
    assert "`" not in row and f"{sys.maxsize}" not in row


@pytest.mark.parametrize(("verb", "function", "name"), PARAMETERS, ids=IDS)
def test_every_default_is_that_of_the_signature(verb, function, name, bertmill):
    row, default = help_of(verb, bertmill)[cli.spell(name)], default_of(function, name)
    [parameter] = [each for each in COMMANDS[verb].params if each.name == name]
    shown = re.search(r"\[default: ([^];]*)[^]]*\]$", row)
    if name in cli._DEFAULTS:
        assert parameter.default == cli._DEFAULTS[name]
        assert shown[1] in ("-", "(one per core, up to 8)")
    elif default is inspect.Parameter.empty:
        others = [cli.parameters_of(each).get(name) for each in cli.VERBS[verb].values()]
        is_required = all(other and other.default is default for other in others)
        assert parameter.required == row.endswith("[required]") == is_required
    elif default in (None, (), False):
        assert not parameter.required and shown is None
        assert parameter.default in (None, [], False)
    else:
        assert parameter.default == default and shown[1] == str(default)


def test_functions_that_share_an_option_agree_on_it():
    for modes in cli.VERBS.values():
        for function in modes.values():
            for name, parameter in cli.parameters_of(function).items():
                others = [
                    cli.parameters_of(each)[name]
                    for each in modes.values()
                    if name in cli.parameters_of(each)
                ]
                values = {other.default for other in others} - {inspect.Parameter.empty, (), None}
                assert len(values) <= 1
                assert {cli._type_of(o.annotation)[0] for o in others} == {
                    cli._type_of(parameter.annotation)[0]
                }


def test_the_choices_are_those_of_the_library():
    def choices(function, name):
        return get_args(get_args(cli.parameters_of(function)[name].annotation)[0])

    kinds = TokenizerSection.model_fields["kind"].annotation
    assert choices(api.prepare, "tokenizer_kind") == get_args(kinds)
    assert set(choices(api.embed, "pool")) == set(POOLING_MODES)
    assert choices(api.finetune, "task") == get_args(get_type_hints(Task)["kind"])


def test_every_recipe_is_named_in_the_help():
    listed = cli.described(api.pretrain)["recipe"].partition(", or a TOML")[0]
    assert sorted(re.findall(r"``(\w+)``", listed)) == sorted(recipe_names())


# --- options of another function -----------------------------------------------------------------

FOREIGN = [
    (verb, option, name)
    for verb, option, function in FUNCTIONS
    for other in cli.VERBS[verb].values()
    for name in cli.parameters_of(other)
    if option and name not in cli.parameters_of(function) and cli.spell(name) not in cli.VERBS[verb]
]


@pytest.mark.parametrize(("verb", "option", "name"), sorted(set(FOREIGN)))
def test_an_option_of_another_function_is_refused(verb, option, name, refused, tmp_path):
    needed = [] if verb == "pretrain" else ["model"]
    needed += ["--out", "out"] if verb == "export" else []
    [parameter] = [each for each in COMMANDS[verb].params if each.name == name]
    value = [] if parameter.is_flag else ["1"]
    chosen = option.split() if " " in option else [option, "x"]
    homes = [o for o, each in cli.VERBS[verb].items() if o and name in cli.parameters_of(each)]
    where = f"give it with {' or '.join(homes)}" if homes else "give only --steps, --corpus, "
    line = f"{cli.spell(name)}: cannot be combined with {option}; {where}"
    refused([verb, *needed, *chosen, cli.spell(name), *value], line)
    assert list(tmp_path.iterdir()) == []


def test_foreign_options_are_found():
    assert ("pretrain", "--resume", "recipe") in FOREIGN
    assert ("evaluate", "--held-out", "seeds") in FOREIGN
    assert ("export", "--to huggingface", "int8") in FOREIGN
    assert len(set(FOREIGN)) > 15


def test_a_default_may_be_given_with_another_function(refused):
    """What is refused is what was typed, whatever its value."""
    refused(["evaluate", "x", "--held-out", "x", "--seeds", 3], "--seeds: cannot be combined with")


# --- names of arguments --------------------------------------------------------------------------


def test_arguments_are_written_as_options(monkeypatch, refused, small_run):
    def fail(path, device):
        raise InputError("`text_b`", "`num_pairs` of `model` and `thing`", "give `among_file`\n")

    monkeypatch.setattr(api, "load", fail)
    line = "bertmill: TEXT_B: --pairs of MODEL and `thing`; give --among-file\n"
    refused(["encode", small_run.folder, "y"], line)
    with pytest.raises(InputError, match="`text_b`: `num_pairs` of `model` and `thing`; give `am"):
        package.encode(small_run.folder, "y")


def test_examples_in_docstrings_are_right():
    result = doctest.testmod(cli)
    assert (result.attempted, result.failed) == (1, 0)


NAMES = [
    (function, name)
    for function in [*(function for _, _, function in FUNCTIONS), api.load]
    for name, parameter in cli.parameters_of(function).items()
    if Path in get_args(parameter.annotation)
]


@pytest.mark.parametrize(
    ("function", "name"), NAMES, ids=[f"{function.__name__}-{name}" for function, name in NAMES]
)
def test_empty_names_are_refused(function, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needed = {
        each: "x"
        for each in cli.parameters_of(function)
        if default_of(function, each) is inspect._empty
    }
    with pytest.raises(InputError, match=f"^`{name}`: has no name; "):
        function(**needed | {name: ""})
    if "Sequence" in str(cli.parameters_of(function)[name].annotation):
        with pytest.raises(InputError, match=f"^`{name}`: has no name; "):
            function(**needed | {name: [Path("x"), ""]})
    assert list(tmp_path.iterdir()) == []
