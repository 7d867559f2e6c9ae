"""Tests of compiled programs: how much a CPU's hold, and their folder, out of the way of a user's own."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array

from tsp_jax.system import compilation

ROOT = Path(__file__).parents[1]
COMPILE = """
import jax
from tsp_jax.system import compilation
compilation.keep_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x + 1)(1.0)
"""


def compile_in_a_process(**environment: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = {**inherited, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment)


def kept(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*-cache") if path.is_file()]


def test_programs_are_kept_in_the_users_cache(tmp_path: Path) -> None:
    compile_in_a_process(XDG_CACHE_HOME=str(tmp_path / "xdg"), HOME=str(tmp_path))
    (first, *_) = kept(tmp_path)
    assert "tsp_jax" in first.parts and first.parent.parent.name == "xla"
    before = {path: path.stat().st_mtime_ns for path in kept(tmp_path)}
    compile_in_a_process(XDG_CACHE_HOME=str(tmp_path / "xdg"), HOME=str(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in kept(tmp_path)} == before
    compile_in_a_process(TSP_JAX_CACHE=str(tmp_path / "own"))
    assert kept(tmp_path / "own" / "xla")


def test_jaxs_own_settings_come_first(tmp_path: Path) -> None:
    compile_in_a_process(TSP_JAX_CACHE=str(tmp_path / "own"), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "other"))
    assert kept(tmp_path / "other") and not kept(tmp_path / "own")
    compile_in_a_process(TSP_JAX_CACHE=str(tmp_path / "none"), JAX_ENABLE_COMPILATION_CACHE="false")
    assert not kept(tmp_path / "none")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the options are those of a CPU")
def test_a_cpus_program_makes_what_it_needs_when_it_needs_it():
    """Sixteen kernels, each of them summed and used once in every round of a loop: two fit at a time, not all."""

    def encode(x: Array, kernels: list[Array]) -> Array:
        def one(_: Array, x: Array) -> Array:
            for kernel in kernels:
                x = jnp.tanh(x @ (kernel + kernel.T))
            return x

        return jax.lax.fori_loop(0, x.astype(int)[0, 0], one, x)

    x, kernels = jnp.ones((8, 256)), [jnp.full((256, 256), 0.01 * i) for i in range(16)]
    held = []
    for options in ({}, compilation.options()):
        program = jax.jit(encode, compiler_options=options).lower(x, kernels).compile()
        held.append(program.memory_analysis().temp_size_in_bytes)
    assert held[0] > 16 * kernels[0].nbytes > 4 * held[1]
