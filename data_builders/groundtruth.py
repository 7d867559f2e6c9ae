"""Writes the ground truth of a data set, background included: `python -m data_builders.groundtruth --format F …`."""

import argparse
import itertools
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from data_builders import annotation_formats, row_checks
from tsp_jax import groundtruth, video_list
from tsp_jax.system import cli, tables


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0 all well, 1 annotated videos are missing, 2 wrong use or wrong input."""
    options = _parse(arguments)
    cli.show_any_name()
    chosen = annotation_formats.FORMATS[options.format]
    min_background_sec = chosen.min_background_sec if options.min_background_sec is None else options.min_background_sec
    rule = options.background or chosen.background
    try:
        actions = annotation_formats.read_actions(options.format, options.annotations, options.subset)
        if options.labels:
            annotation_formats.check_labels(actions, groundtruth.read_label_mapping(options.labels), options.labels)
        videos = groundtruth.read_metadata(options.metadata)
        matched, missing = match(actions, videos)
        rows = ground_truth(matched, rule, min_background_sec)
        if not rows:
            raise ValueError(
                f"{options.metadata}: none of the {len(actions)} annotated videos is in it, such as "
                f"{', '.join(itertools.islice(actions, 3))}; check --subset and the file names"
            )
        groundtruth.write_groundtruth(options.output, rows)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _print_summary(options.output, rows, f"{rule} background of at least {min_background_sec:.4f} s")
    unannotated = len(videos) - len(matched)
    if unannotated:
        print(f"  {unannotated} videos of {options.metadata} have no annotation here and are left out")
    if missing:
        for name in missing:
            print(f"missing: {name}", file=sys.stderr)
        print(
            f"error: {len(missing)} of {len(actions)} annotated videos are not in {options.metadata} and are left out; "
            "add them, or go on without them",
            file=sys.stderr,
        )
    return 1 if missing else 0


def match(
    actions: Mapping[str, Sequence[annotation_formats.Action]], videos: Sequence[groundtruth.VideoMetadata]
) -> tuple[list[tuple[groundtruth.VideoMetadata, Sequence[annotation_formats.Action]]], list[str]]:
    """Each annotated video's metadata with its actions, and the names of those that have none.

    A name fits the file of that name, or else the one whose name up to the first dot is it or `v_` and it.

    Raises:
      ValueError: two files fit one name, or two names one file.
    """
    by_filename = {item.filename: item for item in videos}
    by_name = defaultdict(list)
    for item in videos:
        by_name[video_list.video_name(Path(item.filename))].append(item)
    matched: dict[str, tuple[groundtruth.VideoMetadata, Sequence[annotation_formats.Action]]] = {}
    owner: dict[str, str] = {}
    missing = []
    for name, items in actions.items():
        found = [by_filename[name]] if name in by_filename else [*by_name[name], *by_name[f"v_{name}"]]
        if len(found) > 1:
            raise ValueError(f"{name}: {' and '.join(item.filename for item in found)} both have this name; keep one")
        if not found:
            missing.append(name)
            continue
        filename = found[0].filename
        if filename in matched:
            raise ValueError(f"{filename}: annotated as {owner[filename]} and as {name}; use one name")
        matched[filename], owner[filename] = (found[0], items), name
    return list(matched.values()), missing


def ground_truth(
    videos: Sequence[tuple[groundtruth.VideoMetadata, Sequence[annotation_formats.Action]]],
    rule: annotation_formats.BackgroundRule,
    min_background_sec: float,
) -> list[groundtruth.AnnotatedSegment]:
    """All actions, as annotated, then all background, each in the order of the videos.

    Under `reference` a video without actions has no rows, as in the released files; under `union` it is background.
    """
    actions = [_segment(video, action.start_sec, action.end_sec, action.label) for video, items in videos for action in items]
    gaps = [
        _segment(video, start_sec, end_sec, "")
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
    """The parts of a video without action, as (start, end) in seconds, ascending by the actions around them.

    Args:
      actions: (start, end) of each; of those with one start the first counts as the earlier.
      video_duration_sec: of the video.
      rule: `reference`, from the end of the action before in the order of starts to the start of the next, as in the released
        files, which call a part of an action background where another one lies within it; `union`, what no action covers.
      min_background_sec: shorter ones are left out.

    Source: TSP (Alwassel et al. 2021), the released ground truth. Actions are not clamped to the video there, so `reference`
      may reach beyond its end. Ties are in no recognisable order there; theirs of the annotations gives all but 1 of
      THUMOS14's 4,751 segments, and the number of ActivityNet's for validation.
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


def _segment(video: groundtruth.VideoMetadata, start_sec: float, end_sec: float, label: str) -> groundtruth.AnnotatedSegment:
    return groundtruth.AnnotatedSegment(
        video_name=video_list.video_name(Path(video.filename)),
        start_sec=start_sec,
        end_sec=end_sec,
        action_label=label,
        video_duration_sec=video.video_duration_sec,
        filename=video.filename,
        fps=video.fps,
        num_frames=video.num_frames,
        temporal_region=groundtruth.ACTION if label else groundtruth.NO_ACTION,
    )


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
    add("--format", required=True, choices=list(annotation_formats.FORMATS), help="of the annotations")
    add(
        "--annotations",
        required=True,
        help="activitynet: the JSON file; thumos14: the folder of CLASS_val.txt and CLASS_test.txt; csv: a file with columns "
        "filename or video-name, t-start, t-end, action-label",
    )
    add(
        "--subset",
        help="activitynet: train or valid; thumos14: valid or test; csv: a value of its column `subset`, needed only there",
    )
    add("--metadata", required=True, help="the CSV that `python -m data_builders.metadata` writes; its videos are used")
    add("--output", required=True, help="the ground-truth CSV")
    add(
        "--min_background_sec",
        type=_seconds,
        help="shortest background that is kept (default: activitynet 5.3333, that is 80 frames at 15 fps; else 1.0667, 16)",
    )
    add(
        "--background",
        choices=get_args(annotation_formats.BackgroundRule),
        help="what is background: `reference`, as in the released files; `union`, what no action covers "
        "(default: union for csv, else reference)",
    )
    add("--labels", help="a label mapping (JSON) that must know every action")
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
