"""How arrays lie on devices: the batch split over all of them, all else on every one."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA, CORE = "data", "core"  # the axes of a mesh: devices, and the cores that one of them is made of
BATCH = PartitionSpec((DATA, CORE))  # the first axis of an array split over all of them


def make_mesh(devices: Sequence[Any] | None = None, *, cores: int = 1) -> Mesh:
    """A mesh over all devices of all processes, or over those given.

    Args:
      devices: that are meant.
      cores: how many, side by side, count as one: what `split_cpu` returned.
    """
    found = np.asarray(jax.devices() if devices is None else devices)
    return Mesh(found.reshape(-1, cores), (DATA, CORE))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def make_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The processes' shares of a batch as arrays over the mesh, one process's rows after the other's.

    Raises:
      ValueError: a process's rows can't be split evenly over its devices.
    """
    sharding, local = batch_sharding(mesh), len(mesh.local_devices)
    odd = [f"{key}: {len(rows)} rows" for key, rows in batch.items() if len(rows) % local]
    if odd:
        raise ValueError(f"{local} local devices take equal numbers of rows; got {', '.join(odd)}")
    return {key: jax.make_array_from_process_local_data(sharding, rows) for key, rows in batch.items()}
