import ctypes
import os
import resource
from pathlib import Path

import pytest
import torch

from bertmill.train.malloc import freed_memory_kept

NUM_BYTES = 200_000_000


def make_and_free(num_times):
    for _ in range(num_times):
        torch.ones(NUM_BYTES // 4)


def pages_handed_out():
    """By the system to this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_is_used_again_inside_and_given_back_at_the_end():
    num_pages = NUM_BYTES // os.sysconf("SC_PAGE_SIZE")
    start, before = pages_handed_out(), resident_bytes()
    make_and_free(1)
    assert pages_handed_out() - start >= num_pages
    with freed_memory_kept():
        make_and_free(10)  # at first small objects may come to lie between large ones
        assert resident_bytes() > before + NUM_BYTES / 2
        start = pages_handed_out()
        make_and_free(10)
        assert pages_handed_out() - start < num_pages
    assert resident_bytes() < before + NUM_BYTES / 10


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with freed_memory_kept():
        assert torch.ones(3).sum() == 3
