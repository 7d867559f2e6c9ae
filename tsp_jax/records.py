"""The format of records on disk: spans of small frames of annotated segments, the encoding of frames, and a split's index.

A data set is a TFDS folder of array_record shards and an `index-SPLIT.npz` for each split. One record is a span: up to
`MAX_STARTS` consecutive grid places at which a clip of one segment may start, with all frames of those clips. So a random
clip of a segment costs one read and the decoding of its own frames. A grid place is a frame number on the video's grid of
`FRAME_RATE` frames per second.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import simplejpeg
from jaxtyping import Float64, Int32, Int64, UInt8

from tsp_jax.system import errors, tables

# These constants are part of the format: changing one needs a new FORMAT_VERSION. The clip length in frames, the frame rate in
# frames per second and the frame size in pixels (height, width) are the original's for training.
CLIP_LEN = 16
FRAME_RATE = 15.0
FRAME_SIZE = (128, 171)
CLIP_SEC = CLIP_LEN / FRAME_RATE
MAX_STARTS = 64  # clip starts in a record
FORMAT_VERSION = 1
Codec = Literal["jpeg", "lossless"]
CODECS: tuple[str, ...] = get_args(Codec)
# A lower quality would save some disk space, but libjpeg-turbo uses its accurate transform only from 96 on.
_JPEG_QUALITY = 96
_FRAME_SHAPE = (*FRAME_SIZE, 3)


class RecordsError(errors.UserError):
    """A data set of records can't be used. The message says what was expected, what was found, where, and what to do."""


def place(sec: float) -> int:
    """Returns the grid place of the last frame that is not after this second of the video."""
    return math.floor(sec * FRAME_RATE + tables.ROUNDING)


def encode_frame(frame: UInt8[np.ndarray, "128 171 3"], codec: Codec) -> bytes:
    """Returns a frame as bytes, encoded by `codec`.

    `jpeg` gives a JPEG file of quality 96 without chroma subsampling. `lossless` gives each pixel minus its left neighbour,
    modulo 256, compressed by zlib.
    """
    if codec == "jpeg":
        return simplejpeg.encode_jpeg(
            np.ascontiguousarray(frame), quality=_JPEG_QUALITY, colorspace="RGB", colorsubsampling="444"
        )
    differences = frame.copy()
    differences[:, 1:] -= frame[:, :-1]
    return zlib.compress(differences.tobytes(), level=6)


def decode_frame(data: bytes, codec: Codec, out: UInt8[np.ndarray, "128 171 3"]) -> None:
    """Decodes a frame into an array.

    Raises:
      ValueError: the bytes are no frame of the size 128x171.
    """
    if codec == "jpeg":
        shape = simplejpeg.decode_jpeg(data, "RGB", buffer=out).shape
        if shape != _FRAME_SHAPE:
            raise ValueError(f"a frame of shape {shape}; expected {_FRAME_SHAPE}")
        return
    size = int(np.prod(_FRAME_SHAPE))
    try:
        unpacker = zlib.decompressobj()
        pixels = unpacker.decompress(data, size)  # limits the size, whatever the bytes claim
    except zlib.error as error:
        raise ValueError(f"a damaged frame ({error})") from error
    if len(pixels) != size or not unpacker.eof:
        raise ValueError(f"a frame of {len(pixels)} bytes; expected {size}")
    np.cumsum(np.frombuffer(pixels, np.uint8).reshape(_FRAME_SHAPE), axis=1, dtype=np.uint8, out=out)


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Lists what a split's records hold, so that none has to be read for it.

    The rows of `segment_*` are the segments that have records, in the order of the ground truth. The rows of `record_*` are
    the records, in the order of the shards.

    Attributes:
      codec: the encoding of the frames.
      record_segment: each record's segment, as a row of `segment_*`.
      record_first: grid place of each record's first clip start.
      record_starts: number of each record's clip starts. The record has CLIP_LEN - 1 more frames.
      segment_row: each segment's row in the ground truth, counted from 0 below the header.
      segment_video: each segment's video, as a row of `video_filename`.
      segment_action: class number of each segment's action; -1 for background.
      segment_temporal_region: each segment's class number in `groundtruth.TEMPORAL_REGIONS`.
      segment_start_sec: second of the video at which each segment begins.
      segment_end_sec: second of the video at which each segment ends.
      segment_first: grid place of each segment's first allowed clip start.
      segment_starts: number of each segment's allowed clip starts, whether or not their frames could be read.
      video_filename: each video's file, relative to the folder of videos.
      shard_name: name of each shard's file.
      shard_records: number of records in each shard.
      shard_bytes: size of each shard in bytes.
    """

    codec: Codec
    record_segment: Int32[np.ndarray, " r"]
    record_first: Int32[np.ndarray, " r"]
    record_starts: Int32[np.ndarray, " r"]
    segment_row: Int32[np.ndarray, " s"]
    segment_video: Int32[np.ndarray, " s"]
    segment_action: Int32[np.ndarray, " s"]
    segment_temporal_region: Int32[np.ndarray, " s"]
    segment_start_sec: Float64[np.ndarray, " s"]
    segment_end_sec: Float64[np.ndarray, " s"]
    segment_first: Int32[np.ndarray, " s"]
    segment_starts: Int32[np.ndarray, " s"]
    video_filename: tuple[str, ...]
    shard_name: tuple[str, ...]
    shard_records: Int64[np.ndarray, " k"]
    shard_bytes: Int64[np.ndarray, " k"]

    def starts(self, segment: int) -> int:
        """Returns the number of a segment's clip starts whose frames are in the records."""
        begin, end = self._bounds[segment], self._bounds[segment + 1]
        return int(self._cumulated[end] - self._cumulated[begin])

    def start(self, segment: int, number: int) -> tuple[int, int]:
        """Returns the record and the grid place of the n-th of a segment's clip starts whose frames are in the records."""
        begin = self._bounds[segment]
        at = int(np.searchsorted(self._cumulated, self._cumulated[begin] + number, side="right")) - 1
        record = int(self._order[at])
        return record, int(self.record_first[record] + self._cumulated[begin] + number - self._cumulated[at])

    def nearest_start(self, segment: int, place: int) -> tuple[int, int]:
        """Returns the record and the grid place of the clip start that is nearest to a grid place.

        Only starts whose frames are in the records count. Of two equally near ones it is the earlier.
        """
        records = self._order[self._bounds[segment] : self._bounds[segment + 1]]
        first, last = self.record_first[records], self.record_first[records] + self.record_starts[records] - 1
        candidates = np.clip(place, first, last)
        best = int(np.argmin(np.abs(candidates - place)))
        return int(records[best]), int(candidates[best])

    def shard_of(self, record: int) -> str:
        """Returns the name of the file that holds a record."""
        return self.shard_name[int(np.searchsorted(np.cumsum(self.shard_records), record, side="right"))]

    @functools.cached_property
    def _order(self) -> Int64[np.ndarray, " r"]:
        """The rows of the records, sorted by segment and then by grid place."""
        return np.lexsort((self.record_first, self.record_segment))

    @functools.cached_property
    def _bounds(self) -> Int64[np.ndarray, " s_1"]:
        """Each segment's first position in `_order`, and its end as the next element."""
        return np.searchsorted(self.record_segment[self._order], np.arange(len(self.segment_row) + 1))

    @functools.cached_property
    def _cumulated(self) -> Int64[np.ndarray, " r_1"]:
        """The number of clip starts before each position in `_order`."""
        return np.concatenate([[0], np.cumsum(self.record_starts[self._order], dtype=np.int64)])


def index_path(folder: str | Path, split: str) -> Path:
    """Returns the file of a split's index."""
    return Path(folder) / f"index-{split}.npz"


def write_index(path: Path, index: Index) -> None:
    """Writes an index. The same index always gives the same bytes."""
    arrays = {field.name: np.asarray(getattr(index, field.name)) for field in dataclasses.fields(index)}
    with open(path, "wb") as stream:
        np.savez(stream, **arrays, format_version=np.int64(FORMAT_VERSION))  # type: ignore (no array is named allow_pickle)


def read_index(folder: str | Path, split: str) -> Index:
    """Returns the index of a split, after checking that all its shards are in the folder and have the right sizes.

    Raises:
      RecordsError: the folder has no such split, is damaged, or lacks shards; the message names them.
    """
    folder = Path(folder)
    path = index_path(folder, split)
    if not path.is_file():
        found = sorted(other.name.removeprefix("index-").removesuffix(".npz") for other in folder.glob("index-*.npz"))
        raise RecordsError(
            f"{folder}: no split {split!r}; found {', '.join(found) or 'no index-SPLIT.npz at all'}; name the folder that "
            "`python -m data_builders.build` printed"
        )
    try:
        # We open the file, because numpy would leave its own stream open if the file is cut off.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            version = int(arrays["format_version"])
            if version != FORMAT_VERSION:
                raise RecordsError(f"{path}: format {version}; this tsp_jax reads {FORMAT_VERSION}: build the records again")
            values = {field.name: arrays[field.name] for field in dataclasses.fields(Index)}
    except RecordsError:
        raise
    except Exception as error:  # zip and numpy raise many kinds
        raise RecordsError(f"{path}: damaged, or no index ({error}); build the records again") from error
    values |= {name: tuple(map(str, values[name])) for name in ("video_filename", "shard_name")}
    index = Index(**{**values, "codec": str(values["codec"])})
    _check_index(index, path)
    _check_shards(index, folder)
    return index


def _check_index(index: Index, path: Path) -> None:
    records, segments = len(index.record_segment), len(index.segment_row)
    sound = (
        index.codec in CODECS
        and len(index.record_first) == len(index.record_starts) == records == int(index.shard_records.sum())
        and all(len(getattr(index, f"segment_{name}")) == segments for name in _SEGMENT_COLUMNS)
        and _within(index.record_segment, segments)
        and _within(index.segment_video, len(index.video_filename))
        and len(np.unique(index.record_segment)) == segments
        and len(index.shard_name) == len(index.shard_bytes) == len(index.shard_records)
        and _within(index.record_starts - 1, MAX_STARTS)
    )
    if not sound:
        raise RecordsError(f"{path}: its parts don't match each other; build the records again")


_SEGMENT_COLUMNS = ("video", "action", "temporal_region", "start_sec", "end_sec", "first", "starts")


def _within(values: np.ndarray, bound: int) -> bool:
    return bool(np.all((values >= 0) & (values < bound)))


def _check_shards(index: Index, folder: Path) -> None:
    faults = []
    for name, size in zip(index.shard_name, index.shard_bytes.tolist(), strict=True):
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != size:
            faults.append(f"{name} has {path.stat().st_size} bytes; expected {size}")
    if faults:
        shown: Sequence[str] = [*faults[:10], *([f"and {len(faults) - 10} more"] if len(faults) > 10 else [])]
        raise RecordsError(
            f"{folder}: {len(faults)} of {len(index.shard_name)} shards can't be used; copy the folder again, or build the "
            "records again:\n  " + "\n  ".join(shown)
        )
