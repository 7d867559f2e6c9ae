"""Converts a PyTorch checkpoint of TSP, of torchvision or of ig65m into a checkpoint folder of this project."""

import argparse
import contextlib
import hashlib
import logging
import pathlib
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np

from convert import pickle_check, torch_names
from tsp_jax import checkpoints
from tsp_jax.models import backbones
from tsp_jax.system import cli, errors

FILE_SUFFIXES = (".pth", ".pt", ".tar")

_log = logging.getLogger(__name__)


def read_any(spec: str) -> checkpoints.Checkpoint:
    """Returns the checkpoint in a PyTorch file, or a released model by name, downloaded first unless it is in the cache.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the name is unknown, or the file is not a checkpoint of a known model.
      convert.download.DownloadError: the released file could not be downloaded.
      ModuleNotFoundError: PyTorch is not installed.
    """
    path = pathlib.Path(spec)
    if path.is_file() or path.suffix in FILE_SUFFIXES or len(path.parts) > 1:
        return read_pth(path)
    import_torch()  # before a download that would be useless without PyTorch
    from convert import released  # here, so that --help and local files need no other package of the extra `convert`

    try:
        model = released.find(spec)
    except ValueError as error:
        found = "a folder" if path.is_dir() else "no file"
        raise ValueError(f"expected a .pth file or a released name; {spec} is {found} here, and {error}") from error
    return read_pth(released.fetch(model), source=model.name)


def read_pth(path: str | pathlib.Path, source: str = "") -> checkpoints.Checkpoint:
    """Returns the checkpoint in a PyTorch file of either format, without running any code from it.

    Reads the original's training checkpoints (dicts with `model` and more), bare state dicts, and bare backbones with
    or without their Kinetics head; see `torch_names.rename`. The origin's note says what was changed.

    Args:
      path: the file's path.
      source: the origin's name for the file; the file's own name if empty.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not a checkpoint, is damaged, asks for code to be run, or does not fit a known model.
      ModuleNotFoundError: PyTorch is not installed.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a PyTorch checkpoint")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise ValueError(f"{path} is {kind}; expected a PyTorch checkpoint file")
    with path.open("rb") as file:
        pickle_check.check(file, str(path))
        torch = import_torch()
        content = _load(torch, file, str(path))
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    tensors = _state_dict(torch, content, str(path))
    names, note = torch_names.rename(tensors)
    if note:
        _log.info("%s: %s", path, note)
    arrays = {name: _to_numpy(torch, tensors[key]) for key, name in names.items()}
    config, variables = torch_names.from_state_dict(arrays, str(path))
    return checkpoints.make(config, variables, checkpoints.Origin(source or path.name, sha256, note))


def import_torch() -> types.ModuleType:
    """Returns the module torch, imported at the first call: it is an optional dependency, and its import takes seconds.

    Raises:
      ModuleNotFoundError: PyTorch is not installed; the message says how to install it.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        message = "PyTorch checkpoints are read and written by PyTorch, which is not installed: "
        raise ModuleNotFoundError(f"{message}pip install 'tsp_jax[convert]'", name="torch") from error
    return torch


def describe(checkpoint: checkpoints.Checkpoint) -> str:
    """Returns lines that say what a checkpoint holds and where it comes from."""
    config, origin = checkpoint.config, checkpoint.origin
    heads = [f"{name} ({n} labels)" for name, n in zip(config.head_names, config.label_counts, strict=True)]
    params = jax.tree.leaves(checkpoint.variables["params"])
    lines = [
        f"backbone: {config.backbone}",
        f"heads: {', '.join(heads) or 'none'}; GVF: {'yes' if config.gvf else 'no'}",
        f"{len(jax.tree.leaves(checkpoint.variables))} arrays, {sum(leaf.size for leaf in params):,} parameters",
        f"source: {origin.source}, SHA-256 {origin.source_sha256 or 'none'}",
        *([f"note: {origin.note}"] if origin.note else []),
        f"weights: SHA-256 {checkpoint.weights_sha256}",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0 if all went well, 1 if the file cannot be converted, 2 after wrong use."""
    return cli.run(_work, _parse(argv))


@contextlib.contextmanager
def failing_with_status_1() -> Iterator[None]:
    """Gives every error of the block that a user can mend the exit status 1. Status 2 is for wrong flags only.

    Raises:
      UnfinishedError: in place of the error, with its message.
    """
    try:
        yield
    except (errors.UserError, ImportError, OSError, RuntimeError, ValueError) as error:
        raise errors.UnfinishedError(str(error)) from error


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m convert.torch_to_orbax",
        description="Convert a PyTorch checkpoint into a checkpoint folder. No code from the file is run.",
        epilog="example:\n  python -m convert.torch_to_orbax --checkpoint r2plus1d_34-tsp_on_activitynet --output tsp_34",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="FILE|NAME",
        help="a .pth file, or a released name (python -m convert.released --list shows them)",
    )
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR", help="the folder to write")
    parser.add_argument("--backbone", choices=backbones.BACKBONES, help="fail if the checkpoint has another backbone")
    parser.add_argument("--overwrite", action="store_true", help="replace the checkpoint in DIR")
    return parser.parse_args(argv)


@failing_with_status_1()
def _work(options: argparse.Namespace) -> None:
    """Converts the file and writes the folder."""
    checkpoints.check_output(options.output, options.overwrite)  # before the work
    checkpoint = read_any(options.checkpoint)
    if options.backbone and options.backbone != checkpoint.config.backbone:
        raise ValueError(
            f"{options.checkpoint}: expected {options.backbone} (--backbone), found {checkpoint.config.backbone}; "
            "give that one or leave the flag out"
        )
    checkpoints.save(options.output, checkpoint, overwrite=options.overwrite)
    print(f"{describe(checkpoint)}\nwritten to {options.output}")


def _load(torch: types.ModuleType, file: BinaryIO, where: str) -> Any:
    """Loads a checked file: tensors, containers, numbers, strings and argparse.Namespace.

    Raises:
      ValueError: PyTorch cannot load it.
    """
    file.seek(0)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch, too, raises nearly anything
        # We pass on the cause alone, not PyTorch's advice to load the file with weights_only=False.
        cause = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0]
        reason = f"{type(error).__name__}: {cause}"
        raise ValueError(f"{where}: PyTorch cannot load it ({reason:.200}); save it again where it was made") from error


def _state_dict(torch: types.ModuleType, content: Any, where: str) -> Mapping[str, Any]:
    """Returns the tensors by name from the content of a file; raises ValueError if it is no checkpoint."""
    expected = "expected a dict with the state dict under 'model', or a state dict itself"
    if not isinstance(content, dict):
        raise ValueError(f"{where}: {expected}; found {type(content).__name__}")
    state = dict.get(content, "model", content)
    if not isinstance(state, dict):
        raise ValueError(f"{where}: {expected}; found {type(state).__name__} under 'model'")
    state = dict(dict.items(state))  # dict's own methods, since a file may hide those of an OrderedDict
    if not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()):
        raise ValueError(f"{where}: {expected}; found {torch_names.summarise(state)}")
    return state


def _to_numpy(torch: types.ModuleType, tensor: Any) -> np.ndarray:
    """Returns the tensor's values without a copy."""
    if tensor.dtype == torch.bfloat16:  # NumPy has no bfloat16, so PyTorch cannot convert it
        return tensor.detach().view(torch.int16).numpy().view(jax.numpy.bfloat16)
    return tensor.detach().numpy()


if __name__ == "__main__":
    sys.exit(main())
