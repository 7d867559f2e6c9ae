"""How arrays lie on devices: the batch split over all of them, all else on every one."""

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tsp_jax import cli

DATA, CORE = "data", "core"  # the axes of a mesh: devices, and the cores that one of them is made of
BATCH = PartitionSpec((DATA, CORE))  # the first axis of an array split over all of them
_CPU_DEVICES = 4  # more gain little, and each holds weights of its own
HEARTBEAT_SEC = 60  # a process unheard of for so long ends the others


def start_processes(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins this process to the others of its run; alone, it does nothing. To be called before any other use of JAX.

    Without arguments JAX looks around: TPU pods, Kubernetes, Open MPI, and SLURM, where it expects one task a device
    (`srun --ntasks-per-node`). With arguments all three are needed. Processes on CPUs talk through gloo. When one
    dies, JAX ends the others with a message, after HEARTBEAT_SEC at the latest.

    Args:
      coordinator: `host:port` of process 0, the same for all.
      num_processes: of the run.
      process_id: of this one, from 0.

    Raises:
      ValueError: some of the three are given, and not all.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ValueError(f"a run of several processes needs coordinator, num_processes and process_id; {missing} not given")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if not missing:
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_SEC)
    elif os.environ.get("SLURM_NTASKS") != "1":  # for a single task, JAX would take the first device alone
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SEC)
        except ValueError as error:
            if "coordinator_address should be defined" not in str(error):  # JAX's words for: no cluster
                raise


def split_cpu(rows: int | None = None) -> int:
    """Has JAX see a CPU as a device for each core, four at most; to be called before any other use of JAX.

    A program's convolutions run on all cores, but padding, joining and sums on one; with rows of its own each core is always
    busy. Where JAX runs already, XLA_FLAGS says how many devices there are, or this is one of several processes, nothing is
    changed.

    Args:
      rows: that the devices are to share evenly; None for any.

    Returns:
      How many devices a CPU became; 1 where nothing was changed, and where there is a GPU or TPU.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or jax.distributed.is_initialized():
        return 1
    devices = min(cli.cores(), _CPU_DEVICES)
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices if rows is None else math.gcd(devices, rows))
        return jax.local_device_count() if jax.default_backend() == "cpu" else 1
    return 1


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
