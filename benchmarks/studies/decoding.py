"""Measures decoding for extraction: the time of a frame by stage, the gain of skipped packets, and that of several threads.

The first two are the processor time of one thread. The third is by the clock: two threads of FFmpeg for one video, by frames
and by slices, are compared with two videos of one thread each. Rounds alternate.
"""

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import tqdm

from benchmarks import alternate
from tsp_jax import clips, transforms, video_list
from tsp_jax.system import cli
from tsp_jax.video import decoding, scanning


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0 all is well, 1 a video can't be read, 2 wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.decoding",
        description=__doc__,
        epilog="example: python -m benchmarks.studies.decoding --videos videos/ --rounds 7",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--videos", required=True, help="a video, or a folder that is searched with its subfolders")
    parser.add_argument(
        "--stride", type=cli.positive_int, default=16, help="number of resampled frames from one clip's start to the next"
    )
    parser.add_argument("--rounds", type=cli.positive_int, default=5, help="number of rounds; each way has one turn in a round")
    parser.add_argument("--json", metavar="FILE", help="the file to write all numbers to")
    options = parser.parse_args(arguments)

    def work(result: dict[str, Any]) -> None:
        result["videos"] = []
        for item in tqdm.tqdm(video_list.list_videos(options.videos), "videos", disable=None):
            try:
                result["videos"].append(measure(item.path, options.stride, options.rounds))
            except scanning.VideoError as error:
                raise alternate.BenchmarkError(f"{item.path}: {error}") from error
        print("\n\n".join(tables(result["videos"])))

    return alternate.run(options, work)


def measure(path: Path, stride: int, rounds: int) -> dict[str, Any]:
    """Returns all measurements of a video, each as a list with one number for each round.

    Raises:
      VideoError: the video can't be read.
    """
    scan = scanning.scan(path)
    plan = clips.plan(scan.timeline, clips.ClipGeometry(stride=stride))
    count = len(scan.timeline.pts)
    needed = np.zeros(count, bool)
    needed[plan[plan[:, 0] >= 0]] = True
    every = np.ones(count, bool)
    picture = next(iter(decoding.Reader(scan, every)))[1]
    taps = transforms.centre_taps(*picture.shape[:2])
    found: dict[str, Any] = {"name": path.name, "size": f"{picture.shape[1]}x{picture.shape[0]}", "frames": count}
    found |= {"needed": int(needed.sum()), "milliseconds": {}, "left_out": [], "frames_per_sec": {}}

    def add(group: str, name: str, value: float) -> None:
        found[group].setdefault(name, []).append(value)

    for _ in range(rounds):
        add("milliseconds", "scan", 1000 * _thread_sec(lambda: scanning.scan(path)) / count)
        with mock.patch.object(decoding, "_rgb_converter", lambda: lambda frame: frame):
            whole = _thread_sec(lambda: _exhaust(decoding.Reader(scan, every)))
            reader = decoding.Reader(scan, needed)
            some = _thread_sec(lambda reader=reader: _exhaust(reader))
            with mock.patch.object(decoding.Reader, "_droppable", lambda self, stream: lambda packet: False):
                all_packets = _thread_sec(lambda: _exhaust(decoding.Reader(scan, needed)))
        found["decoded"] = reader.decoded
        found["left_out"].append(some / all_packets)
        add("milliseconds", "decode", 1000 * whole / count)
        converted = _thread_sec(lambda: _exhaust(decoding.Reader(scan, every)))
        add("milliseconds", "convert", 1000 * (converted - whole) / count)
        add("milliseconds", "taps", 1000 * _thread_sec(lambda: [transforms.take_taps(picture, taps) for _ in range(50)]) / 50)
        for name, decode in _WAYS.items():
            began = time.perf_counter()
            decode(path)
            add("frames_per_sec", name, 2 * count / (time.perf_counter() - began))
    return found


def tables(videos: Sequence[dict[str, Any]]) -> list[str]:
    """Returns tables of medians and ranges with a row for each video."""
    stages, ways = ("scan", "decode", "convert", "taps"), tuple(_WAYS)
    of_stages: list[tuple[str, ...]] = [("ms a frame, of a core", "size", *stages)]
    of_packets: list[tuple[str, ...]] = [("packets left out", "frames needed, of all", "frames decoded", "decoding takes")]
    of_threads: list[tuple[str, ...]] = [("frames a second", *ways)]
    for item in videos:
        of_stages.append((item["name"], item["size"], *(f"{statistics.median(item['milliseconds'][x]):.2f}" for x in stages)))
        left = item["left_out"]
        saved = f"{statistics.median(left):.2f} ({min(left):.2f} to {max(left):.2f})"
        of_packets.append((item["name"], f"{item['needed']} of {item['frames']}", str(item["decoded"]), saved))
        of_threads.append((item["name"], *(f"{statistics.median(item['frames_per_sec'][x]):.0f}" for x in ways)))
    return [
        "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))
        for rows in (of_stages, of_packets, of_threads)
    ]


def _thread_sec(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def _exhaust(items: Iterable[object]) -> None:
    for _ in items:
        pass


def _decode(path: Path, threads: int = 1, kind: Literal["FRAME", "SLICE"] = "FRAME") -> None:
    with scanning.open_container(path) as container:
        stream = scanning.video_stream(container)
        if threads > 1:
            stream.codec_context.thread_type, stream.codec_context.thread_count = kind, threads
        for packet, _ in scanning.packets(container, stream):
            stream.decode(packet)


def _twice_at_once(path: Path) -> None:
    both = [threading.Thread(target=_decode, args=(path,)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()


# Each of these decodes the video twice.
_WAYS: dict[str, Callable[[Path], None]] = {
    "one thread": lambda path: (_decode(path), _decode(path))[0],
    "two, by frames": lambda path: (_decode(path, 2), _decode(path, 2))[0],
    "two, by slices": lambda path: (_decode(path, 2, "SLICE"), _decode(path, 2, "SLICE"))[0],
    "two videos at once": _twice_at_once,
}


if __name__ == "__main__":
    sys.exit(main())
