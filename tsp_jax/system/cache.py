"""The folder in which this project keeps what can be made or downloaded again: compiled programs and released models."""

import os
from pathlib import Path


def root() -> Path:
    """Returns the root of the cache: the environment variable TSP_JAX_CACHE, or else the user's cache folder.

    The folder may not exist yet. `xla` below it holds compiled programs, `checkpoints` the released models.
    """
    import platformdirs  # imported here because the networks alone do without it

    from_environment = os.environ.get("TSP_JAX_CACHE")
    return Path(from_environment).expanduser() if from_environment else platformdirs.user_cache_path("tsp_jax")
