"""The scores once more, one prediction and one threshold at a time, as the official code works."""

from collections.abc import Sequence

import numpy as np

from tsp_jax.localization.segments import Segments


def tiou(first: tuple[float, float], second: tuple[float, float], min_union_sec: float = 0.0) -> float:
    """Returns the temporal IoU of two segments; NaN for 0/0."""
    shared = min(first[1], second[1]) - max(first[0], second[0])
    shared = shared if np.isnan(shared) else max(shared, 0.0)
    union = (first[1] - first[0]) + (second[1] - second[0]) - shared
    union = max(union, min_union_sec) if min_union_sec else union
    with np.errstate(all="ignore"):
        return float(np.float64(shared) / np.float64(union))


def ranked(rows: Sequence[int], score: np.ndarray) -> list[int]:
    """Returns rows by falling score, the last of equal ones first, NaN before all."""
    return sorted(rows, key=lambda row: (not np.isnan(score[row]), 0 if np.isnan(score[row]) else -score[row], -row))


def segment(rows: Segments, row: int) -> tuple[float, float]:
    """Returns the start and end of a row in seconds."""
    return float(rows.start_sec[row]), float(rows.end_sec[row])


def average_precision(truth: Segments, predicted: Segments, label: int, threshold: float, min_union_sec: float = 0.0) -> float:
    """Returns the AP of one class at one threshold."""
    instances = [row for row in range(len(truth)) if truth.label[row] == label]
    by_video: dict[int, list[int]] = {}
    for row in instances:
        by_video.setdefault(int(truth.video[row]), []).append(row)
    taken: set[int] = set()
    hits = []
    for row in ranked([row for row in range(len(predicted)) if predicted.label[row] == label], predicted.score):
        found = [
            (tiou(segment(predicted, row), segment(truth, other), min_union_sec), other)
            for other in by_video.get(int(predicted.video[row]), [])
        ]
        found.sort(key=lambda pair: (not np.isnan(pair[0]), 0 if np.isnan(pair[0]) else -pair[0], -pair[1]))
        free = [other for value, other in found if not value < threshold and other not in taken]
        taken.update(free[:1])
        hits.append(bool(free))
    precision = [sum(hits[: place + 1]) / (place + 1) for place in range(len(hits))]
    return sum(max(precision[place:]) for place, hit in enumerate(hits) if hit) / len(instances)


def recall_at(truth: Segments, predicted: Segments, label: int, threshold: float, multiple: int) -> float:
    """Returns the share of a class's instances that any of the first multiple·G predictions of the video finds."""
    found, total = 0, 0
    for video in set(truth.video.tolist()):
        instances = [row for row in range(len(truth)) if truth.label[row] == label and truth.video[row] == video]
        rows = [row for row in range(len(predicted)) if predicted.label[row] == label and predicted.video[row] == video]
        first = ranked(rows, predicted.score)[: multiple * len(instances)]
        total += len(instances)
        found += sum(
            any(tiou(segment(predicted, row), segment(truth, other)) >= threshold for row in first) for other in instances
        )
    return found / total


def average_recall(truth: Segments, proposals: Segments, thresholds: Sequence[float], largest: int) -> np.ndarray:
    """Returns the average recall at 1 to 100 percent of `largest` proposals of a video, by the official ratio."""
    videos = list(dict.fromkeys(truth.video.tolist()))
    ratio = largest * len(videos) / len(proposals)
    kept = {}
    for video in videos:
        rows = ranked([row for row in range(len(proposals)) if proposals.video[row] == video], proposals.score)
        kept[video] = rows[: int(len(rows) * ratio)]
    total = sum(map(len, kept.values()))
    curve = []
    for point in range(1, 101):
        share, found = point / 100 * (largest * len(videos) / total), 0
        for other in range(len(truth)):
            rows = kept[int(truth.video[other])]
            used = rows[: min(int(len(rows) * share), len(rows))]
            for threshold in thresholds:
                found += any(tiou(segment(proposals, row), segment(truth, other)) >= threshold for row in used)
        curve.append(found / len(truth) / len(thresholds))
    return np.array(curve)


def hits(truth: Segments, predicted: Segments, k: int) -> tuple[float, float]:
    """Returns hit@k and average hit@k."""
    any_hit, shares = [], []
    for video in dict.fromkeys(truth.video.tolist()):
        labels = {int(truth.label[row]) for row in range(len(truth)) if truth.video[row] == video}
        rows = ranked([row for row in range(len(predicted)) if predicted.video[row] == video], predicted.score)[:k]
        share = len(labels & {int(predicted.label[row]) for row in rows}) / len(labels)
        any_hit.append(share > 0)
        shares.append(share)
    return float(np.mean(any_hit)), float(np.mean(shares))
