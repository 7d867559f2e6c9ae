"""The processes of a run: how they join, what only the first of them does, and how they leave."""

import os

import jax

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
