"""The error analysis once more, one prediction and one threshold at a time, as DETAD's code works."""

from collections.abc import Callable, Sequence

import numpy as np

import plain_scores
from tsp_jax.localization.segments import Segments

Match = dict[int, int]


def match(truth: Segments, predicted: Segments, rows: Sequence[int], threshold: float) -> Match:
    """Returns the instance of each prediction that has one. The predictions choose in the order of `rows`."""
    found: Match = {}
    for row in rows:
        pairs = [
            (plain_scores.tiou(plain_scores.segment(predicted, row), plain_scores.segment(truth, other)), other)
            for other in range(len(truth))
            if (truth.video[other], truth.label[other]) == (predicted.video[row], predicted.label[row])
        ]
        free = [pair for pair in pairs if pair[0] >= threshold and pair[1] not in found.values()]
        if free:
            found[row] = max(free)[1]
    return found


def precisions(hits: Sequence[bool], instances: int, per_class: float) -> list[float]:
    """Returns the normalized precision at each rank."""
    values = []
    for place in range(1, len(hits) + 1):
        weight = sum(hits[:place]) / instances * per_class
        values.append(weight / (weight + place - sum(hits[:place])))
    return values


def average_precision(hits: Sequence[bool], instances: int, per_class: float) -> float:
    """Returns the normalized average precision of predictions by rank."""
    values = precisions(hits, instances, per_class)
    return sum(max(values[place:]) for place, hit in enumerate(hits) if hit) / instances


class Plain:
    """Instances and predictions, with what each analysis needs."""

    def __init__(self, truth: Segments, predicted: Segments, num_labels: int):
        self.truth, self.predicted = truth, predicted
        self.instances = [sum(truth.label == label) for label in range(num_labels)]
        self.classes = [label for label in range(num_labels) if self.instances[label]]
        self.per_class = len(truth) / len(self.classes)

    def ranked(self, label: int, limit: int | None = None) -> list[int]:
        """Returns the predictions of a class by rank; the first `limit` of them, of equal scores the first in the file."""
        rows = [row for row in range(len(self.predicted)) if self.predicted.label[row] == label]
        if limit is not None:
            rows = sorted(rows, key=lambda row: (-self.predicted.score[row], row))[:limit]
        return plain_scores.ranked(rows, self.predicted.score)

    def mean_ap(self, kept: Callable[[int, Match], bool], threshold: float, limit: int | None = None) -> float:
        """Returns the normalized mAP of the predictions that `kept` keeps after they were matched."""
        values = []
        for label in self.classes:
            rows = self.ranked(label, None if limit is None else limit * self.instances[label])
            found = match(self.truth, self.predicted, rows, threshold)
            hits = [row in found for row in rows if kept(row, found)]
            values.append(average_precision(hits, self.instances[label], self.per_class))
        return float(np.mean(values))

    def kinds(self, threshold: float) -> list[dict[int, str]]:
        """Returns the kinds of the first predictions by row: for each class in turn, in the order of their ranks."""
        everything = []
        for label in self.classes:
            rows = self.ranked(label, 10 * self.instances[label])
            found = match(self.truth, self.predicted, rows, threshold)
            everything.append({row: "true positive" if row in found else self.kind(row, threshold) for row in rows})
        return everything

    def kind(self, row: int, threshold: float) -> str:
        """Returns the kind of a false positive."""
        best, label = 0.0, -1
        for other in range(len(self.truth)):
            if self.truth.video[other] == self.predicted.video[row]:
                tiou = plain_scores.tiou(plain_scores.segment(self.predicted, row), plain_scores.segment(self.truth, other))
                if tiou > best:
                    best, label = tiou, self.truth.label[other]
        same = label == self.predicted.label[row]
        if best >= threshold:
            return "double detection" if same else "wrong label"
        if best >= 0.1:
            return "localization" if same else "confusion"
        return "background"

    def missed(self, inside: Sequence[int], threshold: float) -> float:
        """Returns the share of instances that no prediction finds at a normalized precision above 0.05."""
        seen = set()
        for label in self.classes:
            rows = self.ranked(label)
            found = match(self.truth, self.predicted, rows, threshold)
            values = precisions([row in found for row in rows], self.instances[label], self.per_class)
            seen |= {found[row] for row, value in zip(rows, values, strict=True) if row in found and value > 0.05}
        return sum(other not in seen for other in inside) / len(inside)

    def range_map(self, inside: Sequence[int], thresholds: Sequence[float]) -> float:
        """Returns the normalized mAP when only some instances are to be found."""
        values = []
        for label in {int(self.truth.label[other]) for other in inside}:
            rows = self.ranked(label)
            found = [match(self.truth, self.predicted, rows, threshold) for threshold in thresholds]
            kept = [row for row in rows if all(row not in match or match[row] in inside for match in found)]
            count = sum(self.truth.label[other] == label for other in inside)
            values += [np.mean([average_precision([r in m for r in kept], count, self.per_class) for m in found])]
        return float(np.mean(values))
