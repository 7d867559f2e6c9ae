"""Finds the features of videos in folders and HDF5 files of other tools, and joins them on the channels."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float32

from tsp_jax.features import hdf5
from tsp_jax.localization import feature_files, resampling

Join = Literal["equal", "shortest", "longest", "first"]
JOINS: tuple[str, ...] = get_args(Join)
FORMATS: dict[str, tuple[str, ...]] = {
    "npy": (".npy",),
    "npz": (".npz",),
    "pkl": (".pkl", ".pickle"),
    "csv": (".csv",),
    "pt": (".pt", ".pth"),
    "h5": (".h5", ".hdf5"),
    "pgcn": ("",),
}
_MAX_FILES = 1_000_000


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a folder names and stores features.

    Attributes:
      format: a key of `FORMATS`; None takes the only one that the folder has.
      prefix: what each file's name has before the video's name.
      suffixes: what file names have after the video's name, such as `_rgb` and `_flow`; parts are joined in this order.
      key: the name of the array in an archive or dict; None takes the only one, or one of a usual name.
      channels_first: whether arrays are [channels, n].
      join: which number of rows parts have when they are joined, as in `joined`.
    """

    format: str | None = None
    prefix: str = ""
    suffixes: tuple[str, ...] = ("",)
    key: str | None = None
    channels_first: bool = False
    join: Join = "equal"


@dataclasses.dataclass(frozen=True)
class Source:
    """Features of one video, not yet read.

    Attributes:
      where: the files that hold them, for messages.
      parts: functions that read the parts, which are joined on the channels.
      join: as in `Layout`.
    """

    where: str
    parts: tuple[Callable[[], feature_files.Rows], ...]
    join: Join

    def read(self) -> tuple[feature_files.Rows, list[int]]:
        """Returns the features, float32 [n, channels], and the number of channels of each part.

        Raises:
          OSError, ValueError, FeatureFileError: a part can't be read, or parts have different numbers of rows.
        """
        parts = [part() for part in self.parts]
        return joined(parts, self.join, self.where), [part.shape[1] for part in parts]


def find(paths: Sequence[str | Path], layout: Layout) -> dict[str, Source]:
    """Returns the features of each video in folders or HDF5 files, by the name that the files have for it, sorted.

    Args:
      paths: the folders and files. Several hold parts of the same videos, which are joined in this order.
      layout: how folders name and store features.

    Raises:
      OSError, ValueError, FeatureFileError: a path is absent or holds no features, a folder holds several formats or two
        files of one video, or a video is in some of the paths only.
    """
    streams: list[dict[str, tuple[str, Callable[[], feature_files.Rows]]]] = []
    for path in map(Path, paths):
        if path.is_dir():
            streams += [_in_folder(path, suffix, layout) for suffix in layout.suffixes]
        elif path.is_file():
            streams.append(_in_file(path, layout))
        else:
            raise FileNotFoundError(f"{path}: no such file or folder; expected a folder of features or an HDF5 file")
    whole = set.intersection(*map(set, streams))
    partly = sorted(set.union(*map(set, streams)) - whole)
    if partly:
        raise ValueError(
            f"{', '.join(map(str, paths))}: {len(partly)} videos have some of their {len(streams)} parts only, such as "
            f"{partly[0]!r}; add the others, or move these away"
        )
    return {
        name: Source(
            " + ".join(stream[name][0] for stream in streams), tuple(stream[name][1] for stream in streams), layout.join
        )
        for name in sorted(whole)
    }


def joined(parts: Sequence[Float32[np.ndarray, "_ _"]], how: Join, where: str) -> Float32[np.ndarray, "_ _"]:
    """Returns features side by side on the channels.

    Args:
      parts: the features of one video.
      how: `equal` refuses different numbers of rows; `shortest` leaves out rows at the end, as BSN and G-TAD do; `longest`
        interpolates to the longest, as OpenTAD does; `first` to the first, as InternVideo does.
      where: the files, for messages.

    Raises:
      ValueError: `how` is `equal` and the numbers of rows differ.
    """
    counts = [len(part) for part in parts]
    if len(set(counts)) > 1:
        if how == "equal":
            raise ValueError(f"{where}: {counts[0]} rows next to {next(count for count in counts if count != counts[0])}")
        length = {"shortest": min(counts), "longest": max(counts), "first": counts[0]}[how]
        parts = [part[:length] if how == "shortest" else resampling.resampled(part, length, "linear") for part in parts]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _in_folder(folder: Path, suffix: str, layout: Layout) -> dict[str, tuple[str, Callable[[], feature_files.Rows]]]:
    files: list[Path] = []
    for path in folder.rglob("*"):
        if not path.name.startswith(".") and path.is_file():
            files.append(path)
        if len(files) > _MAX_FILES:
            raise ValueError(f"{folder}: more than {_MAX_FILES} files; name a folder of features")
    by_format: dict[str, list[Path]] = {}
    for path in files:
        for name, endings in FORMATS.items():
            if path.suffix.lower() in endings or (name == layout.format == "pgcn"):
                by_format.setdefault(name, []).append(path)
    if layout.format is None and len(by_format) > 1:
        by_format.pop("pgcn", None)  # a README may lie next to features
    if layout.format is None and len(by_format) > 1:
        counts = ", ".join(f"{len(found)} of {name}" for name, found in sorted(by_format.items()))
        raise ValueError(f"{folder}: holds files of several formats ({counts}); pass --format with the one of the features")
    chosen = layout.format or next(iter(by_format), "")
    found: dict[str, tuple[str, Callable[[], feature_files.Rows]]] = {}
    for path in sorted(by_format.get(chosen, [])):
        stem = path.name if chosen == "pgcn" else path.name[: len(path.name) - len(path.suffix)]
        if not (stem.startswith(layout.prefix) and stem.endswith(suffix) and len(stem) > len(layout.prefix) + len(suffix)):
            continue
        # Names are relative paths, by which the same names in several folders are different videos.
        parents, bare = path.relative_to(folder).parts[:-1], stem[len(layout.prefix) : len(stem) - len(suffix)]
        name = "/".join([*parents, bare])
        if name in found:
            raise ValueError(f"{path}: {found[name][0]} has features of the same video; move one of them away")
        read = functools.partial(feature_files.read, path, key=layout.key, channels_first=layout.channels_first)
        found[name] = str(path), read
    if not found:
        named = f" named {layout.prefix}…{suffix}" if layout.prefix or suffix else ""
        raise ValueError(
            f"{folder}: no {layout.format or 'feature'} files{named} among {len(files)} files; expected one file for each "
            f"video, of {', '.join(FORMATS)}"
        )
    return found


def _in_file(path: Path, layout: Layout) -> dict[str, tuple[str, Callable[[], feature_files.Rows]]]:
    if path.suffix.lower() not in (*FORMATS["h5"], ".hdf"):
        raise ValueError(f"{path}: expected a folder of features, or an HDF5 file (.h5, .hdf5) with a dataset for each video")

    def rows(name: str) -> feature_files.Rows:
        with hdf5.reading(path) as file:
            found = hdf5.foreign_dataset(file, name, path)
            if found.ndim != 2:
                raise hdf5.FeatureFileError(f"{path}: {name!r} has the shape {list(found.shape)}; expected [n, channels]")
            array = found[()]
        return feature_files.checked(array.T if layout.channels_first else array, f"{path} (video {name!r})")

    with hdf5.reading(path) as file:
        names = hdf5.names(file)
    found = {
        name.removeprefix(layout.prefix): (f"{path} (video {name!r})", functools.partial(rows, name))
        for name in names
        if name.startswith(layout.prefix)
    }
    if not found:
        raise hdf5.FeatureFileError(f"{path}: holds no features of videos{' of this prefix' if layout.prefix else ''}")
    return found
