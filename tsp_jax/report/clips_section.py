"""What a report shows of the clips of all videos together: their projection to two dimensions, and a linear probe."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from tsp_jax import clip_times, features, groundtruth, probe
from tsp_jax.report import figures, video_section

DRAWN_CLIPS = 5_000  # a projection draws about as many at most
FOREGROUND = figures.COLOURS[0]
# Numbers for clips that have no class: those of background, and those that lie in no segment of the ground truth.
BACKGROUND, NEITHER = -1, -2
_MAX_WIDTH = 4096  # the largest number of features of a clip


@dataclasses.dataclass(frozen=True)
class Projection:
    """The clips of a model on their first two principal components.

    Attributes:
      model: the name that the page gives the model.
      clips: number of clips drawn.
      shares: the share of the variance that each component holds, 0 to 1.
      regions: the picture as a data URI, coloured by temporal region; in one colour without a ground truth.
      classes: the picture as a data URI, coloured by class of action; empty without a ground truth.
    """

    model: str
    clips: int
    shares: tuple[float, float]
    regions: str
    classes: str


@dataclasses.dataclass(frozen=True)
class Probe:
    """The result of a linear probe of a model.

    Attributes:
      model: the name that the page gives the model.
      fitted_videos: number of videos that the probe is fitted on.
      fitted_clips: number of clips that the probe is fitted on.
      videos: number of videos that the probe is measured on.
      score: the shares of correctly classified clips.
    """

    model: str
    fitted_videos: int
    fitted_clips: int
    videos: int
    score: probe.Score


class Sample:
    """Clips of all videos of a model, with their classes in the ground truth. Clips that are not finite are left out.

    Attributes:
      model: the name that the page gives the model.
    """

    def __init__(self, model: str, path: Path, classes: Sequence[str], limit: int):
        """Makes an empty sample.

        Args:
          model: the name that the page gives the model.
          path: the model's file of features.
          classes: the labels of the page's classes; a class's number is its place here.
          limit: the largest number of clips of one video, approximately; at least one is taken.
        """
        self.model, self._path = model, path
        self._numbers = {label: number for number, label in enumerate(classes)}
        self._limit = max(limit, 1)
        self._rows: dict[str, Float32[np.ndarray, "n f"]] = {}
        self._labels: dict[str, Int64[np.ndarray, " n"]] = {}

    def add(self, found: features.VideoFeatures, truth: Sequence[groundtruth.AnnotatedSegment] | None) -> list[str]:
        """Adds at most about `limit` clips of a video, evenly spaced. Returns notes of what is odd about the video.

        Raises:
          ValueError: the features have another width than those of the videos before.
        """
        where, width = f"{self._path} (video {found.name!r})", found.features.shape[1]
        expected = next(iter(self._rows.values())).shape[1] if self._rows else width
        if width != expected or width > _MAX_WIDTH:
            raise ValueError(
                f"{where}: features of {width} numbers; expected those of one model, {expected} as in the videos before, and "
                f"at most {_MAX_WIDTH}"
            )
        notes: list[str] = []
        duration_sec = clip_times.duration_sec(found)
        if truth and abs(truth[0].video_duration_sec - duration_sec) > max(1.0, 0.02 * duration_sec):
            notes.append(
                f"{where}: {truth[0].video_duration_sec:.1f} s by the ground truth, {duration_sec:.1f} s by the features; do "
                "they belong to the same video?"
            )
        times = clip_times.clip_times(found)
        labels = np.full(len(found.features), NEITHER)
        for item in truth or []:
            # Classes of the videos that a probe is fitted on need no number of their own.
            number = self._numbers.get(item.action_label, 0) if item.temporal_region == groundtruth.ACTION else BACKGROUND
            labels[groundtruth.clips_within(*times, item) & (labels == NEITHER)] = number
        finite = video_section.finite(found)
        if not np.all(finite):
            notes.append(
                f"{where}: {np.count_nonzero(~finite)} of {len(finite)} clips hold NaN or infinity, the first is row "
                f"{int(np.argmin(finite))}; they are left out"
            )
        kept = np.arange(0, len(finite), math.ceil(max(len(finite), 1) / self._limit))
        kept = kept[finite[kept]]
        self._rows[found.name], self._labels[found.name] = found.features[kept], labels[kept]
        return notes

    def of(self, names: Sequence[str]) -> tuple[Float32[np.ndarray, "n f"], Int64[np.ndarray, " n"]]:
        """Returns the clips of these videos, and for each clip the number of its class, `BACKGROUND` or `NEITHER`."""
        known = [name for name in names if name in self._rows]
        if not known:
            return np.zeros((0, 1), np.float32), np.zeros(0, np.int64)
        return np.concatenate([self._rows[name] for name in known]), np.concatenate([self._labels[name] for name in known])

    def regions(self, names: Sequence[str]) -> tuple[Float32[np.ndarray, "n f"], Bool[np.ndarray, " n"]]:
        """Returns the clips of these videos that lie in one segment, and whether that segment is an action."""
        rows, labels = self.of(names)
        return rows[labels != NEITHER], labels[labels != NEITHER] >= 0


def project(sample: Sample, names: Sequence[str], has_truth: bool) -> Projection | None:
    """Returns the first two principal components of the clips of these videos; None if there are too few clips."""
    found, labels = sample.of(names)
    if len(found) < 3 or found.shape[1] < 2:
        return None
    rows = found.astype(np.float64) - found.mean(0, np.float64)
    variances, axes = np.linalg.eigh(rows.T @ rows)
    axes = axes[:, :-3:-1]
    axes = axes * np.sign(axes[np.argmax(np.abs(axes), axis=0), [0, 1]])  # an axis has no sign of its own
    total = max(float(variances.sum()), 1e-12)
    shares = float(variances[-1]) / total, float(variances[-2]) / total
    if has_truth:
        rows, labels = rows[labels != NEITHER], labels[labels != NEITHER]
    step = math.ceil(max(len(rows), 1) / DRAWN_CLIPS)
    places, drawn = (rows @ axes)[::step], labels[::step]
    if not len(places):
        return None
    if not has_truth:
        picture = figures.scatter([figures.Points(places, FOREGROUND)])
        return Projection(sample.model, len(places), shares, picture, "")
    regions = [
        figures.Points(places[drawn == BACKGROUND], figures.GREY, cross=True),
        figures.Points(places[drawn >= 0], FOREGROUND),
    ]
    others = len(figures.COLOURS)
    classes = [figures.Points(places[drawn >= others], figures.GREY)]
    classes += [figures.Points(places[drawn == number], colour) for number, colour in enumerate(figures.COLOURS)]
    return Projection(sample.model, len(places), shares, figures.scatter(regions), figures.scatter(classes))


def measure(sample: Sample, fit_on: Sequence[str], measure_on: Sequence[str]) -> tuple[Probe | None, list[str]]:
    """Fits a linear probe on some videos and measures it on others.

    Returns:
      The result, or None and a note that says why there is none.
    """
    (train, train_labels), (test, test_labels) = sample.regions(fit_on), sample.regions(measure_on)
    for labels, which in ((train_labels, "fitted"), (test_labels, "measured")):
        if not 0 < np.count_nonzero(labels) < len(labels):
            note = (
                f"no linear probe of {sample.model}: of {len(labels)} clips that it would be {which} on, "
                f"{np.count_nonzero(labels)} are of actions; it needs clips of actions and of background"
            )
            return None, [note]
    found = probe.score(train.astype(np.float64), train_labels, test.astype(np.float64), test_labels)
    return Probe(sample.model, len(fit_on), len(train), len(measure_on), found), []
