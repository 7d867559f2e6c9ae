"""Plans the shards of a build, and writes one shard with the note that says it is done."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from array_record.python import array_record_module  # type: ignore (a compiled module)

from data_builders import span_builder, spans
from tsp_jax import records
from tsp_jax.system import errors, files

_SHARD_BYTES = 1 << 28  # approximate size of a shard if --num_shards is not given


class BuildError(errors.UnfinishedError):
    """A build can't go on. The message says why, and what to do."""


@dataclasses.dataclass(frozen=True)
class Note:
    """What a finished shard holds.

    Attributes:
      keys: the keys of its records, in their order in the file.
      num_bytes: the file's size in bytes.
      failures: the parts of videos that could not be read.
    """

    keys: tuple[int, ...]
    num_bytes: int
    failures: tuple[spans.Failure, ...]


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file to write, which is a task for one process.

    Attributes:
      split: the split that the shard belongs to.
      path: the shard's file.
      note: the file that says that the shard is done, and what it holds.
      folder: the folder of the videos.
      videos: the videos whose records the shard holds.
      labels: action labels, by class number.
      codec: the encoding of the frames.
      stop_on_error: whether the build stops at the first part that can't be read.
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
        """The number of frames in the shard's records, which is a measure of the work."""
        return sum(item.num_kept_frames for item in self.videos)

    def done(self) -> Note | None:
        """Returns the shard's note, or None if the shard is still to be written.

        A shard without a note is to be written, and so is one whose file has not the size that the note says. With
        `stop_on_error`, so is one that lacks parts.
        """
        try:
            content = json.loads(self.note.read_text())
            failures = tuple(spans.Failure(**failure) for failure in content["failures"])
            found = Note(tuple(content["keys"]), content["num_bytes"], failures)
            whole = self.path.stat().st_size == found.num_bytes
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return None if not whole or (self.stop_on_error and found.failures) else found


def work_folder(builder: span_builder.SpanBuilder) -> Path:
    """Returns the folder that a build writes in until it is complete."""
    final = Path(builder.data_dir)
    return final.with_name(f"incomplete.{final.name}")


def plan(
    source: span_builder.Source,
    builder: span_builder.SpanBuilder,
    plans: Mapping[str, tuple[Sequence[spans.Video], int]],
    num_shards: int | None,
    on_error: str,
) -> list[Shard]:
    """Returns the shards of all splits. Each holds consecutive videos and about as many frames as the others.

    If there are few videos, there are fewer shards than asked for.

    Args:
      source: what the records are made from.
      builder: the data set's TFDS builder.
      plans: each split's videos, and the number of its segments that are too short.
      num_shards: the number of shards in each split; None for as many as make about 256 MB each.
      on_error: `stop` or `skip`.
    """
    work, shards = work_folder(builder), []
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


def write_shard(shard: Shard, keep_on: Callable[[], bool] = lambda: True) -> None:
    """Writes a shard and then its note, each whole or not at all. Does nothing if both are there.

    Args:
      shard: the shard to write.
      keep_on: is called between records. The shard is given up if it returns False.

    Raises:
      BuildError: a part can't be read and the policy is to stop, or the shard can't be written.
    """
    if shard.done():
        return
    serialize = span_builder.serializer(shard.labels)
    misdated: set[str] = set()
    # Beam may run a task twice, so that two processes write the same shard at the same time.
    with files.replacing(shard.path, per_process=True) as temporary:
        while True:
            try:
                keys, failures = _write(shard, temporary, serialize, misdated, keep_on)
                break
            except spans.MisdatedError as error:
                if str(error) in misdated:
                    raise BuildError(
                        f"{error}: its frames have other times each time it is decoded; standardize the video"
                    ) from error
                misdated.add(str(error))
                temporary.unlink(missing_ok=True)  # a writer that is still open keeps writing to the removed file
        _check_written(temporary, len(keys))
        note = Note(tuple(keys), temporary.stat().st_size, tuple(failures))
    with files.replacing(shard.note, per_process=True) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(note)))


def _write(
    shard: Shard,
    path: Path,
    serialize: Callable[[spans.Example], bytes],
    misdated: set[str],
    keep_on: Callable[[], bool],
) -> tuple[list[int], list[spans.Failure]]:
    """Writes a shard's records to `path`. Returns their keys and the parts that could not be read."""
    keys: list[int] = []
    failures: list[spans.Failure] = []

    def note(failure: spans.Failure) -> None:
        if shard.stop_on_error:
            raise BuildError(
                f"{failure.filename} from {failure.start_sec:.1f} s: {failure.reason}; repair it, or pass --on_error skip"
            )
        failures.append(failure)

    # JPEG does not shrink further, and trying takes longer than writing.
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
    except RuntimeError as error:  # array_record raises it
        raise BuildError(f"{path} can't be written ({error}); is the disk full? Run the command again to go on") from error
    return keys, failures


def _check_written(path: Path, num_records: int) -> None:
    """Checks that a shard holds this many records, by reading its end; raises BuildError if not."""
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        found = reader.num_records()
        reader.close()
    except RuntimeError as error:
        raise BuildError(f"{path} can't be read after writing ({error}); is the disk full?") from error
    if found != num_records:
        raise BuildError(f"{path} holds {found} records after writing {num_records}; is the disk full?")
