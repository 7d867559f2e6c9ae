"""Temporally-sensitive video encoders (TSP) in JAX: features, records, training."""

from typing import TYPE_CHECKING

from tsp_jax.version import __version__

if TYPE_CHECKING:
    from tsp_jax.api import Features, VideoEncoder, load_encoder, read_features

__all__ = ["Features", "VideoEncoder", "__version__", "load_encoder", "read_features"]


def __getattr__(name: str) -> object:
    # JAX is imported when it is asked for: the version is read where nothing is installed.
    if name in __all__:
        from tsp_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
