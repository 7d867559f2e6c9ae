"""What the report shows of features, ground truth, predictions and training, and the page itself as HTML.

Names and numbers come from files of others. They are escaped where they enter the page, and bounded in size.
"""

import argparse
import collections
import dataclasses
import importlib.resources
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Bool, Float32, Int64

from tsp_jax import clip_times, features, groundtruth, linear_probe, predictions, version, video_list
from tsp_jax.report import figures, training_section, video_section
from tsp_jax.system import progress
from tsp_jax.video import scanning

SAMPLED_CLIPS = 50_000  # the projection and the probe are of about as many at most, evenly from all videos
DRAWN_CLIPS = 5_000  # and as many are drawn
LISTED_VIDEOS = 2_000
FOREGROUND = figures.COLOURS[0]
_BACKGROUND, _NEITHER = -1, -2  # in place of a class's number
_MAX_WIDTH = 4096  # numbers in a clip's features
# Controls, halves of letters, and marks that turn the direction of writing: no name needs them, and they can disguise one.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Model:
    """A file of features: the name that the page gives it, the names of its videos, and what made it."""

    name: str
    path: Path
    videos: list[str]
    made_by: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Projection:
    """All clips of a model in two dimensions: the pictures, what they show of the whole."""

    model: str
    clips: int
    shares: tuple[float, float]
    regions: str
    classes: str


@dataclasses.dataclass(frozen=True)
class Probe:
    """The result of a linear probe of a model."""

    model: str
    fitted_videos: int
    fitted_clips: int
    videos: int
    score: linear_probe.Score


@dataclasses.dataclass
class Page:
    """The values that the template shows."""

    title: str = ""
    models: list[Model] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    unread: int = 0
    videos: list[video_section.Part] = dataclasses.field(default_factory=list)
    classes: list[str] = dataclasses.field(default_factory=list)
    projections: list[Projection] = dataclasses.field(default_factory=list)
    probes: list[Probe] = dataclasses.field(default_factory=list)
    probe_split: str = ""
    has_truth: bool = False
    has_predictions: bool = False
    predicted_by: str = ""
    reading: str = predictions.READING
    training: training_section.Training | None = None

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Colours of classes, with their names."""
        known = list(zip(figures.COLOURS, self.classes, strict=False))
        others = len(self.classes) - len(known)
        return known + ([(figures.GREY, f"{others} other classes")] if others else [])


def render(page: Page) -> str:
    """The page as HTML. Every text in it is escaped, and rid of letters that can't be seen."""

    def cleaned(value: Any) -> Any:
        return _UNSEEN.sub("\ufffd", value) if type(value) is str else value  # and not the template's own Markup

    environment = jinja2.Environment(
        autoescape=True, finalize=cleaned, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["time"] = video_section.time
    source = importlib.resources.files("tsp_jax.report").joinpath("report.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        page=page,
        version=version.__version__,
        listed=page.videos[:LISTED_VIDEOS],
        listed_segments=video_section.LISTED_SEGMENTS,
        colours=figures.COLOURS,
        grey=figures.GREY,
        shades=figures.shades(9),
    )


# ------------------------------------------------------------------------------------------------------------- features


def of_features(options: argparse.Namespace) -> Page:
    """Returns a page that shows the files of --features and the files of the flags that go with it.

    Raises:
      FeatureFileError, PredictionsError, ValueError, OSError: a file can't be used, or doesn't belong to the others.
    """
    page = Page(title="Features of videos")
    page.models = _models(options.features, options.names)
    every_name = sorted({name for model in page.models for name in model.videos})
    for model in page.models:
        page.notes += _missing("{} have no features in " + str(model.path), every_name, model.videos)
    fitted = _truth(page, options.probe_groundtruth, every_name)
    names = [name for name in every_name if name not in fitted]
    truth = _truth(page, options.groundtruth, names)
    if options.groundtruth:
        page.notes += _missing("{} have no segments in " + options.groundtruth, names, truth)
    predicted = _predictions(page, options.predictions, names, every_name)
    pictured = set(names[: options.max_videos])
    paths = _paths(page, options.videos, sorted(pictured))
    page.has_truth, page.has_predictions = options.groundtruth is not None, options.predictions is not None
    count = collections.Counter(
        item.action_label for items in truth.values() for item in items if item.temporal_region == groundtruth.ACTION
    )
    page.classes = [label for label, _ in sorted(count.items(), key=lambda pair: (-pair[1], pair[0]))]
    colours = {label: place for place, label in enumerate(page.classes[: len(figures.COLOURS)])}

    samples = [Sample(model, page.classes, SAMPLED_CLIPS // len(every_name)) for model in page.models]
    for name in progress.each(every_name, "report", len(every_name)):
        by_model = {}
        for model, sample in zip(page.models, samples, strict=True):
            if name in model.videos:
                by_model[model.name] = features.read(model.path, name)
                page.notes += sample.add(by_model[model.name], truth.get(name) or fitted.get(name))
        if name not in fitted:
            strip = _frames(page, paths[name]) if name in paths else "" if name in pictured else None
            page.videos.append(video_section.describe(by_model, truth.get(name), predicted, colours, strip))

    for sample in samples:
        page.projections += _projection(page, sample, names)
    if options.groundtruth:
        both = sorted(set(truth).union(fitted).intersection(*(model.videos for model in page.models)))
        if fitted:
            fit_on, measured = [name for name in both if name in fitted], [name for name in both if name in truth]
            page.probe_split = "Fitted on the videos of --probe_groundtruth, measured on those of this page."
        else:
            fit_on, measured = both[::2], both[1::2]
            page.probe_split = (
                "The videos of this page were split in two by name: the probe is fitted on the first, third, fifth and so on, "
                "and measured on the others."
            )
        for sample in samples:
            page.probes += _probe(page, sample, fit_on, measured)
    return page


def _models(paths: Sequence[str], names: Sequence[str] | None) -> list[Model]:
    """The models, with names of their own.

    Raises:
      FeatureFileError: a path is not a file of features.
      ValueError: they have no videos, or none in common, or no names of their own.
    """
    stems = [Path(path).stem for path in paths]
    names = names or (stems if len(set(stems)) == len(stems) else list(paths))
    if len(set(names)) < len(names):
        raise ValueError(f"two models are called {collections.Counter(names).most_common(1)[0][0]!r}; give others by --names")
    models: list[Model] = []
    for name, path in zip(names, paths, strict=True):
        found = features.names(path)
        if not found:
            raise ValueError(f"{path}: expected features of videos, found none; extract some first")
        if models and not set(found) & set(models[0].videos):
            raise ValueError(
                f"{path} and {models[0].path} have no video in common: {found[0]!r}, … in one and "
                f"{models[0].videos[0]!r}, … in the other; give the features of the same videos"
            )
        run = features.read(path, found[0]).attributes
        made_by, sha256 = (str(run.get(key) or "") for key in ("checkpoint", "checkpoint_sha256"))
        models.append(Model(name, Path(path), found, made_by, sha256))
    return models


def _truth(page: Page, path: str | None, names: Sequence[str]) -> dict[str, list[groundtruth.AnnotatedSegment]]:
    """The segments of these videos, by name; nothing without a file.

    Raises:
      OSError, ValueError: the file can't be read, or is of other videos.
    """
    if path is None:
        return {}
    found = groundtruth.by_video(groundtruth.read_groundtruth(path))
    _check_belong(path, list(found), names)
    page.notes += _missing("{} of " + path + " have no features, and are left out", found, names)
    return {name: found[name] for name in names if name in found}


def _paths(page: Page, folder: str | None, names: Sequence[str]) -> dict[str, Path]:
    """The files of these videos, by name; nothing without a folder.

    Raises:
      OSError, ValueError: the folder can't be read, or holds other videos.
    """
    if folder is None:
        return {}
    found = {item.name: item.path for item in video_list.list_videos(folder) if not item.fault}
    if names:
        _check_belong(folder, list(found), names)
    page.notes += _missing("{} have no file in " + folder, names, found)
    return {name: found[name] for name in names if name in found}


def _predictions(
    page: Page, path: str | None, names: Sequence[str], every_name: Sequence[str]
) -> predictions.Predictions | None:
    """The predictions of these videos.

    Raises:
      PredictionsError, ValueError: the file can't be read, or is of other videos.
    """
    if path is None:
        return None
    found = predictions.read(path)
    _check_belong(path, list(found.videos), names)
    page.notes += _missing("{} have no predictions in " + path, names, found.videos)
    page.notes += _missing("{} of " + path + " have no features, and are left out", found.videos, every_name)
    page.predicted_by = ", ".join(model.name for model in page.models if model.sha256 == found.checkpoint_sha256)
    if not page.predicted_by:
        page.predicted_by = found.checkpoint
        page.notes.append(f"{path} was made by another model ({found.checkpoint}) than the features")
    return found


def _frames(page: Page, path: Path) -> str:
    """A strip of a video; what keeps it from being read is noted."""
    try:
        strip, damage = video_section.frames(path)
    except scanning.VideoError as error:
        page.notes.append(f"{path}: {error}; no frames of it are shown")
        page.unread += 1
        return ""
    if damage:
        page.notes.append(f"{path}: {damage}; its lost frames are grey")
    return strip


def _check_belong(path: str, found: Sequence[str], names: Sequence[str]) -> None:
    """Checks that a file belongs to these videos.

    Raises:
      ValueError: the file is of other videos.
    """
    if not set(found) & set(names):
        raise ValueError(
            f"{path}: expected some of the {len(names)} videos that have features{f' ({names[0]!r}, …)' if names else ''}, "
            f"found {repr(found[0]) + ', …' if found else 'none'}; give the one that belongs to them"
        )


def _missing(what: str, wanted: Iterable[str], found: Iterable[str]) -> list[str]:
    """A note of the names that are not among those found; `{}` of the text stands for how many."""
    absent = sorted(set(wanted) - set(found))
    if not absent:
        return []
    count = "1 video" if len(absent) == 1 else f"{len(absent)} videos"
    return [f"{what.replace('{}', count, 1)}: {', '.join(absent[:5])}{', …' if len(absent) > 5 else ''}"]


# -------------------------------------------------------------------------------------------------------- of all videos


class Sample:
    """Clips of every video of a model, with what the ground truth says of them; those that aren't finite are left out."""

    def __init__(self, model: Model, classes: Sequence[str], limit: int):
        self.model = model
        self._numbers = {label: number for number, label in enumerate(classes)}
        self._limit = max(limit, 1)
        self._rows: dict[str, Float32[np.ndarray, "n f"]] = {}
        self._labels: dict[str, Int64[np.ndarray, " n"]] = {}

    def add(self, found: features.VideoFeatures, truth: Sequence[groundtruth.AnnotatedSegment] | None) -> list[str]:
        """Takes at most about `limit` clips of a video, evenly; returns notes of what was found.

        Raises:
          ValueError: features are of another width than those before.
        """
        where, width = f"{self.model.path} (video {found.name!r})", found.features.shape[1]
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
        labels = np.full(len(found.features), _NEITHER)
        for item in truth or []:
            # Classes of the videos that a probe is fitted on need no number of their own.
            number = self._numbers.get(item.action_label, 0) if item.temporal_region == groundtruth.ACTION else _BACKGROUND
            labels[groundtruth.clips_within(*times, item) & (labels == _NEITHER)] = number
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
        """The clips of these videos, and for each the number of its class, `_BACKGROUND` or `_NEITHER`."""
        known = [name for name in names if name in self._rows]
        if not known:
            return np.zeros((0, 1), np.float32), np.zeros(0, np.int64)
        return np.concatenate([self._rows[name] for name in known]), np.concatenate([self._labels[name] for name in known])

    def regions(self, names: Sequence[str]) -> tuple[Float32[np.ndarray, "n f"], Bool[np.ndarray, " n"]]:
        """The clips of these videos that lie in one segment, and whether it is an action."""
        rows, labels = self.of(names)
        return rows[labels != _NEITHER], labels[labels != _NEITHER] >= 0


def _projection(page: Page, sample: Sample, names: Sequence[str]) -> list[Projection]:
    """The first two principal components of a model's clips; nothing where there are too few clips."""
    found, labels = sample.of(names)
    if len(found) < 3 or found.shape[1] < 2:
        return []
    rows = found.astype(np.float64) - found.mean(0, np.float64)
    variances, axes = np.linalg.eigh(rows.T @ rows)
    axes = axes[:, :-3:-1]
    axes = axes * np.sign(axes[np.argmax(np.abs(axes), axis=0), [0, 1]])  # an axis has no sign of its own
    total = max(float(variances.sum()), 1e-12)
    shares = float(variances[-1]) / total, float(variances[-2]) / total
    if page.has_truth:
        rows, labels = rows[labels != _NEITHER], labels[labels != _NEITHER]
    step = math.ceil(max(len(rows), 1) / DRAWN_CLIPS)
    places, drawn = (rows @ axes)[::step], labels[::step]
    if not len(places):
        return []
    if not page.has_truth:
        picture = figures.scatter([figures.Points(places, FOREGROUND)])
        return [Projection(sample.model.name, len(places), shares, picture, "")]
    regions = [
        figures.Points(places[drawn == _BACKGROUND], figures.GREY, cross=True),
        figures.Points(places[drawn >= 0], FOREGROUND),
    ]
    others = len(figures.COLOURS)
    classes = [figures.Points(places[drawn >= others], figures.GREY)]
    classes += [figures.Points(places[drawn == number], colour) for number, colour in enumerate(figures.COLOURS)]
    return [Projection(sample.model.name, len(places), shares, figures.scatter(regions), figures.scatter(classes))]


def _probe(page: Page, sample: Sample, fit_on: Sequence[str], measured: Sequence[str]) -> list[Probe]:
    """A probe of a model; a note says why there is none."""
    (train, train_labels), (test, test_labels) = sample.regions(fit_on), sample.regions(measured)
    for labels, which in ((train_labels, "fitted"), (test_labels, "measured")):
        if not 0 < np.count_nonzero(labels) < len(labels):
            page.notes.append(
                f"no linear probe of {sample.model.name}: of {len(labels)} clips that it would be {which} on, "
                f"{np.count_nonzero(labels)} are of actions; it needs clips of actions and of background"
            )
            return []
    found = linear_probe.score(train.astype(np.float64), train_labels, test.astype(np.float64), test_labels)
    return [Probe(sample.model.name, len(fit_on), len(train), len(measured), found)]
