"""Reads videos as programs in PyTorch do: each clip by seeking, as in the original, or all frames in one pass."""

from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from tsp_jax import clips

# PyAV is imported where videos are opened: networks alone can be timed without it.


class Plan(NamedTuple):
    """The clips of a video: the times of all its frames in seconds, and the frame numbers `[n, t]` of the clips."""

    path: Path
    frame_sec: np.ndarray
    clips: np.ndarray


def plan(path: Path, geometry: clips.ClipGeometry) -> Plan:
    """Returns the clips that our side takes too. The original finds the same ones with the help of a CSV."""
    from tsp_jax.video import scanning

    timeline = scanning.scan(path).timeline
    return Plan(path, timeline.pts * float(timeline.time_base), clips.plan(timeline, geometry))


def seek(
    path: str | Path, begin_sec: float, end_sec: float, keep: Callable[[float], bool] = lambda sec: True
) -> list[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
    """Returns the frames shown from one time to another, both included, as (seconds, RGB), decoded in one thread.

    Args:
      path: the video.
      begin_sec: the first frame's time in seconds, to a millisecond. Decoding starts at the key frame before it.
      end_sec: the last frame's time in seconds, to a millisecond.
      keep: a function that says by a frame's time in seconds whether to convert and return the frame.
    """
    import av

    found = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        time_base = stream.time_base or Fraction(1, 90000)
        container.seek(max(0, int(begin_sec / time_base)), stream=stream)
        for frame in container.decode(stream):
            sec = float((frame.pts or 0) * time_base)
            if sec > end_sec + 0.001:
                break
            if sec >= begin_sec - 0.001 and keep(sec):
                found.append((sec, frame.reformat(format="rgb24", src_colorspace="ITU601").to_ndarray()))
    return found


def once(path: str | Path, needed: AbstractSet[int]) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
    """Yields the frames with these numbers, as (number, RGB), in one pass that ends after the last of them."""
    import av

    last = max(needed, default=-1)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # several videos are decoded at once
        for number, frame in enumerate(container.decode(stream)):
            if number in needed:
                yield number, frame.reformat(format="rgb24", src_colorspace="ITU601").to_ndarray()
            if number >= last:
                return
