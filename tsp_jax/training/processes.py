"""The processes of a run: how they join, what the first of them does alone, and how they end together."""

import os
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

HEARTBEAT_SEC = 60  # a process that has not been heard of for so long ends the others


def start_processes(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins this process to the others of its run; a process that runs alone is left as it is.

    Call it before any other use of JAX.

    Without arguments JAX looks for a cluster: TPU pods, Kubernetes, Open MPI, and SLURM, where it expects one task a device
    (`srun --ntasks-per-node`). Processes on CPUs talk through gloo. When one dies, JAX ends the others with a message, after
    HEARTBEAT_SEC at the latest.

    Args:
      coordinator: the `host:port` of process 0, the same for all. With it the other two arguments are needed too.
      num_processes: the number of processes.
      process_id: this process's number, from 0.

    Raises:
      ValueError: some of the three arguments are given, and not all.
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


def leave(status: int) -> int:
    """Returns the exit status; one of several processes ends here, because an orderly exit would wait for the others."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def explain(error: Exception) -> str:
    """Returns what an error of the devices means and what to do about it."""
    reason = str(error).strip().splitlines()[0][:300]
    if "RESOURCE_EXHAUSTED" in reason:
        return f"the devices' memory does not suffice ({reason}); raise compute.accumulate, or set compute.remat=true"
    if jax.process_count() > 1:
        return (
            f"process {jax.process_index()} can't go on: another process of the run has ended, or can't be reached ({reason}); "
            "the last checkpoint is kept: start all processes again to go on"
        )
    return f"{reason}; the last checkpoint is kept: run the same command again to go on from there"


def is_first() -> bool:
    """Returns whether this is the process that writes and prints for all."""
    return jax.process_index() == 0


def are_several() -> bool:
    """Returns whether the run has more than one process."""
    return jax.process_count() > 1


def say(text: str) -> None:
    """Prints, in the first process alone."""
    if is_first():
        print(text, flush=True)


def rows(batch_size: int) -> dict[str, int]:
    """Returns which rows of a batch this process reads, as arguments of `input_pipeline`."""
    return {
        "global_batch_size": batch_size,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }


def sync(name: str) -> None:
    """Waits until all processes have come here."""
    multihost_utils.sync_global_devices(name)


def agreed(answer: bool) -> bool:
    """Returns the first process's answer, in all processes."""
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))
