"""Puts a report together from features, ground truth, predictions and training runs, and writes it as HTML.

Names and numbers come from files that others made. They are escaped where they enter the page, and bounded in size.
"""

import argparse
import collections
import dataclasses
import importlib.resources
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from tsp_jax import features, groundtruth, predictions, video_list, video_names
from tsp_jax.report import clips_section, diagnosis_section, figures, training_section, video_section
from tsp_jax.system import progress, version
from tsp_jax.video import scanning

SAMPLED_CLIPS = 50_000  # projections and probes use about as many clips at most, evenly from all videos
LISTED_VIDEOS = 2_000
# Control characters, lone surrogates, and marks that turn the direction of writing can disguise a name, and no name needs them.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Model:
    """A file of features.

    Attributes:
      name: the name that the page gives the model.
      path: the file.
      videos: names of the videos in the file.
      made_by: the checkpoint that the features were extracted with; empty if the file does not say so.
      sha256: the hash of that checkpoint's weights; empty if the file does not say so.
    """

    name: str
    path: Path
    videos: list[str]
    made_by: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Page:
    """The values that the template shows.

    Attributes:
      title: the page's title.
      models: the files of features.
      notes: sentences about what is odd in the files or was left out.
      unread: number of videos that could not be read.
      videos: what the page shows of each video, by name.
      classes: labels of the action classes, the most frequent first.
      projections: the clips of each model in two dimensions.
      probes: the linear probe of each model.
      probe_split: a sentence that says which videos the probes are fitted and measured on.
      has_truth: whether a ground truth was given.
      has_predictions: whether predictions were given.
      predicted_by: the name of the model that made the predictions.
      reading: how to read the predictions.
      training: the training runs, or None if none were given.
      diagnosis: the error analysis of detections, or None if none was given.
    """

    title: str
    models: Sequence[Model] = ()
    notes: Sequence[str] = ()
    unread: int = 0
    videos: Sequence[video_section.Part] = ()
    classes: Sequence[str] = ()
    projections: Sequence[clips_section.Projection] = ()
    probes: Sequence[clips_section.Probe] = ()
    probe_split: str = ""
    has_truth: bool = False
    has_predictions: bool = False
    predicted_by: str = ""
    reading: str = predictions.READING
    training: training_section.Training | None = None
    diagnosis: diagnosis_section.Section | None = None

    @property
    def legend(self) -> list[tuple[str, str]]:
        """The colours of the classes, with the classes' names."""
        known = list(zip(figures.COLOURS, self.classes, strict=False))
        others = len(self.classes) - len(known)
        return known + ([(figures.GREY, f"{others} other classes")] if others else [])


def render(page: Page) -> str:
    """Returns the page as HTML. Every text is escaped, and characters that can't be seen are replaced."""

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


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """The files of the flags, as far as they belong to the videos that have features.

    Attributes:
      models: the files of features.
      every_name: names of all videos with features, sorted.
      names: names of the videos that the page shows: all but those of `fitted`.
      fitted: segments of the videos of --probe_groundtruth, by video.
      truth: segments of the videos of --groundtruth, by video.
      predicted: the predictions, or None without --predictions.
      predicted_by: the name of the model that made the predictions.
      paths: files of the videos that get pictures, by name.
      notes: sentences about videos that only some of the files know.
    """

    models: list[Model]
    every_name: list[str]
    names: list[str]
    fitted: dict[str, list[groundtruth.AnnotatedSegment]]
    truth: dict[str, list[groundtruth.AnnotatedSegment]]
    predicted: predictions.Predictions | None
    predicted_by: str
    paths: dict[str, Path]
    notes: list[str]


def of_features(options: argparse.Namespace) -> Page:
    """Returns a page that shows the files of --features and the files of the flags that go with it.

    Raises:
      FeatureFileError, PredictionsError, ValueError, OSError: a file can't be used, or doesn't belong to the others.
    """
    given = _read(options)
    models, names, notes, unread = given.models, given.names, list(given.notes), 0
    classes = _classes(given.truth)
    colours = {label: place for place, label in enumerate(classes[: len(figures.COLOURS)])}
    limit, pictured = SAMPLED_CLIPS // len(given.every_name), set(names[: options.max_videos])

    samples = [clips_section.Sample(model.name, model.path, classes, limit) for model in models]
    videos: list[video_section.Part] = []
    for name in progress.each(given.every_name, "report", len(given.every_name)):
        by_model: dict[str, features.VideoFeatures] = {}
        for model, sample in zip(models, samples, strict=True):
            if name in model.videos:
                by_model[model.name] = features.read(model.path, name)
                notes += sample.add(by_model[model.name], given.truth.get(name) or given.fitted.get(name))
        if name not in given.fitted:
            strip = "" if name in pictured else None
            if name in given.paths:
                strip, note, failed = _frames(given.paths[name])
                notes += [note] if note else []
                unread += failed
            videos.append(video_section.describe(by_model, given.truth.get(name), given.predicted, colours, strip))

    has_truth = options.groundtruth is not None
    projections = [clips_section.project(sample, names, has_truth) for sample in samples]
    probes: list[clips_section.Probe] = []
    fit_on, measure_on, probe_split = _probe_split(given)
    for sample in samples if has_truth else ():
        found, reasons = clips_section.measure(sample, fit_on, measure_on)
        probes += [found] if found else []
        notes += reasons
    return Page(
        title="Features of videos",
        models=models,
        notes=notes,
        unread=unread,
        videos=videos,
        classes=classes,
        projections=[item for item in projections if item],
        probes=probes,
        probe_split=probe_split,
        has_truth=has_truth,
        has_predictions=given.predicted is not None,
        predicted_by=given.predicted_by,
    )


def _read(options: argparse.Namespace) -> _Inputs:
    """Returns the contents of the files that the flags name.

    Raises:
      FeatureFileError, PredictionsError, ValueError, OSError: a file can't be used, or doesn't belong to the others.
    """
    models = _models(options.features, options.names)
    naming = features.naming(models[0].path)
    every_name = sorted({name for model in models for name in model.videos})
    notes = [note for model in models for note in _missing(f"without features in {model.path}", every_name, model.videos)]
    fitted, more = _truth(options.probe_groundtruth, every_name, naming)
    notes += more
    names = [name for name in every_name if name not in fitted]
    truth, more = _truth(options.groundtruth, names, naming)
    notes += more
    if options.groundtruth:
        notes += _missing(f"without segments in {options.groundtruth}", names, truth)
    predicted, predicted_by, more = _predictions(options.predictions, models, names, every_name)
    notes += more
    paths, more = _paths(options.videos, names[: options.max_videos], naming)
    notes += more
    return _Inputs(models, every_name, names, fitted, truth, predicted, predicted_by, paths, notes)


def _classes(truth: Mapping[str, Sequence[groundtruth.AnnotatedSegment]]) -> list[str]:
    """Returns the labels of the actions, the most frequent first."""
    actions = (item for items in truth.values() for item in items if item.temporal_region == groundtruth.ACTION)
    count = collections.Counter(item.action_label for item in actions)
    return [label for label, _ in sorted(count.items(), key=lambda pair: (-pair[1], pair[0]))]


def _probe_split(given: _Inputs) -> tuple[list[str], list[str], str]:
    """Returns the videos that a linear probe is fitted on, those that it is measured on, and a sentence that says so.

    Only videos that all models have features of are used.
    """
    both = sorted(set(given.truth).union(given.fitted).intersection(*(model.videos for model in given.models)))
    if given.fitted:
        sentence = "Fitted on the videos of --probe_groundtruth, measured on those of this page."
        return [name for name in both if name in given.fitted], [name for name in both if name in given.truth], sentence
    sentence = (
        "The videos of this page were split in two by name: the probe is fitted on the first, third, fifth and so on, "
        "and measured on the others."
    )
    return both[::2], both[1::2], sentence


def _models(paths: Sequence[str], names: Sequence[str] | None) -> list[Model]:
    """Returns the models; no two have the same name.

    Raises:
      FeatureFileError: a path is not a file of features.
      ValueError: a file has no videos, two files have none in common, or two models have the same name.
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


def _truth(
    path: str | None, names: Sequence[str], naming: video_names.Rule
) -> tuple[dict[str, list[groundtruth.AnnotatedSegment]], list[str]]:
    """Returns the segments of these videos by name, empty without a file, and notes of videos that are left out.

    Raises:
      OSError, ValueError: the file can't be read, or has none of these videos.
    """
    if path is None:
        return {}, []
    found = groundtruth.by_video(groundtruth.read_groundtruth(path), naming)
    _check_belong(path, list(found), names)
    notes = _missing(f"of {path} without features, left out", found, names)
    return {name: found[name] for name in names if name in found}, notes


def _paths(videos: Sequence[str] | None, names: Sequence[str], naming: video_names.Rule) -> tuple[dict[str, Path], list[str]]:
    """Returns the files of these videos by name, empty without --videos, and notes of videos that have no file.

    Raises:
      OSError, ValueError: the folder can't be read, or has none of these videos.
    """
    if videos is None:
        return {}, []
    folder = " ".join(videos)
    found = {item.name: item.path for item in video_list.list_videos(videos, names=naming) if not item.fault}
    if names:
        _check_belong(folder, list(found), names)
    return {name: found[name] for name in names if name in found}, _missing(f"without a file in {folder}", names, found)


def _predictions(
    path: str | None, models: Sequence[Model], names: Sequence[str], every_name: Sequence[str]
) -> tuple[predictions.Predictions | None, str, list[str]]:
    """Returns the predictions, the name of the model that made them, and notes; None, "" and no notes without a file.

    Raises:
      PredictionsError, ValueError: the file can't be read, or has none of these videos.
    """
    if path is None:
        return None, "", []
    found = predictions.read(path)
    _check_belong(path, list(found.videos), names)
    notes = _missing(f"without predictions in {path}", names, found.videos)
    notes += _missing(f"of {path} without features, left out", found.videos, every_name)
    predicted_by = ", ".join(model.name for model in models if model.sha256 == found.checkpoint_sha256)
    if not predicted_by:
        predicted_by = found.checkpoint
        notes.append(f"{path} was made by another model ({found.checkpoint}) than the features")
    return found, predicted_by, notes


def _frames(path: Path) -> tuple[str, str, bool]:
    """Returns a strip of a video's frames, a note about damage, and whether the video could not be read.

    Strip and note are empty where there is none.
    """
    try:
        strip, damage = video_section.frames(path)
    except scanning.VideoError as error:
        return "", f"{path}: {error}; no frames of it are shown", True
    return strip, f"{path}: {damage}; its lost frames are grey" if damage else "", False


def _check_belong(path: str, found: Sequence[str], names: Sequence[str]) -> None:
    """Checks that a file knows one of these videos at least.

    Raises:
      ValueError: it knows none of them.
    """
    if not set(found) & set(names):
        raise ValueError(
            f"{path}: expected some of the {len(names)} videos that have features{f' ({names[0]!r}, …)' if names else ''}, "
            f"found {repr(found[0]) + ', …' if found else 'none'}; give the one that belongs to them"
        )


def _missing(lack: str, wanted: Iterable[str], found: Iterable[str]) -> list[str]:
    """Returns a note such as "2 videos LACK: a, b" of the wanted videos that were not found; empty if all were found."""
    absent = sorted(set(wanted) - set(found))
    if not absent:
        return []
    count = "1 video" if len(absent) == 1 else f"{len(absent)} videos"
    return [f"{count} {lack}: {', '.join(absent[:5])}{', …' if len(absent) > 5 else ''}"]
