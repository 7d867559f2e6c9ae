"""The one door to reading videos: a packet scan that dates every frame, and one forward pass that decodes those asked for."""

import collections
import contextlib
import dataclasses
import heapq
import itertools
import os
import re
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import av
import av.container
import av.error
import av.video.reformatter
import numpy as np
from jaxtyping import Bool, UInt8

from tsp_jax import clips
from tsp_jax.system import timing
from tsp_jax.video import containers, h264

Decoder = Literal["pyav", "decord"]
DECODERS: tuple[str, ...] = get_args(Decoder)
# What may be inside: files alone, never a playlist that sends the reader elsewhere.
_OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,h264,hevc,m4v",
}
MAX_PIXELS = 1 << 26  # a frame: twice 8K; a hostile header may claim 2^30
_MAX_FRAMES = 1 << 26  # a video: 12 days at 60 fps
_BT601_OR_UNTOLD = frozenset({0, 2, 5, 6})  # RGB, unspecified, BT.470 BG, SMPTE 170M
_REORDER_WINDOW = 17  # one more than the deepest reordering that H.264 and HEVC allow


class VideoError(Exception):
    """A video, or a part of it, can't be used; the message is the reason, to be listed beside the file's name."""


class _DecodedInPartError(Exception):
    """An error was met after packets had been left out."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """What the packets of a video's first video stream tell.

    Attributes:
      path: the file.
      timeline: of the frames that a decoder gives.
      dated: the timestamps are the file's; else its packets have none and frames are taken to be evenly spaced.
      codec: FFmpeg's name of it.
      container: FFmpeg's names of the file's format, joined by commas.
      rotation_deg: how far a player turns the stored picture; it is not turned here, as the original does not.
      trimmed: an edit list hides or delays a part of the stream.
    """

    path: Path
    timeline: clips.Timeline
    dated: bool
    codec: str
    container: str
    rotation_deg: int
    trimmed: bool


def scan(path: str | Path) -> Scan:
    """The scan of a video file: all its packets are read, and only the first decoded.

    Raises:
      VideoError: the file is missing, no video, or has no frames, with the reason.
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
                # The file may break off: the frames up to here are used, and the decoding pass reports what it meets.
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
    """The scan with the timestamps of the frames as decoded, for files whose packets promise others.

    Raises:
      VideoError: nothing decodes.
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
    """Frames that decode before the first error, as the original counts them, and that error or an empty string.

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


class Reader:
    """One forward pass over a video: iterating gives (frame number, RGB uint8 [h, w, 3]), numbers ascending.

    Only the frames marked in `needed` are converted and given, and the pass ends after the last of them. Of the others, those
    to which no frame refers are not even decoded, where their packet says so (H.264 in MP4, Matroska and FLV). Frames that
    are lost or damaged are left out: from a decoding error to the next key frame (what the decoder does not notice is given,
    and decord notices little). Colours are BT.601's whatever the stream says, and the picture is not turned, both as in the
    original.

    Attributes:
      decoded: frames that the decoder gave so far.
      damage: why frames were left out; empty while none were.
      misdated: frames came at other times than the scan promised though nothing is damaged (codecs with hidden frames, two
        packets a frame); those given so far are of no use, and `rescan` tells the true times.
    """

    def __init__(self, video: Scan, needed: Bool[np.ndarray, " n"], decoder: Decoder = "pyav", own: timing.Laps | None = None):
        """Prepares the pass; the file is opened when iteration begins.

        Args:
          video: what to read.
          needed: of each frame, whether it is to be given.
          decoder: a key of `DECODERS`.
          own: of the thread that iterates; takes the time of decoding and of converting.

        Raises:
          VideoError: decord is asked to read what it is known to read wrongly.
        """
        if decoder not in DECODERS:
            raise ValueError(f"decoder is one of {DECODERS}; got {decoder!r}")
        if decoder == "decord":
            _check_decord(video)
        self.video, self.needed, self.decoder = video, needed, decoder
        self.decoded, self.damage, self.misdated = 0, "", False
        self._laps = own or timing.Laps()
        self._left_out: int | None = 0  # packets that the decoder was not given; None when it is to be given all

    def __iter__(self) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        remaining, last = int(np.count_nonzero(self.needed)), -1
        to_rgb = _rgb_converter() if self.decoder == "pyav" else _decord_rgb
        while remaining:
            frames = self._pyav() if self.decoder == "pyav" else self._decord()
            try:
                for number, frame in _in_order(frames):
                    if self.needed[number] and number > last:
                        self._laps.end(timing.DECODE)
                        pixels = to_rgb(frame)
                        self._laps.end(timing.CONVERT)
                        yield number, pixels
                        remaining, last = remaining - 1, number
                        if not remaining:
                            return
                self.misdated = not self.damage
                return
            except _DecodedInPartError:
                # Which frames an error costs follows from what the decoder held: from here on as if it had been given all.
                self.decoded, self._left_out = 0, None
            finally:
                frames.close()
                self._laps.end(timing.DECODE)

    def _pyav(self) -> Generator[tuple[int, av.VideoFrame | None], None, None]:
        """Intact frames by number, as they come; None in place of those that nobody needs."""
        pts = self.video.timeline.pts
        for index, frame in self._intact_frames():
            number = index
            if self.video.dated:
                number = int(np.searchsorted(pts, frame.pts)) if frame.pts is not None else len(pts)
            elif self.damage:
                return  # a frame may be lost, and the order alone does not tell which
            if number >= len(pts) or (self.video.dated and pts[number] != frame.pts):
                self.misdated = not self.damage
                return
            yield number, frame if self.needed[number] else None

    def _intact_frames(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames as they come, with their place in that order, but for those that an error reaches.

        An error spoils what is decoded after it, up to the next key frame. Some of that is shown earlier: so a frame is held
        back until all that was decoded before it has come out and is known to be intact.
        """
        with open_container(self.video.path) as container:
            stream = first_stream(container)
            # Packets whose frames have not come out, by timestamp: place in decoding order, whether it is a key frame.
            awaited: dict[int | None, tuple[int, bool]] = {}
            held: collections.deque[tuple[int, int, av.VideoFrame]] = collections.deque()
            damaged: list[int] = []  # places of errors since the last key frame
            of_no_use, place = self._of_no_use(stream), -1
            for packet, error in packets(container, stream):
                if packet is not None and not error and of_no_use(packet):
                    self._left_out = (self._left_out or 0) + 1
                    continue
                place += 1
                frames: list[av.VideoFrame] = []
                if packet is not None:
                    awaited[packet.pts] = place, packet.is_keyframe
                try:
                    frames = stream.decode(packet)
                except av.error.FFmpegError as decoding_error:
                    error = error or reason_of(decoding_error)
                    # The original's read ends here: what the decoder still holds is left out, though it may be intact.
                    damaged += [decoded_at for decoded_at, _ in awaited.values()]
                if error:
                    self._note_damage(error)
                    damaged.append(place)
                # What does not come out within the deepest reordering shows nothing.
                awaited = {pts: entry for pts, entry in awaited.items() if entry[0] > place - 2 * _REORDER_WINDOW}
                for frame in frames:
                    self.decoded += 1
                    decoded_at, is_key = awaited.pop(frame.pts, (place, False))
                    if frame.is_corrupt:
                        self._note_damage("the decoder marks a frame as damaged")
                        damaged.append(decoded_at)
                        held = collections.deque(entry for entry in held if entry[0] < decoded_at)
                    elif is_key and frame.key_frame:
                        damaged = [error_at for error_at in damaged if error_at >= decoded_at]
                    if decoded_at < min(damaged, default=place + 1):
                        held.append((decoded_at, self.decoded - 1, frame))
                    earliest, _ = min(awaited.values(), default=(place + 1, False))
                    while held and (held[0][0] < earliest or len(held) > _REORDER_WINDOW):
                        yield held.popleft()[1:]
            for _, index, frame in held:
                yield index, frame

    def _of_no_use(self, stream: av.VideoStream) -> Callable[[av.Packet], bool]:
        """Tells, packet by packet, whether neither a frame that is needed nor the decoding of others asks for it."""
        context, scan = stream.codec_context, self.video
        extradata = context.extradata or b""
        told = scan.codec == "h264" and scan.dated and self._left_out is not None
        length_bytes = h264.length_bytes(extradata) if told else 0
        unneeded = frozenset(scan.timeline.pts[~self.needed].tolist()) if length_bytes else frozenset()
        known = bool(unneeded)

        def of_no_use(packet: av.Packet) -> bool:
            nonlocal known
            if not known:
                return False
            data = memoryview(packet)  # type: ignore  # a buffer, which PyAV's stubs leave out
            known = not h264.has_other_parameters(data, length_bytes, extradata)
            return known and packet.pts in unneeded and h264.may_be_left_out(data, length_bytes)

        return of_no_use

    def _note_damage(self, reason: str) -> None:
        if self._left_out:
            raise _DecodedInPartError
        self.damage = self.damage or f"{reason}, after {self.decoded} frames"

    def _decord(self) -> Generator[tuple[int, Any], None, None]:
        decord = _import_decord()
        try:
            reader = decord.VideoReader(str(self.video.path.absolute()), num_threads=1)
            for number in range(len(self.video.timeline.pts)):
                frame = reader.next()
                self.decoded += 1
                yield number, frame if self.needed[number] else None
        except StopIteration:
            return
        except (decord.DECORDError, RuntimeError) as error:
            self._note_damage(f"decord: {_decord_reason(error)}")


def open_container(path: Path) -> av.container.InputContainer:
    """The file, open for demuxing; a context manager.

    Raises:
      VideoError: FFmpeg can't open it as a video.
    """
    try:
        # An absolute path, for FFmpeg takes what stands before a colon for a protocol.
        return av.open(str(path.absolute()), container_options=_OPEN_OPTIONS, metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(f"not a video that FFmpeg can open, or cut off: {reason_of(error)}") from error


def first_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The first video stream, set to decode in one thread (several videos are read at once).

    Raises:
      VideoError: there is none, or it can't be decoded, or its frames are too large.
    """
    if not container.streams.video:
        raise VideoError("the file has no video stream")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None:
        raise VideoError("there is no decoder for the video stream")
    if not 0 < context.width * context.height <= MAX_PIXELS:
        raise VideoError(f"frames of {context.width}x{context.height} pixels; at most {MAX_PIXELS} pixels are read")
    context.thread_type, context.thread_count = "NONE", 1  # dav1d heeds the count alone
    return stream


def packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[tuple[av.Packet | None, str]]:
    """The stream's packets, each with what is wrong with it or ""; at the end None, that the decoder may give what it holds."""
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
        pass  # the end, in a file where a stream appeared late: PyAV 18 trips over it
    if held is not None:
        # Matroska's demuxer passes on what there is of the last packet without a word.
        cut_off = held.is_corrupt or containers.missing_bytes(container.name) > 0
        yield held, "a packet is cut off" if cut_off else ""
    yield None, error


def reason_of(error: Exception) -> str:
    """FFmpeg's own words, without the file's name that PyAV adds."""
    return getattr(error, "strerror", None) or str(error)


def _timeline(pts: list[int | None], stream: av.VideoStream, dated: bool) -> tuple[clips.Timeline, bool]:
    rate = stream.average_rate or stream.guessed_rate
    if not rate or rate <= 0:
        raise VideoError("the file tells no frame rate")
    time_base = stream.time_base or Fraction(1, 90000)
    if not dated or any(value is None for value in pts):
        spaced = np.round(np.arange(len(pts)) / (float(rate) * float(time_base))).astype(np.int64)
        return clips.Timeline(spaced, time_base, float(rate)), False
    return clips.Timeline(np.unique(np.asarray(pts, np.int64)), time_base, float(rate)), True


def _dates_decoding(container_names: str, pts: list[int | None], stream: av.VideoStream) -> bool:
    """Whether the timestamps tell the order of decoding: AVI keeps no others, and for H.264 FFmpeg finds no better ones."""
    ascending = all(a is not None and b is not None and a < b for a, b in itertools.pairwise(pts))
    return container_names == "avi" and ascending and stream.codec_context.reorder_depth > 0


def _rotation_deg(packet: av.Packet) -> int | None:
    """The display matrix of the first frame that decodes; None while there is none."""
    try:
        for frame in packet.decode():
            return frame.rotation % 360
    except av.error.FFmpegError:
        return 0  # the decoding pass will meet the same error, and report it
    return None


def _in_order(frames: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Pairs by ascending number, though decoders of old formats swap neighbours; a number given twice counts once."""
    waiting: list[tuple[int, int, Any]] = []
    expected = 0
    for order, (number, frame) in enumerate(frames):
        if number < expected:
            continue
        heapq.heappush(waiting, (number, order, frame))
        while waiting and (waiting[0][0] <= expected or len(waiting) > _REORDER_WINDOW):
            number, _, frame = heapq.heappop(waiting)
            if number >= expected:
                expected = number + 1
                yield number, frame
    for number, _, frame in sorted(waiting, key=lambda item: item[:2]):
        if number >= expected:
            expected = number + 1
            yield number, frame


def _rgb_converter() -> Callable[[av.VideoFrame], UInt8[np.ndarray, "h w 3"]]:
    reformatter = av.video.reformatter.VideoReformatter()
    bt601 = av.video.reformatter.Colorspace.ITU601

    def to_rgb(frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        if frame.width * frame.height > MAX_PIXELS:
            raise VideoError(f"a frame of {frame.width}x{frame.height} pixels; at most {MAX_PIXELS} pixels are read")
        try:
            progressive = _unmarked(frame) if frame.interlaced_frame else frame
            return reformatter.reformat(progressive, format="rgb24", src_colorspace=bt601, threads=1).to_ndarray()
        except (av.error.FFmpegError, ValueError) as error:
            raise VideoError(f"pixel format {frame.format.name} can't be converted: {reason_of(error)}") from error

    return to_rgb


def _unmarked(frame: av.VideoFrame) -> av.VideoFrame:
    """A copy without the mark of interlacing, for which PyAV 18 blends colours within each field; the original does not."""
    copy = av.VideoFrame(frame.width, frame.height, frame.format.name)
    copy.color_range = frame.color_range
    for source, target in zip(frame.planes, copy.planes, strict=True):
        # A plane is a buffer, which PyAV's stubs leave out.
        rows = np.frombuffer(source, np.uint8).reshape(source.height, source.line_size)  # type: ignore
        target_rows = np.frombuffer(target, np.uint8).reshape(target.height, target.line_size)  # type: ignore
        width = min(source.line_size, target.line_size)
        target_rows[:, :width] = rows[:, :width]
    return copy


def _decord_rgb(frame: Any) -> UInt8[np.ndarray, "h w 3"]:
    return frame.asnumpy()


def _check_decord(video: Scan) -> None:
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
    frame = _first_frame(video.path)
    if frame is not None:
        if frame.colorspace not in _BT601_OR_UNTOLD:
            wrong.append("colours other than BT.601's")
        if any(component.bits > 8 for component in frame.format.components):
            wrong.append("more than 8 bits a sample")
        if frame.height % 2 and frame.format.chroma_height(frame.height) < frame.height:
            wrong.append("an odd height")
    if wrong:
        raise VideoError(f"decord is known to read files with {' and '.join(wrong)} wrongly; use --decoder pyav")


def _first_frame(path: Path) -> av.VideoFrame | None:
    with open_container(path) as container:
        stream = first_stream(container)
        for packet, _ in packets(container, stream):
            with contextlib.suppress(av.error.FFmpegError):
                for frame in stream.decode(packet):
                    return frame
    return None


def _import_decord() -> Any:
    try:
        import decord
    except ModuleNotFoundError as error:
        raise VideoError("decord is not installed (it has wheels for Linux on x86-64 alone); use --decoder pyav") from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _decord_reason(error: Exception) -> str:
    """The message without the time, the place in decord's source and the stack that stand around it."""
    line = next((line for line in str(error).splitlines() if ".cc:" in line), str(error).strip())
    return re.sub(r"^.*?\.cc:\d+: ", "", line)[:120]
