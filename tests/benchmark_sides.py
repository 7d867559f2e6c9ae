"""Sides of a benchmark that need neither JAX nor PyTorch, for tests of the timing itself."""

import time
from typing import Any

import numpy as np

from benchmarks import alternate

SECONDS = {"ours": 0.01, "released": 0.03}


def right(spec: dict[str, Any]) -> alternate.Side:
    """Returns a side whose outputs are always the same, and whose work takes longer for `released` than for `ours`."""

    def run(count: int) -> None:
        time.sleep(SECONDS[spec["side"]] * count)

    print("libraries print")
    about = {"versions": {"numpy": np.__version__}, "platform": "cpu", "device": "CPU", "how": "as it is"}
    return alternate.Side(run, np.array([1.0, 2.0]), about)


def wrong(spec: dict[str, Any]) -> alternate.Side:
    """Returns a side whose outputs differ from those of `right`."""
    return right(spec)._replace(outputs=np.array([1.0, 2.1]))


def misshapen(spec: dict[str, Any]) -> alternate.Side:
    """Returns a side with fewer outputs than `right`."""
    return right(spec)._replace(outputs=np.array([1.0]))


def absent(spec: dict[str, Any]) -> alternate.Side:
    """Raises UnavailableError, as PyTorch's sides do if PyTorch is not installed."""
    raise alternate.UnavailableError("its library is not installed")


def broken(spec: dict[str, Any]) -> alternate.Side:
    """Ends the process, as a crash does."""
    raise SystemExit(3)
