"""What may befall a rank: called in its process before it begins, by `processes.run_ranks`."""

import os
import signal
import time
from dataclasses import dataclass

from bertmill.errors import RunError
from bertmill.train import watch
from bertmill.train.session import Session

BEAT = 0.4


@dataclass(frozen=True)
class Fault:
    """Do this to one rank when it logs a step."""

    kind: str
    rank: int
    step: int

    def __call__(self) -> None:
        watch._BEAT = BEAT
        log, befall = Session.log, getattr(self, f"_{self.kind}")

        def log_and_more(session):
            if session.step == self.step and session.world.rank == self.rank:
                befall()
            log(session)

        Session.log = log_and_more

    def _raises(self):
        raise ZeroDivisionError("by a bug")

    def _refuses(self):
        raise RunError("a thing", "is wrong", "put it right")

    def _hangs(self):
        time.sleep(1000)

    def _is_killed(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def _is_stopped(self):
        os.kill(os.getpid(), signal.SIGSTOP)

    def _is_terminated(self):
        os.kill(os.getpid(), signal.SIGTERM)
