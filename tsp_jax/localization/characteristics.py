"""The characteristics of annotated instances by which a diagnosis groups them, and the buckets of each."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from tsp_jax.localization import annotations

BucketSet = Literal["activitynet", "thumos14"]


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Ranges of a characteristic, each with its upper border and without its lower one; the first has both.

    Attributes:
      names: the name of each range.
      borders: the borders, ascending, one more than names.
    """

    names: Sequence[str]
    borders: Sequence[float]


def _fifths(*names: str) -> Buckets:
    # The original's doubles: one border is 0.6000000000000001.
    return Buckets(names, tuple(np.linspace(0, 1, 6).tolist()))


_SIZES = ("XS", "S", "M", "L", "XL")
_CONTEXT = {
    "context-size": Buckets(tuple("0123456"), tuple(range(-1, 7))),
    "context-distance": Buckets(("Inf", "N", "M", "F"), tuple(range(-1, 4))),
    "agreement": _fifths("XW", "W", "M", "H", "XH"),
}
BUCKETS: dict[BucketSet, dict[str, Buckets]] = {
    "activitynet": {
        "coverage": _fifths(*_SIZES),
        "length": Buckets(_SIZES, (0, 30, 60, 120, 180, np.inf)),
        "num-instances": Buckets(_SIZES[:4], (-1, 1, 4, 8, np.inf)),
        **_CONTEXT,
    },
    "thumos14": {
        "coverage": Buckets(_SIZES, (0, 0.02, 0.04, 0.06, 0.08, 1)),
        "length": Buckets(_SIZES, (0, 3, 6, 12, 18, np.inf)),
        "num-instances": Buckets(_SIZES[:4], (-1, 1, 40, 80, np.inf)),
        **_CONTEXT,
    },
}
MEANING = {
    "coverage": "the share of the video that the instance lasts",
    "length": "seconds",
    "num-instances": "annotated instances of any class in the video",
    "context-size": "pieces of the surroundings that annotators need to recognize the instance",
    "context-distance": "how far away these pieces are: no context, near, middle, far",
    "agreement": "how well the times of several annotators agree, from 0 to 1",
}


def of(truth: annotations.GroundTruth) -> dict[str, Float64[np.ndarray, " n"]]:
    """Returns the value of each characteristic for each instance, float64 [n]; NaN where it is not known.

    Length, number and coverage follow from the instances and the durations of videos. Coverage is the file's own where it has
    no duration. The others are there if the file has them, because they follow from several annotators' work.
    """
    rows = truth.rows
    with np.errstate(over="ignore"):
        length = rows.end_sec - rows.start_sec
    duration = truth.duration_sec[rows.video]
    given = dict(truth.characteristics)
    unknown = np.full(len(rows), np.nan)
    with np.errstate(over="ignore"):
        coverage = np.divide(length, duration, out=unknown.copy(), where=duration > 0)
    coverage = np.where(np.isnan(coverage), given.pop("coverage", unknown), coverage)
    number = np.bincount(rows.video, minlength=len(truth.videos))[rows.video].astype(np.float64)
    return {"coverage": coverage, "length": length, "num-instances": number, **given}


def bucket_of(values: Float64[np.ndarray, " n"], buckets: Buckets) -> Int64[np.ndarray, " n"]:
    """Returns the number of the bucket of each value; -1 for a value outside of all, and for NaN."""
    place = np.searchsorted(buckets.borders, values, side="left") - 1
    place[values == buckets.borders[0]] = 0
    place[place >= len(buckets.names)] = -1
    return place


def span(buckets: Buckets, name: str) -> str:
    """Returns the range of a bucket as text, such as `30 to 60`."""
    place = list(buckets.names).index(name)
    low, high = buckets.borders[place : place + 2]
    return f"above {low:g}" if high == np.inf else f"up to {high:g}" if place == 0 else f"above {low:g} to {high:g}"
