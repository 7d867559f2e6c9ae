"""Clip geometry: from a video's timestamps to the frame numbers of its clips. numpy alone, pure."""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float64, Int64

FrameSelection = Literal["auto", "reference", "uniform"]
Method = Literal["reference", "grid", "time"]
MAX_RESAMPLED = 1 << 21  # 38 hours at 15 fps; what metadata claims is not believed beyond, for a plan takes memory
_EVEN_FRAMES = 0.25  # how far a timestamp of a constant rate may lie from the even grid, in frames
_DRIFT_FRAMES, _DRIFT = 1.5, 2e-5  # how far timestamps and rate may part over a video, in frames and relative to its length
_MAX_DRIFT = 0.1  # the same for videos of few frames, relative to their length
_NEARLY_WHOLE = 2e-3  # by how much a frame may differ from a whole number of units for its timestamps to be rounded ones
_MARGIN_SEC = 1e-3  # containers with milliseconds round or cut off


@dataclasses.dataclass(frozen=True)
class ClipGeometry:
    """How clips are laid over a video.

    Attributes:
      clip_len: frames in a clip.
      frame_rate: frames a second within a clip; videos are resampled to it.
      stride: resampled frames from one clip's start to the next's.
      frame_selection: `reference`, the original's frames to the frame; `uniform`, the frames that are shown at the seconds
        i / frame_rate; or `auto`, `reference` where the rate is constant and its rule gives every clip, else `uniform`.
    """

    clip_len: int = 16
    frame_rate: float = 15.0
    stride: int = 16
    frame_selection: FrameSelection = "auto"

    def __post_init__(self):
        if self.clip_len < 1 or self.stride < 1:
            raise ValueError(f"clip_len and stride are at least 1; got {self.clip_len} and {self.stride}")
        if not (math.isfinite(self.frame_rate) and self.frame_rate > 0):
            raise ValueError(f"frame_rate is a positive number; got {self.frame_rate}")
        if self.frame_selection not in get_args(FrameSelection):
            raise ValueError(f"frame_selection is one of {get_args(FrameSelection)}; got {self.frame_selection!r}")


@dataclasses.dataclass(frozen=True, eq=False)
class Timeline:
    """When a video's frames are shown.

    Attributes:
      pts: presentation timestamps of all frames, int64, strictly ascending, in units of `time_base`.
      time_base: seconds in one unit.
      fps: average frames a second.
      duration_sec: length of the video in seconds; by default the last frame is shown for 1 / fps.
    """

    pts: Int64[np.ndarray, " n"]
    time_base: Fraction
    fps: float
    duration_sec: float = math.nan

    def __post_init__(self):
        if math.isnan(self.duration_sec):
            last = float((int(self.pts[-1]) - int(self.pts[0])) * self.time_base) if len(self.pts) else 0.0
            frame = 1 / self.fps if len(self.pts) and math.isfinite(self.fps) and self.fps > 0 else 0.0
            object.__setattr__(self, "duration_sec", last + frame)


def plan(
    timeline: Timeline,
    geometry: ClipGeometry,
    num_frames: int | None = None,
    *,
    method: Method | None = None,
) -> Int64[np.ndarray, "n_clips clip_len"]:
    """Returns the frame numbers of each clip, ascending; a row of -1 is a clip for which the video lacks frames.

    A frame's number is its rank by timestamp. Frames repeat within a clip where fewer than `frame_rate` are shown in a second.
    Clips begin in ascending order too, but that the first may begin later where timestamps are negative. A video shorter than
    one clip gives no rows.

    Args:
      timeline: when the video's frames are shown.
      geometry: how clips are laid over the video.
      num_frames: number of frames as an annotation counts them, which sets the number of clips; None takes the timeline's.
        Frames that are taken by time are those of the timeline, whatever an annotation counts.
      method: how frames are taken; None takes what `choose` returns.

    Raises:
      ValueError: the frame rate is not a positive number, or gives more than `MAX_RESAMPLED` frames.
    Source: TSP (Alwassel et al. 2021), released extraction code over torchvision 0.5's read_video. `uniform` differs: it
      leaves out the rounding of start times to timestamps, which moves some clips by a frame.
    """
    method = method or choose(timeline, geometry)
    if method == "time":
        return _plan_by_time(timeline, geometry)
    return _plan_by_number(timeline, geometry, len(timeline.pts) if num_frames is None else num_frames, method)


def choose(timeline: Timeline, geometry: ClipGeometry) -> Method:
    """Returns how the frames of a video are taken: by the original's rule, from the plain resampled grid, or by time.

    The plain grid is what `uniform` means where the rate is constant: the frames by time without the container's rounding.

    Args:
      timeline: when the video's frames are shown, by the file itself.
      geometry: how clips are laid over the video.

    Raises:
      ValueError: as for `plan`.
    """
    if geometry.frame_selection == "reference":
        return "reference"
    if not is_constant(timeline):
        return "time"
    if geometry.frame_selection == "auto":
        planned = _plan_by_number(timeline, geometry, len(timeline.pts), "reference")
        return "reference" if np.all(planned >= 0) else "grid"
    return "grid"


def within(
    num_clips: int, geometry: ClipGeometry, parts_sec: Sequence[tuple[float, float]]
) -> Bool[np.ndarray, "n_parts n_clips"]:
    """Returns a flag for each part and clip that says whether the clip lies whole within the part.

    Clip k lasts from second k * stride / frame_rate to second (k * stride + clip_len) / frame_rate. A millisecond over either
    end is allowed, for times that were rounded.

    Args:
      num_clips: number of the video's clips.
      geometry: how clips are laid over the video.
      parts_sec: the parts from start to end, in seconds.
    """
    start_sec = np.arange(num_clips) * geometry.stride / geometry.frame_rate
    end_sec = start_sec + geometry.clip_len / geometry.frame_rate
    parts = np.reshape(np.asarray(parts_sec, np.float64), (-1, 2))
    return (start_sec >= parts[:, :1] - _MARGIN_SEC) & (end_sec <= parts[:, 1:] + _MARGIN_SEC)


def is_constant(timeline: Timeline) -> bool:
    """Whether the frames are evenly spaced at `fps`.

    Timestamps may lie a quarter of a frame from an even grid, as those of phones do, or as far as their time base rounds. The
    first and the last frame may lie up to a frame further away, as at cuts. Over the whole video, rate and timestamps may part
    by 1.5 frames or 0.002 % of the length, whichever is more: containers round the rate.
    """
    fps, pts = check_fps(timeline.fps), timeline.pts
    frames = (pts - _first_pts(timeline)).astype(np.float64) * (float(timeline.time_base) * fps)  # timestamps in frames
    units = 1 / (fps * float(timeline.time_base))  # of the time base, in a frame
    away_from_whole = abs(units - round(units))
    # A coarse time base rounds a rate that is nearly its own, such as 29.97 in thirtieths. Any other rate in it is uneven.
    is_rounded = away_from_whole > 1e-6 and (units >= 2 or away_from_whole < _NEARLY_WHOLE)
    allowed = max(_EVEN_FRAMES, 1 / units if is_rounded else 0.0)
    inner = frames[1:-1] if len(frames) >= 4 else frames
    if len(inner) < 2:
        return timeline.duration_sec * fps <= len(pts) + _DRIFT_FRAMES  # a picture may be shown for long
    line = np.linspace(inner[0], inner[-1], len(inner))
    away = inner - line
    span = inner[-1] - inner[0]
    return bool(
        (away.max() - away.min()) / 2 <= allowed
        and abs(len(inner) - 1 - span) <= min(max(_DRIFT_FRAMES, _DRIFT * span), _MAX_DRIFT * span + 1 / units)
        and max(frames[1] - frames[0], frames[-1] - frames[-2]) <= 2 + allowed
    )


def check_fps(fps: float) -> float:
    """Returns the frame rate after checking it.

    Raises:
      ValueError: it is not a positive number.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"the frame rate is a positive number; got {fps} fps")
    return float(fps)


def resampled(num_frames: int, fps: float, frame_rate: float) -> Int64[np.ndarray, " m"]:
    """Returns the numbers of the frames that represent the video at `frame_rate`, ascending. Frames repeat if fps is lower.

    Source: TSP, released extraction code.
    """
    step = fps / frame_rate
    if step.is_integer():
        return np.arange(0, num_frames, int(step), dtype=np.int64)
    return _every_step(int(num_frames * (frame_rate / fps)), step)


def shown_at(timeline: Timeline, seconds: Float64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
    """Returns the number of the frame that is shown at each second after the first frame."""
    margin_sec = float(timeline.time_base) / 2 + _MARGIN_SEC
    shown_sec = (timeline.pts - _first_pts(timeline)).astype(np.float64) * float(timeline.time_base)
    return (np.searchsorted(shown_sec, seconds + margin_sec, side="right") - 1).astype(np.int64)


def _plan_by_number(
    timeline: Timeline, geometry: ClipGeometry, num_frames: int, method: Method
) -> Int64[np.ndarray, "n_clips clip_len"]:
    fps = check_fps(timeline.fps)
    if num_frames * geometry.frame_rate / fps > MAX_RESAMPLED:
        raise ValueError(
            f"{num_frames} frames at {fps:g} fps are more than {MAX_RESAMPLED} at {geometry.frame_rate:g} fps; cut the video, "
            "or mend its metadata"
        )
    grid = resampled(num_frames, fps, geometry.frame_rate)
    first = _first_of_clips(len(grid), geometry)
    if method == "grid":
        clips = grid[first[:, None] + np.arange(geometry.clip_len)]
        complete = np.all(clips < len(timeline.pts), axis=1)
    else:
        start_sec = grid[first] / fps
        begin, end = _read_windows(timeline, start_sec, start_sec + geometry.clip_len / geometry.frame_rate)
        clips = begin[:, None] + _every_step(geometry.clip_len, fps / geometry.frame_rate)
        complete = np.all(clips < end[:, None], axis=1)
    return np.where(complete[:, None], clips, -1)


def _plan_by_time(timeline: Timeline, geometry: ClipGeometry) -> Int64[np.ndarray, "n_clips clip_len"]:
    """The last frames shown at or before the seconds (k * stride + j) / frame_rate after the first frame."""
    margin_sec = float(timeline.time_base) / 2 + _MARGIN_SEC
    steps = (timeline.duration_sec + margin_sec) * geometry.frame_rate
    if not steps <= MAX_RESAMPLED:
        raise ValueError(
            f"{timeline.duration_sec:.0f} s are more than {MAX_RESAMPLED} frames at {geometry.frame_rate:g} fps; cut the "
            "video, or mend its timestamps"
        )
    grid = shown_at(timeline, np.arange(int(steps)) / geometry.frame_rate)
    return grid[_first_of_clips(len(grid), geometry)[:, None] + np.arange(geometry.clip_len)]


def _first_of_clips(count: int, geometry: ClipGeometry) -> Int64[np.ndarray, " n_clips"]:
    return np.arange(0, max(count - geometry.clip_len + 1, 0), geometry.stride)


def _first_pts(timeline: Timeline) -> int:
    return int(timeline.pts[0]) if len(timeline.pts) else 0


def _every_step(count: int, step: float) -> Int64[np.ndarray, " count"]:
    # The original multiplies in float32: at 29.97 fps 214 of the first 60,000 products round to another frame in float64.
    return np.floor(np.arange(count, dtype=np.float32) * np.float32(step)).astype(np.int64)


def _read_windows(
    timeline: Timeline, start_sec: np.ndarray, end_sec: np.ndarray
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """The first and past-the-last frame that torchvision's read_video gives for each interval of seconds, end included."""
    units_per_sec = float(1 / timeline.time_base)
    start = np.floor(start_sec * units_per_sec).astype(np.int64)
    end = np.ceil(end_sec * units_per_sec).astype(np.int64)
    # A frame at the start itself, else the last one before it; only a window from 0 never looks back.
    before = np.maximum(np.searchsorted(timeline.pts, start, side="right") - 1, 0)
    begin = np.where(start > 0, before, np.searchsorted(timeline.pts, start, side="left"))
    return begin, np.searchsorted(timeline.pts, end, side="right")
