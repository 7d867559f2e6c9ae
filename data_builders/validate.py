"""Lists the errors in a ground truth: `python -m data_builders.validate --groundtruth CSV --videos DIR --labels JSON`."""

import argparse
import collections
import concurrent.futures
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from data_builders import measurement, row_checks
from tsp_jax import groundtruth
from tsp_jax.system import cli, cpu, errors, progress
from tsp_jax.video import scanning, searching


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0 if all is well, 1 if there are bad rows, 2 for wrong use."""
    return cli.run(_work, _parse(arguments))


def _work(options: argparse.Namespace) -> int:
    path, folder = Path(options.groundtruth), Path(options.videos)
    labels = read_labels(options.labels)
    known = {item.filename: item for item in groundtruth.read_metadata(options.metadata)} if options.metadata else None
    if not folder.is_dir():
        raise FileNotFoundError(f"--videos {folder}: no such folder")
    if not path.is_file():
        raise FileNotFoundError(f"--groundtruth {path}: no such file")
    try:
        rows = groundtruth.read_groundtruth_rows(path)
    except (OSError, ValueError) as error:
        raise InvalidError(str(error)) from error
    findings = sorted(
        [
            *row_checks.check_rows(rows, labels, lenient=options.released),
            *check_files(rows, folder, options.workers),
            *(row_checks.check_metadata(rows, known, options.metadata) if known is not None else ()),
        ]
    )
    for finding in findings:
        print(f"{'warning: ' if finding.is_warning else ''}{path.name} line {finding.line}: {finding.message}")
    num_warnings = sum(finding.is_warning for finding in findings)
    num_errors = len(findings) - num_warnings
    _print_summary(rows, labels, f"{path}: {len(rows)} rows, {num_errors} errors, {num_warnings} warnings")
    if num_errors:
        bad_rows = len({finding.line for finding in findings if not finding.is_warning})
        raise InvalidError(f"{path}: {bad_rows} of {len(rows)} rows are bad; they are listed above")
    if not rows:
        raise InvalidError(f"{path}: no rows below the header")
    return 0


class InvalidError(errors.UserError):
    """The ground truth has errors."""

    exit_status = 1


def read_labels(paths: Sequence[str | Path]) -> list[str]:
    """Returns the action labels of the only action mapping among several mapping files.

    Raises:
      FileNotFoundError: a file is missing.
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
            f"--labels: expected one mapping of actions, and optionally the temporal-region mapping; "
            f"found {', '.join(actions) or 'the temporal-region mapping alone'}"
        )
    return mappings[actions[0]]


def check_files(
    rows: Sequence[groundtruth.Row[groundtruth.AnnotatedSegment]], folder: Path, workers: int
) -> Iterator[row_checks.Finding]:
    """Yields what is wrong with the videos that the rows name, by a scan of their packets.

    Args:
      rows: the rows of the ground truth.
      folder: the folder that the rows' file names are relative to.
      workers: the number of videos scanned at once.
    """
    by_file = collections.defaultdict(list)
    for row in rows:
        if row.value is not None:
            by_file[row.value.filename].append((row.line, row.value))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        jobs = pool.map(lambda item: list(_file_findings(folder, *item)), by_file.items())
        for found in progress.each(jobs, "validate", len(by_file)):
            yield from found


def _file_findings(
    folder: Path, filename: str, rows: Sequence[tuple[int, groundtruth.AnnotatedSegment]]
) -> Iterator[row_checks.Finding]:
    path = searching.spelled(folder, filename)
    try:
        if PurePath(filename).is_absolute() or ".." in PurePath(filename).parts:
            raise scanning.VideoError("it leads out of the folder; name it relative to --videos")
        if not path.is_file():
            raise scanning.VideoError(f"no such file in {folder}; add it, or remove the row")
        scan = scanning.scan(path)
    except (scanning.VideoError, OSError) as error:
        for line, _ in rows:
            yield row_checks.Finding(line, f"filename {filename!r} can't be read: {error}")
        return
    fps, num_frames, measured = scan.timeline.fps, len(scan.timeline.pts), None
    if scan.fault and rows:
        yield row_checks.Finding(rows[0][0], f"filename {filename!r}: {scan.fault}", is_warning=True)
    for line, segment in rows:
        agrees = True
        if measured is None and (segment.num_frames != num_frames or not groundtruth.same_fps(segment.fps, fps)):
            # The packets of a damaged file, and of some codecs, promise more frames than decode.
            fps, num_frames, damage = measured = _measured(path, filename, fps)
            if damage:
                message = f"filename {filename!r}: {num_frames} of {len(scan.timeline.pts)} frames decode ({damage})"
                yield row_checks.Finding(line, f"{message}; repair or replace it", is_warning=True)
        if not groundtruth.same_fps(segment.fps, fps):
            agrees = False
            yield row_checks.Finding(line, f"fps {segment.fps}, but the file has {fps}; {_REMEASURE}")
        if segment.num_frames != num_frames:
            agrees = False
            yield row_checks.Finding(line, f"video-frames {segment.num_frames}, but the file has {num_frames}; {_REMEASURE}")
        length_sec = segment.num_frames / segment.fps
        if agrees and abs(segment.video_duration_sec - length_sec) > 1 / segment.fps:
            yield row_checks.Finding(
                line, f"video-duration {segment.video_duration_sec}, but video-frames / fps is {length_sec}; {_REMEASURE}"
            )


_REMEASURE = "run `python -m data_builders.metadata`, then `groundtruth` again"


def _measured(path: Path, filename: str, fps: float) -> tuple[float, int, str]:
    """Returns the frame rate, the number of frames and the damage by decoding; the given rate if no frame decodes."""
    try:
        found = measurement.measure(path, filename)
    except scanning.VideoError as error:
        return fps, 0, str(error)
    return found.metadata.fps, found.metadata.num_frames, found.damage


def _print_summary(rows: Sequence[groundtruth.Row[groundtruth.AnnotatedSegment]], labels: Sequence[str], head: str) -> None:
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
        description="Lists every bad row of a ground truth with its line, its value and a remedy, and counts the segments of "
        "each class.",
        epilog="example: python -m data_builders.validate --groundtruth train.csv --videos videos/ --labels labels/*.json",
    )
    add = parser.add_argument
    add("--groundtruth", required=True, metavar="CSV", help="the ground truth to check")
    add("--videos", required=True, help="the folder of the videos; the file names in the ground truth are relative to it")
    add("--labels", required=True, nargs="+", metavar="JSON", help="the action mapping, and the temporal-region mapping")
    add(
        "--metadata",
        metavar="CSV",
        help="the CSV that `python -m data_builders.metadata` wrote; the rows are compared with it too",
    )
    add(
        "--released",
        action="store_true",
        help="for the ground truth of ActivityNet or THUMOS14, where some segments leave their video, are empty or occur "
        "twice: only warn of these, because training clamps and drops them",
    )
    workers = cpu.cores()
    add("--workers", type=cli.positive_int, default=workers, help="number of videos scanned at once (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
