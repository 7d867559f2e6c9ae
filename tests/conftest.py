"""What all tests share: run-time checks of types and shapes, a compilation cache, one device, the folder of reference data."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jaxtyping

# Before anything of ours is imported. Child processes are not checked: they run what the tests' own process runs too.
jaxtyping.install_import_hook(["tsp_jax", "convert", "data_builders"], "type_checks.checked")

# Compiled programs are shared by all tests, pytest's workers and child processes; a folder for each user keeps them private.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"tsp_jax_test_xla_{os.getuid()}"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402 (the environment comes first)
import pytest  # noqa: E402

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

jax.devices()  # one from here on: a command that runs in this process would make JAX see a device for each core


@pytest.fixture(autouse=True)
def wrong_arguments(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lets arguments of the wrong type or shape reach our own checks in a test that is marked `wrong_arguments`."""
    marked = request.node.get_closest_marker("wrong_arguments") is not None
    if marked:
        jaxtyping.config.update("jaxtyping_disable", True)
    yield
    if marked:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of the original's outputs; skips the test if the folder is absent."""
    if not (SHARED / "reference" / "features.npz").is_file():
        pytest.skip(f"the reference data is not at hand ({SHARED})")
    return SHARED
