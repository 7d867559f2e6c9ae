"""The JSON file of predictions: segments in ActivityNet's result format, and what the model predicts for each clip.

`results`, `version` and `external_data` are ActivityNet's keys, so its evaluation reads the file unchanged. The key `tsp_jax`
holds the rest: the model, the rule, and the clips of each video. `heads` lists the tasks of the model's heads.

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
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np
from jaxtyping import Float, Float32, Float64, Int32

from tsp_jax import clip_segments, clips, groundtruth
from tsp_jax.system import errors, files, version

FORMAT_VERSION = 1
VERSION = "VERSION 1.3"  # the version of ActivityNet's annotations, which its evaluation expects
TASKS = ("action", "temporal_region")  # what a head can predict, in the order of the heads
READING = (
    "Segments are read from a clip classifier's scores by a plain rule, clip by clip, and are not those of a trained detector "
    "of actions."
)
MAX_FILE_BYTES = 1 << 29  # some 50,000 videos of two minutes; in memory it takes five times as much
MAX_LABELS = 1 << 16
MAX_TOP_CLASSES = 64
_MAX_TEXT = 1 << 12
_MAX_SEGMENTS = 1 << 20  # for one video
_ROUNDED_SEC = 1e-3  # starts of clips are written to the millisecond


class PredictionsError(errors.UserError):
    """A file of predictions can't be used. The message says what was expected, what was found, and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
    """The predictions for one video.

    Attributes:
      duration_sec: the length of the video in seconds.
      damage: why clips are missing; empty if none is.
      segments: the predicted segments, in order of falling score.
      start_sec: float64 [n_clips], the start of each clip in seconds, ascending; a clip lasts `Predictions.clip_len_sec`.
      foreground: float32 [n_clips], the probability of the temporal region "Action"; None if the model predicts none.
      top_classes: int32 [n_clips, k], numbers of the most probable actions, best first; None if the model predicts none.
      top_probabilities: float32 [n_clips, k], the probabilities of `top_classes`, falling in each row; None likewise.
    """

    duration_sec: float
    damage: str
    segments: tuple[clip_segments.Segment, ...]
    start_sec: Float64[np.ndarray, " n"]
    foreground: Float32[np.ndarray, " n"] | None
    top_classes: Int32[np.ndarray, "n k"] | None
    top_probabilities: Float32[np.ndarray, "n k"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of one model for some videos.

    Attributes:
      checkpoint: the name of the model's source.
      checkpoint_sha256: SHA-256 of the model's weights.
      gvf: how the global video features were made, in words; empty if the model reads none.
      tasks: the tasks of the model's heads, from `TASKS`.
      labels: the names of the action classes, in the order of their numbers; empty if the model predicts no actions.
      thresholds: the foreground thresholds, each of which gave segments.
      clip_len_sec: the length of a clip in seconds.
      stride_sec: the time from one clip's start to the next clip's start in seconds.
      videos: the predictions for each video, by its name.
    """

    checkpoint: str
    checkpoint_sha256: str
    gvf: str
    tasks: tuple[str, ...]
    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    clip_len_sec: float
    stride_sec: float
    videos: Mapping[str, Video]


def write(path: str | Path, predictions: Predictions) -> None:
    """Writes a file of predictions, whole or not at all. Probabilities keep five decimals, starts of clips are in milliseconds.

    Raises:
      ValueError: the file would be larger than `read` accepts.
      OSError: the file can't be written.
    """
    content = {
        "version": VERSION,
        "results": {name: [_segment_json(item) for item in video.segments] for name, video in predictions.videos.items()},
        "external_data": {
            "used": True,
            "details": f"{READING} Made with {predictions.checkpoint}, whose training data is not known here.",
        },
        "tsp_jax": {
            "format_version": FORMAT_VERSION,
            "tsp_jax_version": version.__version__,
            "checkpoint": predictions.checkpoint,
            "checkpoint_sha256": predictions.checkpoint_sha256,
            "gvf": predictions.gvf,
            "heads": predictions.tasks,
            "labels": predictions.labels,
            "thresholds": predictions.thresholds,
            "clip_len_sec": predictions.clip_len_sec,
            "stride_sec": predictions.stride_sec,
            "videos": {name: _video_json(video) for name, video in predictions.videos.items()},
        },
    }
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.encode(errors="backslashreplace")  # JSON's own escape, because a path in a message may not be UTF-8
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(
            f"{path}: {len(text) / 1e6:.0f} MB of predictions, expected at most {MAX_FILE_BYTES / 1e6:.0f}; "
            "predict the videos in parts"
        )
    with files.replacing(path) as temporary:
        temporary.write_bytes(text)


def read(path: str | Path) -> Predictions:
    """Returns the predictions that `write` wrote to a file, after a check of every value.

    Raises:
      PredictionsError: the file is absent, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise PredictionsError(f"{path}: no such file; expected JSON that `python -m tsp_jax.predict` wrote")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise PredictionsError(f"{path}: {path.stat().st_size} bytes; expected at most {MAX_FILE_BYTES} of predictions")
    try:
        # msgspec's own parser would refuse the escapes of paths that are not UTF-8, so it only checks what json has parsed.
        return _predictions(json.loads(path.read_bytes().decode(), parse_constant=_no_constant))
    except (ValueError, RecursionError) as error:  # errors of JSON, UTF-8 and msgspec are ValueErrors
        raise PredictionsError(f"{path}: not what `python -m tsp_jax.predict` writes ({error}); make it again") from error


def _segment_json(item: clip_segments.Segment) -> dict[str, Any]:
    times = [round(item.start_sec, 6), round(item.end_sec, 6)]
    return {"label": item.label, "score": round(item.score, 6), "segment": times}


def _video_json(video: Video) -> dict[str, Any]:
    return {
        "duration_sec": round(video.duration_sec, 6),
        "damage": video.damage[:_MAX_TEXT],
        "start_sec": [round(value, 3) for value in video.start_sec.tolist()],
        "foreground": _rounded(video.foreground),
        "top_classes": None if video.top_classes is None else video.top_classes.tolist(),
        "top_probabilities": _rounded(video.top_probabilities),
    }


def _rounded(probabilities: np.ndarray | None) -> list[Any] | None:
    # Rounding is done in float64, because a rounded float32 would be written with all the digits of its error.
    return None if probabilities is None else np.round(probabilities.astype(np.float64), 5).tolist()


# What the file holds, as msgspec checks it: types, required fields, bounds, lengths. Other fields are ignored.
_Text = Annotated[str, msgspec.Meta(max_length=_MAX_TEXT)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=_MAX_TEXT)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Length = Annotated[float, msgspec.Meta(gt=0, le=clips.MAX_RESAMPLED)]
_Clips = msgspec.Meta(max_length=clips.MAX_RESAMPLED)
_Top = msgspec.Meta(min_length=1, max_length=MAX_TOP_CLASSES)


class _Version(msgspec.Struct):
    format_version: int


class _VersionedFile(msgspec.Struct):
    tsp_jax: _Version


class _Model(msgspec.Struct):
    checkpoint: _Text
    checkpoint_sha256: _Text
    gvf: _Text
    heads: Annotated[tuple[str, ...], msgspec.Meta(max_length=len(TASKS))]
    labels: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=MAX_LABELS)]
    thresholds: Annotated[tuple[_Share, ...], msgspec.Meta(max_length=100)]
    clip_len_sec: _Length
    stride_sec: _Length
    videos: dict[str, Any]


class _File(msgspec.Struct):
    tsp_jax: _Model
    results: dict[str, Any]


class _Video(msgspec.Struct):
    duration_sec: _Length
    damage: _Text
    start_sec: Annotated[list[Annotated[float, msgspec.Meta(ge=0)]], _Clips]
    foreground: Annotated[list[_Share], _Clips] | None
    top_classes: Annotated[list[Annotated[list[int], _Top]], _Clips] | None
    top_probabilities: Annotated[list[Annotated[list[_Share], _Top]], _Clips] | None


class _Segment(msgspec.Struct):
    label: _Text
    score: _Share
    segment: tuple[float, float]


_Segments = Annotated[list[_Segment], msgspec.Meta(max_length=_MAX_SEGMENTS)]


def _predictions(content: object) -> Predictions:
    found = msgspec.convert(content, _VersionedFile).tsp_jax.format_version
    if found != FORMAT_VERSION:  # checked first, because the rest may differ between formats
        raise ValueError(f"format version {found}; this tsp_jax reads {FORMAT_VERSION}")
    file = msgspec.convert(content, _File)
    model = file.tsp_jax
    if not model.heads or model.heads != tuple(task for task in TASKS if task in model.heads):
        raise ValueError(f"heads: expected one or both of {TASKS}, in this order; found {model.heads}")
    if bool(model.labels) != ("action" in model.heads) or len(set(model.labels)) < len(model.labels):
        raise ValueError(f"labels: expected distinct names for a head of actions, none without; found {len(model.labels)}")
    if model.videos.keys() != file.results.keys():
        raise ValueError(f"results has {len(file.results)} videos and tsp_jax {len(model.videos)}; expected the same ones")
    return Predictions(
        checkpoint=model.checkpoint,
        checkpoint_sha256=model.checkpoint_sha256,
        gvf=model.gvf,
        tasks=model.heads,
        labels=model.labels,
        thresholds=model.thresholds,
        clip_len_sec=model.clip_len_sec,
        stride_sec=model.stride_sec,
        videos={name: _video(name, item, file.results[name], model) for name, item in model.videos.items()},
    )


def _video(name: str, content: object, result: object, model: _Model) -> Video:
    video: _Video = _converted(content, _Video, name)
    starts, latest = np.array(video.start_sec, np.float64), video.duration_sec + _ROUNDED_SEC
    if np.any(np.diff(starts) < 0) or np.any(starts > latest):
        raise ValueError(f"{name}: start_sec: expected times that ascend, at most {latest:g}")
    foreground = classes = probabilities = None
    if "temporal_region" in model.heads:
        foreground = _array(video.foreground, f"{name}: foreground", len(starts)).astype(np.float32)
    if "action" in model.heads:
        classes = _rows(video.top_classes, f"{name}: top_classes", len(starts))
        if np.any(classes < 0) or np.any(classes >= len(model.labels)):
            raise ValueError(f"{name}: top_classes: expected numbers from 0 to {len(model.labels) - 1}")
        classes = classes.astype(np.int32)
        probabilities = _rows(video.top_probabilities, f"{name}: top_probabilities", len(starts)).astype(np.float32)
        if probabilities.shape != classes.shape or np.any(np.diff(probabilities) > 0):
            raise ValueError(f"{name}: top_probabilities: expected one for each of top_classes, falling in a row")
    known = frozenset(model.labels or (groundtruth.ACTION,))
    segments = tuple(
        _segment(item, f"results: {name}", known, latest) for item in _converted(result, _Segments, f"results: {name}")
    )
    return Video(video.duration_sec, video.damage, segments, starts, foreground, classes, probabilities)


def _segment(item: _Segment, where: str, labels: frozenset[str], latest: float) -> clip_segments.Segment:
    if item.label not in labels:
        raise ValueError(f"{where}: label {item.label!r} is none of the model's")
    start_sec, end_sec = item.segment
    if not 0 <= start_sec < end_sec <= latest:
        raise ValueError(f"{where}: segment: expected [start, end] within 0 to {latest:g}, found {list(item.segment)}")
    return clip_segments.Segment(item.label, item.score, start_sec, end_sec)


def _rows(rows: list[Any] | None, where: str, count: int) -> Float[np.ndarray, "n k"]:
    """Returns one row of numbers for each clip; all rows have the same length."""
    if len({len(row) for row in rows or []}) > 1:
        raise ValueError(f"{where}: expected rows of one length")
    return _array(rows, where, count).reshape(count, -1 if count else 1)


def _array(values: list[Any] | None, where: str, count: int) -> Float[np.ndarray, "..."]:
    if values is None or len(values) != count:
        raise ValueError(f"{where}: expected one for each of {count} clips, found {None if values is None else len(values)}")
    return np.array(values, np.float64)


def _converted(content: object, kind: Any, where: str) -> Any:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}: {error}") from error


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"the number {text}")
