"""Tests of the decoder on files of every kind: the right frames under the right numbers, or a reason."""

import csv
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import media
from tsp_jax.video import decoding, scanning

RESIZED_FROM = 30  # the frame of resized.ts at which its size changes
HIDDEN = [number for number in range(60) if number % 5 or not number]  # those that vp8_hidden.webm shows

# What a scan tells, where it is not 60 frames of H.264 at 30 fps with timestamps, upright and untrimmed.
SCANNED: dict[str, dict] = {
    "odd_vp9.webm": {"codec": "vp9"},
    "rotated.mp4": {"rotation_deg": 90},
    "uneven.mp4": {"fps": 59 / 2.524},  # its last frame begins after 2.524 s
    "uneven.mkv": {"fps": 60 / 2.552},  # the header says 25; its last frame begins after 2.524 s
    "hevc.mp4": {"codec": "hevc"},
    "hevc_ten_bit.mkv": {"codec": "hevc"},
    "vp9.webm": {"codec": "vp9"},
    "vp8.webm": {"codec": "vp8"},
    "vp8_hidden.webm": {"codec": "vp8"},
    "av1.mp4": {"codec": "av1"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4_b_frames.avi": {"codec": "mpeg4"},
    "h264_b_frames.avi": {"dated": False},
    "program.mpg": {"codec": "mpeg2video"},
    "late.mp4": {"trimmed": True},
    "trimmed.mp4": {"trimmed": True, "frames": 50},
    "fragmented.mp4": {"trimmed": True},
    "full_hd.mp4": {"frames": 20},
    "名前 видео.mp4": {"fps": 15.0},
    "ntsc.mp4": {"fps": 30000 / 1001},
    "short.mp4": {"frames": 30},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives one of the test media by name; each is written once."""
    folder = tmp_path_factory.mktemp("media")
    paths: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in paths:
            paths[name] = media.make(folder, name)
        return paths[name]

    return make


def every_frame(scan: scanning.Scan) -> np.ndarray:
    return np.ones(len(scan.timeline.pts), bool)


def read(scan: scanning.Scan, decoder: decoding.Decoder = "pyav") -> tuple[dict[int, np.ndarray], decoding.Reader]:
    """All frames by number, and the reader after its pass."""
    reader = decoding.Reader(scan, every_frame(scan), decoder)
    return dict(reader), reader


def decoded_plainly(path: Path) -> list[np.ndarray]:
    """RGB pictures of the whole file by timestamp; by BT.601 and without regard to fields, as the original converts them."""
    with av.open(str(path)) as container:
        frames = [(frame.pts, order, frame) for order, frame in enumerate(container.decode(video=0))]
    if path.suffix != ".avi":
        frames.sort(key=lambda item: item[0])
    pictures = []
    for _, _, frame in frames:
        if frame.interlaced_frame:
            frame = av.VideoFrame.from_ndarray(frame.to_ndarray(), format=frame.format.name)
        pictures.append(frame.reformat(format="rgb24", src_colorspace="ITU601").to_ndarray())
    return pictures


def shown_numbers(name: str) -> list[int]:
    """The numbers that a file's pictures spell."""
    if name == "vp8_hidden.webm":
        return HIDDEN
    if name == "trimmed.mp4":
        return list(range(10, 60))
    return list(range(SCANNED.get(name, {}).get("frames", 60)))


# Scan


@pytest.mark.parametrize("name", media.WHOLE)
def test_scan_tells_what_the_file_holds(made: Callable[[str], Path], name: str) -> None:
    scan = scanning.scan(made(name))
    expected = {"frames": 60, "fps": 30.0, "dated": True, "codec": "h264", "rotation_deg": 0, "trimmed": False}
    expected |= SCANNED.get(name, {})
    assert len(scan.timeline.pts) == expected["frames"]
    assert scan.timeline.fps == pytest.approx(expected["fps"], rel=1e-3)
    assert np.all(np.diff(scan.timeline.pts) > 0) and scan.timeline.pts.dtype == np.int64
    for field in ("dated", "codec", "rotation_deg", "trimmed"):
        assert getattr(scan, field) == expected[field], field
    assert scan.path == made(name)


def test_frames_are_dated_by_the_files_timestamps(made: Callable[[str], Path]) -> None:
    gaps_ms = random.Random(0).choices(range(20, 61), k=59)  # as the writer drew them
    for name in ("uneven.mp4", "uneven.mkv"):
        timeline = scanning.scan(made(name)).timeline
        shown_ms = timeline.pts * float(timeline.time_base) * 1000
        np.testing.assert_allclose(shown_ms, np.cumsum([0, *gaps_ms]), atol=1e-6)
    for name in ("late.mp4", "late.mkv"):
        timeline = scanning.scan(made(name)).timeline
        assert timeline.pts[0] * timeline.time_base == Fraction(3, 2)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sound.mp4", "the file has no video stream"),
        ("empty.mp4", "the file is empty"),
        ("text.mp4", "not a video that FFmpeg can open, or cut off: Invalid data"),
        ("playlist.mp4", "not a video that FFmpeg can open, or cut off: Invalid data"),
        ("no_frames.mp4", "the file has no video stream"),  # the muxer leaves a stream without packets out
        ("no_frames.mkv", "not a video that FFmpeg can open, or cut off: End of file"),
        ("cut_head_last.mp4", "not a video that FFmpeg can open, or cut off: Invalid data"),
    ],
)
def test_file_that_is_no_video_is_refused_with_a_reason(made: Callable[[str], Path], name: str, reason: str) -> None:
    with pytest.raises(scanning.VideoError, match=f"^{re.escape(reason)}"):
        scanning.scan(made(name))


def test_path_that_is_no_file_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(scanning.VideoError, match="no such file"):
        scanning.scan(tmp_path / "missing.mp4")
    with pytest.raises(scanning.VideoError, match="not a file"):
        scanning.scan(tmp_path)


def test_playlist_is_not_followed(made: Callable[[str], Path], tmp_path: Path) -> None:
    """FFmpeg by itself opens what a playlist names, here another folder's video."""
    stream = made("stream.ts")
    playlist = tmp_path / "playlist.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{stream}\n#EXT-X-ENDLIST\n")
    concatenation = tmp_path / "list.ffconcat"
    concatenation.write_text(f"ffconcat version 1.0\nfile {stream}\n")
    for path, options in ((playlist, {}), (concatenation, {"safe": "0"})):
        with av.open(str(path), options=options) as container:
            assert container.streams.video
        with pytest.raises(scanning.VideoError, match=r"^not a video"):
            scanning.scan(path)


def test_names_that_ffmpeg_would_take_for_protocols_are_files(
    made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("12:30 match.mp4", "http:x.mp4", "data:x.mp4", "frame%03d.mp4", "-y.mp4", "a|b?.mp4"):
        os.link(made("short.mp4"), name)
        frames, _ = read(scanning.scan(name))
        assert len(frames) == 30


def test_name_may_be_any_bytes(made: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    try:
        os.link(made("short.mp4"), path)
    except OSError:
        pytest.skip("the file system takes UTF-8 names alone")
    scan = scanning.scan(path)
    assert len(read(scan)[0]) == 30
    with pytest.raises(scanning.VideoError, match="a name that is not UTF-8"):
        decoding.Reader(scan, every_frame(scan), "decord")


def test_frames_too_large_and_too_many_are_refused(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(scanning, "MAX_PIXELS", 96 * 64 - 1)
        with pytest.raises(scanning.VideoError, match="frames of 96x64 pixels; at most 6143"):
            scanning.scan(made("short.mp4"))
    monkeypatch.setattr(scanning, "_MAX_FRAMES", 29)
    with pytest.raises(scanning.VideoError, match="more than 29 frames"):
        scanning.scan(made("short.mp4"))


# Reader


@pytest.mark.parametrize("name", media.WHOLE)
def test_reader_gives_every_frame_under_its_number(made: Callable[[str], Path], name: str) -> None:
    path = made(name)
    scan = scanning.scan(path)
    if name == "vp8_hidden.webm":
        scan = scanning.rescan(scan)
    reader = decoding.Reader(scan, every_frame(scan))
    given = list(reader)
    assert [number for number, _ in given] == list(range(len(scan.timeline.pts)))
    assert [media.number(picture) for _, picture in given] == shown_numbers(name)
    assert (reader.decoded, reader.damage, reader.misdated) == (len(given), "", False)
    plainly = decoded_plainly(path)
    assert len(plainly) == len(given)
    for (number, picture), expected in zip(given, plainly, strict=True):
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, expected, err_msg=f"frame {number}")


@pytest.mark.parametrize("name", ["plain.mp4", "open_gop.mp4", "h264_b_frames.avi", "av1.mp4"])
def test_reader_gives_only_what_is_needed_and_stops_after_it(made: Callable[[str], Path], name: str) -> None:
    scan = scanning.scan(made(name))
    needed = np.zeros(60, bool)
    needed[[0, 3, 4, 11, 20]] = True
    reader = decoding.Reader(scan, needed)
    given = list(reader)
    assert [number for number, _ in given] == [0, 3, 4, 11, 20]
    assert [media.number(picture) for _, picture in given] == [0, 3, 4, 11, 20]
    assert 21 <= reader.decoded <= 21 + 17  # what B-frames hold back
    assert not reader.damage and not reader.misdated


@pytest.mark.parametrize("name", media.WHOLE)
def test_frames_do_not_depend_on_which_others_are_needed(made: Callable[[str], Path], name: str) -> None:
    """Frames that nobody needs and no frame refers to are not decoded, where their packets tell."""
    scan = scanning.scan(made(name))
    if name == "vp8_hidden.webm":
        scan = scanning.rescan(scan)
    whole, _ = read(scan)
    count = len(scan.timeline.pts)
    draw = np.random.default_rng(0)
    for needed in (
        np.arange(count) % 2 == 0,
        np.arange(count) % 2 == 1,
        draw.random(count) < 0.1,
        np.arange(count) == count - 1,
    ):
        reader = decoding.Reader(scan, needed)
        given = dict(reader)
        assert list(given) == np.flatnonzero(needed).tolist()
        for number, picture in given.items():
            np.testing.assert_array_equal(picture, whole[number], err_msg=f"frame {number}")
        assert (reader.damage, reader.misdated) == ("", False)
        if name in ("b_frames.mp4", "matroska.mkv", "ntsc.mp4", "fragmented.mp4"):
            assert reader.decoded < 55


def test_reader_that_needs_nothing_opens_nothing(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    scan = scanning.scan(made("plain.mp4"))
    monkeypatch.setattr(scanning, "open_container", lambda path: pytest.fail("opened"))
    reader = decoding.Reader(scan, np.zeros(60, bool))
    assert list(reader) == []
    assert (reader.decoded, reader.damage, reader.misdated) == (0, "", False)


def test_reader_that_is_left_closes_its_file(made: Callable[[str], Path]) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("open files are not told here")
    scan = scanning.scan(made("plain.mp4"))
    before = len(list(descriptors.iterdir()))
    frames = iter(decoding.Reader(scan, every_frame(scan)))
    next(frames)
    assert len(list(descriptors.iterdir())) == before + 1
    frames.close()
    assert len(list(descriptors.iterdir())) == before


def test_unknown_decoder_is_refused(made: Callable[[str], Path]) -> None:
    scan = scanning.scan(made("plain.mp4"))
    with pytest.raises(ValueError, match="decoder is one of"):
        decoding.Reader(scan, every_frame(scan), "opencv")  # type: ignore[arg-type]


def test_hidden_frames_are_noticed_and_rescan_dates_the_others(made: Callable[[str], Path]) -> None:
    """VP8 keeps reference frames that are never shown in packets of their own, with timestamps."""
    scan = scanning.scan(made("vp8_hidden.webm"))
    assert len(scan.timeline.pts) == 60
    _, reader = read(scan)
    assert reader.misdated and not reader.damage
    again = scanning.rescan(scan)
    assert again.timeline.pts.tolist() == scan.timeline.pts[HIDDEN].tolist()
    assert (again.timeline.fps, again.timeline.time_base) == (len(HIDDEN) / 2, scan.timeline.time_base)  # in two seconds
    frames, reader = read(again)
    assert [media.number(frames[number]) for number in range(len(HIDDEN))] == HIDDEN
    assert not reader.misdated


@pytest.mark.parametrize("name", ["b_frames.mp4", "uneven.mkv", "mpeg4_b_frames.avi", "h264_b_frames.avi", "trimmed.mp4"])
def test_rescan_of_a_file_that_needs_none_changes_nothing(made: Callable[[str], Path], name: str) -> None:
    scan = scanning.scan(made(name))
    again = scanning.rescan(scan)
    np.testing.assert_array_equal(again.timeline.pts, scan.timeline.pts)
    assert again.dated == scan.dated


def test_colours_are_bt601_whatever_the_tag(made: Callable[[str], Path]) -> None:
    """Against the formula, from the stored luma and chroma."""
    path = made("bt709.mp4")
    frames, _ = read(scanning.scan(path))
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0))
    assert stored.colorspace == 1  # BT.709
    luma, blue, red = (np.asarray(plane, np.float64) for plane in np.split(stored.to_ndarray().reshape(-1), [6144, 7680]))
    luma = 255 / 219 * (luma.reshape(64, 96) - 16)
    blue, red = (255 / 224 * (plane.reshape(32, 48).repeat(2, 0).repeat(2, 1) - 128) for plane in (blue, red))

    def rgb(red_share: float, blue_share: float) -> np.ndarray:
        green_share = 1 - red_share - blue_share
        r, b = luma + 2 * (1 - red_share) * red, luma + 2 * (1 - blue_share) * blue
        return np.clip(np.stack([r, (luma - red_share * r - blue_share * b) / green_share, b], -1), 0, 255)

    away = {name: np.abs(frames[0] - rgb(*shares)) for name, shares in (("601", (0.299, 0.114)), ("709", (0.2126, 0.0722)))}
    assert away["601"].max() < 3  # FFmpeg computes in integers
    assert away["709"].max() > 8


def test_rotated_picture_is_not_turned(made: Callable[[str], Path]) -> None:
    frames, _ = read(scanning.scan(made("rotated.mp4")))
    assert frames[0].shape == (64, 96, 3)
    assert media.number(frames[7]) == 7


def test_size_may_change_on_the_way(made: Callable[[str], Path]) -> None:
    frames, _ = read(scanning.scan(made("resized.ts")))
    shapes = [frames[number].shape for number in range(60)]
    assert shapes == [(64, 96, 3)] * RESIZED_FROM + [(48, 64, 3)] * (60 - RESIZED_FROM)


@pytest.mark.parametrize("name", ["av1.mp4", "full_hd.mp4", "hevc.mp4"])
def test_reading_starts_no_threads(made: Callable[[str], Path], name: str) -> None:
    """Several videos are read at once, each by one process."""
    threads = Path("/proc/self/task")
    if not threads.is_dir():
        pytest.skip("threads are not told here")
    before = len(list(threads.iterdir()))
    scan = scanning.scan(made(name))
    assert {len(list(threads.iterdir())) for _ in decoding.Reader(scan, every_frame(scan))} == {before}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(made: Callable[[str], Path]) -> None:
    """3,000 frames of 640x360 are 2 GB."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        pytest.skip("memory is not told here")

    def resident_mb() -> float:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    path = made("long.mp4")
    before = resident_mb()
    scan = scanning.scan(path)
    reader = decoding.Reader(scan, every_frame(scan))
    highest = max(resident_mb() for _ in reader)
    assert reader.decoded == 3000
    assert highest - before < 100


# Damage


@pytest.mark.parametrize("name", ["cut_head_first.mp4", "cut_fragmented.mp4"])
def test_cut_file_gives_the_frames_before_the_cut(made: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    scan = scanning.scan(made(name))
    frames, reader = read(scan)
    assert re.fullmatch(r"a packet is cut off, after \d+ frames", reader.damage)
    assert not reader.misdated
    assert len(frames) >= 30
    whole = media.write(tmp_path / "whole.mp4", options={"g": "12"})
    check_equal_to_intact(scan, frames, scanning.scan(whole))
    assert sorted(frames) == list(range(len(frames)))


def check_equal_to_intact(scan: scanning.Scan, frames: dict[int, np.ndarray], intact: scanning.Scan) -> None:
    """Every given frame is the intact file's at the same time from the start."""
    expected = {int(pts): number for number, pts in enumerate(intact.timeline.pts - intact.timeline.pts[0])}
    intact_frames, _ = read(intact)
    for number, picture in frames.items():
        at = int(scan.timeline.pts[number] - scan.timeline.pts[0])
        np.testing.assert_array_equal(picture, intact_frames[expected[at]], err_msg=f"frame {number}")


KINDS_WITH_DAMAGE = {
    "b_frames.mp4": {"options": {"bf": "3", "g": "24", "b-pyramid": "normal"}},
    "cavlc.mp4": {"options": {"bf": "3", "g": "24", "coder": "vlc"}},
    "p_frames.mp4": {"options": {"g": "24"}, "b_frames": 0},
    "many_b_frames.mp4": {
        "options": {"g": "48", "bf": "16", "x264-params": "b-pyramid=none:b-adapt=0:scenecut=0"},
    },
    "open_gop.mp4": {"options": {"bf": "3", "g": "24", "x264-params": "open-gop=1:scenecut=0"}},
    "refresh.mp4": {"options": {"g": "24", "x264-params": "intra-refresh=1"}, "b_frames": 0},
    "stream.ts": {"options": {"bf": "3", "g": "24"}},
    "matroska.mkv": {"options": {"bf": "3", "g": "24"}},
    "h264.avi": {"options": {"bf": "2", "g": "24"}},
    "program.mpg": {"codec": "mpeg2video", "b_frames": 2, "container": "vob", "options": {"b": "800k"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS_WITH_DAMAGE)
def test_no_frame_is_given_that_a_noticed_error_reaches(tmp_path: Path, name: str) -> None:
    """One byte is changed, in 25 places. Of those that the decoder notices, no frame may differ from the intact file's.

    It does not notice all: H.264's arithmetic code, for one, has no redundancy (about a third was seen).
    """
    source = media.write(tmp_path / name, frames=72, **KINDS_WITH_DAMAGE[name])
    intact = scanning.scan(source)
    by_time = dict(zip(intact.timeline.pts.tolist(), read(intact)[0].values(), strict=True))
    assert len(by_time) == 72
    noticed = recovered = 0
    for seed in range(25):
        scan = scanning.scan(media.flipped(tmp_path / f"flipped_{name}", source, seed, count=1, span=(0.05, 0.9)))
        frames, reader = read(scan)
        some = np.arange(len(scan.timeline.pts)) % 3 == 0
        reader_of_some = decoding.Reader(scan, some)
        frames_of_some = dict(reader_of_some)
        assert frames_of_some.keys() >= {number for number in frames if some[number]}
        if reader_of_some.damage:
            assert reader_of_some.damage == reader.damage
            for number, picture in frames_of_some.items():
                expected = by_time[int(scan.timeline.pts[number])]
                np.testing.assert_array_equal(picture, expected, err_msg=f"frame {number} of some, seed {seed}")
        if not reader.damage:
            continue
        noticed += 1
        for number, picture in frames.items():
            expected = by_time[int(scan.timeline.pts[number])]
            np.testing.assert_array_equal(picture, expected, err_msg=f"frame {number}, seed {seed}")
        assert len(frames) < 72
        lost = set(range(72)) - set(frames)
        recovered += max(frames, default=0) > min(lost)
    assert noticed >= 2
    if name not in ("refresh.mp4", "h264.avi"):  # no key frame in the one, no timestamps to go on by in the other
        assert recovered


@pytest.mark.parametrize("undecodable", [False, True])
def test_error_spoils_what_is_decoded_after_it_until_a_key_frame(tmp_path: Path, undecodable: bool) -> None:
    """Each packet is damaged in turn: half of it is zero and the decoder marks its frame, or it does not decode at all.

    Some frames are shown before the damaged one but decoded after it, others the other way round.
    """
    path = media.write(tmp_path / "whole.mp4", options={"bf": "3", "g": "24", "coder": "vlc"}, frames=48)
    intact = scanning.scan(path)
    by_number, _ = read(intact)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    numbers = np.searchsorted(intact.timeline.pts, [packet.pts for packet in packets]).tolist()
    key_places = [place for place, packet in enumerate(packets) if packet.is_keyframe]
    assert len(key_places) == 2
    data = path.read_bytes()
    shown_before = 0
    for place, packet in list(enumerate(packets))[1:]:
        damaged = bytearray(data)
        if undecodable:
            damaged[packet.pos : packet.pos + 4] = b"\xff" * 4  # the length of what follows
        else:
            damaged[packet.pos + packet.size // 2 : packet.pos + packet.size] = bytes(packet.size - packet.size // 2)
        path.write_bytes(damaged)
        frames, reader = read(scanning.scan(path))
        assert reader.damage
        for number, picture in frames.items():
            np.testing.assert_array_equal(picture, by_number[number], err_msg=f"frame {number}, packet {place}")
        if undecodable:  # the original stops there, with what came out
            count = int(re.search(r"after (\d+) frames", reader.damage)[1])
            assert place - 3 <= count <= place
            before = set(range(count))
        else:
            before = set(numbers[:place])
        mended = next((key for key in key_places if key > place), len(packets))
        after = {number for number in numbers[mended:] if number >= numbers[mended]}  # leading B-frames refer to what is lost
        assert set(frames) == before | after, f"packet {place}"
        shown_before += not before.issuperset(range(numbers[place]))
    assert shown_before


def test_frame_is_no_key_frame_by_the_decoders_word_alone(tmp_path: Path) -> None:
    """AV1's decoder calls frames so that a damaged stream made it repeat: here there is but one, the first."""
    source = media.write(
        tmp_path / "av1.mp4", codec="libsvtav1", options={"preset": "11", "crf": "30", "svtav1-params": "lp=1"}
    )
    noticed = 0
    for seed in range(25):
        scan = scanning.scan(media.flipped(tmp_path / "flipped.mp4", source, seed, count=1, span=(0.05, 0.9)))
        frames, reader = read(scan)
        if reader.damage:
            noticed += 1
            before = int(re.search(r"after (\d+) frames", reader.damage)[1])
            assert all(number < before for number in frames)
    assert noticed


@pytest.mark.parametrize("filling", [b"\0\0", b"\1\x80"])
def test_undated_frames_go_on_after_damage_where_their_times_are_known(tmp_path: Path, filling: bytes) -> None:
    """A lost frame would shift all that follow, but the place of a key frame's packet is its number.

    Not where a packet ends in zeros: FFmpeg takes it and the next one for a single packet.
    """
    path = media.write(tmp_path / "h264.avi", options={"bf": "2", "g": "12", "coder": "vlc"})
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][30]
        position, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    end = position + 8 + size if filling == b"\0\0" else position + 8 + 40 + (size - 60) // 2 * 2
    start = position + 8 + 40  # behind the chunk's head
    data[start:end] = (filling * size)[: end - start]
    path.write_bytes(data)
    scan = scanning.scan(path)
    assert not scan.dated
    frames, reader = read(scan)
    assert reader.damage and not reader.misdated
    shown = {media.number(picture): int(scan.timeline.pts[number]) for number, picture in frames.items()}
    assert shown == {number: number for number in shown}
    assert set(range(24)) <= set(shown) and not {30, 33} <= set(shown)
    assert (set(range(36, 60)) <= set(shown)) == (filling != b"\0\0")


class Faulty:
    """A container whose packets end in an error."""

    def __init__(self, container: av.container.InputContainer, error: Exception, after: int) -> None:
        self.container, self.error, self.after = container, error, after
        self.streams, self.format, self.name = container.streams, container.format, container.name
        self.start_time, self.duration = container.start_time, container.duration

    def __enter__(self) -> "Faulty":
        return self

    def __exit__(self, *error: object) -> None:
        self.container.close()

    def demux(self, stream: av.VideoStream) -> Iterator[av.Packet]:
        for order, packet in enumerate(packet for packet in self.container.demux(stream) if packet.size):
            if order == self.after:
                break
            yield packet
        raise self.error


@pytest.mark.wrong_arguments
def test_stream_that_appears_late_does_not_end_the_video(made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """PyAV 18 raises an IndexError at the end of some MPEG streams, before the decoder gave what it holds."""
    whole = scanning.open_container
    monkeypatch.setattr(scanning, "open_container", lambda path: Faulty(whole(path), IndexError("list index out of range"), 60))
    scan = scanning.scan(made("b_frames.mp4"))
    frames, reader = read(scan)
    assert len(frames) == len(scan.timeline.pts) == 60
    assert not reader.damage
    assert len(scanning.rescan(scan).timeline.pts) == 60


@pytest.mark.wrong_arguments
def test_file_that_breaks_off_between_packets_gives_the_frames_so_far(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scanning.open_container
    error = av.error.InvalidDataError(1094995529, "Input/output error")
    monkeypatch.setattr(scanning, "open_container", lambda path: Faulty(whole(path), error, 33))
    scan = scanning.scan(made("b_frames.mp4"))
    frames, reader = read(scan)
    assert len(frames) == len(scan.timeline.pts) == 33  # those that the decoder held too
    assert reader.damage.startswith("Input/output error, after ")
    monkeypatch.setattr(scanning, "open_container", lambda path: Faulty(whole(path), error, 0))
    with pytest.raises(scanning.VideoError, match="no packet can be read: Input/output error"):
        scanning.scan(made("b_frames.mp4"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [("b_frames.mp4", 100), ("fragmented.mp4", 50), ("matroska.mkv", 50), ("stream.ts", 50), ("mpeg4_b_frames.avi", 50)],
)
def test_any_bytes_end_in_frames_or_a_reason(made: Callable[[str], Path], tmp_path: Path, name: str, count: int) -> None:
    data = made(name).read_bytes()
    path = tmp_path / f"mutated{Path(name).suffix}"
    for seed in range(count):
        draw = random.Random(seed)
        mutated = bytearray(data)
        for _ in range(draw.randrange(1, 12)):
            # The ends, where the formats keep their tables, as often as the middle.
            ends = (draw.randrange(min(400, len(data))), len(data) - 1 - draw.randrange(min(2500, len(data))))
            mutated[draw.choice((*ends, draw.randrange(len(data)), draw.randrange(len(data))))] = draw.randrange(256)
        if seed % 10 == 9:
            del mutated[draw.randrange(len(mutated)) :]
        path.write_bytes(mutated)
        begin = time.monotonic()
        try:
            scan = scanning.scan(path)
            for _ in range(2):
                numbers, reader = [], decoding.Reader(scan, every_frame(scan))
                for number, picture in reader:
                    numbers.append(number)
                    assert picture.ndim == 3 and picture.shape[2] == 3
                assert numbers == sorted(set(numbers))
                if not reader.misdated:
                    break
                scan = scanning.rescan(scan)
            if len(numbers) < len(scan.timeline.pts):
                assert reader.damage or reader.misdated
        except scanning.VideoError as error:
            assert str(error)
        assert time.monotonic() - begin < 20


# decord

READ_BY_DECORD = [
    "plain.mp4",
    "b_frames.mp4",
    "open_gop.mp4",
    "odd_444.mp4",
    "wide.mp4",
    "uneven.mp4",
    "uneven.mkv",
    "hevc.mp4",
    "vp9.webm",
    "matroska.mkv",
    "late.mkv",
    "full_hd.mp4",
    "名前 видео.mp4",
    "ntsc.mp4",
    "full_range.mp4",
    "interlaced.mp4",
    "short.mp4",
]
REFUSED_FOR_DECORD = {
    "odd_vp9.webm": "an odd height",
    "rotated.mp4": "a rotation (90 degrees)",
    "ten_bit.mp4": "more than 8 bits a sample",
    "hevc_ten_bit.mkv": "more than 8 bits a sample",
    "interlaced_ten_bit.mkv": "more than 8 bits a sample",
    "av1.mp4": "AV1",
    "vp8.webm": "VP8's hidden frames",
    "vp8_hidden.webm": "VP8's hidden frames",
    "mpeg4.avi": "AVI's order of frames",
    "mpeg4_b_frames.avi": "AVI's order of frames",
    "h264_b_frames.avi": "AVI's order of frames",
    "stream.ts": "an MPEG stream",
    "resized.ts": "an MPEG stream",
    "program.mpg": "an MPEG stream",
    "late.mp4": "an edit list",
    "trimmed.mp4": "an edit list",
    "fragmented.mp4": "an edit list",
    "bt709.mp4": "colours other than BT.601's",
}


def test_every_kind_is_compared_with_decord_or_refused() -> None:
    assert sorted([*READ_BY_DECORD, *REFUSED_FOR_DECORD]) == sorted(media.WHOLE)


@pytest.mark.parametrize("name", READ_BY_DECORD)
def test_decord_gives_the_same_pictures(made: Callable[[str], Path], name: str) -> None:
    pytest.importorskip("decord")
    scan = scanning.scan(made(name))
    expected, _ = read(scan)
    frames, reader = read(scan, "decord")
    assert list(frames) == list(expected)
    assert (reader.decoded, reader.damage, reader.misdated) == (len(frames), "", False)
    for number, picture in frames.items():
        np.testing.assert_array_equal(picture, expected[number], err_msg=f"frame {number}")


@pytest.mark.parametrize("name", REFUSED_FOR_DECORD)
def test_decord_is_refused_what_it_reads_wrongly(made: Callable[[str], Path], name: str) -> None:
    scan = scanning.scan(made(name))
    with pytest.raises(scanning.VideoError, match=re.escape(f"{REFUSED_FOR_DECORD[name]} wrongly; use --decoder pyav")):
        decoding.Reader(scan, every_frame(scan), "decord")


def test_decord_says_why_it_gives_nothing(made: Callable[[str], Path]) -> None:
    pytest.importorskip("decord")
    frames, reader = read(scanning.scan(made("cut_head_first.mp4")), "decord")
    assert not frames and not reader.misdated
    assert re.fullmatch(r"decord: Error: av_read_frame failed with \d+, after 0 frames", reader.damage)


# Real videos


def test_real_videos_have_the_frames_that_the_original_counts(shared: Path) -> None:
    with (shared / "reference" / "metadata.csv").open(newline="") as file:
        rows = {row["filename"]: row for row in csv.DictReader(file)}
    for name, row in rows.items():
        scan = scanning.scan(shared / "videos" / name)
        assert scan.timeline.fps == pytest.approx(float(row["fps"]), rel=1e-6), name
        frames, reader = read(scan)
        assert not reader.misdated
        if name == "corrupted.mp4":
            continue
        assert len(frames) == len(scan.timeline.pts) == int(row["video-frames"]), name
        assert not reader.damage


def test_real_damage_leaves_the_frames_before_it(shared: Path) -> None:
    """One packet of corrupted.mp4 does not decode, after 28 frames came out; the original reads these."""
    scan = scanning.scan(shared / "videos" / "corrupted.mp4")
    assert len(scan.timeline.pts) == 50
    frames, reader = read(scan)
    assert sorted(frames) == list(range(28))
    for step in range(1, 28):  # whatever is left out before the error, it costs the same frames
        for first in range(step):
            needed = np.arange(50) % step == first
            needed[28:] = False
            reader_of_some = decoding.Reader(scan, needed)
            given = dict(reader_of_some)
            assert list(given) == np.flatnonzero(needed).tolist()
            for number, picture in given.items():
                np.testing.assert_array_equal(picture, frames[number])
    assert reader.damage == "Invalid data found when processing input, after 28 frames"
    assert not reader.misdated
