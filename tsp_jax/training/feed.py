"""Batches on the devices, one ahead of the one in use."""

import time
from collections.abc import Callable, Iterator

from jax.sharding import Mesh

from tsp_jax.system import sharding
from tsp_jax.training import task, train_step


class Feed:
    """Reads batches and sends them to the mesh, one ahead of the one in use."""

    def __init__(self, batches: Iterator[task.HostBatch], mesh: Mesh):
        self._batches, self._mesh = batches, mesh
        self._next: tuple[train_step.Batch, Callable[[], list[str]]] | None = None
        self._waited_sec = 0.0

    def fetch(self) -> bool:
        """Reads the next batch and sends it to the devices, unless that is done. Returns whether there is one.

        Raises:
          UserError: a record is damaged.
        """
        if self._next is not None:
            return True
        began = time.perf_counter()
        batch = next(self._batches, None)
        self._waited_sec += time.perf_counter() - began
        if batch is None:
            return False
        self._next = sharding.make_global(batch.arrays, self._mesh), batch.describe
        return True

    def take(self) -> tuple[train_step.Batch, Callable[[], list[str]]]:
        """Returns the next batch, and a function that describes this process's rows of it.

        Raises:
          UserError: a record is damaged.
          IndexError: there is no further batch.
        """
        self.fetch()
        if self._next is None:
            raise IndexError("no batch is left")
        taken, self._next = self._next, None
        return taken

    def take_waited_sec(self) -> float:
        """Returns the seconds of waiting for batches to be read since the last call."""
        waited, self._waited_sec = self._waited_sec, 0.0
        return waited

    def close(self) -> None:
        """Stops the threads or processes that read ahead."""
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()
