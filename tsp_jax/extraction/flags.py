"""The flags of commands that extract features, and the settings that they make."""

import argparse
from typing import get_args

from tsp_jax import clips
from tsp_jax.extraction import batches, engine
from tsp_jax.system import cli, cpu
from tsp_jax.video import decoding

_MAX_WORKERS = 16


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds to a command the flags that `read_settings` reads."""
    add = parser.add_argument
    add("--stride", type=cli.positive_int, default=16, help="resampled frames from the start of one clip to the next")
    add("--clip_len", type=cli.positive_int, default=16, help="frames in a clip")
    add("--frame_rate", type=float, default=15.0, help="frames per second that videos are resampled to")
    add(
        "--frame_selection",
        choices=get_args(clips.FrameSelection),
        default="auto",
        help="which frames a clip holds: those that the original takes (reference), those shown at its seconds (uniform), or "
        "the original's where the frame rate is constant and they give every clip, else those shown at its seconds (auto)",
    )
    add("--batch_size", type=cli.positive_int, default=32, help="clips in a batch for each device; a CPU is one device")
    add(
        "--dtype", choices=list(batches.DTYPES), default="float32", help="compute precision; stored features are always float32"
    )
    add("--decoder", choices=decoding.DECODERS, default="pyav", help="decord refuses files that it is known to read wrongly")
    add(
        "--workers",
        type=cli.positive_int,
        default=default_workers(),
        help=f"videos decoded at once; by default as many as there are cores, at most {_MAX_WORKERS}",
    )


def read_settings(options: argparse.Namespace) -> engine.Settings:
    """Returns the settings that the flags of `add_settings` describe.

    Raises:
      ValueError: a number is out of range.
    """
    geometry = clips.ClipGeometry(options.clip_len, options.frame_rate, options.stride, options.frame_selection)
    return engine.Settings(geometry, options.decoder, options.dtype, options.batch_size, options.workers)


def default_workers() -> int:
    """Returns how many videos are worth decoding at once: the cores that this process may use, at most 16."""
    return min(cpu.cores(), _MAX_WORKERS)
