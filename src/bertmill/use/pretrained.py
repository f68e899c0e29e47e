"""A pretrained model: vectors in context, and words for masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from bertmill.errors import InputError, ModelError
from bertmill.model.encoder import PackedTokens
from bertmill.model.folder import load_model
from bertmill.model.heads import PretrainingModel
from bertmill.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Encoding:
    """The hidden vectors of one or two segments, special tokens included."""

    vectors: npt.NDArray[np.float32]
    """Shape (1, tokens, hidden_size), float32."""
    tokens: list[str]
    """Name of each row."""
    words: list[int | None]
    """Which word each row is a piece of, counted from 0 over both segments; None for special
    tokens. A word is an item of a given list, or what the tokenizer splits a text into."""

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


class Filler(NamedTuple):
    """A proposal for a mask."""

    token: str
    probability: float


class Pretrained:
    """A model folder in use: dropout off, no gradients.

    Parameters
    ----------
    model : PretrainingModel
    tokenizer : Tokenizer
    new_weights : sequence of str
        Tensors that the folder lacked; what depends on them is untrained.
    """

    def __init__(
        self, model: PretrainingModel, tokenizer: Tokenizer, new_weights: Sequence[str] = ()
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.new_weights = tuple(new_weights)

    def encode(
        self, first: str | Sequence[str], second: str | Sequence[str] | None = None
    ) -> Encoding:
        """Compute a vector for every token of one or two segments.

        Parameters
        ----------
        first, second : str or sequence of str
            A text, or a list of words, each of which the tokenizer may split further.

        Raises
        ------
        InputError
            Longer than the model's positions, or not text.

        Examples
        --------
        ``load("runs/d2l").encode(["a", "crane", "is", "flying"]).vectors.shape`` is (1, 6, 128)
        with a word-level vocabulary that knows these words.
        """
        token_ids = [self.tokenizer.cls_id]
        words: list[int | None] = [None]
        segment_ids = [0]
        next_word = 0
        for number, segment in enumerate((first,) if second is None else (first, second)):
            ids, owners, num_words = self._segment(segment)
            token_ids += [*ids, self.tokenizer.sep_id]
            words += [*(next_word + owner for owner in owners), None]
            segment_ids += [number] * (len(ids) + 1)
            next_word += num_words
        vectors = self._hidden(token_ids, segment_ids)[None].numpy()
        return Encoding(vectors, self.tokenizer.tokens(token_ids), words)

    def fill_mask(self, text: str, top: int = 5) -> list[list[Filler]]:
        """Propose tokens for each mask in a text.

        Parameters
        ----------
        text : str
            With the tokenizer's mask token in it, once or more.
        top : int
            Proposals a mask.

        Returns
        -------
        list of list of Filler
            A list a mask, in the order of the text, most probable first.

        Raises
        ------
        InputError
            No mask in the text, longer than the model's positions, or `top` out of range.
        ModelError
            The folder lacked the masked-token head.
        """
        if untrained := [n for n in self.new_weights if n.startswith("masked_token_head")]:
            raise ModelError(
                "fill-mask",
                f"the model has no masked-token head ({untrained[0]} is missing)",
                "give a model that was saved with its pretraining heads",
            )
        mask = self.tokenizer.mask_token
        _check_text(text)
        if mask not in text:
            raise InputError(
                "fill-mask", f"the text has no {mask}", f"write {mask} where a word is missing"
            )
        if not 1 <= top <= self.tokenizer.size:
            raise InputError("--top", f"is {top}", f"give 1 to {self.tokenizer.size}")
        token_ids = [self.tokenizer.cls_id]
        for number, part in enumerate(text.split(mask)):
            token_ids += [self.tokenizer.mask_id] if number else []
            token_ids += self._segment(part)[0]
        token_ids.append(self.tokenizer.sep_id)
        hidden = self._hidden(token_ids, [0] * len(token_ids))
        masked = torch.tensor([i == self.tokenizer.mask_id for i in token_ids])
        with torch.inference_mode():
            logits = self.model.masked_token_logits(hidden[masked])[:, : self.tokenizer.size]
            probabilities, ids = logits.softmax(-1).topk(top)
        return [
            [Filler(*pair) for pair in zip(self.tokenizer.tokens(row), shares, strict=True)]
            for row, shares in zip(ids.tolist(), probabilities.tolist(), strict=True)
        ]

    def _segment(self, segment: str | Sequence[str]) -> tuple[list[int], list[int], int]:
        """Ids, the word each belongs to, and the number of words."""
        if isinstance(segment, list | tuple):
            for text in segment:
                _check_text(text)
            flat, lengths = self.tokenizer.encode_batch(segment)
            owners = np.repeat(np.arange(len(segment)), lengths)
            return flat.tolist(), owners.tolist(), len(segment)
        _check_text(segment)
        assert isinstance(segment, str)
        ids, words = self.tokenizer.encode_words(segment)
        return ids, words, max(words, default=-1) + 1

    def _hidden(self, token_ids: list[int], segment_ids: list[int]) -> torch.Tensor:
        """Encode one sequence, [tokens, D]."""
        longest = self.model.section.max_position_embeddings
        if len(token_ids) > longest:
            raise InputError(
                "text",
                f"has {len(token_ids)} tokens, the model takes {longest}",
                "give a shorter text",
            )
        packed = PackedTokens(
            torch.tensor(token_ids),
            torch.tensor(segment_ids),
            torch.arange(len(token_ids)),
            [len(token_ids)],
        )
        with torch.inference_mode():
            hidden: torch.Tensor = self.model(packed)
        return hidden


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise InputError("text", f"{text!r} is not text", "give a string or a list of strings")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("text", "holds half a character (a lone surrogate)", "delete it") from None


def load(path: str | Path) -> Pretrained:
    """Open a run folder, a bertmill model folder or a Hugging Face BERT folder for use.

    Raises
    ------
    ModelError, TokenizerError
        Nothing there, another architecture, damaged, or without a tokenizer.
    """
    loaded = load_model(path)
    return Pretrained(loaded.model, loaded.tokenizer, loaded.new_weights)
