"""Reads batches of clips from records. A batch's clips are a function of the seed and the step alone; Grain reads ahead.

A batch is a dict of arrays, where `b` is the number of this process's rows:
  video            uint8 [b, 16, 128, 171, 3], RGB, `b t h w c`; the device mirrors, crops and normalizes it
  crop             int32 [b, 2], top and left of the 112x112 window in the (mirrored) frame
  flip             bool [b], whether the frames are to be mirrored
  action           int32 [b], class number; -1 for background
  temporal_region  int32 [b], class number in `groundtruth.TEMPORAL_REGIONS`; -1 in rows that only fill up the batch
  gvf              float32 [b, width], the video's global feature; absent if the split has none
  segment          int32 [b], the clip's segment as a row of the split's index; -1 in rows that only fill up the batch
  place            int32 [b], grid place of the clip's first frame; -1 in rows that only fill up the batch
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

from tsp_jax import features, groundtruth, records, transforms, video_names
from tsp_jax.features import global_features
from tsp_jax.system import malloc

Batch = dict[str, np.ndarray]
VALID_CLIPS = 5  # evenly spaced clips of each segment in validation, as in the original
_WINDOWS = tuple(resized - cropped + 1 for resized, cropped in zip(records.FRAME_SIZE, transforms.KINETICS.crop, strict=True))
_CENTRE = tuple(
    round((resized - cropped) / 2) for resized, cropped in zip(records.FRAME_SIZE, transforms.KINETICS.crop, strict=True)
)


@runtime_checkable
class Source(Protocol):
    """The protocol of what reads a split's records by number, such as a data source of TFDS."""

    def __getitem__(self, number: int, /) -> dict[str, Any]:
        """Returns a record's fields by name."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """An open split of a data set.

    Attributes:
      folder: the data set's folder.
      index: the list of what its records hold.
      labels: action labels, by class number.
      source: reads the records by number.
      gvf: the global feature of each video of the index; None if there are none.
    """

    folder: Path
    index: records.Index
    labels: tuple[str, ...]
    source: Source
    gvf: Float32[np.ndarray, "v f"] | None = None

    def describe(self, segment: int, place: int) -> str:
        """Describes a clip in words, for messages."""
        filename = self.index.video_filename[self.index.segment_video[segment]]
        action = int(self.index.segment_action[segment])
        label = self.labels[action] if action >= 0 else groundtruth.NO_ACTION
        return (
            f"{filename} from {place / records.FRAME_RATE:.2f} s ({label}, line {self.index.segment_row[segment] + 2} of the "
            "ground truth)"
        )


class Clip(NamedTuple):
    """A clip to read.

    Attributes:
      segment: the clip's segment, as a row of the index.
      record: the record that holds the clip's frames.
      place: grid place of the clip's first frame.
      top: top of its 112x112 window in the frame, in pixels.
      left: left of its window, in pixels.
      flip: whether its frames are to be mirrored.
    """

    segment: int
    record: int
    place: int
    top: int
    left: int
    flip: bool


def open_split(folder: str | Path, split: str, gvf: str | Path | None = None) -> Split:
    """Opens a split of records, after checking that all its shards are there.

    Args:
      folder: the folder that `python -m data_builders.build` printed.
      split: the split's name.
      gvf: an HDF5 file of global video features, which are found by the videos' names.

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
    except Exception as error:  # TFDS raises many kinds for missing or damaged files
        raise records.RecordsError(f"{folder}: TFDS can't open split {split!r} ({error}); build the records again") from error
    if len(source) != len(index.record_segment):  # type: ignore (a sequence)
        raise records.RecordsError(
            f"{folder}: split {split!r} has {len(source)} records, its index {len(index.record_segment)}; build them again"  # type: ignore
        )
    return Split(folder, index, labels, source, None if gvf is None else _join(index, gvf))  # type: ignore (a sequence)


def steps_per_epoch(split: Split, global_batch_size: int, clips_per_segment: int) -> int:
    """Returns the number of batches that hold an epoch's clips, rounded up.

    In the original an epoch's last batch is smaller. Here it is filled up with clips of the next epoch.
    """
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
    """Returns an endless iterator of batches of random clips, from a step on. Its `close()` ends the reading ahead.

    In each epoch every segment occurs `clips_per_segment` times, in a new order and with new clip starts. Row r of a step's
    global batch is the same for any number of processes. Each process gets a block of consecutive rows.

    Args:
      split: the split to draw from.
      global_batch_size: number of rows of all processes together.
      seed: seed of the order, the clip starts, the windows and the mirroring.
      clips_per_segment: number of clips of each segment in an epoch.
      balanced: whether rows of action and of background alternate, each with epochs of its own. Otherwise all segments share
        one order.
      process_index: this process's block of rows, from 0.
      process_count: number of processes.
      start_step: step of the first batch. The batches are those that a run from step 0 has from there on.
      num_workers: number of processes that read ahead, each of which keeps one core busy. With 0, threads of this process
        read; together they decode no faster than one core, because decoding holds Python's lock.
      num_threads: number of batches that each process reads at once.

    Raises:
      ValueError: the batch can't be divided among the processes, or a class to balance has no segment.
      RecordsError: during iteration, a record is damaged; the message names its shard.
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
    """Returns an iterator of batches with five evenly spaced clips of each segment, in the order of the segments.

    The last batch is filled up with rows without labels. The arguments are those of `train_batches`.

    Raises:
      ValueError: the batch can't be divided among the processes.
      RecordsError: during iteration, a record is damaged; the message names its shard.
    Source: TSP, released data set code: the clips start at `linspace(0, 1, 5)` of the segment's length minus the clip's.
      Differs: here a clip starts at the last frame of the 15 fps grid before, or at the nearest one that could be read.
    """
    local = _local_size(global_batch_size, process_index, process_count)
    count = VALID_CLIPS * len(split.index.segment_row)
    clip = functools.partial(_valid_clip, split.index)
    rows = _rows_of_process(clip, math.ceil(count / global_batch_size), global_batch_size, process_index, process_count)
    return _read_ahead(rows, local, split, 0, num_workers, num_threads)


def train_clips(split: Split, *, clips_per_segment: int, balanced: bool, seed: int) -> Callable[[int], Clip]:
    """Returns a function that gives the n-th clip of training, for any n. The clips fill the global batches in this order.

    Args:
      split: the split to draw from.
      clips_per_segment: number of clips of each segment in an epoch.
      balanced: whether clips of action and of background alternate.
      seed: seed of the order, the clip starts, the windows and the mirroring.

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
    # Grain's shuffle needs no memory, but is slow for each element. This order is drawn once per epoch.
    return np.random.default_rng((seed, 0, stream, epoch)).permutation(count)


def read_clips(split: Split, clips: Sequence[Clip | None]) -> Batch:
    """Returns a batch of these clips. None becomes a row of black frames without labels.

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
            raise ValueError("it is not the record that the index lists")
        begin = clip.place - first
        ends = record["frame_ends"]
        if len(ends) < begin + records.CLIP_LEN:
            raise ValueError(f"it has {len(ends)} frames; expected {begin + records.CLIP_LEN}")
        bounds = [int(ends[begin - 1]) if begin else 0, *ends[begin : begin + records.CLIP_LEN].tolist()]
        for number in range(records.CLIP_LEN):
            records.decode_frame(record["frames"][bounds[number] : bounds[number + 1]], index.codec, out[number])
    except Exception as error:  # array_record, protobuf, TFDS, simplejpeg and we raise different kinds
        shard = split.folder / index.shard_of(clip.record)
        raise records.RecordsError(
            f"{shard}: record {clip.record} can't be read ({error}); copy the file again, or build the records again"
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
    # The batch is formed before anything runs in parallel, so neither workers nor threads can change its content.
    batches = rows.batch(local, batch_fn=list).map(lambda clips: read_clips(split, clips))[start_step:]
    ahead = batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads))
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl's flags, which nothing else here uses
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
    rule = features.naming(path)
    names = [video_names.feature_name(filename, rule) for filename in index.video_filename]
    missing = [name for name in names if name not in vectors]
    if missing:
        raise records.RecordsError(
            f"{path}: no global feature of {len(missing)} of {len(names)} videos, such as {', '.join(missing[:3])}; extract "
            "them and run `python -m data_builders.gvf` again"
        )
    return np.stack([vectors[name] for name in names])
