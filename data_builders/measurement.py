"""Measures a video file by decoding it."""

import collections
import dataclasses
from pathlib import Path

import numpy as np

from tsp_jax import clips, groundtruth
from tsp_jax.video import decoding, scanning


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What decoding a video showed.

    Attributes:
      metadata: the video's length, frame rate and number of frames.
      notes: what is odd in the file but read rightly.
      fault: what of the file can't be given right; empty if nothing.
      damage: the first error of the decoder; empty if there was none.
    """

    metadata: groundtruth.VideoMetadata
    notes: tuple[str, ...]
    fault: str
    damage: str


def measure(path: Path, filename: str) -> Measurement:
    """Returns the metadata of a video file, which is decoded from beginning to end.

    The video's frames, and when each is shown, are those that extraction finds. Where frames can't be decoded at the end, the
    video ends with the last frame that can; those before it count whether they are damaged or not. The duration is
    frames / fps, whatever the container says.

    Args:
      path: the video file.
      filename: the video's name in the metadata.

    Raises:
      VideoError: the file is missing, is no video, or has no frame that decodes.
    Source: TSP's released metadata, which counts the frames before the first error; fps is the average rate.
    """
    scan = scanning.scan(path)
    reader = _read(scan)
    if reader.misdated:
        scan = scanning.rescan(scan)
        reader = _read(scan)
    if not reader.end:
        raise scanning.VideoError(f"no frame decodes: {reader.damage or 'the decoder gives none'}")
    fps = _rate(scan.timeline, reader.end)
    metadata = groundtruth.VideoMetadata(filename, reader.end / fps, fps, reader.end)
    return Measurement(metadata, scan.notes, scan.fault, reader.damage)


def _rate(timeline: clips.Timeline, end: int) -> float:
    """Returns the frames a second up to a frame: the video's, unless its rate is uneven and the rest can't be decoded."""
    shown_sec = float((timeline.pts[end - 1] - timeline.pts[0]) * timeline.time_base) + 1 / timeline.fps
    is_near = end == len(timeline.pts) or abs(end / timeline.fps - shown_sec) <= 1.5 / timeline.fps
    return timeline.fps if is_near else end / shown_sec


def _read(scan: scanning.Scan) -> decoding.Reader:
    """Returns the reader of all frames after its pass."""
    reader = decoding.Reader(scan, np.ones(len(scan.timeline.pts), bool))
    collections.deque(reader.frames(), maxlen=0)
    return reader
