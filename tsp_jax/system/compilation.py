"""How programs are compiled, and where they are kept so that a later run need not compile them again."""

import hashlib
import platform
from pathlib import Path

import jax

from tsp_jax.system import cache

_MIN_COMPILE_SEC = 0.5  # a program that compiles faster is not worth a file
# Makes activations and sums of kernels where they are used: not as early as possible, and not before a loop over clips.
_ON_A_CPU = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion",
}


def options() -> dict[str, str]:
    """Returns XLA's options for the networks' programs, for `jax.jit`. They save a CPU up to two thirds of the memory."""
    return _ON_A_CPU if jax.default_backend() == "cpu" else {}


def keep_programs() -> None:
    """Makes JAX keep compiled programs in the user's cache folder. Call it before anything is compiled.

    It changes nothing if JAX_COMPILATION_CACHE_DIR names a folder or if JAX_ENABLE_COMPILATION_CACHE is false: JAX follows
    both by itself.
    """
    if not jax.config.values.get("jax_compilation_cache_dir"):
        jax.config.update("jax_compilation_cache_dir", str(folder()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SEC)


def folder() -> Path:
    """Returns the folder of compiled programs below the cache's root: one folder for each kind of processor.

    Otherwise machines of several kinds that share a home folder would run each other's instructions. JAX's own keys
    distinguish accelerators and versions.
    """
    return cache.root() / "xla" / f"{platform.machine()}-{hashlib.sha256(_processor().encode()).hexdigest()[:8]}"


def _processor() -> str:
    """Returns the processor's name and abilities, as far as the system reports them."""
    report = Path("/proc/cpuinfo")
    lines = report.read_text(errors="replace").splitlines() if report.is_file() else []
    relevant = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join(sorted(relevant)) or platform.processor()
