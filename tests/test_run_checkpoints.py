"""Tests of the states that a run goes on from."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsp_jax.training import run_checkpoints

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def state(value: float) -> dict[str, Any]:
    return {
        "step": jnp.asarray(int(value), jnp.int32),
        "params": {"a": {"0": jnp.full((300, 1000), value)}, "b": (jnp.ones(2),)},
    }


def like(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=HERE), tree)


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_state_comes_back_although_it_was_given_away_at_once(tmp_path: Path) -> None:
    keeper, given = run_checkpoints.Keeper(tmp_path), state(1)
    bump = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    keeper.save(1, given, {"tally": [0.1, 2]})
    for _ in range(20):
        given = bump(given)
    keeper.close()
    found, page = run_checkpoints.Keeper(tmp_path).restore(like(state(0)))
    assert page == {"tally": [0.1, 2]}
    assert jax.tree.structure(found) == jax.tree.structure(given)
    jax.tree.map(np.testing.assert_array_equal, found, state(1))


def test_last_state_alone_is_kept_and_a_step_is_saved_once(tmp_path: Path) -> None:
    keeper = run_checkpoints.Keeper(tmp_path)
    assert keeper.latest() is None
    for step in (1, 2, 5):
        keeper.save(step, state(step), {"step": step})
    keeper.save(5, state(7), {"step": 7})
    keeper.wait()
    assert steps(tmp_path) == ["5"] and keeper.latest() == 5 and keeper.metadata() == {"step": 5}
    keeper.close()


def test_what_a_killed_process_left_is_no_state_and_is_swept_up(tmp_path: Path) -> None:
    keeper = run_checkpoints.Keeper(tmp_path)
    keeper.save(3, state(3), {})
    keeper.close()
    (tmp_path / "4.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    reader = run_checkpoints.Keeper(tmp_path, read_only=True)
    assert reader.latest() == 3 and len(steps(tmp_path)) == 2
    reader.close()
    keeper = run_checkpoints.Keeper(tmp_path)  # removes it in the background, and has done so when it saves
    assert keeper.latest() == 3
    keeper.save(5, state(5), {})
    keeper.close()
    assert steps(tmp_path) == ["5"]


def test_reader_of_nothing_makes_no_folder(tmp_path: Path) -> None:
    keeper = run_checkpoints.Keeper(tmp_path / "none", read_only=True)
    assert keeper.latest() is None and not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="no state there"):
        keeper.metadata()
    keeper.close()


def test_state_of_another_shape_is_refused_with_every_key(tmp_path: Path) -> None:
    keeper = run_checkpoints.Keeper(tmp_path)
    keeper.save(3, state(3), {})
    keeper.wait()
    other = {"step": jnp.zeros((), jnp.int32), "params": {"a": {"0": jnp.zeros((2, 2))}, "c": jnp.zeros(1)}}
    with pytest.raises(ValueError, match="3 keys do not fit") as caught:
        keeper.restore(like(other))
    assert [line.split(" (")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        "misshapen: params.a.0 expected",
        "missing: params.c",
        "unexpected: params.b.0",
    ]
    keeper.close()
