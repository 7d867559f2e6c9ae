"""Weights of any kind that a user may name: the one module that knows both checkpoint folders and `convert`."""

from pathlib import Path

from tsp_jax import checkpoints


def open_any(spec: str | Path) -> checkpoints.Checkpoint:
    """The checkpoint in a folder, the best one of a run's workdir, in a .pth file, or by released name.

    Raises:
      OSError, ValueError, RuntimeError, ImportError: there is none, or it can't be used; the message says why and what to do.
    """
    path = Path(spec)
    if path.is_dir():
        best = path / "best"
        return checkpoints.load(best if checkpoints.is_checkpoint(best) and not checkpoints.is_checkpoint(path) else path)
    from convert import torch_to_orbax  # PyTorch is needed for .pth files alone

    return torch_to_orbax.read_any(str(spec))
