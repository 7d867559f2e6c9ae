"""How arrays are placed on devices: a batch is split over all devices, everything else is copied to each of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA, CORE = "data", "core"  # axes of a mesh: the devices, and the cores that a CPU device consists of
BATCH = PartitionSpec((DATA, CORE))  # splits an array's first axis over both


def make_mesh(devices: Sequence[Any] | None = None, *, cores: int = 1) -> Mesh:
    """Returns a mesh over the given devices, by default over all devices of all processes.

    Args:
      devices: the devices; None for all. Their number must be a multiple of `cores`.
      cores: the number of neighbouring devices that count as one, as `cpu.split_cpu` returned it.
    """
    found = np.asarray(jax.devices() if devices is None else devices)
    return Mesh(found.reshape(-1, cores), (DATA, CORE))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits an array's first axis over the devices."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def make_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns the global batch as arrays over the mesh. It holds the rows of each process in the order of processes.

    Args:
      batch: this process's share of the batch, arrays `[rows, ...]`.
      mesh: the mesh, as `make_mesh` returns it.

    Raises:
      ValueError: this process's rows can't be split evenly over its devices.
    """
    sharding, local = batch_sharding(mesh), len(mesh.local_devices)
    odd = [f"{key}: {len(rows)} rows" for key, rows in batch.items() if len(rows) % local]
    if odd:
        raise ValueError(f"{local} local devices take equal numbers of rows; got {', '.join(odd)}")
    return {key: jax.make_array_from_process_local_data(sharding, rows) for key, rows in batch.items()}
