"""Measures how many clips a second the networks alone take, forward and in a step of training, next to PyTorch.

Normalized clips lie on the device; nothing is read or sent. All sides have the same seeded weights and clips, and must give
the same features, or the same losses and (logarithms of) gradient norms in their first two steps, before anything is timed.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import alternate
from tsp_jax.system import cli

BACKBONES = ("r2plus1d_34", "r2plus1d_18", "r3d_18")
LABEL_COUNTS = (200, 2)
# The tolerances are shares of the largest value. We measured less than 2e-5 and 2e-2 forward, and less than 2e-3 and 2e-2 in
# steps of the 18-layer networks. The second loss of R(2+1)D-34 differs by 2e-2 in float32, because its first gradient is 4e-2
# from that in float64, however its sums are taken.
TOLERANCES = {"forward": {"float32": 1e-3, "bfloat16": 0.05}, "step": {"float32": 3e-2, "bfloat16": 0.05}}
DTYPES = tuple(TOLERANCES["forward"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0 all is well, 1 a side fails or differs, 2 wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.model",
        description=__doc__,
        epilog="example: python -m benchmarks.model --backbone r3d_18 --mode forward --dtype float32 --rounds 3",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--backbone", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    add("--mode", nargs="+", choices=("forward", "step"), default=["forward", "step"])
    add("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="compute precision; `released` always uses float32")
    add("--batch", type=cli.positive_int, nargs="+", default=[4], help="clips in a batch; a CPU gains nothing from more than 4")
    alternate.add_clip(parser)
    alternate.add_flags(parser)
    options = parser.parse_args(arguments)

    def work(result: dict[str, Any]) -> None:
        for mode, backbone, dtype, batch in itertools.product(options.mode, options.backbone, options.dtype, options.batch):
            spec = {"backbone": backbone, "label_counts": LABEL_COUNTS, "gvf": True}
            spec |= {"dtype": dtype, "batch": batch, "clip": options.clip}
            measured = alternate.measure(
                f"{mode} {backbone} {dtype}, {batch} clips",
                alternate.sides(mode, options),
                spec,
                clips=batch,
                tolerance=TOLERANCES[mode][dtype],
                options=options,
            )
            alternate.add(result, measured, options)

    return alternate.run(options, work)


if __name__ == "__main__":
    sys.exit(main())
