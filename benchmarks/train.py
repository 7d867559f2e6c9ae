"""Measures how many clips a second training takes from end to end (reading, steps, updates), next to PyTorch.

All sides train on the same clips with the same weights, and must have the same losses in their first two steps before anything
is timed. Ours reads records; `released` seeks each clip in the videos that the records were made of; `best` reads the records
by our pipeline, and trains in PyTorch.
"""

import argparse
import contextlib
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import alternate, input_pipeline, model
from tsp_jax import groundtruth
from tsp_jax.system import cli

# Records are JPEG, so that losses differ a little from those of the source's own frames.
TOLERANCES = {"float32": 0.02, "bfloat16": 0.05}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0 all is well, 1 a side fails or differs, 2 wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train",
        description=__doc__,
        epilog="example: python -m benchmarks.train --backbone r3d_18 --rounds 3",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--backbone", nargs="+", choices=model.BACKBONES, default=["r3d_18"])
    alternate.add_dtype(parser, TOLERANCES)
    add("--batch", type=cli.positive_int, default=8, help="clips in a batch, an even number; the original uses 32")
    add("--source", metavar="DIR", help="a folder of videos; by default synthetic ones are made")
    add("--videos", type=cli.positive_int, default=5, help="number of synthetic videos; three of five are read")
    add("--height", type=cli.positive_int, default=240, help="height of synthetic videos in pixels")
    add("--folder", metavar="DIR", help="a folder for videos and records, which are used again; by default a temporary one")
    alternate.add_flags(parser)
    options = parser.parse_args(arguments)

    def work(result: dict[str, Any]) -> None:
        with contextlib.ExitStack() as stack:
            folder = Path(options.folder or stack.enter_context(tempfile.TemporaryDirectory())).absolute()
            videos, truth, records = input_pipeline.prepare(folder, options.source, options.videos, options.height)
            actions = groundtruth.action_labels(groundtruth.read_groundtruth(truth))
            for backbone, dtype in itertools.product(options.backbone, options.dtype):
                spec = {"backbone": backbone, "label_counts": (len(actions), 2), "gvf": False, "dtype": dtype}
                spec |= {"batch": options.batch, "videos": str(videos), "truth": str(truth), "records": str(records)}
                measured = alternate.measure(
                    f"train {backbone} {dtype}, {options.batch} clips",
                    alternate.sides("training", options),
                    spec,
                    clips=options.batch,
                    tolerance=TOLERANCES[dtype],
                    options=options,
                )
                alternate.add(result, measured, options)

    return alternate.run(options, work)


if __name__ == "__main__":
    sys.exit(main())
