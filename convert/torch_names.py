"""The table between a PyTorch state dict and this project's variables, in NumPy alone.

A variable's path joined by dots is its state-dict key, so only the arrays' layout is left to say: a convolution is
(out, in, kt, kh, kw) there and [kt, kh, kw, in, out] here, a linear map (out, in) and [in, out], a counter int64 and int32.
"""

from collections.abc import Iterable, Mapping

import flax.traverse_util
import numpy as np

from tsp_jax.models import functional, tsp, video_resnet
from tsp_jax.system import trees

# For arrays of that rank, which axis goes where; other ranks stay as they are.
_FROM_TORCH = {5: (2, 3, 4, 1, 0), 2: (1, 0)}
_TO_TORCH = {5: (4, 3, 0, 1, 2), 2: (1, 0)}

# Siblings stand in this order in a state dict: as torchvision and the original define them.
_ORDER = ("features", "fc", "fc1", "fc2", "stem", "layer1", "layer2", "layer3", "layer4", "conv1", "conv2", "downsample")
_ORDER += ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

_HEADS = ("fc", "fc1", "fc2")
_HEAD_LAYOUTS = ((), ("fc",), ("fc1", "fc2"))


def from_state_dict(
    state: Mapping[str, np.ndarray], where: str = "the state dict"
) -> tuple[tsp.ModelConfig, functional.Variables]:
    """The model that these arrays make, and its variables: copies, in this project's layout.

    Args:
      state: arrays under the released names (`rename` brings others there): float32, counters int64.
      where: what the messages call the state dict.

    Raises:
      ValueError: it is no model's; one message names every missing, unexpected and misshapen key. Or values would be
        changed by the conversion, or make features of NaN: one message names every such key.
    """
    shapes = {key: tuple(array.shape) for key, array in state.items()}
    config = recognise(shapes, where)
    trees.check_keys(torch_shapes(config), shapes, where)
    _check_values(state, np.int64, where)
    paths = flax.traverse_util.flatten_dict(functional.shapes(config), sep=".")
    leaves = {path: _relayout(state[path.split(".", 1)[1]], _FROM_TORCH, np.int32) for path in paths}
    return config, flax.traverse_util.unflatten_dict(leaves, sep=".")


def to_state_dict(config: tsp.ModelConfig, variables: functional.Variables) -> dict[str, np.ndarray]:
    """Copies of the variables as PyTorch keeps them, in the order of `module.state_dict()`.

    Raises:
      ValueError: the variables are not those of the configuration, or not float32 with counters of int32, or hold a value
        that `from_state_dict` refuses; one message names every such key.
    """
    where = f"the variables of {config}"
    leaves = {key: np.asarray(leaf) for key, leaf in trees.flatten(variables).items()}
    expected = {key: tuple(leaf.shape) for key, leaf in trees.flatten(functional.shapes(config)).items()}
    trees.check_keys(expected, {key: leaf.shape for key, leaf in leaves.items()}, where)
    _check_values(leaves, np.int32, where)
    return {key: _relayout(leaves[key], _TO_TORCH, np.int64) for key in sorted(leaves, key=_position)}


def recognise(shapes: Mapping[str, tuple[int, ...]], where: str = "the state dict") -> tsp.ModelConfig:
    """The model that has these keys and shapes (PyTorch's), or comes nearest to them; `from_state_dict` compares all.

    Raises:
      ValueError: there is no backbone under `features.`, or the heads are others than none, `fc`, or `fc1` and `fc2`.
    """
    backbone = [key for key in shapes if key.startswith("features.")]
    if not backbone:
        raise ValueError(
            f"{where}: expected a backbone under features. (features.stem.0.weight, …) or a bare one (stem.0.weight, …); "
            f"found {summarise(shapes)}"
        )
    # In a (2+1)D network a whole convolution is a pair, and so is the stem.
    split = any(key.startswith("features.stem.3.") or ".conv1.0.0." in key for key in backbone)
    deep = any(key.startswith("features.layer3.2.") for key in backbone)
    name = ("r2plus1d_34" if deep else "r2plus1d_18") if split else "r3d_18"

    heads = tuple(head for head in _HEADS if any(key.startswith(f"{head}.") for key in shapes))
    if heads not in _HEAD_LAYOUTS:
        raise ValueError(f"{where}: expected no head, fc alone, or fc1 and fc2; found {' and '.join(heads)}")
    # Where a head's weight is missing, its bias tells how many labels the message should ask for.
    rows = [shapes.get(f"{head}.weight") or shapes.get(f"{head}.bias") or (1,) for head in heads]
    label_counts = tuple(max(1, row[0]) for row in rows)
    gvf = bool(rows) and rows[-1][1:] == (2 * video_resnet.feature_size(name),)
    return tsp.ModelConfig(name, label_counts, gvf)


def rename(keys: Iterable[str]) -> tuple[dict[str, str], str]:
    """The released name of each key that is kept, and a note on what was changed, empty when nothing was.

    DistributedDataParallel's prefix `module.` is removed. A bare backbone, as torchvision and ig65m publish them, gets the
    prefix `features.`, and its head, which tells labels of Kinetics, is left out.
    """
    names, notes = {key: key for key in keys}, []
    if names and all(key.startswith("module.") for key in names):
        names = {key: key.removeprefix("module.") for key in names}
        notes.append("the prefix module. was removed from all keys")
    bare = any(name.startswith(("stem.", "layer1.")) for name in names.values())
    if bare and not any(name.startswith("features.") for name in names.values()):
        dropped = [name for name in names.values() if name.startswith("fc.")]
        names = {key: f"features.{name}" for key, name in names.items() if name not in dropped}
        notes.append("a bare backbone: the prefix features. was added")
        notes += [f"dropped {' and '.join(dropped)} of its Kinetics head"] if dropped else []
    return names, "; ".join(notes)


def torch_shapes(config: tsp.ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every array in PyTorch's layout, in the order of `module.state_dict()`."""
    leaves = trees.flatten(functional.shapes(config))
    shapes = {}
    for key in sorted(leaves, key=_position):
        shape = leaves[key].shape
        shapes[key] = tuple(shape[axis] for axis in _TO_TORCH.get(len(shape), range(len(shape))))
    return shapes


def summarise(names: Iterable[object]) -> str:
    """The first names and how many more there are, for a message."""
    names = list(names)
    shown = ", ".join(f"{name!r:.80}" for name in names[:6])
    return f"{len(names)} keys: {shown}{', …' if len(names) > 6 else ''}" if names else "no keys"


def _position(key: str) -> list[int]:
    return [int(part) if part.isdigit() else _ORDER.index(part) for part in key.split(".")]


def _relayout(array: np.ndarray, axes: Mapping[int, tuple[int, ...]], counter: type[np.integer]) -> np.ndarray:
    """A contiguous copy with its axes moved; integers become `counter`."""
    dtype = counter if array.dtype.kind == "i" else array.dtype
    return np.array(array.transpose(axes.get(array.ndim, range(array.ndim))), dtype, order="C")


def _check_values(arrays: Mapping[str, np.ndarray], counter: type[np.integer], where: str) -> None:
    lines = []
    for key, array in arrays.items():
        name = key.rsplit(".", 1)[-1]
        expected = np.dtype(counter if name == "num_batches_tracked" else np.float32)
        if array.dtype != expected:
            # No cast: a half-precision file has lost digits already, and a double would lose them here.
            lines.append(f"{key}: expected {expected}, found {array.dtype}")
        elif name == "num_batches_tracked":
            if not 0 <= array <= np.iinfo(np.int32).max:
                lines.append(f"{key}: expected a count from 0 to 2^31 - 1, found {array}")
        elif not np.isfinite(array).all():
            lines.append(f"{key}: {np.count_nonzero(~np.isfinite(array))} of {array.size} values are not finite")
        elif name == "running_var" and (array < 0).any():
            lines.append(f"{key}: {np.count_nonzero(array < 0)} of {array.size} variances are negative")
    if lines:
        raise ValueError(f"{where}: {len(lines)} arrays hold what a model cannot use\n  " + "\n  ".join(lines))
