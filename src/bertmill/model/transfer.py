"""Going on from a pretrained model: its weights in a new one, its rows in a new vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from bertmill.model.folder import LoadedModel
from bertmill.model.pretraining import PretrainingModel
from bertmill.text.tokenizer import Tokenizer


def transfer_weights(model: PretrainingModel, tokenizer: Tokenizer, source: LoadedModel) -> int:
    """Copy a pretrained model's weights into a model of the same shape.

    Where the tokenizers differ, an entry takes the row of the same text in the source's vocabulary,
    a special token that of the same role. All other rows stay as they were drawn.

    Parameters
    ----------
    model : PretrainingModel
        Freshly drawn, with one row for each entry of `tokenizer`.
    tokenizer : Tokenizer
    source : LoadedModel
        Tensors that it lacks stay as they were drawn.

    Returns
    -------
    int
        Vocabulary entries that have their row from the source.
    """
    to, from_ = _shared_rows(tokenizer, source.tokenizer)
    fresh, by_token = model.state_dict(), model.tensors_by_token()
    found: dict[str, Tensor] = {}
    for name, tensor in source.model.state_dict().items():
        if name in source.new_weights:
            continue
        if name in by_token:
            found[name] = fresh[name].index_copy(0, to, tensor.index_select(0, from_))
        else:
            found[name] = tensor
    model.load_state_dict(fresh | found)
    return len(to)


def _shared_rows(new: Tokenizer, old: Tokenizer) -> tuple[Tensor, Tensor]:
    """Match ids of both vocabularies: equal texts, and special tokens by their role."""
    new_vocab, old_vocab = (t.backend.get_vocab(with_added_tokens=True) for t in (new, old))
    specials = {*new.special_tokens, *old.special_tokens}
    pairs = [
        (i, old_vocab[token])
        for token, i in new_vocab.items()
        if token in old_vocab and token not in specials
    ]
    pairs += [
        (new_vocab[ours], old_vocab[theirs])
        for ours, theirs in zip(new.special_tokens, old.special_tokens, strict=True)
    ]
    to, from_ = torch.tensor(sorted(pairs)).unbind(1)
    return to, from_
