"""Lists, joins and exports files of features: `python -m tsp_jax.features info|merge|export`."""

import argparse
import math
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tsp_jax import features
from tsp_jax.system import cli, files, progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0 if all is well, 1 if a file can't be used, 2 on wrong use."""
    return cli.run(_work, _parse(arguments), error_status=1)


def _work(options: argparse.Namespace) -> int:
    if options.command == "info":
        print("\n".join(info(options.file)))
    elif options.command == "merge":
        count = features.merge(options.files, options.output, overwrite=options.overwrite)
        print(f"{options.output}: {count} videos of {len(options.files)} files")
    else:
        count = export(options.file, options.output, options.format)
        print(f"{options.output}: {count} {options.format} files")
    return 0


def info(path: str | Path) -> list[str]:
    """Returns lines that describe a file: the attributes of its run, then one line for each video.

    Raises:
      FeatureFileError: the file is no feature file.
    """
    path = Path(path)
    lines = []
    if waiting := features.unfinished(path):
        lines.append(f"{path}: not finished; {waiting} videos lie in {path}.parts. Run the same command again to finish.")
        if not path.exists():
            return lines
    found = features.contents(path)
    lines.append(f"{path}: {len(found.videos)} videos, {path.stat().st_size / 1e6:.1f} MB")
    lines += [f"  {key}: {value}" for key, value in sorted(found.attributes.items())]
    width = max([len(name) for name in found.videos] + [5])
    lines.append(f"{'video':{width}}  {'clips':>6}  {'fps':>7}  {'frames':>7}  notes")
    try:
        for name, (count, own) in found.videos.items():
            fps, frames = float(own.get("fps", math.nan)), int(own.get("frames", -1))
            lines.append(f"{name:{width}}  {count:6}  {fps:7.3f}  {frames:7}  {own.get('damage', '')}")
    except (ValueError, TypeError, OverflowError) as error:
        raise features.FeatureFileError(f"{path}: not a file of features, or a damaged one ({error}); make it again") from error
    return lines


def export(path: str | Path, folder: str | Path, kind: str) -> int:
    """Writes one file for each video: `NAME.npy`, or `NAME.pkl` (a pickled array, as the original writes it).

    Returns:
      The number of files.

    Raises:
      FeatureFileError: the file is no feature file.
    """
    folder = Path(folder)
    videos = features.names(path)
    files.make_folder(folder)
    for name in progress.each(videos, "export", len(videos)):
        rows = features.read(path, name).features
        with files.replacing(folder / f"{name}.{kind}") as temporary, open(temporary, "wb") as stream:
            np.save(stream, rows) if kind == "npy" else pickle.dump(rows, stream)
    return len(videos)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tsp_jax.features",
        description="Lists, joins and exports files of features.",
        epilog="example: python -m tsp_jax.features merge shard0.h5 shard1.h5 --output features.h5",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("info", help="print what a file holds")
    command.add_argument("file")
    command = commands.add_parser("merge", help="join shards into one file; a video in two of them is refused")
    command.add_argument("files", nargs="+")
    command.add_argument("--output", required=True, help="the joined file")
    command.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    command = commands.add_parser("export", help="write one file for each video")
    command.add_argument("file")
    command.add_argument("--output", required=True, help="the folder to write to")
    command.add_argument("--format", choices=["npy", "pkl"], default="npy", help="pkl is what the original writes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
