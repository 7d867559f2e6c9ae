"""Scores of temporal detections, proposals and labels of videos: NumPy alone, pure, float64.

Everything is computed for all videos and thresholds at once.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tsp_jax.localization import matching, segments

Segments = segments.Segments


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionScores:
    """Scores of detections.

    Attributes:
      tiou: float64 [t], the tIoU thresholds.
      instances: int64 [k], annotated instances of each class.
      ap: float64 [k, t], the average precision of each class; NaN for a class without instances.
      recall_at: the multiples x of Recall@x.
      recall: float64 [m, k, t], the recall of each class among the first x·G predictions of a video that has G instances of the
        class; NaN for a class without instances.
    """

    tiou: Float64[np.ndarray, " t"]
    instances: Int64[np.ndarray, " k"]
    ap: Float64[np.ndarray, "k t"]
    recall_at: tuple[int, ...]
    recall: Float64[np.ndarray, "m k t"]

    @property
    def map_by_tiou(self) -> Float64[np.ndarray, " t"]:
        """float64 [t], the mean AP over the classes that have instances."""
        return self.ap[self.instances > 0].mean(0)

    @property
    def average_map(self) -> float:
        """The mean of `map_by_tiou`."""
        return float(self.map_by_tiou.mean())

    @property
    def mean_recall(self) -> Float64[np.ndarray, "m t"]:
        """float64 [m, t], the mean recall over the classes that have instances."""
        return self.recall[:, self.instances > 0].mean(1)


@dataclasses.dataclass(frozen=True, eq=False)
class ProposalScores:
    """Scores of proposals.

    Attributes:
      tiou: float64 [t], the tIoU thresholds.
      proposals: float64 [a], the average number of proposals of a video at each point of the curve, ascending.
      recall: float64 [t, a], the recall at each threshold and point.
    """

    tiou: Float64[np.ndarray, " t"]
    proposals: Float64[np.ndarray, " a"]
    recall: Float64[np.ndarray, "t a"]

    @property
    def average_recall(self) -> Float64[np.ndarray, " a"]:
        """float64 [a], the recall averaged over the thresholds (AR) at each point."""
        return self.recall.mean(0)

    @property
    def auc(self) -> float | None:
        """The area under AR against the number of proposals, divided by the last number, in percent; None for one point."""
        if len(self.proposals) < 2:
            return None
        return float(100 * np.trapezoid(self.average_recall, self.proposals) / self.proposals[-1])


@dataclasses.dataclass(frozen=True, eq=False)
class ClassificationScores:
    """Scores of labels of whole videos.

    Attributes:
      instances: int64 [k], videos of each class.
      ap: float64 [k], the average precision of each class; NaN for a class without videos.
      top_k: the numbers of labels that count as a video's first ones.
      hit: float64 [m], the share of videos of which some label is among the first ones.
      mean_hit: float64 [m], the share of a video's labels that are among the first ones, averaged over videos.
    """

    instances: Int64[np.ndarray, " k"]
    ap: Float64[np.ndarray, " k"]
    top_k: tuple[int, ...]
    hit: Float64[np.ndarray, " m"]
    mean_hit: Float64[np.ndarray, " m"]

    @property
    def mean_ap(self) -> float:
        """The mean AP over the classes that have videos."""
        return float(self.ap[self.instances > 0].mean())


def detection(
    truth: Segments,
    predicted: Segments,
    num_labels: int,
    tiou: Sequence[float] | np.ndarray,
    *,
    recall_at: Sequence[int] = (),
    min_union_sec: float = 0.0,
    matcher: matching.Matcher = "by_score",
    envelope: bool = True,
    ambiguous: Segments | None = None,
) -> DetectionScores:
    """Returns the scores of detections.

    Args:
      truth: the annotated instances.
      predicted: the detections. Classes without instances are not scored.
      num_labels: the number of classes.
      tiou: the tIoU thresholds, above 0.
      recall_at: the multiples x of Recall@x, with which a prediction may find several instances.
      min_union_sec: unions are at least so many seconds in tIoU.
      matcher: how predictions get instances, as in `matching.match`.
      envelope: whether precision is replaced by the highest precision at any greater recall.
      ambiguous: parts of videos in which unmatched detections of any class are not counted.
    """
    tiou = np.asarray(tiou, np.float64)
    pairs = matching.overlapping(truth, predicted, float(tiou.min()), min_union_sec=min_union_sec)
    rank = matching.ranking(predicted.score)
    matched = matching.matched_pairs(pairs, rank, len(truth), tiou, matcher) >= 0
    counted = matched | ~_touches(predicted, ambiguous)[:, None] if ambiguous is not None and len(ambiguous) else None
    rank = rank[np.argsort(predicted.label[rank], kind="stable")]
    bounds = np.searchsorted(predicted.label[rank], np.arange(num_labels + 1))
    instances = np.bincount(truth.label, minlength=num_labels)
    ap = np.full((num_labels, len(tiou)), np.nan)
    for label in np.flatnonzero(instances):
        rows = rank[bounds[label] : bounds[label + 1]]
        ap[label] = average_precision(
            matched[rows], int(instances[label]), counted=None if counted is None else counted[rows], envelope=envelope
        )
    recall = _recall(truth, predicted, pairs, instances, tiou, recall_at)
    return DetectionScores(tiou, instances, ap, tuple(recall_at), recall)


def average_precision(
    matched: Bool[np.ndarray, "n t"],
    instances: int,
    *,
    counted: Bool[np.ndarray, "n t"] | None = None,
    envelope: bool = True,
) -> Float64[np.ndarray, " t"]:
    """Returns the average precision of one class at each threshold, float64 [t].

    It is the mean over instances of the precision at the rank where the instance is found, 0 for those that are not found.

    Args:
      matched: whether each prediction has an instance; predictions in the order of their ranks.
      instances: the number of annotated instances, at least 1.
      counted: which predictions count; None for all.
      envelope: whether precision is replaced by the highest precision at any greater recall.
    """
    seen = np.arange(1, len(matched) + 1)[:, None] if counted is None else np.maximum(np.cumsum(counted, axis=0), 1)
    precision = np.cumsum(matched, axis=0) / seen
    if envelope:
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    return np.sum(precision, axis=0, where=matched) / instances


def average_recall(
    truth: Segments,
    proposals: Segments,
    tiou: Sequence[float] | np.ndarray,
    *,
    max_proposals: float | None = 100,
    points: int = 100,
    rule: Literal["ratio", "top_k"] = "ratio",
    min_union_sec: float = 0.0,
) -> ProposalScores:
    """Returns the average recall against the average number of proposals (AR@AN).

    Labels are not compared. An instance is found if any proposal that is used has a tIoU of at least the threshold.

    Args:
      truth: the annotated instances; every video of the data set has one.
      proposals: the proposals. Those of other videos count in the ratio alone.
      tiou: the tIoU thresholds, above 0.
      max_proposals: the largest average number of proposals of a video; None for the average number in the file.
      points: the number of points of the curve, from max_proposals / points to max_proposals.
      rule: `ratio`: at each point every video uses the same share of its proposals, so that the average over videos is the
        point's number. `top_k`: every video uses its first `number` proposals.
      min_union_sec: unions are at least so many seconds in tIoU.

    Raises:
      EvaluationError: there are no proposals of the ground truth's videos.
    Source: ActivityNet's evaluation code (`ratio`).
    """
    tiou = np.asarray(tiou, np.float64)
    num_videos = 1 + max(truth.video.max(initial=-1), proposals.video.max(initial=-1))
    annotated = np.bincount(truth.video, minlength=num_videos) > 0
    count = np.bincount(proposals.video, minlength=num_videos) * annotated
    if not count.sum():
        raise segments.EvaluationError("no proposals of the ground truth's videos; check the names of the videos")
    rank = matching.ranking(np.where(np.isnan(proposals.score), -np.inf, proposals.score))
    place = matching.places(proposals.video, rank)
    share = np.arange(1, points + 1) / points
    if rule == "ratio":
        largest = len(proposals) / annotated.sum() if max_proposals is None else float(max_proposals)
        kept = np.minimum((count * (largest * annotated.sum() / len(proposals))).astype(np.int64), count)
        if not kept.sum():
            raise segments.EvaluationError(f"an average of {largest:g} proposals is less than one for every video; raise it")
        share = share * (largest * annotated.sum() / kept.sum())
        used = np.minimum((kept[:, None] * share).astype(np.int64), kept[:, None])
        numbers = share * (kept.sum() / annotated.sum())
    else:
        numbers = share * (count.max() if max_proposals is None else max_proposals)
        used = np.minimum(numbers.astype(np.int64), count[:, None])
    pairs = matching.overlapping(truth, proposals, float(tiou.min()), with_labels=False, min_union_sec=min_union_sec)
    recall = np.empty((len(tiou), points))
    for row, threshold in enumerate(tiou):
        found = pairs.tiou >= threshold  # false for NaN, unlike in `matching.match`
        first = np.full(len(truth), len(proposals))
        np.minimum.at(first, pairs.truth[found], place[pairs.predicted[found]])
        recall[row] = np.mean(first[:, None] < used[truth.video], axis=0)
    return ProposalScores(tiou, numbers, recall)


def classification(
    truth: Segments, predicted: Segments, num_labels: int, *, top_k: Sequence[int] = (1, 3, 5)
) -> ClassificationScores:
    """Returns the scores of labels of whole videos. Times are not read.

    Args:
      truth: rows with the labels of each video; repeated ones count once.
      predicted: rows with predicted labels. A repeated one is a false positive and takes a place among the first ones.
      num_labels: the number of classes.
      top_k: the numbers of labels that count as a video's first ones.
    Source: ActivityNet's evaluation code.
    """
    key = truth.video * num_labels + truth.label
    truth = truth.take(np.sort(np.unique(key, return_index=True)[1]))
    key = truth.video * num_labels + truth.label

    def whole(rows: Segments) -> Segments:
        return dataclasses.replace(rows, start_sec=np.zeros(len(rows)), end_sec=np.ones(len(rows)))

    scored = detection(whole(truth), whole(predicted), num_labels, [0.5])
    place = matching.places(predicted.video, matching.ranking(predicted.score))
    of_video = np.bincount(truth.video)
    videos, hits, mean_hits = np.flatnonzero(of_video), [], []
    for k in top_k:
        first = predicted.take(place < k)
        share = np.bincount(truth.video, np.isin(key, first.video * num_labels + first.label))[videos] / of_video[videos]
        hits.append(np.mean(share > 0))
        mean_hits.append(np.mean(share))
    return ClassificationScores(scored.instances, scored.ap[:, 0], tuple(top_k), np.array(hits), np.array(mean_hits))


def _recall(
    truth: Segments,
    predicted: Segments,
    pairs: matching.Pairs,
    instances: np.ndarray,
    tiou: np.ndarray,
    recall_at: Sequence[int],
) -> Float64[np.ndarray, "m k t"]:
    """Returns Recall@kx for each multiple, class and threshold; NaN for a class without instances."""
    num_labels = len(instances)
    recall = np.full((len(recall_at), num_labels, len(tiou)), np.nan)
    group, predicted_group = (rows.video * num_labels + rows.label for rows in (truth, predicted))
    place = matching.places(predicted_group, matching.ranking(predicted.score))[pairs.predicted]
    names, inverse, count = np.unique(group, return_inverse=True, return_counts=True)
    of_group = count[inverse][pairs.truth] if len(names) else np.zeros(0, np.int64)
    for row, multiple in enumerate(recall_at):
        used = (place < multiple * of_group) & ~np.isnan(pairs.tiou)
        best = np.full(len(truth), -np.inf)
        np.maximum.at(best, pairs.truth[used], pairs.tiou[used])
        for column, threshold in enumerate(tiou):
            found = np.bincount(truth.label[best >= threshold], minlength=num_labels)
            recall[row, :, column] = np.divide(found, instances, out=np.full(num_labels, np.nan), where=instances > 0)
    return recall


def _touches(predicted: Segments, parts: Segments) -> Bool[np.ndarray, " n"]:
    """Returns which predictions overlap one of the parts of their videos by more than a moment."""
    pairs = matching.overlapping(parts, predicted, np.nextafter(0, 1), with_labels=False)
    touches = np.zeros(len(predicted), bool)
    touches[pairs.predicted[pairs.tiou > 0]] = True
    return touches
