"""Measures how many clips a second feature extraction from files to files makes, next to PyTorch; also its memory and start.

All sides read the same videos with the same weights, and must give the same features before anything is timed. `released`
seeks and decodes a second of video for each clip; `best` decodes each video once, in threads, as ours does.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import tqdm
from jaxtyping import UInt8

from benchmarks import alternate, model
from data_builders import synthetic
from tsp_jax import clips, video_list
from tsp_jax.system import cli, files
from tsp_jax.video import scanning, writing

TOLERANCES = {"float32": 2e-3, "bfloat16": 0.1}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0 all is well, 1 a side fails or differs, 2 wrong use."""
    options = _parse(arguments)

    def work(result: dict[str, Any]) -> None:
        with contextlib.ExitStack() as stack:
            folder = Path(options.folder or stack.enter_context(tempfile.TemporaryDirectory()))
            if options.memory:
                result["memory"] = memory(folder, options)
                print(memory_table(result["memory"]))
            elif options.startup:
                result["startup"] = startup(folder, options)
                print(startup_table(result["startup"]))
            elif options.command:
                result["command_laps"] = whole_command(folder, options)
                print(command_table(result["command_laps"]))
            else:
                try:
                    for measured in speeds(folder, options):
                        alternate.add(result, measured, options)
                except scanning.VideoError as error:
                    raise alternate.BenchmarkError(str(error)) from error

    return alternate.run(options, work)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.extract",
        description=__doc__,
        epilog="example: python -m benchmarks.extract --backbone r3d_18 --stride 16 1 --rounds 3",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--backbone",
        nargs="+",
        choices=(*model.BACKBONES, "r3d_tiny"),
        default=["r2plus1d_34"],
        help="r3d_tiny has no side in PyTorch",
    )
    add(
        "--stride",
        type=cli.positive_int,
        nargs="+",
        default=[16, 1],
        help="number of resampled frames from one clip's start to the next",
    )
    add("--clip_len", type=cli.positive_int, default=16, help="number of frames in a clip")
    alternate.add_dtype(parser, TOLERANCES)
    add("--batch", type=cli.positive_int, default=32, help="clips in a batch")
    add("--videos", metavar="DIR", help="a folder of videos; by default synthetic ones are made")
    add("--synthetic", type=cli.positive_int, default=2, metavar="N", help="number of synthetic videos, 320x240 at 30 fps")
    add(
        "--length",
        type=float,
        nargs=2,
        default=[6.0, 12.0],
        metavar="SEC",
        help="shortest and longest length of a synthetic video",
    )
    add("--folder", metavar="DIR", help="a folder for the videos, which are used again; by default a temporary one")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--command", action="store_true", help="time our whole command, including its start")
    instead.add_argument("--startup", action="store_true", help="time our command until its first features, cold and warm")
    instead.add_argument(
        "--memory", action="store_true", help="measure the memory of our command over time on long 1080p files"
    )
    add(
        "--memory_hours",
        type=float,
        nargs="+",
        default=[0.02, 2.0],
        metavar="H",
        help="lengths of these files, in hours",
    )
    alternate.add_flags(parser)
    options = parser.parse_args(arguments)
    if "r3d_tiny" in options.backbone and options.rival and not (options.command or options.startup or options.memory):
        parser.error("r3d_tiny has no side in PyTorch; give --rival without a name after it")
    return options


# ------------------------------------------------------------------------------------------------------------------ speed


def speeds(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Returns the measurements of each backbone, dtype and stride.

    Raises:
      BenchmarkError: a side fails or differs.
    """
    videos = _videos(folder, options)
    for backbone, dtype, stride in itertools.product(options.backbone, options.dtype, options.stride):
        spec = {"backbone": backbone, "label_counts": model.LABEL_COUNTS, "gvf": True, "dtype": dtype, "batch": options.batch}
        spec |= {"stride": stride, "clip_len": options.clip_len, "videos": str(videos)}
        work = f"extract {backbone} {dtype}, stride {stride}"
        count = _count_clips(videos, stride, options.clip_len)
        yield alternate.measure(
            work,
            alternate.sides("extraction", options),
            spec,
            clips=count,
            tolerance=TOLERANCES[dtype],
            options=options,
        )


def _videos(folder: Path, options: argparse.Namespace) -> Path:
    if options.videos:
        return Path(options.videos).absolute()
    flags = ["--output", str(folder / "raw"), "--videos", str(options.synthetic), "--seed", "0", "--workers", "1"]
    with contextlib.redirect_stdout(sys.stderr):
        status = synthetic.main([*flags, "--seconds", *map(str, options.length)])
    if status:
        raise alternate.BenchmarkError(f"{folder}: no synthetic videos; name another --folder")
    return (folder / "raw" / "videos").absolute()


def _count_clips(videos: Path, stride: int, clip_len: int) -> int:
    geometry = clips.ClipGeometry(clip_len=clip_len, stride=stride)
    return sum(len(clips.plan(scanning.scan(item.path).timeline, geometry)) for item in video_list.list_videos(videos))


# ------------------------------------------------------------------------------------------------- the command, ours alone


def whole_command(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the seconds of `python -m tsp_jax.extract` for each backbone, dtype and stride, from its start to its end.

    The first run of each is not counted, because it may have to compile.

    Raises:
      BenchmarkError: the command fails.
    """
    videos, results = _videos(folder, options), []
    for backbone, dtype, stride in itertools.product(options.backbone, options.dtype, options.stride):
        flags = _flags(folder, backbone, videos, stride, dtype, options)
        seconds = []
        for _ in tqdm.trange(options.rounds + 1, desc=f"{backbone} {dtype}, stride {stride}", unit="run", disable=None):
            began = time.perf_counter()
            with _extracting(flags) as process:
                _check(process.wait())
            seconds.append(time.perf_counter() - began)
        count = _count_clips(videos, stride, options.clip_len)
        results.append({"backbone": backbone, "dtype": dtype, "stride": stride, "clips": count, "seconds": seconds[1:]})
    return results


def command_table(results: Sequence[dict[str, Any]]) -> str:
    """Returns a table with a row for each of the runs of `whole_command`."""
    rows = ["| the whole command | clips | seconds | range | clips a second |", "| --- " * 5 + "|"]
    for item in results:
        seconds = item["seconds"]
        middle = statistics.median(seconds)
        rows.append(
            f"| {item['backbone']} {item['dtype']}, stride {item['stride']} | {item['clips']} | {middle:.1f} | "
            f"{min(seconds):.1f} to {max(seconds):.1f} | {item['clips'] / middle:.3g} |"
        )
    return "\n".join(rows)


def startup(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the seconds from the start of a process to its first features, by stage, with an empty and a full cache.

    Raises:
      BenchmarkError: the process fails.
    """
    results = []
    for backbone, dtype in itertools.product(options.backbone, options.dtype):
        spec = {"checkpoint": str(_checkpoint(folder, backbone)), "batch": options.batch, "clip_len": options.clip_len}
        with tempfile.TemporaryDirectory() as cache:
            # Programs that compile in less than a second are kept too.
            kept = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            for number in tqdm.trange(options.rounds + 1, desc=f"start {backbone} {dtype}", unit="run", disable=None):
                given = json.dumps({**spec, "dtype": dtype, "began": time.time()})
                code = "import sys; from benchmarks import ours; ours.startup(sys.argv[1])"
                with _child(["-c", code, given], stdout=subprocess.PIPE, **kept) as process:
                    printed = process.communicate()[0]
                    _check(process.returncode)
                cache_is = "warm" if number else "empty"
                results.append({"backbone": backbone, "dtype": dtype, "cache": cache_is, **json.loads(printed)})
    return results


def startup_table(results: Sequence[dict[str, Any]]) -> str:
    """Returns a table with a row for each measurement of `startup`: medians over the rounds."""
    stages = [key for key in results[0] if key.endswith("_sec")]
    names = " | ".join(key.removesuffix("_sec").replace("_", " ") for key in stages)
    rows = [f"| start, seconds | compilation cache | {names} | whole |", "| --- " * (len(stages) + 3) + "|"]
    groups = itertools.groupby(results, lambda item: (f"{item['backbone']} {item['dtype']}", item["cache"]))
    for (name, cache), items in groups:
        found = list(items)
        medians = [statistics.median(item[stage] for item in found) for stage in stages]
        whole = statistics.median(sum(item[stage] for stage in stages) for item in found)
        rows.append(f"| {name} | {cache} | {' | '.join(f'{x:.2f}' for x in medians)} | {whole:.2f} |")
    return "\n".join(rows)


def memory(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the command's resident memory over time, in bytes, for each of the 1080p videos. It works on Linux only.

    Raises:
      BenchmarkError: the command fails.
    """
    results = []
    for backbone, hours in itertools.product(options.backbone, options.memory_hours):
        path = long_video(folder / f"long_{hours:g}h.mp4", hours)
        flags = _flags(folder, backbone, path, options.stride[0], options.dtype[0], options)
        began, samples, peak = time.perf_counter(), [], 0
        with _extracting(flags) as process, tqdm.tqdm(desc=f"{backbone}, {hours:g} hours", unit="s", disable=None) as bar:
            while process.poll() is None:
                status = _status(process.pid)
                if "VmRSS" in status:
                    samples.append((time.perf_counter() - began, status["VmRSS"]))
                    peak = max(peak, status["VmHWM"])
                time.sleep(0.2 if len(samples) < 600 else 1)
                bar.update(int(time.perf_counter() - began - bar.n))
            _check(process.returncode)
        results.append(
            {"backbone": backbone, "hours": hours, "file_bytes": path.stat().st_size, "peak": peak, "samples": samples}
        )
    return results


def memory_table(results: Sequence[dict[str, Any]]) -> str:
    """Returns a table with a row for each video: the peak, and the memory at quarters of the run."""
    rows = ["| 1080p video | seconds | peak, MB | at a quarter | at half | at three quarters |", "| --- " * 6 + "|"]
    for item in results:
        rss = [value for _, value in item["samples"]]
        quarters = " | ".join(f"{rss[len(rss) * k // 4] / 1e6:.0f}" for k in (1, 2, 3))
        rows.append(
            f"| {item['backbone']}, {item['hours']:g} hours | {item['samples'][-1][0]:.0f} | {item['peak'] / 1e6:.0f} | "
            f"{quarters} |"
        )
    return "\n".join(rows)


def long_video(path: Path, hours: float) -> Path:
    """Writes a 1080p H.264 video at 30 fps that repeats two seconds: they are encoded once, and their packets repeated."""
    if path.exists():
        return path
    part = path.with_name("part.mp4")
    writing.write(part, _pictures(60), 30, crf=30)
    with av.open(str(part)) as source:
        stream = source.streams.video[0]
        packets = [packet for packet in source.demux(stream) if packet.size]
        spacing = int(1 / (30 * (stream.time_base or Fraction(1, 15360))))
        with files.replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as output:
            target = output.add_stream_from_template(stream)
            for number in tqdm.trange(max(1, round(hours * 3600 / 2)), desc="long video", disable=None):
                for packet in packets:
                    again = av.Packet(bytes(packet))
                    again.pts = (packet.pts or 0) + number * 60 * spacing
                    again.dts = (packet.dts or 0) + number * 60 * spacing
                    again.time_base, again.is_keyframe, again.stream = packet.time_base, packet.is_keyframe, target
                    output.mux(again)
    return path


def _pictures(count: int) -> Iterator[UInt8[np.ndarray, "1080 1920 3"]]:
    still = np.random.default_rng(0).integers(40, 216, (135, 240, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    for number in range(count):
        picture = still.copy()
        picture[400:600, 20 * number : 20 * number + 300] = (200, 60, 30)
        yield picture


def _checkpoint(folder: Path, backbone: str) -> Path:
    """Writes seeded weights as a checkpoint folder, in another process, so that this one does not use the device."""
    path = folder / "checkpoints" / backbone
    if not path.exists():
        spec = json.dumps({"backbone": backbone, "label_counts": model.LABEL_COUNTS, "gvf": True})
        code = "import sys; from benchmarks import ours; ours.write_checkpoint(*sys.argv[1:])"
        with _child(["-c", code, spec, str(path)]) as process:
            _check(process.wait())
    return path


def _flags(folder: Path, backbone: str, videos: Path, stride: int, dtype: str, options: argparse.Namespace) -> list[str]:
    """Returns the flags of the extraction command."""
    flags = ["--checkpoint", str(_checkpoint(folder, backbone)), "--videos", str(videos), "--overwrite"]
    flags += ["--output", str(folder / "features.h5"), "--stride", str(stride), "--dtype", dtype]
    return [*flags, "--clip_len", str(options.clip_len), "--batch_size", str(options.batch)]


@contextlib.contextmanager
def _extracting(flags: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    """Starts the extraction command; its output goes to this process's stderr."""
    with _child(["-m", "tsp_jax.extract", *flags], stdout=sys.stderr) as process:
        yield process


@contextlib.contextmanager
def _child(arguments: Sequence[str], stdout: Any = None, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    whole = {**alternate.environment(), **environment}
    process = subprocess.Popen([sys.executable, *arguments], stdout=stdout, text=True, env=whole)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _check(status: int | None) -> None:
    if status:
        raise alternate.BenchmarkError(f"a command ended with status {status}; its messages are above")


def _status(pid: int) -> dict[str, int]:
    """Returns the bytes that Linux reports of a process, by name; empty if the process has ended."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith(" kB")}
    return {}


if __name__ == "__main__":
    sys.exit(main())
