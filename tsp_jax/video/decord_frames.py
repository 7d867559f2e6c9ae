"""Reading with decord, an optional second decoder: forward only, and only files that it is known to read rightly.

Its random access silently returns wrong frames on open-GOP H.264, and its own FFmpeg dates from 2021.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from jaxtyping import UInt8

from tsp_jax.video import scanning

_BT601_OR_UNSPECIFIED = frozenset({0, 2, 5, 6})  # FFmpeg's numbers of RGB, unspecified, BT.470 BG and SMPTE 170M


class DecordError(Exception):
    """decord can't read a video further."""


def check(video: scanning.Scan) -> None:
    """Checks that decord reads this kind of file rightly.

    Raises:
      VideoError: it is known to read the file wrongly; the message lists every reason.
    """
    wrong = []
    if video.rotation_deg:
        wrong.append(f"a rotation ({video.rotation_deg} degrees)")
    if video.trimmed:
        wrong.append("an edit list")
    if {"mpegts", "mpeg"} & set(video.container.split(",")):
        wrong.append("an MPEG stream")
    if video.container == "avi":
        wrong.append("AVI's order of frames")
    if video.codec == "av1":
        wrong.append("AV1")
    if video.codec == "vp8":
        wrong.append("VP8's hidden frames")
    if os.fsencode(video.path).decode(errors="replace") != str(video.path):
        wrong.append("a name that is not UTF-8")
    if video.dated and video.packet_pts is not None:
        wrong.append("a clock that starts again or repeats")
    if video.other_pictures:
        wrong.append("several video tracks or a cover")
    frame = _first_frame(video.path)
    if frame is not None:
        if frame.colorspace not in _BT601_OR_UNSPECIFIED:
            wrong.append("colours other than BT.601's")
        if any(component.bits > 8 for component in frame.format.components):
            wrong.append("more than 8 bits a sample")
        if frame.height % 2 and frame.format.chroma_height(frame.height) < frame.height:
            wrong.append("an odd height")
    if wrong:
        raise scanning.VideoError(f"decord is known to read files with {' and '.join(wrong)} wrongly; use --decoder pyav")


def frames(video: scanning.Scan) -> Iterator[Any]:
    """Yields decord's frames in order, at most as many as the scan promises.

    Raises:
      VideoError: decord is not installed.
      DecordError: decord can't read on; the message is its reason.
    """
    decord = _import_decord()
    try:
        reader = decord.VideoReader(str(video.path.absolute()), num_threads=1)
        for _ in range(len(video.timeline.pts)):
            yield reader.next()
    except StopIteration:
        return
    except (decord.DECORDError, RuntimeError) as error:
        raise DecordError(f"decord: {_reason(error)}") from error


def to_rgb(frame: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the pixels of one of decord's frames."""
    return frame.asnumpy()


def _first_frame(path: Path) -> av.VideoFrame | None:
    with scanning.open_container(path) as container:
        stream = scanning.video_stream(container)
        for packet, _ in scanning.packets(container, stream):
            with contextlib.suppress(av.error.FFmpegError):
                for frame in stream.decode(packet):
                    return frame
    return None


def _import_decord() -> Any:
    try:
        import decord
    except ModuleNotFoundError as error:
        raise scanning.VideoError(
            "decord is not installed (it has wheels only for Linux on x86-64); use --decoder pyav"
        ) from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _reason(error: Exception) -> str:
    """Returns decord's message without the time, the line of its source and the stack trace."""
    line = next((line for line in str(error).splitlines() if ".cc:" in line), str(error).strip())
    return re.sub(r"^.*?\.cc:\d+: ", "", line)[:120]
