"""Pretrain BERT encoders end to end: raw text, tokenizer, pairs with masks, two losses, vectors.

>>> import bertmill
>>> run = bertmill.pretrain("sample:sotu", budget="150s")  # doctest: +SKIP
>>> model = bertmill.load(run.folder)  # doctest: +SKIP
>>> model.encode("a crane is flying").vectors.shape  # doctest: +SKIP
(1, 8, 128)

Text to encoder: `prepare`, `pretrain`, `resume`. How good it is: `evaluate_held_out`,
`evaluate_minimal_pairs`, `evaluate_tasks`. What is inside: `inspect`.
Files to files: `embed`, `finetune`, `predict`, `similar_words`, `export_huggingface`,
`export_onnx`. A model in use: `load` gives a `Pretrained`, which has ``encode``, ``embed``,
``fill_mask``, ``score``, ``similar_words`` and, where it was fine-tuned, ``predict``. What a caller
can fix is raised as `BertmillError`.

These names, listed in `bertmill.api`, are loaded when first used: ``import bertmill`` alone is
quick and leaves torch out.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bertmill.errors import BertmillError as BertmillError

if TYPE_CHECKING:
    from bertmill.api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    api = import_module("bertmill.api")
    if name == "__all__":
        return ["BertmillError", "__version__", *api.NAMES]
    if name not in api.NAMES:
        raise AttributeError(f"module 'bertmill' has no attribute {name!r}")
    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted(__getattr__("__all__"))
