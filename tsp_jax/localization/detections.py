"""Files of detections, proposals and labels of videos: ActivityNet's JSON, which OpenTAD writes too, and ActionFormer's pickle.

`results` and the other two keys are ActivityNet's, so its evaluation reads what `write` writes. The key `tsp_jax` is ours.

    {"version": "VERSION 1.3",
     "results": {VIDEO: [{"label": str, "score": float, "segment": [start_sec, end_sec]}, …]},
     "external_data": {"used": bool, "details": str},
     "tsp_jax": {"tsp_jax_version": str, "class_scores": str}}

ActionFormer pickles a dict of arrays with one row for each detection: `video-id`, `t-start`, `t-end`, `label`, `score`.
"""

import array
import collections
import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tsp_jax.localization import segments
from tsp_jax.system import files, pickles, tables, texts, version

Task = Literal["detection", "proposals", "classification"]
MAX_FILE_BYTES = 1 << 29  # some five million detections; they take about twice as much memory
_MAX_FAULTS = 1000
_MAX_NAME = 1 << 12
_EXPECTED = {
    "detection": '{"results": {VIDEO: [{"segment": [start, end], "label": str, "score": number}, …]}}',
    "proposals": '{"results": {VIDEO: [{"segment": [start, end], "score": number}, …]}}',
    "classification": '{"results": {VIDEO: [{"label": str, "score": number}, …]}}',
}
_PICKLE_KEYS = ("video-id", "t-start", "t-end", "label", "score")
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


@dataclasses.dataclass(frozen=True, eq=False)
class Detections:
    """What a model predicts for some videos.

    Attributes:
      videos: names of the videos, also of those without predictions; `rows.video` counts in it.
      labels: names of the classes; `rows.label` counts in it. It is [""] if the predictions have no labels.
      rows: the predictions, in the order of the file.
      numbered: whether the labels are numbers of classes, written as text, and not names.
      class_scores: what the file says of scores of classes from elsewhere that were used; empty if it says nothing.
    """

    videos: tuple[str, ...]
    labels: tuple[str, ...]
    rows: segments.Segments
    numbered: bool = False
    class_scores: str = ""


def write(path: str | Path, detections: Detections, *, class_scores: str = "") -> None:
    """Writes a file of detections, whole or not at all. Numbers keep all their digits.

    Args:
      path: the JSON file.
      detections: the detections.
      class_scores: which scores of classes from elsewhere were used, such as their file and its SHA-256; empty for none.

    Raises:
      ValueError: a number is not finite, or the file would be larger than `read` accepts.
      OSError: the file can't be written.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in detections.videos}
    rows = detections.rows
    columns = (rows.video, rows.label, rows.start_sec, rows.end_sec, rows.score)
    for video, label, start, end, score in zip(*(column.tolist() for column in columns), strict=True):
        entry = {"label": detections.labels[label], "score": score, "segment": [start, end]}
        results[detections.videos[video]].append(entry)
    content = {
        "version": "VERSION 1.3",
        "results": results,
        "external_data": {"used": bool(class_scores), "details": class_scores},
        "tsp_jax": {"tsp_jax_version": version.__version__, "class_scores": class_scores},
    }
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="backslashreplace")
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(f"{path}: {len(text):,} bytes, expected at most {MAX_FILE_BYTES:,}; keep fewer detections of a video")
    with files.replacing(path) as temporary:
        temporary.write_bytes(text)


def read(path: str | Path, task: Task = "detection", *, label_key: str = "label") -> Detections:
    """Returns the predictions of a file, after a check of every value.

    Times must be finite numbers, and scores numbers other than NaN. An end may lie before its start, as the evaluations that
    people use have a score for that too.

    Args:
      path: the file of ActivityNet's, OpenTAD's or ActionFormer's kind, or one that `python -m tsp_jax.predict` wrote.
      task: what the rows must have: `detection` segments and labels, `proposals` segments alone, `classification` labels alone.
      label_key: the name of the label in entries of a JSON file that have no `label`, as EPIC-Kitchens' `verb` and `noun`.

    Raises:
      FileNotFoundError: there is no such file.
      EvaluationError: the file is too large, is of another kind, or has values that can't be read; the message lists them.
    """
    path = Path(path)
    check_size(path, f"expected predictions as {_EXPECTED[task]}")
    try:
        with open(path, "rb") as stream:
            head = stream.read(2)
        if head[:1] == b"\x80" or path.suffix in (".pkl", ".pickle"):
            return _from_pickle(path)
        return _from_json(path, texts.read_text(path, f"expected predictions as {_EXPECTED[task]}"), task, label_key)
    except ValueError as error:
        raise segments.EvaluationError(str(error)) from error


def join(parts: Sequence[Detections], paths: Sequence[str | Path]) -> Detections:
    """Returns the predictions of several files of different videos as those of one file, in the order of the files.

    Args:
      parts: the predictions of each file.
      paths: the files, for messages.

    Raises:
      EvaluationError: two parts have the same video, or only some have labels that are numbers.
    """
    videos = [name for part in parts for name in part.videos]
    if len(set(videos)) < len(videos):
        repeated = sorted(name for name, count in collections.Counter(videos).items() if count > 1)
        first, second = [str(path) for part, path in zip(parts, paths, strict=True) if repeated[0] in part.videos][:2]
        raise segments.EvaluationError(
            f"{first} and {second}: both have predictions of {repeated[0]!r}; give each video in one file "
            f"({len(repeated):,} {'is' if len(repeated) == 1 else 'are'} in several)"
        )
    if len({part.numbered for part in parts if len(part.rows)}) > 1:
        raise segments.EvaluationError("labels are numbers in some files of predictions and names in others; write names alone")
    number = {name: place for place, name in enumerate(dict.fromkeys(name for part in parts for name in part.labels))}
    first, moved = 0, []
    for part in parts:
        label = np.array([number[name] for name in part.labels], np.int64)[part.rows.label]
        moved.append(dataclasses.replace(part.rows, video=part.rows.video + first, label=label))
        first += len(part.videos)
    names = [field.name for field in dataclasses.fields(segments.Segments)]
    rows = segments.Segments(*(np.concatenate([getattr(part, name) for part in moved]) for name in names))
    scores = "; ".join(dict.fromkeys(part.class_scores for part in parts if part.class_scores))
    return Detections(tuple(videos), tuple(number), rows, any(part.numbered for part in parts if len(part.rows)), scores)


def check_size(path: Path, expected: str) -> None:
    """Checks that a file is there and not too large to be read.

    Raises:
      FileNotFoundError: there is no such file.
      EvaluationError: it is a folder, or larger than `MAX_FILE_BYTES`.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; {expected}")
    if not path.is_file():
        raise segments.EvaluationError(f"{path}: a folder or device; {expected}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise segments.EvaluationError(
            f"{path}: {path.stat().st_size:,} bytes; expected at most {MAX_FILE_BYTES:,}. Keep fewer predictions of each video "
            "(200 are usual), or write numbers with fewer digits"
        )


class _Rows:
    """Collects the rows of a file, and what is wrong with it."""

    def __init__(self, path: Path, task: Task, label_key: str):
        self.path, self.label_key = path, label_key
        self.task: Task = task
        self.videos: list[str] = []
        self.labels: dict[str | int, int] = {}
        self.video, self.label = array.array("q"), array.array("q")
        self.start, self.end, self.score = (array.array("d") for _ in range(3))
        self.faults: list[str] = []
        self.repeated: set[str] = set()
        self.known: set[str] = set()

    def add_video(self, name: str, entries: object) -> None:
        """Adds the rows of one video."""
        where = f"results {name[:80]!r}"
        if name in self.known:
            self.repeated.add(name)
        self.known.add(name)
        if not isinstance(entries, list):
            self.faults.append(f"{where}: expected a list of predictions, found {_shown(entries)}")
            return
        video = len(self.videos)
        self.videos.append(name)
        with_segment, with_label = self.task != "classification", self.task != "proposals"
        start, end, label = 0.0, 1.0, ""
        for number, entry in enumerate(entries, 1):
            try:
                if with_segment:
                    start, end = entry["segment"]
                    # A comparison with an infinity is cheap, and false for NaN.
                    if not (type(start) in _NUMBERS and type(end) in _NUMBERS and -_INF < start < _INF and -_INF < end < _INF):
                        raise ValueError("segment")
                if with_label:
                    label = entry["label"] if "label" in entry else entry[self.label_key]
                    if not ((type(label) is str and label) or type(label) is int):
                        raise ValueError("label")
                score = entry["score"]
                if type(score) not in _NUMBERS or score != score:
                    raise ValueError("score")
                self.start.append(start)
                self.end.append(end)
                self.score.append(score)
            except (KeyError, TypeError, ValueError, OverflowError):
                del self.start[len(self.video) :], self.end[len(self.video) :], self.score[len(self.video) :]
                # Faults that no message shows are only counted.
                shown = len(self.faults) < _MAX_FAULTS
                self.faults.append(f"{where} prediction {number}: {_fault(entry, self.task, self.label_key)}" if shown else "")
                continue
            self.video.append(video)
            self.label.append(self.labels.setdefault(label, len(self.labels)))

    def detections(self, class_scores: str = "") -> Detections:
        """Returns what was read; raises ValueError that lists all faults."""
        faults = [f"results {name[:80]!r}: the video is there twice; join its predictions" for name in sorted(self.repeated)]
        faults += self.faults
        kinds = {type(label) for label in self.labels}
        if len(kinds) > 1:
            number = next(label for label in self.labels if type(label) is int)
            text = next(label for label in self.labels if type(label) is str)
            faults.append(f"results: labels are numbers, such as {number}, and names, such as {text!r:.80}; write names alone")
        tables.refuse(self.path, faults, "correct the program that wrote them")
        rows = segments.make(self.video, self.label, self.start, self.end, self.score)
        labels = tuple(map(str, self.labels)) or ("",)
        return Detections(tuple(self.videos), labels, rows, kinds == {int}, class_scores)


_NUMBERS = (float, int)
_INF = math.inf


def _fault(entry: Any, task: Task, label_key: str) -> str:
    """Returns what is wrong with a prediction."""
    if not isinstance(entry, dict):
        return f"expected an object, found {_shown(entry)}"
    faults = []
    if task != "classification":
        times = entry.get("segment")
        if not (isinstance(times, list) and len(times) == 2 and all(map(_is_finite, times))):
            hint = " (--task classification scores labels of whole videos)" if times is None and task == "detection" else ""
            faults.append(f"segment {_shown(times)}: expected [start, end], two finite numbers of seconds{hint}")
    label = entry.get("label", entry.get(label_key))
    if task != "proposals" and not (type(label) is int or (isinstance(label, str) and label)):
        hint = " (--task proposals scores segments without labels)" if label is None and task == "detection" else ""
        faults.append(f"label {_shown(label)}: expected a name{hint}")
    score: Any = entry.get("score")
    if type(score) not in _NUMBERS or score != score:
        faults.append(f"score {_shown(score)}: expected a number")
    return "; ".join(faults) or "a number is too large"


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_INF < value < _INF


def _shown(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _from_json(path: Path, text: str, task: Task, label_key: str) -> Detections:
    """Reads the text video by video, so that only one video's predictions are objects at a time."""
    rows, found, other = _Rows(path, task, label_key), False, {}
    expected = f"{path}: expected predictions as {_EXPECTED[task]}"

    def video(name: str, at: int) -> int:
        entries, end = _value(text, at)
        rows.add_video(name, entries)
        return end

    def member(name: str, at: int) -> int:
        nonlocal found
        if name == "results":
            if found:
                raise ValueError(f"{path}: `results` is there twice; keep one")
            if text[at : at + 1] != "{":
                raise ValueError(f"{expected}; `results` is no object")
            found = True
            return _read_object(text, at, video)
        value, end = _value(text, at)
        other[name] = value if name in ("external_data", "tsp_jax") else None
        return end

    try:
        start = _after_space(text, 0)
        if text[start : start + 1] != "{":
            raise ValueError(f"{expected}, found {repr(text[start : start + 40]) if text[start:] else 'an empty file'}")
        end = _after_space(text, _read_object(text, start, member))
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except json.JSONDecodeError as error:
        raise ValueError(f"{expected}, found no JSON (line {error.lineno} column {error.colno}: {error.msg})") from error
    except RecursionError as error:
        raise ValueError(f"{expected}, found objects that nest too deep") from error
    if not found:
        names = ", ".join(repr(name[:40]) for name in list(other)[:5])
        raise ValueError(f"{expected}; there is no `results`, but {names or 'nothing'}")
    return rows.detections(_class_scores(other))


def _class_scores(other: dict[str, Any]) -> str:
    ours, official = other.get("tsp_jax"), other.get("external_data")
    if isinstance(ours, dict) and "class_scores" in ours:
        return str(ours["class_scores"])[:_MAX_NAME]
    return str(official.get("details", ""))[:_MAX_NAME] if isinstance(official, dict) and official.get("used") else ""


def _read_object(text: str, at: int, member: Callable[[str, int], int]) -> int:
    """Reads the JSON object at a place of a text; returns where it ends.

    Args:
      text: the text.
      at: the place of the object's `{`.
      member: is called with the name of each value and its place, reads it, and returns where it ends.

    Raises:
      JSONDecodeError: it is no such object.
    """
    at = _after_space(text, at + 1)
    if text[at : at + 1] == "}":
        return at + 1
    while True:
        if text[at : at + 1] != '"':
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, at)
        name, at = _DECODER.raw_decode(text, at)
        at = _after_space(text, at)
        if text[at : at + 1] != ":":
            raise json.JSONDecodeError("Expecting ':' delimiter", text, at)
        at = _after_space(text, member(name, _after_space(text, at + 1)))
        if text[at : at + 1] == "}":
            return at + 1
        if text[at : at + 1] != ",":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = _after_space(text, at + 1)


def _value(text: str, at: int) -> tuple[Any, int]:
    """Returns the JSON value at a place of a text, and where it ends; raises JSONDecodeError if there is none."""
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # from int()
        raise json.JSONDecodeError("A number has thousands of digits", text, at) from error


def _after_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore (it matches everywhere)


def _from_pickle(path: Path) -> Detections:
    content = pickles.loads(path.read_bytes(), str(path))
    expected = f"{path}: expected a dict of {', '.join(_PICKLE_KEYS)}, as ActionFormer pickles its results"
    if not isinstance(content, dict) or not all(key in content for key in _PICKLE_KEYS):
        found = ", ".join(map(str, list(content)[:8])) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{expected}; found {found[:200]}; or write ActivityNet's JSON")
    names, start, end, label, score = (content[key] for key in _PICKLE_KEYS)
    names = names.tolist() if isinstance(names, np.ndarray) else names
    columns = {"t-start": start, "t-end": end, "label": label, "score": score}
    if not (isinstance(names, Sequence) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{expected}; video-id is no list of names")
    for key, column in columns.items():
        if not (isinstance(column, np.ndarray) and column.shape == (len(names),) and column.dtype.kind in "fiu"):
            raise ValueError(f"{expected}; {key} is no array of {len(names)} numbers, one for each of video-id")
    bad = [(row, key) for key in ("t-start", "t-end") for row in np.flatnonzero(~np.isfinite(columns[key])).tolist()]
    bad += [(row, "score") for row in np.flatnonzero(np.isnan(score)).tolist()]
    number = label.astype(np.float64)
    whole = (np.abs(number) < 2**53) & (number == np.round(number))
    bad += [(row, "label") for row in np.flatnonzero(~whole).tolist()]
    faults = [
        f"row {row} ({names[row][:80]!r}): {key} {columns[key][row]}: expected a number" if place < _MAX_FAULTS else ""
        for place, (row, key) in enumerate(sorted(bad))
    ]
    tables.refuse(path, faults, "correct the program that wrote them")
    videos = list(dict.fromkeys(names))
    number = {name: place for place, name in enumerate(videos)}
    labels, label_rows = np.unique(label.astype(np.int64), return_inverse=True)
    rows = segments.make([number[name] for name in names], label_rows, start, end, score)
    return Detections(tuple(videos), tuple(map(str, labels.tolist())) or ("",), rows, numbered=len(labels) > 0)
