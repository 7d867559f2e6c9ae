"""Reads and writes what is known of annotated videos: the ground-truth CSV, the metadata CSV and the label mappings."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Bool, Float

from tsp_jax import video_names
from tsp_jax.system import files, tables, texts

ACTION = "Action"
NO_ACTION = "No action"
TEMPORAL_REGIONS = (ACTION, NO_ACTION)  # in the order of their class numbers
# Names that data sets and tools give to the same subset, in small letters.
SUBSETS = (("train", "training"), ("valid", "validation", "val"), ("test", "testing"))
_FPS_TOLERANCE = 1e-4  # relative


@dataclasses.dataclass(frozen=True)
class VideoMetadata:
    """A row of the metadata CSV, which describes a video.

    Attributes:
      filename: the video's file, relative to the folder of videos.
      video_duration_sec: the video's length in seconds, num_frames / fps.
      fps: average number of frames per second.
      num_frames: number of frames that decode.
    """

    filename: str
    video_duration_sec: float
    fps: float
    num_frames: int


@dataclasses.dataclass(frozen=True)
class AnnotatedSegment:
    """A row of the ground truth, which describes a part of a video exactly as it was annotated.

    The part may reach beyond the video; whoever uses it must clamp it.

    Attributes:
      video_name: the name of the video's features, by default the file's name up to its first dot.
      start_sec: second of the video at which the segment begins.
      end_sec: second of the video at which the segment ends; the interval is half open.
      action_label: the action's class; empty for background.
      video_duration_sec: the whole video's length in seconds.
      filename: the video's file, relative to the folder of videos.
      fps: the video's average number of frames per second.
      num_frames: the whole video's number of frames.
      temporal_region: one of `TEMPORAL_REGIONS`.
    """

    video_name: str
    start_sec: float
    end_sec: float
    action_label: str
    video_duration_sec: float
    filename: str
    fps: float
    num_frames: int
    temporal_region: str


T = TypeVar("T", VideoMetadata, AnnotatedSegment)


@dataclasses.dataclass(frozen=True)
class Row(Generic[T]):
    """A row of a CSV file: its content, or the reasons why it can't be used.

    Attributes:
      line: the row's line number in the file; the number of its last line if a quoted field holds line breaks.
      value: the row's content; None if there are faults.
      faults: what is wrong with the row. Each fault says the column, its text and what was expected.
    """

    line: int
    value: T | None
    faults: tuple[str, ...]


def read_groundtruth(path: str | Path) -> list[AnnotatedSegment]:
    """Returns the segments of a ground-truth CSV, in its order.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing or a field can't be read; the message names the lines.
    """
    return _values(Path(path), read_groundtruth_rows(path), "python -m data_builders.validate")


def read_groundtruth_rows(path: str | Path) -> list[Row[AnnotatedSegment]]:
    """Returns the rows of a ground-truth CSV with their line numbers and faults.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing, or the file is no CSV of text.
    """
    rows = tables.read_table(path, tuple(_GROUNDTRUTH), numbers=_NUMBERS)
    return [_parse(row, AnnotatedSegment, _GROUNDTRUTH) for row in rows]


def write_groundtruth(path: str | Path, segments: Iterable[AnnotatedSegment]) -> None:
    """Writes a ground-truth CSV, whole or not at all; numbers keep all their digits."""
    tables.write_table(path, tuple(_GROUNDTRUTH), map(dataclasses.astuple, segments))


def action_labels(segments: Iterable[AnnotatedSegment]) -> list[str]:
    """Returns the distinct action labels, sorted by code point (capitals first) as in the released mappings."""
    return sorted({segment.action_label for segment in segments} - {""})


def same_fps(first: float, second: float) -> bool:
    """Returns whether two frame rates agree within rounding: 29.97 may be written for 30000/1001, but 30 may not."""
    return math.isclose(first, second, rel_tol=_FPS_TOLERANCE)


def by_video(segments: Iterable[AnnotatedSegment], names: video_names.Rule | None = None) -> dict[str, list[AnnotatedSegment]]:
    """Returns the segments of each video, by the name of its features, in their order.

    Args:
      segments: the segments.
      names: the rule by which the features are named, as their file says. With None, the name is the column `video-name` if a
        rule of `video_names` gives it to the file, otherwise the file's name up to its first dot.
    """
    of_video: dict[str, list[AnnotatedSegment]] = {}
    for segment in segments:
        by_rule = {rule: video_names.feature_name(segment.filename, rule) for rule in video_names.RULES}
        given = video_names.composed(segment.video_name)
        own = by_rule[names] if names else given if given in by_rule.values() else by_rule[video_names.DEFAULT]
        of_video.setdefault(own, []).append(segment)
    return of_video


def clips_within(start_sec: Float[np.ndarray, " n"], length_sec: float, segment: AnnotatedSegment) -> Bool[np.ndarray, " n"]:
    """Returns which clips lie in a segment from their first moment to their last.

    Args:
      start_sec: the starts of the clips in seconds.
      length_sec: the length of every clip in seconds.
      segment: the segment.
    """
    return (start_sec >= segment.start_sec - tables.ROUNDING) & (start_sec + length_sec <= segment.end_sec + tables.ROUNDING)


def read_metadata(path: str | Path) -> list[VideoMetadata]:
    """Returns the videos of a metadata CSV, in its order.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing or a field can't be read; the message names the lines.
    """
    rows = [_parse(row, VideoMetadata, _METADATA) for row in tables.read_table(path, tuple(_METADATA), numbers=_NUMBERS)]
    return _values(Path(path), rows, "python -m data_builders.metadata writes such files")


def write_metadata(path: str | Path, videos: Iterable[VideoMetadata]) -> None:
    """Writes a metadata CSV, whole or not at all; numbers keep all their digits."""
    tables.write_table(path, tuple(_METADATA), map(dataclasses.astuple, videos))


def read_label_mapping(path: str | Path) -> list[str]:
    """Returns the labels of a mapping. A label's place in the list is its class number.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not a JSON list of distinct names.
    """
    path = Path(path)
    expected = 'expected a JSON list of label names, such as ["Action", "No action"]'
    labels = texts.read_json(path, expected)
    if not (isinstance(labels, list) and labels and all(isinstance(label, str) and label for label in labels)):
        raise ValueError(f"{path}: {expected}, found {json.dumps(labels)[:60]}")
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise ValueError(f"{path}: {', '.join(repeated)} occur twice; a label has one class number")
    return labels


def write_label_mapping(path: str | Path, labels: Sequence[str]) -> None:
    """Writes a label mapping, whole or not at all. It has one label per line, as the released mappings do."""
    lines = ",\n ".join(json.dumps(label, ensure_ascii=False) for label in labels)
    with files.replacing(path) as temporary:
        temporary.write_text(f"[{lines}]", encoding="utf-8")


def _positive(text: str) -> float:
    number = tables.parse_number(text)
    if number <= 0:
        raise ValueError("expected a number above 0")
    return number


def _count(text: str) -> int:
    number = tables.parse_number(text)
    if not (number.is_integer() and number > 0):
        raise ValueError("expected a whole number above 0")
    return int(number)


def _name(text: str) -> str:
    if not text:
        raise ValueError("expected a name")
    return text


def _temporal_region(text: str) -> str:
    region = texts.clean(text)
    if region not in TEMPORAL_REGIONS:
        raise ValueError(f"expected {' or '.join(map(repr, TEMPORAL_REGIONS))}")
    return region


# Each column's field in the dataclass, and the function that reads its text. Columns and fields have the same order.
_METADATA: dict[str, tuple[str, Callable[[str], Any]]] = {
    "filename": ("filename", _name),
    "video-duration": ("video_duration_sec", _positive),
    "fps": ("fps", _positive),
    "video-frames": ("num_frames", _count),
}
_GROUNDTRUTH: dict[str, tuple[str, Callable[[str], Any]]] = {
    "video-name": ("video_name", _name),
    "t-start": ("start_sec", tables.parse_seconds),
    "t-end": ("end_sec", tables.parse_seconds),
    "action-label": ("action_label", str),
    "video-duration": _METADATA["video-duration"],
    "filename": _METADATA["filename"],
    "fps": _METADATA["fps"],
    "video-frames": _METADATA["video-frames"],
    "temporal-region-label": ("temporal_region", _temporal_region),
}
_NUMBERS = ("t-start", "t-end", "video-duration", "fps", "video-frames")


def _parse(row: tables.TableRow, kind: type[T], columns: Mapping[str, tuple[str, Callable[[str], Any]]]) -> Row[T]:
    if row.fault:
        return Row(row.line, None, (row.fault,))
    values, faults = {}, []
    for column, (field, read) in columns.items():
        try:
            values[field] = read(row.fields[column])
        except ValueError as error:
            faults.append(f"{column} {row.fields[column]!r}: {error}")
    return Row(row.line, None if faults else kind(**values), tuple(faults))


def _values(path: Path, rows: Sequence[Row[T]], remedy: str) -> list[T]:
    tables.refuse(path, [f"line {row.line}: {fault}" for row in rows for fault in row.faults], remedy)
    return [row.value for row in rows if row.value is not None]
