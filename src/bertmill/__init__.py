"""Pretrain BERT encoders end to end: raw text, tokenizer, pairs with masks, two losses, vectors.

>>> import bertmill
>>> run = bertmill.pretrain("sample:sotu", budget="150s")  # doctest: +SKIP
>>> model = bertmill.load(run.folder)  # doctest: +SKIP
>>> model.encode("a crane is flying").vectors.shape  # doctest: +SKIP
(1, 8, 128)

Text to encoder: `prepare`, `pretrain`. How good it is: `evaluate`. What is inside: `inspect`.
Files to files: `embed`, `finetune`, `predict`, `similar_words`, `export`. A model in use: `load`
gives a `Pretrained`, which has ``encode``, ``embed``, ``fill_mask``, ``score``, ``similar_words``
and, where it was fine-tuned, ``predict``. What a caller can fix is raised as `BertmillError`.

These names are loaded when first used: ``import bertmill`` alone is quick and leaves torch out.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bertmill.errors import BertmillError

__version__ = "0.1.0"

__all__ = [
    "AllTaskScores",
    "BertmillError",
    "Embedded",
    "Encoding",
    "Filler",
    "FineTuned",
    "FrozenScores",
    "HeldOutScores",
    "MinimalPairScores",
    "Predicted",
    "Prediction",
    "Pretrained",
    "Run",
    "SimilarWord",
    "Store",
    "__version__",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "inspect",
    "load",
    "predict",
    "prepare",
    "pretrain",
    "similar_words",
]

if TYPE_CHECKING:
    from bertmill.api import (
        AllTaskScores,
        Embedded,
        Encoding,
        Filler,
        FineTuned,
        FrozenScores,
        HeldOutScores,
        MinimalPairScores,
        Predicted,
        Prediction,
        Pretrained,
        Run,
        SimilarWord,
        Store,
        embed,
        evaluate,
        export,
        finetune,
        inspect,
        load,
        predict,
        prepare,
        pretrain,
        similar_words,
    )


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'bertmill' has no attribute {name!r}")
    return getattr(import_module("bertmill.api"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
