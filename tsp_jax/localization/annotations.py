"""Reads the ground truth that detections are scored against, in the formats of the data sets.

A folder is THUMOS14's, with one text file for each class. A JSON file has ActivityNet's layout, which HACS, FineAction, and the
THUMOS14 and EPIC-Kitchens files of ActionFormer and OpenTAD have too. A CSV file is EPIC-Kitchens', or one that
`python -m data_builders.groundtruth` wrote. Instances keep the order of their file, and repeated ones are kept.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from tsp_jax import groundtruth
from tsp_jax.localization import detections, segments
from tsp_jax.system import tables, texts

LabelColumn = Literal["verb", "noun"]
CHARACTERISTICS = ("coverage", "context-size", "context-distance", "agreement")  # DETAD's fields of an annotation
AMBIGUOUS = "Ambiguous"  # THUMOS14's label of parts whose class the annotators could not say
_EXPECTED = 'expected JSON {"database": {VIDEO: {"subset": …, "annotations": [{"segment": [start, end], "label": …}]}}}'
_EPIC_COLUMNS = ("video-id", "start-timestamp", "stop-timestamp")


@dataclasses.dataclass(frozen=True, eq=False)
class GroundTruth:
    """Annotated instances of the videos of one subset.

    Attributes:
      videos: names of all videos of the subset, in the order of the file; `rows.video` counts in it.
      labels: names of the classes, sorted; `rows.label` counts in it.
      rows: the instances, in the order of the file. An end may lie before its start.
      ambiguous: THUMOS14's parts of no sure class; their labels are 0.
      duration_sec: float64 [videos], lengths of the videos in seconds; NaN where the file does not say.
      class_names: names of classes by number, where the file numbers them.
      subset: the subset as the file writes it; empty if the file has none.
      characteristics: float64 [n] each, those of `CHARACTERISTICS` that the file gives for an instance at least; NaN where it
        does not.
    """

    videos: tuple[str, ...]
    labels: tuple[str, ...]
    rows: segments.Segments
    ambiguous: segments.Segments
    duration_sec: Float64[np.ndarray, " v"]
    class_names: Mapping[int, str]
    subset: str
    characteristics: Mapping[str, Float64[np.ndarray, " n"]] = dataclasses.field(default_factory=dict)


def read(path: str | Path, subset: str | None = None, *, label_column: LabelColumn | None = None) -> GroundTruth:
    """Returns the instances of a subset.

    Args:
      path: the folder, JSON file or CSV file.
      subset: the name of the subset, in any case; None for all videos. It is not used for CSV files, which have one subset.
      label_column: which classes of an EPIC-Kitchens CSV are read.

    Raises:
      FileNotFoundError: nothing is at the path.
      EvaluationError: the content has another format, lacks the subset, or has no instances or some that can't be read; the
        message lists them.
    """
    path = Path(path)
    try:
        if path.is_dir():
            found = _read_thumos14(path, subset)
        else:
            detections.check_size(path, "expected a ground truth as JSON or CSV, or a folder of THUMOS14's text files")
            found = _read_csv(path, label_column) if path.suffix.lower() in (".csv", ".tsv") else _read_json(path, subset)
    except ValueError as error:
        raise segments.EvaluationError(str(error)) from error
    if not len(found.rows):
        where = f" of subset {found.subset!r}" if found.subset else ""
        raise segments.EvaluationError(
            f"{path}: no video{where} has an annotated instance, so there is nothing to score against"
            f"{'; some data sets do not publish those of their test subset' if where else ''}"
        )
    return found


def find_subset(path: Path, wanted: str, found: set[str]) -> str:
    """Returns the name by which a file calls a subset: the same, or else in another case, or another usual name of it.

    Raises:
      ValueError: the file has no such subset, or two that may be meant.
    """
    if wanted in found:
        return wanted
    key = texts.clean(wanted).casefold()
    for alike in ((key,), next((names for names in groundtruth.SUBSETS if key in names), ())):
        same = sorted(name for name in found if texts.clean(name).casefold() in alike)
        if len(same) > 1:
            raise ValueError(f"{path}: subset {wanted!r} may be {' or '.join(map(repr, same))}; choose one by --subset")
        if same:
            return same[0]
    shown = ", ".join(map(repr, sorted(found))) or "no subsets"
    raise ValueError(f"{path}: no video of subset {wanted!r}; found {shown}; choose one by --subset")


class Instances:
    """Collects instances in the order of a file."""

    def __init__(self) -> None:
        self.videos: dict[str, int] = {}
        self.durations: list[float] = []
        self.rows: list[tuple[int, str, float, float]] = []
        self.fields: list[Mapping[str, Any]] = []

    def add_video(self, name: str, duration_sec: float = math.nan) -> None:
        if name not in self.videos:
            self.videos[name] = len(self.videos)
            self.durations.append(duration_sec)

    def add(self, video: str, label: str, start_sec: float, end_sec: float, fields: Mapping[str, Any] | None = None) -> None:
        self.add_video(video)
        self.rows.append((self.videos[video], label, start_sec, end_sec))
        self.fields.append(fields or {})

    def ground_truth(self, subset: str, class_names: Mapping[int, str] | None = None) -> GroundTruth:
        labels = sorted({label for _, label, _, _ in self.rows} - {AMBIGUOUS})
        number = {label: place for place, label in enumerate(labels)}
        sure, ambiguous = (
            segments.make(*([row[column] for row in rows] for column in range(4)))
            for rows in (
                [(video, number[label], start, end) for video, label, start, end in self.rows if label != AMBIGUOUS],
                [(video, 0, start, end) for video, label, start, end in self.rows if label == AMBIGUOUS],
            )
        )
        durations = np.array(self.durations, np.float64)
        fields = [item for item, row in zip(self.fields, self.rows, strict=True) if row[1] != AMBIGUOUS]
        found = {name: np.array([_finite(item.get(name)) for item in fields], np.float64) for name in CHARACTERISTICS}
        given = {name: values for name, values in found.items() if not np.isnan(values).all()}
        return GroundTruth(tuple(self.videos), tuple(labels), sure, ambiguous, durations, class_names or {}, subset, given)


def _read_json(path: Path, subset: str | None) -> GroundTruth:
    content = texts.read_json(path, _EXPECTED)
    wrapped = isinstance(content, dict) and "database" in content
    database = content["database"] if wrapped else content
    if not isinstance(database, dict) or not all(
        isinstance(entry, dict) and (wrapped or "annotations" in entry or "subset" in entry) for entry in database.values()
    ):
        found = (
            f"an object of {', '.join(map(repr, list(content)[:5]))}" if isinstance(content, dict) else type(content).__name__
        )
        raise ValueError(f"{path}: {_EXPECTED}, found {found}")
    subsets = {str(entry["subset"]) for entry in database.values() if "subset" in entry}
    if subset is not None and subsets:
        subset = find_subset(path, subset, subsets)
    instances, faults = Instances(), []
    for name, entry in database.items():
        if subset is not None and subsets:
            if "subset" not in entry:
                faults.append(f"{name}: no subset, although other videos have one")
                continue
            if str(entry["subset"]) != subset:
                continue
        items = [] if entry.get("annotations") is None else entry["annotations"]
        instances.add_video(name, _finite(entry.get("duration")))
        if not isinstance(items, list):
            faults.append(f"{name}: annotations: expected a list, found {json.dumps(items)[:80]}")
            continue
        for number, item in enumerate(items, 1):
            try:
                start_sec, end_sec = map(_number, item["segment"])
                label = item["label"]
                label = str(label) if type(label) is int else label
                if not (isinstance(label, str) and label):
                    raise ValueError
                instances.add(name, label, start_sec, end_sec, item)
            except (ValueError, KeyError, TypeError, OverflowError):
                faults.append(
                    f"{name} annotation {number}: expected a segment [start, end] in seconds and a label, "
                    f"found {json.dumps(item)[:80]}"
                )
    tables.refuse(path, faults, "correct them in the file")
    return instances.ground_truth(subset if subset is not None and subsets else "", _class_names(database))


def _class_names(database: Mapping[str, Mapping[str, Any]]) -> dict[int, str]:
    """Returns the classes by `label_id`, of all subsets; without numbers that two classes have."""
    found: dict[int, set[str]] = {}
    for entry in database.values():
        items = entry.get("annotations")
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict) and type(item.get("label_id")) is int:
                found.setdefault(item["label_id"], set()).add(str(item.get("label")))
    return {number: names.pop() for number, names in found.items() if len(names) == 1}


def _finite(value: object) -> float:
    """Returns a finite number, which may be written as text; NaN for anything else."""
    try:
        return _number(value)
    except (ValueError, OverflowError):
        return math.nan


def _number(value: object) -> float:
    """Returns a number, which ActionFormer's THUMOS14 file writes as text."""
    if isinstance(value, str):
        return tables.parse_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("expected a number")
    return float(value)


def _read_thumos14(folder: Path, subset: str | None) -> GroundTruth:
    found = {path.stem.rpartition("_")[2] for path in folder.glob("*_*.txt")} & {"val", "test"}
    if not found:
        raise ValueError(
            f"{folder}: a folder without files such as Shotput_test.txt; expected THUMOS14's folder, or name a file"
        )
    ending = find_subset(folder, "test" if subset is None else subset, found)
    instances = Instances()
    for path in sorted(folder.glob(f"*_{ending}.txt")):
        label, faults = path.stem.rpartition("_")[0], []
        for number, line in enumerate(texts.read_text(path, "expected lines VIDEO START END").splitlines(), 1):
            fields = line.split()
            if not fields:
                continue
            try:
                name, start_sec, end_sec = fields
                instances.add(name, label, tables.parse_number(start_sec), tables.parse_number(end_sec))
            except ValueError:
                faults.append(f"line {number}: expected VIDEO START END in seconds, found {line[:80]!r}")
        tables.refuse(path, faults, "correct them in the file")
    return instances.ground_truth(ending)


def _read_csv(path: Path, label_column: LabelColumn | None) -> GroundTruth:
    rows = tables.read_table(path, (), optional=_EPIC_COLUMNS)
    instances = Instances()
    if rows and all(column in rows[0].fields for column in _EPIC_COLUMNS):
        return _read_epic_kitchens(path, rows, label_column, instances)
    for item in groundtruth.read_groundtruth(path):
        instances.add_video(item.video_name, item.video_duration_sec)
        if item.temporal_region == groundtruth.ACTION:
            instances.add(item.video_name, item.action_label, item.start_sec, item.end_sec)
    return instances.ground_truth("")


def _read_epic_kitchens(
    path: Path, rows: list[tables.TableRow], label_column: LabelColumn | None, instances: Instances
) -> GroundTruth:
    if label_column is None:
        raise ValueError(f"{path}: an EPIC-Kitchens CSV has classes of verbs and of nouns; choose one by --label_column")
    column = f"{label_column}-class" if f"{label_column}-class" in rows[0].fields else label_column
    if column not in rows[0].fields:
        raise ValueError(f"{path}: no column {label_column}_class; found {', '.join(rows[0].fields)[:200]}")
    faults = []
    for row in rows:
        name, label = (row.fields.get(key, "").strip() for key in ("video-id", column))
        try:
            if row.fault or not name or not label:
                raise ValueError(row.fault or f"no video_id or {column}")
            start_sec, end_sec = (tables.parse_seconds(row.fields[key]) for key in _EPIC_COLUMNS[1:])
            instances.add(name, label, start_sec, end_sec)
        except ValueError as error:
            faults.append(f"line {row.line}: {error}")
    tables.refuse(path, faults, "correct them in the file")
    return instances.ground_truth("")
