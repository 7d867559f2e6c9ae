"""The processes of a run: how they join, what the first of them does alone, and how they end together."""

import os
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tsp_jax.system import errors

HEARTBEAT_SEC = 60  # a process that has not been heard of for so long ends the others
JOIN_TIMEOUT_SEC = 60  # the default of how long a process waits for the others at the start
_NOTICE_SEC = 1.0  # a longer wait is announced
_HEAD_START_SEC = 5  # the coordinator waits longer than the others, because JAX crashes where it disappears
_NEVER_SEC = 100_000  # JAX's own limit, which would end the process by a crash
_ALONE = "to start alone, pass --num_processes 1"


class JoinError(errors.UserError):
    """The other processes of the run have not come in time, or the coordinator can't be started or reached."""

    exit_status = 1


def start_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout_sec: int = JOIN_TIMEOUT_SEC,
) -> None:
    """Joins this process to the others of its run; a process that runs alone is left as it is.

    Call it before any other use of JAX, in the main thread.

    Without arguments JAX looks for a cluster: TPU pods, Kubernetes, Open MPI, and SLURM, where it expects one task a device
    (`srun --ntasks-per-node`). Processes on CPUs talk through gloo. When one dies, JAX ends the others with a message, after
    HEARTBEAT_SEC at the latest.

    Args:
      coordinator: the `host:port` of process 0, the same for all. With it the other two arguments are needed too.
      num_processes: the number of processes; 1 without the other two arguments looks for no cluster.
      process_id: this process's number, from 0.
      timeout_sec: how long to wait for the others, in seconds.

    Raises:
      ValueError: some of the three arguments are given, and not all; or they don't fit each other; or a cluster's variables
        can't be used.
      JoinError: the others have not come in time, or the coordinator can't be started or reached.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if missing == ["coordinator", "process_id"] and num_processes == 1:
        return
    if coordinator is not None and num_processes is not None and process_id is not None:
        if not coordinator.rpartition(":")[2].isdecimal():
            raise ValueError(f"expected HOST:PORT as the coordinator, such as host0:1234; found {coordinator!r}")
        if not 0 <= process_id < num_processes:
            raise ValueError(f"of {num_processes} processes, process_id is 0 to {num_processes - 1}; found {process_id}")
        if process_id == 0:
            _check_port(coordinator)
        who = f"process {process_id} of {num_processes} at {coordinator}"
        _join(who, (coordinator, num_processes, process_id), timeout_sec)
    elif len(missing) < len(given):
        raise ValueError(f"a run of several processes needs coordinator, num_processes and process_id; {missing} not given")
    elif "1" not in (os.environ.get("SLURM_NTASKS"), os.environ.get("SLURM_STEP_NUM_TASKS")):
        # For a single task, JAX would take the first device alone. In a step of its own, SLURM_NTASKS may be that of the job.
        try:
            _join(_place_in_cluster(os.environ), (), timeout_sec)
        except ValueError as error:
            if "coordinator_address should be defined" not in str(error):  # JAX's words for: no cluster
                reason = _no_number(os.environ) or str(error)
                raise ValueError(f"the variables of a cluster can't be used ({reason}); {_ALONE}") from error


def _join(who: str, addresses: tuple[Any, ...], timeout_sec: int) -> None:
    """Joins the other processes, in a thread: JAX waits in C++, where no signal is heeded and a wait in vain ends by a crash.

    Raises:
      JoinError: the others have not come in time, or the coordinator can't be started or reached.
    """
    visible = jax.config.values["jax_cuda_visible_devices"]
    chosen = {} if visible == "all" else {"local_device_ids": [int(number) for number in visible.split(",")]}
    failure: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                *addresses,
                initialization_timeout=_NEVER_SEC,
                heartbeat_timeout_seconds=HEARTBEAT_SEC,
                **chosen,
            )
        except Exception as error:
            failure.append(error)

    joining = threading.Thread(target=initialize, daemon=True)
    joining.start()
    joining.join(_NOTICE_SEC)
    if joining.is_alive():
        print(f"{who} waits for the others, for at most {timeout_sec} s; {_ALONE}", file=sys.stderr, flush=True)
        head_start = 0 if who.startswith("process 0 ") else min(_HEAD_START_SEC, timeout_sec / 5)
        joining.join(max(timeout_sec - _NOTICE_SEC - head_start, 0))
    if joining.is_alive():
        raise JoinError(
            f"{who} has waited {timeout_sec} s for the others in vain; start all of them within that time (srun starts "
            f"SLURM's tasks), or raise --join_timeout_sec; {_ALONE}"
        )
    if failure and isinstance(failure[0], jax.errors.JaxRuntimeError):
        raise JoinError(f"{who} can't join the others ({errors.first_line(failure[0])}); {_ALONE}") from failure[0]
    if failure:
        raise failure[0]


def _check_port(coordinator: str) -> None:
    """Checks that the coordinator's port is free on this machine; where it is not, JAX may crash.

    Raises:
      JoinError: another program uses the port.
    """
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        address = ("", int(coordinator.rpartition(":")[2]))
        socket.create_server(address, family=family, dualstack_ipv6=family == socket.AF_INET6).close()
    except (OSError, OverflowError) as error:
        raise JoinError(f"process 0 can't use the port of {coordinator} ({error}); name another by --coordinator") from error


def _place_in_cluster(environment: Mapping[str, str]) -> str:
    """Returns which process of how many this is, and whose variables say so."""
    for cluster, number, count in (
        ("SLURM", "SLURM_PROCID", "SLURM_NTASKS"),
        ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ):
        if number in environment and count in environment:
            return f"process {environment[number]} of {environment[count]} (by {cluster}'s variables {number} and {count})"
    return "this process of a cluster"


def _no_number(environment: Mapping[str, str]) -> str:
    """Returns the first variable of a cluster that must be a whole number and is none; "" if there is none."""
    names = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
    bad = [name for name in names if not environment.get(name, "0").isdecimal()]
    return f"{bad[0]}={environment[bad[0]]!r} is no whole number" if bad else ""


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
