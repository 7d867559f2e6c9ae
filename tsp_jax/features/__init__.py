"""The HDF5 file of features: one dataset for each video, written whole or not at all.

`file[video_name][()]` is float32 [n_clips, 512], gzip, readable with plain h5py. The attributes say how the rows were made.
During a run, each finished video is a small file of its own in `FILE.h5.parts/`, moved into place when it is complete. The last
step joins them into FILE.h5 in one move. So a killed run loses no finished video, and FILE.h5 never holds a part of one.
"""

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from tsp_jax import video_names
from tsp_jax.features import hdf5
from tsp_jax.system import errors, files

FORMAT_VERSION = hdf5.FORMAT_VERSION
Attributes = hdf5.Attributes
FeatureFileError = hdf5.FeatureFileError

_CHUNK_BYTES = 1 << 19
# The attributes that make features comparable. Names and versions may differ.
_GEOMETRY = ("stride", "clip_len", "frame_rate", "frame_selection", "parts")
_IDENTITY = (*_GEOMETRY, "decoder", "dtype", "checkpoint_sha256", hdf5.NAMING, "npy_dtype", "timing")
_FLAG = "frame_selection_flag"


@dataclasses.dataclass(frozen=True, eq=False)
class VideoFeatures:
    """One video's dataset.

    Attributes:
      name: the video's name.
      features: float32 [n_clips, width], rows in clip order.
      attributes: how they were made; the attributes of the run and of the video.
    """

    name: str
    features: Float32[np.ndarray, "n f"]
    attributes: Attributes


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file holds, without the features.

    Attributes:
      attributes: the attributes of the file, which are those of the run.
      videos: each video's number of clips and its attributes, by name, sorted.
    """

    attributes: Attributes
    videos: dict[str, tuple[int, Attributes]]


def read(path: str | Path, name: str) -> VideoFeatures:
    """Returns the features of one video.

    Raises:
      FeatureFileError: the file or the video is absent, or is no feature data.
    """
    path = Path(path)
    with hdf5.reading(path) as file:
        if hdf5.find(file, name) is None:
            raise FeatureFileError(f"{path} has no video {name!r}; `python -m tsp_jax.features info {path}` lists them")
        dataset = hdf5.clip_dataset(file, name, path)
        return VideoFeatures(name, dataset[()], hdf5.attributes(dataset))


def names(path: str | Path) -> list[str]:
    """Returns the names of the videos of a feature file, sorted.

    Raises:
      FeatureFileError: the file is absent or no feature file.
    """
    with hdf5.reading(Path(path)) as file:
        return hdf5.names(file)


def naming(path: str | Path) -> video_names.Rule:
    """Returns the rule by which video files named the videos of a feature file.

    Raises:
      FeatureFileError: the file is absent or no feature file.
    """
    with hdf5.reading(Path(path)) as file:
        return hdf5.naming(file)


def contents(path: str | Path) -> Contents:
    """Returns what a file holds, without reading its features.

    Raises:
      FeatureFileError: the file is absent or no feature file.
    """
    path = Path(path)
    videos = {}
    with hdf5.reading(path) as file:
        for name in hdf5.names(file):
            dataset = hdf5.clip_dataset(file, name, path)
            videos[name] = len(dataset), hdf5.attributes(dataset)
        return Contents(hdf5.attributes(file), videos)


class Writer:
    """A context manager that writes features into one file, and refuses a second writer of the same file meanwhile.

    If the block ends without an error, the committed videos are joined into the output. If it ends with one, the parts stay for
    the next run with the same output.

    Attributes:
      done: attributes of the videos that the output or an earlier, unfinished run already holds, by name.
    """

    def __init__(self, output: str | Path, run: Attributes, *, overwrite: bool = False):
        """Opens the output for a run.

        Args:
          output: the HDF5 file.
          run: the attributes that all its videos share. A file that was written with others is refused.
          overwrite: whether to delete what earlier runs wrote.

        Raises:
          FeatureFileError: the output is no feature file, was made by another kind of run, or is being written.
        """
        self.output = Path(output)
        self.run = dict(run)
        if self.output.is_dir():
            raise FeatureFileError(f"{self.output} is a folder; name a file, such as {self.output / 'features.h5'}")
        self._parts = _parts_folder(self.output)
        with contextlib.ExitStack() as stack:
            self._lock(stack)
            if overwrite:
                self.output.unlink(missing_ok=True)
                for part in self._parts.glob("*.h5*"):
                    part.unlink()
            self.done: dict[str, Attributes] = {}
            self._owner: dict[str, Path] = {}  # the file that holds each video of `done`
            self._read_done()
            self._held = stack.pop_all()  # only now, so that an error above frees the lock

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with self._held:
            if kind is None:
                self._join()

    def commit(self, name: str, features: Float[np.ndarray, "n f"], attributes: Attributes) -> None:
        """Writes one video to disk, as float32 whatever its precision. After this returns, a kill can't lose it."""
        part = self._parts / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.h5"
        attributes = {**self.run, **attributes}
        naming = attributes.get(hdf5.NAMING, video_names.DEFAULT)
        rows = max(1, min(len(features), _CHUNK_BYTES // max(1, features.shape[1] * hdf5.DTYPE.itemsize)))

        def fill(file: hdf5.File) -> None:
            hdf5.set_attributes(file, {hdf5.NAMING: naming})
            dataset = file.create_dataset(
                hdf5.key(name, naming), data=features.astype(hdf5.DTYPE), chunks=(rows, features.shape[1]), compression="gzip"
            )
            hdf5.set_attributes(dataset, attributes)

        with files.replacing(part) as temporary:
            temporary.write_bytes(hdf5.packed(fill))
        self.done[name], self._owner[name] = attributes, part

    def _lock(self, stack: contextlib.ExitStack) -> None:
        """Holds the lock until the stack is closed, which also removes the folder of parts if no part is left."""
        busy = (
            f"another run is writing here ({self._parts}); give each shard an --output of its own, and join them with "
            "`python -m tsp_jax.features merge`"
        )
        try:
            files.check_replaceable(self.output)
            stack.enter_context(files.locked(self._parts / "lock", busy))
        except errors.InUseError as error:
            raise FeatureFileError(str(error)) from error
        except OSError as error:
            reason = f"{error.strerror} ({error.filename})" if error.strerror else str(error)
            raise FeatureFileError(f"{self.output} can't be written: {reason}") from error
        stack.callback(_remove_if_empty, self._parts)

    def _read_done(self) -> None:
        for path in [self.output, *sorted(self._parts.glob("*.h5"))]:
            if not path.exists():
                continue
            found = {}
            try:
                with hdf5.reading(path) as file:
                    for name in hdf5.names(file):
                        dataset = hdf5.clip_dataset(file, name, path)
                        found[name] = hdf5.attributes(dataset)
                        if path != self.output:
                            dataset[()]  # unpacks everything, so that gzip's checksums are checked
            except FeatureFileError:
                if path == self.output:
                    raise
                path.unlink()  # A failing disk damaged this part, so its video is extracted again.
                continue
            for name, attributes in found.items():
                where, remedy = f"{self.output} (video {name!r})", "name another --output, or pass --overwrite"
                check_same_run(self.run, "asked for", attributes, where, remedy)
                self.done[name], self._owner[name] = attributes, path

    def _join(self) -> None:
        if not self.output.exists() or set(self._owner.values()) - {self.output}:
            _write_joined(self._owner, self.output, self.run)
        for part in self._parts.glob("*.h5*"):
            part.unlink()


def merge(inputs: Sequence[str | Path], output: str | Path, *, overwrite: bool = False) -> int:
    """Joins feature files of one kind of run, such as shards, into one file. Returns the number of its videos.

    The output may be one of the inputs.

    Raises:
      FeatureFileError: two inputs hold the same video, they were made by different runs, or one of the files is unfinished.
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
        held = contents(path)
        for name in held.videos:
            if name in owner:
                raise FeatureFileError(f"video {name!r} is in both {owner[name]} and {path}; remove it from one")
            owner[name] = path
        if run is None:
            first, run = path, held.attributes
        for attributes in [held.attributes, *(attributes for _, attributes in held.videos.values())]:
            check_same_run(run, f"in {first}", attributes, str(path), "only features of one kind of run can be joined")
    _write_joined(owner, output, run or {})
    return len(owner)


def unfinished(output: Path) -> int:
    """Returns how many finished videos of an interrupted run still wait to be joined into an output."""
    return len(list(_parts_folder(output).glob("*.h5")))


def check_same_run(expected: Attributes, whose: str, found: Attributes, where: str, remedy: str) -> None:
    """Checks that two kinds of run make features that can be compared, and may lie in one place.

    Args:
      expected: the attributes of one run.
      whose: where these attributes come from, such as "asked for".
      found: the attributes of the other run.
      where: where these attributes were found.
      remedy: what to do if they differ.

    Raises:
      FeatureFileError: they differ; the message lists how.
    """
    expected, found = _as_asked(expected), _as_asked(found)
    keys = [
        key
        for key in _IDENTITY
        if not np.array_equal(found.get(key), expected.get(key))  # type: ignore (any value, from any file)
    ]
    if not keys:
        return
    different = [f"{key}: {found.get(key, 'absent')} there, {expected.get(key, 'absent')} {whose}" for key in keys]
    if keys == ["frame_selection"] and found["frame_selection"] in ("auto", "reference", "uniform"):
        remedy = f"pass --frame_selection {found['frame_selection']} to go on as it began, or {remedy}"
    raise FeatureFileError(f"{where} was made otherwise:\n  " + "\n  ".join(different) + f"\n{remedy}")


def _as_asked(attributes: Attributes) -> Attributes:
    """Returns the attributes with the frame selection that was asked for, not that of a video, and with the rule of names."""
    asked = attributes.get(_FLAG, attributes.get("frame_selection"))
    if _FLAG not in attributes and asked == "uniform":
        asked = "uniform by frame number, as version 0.1.0 took it"
    return {**attributes, "frame_selection": asked, hdf5.NAMING: attributes.get(hdf5.NAMING, video_names.DEFAULT)}


def _parts_folder(output: Path) -> Path:
    return output.parent / f"{output.name}.parts"


def _remove_if_empty(parts: Path) -> None:
    """Removes the folder of parts, with the lock file in it, unless it holds a part."""
    if not any(parts.glob("*.h5")):
        with contextlib.suppress(OSError):  # another run may have begun to use the folder
            (parts / "lock").unlink()
            parts.rmdir()


def _check_finished(output: Path) -> None:
    if unfinished(output):
        raise FeatureFileError(
            f"{output} isn't finished: {unfinished(output)} videos lie in {_parts_folder(output)}; first run the command that "
            "writes it again"
        )


def _write_joined(owner: Mapping[str, Path], output: Path, run: Attributes) -> None:
    """Writes a file with the named datasets of several files. Its bytes depend on these datasets and `run` alone.

    Raises:
      OSError: the disk has no room for it.
    """
    needed, free = sum(path.stat().st_size for path in set(owner.values())), shutil.disk_usage(output.parent).free
    if needed > free:  # checked first, because HDF5 crashes the process if a write fails
        reason = f"{os.strerror(errno.ENOSPC)}: joining takes {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free"
        raise OSError(errno.ENOSPC, reason, str(output))
    naming = run.get(hdf5.NAMING, video_names.DEFAULT)
    with hdf5.replacing(output) as joined:
        hdf5.set_attributes(joined, {**run, "format_version": FORMAT_VERSION})
        for path, names_there in itertools.groupby(sorted(owner), key=owner.__getitem__):
            with hdf5.reading(path) as file:
                for name in names_there:
                    file.copy(
                        hdf5.clip_dataset(file, name, path), joined, hdf5.key(name, naming)
                    )  # copies chunks without unpacking them
