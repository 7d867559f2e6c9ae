"""What every test shares: a compilation cache, one device, the folder of reference data where it is at hand."""

import os
import tempfile
from pathlib import Path

# Compiled programs are shared between tests and their child processes; a new folder a machine keeps them private.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"tsp_jax_test_xla_{os.getuid()}"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

jax.devices()  # one, from here on: a command run in this process would have JAX see a device for each core


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of the original's outputs, or a skip that says so."""
    if not (SHARED / "reference" / "features.npz").is_file():
        pytest.skip(f"the reference data is not at hand ({SHARED})")
    return SHARED
