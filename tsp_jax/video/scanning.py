"""Which frames a video file has, when each is shown, and how long the video is.

`scan` answers from the packets alone, which is fast. `rescan` decodes everything, for files whose packets are wrong about it.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.error
import numpy as np

from tsp_jax import clips
from tsp_jax.system import errors
from tsp_jax.video import containers

# A video is one plain file: a playlist could send the reader to other files or to the network.
_OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,mxf,ivf,h264,hevc,m4v",
}
MAX_PIXELS = 1 << 26  # pixels in a frame: twice 8K; a hostile header may claim 2^30
_MAX_FRAMES = 1 << 26  # frames in a video: 12 days at 60 fps


class VideoError(errors.UserError):
    """A video, or a part of it, can't be used. The message is the reason alone; callers list it next to the file's name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """What the packets of a video's first video stream say.

    Attributes:
      path: the file.
      timeline: when each frame that a decoder gives is shown.
      dated: whether the timestamps come from the file. If not, its packets have none, and frames are taken to be evenly spaced.
      codec: FFmpeg's name of the codec.
      container: FFmpeg's names of the file format, joined by commas.
      rotation_deg: degrees by which a player turns the stored picture. We do not turn it, as the original does not.
      trimmed: whether an edit list hides or delays a part of the stream.
      start: timestamp of the file's second 0, in units of the timeline's time base.
      notes: what is odd in the file but read rightly, a line each.
      fault: what of the file can't be given, with seconds and counts; empty if nothing is missing.
    """

    path: Path
    timeline: clips.Timeline
    dated: bool
    codec: str
    container: str
    rotation_deg: int
    trimmed: bool
    start: int = 0
    notes: tuple[str, ...] = ()
    fault: str = ""


def scan(path: str | Path) -> Scan:
    """Returns the scan of a video file. All packets are read, and only the first one is decoded.

    Raises:
      VideoError: the file is missing, is no video, or has no frames.
    """
    path = Path(path)
    if not path.is_file():
        raise VideoError("not a file" if path.exists() else "no such file")
    if path.stat().st_size == 0:
        raise VideoError("the file is empty")
    pts: list[int | None] = []
    hidden, rotation_deg = False, None
    with open_container(path) as container:
        stream = first_stream(container)
        for packet, error in packets(container, stream):
            if packet is None:
                # A file that breaks off gives the frames before the break; the decoding pass will report the damage.
                if error and not pts:
                    raise VideoError(f"no packet can be read: {error}")
                break
            if packet.is_discard:
                hidden = True
            else:
                pts.append(packet.pts)
            if len(pts) > _MAX_FRAMES:
                raise VideoError(f"more than {_MAX_FRAMES} frames")
            if rotation_deg is None:
                rotation_deg = _rotation_deg(packet)
        if not pts:
            raise VideoError("the video stream has no frames")
        container_names = container.format.name
        timeline, dated = _timeline(pts, stream, dated=not _dates_decoding(container_names, pts, stream))
        trimmed = hidden or ("mp4" in container_names.split(",") and bool(timeline.pts[0] != 0))
        codec = stream.codec_context.codec.canonical_name
    return Scan(path, timeline, dated, codec, container_names, rotation_deg or 0, trimmed)


def rescan(video: Scan) -> Scan:
    """Returns the scan with the timestamps of the decoded frames, for files whose packets promise other frames.

    Raises:
      VideoError: no frame decodes.
    """
    pts: list[int | None] = []
    reason = ""
    with open_container(video.path) as container:
        stream = first_stream(container)
        for packet, _ in packets(container, stream):
            try:
                pts.extend(frame.pts for frame in stream.decode(packet))
            except av.error.FFmpegError as error:
                reason = reason or f": {reason_of(error)}"
        if not pts:
            raise VideoError(f"no frame decodes{reason}")
        timeline, dated = _timeline(pts, stream, video.dated)
    return dataclasses.replace(video, timeline=timeline, dated=dated)


def count_frames(path: str | Path) -> tuple[int, str]:
    """Returns how many frames decode before the first error, as the original counts them, and that error or "".

    Raises:
      VideoError: the file is no video.
    """
    count = 0
    with open_container(Path(path)) as container:
        stream = first_stream(container)
        for packet, error in packets(container, stream):
            try:
                count += len(stream.decode(packet))
            except av.error.FFmpegError as decoding_error:
                return count, reason_of(decoding_error)
            if error:
                return count, error
    return count, ""


def open_container(path: Path) -> av.container.InputContainer:
    """Returns the file, open for reading its packets; a context manager.

    Raises:
      VideoError: FFmpeg can't open it as a video.
    """
    try:
        # The path must be absolute: FFmpeg takes the text before a colon for a protocol.
        return av.open(str(path.absolute()), container_options=_OPEN_OPTIONS, metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"not a video that FFmpeg can open, or cut off: {reason_of(error)}") from error


def first_stream(container: av.container.InputContainer) -> av.VideoStream:
    """Returns the first video stream, set to decode in one thread because several videos are read at once.

    Raises:
      VideoError: there is no video stream, it can't be decoded, or its frames are too large.
    """
    if not container.streams.video:
        raise VideoError("the file has no video stream")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None:
        raise VideoError("there is no decoder for the video stream")
    if not 0 < context.width * context.height <= MAX_PIXELS:
        raise VideoError(f"frames of {context.width}x{context.height} pixels; at most {MAX_PIXELS} pixels are read")
    context.thread_type, context.thread_count = "NONE", 1  # dav1d heeds only the count
    return stream


def packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[tuple[av.Packet | None, str]]:
    """Yields the stream's packets, each with its fault or "", and then None, which makes a decoder give what it still holds."""
    held, error = None, ""
    try:
        for packet in container.demux(stream):
            if packet.size:
                if held is not None:
                    yield held, "a packet is cut off" if held.is_corrupt else ""
                held = packet
    except av.error.FFmpegError as breaking_error:
        error = reason_of(breaking_error)
    except IndexError:
        pass  # PyAV 18 raises it at the end of a file in which a stream appeared late
    if held is not None:
        # Matroska's demuxer hands on a last packet that is cut off, without an error.
        cut_off = held.is_corrupt or containers.missing_bytes(container.name) > 0
        yield held, "a packet is cut off" if cut_off else ""
    yield None, error


def reason_of(error: Exception) -> str:
    """Returns FFmpeg's own message, without the file name that PyAV adds."""
    return getattr(error, "strerror", None) or str(error)


def _timeline(pts: list[int | None], stream: av.VideoStream, dated: bool) -> tuple[clips.Timeline, bool]:
    rate = stream.average_rate or stream.guessed_rate
    if not rate or rate <= 0:
        raise VideoError("the file gives no frame rate")
    time_base = stream.time_base or Fraction(1, 90000)
    if not dated or any(value is None for value in pts):
        spaced = np.round(np.arange(len(pts)) / (float(rate) * float(time_base))).astype(np.int64)
        return clips.Timeline(spaced, time_base, float(rate)), False
    return clips.Timeline(np.unique(np.asarray(pts, np.int64)), time_base, float(rate)), True


def _dates_decoding(container_names: str, pts: list[int | None], stream: av.VideoStream) -> bool:
    """Whether the timestamps give the decoding order only. AVI keeps no others, and for H.264 FFmpeg finds no better ones."""
    ascending = all(a is not None and b is not None and a < b for a, b in itertools.pairwise(pts))
    return container_names == "avi" and ascending and stream.codec_context.reorder_depth > 0


def _rotation_deg(packet: av.Packet) -> int | None:
    """Returns the rotation in the display matrix of the packet's first frame, in degrees; None if no frame decodes yet."""
    try:
        for frame in packet.decode():
            return frame.rotation % 360
    except av.error.FFmpegError:
        return 0  # the decoding pass will meet the same error and report it
    return None
