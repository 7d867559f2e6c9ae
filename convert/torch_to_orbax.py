"""Converts a PyTorch or safetensors checkpoint of TSP, of torchvision or of ig65m into a checkpoint folder of this project."""

import argparse
import contextlib
import hashlib
import pathlib
import re
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np

from convert import other_files, pickle_check, safetensors_file, torch_names, wrappers
from tsp_jax import checkpoints
from tsp_jax.models import backbones
from tsp_jax.system import cli, errors, startup

FILE_SUFFIXES = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".safetensors")


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
        raise ValueError(
            f"expected a .pth or .safetensors file or a released name; {spec} is {found} here, and {error}"
        ) from error
    return read_pth(released.fetch(model), source=model.name)


def read_pth(path: str | pathlib.Path, source: str = "") -> checkpoints.Checkpoint:
    """Returns the checkpoint in a PyTorch file of either format or in a safetensors file, without running any code from it.

    Reads the original's training checkpoints (dicts with `model` and more), bare state dicts, bare backbones with or without
    their Kinetics head, and any of these within other wrappers and in other precisions; see `wrappers`. One line for each
    change goes to stderr, and the origin's note has them all.

    Args:
      path: the file's path.
      source: the origin's name for the file; the file's own name if empty.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not a checkpoint, is damaged, asks for code to be run, or does not fit a known model.
      ModuleNotFoundError: the file is one of PyTorch, which is not installed.
    """
    path = pathlib.Path(path)
    where = str(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a PyTorch checkpoint")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise ValueError(f"{path} is {kind}; expected a PyTorch checkpoint file")
    if re.search(r"-\d{5}-of-(?!00001)\d{5}\.|\.index\.json$", path.name):
        raise ValueError(f"{path}: a part, or the index, of weights in several files; load and save them as one state dict")
    with path.open("rb") as file:
        if safetensors_file.starts_like_one(file.read(9)):
            found, notes = wrappers.state_dict(safetensors_file.read(file, where), lambda value: True, where)
        else:
            found, notes = _read_torch(file, where)
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    shapes = {key: tuple(array.shape) for key, array in found.items()}
    network = other_files.network(shapes)
    if network is not None:
        raise ValueError(
            f"{where}: expected the weights of one of {', '.join(backbones.BACKBONES)}; found {network}: "
            f"{torch_names.summarise(shapes)}"
        )
    names, renamed = wrappers.rename(shapes, where)
    arrays, converted = wrappers.normalise({name: found[key] for key, name in names.items()})
    config, variables = torch_names.from_state_dict(arrays, where)
    notes = [*notes, *renamed, *converted]
    for note in notes:
        print(f"note: {path}: {note}", file=sys.stderr)
    return checkpoints.make(config, variables, checkpoints.Origin(source or path.name, sha256, "; ".join(notes)))


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
        description="Convert a PyTorch or safetensors checkpoint into a checkpoint folder. No code from the file is run.",
        epilog="example:\n  python -m convert.torch_to_orbax --checkpoint r2plus1d_34-tsp_on_activitynet --output tsp_34",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="FILE|NAME",
        help="a .pth or .safetensors file, or a released name (python -m convert.released --list shows them)",
    )
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR", help="the folder to write")
    parser.add_argument("--backbone", choices=backbones.BACKBONES, help="fail if the checkpoint has another backbone")
    parser.add_argument("--overwrite", action="store_true", help="replace the checkpoint in DIR")
    return parser.parse_args(argv)


@failing_with_status_1()
def _work(options: argparse.Namespace) -> None:
    """Converts the file and writes the folder."""
    startup.use_no_device()
    checkpoints.check_output(options.output, options.overwrite)  # before the work
    checkpoint = read_any(options.checkpoint)
    if options.backbone and options.backbone != checkpoint.config.backbone:
        raise ValueError(
            f"{options.checkpoint}: expected {options.backbone} (--backbone), found {checkpoint.config.backbone}; "
            "give that one or leave the flag out"
        )
    checkpoints.save(options.output, checkpoint, overwrite=options.overwrite)
    print(f"{describe(checkpoint)}\nwritten to {options.output}")


def _read_torch(file: BinaryIO, where: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the arrays of the network in a PyTorch file by their key, and notes on where they were.

    Raises:
      ValueError: the file may not be loaded, or holds no state dict.
      ModuleNotFoundError: PyTorch is not installed.
    """
    file.seek(0)
    pickle_check.check(file, where)
    torch = import_torch()
    content = _load(torch, file, where)
    tensors, notes = wrappers.state_dict(content, lambda value: isinstance(value, torch.Tensor), where)
    return {key: _to_numpy(torch, tensor) for key, tensor in tensors.items()}, notes


def _load(torch: types.ModuleType, file: BinaryIO, where: str) -> Any:
    """Loads a checked file: tensors, containers, numbers, strings, and stand-ins for other values.

    Raises:
      ValueError: PyTorch cannot load it.
    """
    file.seek(0)
    try:
        stand_ins = [(stand_in, name) for name, stand_in in pickle_check.STAND_INS.items()]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch, too, raises nearly anything
        # We pass on the cause alone, not PyTorch's advice to load the file with weights_only=False.
        cause = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0]
        reason = f"{type(error).__name__}: {cause}"
        raise ValueError(f"{where}: PyTorch cannot load it ({reason:.200}); save it again where it was made") from error


def _to_numpy(torch: types.ModuleType, tensor: Any) -> np.ndarray:
    """Returns the tensor's values without a copy."""
    if tensor.dtype == torch.bfloat16:  # NumPy has no bfloat16, so PyTorch cannot convert it
        return tensor.detach().view(torch.int16).numpy().view(jax.numpy.bfloat16)
    return tensor.detach().numpy()


if __name__ == "__main__":
    sys.exit(main())
