"""The errors page, and the exception tree as its docstring draws it."""

import re
import subprocess
import sys
from pathlib import Path

from bertmill import errors

ROOT = Path(__file__).parents[1]


def test_the_page_is_made_from_the_source():
    program = f"""
import runpy
names = runpy.run_path({str(ROOT / "docs" / "make_errors.py")!r})
print(names["make_page"](), end="")
"""
    made = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    assert made.stdout == page, "type: python docs/make_errors.py"


def test_the_tree_is_the_one_that_the_docstring_draws():
    drawn = set(re.findall(r"─ (\w+Error)", errors.__doc__))
    assert drawn == {kind.__name__ for kind in errors.BertmillError.__subclasses__()}


def test_an_error_is_one_line():
    error = errors.StoreError("a\nb", "is\r\nbroken", "mend it\n")
    assert str(error) == "a b: is broken; mend it"
