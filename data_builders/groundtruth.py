"""Writes a data set's ground truth of actions and background: `python -m data_builders.groundtruth --format F …`."""

import argparse
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from typing import get_args

from data_builders import annotation_formats, annotations, row_checks
from tsp_jax import groundtruth, video_names
from tsp_jax.system import cli, errors, tables

_MAX_NEAR_MISSES = 10  # each costs up to a second with ten thousand files


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    The status is 0 if all is well, 1 if annotated videos are missing, and 2 for wrong use or wrong input.
    """
    return cli.run(_work, _parse(arguments))


def _work(options: argparse.Namespace) -> int:
    chosen = annotation_formats.FORMATS[options.format]
    min_background_sec = chosen.min_background_sec if options.min_background_sec is None else options.min_background_sec
    rule = options.background or chosen.background
    labels = groundtruth.read_label_mapping(options.labels) if options.labels else []
    annotated = annotation_formats.read_actions(options.format, options.annotations, options.subset, labels)
    for note in annotated.notes:
        print(f"note: {note}")
    if options.labels:
        annotation_formats.check_labels(annotated.actions, labels, options.labels)
    videos = groundtruth.read_metadata(options.metadata)
    matched, missing = match(annotated.actions, videos)
    nameless = [
        item.filename
        for item, _ in matched
        if not video_names.feature_name(item.filename, options.names or video_names.DEFAULT)
    ]
    if nameless:
        raise ValueError(
            f"{nameless[0]}: begins with a dot, so the rule first_dot of --names leaves no name for its features; pass --names "
            "stem or path, or rename the file"
        )
    if options.names is None:
        video_names.check_distinct(video.filename for video, _ in matched)
    rows = ground_truth(matched, rule, min_background_sec, options.names or video_names.DEFAULT)
    shown = _with_near_misses(missing, videos)
    if not rows:
        raise ValueError(
            f"{options.metadata}: none of the {len(annotated.actions)} annotated videos is in it, such as "
            f"{', '.join(shown[:3])}; check --subset and the file names"
        )
    groundtruth.write_groundtruth(options.output, rows)
    _print_summary(options.output, rows, f"{rule} background of at least {min_background_sec:.4f} s")
    unannotated = len(videos) - len(matched)
    if unannotated:
        print(f"  {unannotated} videos of {options.metadata} have no annotation here and are left out")
    for name in shown:
        print(f"missing: {name}", file=sys.stderr)
    if missing:
        raise errors.UnfinishedError(
            f"{len(missing)} of {len(annotated.actions)} annotated videos are not in {options.metadata} and are left out; "
            "add them, or go on without them"
        )
    return 0


def match(
    actions: Mapping[str, Sequence[annotations.Action]], videos: Sequence[groundtruth.VideoMetadata]
) -> tuple[list[tuple[groundtruth.VideoMetadata, Sequence[annotations.Action]]], list[str]]:
    """Returns each annotated video's metadata with its actions, and the names of the videos without metadata.

    `video_names.Filenames.find` says which file a name means. It may lack the extension, or have that of another container.

    Args:
      actions: the actions of each annotated video, by its name in the annotations.
      videos: the metadata of all videos.

    Raises:
      ValueError: the metadata list a file twice, two files match one name, or two different names match one file.
    """
    metadata: dict[str, groundtruth.VideoMetadata] = {}
    for item in videos:
        if metadata.setdefault(item.filename, item) != item:
            raise ValueError(f"{item.filename}: the metadata have two different rows of this file; keep one")
    filenames = video_names.Filenames(metadata)
    matched: dict[str, list[annotations.Action]] = {}
    owner: dict[str, str] = {}
    missing = []
    for name, items in actions.items():
        found = filenames.find(name)
        if len(found) > 1:
            raise ValueError(
                f"{name}: {' and '.join(found)} both have this name; write the file's whole name in the annotations, or keep "
                "one of them"
            )
        if not found:
            missing.append(name)
            continue
        (filename,) = found
        if video_names.normalized(owner.setdefault(filename, name)) != video_names.normalized(name):
            raise ValueError(f"{filename}: annotated as {owner[filename]} and as {name}; use one name")
        matched.setdefault(filename, []).extend(items)
    return [(metadata[filename], items) for filename, items in matched.items()], missing


def ground_truth(
    videos: Sequence[tuple[groundtruth.VideoMetadata, Sequence[annotations.Action]]],
    rule: annotation_formats.BackgroundRule,
    min_background_sec: float,
    names: video_names.Rule = video_names.DEFAULT,
) -> list[groundtruth.AnnotatedSegment]:
    """Returns all actions, as annotated, and then all background segments, both in the order of the videos.

    With the rule `reference` a video without actions has no rows, as in the released files. With `union` the whole video is
    background.
    """
    actions = [
        _segment(video, action.start_sec, action.end_sec, action.label, names) for video, items in videos for action in items
    ]
    gaps = [
        _segment(video, start_sec, end_sec, "", names)
        for video, items in videos
        if items or rule == "union"
        for start_sec, end_sec in background(
            [(action.start_sec, action.end_sec) for action in items], video.video_duration_sec, rule, min_background_sec
        )
    ]
    return actions + gaps


def background(
    actions: Sequence[tuple[float, float]],
    video_duration_sec: float,
    rule: annotation_formats.BackgroundRule,
    min_background_sec: float,
) -> list[tuple[float, float]]:
    """Returns the parts of a video without action, as (start, end) in seconds, in the order of the actions around them.

    Args:
      actions: each action's (start, end) in seconds. If two have the same start, the first counts as the earlier.
      video_duration_sec: the video's length in seconds.
      rule: the rule of background. With `reference`, as in the released files, the actions are sorted by start, and background
        reaches from the end of one to the start of the next. Where an action lies within another, a part of the longer one
        is thus called background. With `union`, background is what no action covers.
      min_background_sec: the shortest part that is kept, in seconds.

    Source: TSP (Alwassel et al. 2021), the released ground truth. There, actions are not clamped to the video, so `reference`
      may reach beyond its end. The order of ties there is not recognisable. The order of the annotations gives all but 1 of
      THUMOS14's 4,751 background segments, and the right number of ActivityNet's for validation.
    """
    if rule == "reference":
        ordered = sorted(actions, key=lambda action: action[0])
        starts = [0.0, *(end for _, end in ordered)]
        ends = [*(start for start, _ in ordered), video_duration_sec]
    else:
        # An action that ends before it starts covers nothing.
        ordered = sorted((start, end) for start, end in actions if start < min(end, video_duration_sec))
        starts = list(itertools.accumulate((end for _, end in ordered), max, initial=0.0))
        ends = [*(start for start, _ in ordered), video_duration_sec]
    return [
        (start, end)
        for start, end in zip(starts, ends, strict=True)
        if end > start and end - start >= min_background_sec - tables.ROUNDING
    ]


def _segment(
    video: groundtruth.VideoMetadata, start_sec: float, end_sec: float, label: str, names: video_names.Rule
) -> groundtruth.AnnotatedSegment:
    return groundtruth.AnnotatedSegment(
        video_name=video_names.feature_name(video.filename, names),
        start_sec=start_sec,
        end_sec=end_sec,
        action_label=label,
        video_duration_sec=video.video_duration_sec,
        filename=video.filename,
        fps=video.fps,
        num_frames=video.num_frames,
        temporal_region=groundtruth.ACTION if label else groundtruth.NO_ACTION,
    )


def _with_near_misses(missing: Sequence[str], videos: Sequence[groundtruth.VideoMetadata]) -> list[str]:
    """Returns the names of missing videos, the first of them with the file whose name is most like them."""
    filenames = video_names.Filenames(video.filename for video in videos)
    near = {name: filenames.near(name) for name in missing[:_MAX_NEAR_MISSES]}
    return [f"{name} (is it {near[name]}?)" if near.get(name) else name for name in missing]


def _print_summary(output: str, rows: Sequence[groundtruth.AnnotatedSegment], how: str) -> None:
    actions = [row for row in rows if row.temporal_region == groundtruth.ACTION]
    strange = sum(any(row_checks.time_faults(0, row, lenient=True)) for row in actions)
    print(
        f"{output}: {len(actions)} actions of {len({row.action_label for row in actions})} classes and "
        f"{len(rows) - len(actions)} background segments ({how}) in {len({row.filename for row in rows})} videos"
    )
    if strange:
        print(f"  {strange} actions are empty, reversed or leave their video; `python -m data_builders.validate` lists them")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_builders.groundtruth",
        description="Turns annotations into the ground-truth CSV: each action, and the background between actions.",
        epilog="example: python -m data_builders.groundtruth --format thumos14 --annotations TH14_annotations/ --subset valid "
        "--metadata metadata.csv --output thumos14_valid.csv",
    )
    add = parser.add_argument
    add("--format", required=True, choices=list(annotation_formats.FORMATS), help="the format of the annotations")
    add(
        "--annotations",
        required=True,
        help="activitynet: the JSON file; thumos14: the folder of CLASS_val.txt and CLASS_test.txt; csv: a file with the "
        "columns filename or video-name, t-start, t-end, action-label",
    )
    add(
        "--subset",
        help="activitynet: train or valid; thumos14: valid or test; csv: a value of its column `subset` (default: all rows); "
        "in any case, and val, valid and validation mean the same if the annotations have only one of them",
    )
    add("--metadata", required=True, help="the CSV that `python -m data_builders.metadata` writes; only its videos are used")
    add("--output", required=True, help="the ground-truth CSV to write")
    add(
        "--min_background_sec",
        type=_seconds,
        help="the shortest background that is kept, in seconds (default: 5.3333, which is 80 frames at 15 fps, for "
        "activitynet; otherwise 1.0667, which is 16 frames)",
    )
    add(
        "--background",
        choices=get_args(annotation_formats.BackgroundRule),
        help="the rule of background: `reference` as in the released files, or `union` for what no action covers "
        "(default: union for csv, otherwise reference)",
    )
    add(
        "--labels",
        help="a label mapping (JSON) that must contain every action's label; a label that differs from one of it only in "
        "blanks or case takes its spelling",
    )
    add(
        "--names",
        choices=video_names.RULES,
        help=video_names.HELP,
    )
    options = parser.parse_args(arguments)
    if annotation_formats.FORMATS[options.format].needs_subset and not options.subset:
        parser.error(f"--subset is needed with --format {options.format}")
    return options


def _seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"seconds from 0 up; got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
