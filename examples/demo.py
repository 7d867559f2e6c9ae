"""Writes what the demo works on: a few short H.264 videos, and an R3D-18 checkpoint with seeded random weights."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tqdm
from jaxtyping import UInt8

from tsp_jax import checkpoints, files, video_writing
from tsp_jax.models import functional, tsp

SIZE = (240, 320)
FPS = 30
SECONDS = (4, 6, 9)


def moving_square(seconds: float, seed: int) -> Iterator[UInt8[np.ndarray, "240 320 3"]]:
    """Frames of a square that circles over a still texture, faster in the second half."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 216, (SIZE[0] // 8, SIZE[1] // 8, 3), dtype=np.uint8)
    background = coarse.repeat(8, axis=0).repeat(8, axis=1)
    colour, angle = rng.integers(0, 256, 3, dtype=np.uint8), rng.uniform(0, 2 * np.pi)
    for i in range(round(seconds * FPS)):
        angle += 0.05 if i < seconds * FPS / 2 else 0.25
        y, x = round(100 + 80 * np.sin(angle)), round(140 + 110 * np.cos(angle))
        frame = background.copy()
        frame[y : y + 40, x : x + 40] = colour
        yield frame


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo", description=__doc__, epilog="example: python -m examples.demo --output demo"
    )
    parser.add_argument("--output", default="demo", help="a folder")
    folder = Path(parser.parse_args(arguments).output)
    try:
        files.make_folder(folder / "videos")
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for i, seconds in enumerate(tqdm.tqdm(SECONDS, desc="videos", unit="video")):
        video_writing.write(folder / "videos" / f"circling_{i}.mp4", moving_square(seconds, seed=i), FPS)
    config = tsp.ModelConfig("r3d_18")
    checkpoint = checkpoints.make(config, functional.init(config, seed=0), checkpoints.Origin("random weights, seed 0"))
    checkpoints.save(folder / "r3d_18", checkpoint, overwrite=True)
    print(f"{folder}: {len(SECONDS)} videos, and r3d_18 with random weights (a trained model gives features with a meaning)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
