"""Measures a video file by decoding it."""

import dataclasses
from pathlib import Path

from tsp_jax import groundtruth
from tsp_jax.video import scanning


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What decoding a video showed.

    Attributes:
      metadata: the video's length, frame rate and number of frames.
      damage: the error that stopped the decoder before the end; empty if there was none.
    """

    metadata: groundtruth.VideoMetadata
    damage: str


def measure(path: Path, filename: str) -> Measurement:
    """Returns the metadata of a video file, which is decoded from beginning to end.

    The frames before the first decoding error count; in an intact file these are all frames. The duration is
    frames / fps, whatever the container says.

    Args:
      path: the video file.
      filename: the video's name in the metadata.

    Raises:
      VideoError: the file is missing, is no video, or has no frame that decodes.
    Source: TSP's released metadata; fps is the stream's average rate.
    """
    scan = scanning.scan(path)
    num_frames, damage = scanning.count_frames(path)
    if not num_frames:
        raise scanning.VideoError(f"no frame decodes: {damage}")
    fps = scan.timeline.fps
    return Measurement(groundtruth.VideoMetadata(filename, num_frames / fps, fps, num_frames), damage)
