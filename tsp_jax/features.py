"""The HDF5 file of features: one dataset a video, written whole or not at all; as a command it lists, joins and exports.

`file[video_name][()]` is float32 [n_clips, 512], gzip, readable with plain h5py; what the rows are stands in the attributes.
While a run goes on, each finished video is a small file of its own in `FILE.h5.parts/`, moved into place complete; the
last step joins them into FILE.h5 at once. So a killed run loses no finished video, and FILE.h5 never holds a part of one.
"""

import argparse
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import io
import itertools
import math
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import h5py
import numpy as np
import tqdm
from jaxtyping import Float, Float32, Int64

from tsp_jax import clips
from tsp_jax.system import cli, files

FORMAT_VERSION = 1
FEATURE_DTYPE = np.dtype(np.float32)
_MAX_GZIP_RATIO = 1100  # deflate packs at most 1032 to 1; a header that claims more is a lie
_CHUNK_BYTES = 1 << 19
_MAX_GLOBAL_WIDTH = 1 << 16  # numbers in a video's global feature
# HDF5 1.10's format (2016): unlike the older default it has checksums, and room for attributes of more than 64 kB.
_HDF5_VERSIONS = ("v110", "v110")
# What h5py raises on damaged files, by where the damage lies.
_DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError)
_NUMBERS = (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID, h5py.h5t.TypeEnumID)
# The attributes that make features comparable; names and versions may differ.
_IDENTITY = ("stride", "clip_len", "frame_rate", "frame_selection", "decoder", "dtype", "checkpoint_sha256")

# The mean adds up float32 rows in their order, as numpy does and as the original did.
POOLS: dict[str, Callable[[Float32[np.ndarray, "n f"]], Float32[np.ndarray, " f"]]] = {
    "max": lambda rows: np.max(rows, axis=0),
    "avg": lambda rows: np.mean(rows, axis=0),
}

Attributes = dict[str, Any]


class FeatureFileError(Exception):
    """A feature file can't be used as asked; the message says what was expected, what was found, and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class VideoFeatures:
    """One video's dataset.

    Attributes:
      name: of the video.
      features: float32 [n_clips, width], rows in clip order.
      attributes: how they were made; the run's and the video's own.
    """

    name: str
    features: Float32[np.ndarray, "n f"]
    attributes: Attributes


def read(path: str | Path, name: str) -> VideoFeatures:
    """The features of one video.

    Raises:
      FeatureFileError: the file or the video is not there, or is no feature data.
    """
    path = Path(path)
    with _reading(path) as file:
        if "/" in name or file.get(name, getlink=True) is None:
            raise FeatureFileError(f"{path} has no video {name!r}; `python -m tsp_jax.features info {path}` lists them")
        dataset = _checked(file, name, path)
        return VideoFeatures(name, dataset[()], _attributes(dataset))


def names(path: str | Path) -> list[str]:
    """The videos of a feature file, sorted.

    Raises:
      FeatureFileError: the file is not there or is no feature file.
    """
    with _reading(Path(path)) as file:
        return _names(file)


def pool(rows: Float32[np.ndarray, "n f"], how: str) -> Float32[np.ndarray, " f"]:
    """The global feature of a video: its clips' features pooled.

    Args:
      rows: features of all its clips.
      how: a key of POOLS.

    Raises:
      ValueError: there is no clip, or a number is not finite.
    """
    if not len(rows):
        raise ValueError("no clips; the video is shorter than one")
    vector = POOLS[how](rows)
    if not np.all(np.isfinite(vector)):
        raise ValueError("a feature is not finite; extract the video again")
    return vector


def duration_sec(video: VideoFeatures) -> float:
    """How long the video is."""
    return float(video.attributes["frames"]) / float(video.attributes["fps"])


def clip_times(video: VideoFeatures) -> tuple[Float[np.ndarray, " n"], float]:
    """When each row's clip starts, and how long all of them are, in seconds.

    Raises:
      FeatureFileError: as `clip_numbers`.
    """
    numbers, found = clip_numbers(video), video.attributes
    grid = clips.resampled(int(found["frames"]), float(found["fps"]), float(found["frame_rate"]))
    return grid[numbers * int(found["stride"])] / float(found["fps"]), int(found["clip_len"]) / float(found["frame_rate"])


def clip_numbers(video: VideoFeatures) -> Int64[np.ndarray, " n"]:
    """Which of the video's planned clips each row is, ascending; all of them, but in a damaged video.

    Raises:
      FeatureFileError: the attributes that tell are absent, or say what can't be.
    """
    found = video.attributes
    try:
        fps, rate = clips.check_fps(float(found["fps"])), clips.check_fps(float(found["frame_rate"]))
        frames, stride, clip_len = (int(found[key]) for key in ("frames", "stride", "clip_len"))
        ranges = np.asarray(found["clip_ranges"]).astype(np.int64).reshape(-1, 2)
        if min(frames, stride, clip_len) < 1 or frames * rate / fps > clips.MAX_RESAMPLED:
            raise ValueError(
                f"{frames} frames at {fps:g} fps, {rate:g} of them a second, in clips of {clip_len} every {stride}"
            )
        bounds = ranges.ravel()
        last = (len(clips.resampled(frames, fps, rate)) - 1) // stride + 1
        if np.any(np.diff(bounds) < 0) or (len(bounds) and not 0 <= bounds[0] <= bounds[-1] <= last):
            raise ValueError(f"clip_ranges {ranges.tolist()[:3]} of at most {last} clips")
        numbers = np.concatenate([np.arange(*pair) for pair in ranges.tolist()] or [np.zeros(0, np.int64)])
        if len(numbers) != len(video.features):
            raise ValueError(f"clip_ranges count {len(numbers)} clips, there are {len(video.features)}")
    except (LookupError, ValueError, TypeError, OverflowError) as error:
        reason = f"no attribute {error}" if isinstance(error, LookupError) else str(error)
        raise FeatureFileError(
            f"video {video.name!r}: expected the attributes that `python -m tsp_jax.extract` writes, found {reason}; "
            "extract it again"
        ) from error
    return numbers


class Writer:
    """Features on their way into one file; a context manager that holds the output against a second writer.

    Leaving the block without an error joins what was committed into the output; leaving it with one keeps the parts for the
    next run with the same output.

    Attributes:
      done: attributes of the videos that the output or an earlier, unfinished run already has, by name.
    """

    def __init__(self, output: str | Path, run: Attributes, *, overwrite: bool = False):
        """Opens the output for a run.

        Args:
          output: the HDF5 file.
          run: attributes that all its videos share; a file written with others is refused.
          overwrite: forget what is there.

        Raises:
          FeatureFileError: the output is no feature file, was made by another kind of run, or is being written.
        """
        self.output = Path(output)
        self.run = dict(run)
        if self.output.is_dir():
            raise FeatureFileError(f"{self.output} is a folder; name a file, such as {self.output / 'features.h5'}")
        try:
            files.check_replaceable(self.output)
            self._parts = _parts_folder(self.output)
            self._lock = _lock(self._parts)
        except OSError as error:
            reason = f"{error.strerror} ({error.filename})" if error.strerror else str(error)
            raise FeatureFileError(f"{self.output} can't be written: {reason}") from error
        try:
            if overwrite:
                self.output.unlink(missing_ok=True)
                for part in self._parts.glob("*.h5*"):
                    part.unlink()
            self.done: dict[str, Attributes] = {}
            self._owner: dict[str, Path] = {}  # the file that holds each video of `done`
            self._read_done()
        except BaseException:
            _unlock(self._parts, self._lock)
            raise

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self._join()
        finally:
            _unlock(self._parts, self._lock)

    def commit(self, name: str, features: Float32[np.ndarray, "n f"], attributes: Attributes) -> None:
        """Keeps one video, durably; after this returns, no kill loses it."""
        part = self._parts / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.h5"
        attributes = {**self.run, **attributes}
        with files.replacing(part) as temporary:
            temporary.write_bytes(_packed(name, features, attributes))
        self.done[name], self._owner[name] = attributes, part

    def _read_done(self) -> None:
        for path in [self.output, *sorted(self._parts.glob("*.h5"))]:
            if not path.exists():
                continue
            found = {}
            try:
                with _reading(path) as file:
                    for name in _names(file):
                        dataset = _checked(file, name, path)
                        found[name] = _attributes(dataset)
                        if path != self.output:
                            dataset[()]  # unpacks all, for the sake of gzip's checksums
            except FeatureFileError:
                if path == self.output:
                    raise
                path.unlink()  # a part that a failing disk spoiled: its video is done again
                continue
            for name, attributes in found.items():
                where, remedy = f"{self.output} (video {name!r})", "name another --output, or pass --overwrite"
                _check_same_run(self.run, "asked for", attributes, where, remedy)
                self.done[name], self._owner[name] = attributes, path

    def _join(self) -> None:
        if not self.output.exists() or set(self._owner.values()) - {self.output}:
            _write_joined(self._owner, self.output, self.run)
        for part in self._parts.glob("*.h5*"):
            part.unlink()


def merge(inputs: Sequence[str | Path], output: str | Path, *, overwrite: bool = False) -> int:
    """Joins feature files of one kind of run, such as shards, into one; the number of its videos.

    The output may be one of the inputs.

    Raises:
      FeatureFileError: a video stands in two of them, they were made by different runs, or one of the files isn't finished.
      FileExistsError: the output exists and `overwrite` is false.
    """
    output = Path(output)
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; name another file or pass --overwrite")
    for path in [*inputs, output]:
        _check_finished(Path(path))
    owner: dict[str, Path] = {}
    first, run = Path(), None
    for path in map(Path, inputs):
        with _reading(path) as file:
            videos = _names(file)
            found = [_attributes(file), *(_attributes(_checked(file, name, path)) for name in videos)]
            for name in videos:
                if name in owner:
                    raise FeatureFileError(f"video {name!r} stands in both {owner[name]} and {path}; drop it from one")
                owner[name] = path
        if run is None:
            first, run = path, found[0]
        for attributes in found:
            _check_same_run(run, f"in {first}", attributes, str(path), "only features of one kind of run can be joined")
    _write_joined(owner, output, run or {})
    return len(owner)


def export(path: str | Path, folder: str | Path, kind: str) -> int:
    """Writes `NAME.npy` or `NAME.pkl` (a pickled array, as the original has it) for each video; their number.

    Raises:
      FeatureFileError: the file is no feature file.
    """
    folder = Path(folder)
    videos = names(path)
    files.make_folder(folder)
    for name in tqdm.tqdm(videos, unit="video", disable=None):
        features = read(path, name).features
        with files.replacing(folder / f"{name}.{kind}") as temporary, open(temporary, "wb") as stream:
            np.save(stream, features) if kind == "npy" else pickle.dump(features, stream)
    return len(videos)


def info(path: str | Path, stream: TextIO) -> None:
    """Prints what a file holds: its run, then a line a video.

    Raises:
      FeatureFileError: the file is no feature file.
    """
    path = Path(path)
    unfinished = _unfinished(path)
    if unfinished:
        where = f"{unfinished} videos lie in {_parts_folder(path)}"
        print(f"{path}: not finished; {where}. The same command again goes on.", file=stream)
        if not path.exists():
            return
    with _reading(path) as file:
        videos = _names(file)
        lines = [f"{path}: {len(videos)} videos, {path.stat().st_size / 1e6:.1f} MB"]
        lines += [f"  {key}: {value}" for key, value in sorted(_attributes(file).items())]
        width = max([len(name) for name in videos] + [5])
        lines += [f"{'video':{width}}  {'clips':>6}  {'fps':>7}  {'frames':>7}  notes"]
        for name in videos:
            dataset = _checked(file, name, path)
            own = _attributes(dataset)
            fps, frames = float(own.get("fps", math.nan)), int(own.get("frames", -1))
            lines += [f"{name:{width}}  {len(dataset):6}  {fps:7.3f}  {frames:7}  {own.get('damage', '')}"]
    for line in lines:
        print(line, file=stream)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    """The file, open. What h5py finds wrong with it within the block, which is to do nothing else, is a FeatureFileError."""
    if not path.is_file():
        raise FeatureFileError(f"{path}: no such file; expected an HDF5 file of features")
    try:
        with h5py.File(path, "r") as file:
            version = _attribute(file, "format_version") if "format_version" in file.attrs else FORMAT_VERSION
            if version != FORMAT_VERSION:
                raise FeatureFileError(f"{path}: format {version}; this tsp_jax reads {FORMAT_VERSION}: another is needed")
            yield file
    except _DAMAGE as error:
        raise FeatureFileError(f"{path}: no file of features, or a damaged one ({error}); make it anew") from error


def _names(file: h5py.File) -> list[str]:
    return sorted(map(str, file))


def _checked(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """The dataset, when it is one of features, all in this file, and no larger than its bytes on disk can hold."""
    # The link is looked at before it is followed: it could lead to another file.
    plain = "/" not in name and isinstance(file.get(name, getlink=True), h5py.HardLink)
    dataset = file[name] if plain else None
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype != FEATURE_DTYPE or dataset.ndim != 2:
        raise FeatureFileError(f"{path}: {name!r} is not a float32 [n_clips, width] dataset; not a file of features")
    created = dataset.id.get_create_plist()
    filters = [created.get_filter(index)[0] for index in range(created.get_nfilters())]
    # Only chunks are sure to lie in this file; other filters are other decoders to trust.
    if dataset.chunks is None or np.any(np.array(dataset.chunks) > dataset.shape) or filters != [h5py.h5z.FILTER_DEFLATE]:
        raise FeatureFileError(f"{path}: {name!r} is not stored in gzip's chunks; not a file of features")
    claimed = math.prod(dataset.shape) * FEATURE_DTYPE.itemsize
    stored = min(dataset.id.get_storage_size(), path.stat().st_size)
    if claimed > _MAX_GZIP_RATIO * stored:
        raise FeatureFileError(f"{path}: {name!r} claims {claimed} bytes but stores {stored}; the file is damaged")
    return dataset


def _attributes(item: h5py.File | h5py.Dataset) -> Attributes:
    return {key: _attribute(item, key) for key in item.attrs}


def _attribute(item: h5py.File | h5py.Dataset, key: str) -> Any:
    """The value of an attribute, when it is of a kind that is stored in its own place, as all are that are written here."""
    kind = item.attrs.get_id(key).get_type()
    in_place = isinstance(kind, _NUMBERS) or (isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str())
    if not in_place:
        raise FeatureFileError(
            f"{item.file.filename}: {str(item.name).lstrip('/') or '/'!r} has an attribute {key!r} that is neither a number "
            "nor text of fixed length; not a file of features, or one of an early tsp_jax: make it anew"
        )
    value = item.attrs[key]
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode() if isinstance(value, bytes) else value


def _check_same_run(expected: Attributes, whose: str, found: Attributes, where: str, remedy: str) -> None:
    different = [
        f"{key}: {found.get(key, 'absent')} there, {expected.get(key, 'absent')} {whose}"
        for key in _IDENTITY
        if not np.array_equal(found.get(key), expected.get(key))  # type: ignore (any value, from any file)
    ]
    if different:
        raise FeatureFileError(f"{where} was made otherwise:\n  " + "\n  ".join(different) + f"\n{remedy}")


def _parts_folder(output: Path) -> Path:
    return output.parent / f"{output.name}.parts"


def _unfinished(output: Path) -> int:
    """How many videos wait to be joined into an output."""
    return len(list(_parts_folder(output).glob("*.h5")))


def _check_finished(output: Path) -> None:
    if _unfinished(output):
        raise FeatureFileError(
            f"{output} isn't finished: {_unfinished(output)} videos lie in {_parts_folder(output)}; run the command that "
            "writes it again first"
        )


def _packed(name: str, features: Float32[np.ndarray, "n f"], attributes: Attributes) -> bytes:
    """An HDF5 file of one video, made in memory: HDF5 crashes the process when a write fails, as it does on a full disk."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=_HDF5_VERSIONS) as file:
        rows = max(1, min(len(features), _CHUNK_BYTES // max(1, features.shape[1] * FEATURE_DTYPE.itemsize)))
        dataset = file.create_dataset(
            name, data=features.astype(FEATURE_DTYPE), chunks=(rows, features.shape[1]), compression="gzip"
        )
        _set_attributes(dataset, attributes)
    return buffer.getvalue()


def _set_attributes(item: h5py.File | h5py.Dataset, attributes: Attributes) -> None:
    for key, value in sorted(attributes.items()):
        # A path in a message may hold bytes that are no text.
        text = value.encode(errors="backslashreplace") if isinstance(value, str) else None
        # Of fixed length: HDF5 keeps other text in heaps without a checksum, and hangs or crashes where one is damaged.
        dtype = None if text is None else h5py.string_dtype("utf-8", max(1, len(text)))
        item.attrs.create(key, value if text is None else text, dtype=dtype)


def _write_joined(owner: Mapping[str, Path], output: Path, run: Attributes) -> None:
    """Writes a file with the named datasets of several; its bytes depend on nothing but them.

    Raises:
      OSError: the disk has no room for it.
    """
    needed, free = sum(path.stat().st_size for path in set(owner.values())), shutil.disk_usage(output.parent).free
    if needed > free:  # asked first: HDF5 crashes the process when a write fails
        reason = f"{os.strerror(errno.ENOSPC)}: joining takes {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free"
        raise OSError(errno.ENOSPC, reason, str(output))
    with files.replacing(output) as temporary, h5py.File(temporary, "w", libver=_HDF5_VERSIONS) as joined:
        _set_attributes(joined, {**run, "format_version": FORMAT_VERSION})
        for path, names_there in itertools.groupby(sorted(owner), key=owner.__getitem__):
            with _reading(path) as file:
                for name in names_there:
                    file.copy(_checked(file, name, path), joined, name)  # chunks as they are, without unpacking


def _lock(folder: Path) -> TextIO:
    """The lock file of a folder of parts, held; the folder is made when absent.

    Raises:
      FeatureFileError: another process holds it.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = open(folder / "lock", "a")  # noqa: SIM115 (held until `_unlock`)
        except FileNotFoundError:  # a run that ends has removed the folder since
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise FeatureFileError(
                f"another run is writing here ({folder}); give each shard an --output of its own, and join them with "
                "`python -m tsp_jax.features merge`"
            ) from error
        # A run that ended between the two steps above has removed the file that is locked now.
        if os.path.exists(folder / "lock") and os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / "lock")):
            return lock
        lock.close()


def _unlock(folder: Path, lock: TextIO) -> None:
    """Lets the lock go, and its folder when it holds no part."""
    if not any(folder.glob("*.h5")):
        with contextlib.suppress(OSError):  # another run may stand in the folder by now
            (folder / "lock").unlink()
            folder.rmdir()
    lock.close()


def write_global_features(path: str | Path, vectors: Mapping[str, Float32[np.ndarray, " f"]], attributes: Attributes) -> None:
    """Writes one vector a video, whole or not at all: `file[video_name][()]` is float32 [width], gzip, as the original has it.

    Args:
      path: the HDF5 file.
      vectors: by the video's name.
      attributes: how they were made, of the whole file.
    """
    buffer = io.BytesIO()  # in memory, as in `_packed`
    with h5py.File(buffer, "w", libver=_HDF5_VERSIONS) as file:
        _set_attributes(file, attributes)
        for name, vector in sorted(vectors.items()):
            file.create_dataset(
                name, data=vector.astype(FEATURE_DTYPE), chunks=vector.shape, compression="gzip", compression_opts=9
            )
    with files.replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_global_features(path: str | Path) -> dict[str, Float32[np.ndarray, " f"]]:
    """The vector of each video, by name, of a file as `write_global_features` writes it, or the original.

    Raises:
      FeatureFileError: the file is not there, or holds something else.
    """
    path = Path(path)
    vectors: dict[str, np.ndarray] = {}
    with _reading(path) as file:
        for name in _names(file):
            plain = isinstance(file.get(name, getlink=True), h5py.HardLink)
            dataset = file[name] if plain else None
            if not isinstance(dataset, h5py.Dataset) or dataset.dtype != FEATURE_DTYPE or dataset.ndim != 1:
                raise FeatureFileError(f"{path}: {name!r} is not a float32 [width] dataset; not a file of global features")
            if dataset.external or dataset.is_virtual or len(dataset) > _MAX_GLOBAL_WIDTH:
                raise FeatureFileError(f"{path}: {name!r} is not stored here, or too large; not a file of global features")
            vectors[name] = dataset[()]
    widths = {len(vector) for vector in vectors.values()}
    if len(widths) != 1:
        raise FeatureFileError(f"{path}: expected vectors of one width, found {sorted(widths) or 'none'}")
    return vectors


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tsp_jax.features",
        description="List, join and export files of features.",
        epilog="example: python -m tsp_jax.features merge shard0.h5 shard1.h5 --output features.h5",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("info", help="print what a file holds")
    command.add_argument("file")
    command = commands.add_parser("merge", help="join shards into one file; a video in two of them is refused")
    command.add_argument("files", nargs="+")
    command.add_argument("--output", required=True)
    command.add_argument("--overwrite", action="store_true")
    command = commands.add_parser("export", help="write one file a video")
    command.add_argument("file")
    command.add_argument("--output", required=True, help="a folder")
    command.add_argument("--format", choices=["npy", "pkl"], default="npy", help="pkl: as the original writes them")
    options = parser.parse_args(arguments)
    cli.show_any_name()
    try:
        if options.command == "info":
            info(options.file, sys.stdout)
        elif options.command == "merge":
            count = merge(options.files, options.output, overwrite=options.overwrite)
            print(f"{options.output}: {count} videos of {len(options.files)} files")
        else:
            count = export(options.file, options.output, options.format)
            print(f"{options.output}: {count} {options.format} files")
    except (FeatureFileError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
