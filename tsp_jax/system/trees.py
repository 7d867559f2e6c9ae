"""Nested dicts of arrays: their leaves by dotted name, strict comparison, and the hash of them all."""

import hashlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np


def check_keys(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Nothing, when both name the same keys with the same shapes.

    Raises:
      ValueError: one message with every missing, unexpected and misshapen key.
    """
    lines = [f"missing: {key} {expected[key]}" for key in expected.keys() - found.keys()]
    lines += [f"unexpected: {key} {found[key]}" for key in found.keys() - expected.keys()]
    lines += [
        f"misshapen: {key} expected {expected[key]}, found {found[key]}"
        for key in expected.keys() & found.keys()
        if expected[key] != found[key]
    ]
    if lines:
        raise ValueError(f"{where}: {len(lines)} keys do not fit the model\n  " + "\n  ".join(sorted(lines)))


def shapes(variables: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes by dotted name, for `check_keys`."""
    return {key: tuple(leaf.shape) for key, leaf in flatten(variables).items()}


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by dotted name, parameters and statistics together: the keys of a PyTorch state dict, sorted."""
    leaves = {}
    for collection in variables.values():
        leaves.update(flax.traverse_util.flatten_dict(collection, sep="."))
    return dict(sorted(leaves.items()))


def sha256(leaves: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of arrays, in their order."""
    digest = hashlib.sha256()
    for key, leaf in leaves.items():
        array = np.ascontiguousarray(leaf)
        digest.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
