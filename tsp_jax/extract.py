"""Features of videos: `python -m tsp_jax.extract --checkpoint C --videos DIR --output F.h5`.

Threads decode several videos at once and hand over clips (`clip_stream`); the encoder packs the clips of all videos into
batches (`encoder`); a video whose last row has come back is committed to the file (`features`).
"""

import argparse
import contextlib
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, get_args

import jax
import numpy as np
import tqdm
from jaxtyping import Float32

from tsp_jax import checkpoints, clips, features, version, video_list, weights
from tsp_jax.extraction import batches, clip_stream
from tsp_jax.system import cli, compilation, cpu, files, malloc, tables, timing
from tsp_jax.video import decoding

_TRACED_BATCHES = 8  # a trace is kept in memory until it is written, and grows by megabytes a batch

# ---------------------------------------------------------------------------------------------------------------- command


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0 all well, 1 some videos failed, 2 wrong use."""
    options = _parse(arguments)
    cli.show_any_name()
    prepare_jax()
    try:
        if options.profile is not None:
            Path(options.profile).mkdir(parents=True, exist_ok=True)
        videos = video_list.list_videos(options.videos, options.metadata_csv)
        videos = video_list.shard(videos, options.num_shards, options.shard_id)
        settings = read_settings(options)
        checkpoint = weights.open_any(options.checkpoint)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    errors_csv = Path(f"{options.output}.errors.csv")
    run = run_attributes(checkpoint, settings)
    try:
        with terminable(), features.Writer(options.output, run, overwrite=options.overwrite) as writer:
            summary = extract(
                checkpoint, videos, writer, settings, stop_on_error=options.on_error == "stop", trace_dir=options.profile
            )
            write_errors(errors_csv, summary.failures)
        if options.profile is not None:
            _write_stages(Path(options.profile) / "stages.json", summary)
    except features.FeatureFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}; finished videos are kept: the same command again goes on from here", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished videos are kept: the same command again goes on from here", file=sys.stderr)
        return 130
    _print_summary(summary, options.output, errors_csv)
    if options.profile is not None:
        _print_stages(summary, options.profile)
    return 1 if summary.failures else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tsp_jax.extract",
        description="Writes the features of videos into one HDF5 file. The same command again skips what is done.",
        epilog="example: python -m tsp_jax.extract --checkpoint r2plus1d_34-tsp_on_activitynet --videos videos/ "
        "--output features.h5",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="a checkpoint folder, a run's workdir, a .pth file, or a released name")
    add(
        "--videos",
        required=True,
        help="a folder, searched with its subfolders, or one file; the CSV's root with --metadata_csv",
    )
    add("--metadata_csv", help="columns filename, fps, video-frames; without it the files are scanned")
    add("--output", required=True, help="the HDF5 file")
    add_settings(parser)
    add("--num_shards", type=cli.positive_int, default=1, help="parts that the list of videos is cut into")
    add("--shard_id", type=int, default=0, help="the part to do, from 0")
    add("--on_error", choices=["skip", "stop"], default="skip", help="after a video that fails")
    add("--overwrite", action="store_true", help="forget what the output holds")
    add("--profile", metavar="DIR", help="write where the time goes: stages.json, and a JAX trace of the first batches")
    return parser.parse_args(arguments)


def prepare_jax() -> None:
    """What a command that extracts does before any other use of JAX: see the three functions."""
    malloc.keep_freed()
    cpu.split_cpu()
    compilation.keep_programs()


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Gives a command the flags that `read_settings` reads."""
    add = parser.add_argument
    add("--stride", type=cli.positive_int, default=16, help="resampled frames from one clip's start to the next's")
    add("--clip_len", type=cli.positive_int, default=16, help="frames in a clip")
    add("--frame_rate", type=float, default=15.0, help="frames a second that videos are resampled to")
    add(
        "--frame_selection",
        choices=get_args(clips.FrameSelection),
        default="reference",
        help="a clip's frames: the original's, or the plain grid",
    )
    add("--batch_size", type=cli.positive_int, default=32, help="clips in a batch, for each device; a CPU is one")
    add("--dtype", choices=list(batches.DTYPES), default="float32", help="of the computation; features are float32")
    add("--decoder", choices=decoding.DECODERS, default="pyav", help="decord refuses files that it is known to read wrongly")
    add("--workers", type=cli.positive_int, default=cores(), help="videos decoded at once; the cores, 16 at most")


def read_settings(options: argparse.Namespace) -> "Settings":
    """How features are to be made, by the flags of `add_settings`.

    Raises:
      ValueError: a number is out of range.
    """
    geometry = clips.ClipGeometry(options.clip_len, options.frame_rate, options.stride, options.frame_selection)
    return Settings(geometry, options.decoder, options.dtype, options.batch_size, options.workers)


def cores() -> int:
    """Videos that are worth decoding at once by default: the cores that this process may use, up to 16."""
    return min(cpu.cores(), 16)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def write_errors(path: Path, failures: list["Failure"]) -> None:
    """Writes the failures as CSV, whole or not at all; no failures, no file."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    rows = [(failure.video, failure.reason, failure.clips_kept) for failure in failures]
    tables.write_table(path, ("video", "reason", "clips_kept"), rows, errors="backslashreplace")


def _print_summary(summary: "Summary", output: str, errors_csv: Path) -> None:
    bound = f"; bound by {summary.bound_by}" if summary.bound_by else ""
    print(
        f"{output}: {summary.videos} videos done, {summary.skipped} done before, {len(summary.failures)} failed or damaged\n"
        f"  {summary.clips} clips in {summary.wall_sec:.1f} s ({summary.clips / max(summary.wall_sec, 1e-9):.2f} clips/s); "
        f"{summary.frames_decoded} frames decoded in {summary.decode_sec:.1f} s of the decoding threads; "
        f"computing for {summary.compute_sec:.1f} s{bound}"
    )
    for failure in summary.failures[:10]:
        print(f"  {failure.video}: {failure.reason} ({failure.clips_kept} clips kept)")
    if len(summary.failures) > 10:
        print(f"  and {len(summary.failures) - 10} more")
    if summary.failures:
        print(f"  all failures: {errors_csv}")
    if summary.stopped:
        print("  stopped at the first failure, as --on_error stop asks; the same command again tries the rest")


def _write_stages(path: Path, summary: "Summary") -> None:
    """Writes seconds by stage as JSON, of the main thread and of the decoding threads together."""
    told = {
        "wall_sec": summary.wall_sec,
        "stages_sec": _stages(summary),
        "devices_had_work_sec": summary.compute_sec,
        "bound_by": summary.bound_by,
        "main_thread_sec": summary.main_sec,
        "decoding_threads": summary.threads,
        "decoding_threads_sec": summary.threads_sec,
    }
    with files.replacing(path) as temporary:
        temporary.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _stages(summary: "Summary") -> dict[str, float]:
    return timing.stages(summary.main_sec, summary.threads_sec, summary.compute_sec)


def _print_stages(summary: "Summary", folder: str) -> None:
    told = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in _stages(summary).items())
    print(f"  stages, beside each other: {told} (of the devices)")
    for name, seconds in (
        ("main thread", summary.main_sec),
        (f"{summary.threads} decoding threads together", summary.threads_sec),
    ):
        print(f"  {name}:")
        whole = max(sum(seconds.values()), 1e-9)
        for what, spent in sorted(seconds.items(), key=lambda item: -item[1]):
            print(f"    {what:<16} {spent:9.2f} s {spent / whole:6.1%}")
    print(f"  in {folder}: stages.json; the trace of the first {_TRACED_BATCHES} batches, for xprof, TensorBoard or Perfetto")


# ----------------------------------------------------------------------------------------------------------------- engine


@dataclasses.dataclass(frozen=True)
class Settings:
    """How features are made.

    Attributes:
      geometry: of the clips.
      decoder: of the videos.
      dtype: of the computation, a key of `encoder.DTYPES`.
      batch_size: clips in a batch, for each device.
      workers: videos decoded at once.
    """

    geometry: clips.ClipGeometry
    decoder: decoding.Decoder
    dtype: str
    batch_size: int
    workers: int


@dataclasses.dataclass(frozen=True)
class Failure:
    """A video that gave no features, or fewer than planned, and why."""

    video: str
    reason: str
    clips_kept: int


@dataclasses.dataclass
class Summary:
    """What a run did.

    Attributes:
      videos, skipped, clips: done now, done before, and the clips of those done now.
      frames_decoded: of all videos.
      decode_sec: work of the decoding threads, waits left out, summed.
      compute_sec: time during which the devices had work.
      wall_sec: of the whole.
      main_sec: of the main thread, by the names in `laps`.
      threads: that decode.
      threads_sec: theirs, summed, by the names in `laps`.
      bound_by: what the main thread mostly did or waited for, with the share of its time.
      failures: of videos, of earlier runs too.
      stopped: at the first failure.
    """

    videos: int = 0
    skipped: int = 0
    clips: int = 0
    frames_decoded: int = 0
    decode_sec: float = 0.0
    compute_sec: float = 0.0
    wall_sec: float = 0.0
    main_sec: dict[str, float] = dataclasses.field(default_factory=dict)
    threads: int = 0
    threads_sec: dict[str, float] = dataclasses.field(default_factory=dict)
    bound_by: str = ""
    failures: list[Failure] = dataclasses.field(default_factory=list)
    stopped: bool = False


class Sink(Protocol):
    """Where features go, such as a `features.Writer`."""

    @property
    def done(self) -> Mapping[str, features.Attributes]:
        """Attributes of the videos that need no extraction any more, by name."""
        ...

    def commit(self, name: str, features: Float32[np.ndarray, "n f"], attributes: features.Attributes) -> None:
        """Keeps one video, durably."""
        ...


def run_attributes(checkpoint: checkpoints.Checkpoint, settings: Settings) -> features.Attributes:
    """What all features of a run have in common, as written beside them."""
    return {
        **dataclasses.asdict(settings.geometry),
        "decoder": settings.decoder,
        "dtype": settings.dtype,
        "checkpoint": checkpoint.origin.source,
        "checkpoint_sha256": checkpoint.weights_sha256,
        "tsp_jax_version": version.__version__,
    }


def extract(
    checkpoint: checkpoints.Checkpoint,
    videos: Sequence[video_list.Video],
    writer: Sink,
    settings: Settings,
    *,
    also: Sequence[checkpoints.Checkpoint] = (),
    stop_on_error: bool = False,
    trace_dir: str | None = None,
) -> Summary:
    """Commits the features of each video that the writer lacks.

    Args:
      checkpoint: the encoder.
      videos: to extract, by distinct names but for those with a fault.
      writer: where features go; what it has done is skipped.
      settings: how.
      also: more encoders of the same clips, in the same pass; their features stand to the right of the first one's.
      stop_on_error: end after the first video that fails.
      trace_dir: where a JAX trace of the first batches goes; none without it.

    Returns:
      The summary; videos of earlier runs that were damaged stand among its failures too.

    Raises:
      FeatureFileError: a video done before had another frame rate or number of frames by its metadata.
    """
    summary, began = Summary(), time.perf_counter()
    new = []
    for item in videos:
        if item.fault or item.name not in writer.done:
            new.append(item)
            continue
        done = writer.done[item.name]
        _check_same_metadata(item, done)
        summary.skipped += 1
        if done["damage"]:
            summary.failures.append(Failure(str(item.path), done["damage"], int(done["clips"])))
    if new:
        _extract_new(checkpoint, also, new, writer, settings, stop_on_error, trace_dir, summary)
    summary.wall_sec = time.perf_counter() - began
    return summary


@dataclasses.dataclass(eq=False)
class _Progress:
    """A video on its way: what was planned, how many clips went to the encoder, the rows that came back, how it ended."""

    job: int
    num_planned: int = 0
    attributes: features.Attributes = dataclasses.field(default_factory=dict)
    sent: int = 0
    rows: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    closed: bool = False
    reason: str = ""

    @property
    def finished(self) -> bool:
        return self.closed and len(self.rows) == self.sent


def _extract_new(
    checkpoint: checkpoints.Checkpoint,
    also: Sequence[checkpoints.Checkpoint],
    new: Sequence[video_list.Video],
    writer: Sink,
    settings: Settings,
    stop_on_error: bool,
    trace_dir: str | None,
    summary: Summary,
) -> None:
    geometry, own = settings.geometry, timing.Laps()
    model = batches.Encoder(
        checkpoint,
        clip_len=geometry.clip_len,
        stride=geometry.stride,
        dtype=settings.dtype,
        batch_size=settings.batch_size,
        also=also,
        own=own,
    )
    progress = {job: _Progress(job) for job in range(len(new))}
    with (
        contextlib.ExitStack() as trace,
        _bar(len(new)) as bar,
        clip_stream.ClipStream(new, geometry, settings.decoder, settings.workers) as stream,
    ):
        if trace_dir is not None:
            tracing = jax.profiler.ProfileOptions()
            tracing.python_tracer_level = 0  # it slows down each call
            trace.enter_context(jax.profiler.trace(trace_dir, profiler_options=tracing))

        def settle(video: _Progress) -> None:
            """Commits a video whose last row is there; lists it when something is wrong with it."""
            if not video.finished or progress.get(video.job) is not video:
                return
            del progress[video.job]
            item = new[video.job]
            if video.rows:
                own.end(timing.OTHER)
                writer.commit(item.name, *_dataset(video))
                own.end(timing.WRITE)
                summary.videos += 1
                summary.clips += len(video.rows)
            if video.reason:
                summary.failures.append(Failure(str(item.path), video.reason, len(video.rows)))
                bar.write(f"{item.path}: {video.reason} ({len(video.rows)} clips kept)", file=sys.stderr)
                summary.stopped = stop_on_error

        def receive(results: list[batches.Result]) -> None:
            for (video, row), vector in results:
                video.rows[row] = vector
            for video in {video for (video, _), _ in results}:
                settle(video)
            partly = sum(len(video.rows) / video.num_planned for video in progress.values() if video.rows)
            clips_back = summary.clips + sum(len(video.rows) for video in progress.values())
            bar.set_postfix_str(f"{clips_back / max(bar.format_dict['elapsed'], 1e-9):.2f} clips/s", refresh=False)
            bar.update(len(new) - len(progress) + partly - bar.n)

        own.end(timing.OTHER)
        for message in stream:
            own.end(timing.WAIT_FOR_CLIPS)
            video = progress[message.job]
            match message:
                case clip_stream.Opened():
                    # Takes the place of an earlier plan, whose rows then belong to nobody.
                    progress[message.job] = _Progress(message.job, message.num_planned, message.attributes)
                    for note in message.notes:
                        bar.write(f"note: {new[message.job].path}: {note}", file=sys.stderr)
                case clip_stream.Clip():
                    video.sent += 1
                    receive(model.add((video, message.row), video, message.frames))
                case clip_stream.Closed():
                    video.closed, video.reason = True, message.reason
                    video.attributes["frames_decoded"] = message.frames_decoded
                    summary.frames_decoded += message.frames_decoded
                    settle(video)
            if model.batches == _TRACED_BATCHES:
                trace.close()
            own.end(timing.OTHER)
            if summary.stopped:
                break
        receive(model.flush())
    own.end(timing.OTHER)
    summary.compute_sec, summary.main_sec = model.compute_sec, own.seconds
    summary.threads, summary.threads_sec = len(stream.laps), timing.total(stream.laps)
    waits = summary.threads_sec.get(timing.WAIT_FOR_ROOM, 0.0)
    summary.decode_sec = sum(summary.threads_sec.values()) - waits
    summary.threads_sec[timing.IDLE] = max(0.0, len(stream.laps) * sum(own.seconds.values()) - summary.decode_sec - waits)
    name, share = timing.bound_by(own.seconds)
    summary.bound_by = f"{name} ({share:.0%} of the time of the main thread)"


def _dataset(video: _Progress) -> tuple[np.ndarray, features.Attributes]:
    """The rows that came back, in order, and what is to be known of them."""
    rows = np.array(sorted(video.rows))
    breaks = np.flatnonzero(np.diff(rows) > 1)
    ranges = np.stack([rows[np.append(0, breaks + 1)], rows[np.append(breaks, len(rows) - 1)] + 1], axis=1)
    attributes = {
        **video.attributes,
        "clips": len(rows),
        "clip_ranges": ranges,  # the planned clips that the rows are: [first, past the last), all of them when undamaged
        "damage": video.reason,
    }
    return np.stack([video.rows[row] for row in rows.tolist()]), attributes


def _bar(total: int) -> tqdm.tqdm:
    return tqdm.tqdm(
        total=total,
        desc="extract",
        bar_format="{l_bar}{bar}| {n:.1f}/{total_fmt} videos [{elapsed}<{remaining}{postfix}]",
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )


def _check_same_metadata(item: video_list.Video, done: features.Attributes) -> None:
    """Refuses a video done under another frame rate or number of frames.

    Raises:
      FeatureFileError: it was.
    """
    for name, value in (("fps", item.fps), ("frames", item.num_frames)):
        if value is not None and value != done[name]:
            raise features.FeatureFileError(
                f"{item.name}: done before with {name} {done[name]}, the metadata now says {value}; name another --output, "
                "or pass --overwrite"
            )


if __name__ == "__main__":
    sys.exit(main())
