"""How programs are compiled, and where they are kept, so that the next run of the same program need not compile it again."""

import hashlib
import os
import platform
from pathlib import Path

import jax

_MIN_COMPILE_SEC = 0.5  # what compiles faster is not worth a file
# Activations and sums of kernels are made where they are used, not as soon as they can be, and not before a loop over clips.
_ON_A_CPU = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion",
}


def options() -> dict[str, str]:
    """XLA's options for programs of the networks, for `jax.jit`; without them a CPU's hold up to three times as much."""
    return _ON_A_CPU if jax.default_backend() == "cpu" else {}


def keep_programs() -> None:
    """Has JAX keep compiled programs in the user's cache folder; call it before anything is compiled.

    Nothing is changed where JAX_COMPILATION_CACHE_DIR names a folder, or where JAX_ENABLE_COMPILATION_CACHE is false: JAX
    heeds both by itself.
    """
    if not jax.config.values.get("jax_compilation_cache_dir"):
        jax.config.update("jax_compilation_cache_dir", str(folder()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SEC)


def folder() -> Path:
    """Where programs are kept: below TSP_JAX_CACHE, else below the user's cache folder; one folder for each kind of processor.

    A home that machines of several kinds share would otherwise hand one kind's instructions to another. JAX's own keys tell
    accelerators and versions apart.
    """
    import platformdirs  # here, so that the networks alone do without it

    root = os.environ.get("TSP_JAX_CACHE")
    root = Path(root).expanduser() if root else platformdirs.user_cache_path("tsp_jax")
    return root / "xla" / f"{platform.machine()}-{hashlib.sha256(_processor().encode()).hexdigest()[:8]}"


def _processor() -> str:
    """Its name and abilities, where the system tells them."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(errors="replace").splitlines() if told.is_file() else []
    telling = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join(sorted(telling)) or platform.processor()
