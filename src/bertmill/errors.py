"""Everything bertmill raises on purpose.

::

    BertmillError            the user can fix it: exit status 2, one line
    ├── RecipeError          a recipe or a setting is wrong
    ├── CorpusError          text cannot be found, opened or read
    ├── TokenizerError       a tokenizer cannot be trained, opened or used
    ├── StoreError           a token store is damaged or does not fit
    ├── ModelError           a model folder cannot be opened
    ├── RunError             a run cannot be started, saved or resumed
    ├── InputError           what a verb was given cannot be worked on
    └── MissingExtraError    an optional package is not installed

Any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

_LONGEST_PART = 1000
"""Characters of a message's part, of which it has three; the middle of a longer one is left out."""


class BertmillError(Exception):
    """A failure that the user can fix, in one line: where, what, and how to fix it.

    Parameters
    ----------
    where : str
        The file, key or argument at fault. An argument stands in backticks, here and in the other
        parts, by its name in Python; the command line writes it as its option.
    what : str
        What is wrong with it.
    fix : str
        What to do about it, where that is not plain from what is wrong.

    Examples
    --------
    >>> print(CorpusError("notes.txt", "is empty", "give a file with text"))
    notes.txt: is empty; give a file with text
    """

    def __init__(self, where: object, what: str, fix: str = "") -> None:
        self.where, self.what, self.fix = str(where), what, fix
        super().__init__(self.where, what, fix)

    def __str__(self) -> str:
        fix = f"; {_one_line(self.fix)}" if self.fix else ""
        return f"{_one_line(self.where)}: {_one_line(self.what)}{fix}"


def is_library_failure(error: BaseException) -> bool:
    """Whether a library failed; a panic in its Rust is an exception that is not an `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _one_line(text: str) -> str:
    """Make what a damaged file put into a message fit for a terminal: visible, and not too long."""
    line = " ".join(text.split())
    if len(line) > _LONGEST_PART:
        line = f"{line[: _LONGEST_PART // 2]} ... {line[-_LONGEST_PART // 2 :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class RecipeError(BertmillError):
    """A recipe or a setting is wrong."""


class CorpusError(BertmillError):
    """Text cannot be found, opened or read."""


class TokenizerError(BertmillError):
    """A tokenizer cannot be trained, opened or used."""


class StoreError(BertmillError):
    """A token store is damaged or does not fit what is asked of it."""


class ModelError(BertmillError):
    """A model folder cannot be opened."""


class RunError(BertmillError):
    """A run cannot be started, saved or resumed."""


class InputError(BertmillError):
    """What a verb was given cannot be worked on."""


class MissingExtraError(BertmillError):
    """An optional package is not installed."""
