"""What a command does before it first uses JAX."""

from tsp_jax.system import compilation, cpu, malloc


def prepare_jax(rows: int | None = None) -> int:
    """Prepares this process for JAX: it keeps freed memory, splits a CPU into devices, and keeps compiled programs on disk.

    Call it before any other use of JAX.

    Args:
      rows: the number of rows that the CPU's devices must share evenly; None if any number of devices will do.

    Returns:
      The number of devices that the CPU became, as `cpu.split_cpu` returns it.
    """
    malloc.keep_freed()
    devices = cpu.split_cpu(rows)
    compilation.keep_programs()
    return devices
