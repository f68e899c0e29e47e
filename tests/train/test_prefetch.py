"""The batches: what steps need, in order, once each, a few steps ahead, and never after its end."""

import threading
import time

import pytest
import torch

from bertmill.config import MaskingSection, PairsSection
from bertmill.data.batch import Batches
from bertmill.errors import StoreError
from bertmill.train.device import to_device
from bertmill.train.prefetch import NUM_AHEAD, Prefetch


def no_thread_left():
    return not [t for t in threading.enumerate() if t.name.startswith("bertmill-batches")]


def until(holds):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_steps_are_made_in_order_once_each_and_a_few_ahead():
    made, num_asked = [], 0

    def make(step):
        made.append(step)
        assert step < 7 + num_asked + NUM_AHEAD
        return -step

    with Prefetch(make, 7) as batches:
        until(lambda: len(made) == NUM_AHEAD)  # before any is taken
        time.sleep(0.05)
        assert len(made) == NUM_AHEAD
        for step in range(7, 60):
            num_asked += 1
            assert batches.take() == -step
        until(lambda: len(made) == 53 + NUM_AHEAD)
    assert made == list(range(7, 60 + NUM_AHEAD))
    assert no_thread_left()


def test_waiting_is_measured():
    def make(step):
        time.sleep(0.1 if step == 1 else 0.0)

    with Prefetch(make, 0) as batches:
        batches.take()
        started = time.perf_counter()
        batches.take()
        assert 0.0 < batches.waited_seconds <= time.perf_counter() - started
        slow = batches.waited_seconds
        until(lambda: batches._coming[0].done())
        batches.take()
        assert batches.waited_seconds < slow  # of this step alone


def test_an_error_comes_at_its_step_as_it_is():
    error = StoreError("shard", "cannot be read", "prepare the corpus again")

    def make(step):
        if step == 2:
            raise error
        return step

    with Prefetch(make, 0) as batches:
        assert [batches.take(), batches.take()] == [0, 1]
        with pytest.raises(StoreError) as raised:
            batches.take()
    assert raised.value is error
    assert no_thread_left()


def test_leaving_waits_for_the_step_in_hand_alone():
    made, may_go_on = [], threading.Event()

    def make(step):
        made.append(step)
        if step == 1:
            may_go_on.wait()

    with pytest.raises(KeyboardInterrupt), Prefetch(make, 0) as batches:  # noqa: PT012
        batches.take()
        until(lambda: made == [0, 1])
        threading.Timer(0.05, may_go_on.set).start()
        raise KeyboardInterrupt
    assert made == [0, 1]
    assert no_thread_left()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_made_in_the_thread_arrive_on_the_gpu(small_store):
    batches = Batches(
        small_store.train,
        small_store.tokenizer,
        PairsSection(kind="none", max_length=32),
        MaskingSection(),
        8,
        1,
        "text",
    )
    cpu, device = torch.device("cpu"), torch.device("cuda", 0)
    wanted = [to_device(batches.batch_at(step), cpu) for step in range(4)]
    with Prefetch(lambda step: to_device(batches.batch_at(step), device), 0) as batches:
        for on_cpu in wanted:
            got = batches.take()
            assert got.packed.lengths == on_cpu.packed.lengths
            tensors = zip(
                [*got.packed[:3], *got[1:]], [*on_cpu.packed[:3], *on_cpu[1:]], strict=True
            )
            assert all(a.device == device and torch.equal(a.cpu(), b) for a, b in tensors)
