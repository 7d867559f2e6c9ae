"""How a run is asked to stop: SIGTERM and Ctrl-C, agreed on by all processes."""

import os
import signal
import types
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interruption:
    """Turns SIGTERM and SIGINT into an answer to `due`, which a run asks for where it can save; for use in `with`.

    Until the run is patient, and at a second signal, they are a KeyboardInterrupt. Of several processes each may get the
    signal, and all are told at the same call of `due`: JAX takes SIGTERM over when they join, and SIGINT is handed on to it.
    """

    def __init__(self):
        self.patient, self._asked, self._calls = False, False, 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._take) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def be_patient(self) -> None:
        """From here on signals wait for `due`. Several processes have joined each other by now."""
        self.patient = True

    def due(self) -> bool:
        """Whether to save and stop. All processes call it equally often, and get the same answer."""
        self._calls += 1
        if jax.process_count() == 1:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(self._calls)

    def _take(self, number: int, frame: types.FrameType | None) -> None:
        if not self.patient or self._asked:
            raise KeyboardInterrupt
        self._asked = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
