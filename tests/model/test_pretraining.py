"""Operations of a step, beside a count of those that another program really makes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForPreTraining

from bertmill.config import ModelSection
from bertmill.model.pretraining import count_step_flops


def section(**changes) -> ModelSection:
    shape = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2}
    return ModelSection(**shape | {"intermediate_size": 8} | changes)


def test_a_tiny_step_by_hand():
    """Two layers of width 4, inner 8, vocabulary 10; sequences of 3 and 2, 2 masks, 2 pairs."""
    first = 2 * 5 * (4 * 12 + 4 * 4 + 4 * 8 + 8 * 4)
    first += 2 * (3 * 4 * 3 + 2 * 4 * 2)  # scores
    first += 2 * (3 * 3 * 4 + 2 * 2 * 4)  # mixing
    # Both masks are in the first sequence, so that 3 and 1 tokens ask in the second layer.
    last = 2 * 5 * 4 * 8 + 2 * 4 * (4 * 4 + 4 * 4 + 4 * 8 + 8 * 4)
    last += 2 * (3 * 4 * 3 + 1 * 4 * 2)
    last += 2 * (3 * 3 * 4 + 1 * 2 * 4)
    masks = 2 * 2 * (4 * 4 + 4 * 10)
    pairs = 2 * 2 * (4 * 4 + 4 * 2)
    assert [first, last, masks, pairs] == [1488, 1264, 224, 96]
    two = section(num_hidden_layers=2)
    assert count_step_flops(two, 10, [3, 2], [3, 1], 2, 2) == 3 * 3072
    assert count_step_flops(two, 10, [3, 2], [3, 1], 2, 0) == 3 * (3072 - 96)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("heads", [1, 4])
def test_as_many_as_transformers_makes(tied, heads):
    """Sequences of a length together, so that it pads nothing; it tells every token."""
    own = section(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=heads, intermediate_size=40
    )
    config = BertConfig(
        **own.model_dump(include={"hidden_size", "num_hidden_layers", "num_attention_heads"}),
        intermediate_size=40,
        vocab_size=50,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    model, made = BertForPreTraining(config).train(), 0
    for length, count in ((5, 2), (3, 1), (9, 4)):
        ids = torch.arange(count * length).view(count, length) % 50
        with FlopCounterMode(display=False) as counter:
            labels = torch.zeros(count, dtype=torch.long)
            model(ids, labels=ids, next_sentence_label=labels).loss.backward()
        made += counter.get_total_flops()
    lengths = [5, 5, 3, 9, 9, 9, 9]
    assert count_step_flops(own, 50, lengths, lengths, sum(lengths), 7) == made
