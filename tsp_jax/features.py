"""The HDF5 file of features: one dataset a video, written whole or not at all; as a command it lists, joins and exports.

`file[video_name][()]` is float32 [n_clips, 512], gzip, readable with plain h5py; what the rows are stands in the attributes.
While a run goes on, each finished video is a small file of its own in `FILE.h5.parts/`, moved into place complete; the
last step joins them into FILE.h5 at once. So a killed run loses no finished video, and FILE.h5 never holds a part of one.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import os
import pickle
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import h5py
import numpy as np
import tqdm
from jaxtyping import Float32

FORMAT_VERSION = 1
FEATURE_DTYPE = np.dtype(np.float32)
_MAX_GZIP_RATIO = 1100  # deflate packs at most 1032 to 1; a header that claims more is a lie
_CHUNK_BYTES = 1 << 19
# The attributes that make features comparable; names and versions may differ.
_IDENTITY = ("stride", "clip_len", "frame_rate", "frame_selection", "decoder", "dtype", "checkpoint_sha256")

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
    with _open(Path(path)) as file:
        if name not in file:
            raise FeatureFileError(f"{path} has no video {name!r}; `python -m tsp_jax.features info {path}` lists them")
        dataset = _checked(file, name, Path(path))
        return VideoFeatures(name, dataset[()], _attributes(dataset))


def names(path: str | Path) -> list[str]:
    """The videos of a feature file, sorted.

    Raises:
      FeatureFileError: the file is not there or is no feature file.
    """
    with _open(Path(path)) as file:
        return sorted(file)


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
        self._parts = self.output.with_name(self.output.name + ".parts")
        if self.output.is_dir():
            raise FeatureFileError(f"{self.output} is a folder; name a file, such as {self.output / 'features.h5'}")
        try:
            self._lock = _lock(self._parts)
        except OSError as error:
            raise FeatureFileError(f"{self.output} can't be written: {error.strerror}") from error
        try:
            if overwrite:
                self.output.unlink(missing_ok=True)
                for part in self._parts.glob("*.h5*"):
                    part.unlink()
            self.done = self._read_done()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self._join()
        finally:
            self._lock.close()

    def commit(self, name: str, features: Float32[np.ndarray, "n f"], attributes: Attributes) -> None:
        """Keeps one video, durably; after this returns, no kill loses it."""
        part = self._parts / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.h5"
        with _replacing(part) as temporary, h5py.File(temporary, "w") as file:
            rows = max(1, min(len(features), _CHUNK_BYTES // max(1, features.shape[1] * FEATURE_DTYPE.itemsize)))
            dataset = file.create_dataset(
                name, data=features.astype(FEATURE_DTYPE), chunks=(rows, features.shape[1]), compression="gzip"
            )
            for key, value in {**self.run, **attributes}.items():
                dataset.attrs[key] = value
        self.done[name] = {**self.run, **attributes}

    def _read_done(self) -> dict[str, Attributes]:
        done = {}
        for path in _existing(self.output, *sorted(self._parts.glob("*.h5"))):
            try:
                with _open(path) as file:
                    found = {name: _attributes(_checked(file, name, path)) for name in file}
            except FeatureFileError:
                if path == self.output:
                    raise
                path.unlink()  # a part that a failing disk spoiled: its video is done again
                continue
            for name, attributes in found.items():
                _check_same_run(self.run, attributes, f"{self.output} (video {name!r})")
            done.update(found)
        return done

    def _join(self) -> None:
        parts = sorted(self._parts.glob("*.h5"))
        if parts or not self.output.exists():
            _write_joined(_existing(*parts, self.output), self.output, self.run)
        shutil.rmtree(self._parts)


def merge(inputs: Sequence[str | Path], output: str | Path, *, overwrite: bool = False) -> int:
    """Joins feature files of one kind of run, such as shards, into one; the number of its videos.

    Raises:
      FeatureFileError: a video stands in two of them, or they were made by different runs.
      FileExistsError: the output exists and `overwrite` is false.
    """
    output = Path(output)
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; name another file or pass --overwrite")
    owner: dict[str, Path] = {}
    run: Attributes | None = None
    for path in map(Path, inputs):
        with _open(path) as file:
            attributes = _attributes(file)
            attributes.pop("format_version", None)
            for name in file:
                _checked(file, name, path)
                if name in owner:
                    raise FeatureFileError(f"video {name!r} stands in both {owner[name]} and {path}; drop it from one")
                owner[name] = path
        run = attributes if run is None else run
        _check_same_run(run, attributes, str(path))
    _write_joined([Path(path) for path in inputs], output, run or {})
    return len(owner)


def export(path: str | Path, folder: str | Path, kind: str) -> int:
    """Writes `NAME.npy` or `NAME.pkl` (a pickled array, as the original has it) for each video; their number.

    Raises:
      FeatureFileError: the file is no feature file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    videos = names(path)
    for name in tqdm.tqdm(videos, unit="video", disable=None):
        features = read(path, name).features
        with _replacing(folder / f"{name}.{kind}") as temporary, open(temporary, "wb") as stream:
            np.save(stream, features) if kind == "npy" else pickle.dump(features, stream)
    return len(videos)


def info(path: str | Path, stream: TextIO) -> None:
    """Prints what a file holds: its run, then a line a video.

    Raises:
      FeatureFileError: the file is no feature file.
    """
    path = Path(path)
    parts = path.with_name(path.name + ".parts")
    if not path.exists() and parts.is_dir():
        count = len(list(parts.glob("*.h5")))
        print(f"{path}: not finished; {count} videos lie in {parts}. The same command again goes on.", file=stream)
        return
    with _open(path) as file:
        run = _attributes(file)
        print(f"{path}: {len(file)} videos, {path.stat().st_size / 1e6:.1f} MB", file=stream)
        for key, value in sorted(run.items()):
            print(f"  {key}: {value}", file=stream)
        width = max([len(name) for name in file] + [5])
        print(f"{'video':{width}}  {'clips':>6}  {'fps':>7}  {'frames':>7}  notes", file=stream)
        for name in sorted(file):
            dataset = _checked(file, name, path)
            own = dataset.attrs
            fps, frames = float(own.get("fps", np.nan)), int(own.get("frames", -1))
            print(f"{name:{width}}  {len(dataset):6}  {fps:7.3f}  {frames:7}  {own.get('damage', '')}", file=stream)


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        raise FeatureFileError(f"{path}: no such file; expected an HDF5 file of features")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise FeatureFileError(f"{path}: not an HDF5 file, or a damaged one; remove it or name another") from error


def _checked(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """The dataset, when it is one of features and no larger than its bytes on disk can hold."""
    try:
        # A soft or external link could lead to another file.
        dataset = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype != FEATURE_DTYPE or dataset.ndim != 2:
            raise FeatureFileError(f"{path}: {name!r} is not a float32 [n_clips, width] dataset; not a file of features")
        stored = dataset.id.get_storage_size()
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise FeatureFileError(f"{path}: {name!r} can't be read ({error}); the file is damaged") from error
    if dataset.nbytes > _MAX_GZIP_RATIO * stored:
        raise FeatureFileError(f"{path}: {name!r} claims {dataset.nbytes} bytes but stores {stored}; the file is damaged")
    return dataset


def _attributes(item: h5py.File | h5py.Dataset) -> Attributes:
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in item.attrs.items()}


def _check_same_run(expected: Attributes, found: Attributes, where: str) -> None:
    different = [
        f"{key}: {found.get(key, 'absent')} there, {expected.get(key, 'absent')} asked for"
        for key in _IDENTITY
        if found.get(key) != expected.get(key)
    ]
    if different:
        raise FeatureFileError(
            f"{where} was made otherwise:\n  " + "\n  ".join(different) + "\nname another --output, or pass --overwrite"
        )


def _write_joined(inputs: Sequence[Path], output: Path, run: Attributes) -> None:
    """Writes a file with all datasets of the inputs; of two with one name the first input's."""
    with _replacing(output) as temporary, h5py.File(temporary, "w") as joined:
        joined.attrs["format_version"] = FORMAT_VERSION
        for key, value in run.items():
            joined.attrs[key] = value
        for path in inputs:
            with _open(path) as file:
                for name in file:
                    if name not in joined:
                        file.copy(file[name], joined, name)  # chunks as they are, without unpacking


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name that becomes `path`, durably, when the block ends without an error."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> TextIO:
    """The lock file of a folder of parts, held; the folder is made when absent.

    Raises:
      FeatureFileError: another process holds it.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "a")  # noqa: SIM115 (held until the writer closes it)
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


def _existing(*paths: Path) -> list[Path]:
    return [path for path in paths if path.exists()]


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
