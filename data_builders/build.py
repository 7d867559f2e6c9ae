"""Builds span records: `python -m data_builders.build --dataset D --videos DIR --groundtruth CSV… --data_dir DIR`.

Each shard is written by one process, in the folder `incomplete.VERSION/` next to the final folder. A shard is done once
there is also a note of it. When all shards are done, the folder is moved into place at once. So a killed build leaves nothing
that looks finished, and the same command goes on with the missing shards.
"""

import argparse
import contextlib
import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from data_builders import runners, shards, span_builder, spans
from data_builders.activitynet import activitynet_dataset_builder
from data_builders.thumos14 import thumos14_dataset_builder
from data_builders.video_folder import video_folder_dataset_builder
from tsp_jax import groundtruth, records
from tsp_jax.system import cli, cpu, errors, files, tables

BUILDERS: dict[str, type[span_builder.SpanBuilder]] = {
    "activitynet": activitynet_dataset_builder.Builder,
    "thumos14": thumos14_dataset_builder.Builder,
    "video_folder": video_folder_dataset_builder.Builder,
}
SPLITS = ("train", "valid", "test")
ERRORS_FILE = "errors.csv"
# The line is that of the ground truth, start_sec is a time in the video, and starts counts the clip starts that are lost.
_ERRORS_COLUMNS = ("filename", "line", "start_sec", "starts", "reason")
_KEPT = "finished shards are kept; run the command again to go on"
_RECIPE_FILE = "build.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    The status is 0 if all is well, 1 if parts are left out or the build stopped, 2 for wrong use, and 130 if it was
    interrupted.
    """
    return cli.run(_work, _parse(arguments))


def _work(options: argparse.Namespace) -> int:
    began = time.perf_counter()
    source = make_source(options)
    builder = BUILDERS[options.dataset](source=source, data_dir=options.data_dir, config=options.config)
    plans = source.plan()
    _print_plan(plans, builder.codec)
    tasks = shards.plan(source, builder, plans, options.num_shards, options.on_error)
    work = shards.work_folder(builder)
    if _is_built(builder, tasks):
        if work.exists():  # a build was killed just before its last step, the removal of this folder
            with contextlib.suppress(shards.BuildError), _locked(work):
                pass
        print(f"{builder.data_dir}: the same was built before; nothing to do")
        return 0
    builder.set_labels(source.labels)  # not earlier: if the folder exists, TFDS has read its labels
    with cli.resumable(_KEPT), _locked(work):
        _begin(work, tasks)
        if Path(builder.data_dir).exists():
            raise shards.BuildError(f"another build has just finished {builder.data_dir}; run the command again to compare")
        if options.beam_runner:
            runners.run_on_beam(tasks, options.beam_runner, options.beam_option)
        else:
            runners.run_on_processes(tasks, options.workers)
        failures = finish(builder, plans, tasks)
    _print_summary(builder, failures, time.perf_counter() - began)
    return 1 if failures else 0


def make_source(options: argparse.Namespace) -> span_builder.Source:
    """Returns what the records are made from, as the flags say.

    Raises:
      OSError, ValueError: a file or folder is missing, or a split has no name or the name of another.
    """
    folder = Path(options.videos)
    if not folder.is_dir():
        raise FileNotFoundError(f"--videos {folder}: no such folder")
    csvs: dict[str, Path] = {}
    for text in options.groundtruth:
        split, path = _split_and_path(text)
        if split in csvs:
            raise ValueError(f"--groundtruth: {csvs[split]} and {path} are both split {split}; write NAME=CSV")
        csvs[split] = path
    if options.labels:
        names = groundtruth.read_label_mapping(options.labels)
    else:
        rows = [row for path in csvs.values() for row in groundtruth.read_groundtruth(path)]
        names = groundtruth.action_labels(rows)
    return span_builder.Source(folder, csvs, tuple(names))


# -------------------------------------------------------------------------------------------------------------- finishing


def finish(
    builder: span_builder.SpanBuilder,
    plans: Mapping[str, tuple[Sequence[spans.Video], int]],
    tasks: Sequence[shards.Shard],
) -> list[spans.Failure]:
    """Writes the indexes and TFDS's description next to the finished shards, and moves the folder into place.

    Args:
      builder: the data set's TFDS builder.
      plans: each split's videos, and the number of its segments that are too short.
      tasks: all shards of the build.

    Returns:
      The parts of videos that could not be read and are left out.

    Raises:
      BuildError: nothing of a split could be read.
    """
    folder = shards.work_folder(builder) / "shards"
    for path in {*folder.iterdir()} - {shard.path for shard in tasks}:
        path.unlink()  # an earlier build was killed here and left it
    failures: list[spans.Failure] = []
    infos = []
    for split, (videos, _) in plans.items():
        of_split = [shard for shard in tasks if shard.split == split]
        notes = [_note(shard) for shard in of_split]
        failures += [failure for note in notes for failure in note.failures]
        if not any(note.keys for note in notes):
            for shard in of_split:
                shard.note.unlink()  # so that the same command tries the shard again
            raise shards.BuildError(
                f"split {split}: no part of its {len(videos)} videos can be read, such as {failures[-1].filename}: "
                f"{failures[-1].reason}; repair them and run the command again"
            )
        written = [spans.Shard(shard.path.name, note.num_bytes, note.keys) for shard, note in zip(of_split, notes, strict=True)]
        records.write_index(records.index_path(folder, split), spans.index(videos, builder.codec, written))
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(shard.keys) for shard in written],
                num_bytes=sum(shard.num_bytes for shard in written),
                filename_template=tfds.core.ShardedFileTemplate(
                    dataset_name=builder.name, data_dir=epath.Path(folder), split=split, filetype_suffix="array_record"
                ),
            )
        )
    builder.info.set_splits(tfds.core.splits.SplitDict(infos))  # type: ignore (TFDS loads it lazily)
    builder.info.write_to_directory(str(folder))
    rows = [(item.filename, item.row + 2, f"{item.start_sec:.3f}", item.starts, item.reason) for item in failures]
    tables.write_table(folder / ERRORS_FILE, _ERRORS_COLUMNS, rows, errors="surrogateescape")
    shutil.copyfile(shards.work_folder(builder) / _RECIPE_FILE, folder / _RECIPE_FILE)
    for path in [*folder.iterdir(), folder]:
        files.sync(path)
    folder.rename(builder.data_dir)
    files.sync(Path(builder.data_dir).parent)
    return failures


def _note(shard: shards.Shard) -> shards.Note:
    note = shard.done()
    if note is None:
        raise shards.BuildError(f"{shard.path} went missing, or was changed; run the command again")
    return note


def _recipe(tasks: Sequence[shards.Shard]) -> dict[str, Any]:
    """Returns what a build is made from, to compare it with an earlier build."""
    # The text covers the names of the classes and fields in `spans`. If one is renamed, earlier builds seem to differ.
    content = repr([(shard.split, shard.path.name, shard.videos) for shard in tasks])
    return {
        "format": records.FORMAT_VERSION,
        "codec": tasks[0].codec,
        "labels": list(tasks[0].labels),
        "shards": {split: sum(shard.split == split for shard in tasks) for split in {shard.split: None for shard in tasks}},
        "segments_sha256": hashlib.sha256(content.encode()).hexdigest(),
    }


def _is_built(builder: span_builder.SpanBuilder, tasks: Sequence[shards.Shard]) -> bool:
    """Returns whether the final folder exists and was built from the same.

    Raises:
      ValueError: the folder was built from something else.
    """
    folder = Path(builder.data_dir)
    if not folder.exists():
        return False
    _compare(folder, _recipe(tasks), folder / _RECIPE_FILE)
    return True


def _begin(work: Path, tasks: Sequence[shards.Shard]) -> None:
    """Makes the work folder, or goes on with the one of an earlier build from the same.

    Raises:
      BuildError: the folder there is of a build from something else.
    """
    recipe = _recipe(tasks)
    path = work / _RECIPE_FILE
    if path.exists():
        try:
            _compare(work, recipe, path)
        except ValueError as error:
            raise shards.BuildError(str(error)) from error
    for folder in ("shards", "done"):
        (work / folder).mkdir(exist_ok=True)
        for leftover in (work / folder).glob(".*.tmp"):
            leftover.unlink(missing_ok=True)  # a worker that ends after its build was killed may remove it first
    with files.replacing(path, per_process=True) as temporary:
        temporary.write_text(json.dumps(recipe, indent=1))


def _compare(folder: Path, expected: Mapping[str, Any], path: Path) -> None:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"{folder}: no {path.name} of this command in it; name another --data_dir, or remove the folder"
        ) from error
    different = [key for key in expected if found.get(key) != expected[key]]
    if different:
        lines = [f"{key}: {_difference(found.get(key), expected[key])}" for key in different]
        raise ValueError(
            f"{folder} was built from something else; name another --data_dir, or remove the folder:\n  " + "\n  ".join(lines)
        )


def _difference(found: Any, expected: Any) -> str:
    if isinstance(found, list) and isinstance(expected, list):
        same = [a == b for a, b in zip(found, expected, strict=False)]
        first = same.index(False) if False in same else len(same)
        name = [items[first] if first < len(items) else "none" for items in (found, expected)]
        return f"{len(found)} there, {len(expected)} asked for; number {first} is {name[0]!r} there, {name[1]!r} asked for"
    return f"{json.dumps(found)} there, {json.dumps(expected)} asked for"


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Holds the work folder's lock while the block runs, and removes the folder if the block ends without an error.

    Raises:
      BuildError: another build holds the lock.
    """
    try:
        with files.locked(work / "lock", f"another build is writing in {work}; wait for it, or name another --data_dir"):
            yield
            shutil.rmtree(work)
    except errors.InUseError as error:
        raise shards.BuildError(str(error)) from error


# ---------------------------------------------------------------------------------------------------------------- command


def _split_and_path(text: str) -> tuple[str, Path]:
    """Returns the split's name and the file that `NAME=CSV` or `CSV` means.

    Raises:
      ValueError: the name is invalid, or the file's name does not show it.
    """
    name, equals, path = text.partition("=")
    if equals and not Path(text).exists():
        if not name.isidentifier() or name == "all":  # TFDS reserves it for all splits together
            raise ValueError(
                f"--groundtruth {text}: a split is named by letters, digits and underscores, and not 'all'; got {name!r}"
            )
        return name, Path(path)
    stem = Path(text).stem.lower()
    found = [split for split in SPLITS if split in stem]
    if len(found) != 1 or not re.search(f"(?<![a-z]){found[0]}", stem):  # `latest` does not name the split test
        raise ValueError(f"--groundtruth {text}: which split is it? write train={text}, valid={text} or test={text}")
    return found[0], Path(text)


def _print_plan(plans: Mapping[str, tuple[Sequence[spans.Video], int]], codec: records.Codec) -> None:
    for split, (videos, too_short) in plans.items():
        planned = [span for item in videos for span in item.spans]
        frames = sum(item.num_kept_frames for item in videos)
        print(
            f"{split}: {len(videos)} videos, {len({span.segment.row for span in planned})} segments, {len(planned)} records of "
            f"{frames} frames, about {frames * span_builder.BYTES_A_FRAME[codec] / 1e9:.1f} GB; {too_short} segments are "
            "shorter than a clip and left out"
        )


def _print_summary(builder: span_builder.SpanBuilder, failures: Sequence[spans.Failure], seconds: float) -> None:
    folder = Path(builder.data_dir)
    lost = sum(failure.starts for failure in failures)
    for failure in failures[:10]:
        print(f"left out: {failure.filename} from {failure.start_sec:.1f} s: {failure.reason}", file=sys.stderr)
    sizes = [f"{name} {info.num_examples} records in {info.num_shards} shards" for name, info in builder.info.splits.items()]
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {', '.join(sizes)}; {size / 1e9:.2f} GB, {seconds:.0f} s")
    if failures:
        videos = len({failure.filename for failure in failures})
        print(
            f"error: {lost} clip starts of {videos} videos can't be read and are left out; see {folder / ERRORS_FILE}",
            file=sys.stderr,
        )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_builders.build",
        description="Decodes annotated videos once and writes the frames of their segments, small, as sharded TFDS records "
        "for training. If it was stopped, the same command goes on.",
        epilog="example: python -m data_builders.build --dataset video_folder --videos videos/ --groundtruth train.csv "
        "valid.csv --data_dir records/",
    )
    add = parser.add_argument
    add("--dataset", required=True, choices=list(BUILDERS), help="the data set; video_folder for your own videos")
    add("--videos", required=True, help="the folder of the videos; the ground truth's file names are relative to it")
    add(
        "--groundtruth",
        required=True,
        nargs="+",
        metavar="CSV",
        help="one file for each split, written by `python -m data_builders.groundtruth`: NAME=CSV, or a file whose name "
        "contains train, valid or test",
    )
    add("--data_dir", required=True, help="the folder below which the records go, as DATA_DIR/DATASET/CONFIG/VERSION")
    add("--labels", metavar="JSON", help="the action label mapping (default: all labels of the ground truth, sorted)")
    add(
        "--config",
        choices=[item.name for item in span_builder.CONFIGS],
        default="jpeg",
        help="encoding of the frames (default: %(default)s)",
    )
    add("--num_shards", type=cli.positive_int, help="number of files in each split (default: files of about 256 MB)")
    workers = cpu.cores()
    add("--workers", type=cli.positive_int, default=workers, help="number of processes (default: %(default)s)")
    add("--on_error", choices=["skip", "stop"], default="skip", help="what to do if a part of a video can't be read")
    add("--beam_runner", help="run on Apache Beam instead, with DirectRunner, FlinkRunner, SparkRunner or DataflowRunner")
    add("--beam_option", action="append", default=[], metavar="OPTION", help="an option for Beam; may be repeated")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
