"""A pretrained or fine-tuned model in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from bertmill.arrays import Ints
from bertmill.errors import InputError, ModelError
from bertmill.model.folder import LoadedModel
from bertmill.model.pooling import POOLING_MODES, Pooling, default_pooling, longest_text
from bertmill.model.task import TaskModel
from bertmill.use.encode import Encoding, encode_segments
from bertmill.use.examples import Examples
from bertmill.use.fill_mask import Filler, MaskFiller
from bertmill.use.parallel import map_by_length
from bertmill.use.predict import Predictions, predict_texts
from bertmill.use.score import pseudo_log_likelihoods
from bertmill.use.sequences import device_of, make_sequences
from bertmill.use.similar import SimilarWord, rank_words


class Pretrained:
    """A model folder in use: dropout off, no gradients.

    Parameters
    ----------
    loaded : LoadedModel
    device : torch.device

    Attributes
    ----------
    loaded : LoadedModel
    model : PretrainingModel
    tokenizer : Tokenizer
    new_weights : tuple of str
        Tensors that the folder lacked; what depends on them is untrained.
    task : Task or None
        What `predict` answers, in a fine-tuned model.
    is_pair : bool or None
        Whether it was fine-tuned on pairs of texts, where its folder says so.

    Notes
    -----
    `embed`, `score` and `predict` compute one batch per core on the CPU. Meanwhile
    ``torch.get_num_threads()``, a setting of the whole process, is 1; it is restored afterwards.
    Calls from several threads take turns.
    """

    def __init__(self, loaded: LoadedModel, device: torch.device) -> None:
        self.loaded, self.model, self.tokenizer = loaded, loaded.model.to(device), loaded.tokenizer
        self.new_weights = loaded.new_weights
        self._task_model = None if loaded.task_model is None else loaded.task_model.to(device)
        self.task = None if loaded.task_model is None else loaded.task_model.task
        self.is_pair = None if self.task is None else self.task.is_pair

    def __repr__(self) -> str:
        folder, section, size = self.loaded.folder, self.model.section, self.tokenizer.size
        task = "" if self.task is None else f", fine-tuned for {self.task.kind}"
        return (
            f"{folder}: {section.num_hidden_layers} layers, {section.hidden_size} wide, "
            f"{section.num_attention_heads} heads, {size:,} vocabulary entries{task}"
        )

    @cached_property
    def pooling(self) -> Pooling:
        """How sentence vectors are made where a call does not say.

        Raises
        ------
        ModelError
            The folder says it in a way that bertmill does not compute.
        """
        return default_pooling(self.loaded)

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
        segments = [first] if second is None else [first, second]
        return encode_segments(self.model, self.tokenizer, segments)

    def embed(
        self,
        texts: str | Sequence[str],
        pool: str | None = None,
        normalize: bool | None = None,
    ) -> npt.NDArray[np.float32]:
        """Compute a vector for each text; one longer than `pooling.max_length` loses its end.

        Parameters
        ----------
        texts : str or sequence of str
        pool : str, optional
            ``mean`` of the token vectors, special tokens included, or that of ``cls``. By default
            as the model's folder says, else ``mean``.
        normalize : bool, optional
            Whether to scale vectors to length 1. By default as the model's folder says, else not.

        Returns
        -------
        ndarray of float32, shape (len(texts), hidden_size); (hidden_size,) for one text

        Raises
        ------
        InputError
            Something is not text, or an unknown `pool`.
        ModelError
            The folder says how to pool in a way that bertmill does not compute.

        Examples
        --------
        ``load("runs/tiny").embed(["a crane", "a bird"]).shape`` is (2, 128).
        """
        listed = [texts] if isinstance(texts, str) else texts
        vectors, _ = self.embed_counted(listed, pool, normalize)
        return vectors[0] if isinstance(texts, str) else vectors

    def embed_counted(
        self, texts: Sequence[str], pool: str | None, normalize: bool | None
    ) -> tuple[npt.NDArray[np.float32], int]:
        """Compute as `embed`, and count the texts that lost their end."""
        if pool is not None and pool not in POOLING_MODES:
            raise InputError(
                "`pool`", f"{pool!r} is not known", f"give {' or '.join(POOLING_MODES)}"
            )
        own = self.pooling
        normalize = own.normalize if normalize is None else normalize
        pooling = replace(own, mode=pool or own.mode, normalize=normalize)
        sequences = make_sequences(self.tokenizer, texts, None, pooling.max_length)
        device = device_of(self.model)

        @torch.inference_mode()
        def pooled(rows: Ints) -> torch.Tensor:
            packed = sequences.pack(rows, device)
            return pooling.pool(self.model.encode(packed), packed).cpu()

        vectors = np.empty((len(texts), self.model.section.hidden_size), np.float32)
        for rows, found in map_by_length(pooled, sequences.lengths, device):
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
            Proposals per mask.
        targets : sequence of str, optional
            Words to choose from. The probability of a word of several pieces is the product of its
            pieces' probabilities, each given the pieces before it and masks after it.
        max_pieces : int, optional
            Propose whole words of up to so many pieces instead of tokens. Each mask then stands for
            a word; the number of its pieces is not part of the probability.

        Returns
        -------
        list of list of Filler
            One list per mask, in the order of the text, most probable first.

        Raises
        ------
        InputError
            No mask in the text, longer than the model's positions, `top` or `max_pieces` out of
            range, or a target that the vocabulary cannot write.
        ModelError
            The folder lacked the masked-token head.
        """
        refuse_without_masked_token_head(self.loaded)
        return MaskFiller(self.model, self.tokenizer, text).fill(top, targets, max_pieces)

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
        refuse_without_masked_token_head(self.loaded)
        listed = [texts] if isinstance(texts, str) else texts
        found = pseudo_log_likelihoods(self.model, self.tokenizer, listed, mask_rest_of_word)
        return found[0] if isinstance(texts, str) else found

    def similar_words(
        self, text: str, word: str, among: Sequence[str], top: int = 10
    ) -> list[SimilarWord]:
        """Rank the words of other texts by how near their vectors are to a word's in this text.

        Parameters
        ----------
        text : str
        word : str
            As written in `text`; its first occurrence counts.
        among : sequence of str
            Texts.
        top : int
            Words to return.

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
        return rank_words(self.encode, self.tokenizer, text, word, among, top)

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
            Per text: a `Prediction`; a number (regression); or a list with one `Prediction` per
            word, None for words that did not fit into the model.

        Raises
        ------
        InputError
            Something is not text, or not as many second texts as first ones.
        ModelError
            The model was not fine-tuned.
        """
        examples = Examples(self.require_task_model().task.kind, texts, second)
        return self.predict_counted(examples)[0]

    def predict_counted(self, examples: Examples) -> tuple[Predictions, int]:
        """Predict as `predict`, and count the texts that lost their end."""
        longest = longest_text(self.loaded)
        return predict_texts(self.require_task_model(), self.tokenizer, examples, longest)

    def require_task_model(self) -> TaskModel:
        """Return the fine-tuned model.

        Raises
        ------
        ModelError
            It was not fine-tuned.
        """
        if self._task_model is None:
            raise ModelError(self.loaded.folder, "was not fine-tuned for a task", "fine-tune it")
        return self._task_model


def refuse_without_masked_token_head(loaded: LoadedModel) -> None:
    """Raise `ModelError` where the masked-token head has random weights."""
    if "masked_token_head" in loaded.new_parts:
        raise ModelError(
            loaded.folder,
            "has no masked-token head",
            "give a folder that was saved with one, or train one by pretraining with `init_from`",
        )
