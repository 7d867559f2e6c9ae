"""Describes one video for a report: a row of the list, and pictures along the video's time."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from tsp_jax import clip_times, clips, features, groundtruth, predictions
from tsp_jax.report import figures
from tsp_jax.video import decoding, scanning

THUMBNAILS = 10  # number of frames in a strip
MATRIX_CLIPS = 200  # the largest number of rows of a matrix
LISTED_CLASSES = 5  # the largest number of predicted classes that are listed
LISTED_SEGMENTS = 20  # the largest number of predicted segments, and of annotated ones in the table
DRAWN_SEGMENTS = 200  # the largest number of segments that are drawn
LANES = 4  # the number of lanes in which overlapping segments are drawn
OTHER = -1  # the colour number of classes without a colour of their own, which are grey


@dataclasses.dataclass(frozen=True)
class Bar:
    """A segment on a scale of time.

    Attributes:
      left: the segment's start, in percent of the scale.
      width: the segment's length, in percent of the scale.
      lane: the lane in which the segment is drawn; -1 if there is no room for it.
      colour: the number of its class's colour, or `OTHER`.
      label: its class.
      start_sec: its start in seconds.
      end_sec: its end in seconds.
      score: its score; None for an annotated segment.
    """

    left: float
    width: float
    lane: int
    colour: int
    label: str
    start_sec: float
    end_sec: float
    score: float | None = None


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The similarity of a video's clips by one model.

    Attributes:
      model: the model's name.
      image: the picture as a data URI.
      low: the similarity that has the darkest shade.
      high: the similarity that has the lightest shade.
      every: the picture shows every n-th clip.
      start_sec: the time at the picture's left edge, in seconds.
      end_sec: the time at the picture's right edge, in seconds.
      bars: the annotated segments along the picture's edges.
    """

    model: str
    image: str
    low: float
    high: float
    every: int
    start_sec: float
    end_sec: float
    bars: list[Bar]


@dataclasses.dataclass(frozen=True)
class Probability:
    """The probability of foreground over time.

    Attributes:
      points: the points of the line, as SVG on a field of 1000 by 100.
      mean: the mean probability, 0 to 1.
      highest: the highest probability.
      highest_sec: the time of the highest probability, in seconds.
    """

    points: str
    mean: float
    highest: float
    highest_sec: float


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The pictures of a video, each empty or None if there is no data for it.

    Attributes:
      truth: the annotated segments on the video's scale of time.
      predictions: the best predicted segments on the same scale.
      probability: the probability of foreground.
      strip: frames of the video as a data URI.
      matrices: the similarity of the clips, one for each model.
      ticks: marks of the scale: place in percent, and label.
    """

    truth: list[Bar]
    predictions: list[Bar]
    probability: Probability | None
    strip: str
    matrices: list[Matrix]
    ticks: list[tuple[float, str]]


@dataclasses.dataclass(frozen=True)
class Part:
    """All that the page shows of a video.

    Attributes:
      name: the video's name.
      duration_sec: its length in seconds.
      clips: number of its clips.
      actions: number of annotated actions; None without a ground truth.
      predicted: number of predicted segments; None without predictions.
      classes: the predicted classes of the clips and their probabilities, the highest first.
      pictures: its pictures; None for a video that is only listed.
    """

    name: str
    duration_sec: float
    clips: int
    actions: int | None
    predicted: int | None
    classes: list[tuple[str, float]]
    pictures: Pictures | None


def describe(
    by_model: Mapping[str, features.VideoFeatures],
    truth: Sequence[groundtruth.AnnotatedSegment] | None,
    predicted: predictions.Predictions | None,
    colours: Mapping[str, int],
    strip: str | None,
) -> Part:
    """Returns all that the page shows of a video.

    Args:
      by_model: the video's features by the name of the model; there is at least one.
      truth: the video's annotated segments.
      predicted: predictions of this video and others.
      colours: the number of each class's colour; a class without one gets `OTHER`.
      strip: the video's frames as a data URI, or empty; None for a video without pictures.
    """
    found = next(iter(by_model.values()))
    actions = None if truth is None else [item for item in truth if item.temporal_region == groundtruth.ACTION]
    said = predicted.videos.get(found.name) if predicted else None
    part = Part(
        name=found.name,
        duration_sec=clip_times.duration_sec(found),
        clips=len(found.features),
        actions=None if actions is None else len(actions),
        predicted=len(said.segments) if said else None,
        classes=_classes(said, predicted.labels) if said and predicted else [],
        pictures=None,
    )
    if strip is None:
        return part
    spans = [(item.start_sec, item.end_sec, item.action_label, None) for item in actions or []]
    best = [
        (item.start_sec, item.end_sec, item.label, item.score) for item in (said.segments[:LISTED_SEGMENTS] if said else ())
    ]
    matrices = [matrix(model, item, spans, colours) for model, item in by_model.items()]
    pictures = Pictures(
        truth=bars(spans, colours, 0.0, part.duration_sec),
        predictions=bars(best, colours, 0.0, part.duration_sec),
        probability=_probability(said, predicted.clip_len_sec, part.duration_sec) if said and predicted else None,
        strip=strip,
        matrices=[item for item in matrices if item],
        ticks=_ticks(part.duration_sec),
    )
    return dataclasses.replace(part, pictures=pictures)


def frames(path: Path) -> tuple[str, str]:
    """Returns frames of a video, evenly spaced in time, as a data URI, and what is damaged or missing (empty if nothing is).

    Raises:
      VideoError: the video can't be read.
    """
    scanned = scanning.scan(path)
    shown, reader = _read_frames(scanned)
    if reader.misdated:
        shown, reader = _read_frames(scanning.rescan(scanned))
    return figures.strip(shown), "; ".join(text for text in (reader.video.fault, reader.damage) if text)


def _read_frames(scanned: scanning.Scan) -> tuple[list[np.ndarray | None], decoding.Reader]:
    """Returns the frames in the middle of equal parts of a video, None for a lost one, and the reader that read them."""
    timeline = scanned.timeline
    middle_sec = (np.arange(THUMBNAILS) + 0.5) / THUMBNAILS * timeline.duration_sec
    chosen = clips.shown_at(timeline, middle_sec)
    needed = np.zeros(len(timeline.pts), bool)
    needed[chosen] = True
    reader = decoding.Reader(scanned, needed)
    found = dict(reader)
    return [found.get(number) for number in chosen.tolist()], reader


def finite(found: features.VideoFeatures) -> Bool[np.ndarray, " n"]:
    """Returns for each clip whether its features are all finite."""
    return np.all(np.isfinite(found.features), axis=1)


def time(seconds: float) -> str:
    """Returns seconds as text: `12.5 s` below a minute, and `2:05` above."""
    return f"{seconds:.1f} s" if seconds < 60 else _clock(seconds)


def bars(
    spans: Iterable[tuple[float, float, str, float | None]], colours: Mapping[str, int], start_sec: float, end_sec: float
) -> list[Bar]:
    """Returns segments (start, end, label, score) as bars on a scale of time. Overlapping segments lie in different lanes.

    Segments are cut off at the ends of the scale, and left out if they lie outside.
    """
    found: list[Bar] = []
    lanes: list[list[tuple[float, float]]] = [[] for _ in range(LANES)]
    scale = 100 / max(end_sec - start_sec, 1e-9)
    for begin, end, label, score in spans:
        left, right = max(begin, start_sec), min(end, end_sec)
        if right <= left:
            continue
        free = (place for place, taken in enumerate(lanes) if all(right <= a or left >= b for a, b in taken))
        lane = next(free, -1) if len(found) < DRAWN_SEGMENTS else -1
        if lane >= 0:
            lanes[lane].append((left, right))
        place, width = (left - start_sec) * scale, (right - left) * scale
        found.append(Bar(place, width, lane, colours.get(label, OTHER), label, begin, end, score))
    return found


def matrix(
    model: str,
    found: features.VideoFeatures,
    spans: Iterable[tuple[float, float, str, float | None]],
    colours: Mapping[str, int],
) -> Matrix | None:
    """Returns the cosine similarity of a video's clips, each with each; None if there are fewer than two clips."""
    numbers = clip_times.clip_numbers(found)
    if len(numbers) < 2:
        return None
    every = math.ceil((int(numbers[-1]) + 1) / MATRIX_CLIPS)
    kept = (numbers % every == 0) & finite(found)
    count = int(numbers[-1]) // every + 1
    rows = np.full((count, found.features.shape[1]), np.nan)
    rows[numbers[kept] // every] = found.features[kept]
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(length > 0, length, np.nan)
    values = unit @ unit.T
    different = values[np.isfinite(values) & ~np.eye(count, dtype=bool)]
    if not len(different):
        return None
    low, high = (float(value) for value in np.percentile(different, (1, 99)))
    # A clip shows the time around its middle.
    timing = clip_times.row_timing(found)
    hop_sec = every * timing.stride / timing.fps
    start_sec = timing.offset / timing.fps + (timing.window / timing.fps - hop_sec) / 2
    end_sec = start_sec + count * hop_sec
    edge = bars(spans, colours, start_sec, end_sec)
    return Matrix(model, figures.matrix(values, low, high), low, high, every, start_sec, end_sec, edge)


def _classes(said: predictions.Video, labels: Sequence[str]) -> list[tuple[str, float]]:
    """Returns the classes of highest mean probability over a video's clips, each clip weighted by its foreground."""
    if said.top_classes is None or said.top_probabilities is None or not len(said.top_classes):
        return []
    weight = np.ones(len(said.top_classes)) if said.foreground is None else said.foreground.astype(np.float64)
    share = weight / max(weight.sum(), 1e-12)
    sums = np.bincount(said.top_classes.ravel(), (said.top_probabilities * share[:, None]).ravel(), len(labels))
    order = [int(place) for place in np.argsort(-sums, kind="stable")[:LISTED_CLASSES]]
    return [(labels[place], float(sums[place])) for place in order if sums[place] > 0]


def _probability(said: predictions.Video, clip_len_sec: float, duration_sec: float) -> Probability | None:
    """Returns the probability of foreground over time; None if it is not predicted. Each clip is drawn at its middle."""
    if said.foreground is None or not len(said.foreground):
        return None
    middle_sec, values = said.start_sec + clip_len_sec / 2, said.foreground.astype(np.float64)
    best = int(np.argmax(values))
    x, y = figures.thinned(1000 * middle_sec / duration_sec, 100 * (1 - values))
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return Probability(points, float(values.mean()), float(values[best]), float(middle_sec[best]))


def _ticks(duration_sec: float) -> list[tuple[float, str]]:
    """Returns the marks on a video's scale of time: place in percent, and label."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
    step = next((step for step in steps if duration_sec / step <= 8), 3600 * math.ceil(duration_sec / 3600 / 8))
    marks = np.arange(0, 0.95 * duration_sec, step)  # a label has to fit before the end
    return [(100 * mark / duration_sec, f"{mark:.0f} s" if duration_sec < 120 else _clock(mark)) for mark in marks.tolist()]


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
