"""Temporally-sensitive video encoders (TSP) in JAX: features, records, training."""

__version__ = "0.1.0.dev0"
