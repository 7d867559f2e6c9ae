"""Measures videos: `python -m data_builders.metadata --videos DIR --output metadata.csv` decodes each and counts its frames."""

import argparse
import concurrent.futures
import sys
from collections.abc import Sequence
from pathlib import Path

import tqdm

from data_builders import measurement
from tsp_jax import groundtruth, video_list
from tsp_jax.system import cli, cpu
from tsp_jax.video import scanning


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0 all well, 1 some videos could not be read, 2 wrong use."""
    options = _parse(arguments)
    cli.show_any_name()
    root = Path(options.videos)
    try:
        videos = video_list.list_videos(root)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    root = root if root.is_dir() else root.parent
    measured: list[groundtruth.VideoMetadata] = []
    damaged, failed = [], []
    try:
        with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
            jobs = pool.map(lambda item: _measure_listed(item, root), videos)
            for item, result in zip(videos, tqdm.tqdm(jobs, "metadata", len(videos), unit="video", disable=None), strict=True):
                if isinstance(result, str):
                    failed.append(f"{item.path}: {result}")
                    continue
                measured.append(result.metadata)
                if result.damage:
                    damaged.append(f"{item.path}: {result.damage}; {result.metadata.num_frames} frames up to there count")
    except KeyboardInterrupt:
        print("interrupted; nothing is written", file=sys.stderr)
        return 130
    try:
        groundtruth.write_metadata(options.output, measured)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
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
        print(f"error: {len(failed)} of {len(videos)} videos can't be read; repair or remove them", file=sys.stderr)
    return 1 if failed else 0


def _measure_listed(item: video_list.Video, root: Path) -> measurement.Measurement | str:
    """The measurement, or why there is none."""
    if item.fault:
        return item.fault
    filename = item.path.relative_to(root).as_posix()
    if filename != filename.encode(errors="replace").decode():
        return "its folder's name is not UTF-8, as the CSV is; rename it"
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
    add("--videos", required=True, help="a folder, searched with its subfolders; file names are relative to it")
    add("--output", required=True, help="the CSV file")
    add("--workers", type=cli.positive_int, default=cpu.cores(), help="videos decoded at once")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
