"""The cores of a CPU: how many this process may use, and JAX's view of them as devices."""

import contextlib
import math
import os
from pathlib import Path

import jax

_CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """How many cores this process may use: those that it is bound to, fewer where a container's share of time is less."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, _cores_by_time(_CGROUP) or bound))


def _cores_by_time(cgroup: Path) -> int:
    """Whole cores that Linux's control group gives time for, rounded up; 0 where it sets no limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # version 2, version 1
        with contextlib.suppress(OSError, ValueError):
            quota, period = (int(word) for name in names for word in (cgroup / name).read_text().split())
            if quota > 0 and period > 0:
                return -(-quota // period)
    return 0


_CPU_DEVICES = 4  # more gain little, and each holds weights of its own


def split_cpu(rows: int | None = None) -> int:
    """Has JAX see a CPU as a device for each core, four at most; to be called before any other use of JAX.

    A program's convolutions run on all cores, but padding, joining and sums on one; with rows of its own each core is always
    busy. Where JAX runs already, XLA_FLAGS says how many devices there are, or this is one of several processes, nothing is
    changed.

    Args:
      rows: the number of rows that the devices share evenly; None for any number.

    Returns:
      How many devices a CPU became; 1 where nothing was changed, and where there is a GPU or TPU.

    Raises:
      RuntimeError: JAX can't start its devices.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or jax.distributed.is_initialized():
        return 1
    devices = min(cores(), _CPU_DEVICES)
    try:
        jax.config.update("jax_num_cpu_devices", devices if rows is None else math.gcd(devices, rows))
    except RuntimeError:  # JAX runs already
        return 1
    return jax.local_device_count() if jax.default_backend() == "cpu" else 1
