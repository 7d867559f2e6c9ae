"""Scores predictions against a ground truth by a protocol, and keeps with each number how it was made."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from tsp_jax import groundtruth as groundtruth_files
from tsp_jax.localization import annotations, characteristics, comparison, detections, diagnosis, protocols, scores, segments
from tsp_jax.localization.diagnosis import Diagnosis
from tsp_jax.system import texts, version

ProposalRule = Literal["ratio", "top_k"]
AR_AT = (1, 5, 10, 50, 100, 200, 500, 1000)


@dataclasses.dataclass(frozen=True)
class Source:
    """A file that was read.

    Attributes:
      path: the file or folder as it was named; empty for what was given as arrays.
      sha256: SHA-256 of the file, or of the names and contents of the folder's text files; empty likewise.
    """

    path: str
    sha256: str


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Scores of predictions, and how they were made.

    Attributes:
      protocol: the name of the protocol.
      rules: the protocol's rules, with the thresholds that were asked for.
      task: what was scored; it decides which of `detection`, `proposals` and `classification` is not None.
      subset: the subset of the ground truth; empty if its file has none.
      comparison: the instances and predictions that were compared, as arrays, with their notes.
      sources: the files that were read, by role: `predictions` (`predictions_1`, `predictions_2` … if there are
        several), `groundtruth`, `blocked_videos`.
      class_scores: what the predictions' file says of scores of classes from elsewhere; empty if it says nothing.
      detection: the scores of detections.
      proposals: the scores of proposals.
      classification: the scores of labels of videos.
      diagnosis: the error analysis of detections, if it was asked for.
    """

    protocol: str
    rules: protocols.Protocol
    task: detections.Task
    subset: str
    comparison: comparison.Comparison
    sources: Mapping[str, Source]
    class_scores: str
    detection: scores.DetectionScores | None = None
    proposals: scores.ProposalScores | None = None
    classification: scores.ClassificationScores | None = None
    diagnosis: Diagnosis | None = None

    @property
    def average_mAP(self) -> float:
        """The mAP of detections averaged over the tIoU thresholds, or the mAP of labels of videos, from 0 to 1."""
        if self.classification is not None:
            return self.classification.mean_ap
        return self._of_detections().average_map

    @property
    def mAP(self) -> Float64[np.ndarray, " t"]:
        """float64 [t], the mAP of detections at each tIoU threshold, from 0 to 1."""
        return self._of_detections().map_by_tiou

    @property
    def tiou(self) -> Float64[np.ndarray, " t"]:
        """float64 [t], the tIoU thresholds of detections or proposals."""
        return self.proposals.tiou if self.proposals is not None else self._of_detections().tiou

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the rows of `detection.ap`."""
        return self.comparison.labels

    @property
    def average_recall(self) -> dict[int | float, float]:
        """The average recall of proposals (AR) by their average number, at the usual numbers and the last one, from 0 to 1."""
        if self.proposals is None:
            raise AttributeError(f"scores of {self.task} have no average recall; evaluate with task='proposals'")
        axis, curve = self.proposals.proposals, self.proposals.average_recall
        near = {number: int(np.argmin(np.abs(axis - number))) for number in AR_AT}
        found = {number: float(curve[place]) for number, place in near.items() if abs(axis[place] - number) < 1e-6}
        last = float(axis[-1])
        return {**found, round(last) if abs(last - round(last)) < 1e-6 else last: float(curve[-1])}

    def to_json(self) -> dict[str, Any]:
        """Returns all scores, and how they were made, as plain values that JSON can hold."""
        found = self.comparison
        content: dict[str, Any] = {
            "protocol": self.protocol,
            "source": self.rules.source,
            "task": self.task,
            "subset": self.subset,
            "videos": found.num_videos,
            "instances": len(found.truth),
            "classes": len(found.labels),
            "predictions": len(found.predicted),
            "dropped": found.dropped,
            "notes": list(self.notes),
        }
        if self.detection is not None:
            content |= _detection_json(self.detection, found)
        if self.proposals is not None:
            content |= _proposals_json(self.proposals, self.average_recall)
        if self.classification is not None:
            content |= _classification_json(self.classification, found)
        if self.diagnosis is not None:
            content["diagnosis"] = dataclasses.asdict(self.diagnosis)
        return content | {
            "class_scores": self.class_scores,
            "files": {role: dataclasses.asdict(source) for role, source in self.sources.items()},
            "tsp_jax_version": version.__version__,
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what was dropped, renamed or unusual, and what differs from the protocol's published numbers."""
        lines = list(self.comparison.notes)
        if self.rules.blocked and "blocked_videos" not in self.sources:
            lines.append(
                f"Published numbers leave out {self.rules.blocked} blocked videos; give the list of them by --blocked_videos"
            )
        elif self.rules.videos and self.comparison.num_videos not in self.rules.videos:
            counts = " or ".join(f"{count:,}" for count in self.rules.videos)
            lines.append(f"Published numbers are of {counts} videos; this ground truth has {self.comparison.num_videos:,}")
        return tuple(lines)

    def _of_detections(self) -> scores.DetectionScores:
        if self.detection is None:
            raise AttributeError(f"scores of {self.task} have no mAP of detections; evaluate with task='detection'")
        return self.detection


def evaluate(
    predictions: str | Path | Sequence[str | Path] | detections.Detections,
    groundtruth: str | Path | annotations.GroundTruth,
    protocol: str = "activitynet",
    *,
    task: detections.Task = "detection",
    subset: str | None = None,
    blocked_videos: str | Path | Sequence[str] | None = None,
    on_unknown: comparison.OnUnknown | None = None,
    labels: str | Path | Sequence[str] | None = None,
    label_column: annotations.LabelColumn | None = None,
    tiou: Sequence[float] | None = None,
    max_proposals: int | Literal["all"] | None = None,
    proposal_rule: ProposalRule = "ratio",
    diagnose: bool = False,
    detad: diagnosis.Detad = "mended",
) -> Scores:
    """Returns the scores of predictions by a protocol, as `python -m tsp_jax.evaluate` does.

    Args:
      predictions: a file of predictions, several files of different videos, or what `detections.read` returns.
      groundtruth: a file or folder of the ground truth, or what `annotations.read` returns.
      protocol: a name in `protocols.PROTOCOLS`.
      task: what is scored: `detection`, `proposals` or `classification`.
      subset: the subset of the ground truth; None for the protocol's.
      blocked_videos: names of videos that are dropped from both, or a JSON file with a list of them.
      on_unknown: what happens to predictions of videos and labels that the ground truth does not have: `stop` or `skip`; None
        for what the protocol does.
      labels: names of the classes by number, for labels that are numbers, or a JSON file with a list of them.
      label_column: which classes of an EPIC-Kitchens CSV are compared, `verb` or `noun`.
      tiou: the tIoU thresholds, above 0 and at most 1; None for the protocol's.
      max_proposals: the largest average number of proposals of a video; None for the protocol's, `all` for the average number
        in the file.
      proposal_rule: which proposals are used at each number; `scores.average_recall` explains both rules.
      diagnose: whether the errors of detections are analysed.
      detad: whether the analysis repeats the faults of DETAD's code; `diagnosis.diagnose` explains it.

    Raises:
      FileNotFoundError: a file is absent.
      ValueError, EvaluationError: an argument is out of range, or a file can't be read or scored; the message lists the
        reasons.
    """
    rules = _rules(protocol, task, tiou)
    if diagnose and task != "detection":
        raise ValueError(f"only detections are diagnosed; got the task {task}")
    sources: dict[str, Source] = {}
    if not isinstance(groundtruth, annotations.GroundTruth):
        path = Path(groundtruth)
        groundtruth = annotations.read(path, subset or rules.subset, label_column=label_column)
        sources["groundtruth"] = _source(path)
    if not isinstance(predictions, detections.Detections):
        paths = [Path(predictions)] if isinstance(predictions, str | Path) else list(map(Path, predictions))
        parts = [detections.read(path, task, label_key=label_column or "label") for path in paths]
        predictions = parts[0] if len(parts) == 1 else detections.join(parts, paths)
        for number, path in enumerate(paths, 1):
            sources["predictions" if len(paths) == 1 else f"predictions_{number}"] = _source(path)
    if isinstance(blocked_videos, str | Path):
        path = Path(blocked_videos)
        blocked_videos = _names(path)
        sources["blocked_videos"] = _source(path)
    elif blocked_videos is not None:
        sources["blocked_videos"] = Source("", "")
    if isinstance(labels, str | Path):
        labels = groundtruth_files.read_label_mapping(labels)
    try:
        found = comparison.compare(
            predictions,
            groundtruth,
            rules,
            task=task,
            blocked_videos=blocked_videos or (),
            on_unknown=on_unknown,
            labels=labels,
        )
        if subset and not groundtruth.subset:
            note = f"The ground truth has no subsets, so all its videos are scored and not those of {subset!r} alone"
            found = dataclasses.replace(found, notes=(note, *found.notes))
        made = Scores(protocol, rules, task, groundtruth.subset, found, sources, predictions.class_scores)
        match task:
            case "detection":
                analysis = _diagnose(found, groundtruth, rules, detad) if diagnose else None
                return dataclasses.replace(made, detection=_score_detections(found, rules), diagnosis=analysis)
            case "proposals":
                return dataclasses.replace(made, proposals=_score_proposals(found, rules, max_proposals, proposal_rule))
            case "classification":
                scored = scores.classification(found.truth, found.predicted, len(found.labels))
                return dataclasses.replace(made, classification=scored)
    except segments.EvaluationError as error:
        files = " against ".join(
            sources[role].path for role in ("predictions", "predictions_1", "groundtruth") if role in sources
        )
        raise segments.EvaluationError(f"{files}: {error}" if files else str(error)) from error


def tiou_names(tiou: Sequence[float] | np.ndarray) -> list[str]:
    """Returns the thresholds as text: two decimals, such as 0.50, or more where two do not suffice."""
    digits = next((digits for digits in (2, 3, 4) if np.allclose(np.round(tiou, digits), tiou, rtol=0, atol=1e-9)), 6)
    return [f"{value:.{digits}f}" for value in np.asarray(tiou).tolist()]


def _rules(name: str, task: detections.Task, tiou: Sequence[float] | None) -> protocols.Protocol:
    if name not in protocols.PROTOCOLS:
        raise ValueError(f"the protocol is one of {', '.join(protocols.PROTOCOLS)}; got {name!r}")
    rules = protocols.PROTOCOLS[name]
    if tiou is not None:
        if not tiou or not all(0 < value <= 1 for value in tiou) or len(set(tiou)) < len(tiou):
            raise ValueError(f"tIoU thresholds are distinct numbers above 0 and at most 1; got {list(tiou)}")
        values = tuple(sorted(float(value) for value in tiou))
        return dataclasses.replace(rules, **{"proposal_tiou" if task == "proposals" else "tiou": values})
    if task == "detection" and not rules.tiou:
        raise ValueError(f"the protocol {name} has no tIoU thresholds of its own; give them, such as --tiou 0.5 0.75 0.95")
    return rules


def _score_detections(found: comparison.Comparison, rules: protocols.Protocol) -> scores.DetectionScores:
    return scores.detection(
        found.truth,
        found.predicted,
        len(found.labels),
        rules.tiou,
        recall_at=rules.recall_at,
        min_union_sec=rules.min_union_sec,
        matcher=rules.matcher,
        envelope=rules.envelope,
        ambiguous=found.ambiguous,
    )


def _diagnose(
    found: comparison.Comparison, truth: annotations.GroundTruth, rules: protocols.Protocol, detad: diagnosis.Detad
) -> Diagnosis:
    analysis = diagnosis.diagnose(
        found,
        {name: values[found.truth_row] for name, values in characteristics.of(truth).items()},
        dict(zip(tiou_names(rules.tiou), rules.tiou, strict=True)),
        buckets=rules.buckets,
        min_union_sec=rules.min_union_sec,
        detad=detad,
    )
    if rules.matcher != "by_score":
        note = "Predictions choose instances by score here, as in DETAD's code and unlike the protocol's"
        return dataclasses.replace(analysis, notes=[*analysis.notes, note])
    return analysis


def _score_proposals(
    found: comparison.Comparison, rules: protocols.Protocol, max_proposals: int | Literal["all"] | None, rule: ProposalRule
) -> scores.ProposalScores:
    largest = rules.max_proposals if max_proposals is None else None if max_proposals == "all" else max_proposals
    points = rules.points or largest or 100
    if rule == "top_k":
        counts = np.bincount(found.predicted.video, minlength=found.num_videos)[: found.num_videos]
        largest = points = largest or max(1, int(counts.max()))
    return scores.average_recall(
        found.truth,
        found.predicted,
        rules.proposal_tiou,
        max_proposals=largest,
        points=points,
        rule=rule,
        min_union_sec=rules.min_union_sec,
    )


def _source(path: Path) -> Source:
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(path.glob("*.txt")):
            digest.update(f"{file.name}\0".encode(errors="surrogateescape") + file.read_bytes())
    else:
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256")
    return Source(str(path), digest.hexdigest())


def _names(path: Path) -> list[str]:
    expected = 'expected a JSON list of names of videos, such as ["v_a", "v_b"]'
    names = texts.read_json(path, expected)
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise segments.EvaluationError(f"{path}: {expected}, found {json.dumps(names)[:60]}")
    return names


def _by_tiou(tiou: np.ndarray, values: np.ndarray) -> dict[str, float]:
    return dict(zip(tiou_names(tiou), values.tolist(), strict=True))


def _detection_json(scored: scores.DetectionScores, found: comparison.Comparison) -> dict[str, Any]:
    names, predicted = tiou_names(scored.tiou), np.bincount(found.predicted.label, minlength=len(found.labels))
    content: dict[str, Any] = {
        "tiou": scored.tiou.tolist(),
        "average_mAP": scored.average_map,
        "mAP": _by_tiou(scored.tiou, scored.map_by_tiou),
    }
    if scored.recall_at:
        columns = zip(names, scored.mean_recall.T.tolist(), strict=True)
        content["recall"] = {
            name: {f"{multiple}x": value for multiple, value in zip(scored.recall_at, values, strict=True)}
            for name, values in columns
        }
    content["per_class"] = {
        label: {
            "instances": int(scored.instances[row]),
            "predictions": int(predicted[row]),
            "average_AP": float(scored.ap[row].mean()),
            "AP": dict(zip(names, scored.ap[row].tolist(), strict=True)),
        }
        for row, label in enumerate(found.labels)
    }
    return content


def _proposals_json(scored: scores.ProposalScores, average_recall: Mapping[int | float, float]) -> dict[str, Any]:
    return {
        "tiou": scored.tiou.tolist(),
        "AUC": scored.auc,
        "AR": {f"{number:.10g}": value for number, value in average_recall.items()},
        "curve": {
            "proposals": scored.proposals.tolist(),
            "AR": scored.average_recall.tolist(),
            "recall": {name: row.tolist() for name, row in zip(tiou_names(scored.tiou), scored.recall, strict=True)},
        },
    }


def _classification_json(scored: scores.ClassificationScores, found: comparison.Comparison) -> dict[str, Any]:
    return {
        "mAP": scored.mean_ap,
        "hit": {str(k): value for k, value in zip(scored.top_k, scored.hit.tolist(), strict=True)},
        "average_hit": {str(k): value for k, value in zip(scored.top_k, scored.mean_hit.tolist(), strict=True)},
        "per_class": {
            label: {"videos": int(scored.instances[row]), "AP": float(scored.ap[row])} for row, label in enumerate(found.labels)
        },
    }
