"""Measures videos by decoding them: `python -m data_builders.metadata --videos DIR --output metadata.csv`."""

import argparse
import concurrent.futures
import sys
from collections.abc import Sequence
from pathlib import Path

from data_builders import measurement
from tsp_jax import groundtruth, video_list
from tsp_jax.system import cli, cpu, errors, progress
from tsp_jax.video import scanning


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    The status is 0 if all is well, 1 if videos can't be read or the CSV can't be written, 2 for wrong use, and 130 if it was
    interrupted.
    """
    return cli.run(_work, _parse(arguments))


def _work(options: argparse.Namespace) -> int:
    root = Path(options.videos)
    videos = video_list.list_videos(root)
    root = root if root.is_dir() else root.parent
    measured: list[groundtruth.VideoMetadata] = []
    damaged, failed = [], []
    with cli.resumable("nothing is written"):
        with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
            jobs = pool.map(lambda item: _measure_listed(item, root), videos)
            for item, result in zip(videos, progress.each(jobs, "metadata", len(videos)), strict=True):
                if isinstance(result, str):
                    failed.append(f"{item.path}: {result}")
                    continue
                measured.append(result.metadata)
                if result.damage:
                    damaged.append(f"{item.path}: {result.damage}; its first {result.metadata.num_frames} frames count")
        groundtruth.write_metadata(options.output, measured)
    for line in damaged:
        print(f"note: {line}", file=sys.stderr)
    for line in failed:
        print(f"unreadable: {line}", file=sys.stderr)
    hours = sum(item.video_duration_sec for item in measured) / 3600
    print(
        f"{options.output}: {len(measured)} videos, {hours:.2f} hours, {sum(item.num_frames for item in measured)} frames; "
        f"{len(damaged)} damaged, {len(failed)} unreadable and left out"
    )
    if failed:
        raise errors.UnfinishedError(f"{len(failed)} of {len(videos)} videos can't be read; repair or remove them")
    return 0


def _measure_listed(item: video_list.Video, root: Path) -> measurement.Measurement | str:
    """Returns a video's measurement, or the reason why there is none."""
    if item.fault:
        return item.fault
    filename = item.path.relative_to(root).as_posix()
    if filename != filename.encode(errors="replace").decode():
        return "its folder's name is not UTF-8, but the CSV is; rename the folder"
    try:
        return measurement.measure(item.path, filename)
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
    add("--videos", required=True, help="the folder of the videos, searched with its subfolders; file names are relative to it")
    add("--output", required=True, help="the CSV file to write")
    add("--workers", type=cli.positive_int, default=cpu.cores(), help="number of videos decoded at once")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
