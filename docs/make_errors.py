"""Write docs/errors.md from the places where bertmill raises its errors.

    python docs/make_errors.py

The page is never edited by hand; a test compares it with the source.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bertmill import errors

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errors.md"
KINDS = {kind.__name__: kind for kind in errors.BertmillError.__subclasses__()}
HEAD = """# Errors

Everything that bertmill raises on purpose, made from the source by `python docs/make_errors.py`. On
the command line each is one line, `bertmill: where: what; how to fix it`, with exit status 2. In
Python they are the classes below, all of them `bertmill.BertmillError`. Names in braces are
filled in. An argument stands in backticks by its name in Python, `among_file`; the command line
writes it as its option, `--among-file`. A test raises every one.
"""


def _constants() -> dict[str, str]:
    """Collect the package's named numbers and texts."""
    return {
        target.id: str(node.value.value)
        for path in (ROOT / "src" / "bertmill").rglob("*.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


CONSTANTS = _constants()


class Site(NamedTuple):
    """A place that makes an error."""

    kind: str
    file: str
    first_line: int
    last_line: int
    where: str
    what: str
    fix: str


def find_sites() -> list[Site]:
    """List the places of the package that make an error, in the order of the files."""
    return [
        site
        for path in sorted((ROOT / "src" / "bertmill").rglob("*.py"))
        for site in _sites_of(path)
    ]


def _sites_of(path: Path) -> Iterator[Site]:
    tree = ast.parse(path.read_text("utf-8"))
    file = path.relative_to(ROOT / "src" / "bertmill").as_posix()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        kind, place = node.func.id, (file, node.lineno, node.end_lineno or node.lineno)
        if kind in KINDS and len(node.args) in (2, 3):
            yield Site(kind, *place, *_parts(node))
        elif kind == "ValueError" and file == "config.py":
            what, _, fix = _template(node.args[0]).partition("; ")
            yield Site("RecipeError", *place, "recipe {name}", what, fix or "change it")
        elif kind == "error" and file == "storage.py":
            yield Site("StoreError", *place, *_parts(node))


def _parts(call: ast.Call) -> tuple[str, str, str]:
    where, what, *fix = map(_template, call.args)
    return where, what, "".join(fix)


def _template(node: ast.expr) -> str:
    """Write an expression as the text it makes, what is filled in in braces."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_template(part) for part in parts)
        case ast.FormattedValue(value=ast.IfExp() | ast.Name() as value):
            return _template(value)
        case ast.Name(id=name) if name in CONSTANTS:
            return CONSTANTS[name]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _template(left) + _template(right)
        case ast.IfExp(body=body, orelse=orelse):
            return " / ".join(part for part in (_template(body), _template(orelse)) if part)
        case _:
            return f"{{{_short(node)}}}"


def _short(node: ast.expr) -> str:
    """Name what is filled in: the first name that is not a function's."""
    names = [
        n.attr if isinstance(n, ast.Attribute) else n.id
        for n in ast.walk(node)
        if isinstance(n, ast.Attribute | ast.Name)
    ]
    skip = {
        *("str", "len", "map", "join", "round", "sorted", "list", "repr", "self", "tuple", "int"),
        *("splitlines", "lower", "get", "partition", "type", "ascii"),
    }
    return next((name.strip("_") for name in names if name not in skip), "...")


def make_page() -> str:
    """Write the page."""
    lines = [HEAD]
    sites = find_sites()
    for kind, error in KINDS.items():
        lines.append(
            f"\n## {kind}\n\n{error.__doc__}\n\n"
            "| where | what is wrong | how to fix it |\n|---|---|---|"
        )
        # A message that is made elsewhere and passed on says nothing here.
        rows = {
            (site.where, site.what, site.fix)
            for site in sites
            if site.kind == kind and not re.fullmatch(r"{\w+}", site.what)
        }
        lines += [
            "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |"
            for row in sorted(rows)
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(make_page(), "utf-8")
