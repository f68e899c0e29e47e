"""Batches side by side: the results of one thread, and the number of threads as it was."""

import threading
import time

import numpy as np
import pytest
import torch

from bertmill.errors import InputError
from bertmill.use.parallel import map_batches

CPU = torch.device("cpu")


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
    batches = [np.arange(n, n + 3) for n in range(num_batches)]

    def compute(batch):
        time.sleep(0.005 * (num_batches - batch[0]))  # the first ends last
        return (batch**2).sum()

    assert map_batches(compute, batches, CPU) == [compute(batch) for batch in batches]
    assert torch.get_num_threads() == num_threads == num_threads_of_a_new_thread()


def test_a_batch_a_core(num_threads):
    """As many batches at once as there are threads: each waits until the others are there."""
    together = threading.Barrier(num_threads, timeout=20)

    def compute(batch):
        together.wait()
        return torch.get_num_threads()

    batches = [np.array([n]) for n in range(2 * num_threads)]
    assert map_batches(compute, batches, CPU) == [1] * (2 * num_threads)
    assert torch.get_num_threads() == num_threads == num_threads_of_a_new_thread()


@pytest.mark.parametrize("bad", [0, 3, 6])
def test_a_failure_is_passed_on(num_threads, bad):
    def compute(batch):
        if batch[0] == bad:
            raise InputError(f"batch {bad}", "is bad", "give another")
        return batch

    with pytest.raises(InputError, match=f"batch {bad}: is bad"):
        map_batches(compute, [np.array([n]) for n in range(7)], CPU)
    assert torch.get_num_threads() == num_threads == num_threads_of_a_new_thread()
