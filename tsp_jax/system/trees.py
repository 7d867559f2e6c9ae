"""Nested dicts of arrays: their leaves by dotted name, strict comparison, and the hash of them all."""

import hashlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np


def check_keys(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str, *, model: str = "the model"
) -> None:
    """Checks that both mappings have the same keys with the same shapes.

    Args:
      expected: the shape of each array that the model has.
      found: the shape of each array that was read.
      where: the origin of the arrays, which begins the message.
      model: the name of the model in the message.

    Raises:
      ValueError: the keys or shapes differ; one message names every missing, unexpected and misshapen key.
    """
    lines = [f"missing: {key} {expected[key]}" for key in expected.keys() - found.keys()]
    lines += [f"unexpected: {key} {found[key]}" for key in found.keys() - expected.keys()]
    lines += [
        f"misshapen: {key} expected {expected[key]}, found {found[key]}"
        for key in expected.keys() & found.keys()
        if expected[key] != found[key]
    ]
    if lines:
        raise ValueError(f"{where}: {len(lines)} keys do not fit {model}\n  " + "\n  ".join(sorted(lines)))


def shapes(variables: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the leaves of `flatten`, for `check_keys`."""
    return {key: tuple(leaf.shape) for key, leaf in flatten(variables).items()}


def path_shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the leaves of `leaves`, for `check_keys`."""
    return {key: tuple(leaf.shape) for key, leaf in leaves(tree).items()}


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves of all collections by dotted name, sorted: parameters and statistics under their state-dict keys."""
    flat = {}
    for collection in variables.values():
        flat.update(flax.traverse_util.flatten_dict(collection, sep="."))
    return dict(sorted(flat.items()))


def leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of any pytree by their whole dotted path, in the order of the tree."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in found}


def sha256(leaves: Mapping[str, Any]) -> str:
    """Returns the SHA-256, in hex, of the names, dtypes, shapes and bytes of arrays in the order of the mapping."""
    digest = hashlib.sha256()
    for key, leaf in leaves.items():
        array = np.ascontiguousarray(leaf)
        digest.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
