"""Videos as H.264 mp4: from pictures, or resampled from another video to a constant rate."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.error
import av.filter
import av.video.frame
import numpy as np
from jaxtyping import UInt8

from tsp_jax.system import files
from tsp_jax.video import decoding, scanning


def write(path: str | Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], fps: Fraction | int, *, crf: int = 23) -> int:
    """Writes RGB frames of one even size as an H.264 mp4, whole or not at all. Returns the number of frames.

    The same frames give the same bytes, whatever the machine's load.

    Raises:
      ValueError: there is no frame.
    """
    count = 0
    bitexact = {"fflags": "+bitexact"}
    with files.replacing(path) as temporary, av.open(str(temporary), "w", format="mp4", options=bitexact) as container:
        # x264's macroblock tree is not repeatable, and neither is what several threads write.
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": "veryfast", "mbtree": "0"})
        stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
        for count, pixels in enumerate(frames, start=1):
            if count == 1:
                stream.height, stream.width = pixels.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        if not count:
            raise ValueError(f"{path}: no frames to write")
        container.mux(stream.encode())
    return count


@dataclasses.dataclass(frozen=True)
class Resampled:
    """What came of a video that was brought to another rate.

    Attributes:
      frames: number of frames written.
      notes: what is odd in the source but read rightly.
      problem: what of the source is missing or damaged; empty if nothing.
      cut_short: whether the source's last frames are missing.
    """

    frames: int
    notes: tuple[str, ...]
    problem: str
    cut_short: bool


def resample(source: str | Path, target: str | Path, fps: int, *, crf: int = 23) -> Resampled:
    """Writes a video at a constant rate as an H.264 mp4, and returns what came of it.

    Frames are those that FFmpeg's filter `fps` chooses, on a grid that starts with the file (with its sound, where that comes
    first). The picture is turned upright by quarter turns, as the `ffmpeg` command does. Sound is left out. In place of frames
    that are damaged the picture before is shown, or the first whole one. The video ends where `data_builders.metadata` ends it.

    Unlike the command: the first picture is at 0 s, whatever comes before it; pixels become 8-bit 4:2:0, and an odd height or
    width loses a row or a column, which the command keeps in other layouts and refuses in this one.

    Raises:
      VideoError: it is missing, no video, has no frame that decodes, or can't be encoded.
    """
    scanned = scanning.scan(source)
    with scanning.open_container(scanned.path) as container:
        # Where FFmpeg's grid starts. The first picture moves to 0 s, but to which tick the others are rounded depends on it.
        phase = round(Fraction(container.start_time or 0, av.time_base) / scanned.timeline.time_base)
    for _ in range(2):
        reader = decoding.Reader(scanned, np.ones(len(scanned.timeline.pts), bool))
        timed = _Timed(reader, min(phase, scanned.start), fps)
        try:
            count = _encode(timed, target, scanned.timeline.time_base, fps, crf)
        except av.error.FFmpegError as error:
            raise scanning.VideoError(f"can't be converted: {scanning.reason_of(error)}") from error
        if not reader.misdated:
            break
        scanned = scanning.rescan(scanned)
    else:
        raise scanning.VideoError("the decoder gives other frames each time")
    if not count:
        raise scanning.VideoError(f"no frame decodes: {reader.damage or 'the decoder gives none'}")
    problem, lost = [scanned.fault, reader.damage], reader.end - timed.given
    if lost:
        problem.append(f"{lost} of {reader.end} frames are lost, and the picture before them is shown")
    text = "; ".join(part for part in problem if part)
    return Resampled(count, scanned.notes, text, reader.end < len(scanned.timeline.pts))


def _encode(frames: Iterable[av.VideoFrame], target: str | Path, time_base: Fraction, fps: int, crf: int) -> int:
    """Writes frames at a constant rate, and returns their number."""
    count = 0
    with av.open(str(target), "w", format="mp4") as output:
        encoder = output.add_stream("libx264", rate=fps, options={"crf": str(crf)})
        encoder.codec_context.thread_count = 1  # several videos are written at once
        for frame in _at_constant_rate(frames, time_base, fps):
            if not count:
                context = encoder.codec_context
                context.width, context.height, context.pix_fmt = frame.width, frame.height, frame.format.name
                context.color_range, context.colorspace = frame.color_range, frame.colorspace
                context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc
            frame.pts, frame.time_base = count, Fraction(1, fps)
            frame.pict_type = av.video.frame.PictureType.NONE  # else the source's key frames stay such
            output.mux(encoder.encode(frame))
            count += 1
        if count:
            output.mux(encoder.encode())
    return count


class _Timed:
    """The frames of a reader with their times on the timeline, from `zero` on; `given` counts them.

    Each is shown up to the next one that is whole, and the first one from the video's start. A single one is shown for one
    frame of the rate `fps` or longer, or else the filter might leave it out.
    """

    def __init__(self, reader: decoding.Reader, zero: int, fps: int):
        self.reader, self.zero, self.fps, self.given = reader, zero, fps, 0

    def __iter__(self) -> Iterator[av.VideoFrame]:
        timeline = self.reader.video.timeline
        pts, before = timeline.pts.tolist(), None
        for number, frame in self.reader.frames():
            if frame.width * frame.height > scanning.MAX_PIXELS:
                size = f"{frame.width}x{frame.height}"
                raise scanning.VideoError(f"a frame of {size} pixels; at most {scanning.MAX_PIXELS} are read")
            frame.pts, frame.time_base = pts[number if self.given else 0] - self.zero, timeline.time_base
            self.given += 1
            if before is not None:
                yield before
            before = frame
        if before is not None:
            last, units = self.reader.end - 1, 1 / float(timeline.time_base)
            end = pts[0] + timeline.duration_sec * units if last == len(pts) - 1 else pts[last] + units / timeline.fps
            shortest = math.ceil(units / self.fps) if self.given == 1 else 1
            before.duration = max(shortest, round(end) - self.zero - before.pts)
            yield before


def _at_constant_rate(frames: Iterable[av.VideoFrame], time_base: Fraction, fps: int) -> Iterator[av.VideoFrame]:
    """The frames that the filter `fps` chooses, upright, in 8-bit 4:2:0 and of one even size, that of the first."""
    turns = {90: ["transpose=cclock"], 180: ["hflip", "vflip"], 270: ["transpose=clock"]}  # display matrices count leftwards
    graph, first = None, None
    for frame in itertools.chain(frames, [None]):
        if frame is not None:
            pts, duration, turn = frame.pts, frame.duration, frame.rotation % 360
            wanted = "yuvj420p" if frame.format.name == "yuvj420p" else "yuv420p"
            if first is not None:
                wanted = first.format.name
            size = (first.width, first.height) if first is not None else (frame.width, frame.height)
            if (frame.width, frame.height, frame.format.name) != (*size, wanted):
                frame = frame.reformat(*size, format=wanted)
                frame.pts, frame.time_base, frame.duration = pts, time_base, duration
            if graph is None:
                first, graph = frame, av.filter.Graph()
                chain = [graph.add_buffer(width=size[0], height=size[1], format=frame.format, time_base=time_base)]
                even = "crop=trunc(iw/2)*2:trunc(ih/2)*2:0:0"
                for name, _, how in (text.partition("=") for text in [*turns.get(turn, []), even, f"fps=fps={fps}"]):
                    chain.append(graph.add(name, how or None))
                graph.link_nodes(*chain, graph.add("buffersink")).configure()
        if graph is None:
            return
        graph.vpush(frame)
        # It has no more for now, or for good.
        with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                yield graph.vpull()
