"""Signals that stop a run, or any other command."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

_num_in_force = 0


def is_in_force() -> bool:
    """Whether the first signal goes to a `StopRequest`."""
    return _num_in_force > 0


class StopRequest:
    """The signal that arrived, if one did."""

    signal: int | None = None


@contextmanager
def stop_signals(say: Callable[[str], None], then: str) -> Iterator[StopRequest]:
    """Let the first SIGINT or SIGTERM finish the step, as is said at once; a second acts as usual.

    `then` says what will be done with what was learned.
    """
    global _num_in_force
    stop = StopRequest()
    with ExitStack() as handlers:

        def on_signal(number: int, frame: FrameType | None) -> None:
            stop.signal = number
            handlers.close()
            line = f"finishing this step ..., {then}; a second signal (Ctrl-C) ends at once"
            # In a thread: the signal may have come in the middle of another line.
            threading.Thread(target=say, args=(line,)).start()

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handlers.callback(signal.signal, number, signal.signal(number, on_signal))
        _num_in_force += 1
        try:
            yield stop
        finally:
            _num_in_force -= 1


@contextmanager
def interrupts_said() -> Iterator[None]:
    """Say at once that SIGINT has come: a clean exit may take seconds."""

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        os.write(2, b"bertmill: interrupted, ending ...\n")  # print may be at work already
        raise KeyboardInterrupt

    with ExitStack() as handlers:
        before = signal.getsignal(signal.SIGINT)
        if before is signal.default_int_handler:  # not where it is ignored, as by nohup
            handlers.callback(signal.signal, signal.SIGINT, before)
            signal.signal(signal.SIGINT, on_interrupt)
        yield
