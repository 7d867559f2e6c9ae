"""Tests of spans: the plan against brute force, and records whose frames are the grid's, or a reason why not."""

import dataclasses
import functools
import itertools
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import media
from data_builders import measurement, spans, synthetic
from tsp_jax import clips, groundtruth, records, transforms
from tsp_jax.video import decoding, scanning

LABELS = ("Jump", "Run")
SIZE = (192, 128)  # legible at 128x171


def row(start: float, end: float, label: str = "Jump", fps: float = 30.0, frames: int = 60, name: str = "a.mp4"):
    region = groundtruth.ACTION if label else groundtruth.NO_ACTION
    return groundtruth.AnnotatedSegment(name.split(".")[0], start, end, label, frames / fps, name, fps, frames, region)


# --------------------------------------------------------------------------------------------------------------- the plan


def random_rows(seed: int) -> list[groundtruth.AnnotatedSegment]:
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(4):
        fps = float(draw.choice([30, 29.97, 30000 / 1001, 25, 24, 15, 10, 60, 12.5]))
        frames = int(draw.integers(10, 1500))
        for _ in range(5):
            start, length = draw.uniform(-2, frames / fps + 1), draw.choice([0.5, 16 / 15, 2, 10, 30])
            label = str(draw.choice(["Jump", "Run", ""]))
            rows.append(row(round(start, 2), round(start, 2) + length, label, fps, frames, f"{number}.mp4"))
    return [rows[i] for i in draw.permutation(len(rows))]


def expected_starts(item: groundtruth.AnnotatedSegment) -> list[int]:
    """Returns the places from the last one not after the clamped segment's start to the last from which a clip ends within."""
    start, end = max(item.start_sec, 0), min(item.end_sec, item.video_duration_sec)
    grid = len(clips.resampled(item.num_frames, item.fps, 15))
    if end - start < 16 / 15 - 1e-6:
        return []
    first = max(place for place in range(grid + 1) if place / 15 <= start + 1e-6)
    last = max(place for place in range(grid + 1) if (place + 16) / 15 <= end + 1e-6)
    first, last = min(first, grid - 16), min(last, grid - 16)
    return list(range(first, max(first, last) + 1)) if grid >= 16 else []


@pytest.mark.parametrize("seed", range(25))
def test_every_allowed_start_is_in_one_span(seed: int):
    rows = random_rows(seed)
    videos, too_short = spans.plan(rows, LABELS)
    found: dict[int, list[int]] = {number: [] for number in range(len(rows))}
    for item in videos:
        for span in item.spans:
            assert rows[span.segment.row].filename == item.filename
            assert 1 <= span.starts <= 64
            assert span.end - span.first == span.starts + 15
            assert span.end - span.first <= 79
            assert span.end <= len(clips.resampled(item.num_frames, item.fps, 15))
            found[span.segment.row] += range(span.first, span.first + span.starts)
    for number, item in enumerate(rows):
        assert sorted(found[number]) == expected_starts(item), item
    assert too_short == sum(not starts for starts in found.values())
    keys = [span.key for item in videos for span in item.spans]
    assert keys == list(range(len(keys)))
    for item in videos:
        assert [span.end for span in item.spans] == sorted(span.end for span in item.spans)


def test_segments_are_clamped_and_labelled():
    """TSP clamps segments to the video, and background has the class number -1."""
    rows = [row(-3, 9, "Run"), row(0.5, 99, ""), row(0.5, 1.5), row(0.4, 0.4 + 16 / 15)]
    (item,), too_short = spans.plan(rows, LABELS)
    assert too_short == 1
    run, background, tight = (span.segment for span in sorted(item.spans, key=lambda span: span.segment.row))
    assert (run.row, run.action, run.temporal_region, run.start_sec, run.end_sec) == (0, 1, 0, 0.0, 2.0)
    assert (run.first, run.starts) == (0, 15)  # 30 frames at 15 fps
    assert (background.row, background.action, background.temporal_region) == (1, -1, 1)
    assert (background.start_sec, background.end_sec, background.first, background.starts) == (0.5, 2.0, 7, 8)
    assert (tight.row, tight.first, tight.starts) == (3, 6, 1)


def test_thumos14_drops_as_many_segments_as_the_original(shared: Path):
    """The released data set code drops 391 of the validation subset's 5,185 segments."""
    labels = groundtruth.read_label_mapping(shared / "annotations" / "thumos14_action_label_mapping.json")
    rows = groundtruth.read_groundtruth(shared / "annotations" / "thumos14_valid_tsp_groundtruth.csv")
    videos, too_short = spans.plan(rows, labels)
    assert (len(rows), too_short, len(videos)) == (5185, 391, 200)
    planned = {span.segment.row for item in videos for span in item.spans}
    assert len(planned) == 5185 - 391


def test_rows_that_do_not_fit_are_named_by_their_lines():
    longer = dataclasses.replace(row(0, 1.5), video_duration_sec=9.0)
    endless = row(0, 1.5, name="c.mp4", frames=1 << 40)
    rows = [row(0, 2), row(0, 2, "Jmup"), row(0, 2, fps=25), row(0, 2, name="b.mp4", frames=61), longer, endless]
    with pytest.raises(ValueError, match="line 3: ") as caught:
        spans.plan(rows, LABELS)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["line 3", "line 4", "line 6", "line 7"]
    assert "'Jmup' is not among the 2 labels" in lines[0]
    assert "another fps or video-frames" in lines[1]
    assert "video-duration 9.0; video-frames / fps is 2.0" in lines[2]
    assert "too many" in lines[3]


def test_labels_of_background_are_not_looked_up():
    background = dataclasses.replace(row(0, 2, ""), action_label="whatever")
    (item,), _ = spans.plan([background], LABELS)
    assert item.spans[0].segment.action == -1


# ------------------------------------------------------------------------------------------------------------ the records


def read(folder: Path, item: spans.Video, codec: records.Codec = "lossless") -> tuple[list, list[spans.Failure]]:
    """Returns the records of a video and its failures, with frames dated as in the build."""
    for dated_by_decoding in (False, True):
        failures: list[spans.Failure] = []
        try:
            found = list(spans.examples(folder, item, codec, failures.append, dated_by_decoding=dated_by_decoding))
        except spans.MisdatedError:
            assert not dated_by_decoding
            continue
        return found, failures
    raise AssertionError


def frames_of(example: spans.Example, codec: records.Codec = "lossless") -> np.ndarray:
    bounds = [0, *example["frame_ends"].tolist()]
    assert bounds[-1] == len(example["frames"])
    out = np.zeros((len(bounds) - 1, 128, 171, 3), np.uint8)
    for frame, (begin, end) in zip(out, itertools.pairwise(bounds), strict=True):
        records.decode_frame(example["frames"][begin:end], codec, frame)
    return out


def measured(path: Path, *parts: tuple[float, float], label: str = "Jump") -> spans.Video:
    """Returns the plan of a measured video with these segments."""
    found = measurement.measure(path, path.name).metadata
    rows = [row(start, end, label, found.fps, found.num_frames, path.name) for start, end in parts]
    (item,), _ = spans.plan(rows, LABELS)
    return item


def check(item: spans.Video, found: list, failures: list[spans.Failure], lost: set[int] = frozenset()) -> None:  # type: ignore
    """Checks that all spans but the lost ones are there, in order, and that their pictures are those of the grid."""
    grid = clips.resampled(item.num_frames, item.fps, 15)
    assert [key for key, _ in found] == [span.key for span in item.spans if span.key not in lost]
    for key, example in found:
        span = item.spans[key - item.spans[0].key]
        assert (example["first_start"], example["num_starts"]) == (span.first, span.starts)
        assert (example["filename"], example["segment"]) == (item.filename, span.segment.row)
        numbers = [media.number(frame) for frame in frames_of(example)]
        assert numbers == grid[span.first : span.end].tolist()
    expected = [(item.filename, s.segment.row, s.first / 15, s.starts) for s in item.spans if s.key in lost]
    assert [(f.filename, f.row, f.start_sec, f.starts) for f in failures] == expected
    assert all(failure.reason for failure in failures)


@pytest.mark.parametrize("fps", [30, Fraction(30000, 1001), 25, 15, 10])
def test_frames_are_those_of_the_15_fps_grid(fps: Fraction | int, tmp_path: Path):
    """The segments overlap, one has several spans, one lies within another, and one is alone at the end."""
    path = media.write(tmp_path / "a.mp4", size=SIZE, fps=fps, frames=round(11 * fps))
    item = measured(path, (0, 9), (0.8, 2.1), (1.5, 10.9), (9.1, 10.2))
    assert len(item.spans) > 5
    check(item, *read(tmp_path, item))


@pytest.mark.parametrize(
    "name", ["vp8_hidden.webm", "vp9.webm", "uneven.mkv", "open_gop.mp4", "trimmed.mp4", "mpeg4_b_frames.avi"]
)
def test_containers_with_frames_of_their_own_mind_give_the_right_ones(name: str, tmp_path: Path):
    """Frames are numbered in the order of decoding, as the pictures of the decoded video show."""
    media.make(tmp_path, name)
    shown = decoded_numbers(tmp_path / name)
    item = measured(tmp_path / name, (0, 99), (0.4, 1.5))
    found, failures = read(tmp_path, item)
    assert not failures
    assert len(found) == len(item.spans) == 2
    grid = clips.resampled(item.num_frames, item.fps, 15)
    if name in ("uneven.mkv", "vp8_hidden.webm"):  # by time
        timeline = scanning.rescan(scanning.scan(tmp_path / name)).timeline
        sec = (timeline.pts - timeline.pts[0]) * float(timeline.time_base)
        grid = np.array([np.flatnonzero(sec <= place / 15 + 0.0016)[-1] for place in range(len(grid))])
    for (_, example), span in zip(found, item.spans, strict=True):
        assert [media.number(frame) for frame in frames_of(example)] == [shown[i] for i in grid[span.first : span.end]]


def decoded_numbers(path: Path) -> list[int]:
    scan = scanning.rescan(scanning.scan(path))
    return [media.number(rgb) for _, rgb in decoding.Reader(scan, np.ones(len(scan.timeline.pts), bool))]


def test_a_span_of_one_start_and_the_last_frame_are_there(tmp_path: Path):
    path = media.write(tmp_path / "a.mp4", size=SIZE, frames=60)
    item = measured(path, (2 - 16 / 15, 2))
    assert [(span.first, span.starts, span.end) for span in item.spans] == [(14, 1, 30)]
    check(item, *read(tmp_path, item))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "a.mp4"
    how = {"movflags": "frag_keyframe+empty_moov"}
    return media.write(path, size=SIZE, frames=330, options={"g": "12"}, container_options=how)


def whole(tmp_path: Path, source: Path) -> tuple[Path, spans.Video]:
    """Returns a copy of a video of 11 s with a key frame every 0.4 s, and a plan with spans all over it."""
    parts = [row(*part, frames=330) for part in [(0, 9), (0.8, 2.1), (1.5, 11), (9.5, 10.9)]]
    (item,), _ = spans.plan(parts, LABELS)
    return Path(shutil.copy(source, tmp_path / "a.mp4")), item


def lost_spans(item: spans.Video, readable: set[int]) -> set[int]:
    grid = clips.resampled(item.num_frames, item.fps, 15)
    return {span.key for span in item.spans if not readable.issuperset(grid[span.first : span.end].tolist())}


def readable_numbers(path: Path, num_frames: int) -> set[int]:
    """Returns the frames that can be read, as their pictures show."""
    scan = scanning.scan(path)
    return {media.number(rgb) for _, rgb in decoding.Reader(scan, np.ones(len(scan.timeline.pts), bool))} & set(
        range(num_frames)
    )


@pytest.mark.parametrize("damage", ["cut", "flipped", "shorter"])
def test_only_spans_that_lack_frames_are_left_out(damage: str, source: Path, tmp_path: Path):
    path, item = whole(tmp_path, source)
    if damage == "shorter":  # the ground truth seems to describe another copy
        media.write(path, size=SIZE, frames=200)
    else:
        change: dict[str, Callable[..., object]] = {
            "cut": functools.partial(media.truncated, keep=0.7),
            "flipped": functools.partial(media.flipped, seed=3, count=1, span=(0.5, 0.51)),
        }
        change[damage](path, source)
    readable = readable_numbers(path, item.num_frames)
    lost = lost_spans(item, readable)
    assert 0 < len(lost) < len(item.spans)
    found, failures = read(tmp_path, item)
    check(item, found, failures, lost)
    reason = failures[-1].reason
    assert "frames are missing: " in reason
    assert ("the file ends before" in reason) == (damage == "shorter")


def broken(name: str) -> Callable[[Path], object]:
    return lambda path: media.make(path.parent, name).replace(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: (path.unlink(), path.mkdir()), "not a file"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (broken("text.mp4"), "not a video that FFmpeg can open"),
        (broken("sound.mp4"), "no video stream"),
        (broken("no_frames.mp4"), ""),
        (functools.partial(media.write, size=SIZE, fps=25), "25 fps, 30 in the ground truth"),
        (functools.partial(media.write, size=SIZE, fps=Fraction(30000, 1001)), "29.97 fps, 30 in the ground truth"),
    ],
    ids=["missing", "folder", "empty", "text", "sound", "no_frames", "25 fps", "29.97 fps"],
)  # fmt: skip
def test_a_video_that_is_no_use_loses_all_its_spans_with_the_reason(
    make: Callable[[Path], object], reason: str, source: Path, tmp_path: Path
):
    path, item = whole(tmp_path, source)
    make(path)
    found, failures = read(tmp_path, item)
    check(item, found, failures, {span.key for span in item.spans})
    assert all(reason in failure.reason for failure in failures)


@pytest.mark.parametrize("name", ["../a.mp4", "sub/../../a.mp4", "/a.mp4"])
def test_names_that_lead_out_of_the_folder_are_not_followed(name: str, tmp_path: Path):
    media.write(tmp_path / "a.mp4", size=SIZE)
    (tmp_path / "videos" / "sub").mkdir(parents=True)
    name = str(tmp_path / "a.mp4") if name.startswith("/") else name
    (item,), _ = spans.plan([row(0, 2, name=name)], LABELS)
    found, failures = read(tmp_path / "videos", item)
    assert not found
    assert [failure.reason for failure in failures] == ["its name leads out of the folder of videos"]


def test_note_may_end_all(source: Path, tmp_path: Path):
    path, item = whole(tmp_path, source)
    path.unlink()

    def stop(failure: spans.Failure) -> None:
        raise KeyError(failure.filename)

    with pytest.raises(KeyError, match=r"a\.mp4"):
        list(spans.examples(tmp_path, item, "jpeg", stop))


def test_a_misdated_video_is_read_again_and_not_half_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without the codec's name, the packets of hidden frames are first trusted and then found to be wrong."""
    media.make(tmp_path, "vp8_hidden.webm")
    item = measured(tmp_path / "vp8_hidden.webm", (0, 99))
    monkeypatch.setattr(spans, "_HIDES_FRAMES", frozenset())
    monkeypatch.setattr(groundtruth, "same_fps", lambda *_: True)  # the rate tells too
    failures: list[spans.Failure] = []
    with pytest.raises(spans.MisdatedError, match="vp8_hidden"):
        list(spans.examples(tmp_path, item, "jpeg", failures.append))
    assert not failures
    assert len(list(spans.examples(tmp_path, item, "jpeg", failures.append, dated_by_decoding=True))) == len(item.spans)


def test_frames_behind_the_spans_under_way_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The frames in memory are counted while the records are read. There are never more than two spans of a segment need."""
    path = media.write(tmp_path / "a.mp4", size=(32, 32), fps=15, frames=900)
    item = measured(path, (0, 60), (3, 4.5))
    alive: list[int] = []
    encode = records.encode_frame

    class Counted(bytes):
        def __new__(cls, data: bytes) -> "Counted":
            alive.append(1)
            return super().__new__(cls, data)

        def __del__(self) -> None:
            alive.pop()

    monkeypatch.setattr(records, "encode_frame", lambda frame, codec: Counted(encode(frame, codec)))
    most = 0
    for _ in spans.examples(tmp_path, item, "jpeg", lambda failure: pytest.fail(failure.reason)):
        most = max(most, len(alive))
    assert len(item.spans) > 12
    assert most <= 79 + 15 + 1


# ------------------------------------------------------------------------------------------- against the original's pixels


def psnr(path: Path, codec: records.Codec) -> float:
    """Returns the PSNR in dB of all frames of a video in records against PyTorch's resize of the same frames."""
    torch = pytest.importorskip("torch")
    item = measured(path, (0, 6))
    found, failures = read(path.parent, item, codec)
    assert not failures
    grid = clips.resampled(item.num_frames, item.fps, 15)
    scan = scanning.rescan(scanning.scan(path))
    needed = np.zeros(len(scan.timeline.pts), bool)
    needed[grid[: item.spans[-1].end]] = True
    expected = {}
    for number, rgb in decoding.Reader(scan, needed):
        pixels = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255
        resized = torch.nn.functional.interpolate(pixels, size=(128, 171), mode="bilinear", align_corners=False)
        expected[number] = resized[0].permute(1, 2, 0).numpy()
    mean_squares = {}
    for key, example in found:
        for place, frame in enumerate(frames_of(example, codec), start=item.spans[key].first):
            mean_squares[place] = np.mean((frame / np.float32(255) - expected[grid[place]]) ** 2)
    assert len(mean_squares) == item.spans[-1].end >= 16
    return float(10 * np.log10(1 / np.mean(list(mean_squares.values()))))


# Rounding to whole values alone costs: an error of up to half a value, uniform, is 10 log10(12 * 255^2) = 58.9 dB.
@pytest.mark.torch
@pytest.mark.parametrize(("codec", "least"), [("jpeg", 42.0), ("lossless", 58.0)])
@pytest.mark.parametrize("name", ["v_ZNVhz7ctTq0.mp4", "mm_demo.mp4", "part_0.mp4", "test.avi"])
def test_frames_are_close_to_the_originals(shared: Path, name: str, codec: records.Codec, least: float):
    assert psnr(shared / "videos" / name, codec) >= least


@pytest.mark.torch
@pytest.mark.parametrize(("codec", "least"), [("jpeg", 42.0), ("lossless", 58.0)])
def test_synthetic_frames_are_close_to_the_originals(codec: records.Codec, least: float, tmp_path: Path):
    synthetic.write(dataclasses.replace(synthetic.script(0, 0, (4, 4)), num_frames=60), tmp_path / "a.mp4")
    assert psnr(tmp_path / "a.mp4", codec) >= least


# -------------------------------------------------------------------------------------------------------------- the index


def test_the_index_lists_only_what_was_written():
    rows = [
        row(0, 9, frames=300),
        row(1, 3, "", frames=300),
        row(5, 9.9, "Run", frames=300, name="b.mp4"),
        row(6, 9, frames=300),
    ]
    videos, _ = spans.plan(rows, LABELS)
    by_key = {span.key: (item, span) for item in videos for span in item.spans}
    lost = {key for key, (_, span) in by_key.items() if span.segment.row == 1 or (span.segment.row == 0 and not span.first)}
    keys = [key for key in sorted(by_key, reverse=True) if key not in lost]
    shards = [spans.Shard("x-0", 10, tuple(keys[:2])), spans.Shard("x-1", 0, ()), spans.Shard("x-2", 7, tuple(keys[2:]))]
    index = spans.index(videos, "lossless", shards)
    assert index.segment_row.tolist() == [0, 2, 3]
    assert index.video_filename == ("a.mp4", "b.mp4")
    assert index.shard_records.tolist() == [2, 0, len(keys) - 2]
    assert index.shard_bytes.tolist() == [10, 0, 7]
    for record, key in enumerate(keys):
        item, span = by_key[key]
        segment = index.record_segment[record]
        assert index.segment_row[segment] == span.segment.row
        assert index.video_filename[index.segment_video[segment]] == item.filename
        assert (index.record_first[record], index.record_starts[record]) == (span.first, span.starts)
        assert index.segment_action[segment] == span.segment.action
        assert index.segment_end_sec[segment] == span.segment.end_sec
        assert index.shard_of(record) == ("x-0" if record < 2 else "x-2")
    assert index.starts(0) == int(index.segment_starts[0]) - 64
    assert index.start(0, 0)[1] == 64


def test_resize_is_what_records_hold(tmp_path: Path):
    """Lossless records hold exactly the resized frames."""
    path = media.write(tmp_path / "a.mp4", size=(130, 100), fps=15, frames=20)
    item = measured(path, (0, 2))
    scan = scanning.scan(path)
    expected = [transforms.resize(rgb) for _, rgb in decoding.Reader(scan, np.ones(20, bool))]
    ((_, example),), _ = read(tmp_path, item)
    assert np.array_equal(frames_of(example), expected)
