"""Tests of the cache folder."""

from pathlib import Path

import pytest

from tsp_jax.system import cache


def test_root_is_the_environment_variable_else_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSP_JAX_CACHE", str(tmp_path))
    assert cache.root() == tmp_path
    monkeypatch.delenv("TSP_JAX_CACHE")
    assert cache.root().name == "tsp_jax"
