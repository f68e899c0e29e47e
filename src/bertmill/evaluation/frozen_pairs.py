"""Pairs whose masks are drawn already, as words: one judge for every program and vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import models

from bertmill.config import MaskingSection
from bertmill.data.batch import Batch
from bertmill.data.yardsticks import measure_yardsticks
from bertmill.errors import InputError
from bertmill.evaluation.held_out import (
    has_next_sentence_head,
    refuse_without_masked_token_head,
    training_statistics,
)
from bertmill.model.folder import LoadedModel
from bertmill.text.rows import read_rows
from bertmill.text.tokenizer import Tokenizer
from bertmill.train.validate import score_batches

# The file's names of the special tokens, in the order of `Tokenizer.special_tokens`.
_SPECIAL_NAMES = ("<pad>", "<unk>", "<cls>", "<sep>", "<mask>")
_PAIRS_AT_ONCE = 64


@dataclass(frozen=True)
class FrozenScores:
    """Means over the answers of frozen pairs, in nats or shares, and the `Yardsticks` of the same.

    The masked-token losses are given over all predictions, over those that show the mask token, and
    over those of the latter whose true word is in the vocabulary.
    """

    mlm_loss: float
    mlm_accuracy: float
    mlm_loss_at_mask: float | None
    mlm_loss_at_mask_known: float | None
    nsp_loss: float | None
    nsp_accuracy: float | None
    num_predictions: int
    num_at_mask: int
    num_at_mask_known: int
    num_pairs: int
    unigram_nats: float | None
    no_context_nats: float | None
    nsp_chance_nats: float | None
    nsp_overlap_nats: float | None
    nsp_overlap_accuracy: float | None


def evaluate_frozen_pairs(loaded: LoadedModel, path: str, device: torch.device) -> FrozenScores:
    """Score a model with a word-level vocabulary on pairs that were masked once and for all.

    Parameters
    ----------
    loaded : LoadedModel
    path : str
        ``.jsonl``, compressed or not; a pair a line: ``tokens`` (words as shown, with ``<cls>
        <sep> <mask> <unk>``), ``second_starts``, ``masked_at``, ``labels``, ``kinds`` (``mask``,
        ``keep`` or ``random``) and ``is_next``. A word that the vocabulary lacks is unknown.
    device : torch.device

    Raises
    ------
    ModelError
        The folder lacks the masked-token head.
    InputError
        Another kind of vocabulary, a line that is no such pair, or longer than the model's
        positions.
    CorpusError
        The file cannot be read.
    """
    refuse_without_masked_token_head(loaded)
    if not isinstance(loaded.tokenizer.backend.model, models.WordLevel):
        raise InputError(
            loaded.folder,
            "has a vocabulary of pieces; the frozen pairs are whole words",
            "give a model whose tokenizer.kind is word, or judge it with --held-out",
        )
    longest = loaded.model.section.max_position_embeddings
    records = [_checked(record, where, longest) for where, record in read_rows(path)]
    if not records:
        raise InputError(path, "holds no pairs", "give a file with a pair a line")
    records.sort(key=lambda record: -len(record["tokens"]))
    batches = [
        _to_batch(records[i : i + _PAIRS_AT_ONCE], loaded.tokenizer)
        for i in range(0, len(records), _PAIRS_AT_ONCE)
    ]
    scores = score_batches(loaded.model.to(device), batches, device)
    mlm = scores.mlm.numpy()
    at_mask = np.array([kind == "mask" for record in records for kind in record["kinds"]])
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
        num_pairs=len(records),
        **yardsticks._asdict(),
    )


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def _checked(record: dict[str, Any], where: str, longest: int) -> dict[str, Any]:
    """Return the record if it is a pair with masks that the model can take."""
    try:
        tokens, second, masked_at = record["tokens"], record["second_starts"], record["masked_at"]
        fits = (
            isinstance(record["labels"], list)
            and isinstance(record["kinds"], list)
            and "".join([*tokens, *record["labels"]]).encode()
            and all(type(place) is int for place in [second, *masked_at])
            and len(masked_at) == len(record["labels"]) == len(record["kinds"]) > 0
            and masked_at == sorted(set(masked_at))
            and masked_at[0] > 0
            and masked_at[-1] < len(tokens) - 1
            and 1 < second < len(tokens)
            and set(record["kinds"]) <= {"mask", "keep", "random"}
            and record["is_next"] in (0, 1)
            and (tokens[0], tokens[second - 1], tokens[-1]) == ("<cls>", "<sep>", "<sep>")
            and second - 1 not in masked_at
            and all(
                kind == "random" or tokens[at] == ("<mask>" if kind == "mask" else label)
                for at, kind, label in zip(
                    masked_at, record["kinds"], record["labels"], strict=True
                )
            )
        )
    except (KeyError, TypeError, ValueError, IndexError):
        fits = False
    if not fits:
        raise InputError(
            where,
            "is not a pair with masks",
            "write tokens, second_starts, masked_at, labels, kinds and is_next",
        )
    if len(tokens) > longest:
        raise InputError(
            where, f"has {len(tokens)} tokens, the model takes {longest}", "give another model"
        )
    return record


def _to_batch(records: list[dict[str, Any]], tokenizer: Tokenizer) -> Batch:
    specials = dict(zip(_SPECIAL_NAMES, tokenizer.special_tokens, strict=True))

    def ids(words: list[str]) -> list[int]:
        found = []
        for word in words:
            i = tokenizer.backend.token_to_id(specials.get(word, word))
            if i is None or (word not in specials and tokenizer.is_special[i]):
                i = tokenizer.unk_id  # a special token's name in a text is plain text
            found.append(i)
        return found

    lengths = [len(record["tokens"]) for record in records]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Batch(
        token_ids=np.array([i for record in records for i in ids(record["tokens"])]),
        segment_ids=np.concatenate(
            [
                np.arange(n) >= record["second_starts"]
                for n, record in zip(lengths, records, strict=True)
            ]
        ).astype(np.int64),
        position_ids=np.concatenate([np.arange(n) for n in lengths]),
        sequence_starts=starts,
        masked_at=np.concatenate(
            [
                start + np.array(record["masked_at"])
                for start, record in zip(starts, records, strict=False)
            ]
        ),
        masked_labels=np.array([i for record in records for i in ids(record["labels"])]),
        next_sentence_labels=np.array([int(record["is_next"]) for record in records]),
    )
