"""Writes the ground truth of a data set, background included: `python -m data_builders.groundtruth --format F …`."""

import argparse
import dataclasses
import itertools
import json
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from data_builders import validate
from tsp_jax import groundtruth, video_list
from tsp_jax.system import cli, tables

Background = Literal["reference", "union"]
# Shortest background and rule where the flags don't say: 80 frames at 15 fps in ActivityNet, a clip of 16 elsewhere.
DEFAULTS: dict[str, tuple[float, Background]] = {
    "activitynet": (80 / 15, "reference"),
    "thumos14": (16 / 15, "reference"),
    "csv": (16 / 15, "union"),
}
FORMATS = tuple(DEFAULTS)
# The data sets' own names of subsets, by those that the released ground truth has.
_ACTIVITYNET_SUBSETS = {"train": "training", "valid": "validation", "test": "testing"}
_THUMOS14_SUBSETS = {"valid": "val", "validation": "val"}
# CSVs keep some 15 digits of a duration, so a gap of 16 frames may read as a little less.
_ROUNDING_SEC = 1e-6


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0 all well, 1 annotated videos are missing, 2 wrong use or wrong input."""
    options = _parse(arguments)
    cli.show_any_name()
    min_background_sec, rule = DEFAULTS[options.format]
    min_background_sec = min_background_sec if options.min_background_sec is None else options.min_background_sec
    rule = options.background or rule
    try:
        actions = read_actions(options.format, options.annotations, options.subset)
        if options.labels:
            check_labels(actions, groundtruth.read_label_mapping(options.labels), options.labels)
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


@dataclasses.dataclass(frozen=True, order=True)
class Action:
    """An annotated action, as annotated.

    Attributes:
      start_sec: where it begins.
      end_sec: where it ends.
      label: its class.
    """

    start_sec: float
    end_sec: float
    label: str


# A video's name, as the annotations call it: its actions in their order.
Actions = dict[str, list[Action]]


def read_actions(annotation_format: str, path: str | Path, subset: str | None) -> Actions:
    """The annotated videos of a subset with their actions.

    Args:
      annotation_format: one of FORMATS.
      path: ActivityNet's JSON file, the folder of THUMOS14's files, or a CSV file.
      subset: which videos; None for all, where the format allows it.

    Raises:
      FileNotFoundError: nothing is there.
      ValueError: it can't be read as that format, or the subset is not in it.
    """
    readers = {"activitynet": read_activitynet, "thumos14": read_thumos14, "csv": read_csv}
    return readers[annotation_format](Path(path), subset)


def read_activitynet(path: Path, subset: str | None) -> Actions:
    """The videos of a subset, or all, of ActivityNet's JSON, by identifier.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not laid out as `activity_net.v1-3.min.json`, or the subset is not in it or has no annotations.
    """
    expected = 'expected JSON {"database": {ID: {"subset": …, "annotations": [{"segment": [start, end], "label": …}]}}}'
    content = tables.read_json(path, expected)
    try:
        entries = {name: (str(entry["subset"]), list(entry["annotations"])) for name, entry in content["database"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {expected}; {type(error).__name__} ({error})") from error
    subsets = sorted({found for found, _ in entries.values()})
    if subset not in (None, *subsets):
        subset = _ACTIVITYNET_SUBSETS.get(subset, subset)
    if subset not in (None, *subsets):
        raise ValueError(f"{path}: no video of subset {subset!r}; found {', '.join(subsets) or 'no videos'}")
    faults: list[str] = []
    actions = {
        name: [_activitynet_action(item, f"{name} annotation {number}", faults) for number, item in enumerate(items, 1)]
        for name, (found, items) in sorted(entries.items())
        if subset in (None, found)
    }
    tables.refuse(path, faults, "mend them in the file")
    if not any(actions.values()):
        raise ValueError(
            f"{path}: the videos of subset {subset!r} have no annotations; ActivityNet keeps those of testing back"
        )
    return actions


def read_thumos14(folder: Path, subset: str | None) -> Actions:
    """The videos of THUMOS14's per-class files `CLASS_val.txt` or `CLASS_test.txt`, sorted by name.

    The files of `Ambiguous` parts are left out, as the released ground truth leaves them out; so a video with nothing else
    (video_test_0001292) has no rows.

    Raises:
      FileNotFoundError: the folder has no such files.
      ValueError: a line of them is not `VIDEO START END`.
    """
    endings = ["val", "test"] if subset is None else [_THUMOS14_SUBSETS.get(subset, subset)]
    files = sorted(path for ending in endings for path in folder.glob(f"*_{ending}.txt"))
    files = [path for path in files if not path.name.startswith("Ambiguous_")]
    if not files:
        raise FileNotFoundError(
            f"{folder}: no files {' or '.join(f'*_{ending}.txt' for ending in endings)}; expected THUMOS14's folder of files "
            "such as BaseballPitch_val.txt; the subsets are valid and test"
        )
    actions: Actions = defaultdict(list)
    for path in files:
        label = path.stem.rpartition("_")[0]
        faults = []
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected lines VIDEO START END of UTF-8 text ({error})") from error
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if not fields:
                continue
            try:
                name, start_sec, end_sec = fields
                actions[name].append(Action(tables.parse_number(start_sec), tables.parse_number(end_sec), label))
            except ValueError:
                faults.append(f"line {number}: expected VIDEO START END in seconds, found {line!r}")
        tables.refuse(path, faults, "mend them in the file")
    return dict(sorted(actions.items()))


def read_csv(path: Path, subset: str | None) -> Actions:
    """The videos of a CSV with columns filename or video-name, t-start, t-end, action-label, in its order.

    With a column `temporal-region-label` its rows of background are left out, since they are made anew.

    Args:
      path: the file.
      subset: value of the rows' column `subset`; None for all rows.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing, or a row has no video, times or label.
    """
    rows = tables.read_table(path, ("t-start", "t-end", "action-label", *(["subset"] if subset else [])))
    actions: Actions = defaultdict(list)
    faults = []
    for row in rows:
        name = row.fields.get("filename") or row.fields.get("video-name")
        if row.fault or not name:
            faults.append(f"line {row.line}: {row.fault or 'no filename or video-name'}")
            continue
        if row.fields.get("temporal-region-label") == groundtruth.NO_ACTION or (subset and row.fields["subset"] != subset):
            continue
        try:
            start_sec, end_sec = (tables.parse_number(row.fields[column]) for column in ("t-start", "t-end"))
        except ValueError:
            faults.append(
                f"line {row.line}: expected seconds, found t-start {row.fields['t-start']!r}, t-end {row.fields['t-end']!r}"
            )
            continue
        if not row.fields["action-label"]:
            faults.append(f"line {row.line}: no action-label; only {groundtruth.NO_ACTION!r} rows go without")
        actions[name].append(Action(start_sec, end_sec, row.fields["action-label"]))
    tables.refuse(path, faults, "mend them in the file")
    if not actions:
        raise ValueError(f"{path}: no row with an action{f' of subset {subset!r}' if subset else ''}")
    return dict(actions)


def check_labels(actions: Mapping[str, Sequence[Action]], labels: Sequence[str], where: str | Path) -> None:
    """Checks that every action's label stands in a mapping.

    Raises:
      ValueError: some don't; the message names each with a video that has it.
    """
    example = {action.label: name for name, items in actions.items() for action in items}
    unknown = [f"{label!r} ({name})" for label, name in sorted(example.items()) if label not in labels]
    if unknown:
        raise ValueError(f"{where}: no label {', '.join(unknown)}; correct the annotations or the mapping")


def match(
    actions: Mapping[str, Sequence[Action]], videos: Sequence[groundtruth.VideoMetadata]
) -> tuple[list[tuple[groundtruth.VideoMetadata, Sequence[Action]]], list[str]]:
    """Each annotated video's metadata with its actions, and the names of those that have none.

    A name fits the file of that name, or else the one whose name up to the first dot is it or `v_` and it.

    Raises:
      ValueError: two files fit one name, or two names one file.
    """
    by_filename = {item.filename: item for item in videos}
    by_name = defaultdict(list)
    for item in videos:
        by_name[video_list.video_name(Path(item.filename))].append(item)
    matched: dict[str, tuple[groundtruth.VideoMetadata, Sequence[Action]]] = {}
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
    videos: Sequence[tuple[groundtruth.VideoMetadata, Sequence[Action]]], rule: Background, min_background_sec: float
) -> list[groundtruth.Segment]:
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
    actions: Sequence[tuple[float, float]], video_duration_sec: float, rule: Background, min_background_sec: float
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
        if end > start and end - start >= min_background_sec - _ROUNDING_SEC
    ]


def _segment(video: groundtruth.VideoMetadata, start_sec: float, end_sec: float, label: str) -> groundtruth.Segment:
    return groundtruth.Segment(
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


def _activitynet_action(item: Any, where: str, faults: list[str]) -> Action:
    try:
        start_sec, end_sec = map(float, item["segment"])
        if not (math.isfinite(start_sec) and math.isfinite(end_sec) and isinstance(item["label"], str) and item["label"]):
            raise ValueError
        return Action(start_sec, end_sec, item["label"])
    except (ValueError, KeyError, TypeError, OverflowError):
        faults.append(f"{where}: expected a segment [start, end] in seconds and a label, found {json.dumps(item)[:80]}")
        return Action(0.0, 0.0, "")


def _print_summary(output: str, rows: Sequence[groundtruth.Segment], how: str) -> None:
    actions = [row for row in rows if row.temporal_region == groundtruth.ACTION]
    strange = sum(any(validate.time_faults(0, row, lenient=True)) for row in actions)
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
    add("--format", required=True, choices=FORMATS, help="of the annotations")
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
        choices=get_args(Background),
        help="what is background: `reference`, as in the released files; `union`, what no action covers "
        "(default: union for csv, else reference)",
    )
    add("--labels", help="a label mapping (JSON) that must know every action")
    options = parser.parse_args(arguments)
    if options.format != "csv" and not options.subset:
        parser.error(f"--subset is needed with --format {options.format}")
    return options


def _seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"seconds from 0 up; got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
