"""Both losses of a model on pairs whose masks another program drew, once and for all.

    python benchmarks/frozen_pairs.py RUN wikitext-2-valid.jsonl.gz

The pairs are words, so the vocabulary of the model must be word-level. `--json` prints one object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, StrictBool, ValidationError, model_validator
from tokenizers import models

from bertmill.arrays import Ints
from bertmill.config import MaskingSection, first_problem
from bertmill.data.batch import Batch
from bertmill.data.layout import lay_out
from bertmill.data.yardsticks import measure_yardsticks
from bertmill.errors import BertmillError, InputError
from bertmill.evaluation.held_out import has_next_sentence_head, training_statistics
from bertmill.model.folder import LoadedModel, load_model
from bertmill.show.summary import score_lines
from bertmill.text.rows import read_rows
from bertmill.text.tokenizer import Tokenizer
from bertmill.train.device import open_device
from bertmill.train.validate import HeldOutScores, score_batches
from bertmill.use.pretrained import refuse_without_masked_token_head

# The file's names of the special tokens, in the order of `Tokenizer.special_tokens`.
_SPECIAL_NAMES = ("<pad>", "<unk>", "<cls>", "<sep>", "<mask>")
_PAIRS_AT_ONCE = 64


@dataclass(frozen=True)
class FrozenScores(HeldOutScores):
    """`HeldOutScores` of frozen pairs, with more masked-token losses.

    They are means over the predictions that show the mask token, and over those of them whose true
    word is in the vocabulary; None where there are none.
    """

    mlm_loss_at_mask: float | None
    mlm_loss_at_mask_known: float | None
    num_at_mask: int
    num_at_mask_known: int


class _FrozenPair(BaseModel):
    """A line of the file."""

    model_config = ConfigDict(frozen=True, strict=True)

    tokens: list[str]
    second_starts: int
    masked_at: list[int]
    labels: list[str]
    kinds: list[Literal["mask", "keep", "random"]]
    is_next: StrictBool | Literal[0, 1]

    @model_validator(mode="after")
    def _check(self) -> _FrozenPair:
        "".join([*self.tokens, *self.labels]).encode()  # fails for lone surrogates
        ends = (0, self.second_starts - 1, len(self.tokens) - 1)
        if not 1 < self.second_starts < len(self.tokens):
            raise ValueError("second_starts is outside of the tokens")
        if [self.tokens[end] for end in ends] != ["<cls>", "<sep>", "<sep>"]:
            raise ValueError("the tokens are not <cls> ... <sep> ... <sep>")
        if not len(self.masked_at) == len(self.labels) == len(self.kinds) > 0:
            raise ValueError("masked_at, labels and kinds must be equally long and not empty")
        if self.masked_at != sorted({*self.masked_at} & {*range(len(self.tokens))} - {*ends}):
            raise ValueError("masked_at must be rising positions of words")
        for at, label, kind in zip(self.masked_at, self.labels, self.kinds, strict=True):
            shown = {"mask": "<mask>", "keep": label, "random": self.tokens[at]}[kind]
            if self.tokens[at] != shown:
                raise ValueError(f"the token at {at} is not what the kind {kind} shows")
        return self

    def text_words(self) -> tuple[list[str], list[str]]:
        """Both texts, without the special tokens around them."""
        return self.tokens[1 : self.second_starts - 1], self.tokens[self.second_starts : -1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="Run folder, model folder or Hugging Face BERT folder.")
    parser.add_argument("pairs", help="A .jsonl file of pairs, compressed or not.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    args = parser.parse_args()
    try:
        scores = evaluate_frozen_pairs(args.model, args.pairs)
    except BertmillError as error:
        print(f"bertmill: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(asdict(scores)) if args.json else "\n".join(to_lines(scores)))


def to_lines(scores: FrozenScores) -> list[str]:
    """One line per loss, and one for the losses at the mask token."""
    lines = list(score_lines(scores))
    if scores.mlm_loss_at_mask is not None:
        known = scores.mlm_loss_at_mask_known
        without = "" if known is None else f", {known:.3f} without unknown words"
        at_mask = f"held-out: MLM loss {scores.mlm_loss_at_mask:.3f} at the mask token{without}"
        lines.insert(1, at_mask)
    return lines


def evaluate_frozen_pairs(
    model: str | Path, frozen_pairs: str | Path, *, device: str = "auto"
) -> FrozenScores:
    """Open a model, and score it as `score` does."""
    return score(load_model(model), str(frozen_pairs), open_device(device))


def score(loaded: LoadedModel, path: str, device: torch.device) -> FrozenScores:
    """Score a model with a word-level vocabulary on pairs whose masks are fixed.

    Parameters
    ----------
    loaded : LoadedModel
    path : str
        ``.jsonl``, compressed or not, one pair per line: ``tokens`` (words as shown, with ``<cls>
        <sep> <mask> <unk>``), ``second_starts``, ``masked_at``, ``labels``, ``kinds`` (``mask``,
        ``keep`` or ``random``) and ``is_next``. Words outside the vocabulary are read as unknown.
    device : torch.device

    Raises
    ------
    ModelError
        The folder lacks the masked-token head.
    InputError
        Another kind of vocabulary, or a line that is not such a pair or is longer than the model's
        positions.
    CorpusError
        The file cannot be read.
    """
    refuse_without_masked_token_head(loaded)
    if not isinstance(loaded.tokenizer.backend.model, models.WordLevel):
        raise InputError(
            loaded.folder,
            "has a vocabulary of word pieces, but frozen pairs are whole words",
            "give a model whose tokenizer.kind is word, or evaluate it on text (`held_out`)",
        )
    longest = loaded.model.section.max_position_embeddings
    pairs = [_to_pair(record, where, longest) for where, record in read_rows(path)]
    if not pairs:
        raise InputError(path, "has no pairs", "give a file with one pair per line")
    pairs.sort(key=lambda pair: -len(pair.tokens))
    batches = [
        _to_batch(pairs[i : i + _PAIRS_AT_ONCE], loaded.tokenizer)
        for i in range(0, len(pairs), _PAIRS_AT_ONCE)
    ]
    scores = score_batches(loaded.model.to(device), batches, device)
    mlm = scores.mlm.numpy()
    at_mask = np.array([kind == "mask" for pair in pairs for kind in pair.kinds])
    labels = np.concatenate([batch.masked_labels for batch in batches])
    known = at_mask & (labels != loaded.tokenizer.unk_id)
    has_pairs = has_next_sentence_head(loaded)
    yardsticks = measure_yardsticks(
        batches, training_statistics(loaded), MaskingSection(), loaded.tokenizer
    )
    return FrozenScores(
        mlm_loss=float(mlm.mean()),
        mlm_accuracy=scores.mlm_right.mean().item(),
        mlm_loss_at_mask=_mean(mlm[at_mask]),
        mlm_loss_at_mask_known=_mean(mlm[known]),
        nsp_loss=scores.nsp.mean().item() if has_pairs else None,
        nsp_accuracy=scores.nsp_right.mean().item() if has_pairs else None,
        num_predictions=len(mlm),
        num_at_mask=int(at_mask.sum()),
        num_at_mask_known=int(known.sum()),
        num_pairs=len(pairs),
        **yardsticks._asdict(),
    )


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def _to_pair(record: dict[str, Any], where: str, longest: int) -> _FrozenPair:
    try:
        pair = _FrozenPair.model_validate(record)
    except ValidationError as error:
        raise InputError(
            where,
            f"is not a pair with masks ({first_problem(error)})",
            "write tokens, second_starts, masked_at, labels, kinds and is_next",
        ) from None
    if len(pair.tokens) > longest:
        raise InputError(where, f"has {len(pair.tokens)} tokens, but the model takes {longest}")
    return pair


def _to_batch(pairs: list[_FrozenPair], tokenizer: Tokenizer) -> Batch:
    texts = [text for pair in pairs for text in pair.text_words()]
    lengths = np.array([len(text) for text in texts])
    laid = lay_out(
        _to_ids((word for text in texts for word in text), tokenizer),
        lengths[::2],
        lengths[1::2],
        tokenizer.cls_id,
        tokenizer.sep_id,
    )
    masked_at = [
        start + np.array(pair.masked_at) for start, pair in zip(laid.starts, pairs, strict=False)
    ]
    return Batch(
        token_ids=laid.token_ids,
        segment_ids=laid.segment_ids,
        position_ids=laid.position_ids,
        sequence_starts=laid.starts,
        masked_at=np.concatenate(masked_at),
        masked_labels=_to_ids((word for pair in pairs for word in pair.labels), tokenizer),
        next_sentence_labels=np.array([int(pair.is_next) for pair in pairs]),
    )


def _to_ids(words: Iterable[str], tokenizer: Tokenizer) -> Ints:
    specials = dict(zip(_SPECIAL_NAMES, tokenizer.special_tokens, strict=True))
    found = []
    for word in words:
        i = tokenizer.backend.token_to_id(specials.get(word, word))
        if i is None or (word not in specials and tokenizer.is_special[i]):
            i = tokenizer.unk_id  # the name of a special token is an ordinary, unknown word
        found.append(i)
    return np.array(found, np.int64)


if __name__ == "__main__":
    main()
