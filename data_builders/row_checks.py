"""Checks the rows of a ground truth without opening a video."""

import collections
import dataclasses
import difflib
import math
from collections.abc import Iterable, Iterator, Sequence

from data_builders import annotations
from tsp_jax import groundtruth, video_names
from tsp_jax.system import tables

# Annotators round to tenths of a second, and containers round their duration: a smaller excess is no fault.
_BEYOND_END_SEC = 0.1


@dataclasses.dataclass(frozen=True, order=True)
class Finding:
    """An error in a row, or a warning about it.

    Attributes:
      line: the row's line number in the file.
      message: the column, its value, and what to do.
      is_warning: True if training works with the row as it is.
    """

    line: int
    message: str
    is_warning: bool = False


def check_rows(
    rows: Sequence[groundtruth.Row[groundtruth.AnnotatedSegment]], labels: Sequence[str], *, lenient: bool
) -> Iterator[Finding]:
    """Yields what can be found wrong in a ground truth without its videos.

    Args:
      rows: the rows of the ground truth.
      labels: the known action labels.
      lenient: whether parts beyond a video's end, empty segments and repeated rows are only warnings.
    """
    first_line: dict[tuple[object, ...], int] = {}
    twins = {label: group for group in annotations.alike(labels) for label in group}
    for row in rows:
        yield from (Finding(row.line, f"{fault}; correct it") for fault in row.faults)
        if row.value is None:
            continue
        for message in _label_faults(row.value, labels):
            yield Finding(row.line, message)
        for other in twins.pop(row.value.action_label, ()):
            if other != row.value.action_label:
                yield Finding(
                    row.line,
                    f"action-label {row.value.action_label!r} differs from {other!r} only in blanks, case or accents' "
                    "encoding; if they are one class, write them alike",
                    is_warning=True,
                )
        yield from time_faults(row.line, row.value, lenient)
        segment = row.value
        key = (segment.filename, segment.start_sec, segment.end_sec, segment.action_label, segment.temporal_region)
        if first_line.setdefault(key, row.line) != row.line:
            yield Finding(row.line, f"the same video, times and label as line {first_line[key]}; remove one", lenient)
    yield from _overlaps(rows)


def check_metadata(
    rows: Sequence[groundtruth.Row[groundtruth.AnnotatedSegment]], known: dict[str, groundtruth.VideoMetadata], where: str
) -> Iterator[Finding]:
    """Yields the disagreements between rows and the metadata.

    Args:
      rows: the rows of the ground truth.
      known: the metadata of each video, by file name.
      where: the metadata's file, for messages.
    """
    filenames = video_names.Filenames(known)
    for row in rows:
        if row.value is None:
            continue
        found = filenames.find(row.value.filename)
        item = known[found[0]] if len(found) == 1 and _same_file(found[0], row.value.filename) else None
        if item is None:
            yield Finding(row.line, f"filename {row.value.filename!r} is not in {where}; measure the video, or remove the row")
            continue
        for column, here, there in (
            ("video-duration", row.value.video_duration_sec, item.video_duration_sec),
            ("fps", row.value.fps, item.fps),
            ("video-frames", row.value.num_frames, item.num_frames),
        ):
            if not math.isclose(here, there, rel_tol=1e-9):
                yield Finding(
                    row.line, f"{column} {here} disagrees with {there} in {where}; write the ground truth again from it"
                )


def _same_file(first: str, second: str) -> bool:
    """Returns whether two names mean one file, as `searching.spelled` finds it: accents, `\\` and `./` do not matter."""
    return video_names.normalized(first) == video_names.normalized(second)


def time_faults(line: int, segment: groundtruth.AnnotatedSegment, lenient: bool) -> Iterator[Finding]:
    """Yields what is wrong with a row's times.

    Args:
      line: the row's line number in the file.
      segment: the row's content.
      lenient: whether parts beyond the video's end and empty segments are only warnings.
    """
    start_sec, end_sec, duration_sec = segment.start_sec, segment.end_sec, segment.video_duration_sec
    if start_sec > end_sec:
        yield Finding(line, f"t-start {start_sec} lies after t-end {end_sec}; swap or correct them")
    elif start_sec == end_sec:
        yield Finding(
            line, f"t-start and t-end are both {start_sec}, an empty segment; correct them or remove the row", lenient
        )
    if min(start_sec, end_sec) < 0:
        column, value = ("t-start", start_sec) if start_sec < 0 else ("t-end", end_sec)
        yield Finding(line, f"{column} {value} lies before the video; begin at 0", lenient)
    if min(start_sec, end_sec) >= duration_sec:
        yield Finding(
            line, f"t-start {start_sec} s lies beyond the video's {duration_sec} s; remove or correct the row", lenient
        )
    elif max(start_sec, end_sec) > duration_sec + _BEYOND_END_SEC:
        yield Finding(line, f"t-end {end_sec} s exceeds the video's {duration_sec} s; clip it or correct the row", lenient)


def _label_faults(segment: groundtruth.AnnotatedSegment, labels: Sequence[str]) -> Iterator[str]:
    label = segment.action_label
    if segment.temporal_region == groundtruth.NO_ACTION:
        if label:
            yield (
                f"action-label {label!r} in a row of {groundtruth.NO_ACTION!r}; empty it, or make temporal-region-label "
                f"{groundtruth.ACTION!r}"
            )
    elif not label:
        yield f"no action-label in a row of {groundtruth.ACTION!r}; name the action, or make it {groundtruth.NO_ACTION!r}"
    elif label not in labels:
        near = difflib.get_close_matches(label, labels, 1)
        yield f"action-label {label!r} is unknown; {f'write {near[0]!r}' if near else 'correct it'}, or add it to the mapping"


def _overlaps(rows: Iterable[groundtruth.Row[groundtruth.AnnotatedSegment]]) -> Iterator[Finding]:
    """Yields a warning for each background segment that overlaps an action."""
    actions, gaps = collections.defaultdict(list), []
    for row in rows:
        if row.value is not None and row.value.temporal_region == groundtruth.ACTION:
            actions[row.value.filename].append((row.line, row.value))
        elif row.value is not None:
            gaps.append((row.line, row.value))
    for line, gap in gaps:
        for action_line, action in actions[gap.filename]:
            if min(gap.end_sec, action.end_sec) - max(gap.start_sec, action.start_sec) > tables.ROUNDING:
                yield Finding(
                    line,
                    f"background {gap.start_sec} to {gap.end_sec} overlaps the action {action.start_sec} to {action.end_sec} "
                    f"of line {action_line}; `--background union` of data_builders.groundtruth avoids this",
                    is_warning=True,
                )
                break
