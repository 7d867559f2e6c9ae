"""Weights of any kind that a user may name: the one module that knows both checkpoint folders and `convert`."""

from pathlib import Path

from tsp_jax import checkpoints


def open_any(spec: str | Path) -> checkpoints.Checkpoint:
    """Returns the checkpoint in a folder, the best one in a run's workdir, the one in a .pth file, or a released one by name.

    Raises:
      OSError, ValueError, RuntimeError, ImportError: the checkpoint is missing or unusable. The message says what to do.
    """
    path = Path(spec)
    if path.is_dir():
        best = path / "best"
        return checkpoints.load(best if checkpoints.is_checkpoint(best) and not checkpoints.is_checkpoint(path) else path)
    from convert import torch_to_orbax  # only .pth files need PyTorch

    return torch_to_orbax.read_any(str(spec))
