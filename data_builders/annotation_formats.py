"""Reads annotated videos in several formats. To add a format, write one function and add one line to `FORMATS`."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from data_builders import annotations
from tsp_jax import groundtruth
from tsp_jax.system import tables, texts

BackgroundRule = Literal["reference", "union"]  # `data_builders.groundtruth.background` explains both

_JSON = 'expected JSON {"database": {ID: {"subset": …, "annotations": [{"segment": [start, end], "label": …}]}}}'
_ENTRY_KEYS = {"annotations", "actions", "subset", "duration"}
_NO_ENTRIES = {"version", "taxonomy", "info", "license", "licenses", "description"}
_MAX_SHOWN = 80
_THUMOS14_SUBSETS = {"val": "valid", "test": "test"}  # the endings of the files, with the names in the released ground truth
# What other tools call our columns.
_FOREIGN_COLUMNS = {
    **dict.fromkeys(["file", "path", "videofile", "videopath", "videofilename"], "filename"),
    **dict.fromkeys(["video", "videoid", "vid", "id", "name", "videoname"], "video-name"),
    **dict.fromkeys(["start", "begin", "tstart"], "t-start"),
    **dict.fromkeys(["end", "stop", "tend"], "t-end"),
    **{
        f"{word}{unit}": column
        for column, words in (("t-start", ("start", "begin")), ("t-end", ("end", "stop")))
        for word in words
        for unit in ("s", "sec", "secs", "second", "seconds", "time", "timesec", "timestamp")
    },
    **dict.fromkeys(["label", "action", "class", "activity", "category", "labelname", "classname", "verb"], "action-label"),
    **dict.fromkeys(["actionlabel", "actionname", "actionclass"], "action-label"),
    **dict.fromkeys(["split", "set", "partition"], "subset"),
}


@dataclasses.dataclass(frozen=True)
class Format:
    """An annotation format.

    Attributes:
      read: a function of a path that yields all entries of all subsets. An entry that can't be used has a fault. The function
        raises FileNotFoundError if nothing is at the path, and ValueError if the whole content has another format.
      min_background_sec: the shortest background in seconds that the ground truth keeps by default.
      background: the rule of background by default.
      needs_subset: whether the command `groundtruth` demands a subset.
    """

    read: Callable[[Path], Iterator[annotations.Entry]]
    min_background_sec: float
    background: BackgroundRule
    needs_subset: bool = True


def read_actions(
    annotation_format: str, path: str | Path, subset: str | None, labels: Sequence[str] = ()
) -> annotations.Annotations:
    """Returns the annotated videos of a subset with their actions, and what was read in another way than written.

    Args:
      annotation_format: a name in `FORMATS`.
      path: ActivityNet's JSON file, the folder of THUMOS14's files, or a CSV file.
      subset: the subset's name; None for all videos.
      labels: labels whose spelling wins over that of the annotations.

    Raises:
      FileNotFoundError: nothing is at the path.
      ValueError: the content has another format, lacks the subset, or has faults in it.
    """
    path = Path(path)
    return annotations.choose(path, FORMATS[annotation_format].read(path), subset, labels)


def read_activitynet(path: Path) -> Iterator[annotations.Entry]:
    """Yields the entries of a JSON file in ActivityNet's format, by identifier.

    The format of Charades is read too: a list of `[class, start, end]` under "actions". The wrapper "database" may be absent,
    or have another name if it is the only dict of entries.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no JSON of entries of videos.
    """
    content = texts.read_json(path, _JSON)
    database = content.get("database", content) if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise ValueError(f"{path}: {_JSON}, found {_shown(content)}")
    if database is content and not _entries(content):
        wrapped = [value for value in content.values() if isinstance(value, dict) and _entries(value)]
        database = wrapped[0] if len(wrapped) == 1 else content
    if database is content:
        database = _entries(content)
        if not database:
            raise ValueError(f'{path}: {_JSON}; found no "database" and no entry of a video, but {_shown(content)}')
        yield from (
            annotations.Entry(key, key, "", is_annotated=False, fault=f"no entry of a video: {_shown(value)}")
            for key, value in content.items()
            if key not in database and key not in _NO_ENTRIES
        )
    for name, entry in sorted(database.items()):
        yield from _json_entries(name, entry)


def read_thumos14(folder: Path) -> Iterator[annotations.Entry]:
    """Yields the lines of THUMOS14's files `CLASS_val.txt` and `CLASS_test.txt`, one file per class, sorted by video.

    The files of `Ambiguous` parts are left out, because the released ground truth leaves them out. A video that has only
    ambiguous parts (video_test_0001292) is therefore absent.

    Raises:
      FileNotFoundError: the folder has no such files.
    """
    paths = sorted(path for ending in _THUMOS14_SUBSETS for path in folder.glob(f"*_{ending}.txt"))
    paths = [path for path in paths if not path.name.startswith("Ambiguous_")]
    if not paths:
        raise FileNotFoundError(
            f"{folder}: no files {' or '.join(f'*_{ending}.txt' for ending in _THUMOS14_SUBSETS)}; expected THUMOS14's folder "
            "of files such as BaseballPitch_val.txt"
        )
    entries = [entry for path in paths for entry in _thumos14_entries(path)]
    yield from sorted(entries, key=lambda entry: entry.video)


def read_csv(path: Path) -> Iterator[annotations.Entry]:
    """Yields the rows of a CSV file with columns filename or video-name, t-start, t-end, action-label, in its order.

    If there is a column `temporal-region-label`, its rows of background are left out, since the background is computed
    from the actions. The column `subset` may be absent.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing, or the file is no CSV of text.
    """
    columns, optional = ("t-start", "t-end", "action-label"), ("filename", "video-name", "subset", "temporal-region-label")
    rows = tables.read_table(path, columns, optional=optional, numbers=("t-start", "t-end"), foreign=_FOREIGN_COLUMNS)
    if rows and not any(name in row.fields for row in rows for name in ("filename", "video-name")):
        known = {name: _FOREIGN_COLUMNS.get(tables.bare_name(name), "") for name in rows[0].fields}
        renames = [f"{name} to {column}" for name, column in known.items() if column in ("filename", "video-name")]
        hint = f"; rename {', '.join(renames)}" if renames else ""
        raise ValueError(f"{path}: no column filename or video-name; found {', '.join(rows[0].fields)}{hint}")
    for row in rows:
        name = row.fields.get("filename") or row.fields.get("video-name") or ""
        subset = None if row.fault else texts.clean(row.fields.get("subset", ""))
        entry = annotations.Entry(f"line {row.line}", name, subset, fault=row.fault)
        region = texts.clean(row.fields.get("temporal-region-label", "")).casefold()
        if row.fault:
            yield entry
        elif not name.strip():
            yield dataclasses.replace(entry, fault="no filename or video-name")
        elif region != groundtruth.NO_ACTION.casefold():
            yield _csv_action(row, entry)


# The shortest background is 80 frames at 15 fps in ActivityNet's released ground truth, and a clip of 16 frames elsewhere.
FORMATS: dict[str, Format] = {
    "activitynet": Format(read_activitynet, 80 / 15, "reference"),
    "thumos14": Format(read_thumos14, 16 / 15, "reference"),
    "csv": Format(read_csv, 16 / 15, "union", needs_subset=False),
}


def check_labels(actions: Mapping[str, Sequence[annotations.Action]], labels: Sequence[str], where: str | Path) -> None:
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


def _entries(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a JSON object that look like entries of videos."""
    return {key: value for key, value in content.items() if isinstance(value, dict) and _ENTRY_KEYS & value.keys()}


def _json_entries(name: str, entry: Any) -> Iterator[annotations.Entry]:
    """Yields what an entry of a JSON file says of a video."""
    if not isinstance(entry, dict):
        fault = f'expected {{"subset": …, "annotations": […]}}, found {_shown(entry)}'
        yield annotations.Entry(name, name, None, fault=fault)
        return
    subset = entry.get("subset")
    if not (subset is None or isinstance(subset, str)):
        yield annotations.Entry(name, name, None, fault=f'expected a name as "subset", found {_shown(subset)}')
        return
    subset = texts.clean(subset or "")
    key = "actions" if "annotations" not in entry and "actions" in entry else "annotations"
    items = entry.get(key)
    if items is None:
        yield annotations.Entry(name, name, subset, is_annotated=False)
        return
    if not isinstance(items, list):
        yield annotations.Entry(name, name, subset, fault=f'expected a list of "{key}", found {_shown(items)}')
        return
    yield annotations.Entry(name, name, subset)
    for number, item in enumerate(items, 1):
        yield _json_action(item, annotations.Entry(f"{name} {key[:-1]} {number}", name, subset))


def _json_action(item: Any, entry: annotations.Entry) -> annotations.Entry:
    """Returns an entry with the action that an item of a JSON list describes, or with its fault."""
    expected = 'expected {"segment": [start, end] in seconds, "label": name}'
    try:
        if isinstance(item, list):
            label, start, end = item
            remark = "an action [class, start, end] is read as Charades writes it, in seconds, with the class as label"
        else:
            segment, label, remark = item["segment"], item["label"], ""
            if not isinstance(segment, list):  # two letters would be a pair, too
                raise ValueError
            start, end = segment
    except (KeyError, TypeError, ValueError):
        return dataclasses.replace(entry, fault=f"{expected}, found {_shown(item)}")
    if isinstance(label, int | float) and not isinstance(label, bool) and label == label // 1:
        label, remark = str(int(label)), remark or "a label that is a number is read as text"
    if not isinstance(label, str):
        return dataclasses.replace(entry, fault=f"{expected}, found {_shown(item)}")
    try:
        return _with_action(dataclasses.replace(entry, remark=remark), _seconds(start), _seconds(end), label)
    except ValueError as error:
        return dataclasses.replace(entry, fault=f"{expected}, found {_shown(item)} ({error})")


def _seconds(value: Any) -> float:
    """Returns the seconds that a JSON value says, which is a number or a text; raises ValueError if it is neither."""
    if isinstance(value, str):
        return tables.parse_seconds(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{_shown(value)} is no number")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise ValueError("a number is not finite")
    return seconds


def _csv_action(row: tables.TableRow, entry: annotations.Entry) -> annotations.Entry:
    """Returns an entry with the action of a row of a CSV file, or with its fault."""
    seconds = {}
    for column in ("t-start", "t-end"):
        try:
            seconds[column] = tables.parse_seconds(row.fields[column])
        except ValueError as error:
            return dataclasses.replace(entry, fault=f"{column} {row.fields[column]!r}: {error}")
    if not texts.clean(row.fields["action-label"]):
        return dataclasses.replace(entry, fault=f"no action-label; only rows of {groundtruth.NO_ACTION!r} may lack it")
    return _with_action(entry, seconds["t-start"], seconds["t-end"], row.fields["action-label"])


def _with_action(entry: annotations.Entry, start_sec: float, end_sec: float, label: str) -> annotations.Entry:
    """Returns an entry with an action, or with the fault of its label."""
    if not texts.clean(label):
        return dataclasses.replace(entry, fault="the label is empty")
    if label != label.encode(errors="replace").decode():
        return dataclasses.replace(entry, fault=f"the label {label!r} is no text that UTF-8 can write")
    return dataclasses.replace(entry, action=annotations.Action(start_sec, end_sec, label))


def _thumos14_entries(path: Path) -> Iterator[annotations.Entry]:
    """Yields the lines of a file of THUMOS14."""
    label, _, ending = path.stem.rpartition("_")
    subset = _THUMOS14_SUBSETS[ending]
    try:
        lines = texts.read_text(path, "expected lines VIDEO START END").splitlines()
    except ValueError as error:
        yield annotations.Entry(path.name, "", subset, fault=str(error).removeprefix(f"{path}: "))
        return
    for number, line in enumerate(lines, 1):
        fields, where = line.split(), f"{path.name} line {number}"
        if not fields:
            continue
        try:
            name, start_sec, end_sec = fields
            entry = annotations.Entry(where, name, subset)
            yield _with_action(entry, tables.parse_seconds(start_sec), tables.parse_seconds(end_sec), label)
        except ValueError:
            fault = f"expected VIDEO START END in seconds, found {line[:_MAX_SHOWN]!r}"
            yield annotations.Entry(where, "", subset, fault=fault)


def _shown(value: Any) -> str:
    """Returns the beginning of a JSON value as text."""
    try:
        return json.dumps(value, ensure_ascii=False)[:_MAX_SHOWN]
    except RecursionError:
        return "a value that nests too deep"
