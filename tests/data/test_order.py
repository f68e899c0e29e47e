import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertmill.data.order import EpochOrder


def order_with(window_blocks: int, *args) -> EpochOrder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertmill.data.order.WINDOW_BLOCKS", window_blocks)
        return EpochOrder(*args)


def visited(order: EpochOrder) -> list[tuple[int, int]]:
    """(block, example) at each place of the epoch."""
    places = np.arange(order.num_examples)
    out = [(-1, -1)] * len(places)
    for located in order.locate(places):
        blocks = located.window.blocks[located.blocks]
        for row, block, example in zip(located.rows, blocks, located.examples, strict=True):
            out[row] = (int(block), int(example))
    return out


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4)), min_size=1, max_size=12),
    st.integers(1, 5),
)
def test_an_epoch_visits_every_example_once(blocks, window_blocks):
    examples, documents = (np.array(column) for column in zip(*blocks, strict=True))
    order = order_with(window_blocks, examples, documents, 11)
    wanted = [(b, e) for b, count in enumerate(examples) for e in range(count)]
    assert sorted(visited(order)) == wanted


@given(st.lists(st.integers(1, 2), min_size=2, max_size=12), st.integers(1, 4))
def test_every_window_has_two_documents(documents, window_blocks):
    order = order_with(window_blocks, np.ones(len(documents), int), np.array(documents), 3)
    assert all(window.document_starts[-1] >= 2 for window in order.windows)


def test_reads_stay_inside_a_window():
    order = order_with(3, np.full(12, 50), np.full(12, 5), 1)
    for start in range(0, 600, 150):
        assert len({block for block, _ in visited(order)[start : start + 150]}) == 3


def test_other_keys_give_other_orders():
    one, two = (EpochOrder(np.full(4, 100), np.full(4, 5), key) for key in (1, 2))
    same = sum(a == b for a, b in zip(visited(one), visited(two), strict=True))
    assert same < 10


@pytest.mark.parametrize("size", [1, 7, 400])
def test_places_can_be_asked_for_in_any_portions(size):
    order = EpochOrder(np.full(4, 100), np.full(4, 5), 9)
    portions = []
    for start in range(0, 400, size):
        places = np.arange(start, min(start + size, 400))
        for located in order.locate(places):
            blocks = located.window.blocks[located.blocks]
            portions += zip((start + located.rows).tolist(), blocks, located.examples, strict=True)
    whole = visited(order)
    assert all(whole[place] == (block, example) for place, block, example in portions)
