"""Plans the spans of a split from its ground truth alone, and then reads them from the videos, each decoded once, in order."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from tsp_jax import clips, groundtruth, records, transforms
from tsp_jax.system import errors, tables
from tsp_jax.video import decoding, scanning, searching

Example = dict[str, Any]
# The packets of these codecs don't show every frame. Only decoding finds all of them.
_HIDES_FRAMES = frozenset({"vp8", "vp9", "av1"})


@dataclasses.dataclass(frozen=True)
class Segment:
    """A segment on its video's grid of FRAME_RATE frames a second.

    Attributes:
      row: the segment's row in the ground truth, counted from 0 below the header.
      action: class number of the action; -1 for background.
      temporal_region: class number in `groundtruth.TEMPORAL_REGIONS`.
      start_sec: second of the video at which the segment begins, as annotated but clamped to the video.
      end_sec: second of the video at which the segment ends, clamped likewise.
      first: grid place of the first allowed clip start.
      starts: number of allowed clip starts.
    """

    row: int
    action: int
    temporal_region: int
    start_sec: float
    end_sec: float
    first: int
    starts: int


@dataclasses.dataclass(frozen=True)
class Span:
    """A record to write: `starts` consecutive places at which a clip of one segment may start.

    Attributes:
      key: the record's key. The keys of a split ascend in the order in which its videos are read.
      segment: the segment that the clips belong to.
      first: grid place of the first start.
      starts: number of starts.
    """

    key: int
    segment: Segment
    first: int
    starts: int

    @property
    def end(self) -> int:
        """The grid place after the last frame."""
        return self.first + self.starts + records.CLIP_LEN - 1


@dataclasses.dataclass(frozen=True)
class Video:
    """A video of a split.

    Attributes:
      filename: the video's file, relative to the folder of videos.
      fps: frames per second, according to the ground truth.
      num_frames: number of frames, according to the ground truth.
      spans: the video's spans, in the order of their keys.
    """

    filename: str
    fps: float
    num_frames: int
    spans: tuple[Span, ...]

    @property
    def num_kept_frames(self) -> int:
        """The number of frames in the video's records. A frame in two records counts twice."""
        return sum(span.end - span.first for span in self.spans)


@dataclasses.dataclass(frozen=True)
class Failure:
    """A part of a video that can't be read.

    Attributes:
      filename: the video's file, relative to the folder of videos.
      row: the segment's row in the ground truth, counted from 0 below the header.
      start_sec: second of the video at which the part begins.
      starts: number of clip starts that are lost.
      reason: why the part can't be read.
    """

    filename: str
    row: int
    start_sec: float
    starts: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of records.

    Attributes:
      name: the file's name.
      num_bytes: the file's size in bytes.
      keys: the keys of its records, in their order in the file.
    """

    name: str
    num_bytes: int
    keys: tuple[int, ...]


class MisdatedError(errors.UserError):
    """The spans yielded so far for a video are wrong, because its packets promise other frames than those that decode."""


def plan(rows: Sequence[groundtruth.AnnotatedSegment], labels: Sequence[str]) -> tuple[list[Video], int]:
    """Returns the videos of a split, in the order of their first rows, and the number of segments too short for a clip.

    A segment is clamped to its video. Its clip starts are the grid places from its first frame to the last place from which a
    clip ends within the segment. At both ends a place may lie up to one frame early.

    Args:
      rows: the rows of the ground truth.
      labels: action labels, by class number.

    Raises:
      ValueError: labels are unknown, or rows of one file disagree; the message names the lines.
    Source: TSP, released data set code, for the clamping and for the shortest segment, which is as long as a clip.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    faults, too_short = [], 0
    by_file: dict[str, list[tuple[int, groundtruth.AnnotatedSegment]]] = collections.defaultdict(list)
    for row, segment in enumerate(rows):
        by_file[segment.filename].append((row, segment))
        first = by_file[segment.filename][0][1]
        if segment.temporal_region == groundtruth.ACTION and segment.action_label not in numbers:
            faults.append(f"line {row + 2}: action-label {segment.action_label!r} is not among the {len(labels)} labels")
        if (segment.fps, segment.num_frames) != (first.fps, first.num_frames):
            faults.append(f"line {row + 2}: {segment.filename} has another fps or video-frames than in its first row")
        length_sec = segment.num_frames / segment.fps
        if abs(segment.video_duration_sec - length_sec) > 1 / segment.fps:
            faults.append(f"line {row + 2}: video-duration {segment.video_duration_sec}; video-frames / fps is {length_sec}")
        if length_sec * records.FRAME_RATE > clips.MAX_RESAMPLED:
            faults.append(f"line {row + 2}: {segment.num_frames} frames at {segment.fps:g} fps are too many; cut the video")
    tables.refuse(Path("ground truth"), faults, "run python -m data_builders.validate")
    videos, next_key = [], 0
    for filename, entries in by_file.items():
        found = entries[0][1]
        grid_len = len(clips.resampled(found.num_frames, found.fps, records.FRAME_RATE))
        kept = [planned for row, segment in entries if (planned := _segment(row, segment, grid_len, numbers)) is not None]
        too_short += len(entries) - len(kept)
        ordered = sorted(itertools.chain(*map(_spans, kept)), key=lambda span: (span.end, span.segment.row, span.first))
        if ordered:
            numbered = tuple(dataclasses.replace(span, key=next_key + number) for number, span in enumerate(ordered))
            videos.append(Video(filename, found.fps, found.num_frames, numbered))
            next_key += len(ordered)
    return videos, too_short


def examples(
    folder: Path, item: Video, codec: records.Codec, note: Callable[[Failure], object], *, dated_by_decoding: bool = False
) -> Iterator[tuple[int, Example]]:
    """Yields the records of a video as (key, example), by ascending key. The video is read in one pass.

    Memory holds only the encoded frames of the spans that have begun and have not ended.

    Args:
      folder: the folder of the videos.
      item: the video.
      codec: the encoding of the frames.
      note: is called, after the last record, with each span that lacks frames. It may raise an error.
      dated_by_decoding: whether the video is first decoded once to find the true times of its frames.

    Raises:
      MisdatedError: the video must be dated by decoding, and the records yielded so far are wrong.
    """
    pending = collections.deque(item.spans)
    failures: list[Failure] = []  # reported at the end, because in a misdated video frames only seem to be missing
    try:
        reader, grid = _open(folder, item, dated_by_decoding)
        encoded: dict[int, bytes] = {}
        oldest = list(
            itertools.accumulate((span.first for span in reversed(item.spans)), min)
        )  # element n is the first place of the last n + 1 spans
        for number, frame in reader:
            places = np.arange(np.searchsorted(grid, number, "left"), np.searchsorted(grid, number, "right"))
            data = records.encode_frame(transforms.resize(frame, records.FRAME_SIZE), codec)
            encoded |= dict.fromkeys(places.tolist(), data)
            while pending and pending[0].end <= places[-1] + 1:
                yield from _example(item, pending.popleft(), encoded, reader, failures)
                needed_from = oldest[len(pending) - 1] if pending else 0
                encoded = {place: data for place, data in encoded.items() if place >= needed_from}
        if reader.misdated:
            raise MisdatedError(item.filename)
        for span in pending:
            yield from _example(item, span, encoded, reader, failures)
    except (scanning.VideoError, OSError) as error:
        failures += [_failure(item, span, str(error)) for span in pending]
    for failure in failures:
        note(failure)


def index(videos: Sequence[Video], codec: records.Codec, shards: Sequence[Shard]) -> records.Index:
    """Returns the index of a split, which lists those of the planned spans that are in the shards."""
    by_key = {span.key: span for item in videos for span in item.spans}
    written = [by_key[key] for shard in shards for key in shard.keys]
    rows = {span.segment.row: span.segment for span in written}
    kept = [rows[row] for row in sorted(rows)]
    place = {segment.row: number for number, segment in enumerate(kept)}
    filename = {span.segment.row: item.filename for item in videos for span in item.spans}
    filenames = list(dict.fromkeys(filename[segment.row] for segment in kept))
    video_place = {name: number for number, name in enumerate(filenames)}

    def column(values: Iterable[int]) -> np.ndarray:
        return np.fromiter(values, np.int32)

    return records.Index(
        codec=codec,
        record_segment=column(place[span.segment.row] for span in written),
        record_first=column(span.first for span in written),
        record_starts=column(span.starts for span in written),
        segment_row=column(segment.row for segment in kept),
        segment_video=column(video_place[filename[segment.row]] for segment in kept),
        segment_action=column(segment.action for segment in kept),
        segment_temporal_region=column(segment.temporal_region for segment in kept),
        segment_start_sec=np.array([segment.start_sec for segment in kept], np.float64),
        segment_end_sec=np.array([segment.end_sec for segment in kept], np.float64),
        segment_first=column(segment.first for segment in kept),
        segment_starts=column(segment.starts for segment in kept),
        video_filename=tuple(filenames),
        shard_name=tuple(shard.name for shard in shards),
        shard_records=np.array([len(shard.keys) for shard in shards], np.int64),
        shard_bytes=np.array([shard.num_bytes for shard in shards], np.int64),
    )


def _open(folder: Path, item: Video, dated_by_decoding: bool) -> tuple[decoding.Reader, np.ndarray]:
    """Returns a reader of the frames that the spans need, and the frame number at each grid place."""
    if PurePath(item.filename).is_absolute() or ".." in PurePath(item.filename).parts:
        raise scanning.VideoError("its name leads out of the folder of videos")
    scan = scanning.scan(searching.spelled(folder, item.filename))
    if dated_by_decoding or scan.codec in _HIDES_FRAMES or not groundtruth.same_fps(scan.timeline.fps, item.fps):
        scan = scanning.rescan(scan)
    if not groundtruth.same_fps(scan.timeline.fps, item.fps):
        raise scanning.VideoError(
            f"{scan.timeline.fps:g} fps, {item.fps:g} in the ground truth; run metadata and groundtruth again"
        )
    grid = clips.resampled(item.num_frames, item.fps, records.FRAME_RATE)
    if not clips.is_constant(scan.timeline):
        grid = clips.shown_at(scan.timeline, np.arange(len(grid)) / records.FRAME_RATE)
    needed = np.zeros(max(len(scan.timeline.pts), item.num_frames), bool)
    for span in item.spans:
        needed[grid[span.first : span.end]] = True
    return decoding.Reader(scan, needed[: len(scan.timeline.pts)]), grid


def _example(
    item: Video, span: Span, encoded: Mapping[int, bytes], reader: decoding.Reader, failures: list[Failure]
) -> Iterator[tuple[int, Example]]:
    """Yields a span's record. If frames are missing, yields nothing and appends to `failures`."""
    places = range(span.first, span.end)
    missing = sum(place not in encoded for place in places)
    if missing:
        reason = reader.damage or "the file ends before"
        failures.append(_failure(item, span, f"{missing} of {len(places)} frames are missing: {reason}"))
        return
    frames = [encoded[place] for place in places]
    segment = span.segment
    yield (
        span.key,
        {
            "frames": b"".join(frames),
            "frame_ends": np.cumsum([len(frame) for frame in frames]),
            "first_start": span.first,
            "num_starts": span.starts,
            "filename": item.filename,
            "segment": segment.row,
            "start_sec": segment.start_sec,
            "end_sec": segment.end_sec,
            "action": segment.action,
            "temporal_region": segment.temporal_region,
        },
    )


def _failure(item: Video, span: Span, reason: str) -> Failure:
    return Failure(item.filename, span.segment.row, span.first / records.FRAME_RATE, span.starts, reason)


def _spans(segment: Segment) -> Iterator[Span]:
    """Yields a segment's spans, all with the key 0."""
    end = segment.first + segment.starts
    for first in range(segment.first, end, records.MAX_STARTS):
        yield Span(0, segment, first, min(records.MAX_STARTS, end - first))


def _segment(row: int, segment: groundtruth.AnnotatedSegment, grid_len: int, numbers: Mapping[str, int]) -> Segment | None:
    """Returns the segment on the grid, or None if it is shorter than a clip."""
    start_sec, end_sec = max(segment.start_sec, 0.0), min(segment.end_sec, segment.video_duration_sec)
    last_place = grid_len - records.CLIP_LEN
    if end_sec - start_sec < records.CLIP_SEC - tables.ROUNDING or last_place < 0:
        return None
    first, last = (min(records.place(sec), last_place) for sec in (start_sec, end_sec - records.CLIP_SEC))
    is_action = segment.temporal_region == groundtruth.ACTION
    action = numbers[segment.action_label] if is_action else -1
    region = groundtruth.TEMPORAL_REGIONS.index(segment.temporal_region)
    return Segment(row, action, region, start_sec, end_sec, first, max(last, first) - first + 1)
