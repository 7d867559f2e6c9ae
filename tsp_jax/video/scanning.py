"""Which frames a video file has, when each is shown, and how long the video is.

`scan` answers from the packets alone, which is fast. `rescan` decodes everything, for files whose packets are wrong about it.
"""

import collections
import dataclasses
from collections.abc import Collection, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import av.container
import av.error
import av.stream
import numpy as np
from jaxtyping import Bool, Int64

from tsp_jax import clips
from tsp_jax.system import errors
from tsp_jax.video import clock, containers

# A video is one plain file: a playlist could send the reader to other files or to the network.
_OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,mxf,ivf,h264,hevc,m4v",
}
MAX_PIXELS = 1 << 26  # pixels in a frame: twice 8K; a hostile header may claim 2^30
_MAX_FRAMES = 1 << 26  # frames in a video: 12 days at 60 fps
_MARKED = 3  # packets before a joint among which FFmpeg marks one as damaged
_RAW = frozenset({"h264", "hevc", "m4v", "mpegvideo"})  # formats without a header, for which FFmpeg assumes 25 fps
_EARLY_SOUND_SEC = 0.5  # before the first picture, which is worth a note


class VideoError(errors.UserError):
    """A video, or a part of it, can't be used. The message is the reason alone; callers list it next to the file's name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """What the packets of a video's first video stream say.

    Attributes:
      path: the file.
      timeline: when each frame that a decoder gives is shown.
      dated: whether the packets have their frames' timestamps. If not, frames are known by the order in which the decoder gives
        them, and the timeline is made of decoding timestamps, or evenly spaced.
      codec: FFmpeg's name of the codec.
      container: FFmpeg's names of the file format, joined by commas.
      rotation_deg: degrees by which a player turns the stored picture. We do not turn it, as the original does not.
      trimmed: whether an edit list hides or delays a part of the stream.
      packet_pts: timestamps to give the packets, by which their frames are known; None if the file's own will do.
      other_pictures: whether the file has other video tracks, or a cover.
      joints: places of the packets with which another of several joined recordings begins.
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
    packet_pts: Int64[np.ndarray, " n"] | None = None
    other_pictures: bool = False
    joints: frozenset[int] = frozenset()
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
    found = _read(path, decode=False)
    dates = _date(found)
    if np.any(dates.shared):
        # Each of several packets of one time may hold a frame, or a half of one, or one that is never shown.
        decoded = _read(path, decode=True)
        dates = _date(decoded, (decoded.shows | ~dates.shared) & ~np.asarray(decoded.stamps.hidden, bool))
    scanned = Scan(path, dates.timeline, dates.dated, found.codec, found.formats, found.rotation_deg, trimmed=False)
    trimmed = any(found.stamps.hidden) or ("mp4" in found.header.formats and bool(dates.timeline.pts[0] != 0))
    return _dated(dataclasses.replace(scanned, trimmed=trimmed), dates, found)


def rescan(video: Scan) -> Scan:
    """Returns the scan with the timestamps of the decoded frames, for files whose packets promise other frames.

    Raises:
      VideoError: no frame decodes.
    """
    found = _read(video.path, decode=True)
    return _dated(video, _date(found, found.shows), found)


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


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """Returns the video stream to read, set to decode in one thread because several videos are read at once.

    It is the default one, or the first if none or several are the default. Covers are passed over.

    Raises:
      VideoError: there is no video stream, it can't be decoded, or its frames are too large.
    """
    tracks = _tracks(container)
    if not tracks:
        raise VideoError("the file has no video stream" + (", only a cover picture" if container.streams.video else ""))
    defaults = [stream for stream in tracks if stream.disposition & av.stream.Disposition.default]
    stream = (defaults or tracks)[0]
    context = stream.codec_context
    if context is None:
        raise VideoError("there is no decoder for the video stream")
    if not 0 < context.width * context.height <= MAX_PIXELS:
        raise VideoError(f"frames of {context.width}x{context.height} pixels; at most {MAX_PIXELS} pixels are read")
    context.thread_type, context.thread_count = "NONE", 1  # dav1d heeds only the count
    return stream


def packets(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    pts: Int64[np.ndarray, " n"] | None = None,
    joints: Collection[int] = (),
) -> Iterator[tuple[av.Packet | None, str]]:
    """Yields the stream's packets, each with its fault or "", and then None, which makes a decoder give what it still holds.

    Args:
      container: the open file.
      stream: the stream to read.
      pts: the timestamp to give each packet, as `Scan.packet_pts`; None leaves the file's.
      joints: `Scan.joints`. MPEG-TS counts its packets; where the count starts again, FFmpeg takes one before for damaged.
    """
    held, error, count = None, "", 0
    try:
        for packet in container.demux(stream):
            if packet.size:
                if pts is not None and count < len(pts):
                    packet.pts = int(pts[count])
                if packet.is_corrupt and any(0 <= joint - count <= _MARKED for joint in joints):
                    packet = _unmarked(packet)
                count += 1
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


def _unmarked(packet: av.Packet) -> av.Packet:
    """Returns a copy that is not marked as damaged."""
    copy = av.Packet(bytes(packet))
    copy.stream, copy.time_base = packet.stream, packet.time_base
    copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
    copy.is_keyframe = packet.is_keyframe
    return copy


def reason_of(error: Exception) -> str:
    """Returns FFmpeg's own message, without the file name that PyAV adds."""
    return getattr(error, "strerror", None) or str(error)


class _Found(NamedTuple):
    """What a pass over a file's packets found; `shows` says of each packet whether a frame of it was decoded, if asked for."""

    stamps: clock.Stamps
    shows: Bool[np.ndarray, " n"]
    header: clock.Header
    codec: str
    formats: str
    rotation_deg: int
    other_pictures: bool
    notes: tuple[str, ...]
    joints: frozenset[int]
    fault: str


def _read(path: Path, *, decode: bool) -> _Found:
    stamps, rotation_deg, whole = clock.Stamps(), None, True
    shown: set[int | None] = set()
    joints: set[int] = set()
    recent: collections.deque[tuple[int | None, bool]] = collections.deque(maxlen=_MARKED)  # position, whether it is damaged
    reason = ""
    with open_container(path) as container:
        stream = video_stream(container)
        for packet, error in packets(container, stream):
            whole = not error if packet is not None else whole and not error  # a fault before the end does not shorten it
            if packet is None and error and not stamps.pts:
                raise VideoError(f"no packet can be read: {error}")
            # A file that breaks off gives the frames before the break; the decoding pass will report the damage.
            if packet is not None:
                is_suspect = packet.is_keyframe and any(damaged for _, damaged in recent) and packet.pos
                if is_suspect and containers.counters_restart(path, recent[0][0] or 0, packet.pos or 0):
                    joints.add(len(stamps.pts))
                recent.append((packet.pos, bool(error)))
                stamps.add(packet.pts, packet.dts, packet.duration or 0, packet.is_discard)
                if len(stamps.pts) > _MAX_FRAMES:
                    raise VideoError(f"more than {_MAX_FRAMES} frames")
                if rotation_deg is None and not decode:
                    rotation_deg = _rotation_deg(packet)
            if decode:
                if packet is not None:
                    packet.pts = len(stamps.pts) - 1
                try:
                    shown.update(frame.pts for frame in stream.decode(packet))
                except av.error.FFmpegError as decoding_error:
                    reason = reason or f": {reason_of(decoding_error)}"
        shows = np.array([place in shown for place in range(len(stamps.pts))], bool)
        if decode and not shows.any():
            raise VideoError(f"no frame decodes{reason}")
        return _Found(
            stamps,
            shows,
            _header(container, stream, whole),
            stream.codec_context.codec.canonical_name,
            container.format.name,
            rotation_deg or 0,
            len(container.streams.video) > 1,
            _notes(container, stream),
            frozenset(joints),
            _fault(path, container.format.name, recent[-1][0] or 0) if recent and recent[-1][0] else "",
        )


def _date(found: _Found, shown: Bool[np.ndarray, " n"] | None = None) -> clock.Dates:
    try:
        return clock.date(found.stamps, found.header, shown)
    except ValueError as error:
        raise VideoError(str(error)) from error


def _dated(video: Scan, dates: clock.Dates, found: _Found) -> Scan:
    return dataclasses.replace(
        video,
        timeline=dates.timeline,
        dated=dates.dated,
        packet_pts=dates.packet_pts,
        joints=dates.joints | found.joints,
        other_pictures=found.other_pictures,
        start=int(dates.timeline.pts[0]),
        notes=(*found.notes, *dates.notes),
        fault="; ".join(fault for fault in (dates.fault, found.fault) if fault),
    )


def _fault(path: Path, formats: str, last: int) -> str:
    """Returns what FFmpeg passes over without a word, if it read packets up to the byte `last`; empty if nothing."""
    starts, remedy = containers.joined_at(path), "join recordings of this format with FFmpeg's `concat` instead"
    unread = next((start for start in starts if start > last), 0)
    if unread:
        return f"another recording begins at byte {unread} of {path.stat().st_size} and is not read; {remedy}"
    if formats == "avi":
        other = next((start for start in starts if containers.avi_rate(path, start) != containers.avi_rate(path, 0)), 0)
        if other:
            return f"another recording of another rate begins at byte {other}, and is read at the first one's; {remedy}"
    return ""


def _header(container: av.container.InputContainer, stream: av.VideoStream, whole: bool) -> clock.Header:
    time_base = stream.time_base or Fraction(1, 90000)
    formats = frozenset(container.format.name.split(","))
    alone, end = True, None
    if stream.duration:
        end = (stream.start_time or 0) + stream.duration
    elif container.duration:
        end = round(Fraction(container.duration, av.time_base) / time_base)
        alone = len(container.streams) == 1
    if "asf" in formats:  # it knows one length for all streams
        alone = len(container.streams) == 1
    rate = stream.average_rate or stream.guessed_rate
    if formats & _RAW:
        rate = stream.codec_context.framerate or rate
    return clock.Header(
        formats,
        time_base,
        rate=max(rate or Fraction(0), Fraction(0)),
        frames=stream.frames,
        end=end,
        alone=alone,
        whole=whole,
        # AVI keeps the decoding order only, and for H.264 FFmpeg finds no better times.
        orders_decoding=formats == {"avi"} and stream.codec_context.reorder_depth > 0,
    )


def _tracks(container: av.container.InputContainer) -> list[av.VideoStream]:
    """Returns the video streams that are no covers."""
    cover = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    return [stream for stream in container.streams.video if not stream.disposition & cover]


def _notes(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[str, ...]:
    """Returns which other pictures of the file are passed over, and how much earlier its sound begins."""
    tracks, notes = _tracks(container), []
    if len(container.streams.video) > len(tracks):
        notes.append("a cover picture is passed over")
    if len(tracks) > 1:
        notes.append(f"of {len(tracks)} video tracks, number {tracks.index(stream) + 1} is read")
    if stream.start_time is not None and container.start_time is not None:
        early_sec = float(stream.start_time * (stream.time_base or 0)) - container.start_time / av.time_base
        if early_sec > _EARLY_SOUND_SEC:
            notes.append(f"the sound begins {early_sec:.2f} s before the first picture; seconds count from the picture")
    return tuple(notes)


def _rotation_deg(packet: av.Packet) -> int | None:
    """Returns the rotation in the display matrix of the packet's first frame, in degrees; None if no frame decodes yet."""
    try:
        for frame in packet.decode():
            return frame.rotation % 360
    except av.error.FFmpegError:
        return 0  # the decoding pass will meet the same error and report it
    return None
