"""Writes small videos of every kind that tests need: whole ones whose pictures tell their frame's number, and damaged ones."""

import functools
import itertools
import os
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIZE = (96, 64)  # width, height
_CELLS = (4, 6)  # rows, columns: twelve bits above, their complements below
_BITS = _CELLS[0] * _CELLS[1] // 2
# Quick, and the same bytes every time (x264's macroblock tree is not).
_ENCODER_OPTIONS = {
    "libx264": {"preset": "veryfast", "mbtree": "0"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=1"},
}


def write(
    path: Path,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = SIZE,
    fps: Fraction | int = 30,
    frames: int = 60,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    seed: int = 0,
    container: str | None = None,
    container_options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    b_frames: int | None = None,
    rotation_deg: int = 0,
    bt709: bool = False,
) -> Path:
    """The path of a new video, whose frame k shows `picture(k, size, seed)`.

    Args:
      path: where to; its folder exists. The container follows from its extension.
      codec: FFmpeg's name of the encoder.
      size: width and height.
      fps: frames a second.
      frames: how many.
      pix_fmt: FFmpeg's name of the pixels' layout.
      options: the encoder's, over those that make x264 and x265 quick.
      seed: of the texture.
      container: FFmpeg's name of the format, where the extension is not to tell it.
      container_options: the muxer's.
      pts: timestamps in units of `time_base`, one a frame; 0, 1, 2, … frames when absent.
      time_base: of the encoder; 1 / fps when absent. The container may choose another.
      b_frames: how many in a row at most, where the encoder takes it so; its own default when absent.
      rotation_deg: display matrix of the stream.
      bt709: tags the stream as BT.709 and converts the pictures so.
    """
    with av.open(str(path), "w", format=container, options={"fflags": "+bitexact", **(container_options or {})}) as output:
        stream = output.add_stream(codec, rate=Fraction(fps), options={**_ENCODER_OPTIONS.get(codec, {}), **(options or {})})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        context = stream.codec_context
        context.thread_count = 1
        context.time_base = stream.time_base = time_base or 1 / Fraction(fps)
        if b_frames is not None:
            context.max_b_frames = b_frames
        if rotation_deg:
            stream.set_display_rotation(rotation_deg)
        if bt709:
            context.colorspace = context.color_primaries = context.color_trc = 1
        matrix = av.video.reformatter.Colorspace.ITU709 if bt709 else av.video.reformatter.Colorspace.ITU601
        if not frames:
            output.start_encoding()
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index, size, seed), format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix)
            frame.pts = index if pts is None else pts[index]
            frame.time_base = context.time_base
            output.mux(stream.encode(frame))
        if frames:
            output.mux(stream.encode(None))
    if codec == "libsvtav1" and os.getuid() == 0 and hasattr(os, "sched_setscheduler"):
        # SVT-AV1 gives root's process real-time priority and leaves it so: all else on its core would stand still.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def picture(number: int, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """RGB uint8 [h, w, 3]: a grid of dark and light cells that spells the number, under colours that drift."""
    enlarged = max(1, min(size) // 160)  # large pictures are made of larger dots, which is quicker
    width, height = -(-size[0] // enlarged), -(-size[1] // enlarged)
    bits = (number >> np.arange(_BITS)) & 1
    cells = np.concatenate([bits, 1 - bits]).reshape(_CELLS)
    rows = np.arange(height) * _CELLS[0] // height
    columns = np.arange(width) * _CELLS[1] // width
    grey = 60 + 130 * cells[rows[:, None], columns]
    y, x = np.mgrid[:height, :width]
    phase = 0.3 * number + 0.7 * seed
    drift = [30 * np.sin(x / 7 + y / 11 * (1 + channel) + phase * (channel - 1.5)) for channel in range(3)]
    texture = np.random.default_rng(seed).integers(-9, 10, (height, width))
    dots = grey[..., None] + np.stack(drift, -1) + np.roll(texture, (number, 2 * number), axis=(0, 1))[..., None]
    dots = np.clip(dots, 0, 255).astype(np.uint8).repeat(enlarged, axis=0).repeat(enlarged, axis=1)
    return np.ascontiguousarray(dots[: size[1], : size[0]])


def number(rgb: np.ndarray) -> int:
    """The number that a picture spells, or -1 where it is no longer legible."""
    height, width = rgb.shape[:2]
    rows = np.linspace(0, height, _CELLS[0] + 1).astype(int)
    columns = np.linspace(0, width, _CELLS[1] + 1).astype(int)
    cells = [
        rgb[top + 1 : bottom - 1, left + 1 : right - 1].mean()
        for top, bottom in itertools.pairwise(rows)
        for left, right in itertools.pairwise(columns)
    ]
    grey = np.reshape(cells, (2, _BITS))
    if np.min(np.abs(grey[0] - grey[1])) < 50:
        return -1
    return int(np.sum((grey[0] > grey[1]) << np.arange(_BITS)))


def make(folder: Path, name: str) -> Path:
    """The path of one of WHOLE, LONG or BROKEN, written into the folder."""
    path = folder / name
    {**WHOLE, **LONG, **BROKEN}[name](path)
    return path


def truncated(path: Path, source: Path, keep: float) -> Path:
    """A copy of the source that ends after this share of it."""
    data = source.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    return path


def flipped(path: Path, source: Path, seed: int, count: int = 3, span: tuple[float, float] = (0.3, 0.9)) -> Path:
    """A copy of the source with this many bytes changed, at random places between the two shares of it."""
    data = bytearray(source.read_bytes())
    draw = random.Random(seed)
    for _ in range(count):
        data[draw.randrange(int(span[0] * len(data)), int(span[1] * len(data)))] ^= draw.randrange(1, 256)
    path.write_bytes(data)
    return path


def _write_late(path: Path) -> None:
    write(path, pts=range(45, 105))


def _write_uneven(path: Path) -> None:
    """Gaps of 20 to 60 ms; 25 fps on average."""
    gaps = random.Random(0).choices(range(20, 61), k=59)
    write(path, fps=25, pts=np.cumsum([0, *gaps]).tolist(), time_base=Fraction(1, 1000))


def _write_trimmed(path: Path) -> None:
    """An edit list that hides the first ten frames."""
    write(path, pts=range(-10, 50), b_frames=0, container_options={"avoid_negative_ts": "disabled", "use_editlist": "1"})


def _write_hidden(path: Path) -> None:
    """VP8 in which every fifth packet but the first is for reference alone, and shows no picture: 49 are shown."""
    source = write(path.with_name("_" + path.name), codec="libvpx", options={"cpu-used": "8", "b": "500k"})
    with av.open(str(source)) as shown, av.open(str(path), "w", options={"fflags": "+bitexact"}) as output:
        stream = output.add_stream_from_template(shown.streams.video[0])
        for index, packet in enumerate(p for p in shown.demux(video=0) if p.size):
            data = bytearray(bytes(packet))
            if index % 5 == 0 and index:
                data[0] &= ~0x10  # the frame tag's bit that says: show it
            hidden = av.Packet(bytes(data))
            hidden.pts, hidden.dts, hidden.time_base = packet.pts, packet.dts, packet.time_base
            hidden.is_keyframe, hidden.stream = packet.is_keyframe, stream
            output.mux(hidden)
    source.unlink()


def _write_resized(path: Path) -> None:
    """Pictures of two sizes in one stream: the first 30 frames are larger."""
    with av.open(str(path), "w") as output:
        stream = None
        for part, size in enumerate((SIZE, (64, 48))):
            encoder = av.CodecContext.create("libx264", "w")
            encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = *size, "yuv420p", Fraction(1, 30)
            encoder.options = {**_ENCODER_OPTIONS["libx264"], "bf": "0", "threads": "1"}
            stream = stream or output.add_stream("libx264", rate=30)
            if not part:
                stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            for index in range(30 * part, 30 * part + 31):
                frame = None
                if index < 30 * part + 30:
                    frame = av.VideoFrame.from_ndarray(picture(index, size), format="rgb24").reformat(format="yuv420p")
                    frame.pts, frame.time_base = index, encoder.time_base
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    output.mux(packet)


def _write_long(path: Path) -> None:
    """3,000 frames: a second of video over and over."""
    source = write(path.with_name("_" + path.name), size=(640, 360), frames=30, b_frames=0, options={"crf": "40"})
    with av.open(str(source)) as second, av.open(str(path), "w") as output:
        packets = [(bytes(packet), packet.pts, packet.is_keyframe) for packet in second.demux(video=0) if packet.size]
        stream = output.add_stream_from_template(second.streams.video[0])
        for repeat in range(100):
            for data, pts, is_keyframe in packets:
                packet = av.Packet(data)
                packet.time_base = second.streams.video[0].time_base
                packet.pts = packet.dts = pts + repeat * round(1 / packet.time_base)
                packet.is_keyframe, packet.stream = is_keyframe, stream
                output.mux(packet)
    source.unlink()


def _write_sound(path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=16000, layout="mono")
        for index in range(16):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, 1024 * index, Fraction(1, 16000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def _write_playlist(path: Path) -> None:
    """An HLS playlist in a video's clothes, and beside it the video that it names."""
    target = write(path.with_name(path.stem + "_target.ts"))
    path.write_text(
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n"
        f"#EXTINF:2.0,\n{target.name}\n#EXT-X-ENDLIST\n"
    )


def _write_cut(path: Path, keep: float, **how: str) -> None:
    source = write(path.with_name("_" + path.name), options={"g": "12"}, container_options=how)
    truncated(path, source, keep)
    source.unlink()


def _write_flipped(path: Path) -> None:
    source = write(path.with_name("_" + path.name), options={"g": "12"})
    flipped(path, source, seed=0)
    source.unlink()


# Every one of 60 frames at 30 fps unless its writer says otherwise; the pictures are those of seed 0.
WHOLE: dict[str, Callable[[Path], object]] = {
    "plain.mp4": functools.partial(write, b_frames=0),
    "b_frames.mp4": functools.partial(write, options={"bf": "3", "b-pyramid": "normal"}),
    "open_gop.mp4": functools.partial(
        write, options={"bf": "3", "g": "12", "x264-params": "open-gop=1:scenecut=0:min-keyint=4"}
    ),
    "odd_444.mp4": functools.partial(write, size=(101, 75), pix_fmt="yuv444p"),
    "odd_vp9.webm": functools.partial(write, codec="libvpx-vp9", size=(101, 75), options={"cpu-used": "8"}),
    "wide.mp4": functools.partial(write, size=(170, 128)),
    "rotated.mp4": functools.partial(write, rotation_deg=90),
    "uneven.mp4": _write_uneven,
    "uneven.mkv": _write_uneven,
    "ten_bit.mp4": functools.partial(write, pix_fmt="yuv420p10le"),
    "hevc.mp4": functools.partial(write, codec="libx265"),
    "hevc_ten_bit.mkv": functools.partial(write, codec="libx265", pix_fmt="yuv420p10le"),
    "vp9.webm": functools.partial(write, codec="libvpx-vp9", options={"cpu-used": "8", "lag-in-frames": "10"}),
    "vp8.webm": functools.partial(write, codec="libvpx", options={"auto-alt-ref": "0", "cpu-used": "8", "b": "500k"}),
    "vp8_hidden.webm": _write_hidden,
    "av1.mp4": functools.partial(write, codec="libsvtav1", options={"preset": "11", "crf": "20", "svtav1-params": "lp=1"}),
    "mpeg4.avi": functools.partial(write, codec="mpeg4", options={"b": "800k"}),
    "mpeg4_b_frames.avi": functools.partial(write, codec="mpeg4", b_frames=2, options={"b": "800k"}),
    "h264_b_frames.avi": functools.partial(write, options={"bf": "2"}),
    "stream.ts": functools.partial(write),
    "program.mpg": functools.partial(write, codec="mpeg2video", b_frames=2, container="vob", options={"b": "800k"}),
    "matroska.mkv": functools.partial(write),
    "late.mp4": _write_late,
    "late.mkv": _write_late,
    "trimmed.mp4": _write_trimmed,
    "full_hd.mp4": functools.partial(write, size=(1920, 1080), frames=20, options={"crf": "32"}),
    "名前 видео.mp4": functools.partial(write, fps=15),
    "bt709.mp4": functools.partial(write, bt709=True),
    "ntsc.mp4": functools.partial(write, fps=Fraction(30000, 1001)),
    "fragmented.mp4": functools.partial(write, options={"g": "12"}, container_options={"movflags": "frag_keyframe+empty_moov"}),
    "full_range.mp4": functools.partial(write, pix_fmt="yuvj420p"),
    "interlaced.mp4": functools.partial(write, options={"x264-params": "tff=1"}),
    "interlaced_ten_bit.mkv": functools.partial(write, pix_fmt="yuv422p10le", options={"x264-params": "tff=1"}),
    "resized.ts": _write_resized,
    "short.mp4": functools.partial(write, frames=30),
}

# Slow to read, for what only shows in the long run.
LONG: dict[str, Callable[[Path], object]] = {"long.mp4": _write_long}

# Those that are no video, or not all of one.
BROKEN: dict[str, Callable[[Path], object]] = {
    "sound.mp4": _write_sound,
    "empty.mp4": Path.touch,
    "text.mp4": lambda path: path.write_text("Not a video at all, whatever its name says.\n" * 40),
    "playlist.mp4": _write_playlist,
    "no_frames.mp4": functools.partial(write, frames=0),
    "no_frames.mkv": functools.partial(write, frames=0),
    "cut_head_last.mp4": functools.partial(_write_cut, keep=0.6),
    "cut_head_first.mp4": functools.partial(_write_cut, keep=0.6, movflags="faststart"),
    "cut_fragmented.mp4": functools.partial(_write_cut, keep=0.6, movflags="frag_keyframe+empty_moov"),
    "cut.mkv": functools.partial(_write_cut, keep=0.6),
    "flipped.mp4": _write_flipped,
}
