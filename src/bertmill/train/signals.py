"""Signals that stop a run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


class StopRequest:
    """The signal that arrived, if one did."""

    signal: int | None = None


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Let the first SIGINT or SIGTERM finish the step and save; a second one acts as usual."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    with ExitStack() as handlers:

        def on_signal(number: int, frame: object) -> None:
            stop.signal = number
            handlers.close()

        for number in (signal.SIGINT, signal.SIGTERM):
            handlers.callback(signal.signal, number, signal.signal(number, on_signal))
        yield stop
