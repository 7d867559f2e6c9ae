"""What a trained model's heads say of videos: `python -m tsp_jax.predict --checkpoint C --videos DIR --output P.json`.

It is a plain reading of a clip classifier's scores, clip by clip, and no trained detector of actions: that is another model,
trained on features with segments' borders in view. The reading:

1. Of each clip the heads give the probability of every action class, and that of the temporal region "Action": the
   foreground. A model without a temporal-region head has no foreground; the probability of the clip's most probable class
   takes its place in 3.
2. A clip stands for the time of one stride around its middle, so that neighbours meet without a gap: for the whole clip, where
   the stride is the clip's length. The time is cut off at the video's ends.
3. For each threshold, the longest runs of neighbouring clips whose foreground is at least the threshold are segments. A clip
   that could not be read ends a run. A run that several thresholds give stands once.
4. A segment's label is the action class of the largest mean probability over its run; "Action" for a model without an action
   head.
5. Its score is the product, over the heads that the model has, of the mean foreground and of the label's mean probability.

Features are extracted as `tsp_jax.extract` does, each video decoded once, into `OUTPUT.features.h5`; heads are then read from
there. So a run that was killed loses no finished video, and the same command with other thresholds decodes nothing.
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
import tqdm
from jaxtyping import Float32, Float64, Int64

from tsp_jax import checkpoints, extract, features, groundtruth, predictions, video_list, weights
from tsp_jax.models import functional, video_resnet
from tsp_jax.system import cli

_ROWS_AT_ONCE = 256  # one shape to compile, whatever a video's number of clips
_heads = jax.jit(functional.heads, static_argnums=0)

# ---------------------------------------------------------------------------------------------------------------- command


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0 all well, 1 some videos failed, 2 wrong use, 130 interrupted."""
    options = _parse(arguments)
    cli.show_any_name()
    extract.prepare_jax()
    try:
        model = weights.open_any(options.checkpoint)
        heads = head_names(model, options.head)
        labels = action_labels(model, heads, options.labels)
        _check_gvf_flags(model, options)
        start = None if options.gvf_checkpoint is None else weights.open_any(options.gvf_checkpoint)
        _check_width(model, start, options.gvf_checkpoint)
        settings, videos = extract.read_settings(options), []
        if options.features is None:
            videos = video_list.list_videos(options.videos, options.metadata_csv)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for note in _notes(model, heads, options):
        print(f"note: {note}", file=sys.stderr)
    errors_csv = Path(f"{options.output}.errors.csv")
    try:
        with extract.terminable():
            failures: list[extract.Failure] = []
            if options.features is None:
                source = _extracted(model, start, videos, options, settings, failures)
            else:
                source = Source(Path(options.features), _path(options.gvf_features), features.names(options.features))
            found = predict(model, heads, labels, source, options.gvf, options.thresholds, options.top_classes, failures)
            predictions.write(options.output, found)
            extract.write_errors(errors_csv, failures)
    except (features.FeatureFileError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}; finished videos are kept: the same command again goes on from here", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished videos are kept: the same command again goes on from here", file=sys.stderr)
        return 130
    _print_summary(found, source, options.output, failures, errors_csv)
    return 1 if failures else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tsp_jax.predict",
        description="Writes what a trained model's heads say of each clip of videos, and segments read from that, as JSON in "
        "ActivityNet's result format. " + predictions.READING,
        epilog="example: python -m tsp_jax.predict --checkpoint runs/anet_tsp --gvf_checkpoint r2plus1d_34-kinetics_init "
        "--videos videos/ --labels labels/action_label_mapping.json --output predictions.json",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="a run's workdir, a checkpoint folder, a .pth file, or a released name")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--videos", help="a folder, searched with its subfolders, or one file; the root with --metadata_csv")
    source.add_argument("--features", help="features extracted by the same checkpoint before; nothing is decoded")
    add("--metadata_csv", help="columns filename, fps, video-frames; without it the files are scanned")
    add("--output", required=True, help="the JSON file")
    add("--labels", help="action_label_mapping.json, the names of the classes; without it their numbers")
    add("--head", choices=predictions.HEADS, help="what the one head of a model with two classes tells")
    add("--thresholds", type=_probability, nargs="+", default=[0.5], help="of the foreground; each gives segments")
    add("--top_classes", type=cli.positive_int, default=5, help="most probable classes of a clip that are written")
    add("--gvf", choices=list(features.POOLS), default="max", help="how clips make the global video feature, as in training")
    add("--gvf_checkpoint", help="the encoder whose clips are pooled: the one that training started from")
    add("--gvf_features", help="with --features: features of the same videos by that encoder")
    extract.add_settings(parser)
    add("--overwrite", action="store_true", help="forget the features beside the output")
    options = parser.parse_args(arguments)
    if options.top_classes > predictions.MAX_TOP_CLASSES:
        parser.error(f"--top_classes is at most {predictions.MAX_TOP_CLASSES}; got {options.top_classes}")
    if options.features is None and options.gvf_features is not None:
        parser.error("--gvf_features goes with --features; with --videos it is --gvf_checkpoint")
    if options.features is not None and (options.gvf_checkpoint or options.metadata_csv):
        parser.error("--gvf_checkpoint and --metadata_csv go with --videos; with --features it is --gvf_features")
    return options


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"a number above 0, at most 1; got {text}")
    return value


def head_names(model: checkpoints.Checkpoint, asked: str | None) -> tuple[str, ...]:
    """What each of the model's heads tells, of `predictions.HEADS`.

    Args:
      model: its number of heads and of classes tell most.
      asked: what a head tells that is alone; None where its classes shall tell.

    Raises:
      ValueError: there is no head, a head alone has two classes and nothing is asked, or what is asked can't be.
    """
    counts, name = model.config.label_counts, model.origin.source
    regions = len(groundtruth.TEMPORAL_REGIONS)
    if not counts:
        raise ValueError(f"{name}: expected a trained model with heads, found an encoder alone; give a run's workdir")
    if len(counts) == 2:
        if counts[1] != regions or asked is not None:
            raise ValueError(
                f"{name}: expected heads of actions and of {regions} temporal regions, and no --head; "
                f"found heads of {counts[0]} and {counts[1]} classes, --head {asked}"
            )
        return predictions.HEADS
    if counts[0] != regions:
        if asked == "temporal_region":
            raise ValueError(f"{name}: expected {regions} classes of a temporal-region head, found {counts[0]}; drop --head")
        return ("action",)
    if asked is None:
        raise ValueError(
            f"{name}: its one head has two classes, which may be actions or temporal regions; say --head action or "
            "--head temporal_region"
        )
    return (asked,)


def action_labels(model: checkpoints.Checkpoint, heads: Sequence[str], mapping: str | Path | None) -> tuple[str, ...]:
    """Names of the action classes in their order: those of a mapping, or their numbers; none without that head.

    Raises:
      OSError, ValueError: the mapping can't be read, or is that of another number of classes.
    """
    if "action" not in heads:
        if mapping is not None:
            raise ValueError(f"{mapping}: this model has no action head to name classes of; drop --labels")
        return ()
    count = model.config.label_counts[0]
    if mapping is None:
        return tuple(str(number) for number in range(count))
    labels = groundtruth.read_label_mapping(mapping)
    if len(labels) != count:
        raise ValueError(
            f"{mapping}: {len(labels)} labels, expected the {count} classes that {model.origin.source} was trained with"
        )
    return tuple(labels)


def _check_gvf_flags(model: checkpoints.Checkpoint, options: argparse.Namespace) -> None:
    given = options.gvf_checkpoint or options.gvf_features
    if given and not model.config.gvf:
        raise ValueError(f"{given}: {model.origin.source} reads no global video feature; drop --gvf_checkpoint, --gvf_features")


def _check_width(model: checkpoints.Checkpoint, start: checkpoints.Checkpoint | None, given: str | None) -> None:
    expected = video_resnet.feature_size(model.config.backbone)
    if start is not None and (found := video_resnet.feature_size(start.config.backbone)) != expected:
        raise ValueError(f"{given}: {found} features a clip; expected {expected}, as many as {model.origin.source} has")


def _notes(model: checkpoints.Checkpoint, heads: Sequence[str], options: argparse.Namespace) -> Iterator[str]:
    if "action" in heads and options.labels is None:
        yield "without --labels, class numbers stand for the labels"
    if model.config.gvf and not (options.gvf_checkpoint or options.gvf_features):
        yield (
            "the last head reads a global video feature, which in training came of the start weights; without "
            f"{'--gvf_checkpoint' if options.features is None else '--gvf_features'} the model's own features are pooled, a "
            "kind of input that the head never saw, and its probabilities may be far off"
        )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _print_summary(
    found: predictions.Predictions, source: "Source", output: str, failures: list[extract.Failure], errors_csv: Path
) -> None:
    count = sum(len(video.segments) for video in found.videos.values())
    rows = sum(len(video.start_sec) for video in found.videos.values())
    print(f"{output}: {count} segments of {rows} clips in {len(found.videos)} videos; {len(failures)} failed or damaged")
    print(f"  {predictions.READING}")
    print(f"  features: {', '.join(str(path) for path in (source.features, source.gvf) if path)}")
    for failure in failures[:10]:
        print(f"  {failure.video}: {failure.reason} ({failure.clips_kept} clips kept)")
    if len(failures) > 10:
        print(f"  and {len(failures) - 10} more")
    if failures:
        print(f"  all failures: {errors_csv}")


# -------------------------------------------------------------------------------------------------------------- features


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the features of videos are.

    Attributes:
      features: the file of the model's.
      gvf: that of the encoder whose clips are pooled; None where the model's own are.
      names: of the videos.
    """

    features: Path
    gvf: Path | None
    names: Sequence[str]


def _extracted(
    model: checkpoints.Checkpoint,
    start: checkpoints.Checkpoint | None,
    videos: Sequence[video_list.Video],
    options: argparse.Namespace,
    settings: extract.Settings,
    failures: list[extract.Failure],
) -> Source:
    """The features of the videos, by both encoders from one pass, in files beside the output; what failed joins `failures`."""
    own, gvf = Path(f"{options.output}.features.h5"), None
    with contextlib.ExitStack() as stack:

        def writer(path: Path, checkpoint: checkpoints.Checkpoint) -> features.Writer:
            run = extract.run_attributes(checkpoint, settings)
            return stack.enter_context(features.Writer(path, run, overwrite=options.overwrite))

        sink, also = writer(own, model), []
        if start is not None:
            gvf, also = Path(f"{options.output}.gvf_features.h5"), [start]
            sink = _Both(sink, writer(gvf, start), video_resnet.feature_size(model.config.backbone))
        failures += extract.extract(model, videos, sink, settings, also=also).failures
        done = sink.done
    return Source(own, gvf, [item.name for item in videos if not item.fault and item.name in done])


class _Both:
    """Two files of features that one pass fills: a row is the first one's, then the second one's.

    Attributes:
      done: attributes of the videos that both files have.
    """

    def __init__(self, first: features.Writer, second: features.Writer, width: int):
        self._first, self._second, self._width = first, second, width
        self.done: dict[str, features.Attributes] = {name: first.done[name] for name in first.done if name in second.done}

    def commit(self, name: str, features: Float32[np.ndarray, "n f"], attributes: Mapping[str, object]) -> None:
        """Keeps one video in both files."""
        self._first.commit(name, features[:, : self._width], dict(attributes))
        self._second.commit(name, features[:, self._width :], dict(attributes))
        self.done[name] = dict(attributes)


# ------------------------------------------------------------------------------------------------------------ predictions


def predict(
    model: checkpoints.Checkpoint,
    heads: Sequence[str],
    labels: Sequence[str],
    source: Source,
    pool: str,
    thresholds: Sequence[float],
    top_classes: int,
    failures: list[extract.Failure],
) -> predictions.Predictions:
    """The predictions for videos whose features lie in files.

    Args:
      model: which extracted them; it has heads.
      heads: what each of its heads tells, of `predictions.HEADS`.
      labels: of the action classes; empty without that head.
      source: the features.
      pool: a key of `features.POOLS`, for a model that reads a global feature.
      thresholds: of the foreground.
      top_classes: how many of a clip's classes are kept.
      failures: joined by the videos that have no features in one of the files, damaged ones or such as are no numbers,
        unless they stand among them already.

    Raises:
      FeatureFileError: a file is no feature file, or was extracted by another checkpoint or with several geometries.
    """
    variables = jax.device_put(model.variables, jax.local_devices()[0])
    model = dataclasses.replace(model, variables=variables)
    listed = {video_list.video_name(Path(failure.video)) for failure in failures}
    videos, geometry, pooled = {}, None, ""
    for name in tqdm.tqdm(source.names, "predict", unit="video", disable=None):
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
                gvf = features.pool(_of_width(rows.features, item.features.shape[1]), pool)
            if not len(item.features) or not np.all(np.isfinite(item.features)):
                raise ValueError("no clips, or features that are not finite; extract the video again")
        except (features.FeatureFileError, ValueError) as error:
            failures.append(extract.Failure(name, str(error), 0))
            continue
        videos[name] = predict_video(model, heads, labels, item, gvf, thresholds, top_classes)
        if videos[name].damage and name not in listed:
            failures.append(extract.Failure(name, videos[name].damage, len(item.features)))
    clip_len, stride, frame_rate = geometry or (1.0, 1.0, 1.0)
    return predictions.Predictions(
        checkpoint=model.origin.source,
        checkpoint_sha256=model.weights_sha256,
        gvf=pooled,
        heads=tuple(heads),
        labels=tuple(labels),
        thresholds=tuple(thresholds),
        clip_len_sec=clip_len / frame_rate,
        stride_sec=stride / frame_rate,
        videos=videos,
    )


def predict_video(
    model: checkpoints.Checkpoint,
    heads: Sequence[str],
    labels: Sequence[str],
    item: features.VideoFeatures,
    gvf: Float32[np.ndarray, " f"] | None,
    thresholds: Sequence[float],
    top_classes: int,
) -> predictions.Video:
    """What the heads say of one video, and the segments read from that. Arguments are those of `predict`.

    Raises:
      FeatureFileError: attributes that tell when clips are do not fit.
    """
    numbers, (starts, clip_len_sec) = features.clip_numbers(item), features.clip_times(item)
    stride_sec = float(item.attributes["stride"]) / float(item.attributes["frame_rate"])
    duration_sec = features.duration_sec(item)
    middles = starts + clip_len_sec / 2
    cells = np.clip(np.stack([middles - stride_sec / 2, middles + stride_sec / 2], axis=1), 0, duration_sec)
    of_head = dict(zip(heads, probabilities(model, item.features, gvf), strict=True))
    foreground, classes, best = None, None, None
    if "temporal_region" in of_head:
        foreground = of_head["temporal_region"][:, groundtruth.TEMPORAL_REGIONS.index(groundtruth.ACTION)]
    action = of_head.get("action")
    if action is not None:
        classes = np.argsort(-action, axis=1, kind="stable")[:, :top_classes]
        best = np.take_along_axis(action, classes, axis=1)
    return predictions.Video(
        duration_sec=duration_sec,
        damage=str(item.attributes.get("damage", "")),
        segments=read_segments(cells, numbers, foreground, action, labels, thresholds),
        start_sec=starts,
        foreground=None if foreground is None else foreground.astype(np.float32),
        top_classes=None if classes is None else classes.astype(np.int32),
        top_probabilities=None if best is None else best.astype(np.float32),
    )


def check_made_by(model: checkpoints.Checkpoint, item: features.VideoFeatures, path: Path) -> None:
    """Nothing, when a video's features are this checkpoint's.

    Raises:
      FeatureFileError: they are another's.
    """
    found, expected = str(item.attributes.get("checkpoint_sha256", "none")), model.weights_sha256
    if found != expected:
        raise features.FeatureFileError(
            f"{path} (video {item.name!r}): extracted by weights of SHA-256 {found[:8]}…, expected those of "
            f"{model.origin.source}, {expected[:8]}…; extract with --checkpoint as here, or give --videos"
        )
    if item.features.shape[1] != video_resnet.feature_size(model.config.backbone):
        raise features.FeatureFileError(f"{path} (video {item.name!r}): {item.features.shape[1]} features a clip; damaged")


def _of_width(rows: Float32[np.ndarray, "n f"], width: int) -> Float32[np.ndarray, "n f"]:
    if rows.shape[1] != width:
        raise ValueError(f"{rows.shape[1]} features a clip to be pooled; expected {width}")
    return rows


def probabilities(
    model: checkpoints.Checkpoint, rows: Float32[np.ndarray, "n f"], gvf: Float32[np.ndarray, " f"] | None
) -> list[Float64[np.ndarray, "n _"]]:
    """The probabilities of each head's classes for each clip, which add up to 1.

    Args:
      model: with heads.
      rows: features of the clips of one video.
      gvf: the video's global feature, where the model reads it.
    """
    parts = []
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        part = np.zeros((_ROWS_AT_ONCE, rows.shape[1]), np.float32)
        taken = rows[begin : begin + _ROWS_AT_ONCE]
        part[: len(taken)] = taken
        vectors = None if gvf is None else np.tile(gvf, (_ROWS_AT_ONCE, 1))
        parts.append([_softmax(np.asarray(x)[: len(taken)]) for x in _heads(model.config, model.variables, part, vectors)])
    return [np.concatenate(head) for head in zip(*parts, strict=True)]


def _softmax(logits: Float32[np.ndarray, "n k"]) -> Float64[np.ndarray, "n k"]:
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def read_segments(
    cells: Float64[np.ndarray, "n 2"],
    numbers: Int64[np.ndarray, " n"],
    foreground: Float64[np.ndarray, " n"] | None,
    action: Float64[np.ndarray, "n k"] | None,
    labels: Sequence[str],
    thresholds: Sequence[float],
) -> tuple[predictions.Segment, ...]:
    """The segments of a video by the rule that this module's docstring states, by falling score.

    Args:
      cells: [start, end) in seconds that each clip stands for.
      numbers: of the clips among the video's; neighbours differ by 1.
      foreground: probability of the temporal region "Action"; None without that head.
      action: probabilities of the classes; None without that head. One of the two is there.
      labels: of the classes.
      thresholds: of the foreground.

    Raises:
      ValueError: there are neither foreground nor action probabilities.
    """
    if foreground is not None:
        deciding = foreground
    elif action is not None:
        deciding = action.max(axis=1)
    else:
        raise ValueError("expected probabilities of a head, found none")
    found: dict[tuple[int, int], predictions.Segment] = {}
    for threshold in thresholds:
        kept = np.flatnonzero(deciding >= threshold)
        for run in np.split(kept, np.flatnonzero(np.diff(numbers[kept]) > 1) + 1):
            if not len(run):
                continue
            label, score = groundtruth.ACTION, 1.0
            if foreground is not None:
                score *= float(foreground[run].mean())
            if action is not None:
                means = action[run].mean(axis=0)
                label, score = labels[int(means.argmax())], score * float(means.max())
            start_sec, end_sec = float(cells[run[0], 0]), float(cells[run[-1], 1])
            found[int(run[0]), int(run[-1])] = predictions.Segment(label, min(score, 1.0), start_sec, end_sec)
    return tuple(sorted(found.values(), key=lambda item: (-item.score, item.start_sec, item.end_sec)))


if __name__ == "__main__":
    sys.exit(main())
