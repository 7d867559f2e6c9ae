"""From records to batches: which clips stand in which batch is a function of seed and step alone; Grain reads them ahead.

A batch is a dict of arrays, `b` of this process's rows:
  video            uint8 [b, 16, 128, 171, 3], RGB, `b t h w c`; the device mirrors, crops and normalizes it
  crop             int32 [b, 2], top and left of the 112x112 window in the (mirrored) frame
  flip             bool [b], whether frames are mirrored
  action           int32 [b], class number; -1 where there is none
  temporal_region  int32 [b], class number in `segments.TEMPORAL_REGIONS`; -1 in rows that only fill a batch up
  gvf              float32 [b, width], the video's global feature, where one was given
  segment, place   int32 [b], the clip's row in the split's index and its place on the video's grid; -1 as above
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import flags
from jaxtyping import Float32, Int64

from tsp_jax import global_features, groundtruth, records, transforms, video_list
from tsp_jax.system import malloc

Batch = dict[str, np.ndarray]
VALID_CLIPS = 5  # of each segment, evenly spaced: the original's
_WINDOWS = tuple(resized - cropped + 1 for resized, cropped in zip(records.FRAME_SIZE, transforms.KINETICS.crop, strict=True))
_CENTRE = tuple(
    round((resized - cropped) / 2) for resized, cropped in zip(records.FRAME_SIZE, transforms.KINETICS.crop, strict=True)
)


@runtime_checkable
class Source(Protocol):
    """What a split's records are read from, by number; a data source of TFDS is one."""

    def __getitem__(self, number: int, /) -> dict[str, Any]:
        """Returns a record's fields by name."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A split of a data set, open.

    Attributes:
      folder: of the data set.
      index: what its records hold.
      labels: action labels, by class number.
      source: TFDS's, record by record.
      gvf: of each video of the index.
    """

    folder: Path
    index: records.Index
    labels: tuple[str, ...]
    source: Source
    gvf: Float32[np.ndarray, "v f"] | None = None

    def describe(self, segment: int, place: int) -> str:
        """A clip in words, for messages."""
        filename = self.index.video_filename[self.index.segment_video[segment]]
        action = int(self.index.segment_action[segment])
        label = self.labels[action] if action >= 0 else groundtruth.NO_ACTION
        return (
            f"{filename} from {place / records.FRAME_RATE:.2f} s ({label}, line {self.index.segment_row[segment] + 2} of the "
            "ground truth)"
        )


class Clip(NamedTuple):
    """A clip to be read: its segment, record, place on the grid, window and mirroring."""

    segment: int
    record: int
    place: int
    top: int
    left: int
    flip: bool


def open_split(folder: str | Path, split: str, gvf: str | Path | None = None) -> Split:
    """A split of records, when all its shards are there.

    Args:
      folder: what `python -m data_builders.build` printed.
      split: its name.
      gvf: an HDF5 file of global video features, joined by the videos' names.

    Raises:
      RecordsError: shards or the split are missing or damaged, or videos have no global feature.
      FeatureFileError: the file of global features can't be used.
    """
    folder = Path(folder)
    index = records.read_index(folder, split)
    try:
        builder = tfds.builder_from_directory(str(folder))  # type: ignore (its decorator hides the signature)
        source = builder.as_data_source(split)  # type: ignore (likewise)
        labels = tuple(builder.info.features["action"].names)  # type: ignore (a ClassLabel)
    except Exception as error:  # TFDS raises all kinds for files that are missing or damaged
        raise records.RecordsError(f"{folder}: TFDS can't open split {split!r} ({error}); build the records anew") from error
    if len(source) != len(index.record_segment):  # type: ignore (a sequence)
        raise records.RecordsError(
            f"{folder}: split {split!r} has {len(source)} records, its index {len(index.record_segment)}; build them anew"  # type: ignore
        )
    return Split(folder, index, labels, source, None if gvf is None else _join(index, gvf))  # type: ignore (a sequence)


def steps_per_epoch(split: Split, global_batch_size: int, clips_per_segment: int) -> int:
    """Batches in which as many clips stand as an epoch has; the original's last one is smaller, here it runs into the next."""
    return math.ceil(clips_per_segment * len(split.index.segment_row) / global_batch_size)


def train_batches(
    split: Split,
    *,
    global_batch_size: int,
    seed: int,
    clips_per_segment: int = 5,
    balanced: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    start_step: int = 0,
    num_workers: int = 0,
    num_threads: int = 2,
) -> grain.DatasetIterator[Batch]:
    """Batches of random clips without end, from a step on; `close()` ends what reads ahead.

    All segments come `clips_per_segment` times an epoch, in another order and with other starts in each. Row r of the global
    batch of a step is the same for any number of processes; each has a block of neighbouring rows.

    Args:
      split: to draw from.
      global_batch_size: rows of all processes together.
      seed: of order, starts, windows and mirroring.
      clips_per_segment: in an epoch.
      balanced: action and background take turns by row, each with epochs of its own; else rows are drawn as segments are.
      process_index: which block of rows this process has.
      process_count: how many there are.
      start_step: the first batch's; the batches from there on are those of a run that began at 0.
      num_workers: processes that read ahead, one a core to be kept busy; 0 for threads of this one, which together decode no
        faster than one core does, since decoding holds Python's lock.
      num_threads: in each process, batches read at once.

    Raises:
      ValueError: the batch can't be divided so, or a class to balance has no segment.
      RecordsError: when iterating, a record is damaged; the message names its shard.
    """
    local = _local_size(global_batch_size, process_index, process_count)
    if balanced and local % 2:
        raise ValueError(f"balanced batches have an even number of rows in each process; got {local}; change the batch size")
    clip = train_clips(split, clips_per_segment=clips_per_segment, balanced=balanced, seed=seed)
    rows = _rows_of_process(clip, 1 << 40, global_batch_size, process_index, process_count)
    return _read_ahead(rows, local, split, start_step, num_workers, num_threads)


def valid_batches(
    split: Split,
    *,
    global_batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    num_threads: int = 2,
) -> grain.DatasetIterator[Batch]:
    """Each segment's five even clips once, in the order of the segments; the last batch is filled up with rows without labels.

    Raises:
      ValueError: the batch can't be divided so.
      RecordsError: when iterating, a record is damaged; the message names its shard.
    Source: TSP, released data set code: starts at `linspace(0, 1, 5)` of what the segment's length leaves; here at the last
      frame of the 15 fps grid before, and at the nearest one that could be read.
    """
    local = _local_size(global_batch_size, process_index, process_count)
    count = VALID_CLIPS * len(split.index.segment_row)
    clip = functools.partial(_valid_clip, split.index)
    rows = _rows_of_process(clip, math.ceil(count / global_batch_size), global_batch_size, process_index, process_count)
    return _read_ahead(rows, local, split, 0, num_workers, num_threads)


def train_clips(split: Split, *, clips_per_segment: int, balanced: bool, seed: int) -> Callable[[int], Clip]:
    """The n-th of the clips of all global batches in their order, which has no end, for any n.

    Raises:
      ValueError: a class to balance has no segment.
    """
    index = split.index
    streams = [np.arange(len(index.segment_row))]
    if balanced:
        streams = [
            np.flatnonzero(index.segment_temporal_region == region) for region in range(len(groundtruth.TEMPORAL_REGIONS))
        ]
        empty = [name for name, rows in zip(groundtruth.TEMPORAL_REGIONS, streams, strict=True) if not len(rows)]
        if empty:
            raise ValueError(f"{split.folder}: no segment of {', '.join(empty)}, so nothing to balance; turn balancing off")
    return functools.partial(_train_clip, index, streams, clips_per_segment, seed)


def _train_clip(index: records.Index, streams: Sequence[np.ndarray], clips_per_segment: int, seed: int, number: int) -> Clip:
    """Returns the n-th clip of training; the streams, each with rows of the index, take turns."""
    in_stream, stream = divmod(number, len(streams))
    rows = streams[stream]
    epoch, position = divmod(in_stream, clips_per_segment * len(rows))
    segment = int(rows[_epoch_order(clips_per_segment * len(rows), seed, stream, epoch)[position] % len(rows)])
    start, top, left, flip = np.random.default_rng((seed, 1, number)).integers((index.starts(segment), *_WINDOWS, 2)).tolist()
    return Clip(segment, *index.start(segment, start), top, left, bool(flip))


@functools.lru_cache(maxsize=8)
def _epoch_order(count: int, seed: int, stream: int, epoch: int) -> Int64[np.ndarray, " count"]:
    # Grain's shuffle needs no memory, but milliseconds for each of a few hundred; this is drawn once an epoch.
    return np.random.default_rng((seed, 0, stream, epoch)).permutation(count)


def read_clips(split: Split, clips: Sequence[Clip | None]) -> Batch:
    """A batch of these clips; None is a row without labels, of black frames.

    Raises:
      RecordsError: a record is damaged; the message names its shard.
    """
    size = len(clips)
    batch: Batch = {
        "video": np.zeros((size, records.CLIP_LEN, *records.FRAME_SIZE, 3), np.uint8),
        "crop": np.zeros((size, 2), np.int32),
        "flip": np.zeros(size, bool),
        **{name: np.full(size, -1, np.int32) for name in ("action", "temporal_region", "segment", "place")},
    }
    if split.gvf is not None:
        batch["gvf"] = np.zeros((size, split.gvf.shape[1]), np.float32)
    for row, clip in enumerate(clips):
        if clip is None:
            continue
        _read_clip(split, clip, batch["video"][row])
        batch["crop"][row] = clip.top, clip.left
        batch["flip"][row] = clip.flip
        batch["action"][row] = split.index.segment_action[clip.segment]
        batch["temporal_region"][row] = split.index.segment_temporal_region[clip.segment]
        batch["segment"][row], batch["place"][row] = clip.segment, clip.place
        if split.gvf is not None:
            batch["gvf"][row] = split.gvf[split.index.segment_video[clip.segment]]
    return batch


def _read_clip(split: Split, clip: Clip, out: np.ndarray) -> None:
    index = split.index
    try:
        record = split.source[clip.record]
        first = int(index.record_first[clip.record])
        if (record["segment"], record["first_start"]) != (index.segment_row[clip.segment], first):
            raise ValueError("it is not the record that the index tells of")
        begin = clip.place - first
        ends = record["frame_ends"]
        if len(ends) < begin + records.CLIP_LEN:
            raise ValueError(f"it has {len(ends)} frames; expected {begin + records.CLIP_LEN}")
        bounds = [int(ends[begin - 1]) if begin else 0, *ends[begin : begin + records.CLIP_LEN].tolist()]
        for number in range(records.CLIP_LEN):
            records.decode_frame(record["frames"][bounds[number] : bounds[number + 1]], index.codec, out[number])
    except Exception as error:  # array_record's, protobuf's, TFDS's, simplejpeg's and ours
        shard = split.folder / index.shard_of(clip.record)
        raise records.RecordsError(
            f"{shard}: record {clip.record} can't be read ({error}); copy the file again, or build the records anew"
        ) from error


def _rows_of_process(
    clip: Callable[[int], Clip | None], steps: int, global_batch_size: int, process_index: int, process_count: int
) -> grain.MapDataset[Clip | None]:
    """Returns the clips of this process's block of each of `steps` global batches, one after another."""
    local = global_batch_size // process_count
    offset = process_index * local
    return grain.MapDataset.range(local * steps).map(lambda row: clip(row // local * global_batch_size + offset + row % local))


def _read_ahead(
    rows: grain.MapDataset, local: int, split: Split, start_step: int, num_workers: int, num_threads: int
) -> grain.DatasetIterator[Batch]:
    malloc.keep_freed()
    # A batch is one element before anything runs in parallel: neither workers nor threads can change what stands in it.
    batches = rows.batch(local, batch_fn=list).map(lambda clips: read_clips(split, clips))[start_step:]
    ahead = batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads))
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl's flags, which nobody else here uses
        options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
        ahead = ahead.mp_prefetch(options, worker_init_fn=_begin_worker)
    return iter(ahead)


def _begin_worker(worker_index: int, worker_count: int) -> None:
    malloc.keep_freed()


def _valid_clip(index: records.Index, number: int) -> Clip | None:
    """Returns the n-th clip of validation, VALID_CLIPS of each segment; None after the last."""
    segment, place_in_segment = divmod(number, VALID_CLIPS)
    if segment >= len(index.segment_row):
        return None
    fraction = place_in_segment / (VALID_CLIPS - 1)
    start_sec, end_sec = index.segment_start_sec[segment], index.segment_end_sec[segment]
    place = records.place(start_sec + fraction * (end_sec - records.CLIP_SEC - start_sec))
    record, place = index.nearest_start(segment, place)
    return Clip(segment, record, place, *_CENTRE, flip=False)


def _local_size(global_batch_size: int, process_index: int, process_count: int) -> int:
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index is from 0 to process_count - 1; got {process_index} of {process_count}")
    if global_batch_size < 1 or global_batch_size % process_count:
        raise ValueError(f"a batch of {global_batch_size} can't be divided among {process_count} processes; change its size")
    return global_batch_size // process_count


def _join(index: records.Index, path: str | Path) -> Float32[np.ndarray, "v f"]:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected the videos' global features, which `python -m data_builders.gvf` writes, or "
            "data.gvf empty for a model without"
        )
    vectors = global_features.read(path)
    names = [video_list.video_name(Path(filename)) for filename in index.video_filename]
    missing = [name for name in names if name not in vectors]
    if missing:
        raise records.RecordsError(
            f"{path}: no global feature of {len(missing)} of {len(names)} videos, such as {', '.join(missing[:3])}; extract "
            "them and run `python -m data_builders.gvf` again"
        )
    return np.stack([vectors[name] for name in names])
