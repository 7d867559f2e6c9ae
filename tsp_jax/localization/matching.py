"""Which prediction gets which annotated instance: temporal IoU, ranks and matches, for all videos and thresholds at once.

Predictions rank by falling score. Of equal scores the last one in the file comes first, as in the official code with a stable
sort.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int32, Int64

from tsp_jax.localization.segments import Segments

Matcher = Literal["by_score", "by_instance"]
_PAIRS_AT_ONCE = 1 << 20  # bounds memory: a pair takes some 60 bytes while its tIoU is computed


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of a prediction and an annotated instance that belong together and overlap enough.

    Attributes:
      predicted: int64 [n], the row of each pair's prediction.
      truth: int64 [n], the row of each pair's instance.
      tiou: float64 [n], the temporal IoU. It is NaN where the union is 0 seconds or a time is NaN.
    """

    predicted: Int64[np.ndarray, " n"]
    truth: Int64[np.ndarray, " n"]
    tiou: Float64[np.ndarray, " n"]


def match(
    truth: Segments,
    predicted: Segments,
    tiou: Sequence[float] | np.ndarray,
    *,
    min_union_sec: float = 0.0,
    matcher: Matcher = "by_score",
) -> Int32[np.ndarray, "n t"]:
    """Returns the row of the instance that each prediction gets at each threshold, int32 [n, t]; -1 for none.

    An instance goes to one prediction of its video and class.

    Args:
      truth: the annotated instances.
      predicted: the predictions.
      tiou: the tIoU thresholds, above 0.
      min_union_sec: unions are at least so many seconds in tIoU.
      matcher: `by_score`: predictions choose in the order of their ranks, each the instance of largest tIoU that is still free;
        of equal ones the last in the file. A tIoU equal to the threshold is enough, and so is NaN, which counts as the largest.
        `by_instance`: instances choose in the order of their file, each the prediction of largest tIoU above the threshold.
    Source: ActivityNet's evaluation code; `by_instance`: the THUMOS14 challenge's evaluation code.
    """
    tiou = np.asarray(tiou, np.float64)
    pairs = overlapping(truth, predicted, float(tiou.min()), min_union_sec=min_union_sec)
    return matched_pairs(pairs, ranking(predicted.score), len(truth), tiou, matcher)


def ranking(score: Float64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Returns the rows by falling score. Of equal scores the last row comes first; NaN comes before all."""
    return np.argsort(score, kind="stable")[::-1]


def tiou_of(
    truth: Segments, predicted: Segments, truth_rows: np.ndarray, predicted_rows: np.ndarray, *, min_union_sec: float = 0.0
) -> Float64[np.ndarray, " n"]:
    """Returns the temporal IoU of pairs of rows, float64 [n]; NaN where the union is 0 seconds or a time is NaN."""
    start, end = truth.start_sec[truth_rows], truth.end_sec[truth_rows]
    first, last = predicted.start_sec[predicted_rows], predicted.end_sec[predicted_rows]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        shared = np.maximum(np.minimum(end, last) - np.maximum(start, first), 0)
        union = (end - start) + (last - first) - shared
        if min_union_sec:
            union = np.maximum(union, min_union_sec)
        return shared / union


def overlapping(
    truth: Segments, predicted: Segments, least: float, *, with_labels: bool = True, min_union_sec: float = 0.0
) -> Pairs:
    """Returns the pairs of a prediction and an instance of the same video whose tIoU is NaN or at least `least`.

    Args:
      truth: the annotated instances.
      predicted: the predictions.
      least: the least tIoU.
      with_labels: whether the two must have the same label too.
      min_union_sec: unions are at least so many seconds in tIoU.
    """
    num_labels = 1 + max(truth.label.max(initial=0), predicted.label.max(initial=0))
    group, wanted = (rows.video * num_labels + rows.label if with_labels else rows.video for rows in (truth, predicted))
    by_group = np.argsort(group, kind="stable")
    begin, end = (np.searchsorted(group[by_group], wanted, side) for side in ("left", "right"))
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for rows in _parts(end - begin):
        count = (end - begin)[rows]
        predicted_rows = np.repeat(rows, count)
        inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        truth_rows = by_group[np.repeat(begin[rows], count) + inside]
        tiou = tiou_of(truth, predicted, truth_rows, predicted_rows, min_union_sec=min_union_sec)
        kept = ~(tiou < least)
        found.append((predicted_rows[kept], truth_rows[kept], tiou[kept]))
    none = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Pairs(*(np.concatenate(columns) for columns in zip(none, *found, strict=True)))


def places(group: np.ndarray, rank: np.ndarray) -> Int64[np.ndarray, " n"]:
    """Returns the place of each row among the rows of its group, 0 for the one that ranks first."""
    by_group = rank[np.argsort(group[rank], kind="stable")]
    starts = np.flatnonzero(np.diff(group[by_group], prepend=-1))
    place = np.empty(len(rank), np.int64)
    place[by_group] = np.arange(len(rank)) - np.repeat(starts, np.diff(starts, append=len(rank)))
    return place


def _parts(count: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the rows with a count above 0, in parts whose counts sum to about `_PAIRS_AT_ONCE`."""
    rows = np.flatnonzero(count)
    total = np.cumsum(count[rows])
    bounds = np.searchsorted(total, np.arange(_PAIRS_AT_ONCE, total[-1] if len(rows) else 0, _PAIRS_AT_ONCE), "right")
    yield from (part for part in np.split(rows, bounds) if len(part))


def matched_pairs(
    pairs: Pairs, rank: np.ndarray, instances: int, tiou: np.ndarray, matcher: Matcher
) -> Int32[np.ndarray, "n t"]:
    """Returns the instance that each prediction gets at each threshold; -1 for none."""
    place = np.empty_like(rank)
    place[rank] = np.arange(len(rank))
    matched = np.full((len(rank), len(tiou)), -1, np.int32)
    largest_first = -np.where(np.isnan(pairs.tiou), np.inf, pairs.tiou)
    if matcher == "by_score":
        order = np.lexsort((-pairs.truth, largest_first, place[pairs.predicted]))
        enough = ~(pairs.tiou[order, None] < tiou)
        chosen = _choose(place[pairs.predicted][order], pairs.truth[order], enough, instances)
        truth_rows, columns = np.nonzero(chosen >= 0)
        matched[rank[chosen[truth_rows, columns]], columns] = truth_rows
    else:
        order = np.lexsort((place[pairs.predicted], largest_first, pairs.truth))
        enough = pairs.tiou[order, None] > tiou
        chosen = _choose(pairs.truth[order], pairs.predicted[order], enough, len(rank))
        matched[:] = chosen
    return matched


def _choose(chooser: np.ndarray, wanted: np.ndarray, enough: np.ndarray, num_wanted: int) -> Int64[np.ndarray, "n t"]:
    """Returns who gets each wanted thing if choosers take turns by ascending number, each taking the best that is free.

    All turns of all groups and thresholds are played at once: everybody asks for the best thing that did not refuse them, a
    thing refuses all but the chooser of lowest number, and who is refused asks for the next one (Gale and Shapley 1962). As all
    things prefer the same choosers, the one stable outcome is that of taking turns.

    Args:
      chooser: [pairs], ascending numbers of the choosers.
      wanted: [pairs], the thing of each pair; a chooser's pairs are in order of preference.
      enough: bool [pairs, t], whether the pair is acceptable at a threshold; true for a first part of a chooser's pairs.
      num_wanted: the number of things.

    Returns:
      int64 [num_wanted, t], the chooser of each thing; -1 for none.
    """
    thresholds = enough.shape[1]
    first = np.flatnonzero(np.diff(chooser, prepend=-1))
    if not len(first):
        return np.full((num_wanted, thresholds), -1)
    count = np.add.reduceat(enough, first, axis=0, dtype=np.int64).ravel()
    # A turn is a chooser at a threshold; its number is its priority.
    nobody = len(count)
    owner, refused = np.full(num_wanted * thresholds, nobody), np.zeros(nobody, np.int64)
    asking = np.flatnonzero(count)
    while len(asking):
        thing = wanted[first[asking // thresholds] + refused[asking]] * thresholds + asking % thresholds
        before = owner[thing]
        np.minimum.at(owner, thing, asking)
        after = owner[thing]
        displaced = np.unique(before[(before != after) & (before != nobody)])
        losers = np.concatenate([asking[after != asking], displaced])
        refused[losers] += 1
        asking = losers[refused[losers] < count[losers]]
    numbers = np.append(np.repeat(chooser[first], thresholds), -1)
    return numbers[owner].reshape(num_wanted, thresholds)
