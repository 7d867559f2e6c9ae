"""Names what is wrong with a ground truth: `python -m data_builders.validate --groundtruth CSV --videos DIR --labels JSON`."""

import argparse
import collections
import concurrent.futures
import dataclasses
import difflib
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath

import tqdm

from data_builders import metadata
from tsp_jax import groundtruth
from tsp_jax.system import cli, cpu
from tsp_jax.video import decoding

# Annotators mark tenths of a second, and containers round their duration: less than this beyond the end is no fault.
_BEYOND_END_SEC = 0.1
_OVERLAP_SEC = 1e-6
_RELATIVE_ERROR = 1e-4  # of fps: 29.97 may stand for 30000/1001, but 30 may not


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0 all well, 1 there are bad rows, 2 wrong use."""
    options = _parse(arguments)
    cli.show_any_name()
    path, folder = Path(options.groundtruth), Path(options.videos)
    try:
        labels = read_labels(options.labels)
        known = {item.filename: item for item in groundtruth.read_metadata(options.metadata)} if options.metadata else None
        if not folder.is_dir():
            raise FileNotFoundError(f"--videos {folder}: no such folder")
        if not path.is_file():
            raise FileNotFoundError(f"--groundtruth {path}: no such file")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        rows = groundtruth.read_groundtruth_rows(path)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    findings = sorted(
        [
            *check_rows(rows, labels, lenient=options.released),
            *check_files(rows, folder, options.workers),
            *(check_metadata(rows, known, options.metadata) if known is not None else ()),
        ]
    )
    for finding in findings:
        print(f"{'warning: ' if finding.is_warning else ''}{path.name} line {finding.line}: {finding.message}")
    warnings = sum(finding.is_warning for finding in findings)
    errors = len(findings) - warnings
    _print_summary(rows, labels, f"{path}: {len(rows)} rows, {errors} errors, {warnings} warnings")
    if errors:
        bad_rows = len({finding.line for finding in findings if not finding.is_warning})
        print(f"error: {path}: {bad_rows} of {len(rows)} rows are bad; they are listed above", file=sys.stderr)
    elif not rows:
        print(f"error: {path}: no rows below the header", file=sys.stderr)
    return 1 if errors or not rows else 0


@dataclasses.dataclass(frozen=True, order=True)
class Finding:
    """Something wrong with a row, or merely strange.

    Attributes:
      line: of the row.
      message: column, value and remedy.
      is_warning: it hinders nothing.
    """

    line: int
    message: str
    is_warning: bool = False


def read_labels(paths: Sequence[str | Path]) -> list[str]:
    """The action labels of the one action mapping among some mapping files.

    Raises:
      FileNotFoundError: a file is not there.
      ValueError: there is no action mapping or more than one, or the temporal-region mapping has another order.
    """
    mappings = {str(path): groundtruth.read_label_mapping(path) for path in paths}
    regions = {path: labels for path, labels in mappings.items() if set(labels) == set(groundtruth.TEMPORAL_REGIONS)}
    for path, labels in regions.items():
        if tuple(labels) != groundtruth.TEMPORAL_REGIONS:
            raise ValueError(f"{path}: expected {list(groundtruth.TEMPORAL_REGIONS)} in this order, found {labels}")
    actions = [path for path in mappings if path not in regions]
    if len(actions) != 1:
        raise ValueError(
            f"--labels: expected one mapping of actions, and if you like the temporal-region mapping beside it; "
            f"found {', '.join(actions) or 'the temporal-region mapping alone'}"
        )
    return mappings[actions[0]]


def check_rows(
    rows: Sequence[groundtruth.Row[groundtruth.Segment]], labels: Sequence[str], *, lenient: bool
) -> Iterator[Finding]:
    """What can be found wrong without the videos.

    Args:
      rows: of the ground truth.
      labels: known actions.
      lenient: parts beyond a video's end, empty segments and rows that stand twice are warnings.
    """
    first_line: dict[tuple[object, ...], int] = {}
    for row in rows:
        yield from (Finding(row.line, f"{fault}; correct it") for fault in row.faults)
        if row.value is None:
            continue
        for message in _label_faults(row.value, labels):
            yield Finding(row.line, message)
        yield from time_faults(row.line, row.value, lenient)
        segment = row.value
        key = (segment.filename, segment.start_sec, segment.end_sec, segment.action_label, segment.temporal_region)
        if first_line.setdefault(key, row.line) != row.line:
            yield Finding(row.line, f"the same video, times and label as line {first_line[key]}; remove one", lenient)
    yield from _overlaps(rows)


def check_files(rows: Sequence[groundtruth.Row[groundtruth.Segment]], folder: Path, workers: int) -> Iterator[Finding]:
    """What is wrong with the videos below a folder that the rows name, by a scan of their packets."""
    by_file = collections.defaultdict(list)
    for row in rows:
        if row.value is not None:
            by_file[row.value.filename].append((row.line, row.value))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        jobs = pool.map(lambda item: list(_file_findings(folder, *item)), by_file.items())
        for found in tqdm.tqdm(jobs, "validate", len(by_file), unit="video", disable=None):
            yield from found


def check_metadata(
    rows: Sequence[groundtruth.Row[groundtruth.Segment]], known: dict[str, groundtruth.VideoMetadata], where: str
) -> Iterator[Finding]:
    """Where rows disagree with the metadata, by file name."""
    for row in rows:
        if row.value is None:
            continue
        item = known.get(row.value.filename)
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
                    row.line, f"{column} {here} disagrees with {there} in {where}; make the ground truth anew from it"
                )


def _label_faults(segment: groundtruth.Segment, labels: Sequence[str]) -> Iterator[str]:
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


def time_faults(line: int, segment: groundtruth.Segment, lenient: bool) -> Iterator[Finding]:
    """What is wrong with a row's times; arguments are those of `check_rows`."""
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


def _overlaps(rows: Iterable[groundtruth.Row[groundtruth.Segment]]) -> Iterator[Finding]:
    """Warnings of background that reaches into an action."""
    actions, gaps = collections.defaultdict(list), []
    for row in rows:
        if row.value is not None and row.value.temporal_region == groundtruth.ACTION:
            actions[row.value.filename].append((row.line, row.value))
        elif row.value is not None:
            gaps.append((row.line, row.value))
    for line, gap in gaps:
        for action_line, action in actions[gap.filename]:
            if min(gap.end_sec, action.end_sec) - max(gap.start_sec, action.start_sec) > _OVERLAP_SEC:
                yield Finding(
                    line,
                    f"background {gap.start_sec} to {gap.end_sec} overlaps the action {action.start_sec} to {action.end_sec} "
                    f"of line {action_line}; `--background union` of data_builders.groundtruth makes none such",
                    is_warning=True,
                )
                break


def _file_findings(folder: Path, filename: str, rows: Sequence[tuple[int, groundtruth.Segment]]) -> Iterator[Finding]:
    path = folder / filename
    try:
        if PurePath(filename).is_absolute() or ".." in PurePath(filename).parts:
            raise decoding.VideoError("it leads out of the folder; name it relative to --videos")
        if not path.is_file():
            raise decoding.VideoError(f"no such file in {folder}; add it, or remove the row")
        scan = decoding.scan(path)
    except (decoding.VideoError, OSError) as error:
        for line, _ in rows:
            yield Finding(line, f"filename {filename!r} can't be read: {error}")
        return
    scanned, decoded, damage = len(scan.timeline.pts), None, ""
    for line, segment in rows:
        agrees = True
        if not math.isclose(segment.fps, scan.timeline.fps, rel_tol=_RELATIVE_ERROR):
            agrees = False
            yield Finding(line, f"fps {segment.fps}, but the file has {scan.timeline.fps}; {_REMEASURE}")
        if segment.num_frames != scanned:
            if decoded is None:
                # The packets of a damaged file, and of some codecs, promise more frames than decode.
                decoded, damage = _decoded(path, filename)
                if damage:
                    message = f"filename {filename!r}: {decoded} of {scanned} frames decode ({damage}); repair or replace it"
                    yield Finding(line, message, is_warning=True)
            if segment.num_frames != decoded:
                agrees = False
                yield Finding(line, f"video-frames {segment.num_frames}, but the file has {decoded}; {_REMEASURE}")
        length_sec = segment.num_frames / segment.fps
        if agrees and abs(segment.video_duration_sec - length_sec) > 1 / segment.fps:
            yield Finding(
                line, f"video-duration {segment.video_duration_sec}, but video-frames / fps is {length_sec}; {_REMEASURE}"
            )


_REMEASURE = "run `python -m data_builders.metadata`, then `groundtruth` again"


def _decoded(path: Path, filename: str) -> tuple[int, str]:
    try:
        measurement = metadata.measure(path, filename)
    except decoding.VideoError as error:
        return 0, str(error)
    return measurement.metadata.num_frames, measurement.damage


def _print_summary(rows: Sequence[groundtruth.Row[groundtruth.Segment]], labels: Sequence[str], head: str) -> None:
    found = [row.value for row in rows if row.value is not None]
    counts = collections.Counter(segment.action_label or f"({segment.temporal_region})" for segment in found)
    seconds: dict[str, float] = collections.defaultdict(float)
    for segment in found:
        seconds[segment.action_label or f"({segment.temporal_region})"] += max(segment.end_sec - segment.start_sec, 0)
    print(f"{head}, {len({segment.filename for segment in found})} videos")
    order = [*labels, *sorted(set(counts) - set(labels))]
    width = max(len(name) for name in ["class", *order])
    print(f"  {'class':{width}}  {'segments':>8}  {'minutes':>8}")
    for name in order:
        print(f"  {name:{width}}  {counts[name]:8}  {seconds[name] / 60:8.1f}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_builders.validate",
        description="Names every bad row of a ground truth, with its line, its value and a remedy, and counts the classes.",
        epilog="example: python -m data_builders.validate --groundtruth train.csv --videos videos/ --labels labels/*.json",
    )
    add = parser.add_argument
    add("--groundtruth", required=True, metavar="CSV", help="the file to check")
    add("--videos", required=True, help="the folder that its file names are relative to")
    add("--labels", required=True, nargs="+", metavar="JSON", help="the action mapping, and the temporal-region mapping")
    add("--metadata", metavar="CSV", help="what `python -m data_builders.metadata` wrote, to be compared too")
    add(
        "--released",
        action="store_true",
        help="the ground truth is that of ActivityNet or THUMOS14, where some segments leave their video, are empty or stand "
        "twice: warn of these (training clamps and drops them) and fail for the rest alone",
    )
    workers = cpu.cores()
    add("--workers", type=cli.positive_int, default=workers, help="videos scanned at once (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
