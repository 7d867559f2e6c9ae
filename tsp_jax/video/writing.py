"""Videos as H.264 mp4: from pictures, or resampled from another video to a constant rate."""

import contextlib
import itertools
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
from tsp_jax.video import scanning

_MAX_GAP_SEC = 600  # between two frames; a constant rate fills it


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


def resample(source: str | Path, target: str | Path, fps: int, *, crf: int = 23) -> tuple[int, str]:
    """Writes a video at a constant rate as an H.264 mp4. Returns the number of frames, and the error that ended it early or "".

    Frames are those that FFmpeg's filter `fps` chooses, on a grid that starts with the file (with its sound, where that comes
    first). The picture is turned upright by quarter turns, as the `ffmpeg` command does. Sound is left out. A damaged video
    ends before its first error, where `python -m data_builders.metadata` ends it too.

    Unlike the command: the first picture is at 0 s, whatever comes before it; pixels become 8-bit 4:2:0, and an odd height or
    width loses a row or a column, which the command keeps in other layouts and refuses in this one.

    Raises:
      VideoError: it is missing, no video, has no frame that decodes, or can't be encoded.
    """
    scanned = scanning.scan(source)
    count = 0
    try:
        with scanning.open_container(scanned.path) as container, av.open(str(target), "w", format="mp4") as output:
            stream = scanning.video_stream(container)
            decoded = _UntilDamage(container, stream, scanned)
            encoder = output.add_stream("libx264", rate=fps, options={"crf": str(crf)})
            encoder.codec_context.thread_count = 1  # several videos are written at once
            for frame in _at_constant_rate(decoded, stream.time_base or Fraction(1, 90000), fps):
                if not count:
                    context = encoder.codec_context
                    context.width, context.height, context.pix_fmt = frame.width, frame.height, frame.format.name
                    context.color_range, context.colorspace = frame.color_range, frame.colorspace
                    context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc
                frame.pts, frame.time_base = count, Fraction(1, fps)
                frame.pict_type = av.video.frame.PictureType.NONE  # else the source's key frames stay such
                output.mux(encoder.encode(frame))
                count += 1
            if not count:
                raise scanning.VideoError(f"no frame decodes: {decoded.damage or 'the decoder gives none'}")
            output.mux(encoder.encode())
    except av.error.FFmpegError as error:
        raise scanning.VideoError(f"can't be converted: {scanning.reason_of(error)}") from error
    return count, decoded.damage


class _UntilDamage:
    """The frames of a video up to the first error, from the file's start at 0; `damage` is that error, or empty."""

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream, scanned: scanning.Scan):
        self.container, self.stream, self.scanned, self.damage = container, stream, scanned, ""

    def __iter__(self) -> Iterator[av.VideoFrame]:
        time_base = self.stream.time_base or Fraction(1, 90000)
        spacing = 1 / (Fraction(self.scanned.timeline.fps).limit_denominator(100_000) * time_base)
        start = round(Fraction(self.container.start_time or 0, av.time_base) / time_base)
        last_sec, count = None, 0
        for packet, error in scanning.packets(self.container, self.stream):
            frames: list[av.VideoFrame] = []
            if not error:
                try:
                    frames = self.stream.decode(packet)
                except av.error.FFmpegError as decoding_error:
                    error = scanning.reason_of(decoding_error)
            for frame in frames:
                pts = frame.pts if self.scanned.dated else round(count * spacing) + start
                if pts is None:
                    continue
                frame_sec = float((pts - start) * time_base)
                if frame.is_corrupt:
                    error = error or "the decoder marks a frame as damaged"
                elif last_sec is not None and frame_sec - last_sec > _MAX_GAP_SEC:
                    error = error or f"the timestamps leap by {frame_sec - last_sec:.0f} s"
                elif frame.width * frame.height > scanning.MAX_PIXELS:
                    error = error or f"a frame of {frame.width}x{frame.height} pixels; at most {scanning.MAX_PIXELS} are read"
                if error:
                    break
                frame.pts, frame.time_base, last_sec = pts - start, time_base, frame_sec
                frame.duration = frame.duration or max(1, round(spacing))  # how long the last frame is shown
                count += 1
                yield frame
            if error:
                self.damage = f"{error}, after {count} frames"
                return


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
