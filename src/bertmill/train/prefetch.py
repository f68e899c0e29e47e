"""Batches made while the step before them is computed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

NUM_AHEAD = 2

Made = TypeVar("Made")


class Prefetch(Generic[Made]):
    """Make what the coming steps need in one thread, in order, a few steps ahead.

    What a step needs is a function of the step alone, so that nothing depends on when it is made.

    Parameters
    ----------
    make : callable
        Makes what a step needs, from the step's number. Called in the thread, by nobody else as
        long as this is open; what it raises is raised by `take`.
    step : int
        The first step that will be taken.

    Attributes
    ----------
    waited_seconds : float
        How long the last `take` waited.

    Examples
    --------
    >>> with Prefetch(lambda step: step**2, 3) as batches:
    ...     [batches.take(), batches.take()]
    [9, 16]
    """

    def __init__(self, make: Callable[[int], Made], step: int) -> None:
        self._make, self._next_step = make, step
        self._coming: deque[Future[Made]] = deque()
        self.waited_seconds = 0.0

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bertmill-prefetch")
        for _ in range(NUM_AHEAD):
            self._ask()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self) -> Made:
        """Return what the next step needs; wait where it is not made yet."""
        started = time.perf_counter()
        made = self._coming.popleft().result()
        self.waited_seconds = time.perf_counter() - started
        self._ask()
        return made

    def _ask(self) -> None:
        self._coming.append(self._thread.submit(self._make, self._next_step))
        self._next_step += 1
