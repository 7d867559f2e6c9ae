"""Tests of the cores of a CPU, and of the devices that JAX sees in it."""

import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tsp_jax.system import cpu


def test_cores_are_those_that_the_process_is_bound_to():
    whole = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(whole)})
    try:
        assert cpu.cores() == 1
    finally:
        os.sched_setaffinity(0, whole)
    assert 1 <= cpu.cores() <= len(whole)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 0),
        ({"cpu.max": "max 100000"}, 0),
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "nonsense"}, 0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 0),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
    ],
)
def test_a_containers_share_of_time_bounds_the_cores(tmp_path: Path, files: dict[str, str], cores: int):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert cpu._cores_by_time(tmp_path) == cores


@pytest.mark.parametrize(
    ("flags", "rows", "devices", "cores"),
    [
        ("", None, min(cpu.cores(), 4), min(cpu.cores(), 4)),
        ("", 15, math.gcd(min(cpu.cores(), 4), 15), math.gcd(min(cpu.cores(), 4), 15)),
        ("--xla_force_host_platform_device_count=3", None, 3, 1),
    ],
    ids=["any rows", "15 rows", "flags"],
)
def test_a_cpu_is_a_device_for_each_core_that_has_rows_unless_flags_say_otherwise(
    flags: str, rows: int | None, devices: int, cores: int
) -> None:
    code = f"from tsp_jax.system import cpu; n = cpu.split_cpu({rows}); import jax; print(jax.local_device_count(), n)"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [str(devices), str(cores)]


def test_a_cpu_that_jax_runs_on_already_is_left_as_it_is() -> None:
    assert cpu.split_cpu() == 1 and jax.local_device_count() == 1
