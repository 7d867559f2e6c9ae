"""Resamples features on the time axis as the original tools do, to the same bits where they round in float32."""

import dataclasses
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32

from tsp_jax import clip_times

Method = Literal["linear", "bmn"]
METHODS: tuple[str, ...] = get_args(Method)
_SAMPLES = 3  # points of each part that `bmn` averages
_EDGE = 1e-4  # rows; `bmn` stays this far within the first and the last row's middle


@dataclasses.dataclass(frozen=True)
class Plan:
    """How features are resampled on the time axis.

    Attributes:
      every: keeps the rows 0, `every`, 2 `every` and so on, as ActionFormer and G-TAD do before anything else.
      length: the number of rows to which each video is resampled after that; None keeps the rows.
      method: how it is resampled, as in `resampled`.
    """

    every: int = 1
    length: int | None = None
    method: Method = "linear"

    def __str__(self) -> str:
        kept = f"row 0 of every {self.every}, " if self.every > 1 else ""
        return f"{kept}{f'resampled to {self.length} rows ({self.method})' if self.length is not None else 'as they were'}"

    def changes(self) -> bool:
        """Returns whether rows are not kept as they are."""
        return self.every > 1 or self.length is not None

    def rows(self, rows: Float32[np.ndarray, "_ c"]) -> Float32[np.ndarray, "_ c"]:
        """Returns a video's features, resampled."""
        rows = rows[:: self.every]
        return rows if self.length is None else resampled(rows, self.length, self.method)

    def timing(self, timing: clip_times.RowTiming, count: int) -> clip_times.RowTiming:
        """Returns the timing of what `rows` returns for `count` rows of this timing."""
        timing, count = dataclasses.replace(timing, stride=timing.stride * self.every), len(range(0, count, self.every))
        if self.length is None or (self.length == count and self.method == "linear"):
            return timing
        return timing.resampled(count, self.length)


def resampled(rows: Float32[np.ndarray, "n c"], length: int, method: Method) -> Float32[np.ndarray, "length c"]:
    """Returns features whose rows are `length` equal parts of the time that the given rows cover.

    Part k covers the rows from `k * n / length` to `(k + 1) * n / length`, where row i covers [i, i + 1). Features of this
    many rows are returned as they are by `linear`, as ActionFormer and OpenTAD do.

    Args:
      rows: the features, at least one row.
      length: the number of rows of the result.
      method: `linear` interpolates at the middle of each part; `bmn` averages three points of each part.

    Source: `linear` equals PyTorch's interpolation (`align_corners=False`), which ActionFormer, G-TAD, OpenTAD and InternVideo
      use. `bmn` follows the rule by which BSN and BMN made their rescaled features, with a row as the unit of time.
    """
    if length < 1 or not len(rows):
        raise ValueError(f"expected at least one row before and after, got {len(rows)} and {length}")
    return _linear(rows, length) if method == "linear" else _pooled(rows, length)


def _linear(rows: Float32[np.ndarray, "n c"], length: int) -> Float32[np.ndarray, "length c"]:
    if len(rows) == length:
        return rows
    single, double = np.float32, np.float64
    # PyTorch's program fuses a product and the sum after it, and rounds once. A product of two float32 is exact in float64.
    scale = double(single(len(rows)) / single(length))
    place = (scale * (np.arange(length) + 0.5) - 0.5).astype(single)
    place = np.maximum(place, single(0))
    left = np.minimum(place.astype(np.int64), len(rows) - 1)
    right = np.minimum(left + 1, len(rows) - 1)
    weight = np.clip(place - left.astype(single), 0, 1).astype(single)[:, None]
    return ((single(1) - weight).astype(double) * rows[left] + (weight * rows[right]).astype(double)).astype(single)


def _pooled(rows: Float32[np.ndarray, "n c"], length: int) -> Float32[np.ndarray, "length c"]:
    count = len(rows)
    if count == 1:
        return np.repeat(rows, length, axis=0)
    edges = np.arange(length + 1) * (1.0 / length) * count
    first = np.maximum(0.5 + _EDGE, edges[:-1])
    last = np.minimum(count - 0.5 - _EDGE, edges[1:])
    middles = np.arange(count) + 0.5
    total = np.zeros((length, rows.shape[1]))
    for step in range(_SAMPLES):
        place = first + (last - first) / (_SAMPLES - 1) * step
        left = np.clip(np.searchsorted(middles, place), 1, count - 1) - 1
        slope = (rows[left + 1] - rows[left]).astype(np.float64)  # subtracted in float32, as SciPy does
        total += slope * (place - middles[left])[:, None] + rows[left]
    # If there are more parts than rows, those at the ends lie outside of the rows' middles. The originals give zeros there.
    inside = (last >= middles[0]) & (first <= middles[-1])
    return np.where(inside[:, None], total / _SAMPLES, 0.0).astype(np.float32)
