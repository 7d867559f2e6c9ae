"""Reads the actions of annotated videos. To add a format, write one function and add one line to `FORMATS`."""

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tsp_jax import groundtruth
from tsp_jax.system import tables

BackgroundRule = Literal["reference", "union"]  # `data_builders.groundtruth.background` explains both

# Each data set has its own names of its subsets. The released ground truth uses the names on the left.
_ACTIVITYNET_SUBSETS = {"train": "training", "valid": "validation", "test": "testing"}
_THUMOS14_SUBSETS = {"valid": "val", "validation": "val"}


@dataclasses.dataclass(frozen=True, order=True)
class Action:
    """An action in a video, exactly as it was annotated.

    Attributes:
      start_sec: second of the video at which the action begins.
      end_sec: second of the video at which the action ends.
      label: the action's class.
    """

    start_sec: float
    end_sec: float
    label: str


# The actions of each video in their annotated order, by the video's name as the annotations write it.
Actions = dict[str, list[Action]]


@dataclasses.dataclass(frozen=True)
class Format:
    """An annotation format.

    Attributes:
      read: a function of a path and a subset that returns the annotated videos with their actions. The subset None means
        all videos. The function raises FileNotFoundError if nothing is at the path, and ValueError if the content has
        another format or lacks the subset.
      min_background_sec: the shortest background in seconds that the ground truth keeps by default.
      background: the rule of background by default.
      needs_subset: whether the command `groundtruth` demands a subset.
    """

    read: Callable[[Path, str | None], Actions]
    min_background_sec: float
    background: BackgroundRule
    needs_subset: bool = True


def read_actions(annotation_format: str, path: str | Path, subset: str | None) -> Actions:
    """Returns the annotated videos of a subset with their actions.

    Args:
      annotation_format: a name in `FORMATS`.
      path: ActivityNet's JSON file, the folder of THUMOS14's files, or a CSV file.
      subset: the subset's name; None for all videos.

    Raises:
      FileNotFoundError: nothing is at the path.
      ValueError: the content has another format, or lacks the subset.
    """
    return FORMATS[annotation_format].read(Path(path), subset)


def read_activitynet(path: Path, subset: str | None) -> Actions:
    """Returns the videos of a subset, or all videos, of ActivityNet's JSON file, by identifier.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: its layout is not that of `activity_net.v1-3.min.json`, or the subset is missing or has no annotations.
    """
    expected = 'expected JSON {"database": {ID: {"subset": …, "annotations": [{"segment": [start, end], "label": …}]}}}'
    content = tables.read_json(path, expected)
    try:
        entries = {name: (str(entry["subset"]), list(entry["annotations"])) for name, entry in content["database"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {expected}; {type(error).__name__} ({error})") from error
    subsets = sorted({found for found, _ in entries.values()})
    if subset not in (None, *subsets):
        subset = _ACTIVITYNET_SUBSETS.get(subset, subset)
    if subset not in (None, *subsets):
        raise ValueError(f"{path}: no video of subset {subset!r}; found {', '.join(subsets) or 'no videos'}")
    faults: list[str] = []
    actions = {
        name: [_activitynet_action(item, f"{name} annotation {number}", faults) for number, item in enumerate(items, 1)]
        for name, (found, items) in sorted(entries.items())
        if subset in (None, found)
    }
    tables.refuse(path, faults, "correct them in the file")
    if not any(actions.values()):
        raise ValueError(
            f"{path}: the videos of subset {subset!r} have no annotations; ActivityNet does not publish those of testing"
        )
    return actions


def read_thumos14(folder: Path, subset: str | None) -> Actions:
    """Returns the videos of THUMOS14's files `CLASS_val.txt` or `CLASS_test.txt`, one file per class, sorted by name.

    The files of `Ambiguous` parts are left out, because the released ground truth leaves them out. A video that has only
    ambiguous parts (video_test_0001292) is therefore absent.

    Raises:
      FileNotFoundError: the folder has no such files.
      ValueError: a line is not `VIDEO START END`.
    """
    endings = ["val", "test"] if subset is None else [_THUMOS14_SUBSETS.get(subset, subset)]
    paths = sorted(path for ending in endings for path in folder.glob(f"*_{ending}.txt"))
    paths = [path for path in paths if not path.name.startswith("Ambiguous_")]
    if not paths:
        raise FileNotFoundError(
            f"{folder}: no files {' or '.join(f'*_{ending}.txt' for ending in endings)}; expected THUMOS14's folder of files "
            "such as BaseballPitch_val.txt; the subsets are valid and test"
        )
    actions: Actions = defaultdict(list)
    for path in paths:
        label = path.stem.rpartition("_")[0]
        faults = []
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected lines VIDEO START END of UTF-8 text ({error})") from error
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if not fields:
                continue
            try:
                name, start_sec, end_sec = fields
                actions[name].append(Action(tables.parse_number(start_sec), tables.parse_number(end_sec), label))
            except ValueError:
                faults.append(f"line {number}: expected VIDEO START END in seconds, found {line!r}")
        tables.refuse(path, faults, "correct them in the file")
    return dict(sorted(actions.items()))


def read_csv(path: Path, subset: str | None) -> Actions:
    """Returns the videos of a CSV file with columns filename or video-name, t-start, t-end, action-label, in its order.

    If there is a column `temporal-region-label`, its rows of background are left out, since the background is computed
    from the actions.

    Args:
      path: the CSV file.
      subset: the value of the column `subset` in the rows to keep; None for all rows.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing, or a row lacks its video, its times or its label.
    """
    rows = tables.read_table(path, ("t-start", "t-end", "action-label", *(["subset"] if subset else [])))
    actions: Actions = defaultdict(list)
    faults = []
    for row in rows:
        name = row.fields.get("filename") or row.fields.get("video-name")
        if row.fault or not name:
            faults.append(f"line {row.line}: {row.fault or 'no filename or video-name'}")
            continue
        if row.fields.get("temporal-region-label") == groundtruth.NO_ACTION or (subset and row.fields["subset"] != subset):
            continue
        try:
            start_sec, end_sec = (tables.parse_number(row.fields[column]) for column in ("t-start", "t-end"))
        except ValueError:
            faults.append(
                f"line {row.line}: expected seconds, found t-start {row.fields['t-start']!r}, t-end {row.fields['t-end']!r}"
            )
            continue
        if not row.fields["action-label"]:
            faults.append(f"line {row.line}: no action-label; only rows of {groundtruth.NO_ACTION!r} may lack it")
        actions[name].append(Action(start_sec, end_sec, row.fields["action-label"]))
    tables.refuse(path, faults, "correct them in the file")
    if not actions:
        raise ValueError(f"{path}: no row with an action{f' of subset {subset!r}' if subset else ''}")
    return dict(actions)


# The shortest background is 80 frames at 15 fps in ActivityNet's released ground truth, and a clip of 16 frames elsewhere.
FORMATS: dict[str, Format] = {
    "activitynet": Format(read_activitynet, 80 / 15, "reference"),
    "thumos14": Format(read_thumos14, 16 / 15, "reference"),
    "csv": Format(read_csv, 16 / 15, "union", needs_subset=False),
}


def check_labels(actions: Mapping[str, Sequence[Action]], labels: Sequence[str], where: str | Path) -> None:
    """Checks that a mapping has every action's label.

    Args:
      actions: the actions of each video.
      labels: the mapping's labels.
      where: the mapping's file, for the message.

    Raises:
      ValueError: labels are missing; the message names each with a video that has it.
    """
    example = {action.label: name for name, items in actions.items() for action in items}
    unknown = [f"{label!r} ({name})" for label, name in sorted(example.items()) if label not in labels]
    if unknown:
        raise ValueError(f"{where}: no label {', '.join(unknown)}; correct the annotations or the mapping")


def _activitynet_action(item: Any, where: str, faults: list[str]) -> Action:
    """Returns the action that an annotation describes. If it is malformed, appends to `faults` and returns an empty action."""
    try:
        start_sec, end_sec = map(float, item["segment"])
        if not (math.isfinite(start_sec) and math.isfinite(end_sec) and isinstance(item["label"], str) and item["label"]):
            raise ValueError
        return Action(start_sec, end_sec, item["label"])
    except (ValueError, KeyError, TypeError, OverflowError):
        faults.append(f"{where}: expected a segment [start, end] in seconds and a label, found {json.dumps(item)[:80]}")
        return Action(0.0, 0.0, "")
