"""The list of videos to work on: those in a folder, one file, or those in a metadata CSV, each with its name or its fault."""

import dataclasses
import os
from collections import defaultdict
from pathlib import Path

import numpy as np

from tsp_jax import clips
from tsp_jax.system import tables

EXTENSIONS = frozenset(  # what a folder is searched for
    ["3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "vob", "webm", "wmv"]
)
METADATA_COLUMNS = ("filename", "fps", "video-frames")
_MAX_PATHS_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Video:
    """A video file to work on.

    Attributes:
      name: the file's name up to its first dot; the key of its features.
      path: the file.
      fps: frames per second according to the metadata; None if the file itself decides.
      num_frames: number of frames according to the metadata; None if the file itself decides.
      fault: the reason why the video can't be used; empty if none is known.
    """

    name: str
    path: Path
    fps: float | None = None
    num_frames: int | None = None
    fault: str = ""


def list_videos(root: str | Path, metadata_csv: str | Path | None = None) -> list[Video]:
    """Returns the videos below a folder (sorted by path), the one file, or the videos that a metadata CSV lists, in its order.

    Links to files count; links to folders are not followed.

    Raises:
      OSError: the folder, file or CSV is not there or can't be read, or the folder holds no video.
      ValueError: the CSV lacks columns, lists nothing or is no CSV, or its root is no folder.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f"--videos {root}: no such file or folder")
    if metadata_csv is not None:
        if not root.is_dir():
            raise ValueError(f"--videos {root}: no folder, which it is with --metadata_csv: the root of its filenames")
        return _refuse_names(_read_metadata(Path(metadata_csv), root))
    if root.is_file():
        return _refuse_names([Video(video_name(root), root)])
    paths = sorted(
        Path(folder, file)
        for folder, _, files in os.walk(root, onerror=_raise)
        for file in files
        if Path(file).suffix.lower().lstrip(".") in EXTENSIONS
    )
    if not paths:
        raise FileNotFoundError(f"--videos {root}: no video in this folder; looked for {', '.join(sorted(EXTENSIONS))}")
    return _refuse_names([Video(video_name(path), path) for path in paths])


def shard(videos: list[Video], num_shards: int, shard_id: int) -> list[Video]:
    """Returns the videos of one shard of several. Shards are contiguous and nearly equal in size.

    Raises:
      ValueError: shard_id is not in [0, num_shards).
    Source: TSP, released extraction code.
    """
    if not 0 <= shard_id < num_shards:
        raise ValueError(f"--shard_id is from 0 to --num_shards - 1; got {shard_id} of {num_shards}")
    bounds = np.linspace(0, len(videos), num_shards + 1).astype(int)
    return videos[bounds[shard_id] : bounds[shard_id + 1]]


def video_name(path: Path) -> str:
    """Returns the file's name up to its first dot, as the original names features."""
    return path.name.split(".")[0]


def _raise(error: OSError) -> None:
    raise error


def _read_metadata(path: Path, root: Path) -> list[Video]:
    if not path.is_file():
        raise FileNotFoundError(f"--metadata_csv {path}: no such file")
    videos = [_metadata_row(row, f"{path.name} line {row.line}", root) for row in tables.read_table(path, METADATA_COLUMNS)]
    if not videos:
        raise ValueError(f"{path}: lists no video")
    return videos


def _metadata_row(row: tables.TableRow, where: str, root: Path) -> Video:
    filename = row.fields.get("filename", "")
    name, path = video_name(Path(filename)), root / filename
    try:
        if row.fault:
            raise ValueError(row.fault)
        if not filename:
            raise ValueError("no filename")
        if not path.is_relative_to(root) or ".." in path.relative_to(root).parts:
            raise ValueError(f"{filename!r} leads out of {root}")
        fps, frames = clips.check_fps(_number(row, "fps")), _number(row, "video-frames")
        if not (frames.is_integer() and frames >= 0):
            raise ValueError(f"video-frames is a whole number; got {row.fields['video-frames']!r}")
        return Video(name, path, fps, int(frames))
    except ValueError as error:
        return Video(name, path, fault=f"{where}: {error}")


def _number(row: tables.TableRow, column: str) -> float:
    try:
        return float(row.fields[column])
    except ValueError as error:
        raise ValueError(f"{column} is a number; got {row.fields[column]!r}") from error


def _refuse_names(videos: list[Video]) -> list[Video]:
    paths = defaultdict(list)
    for item in videos:
        paths[item.name].append(item.path)
    faults = {name: _name_fault(name, same) for name, same in paths.items()}
    return [dataclasses.replace(item, fault=item.fault or faults[item.name]) for item in videos]


def _name_fault(name: str, paths: list[Path]) -> str:
    """Returns the reason why features can't have this name, which the files share; empty if they can."""
    if not name:
        return "the file's name begins with a dot, which leaves no name for its features"
    if name != name.encode(errors="replace").decode():
        return "the file's name is not UTF-8, as the names of features are; rename it"
    distinct = list(dict.fromkeys(map(str, paths)))
    if len(distinct) > 1:
        shown = distinct if len(distinct) <= _MAX_PATHS_SHOWN else [*distinct[:_MAX_PATHS_SHOWN], "…"]
        return f"{len(distinct)} videos share the name {name!r}: {', '.join(shown)}"
    if len(paths) > 1:
        return f"listed {len(paths)} times; a video has one row"
    return ""
