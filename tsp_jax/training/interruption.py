"""How a run ends before its time: by SIGTERM and Ctrl-C, which all processes agree on, or by an error."""

import contextlib
import os
import signal
import types
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from tsp_jax.system import errors
from tsp_jax.training import processes, sums


class Interruption:
    """Turns SIGTERM and SIGINT into an answer of `due`, which a run calls where it can save; for use in `with`.

    Before `be_patient` is called, and at a second signal, they raise KeyboardInterrupt. If one of several processes gets the
    signal, all of them learn of it at the same call of `due`: JAX handles SIGTERM once they have joined, and SIGINT is handed
    on to it.
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
        """Makes signals wait for `due` from here on. Several processes have joined each other by now."""
        self.patient = True

    def due(self) -> bool:
        """Returns whether to save and stop. All processes call it equally often and get the same answer."""
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


@contextlib.contextmanager
def explained(stop: Interruption) -> Iterator[None]:
    """Gives an error of the block its exit status, 1 once training has begun, and says that the last checkpoint is kept.

    Raises:
      UserError: the block raised an error that a user can mend, or was interrupted.
    """
    try:
        yield
    except sums.NotFiniteError:
        raise
    except KeyboardInterrupt as error:
        message = "interrupted; run the same command again to go on from the last checkpoint"
        raise errors.InterruptedRunError(message) from error
    except jax.errors.JaxRuntimeError as error:
        raise errors.UnfinishedError(processes.explain(error)) from error
    except (OSError, ValueError, RuntimeError, ImportError, errors.UserError) as error:
        if not stop.patient:
            raise
        kept = "the last checkpoint is kept: run the same command again to go on from there"
        raise errors.UnfinishedError(f"{error}; {kept}") from error
