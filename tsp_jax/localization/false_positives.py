"""Kinds of false positives after DETAD (Alwassel et al., ECCV 2018), and what each costs."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int64

from tsp_jax.localization import matching, normalized_precision, segments

Segments = segments.Segments
KINDS: tuple[str, ...] = ("true positive", "double detection", "wrong label", "localization", "confusion", "background")
GROUPS = 10  # the first G predictions of a class with G instances, the next G, and so on
_LEAST_TIOU = 0.1  # an error with less overlap is one of background


@dataclasses.dataclass(frozen=True)
class Group:
    """Predictions by kind.

    Attributes:
      predictions: the number of predictions.
      counts: the number of predictions of each kind at each threshold: `counts["0.50"]["wrong label"]`.
      share: the share of each kind, averaged over the thresholds; None if there are no predictions.
    """

    predictions: int
    counts: dict[str, dict[str, int]]
    share: dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class FalsePositives:
    """The kinds of the first 10·G predictions of each class, where G is the class's number of instances.

    Attributes:
      scored: the scores of these predictions.
      all: all of them.
      groups: the first G of each class as `1G`, the next G as `2G`, and so on up to `10G`.
      cost: how much the average normalized mAP rises if the false positives of a kind are removed.
    """

    scored: normalized_precision.Scored
    all: Group
    groups: dict[str, Group]
    cost: dict[str, float | None]


class OriginalFails(Exception):
    """DETAD's own code ends with an error here."""


def analyse(
    truth: Segments,
    predicted: Segments,
    labels: Int64[np.ndarray, " k"],
    videos: Sequence[str],
    tiou: Mapping[str, float],
    *,
    min_union_sec: float = 0.0,
    faithful: bool = False,
) -> FalsePositives:
    """Returns the kinds of false positives.

    A prediction without an instance is compared with the instance of its video that has the largest tIoU, of any class.
    If that is at least the threshold, it is a double detection (same class) or has a wrong label; if it is at least 0.1, it is
    an error of localization (same class) or a confusion; otherwise it is background.

    Args:
      truth: the instances.
      predicted: the predictions.
      labels: all classes, in the order of their first instances in the file.
      videos: names of the videos.
      tiou: the tIoU thresholds by name.
      min_union_sec: unions are at least so many seconds in tIoU.
      faithful: whether the faults of DETAD's code are repeated.

    Raises:
      OriginalFails: DETAD's code ends with an error (`faithful`).
    """
    thresholds = np.array(list(tiou.values()))
    predicted = _first(predicted, np.bincount(truth.label, minlength=len(labels)), labels)
    found = normalized_precision.match(
        truth, predicted, len(labels), thresholds, min_union_sec=min_union_sec, faithful=faithful
    )
    hit = found.instance >= 0
    kinds = _kinds(found, videos, thresholds, min_union_sec)
    rank = normalized_precision.falling_table(predicted.score) if faithful else matching.ranking(predicted.score)
    group = matching.places(predicted.label, rank) // np.maximum(found.instances[predicted.label], 1)
    scored = normalized_precision.scored(found, hit, tiou)
    cost: dict[str, float | None] = {}
    for number, kind in enumerate(KINDS[1:], 1):
        ap = normalized_precision.mean(
            normalized_precision.average_precision(found, hit, counted=kinds != number), found
        ).mean()
        cost[kind] = None if scored.average_mAP_N is None else normalized_precision.number(ap - scored.average_mAP_N)
    return FalsePositives(
        scored=scored,
        all=_group(kinds, tiou),
        groups={f"{number + 1}G": _group(kinds[group == number], tiou) for number in range(GROUPS)},
        cost=cost,
    )


def _first(predicted: Segments, instances: Int64[np.ndarray, " k"], labels: Int64[np.ndarray, " k"]) -> Segments:
    """Returns the first 10·G predictions of each class. Of equal scores the first in the file come first.

    Classes come in the order of their first instances, as in DETAD's code, of which one fault depends on it.
    """
    rank = np.argsort(-predicted.score, kind="stable")
    rank = rank[np.argsort(np.argsort(labels)[predicted.label[rank]], kind="stable")]
    place = matching.places(predicted.label, rank)
    return predicted.take(rank[(place < GROUPS * instances[predicted.label])[rank]])


def _kinds(
    found: normalized_precision.Matched,
    videos: Sequence[str],
    thresholds: Float64[np.ndarray, " t"],
    min_union_sec: float,
) -> Int64[np.ndarray, "n t"]:
    """Returns the kind of each prediction at each threshold, as places in `KINDS`."""
    hit, predicted = found.instance >= 0, found.predicted
    least = min(_LEAST_TIOU, float(thresholds.min()))
    best = _best(found.truth, predicted, least, min_union_sec)
    kinds = np.empty(hit.shape, np.int64)
    for column, threshold in enumerate(thresholds):
        wrong = np.flatnonzero(~hit[:, column])
        tiou, label = best[0][wrong], best[1][wrong]
        if found.faithful:
            rows, video = _stale(predicted.video[wrong], found.truth.video, videos)
            other = dataclasses.replace(predicted.take(wrong[rows]), video=video)
            tiou[rows], label[rows] = _best(found.truth, other, least, min_union_sec)
        same = label == predicted.label[wrong]
        kinds[:, column] = 0
        kinds[wrong, column] = np.where(
            tiou >= threshold, np.where(same, 1, 2), np.where(tiou >= _LEAST_TIOU, np.where(same, 3, 4), 5)
        )
    return kinds


def _best(
    truth: Segments, predicted: Segments, least: float, min_union_sec: float
) -> tuple[Float64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Returns the largest tIoU of each prediction with an instance of any class, and that instance's class.

    Of equal ones the first in the file counts, and NaN before all. Without any of at least `least` the two are 0 and -1.
    """
    pairs = matching.overlapping(truth, predicted, least, with_labels=False, min_union_sec=min_union_sec)
    rank = np.lexsort((pairs.truth, -np.where(np.isnan(pairs.tiou), np.inf, pairs.tiou), pairs.predicted))
    rows, first = np.unique(pairs.predicted[rank], return_index=True)
    tiou, label = np.zeros(len(predicted)), np.full(len(predicted), -1)
    tiou[rows], label[rows] = pairs.tiou[rank[first]], truth.label[pairs.truth[rank[first]]]
    return tiou, label


def _stale(
    video: Int64[np.ndarray, " n"], annotated: Int64[np.ndarray, " m"], videos: Sequence[str]
) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " r"]]:
    """Returns which errors DETAD's code compares with instances of another video, and the numbers of those videos.

    It goes through the errors by name of video. For a video without instances, all but the first of its errors are compared
    with the instances of the last video that had some. Which one is first depends on pandas' sort, which is NumPy's of objects.
    """
    order = np.argsort(np.array([videos[int(number)] for number in video], object), kind="quicksort")
    visited = video[order]
    has_truth = np.isin(visited, annotated)
    last = np.maximum.accumulate(np.where(has_truth, np.arange(len(visited)), -1))
    again = ~has_truth & (visited == np.append(-1, visited[:-1]))
    if np.any(last[again] < 0):
        raise OriginalFails("the first video by name that has errors has no instances")
    return order[again], visited[last[again]]


def _group(kinds: Int64[np.ndarray, "n t"], tiou: Mapping[str, float]) -> Group:
    counts = np.array([np.bincount(column, minlength=len(KINDS)) for column in kinds.T])
    share = counts.mean(0) / len(kinds) if len(kinds) else np.full(len(KINDS), np.nan)
    return Group(
        predictions=len(kinds),
        counts={name: dict(zip(KINDS, row.tolist(), strict=True)) for name, row in zip(tiou, counts, strict=True)},
        share={kind: normalized_precision.number(value) for kind, value in zip(KINDS, share.tolist(), strict=True)},
    )
