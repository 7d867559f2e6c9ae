"""The list of videos to work on: those that `--videos` names, or those in a metadata CSV, each with its name or its fault."""

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tsp_jax import clips, video_names
from tsp_jax.system import tables
from tsp_jax.video import searching

METADATA_COLUMNS = ("filename", "fps", "video-frames")
_MAX_PATHS_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Video:
    """A video file to work on.

    Attributes:
      name: the key of its features, which follows from the file's name by a rule of `video_names`.
      path: the file.
      fps: frames per second according to the metadata; None if the file itself decides.
      num_frames: number of frames according to the metadata; None if the file itself decides.
      fault: the reason why the video can't be used; empty if none is known.
      parts_sec: the parts from start to end, in seconds, whose clips alone are wanted; None if all of the video is.
      filename: the file relative to the folder of videos, with `/` between folders; empty if there is no such folder.
    """

    name: str
    path: Path
    fps: float | None = None
    num_frames: int | None = None
    fault: str = ""
    parts_sec: tuple[tuple[float, float], ...] | None = None
    filename: str = dataclasses.field(default="", compare=False)


def list_videos(
    videos: str | Path | Sequence[str | Path],
    metadata_csv: str | Path | None = None,
    names: video_names.Rule | None = video_names.DEFAULT,
    note: Callable[[str], object] = lambda line: None,
) -> list[Video]:
    """Returns the videos that `--videos` means, or the videos that a metadata CSV lists, in its order.

    Args:
      videos: a folder, a file, a glob, `@` with a text file of paths, or several of these, as `searching.find` explains. With
        a CSV, the folder of its file names.
      metadata_csv: a CSV with the columns `METADATA_COLUMNS`.
      names: the rule by which the files name their features. Videos that it gives one name have a fault. With None the rule is
        `first_dot`, and such videos are refused.
      note: is called with each line about files that were passed over.

    Raises:
      OSError: a folder, file or CSV is not there or can't be read, or there is no video.
      ValueError: the CSV lacks columns, lists nothing or is no CSV, its root is no folder, or `names` is None and two videos
        would have one name.
    """
    rule = names or video_names.DEFAULT
    if metadata_csv is None:
        found = searching.find(videos)
        for line in found.notes:
            note(line)
        listed = [Video("", path, fault=searching.picture_fault(path), filename=found.filename(path)) for path in found.paths]
    else:
        listed = _read_metadata(Path(metadata_csv), _metadata_root(videos))
    named = [dataclasses.replace(item, name=video_names.feature_name(item.filename, rule)) for item in listed]
    if names is None:
        video_names.check_distinct(item.filename for item in named if item.name and not item.fault)
    return _with_name_faults(named)


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


def print_note(line: str) -> None:
    """Prints a line about files that were passed over; for `list_videos` of commands."""
    print(f"note: {line}", file=sys.stderr)


# --------------------------------------------------------------------------------------------------------------- metadata


def _metadata_root(videos: str | Path | Sequence[str | Path]) -> Path:
    paths = [videos] if isinstance(videos, str | Path) else list(videos)
    root = Path(paths[0])
    if len(paths) > 1:
        raise ValueError(
            f"--videos {' '.join(map(str, paths))}: with --metadata_csv give one folder, the root of its filenames"
        )
    if not root.exists():
        raise FileNotFoundError(f"--videos {root}: no such file or folder")
    if not root.is_dir():
        raise ValueError(f"--videos {root}: no folder, which it is with --metadata_csv: the root of its filenames")
    return root


def _read_metadata(path: Path, root: Path) -> list[Video]:
    """Returns the videos of a metadata CSV, as yet without names."""
    if not path.is_file():
        raise FileNotFoundError(f"--metadata_csv {path}: no such file")
    rows = tables.read_table(path, METADATA_COLUMNS, numbers=METADATA_COLUMNS[1:])
    if not rows:
        raise ValueError(f"{path}: lists no video")
    videos = [_metadata_row(row, f"{path.name} line {row.line}", root) for row in rows]
    return [dataclasses.replace(item, filename=searching.relative(item.path, root)) for item in videos]


def _metadata_row(row: tables.TableRow, where: str, root: Path) -> Video:
    filename = row.fields.get("filename", "")
    path = root / filename
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
        return Video("", searching.spelled(root, filename), fps, int(frames))
    except ValueError as error:
        return Video("", path, fault=f"{where}: {error}")


def _number(row: tables.TableRow, column: str) -> float:
    try:
        return tables.parse_number(row.fields[column])
    except ValueError as error:
        raise ValueError(f"{column} is a number; got {row.fields[column]!r}") from error


# ------------------------------------------------------------------------------------------------------------------ names


def _with_name_faults(videos: list[Video]) -> list[Video]:
    paths = defaultdict(list)
    for item in videos:
        paths[item.name].append(item.path)
    faults = {name: _name_fault(name, same) for name, same in paths.items()}
    return [dataclasses.replace(item, fault=item.fault or faults[item.name]) for item in videos]


def _name_fault(name: str, paths: list[Path]) -> str:
    """Returns the reason why features can't have this name, which the files share; empty if they can."""
    if name in ("", ".", ".."):
        return "the file's name begins with a dot, which leaves no name for its features; rename it, or pass --names stem"
    if name != name.encode(errors="replace").decode():
        return "the file's name is not UTF-8, as the names of features are; rename it"
    distinct = list(dict.fromkeys(map(str, paths)))
    if len(distinct) > 1:
        shown = distinct if len(distinct) <= _MAX_PATHS_SHOWN else [*distinct[:_MAX_PATHS_SHOWN], "…"]
        return (
            f"{len(distinct)} videos share the name {name!r}: {', '.join(shown)}; another rule of --names may keep them apart"
        )
    if len(paths) > 1:
        return f"listed {len(paths)} times; a video has one row"
    return ""
