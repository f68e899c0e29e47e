"""The tour of the source: its files and names exist, and the path that it follows stays short."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from bertmill.config import Recipe

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "bertmill"
TOUR = (ROOT / "docs" / "tour.md").read_text("utf-8")
MOST_LINES = 3_000


def linked_files(text):
    """The files of the package that a part of the tour links to, in order."""
    links = re.findall(r"\]\(\.\./src/bertmill/([\w/]+\.py)\)", text)
    return [PACKAGE / link for link in dict.fromkeys(links)]


STOPS = dict(re.findall(r"^### (\d+)\. (.*?)(?=^##)", TOUR, re.M | re.S))


def code_lines(path):
    """The numbers of a file's lines without docstrings, comments and blank lines."""
    source = path.read_text("utf-8")
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    layout = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE,
        tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
    }  # fmt: skip
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in layout
        for line in range(token.start[0], token.end[0] + 1)
    }
    return lines - docstrings


def defined_names(path):
    """The functions, classes, constants and members that a file defines."""

    def names_in(body, prefix):
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                yield prefix + node.name
                if isinstance(node, ast.ClassDef):
                    yield from names_in(node.body, f"{prefix}{node.name}.")
                    yield from names_in(node.body, "")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    yield from (
                        prefix + each.id for each in ast.walk(target) if isinstance(each, ast.Name)
                    )

    found = set(names_in(ast.parse(path.read_text("utf-8")).body, ""))
    if path.name == "__init__.py":  # a folder's names are those of its files
        found |= {name for each in path.parent.glob("[a-z]*.py") for name in defined_names(each)}
    return found


def test_stops_are_numbered_and_are_of_one_file_each():
    assert [int(number) for number in STOPS] == list(range(1, len(STOPS) + 1))
    assert 14 <= len(STOPS) <= 20
    homes = [linked_files(text.splitlines()[0]) for text in STOPS.values()]
    assert all(len(home) == 1 for home in homes)
    assert len({home[0] for home in homes}) == len(STOPS)


@pytest.mark.parametrize("number", STOPS)
def test_names_of_a_stop_are_defined_in_its_files(number):
    text = STOPS[number]
    files = linked_files(text)
    assert all(file.is_file() for file in files)
    known = {name for file in files for name in defined_names(file)}
    named = [
        name
        for name in re.findall(r"`([A-Za-z_][\w.]*)`", text)
        if not is_setting(name) and not re.search(r"\.(txt|json)$", name)
    ]
    outside = {"tokenizers", "model", "best"}  # the library, and the links of a run
    assert [name for name in named if name not in known | outside] == []
    assert set(named) & defined_names(files[0])


def is_setting(name):
    section, _, key = name.partition(".")
    field = Recipe.model_fields.get(section)
    return bool(key) and field is not None and key in field.annotation.model_fields


def test_names_in_the_rest_of_the_tour_are_those_of_stops():
    known = {name for text in STOPS.values() for name in re.findall(r"`([\w.]+)`", text)}
    rest = TOUR.partition("## From text")[0] + TOUR.partition("## Between kill")[2]
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    named = set(re.findall(r"`([A-Za-z_][\w.]*)`", rest)) - folders
    assert named - known == set()


def test_the_path_is_read_in_an_evening():
    on_path = {file for text in STOPS.values() for file in linked_files(text)}
    on_path -= set(linked_files(TOUR.partition("## Beside the path")[2]))
    counts = {str(file.relative_to(PACKAGE)): len(code_lines(file)) for file in sorted(on_path)}
    assert sum(counts.values()) < MOST_LINES, counts


def test_it_is_complete():
    """Every stage of the path has a stop."""
    folders = {file.relative_to(PACKAGE).parts[0] for file in linked_files(TOUR)}
    assert {"text", "data", "model", "train", "use"} <= folders
