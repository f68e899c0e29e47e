"""Batches side by side: the results of one thread, and the number of threads as it was."""

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertmill.errors import InputError
from bertmill.use.parallel import group_by_length, map_by_length

CPU = torch.device("cpu")


def full(num_batches):
    """Lengths of sequences each of which is a batch of its own, in their order."""
    return np.arange(3000 + num_batches, 3000, -1)


@pytest.fixture(params=[1, 2, 3])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def num_threads_of_a_new_thread() -> int:
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("num_batches", [0, 1, 2, 7])
def test_results_are_those_of_one_thread(num_threads, num_batches):
    def compute(rows):
        time.sleep(0.005 * (num_batches - rows[0]))  # the first ends last
        return (rows**2).sum()

    found = map_by_length(compute, full(num_batches), CPU)
    assert [(rows.tolist(), value) for rows, value in found] == [
        ([n], n**2) for n in range(num_batches)
    ]
    assert torch.get_num_threads() == num_threads == num_threads_of_a_new_thread()


def test_a_batch_a_core(num_threads):
    """As many batches at once as there are threads: each waits until the others are there."""
    together = threading.Barrier(num_threads, timeout=20)

    def compute(_):
        together.wait()
        return torch.get_num_threads()

    found = map_by_length(compute, full(2 * num_threads), CPU)
    assert [threads for _, threads in found] == [1] * (2 * num_threads)
    assert torch.get_num_threads() == num_threads == num_threads_of_a_new_thread()


@pytest.mark.parametrize("bad", [0, 3, 6])
def test_a_failure_is_passed_on(num_threads, bad):
    def compute(rows):
        if rows[0] == bad:
            raise InputError(f"batch {bad}", "is bad", "give another")
        return rows

    with pytest.raises(InputError, match=f"batch {bad}: is bad"):
        map_by_length(compute, full(7), CPU)
    assert torch.get_num_threads() == num_threads == num_threads_of_a_new_thread()


@given(st.lists(st.integers(1, 600)), st.integers(1, 3000))
def test_groups_by_length(lengths, tokens_at_once):
    lengths = np.array(lengths, np.int64)
    groups = group_by_length(lengths, tokens_at_once)
    rows = [row for group in groups for row in group.tolist()]
    # Longest first, and the given order among equals.
    assert rows == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    assert all(len(group) for group in groups)
    # "About so many" is less than one row more, and one group holds what fits.
    assert all(lengths[g].sum() < tokens_at_once + lengths[g].max() for g in groups)
    assert len(groups) <= -(-lengths.sum() // tokens_at_once)


def test_groups_are_full():
    # Tokens end at 4, 8, 10 and 12 of the order 1, 3, 0, 2; a group at 6 and 12.
    assert [g.tolist() for g in group_by_length(np.array([2, 4, 2, 4]), 6)] == [[1], [3, 0, 2]]
    assert len(group_by_length(np.full(128, 64))) == 4
