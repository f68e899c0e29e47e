"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """The signal that asked the loop to stop, if one did."""

    signal: int | None = None


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Let the first SIGINT or SIGTERM finish the step and save; a second one acts as ever."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore_handlers() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number: int, frame: object) -> None:
        stop.signal = number
        restore_handlers()

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        restore_handlers()
