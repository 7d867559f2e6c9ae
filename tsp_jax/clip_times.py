"""When the rows of stored features lie in their video, by the attributes that extraction or an import wrote."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int64

from tsp_jax import clips, features

IMPORTED = "timing"  # the attribute that imported features have and extracted ones do not; it says the timing in words
_MAX = 1e12  # numbers beyond are no timing


@dataclasses.dataclass(frozen=True)
class RowTiming:
    """When the rows of imported features lie in their video: row k covers frames from `offset + k * stride`, `window` of them.

    Attributes:
      fps: the frames per second by which the other attributes count.
      stride: frames from the start of a row to the start of the next; need not be whole.
      window: frames that a row covers.
      offset: the frame at which the first row starts; may be negative.
    """

    fps: float
    stride: float
    window: float
    offset: float = 0.0

    def __post_init__(self):
        values = dataclasses.astuple(self)
        if (
            not all(math.isfinite(value) and abs(value) < _MAX for value in values)
            or min(self.fps, self.stride, self.window) <= 0
        ):
            raise ValueError(
                f"{self.fps:g} fps, a stride of {self.stride:g}, a window of {self.window:g} and an offset of {self.offset:g} "
                "frames; expected finite numbers, all above 0 but the offset"
            )

    def start_sec(self, count: int) -> Float[np.ndarray, " n"]:
        """Returns the start of each of the first rows in seconds, float64."""
        return (self.offset + np.arange(count) * self.stride) / self.fps

    def end_sec(self, count: int) -> float:
        """Returns the second at which the last of the first rows ends."""
        return (self.offset + (count - 1) * self.stride + self.window) / self.fps

    def resampled(self, count: int, length: int) -> "RowTiming":
        """Returns the timing of rows that are equal parts of the time that `count` rows cover, a stride around each middle."""
        stride = self.stride * count / length
        return RowTiming(self.fps, stride, stride, self.offset + (self.window - self.stride) / 2)

    def attributes(self) -> features.Attributes:
        """Returns the attributes from which `row_timing` makes this timing."""
        return {f"row_{key}": float(value) for key, value in dataclasses.asdict(self).items()}


def row_timing(video: features.VideoFeatures) -> RowTiming:
    """Returns the timing of a video's rows, by the attributes of an import, or of an extraction by time.

    Raises:
      FeatureFileError: the attributes are absent or impossible.
    """
    found = video.attributes
    try:
        if IMPORTED in found:
            return RowTiming(*(float(found[f"row_{field.name}"]) for field in dataclasses.fields(RowTiming)))
        return RowTiming(float(found["frame_rate"]), float(found["stride"]), float(found["clip_len"]))
    except (LookupError, ValueError, TypeError) as error:
        reason = f"no attribute {error}" if isinstance(error, LookupError) else str(error)
        raise features.FeatureFileError(
            f"video {video.name!r}: expected the attributes that `python -m tsp_jax.features import` writes, found {reason}; "
            "import it again"
        ) from error


def duration_sec(video: features.VideoFeatures) -> float:
    """Returns the length of the video in seconds.

    Raises:
      FeatureFileError: the attributes from which it follows are absent or no numbers.
    """
    found = video.attributes
    try:
        return float(found["duration_sec"]) if "duration_sec" in found else float(found["frames"]) / float(found["fps"])
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
        raise features.FeatureFileError(
            f"video {video.name!r}: expected the attributes duration_sec, or frames and fps, for its length; extract it again"
        ) from error


def clip_times(video: features.VideoFeatures) -> tuple[Float[np.ndarray, " n"], float]:
    """Returns the start of each row's clip, and the length that all of them have, in seconds.

    Raises:
      FeatureFileError: the attributes are absent or impossible, as for `clip_numbers`.
    """
    numbers, found = clip_numbers(video), video.attributes
    if IMPORTED in found:
        timing = row_timing(video)
        return timing.start_sec(len(numbers)), timing.window / timing.fps
    rate, clip_len_sec = float(found["frame_rate"]), int(found["clip_len"]) / float(found["frame_rate"])
    if _is_by_time(found):
        return numbers * int(found["stride"]) / rate, clip_len_sec
    grid = clips.resampled(int(found["frames"]), float(found["fps"]), rate)
    return grid[numbers * int(found["stride"])] / float(found["fps"]), clip_len_sec


def clip_numbers(video: features.VideoFeatures) -> Int64[np.ndarray, " n"]:
    """Returns the number of each row's clip among the video's planned clips, ascending.

    All planned clips are there, unless the video is damaged.

    Raises:
      FeatureFileError: the attributes that say so are absent or impossible.
    """
    found = video.attributes
    if IMPORTED in found:
        row_timing(video)
        duration_sec(video)
        return np.arange(len(video.features))
    try:
        fps, rate = clips.check_fps(float(found["fps"])), clips.check_fps(float(found["frame_rate"]))
        frames, stride, clip_len = (int(found[key]) for key in ("frames", "stride", "clip_len"))
        ranges = np.asarray(found["clip_ranges"]).astype(np.int64).reshape(-1, 2)
        if min(frames, stride, clip_len) < 1 or frames * rate / fps > clips.MAX_RESAMPLED:
            raise ValueError(
                f"{frames} frames at {fps:g} fps, {rate:g} of them a second, in clips of {clip_len} every {stride}"
            )
        bounds = ranges.ravel()
        last = (len(clips.resampled(frames, fps, rate)) - 1) // stride + 1
        if _is_by_time(found):
            last = int(found["clips_planned"])
            if not (math.isfinite(duration_sec(video)) and 0 <= last <= clips.MAX_RESAMPLED):
                raise ValueError(f"{last} clips in {duration_sec(video)} s")
        if np.any(np.diff(bounds) < 0) or (len(bounds) and not 0 <= bounds[0] <= bounds[-1] <= last):
            raise ValueError(f"clip_ranges {ranges.tolist()[:3]} of at most {last} clips")
        numbers = np.concatenate([np.arange(*pair) for pair in ranges.tolist()] or [np.zeros(0, np.int64)])
        if len(numbers) != len(video.features):
            raise ValueError(f"clip_ranges count {len(numbers)} clips, there are {len(video.features)}")
    except (LookupError, ValueError, TypeError, OverflowError) as error:
        reason = f"no attribute {error}" if isinstance(error, LookupError) else str(error)
        raise features.FeatureFileError(
            f"video {video.name!r}: expected the attributes that `python -m tsp_jax.extract` writes, found {reason}; "
            "extract it again"
        ) from error
    return numbers


def _is_by_time(found: features.Attributes) -> bool:
    """Whether the rows stand for the seconds k * stride / frame_rate. Version 0.1.0 had `uniform` count frames instead."""
    return found.get("frame_selection") == "uniform" and "duration_sec" in found
