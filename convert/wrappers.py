"""Takes a network out of what other programs put around it: dictionaries, prefixes of keys, averages, and other precisions.

Every change is returned as a note for the user. What may be read in two ways is refused.
"""

import collections
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from convert import pickle_check, torch_names

# Parts of keys that mark a wrapper of a module and never name a layer: DataParallel, torch.compile, Lightning, FSDP, and
# activation checkpointing.
_MODULE_WRAPPERS = {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Parts of keys whose arrays are no part of a network: class weights of a loss, and the count of an AveragedModel.
_NO_NETWORK = {"criterion", "loss", "loss_fn", "loss_func", "n_averaged"}
_AVERAGE = re.compile(r"(^|_)(ema|swa|averaged?)(_|$|\d)", re.IGNORECASE)

_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
_HEADS = ("fc", "fc1", "fc2")
# The data sets of published pretraining by their number of labels. Their heads are of no use for other data.
_PRETRAINING = {400: "Kinetics", 359: "IG-65M", 487: "Sports-1M"}

_PRECISIONS = {"float16": "converted to", "bfloat16": "converted to", "float64": "rounded to"}

_MAX_DEPTH = 8
_SAVE = "save the network where it was made: torch.save({'model': network.state_dict()}, 'model.pth')"

Parts = tuple[str, ...]


def state_dict(content: Any, is_array: Callable[[Any], bool], where: str) -> tuple[dict[str, Any], list[str]]:
    """Returns the arrays of the one network in nested dicts, by their key, and notes on where they were.

    Dicts under any names and to any depth are searched. Of a network and its running average (EMA), the network is returned.
    If no dict holds a backbone's keys, the one with the most arrays is returned, so that a message can name what it is.

    Args:
      content: what a file holds.
      is_array: a function that returns whether a value is an array.
      where: the name of the file in messages.

    Raises:
      ValueError: there are no arrays, or several networks.
    """
    expected = "expected a dict with the state dict under 'model', or a state dict itself"
    if not isinstance(content, dict):
        raise ValueError(f"{where}: {expected}; found {type(content).__name__}; {_SAVE}")
    holders = {path: arrays for path, node in _dicts(content) if (arrays := _arrays(node, is_array))}
    networks = {path: arrays for path, arrays in holders.items() if any(_stage(key.split(".")) is not None for key in arrays)}
    if not holders:
        if any("param_groups" in node for _, node in _dicts(content)):
            raise ValueError(
                f"{where}: {expected}; found the state of an optimizer without its network; name the file of the weights"
            )
        model = dict.get(content, "model", content)
        found = torch_names.summarise(model) if isinstance(model, dict) else f"{type(model).__name__} under 'model'"
        if any(isinstance(value, pickle_check.NumpyArray) for _, node in _dicts(content) for value in dict.values(node)):
            found += ", with arrays of NumPy in place of tensors"
        raise ValueError(f"{where}: {expected}; found {found}; {_SAVE}")
    averages = [path for path in networks if _average(path) is not None]
    rest = [path for path in networks if path not in averages]
    chosen = rest or averages or [max(holders, key=lambda path: len(holders[path]))]
    if len(chosen) > 1:
        names = " and ".join(_shown(path) for path in chosen)
        indices = "".join(f"[{part!r}]" for part in chosen[0])
        raise ValueError(
            f"{where}: expected one network, found {len(chosen)}, under {names}; where it was made, save the one you want: "
            f"torch.save({{'model': content{indices}}}, 'one.pth')"
        )
    path = chosen[0]
    notes = [f"the state dict was read from {_shown(path)}"] if path not in ((), ("model",)) and networks else []
    if path in averages:
        notes.append("it is a running average (EMA) of weights, the only weights in the file")
    elif averages:
        names = " and ".join(_shown(path) for path in averages)
        notes.append(f"the running average (EMA) under {names} was passed over, and the weights under {_shown(path)} were read")
    node = dict(_dicts(content))[path]
    others = [key for key, value in dict.items(node) if not is_array(value) and not isinstance(value, dict)]
    if others and networks:
        notes.append(f"passed over what is no array: {torch_names.summarise(others)}")
    return holders[path], notes


def rename(shapes: Mapping[str, tuple[int, ...]], where: str = "the state dict") -> tuple[dict[str, str], list[str]]:
    """Returns the released name of each key that is kept, and notes on the changes.

    - A prefix of all keys is removed, and so are the marks of module wrappers (`module.`, `_orig_mod.` and their like).
    - The backbone, under whatever name, gets the name `features.`, and the heads `fc`, or `fc1` and `fc2`, next to it or
      above it get their own.
    - The head of a bare backbone, as torchvision and ig65m publish them, is left out if it has the number of labels of a
      published pretraining; another one is kept as `fc`.
    - A running average (EMA) of the network next to it is left out, and so are the weights of a loss.

    Other keys keep their names. If there is no backbone, all do.

    Raises:
      ValueError: there are several networks, or several keys for one array.
    """
    notes: list[str] = []
    parts: dict[str, Parts] = {key: tuple(key.split(".")) for key in shapes}
    if not any(_stage(part) is not None for part in parts.values()):
        return {key: key for key in shapes}, []
    left = [key for key, part in parts.items() if not _NO_NETWORK.isdisjoint(part)]
    if left:
        parts = {key: part for key, part in parts.items() if key not in left}
        notes.append(f"passed over what is no part of the network: {', '.join(left[:6])}{', …' if len(left) > 6 else ''}")
    parts = _without_averages(parts, notes)
    parts, prefix = _without_wrappers(parts, notes)
    if prefix:
        notes.append(f"the prefix {'.'.join(prefix)}. was removed from all keys")

    roots = _roots(parts)
    if len(roots) > 1:
        raise ValueError(
            f"{where}: expected one network, found {len(roots)}, under the prefixes "
            f"{', '.join('.'.join((*prefix, *root)) + '.' for root in roots)}; save the keys of one of them alone"
        )
    if not roots:
        return {key: key for key in shapes}, []
    (root,) = roots
    names, bare_head = _named(parts, root)
    if not root:
        notes.append("a bare backbone: the prefix features. was added")
    elif root != ("features",):
        notes.append(f"{'.'.join(root)}. was read as features.")
    if bare_head:
        rows = next((shapes[key][0] for key in bare_head if shapes[key]), 0)
        if any(name.split(".")[0] in _HEADS for name in names.values()):
            notes.append(f"dropped {' and '.join(bare_head)}, which the other heads replace")
        elif rows in _PRETRAINING:
            dropped = " and ".join(".".join(parts[key][len(root) :]) for key in bare_head)
            notes.append(f"dropped {dropped} of its {_PRETRAINING[rows]} head")
        else:
            names |= bare_head
            notes.append(f"kept its head of {rows} labels as fc")
    counts = collections.Counter(names.values())
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        keys = " and ".join(key for key, name in names.items() if name == twice[0])
        raise ValueError(
            f"{where}: {len(twice)} arrays have several keys, such as {keys} for {twice[0]}; save one of each alone"
        )
    return names, notes


def normalise(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the arrays as float32 with counters of int64 where that is possible, and notes on the changes.

    Half precision becomes float32 exactly; double precision is rounded. Counters of BatchNorm that are missing become 0: they
    serve no purpose at the momentum that these networks have. Arrays of other types are returned as they are.
    """
    found, notes = dict(arrays), []
    changed: dict[str, int] = {}
    for key, array in arrays.items():
        kind = array.dtype.name
        if key.endswith("num_batches_tracked"):
            value = float(array) if array.shape == () and (kind in _PRECISIONS or array.dtype.kind in "fiu") else -1.0
            if array.dtype != np.int64 and 0 <= value < 2**31 and value.is_integer():
                found[key] = np.array(int(value), np.int64)
        elif kind in _PRECISIONS:
            with np.errstate(over="ignore"):  # what becomes infinite is refused later
                found[key] = array.astype(np.float32)
            changed[kind] = changed.get(kind, 0) + 1
    notes += [f"{count} arrays of {kind} were {_PRECISIONS[kind]} float32" for kind, count in changed.items()]
    statistics = [key.removesuffix("running_var") for key in arrays if key.endswith(".running_var")]
    missing = [f"{layer}num_batches_tracked" for layer in statistics if f"{layer}num_batches_tracked" not in arrays]
    if missing:
        found |= {key: np.zeros((), np.int64) for key in missing}
        notes.append(f"{len(missing)} num_batches_tracked are missing and were set to 0; they have no effect")
    return found, notes


def _dicts(content: dict[Any, Any]) -> Iterator[tuple[Parts, dict[Any, Any]]]:
    """Yields each dict among nested dicts with the text keys that lead to it, outermost first and each once."""
    waiting: list[tuple[Parts, dict[Any, Any]]] = [((), content)]
    seen = {id(content)}
    for path, node in waiting:  # grows on the way
        yield path, node
        for key, value in dict.items(node):  # dict's own method, since a file may hide that of an OrderedDict
            if isinstance(value, dict) and isinstance(key, str) and id(value) not in seen and len(path) < _MAX_DEPTH:
                seen.add(id(value))
                waiting.append(((*path, key), value))


def _arrays(node: dict[Any, Any], is_array: Callable[[Any], bool]) -> dict[str, Any]:
    """Returns the arrays with text keys of a dict."""
    return {key: value for key, value in dict.items(node) if isinstance(key, str) and is_array(value)}


def _shown(path: Parts) -> str:
    """Returns the names of nested dicts for a message."""
    return " > ".join(f"{part!r:.80}" for part in path) if path else "the file's own dict"


def _stage(part: list[str] | Parts) -> int | None:
    """Returns the place of the first part of a key that names a stage of a backbone; None if there is none."""
    return next((place for place, name in enumerate(part) if name in _STAGES), None)


def _average(part: Parts) -> int | None:
    """Returns the place of the first name in a path that marks a running average (EMA); None if there is none."""
    return next((place for place, name in enumerate(part) if _AVERAGE.search(name)), None)


def _roots(parts: Mapping[str, Parts]) -> list[Parts]:
    """Returns what comes before the stages of each backbone among the keys, each once."""
    return list(dict.fromkeys(part[:place] for part in parts.values() if (place := _stage(part)) is not None))


def _without_wrappers(parts: dict[str, Parts], notes: list[str]) -> tuple[dict[str, Parts], Parts]:
    """Returns the parts of keys without module wrappers and the prefix of all keys, and that prefix."""
    prefix: Parts = ()
    kept = {"features", *_STAGES, *_HEADS}
    while len(first := {part[0] for part in parts.values() if len(part) > 1}) == 1 and first.isdisjoint(kept):
        if any(len(part) == 1 for part in parts.values()):
            break
        prefix += tuple(first)
        parts = {key: part[1:] for key, part in parts.items()}
    # A wrapper's mark that begins only some of the keys is not removed: the file may have been mixed from several.
    inner = {key: (part[0], *(name for name in part[1:] if name not in _MODULE_WRAPPERS)) for key, part in parts.items()}
    marks = dict.fromkeys(name for part in parts.values() for name in part[1:] if name in _MODULE_WRAPPERS)
    if marks:
        notes.append(f"{' and '.join(f'{mark}.' for mark in marks)} was removed within keys")
    return inner, prefix


def _without_averages(parts: dict[str, Parts], notes: list[str]) -> dict[str, Parts]:
    """Returns the parts of keys without those of a running average next to the network itself."""
    roots = _roots(parts)
    averages = dict.fromkeys(root[: place + 1] for root in roots if (place := _average(root)) is not None)
    if all(_average(root) is not None for root in roots):
        return parts
    notes += [f"the running average (EMA) under {'.'.join(start)}. was passed over" for start in averages]
    return {key: part for key, part in parts.items() if not any(part[: len(start)] == start for start in averages)}


def _named(parts: Mapping[str, Parts], root: Parts) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the released names by key, apart from the backbone's own head `fc`; and the names of that head by key."""
    names, bare_head = {}, {}
    for key, part in parts.items():
        above, rest = part[:-2], part[len(root) :]
        if part[: len(root)] == root and rest and rest[0] in _STAGES:
            names[key] = ".".join(("features", *rest))
        elif above == root and part[-2:-1] == ("fc",):
            bare_head[key] = ".".join(part[-2:])
        elif part[-2:-1] and part[-2] in _HEADS and above == root[: len(above)]:
            names[key] = ".".join(part[-2:])
        else:
            names[key] = key
    return names, bare_head
