"""Texts to vectors: one for every token, or one for a whole text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bertmill.errors import InputError
from bertmill.model.pretraining import PretrainingModel
from bertmill.text.tokenizer import Tokenizer
from bertmill.use.sequences import assemble, device_of, refuse_non_text, refuse_too_long

_ONE_ROW = np.zeros(1, np.int64)


@dataclass(frozen=True)
class Encoding:
    """The hidden vectors of one or two segments, special tokens included."""

    vectors: npt.NDArray[np.float32]
    """Shape (1, tokens, hidden_size), float32."""
    tokens: list[str]
    """Name of each row."""
    words: list[int | None]
    """Which word each row belongs to, counted from 0 over both segments; None for special tokens.
    A word is an item of a given list, or what the tokenizer splits a text into."""

    @property
    def word_names(self) -> dict[int, str]:
        """Each word by its number, as the model reads it, joined from its pieces."""
        names: dict[int, str] = {}
        for token, owner in zip(self.tokens, self.words, strict=True):
            if owner is not None:
                names[owner] = names[owner] + token.removeprefix("##") if owner in names else token
        return names

    def word_vector(self, word: int) -> npt.NDArray[np.float32]:
        """Mean of a word's rows, shape (hidden_size,).

        Raises
        ------
        InputError
            No row belongs to this word.
        """
        rows = [i for i, owner in enumerate(self.words) if owner == word]
        if not rows:
            known = sorted({w for w in self.words if w is not None})
            fix = f"words go from 0 to {known[-1]}" if known else "the text has no words"
            raise InputError(f"word {word}", "has no vector", fix)
        mean: npt.NDArray[np.float32] = self.vectors[0, rows].mean(0)
        return mean


def encode_segments(
    model: PretrainingModel, tokenizer: Tokenizer, segments: Sequence[str | Sequence[str]]
) -> Encoding:
    """Compute a vector for every token of one or two segments; see `Pretrained.encode`."""
    words: list[int | None] = [None]
    tokenized, next_word = [], 0
    for segment in segments:
        ids, owners, num_words = _tokenize(tokenizer, segment)
        tokenized.append((np.array(ids, np.int64), np.array([len(ids)])))
        words += [*(next_word + owner for owner in owners), None]
        next_word += num_words
    refuse_too_long(len(words), model.section)
    second = tokenized[1] if len(tokenized) == 2 else None
    sequence = assemble(tokenizer, tokenized[0], second, len(words))
    with torch.inference_mode():
        hidden: torch.Tensor = model.encode(sequence.pack(_ONE_ROW, device_of(model)))
    return Encoding(hidden.cpu()[None].numpy(), tokenizer.tokens(sequence.token_ids), words)


def _tokenize(
    tokenizer: Tokenizer, segment: str | Sequence[str]
) -> tuple[list[int], list[int], int]:
    """Ids, the word each belongs to, and the number of words."""
    for text in segment if isinstance(segment, list | tuple) else [segment]:
        refuse_non_text(text)
    if not isinstance(segment, str):
        flat, lengths = tokenizer.encode_batch(segment)
        owners = np.repeat(np.arange(len(segment)), lengths)
        return flat.tolist(), owners.tolist(), len(segment)
    ids, words = tokenizer.encode_words(segment)
    return ids, words, max(words, default=-1) + 1
