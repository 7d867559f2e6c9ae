"""The engine of extraction: videos in, features out, one committed video after the other.

Threads decode several videos at once and hand over clips (`clip_stream`). The encoder packs the clips of all videos into
batches (`batches`). A video is committed to the sink as soon as its last row has come back.
"""

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float32

from tsp_jax import checkpoints, clips, features, video_list
from tsp_jax.extraction import batches, clip_stream
from tsp_jax.extraction.failures import Failure
from tsp_jax.system import progress, timing, version
from tsp_jax.video import decoding

TRACED_BATCHES = 8  # a trace stays in memory until it is written, and grows by megabytes with each batch


@dataclasses.dataclass(frozen=True)
class Settings:
    """How features are made.

    Attributes:
      geometry: how clips are laid over a video.
      decoder: the decoder of the videos.
      dtype: the compute precision, a key of `batches.DTYPES`.
      batch_size: clips in a batch for each device.
      workers: number of videos decoded at once.
    """

    geometry: clips.ClipGeometry
    decoder: decoding.Decoder
    dtype: str
    batch_size: int
    workers: int


@dataclasses.dataclass
class Summary:
    """What a run did.

    Attributes:
      videos: number of videos done in this run.
      skipped: number of videos that were done before.
      clips: number of clips of the videos done in this run.
      frames_decoded: number of frames decoded, over all videos.
      decode_sec: seconds that the decoding threads worked, without their waits, summed over the threads.
      compute_sec: seconds during which the devices had work.
      wall_sec: seconds that the whole run took.
      main_sec: the main thread's seconds by activity, with the names in `timing`.
      threads: number of decoding threads.
      threads_sec: the decoding threads' seconds by activity, summed over the threads.
      bound_by: what the main thread mostly did or waited for, with the share of its time.
      failures: the videos that failed or were damaged, also those of earlier runs.
      stopped: whether the run ended at the first failure.
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


@runtime_checkable  # the run-time checks of the tests ask for it
class Sink(Protocol):
    """Where features go, such as a `features.Writer`."""

    @property
    def done(self) -> Mapping[str, features.Attributes]:
        """The attributes of each video that needs no more extraction, by the video's name."""
        ...

    def commit(self, name: str, features: Float32[np.ndarray, "n f"], attributes: features.Attributes) -> None:
        """Stores one video durably."""
        ...


def run_attributes(checkpoint: checkpoints.Checkpoint, settings: Settings, parts: str = "") -> features.Attributes:
    """Returns the attributes that all features of a run share, as they are stored with the features.

    Args:
      checkpoint: the encoder.
      settings: how the features are made.
      parts: the flags that confine videos to parts, as `parts.kind` gives them; empty if there are none.
    """
    return {
        **dataclasses.asdict(settings.geometry),
        # What was asked for. Each video has what was done as its own attribute `frame_selection`.
        "frame_selection_flag": settings.geometry.frame_selection,
        "decoder": settings.decoder,
        "dtype": settings.dtype,
        "checkpoint": checkpoint.origin.source,
        "checkpoint_sha256": checkpoint.weights_sha256,
        "tsp_jax_version": version.__version__,
        **({"parts": parts} if parts else {}),
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
      videos: the videos to extract. Their names are distinct, except for those with a fault.
      writer: the sink of the features. Videos that it holds already are skipped.
      settings: how the features are made.
      also: more encoders of the same clips, run in the same pass. Their features follow the first encoder's in each row.
      stop_on_error: whether the run ends after the first video that fails.
      trace_dir: the folder for a JAX trace of the first batches; None writes no trace.

    Returns:
      The summary. Its failures include the damaged videos of earlier runs.

    Raises:
      FeatureFileError: a video that was done before had another frame rate or number of frames in its metadata.
    """
    summary, began = Summary(), time.perf_counter()
    new = []
    for item in videos:
        if item.fault or item.name not in writer.done:
            new.append(item)
            continue
        done = writer.done[item.name]
        _check_same_work(item, done)
        summary.skipped += 1
        if done["damage"]:
            summary.failures.append(Failure(str(item.path), done["damage"], int(done["clips"])))
    if new:
        own = timing.Laps()
        model = batches.Batcher(
            checkpoint,
            clip_len=settings.geometry.clip_len,
            stride=settings.geometry.stride,
            dtype=settings.dtype,
            batch_size=settings.batch_size,
            also=also,
            own=own,
        )
        stream = clip_stream.ClipStream(new, settings.geometry, settings.decoder, settings.workers, model.preprocessing)
        with contextlib.ExitStack() as trace, progress.Progress("extract", len(new), "videos") as bar, stream:
            if trace_dir is not None:
                trace.enter_context(_trace(trace_dir))
            current = _Pass(new, model, writer, summary, bar, own, stop_on_error)
            own.end(timing.OTHER)
            for message in stream:
                own.end(timing.WAIT_FOR_CLIPS)
                current.take(message)
                if model.batches == TRACED_BATCHES:
                    trace.close()
                own.end(timing.OTHER)
                if summary.stopped:
                    break
            current.receive(model.flush())
        own.end(timing.OTHER)
        _add_times(summary, own, stream.laps, model.compute_sec)
    summary.wall_sec = time.perf_counter() - began
    return summary


@dataclasses.dataclass(eq=False)
class _Progress:
    """A video on its way.

    Attributes:
      job: the video's place in the list of new videos.
      num_planned: number of planned clips.
      attributes: attributes of the video that will be stored with its features.
      sent: number of clips that went to the encoder.
      rows: the features that came back, by the clip's place in the plan.
      closed: whether all clips that can be read have been sent.
      reason: why clips are missing; empty if none are.
    """

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


class _Pass:
    """One pass over new videos, which feeds the encoder and commits each finished video."""

    def __init__(
        self,
        new: Sequence[video_list.Video],
        model: batches.Batcher,
        writer: Sink,
        summary: Summary,
        bar: progress.Progress,
        own: timing.Laps,
        stop_on_error: bool,
    ):
        self._new, self._model, self._writer, self._summary, self._bar, self._laps = new, model, writer, summary, bar, own
        self._stop_on_error = stop_on_error
        self._progress = {job: _Progress(job) for job in range(len(new))}

    def take(self, message: clip_stream.Message) -> None:
        """Acts on one message of the clip stream."""
        video = self._progress[message.job]
        match message:
            case clip_stream.Opened():
                # This replaces an earlier plan, whose rows are then ignored.
                self._progress[message.job] = _Progress(message.job, message.num_planned, message.attributes)
                for note in message.notes:
                    self._bar.say(f"note: {self._new[message.job].path}: {note}")
            case clip_stream.Clip():
                video.sent += 1
                self.receive(self._model.add((video, message.row), video, message.frames))
            case clip_stream.Closed():
                video.closed, video.reason = True, message.reason
                video.attributes["frames_decoded"] = message.frames_decoded
                self._summary.frames_decoded += message.frames_decoded
                self._commit_if_finished(video)

    def receive(self, results: list[batches.Result]) -> None:
        """Files rows that came back, commits the videos that they complete, and moves the progress bar."""
        for (video, row), vector in results:
            video.rows[row] = vector
        for video in {video for (video, _), _ in results}:
            self._commit_if_finished(video)
        partly = sum(len(video.rows) / video.num_planned for video in self._progress.values() if video.rows)
        clips_back = self._summary.clips + sum(len(video.rows) for video in self._progress.values())
        speed = f"{clips_back / self._bar.elapsed_sec():.2f} clips/s"
        self._bar.to(len(self._new) - len(self._progress) + partly, speed)

    def _commit_if_finished(self, video: _Progress) -> None:
        """Commits a video whose last row is there, and lists it as a failure if something is wrong with it."""
        if not video.finished or self._progress.get(video.job) is not video:
            return
        del self._progress[video.job]
        item, summary = self._new[video.job], self._summary
        if video.rows:
            self._laps.end(timing.OTHER)
            self._writer.commit(item.name, *_dataset(video))
            self._laps.end(timing.WRITE)
            summary.videos += 1
            summary.clips += len(video.rows)
        if video.reason:
            summary.failures.append(Failure(str(item.path), video.reason, len(video.rows)))
            self._bar.say(f"{item.path}: {video.reason} ({len(video.rows)} clips kept)")
            summary.stopped = self._stop_on_error


def _dataset(video: _Progress) -> tuple[np.ndarray, features.Attributes]:
    """Returns the rows that came back, in order, and the attributes that are stored with them."""
    rows = np.array(sorted(video.rows))
    breaks = np.flatnonzero(np.diff(rows) > 1)
    ranges = np.stack([rows[np.append(0, breaks + 1)], rows[np.append(breaks, len(rows) - 1)] + 1], axis=1)
    attributes = {
        **video.attributes,
        "clips": len(rows),
        # Which planned clips the rows are, as [first, past the last) pairs. An undamaged video has one pair for all.
        "clip_ranges": ranges,
        "damage": video.reason,
    }
    return np.stack([video.rows[row] for row in rows.tolist()]), attributes


def _add_times(summary: Summary, own: timing.Laps, threads: Sequence[timing.Laps], compute_sec: float) -> None:
    summary.compute_sec, summary.main_sec = compute_sec, own.seconds
    summary.threads, summary.threads_sec = len(threads), timing.total(threads)
    waits = summary.threads_sec.get(timing.WAIT_FOR_ROOM, 0.0)
    summary.decode_sec = sum(summary.threads_sec.values()) - waits
    summary.threads_sec[timing.IDLE] = max(0.0, len(threads) * sum(own.seconds.values()) - summary.decode_sec - waits)
    name, share = timing.bound_by(own.seconds)
    summary.bound_by = f"{name} ({share:.0%} of the time of the main thread)"


def _trace(folder: str) -> contextlib.AbstractContextManager[None]:
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it slows down each call
    return jax.profiler.trace(folder, profiler_options=options)


def _check_same_work(item: video_list.Video, done: features.Attributes) -> None:
    """Checks that a video that was done before had the same parts, frame rate and number of frames.

    Raises:
      FeatureFileError: one of them differs.
    """
    before, now = (None if parts is None else np.asarray(parts).tolist() for parts in (done.get("parts_sec"), item.parts_sec))
    if before != now:
        raise features.FeatureFileError(
            f"{item.name}: done before for {_shown(before)}, asked for {_shown(now)}; name another --output, or pass "
            "--overwrite"
        )
    if done.get("frames_by") == "time":  # the metadata had no part in it
        return
    for name, value in (("fps", item.fps), ("frames", item.num_frames)):
        if value is not None and value != done[name]:
            raise features.FeatureFileError(
                f"{item.name}: done before with {name} {done[name]}, the metadata now says {value}; name another --output, "
                "or pass --overwrite"
            )


def _shown(parts_sec: Sequence[Sequence[float]] | None) -> str:
    if parts_sec is None:
        return "all of it"
    shown = ", ".join(f"{start:g} to {end:g} s" for start, end in parts_sec[:3])
    return shown + (f" and {len(parts_sec) - 3} more parts" if len(parts_sec) > 3 else "")
