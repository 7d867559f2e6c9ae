"""What a command does before it first uses JAX."""

from tsp_jax.system import compilation, cpu, malloc


def prepare_jax() -> None:
    """Prepares this process for JAX: it keeps freed memory, splits a CPU into devices, and keeps compiled programs on disk.

    Call it before any other use of JAX.
    """
    malloc.keep_freed()
    cpu.split_cpu()
    compilation.keep_programs()
