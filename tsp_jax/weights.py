"""Weights of any kind that a user may name: the one module that knows both checkpoint folders and `convert`."""

from pathlib import Path

from tsp_jax import checkpoints


def open_any(spec: str | Path) -> checkpoints.Checkpoint:
    """Returns the checkpoint that a user names.

    Args:
      spec: a checkpoint folder, a run's workdir (its best checkpoint), a PyTorch or safetensors file, or a released name.

    Raises:
      OSError, ValueError, RuntimeError, ImportError: the checkpoint is missing or unusable. The message says what to do.
    """
    path = Path(spec)
    for folder in (path, path / "best"):
        if checkpoints.is_checkpoint(folder):
            return checkpoints.load(folder)
    from convert import torch_to_orbax  # late: most runs need no converter

    if not path.is_dir():
        return torch_to_orbax.read_any(str(spec))
    files = sorted(file.name for file in path.iterdir() if file.suffix in torch_to_orbax.FILE_SUFFIXES)
    if files:
        raise FileNotFoundError(
            f"{path} is a folder without a checkpoint of tsp_jax, but with {', '.join(files[:6])}; name the file of the weights"
        )
    return checkpoints.load(path)  # raises an error that says what is expected
