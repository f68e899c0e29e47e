"""A pretrained or fine-tuned model in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from bertmill.arrays import Ints
from bertmill.errors import InputError, ModelError
from bertmill.model.folder import LoadedModel, load_model
from bertmill.model.task import Task
from bertmill.train.device import open_device
from bertmill.use.fill_mask import Filler, MaskFiller
from bertmill.use.pooling import POOLING_MODES, Pooling, default_pooling, longest_text
from bertmill.use.predict import (
    Predictions,
    compute_outputs,
    text_inputs,
    to_predictions,
    word_inputs,
)
from bertmill.use.score import pseudo_log_likelihoods
from bertmill.use.sequences import (
    by_length,
    make_sequences,
    map_batches,
    pack_lists,
    refuse_no_text,
    refuse_too_long,
)
from bertmill.use.similar import SimilarWord, cosine, find_word

_MOST_PIECES = 10


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


class Pretrained:
    """A model folder in use: dropout off, no gradients.

    Parameters
    ----------
    loaded : LoadedModel
    device : torch.device

    Attributes
    ----------
    model : PretrainingModel
    tokenizer : Tokenizer
    new_weights : tuple of str
        Tensors that the folder lacked; what depends on them is untrained.
    task : Task or None
        What `predict` answers, in a fine-tuned model.
    is_pair : bool or None
        Whether it was fine-tuned on pairs of texts, where its folder says so.
    """

    def __init__(self, loaded: LoadedModel, device: torch.device) -> None:
        self.model, self.tokenizer = loaded.model.to(device), loaded.tokenizer
        self.new_weights = loaded.new_weights
        self._task_model = None if loaded.task_model is None else loaded.task_model.to(device)
        self.task = None if loaded.task_model is None else loaded.task_model.task
        self.is_pair = None if loaded.task_model is None else loaded.task_model.is_pair
        self._device, self._loaded = device, loaded

    @cached_property
    def pooling(self) -> Pooling:
        """How sentence vectors are made where a call does not say.

        Raises
        ------
        ModelError
            The folder says it in a way that bertmill does not compute.
        """
        return default_pooling(self._loaded)

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

    def embed(
        self,
        texts: str | Sequence[str],
        pool: str | None = None,
        normalize: bool | None = None,
    ) -> npt.NDArray[np.float32]:
        """Compute a vector for each text; what is longer than `pooling.max_length` loses its end.

        Parameters
        ----------
        texts : str or sequence of str
        pool : str, optional
            ``mean`` of the token vectors, special tokens included, or that of ``cls``; else as the
            model's folder says, else ``mean``.
        normalize : bool, optional
            Whether vectors are brought to length 1; else as the model's folder says, else not.

        Returns
        -------
        ndarray of float32, shape (len(texts), hidden_size); (hidden_size,) for one text

        Raises
        ------
        InputError
            Something is not text, or another `pool`.
        ModelError
            The folder says how to pool in a way that bertmill does not compute.

        Examples
        --------
        ``load("runs/tiny").embed(["a crane", "a bird"]).shape`` is (2, 128).
        """
        if isinstance(texts, str):
            texts = [texts]
            return self.embed_counted(texts, pool, normalize)[0].squeeze(0)
        return self.embed_counted(texts, pool, normalize)[0]

    def embed_counted(
        self, texts: Sequence[str], pool: str | None, normalize: bool | None
    ) -> tuple[npt.NDArray[np.float32], int]:
        """Compute as `embed`, and count the texts that lost their end."""
        pooling = self._choose_pooling(pool, normalize)
        sequences = make_sequences(self.tokenizer, texts, None, pooling.max_length)

        @torch.inference_mode()
        def pooled(rows: Ints) -> torch.Tensor:
            packed = sequences.pack(rows, self._device)
            return pooling.pool(self.model.encode(packed), packed).cpu()

        vectors = np.empty((len(texts), self.model.section.hidden_size), np.float32)
        batches = by_length(sequences.lengths)
        for rows, found in zip(batches, map_batches(pooled, batches, self._device), strict=True):
            vectors[rows] = found.numpy()
        return vectors, sequences.num_cut

    def fill_mask(
        self,
        text: str,
        top: int = 5,
        *,
        targets: Sequence[str] | None = None,
        max_pieces: int | None = None,
    ) -> list[list[Filler]]:
        """Propose tokens or words for each mask in a text.

        Parameters
        ----------
        text : str
            With the tokenizer's mask token in it, once or more.
        top : int
            Proposals a mask.
        targets : sequence of str, optional
            Words to choose from. Of a word of several pieces, the probability is the product of its
            pieces', each given those before it and masks behind it.
        max_pieces : int, optional
            Propose whole words of up to so many pieces, instead of tokens. A mask stands for a
            word then; how many pieces it has is not part of the probability.

        Returns
        -------
        list of list of Filler
            A list a mask, in the order of the text, most probable first.

        Raises
        ------
        InputError
            No mask in the text, longer than the model's positions, `top` or `max_pieces` out of
            range, or a target that the vocabulary cannot write.
        ModelError
            The folder lacked the masked-token head.
        """
        self._refuse_without_masked_token_head("fill-mask")
        mask = self.tokenizer.mask_token
        refuse_no_text(text)
        if mask not in text:
            raise InputError(
                "fill-mask", f"the text has no {mask}", f"write {mask} where a word is missing"
            )
        if not 1 <= top <= self.tokenizer.size:
            raise InputError("--top", f"is {top}", f"give 1 to {self.tokenizer.size}")
        if max_pieces is not None and not 1 <= max_pieces <= _MOST_PIECES:
            raise InputError("--max-pieces", f"is {max_pieces}", f"give 1 to {_MOST_PIECES}")
        token_ids = [self.tokenizer.cls_id]
        for number, part in enumerate(text.split(mask)):
            token_ids += [self.tokenizer.mask_id] if number else []
            token_ids += self._segment(part)[0]
        token_ids.append(self.tokenizer.sep_id)
        filler = MaskFiller(self.model, self.tokenizer, token_ids, self._device)
        if targets is not None:
            return [filler.among(at, targets)[:top] for at in filler.masks]
        if max_pieces is not None:
            return [filler.words(at, top, max_pieces) for at in filler.masks]
        return [filler.tokens(at, top) for at in filler.masks]

    def score(
        self, texts: str | Sequence[str], *, mask_rest_of_word: bool = False
    ) -> npt.NDArray[np.float64]:
        """Compute the pseudo-log-likelihood of each text (Salazar et al. 2020), in nats.

        Parameters
        ----------
        texts : str or sequence of str
        mask_rest_of_word : bool
            Mask the later pieces of a word with the one that is scored (Kauf and Ivanova 2023).

        Returns
        -------
        ndarray of float64, shape (len(texts),); () for one text

        Raises
        ------
        InputError
            Something is not text, or longer than the model's positions.
        ModelError
            The folder lacked the masked-token head.
        """
        self._refuse_without_masked_token_head("score")
        listed = [texts] if isinstance(texts, str) else texts
        found = pseudo_log_likelihoods(
            self.model, self.tokenizer, listed, mask_rest_of_word, self._device
        )
        return found[0] if isinstance(texts, str) else found

    def similar_words(
        self, text: str, word: str, among: Sequence[str], top: int = 10
    ) -> list[SimilarWord]:
        """Rank the words of other texts by how near their vectors are to a word's in this text.

        Parameters
        ----------
        text : str
        word : str
            As it stands in `text`; its first occurrence counts.
        among : sequence of str
            Texts.
        top : int

        Returns
        -------
        list of SimilarWord
            The nearest first. The same word is among them, where its neighbors make it similar.

        Raises
        ------
        InputError
            The word is not in the text or not in the vocabulary, a text is longer than the model's
        positions, or `top` is out of range.

        Examples
        --------
        ``model.similar_words("a crane is flying", "crane", ["a crane driver came"])``
        """
        if top < 1:
            raise InputError("--top", f"is {top}", "give 1 or more")
        encoding = self.encode(text)
        tokens = find_word(self.tokenizer, text, word)
        if tokens is None:
            raise InputError("--word", f"{word!r} is not in the text {text!r}", "give one that is")
        first_row = 1  # behind [CLS]
        vector = encoding.vectors[0, [first_row + token for token in tokens]].mean(0)
        found = []
        for other in [among] if isinstance(among, str) else among:
            encoding = self.encode(other)
            for number, name in encoding.word_names.items():
                found.append(SimilarWord(name, other, cosine(vector, encoding.word_vector(number))))
        found.sort(key=lambda similar: -similar.cosine)
        return found[:top]

    def predict(
        self,
        texts: Sequence[str] | Sequence[Sequence[str]],
        second: Sequence[str] | None = None,
    ) -> Predictions:
        """Answer with a fine-tuned model.

        Parameters
        ----------
        texts : sequence of str, or of sequences of str
            Texts, or lists of words where `task.kind` is ``words``.
        second : sequence of str, optional
            The second text of each pair.

        Returns
        -------
        list
            A `Prediction` a text; a number a text (regression); or a list a text with a
            `Prediction` a word, None for words that did not fit into the model.

        Raises
        ------
        InputError
            Something is not text, or not as many second texts as first ones.
        ModelError
            The model was not fine-tuned.
        """
        return self.predict_counted(texts, second)[0]

    def predict_counted(
        self,
        texts: Sequence[str] | Sequence[Sequence[str]],
        second: Sequence[str] | None,
    ) -> tuple[Predictions, int]:
        """Predict as `predict`, and count the texts that lost their end."""
        task = self.require_task()
        assert self._task_model is not None
        is_words = task.kind == "words"
        if isinstance(texts, str) or (is_words and any(isinstance(text, str) for text in texts)):
            raise InputError(
                "texts",
                f"{str(texts)[:80]!r} is not what the model answers about",
                f"give a list of {'lists of words' if is_words else 'texts'}",
            )
        if second is not None and (is_words or len(second) != len(texts)):
            raise InputError(
                "texts", f"{len(texts)} and {len(second)} are no pairs", "give as many of both"
            )
        if self.is_pair is not None and not is_words and self.is_pair != (second is not None):
            learned = "pairs of texts" if self.is_pair else "single texts"
            raise InputError(
                "texts",
                f"are not what the model was fine-tuned on, {learned}",
                "give those (--text-b-column names the second texts)",
            )
        max_length = longest_text(self._loaded)
        if is_words:
            inputs = word_inputs(self.tokenizer, texts, max_length)
        else:
            inputs = text_inputs(self.tokenizer, cast(Sequence[str], texts), second, max_length)
        outputs = compute_outputs(self._task_model, inputs, self._device)
        return to_predictions(task, outputs, inputs), inputs.sequences.num_cut

    def require_task(self) -> Task:
        """Return what the model was fine-tuned for.

        Raises
        ------
        ModelError
            It was not fine-tuned.
        """
        if self.task is None:
            raise ModelError(
                self._loaded.folder,
                "was not fine-tuned for a task",
                "give a folder that finetune wrote",
            )
        return self.task

    def _refuse_without_masked_token_head(self, where: str) -> None:
        if untrained := [n for n in self.new_weights if n.startswith("masked_token_head")]:
            raise ModelError(
                where,
                f"the model has no masked-token head ({untrained[0]} is missing)",
                "give a model that was saved with its pretraining heads",
            )

    def _choose_pooling(self, pool: str | None, normalize: bool | None) -> Pooling:
        if pool is not None and pool not in POOLING_MODES:
            raise InputError(
                "--pool", f"{pool!r} is not known", f"give {' or '.join(POOLING_MODES)}"
            )
        return Pooling(
            pool or self.pooling.mode,
            self.pooling.normalize if normalize is None else normalize,
            self.pooling.max_length,
        )

    def _segment(self, segment: str | Sequence[str]) -> tuple[list[int], list[int], int]:
        """Ids, the word each belongs to, and the number of words."""
        if isinstance(segment, list | tuple):
            for text in segment:
                refuse_no_text(text)
            flat, lengths = self.tokenizer.encode_batch(segment)
            owners = np.repeat(np.arange(len(segment)), lengths)
            return flat.tolist(), owners.tolist(), len(segment)
        refuse_no_text(segment)
        assert isinstance(segment, str)
        ids, words = self.tokenizer.encode_words(segment)
        return ids, words, max(words, default=-1) + 1

    def _hidden(self, token_ids: list[int], segment_ids: list[int]) -> torch.Tensor:
        """Encode one sequence, [tokens, D]."""
        refuse_too_long(token_ids, self.model.section)
        packed = pack_lists([token_ids], self._device)
        packed.segment_ids.copy_(torch.tensor(segment_ids))
        with torch.inference_mode():
            hidden: torch.Tensor = self.model.encode(packed)
        return hidden.cpu()


def load(path: str | Path, device: str = "auto") -> Pretrained:
    """Open a run folder, a bertmill model folder or a Hugging Face BERT folder for use.

    Parameters
    ----------
    path : str or Path
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    ModelError, TokenizerError
        Nothing there, another architecture, damaged, or without a tokenizer.
    RecipeError
        No such device.
    """
    return Pretrained(load_model(path), open_device(device))
