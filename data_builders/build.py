"""Builds span records: `python -m data_builders.build --dataset D --videos DIR --groundtruth CSV… --data_dir DIR`.

Shards are written apart, each by one process, in `incomplete.VERSION/` beside the folder to be, and a shard counts as done once
a note of it lies there too. When all are done the folder is moved into place at once. So a build that was killed has left
nothing that looks finished, and the same command goes on with the shards that are missing.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from array_record.python import array_record_module  # type: ignore (a compiled module)
from etils import epath

from data_builders import labels as label_mappings
from data_builders import span_builder, spans
from data_builders.activitynet import activitynet_dataset_builder
from data_builders.thumos14 import thumos14_dataset_builder
from data_builders.video_folder import video_folder_dataset_builder
from tsp_jax import groundtruth, records
from tsp_jax.system import cli, cpu, files, tables

BUILDERS: dict[str, type[span_builder.SpanBuilder]] = {
    "activitynet": activitynet_dataset_builder.Builder,
    "thumos14": thumos14_dataset_builder.Builder,
    "video_folder": video_folder_dataset_builder.Builder,
}
SPLITS = ("train", "valid", "test")
ERRORS_FILE = "errors.csv"
_ERRORS_COLUMNS = ("filename", "line", "start_sec", "starts", "reason")  # of the ground truth, of the video, of clips
_RECIPE_FILE = "build.json"
_SHARD_BYTES = 1 << 28  # about, where --num_shards does not tell


class BuildError(Exception):
    """A build can't go on; the message says why, and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0 all well, 1 parts are left out or the build stopped, 2 wrong use."""
    options = _parse(arguments)
    cli.show_any_name()
    began = time.perf_counter()
    try:
        source = make_source(options)
        builder = BUILDERS[options.dataset](source=source, data_dir=options.data_dir, config=options.config)
        plans = source.plan()
        _print_plan(plans, builder.codec)
        tasks = plan_shards(source, builder, plans, options.num_shards, options.on_error)
        work = _work_folder(builder)
        if _is_built(builder, tasks):
            if work.exists():  # what a build left that was killed after its last step but one
                with contextlib.suppress(BuildError), _locked(work):
                    pass
            print(f"{builder.data_dir}: built before of the same; nothing to do")
            return 0
        builder.set_labels(source.labels)  # not before: TFDS has read those of a folder that is there
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        with _locked(work):
            _begin(work, tasks)
            if Path(builder.data_dir).exists():
                raise BuildError(f"another build has just finished {builder.data_dir}; run the command again to compare")
            if options.beam_runner:
                run_on_beam(tasks, options.beam_runner, options.beam_option)
            else:
                run_on_processes(tasks, options.workers)
            failures = finish(builder, plans, tasks)
    except KeyboardInterrupt:
        print("interrupted; run the command again to go on", file=sys.stderr)
        return 130
    except (OSError, BuildError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _print_summary(builder, failures, time.perf_counter() - began)
    return 1 if failures else 0


def make_source(options: argparse.Namespace) -> span_builder.Source:
    """What the flags name.

    Raises:
      OSError, ValueError: a file or folder is not there, or splits have no name or the same.
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
        names = label_mappings.action_labels(rows)
    return span_builder.Source(folder, csvs, tuple(names))


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file to write: a task for one process.

    Attributes:
      split: that it is of.
      path: the file.
      note: what tells that it is done, and of what.
      folder: of the videos.
      videos: whose records it holds.
      labels: action labels, by class number.
      codec: of the frames.
      stop_on_error: raise at the first part that can't be read.
    """

    split: str
    path: Path
    note: Path
    folder: Path
    videos: tuple[spans.Video, ...]
    labels: tuple[str, ...]
    codec: records.Codec
    stop_on_error: bool

    @property
    def num_frames(self) -> int:
        """About how much work it is."""
        return sum(item.num_kept_frames for item in self.videos)

    def done(self) -> "Note | None":
        """What its note says; None when it is to be written: there is no note, or not the file that it tells of."""
        try:
            content = json.loads(self.note.read_text())
            failures = tuple(spans.Failure(**failure) for failure in content["failures"])
            found = Note(tuple(content["keys"]), content["num_bytes"], failures)
            whole = self.path.stat().st_size == found.num_bytes
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return None if not whole or (self.stop_on_error and found.failures) else found


@dataclasses.dataclass(frozen=True)
class Note:
    """What a shard holds: the keys of its records, its size, and the parts that could not be read."""

    keys: tuple[int, ...]
    num_bytes: int
    failures: tuple[spans.Failure, ...]


def plan_shards(
    source: span_builder.Source,
    builder: span_builder.SpanBuilder,
    plans: Mapping[str, tuple[Sequence[spans.Video], int]],
    num_shards: int | None,
    on_error: str,
) -> list[Shard]:
    """The shards of all splits, of neighbouring videos and about equal frames; fewer than asked for where videos are few.

    Args:
      source: what is built.
      builder: of the data set.
      plans: of each split.
      num_shards: of each split; None for as many as make about 256 MB each.
      on_error: `stop` or `skip`.
    """
    work, shards = _work_folder(builder), []
    for split, (videos, _) in plans.items():
        frames = np.cumsum([item.num_kept_frames for item in videos])
        wanted = num_shards or max(1, round(frames[-1] * span_builder.BYTES_A_FRAME[builder.codec] / _SHARD_BYTES))
        middle = frames - np.diff(frames, prepend=0) / 2
        number = np.minimum(np.floor(middle / frames[-1] * wanted).astype(int), wanted - 1)
        groups = [[videos[i] for i in np.flatnonzero(number == k).tolist()] for k in np.unique(number)]
        for k, group in enumerate(groups):
            name = f"{builder.name}-{split}.array_record-{k:05d}-of-{len(groups):05d}"
            shards.append(
                Shard(
                    split,
                    work / "shards" / name,
                    work / "done" / f"{name}.json",
                    source.videos.resolve(),
                    tuple(group),
                    source.labels,
                    builder.codec,
                    on_error == "stop",
                )
            )
    return shards


# ---------------------------------------------------------------------------------------------------------------- a shard


def write_shard(shard: Shard, keep_on: Callable[[], bool] = lambda: True) -> None:
    """Writes a shard and then its note, each whole or not at all; nothing when that was done before.

    Args:
      shard: to write.
      keep_on: asked between records; the shard is given up when it says no.

    Raises:
      BuildError: a part can't be read and the policy is to stop, or it can't be written.
    """
    if shard.done():
        return
    serialize = span_builder.serializer(shard.labels)
    temporary = shard.path.with_name(f".{shard.path.name}.{os.getpid()}.tmp")
    misdated: set[str] = set()
    try:
        while True:
            try:
                keys, failures = _write(shard, temporary, serialize, misdated, keep_on)
                break
            except spans.MisdatedError as error:
                if str(error) in misdated:
                    raise BuildError(f"{error}: its frames come at other times each time it is read; standardize it") from error
                misdated.add(str(error))
                temporary.unlink(missing_ok=True)  # a writer that still holds it writes into nothing
        _check_written(temporary, len(keys))
        files.sync(temporary)
        note = Note(tuple(keys), temporary.stat().st_size, tuple(failures))
        temporary.replace(shard.path)
    finally:
        temporary.unlink(missing_ok=True)
    _replace_text(shard.note, json.dumps(dataclasses.asdict(note)))


def _write(
    shard: Shard,
    path: Path,
    serialize: Callable[[spans.Example], bytes],
    misdated: set[str],
    keep_on: Callable[[], bool],
) -> tuple[list[int], list[spans.Failure]]:
    """The keys written, and the parts that could not be read."""
    keys: list[int] = []
    failures: list[spans.Failure] = []

    def note(failure: spans.Failure) -> None:
        if shard.stop_on_error:
            raise BuildError(
                f"{failure.filename} from {failure.start_sec:.1f} s: {failure.reason}; repair it, or pass --on_error skip"
            )
        failures.append(failure)

    # JPEG does not shrink further: trying takes longer than writing.
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    try:
        for item in shard.videos:
            done = spans.examples(shard.folder, item, shard.codec, note, dated_by_decoding=item.filename in misdated)
            for key, example in done:
                writer.write(serialize(example))
                keys.append(key)
                if not keep_on():
                    raise BuildError("stopped")
        writer.close()
    except RuntimeError as error:  # of array_record
        raise BuildError(f"{path} can't be written ({error}); is the disk full? Run the command again to go on") from error
    return keys, failures


def _check_written(path: Path, num_records: int) -> None:
    """Reads a shard's end, where array_record tells what it holds."""
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        found = reader.num_records()
        reader.close()
    except RuntimeError as error:
        raise BuildError(f"{path} can't be read after writing ({error}); is the disk full?") from error
    if found != num_records:
        raise BuildError(f"{path} holds {found} records after writing {num_records}; is the disk full?")


# ---------------------------------------------------------------------------------------------------------------- running


def run_on_processes(shards: Sequence[Shard], workers: int) -> None:
    """Writes the shards that are missing, several at once on this machine.

    Raises:
      BuildError: a shard can't be written, or a process died.
    """
    to_do = sorted((shard for shard in shards if not shard.done()), key=lambda shard: -shard.num_frames)
    # New processes: a fork of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = concurrent.futures.ProcessPoolExecutor(min(workers, len(to_do)) or 1, context, _begin_worker, (stop,))
    try:
        with _bar(shards) as bar:
            jobs = {pool.submit(_write_unless_stopped, shard): shard for shard in to_do}
            for job in concurrent.futures.as_completed(jobs):
                job.result()
                bar.update(jobs[job].num_frames)
    except concurrent.futures.process.BrokenProcessPool as error:
        raise BuildError(
            "a worker died (killed, or out of memory); finished shards are kept: run the command again, with fewer --workers "
            "if memory was short"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def run_on_beam(shards: Sequence[Shard], runner: str, options: Sequence[str]) -> None:
    """Writes the shards that are missing on an Apache Beam runner, whose workers see the same folders under the same paths.

    Raises:
      BuildError: Beam is not installed, or a shard can't be written.
    """
    try:
        import apache_beam as beam  # type: ignore (an extra)
        from apache_beam.options import pipeline_options  # type: ignore
    except ModuleNotFoundError as error:
        raise BuildError("--beam_runner needs Apache Beam: pip install 'tsp_jax[beam]'") from error
    to_do = [shard for shard in shards if not shard.done()]
    finished = threading.Event()
    with _bar(shards) as bar:

        def watch() -> None:
            waiting = {shard.note: shard for shard in to_do}
            while waiting and not finished.wait(1):
                for note in [note for note, shard in waiting.items() if shard.done()]:
                    bar.update(waiting.pop(note).num_frames)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            with beam.Pipeline(runner=runner, options=pipeline_options.PipelineOptions(list(options))) as pipeline:
                _ = pipeline | beam.Create(to_do) | beam.Reshuffle() | "WriteShard" >> beam.Map(write_shard)
        except Exception as error:  # what a runner raises depends on the runner
            raise BuildError(f"{runner}: {error}") from error
        finally:
            finished.set()
            watcher.join()
    missing = [shard.path.name for shard in to_do if not shard.done()]
    if missing:
        raise BuildError(
            f"{runner} ended, but {len(missing)} shards such as {missing[0]} are not in {to_do[0].path.parent}; its workers "
            "must see --videos and --data_dir under the same paths"
        )


_stop: Any = None  # in a worker: the event that ends it


def _begin_worker(stop: Any) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker when its parent was killed: it would write beside the next run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _write_unless_stopped(shard: Shard) -> None:
    write_shard(shard, lambda: not _stop.is_set())


def _bar(shards: Sequence[Shard]) -> tqdm.tqdm:
    done = sum(shard.num_frames for shard in shards if shard.done())
    total = sum(shard.num_frames for shard in shards)
    return tqdm.tqdm(desc="build", total=total, initial=done, unit="frame", unit_scale=True, disable=None)


# -------------------------------------------------------------------------------------------------------------- finishing


def finish(
    builder: span_builder.SpanBuilder,
    plans: Mapping[str, tuple[Sequence[spans.Video], int]],
    shards: Sequence[Shard],
) -> list[spans.Failure]:
    """Writes the indexes and TFDS's description beside the finished shards and moves all into place; the parts left out.

    Raises:
      BuildError: of a split nothing could be read.
    """
    folder = _work_folder(builder) / "shards"
    for path in {*folder.iterdir()} - {shard.path for shard in shards}:
        path.unlink()  # what a build left that was killed here
    failures: list[spans.Failure] = []
    infos = []
    for split, (videos, _) in plans.items():
        of_split = [shard for shard in shards if shard.split == split]
        notes = [_note(shard) for shard in of_split]
        failures += [failure for note in notes for failure in note.failures]
        if not any(note.keys for note in notes):
            for shard in of_split:
                shard.note.unlink()  # so that the same command tries again
            raise BuildError(
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
    shutil.copyfile(_work_folder(builder) / _RECIPE_FILE, folder / _RECIPE_FILE)
    for path in [*folder.iterdir(), folder]:
        files.sync(path)
    folder.rename(builder.data_dir)
    files.sync(Path(builder.data_dir).parent)
    return failures


def _note(shard: Shard) -> Note:
    note = shard.done()
    if note is None:
        raise BuildError(f"{shard.path} went missing, or was changed; run the command again")
    return note


def _work_folder(builder: span_builder.SpanBuilder) -> Path:
    final = Path(builder.data_dir)
    return final.with_name(f"incomplete.{final.name}")


def _recipe(shards: Sequence[Shard]) -> dict[str, Any]:
    """What a build is made from, to compare with one that began before."""
    content = repr([(shard.split, shard.path.name, shard.videos) for shard in shards])
    return {
        "format": records.FORMAT_VERSION,
        "codec": shards[0].codec,
        "labels": list(shards[0].labels),
        "shards": {split: sum(shard.split == split for shard in shards) for split in {shard.split: None for shard in shards}},
        "segments_sha256": hashlib.sha256(content.encode()).hexdigest(),
    }


def _is_built(builder: span_builder.SpanBuilder, shards: Sequence[Shard]) -> bool:
    """Whether the folder is there, of the same.

    Raises:
      ValueError: it was built from something else.
    """
    folder = Path(builder.data_dir)
    if not folder.exists():
        return False
    _compare(folder, _recipe(shards), folder / _RECIPE_FILE)
    return True


def _begin(work: Path, shards: Sequence[Shard]) -> None:
    """Makes the work folder, or takes up that of a build of the same.

    Raises:
      BuildError: it is of something else.
    """
    recipe = _recipe(shards)
    path = work / _RECIPE_FILE
    if path.exists():
        try:
            _compare(work, recipe, path)
        except ValueError as error:
            raise BuildError(str(error)) from error
    for folder in ("shards", "done"):
        (work / folder).mkdir(exist_ok=True)
        for leftover in (work / folder).glob(".*.tmp"):
            leftover.unlink(missing_ok=True)  # a worker of a killed build, about to end, may take it away too
    _replace_text(path, json.dumps(recipe, indent=1))


def _compare(folder: Path, expected: Mapping[str, Any], path: Path) -> None:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{folder}: no {path.name} of this command in it; name another --data_dir, or remove it") from error
    different = [key for key in expected if found.get(key) != expected[key]]
    if different:
        lines = [f"{key}: {_difference(found.get(key), expected[key])}" for key in different]
        raise ValueError(
            f"{folder} was built from something else; name another --data_dir, or remove it:\n  " + "\n  ".join(lines)
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
    """Holds a work folder against a second build; without an error it is removed at the end.

    Raises:
      BuildError: another build holds it.
    """
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "a") as lock:
        _lock(lock, work)
        yield
        shutil.rmtree(work)


def _lock(lock: TextIO, work: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BuildError(f"another build is writing in {work}; wait for it, or name another --data_dir") from error


def _replace_text(path: Path, text: str) -> None:
    """Like `files.replacing`, for several writers: Beam may run a task twice."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        files.sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------- command


def _split_and_path(text: str) -> tuple[str, Path]:
    """The split and file that `NAME=CSV` or `CSV` says.

    Raises:
      ValueError: the name can't be told.
    """
    name, equals, path = text.partition("=")
    if equals and not Path(text).exists():
        if not name.isidentifier() or name == "all":  # which TFDS keeps for all of them
            raise ValueError(
                f"--groundtruth {text}: a split is named by letters, digits and underscores, and not 'all'; got {name!r}"
            )
        return name, Path(path)
    stem = Path(text).stem.lower()
    found = [split for split in SPLITS if split in stem]
    if len(found) != 1 or not re.search(f"(?<![a-z]){found[0]}", stem):  # not that of `latest`
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
        "for training. Run again, it goes on where it was stopped.",
        epilog="example: python -m data_builders.build --dataset video_folder --videos videos/ --groundtruth train.csv "
        "valid.csv --data_dir records/",
    )
    add = parser.add_argument
    add("--dataset", required=True, choices=list(BUILDERS), help="video_folder for one's own")
    add("--videos", required=True, help="the folder that the ground truth's file names are relative to")
    add(
        "--groundtruth",
        required=True,
        nargs="+",
        metavar="CSV",
        help="one for each split, as `python -m data_builders.groundtruth` writes them: NAME=CSV, or a file whose name says "
        "train, valid or test",
    )
    add("--data_dir", required=True, help="where the data set's folder goes: DATA_DIR/DATASET/CONFIG/VERSION")
    add("--labels", metavar="JSON", help="the action label mapping; without it, all labels of the ground truth, sorted")
    add("--config", choices=[item.name for item in span_builder.CONFIGS], default="jpeg", help="default: %(default)s")
    add("--num_shards", type=cli.positive_int, help="files of each split; without it, of about 256 MB")
    workers = cpu.cores()
    add("--workers", type=cli.positive_int, default=workers, help="processes (default: %(default)s)")
    add("--on_error", choices=["skip", "stop"], default="skip", help="what to do at a part of a video that can't be read")
    add("--beam_runner", help="run on Apache Beam instead: DirectRunner, FlinkRunner, SparkRunner, DataflowRunner")
    add("--beam_option", action="append", default=[], metavar="OPTION", help="passed on to Beam; may be repeated")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
