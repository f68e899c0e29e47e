"""What `pretrain` returns: a run, its history, and how a notebook shows it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from html import escape
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bertmill.arrays import Ints
from bertmill.config import Recipe
from bertmill.data.store import Store, is_store
from bertmill.model.folder import load_model
from bertmill.show.curves import draw_losses
from bertmill.show.summary import closing_lines
from bertmill.train.device import open_device
from bertmill.train.metrics import Metrics
from bertmill.train.run_folder import RunFolder
from bertmill.train.session import Outcome
from bertmill.use.pretrained import Pretrained

_SHOWN_SENTENCES, _SHOWN_LENGTHS, _PROPOSALS = 5, range(8, 25), 3


@dataclass(frozen=True, repr=False)
class Run:
    """A pretraining run, and how its last session went."""

    folder: Path
    recipe: Recipe
    vocab_size: int
    train_documents: int
    outcome: Outcome

    @property
    def history(self) -> Metrics:
        """All that the run recorded: ``train``, one record per log interval, and ``held_out``."""
        return RunFolder(self.folder).metrics()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``pretrain --json`` prints them."""
        return {
            "run": str(self.folder),
            "recipe": self.recipe.name,
            "vocab_size": self.vocab_size,
            "train_documents": self.train_documents,
            **asdict(self.outcome),
        }

    def __repr__(self) -> str:
        return "\n".join(closing_lines(self.folder, self.outcome))

    def _repr_html_(self) -> str:
        """Show a notebook the curves, the held-out scores and some filled masks."""
        history = self.history
        lines = "<br>".join(escape(line) for line in repr(self).splitlines())
        parts = [f"<p>{lines}</p>"]
        if history.loss_kinds:
            picture = b64encode(draw_losses(history)).decode()
            parts.append(f'<img alt="both losses" src="data:image/png;base64,{picture}">')
        rows = [f"<tr><td>{'</td><td>'.join(map(escape, row))}</td></tr>" for row in self.fill()]
        if rows:
            head = "<tr><th>held-out text</th><th>hidden</th><th>proposed</th></tr>"
            parts.append(f"<table>{head}{''.join(rows)}</table>")
        return "\n".join(parts)

    def fill(self) -> Iterator[tuple[str, str, str]]:
        """Hide a word in each of some held-out sentences, and have the model propose words for it.

        Yields
        ------
        tuple of str
            The sentence with a mask, the hidden word, and the proposals. Nothing where the run's
            store holds nothing out or is gone.

        Raises
        ------
        BertmillError
            The store or the model is damaged.
        """
        _, facts = RunFolder(self.folder).read()
        if not is_store(facts.store):
            return
        store, model = (
            Store(facts.store),
            Pretrained(load_model(self.folder), open_device(self.recipe.train.device)),
        )
        tokenizer = store.tokenizer
        sentences = (ids for ids in _sentences(store) if len(ids) in _SHOWN_LENGTHS)
        for ids in islice(sentences, _SHOWN_SENTENCES):
            # A word of one piece, as near the middle as there is one.
            is_piece = tokenizer.continues_word[ids]
            whole = np.flatnonzero(~is_piece & ~np.append(is_piece[1:], False))
            if len(whole):
                at = whole[len(whole) // 2]
                hidden = tokenizer.decode([ids[at]])
                ids[at] = tokenizer.mask_id
                text = tokenizer.decode(ids)
                fillers = model.fill_mask(text, _PROPOSALS)[0]
                proposals = ", ".join(f"{each.token} {each.probability:.0%}" for each in fillers)
                yield text, hidden, proposals


def _sentences(store: Store) -> Iterator[Ints]:
    """Stream the held-out sentences as ids."""
    for number in range(store.held_out.num_blocks):
        block = store.held_out.block(number)
        for start, stop in pairwise(block.sentence_starts.tolist()):
            yield block.tokens[start:stop].astype(np.int64)
