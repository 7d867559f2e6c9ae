"""Converts the original networks' weights to this project's layout, for tests of parity.

This does not use the product's own conversion, so that each of the two checks the other.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from benchmarks import seeded
from benchmarks.torch_networks import BLOCKS as BLOCKS
from benchmarks.torch_networks import Reference as Reference
from benchmarks.torch_networks import build as build
from benchmarks.torch_networks import import_video_resnet as import_video_resnet

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def randomize(module: nn.Module, seed: int) -> None:
    """Fills every parameter and statistic with `seeded.state`'s values."""
    tensors = module.state_dict()
    values = seeded.state({key: tuple(tensor.shape) for key, tensor in tensors.items()}, seed)
    with torch.no_grad():
        for key, tensor in tensors.items():
            tensor.copy_(torch.as_tensor(values[key]))


def to_variables(module: nn.Module, dtype: Any = np.float32) -> dict[str, Any]:
    """Returns the state dict as `{"params": {...}, "batch_stats": {...}}` of NumPy arrays in this project's layout."""
    tensors = module.state_dict()
    return {
        "params": nest({k: v for k, v in tensors.items() if k.split(".")[-1] not in STATISTICS}, dtype),
        "batch_stats": nest({k: v for k, v in tensors.items() if k.split(".")[-1] in STATISTICS}, dtype),
    }


def nest(tensors: Mapping[str, torch.Tensor], dtype: Any = np.float32) -> dict[str, Any]:
    """Returns tensors by dotted name as nested dicts: kernels `[kt, kh, kw, in, out]` and `[in, out]`, counters int32."""
    nested = {}
    for key, tensor in tensors.items():
        array = tensor.detach().numpy()
        axes = {5: (2, 3, 4, 1, 0), 2: (1, 0)}.get(array.ndim, range(array.ndim))
        *parents, name = key.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = np.array(array.transpose(axes), np.int32 if name == "num_batches_tracked" else dtype, order="C")
    return nested


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    """Checks that trees and shapes are the same, and that no leaf differs by more than `tolerance` times its largest value."""
    found_leaves, expected_leaves = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (found, expected))
    assert found_leaves.keys() == expected_leaves.keys()
    wrong = {}
    for path, leaf in expected_leaves.items():
        a, b = np.asarray(found_leaves[path], np.float64), np.asarray(leaf, np.float64)
        assert a.shape == b.shape, jax.tree_util.keystr(path)
        difference = np.max(np.abs(a - b)) / max(np.max(np.abs(b)), np.finfo(np.float64).tiny)
        if not difference <= tolerance:
            wrong[jax.tree_util.keystr(path)] = float(difference)
    assert not wrong
