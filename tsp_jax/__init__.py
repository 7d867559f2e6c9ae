"""Temporally-sensitive video encoders (TSP) in JAX: features, records, training, and scores of detections."""

from typing import TYPE_CHECKING

from tsp_jax.system.version import __version__

if TYPE_CHECKING:
    from tsp_jax.api import Features, VideoEncoder, load_encoder, read_features
    from tsp_jax.evaluate import evaluate

__all__ = ["Features", "VideoEncoder", "__version__", "evaluate", "load_encoder", "read_features"]


def __getattr__(name: str) -> object:
    # What needs JAX or much time to import is imported when it is asked for: the version is read where nothing is installed.
    if name == "evaluate":
        import importlib

        return importlib.import_module("tsp_jax.evaluate")  # a module that can be called
    if name in __all__:
        from tsp_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
