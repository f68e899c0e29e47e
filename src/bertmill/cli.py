"""The command line, made from the functions of `bertmill.api`.

An option is a parameter: its type and default come from the signature, its help is the first
sentence about it in the docstring. Several functions may share a verb.

Exit status: 0 done; 2 the user can fix it, said in one line on standard error; 1 a bug of ours;
130 or 143 interrupted by SIGINT or SIGTERM, with the run's state saved.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from inspect import Parameter, Signature, cleandoc, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

import typer

from bertmill import __version__, api
from bertmill.errors import BertmillError, InputError
from bertmill.openmp import limit_spinning
from bertmill.ranks import is_first_rank, name_rank, quiet_torch
from bertmill.show.results import to_lines, to_values
from bertmill.train.signals import interrupts_said

# What may befall any file at any moment, and is not a bug.
_FAULTS_OF_THE_MACHINE = {
    errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS
}  # fmt: skip
_FIX_THE_MACHINE = (
    "make room or raise the limit (ulimit -n); a run that has begun goes on with --resume"
)
_NO_LICENSE = "no license is named, so nobody may use the model: --license apache-2.0, for example"

Function = Callable[..., Any]

VERBS: dict[str, dict[str, Function]] = {
    "pretrain": {"": api.pretrain, "--resume": api.resume},
    "prepare": {"": api.prepare},
    "cache": {"": api.cache},
    "inspect": {"": api.inspect},
    "plan": {"": api.plan},
    "encode": {"": api.encode},
    "embed": {"": api.embed},
    "similar-words": {"": api.similar_words},
    "fill-mask": {"": api.fill_mask},
    "evaluate": {
        "--held-out": api.evaluate_held_out,
        "--minimal-pairs": api.evaluate_minimal_pairs,
        "--tasks": api.evaluate_tasks,
    },
    "finetune": {"": api.finetune},
    "predict": {"": api.predict},
    "export": {"--to huggingface": api.export_huggingface, "--to onnx": api.export_onnx},
}
"""Each verb's functions, by the option that chooses one."""

_SUMMARIES = {
    "pretrain": "Pretrain an encoder from raw text, or go on with a run.",
    "evaluate": "Measure a model on text, minimal pairs or tasks.",
    "export": "Write a model folder for other programs.",
}
"""Of the verbs that have several functions."""

_SPELLINGS = {
    "model": "MODEL", "target": "TARGET", "source": "FILE", "text": "TEXT", "text_b": "TEXT_B",
    "name_or_file": "RECIPE", "settings": "--set", "num_pairs": "--pairs", "run": "--resume",
    "or_resume": "--resume auto",
    "targets": "--target",
}  # fmt: skip
"""Parameters that are not options, and those whose option has another name."""

_WITHOUT_OPTION = ("stream", "on_metrics", "or_resume")
"""For Python alone, or said by the value of another one: ``--resume auto``."""

_DEFAULTS = {"source": "-", "workers": None}
"""Where the command differs from Python: it reads standard input, and may start processes."""

_SHOWN = {"workers": "one per core, up to 8"}
"""What ``--help`` says of a default that is None."""

app = typer.Typer(
    name="bertmill",
    help="Pretrain BERT encoders end to end: raw text, tokenizer, pairs with masks, two losses, "
    "an encoder in use.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"bertmill {__version__}")
        raise typer.Exit


_VERSION = typer.Option("--version", callback=_print_version, help="Show the version and exit.")


@app.callback()
def _program(version: Annotated[bool, _VERSION] = False) -> None:
    """Take what belongs to no verb."""


def spell(name: str) -> str:
    """Write a parameter as the command line does: ``--among-file``, or ``MODEL``."""
    return _SPELLINGS.get(name, f"--{name.replace('_', '-')}")


def spell_all(text: str) -> str:
    """Write each parameter that stands in backticks as the command line does.

    Examples
    --------
    >>> spell_all("`among_file`: is empty; give `among`, or another `thing`")
    '--among-file: is empty; give --among, or another `thing`'
    """
    names = _all_names() | _SPELLINGS.keys()
    return re.sub(r"`(\w+)`", lambda at: spell(at[1]) if at[1] in names else at[0], text)


@cache
def _all_names() -> set[str]:
    functions = [function for modes in VERBS.values() for function in modes.values()]
    return {name for function in functions for name in parameters_of(function)}


@cache
def parameters_of(function: Function) -> dict[str, Parameter]:
    """Return the parameters that have an option or argument of their own."""
    found = signature(function).parameters
    return {name: each for name, each in found.items() if name not in _WITHOUT_OPTION}


@cache
def described(function: Function) -> dict[str, str]:
    """Read the first sentence about each parameter in a docstring.

    ``As in `pretrain`.`` is replaced by what stands there.
    """
    _, _, section = cleandoc(function.__doc__ or "").partition("\nParameters\n----------\n")
    found = {}
    entries = re.findall(
        r"^(\w[\w, ]*?)(?: : .*)?\n((?: +.*\n)+)", section.partition("\n\n")[0] + "\n", re.M
    )
    for names, text in entries:
        first = re.split(r"(?<=\.)\s+(?=[A-Z`])", " ".join(text.split()))[0]
        elsewhere = re.fullmatch(r"As in `(\w+)`\.", first)
        for name in names.split(", "):
            there = described(getattr(api, elsewhere[1])) if elsewhere else {name: first}
            found[name] = there[name]
    return found


def _help_for(verb: str, name: str) -> str:
    """Write the help for a parameter: which function it belongs to, and what it is."""
    modes = VERBS[verb]
    homes = [option for option, each in modes.items() if name in parameters_of(each)]
    text = described(modes[homes[0]])[name].replace("``", "")
    text = spell_all(text).replace("`", "")
    is_for_all = len(homes) == len(modes) or "" in homes or spell(name) in modes
    return text if is_for_all else f"With {' or '.join(homes)}: {text[0].lower()}{text[1:]}"


def _option(verb: str, name: str) -> Parameter:
    """Make the option or argument that typer shows and reads for a parameter."""
    functions = VERBS[verb].values()
    owned = [parameters_of(each)[name] for each in functions if name in parameters_of(each)]
    is_required = [each.default for each in owned] == [Parameter.empty] * len(functions)
    default = _DEFAULTS.get(name, owned[0].default)
    if default is Parameter.empty and not is_required:
        default = None
    kind, shown = _type_of(owned[0].annotation)
    text, spelled = _help_for(verb, name), spell(name)
    if get_origin(kind) is list:
        text += " May be repeated."
        default = default if is_required else []
    elif default is None:
        kind = kind | None
    if not spelled.startswith("--"):
        info: Any = typer.Argument(help=text, metavar=spelled)
    elif kind == bool | None:
        info = typer.Option(f"{spelled}/--no-{spelled[2:]}", help=text)
    else:
        info = typer.Option(spelled, help=text, show_default=_SHOWN.get(name, True), **shown)
    return _parameter(name, Annotated[kind, info], default)


def _parameter(name: str, annotation: Any, default: Any = Parameter.empty) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _type_of(annotation: Any) -> tuple[Any, dict[str, Any]]:
    """Read an annotation as a type that the command line can give, and what typer shows of it."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]
    parts = [part for part in parts if part is not NoneType]
    metavar = {"metavar": "<path>"} if Path in parts else {}
    if any(get_origin(part) is Sequence for part in parts):
        return list[str], metavar or {"metavar": "<str>"}
    first = parts[0]
    if get_origin(first) is Annotated:
        kind, least = get_args(first)
        return kind, {"min": least, "metavar": "<int>"}
    return first, metavar


def _to_option(modes: dict[str, Function]) -> list[Parameter]:
    """Make the option ``--to``, where its value chooses the function."""
    programs = {option[5:]: each for option, each in modes.items() if option.startswith("--to ")}
    if not programs:
        return []
    summaries = [
        f"{name}: {cleandoc(each.__doc__ or '').splitlines()[0]}" for name, each in programs.items()
    ]
    choice = typer.Option("--to", help=" ".join(summaries))
    return [_parameter("to", Annotated[Literal[tuple(programs)], choice], next(iter(programs)))]


def _add(verb: str) -> None:
    """Add a verb to the program."""
    modes = VERBS[verb]
    names = dict.fromkeys(name for each in modes.values() for name in parameters_of(each))
    # What belongs to one function stands before what all share, the device.
    options = sorted(
        (_option(verb, name) for name in names), key=lambda each: each.name == "device"
    )
    as_json = typer.Option("--json", help="Print one JSON object; all else goes to stderr.")

    def command(context: typer.Context, as_json: bool, **values: Any) -> None:
        given = {
            name: value
            for name, value in values.items()
            if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
        }
        _run(verb, given, values.get("to"), as_json)

    command.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            _parameter("context", typer.Context),
            *_to_option(modes),
            *options,
            _parameter("as_json", Annotated[bool, as_json], False),
        ]
    )
    summary = _SUMMARIES.get(verb) or cleandoc(modes[""].__doc__ or "").splitlines()[0]
    app.command(verb, help=summary)(command)


for _name in VERBS:
    _add(_name)


def _run(verb: str, given: dict[str, Any], to: str | None, as_json: bool) -> None:
    """Call the function that the options choose, and print what it returns."""
    is_auto = given.get("run") == "auto"
    if is_auto:
        del given["run"]
    option = _choose(verb, given, to)
    function = VERBS[verb][option]
    parameters = parameters_of(function)
    arguments = {n: value for n, value in {**_DEFAULTS, **given}.items() if n in parameters}
    for name, each in parameters.items():
        if each.default is Parameter.empty:
            arguments.setdefault(name, ())
    if is_auto:
        arguments["or_resume"] = True
    if as_json and "stream" in signature(function).parameters:
        arguments["stream"] = sys.stderr
    result = function(**arguments)
    if option == "--to huggingface" and "license" not in given:
        typer.echo(_NO_LICENSE, err=True)
    if as_json:
        _print(json.dumps(to_values(function.__name__, result, arguments), default=str))
    else:
        for line in to_lines(function.__name__, result, arguments):
            _print(line)
    stopped_by = getattr(getattr(result, "outcome", result), "stopped_by", None)
    if stopped_by is not None:
        raise typer.Exit(128 + stopped_by)


def _choose(verb: str, given: dict[str, Any], to: str | None) -> str:
    """Return the option that chooses the verb's function; refuse what another one takes."""
    modes = VERBS[verb]
    spelled = {spell(name) for name in given} | {f"--to {to}"}
    chosen = [option for option in modes if option in spelled] or [o for o in modes if not o]
    if len(chosen) != 1:
        raise InputError(verb, f"takes one of {', '.join(modes)}", "give one of them")
    parameters = parameters_of(modes[chosen[0]])
    for name in given:
        if name not in parameters and name != "to":
            homes = [o for o, each in modes.items() if o and name in parameters_of(each)]
            takes = [o for each in parameters if (o := spell(each)) != chosen[0]]
            fix = f"give it with {' or '.join(homes)}" if homes else f"give only {', '.join(takes)}"
            raise InputError(f"`{name}`", f"cannot be combined with {chosen[0]}", fix)
    return chosen[0]


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    if sys.getfilesystemencoding() == "ascii":  # the arguments are in UTF-8 all the same
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
    limit_spinning()  # first: torch is imported by the verbs
    quiet_torch()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name or a word that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with interrupts_said():
            status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except BertmillError as error:
        status = _complain(spell_all(str(error)))
    except OSError as error:
        if error.errno not in _FAULTS_OF_THE_MACHINE:
            raise
        where = error.filename or "this machine"
        status = _complain(f"{where}: {error.strerror}; {_FIX_THE_MACHINE}")
    except typer.TyperException as error:
        message = " ".join(error.format_message().split()).rstrip(".")
        message = message.replace("Value error, ", "")
        verb = " ".join(sys.argv[1:2])
        status = _complain(f"{message}; see: bertmill {f'{verb} ' if verb in VERBS else ''}--help")
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    sys.exit(status or 0)


def _complain(line: str) -> int:
    typer.echo(f"bertmill: {name_rank(line)}", err=True)
    return 2


def _print(line: str) -> None:
    """Print a line; a reader that went away (``| head``) ends the program, quietly."""
    if not is_first_rank():
        return
    try:
        typer.echo(line)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
