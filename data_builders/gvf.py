"""Pools each video's clips into its global feature: `python -m data_builders.gvf --features F.h5 --pool max --output G.h5`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tsp_jax import features
from tsp_jax.features import global_features
from tsp_jax.system import cli, errors, progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0 if all is well, 1 if a video has no feature, 2 on wrong use."""
    return cli.run(_work, _parse(arguments))


def _work(options: argparse.Namespace) -> int:
    vectors: dict[str, np.ndarray] = {}
    failed, damaged = [], []
    run: features.Attributes = {}
    if Path(options.output).exists() and Path(options.output).samefile(options.features):
        raise features.FeatureFileError(f"--output {options.output} is the file of --features; name another")
    names = features.names(options.features)
    for name in progress.each(names, "gvf", len(names)):
        item = features.read(options.features, name)
        run = item.attributes
        try:
            vectors[name] = global_features.pool(item.features, options.pool)
        except ValueError as error:
            failed.append(f"{name}: {error}")
        if item.attributes.get("damage"):
            damaged.append(f"{name}: {item.attributes['damage']}")
    if not vectors:
        raise features.FeatureFileError(f"{options.features}: no video with features; extract some first")
    origin = {key: run[key] for key in ("checkpoint", "checkpoint_sha256", "stride", "names") if key in run}
    try:
        global_features.write(options.output, vectors, {"pool": options.pool, **origin})
    except OSError as error:
        raise errors.UnfinishedError(f"{options.output} can't be written: {error}") from error
    for line in damaged:
        print(f"note: {line}; the feature is pooled from the clips that were read", file=sys.stderr)
    for line in failed:
        print(f"left out: {line}", file=sys.stderr)
    width = len(next(iter(vectors.values())))
    print(f"{options.output}: {options.pool} over clips of {len(vectors)} videos, {width} numbers each; {len(failed)} left out")
    if failed:
        print(f"error: {len(failed)} videos of {options.features} have no global feature", file=sys.stderr)
    return 1 if failed else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_builders.gvf",
        description="Pools the features of each video's clips into one global video feature (GVF), in an HDF5 file by name.",
        epilog="example: python -m data_builders.gvf --features features.h5 --pool max --output max_gvf.h5",
    )
    add = parser.add_argument
    add("--features", required=True, help="a file that `python -m tsp_jax.extract` wrote")
    add("--pool", required=True, choices=list(global_features.POOLS), help="the paper's recipes use max; avg is an ablation")
    add("--output", required=True, help="the HDF5 file to write")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
