"""Tests of clocks that disagree: joined, repeated, undated and holed files give each frame at its second, in every command."""

import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import media
from data_builders import measurement
from tsp_jax.video import decoding, scanning, writing


def seen(path: Path) -> tuple[scanning.Scan, list[int], list[float]]:
    """Returns the scan, the numbers that the pictures spell, and the seconds at which they are shown after the first one."""
    scan = scanning.scan(path)
    reader = decoding.Reader(scan, np.ones(len(scan.timeline.pts), bool))
    given = dict(reader)
    if reader.misdated:
        scan = scanning.rescan(scan)
        given = dict(decoding.Reader(scan, np.ones(len(scan.timeline.pts), bool)))
    seconds = (scan.timeline.pts - scan.start) * float(scan.timeline.time_base)
    return scan, [media.number(picture) for picture in given.values()], [float(seconds[number]) for number in given]


def check(path: Path, numbers: Sequence[int], seconds: Sequence[float], duration_sec: float, within_sec: float = 0.002) -> str:
    """Checks what scan, reader, metadata and standardize say of a file; returns the scan's notes and fault."""
    scan, found, at_sec = seen(path)
    assert found == list(numbers)
    np.testing.assert_allclose(at_sec, seconds, atol=within_sec)
    assert scan.timeline.duration_sec == pytest.approx(duration_sec, abs=within_sec)
    measured = measurement.measure(path, path.name).metadata
    assert (measured.num_frames, measured.fps) == (len(numbers), scan.timeline.fps)
    assert measured.video_duration_sec == pytest.approx(duration_sec, abs=1.5 / measured.fps)
    written = writing.resample(path, path.with_name("standard.mp4"), 30)
    assert written.frames == pytest.approx(30 * duration_sec, abs=1.1)
    assert (written.problem, written.notes) == (scan.fault, scan.notes)
    return " ".join((*scan.notes, scan.fault))


def even(count: int, fps: float) -> list[float]:
    return [number / fps for number in range(count)]


@pytest.mark.parametrize("second_start", [0, 3600, 95_000])
@pytest.mark.parametrize(
    ("suffix", "how"),
    [
        (".ts", {"options": {"bf": "3"}}),
        (".ts", {"fps": 25, "codec": "mpeg2video", "b_frames": 2, "options": {"b": "800k"}}),
        (".mpg", {"fps": 25, "codec": "mpeg2video", "container": "vob", "options": {"b": "800k"}}),
        (".ts", {"codec": "libx265", "fps": 60}),
    ],
)
def test_joined_recordings_follow_each_other(suffix: str, how: dict, second_start: int, tmp_path: Path):
    fps = how.get("fps", 30)
    parts = []
    for part, start in enumerate((0, second_start)):
        pts = range(start * fps, start * fps + 60)
        parts.append(media.write(tmp_path / f"{part}{suffix}", pts=pts, container_options={"muxdelay": "0"}, **how))
    joined = tmp_path / f"joined{suffix}"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    said = check(joined, [*range(60), *range(60)], even(120, fps), 120 / fps)
    assert f"recordings joined at {60 / fps:.2f} s" in said


@pytest.mark.parametrize("hole", [0, 90])
@pytest.mark.parametrize("how", [{"options": {"bf": "0"}}, {"options": {"bf": "2"}}, {"codec": "libx265"}], ids=str)
def test_joined_segments_of_one_clock_are_whole(how: dict, hole: int, tmp_path: Path):
    """As downloaded streams are. The packets' counters restart, for which FFmpeg takes the frame before for damaged."""
    joined, starts = tmp_path / "joined.ts", [300 + part * (60 + hole) for part in range(3)]
    with open(joined, "wb") as output:
        for start in starts:
            pts = range(start, start + 60)
            options = {"mpegts_copyts": "1"}
            output.write(media.write(tmp_path / "part.ts", pts=pts, container_options=options, **how).read_bytes())
    at_sec = [(start + number - 300) / 30 for start in starts for number in range(60)]
    check(joined, [*range(60)] * 3, at_sec, at_sec[-1] + 1 / 30)
    assert not measurement.measure(joined, "x").damage
    reader = decoding.Reader(scan := scanning.scan(joined), np.arange(180) > 130)
    assert [media.number(picture) for _, picture in reader] == [*range(11, 60)] and scan.dated


def test_frames_that_the_decoder_loses_at_a_joint_keep_their_time(tmp_path: Path):
    """Where the size changes, FFmpeg's MPEG-2 decoder drops the frame that it holds."""
    joined, how = tmp_path / "joined.vob", {"codec": "mpeg2video", "b_frames": 2, "fps": 25, "container": "vob"}
    with open(joined, "wb") as output:
        for size in (media.SIZE, (160, 128), media.SIZE):
            output.write(media.write(tmp_path / "part.vob", size=size, options={"b": "800k"}, **how).read_bytes())
    scan, numbers, at_sec = seen(joined)
    assert numbers == [*range(59), *range(59), *range(60)]
    kept = [(part, number) for part in range(3) for number in range(60 if part == 2 else 59)]
    np.testing.assert_allclose(at_sec, [part * 2.4 + number / 25 for part, number in kept], atol=1e-4)
    assert scan.timeline.duration_sec == pytest.approx(7.2)


def test_joined_recordings_of_other_rates_have_their_length(tmp_path: Path):
    joined = tmp_path / "joined.ts"
    with open(joined, "wb") as output:
        for fps in (30, 24):
            output.write(media.write(tmp_path / "part.ts", fps=fps, size=(160, 4 * fps)).read_bytes())
    check(joined, [*range(60)] * 2, [*even(60, 30), *(2 + at for at in even(60, 24))], 4.5)


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "libx264"), (".flv", "libx264"), (".asf", "msmpeg4"), (".mov", "mpeg4")]
)
def test_a_second_recording_that_is_not_read_is_a_fault(suffix: str, codec: str, tmp_path: Path):
    part = media.write(tmp_path / f"part{suffix}", codec=codec, options={"b": "800k"} if codec != "libx264" else {})
    assert not scanning.scan(part).fault
    joined = tmp_path / f"joined{suffix}"
    joined.write_bytes(2 * part.read_bytes())
    size = part.stat().st_size
    assert f"another recording begins at byte {size} of {2 * size}" in check(joined, range(60), even(60, 30), 2)


def test_joined_avi_of_one_rate_is_read_and_of_two_rates_is_a_fault(tmp_path: Path):
    parts = [
        media.write(tmp_path / f"{fps}.avi", codec="mpeg4", fps=fps, options={"b": "800k"}).read_bytes() for fps in (30, 25)
    ]
    joined = tmp_path / "joined.avi"
    joined.write_bytes(2 * parts[0])
    assert not check(joined, [*range(60)] * 2, even(120, 30), 4)
    joined.write_bytes(parts[0] + parts[1])
    assert f"another recording of another rate begins at byte {len(parts[0])}" in check(
        joined, [*range(60)] * 2, even(120, 30), 4
    )


def test_joined_webm_follow_each_other(tmp_path: Path):
    """A live recording's parts have no lengths, and clusters of the second part count from 0 again."""
    how = {"codec": "libvpx", "options": {"cpu-used": "8", "auto-alt-ref": "0", "b": "500k"}}
    part = media.write(tmp_path / "part.webm", container_options={"live": "1"}, **how)
    joined = tmp_path / "joined.webm"
    joined.write_bytes(2 * part.read_bytes())
    scan, numbers, at_sec = seen(joined)
    assert numbers == [*range(60), *range(60)]
    np.testing.assert_allclose(at_sec, even(120, 30), atol=0.002)
    assert "recordings joined at 2.00 s" in " ".join(scan.notes) and not scan.fault


@pytest.mark.parametrize("count", [2, 3])
def test_joined_matroska_is_read_or_said_to_be_left(count: int, tmp_path: Path):
    part = media.write(tmp_path / "part.mkv")
    joined = tmp_path / "joined.mkv"
    joined.write_bytes(count * part.read_bytes())
    scan, numbers, _ = seen(joined)
    assert (len(numbers) < 60 * count) == ("another recording begins" in scan.fault)


@pytest.mark.parametrize("start_sec", [0.4, 10, 7200, 95_443])
def test_a_clock_may_start_at_any_second(start_sec: float, tmp_path: Path):
    """The last one passes the end of MPEG's clock of 33 bits on the way."""
    pts = [round(30 * start_sec) + number for number in range(90)]
    path = media.write(tmp_path / "x.ts", frames=90, pts=pts, options={"bf": "3"})
    said = check(path, range(90), even(90, 30), 3)
    # FFmpeg counts a clock that is near its end from there backwards.
    assert ("the clock starts at" in said) == (start_sec == 7200)


def test_frames_of_one_time_share_it(tmp_path: Path):
    pts = [0, 40, 80, 80, 120, 160, 160, 160, 200, 240]
    path = media.write(tmp_path / "x.mkv", frames=10, b_frames=0, pts=pts, time_base=Fraction(1, 1000))
    said = check(path, range(10), [0, 0.04, 0.08, 0.1, 0.12, 0.16, 0.173, 0.186, 0.2, 0.24], 0.28, 0.03)
    assert "5 of 10 frames share their time" in said


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("place", [1, 30])
def test_a_long_hole_among_reordered_frames_is_kept(place: int, suffix: str, tmp_path: Path):
    """The frame after the hole may be decoded before the last frames ahead of it, and waits for its time."""
    pts = [number + 240 * (number >= place) for number in range(60)]
    path = media.write(tmp_path / f"x{suffix}", pts=pts, options={"bf": "3"})
    assert "1 hole without frames" in check(path, range(60), [at / 30 for at in pts], 10)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_hole_is_kept(suffix: str, tmp_path: Path):
    pts = [number + 105 * (number >= 30) for number in range(60)]
    path = media.write(tmp_path / f"x{suffix}", pts=pts, b_frames=0)
    said = check(path, range(60), [at / 30 for at in pts], 5.5)
    assert "1 hole without frames, 3.53 s in all, the longest 3.53 s from 0.97 s on" in said


def test_a_leap_longer_than_any_hole_is_a_fault(tmp_path: Path):
    pts = [number + 30 * 7200 * (number >= 30) for number in range(60)]
    path = media.write(tmp_path / "x.mkv", pts=pts, b_frames=0)
    assert "the clock leaps ahead by 7200.00 s at 1.00 s" in check(path, range(60), even(60, 30), 2, 0.003)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize(("fps", "every"), [(30, 2), (24, 2), (25, 1), (60, 3)])
def test_avi_with_empty_chunks_is_dated_by_its_chunks(codec: str, fps: int, every: int, tmp_path: Path):
    path = media.write(
        tmp_path / "x.avi",
        codec=codec,
        fps=fps * every,
        b_frames=2,
        options={"b": "800k"} if codec == "mpeg4" else {},
        pts=[every * number for number in range(60)],
    )
    check(path, range(60), even(60, fps), 60 / fps, 1.1 * (every - 1) / (fps * every) + 0.001)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_avi_with_irregular_chunks_is_dated_by_them(codec: str, tmp_path: Path):
    steps = random.Random(1).choices([1, 1, 1, 2, 5], k=59)
    pts = np.cumsum([0, *steps]).tolist()
    options = {"b": "800k"} if codec == "mpeg4" else {"bf": "0"}
    path = media.write(tmp_path / "x.avi", codec=codec, fps=30, pts=pts, b_frames=0, options=options)
    check(path, range(60), [at / 30 for at in pts], (pts[-1] + 1) / 30)


@pytest.mark.parametrize("fps", [25, Fraction(60000, 1001)], ids=str)
@pytest.mark.parametrize(("codec", "container"), [("libx264", "h264"), ("libx265", "hevc"), ("mpeg4", "m4v")])
def test_raw_streams_have_the_rate_that_they_say(codec: str, container: str, fps: Fraction | int, tmp_path: Path):
    path = media.write(tmp_path / "x.raw", codec=codec, container=container, fps=fps)
    check(path, range(60), even(60, float(fps)), float(60 / fps))


@pytest.mark.parametrize(("slow", "suffix"), [(5, ".webm"), (1, ".mkv")])
def test_a_recording_that_slows_down_has_its_length(slow: int, suffix: str, tmp_path: Path):
    """As browsers write it: no duration, no rate, and the end cannot be known from the first seconds."""
    pts = [round(1000 * number / 30) for number in range(60)]
    pts += [2000 + round(1000 * number / slow) for number in range(30)]
    path = media.write(
        tmp_path / f"x{suffix}",
        codec="libvpx",
        frames=90,
        pts=pts,
        time_base=Fraction(1, 1000),
        container="webm",
        container_options={"live": "1"},
        options={"cpu-used": "8", "auto-alt-ref": "0", "b": "500k"},
    )
    check(path, range(90), [at / 1000 for at in pts], 2 + 30 / slow)


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("codec", ["mjpeg", "png"])
def test_covers_are_passed_over(codec: str, place: str, tmp_path: Path):
    source = media.write(tmp_path / "source.mp4")
    path = tmp_path / "x.mp4"
    with av.open(str(source)) as video, av.open(str(path), "w") as output:
        picture = av.CodecContext.create(codec, "w")
        picture.width, picture.height, picture.time_base = *media.SIZE, Fraction(1, 1)
        picture.pix_fmt = "yuvj420p" if codec == "mjpeg" else "rgb24"
        frame = av.VideoFrame.from_ndarray(media.picture(7), format="rgb24").reformat(format=picture.pix_fmt)
        (cover,) = [*picture.encode(frame), *picture.encode(None)]

        def add_cover() -> av.VideoStream:
            stream = output.add_stream(codec, rate=1)
            stream.width, stream.height, stream.pix_fmt = *media.SIZE, picture.pix_fmt
            stream.disposition = av.stream.Disposition.attached_pic
            return stream

        attached = add_cover() if place == "first" else None
        copied = output.add_stream_from_template(video.streams.video[0])
        attached = attached or add_cover()
        cover.stream = attached
        output.mux(cover)
        for packet in video.demux(video=0):
            if packet.size:
                packet.stream = copied
                output.mux(packet)
    assert "a cover picture is passed over" in check(path, range(60), even(60, 30), 2)
    expected, _, _ = seen(source)
    np.testing.assert_array_equal(scanning.scan(path).timeline.pts, expected.timeline.pts)


@pytest.mark.parametrize("default", [0, 1])
def test_the_default_one_of_two_tracks_is_read(default: int, tmp_path: Path):
    path = tmp_path / "x.mkv"
    with av.open(str(path), "w") as output:
        streams = []
        for track in range(2):
            stream = output.add_stream("libx264", rate=30, options={"bf": "0"})
            stream.width, stream.height, stream.pix_fmt = *media.SIZE, "yuv420p"
            stream.disposition = av.stream.Disposition.default if track == default else av.stream.Disposition(0)
            streams.append(stream)
        for index in range(30):
            for track, stream in enumerate(streams):
                frame = av.VideoFrame.from_ndarray(media.picture(index + 100 * track), format="rgb24")
                output.mux(stream.encode(frame))
        for stream in streams:
            output.mux(stream.encode(None))
    said = check(path, [number + 100 * default for number in range(30)], even(30, 30), 1)
    assert f"of 2 video tracks, number {default + 1} is read" in said


def test_an_uneven_video_that_breaks_off_has_one_length(tmp_path: Path):
    """The second recording has another codec and rate, which the decoder can't follow."""
    joined = tmp_path / "joined.ts"
    with open(joined, "wb") as output:
        output.write(media.write(tmp_path / "part.ts", frames=90).read_bytes())
        output.write(media.write(tmp_path / "part.ts", codec="mpeg2video", fps=25, frames=200).read_bytes())
    found = measurement.measure(joined, "x")
    assert found.damage and found.metadata.num_frames <= 90
    written = writing.resample(joined, tmp_path / "standard.mp4", 30)
    assert written.cut_short and written.frames / 30 == pytest.approx(found.metadata.video_duration_sec, abs=0.07)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_lost_packet_costs_what_the_decoder_loses(share: float, tmp_path: Path):
    """A packet of MPEG-TS is cut out; key frames come every 0.8 s."""
    whole = media.write(tmp_path / "whole.ts", size=(320, 240), frames=120, options={"g": "24"}, b_frames=0)
    data = whole.read_bytes()
    with av.open(str(whole)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        sizes = [packet.pos for packet in packets if packet.pos and not packet.is_keyframe and packet.size > 500]
    at = sizes[int(share * len(sizes))] // 188 * 188 + 188
    path = tmp_path / "lost.ts"
    path.write_bytes(data[:at] + data[at + 188 :])
    scan, numbers, at_sec = seen(path)
    assert len(scan.timeline.pts) == 120 and set(numbers) < set(range(120))
    np.testing.assert_allclose(at_sec, [number / 30 for number in numbers], atol=1e-4)
    found = measurement.measure(path, "x")
    assert found.damage and found.metadata.num_frames == 120
    written = writing.resample(path, tmp_path / "standard.mp4", 30)
    assert written.frames == 120 and not written.cut_short
    assert f"{120 - len(numbers)} of 120 frames are lost" in written.problem


CASES = {
    "joined_recordings.ts": (360, 30, 12),
    "browser_recording.webm": (240, 40 / 3, 18),
    "cover_jpeg_first.mp4": (240, 30, 8),
    "remuxed_30.avi": (240, 30, 8),
    "lost_packet.ts": (300, 30, 10),
    "dvr_2h.ts": (240, 30, 8),
    "screen_recording.mp4": (256, 16, 16),
}


@pytest.mark.parametrize("name", CASES)
def test_reported_files_have_the_length_that_they_are(name: str, shared: Path):
    path = shared / "cases" / name
    if not path.is_file():
        pytest.skip(f"{path} is not at hand")
    found = measurement.measure(path, name).metadata
    assert (found.num_frames, found.fps, found.video_duration_sec) == pytest.approx(CASES[name], rel=1e-9)
