"""Predicts the actions of videos with a trained model: `python -m tsp_jax.predict --checkpoint C --videos DIR --output P.json`.

The model's heads give each clip probabilities, and `clip_segments` reads segments from them by a plain rule.

Features are extracted as `tsp_jax.extract` does, each video decoded once, into `OUTPUT.features.h5`. The heads then read that
file. So a run that was killed loses no finished video, and the same command with other thresholds decodes nothing.
"""

import argparse
import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32

from tsp_jax import (
    checkpoints,
    clip_scores,
    clip_segments,
    clip_times,
    features,
    groundtruth,
    predictions,
    video_list,
    video_names,
    weights,
)
from tsp_jax.extraction import engine, flags, sinks
from tsp_jax.extraction import failures as failed_videos
from tsp_jax.features import global_features
from tsp_jax.models import backbones
from tsp_jax.system import cli, progress, startup
from tsp_jax.video import searching

# ---------------------------------------------------------------------------------------------------------------- command


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0 if all is well, 1 if videos failed, 2 on wrong use, 130 if interrupted."""
    return cli.run(_work, _parse(arguments))


def _work(options: argparse.Namespace) -> int:
    startup.prepare_jax(options.device)
    model = weights.open_any(options.checkpoint)
    tasks = clip_scores.head_tasks(model, options.head)
    labels = clip_scores.action_labels(model, tasks, options.labels)
    _check_gvf_flags(model, options)
    start = None if options.gvf_checkpoint is None else weights.open_any(options.gvf_checkpoint)
    _check_width(model, start, options.gvf_checkpoint)
    settings, videos = flags.read_settings(options), []
    if options.features is None:
        videos = video_list.list_videos(options.videos, options.metadata_csv, options.names, video_list.print_note)
    for note in _notes(model, tasks, options):
        print(f"note: {note}", file=sys.stderr)
    errors_csv = Path(f"{options.output}.errors.csv")
    failures: list[failed_videos.Failure] = []
    with cli.resumable("finished videos are kept; run the same command again to continue"), cli.terminable():
        if options.features is None:
            source = _extracted(model, start, videos, options, settings, failures)
        else:
            source = Source(Path(options.features), _path(options.gvf_features), features.names(options.features))
        found = predict(model, tasks, labels, source, options.gvf, options.thresholds, options.top_classes, failures)
        predictions.write(options.output, found)
        failed_videos.write(errors_csv, failures)
    _print_summary(found, source, options.output, failures, errors_csv)
    return 1 if failures else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tsp_jax.predict",
        description="Predicts the actions of videos, clip by clip, and writes them with the segments read from them as JSON in "
        "ActivityNet's result format. " + predictions.READING,
        epilog="example: python -m tsp_jax.predict --checkpoint runs/anet_tsp --gvf_checkpoint r2plus1d_34-kinetics_init "
        "--videos videos/ --labels labels/action_label_mapping.json --output predictions.json",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        help="a run's workdir, a checkpoint folder, a .pth or .safetensors file, or a released name",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--videos", nargs="+", help=f"{searching.HELP}; with --metadata_csv, the folder of its filenames")
    source.add_argument("--features", help="features extracted by the same checkpoint before; nothing is decoded")
    add("--names", choices=video_names.RULES, help=video_names.HELP)
    add("--metadata_csv", help="a CSV with the columns filename, fps, video-frames; without it the files are scanned")
    add("--output", required=True, help="the JSON file")
    add("--labels", help="action_label_mapping.json with the names of the classes; without it their numbers are used")
    add("--head", choices=predictions.TASKS, help="the task of a single head with two classes, which is ambiguous")
    add("--thresholds", type=_probability, nargs="+", default=[0.5], help="foreground thresholds, each of which gives segments")
    add("--top_classes", type=cli.positive_int, default=5, help="how many of a clip's most probable classes are written")
    add(
        "--gvf",
        choices=list(global_features.POOLS),
        default="max",
        help="how clips are pooled into the global video feature, as in training",
    )
    add("--gvf_checkpoint", help="the encoder whose clips are pooled: the one that training started from")
    add("--gvf_features", help="with --features: features of the same videos by that encoder")
    flags.add_settings(parser)
    startup.add_device(parser)
    add("--overwrite", action="store_true", help="delete the features next to the output first")
    options = parser.parse_args(arguments)
    if options.top_classes > predictions.MAX_TOP_CLASSES:
        parser.error(f"--top_classes is at most {predictions.MAX_TOP_CLASSES}; got {options.top_classes}")
    if options.features is None and options.gvf_features is not None:
        parser.error("--gvf_features goes with --features; with --videos it is --gvf_checkpoint")
    if options.features is not None and (options.gvf_checkpoint or options.metadata_csv):
        parser.error("--gvf_checkpoint and --metadata_csv go with --videos; with --features it is --gvf_features")
    if options.features is not None and options.names:
        parser.error("--names goes with --videos; the file of --features says how its videos are named")
    return options


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"a number above 0, at most 1; got {text}")
    return value


def _check_gvf_flags(model: checkpoints.Checkpoint, options: argparse.Namespace) -> None:
    given = options.gvf_checkpoint or options.gvf_features
    if given and not model.config.gvf:
        raise ValueError(f"{given}: {model.origin.source} reads no global video feature; drop --gvf_checkpoint, --gvf_features")


def _check_width(model: checkpoints.Checkpoint, start: checkpoints.Checkpoint | None, given: str | None) -> None:
    expected = backbones.BACKBONES[model.config.backbone].width
    if start is not None and (found := backbones.BACKBONES[start.config.backbone].width) != expected:
        raise ValueError(f"{given}: {found} features per clip; expected {expected}, as {model.origin.source} has")


def _notes(model: checkpoints.Checkpoint, tasks: Sequence[str], options: argparse.Namespace) -> Iterator[str]:
    if "action" in tasks and options.labels is None:
        yield "without --labels, the labels are class numbers"
    if model.config.gvf and not (options.gvf_checkpoint or options.gvf_features):
        yield (
            "the last head reads a global video feature, which in training came from the start weights; without "
            f"{'--gvf_checkpoint' if options.features is None else '--gvf_features'} the model's own features are pooled, a "
            "kind of input that the head never saw, and its probabilities may be far off"
        )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _print_summary(
    found: predictions.Predictions, source: "Source", output: str, failures: list[failed_videos.Failure], errors_csv: Path
) -> None:
    count = sum(len(video.segments) for video in found.videos.values())
    rows = sum(len(video.start_sec) for video in found.videos.values())
    print(f"{output}: {count} segments of {rows} clips in {len(found.videos)} videos; {len(failures)} failed or damaged")
    print(f"  {predictions.READING}")
    print(f"  features: {', '.join(str(path) for path in (source.features, source.gvf) if path)}")
    for line in failed_videos.lines(failures, errors_csv):
        print(line)


# -------------------------------------------------------------------------------------------------------------- features


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the features of videos are.

    Attributes:
      features: the file of the model's features.
      gvf: the file of the encoder whose features are pooled; None if the model's own features are pooled.
      names: the names of the videos.
      paths: the file of each video, by name; empty if only features are read.
    """

    features: Path
    gvf: Path | None
    names: Sequence[str]
    paths: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _extracted(
    model: checkpoints.Checkpoint,
    start: checkpoints.Checkpoint | None,
    videos: Sequence[video_list.Video],
    options: argparse.Namespace,
    settings: engine.Settings,
    failures: list[failed_videos.Failure],
) -> Source:
    """Extracts the features of the videos with both encoders in one pass, into files next to the output.

    Videos that failed are appended to `failures`.
    """
    own, gvf = Path(f"{options.output}.features.h5"), None
    with contextlib.ExitStack() as stack:

        def writer(path: Path, checkpoint: checkpoints.Checkpoint) -> features.Writer:
            run = {**engine.run_attributes(checkpoint, settings), "names": options.names or video_names.DEFAULT}
            return stack.enter_context(features.Writer(path, run, overwrite=options.overwrite))

        sink, also = writer(own, model), []
        if start is not None:
            gvf, also = Path(f"{options.output}.gvf_features.h5"), [start]
            sink = sinks.TwoFiles(sink, writer(gvf, start), backbones.BACKBONES[model.config.backbone].width)
        failures += engine.extract(model, videos, sink, settings, also=also).failures
        done = sink.done
    usable = [item for item in videos if not item.fault and item.name in done]
    return Source(own, gvf, [item.name for item in usable], {item.name: str(item.path) for item in usable})


# ------------------------------------------------------------------------------------------------------------ predictions


def predict(
    model: checkpoints.Checkpoint,
    tasks: Sequence[str],
    labels: Sequence[str],
    source: Source,
    pool: str,
    thresholds: Sequence[float],
    top_classes: int,
    failures: list[failed_videos.Failure],
) -> predictions.Predictions:
    """Returns the predictions for videos whose features lie in files.

    Args:
      model: the model that extracted them; it has heads.
      tasks: the task of each of its heads, from `predictions.TASKS`.
      labels: the names of the action classes; empty if no head predicts actions.
      source: the files of features.
      pool: a key of `global_features.POOLS`, for a model that reads a global feature.
      thresholds: the foreground thresholds, each of which gives segments.
      top_classes: how many of a clip's most probable classes are kept.
      failures: the list of failures. Videos whose features are absent, damaged or not finite are appended, unless they are
        listed already.

    Raises:
      FeatureFileError: a file is no feature file, or was extracted by another checkpoint or with several geometries.
    """
    variables = jax.device_put(model.variables, jax.local_devices()[0])
    model = dataclasses.replace(model, variables=variables)
    listed = {failure.video for failure in failures}
    videos, geometry, pooled = {}, None, ""
    for name in progress.each(source.names, "predict", len(source.names)):
        item = features.read(source.features, name)
        check_made_by(model, item, source.features)
        own = tuple(float(item.attributes.get(key, 0)) for key in ("clip_len", "stride", "frame_rate"))
        if geometry not in (None, own):
            raise features.FeatureFileError(f"{source.features}: {name!r} has clips of another geometry; extract it again")
        geometry, gvf = own, None
        try:
            if model.config.gvf:
                rows = item if source.gvf is None else features.read(source.gvf, name)
                pooled = f"{pool} over the clips' features of {rows.attributes.get('checkpoint', 'unknown weights')}"
                gvf = global_features.pool(_of_width(rows.features, item.features.shape[1]), pool)
            if not len(item.features) or not np.all(np.isfinite(item.features)):
                raise ValueError("no clips, or features that are not finite; extract the video again")
        except (features.FeatureFileError, ValueError) as error:
            failures.append(failed_videos.Failure(name, str(error), 0))
            continue
        videos[name] = predict_video(model, tasks, labels, item, gvf, thresholds, top_classes)
        if videos[name].damage and source.paths.get(name) not in listed:
            failures.append(failed_videos.Failure(name, videos[name].damage, len(item.features)))
    clip_len, stride, frame_rate = geometry or (1.0, 1.0, 1.0)
    return predictions.Predictions(
        checkpoint=model.origin.source,
        checkpoint_sha256=model.weights_sha256,
        gvf=pooled,
        tasks=tuple(tasks),
        labels=tuple(labels),
        thresholds=tuple(thresholds),
        clip_len_sec=clip_len / frame_rate,
        stride_sec=stride / frame_rate,
        videos=videos,
    )


def predict_video(
    model: checkpoints.Checkpoint,
    tasks: Sequence[str],
    labels: Sequence[str],
    item: features.VideoFeatures,
    gvf: Float32[np.ndarray, " f"] | None,
    thresholds: Sequence[float],
    top_classes: int,
) -> predictions.Video:
    """Returns the predictions for one video. The arguments are those of `predict`.

    Raises:
      FeatureFileError: the attributes from which the times of the clips follow are absent or impossible.
    """
    numbers, (starts, clip_len_sec) = clip_times.clip_numbers(item), clip_times.clip_times(item)
    stride_sec = float(item.attributes["stride"]) / float(item.attributes["frame_rate"])
    duration_sec = clip_times.duration_sec(item)
    cells = clip_segments.clip_cells(starts, clip_len_sec, stride_sec, duration_sec)
    by_task = dict(zip(tasks, clip_scores.probabilities(model, item.features, gvf), strict=True))
    foreground, classes, best = None, None, None
    if "temporal_region" in by_task:
        foreground = by_task["temporal_region"][:, groundtruth.TEMPORAL_REGIONS.index(groundtruth.ACTION)]
    action = by_task.get("action")
    if action is not None:
        classes = np.argsort(-action, axis=1, kind="stable")[:, :top_classes]
        best = np.take_along_axis(action, classes, axis=1)
    return predictions.Video(
        duration_sec=duration_sec,
        damage=str(item.attributes.get("damage", "")),
        segments=clip_segments.read_segments(cells, numbers, foreground, action, labels, thresholds),
        start_sec=starts,
        foreground=None if foreground is None else foreground.astype(np.float32),
        top_classes=None if classes is None else classes.astype(np.int32),
        top_probabilities=None if best is None else best.astype(np.float32),
    )


def check_made_by(model: checkpoints.Checkpoint, item: features.VideoFeatures, path: Path) -> None:
    """Checks that a video's features were extracted by this checkpoint.

    Raises:
      FeatureFileError: another checkpoint extracted them, or they have another width.
    """
    if clip_times.IMPORTED in item.attributes:
        raise features.FeatureFileError(
            f"{path} (video {item.name!r}): imported from another tool; the heads of {model.origin.source} read features of "
            "its own encoder alone: give --videos, or features that `python -m tsp_jax.extract` wrote with it"
        )
    found, expected = str(item.attributes.get("checkpoint_sha256", "none")), model.weights_sha256
    if found != expected:
        raise features.FeatureFileError(
            f"{path} (video {item.name!r}): extracted by weights of SHA-256 {found[:8]}…, expected those of "
            f"{model.origin.source}, {expected[:8]}…; extract with --checkpoint as here, or give --videos"
        )
    if item.features.shape[1] != backbones.BACKBONES[model.config.backbone].width:
        raise features.FeatureFileError(
            f"{path} (video {item.name!r}): {item.features.shape[1]} features per clip; the file is damaged"
        )


def _of_width(rows: Float32[np.ndarray, "n f"], width: int) -> Float32[np.ndarray, "n f"]:
    if rows.shape[1] != width:
        raise ValueError(f"{rows.shape[1]} features per clip to pool; expected {width}")
    return rows


if __name__ == "__main__":
    sys.exit(main())
