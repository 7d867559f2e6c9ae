"""Where detections fail, after DETAD (Alwassel et al., ECCV 2018): kinds of false positives, what each costs, what is missed.

All numbers use normalized precision (`normalized_precision`), which makes classes and groups of instances comparable.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tsp_jax.localization import characteristics, comparison, false_positives, normalized_precision, segments

Segments = segments.Segments
Detad = Literal["mended", "faithful"]
_LEAST_PRECISION = 0.05  # matches at a lower normalized precision do not count as found
_FAILS = "DETAD's own code ends with an error in its analysis of {}, because {}; --detad mended gives numbers"


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Instances of a range of a characteristic.

    Attributes:
      instances: the number of instances.
      share: the share of all instances.
      average_mAP_N: the normalized mAP when only these instances are to be found; None if there are none, or DETAD's code
        ends with an error (`faithful`). Predictions that match others do not count.
      missed: the share of the instances that are not found, averaged over the thresholds; None if there are none.
      missed_at: the same at each threshold.
    """

    instances: int
    share: float
    average_mAP_N: float | None
    missed: float | None
    missed_at: dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Instances of a range of coverage and one of length.

    Attributes:
      instances: the number of instances.
      missed: the share that is not found, averaged over the thresholds.
    """

    instances: int
    missed: float


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The error analysis of DETAD, as plain values that JSON can hold.

    Attributes:
      detad: `mended`, or `faithful` to the faults of the original code.
      buckets: the data set whose ranges group the instances, `activitynet` or `thumos14`.
      instances: the number of instances that are analysed.
      classes: the number of classes.
      instances_per_class: N, the average number of instances of a class.
      predictions: the number of predictions.
      scored: the scores of all predictions.
      false_positives: the kinds of false positives; None if DETAD's code ends with an error (`faithful`).
      characteristics: the ranges of each characteristic: `characteristics["length"]["XS"]`.
      relative_change: the lowest and highest normalized mAP of a characteristic's ranges, divided by that of all instances.
      found: the scores of the matches that count as found, which are those at a normalized precision above 0.05. What is
        missed is counted by them.
      coverage_and_length: ranges of coverage and length together, such as `XS/S`; empty without coverage.
      notes: sentences about instances and characteristics that are left out.
    """

    detad: Detad
    buckets: characteristics.BucketSet
    instances: int
    classes: int
    instances_per_class: float
    predictions: int
    scored: normalized_precision.Scored
    false_positives: false_positives.FalsePositives | None
    characteristics: dict[str, dict[str, Bucket]]
    relative_change: dict[str, list[float | None]]
    found: normalized_precision.Scored
    coverage_and_length: dict[str, Pair]
    notes: list[str]


def diagnose(
    compared: comparison.Comparison,
    values: Mapping[str, Float64[np.ndarray, " n"]],
    tiou: Mapping[str, float],
    *,
    buckets: characteristics.BucketSet = "activitynet",
    min_union_sec: float = 0.0,
    detad: Detad = "mended",
) -> Diagnosis:
    """Returns the error analysis of detections. Instances that last longer than their video, or 0 seconds, are left out.

    Args:
      compared: the instances and predictions.
      values: the characteristics of the instances, as `characteristics.of` gives them; NaN where one is not known.
      tiou: the tIoU thresholds by name.
      buckets: the data set whose ranges of the characteristics group the instances.
      min_union_sec: unions are at least so many seconds in tIoU.
      detad: `faithful` repeats the faults of the original code: errors in videos without instances are compared with
        another video's; equal scores are sorted by NumPy's unstable sort, whose order depends on the machine; a class without
        instances makes averages undefined; and where the original ends with an error there are no numbers. `mended` does not.

    Raises:
      EvaluationError: no instance is left.
    Source: DETAD (github.com/HumamAlwassel/DETAD), commit 24f7d95.
    """
    kept, notes = _kept(compared.truth, values)
    truth, values = compared.truth.take(kept), {name: column[kept] for name, column in values.items()}
    num_labels, faithful = len(compared.labels), detad == "faithful"
    found = normalized_precision.match(
        truth,
        compared.predicted,
        num_labels,
        np.array(list(tiou.values())),
        min_union_sec=min_union_sec,
        faithful=faithful,
    )
    scored = normalized_precision.scored(found, found.instance >= 0, tiou)
    confident = normalized_precision.confident(found, _LEAST_PRECISION)
    rows, columns = np.nonzero(confident)
    is_found = np.zeros((len(truth), len(tiou)), bool)
    is_found[found.instance[rows, columns], columns] = True

    table = characteristics.BUCKETS[buckets]
    places = _places(table, values, notes)
    order = None if faithful and np.any(np.diff(found.bounds) == 0) else normalized_precision.by_table_sort(found)
    if order is None:
        notes.append(_FAILS.format("sensitivity", "a class has no predictions"))
    wrong = _false_positives(compared, truth, tiou, min_union_sec, faithful, notes)
    if len(compared.ambiguous):
        notes.append("Predictions in ambiguous parts are counted here, as in DETAD's code")
    if not faithful and np.any(found.instances == 0):
        count = int(np.count_nonzero(found.instances == 0))
        notes.append(f"Classes of which no instance is left are in no average: {count:,}")
    by_range = {
        name: {label: _bucket(found, order, place == number, is_found, tiou) for number, label in enumerate(table[name].names)}
        for name, place in places.items()
    }
    return Diagnosis(
        detad=detad,
        buckets=buckets,
        instances=len(truth),
        classes=num_labels,
        instances_per_class=found.per_class,
        predictions=len(compared.predicted),
        scored=scored,
        false_positives=wrong,
        characteristics=by_range,
        relative_change={name: _relative_change(ranges.values(), scored.average_mAP_N) for name, ranges in by_range.items()},
        found=normalized_precision.scored(found, confident, tiou),
        coverage_and_length=_pairs(places, table, is_found) if "coverage" in places else {},
        notes=notes,
    )


def _places(
    table: Mapping[str, characteristics.Buckets], values: Mapping[str, Float64[np.ndarray, " n"]], notes: list[str]
) -> dict[str, Int64[np.ndarray, " n"]]:
    """Returns the range of each instance for each characteristic that is known."""
    places, unknown = {}, []
    for name, ranges in table.items():
        place = characteristics.bucket_of(values[name], ranges) if name in values else np.full(1, -1)
        if (place < 0).all():
            unknown.append(name)
            continue
        places[name] = place
        if (place < 0).any():
            count = comparison.counted(int((place < 0).sum()), "instance")
            notes.append(f"The characteristic {name} is not known, or in none of its ranges, for {count}")
    if unknown:
        hint = "; coverage needs durations of videos" if "coverage" in unknown else ""
        notes.append(f"Characteristics that the ground truth does not have are left out: {', '.join(unknown)}{hint}")
    return places


def _false_positives(
    compared: comparison.Comparison,
    truth: Segments,
    tiou: Mapping[str, float],
    min_union_sec: float,
    faithful: bool,
    notes: list[str],
) -> false_positives.FalsePositives | None:
    labels, first = np.unique(compared.truth.label, return_index=True)
    try:
        return false_positives.analyse(
            truth,
            compared.predicted,
            labels[np.argsort(first)],
            compared.videos,
            tiou,
            min_union_sec=min_union_sec,
            faithful=faithful,
        )
    except false_positives.OriginalFails as error:
        notes.append(_FAILS.format("false positives", error))
        return None


def _kept(truth: Segments, values: Mapping[str, Float64[np.ndarray, " n"]]) -> tuple[Int64[np.ndarray, " m"], list[str]]:
    """Returns the rows of the instances that are analysed, and notes of those that are not."""
    long, empty = values["coverage"] > 1, ~(truth.start_sec < truth.end_sec)
    kept, notes = np.flatnonzero(~long & ~empty), []
    for left_out, text in ((long, "last longer than their video"), (empty & ~long, "have no length")):
        if left_out.any():
            notes.append(f"Instances that {text} are left out: {left_out.sum():,}")
    if not len(kept):
        raise segments.EvaluationError("no instance is left for a diagnosis: all last longer than their video, or 0 seconds")
    return kept, notes


def _bucket(
    found: normalized_precision.Matched,
    order: Int64[np.ndarray, " n"] | None,
    inside: Bool[np.ndarray, " m"],
    is_found: Bool[np.ndarray, "m t"],
    tiou: Mapping[str, float],
) -> Bucket:
    """Returns the scores of the instances inside a range; without an order of predictions, what is missed alone."""
    count = int(inside.sum())
    if not count:
        return Bucket(0, 0.0, None, None, dict.fromkeys(tiou))
    missed, score = 1 - is_found[inside].mean(0), None
    if order is not None:
        # A prediction counts if it matches no instance of another range, at any threshold.
        counted = np.all((found.instance < 0) | inside[found.instance], axis=1)
        instances = np.bincount(found.truth.label[inside], minlength=len(found.instances))
        ap = normalized_precision.average_precision(
            found,
            found.instance >= 0,
            counted=np.broadcast_to(counted[:, None], found.instance.shape),
            order=order,
            instances=instances,
        )
        score = normalized_precision.number(ap[instances > 0].mean())
    return Bucket(
        instances=count,
        share=count / len(inside),
        average_mAP_N=score,
        missed=normalized_precision.number(missed.mean()),
        missed_at=normalized_precision.named(tiou, missed),
    )


def _relative_change(ranges: Iterable[Bucket], base: float | None) -> list[float | None]:
    values = [item.average_mAP_N for item in ranges if item.average_mAP_N is not None]
    return [min(values) / base, max(values) / base] if base and values else [None, None]


def _pairs(
    places: Mapping[str, Int64[np.ndarray, " m"]],
    table: Mapping[str, characteristics.Buckets],
    is_found: Bool[np.ndarray, "m t"],
) -> dict[str, Pair]:
    found = {}
    for first, name in enumerate(table["coverage"].names):
        for second, other in enumerate(table["length"].names):
            inside = (places["coverage"] == first) & (places["length"] == second)
            if inside.any():
                found[f"{name}/{other}"] = Pair(int(inside.sum()), float(1 - is_found[inside].mean()))
    return found
