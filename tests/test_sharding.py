"""Tests of the mesh. Training on it is tested with the step."""

import os
import subprocess
import sys

import jax
import numpy as np

from tsp_jax.system import sharding

# This program runs on four devices, in a process of its own.
ON_FOUR_DEVICES = """
import jax
import numpy as np
from tsp_jax import transforms
from tsp_jax.system import sharding

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
