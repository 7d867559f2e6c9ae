"""Average precision as if every class had the same number of instances, so that classes and groups of instances compare.

The normalized precision is r·N / (r·N + false positives), where r is the recall and N the average number of instances of a
class.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from tsp_jax.localization import matching, segments

Segments = segments.Segments


@dataclasses.dataclass(frozen=True)
class Scored:
    """Scores by normalized precision, averaged over the classes. Each is from 0 to 1; None if it is not defined.

    Attributes:
      average_mAP_N: the normalized mAP, averaged over the thresholds.
      mAP_N: the normalized mAP at each threshold.
      average_recall: the recall, averaged over the thresholds.
      average_precision: the normalized precision of all predictions, averaged over the thresholds.
    """

    average_mAP_N: float | None
    mAP_N: dict[str, float | None]
    average_recall: float | None
    average_precision: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class Matched:
    """Predictions, and which instance each of them has.

    Attributes:
      truth: the instances.
      predicted: the predictions.
      order: int64 [n], the rows of predictions, class by class, each class by rank.
      bounds: int64 [k + 1], where each class begins and ends in `order`.
      instances: int64 [k], the number of instances of each class.
      per_class: the average number of instances of a class.
      instance: int32 [n, t], the row of each prediction's instance at each threshold; -1 for none.
      faithful: whether the faults of DETAD's code are repeated.
    """

    truth: Segments
    predicted: Segments
    order: Int64[np.ndarray, " n"]
    bounds: Int64[np.ndarray, " k1"]
    instances: Int64[np.ndarray, " k"]
    per_class: float
    instance: Int32[np.ndarray, "n t"]
    faithful: bool

    def classes(self, order: Int64[np.ndarray, " n"] | None = None) -> Iterator[tuple[int, Int64[np.ndarray, " m"]]]:
        """Yields each class with the rows of its predictions by rank."""
        order = self.order if order is None else order
        for label in range(len(self.instances)):
            yield label, order[self.bounds[label] : self.bounds[label + 1]]


def match(
    truth: Segments,
    predicted: Segments,
    num_labels: int,
    tiou: Float64[np.ndarray, " t"],
    *,
    min_union_sec: float = 0.0,
    faithful: bool = False,
) -> Matched:
    """Returns the predictions with their instances. `matching.match` explains who gets which instance.

    Args:
      truth: the instances.
      predicted: the predictions.
      num_labels: the number of classes.
      tiou: the tIoU thresholds, above 0.
      min_union_sec: unions are at least so many seconds in tIoU.
      faithful: whether equal scores are ranked by NumPy's unstable sort, as in DETAD's code, and classes without instances
        count in the average number of instances.
    """
    by_class = np.argsort(predicted.label, kind="stable")
    bounds = np.searchsorted(predicted.label[by_class], np.arange(num_labels + 1))
    parts = [by_class[first:last] for first, last in itertools.pairwise(bounds.tolist())]
    parts = [rows[_falling(predicted.score[rows], faithful)] for rows in parts]
    order = np.concatenate([by_class[:0], *parts])
    pairs = matching.overlapping(truth, predicted, float(tiou.min()), min_union_sec=min_union_sec)
    instance = matching.matched_pairs(pairs, order, len(truth), tiou, "by_score")
    instances = np.bincount(truth.label, minlength=num_labels)
    counted = num_labels if faithful else np.count_nonzero(instances)
    return Matched(truth, predicted, order, bounds, instances, len(truth) / max(counted, 1), instance, faithful)


def by_table_sort(found: Matched) -> Int64[np.ndarray, " n"]:
    """Returns the rows, class by class, each class as DETAD's tables sort it: like `order` but for equal scores."""
    if not found.faithful:
        return found.order
    parts = [found.order[:0]]
    for _, rows in found.classes():
        rows = np.sort(rows)
        parts.append(rows[falling_table(found.predicted.score[rows])])
    return np.concatenate(parts)


def falling_table(score: Float64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Returns the rows by falling score, as pandas' sort_values does: unstable, from the last row to the first."""
    return (len(score) - 1 - np.argsort(score[::-1]))[::-1]


def _falling(score: Float64[np.ndarray, " n"], faithful: bool) -> Int64[np.ndarray, " n"]:
    return np.argsort(score)[::-1] if faithful else matching.ranking(score)


def precision(
    hit: Bool[np.ndarray, "n t"], counted: Bool[np.ndarray, "n t"] | None, instances: int, per_class: float
) -> Float64[np.ndarray, "n t"]:
    """Returns the normalized precision of one class at each rank and threshold; 0 before the first prediction that counts.

    Args:
      hit: whether each prediction has an instance; predictions by rank.
      counted: which predictions count; None for all.
      instances: the number of instances of the class.
      per_class: N.
    """
    right, wrong = (hit, ~hit) if counted is None else (hit & counted, ~hit & counted)
    weight = np.cumsum(right, axis=0) * (per_class / instances)
    total = weight + np.cumsum(wrong, axis=0)
    return np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)


def average_precision(
    found: Matched,
    hit: Bool[np.ndarray, "n t"],
    *,
    counted: Bool[np.ndarray, "n t"] | None = None,
    order: Int64[np.ndarray, " n"] | None = None,
    instances: Int64[np.ndarray, " k"] | None = None,
) -> Float64[np.ndarray, "k t"]:
    """Returns the normalized average precision of each class, [k, t]; NaN for a class without instances.

    Args:
      found: the predictions.
      hit: whether each prediction has an instance.
      counted: which predictions count; None for all.
      order: the rows class by class; None for that of the ranks.
      instances: the number of instances of each class that are to be found; None for all.
    """
    instances = found.instances if instances is None else instances
    ap = np.full((len(instances), hit.shape[1]), np.nan)
    for label, rows in found.classes(order):
        if not instances[label]:
            # The original divides 0 by 0, unless there are no predictions.
            ap[label] = 0 if found.faithful and not len(rows) else np.nan
            continue
        inside = None if counted is None else counted[rows]
        values = precision(hit[rows], inside, int(instances[label]), found.per_class)
        envelope = np.maximum.accumulate(values[::-1])[::-1]
        right = hit[rows] if inside is None else hit[rows] & inside
        ap[label] = np.sum(envelope, axis=0, where=right) / instances[label]
    return ap


def confident(found: Matched, least: float) -> Bool[np.ndarray, "n t"]:
    """Returns which predictions have an instance and a rank where the normalized precision is above `least`."""
    hit = found.instance >= 0
    for label, rows in found.classes():
        if found.instances[label]:
            hit[rows] &= precision(hit[rows], None, int(found.instances[label]), found.per_class) > least
    return hit


def scored(found: Matched, hit: Bool[np.ndarray, "n t"], tiou: Mapping[str, float]) -> Scored:
    """Returns the scores of predictions of which `hit` says whether each has an instance. `tiou` names the thresholds."""
    by_tiou = mean(average_precision(found, hit), found)
    ends = np.zeros((2, len(found.instances), len(tiou)))
    for label, rows in found.classes():
        count = int(found.instances[label])
        if not count:
            ends[:, label] = np.nan if len(rows) else 0
        elif len(rows):
            ends[0, label] = hit[rows].sum(0) / count
            ends[1, label] = precision(hit[rows], None, count, found.per_class)[-1]
    recall, last = (mean(values, found).mean() for values in ends)
    return Scored(number(by_tiou.mean()), named(tiou, by_tiou), number(recall), number(last))


def mean(values: Float64[np.ndarray, "k t"], found: Matched) -> Float64[np.ndarray, " t"]:
    """Returns the mean over the classes that have instances; in the original, a class without them makes it undefined."""
    return values.mean(0) if found.faithful else values[found.instances > 0].mean(0)


def named(tiou: Mapping[str, float], values: Float64[np.ndarray, " t"]) -> dict[str, float | None]:
    """Returns values by the name of their threshold."""
    return {name: number(value) for name, value in zip(tiou, values.tolist(), strict=True)}


def number(value: float) -> float | None:
    """Returns the number; None for NaN, which JSON can't hold."""
    return None if np.isnan(value) else float(value)
