"""Draws weights and batches from a seed, and holds the optimizer's numbers. They are the same for all sides."""

from collections.abc import Mapping

import numpy as np

# These are the values of the original's recipe for ActivityNet.
BACKBONE_LR, FC_LR, MOMENTUM, WEIGHT_DECAY = 1e-4, 2e-3, 0.9, 0.005


def state(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Returns a PyTorch state dict whose values keep activations near 1: float64, and int64 for counters.

    No value is the one that a new network has.

    Args:
      shapes: the arrays' shapes by key, in the order in which they are drawn.
      seed: the seed of every random draw.
    """
    random = np.random.RandomState(seed)
    values = {}
    for key, shape in shapes.items():
        name = key.split(".")[-1]
        if name == "num_batches_tracked":
            values[key] = np.asarray(random.randint(1, 1000))
        elif name == "running_var":
            values[key] = random.uniform(0.5, 2.0, shape)
        elif name in ("running_mean", "bias"):
            values[key] = random.normal(0, 0.3, shape)
        elif len(shape) > 1:  # kernels keep the variance of rectified inputs
            values[key] = random.uniform(-1, 1, shape) * np.sqrt(3 * 1.4 / np.prod(shape[1:]))
        else:
            values[key] = random.uniform(0.6, 1.4, shape)
    return values


def batch(clips: int, clip: tuple[int, int, int], label_counts: tuple[int, int], gvf_width: int) -> dict[str, np.ndarray]:
    """Returns normalized clips, float32 `[b, t, h, w, 3]`, labels of two heads, and GVFs. Half of the actions are missing."""
    random = np.random.default_rng(0)
    action = random.integers(label_counts[0], size=clips)
    action[1::2] = -1  # background has no action
    return {
        "video": random.standard_normal((clips, *clip, 3), np.float32),
        "action": action.astype(np.int32),
        "temporal_region": (np.arange(clips) % label_counts[1]).astype(np.int32),
        "gvf": random.standard_normal((clips, gvf_width), np.float32),
    }


def small(clips: np.ndarray) -> np.ndarray:
    """Returns clips `[b, t, 112, 112, 3]` as means of 16x16 pixels, which JPEG's changes within a block hardly move."""
    b, t, h, w, c = clips.shape
    return clips.reshape(b, t, h // 16, 16, w // 16, 16, c).mean((3, 5))
