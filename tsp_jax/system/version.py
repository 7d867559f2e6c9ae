"""The version of this package, semantic."""

__version__ = "0.1.0"
