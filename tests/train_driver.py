"""The training command with a backbone that compiles in a moment: `python train_driver.py ARGUMENTS OF tsp_jax.train`."""

import dataclasses
import functools
import sys
from typing import Any

from tsp_jax import train
from tsp_jax.models import backbones

TINY: dict[str, Any] = {"blocks": (1, 1, 1, 1), "stem_widths": (4, 4), "widths": (4, 4, 8, 12)}


def register() -> None:
    """Makes `tiny` a backbone; its features are 12 numbers."""
    spec = backbones.BACKBONES["r3d_18"]
    backbones.BACKBONES["tiny"] = dataclasses.replace(spec, build=functools.partial(spec.build, **TINY), width=12)


if __name__ == "__main__":
    register()
    sys.exit(train.main())
