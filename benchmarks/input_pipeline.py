"""Measures how many training clips a second one core reads from records, next to seeking in the source videos.

All ways give the same frames, which is checked first. Seeking opens the video for each clip, goes to the key frame before it,
decodes up to its end and resizes. It is done as in the original, which converts every frame of that second to RGB, and leanly,
where only the clip's own frames are converted. Rounds alternate on one core. Times are processor times of that core, so other
work on the machine matters little.

With --rival, all cores are used, the time is that of the clock, and PyTorch's sides are measured: `released`, a DataLoader with
two workers that seeks, and `best`, one with a worker for each core that reads the same records. Each side is a process, and
they take turns.
"""

import argparse
import contextlib
import datetime
import io
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import jax
import numpy as np
import tqdm
from jaxtyping import UInt8

from benchmarks import alternate, reading
from data_builders import build, metadata, standardize, synthetic
from data_builders import groundtruth as groundtruth_command
from tsp_jax import clips, groundtruth, input_pipeline, records, transforms, video_names
from tsp_jax.system import cli
from tsp_jax.video import writing

BATCH = 32
READ_AHEAD = 4  # batches
RECORDS, ORIGINAL = "records, as training reads them", "seeking, as the original reads"


def prepare(folder: Path, source: str | None, videos: int, height: int) -> tuple[Path, Path, Path]:
    """Returns the folder of videos at 30 fps, their ground truth and their records. What is missing is made.

    Args:
      folder: the folder to write to.
      source: a folder of videos, of which the first half counts as action; None for synthetic ones.
      videos: the number of synthetic videos.
      height: the synthetic videos' height in pixels, in 16:9. They are drawn as 320x240, and enlarged if it is not 240.
    """
    raw, standard, metadata_csv, truth = folder / "raw", folder / "videos", folder / "metadata.csv", folder / "train.csv"
    if source is None:
        _call(synthetic.main, f"--output {raw} --videos {videos} --seed 0")
        source = str(raw / "videos")
        if height != synthetic.HEIGHT:
            source = str(raw / f"enlarged_{height}")
            for path in tqdm.tqdm(sorted((raw / "videos").iterdir()), "enlarge", disable=None):
                if not (Path(source) / path.name).exists():
                    Path(source).mkdir(exist_ok=True)
                    writing.write(Path(source) / path.name, _enlarged(path, height), synthetic.FPS)
    _call(standardize.main, f"--input {source} --output {standard}")
    _call(metadata.main, f"--videos {standard} --output {metadata_csv}")
    if (raw / "annotations.json").exists():
        flags = f"--format activitynet --annotations {raw}/annotations.json --subset train --background union"
        _call(groundtruth_command.main, f"{flags} --metadata {metadata_csv} --output {truth}")
    else:
        halves = []
        for item in groundtruth.read_metadata(metadata_csv):
            middle, end = item.video_duration_sec / 2, item.video_duration_sec
            rest = (end, item.filename, item.fps, item.num_frames)
            name = video_names.feature_name(item.filename)
            halves += [groundtruth.AnnotatedSegment(name, 0.0, middle, "some", *rest, groundtruth.ACTION)]
            halves += [groundtruth.AnnotatedSegment(name, middle, end, "", *rest, groundtruth.NO_ACTION)]
        groundtruth.write_groundtruth(truth, halves)
    _call(build.main, f"--dataset video_folder --videos {standard} --groundtruth {truth} --data_dir {folder}/records")
    return standard, truth, folder / "records" / "video_folder" / "jpeg" / "1.0.0"


def _enlarged(path: Path, height: int) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.reformat(height * 16 // 9 // 2 * 2, height).to_ndarray(format="rgb24")


def _call(main: Callable[[Sequence[str]], int], flags: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = main(flags.split())
    if status:
        raise RuntimeError(f"{main.__module__} {flags} failed:\n{printed.getvalue()}")


def seek_clip(path: Path, frame_numbers: np.ndarray, fps: float, *, lean: bool) -> UInt8[np.ndarray, "16 128 171 3"]:
    """Returns the frames of a clip, read by opening, seeking, decoding and resizing.

    Args:
      path: the video, which has a constant rate.
      frame_numbers: the numbers of the clip's frames.
      fps: the video's frames a second.
      lean: whether only these frames are converted; otherwise all up to the end of the clip's last fifteenth of a second, as in
        the original.
    """
    first, past = int(frame_numbers[0]), int(frame_numbers[-1]) + round(fps / records.FRAME_RATE)
    wanted = set(frame_numbers.tolist()) if lean else set(range(first, past + 1))
    read = reading.seek(path, first / fps, max(wanted) / fps, lambda sec: round(sec * fps) in wanted)
    found = {round(sec * fps): pixels for sec, pixels in read}
    return np.stack([transforms.resize(found[number]) for number in frame_numbers.tolist()])


def frames_of(clip: input_pipeline.Clip, item: groundtruth.AnnotatedSegment) -> np.ndarray:
    """Returns the frame numbers of a clip in its source video."""
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
    """Returns the milliseconds for each clip of the pipeline's stages, each run alone on the same clips."""
    stages = Stages()
    out = np.empty((records.CLIP_LEN, *transforms.KINETICS.resize, 3), np.uint8)
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
    """Returns all measurements."""
    videos, truth, data = prepare(folder, options.source, options.videos, options.height)
    rows = groundtruth.read_groundtruth(truth)
    split = input_pipeline.open_split(data, "train")
    window = jax.jit(transforms.window)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    def source_of(clip: input_pipeline.Clip) -> groundtruth.AnnotatedSegment:
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
        return list(map(input_pipeline.train_clips(split, clips_per_segment=5, balanced=True, seed=seed), range(count)))

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
        "versions": alternate.versions("grain", "array_record", "simplejpeg", "av", "jax"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": alternate.commit(),
    }


def _compare(options: argparse.Namespace) -> int:
    options.variants = None

    def work(result: dict[str, Any]) -> None:
        with contextlib.ExitStack() as stack:
            folder = Path(options.folder or stack.enter_context(tempfile.TemporaryDirectory())).absolute()
            videos, truth, data = prepare(folder, options.source, options.videos, options.height)
            spec = {"videos": str(videos), "truth": str(truth), "records": str(data), "batch": options.batch}
            measured = alternate.measure(
                f"read training clips, {options.batch} at once",
                alternate.sides("loading", options),
                spec,
                clips=options.batch,
                tolerance=0.05,
                options=options,
            )
            alternate.add(result, measured, options)

    return alternate.run(options, work)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input_pipeline",
        description=__doc__,
        epilog="example: python -m benchmarks.input_pipeline --rounds 5",
    )
    parser.add_argument("--source", help="a folder of videos; by default synthetic ones are made")
    parser.add_argument(
        "--videos", type=int, default=10, help="number of synthetic videos of 20 to 60 s; three of five are read"
    )
    parser.add_argument("--height", type=int, default=360, help="height of synthetic videos in pixels; they are drawn with 240")
    parser.add_argument("--clips", type=int, default=640, help="number of clips in a round; a tenth of them is read by seeking")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="a folder for the data, which is used again; by default a temporary one")
    parser.add_argument("--json", metavar="FILE", help="the file to write all numbers to")
    parser.add_argument(
        "--rival", nargs="+", choices=alternate.RIVALS, help="compare with these sides of PyTorch instead, on all cores"
    )
    parser.add_argument("--batch", type=cli.positive_int, default=BATCH, help="with --rival: clips in a batch, an even number")
    parser.add_argument("--seconds", type=float, default=4.0, help="with --rival: about how long a turn takes")
    options = parser.parse_args(arguments)
    if options.rival:
        return _compare(options)
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


if __name__ == "__main__":
    sys.exit(main())
