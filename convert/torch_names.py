"""The table between a PyTorch state dict and this project's variables, in NumPy alone.

A variable's path joined by dots is its state-dict key, so only the layout of the arrays differs. A convolution's kernel is
(out, in, kt, kh, kw) in PyTorch and [kt, kh, kw, in, out] here. A linear map is (out, in) in PyTorch and [in, out] here.
A counter is int64 in PyTorch and int32 here.
"""

from collections.abc import Iterable, Mapping

import flax.traverse_util
import numpy as np

from tsp_jax.models import backbones, functional, tsp
from tsp_jax.system import trees

# The order of axes by the array's rank. Arrays of other ranks stay as they are.
_FROM_TORCH = {5: (2, 3, 4, 1, 0), 2: (1, 0)}
_TO_TORCH = {5: (4, 3, 0, 1, 2), 2: (1, 0)}

# The order of siblings in a state dict, in which torchvision and the original define them.
_ORDER = ("features", "fc", "fc1", "fc2", "stem", "layer1", "layer2", "layer3", "layer4", "conv1", "conv2", "downsample")
_ORDER += ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

_HEADS = ("fc", "fc1", "fc2")
_HEAD_LAYOUTS = ((), ("fc",), ("fc1", "fc2"))


def from_state_dict(
    state: Mapping[str, np.ndarray], where: str = "the state dict"
) -> tuple[tsp.ModelConfig, functional.Variables]:
    """Returns the model that these arrays make, and its variables as copies in this project's layout.

    Args:
      state: arrays under the released names, float32 with counters of int64. `wrappers.rename` translates other
        names, and `wrappers.normalise` other types.
      where: the name of the state dict in messages.

    Raises:
      ValueError: the arrays fit no model; one message names every missing, unexpected and misshapen key. Or the conversion
        would change values, or they would make features of NaN; one message names every such key.
    """
    shapes = {key: tuple(array.shape) for key, array in state.items()}
    config = recognise(shapes, where)
    nearest = f"{config.backbone}, the nearest of the known models; save its weights alone where the file was made"
    trees.check_keys(torch_shapes(config), shapes, where, model=nearest)
    _check_values(state, np.int64, where)
    paths = flax.traverse_util.flatten_dict(functional.shapes(config), sep=".")
    leaves = {path: _relayout(state[path.split(".", 1)[1]], _FROM_TORCH, np.int32) for path in paths}
    return config, flax.traverse_util.unflatten_dict(leaves, sep=".")


def to_state_dict(config: tsp.ModelConfig, variables: functional.Variables) -> dict[str, np.ndarray]:
    """Returns copies of the variables in PyTorch's layout, in the order of `module.state_dict()`.

    Raises:
      ValueError: the variables do not fit the configuration, are not float32 with counters of int32, or hold a value that
        `from_state_dict` refuses; one message names every such key.
    """
    where = f"the variables of {config}"
    leaves = {key: np.asarray(leaf) for key, leaf in trees.flatten(variables).items()}
    expected = {key: tuple(leaf.shape) for key, leaf in trees.flatten(functional.shapes(config)).items()}
    trees.check_keys(expected, {key: leaf.shape for key, leaf in leaves.items()}, where)
    _check_values(leaves, np.int32, where)
    return {key: _relayout(leaves[key], _TO_TORCH, np.int64) for key in sorted(leaves, key=_position)}


def recognise(shapes: Mapping[str, tuple[int, ...]], where: str = "the state dict") -> tsp.ModelConfig:
    """Returns the model that has these keys and shapes of PyTorch, or the nearest one; `from_state_dict` compares them all.

    Raises:
      ValueError: there is no backbone under `features.`, or fewer than half of any known backbone's arrays are there, or the
        heads are not one of: none, `fc`, `fc1` and `fc2`.
    """
    backbone = {key: shape for key, shape in shapes.items() if key.startswith("features.")}
    if not backbone:
        raise ValueError(
            f"{where}: expected a backbone under features. (features.stem.0.weight, …) or a bare one (stem.0.weight, …); "
            f"found {summarise(shapes)}"
        )
    name, matches = _nearest(backbone)
    size = len(torch_shapes(tsp.ModelConfig(name)))
    if 2 * matches < size:
        raise ValueError(
            f"{where}: expected one of {', '.join(backbones.BACKBONES)}; found another network. The nearest is {name}, with "
            f"{matches} of its {size} arrays; found {summarise(shapes)}"
        )

    heads = tuple(head for head in _HEADS if any(key.startswith(f"{head}.") for key in shapes))
    if heads not in _HEAD_LAYOUTS:
        raise ValueError(
            f"{where}: expected no head, fc alone, or fc1 and fc2 (leave out or rename the "
            f"others where the file was made); found {' and '.join(heads)}"
        )
    # If a head's weight is missing, its bias says how many labels the message should ask for.
    rows = [shapes.get(f"{head}.weight") or shapes.get(f"{head}.bias") or (1,) for head in heads]
    label_counts = tuple(max(1, row[0]) for row in rows)
    gvf = bool(rows) and rows[-1][1:] == (2 * backbones.BACKBONES[name].width,)
    return tsp.ModelConfig(name, label_counts, gvf)


def torch_shapes(config: tsp.ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every array in PyTorch's layout, in the order of `module.state_dict()`."""
    leaves = trees.flatten(functional.shapes(config))
    shapes = {}
    for key in sorted(leaves, key=_position):
        shape = leaves[key].shape
        shapes[key] = tuple(shape[axis] for axis in _TO_TORCH.get(len(shape), range(len(shape))))
    return shapes


def summarise(names: Iterable[object]) -> str:
    """Returns the number of names and the first six, for a message."""
    names = list(names)
    shown = ", ".join(f"{name!r:.80}" for name in names[:6])
    return f"{len(names)} keys: {shown}{', …' if len(names) > 6 else ''}" if names else "no keys"


def _nearest(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, int]:
    """Returns the backbone that shares the most keys with their shapes, and their number."""

    def matches(name: str) -> int:
        return sum(shapes.get(key) == shape for key, shape in torch_shapes(tsp.ModelConfig(name)).items())

    # The shapes of all backbones take seconds, so the likely one is compared first. A (2+1)D network has a pair of convolutions
    # for each 3-D one, also in the stem.
    split = any(key.startswith("features.stem.3.") or ".conv1.0.0." in key for key in shapes)
    if split:
        likely = "r2plus1d_34" if any(key.startswith("features.layer3.2.") for key in shapes) else "r2plus1d_18"
    else:
        likely = "r3d_18" if any(key.startswith("features.layer1.1.") for key in shapes) else "r3d_tiny"
    if matches(likely) == len(shapes):
        return likely, len(shapes)
    found = {name: matches(name) for name in backbones.BACKBONES}
    name = max(found, key=lambda name: found[name])
    return name, found[name]


def _position(key: str) -> list[int]:
    """Returns the place of a key in a state dict, for sorting."""
    return [int(part) if part.isdigit() else _ORDER.index(part) for part in key.split(".")]


def _relayout(array: np.ndarray, axes: Mapping[int, tuple[int, ...]], counter: type[np.integer]) -> np.ndarray:
    """Returns a contiguous copy with its axes moved; integers get the dtype `counter`."""
    dtype = counter if array.dtype.kind == "i" else array.dtype
    return np.array(array.transpose(axes.get(array.ndim, range(array.ndim))), dtype, order="C")


def _check_values(arrays: Mapping[str, np.ndarray], counter: type[np.integer], where: str) -> None:
    """Checks that a model can use the arrays; raises ValueError that lists every array that it cannot use."""
    lines = []
    for key, array in arrays.items():
        name = key.rsplit(".", 1)[-1]
        expected = np.dtype(counter if name == "num_batches_tracked" else np.float32)
        if array.dtype != expected:
            # We do not cast: a half-precision file has lost digits already, and a double would lose them here.
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
