"""Brings predictions and ground truth to one numbering of videos and classes by a protocol, and says what was dropped."""

import collections
import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from tsp_jax import video_names
from tsp_jax.localization import annotations, detections, protocols, segments
from tsp_jax.system import texts

OnUnknown = Literal["skip", "stop"]
_DUPLICATE_SEC = 1e-3  # the tolerance of ActionFormer and OpenTAD
_SHOWN = 5
_AS_ORIGINAL = "as by the protocol's own code"


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Predictions and instances that can be compared.

    Attributes:
      videos: names of the videos. The first `num_videos` have instances; then come others that have predictions.
      num_videos: the number of videos that have instances.
      labels: names of the classes that have instances, sorted.
      truth: the instances, in the order of their file; `video` and `label` count in `videos` and `labels`.
      truth_row: int64 [n], the row of each instance in the ground truth that was compared.
      predicted: the predictions, in the order of their file. The labels of proposals are 0.
      ambiguous: parts of videos in which unmatched predictions do not count.
      duration_sec: float64 [videos], lengths of the videos in seconds; NaN where they are not known.
      dropped: how many videos, instances and predictions were dropped, by reason.
      notes: sentences about what was dropped, what was renamed and what is unusual.
    """

    videos: tuple[str, ...]
    num_videos: int
    labels: tuple[str, ...]
    truth: segments.Segments
    truth_row: Int64[np.ndarray, " n"]
    predicted: segments.Segments
    ambiguous: segments.Segments
    duration_sec: Float64[np.ndarray, " v"]
    dropped: dict[str, int]
    notes: tuple[str, ...]


def compare(
    predicted: detections.Detections,
    truth: annotations.GroundTruth,
    protocol: protocols.Protocol,
    *,
    task: detections.Task = "detection",
    blocked_videos: Collection[str] = (),
    on_unknown: OnUnknown | None = None,
    labels: Sequence[str] | None = None,
) -> Comparison:
    """Returns predictions and instances that can be compared.

    Args:
      predicted: the predictions.
      truth: the ground truth.
      protocol: which instances are dropped, and what happens to labels that no instance has.
      task: what is scored. Labels of proposals are not compared.
      blocked_videos: names of videos that are dropped before anything else.
      on_unknown: what happens to predictions of videos and labels that the ground truth does not have: `stop` is an error,
        `skip` drops them. None: predictions of such videos count as false positives, as in all protocols, and labels are
        treated as the protocol does.
      labels: names of the classes by number, for labels that are numbers; None: those of the ground truth.

    Raises:
      EvaluationError: there are labels or videos that the ground truth does not have and `on_unknown` or the protocol says
        `stop`; labels are numbers without names; two videos of the predictions are one of the ground truth; or nothing is left.
    """
    notes: list[str] = []
    dropped: dict[str, int] = {}
    truth_labels, predicted_labels = _label_names(predicted, truth, labels)
    names = _matching_names(predicted.videos, truth.videos, notes)
    truth_rows, rows, truth_row = truth.rows, predicted.rows, np.arange(len(truth.rows))
    if blocked_videos:
        blocked, gone = _named(truth.videos, blocked_videos), _named(names, blocked_videos)[rows.video]
        truth_row, rows = np.flatnonzero(~blocked[truth_rows.video]), rows.take(~gone)
        truth_rows = truth_rows.take(truth_row)
        _note_blocked(int(blocked.sum()), int(gone.sum()), len(set(blocked_videos)), dropped, notes)
    kept = _kept_instances(truth_rows, protocol, dropped, notes)
    truth_rows, truth_row = truth_rows.take(kept), truth_row[kept]
    if not len(truth_rows):
        raise segments.EvaluationError("no annotated instance is left after what the protocol drops; nothing can be scored")

    # One numbering: videos with instances first, in the order of the ground truth, then the others.
    annotated = [truth.videos[int(video)] for video in np.unique(truth_rows.video)]
    number = {name: place for place, name in enumerate(dict.fromkeys([*annotated, *names]))}
    classes = sorted({truth_labels[int(label)] for label in np.unique(truth_rows.label)})
    _note_twins(classes, notes)
    class_number = {name: place for place, name in enumerate(classes)}
    truth_video = _numbers(truth.videos, number)
    truth_rows = dataclasses.replace(
        truth_rows,
        video=truth_video[truth_rows.video],
        label=_numbers(truth_labels, class_number)[truth_rows.label],
    )
    rows = dataclasses.replace(rows, video=_numbers(names, number)[rows.video])
    faults: list[str] = []
    if task == "proposals":
        rows = dataclasses.replace(rows, label=np.zeros(len(rows), np.int64))
    else:
        unknown_labels = on_unknown or protocol.unknown_labels
        rows = _known_labels(rows, predicted_labels, class_number, unknown_labels, dropped, notes, faults)
    rows = _known_videos(rows, list(number), set(truth.videos), task, on_unknown, dropped, notes, faults)
    if faults:
        raise segments.EvaluationError("\n  ".join(["the predictions do not fit the ground truth:", *faults]))

    missed = np.bincount(rows.video, minlength=len(number))[: len(annotated)] == 0
    if missed.any():
        notes.append(
            f"Annotated videos without predictions: {missed.sum():,} of {len(annotated):,}; their instances are missed"
        )
    if task != "classification":
        _note_times(truth_rows, "Instances", list(number), notes)
        _note_times(rows, "Predictions", list(number), notes)
    durations = dict(zip(truth.videos, truth.duration_sec.tolist(), strict=True))
    return Comparison(
        videos=tuple(number),
        num_videos=len(annotated),
        labels=tuple(classes),
        truth=truth_rows,
        truth_row=truth_row,
        predicted=rows,
        ambiguous=_ambiguous(truth.ambiguous, truth_video, protocol, dropped, notes),
        duration_sec=np.array([durations.get(name, np.nan) for name in number]),
        dropped={key: value for key, value in dropped.items() if value},
        notes=tuple(notes),
    )


def counted(count: int, noun: str) -> str:
    """Returns a count with its noun, such as "1 video" or "2,000 videos"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _such_as(names: Iterable[str]) -> str:
    shown = list(dict.fromkeys(names))
    return f" ({', '.join(shown[:_SHOWN])}{', …' if len(shown) > _SHOWN else ''})" if shown else ""


def _note_blocked(videos: int, predictions: int, listed: int, dropped: dict[str, int], notes: list[str]) -> None:
    dropped["blocked_videos"], dropped["blocked_predictions"] = videos, predictions
    notes.append(
        f"Blocked videos are dropped: {videos:,} of the list's {listed:,} are in the ground truth, with "
        f"{counted(predictions, 'prediction')}"
    )


def _note_twins(classes: Sequence[str], notes: list[str]) -> None:
    """Adds a note about classes whose names differ in case, blanks or punctuation alone."""
    spellings = {_spelling(name): name for name in classes}
    twins = [f"{name!r} and {spellings[_spelling(name)]!r}" for name in classes if spellings[_spelling(name)] != name]
    if twins:
        notes.append(f"Classes are scored apart that differ in case, blanks or punctuation alone: {'; '.join(twins[:_SHOWN])}")


def _spelling(name: str) -> str:
    """Returns what names have in common that differ in case, blanks and punctuation alone."""
    return "".join(filter(str.isalnum, texts.clean(name).casefold())) or name


def _numbers(names: Sequence[str], number: dict[str, int]) -> Int64[np.ndarray, " n"]:
    return np.array([number.get(name, -1) for name in names], np.int64)


def _label_names(
    predicted: detections.Detections, truth: annotations.GroundTruth, labels: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of the classes of the ground truth and of the predictions, with names for numbers."""
    by_number = dict(enumerate(labels)) if labels is not None else dict(truth.class_names)
    numeric = all(label.isdecimal() for label in truth.labels)
    names = truth.labels
    if labels is not None and numeric:
        names = tuple(by_number.get(int(label), label) for label in names)
    if not predicted.numbered:
        return names, predicted.labels
    if not by_number and not numeric:
        raise segments.EvaluationError(
            f"the labels of the predictions are numbers, such as {predicted.labels[0]}, and the ground truth does not number "
            "its classes by label_id; give their names in the order of their numbers by --labels (a JSON list)"
        )
    found = tuple(by_number.get(int(label), f"class number {label}" if by_number else label) for label in predicted.labels)
    if len(set(found)) < len(found):
        raise segments.EvaluationError("two numbers of classes have the same name; give distinct names by --labels")
    return names, found


def _matching_names(predicted: Sequence[str], known: Sequence[str], notes: list[str]) -> tuple[str, ...]:
    """Returns for each video of the predictions its name in the ground truth, or its own name."""
    given = set(known)
    if given.issuperset(predicted):
        return tuple(predicted)
    bare = collections.Counter(map(_bare, known))
    alike = {_bare(name): name for name in known if bare[_bare(name)] == 1}
    names = tuple(name if name in given else alike.get(_bare(name), name) for name in predicted)
    renamed = [f"{name} is {found}" for name, found in zip(predicted, names, strict=True) if name != found]
    if renamed:
        notes.append(
            "Names of videos are matched with or without `v_` and the file's ending: "
            f"{counted(len(renamed), 'video')} ({renamed[0]}{', …' if len(renamed) > 1 else ''})"
        )
    owner: dict[str, str] = {}
    for name, found in zip(predicted, names, strict=True):
        if owner.setdefault(found, name) != name:
            raise segments.EvaluationError(
                f"the predictions have the videos {owner[found]!r} and {name!r}, which both are {found!r} of the ground truth; "
                "keep one"
            )
    return names


def _bare(name: str) -> str:
    return video_names.without_extension(video_names.composed(name)).removeprefix("v_")


def _named(videos: Sequence[str], wanted: Collection[str]) -> Bool[np.ndarray, " n"]:
    """Returns which videos are among those wanted, with or without `v_`."""
    bare = {_bare(name) for name in wanted}
    return np.array([_bare(name) in bare for name in videos], bool)


def _kept_instances(
    rows: segments.Segments, protocol: protocols.Protocol, dropped: dict[str, int], notes: list[str]
) -> Int64[np.ndarray, " n"]:
    """Returns the row numbers of the instances that a protocol keeps."""
    with np.errstate(over="ignore"):
        short = rows.end_sec - rows.start_sec < protocol.min_length_sec
    dropped["short_instances"] = int(short.sum())
    if short.any():
        least = "of 0 seconds or less" if protocol.min_length_sec < 1e-9 else f"shorter than {protocol.min_length_sec:g} s"
        notes.append(f"Instances {least} are dropped, {_AS_ORIGINAL}: {short.sum():,}")
    kept = np.flatnonzero(~short)
    if protocol.drop_duplicates:
        duplicate = _duplicates(rows.take(kept))
        dropped["duplicate_instances"] = int(duplicate.sum())
        if duplicate.any():
            notes.append(f"Instances that repeat an earlier one are dropped, {_AS_ORIGINAL}: {duplicate.sum():,}")
        kept = kept[~duplicate]
    return kept


def _duplicates(rows: segments.Segments) -> Bool[np.ndarray, " n"]:
    """Returns which instances repeat an earlier one of the same video and class that is kept, within the tolerance."""
    duplicate = np.zeros(len(rows), bool)
    order = np.lexsort((rows.label, rows.video))
    bounds = np.flatnonzero((np.diff(rows.video[order]) != 0) | (np.diff(rows.label[order]) != 0)) + 1
    for group in np.split(order, bounds):
        for place in range(1, len(group)):
            row, before = group[place], group[:place]
            with np.errstate(over="ignore"):
                near = np.abs(rows.start_sec[before] - rows.start_sec[row]) <= _DUPLICATE_SEC
                near &= np.abs(rows.end_sec[before] - rows.end_sec[row]) <= _DUPLICATE_SEC
            duplicate[row] = bool(np.any(near & ~duplicate[before]))
    return duplicate


def _known_videos(
    rows: segments.Segments,
    videos: Sequence[str],
    known: Collection[str],
    task: detections.Task,
    on_unknown: OnUnknown | None,
    dropped: dict[str, int],
    notes: list[str],
    faults: list[str],
) -> segments.Segments:
    """Returns the predictions to score, after what `compare` says of videos that the ground truth does not have."""
    is_unknown = np.array([name not in known for name in videos], bool)[rows.video]
    examples = [videos[int(video)] for video in np.unique(rows.video[is_unknown])]
    if not examples:
        return rows
    count = f"{is_unknown.sum():,} of {counted(len(examples), 'video')}{_such_as(examples)}"
    text = "Predictions of videos that are not in the ground truth"
    if on_unknown == "stop":
        faults.append(f"{text}: {count}; check --subset and the names, or drop them by --on_unknown skip")
        return rows
    if on_unknown == "skip":
        dropped["predictions_of_unknown_videos"] = int(is_unknown.sum())
        notes.append(f"{text} are dropped: {count}")
        return rows.take(~is_unknown)
    how = "in the average number of proposals" if task == "proposals" else "as false positives"
    notes.append(f"{text} count {how}, {_AS_ORIGINAL}: {count}")
    return rows


def _known_labels(
    rows: segments.Segments,
    labels: Sequence[str],
    class_number: dict[str, int],
    on_unknown: OnUnknown,
    dropped: dict[str, int],
    notes: list[str],
    faults: list[str],
) -> segments.Segments:
    """Returns the predictions whose labels have instances, with the numbers of their classes."""
    label = _numbers(labels, class_number)[rows.label]
    is_unknown = label < 0
    if is_unknown.any():
        near = {_spelling(name): name for name in class_number}
        found = [labels[int(place)] for place in np.unique(rows.label[is_unknown])]
        found.sort(key=lambda name: _spelling(name) not in near)
        examples = [
            f"{name!r}, where an instance has {near[_spelling(name)]!r}" if _spelling(name) in near else repr(name)
            for name in found
        ]
        text, count = "Predictions of labels that no instance has", f"{is_unknown.sum():,}{_such_as(examples)}"
        if on_unknown == "stop":
            faults.append(f"{text}: {count}; correct the labels, or drop these predictions by --on_unknown skip")
        else:
            dropped["predictions_of_unknown_labels"] = int(is_unknown.sum())
            notes.append(f"{text} are dropped: {count}")
    return dataclasses.replace(rows, label=label).take(~is_unknown)


def _note_times(rows: segments.Segments, what: str, videos: Sequence[str], notes: list[str]) -> None:
    is_reversed = rows.end_sec < rows.start_sec
    early = (np.minimum(rows.start_sec, rows.end_sec) < 0) & ~is_reversed
    for found, text in ((is_reversed, "end before they start"), (early, "start before second 0")):
        if found.any():
            examples = [videos[int(video)] for video in np.unique(rows.video[found])]
            notes.append(f"{what} that {text} are scored {_AS_ORIGINAL}: {found.sum():,}{_such_as(examples)}")


def _ambiguous(
    rows: segments.Segments,
    truth_video: Int64[np.ndarray, " v"],
    protocol: protocols.Protocol,
    dropped: dict[str, int],
    notes: list[str],
) -> segments.Segments:
    """Returns the ambiguous parts that the protocol respects."""
    if not len(rows):
        return rows
    if protocol.ambiguous == "drop":
        dropped["ambiguous_parts"] = len(rows)
        notes.append(f"Ambiguous parts are dropped: {len(rows):,}")
        return rows.take(np.zeros(len(rows), bool))
    notes.append(f"Predictions that match nothing do not count where they overlap an ambiguous part; there are {len(rows):,}")
    rows = dataclasses.replace(rows, video=truth_video[rows.video])
    return rows.take(rows.video >= 0)
