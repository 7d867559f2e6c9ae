"""Writes a checkpoint folder of this project as a PyTorch file that the original TSP code loads."""

import argparse
import collections
import pathlib
import sys
from collections.abc import Sequence

from convert import torch_names, torch_to_orbax
from tsp_jax import checkpoints
from tsp_jax.system import cli, files, startup


def write_pth(path: str | pathlib.Path, checkpoint: checkpoints.Checkpoint, *, overwrite: bool = False) -> None:
    """Writes a file with `{"model": state dict, "about": strings and numbers}`, whole or not at all.

    Raises:
      FileExistsError: the file exists and `overwrite` is false.
      FileNotFoundError: the file's folder does not exist.
      ValueError: the checkpoint's variables do not fit its configuration.
      ModuleNotFoundError: PyTorch is not installed.
    """
    path, torch = pathlib.Path(path), torch_to_orbax.import_torch()
    check_output(path, overwrite)
    config, origin = checkpoint.config, checkpoint.origin
    arrays = torch_names.to_state_dict(config, checkpoint.variables)
    content = {
        "model": collections.OrderedDict((key, torch.from_numpy(array)) for key, array in arrays.items()),
        "about": {
            "backbone": config.backbone,
            "label_counts": list(config.label_counts),
            "gvf": config.gvf,
            "source": origin.source,
            "source_sha256": origin.source_sha256,
            "note": origin.note,
            "weights_sha256": checkpoint.weights_sha256,
        },
    }
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        # The original pins PyTorch 1.4, which reads the older format only.
        torch.save(content, file, _use_new_zipfile_serialization=False)


def check_output(path: pathlib.Path, overwrite: bool) -> None:
    """Checks that a file may be written at `path`.

    Raises:
      FileExistsError: the file exists and `overwrite` is false, or `path` is a folder.
      FileNotFoundError: the file's folder does not exist.
    """
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder; expected the name of a file to write")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; name another file or pass --overwrite")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder to write {path.name} in; make it first")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0 if all went well, 1 if the file cannot be written, 2 after wrong use."""
    return cli.run(_work, _parse(argv))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m convert.orbax_to_torch",
        description="Write a checkpoint folder as a PyTorch file, for the original TSP code and PyTorch from 1.4 on.",
        epilog="example:\n  python -m convert.orbax_to_torch --checkpoint tsp_34 --output tsp_34.pth",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, type=pathlib.Path, metavar="DIR", help="the folder to read")
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="FILE", help="the .pth file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    return parser.parse_args(argv)


@torch_to_orbax.failing_with_status_1()
def _work(options: argparse.Namespace) -> None:
    """Reads the folder and writes the file."""
    startup.use_no_device()
    torch_to_orbax.import_torch()  # before the work
    check_output(options.output, options.overwrite)
    checkpoint = checkpoints.load(options.checkpoint)
    write_pth(options.output, checkpoint, overwrite=options.overwrite)
    print(f"{torch_to_orbax.describe(checkpoint)}\nwritten to {options.output}")


if __name__ == "__main__":
    sys.exit(main())
