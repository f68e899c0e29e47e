"""Words for masks: single tokens, whole words of several pieces, or given words only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from bertmill.errors import InputError
from bertmill.model.pretraining import PretrainingModel
from bertmill.text.tokenizer import Tokenizer
from bertmill.use.sequences import assemble, device_of, refuse_non_text, refuse_too_long

_BEAMS = 16
"""Beginnings of a word that are kept at each piece; more where more proposals are wanted."""
_MOST_PIECES = 10


class Filler(NamedTuple):
    """A proposal for a mask."""

    token: str
    """A token, or a word joined from its pieces."""
    probability: float


class MaskFiller:
    """Proposals for the masks of one text, one mask at a time, the others left as they are.

    Parameters
    ----------
    model : PretrainingModel
    tokenizer : Tokenizer
    text : str

    Raises
    ------
    InputError
        Not text, or no mask in it.
    """

    def __init__(self, model: PretrainingModel, tokenizer: Tokenizer, text: str) -> None:
        self._model, self._tokenizer = model, tokenizer
        refuse_non_text(text)
        mask = tokenizer.mask_token
        if mask not in text:
            raise InputError("`text`", f"has no {mask}", f"write {mask} where a word is missing")
        self._ids: list[int] = []
        for number, part in enumerate(text.split(mask)):
            self._ids += [tokenizer.mask_id] if number else []
            self._ids += tokenizer.encode_words(part)[0]
        self.masks = [at for at, i in enumerate(self._ids) if i == tokenizer.mask_id]

    def fill(
        self, top: int, targets: Sequence[str] | None, max_pieces: int | None
    ) -> list[list[Filler]]:
        """Propose tokens or words for each mask; see `Pretrained.fill_mask`."""
        if not 1 <= top <= self._tokenizer.size:
            raise InputError("`top`", f"is {top}", f"give 1 to {self._tokenizer.size}")
        if max_pieces is not None and not 1 <= max_pieces <= _MOST_PIECES:
            raise InputError("`max_pieces`", f"is {max_pieces}", f"give 1 to {_MOST_PIECES}")
        if targets is not None:
            return [self.among(at, targets)[:top] for at in self.masks]
        if max_pieces is not None:
            return [self.words(at, top, max_pieces) for at in self.masks]
        return [self.tokens(at, top) for at in self.masks]

    def tokens(self, at: int, top: int) -> list[Filler]:
        """Propose any tokens, the most probable first."""
        probabilities, ids = self._next_piece(at, [[]], 1)[0].topk(top)
        names = self._tokenizer.tokens(ids.tolist())
        return [Filler(*pair) for pair in zip(names, probabilities.tolist(), strict=True)]

    def words(self, at: int, top: int, max_pieces: int) -> list[Filler]:
        """Propose whole words, searched piece by piece among the most probable beginnings."""
        continues = torch.from_numpy(self._tokenizer.continues_word)
        begins = ~continues & ~torch.from_numpy(self._tokenizer.is_special)
        found: list[tuple[list[int], float]] = []
        for num_pieces in range(1, max_pieces + 1):
            beams: list[tuple[list[int], float]] = [([], 1.0)]
            for piece in range(num_pieces):
                shares = self._next_piece(at, [pieces for pieces, _ in beams], num_pieces)
                allowed = begins if piece == 0 else continues
                so_far = torch.tensor([probability for _, probability in beams])[:, None]
                shares = shares * allowed * so_far
                best, where = shares.flatten().topk(min(max(top, _BEAMS), shares.numel()))
                beams = [
                    ([*beams[place // shares.shape[1]][0], place % shares.shape[1]], probability)
                    for place, probability in zip(where.tolist(), best.tolist(), strict=True)
                    if probability > 0
                ]
                if not beams:
                    break
            found += [beam for beam in beams if self._is_spelled(beam[0])]
        found.sort(key=lambda beam: -beam[1])
        return [Filler(self._tokenizer.decode(pieces), p) for pieces, p in found[:top]]

    def among(self, at: int, targets: Sequence[str]) -> list[Filler]:
        """Return the probability of each of these words, the most probable first."""
        fillers = []
        for target in targets:
            refuse_non_text(target)
            pieces = self._tokenizer.encode_words(target)[0]
            if not pieces or self._tokenizer.unk_id in pieces:
                fix = "give words that it has"
                raise InputError("`targets`", f"{target!r} is not in the vocabulary", fix)
            probability = 1.0
            for done, piece in enumerate(pieces):
                shares = self._next_piece(at, [pieces[:done]], len(pieces))
                probability *= shares[0, piece].item()
            fillers.append(Filler(target, probability))
        return sorted(fillers, key=lambda filler: -filler.probability)

    def _is_spelled(self, pieces: list[int]) -> bool:
        """Whether the tokenizer would split the word that they spell into these pieces."""
        return self._tokenizer.encode_words(self._tokenizer.decode(pieces))[0] == pieces

    @torch.inference_mode()
    def _next_piece(
        self, at: int, beginnings: Sequence[list[int]], num_pieces: int
    ) -> torch.Tensor:
        """Probability of every token after each beginning of a word, [beginnings, V]."""
        done = len(beginnings[0])
        rest = [self._tokenizer.mask_id] * (num_pieces - done)
        before, after = self._ids[:at], self._ids[at + 1 :]
        texts = np.array([[*before, *pieces, *rest, *after] for pieces in beginnings])
        num_texts, length = texts.shape
        refuse_too_long(length + 2, self._model.section)
        ids = texts.ravel(), np.full(num_texts, length)
        device = device_of(self._model)
        sequences = assemble(self._tokenizer, ids, None, length + 2)
        hidden = self._model.encode(sequences.pack(np.arange(num_texts), device))
        places = torch.from_numpy(sequences.starts[:-1] + 1 + at + done).to(device)
        logits = self._model.masked_token_logits(hidden.index_select(0, places))
        return logits[:, : self._tokenizer.size].softmax(-1).cpu()
