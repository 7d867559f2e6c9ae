"""The JSON file of predictions: segments in ActivityNet's result format, and beside them what each clip's heads said.

`results`, `version` and `external_data` are ActivityNet's, whose evaluation reads the file as it is. The key `tsp_jax` holds
the rest: the model, the rule, and for each video its clips.

    {"version": "VERSION 1.3",
     "results": {VIDEO: [{"label": str, "score": 0 to 1, "segment": [start_sec, end_sec]}, …]},
     "external_data": {"used": true, "details": str},
     "tsp_jax": {"format_version": 1, "tsp_jax_version": str, "checkpoint": str, "checkpoint_sha256": str, "gvf": str,
                 "heads": ["action", "temporal_region"], "labels": [str, …], "thresholds": [0.5],
                 "clip_len_sec": float, "stride_sec": float,
                 "videos": {VIDEO: {"duration_sec": float, "damage": str, "start_sec": [float, …],
                                    "foreground": [0 to 1, …] or null,
                                    "top_classes": [[int, …], …] or null, "top_probabilities": [[0 to 1, …], …] or null}}}}
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float32, Float64, Int32

from tsp_jax import clips, groundtruth, version
from tsp_jax.system import files

FORMAT_VERSION = 1
VERSION = "VERSION 1.3"  # of ActivityNet's annotations, which its evaluation asks for
HEADS = ("action", "temporal_region")
READING = (
    "Segments are a plain reading of a clip classifier's scores, clip by clip, and not those of a trained detector of actions."
)
MAX_FILE_BYTES = 1 << 29  # some 50,000 videos of two minutes; in memory it is five times as much
MAX_LABELS = 1 << 16
MAX_TOP_CLASSES = 64
_MAX_TEXT = 1 << 12
_MAX_SEGMENTS = 1 << 20  # of a video
_ROUNDED = 1e-3  # starts of clips are written to the millisecond


class PredictionsError(Exception):
    """A file of predictions can't be used; the message says what was expected, what was found, and what to do."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a video that is predicted to be an action.

    Attributes:
      label: of its class.
      score: 0 to 1.
      start_sec: where it begins.
      end_sec: where it ends, itself excluded.
    """

    label: str
    score: float
    start_sec: float
    end_sec: float


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
    """What was predicted for a video.

    Attributes:
      duration_sec: of the video.
      damage: why clips are missing; empty when none is.
      segments: by falling score.
      start_sec: float64 [n_clips], where each clip begins, ascending; a clip lasts `Predictions.clip_len_sec`.
      foreground: float32 [n_clips], probability of the temporal region "Action", 0 to 1; None without that head.
      top_classes: int32 [n_clips, k], numbers of the most probable actions, the first one first; None without that head.
      top_probabilities: float32 [n_clips, k], theirs, 0 to 1, falling in each row; None without that head.
    """

    duration_sec: float
    damage: str
    segments: tuple[Segment, ...]
    start_sec: Float64[np.ndarray, " n"]
    foreground: Float32[np.ndarray, " n"] | None
    top_classes: Int32[np.ndarray, "n k"] | None
    top_probabilities: Float32[np.ndarray, "n k"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of one model for some videos.

    Attributes:
      checkpoint: name of the model's source.
      checkpoint_sha256: of its weights.
      gvf: how the global video features were made, in words; empty for a model without.
      heads: those of `HEADS` that the model has.
      labels: of the action classes, whose places are their numbers; empty without that head.
      thresholds: of the foreground, from each of which segments were read.
      clip_len_sec: how long a clip is.
      stride_sec: from one clip's start to the next's.
      videos: by name.
    """

    checkpoint: str
    checkpoint_sha256: str
    gvf: str
    heads: tuple[str, ...]
    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    clip_len_sec: float
    stride_sec: float
    videos: Mapping[str, Video]


def write(path: str | Path, predictions: Predictions) -> None:
    """Writes a file of predictions, whole or not at all: probabilities to five decimals, starts of clips to the millisecond.

    Raises:
      ValueError: the file would be larger than `read` accepts.
      OSError: it can't be written.
    """
    page = {
        "version": VERSION,
        "results": {name: [_segment_page(item) for item in video.segments] for name, video in predictions.videos.items()},
        "external_data": {
            "used": True,
            "details": f"{READING} Made with {predictions.checkpoint}; what that was trained on is not known here.",
        },
        "tsp_jax": {
            "format_version": FORMAT_VERSION,
            "tsp_jax_version": version.__version__,
            "checkpoint": predictions.checkpoint,
            "checkpoint_sha256": predictions.checkpoint_sha256,
            "gvf": predictions.gvf,
            "heads": predictions.heads,
            "labels": predictions.labels,
            "thresholds": predictions.thresholds,
            "clip_len_sec": predictions.clip_len_sec,
            "stride_sec": predictions.stride_sec,
            "videos": {name: _video_page(video) for name, video in predictions.videos.items()},
        },
    }
    text = json.dumps(page, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.encode(errors="backslashreplace")  # JSON's own escape, for paths in messages that are not UTF-8
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(
            f"{path}: {len(text) / 1e6:.0f} MB of predictions, expected at most {MAX_FILE_BYTES / 1e6:.0f}; "
            "predict the videos in parts"
        )
    with files.replacing(path) as temporary:
        temporary.write_bytes(text)


def read(path: str | Path) -> Predictions:
    """The predictions that `write` wrote to a file, checked from end to end.

    Raises:
      PredictionsError: the file is not there, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise PredictionsError(f"{path}: no such file; expected JSON that `python -m tsp_jax.predict` wrote")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise PredictionsError(f"{path}: {path.stat().st_size} bytes; expected at most {MAX_FILE_BYTES} of predictions")
    try:
        page = json.loads(path.read_bytes().decode(), parse_constant=_no_constant)
        return _predictions(page)
    except (ValueError, RecursionError) as error:  # JSON's and UTF-8's among them
        raise PredictionsError(f"{path}: not what `python -m tsp_jax.predict` writes ({error}); make it anew") from error


def _segment_page(item: Segment) -> dict[str, Any]:
    times = [round(item.start_sec, 6), round(item.end_sec, 6)]
    return {"label": item.label, "score": round(item.score, 6), "segment": times}


def _video_page(video: Video) -> dict[str, Any]:
    return {
        "duration_sec": round(video.duration_sec, 6),
        "damage": video.damage[:_MAX_TEXT],
        "start_sec": [round(value, 3) for value in video.start_sec.tolist()],
        "foreground": _rounded(video.foreground),
        "top_classes": None if video.top_classes is None else video.top_classes.tolist(),
        "top_probabilities": _rounded(video.top_probabilities),
    }


def _rounded(probabilities: np.ndarray | None) -> list[Any] | None:
    # In float64: of float32 a rounded number would be written with all the digits of its error.
    return None if probabilities is None else np.round(probabilities.astype(np.float64), 5).tolist()


def _predictions(page: object) -> Predictions:
    top = _object(page, "the page")
    about = _object(_field(top, "tsp_jax", "the page"), "tsp_jax")
    version = _field(about, "format_version", "tsp_jax")
    if version != FORMAT_VERSION:
        raise ValueError(f"format version {version!r}; this tsp_jax reads {FORMAT_VERSION}")
    heads = _texts(about, "heads", len(HEADS))
    if not heads or heads != tuple(head for head in HEADS if head in heads):
        raise ValueError(f"heads: expected one or both of {HEADS}, in this order; found {heads}")
    labels = _texts(about, "labels", MAX_LABELS)
    if bool(labels) != ("action" in heads) or len(set(labels)) < len(labels):
        raise ValueError(f"labels: expected distinct ones with a head of actions, none without; found {len(labels)}")
    found = _object(_field(about, "videos", "tsp_jax"), "videos")
    results = _object(_field(top, "results", "the page"), "results")
    if found.keys() != results.keys():
        raise ValueError(f"results has {len(results)} videos and tsp_jax {len(found)}; expected the same ones")
    predictions = Predictions(
        checkpoint=_text(about, "checkpoint", "tsp_jax"),
        checkpoint_sha256=_text(about, "checkpoint_sha256", "tsp_jax"),
        gvf=_text(about, "gvf", "tsp_jax"),
        heads=heads,
        labels=labels,
        thresholds=tuple(_numbers(_field(about, "thresholds", "tsp_jax"), "thresholds", 0, 1, limit=100).tolist()),
        clip_len_sec=_positive(about, "clip_len_sec", "tsp_jax"),
        stride_sec=_positive(about, "stride_sec", "tsp_jax"),
        videos={},
    )
    videos = {name: _video(_object(item, name), results[name], name, predictions) for name, item in found.items()}
    return dataclasses.replace(predictions, videos=videos)


def _video(page: Mapping[str, Any], result: object, name: str, of: Predictions) -> Video:
    duration_sec = _positive(page, "duration_sec", name)
    where = f"{name}: start_sec"
    starts = _numbers(_field(page, "start_sec", name), where, 0, duration_sec + _ROUNDED, limit=clips.MAX_RESAMPLED)
    if np.any(np.diff(starts) < 0):
        raise ValueError(f"{where}: expected times that ascend")
    foreground = classes = probabilities = None
    if "temporal_region" in of.heads:
        foreground = _numbers(_field(page, "foreground", name), f"{name}: foreground", 0, 1, limit=len(starts))
        foreground = foreground.astype(np.float32)
        _same_length(foreground, starts, f"{name}: foreground")
    if "action" in of.heads:
        classes = _rows(page, "top_classes", name, len(of.labels) - 1, len(starts)).astype(np.int32)
        probabilities = _rows(page, "top_probabilities", name, 1, len(starts)).astype(np.float32)
        if probabilities.shape != classes.shape or np.any(np.diff(probabilities) > 0):
            raise ValueError(f"{name}: top_probabilities: expected one for each of top_classes, falling in a row")
    if not isinstance(result, list) or len(result) > _MAX_SEGMENTS:
        raise ValueError(f"results: {name}: expected a list of at most {_MAX_SEGMENTS} segments")
    known = frozenset(of.labels or (groundtruth.ACTION,))
    found = tuple(_segment(item, f"results: {name}", known, duration_sec) for item in result)
    return Video(duration_sec, _text(page, "damage", name), found, starts, foreground, classes, probabilities)


def _segment(page: object, where: str, labels: frozenset[str], duration_sec: float) -> Segment:
    item = _object(page, where)
    label = _text(item, "label", where)
    if label not in labels:
        raise ValueError(f"{where}: label {label!r} is none of the model's")
    (score,) = _numbers([_field(item, "score", where)], f"{where}: score", 0, 1, limit=1).tolist()
    times = _numbers(_field(item, "segment", where), f"{where}: segment", 0, duration_sec + _ROUNDED, limit=2).tolist()
    if len(times) != 2 or times[0] >= times[1]:
        raise ValueError(f"{where}: segment: expected [start, end], found {times}")
    return Segment(label, score, *times)


def _rows(page: Mapping[str, Any], key: str, name: str, highest: float, count: int) -> Float64[np.ndarray, "n k"]:
    """Rows of one length of numbers from 0 to the highest."""
    rows, where = _field(page, key, name), f"{name}: {key}"
    if not isinstance(rows, list) or len(rows) != count:
        raise ValueError(f"{where}: expected a row for each of {count} clips")
    lengths = {len(row) if isinstance(row, list) else 0 for row in rows}
    if count and (len(lengths) > 1 or not 1 <= max(lengths) <= MAX_TOP_CLASSES):
        raise ValueError(f"{where}: expected rows of one length, 1 to {MAX_TOP_CLASSES}")
    flat = [value for row in rows for value in row]
    found = _numbers(flat, where, 0, highest, limit=len(flat)).reshape(count, -1 if count else 1)
    if key == "top_classes" and np.any(found != np.floor(found)):
        raise ValueError(f"{where}: expected whole numbers")
    return found


def _numbers(values: object, where: str, lowest: float, highest: float, *, limit: int) -> Float64[np.ndarray, " n"]:
    """A list's numbers, each within bounds."""
    if not isinstance(values, list) or len(values) > limit:
        raise ValueError(f"{where}: expected a list of at most {limit} numbers")
    if not all(type(value) in (int, float) and lowest <= value <= highest for value in values):
        raise ValueError(f"{where}: expected numbers from {lowest:g} to {highest:g}")
    return np.array(values, np.float64)


def _same_length(found: np.ndarray, starts: np.ndarray, where: str) -> None:
    if len(found) != len(starts):
        raise ValueError(f"{where}: {len(found)} numbers; expected one for each of {len(starts)} clips")


def _positive(page: Mapping[str, Any], key: str, where: str) -> float:
    value = _field(page, key, where)
    if type(value) not in (int, float) or not (0 < value <= clips.MAX_RESAMPLED and math.isfinite(value)):
        raise ValueError(f"{where}: {key}: expected seconds above 0")
    return float(value)


def _texts(page: Mapping[str, Any], key: str, limit: int) -> tuple[str, ...]:
    values = _field(page, key, "tsp_jax")
    if not isinstance(values, list) or len(values) > limit:
        raise ValueError(f"{key}: expected a list of at most {limit} names")
    if not all(isinstance(value, str) and 0 < len(value) <= _MAX_TEXT for value in values):
        raise ValueError(f"{key}: expected names")
    return tuple(values)


def _text(page: Mapping[str, Any], key: str, where: str) -> str:
    value = _field(page, key, where)
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise ValueError(f"{where}: {key}: expected text")
    return value


def _object(page: object, where: str) -> dict[str, Any]:
    if not isinstance(page, dict):
        raise ValueError(f"{where}: expected an object, found {type(page).__name__}")
    return page


def _field(page: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in page:
        raise ValueError(f"{where} has no {key}")
    return page[key]


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"the number {text}")
