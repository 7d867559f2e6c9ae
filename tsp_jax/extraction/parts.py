"""Which parts of videos are extracted: the flags `--start_sec`, `--end_sec` and `--segments`."""

import argparse
import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from tsp_jax import video_list, video_names
from tsp_jax.system import tables

COLUMNS = ("filename", "t-start", "t-end")
_SHOWN = 10


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds to a command the flags that `confine` reads."""
    add = parser.add_argument
    add("--start_sec", type=_seconds, help="extract only the clips that lie whole after this second of each video")
    add("--end_sec", type=_seconds, help="extract only the clips that lie whole before this second of each video")
    add(
        "--segments",
        metavar="CSV",
        help="extract only the videos that this CSV names, and of them the clips that lie whole within a segment; it has the "
        f"columns {', '.join(COLUMNS)}, as a ground truth has",
    )


def kind(options: argparse.Namespace) -> str:
    """Returns by which flags videos are confined to parts, as features store it; empty if they are not.

    Raises:
      ValueError: the flags do not go together, or no time lies between the two seconds.
    """
    given = [name for name in ("start_sec", "end_sec") if getattr(options, name) is not None]
    if options.segments is not None:
        if given:
            raise ValueError(f"--segments and --{given[0]} do not go together; name one of them")
        return "segments"
    if len(given) == 2 and options.start_sec >= options.end_sec:
        raise ValueError(f"--end_sec {options.end_sec:g} is not after --start_sec {options.start_sec:g}")
    return " ".join(f"{name}={getattr(options, name):g}" for name in given)


def confine(
    videos: Sequence[video_list.Video], options: argparse.Namespace, note: Callable[[str], object]
) -> list[video_list.Video]:
    """Returns the videos with the parts that the flags name. With `--segments`, only the videos that the CSV names.

    A row of the CSV whose video is not among the videos becomes a video with a fault.

    Args:
      videos: the videos.
      options: the parsed flags of `add_flags`.
      note: is called with each line about videos that the CSV does not name.

    Raises:
      OSError: the CSV is not there or can't be read.
      ValueError: the flags do not go together, the CSV lacks columns or rows, or a row's times make no segment.
    """
    if not kind(options):
        return list(videos)
    if options.segments is None:
        part = (options.start_sec or 0.0, math.inf if options.end_sec is None else options.end_sec)
        return [dataclasses.replace(item, parts_sec=(part,)) for item in videos]
    return _within_segments(videos, Path(options.segments), note)


def _within_segments(videos: Sequence[video_list.Video], path: Path, note: Callable[[str], object]) -> list[video_list.Video]:
    by_filename = {item.filename or item.path.as_posix(): item for item in videos}
    known, faulty = video_names.Filenames(by_filename), []
    parts: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for filename, segments in _read_segments(path).items():
        found = known.find(filename)
        if len(found) == 1:
            parts[found[0]] += segments
            continue
        fault = f"{path.name} names it, and " + (
            f"{len(found)} videos may be meant: {', '.join(found[:_SHOWN])}" if found else _absent(known.near(filename))
        )
        faulty.append(video_list.Video(video_names.feature_name(filename), Path(filename), fault=fault))
    kept = [
        dataclasses.replace(item, parts_sec=tuple(sorted(set(parts[name]))))
        for name, item in by_filename.items()
        if name in parts
    ]
    if len(kept) < len(by_filename):
        note(f"{len(by_filename) - len(kept)} of {len(by_filename)} videos have no segment in {path} and are passed over")
    return kept + faulty


def _read_segments(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Returns the segments of a CSV by file name, [start, end) in seconds."""
    segments: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    faults = []
    for row in tables.read_table(path, COLUMNS, numbers=COLUMNS[1:]):
        try:
            if row.fault:
                raise ValueError(row.fault)
            start, end = (tables.parse_seconds(row.fields[column]) for column in COLUMNS[1:])
            if not 0 <= start < end:
                raise ValueError(f"expected 0 <= t-start < t-end, found {start:g} and {end:g}")
            segments[row.fields["filename"].strip()].append((start, end))
        except ValueError as error:
            faults.append(f"{path} line {row.line}: {error}")
    if faults:
        more = f"\n  and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ValueError("\n  ".join(faults[:_SHOWN]) + more)
    if not segments:
        raise ValueError(f"{path}: lists no segment")
    return segments


def _absent(near: str) -> str:
    return f"it is not among --videos; {near} has a similar name" if near else "it is not among --videos"


def _seconds(text: str) -> float:
    try:
        value = tables.parse_seconds(text)
    except ValueError:
        value = -1.0
    if value < 0:
        raise argparse.ArgumentTypeError(f"a time in seconds from 0 up, such as 75.5 or 1:15.5; got {text}")
    return value
