"""Clips a second of one core: from records as training reads them, beside the same clips by seeking in the source videos.

All give the same frames (checked first). Seeking opens the video for each clip, goes to the key frame before it, decodes up to
its end and resizes: as the original reads, which converts every frame of that second to RGB, and leanly, converting the clip's
own frames alone. Rounds alternate on one core; times are that core's own, so other work on the machine weighs little.
"""

import argparse
import contextlib
import importlib.metadata
import io
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import jax
import numpy as np
import tqdm
from jaxtyping import UInt8

from data_builders import build, groundtruth, metadata, standardize, synthetic
from tsp_jax import clips, input_pipeline, records, segments, transforms

BATCH = 32
READ_AHEAD = 4  # batches
RECORDS, ORIGINAL = "records, as training reads them", "seeking, as the original reads"


def prepare(folder: Path, videos: int, workers: int) -> tuple[Path, Path, Path]:
    """Synthetic videos at 30 fps, their ground truth and their records, made where they are missing."""
    raw, standard, metadata_csv = folder / "raw", folder / "videos", folder / "metadata.csv"
    truth, cores = folder / "train.csv", ["--workers", str(workers)]
    steps: list[tuple[Callable[[Sequence[str]], int], list[str]]] = [
        (synthetic.main, ["--output", str(raw), "--videos", str(videos), "--seed", "0", *cores]),
        (standardize.main, ["--input", str(raw / "videos"), "--output", str(standard), *cores]),
        (metadata.main, ["--videos", str(standard), "--output", str(metadata_csv), *cores]),
        (
            groundtruth.main,
            f"--format activitynet --annotations {raw}/annotations.json --subset train --metadata {metadata_csv} "
            f"--output {truth} --background union".split(),
        ),
        (
            build.main,
            [*f"--dataset video_folder --videos {standard} --groundtruth {truth} --data_dir {folder}/records".split(), *cores],
        ),
    ]
    for main, flags in steps:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            status = main(flags)
        if status:
            raise RuntimeError(f"{main.__module__} {' '.join(flags)} failed:\n{printed.getvalue()}")
    return standard, truth, folder / "records" / "video_folder" / "jpeg" / "1.0.0"


def seek_clip(path: Path, frame_numbers: np.ndarray, fps: float, *, lean: bool) -> UInt8[np.ndarray, "16 128 171 3"]:
    """The frames of a clip by opening, seeking, decoding and resizing.

    Args:
      path: the video, of a constant rate.
      frame_numbers: of the clip.
      fps: of the video.
      lean: convert these frames alone; else all up to the end of the clip's last fifteenth of a second, as the original does.
    """
    first, past = int(frame_numbers[0]), int(frame_numbers[-1]) + round(fps / records.FRAME_RATE)
    found: dict[int, np.ndarray] = {}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        time_base = stream.time_base or Fraction(1, 90000)
        container.seek(round(first / fps / time_base), stream=stream)
        wanted = set(frame_numbers.tolist()) if lean else set(range(first, past + 1))
        for frame in container.decode(stream):
            number = round(float((frame.pts or 0) * time_base) * fps)
            if number in wanted:
                found[number] = frame.to_ndarray(format="rgb24")
            if number >= max(wanted):
                break
    return np.stack([transforms.resize(found[number]) for number in frame_numbers.tolist()])


def frames_of(clip: input_pipeline.Clip, item: segments.Segment) -> np.ndarray:
    """The frame numbers of a clip in its source video."""
    return clips.resampled(item.num_frames, item.fps, records.FRAME_RATE)[clip.place : clip.place + records.CLIP_LEN]


class Stages:
    """Seconds of processor time spent in named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - began


def time_stages(split: input_pipeline.Split, chosen: Sequence[input_pipeline.Clip]) -> dict[str, float]:
    """Milliseconds a clip of the pipeline's stages, each run alone on the same clips."""
    stages = Stages()
    out = np.empty((records.CLIP_LEN, *transforms.RESIZED, 3), np.uint8)
    for clip in chosen:
        with stages.time("read record"):
            record = split.source[clip.record]
        begin = clip.place - int(split.index.record_first[clip.record])
        bounds = np.concatenate([[0], record["frame_ends"]])[begin : begin + records.CLIP_LEN + 1].tolist()
        with stages.time("decode frames"):
            for number in range(records.CLIP_LEN):
                records.decode_frame(record["frames"][bounds[number] : bounds[number + 1]], split.index.codec, out[number])
    return {name: 1000 * seconds / len(chosen) for name, seconds in stages.seconds.items()}


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All measurements."""
    videos, truth, data = prepare(folder, options.videos, os.cpu_count() or 1)
    rows = segments.read_groundtruth(truth)
    split = input_pipeline.open_split(data, "train")
    window = jax.jit(transforms.window)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    def source_of(clip: input_pipeline.Clip) -> segments.Segment:
        return rows[int(split.index.segment_row[clip.segment])]

    def from_records(seed: int, num_clips: int) -> float:
        batches = input_pipeline.train_batches(split, global_batch_size=BATCH, seed=seed, balanced=True, num_threads=1)
        for _ in range(READ_AHEAD):  # what it reads ahead at the start
            next(batches)
        began = time.process_time()
        for _ in range(num_clips // BATCH):
            next(batches)
        seconds = time.process_time() - began
        batches.close()
        return 1000 * seconds / num_clips

    def seeking(chosen: Sequence[input_pipeline.Clip], lean: bool) -> float:
        began = time.process_time()
        for clip in chosen:
            item = source_of(clip)
            seek_clip(videos / item.filename, frames_of(clip, item), item.fps, lean=lean)
        return 1000 * (time.process_time() - began) / len(chosen)

    def drawn(seed: int, count: int) -> list[input_pipeline.Clip]:
        order = input_pipeline.train_clips(split, clips_per_segment=5, balanced=True, seed=seed)
        return [clip for number in range(count) if (clip := order[number]) is not None]

    def on_device(batch: input_pipeline.Batch) -> float:
        arrays = jax.device_put((batch["video"], batch["crop"], batch["flip"]))
        window(*arrays).block_until_ready()
        began = time.process_time()
        for _ in range(8):
            window(*arrays).block_until_ready()
        return 1000 * (time.process_time() - began) / 8 / BATCH

    for clip, lean in itertools.product(drawn(0, 8), (False, True)):
        item = source_of(clip)
        expected = seek_clip(videos / item.filename, frames_of(clip, item), item.fps, lean=lean).astype(float)
        decibel = 10 * np.log10(255**2 / np.mean((input_pipeline.read_clips(split, [clip])["video"][0] - expected) ** 2))
        if decibel < 40:
            raise RuntimeError(f"{clip}: records and source differ ({decibel:.1f} dB)")
    batch = input_pipeline.read_clips(split, drawn(0, BATCH))
    whole: dict[str, list[float]] = {}
    stages: dict[str, list[float]] = {}
    for seed in tqdm.trange(options.rounds, desc="rounds", disable=None):
        chosen = drawn(seed, options.clips // 10)
        began = time.process_time()
        drawn(seed, options.clips)
        measured = {"draw": 1000 * (time.process_time() - began) / options.clips, **time_stages(split, chosen)}
        device = on_device(batch)
        host = from_records(seed, options.clips)
        for name, value in {
            RECORDS: host + device,
            "records, the host's part": host,
            ORIGINAL: seeking(chosen, lean=False),
            "seeking, leanly": seeking(chosen, lean=True),
        }.items():
            whole.setdefault(name, []).append(value)
        for name, value in {**measured, "crop and mirror (the device's part)": device}.items():
            stages.setdefault(name, []).append(value)
    return {
        "whole_ms_per_clip": whole,
        "stages_ms_per_clip": stages,
        "record_bytes": int(split.index.shard_bytes.sum() / split.index.shard_records.sum()),
        "machine": f"{platform.machine()}, one core of {os.cpu_count()}, load {os.getloadavg()[0]:.1f}",
        "versions": {name: importlib.metadata.version(name) for name in ("grain", "array_record", "simplejpeg", "av", "jax")},
        "commit": _commit(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input_pipeline",
        description=__doc__,
        epilog="example: python -m benchmarks.input_pipeline --rounds 5",
    )
    parser.add_argument("--videos", type=int, default=10, help="synthetic videos of 20 to 60 s; three of five are read")
    parser.add_argument("--clips", type=int, default=640, help="clips a round, a tenth of them by seeking")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the data lies or goes; a temporary one otherwise")
    parser.add_argument("--json", help="a file for all numbers")
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        folder = Path(options.folder or stack.enter_context(tempfile.TemporaryDirectory()))
        result = run(options, folder)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1))
    print(f"{result['machine']}; {', '.join(f'{k} {v}' for k, v in result['versions'].items())}; commit {result['commit']}")
    print("| one core | clips a second | range | records are faster by |\n| --- | --- | --- | --- |")
    for name, values in result["whole_ms_per_clip"].items():
        ratios = [value / ours for value, ours in zip(values, result["whole_ms_per_clip"][RECORDS], strict=True)]
        print(
            f"| {name} | {1000 / statistics.median(values):.1f} | {1000 / max(values):.1f} to {1000 / min(values):.1f} | "
            f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) |"
        )
    medians = {name: statistics.median(values) for name, values in result["stages_ms_per_clip"].items()}
    whole = statistics.median(result["whole_ms_per_clip"][RECORDS])
    print("\n| stage of reading records, alone | ms a clip |\n| --- | --- |")
    for name, value in {**medians, "the rest: batches, threads": whole - sum(medians.values()), "whole": whole}.items():
        print(f"| {name} | {value:.3f} |")
    slowest = max(medians, key=medians.__getitem__)
    megabytes = result["record_bytes"] / 1e6
    print(
        f"\nBound by: {slowest} ({medians[slowest] / whole:.0%} of the time). A clip reads one record of {megabytes:.2f} MB: "
        f"{megabytes * 1000 / whole:.0f} MB/s a core from storage or its cache."
    )
    return 0


def _commit() -> str:
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return result.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
