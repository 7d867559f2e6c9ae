"""Tests of the folder of compiled programs: used by the commands, out of the way of a user's own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPILE = """
import jax
from tsp_jax import compiled
compiled.keep_programs()
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
