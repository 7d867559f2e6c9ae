"""One forward pass over a video that decodes the frames asked for and leaves out those that damage reaches."""

import collections
import contextlib
import heapq
from collections.abc import Callable, Generator, Iterator
from typing import Any, Literal, get_args

import av
import av.container
import av.error
import av.video.reformatter
import numpy as np
from jaxtyping import Bool, UInt8

from tsp_jax.system import timing
from tsp_jax.video import decord_frames, h264, scanning

Decoder = Literal["pyav", "decord"]
DECODERS: tuple[str, ...] = get_args(Decoder)
# File formats that lead exactly to a key frame, and how many frames before the first needed one make it worth while.
_SEEKABLE, _WORTH_SEEKING = frozenset({"mp4", "matroska", "mpegts"}), 100
_SEEK_MARGIN_SEC = {"mp4": 0, "matroska": 0, "mpegts": 10}  # MPEG-TS has no index: a key frame has to be found on the way
_REORDER_WINDOW = 17  # one more than the deepest reordering that H.264 and HEVC allow


class _DecodedInPartError(Exception):
    """An error was met after packets had been dropped."""


class Reader:
    """One forward pass over a video. Iterating gives (frame number, RGB uint8 [h, w, 3]), with ascending numbers.

    Only the frames marked in `needed` are converted and given, and the pass ends after the last of them. A packet is not even
    decoded if its header says that no needed frame refers to it (H.264 in MP4, Matroska and FLV). Frames that are lost or
    damaged are left out, from a decoding error to the next key frame. Damage that the decoder does not notice is given, and
    decord notices little. As in the original, colours are converted as BT.601 whatever the stream says, and the picture is
    not turned.

    Attributes:
      decoded: number of frames that the decoder gave so far.
      damage: the reason why frames were left out; empty if none were.
      end: number after that of the last frame that the decoder gave, damaged or not; a frame that comes between an error that
        the decoder can't pass over and the next key frame does not count. After a pass over the whole file, its length.
      misdated: whether frames came at other times than the scan promised although nothing is damaged, as with codecs that
        have hidden frames or two packets a frame. The frames given so far are then of no use; `scanning.rescan` finds the
        true times.
    """

    def __init__(
        self,
        video: scanning.Scan,
        needed: Bool[np.ndarray, " n"],
        decoder: str = "pyav",
        own: timing.Laps | None = None,
    ):
        """Prepares the pass. The file is opened when iteration begins.

        Args:
          video: the scan of the video to read.
          needed: a flag for each frame that says whether the reader gives it.
          decoder: one of `DECODERS`.
          own: the timer of the thread that iterates; it records the seconds of decoding and of conversion.

        Raises:
          ValueError: the decoder is unknown.
          VideoError: the decoder is decord, which is known to read this kind of file wrongly.
        """
        if decoder not in DECODERS:
            raise ValueError(f"decoder is one of {DECODERS}; got {decoder!r}")
        if decoder == "decord":
            decord_frames.check(video)
        self.video, self.needed, self.decoder = video, needed, decoder
        self.decoded, self.damage, self.end, self.misdated = 0, "", 0, False
        self._laps = own or timing.Laps()
        self._dropped: int | None = 0  # packets that the decoder was not given; None if it must be given all
        self._may_seek, self._sought = True, False

    def __iter__(self) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        to_rgb = _rgb_converter() if self.decoder == "pyav" else decord_frames.to_rgb
        with contextlib.closing(self.frames()) as frames:
            for number, frame in frames:
                self._laps.end(timing.DECODE)
                pixels = to_rgb(frame)
                self._laps.end(timing.CONVERT)
                yield number, pixels

    def frames(self) -> Generator[tuple[int, Any], None, None]:
        """Yields (frame number, frame) as iteration does, but each frame as the decoder gives it."""
        remaining, last = int(np.count_nonzero(self.needed)), -1
        while remaining:
            frames = self._pyav() if self.decoder == "pyav" else self._decord()
            try:
                for number, frame in _in_order(frames):
                    if self.needed[number] and number > last:
                        yield number, frame
                        remaining, last = remaining - 1, number
                        if not remaining:
                            return
                if self._sought:  # read the file from its start, where nothing depends on key frames
                    self._may_seek, self.decoded, self.end, self.damage, self.misdated = False, 0, 0, "", False
                    continue
                self.misdated = not self.damage
                return
            except _DecodedInPartError:
                # Which frames an error costs depends on what the decoder held. So begin again, and give it every packet.
                self.decoded, self.end, self._dropped = 0, 0, None
            finally:
                frames.close()
                self._laps.end(timing.DECODE)

    def _pyav(self) -> Generator[tuple[int, av.VideoFrame | None], None, None]:
        """Yields the number of each intact frame, in the decoder's order, with the frame, or None if it is not needed."""
        for number, frame in self._intact_frames():
            if number is None and not self.damage:
                self.misdated = True
                return
            if number is not None:
                yield number, frame if self.needed[number] else None

    def _intact_frames(self) -> Iterator[tuple[int | None, av.VideoFrame]]:
        """Yields each frame that no error reaches, with its number, or None if the scan does not know such a frame.

        An error spoils the frames that are decoded after it, up to the next key frame. Some of them are shown earlier. So a
        frame is held back until every frame decoded before it has come out and is known to be intact.
        """
        with scanning.open_container(self.video.path) as container:
            stream = scanning.video_stream(container)
            # By timestamp, each packet whose frame has not come out: its place in decoding order, whether it is a key frame.
            awaited: dict[int | None, tuple[int, bool]] = {}
            held: collections.deque[tuple[int, int | None, av.VideoFrame]] = collections.deque()
            damaged: list[int] = []  # places of errors since the last key frame
            broken: list[int] = []  # those among them that cost the decoder a frame
            is_droppable, place = self._droppable(stream), -1
            number_of = _Numbers(self.video)
            for packet, error in self._packets(container, stream):
                if packet is not None and not error and is_droppable(packet):
                    self._dropped = (self._dropped or 0) + 1
                    continue
                place += 1
                frames: list[av.VideoFrame] = []
                if packet is not None:
                    awaited[packet.pts] = place, packet.is_keyframe
                try:
                    frames = stream.decode(packet)
                except av.error.FFmpegError as decoding_error:
                    error = error or scanning.reason_of(decoding_error)
                    # The original's read ends here. What the decoder holds is left out, though it may be intact.
                    broken += [decoded_at for decoded_at, _ in awaited.values()]
                if error:
                    self._note_damage(error)
                    broken.append(place)
                    damaged += broken
                # A packet whose frame does not come out within the deepest reordering shows no frame.
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
                        broken = [error_at for error_at in broken if error_at >= decoded_at]
                    number = number_of(frame, decoded_at, is_key and frame.key_frame, bool(damaged))
                    if number is not None and decoded_at < min(broken, default=place + 1):
                        self.end = max(self.end, number + 1)
                    if decoded_at < min(damaged, default=place + 1):
                        held.append((decoded_at, number, frame))
                    earliest, _ = min(awaited.values(), default=(place + 1, False))
                    while held and (held[0][0] < earliest or len(held) > _REORDER_WINDOW):
                        yield held.popleft()[1:]
            for _, number, frame in held:
                yield number, frame

    def _packets(
        self, container: av.container.InputContainer, stream: av.VideoStream
    ) -> Iterator[tuple[av.Packet | None, str]]:
        """Yields the packets as `scanning.packets` does, from a key frame before the first needed frame where that is exact."""
        video, first = self.video, int(np.argmax(self.needed))
        pts = video.timeline.pts
        name = next((name for name in video.container.split(",") if name in _SEEKABLE), "")
        is_exact = bool(name) and video.dated and video.packet_pts is None and not video.joints
        self._sought = self._may_seek and first >= _WORTH_SEEKING and is_exact
        packets = scanning.packets(container, stream, video.packet_pts, video.joints)
        if not self._sought:
            yield from packets
            return
        margin = round(_SEEK_MARGIN_SEC[name] / video.timeline.time_base)
        # Indices hold decoding times: a key frame that is shown after the first needed frame may be decoded before its time.
        container.seek(max(int(pts[0]), int(pts[first - _REORDER_WINDOW]) - margin), stream=stream, backward=True)
        for packet, error in packets:
            if packet is None or (packet.is_keyframe and packet.pts is not None):
                if packet is None or packet.pts > pts[first]:
                    return  # no key frame came in time: the pass ends, and another begins at the start
                yield packet, error
                break
        yield from packets

    def _droppable(self, stream: av.VideoStream) -> Callable[[av.Packet], bool]:
        """Returns a function that says whether a packet can be dropped: its frame is not needed, nor referred to by another.

        Only dated H.264 whose headers show it qualifies. The function reads the packets in order, because new parameters in
        one of them end the dropping for good.
        """
        context, scan = stream.codec_context, self.video
        extradata = context.extradata or b""
        readable = scan.codec == "h264" and scan.dated and self._dropped is not None
        length_bytes = h264.length_bytes(extradata) if readable else 0
        unneeded = frozenset(scan.timeline.pts[~self.needed].tolist()) if length_bytes else frozenset()
        known = bool(unneeded)

        def is_droppable(packet: av.Packet) -> bool:
            nonlocal known
            if not known:
                return False
            data = memoryview(packet)  # type: ignore  # PyAV's stubs omit that a packet is a buffer
            known = not h264.has_other_parameters(data, length_bytes, extradata)
            return known and packet.pts in unneeded and h264.may_be_left_out(data, length_bytes)

        return is_droppable

    def _note_damage(self, reason: str) -> None:
        if self._dropped:
            raise _DecodedInPartError
        self.damage = self.damage or f"{reason}, after {self.decoded} frames"

    def _decord(self) -> Generator[tuple[int, Any], None, None]:
        try:
            for number, frame in enumerate(decord_frames.frames(self.video)):
                self.decoded += 1
                yield number, frame if self.needed[number] else None
        except decord_frames.DecordError as error:
            self._note_damage(str(error))


class _Numbers:
    """The numbers of a video's frames, which are asked for in the order in which the decoder gives the frames."""

    def __init__(self, video: scanning.Scan):
        self.pts, self.dated = video.timeline.pts, video.dated
        self.next, self.latest, self.counted = 0, -1, True
        # FFmpeg joins some damaged packets with the next one, and dates those after it too early: a time is left at the end.
        tail_sec = video.timeline.duration_sec - float((self.pts[-1] - self.pts[0]) * video.timeline.time_base)
        self.resumes = tail_sec * video.timeline.fps < 1.5

    def __call__(self, frame: av.VideoFrame, decoded_at: int, is_key: bool, damaged: bool) -> int | None:
        """Returns the frame's number; None if the video has no such frame, or if it can't be known.

        Without timestamps frames are counted. An error, which may cost frames, ends that, up to a key frame that is shown when
        all packets before it have shown their frames, so that its number is its place.
        """
        if self.dated:
            number = int(np.searchsorted(self.pts, frame.pts)) if frame.pts is not None else len(self.pts)
            return number if number < len(self.pts) and self.pts[number] == frame.pts else None
        if damaged:
            self.counted = False
        elif is_key and not self.counted and self.resumes and decoded_at > self.latest:
            self.next, self.counted = decoded_at, True
        self.latest = max(self.latest, decoded_at)
        number = self.next if self.counted and self.next < len(self.pts) else None
        self.next += 1
        return number


def _in_order(frames: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Yields the pairs by ascending number, each number once.

    Decoders of old formats swap neighbouring frames or give one twice.
    """
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
        if frame.width * frame.height > scanning.MAX_PIXELS:
            raise scanning.VideoError(
                f"a frame of {frame.width}x{frame.height} pixels; at most {scanning.MAX_PIXELS} pixels are read"
            )
        try:
            progressive = _unmarked(frame) if frame.interlaced_frame else frame
            return reformatter.reformat(progressive, format="rgb24", src_colorspace=bt601, threads=1).to_ndarray()
        except (av.error.FFmpegError, ValueError) as error:
            raise scanning.VideoError(
                f"pixel format {frame.format.name} can't be converted: {scanning.reason_of(error)}"
            ) from error

    return to_rgb


def _unmarked(frame: av.VideoFrame) -> av.VideoFrame:
    """Returns a copy that is not marked as interlaced.

    For a marked frame PyAV 18 blends colours within each field; the original does not.
    """
    copy = av.VideoFrame(frame.width, frame.height, frame.format.name)
    copy.color_range = frame.color_range
    for source, target in zip(frame.planes, copy.planes, strict=True):
        # PyAV's stubs omit that a plane is a buffer.
        rows = np.frombuffer(source, np.uint8).reshape(source.height, source.line_size)  # type: ignore
        target_rows = np.frombuffer(target, np.uint8).reshape(target.height, target.line_size)  # type: ignore
        width = min(source.line_size, target.line_size)
        target_rows[:, :width] = rows[:, :width]
    return copy
