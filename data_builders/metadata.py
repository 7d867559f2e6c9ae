"""Measures videos by decoding them: `python -m data_builders.metadata --videos DIR --output metadata.csv`."""

import argparse
import concurrent.futures
import sys
from collections.abc import Sequence
from pathlib import Path

from data_builders import measurement
from tsp_jax import groundtruth, video_list
from tsp_jax.system import cli, cpu, errors, progress
from tsp_jax.video import scanning, searching


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    The status is 0 if all is well, 1 if videos can't be read or the CSV can't be written, 2 for wrong use, and 130 if it was
    interrupted.
    """
    return cli.run(_work, _parse(arguments))


def _work(options: argparse.Namespace) -> int:
    found = searching.find(options.videos)
    for line in found.notes:
        video_list.print_note(line)
    measured: list[groundtruth.VideoMetadata] = []
    noted, damaged, faulty, failed = [], [], [], []
    with cli.resumable("nothing is written"):
        with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
            jobs = pool.map(lambda path: _measure_listed(path, found.filename(path)), found.paths)
            for path, result in zip(found.paths, progress.each(jobs, "metadata", len(found.paths)), strict=True):
                if isinstance(result, str):
                    failed.append(f"{path}: {result}")
                    continue
                measured.append(result.metadata)
                noted += [f"{path}: {note}" for note in result.notes]
                if result.fault:
                    faulty.append(f"{path}: {result.fault}")
                if result.damage:
                    damaged.append(f"{path}: {result.damage}; {result.metadata.num_frames} frames count")
        groundtruth.write_metadata(options.output, measured)
    for line in noted + damaged:
        print(f"note: {line}", file=sys.stderr)
    for line in faulty:
        print(f"not whole: {line}", file=sys.stderr)
    for line in failed:
        print(f"unreadable: {line}", file=sys.stderr)
    hours = sum(item.video_duration_sec for item in measured) / 3600
    print(
        f"{options.output}: {len(measured)} videos, {hours:.2f} hours, {sum(item.num_frames for item in measured)} frames; "
        f"{len(damaged)} damaged, {len(failed)} unreadable and left out"
    )
    if failed:
        raise errors.UnfinishedError(f"{len(failed)} of {len(found.paths)} videos can't be read; repair or remove them")
    if faulty:
        raise errors.UnfinishedError(f"{len(faulty)} of {len(found.paths)} videos are not whole; they are listed above")
    return 0


def _measure_listed(path: Path, filename: str) -> measurement.Measurement | str:
    """Returns a video's measurement, or the reason why there is none."""
    if fault := searching.picture_fault(path):
        return fault
    if filename != filename.encode(errors="replace").decode():
        which = "the file's name" if path.name != path.name.encode(errors="replace").decode() else "its folder's name"
        return f"{which} is not UTF-8, but the CSV is; rename the {'file' if which.startswith('the') else 'folder'}"
    try:
        return measurement.measure(path, filename)
    except (scanning.VideoError, OSError) as error:
        return str(error)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_builders.metadata",
        description="Decodes videos and writes filename, video-duration, fps and video-frames of each as CSV.",
        epilog="example: python -m data_builders.metadata --videos videos/ --output metadata.csv",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--videos",
        required=True,
        nargs="+",
        help=f"{searching.HELP}; the CSV's file names are relative to the folder, or to the folder that several paths share",
    )
    add("--output", required=True, help="the CSV file to write")
    add("--workers", type=cli.positive_int, default=cpu.cores(), help="number of videos decoded at once")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
