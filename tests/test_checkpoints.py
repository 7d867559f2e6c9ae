"""Tests of checkpoint folders that are damaged."""

import contextlib
import gc
from pathlib import Path

import jax
import numpy as np
import pytest

from tsp_jax import checkpoints
from tsp_jax.models import functional, tsp
from tsp_jax.training import run_checkpoints

# After a read that failed, Orbax leaves other reads running, which raise where nobody waits for them.
LEAVES_READS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
CONFIG = tsp.ModelConfig("r3d_tiny", (3, 2))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "c"
    checkpoints.save(path, checkpoints.make(CONFIG, functional.init(CONFIG, 0), checkpoints.Origin("seed 0")))
    return path


def damage(path: Path, place: float) -> bytes:
    """Flips a bit of a file. Returns the file's content before."""
    before = path.read_bytes()
    spoiled = bytearray(before)
    spoiled[int(place * len(before))] ^= 0x10
    path.write_bytes(spoiled)
    return before


@pytest.mark.slow
@LEAVES_READS
def test_damaged_arrays_are_refused_wherever_the_damage_is(saved: Path) -> None:
    largest = max(saved.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    for place in (0, 0.4, 0.8):
        before = damage(largest, place)
        with pytest.raises(ValueError, match=r"/c: (its arrays can't be read|the arrays have SHA-256|\d+ keys)"):
            checkpoints.load(saved)
        largest.write_bytes(before)
    assert checkpoints.load(saved).config == CONFIG
    gc.collect()  # their errors are raised here, not in a later test


@pytest.mark.parametrize("text", ["", "[" * 50_000, "null", "{}", '{"format_version": [1]}', "\udcff"])
def test_metadata_of_something_else_are_refused_by_name(text: str, saved: Path) -> None:
    path = saved / "about" / "metadata"
    before = path.read_bytes()
    path.write_bytes(text.encode(errors="surrogateescape"))
    try:
        with pytest.raises(ValueError, match=r"about/metadata: not the metadata of a tsp_jax checkpoint"):
            checkpoints.load(saved)
    finally:
        path.write_bytes(before)


@pytest.mark.slow
@LEAVES_READS
def test_damage_anywhere_in_a_runs_state_is_refused_or_does_no_harm(tmp_path: Path) -> None:
    state = {"a": jax.random.normal(jax.random.key(0), (5000,)), "step": jax.numpy.int32(3)}
    with contextlib.closing(run_checkpoints.Keeper(tmp_path / "last")) as keeper:
        keeper.save(3, state, {"step": 3})
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), state)
    refused = 0
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        for harm in ("flip", "cut"):
            before = damage(path, 0.5)
            if harm == "cut":
                path.write_bytes(before[: len(before) // 2])
            with contextlib.closing(run_checkpoints.Keeper(tmp_path / "last", read_only=True)) as keeper:
                try:
                    found, page = keeper.restore(like)
                except ValueError as error:
                    assert "last/3: can't be read (" in str(error)
                    refused += 1
                else:
                    assert np.array_equal(found["a"], state["a"]) and "step" in str(page)
            path.write_bytes(before)
    assert refused >= 8
    gc.collect()
