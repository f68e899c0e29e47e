"""Pretrain BERT encoders end to end: raw text, tokenizer, pairs with masks, two losses, vectors.

>>> import bertmill
>>> run = bertmill.pretrain("sample:sotu", budget="150s")  # doctest: +SKIP
>>> model = bertmill.load(run.folder)  # doctest: +SKIP
>>> model.encode("a crane is flying").vectors.shape  # doctest: +SKIP
(1, 8, 128)

These names are loaded when first used: ``import bertmill`` alone is quick and leaves torch out.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bertmill.errors import BertmillError

__version__ = "0.1.0"

__all__ = [
    "BertmillError",
    "Encoding",
    "Filler",
    "FrozenScores",
    "HeldOutScores",
    "Pretrained",
    "Run",
    "Store",
    "__version__",
    "evaluate",
    "export",
    "inspect",
    "load",
    "prepare",
    "pretrain",
]

if TYPE_CHECKING:
    from bertmill.api import (
        Encoding,
        Filler,
        FrozenScores,
        HeldOutScores,
        Pretrained,
        Run,
        Store,
        evaluate,
        export,
        inspect,
        load,
        prepare,
        pretrain,
    )


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'bertmill' has no attribute {name!r}")
    return getattr(import_module("bertmill.api"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
