"""Tests of the mesh and of the start of several processes; the training on them is tested with the step."""

import math
import os
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from tsp_jax.system import cpu, sharding
from tsp_jax.training import processes

# Run on four devices, in a process of its own.
ON_FOUR_DEVICES = """
import jax
import numpy as np
from tsp_jax import transforms
from tsp_jax.system import cpu, sharding
from tsp_jax.training import processes

mesh = sharding.make_mesh()
assert mesh.shape == {"data": 4, "core": 1} and sharding.make_mesh(cores=2).shape == {"data": 2, "core": 2}

video = np.random.default_rng(0).integers(0, 256, (8, 2, 128, 171, 3), np.uint8)
batch = {"video": video, "crop": np.tile([[3, 41]], (8, 1)).astype(np.int32), "flip": np.arange(8) % 2 == 0}
spread = sharding.make_global(batch, mesh)
assert [shard.data.shape[0] for shard in spread["video"].addressable_shards] == [2] * 4
np.testing.assert_array_equal(spread["video"], video)

augment = jax.jit(transforms.augment, in_shardings=sharding.batch_sharding(mesh), out_shardings=sharding.batch_sharding(mesh))
program = augment.lower(spread["video"], spread["crop"], spread["flip"]).compile()
for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
    assert word not in program.as_text(), word
found = program(spread["video"], spread["crop"], spread["flip"])
np.testing.assert_array_equal(found, jax.jit(transforms.augment)(**batch))

try:
    sharding.make_global({"video": video[:6], "flip": np.zeros(4, bool)}, mesh)
except ValueError as error:
    assert str(error) == "4 local devices take equal numbers of rows; got video: 6 rows", error
else:
    raise AssertionError("6 rows went on 4 devices")
"""


def test_batch_is_split_over_four_devices_and_augmented_where_it_lies() -> None:
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    subprocess.run([sys.executable, "-c", ON_FOUR_DEVICES], check=True, env={**os.environ, "XLA_FLAGS": flags})


def test_batch_on_one_device_is_the_batch() -> None:
    mesh, rows = sharding.make_mesh(jax.devices()[:1]), np.arange(6).reshape(3, 2)
    found = sharding.make_global({"rows": rows}, mesh)
    np.testing.assert_array_equal(found["rows"], rows)
    assert found["rows"].sharding == sharding.batch_sharding(mesh)


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


@pytest.fixture
def initialized(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The calls that reach JAX; one without arguments finds no cluster."""
    calls = []

    def initialize(*arguments: Any, heartbeat_timeout_seconds: int) -> None:
        calls.append(arguments)
        if not arguments:
            raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    return calls


def test_process_outside_a_cluster_stays_alone(initialized: list[tuple[Any, ...]]) -> None:
    processes.start_processes()
    assert initialized == [()]


def test_single_slurm_task_keeps_all_its_devices(initialized: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    processes.start_processes()
    assert initialized == []


def test_given_addresses_reach_jax(initialized: list[tuple[Any, ...]]) -> None:
    processes.start_processes("localhost:1234", 2, 0)
    assert initialized == [("localhost:1234", 2, 0)]


def test_other_faults_of_the_start_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def initialize(heartbeat_timeout_seconds: int) -> None:
        raise ValueError("no such host")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    with pytest.raises(ValueError, match="no such host"):
        processes.start_processes()


def test_half_an_address_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['num_processes', 'process_id'\] not given"):
        processes.start_processes("localhost:1234")


def test_jax_says_no_cluster_in_the_words_that_are_waited_for() -> None:
    script = "from tsp_jax.training import processes; import jax; processes.start_processes(); assert jax.process_count() == 1"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
