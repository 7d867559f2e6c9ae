"""Clips of many videos, decoded by several threads at once, each video in one forward pass and in bounded memory."""

import collections
import contextlib
import dataclasses
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from tsp_jax import clips, transforms, video_list
from tsp_jax.system import timing
from tsp_jax.video import containers, decoding, scanning

_NEVER = np.iinfo(np.int64).max
_REMEDY = "use --frame_selection auto, or make the rate constant first with `python -m data_builders.standardize`"
_MAX_REORDER = 17  # one more than the frames by which H.264 and HEVC reorder
_QUEUED_MESSAGES = 64  # bounds memory: a clip brings at most clip_len new frames of 150 kB


class Opened(NamedTuple):
    """The clips of a video are planned. A second message for the same job voids the clips since the first."""

    job: int
    num_planned: int
    attributes: dict[str, Any]
    notes: tuple[str, ...]


class Clip(NamedTuple):
    """A clip that decoded completely. `row` is its place among the planned clips."""

    job: int
    row: int
    frames: tuple[transforms.TappedFrame, ...]


class Closed(NamedTuple):
    """A video has given all its clips. `reason` says why clips are missing; it is empty if none are."""

    job: int
    reason: str
    frames_decoded: int


Message = Opened | Clip | Closed


class ClipStream:
    """The messages of all videos, interleaved. Each video gives Opened, its clips by row, then Closed; or Closed alone.

    A context manager: leaving it ends the threads, wherever they are.

    Attributes:
      laps: the timer of each decoding thread.
    """

    def __init__(
        self,
        videos: Sequence[video_list.Video],
        geometry: clips.ClipGeometry,
        decoder: decoding.Decoder,
        workers: int,
        preprocessing: transforms.Preprocessing = transforms.KINETICS,
    ):
        self._videos, self._geometry, self._preprocessing = videos, geometry, preprocessing
        self._decoder: decoding.Decoder = decoder
        self._jobs = collections.deque(range(len(videos)))  # popleft is atomic
        self._messages: queue.Queue[Message | Exception] = queue.Queue(_QUEUED_MESSAGES)
        self._stop = threading.Event()
        self.laps = [timing.Laps() for _ in range(min(workers, len(videos)))]
        self._threads = [threading.Thread(target=self._work, args=(own,), daemon=True) for own in self.laps]

    def __enter__(self) -> "ClipStream":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def __iter__(self) -> Iterator[Message]:
        closed = 0
        while closed < len(self._videos):
            message = self._messages.get()
            if isinstance(message, Exception):
                raise message
            closed += isinstance(message, Closed)
            yield message

    def _work(self, own: timing.Laps) -> None:
        try:
            while not self._stop.is_set():
                try:
                    job = self._jobs.popleft()
                except IndexError:
                    return
                messages = read_video(job, self._videos[job], self._geometry, self._decoder, own, self._preprocessing)
                with contextlib.closing(messages):
                    for message in messages:
                        own.end(timing.ASSEMBLE)
                        if not self._put(message):
                            return
                        own.end(timing.WAIT_FOR_ROOM)
        except Exception as error:
            self._put(error)

    def _put(self, message: Message | Exception) -> bool:
        """Puts the message into the queue. Returns False if the stream was stopped first."""
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._messages.put(message, timeout=0.1)
                return True
        return False


def read_video(
    job: int,
    item: video_list.Video,
    geometry: clips.ClipGeometry,
    decoder: decoding.Decoder,
    own: timing.Laps,
    preprocessing: transforms.Preprocessing = transforms.KINETICS,
) -> Generator[Message, None, None]:
    """Yields the messages of one video. Any error becomes the reason of its Closed. `own` is the thread's timer."""
    try:
        if item.fault:
            raise scanning.VideoError(item.fault)
        void = Opened(job, 0, {}, ())
        scan = scanning.scan(item.path)
        own.end(timing.SCAN)
        if (yield from _read_scanned(job, item, scan, geometry, decoder, own, preprocessing)):
            # The packets promised other frames than the decoder gave: the plan is made again from the decoder's.
            yield void
            scan = scanning.rescan(scan)
            own.end(timing.SCAN)
            if (yield from _read_scanned(job, item, scan, geometry, decoder, own, preprocessing)):
                yield void
                raise scanning.VideoError("the decoder gives other frames each time")
    except (scanning.VideoError, ValueError) as error:
        yield Closed(job, str(error), 0)


def _read_scanned(
    job: int,
    item: video_list.Video,
    scan: scanning.Scan,
    geometry: clips.ClipGeometry,
    decoder: decoding.Decoder,
    own: timing.Laps,
    preprocessing: transforms.Preprocessing,
) -> Generator[Message, None, bool]:
    """Opened, the clips, Closed; returns True, without Closed, when the scan was wrong about the frames' times."""
    timeline = _before_cut(scan)
    method = clips.choose(timeline, geometry)
    num_frames = len(timeline.pts)
    if method != "time":  # by the file's own clock metadata counts for nothing
        timeline = timeline if item.fps is None else dataclasses.replace(timeline, fps=item.fps)
        num_frames = num_frames if item.num_frames is None else item.num_frames
    plan = clips.plan(timeline, geometry, num_frames, method=method)
    attributes = {
        "fps": timeline.fps,
        "frames": num_frames,
        "duration_sec": timeline.duration_sec if method == "time" else num_frames / timeline.fps,
        "frame_selection": "reference" if method == "reference" else "uniform",
        "clips_planned": len(plan),
        "frames_by": "time" if method == "time" else "number",
    }
    wanted, notes = np.ones(len(plan), bool), _notes(scan, item, geometry, method)
    if item.parts_sec is not None:
        attributes["parts_sec"] = np.array(item.parts_sec)
        within = clips.within(len(plan), geometry, item.parts_sec)
        wanted, notes = np.any(within, axis=0), (*notes, *_part_notes(within, item.parts_sec, geometry))
    yield Opened(job, int(np.count_nonzero(wanted)), attributes, notes)

    whole = wanted & (plan[:, 0] >= 0)
    needed = np.zeros(len(scan.timeline.pts), bool)
    needed[plan[whole]] = True
    reader = decoding.Reader(scan, needed, decoder, own)
    given = 0
    for row, frames in _assemble(plan, np.flatnonzero(whole), iter(reader), own, preprocessing):
        given += 1
        yield Clip(job, row, frames)
    if reader.misdated:
        return True
    yield Closed(job, _reason(plan, wanted, given, scan, timeline, num_frames, geometry, reader.damage), reader.decoded)
    return False


def _before_cut(scan: scanning.Scan) -> clips.Timeline:
    """Returns the timeline up to the first hole that a cut of the file left, for frames are not stored in the order shown."""
    timeline, tail = scan.timeline, scan.timeline.pts[-_MAX_REORDER:]
    if len(tail) < _MAX_REORDER or not containers.missing_bytes(scan.path):
        return timeline
    gaps = np.diff(tail)
    holes = np.flatnonzero(gaps > 1.5 * np.median(gaps))
    if not len(holes):
        return timeline
    kept = timeline.pts[: len(timeline.pts) - len(tail) + int(holes[0]) + 1]
    return clips.Timeline(kept, timeline.time_base, timeline.fps)


def _assemble(
    plan: Int64[np.ndarray, "n t"],
    rows: Int64[np.ndarray, " r"],
    frames: Iterator[tuple[int, np.ndarray]],
    own: timing.Laps,
    preprocessing: transforms.Preprocessing,
) -> Iterator[tuple[int, tuple[transforms.TappedFrame, ...]]]:
    """Yields each clip as soon as its last frame is there. Frames are kept while a later clip needs them."""
    waiting = collections.deque(rows.tolist())
    oldest_to_come = np.minimum.accumulate(plan[::-1, 0] % _NEVER)[::-1]  # -1, for clips that lack frames, is never
    kept: dict[int, transforms.TappedFrame] = {}
    for number, pixels in frames:
        taps = transforms.centre_taps(*pixels.shape[:2], preprocessing)
        kept[number] = transforms.TappedFrame(number, transforms.take_taps(pixels, taps), taps)
        own.end(timing.TAPS)
        while waiting and plan[waiting[0], -1] <= number:
            row = waiting.popleft()
            numbers = plan[row].tolist()
            if all(number in kept for number in numbers):
                yield row, tuple(kept[number] for number in numbers)
        oldest = oldest_to_come[waiting[0]] if waiting else _NEVER
        for passed in [number for number in kept if number < oldest]:
            del kept[passed]
        own.end(timing.ASSEMBLE)


def _notes(scan: scanning.Scan, item: video_list.Video, geometry: clips.ClipGeometry, method: clips.Method) -> tuple[str, ...]:
    notes, timeline = list(scan.notes), scan.timeline
    if scan.rotation_deg:
        notes.append(f"players turn this video by {scan.rotation_deg} degrees; like the original, features see it as stored")
    if method == "reference" and geometry.frame_selection == "reference" and not clips.is_constant(timeline):
        notes.append(
            f"{_oddity(scan)}, so rows of --frame_selection reference may show other seconds than they stand for; {_REMEDY}"
        )
    if method == "time" and geometry.frame_selection == "auto":
        notes.append(f"{_oddity(scan)}; its frames are taken by their times")
    fps_differs = item.fps is not None and abs(item.fps - timeline.fps) > 0.01 * timeline.fps
    if method == "time" and (fps_differs or item.num_frames not in (None, len(timeline.pts))):
        notes.append(
            f"the metadata says {item.num_frames} frames at {item.fps:g} fps, the file {len(timeline.pts)} at "
            f"{timeline.fps:g} on average; the file is used"
        )
    elif fps_differs:
        notes.append(f"the metadata says {item.fps:g} fps, the file {timeline.fps:g}; the metadata is used")
    return tuple(notes)


def _part_notes(
    within: Bool[np.ndarray, "p n"], parts_sec: Sequence[tuple[float, float]], geometry: clips.ClipGeometry
) -> tuple[str, ...]:
    empty = np.flatnonzero(~within.any(axis=1))
    if not len(empty) or len(empty) == len(within):
        return ()
    start, end = parts_sec[empty[0]]
    seconds = geometry.clip_len / geometry.frame_rate
    return (f"{len(empty)} of {len(within)} parts hold no whole clip of {seconds:.3f} s, such as {start:g} to {end:g} s",)


def _oddity(scan: scanning.Scan) -> str:
    """Returns what is odd in the file's clock, as the beginning of a sentence."""
    if not clips.is_constant(scan.timeline):
        return "its frame rate is uneven"
    return f"its clock starts at {float(scan.timeline.pts[0] * scan.timeline.time_base):.2f} s"


def _reason(
    plan: Int64[np.ndarray, "n t"],
    wanted: Bool[np.ndarray, " n"],
    given: int,
    scan: scanning.Scan,
    timeline: clips.Timeline,
    num_frames: int,
    geometry: clips.ClipGeometry,
    damage: str,
) -> str:
    """Returns the reason why a video gave fewer clips than were wanted; empty if it is whole and undamaged."""
    reasons, clip_sec = [scan.fault] if scan.fault else [], geometry.clip_len / geometry.frame_rate
    if not len(plan):
        short = f"shorter than one clip: {num_frames} frames at {timeline.fps:g} fps; a clip takes {clip_sec:.3f} s"
        return "; ".join([short, *reasons])
    if not wanted.any():
        none = f"none of its {len(plan)} clips of {clip_sec:.3f} s lies whole within the parts asked for"
        return "; ".join([f"{none}; it lasts {timeline.duration_sec:.2f} s", *reasons])
    unplanned = int(np.count_nonzero(wanted & (plan[:, 0] < 0)))
    if num_frames > len(timeline.pts):
        reasons.append(f"the metadata says {num_frames} frames, the file has {len(timeline.pts)}")
    elif unplanned:
        reasons.append(
            f"{_oddity(scan)}: {unplanned} of {np.count_nonzero(wanted)} clips find too few frames in their time; {_REMEDY}"
        )
    lost = given < np.count_nonzero(wanted) - unplanned
    if (lost or (wanted.all() and num_frames == len(timeline.pts))) and (missing := containers.missing_bytes(scan.path)):
        reasons.append(f"the file is cut off: {missing} or more bytes are missing")
    if lost and damage:
        reasons.append(f"damaged: {damage}")
    elif lost:
        reasons.append(f"{scan.codec} frames are missing")
    return "; ".join(reasons)
