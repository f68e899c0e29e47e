"""Ranks look after one another: one that fails, dies or hangs is named, in one line.

A collective that loses a rank fails on the others, or waits for ever. So each rank has a thread
that leaves a tick in the store that all share, looks at the tick of the next rank, and at where its
own main thread stands. Whoever finds that a rank has gone says so and ends at once: a collective
cannot be interrupted, and torchrun ends all ranks as soon as one has ended.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING
from uuid import uuid4

from bertmill.errors import BertmillError
from bertmill.train import signals

if TYPE_CHECKING:  # takes a second to import
    from torch._C._distributed_c10d import Store

_BEAT = 1.0
"""Seconds between two ticks."""
_SILENCE = 6
"""Beats without a tick after which a rank is lost where a collective has failed."""
_STORE_PATIENCE, _JOIN_PATIENCE = timedelta(seconds=20), timedelta(minutes=30)
_POLL = 0.1
_WAITS = ("torch/distributed", "torch/cuda")
"""Where a main thread is that waits for other ranks or for its device."""
_DEEPEST = 3
"""So many frames, from the innermost one on, are looked at for that."""
_STATUS, _TERMINATED = 2, 128 + signal.SIGTERM
_PACKAGE = str(Path(__file__).parents[1])

# A rank leaves its tick in the store, or how it has ended.
_DONE, _SAID, _FAILED = "done", "said", "failed with "

_watch: Watch | None = None


class Watch:
    """What a rank knows of the others, and they of it.

    Parameters
    ----------
    store : Store
        Empty at each start of the ranks.
    rank, size : int
    timeout_seconds : float
        How long a rank may stand still while it trains.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout_seconds: float) -> None:
        # Of its own: the main thread may wait on the other one for hours.
        self._store: Store = store.clone()  # type: ignore[attr-defined] # torch does not say so
        self._store.set_timeout(_STORE_PATIENCE)
        self._rank, self._size, self._timeout = rank, size, timeout_seconds
        self._main, self._trains = threading.get_ident(), False
        self._ended, self._ending = "", threading.Lock()
        self._fix = "start all ranks again"
        self._store.set(f"host/{rank}", socket.gethostname())
        self._store.set(f"beat/{rank}", "0")

    def begin(self) -> None:
        """Start the thread, after every rank has made its watch."""
        hosts = self._store.multi_get([f"host/{rank}" for rank in range(self._size)])
        self._hosts = [host.decode() for host in hosts]
        woken, self._wakes = socket.socketpair()
        if threading.current_thread() is threading.main_thread():
            # torchrun's SIGTERM must not end this rank before it has named the one that is lost.
            # Python writes to the socket even while the main thread waits in a collective.
            self._wakes.setblocking(False)
            signal.signal(signal.SIGTERM, lambda number, frame: None)
            signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._run, args=(woken,), daemon=True).start()

    @contextmanager
    def training(self, run: Path) -> Iterator[None]:
        """From here on no rank may stand still; `run` can be resumed."""
        self._fix = f"go on with: bertmill pretrain --resume {run}"
        self._trains = True
        try:
            yield
        finally:
            self._trains = False

    # --- the thread ------------------------------------------------------------------------------

    def _run(self, woken: socket.socket) -> None:
        most, next_rank = max(self._timeout / _BEAT, 1.0), (self._rank + 1) % self._size
        store, neighbor, own = _Still(), _Still(), _Still()
        for tick in count(1):
            if select.select([woken], [], [], _BEAT)[0]:
                for _ in range(woken.recv(64).count(signal.SIGTERM)):
                    threading.Thread(target=self._on_terminated, daemon=True).start()
                time.sleep(_BEAT)
            seen = ""
            with suppress(Exception):  # torch raises several kinds
                self._store.set(f"beat/{self._rank}", self._ended or str(tick))
                seen = self._store.get(f"beat/{next_rank}").decode()
            # Beats are counted, not seconds: the whole machine may have slept for a while.
            if not self._trains:
                store, neighbor, own = _Still(), _Still(), _Still()
            elif store.beats(tick if seen else "gone") >= _SILENCE:
                self._end(_lost_store())
            elif neighbor.beats(seen if seen.isdecimal() else tick) >= most:
                self._end(self._lost([next_rank]))
            elif own.beats(self._place() or tick) >= most:
                self._end(self._standing_still())

    def _place(self) -> object:
        """Where the main thread stands, or None where it waits for others."""
        frames = self._frames()
        deepest = [frame.f_code.co_filename for frame in frames[:_DEEPEST]]
        if any(waits in name for name in deepest for waits in _WAITS):
            return None
        return [(frame.f_code, frame.f_lasti) for frame in frames]

    def _frames(self) -> list[FrameType]:
        frame, frames = sys._current_frames().get(self._main), []
        while frame is not None:
            frames.append(frame)
            frame = frame.f_back
        return frames

    def _on_terminated(self) -> None:
        """Tell torchrun, which ends a rank because another one has ended, from a person.

        A rank that saves is left alone, however many signals come: Slurm and torchrun may both
        send one.
        """
        is_heard = signals.is_in_force()
        if self._ended in (_SAID, _DONE):
            os._exit(_TERMINATED)
        self.name_culprit()
        if not is_heard:
            self._end("", _TERMINATED)

    # --- who it was ------------------------------------------------------------------------------

    def explain(self, error: Exception) -> str:
        """Name the rank that a collective failed for, and end; else return how this one ends."""
        trace, files = error.__traceback__, []
        while trace is not None:
            files.append(trace.tb_frame.f_code.co_filename)
            trace = trace.tb_next
        if any(_WAITS[0] in file for file in files):
            self.name_culprit()
        return f"{_FAILED}{type(error).__name__}"

    def end_with(self, how: str) -> None:
        """Tell the others how this rank ends."""
        self._ended = how
        with suppress(Exception):
            self._store.set(f"beat/{self._rank}", how)

    def name_culprit(self) -> None:
        """Name a rank that has gone, and end this one; return if there is none."""
        try:
            before = self._beats()
            for _ in range(_SILENCE):
                now = self._beats()
                if _SAID in now:
                    self._end("")
                for rank, beat in enumerate(now):
                    if beat.startswith(_FAILED):
                        self._end(f"{self._name([rank])}: {beat}")
                time.sleep(_BEAT)
            beats = enumerate(zip(before, self._beats(), strict=True))
            lost = [rank for rank, (old, new) in beats if old == new and new.isdecimal()]
        except Exception:  # torch raises several kinds
            self._end(_lost_store())
            return
        if lost:
            self._end(self._lost(lost))

    def _beats(self) -> list[str]:
        keys = [f"beat/{rank}" for rank in range(self._size)]
        return [beat.decode() for beat in self._store.multi_get(keys)]

    def _name(self, ranks: Sequence[int]) -> str:
        return ", ".join(f"rank {rank} on {self._hosts[rank]}" for rank in ranks)

    def _lost(self, ranks: Sequence[int]) -> str:
        return f"{self._name(ranks)}: no sign of life (killed, stopped, or cut off from the others)"

    def _standing_still(self) -> str:
        ours = [frame for frame in self._frames() if _PACKAGE in frame.f_code.co_filename]
        code = ours[0].f_code
        file = Path(code.co_filename).name
        return (
            f"{self._name([self._rank])}: has stood still for {self._timeout:g} seconds "
            f"(train.timeout_seconds) in {code.co_name} ({file}, line {ours[0].f_lineno})"
        )

    def _end(self, line: str, status: int = _STATUS) -> None:
        """End this process, unless it does so already; the first rank that has a line says it."""
        with self._ending:
            if self._ended:
                return
            with suppress(Exception):  # the store may be gone
                if line and self._store.add("said", 1) > 1:
                    line = ""
            if line:
                _say(f"bertmill: {line}; {self._fix}")
            self.end_with(_SAID)
            os._exit(status)


class _Still:
    """Counts for how many beats a value has been the same."""

    def __init__(self) -> None:
        self._value: object = None
        self._num_beats = 0

    def beats(self, value: object) -> int:
        self._num_beats = self._num_beats + 1 if value == self._value else 0
        self._value = value
        return self._num_beats


def _lost_store() -> str:
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return f"the store of all ranks at {address}: no answer (torchrun or its machine is gone)"


def _say(line: str) -> None:
    with suppress(OSError, ValueError):
        if sys.stdout.isatty():
            sys.stdout.write("\x1b[?25h\n")  # a progress bar has hidden the cursor
        sys.stdout.flush()
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def begin_watch(store: Store, rank: int, size: int, timeout_seconds: float) -> Watch:
    """Make the watch of this process; its thread is started once all have joined."""
    global _watch
    _watch = Watch(store, rank, size, timeout_seconds)
    return _watch


def agree_on_start(store: Store, rank: int, size: int) -> str:
    """Return a prefix of keys that is new, and the same on all ranks.

    torchrun keeps its store when it starts the ranks again, with all that the earlier ones left.
    """
    own = uuid4().hex
    if rank == 0:
        store.set("start", own)
        store.wait([f"{own}/{other}" for other in range(1, size)], _JOIN_PATIENCE)
        found = store.multi_get([f"{own}/{other}" for other in range(1, size)])
        store.set(f"{own}/all", b" ".join(found).decode())
        return own
    while True:  # what is found first may be an earlier start
        start = store.get("start").decode()
        store.set(f"{start}/{rank}", own)
        if store.check([f"{start}/all"]) and own in store.get(f"{start}/all").decode():
            return start
        time.sleep(_POLL)


@contextmanager
def ranks_watched() -> Iterator[None]:
    """Name the rank that has gone where a collective fails; let the others know how this one ends.

    A process that torchrun has not started is left alone.
    """
    if _watch is not None:
        _watch.end_with("")
    how = _SAID
    try:
        yield
        how = _DONE
    except (BertmillError, OSError):  # said by the caller
        raise
    except Exception as error:
        if _watch is not None:
            how = _watch.explain(error)
        raise
    finally:
        if _watch is not None:
            _watch.end_with(how)


@contextmanager
def no_rank_stands_still(run: Path) -> Iterator[None]:
    """Give the run up where a rank stands still for too long; it can be resumed."""
    if _watch is None:
        yield
    else:
        with _watch.training(run):
            yield
