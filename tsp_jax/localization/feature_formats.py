"""Imports the features of other tools with their timing, and reads some rows of features with their times."""

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64

from tsp_jax import clip_times, features, groundtruth, video_names
from tsp_jax.features import hdf5
from tsp_jax.localization import feature_sources
from tsp_jax.system import progress, tables, version

CHANNELS = "joined_channels"  # the attribute with the channels of each part that an import joined
_SLACK = 0.02  # how far a video's length in the metadata may be from that of the features, relative


@dataclasses.dataclass(frozen=True)
class TimingRule:
    """How the rows of imported features lie in their videos: on a grid of frames, or as equal parts of the whole video.

    Attributes:
      stride: frames from one row's start to the next's; None if the features are rescaled, as for window and fps.
      window: frames that a row covers.
      fps: the frames per second by which stride, window and offset count, or `video` for each video's own.
      offset: the frame at which the first row starts.
      rescaled: the number of rows to which each whole video was rescaled; None if they lie on a grid.
    """

    stride: float | None = None
    window: float | None = None
    fps: float | Literal["video"] | None = None
    offset: float = 0.0
    rescaled: int | None = None

    def __post_init__(self):
        grid = (self.stride, self.window, self.fps)
        if self.rescaled is None and None in grid:
            raise ValueError("the timing is needed: --stride, --window and --fps, or --rescaled for rows over the whole video")
        if self.rescaled is not None and (grid != (None, None, None) or self.offset):
            raise ValueError("rescaled features cover the whole video; they have no stride, window, frame rate or offset")
        if self.rescaled is None:
            self._grid(1.0)  # checks the numbers
        elif self.rescaled < 1:
            raise ValueError(f"features are rescaled to at least 1 row; got {self.rescaled}")

    def __str__(self) -> str:
        if self.rescaled is not None:
            return f"rescaled to {self.rescaled} rows over the whole video"
        rate = "each video's own rate" if self.fps == "video" else f"{self.fps:g} fps"
        return f"a row every {self.stride:g} frames, of {self.window:g}, from frame {self.offset:g}, at {rate}"

    def timing(self, count: int, video: groundtruth.VideoMetadata) -> clip_times.RowTiming:
        """Returns the timing of a video's rows.

        Args:
          count: the number of rows.
          video: the video, by the metadata.

        Raises:
          ValueError: the rows do not fit the video's length; the message has both numbers.
        """
        duration_sec = video.video_duration_sec
        if self.rescaled is not None:
            if count != self.rescaled:
                raise ValueError(f"{count} rows, expected {self.rescaled}, to which the features are said to be rescaled")
            stride = duration_sec * video.fps / count
            return clip_times.RowTiming(video.fps, stride, stride)
        timing = self._grid(video.fps)
        stride_sec, last_sec, end_sec = timing.stride / timing.fps, timing.start_sec(count)[-1], timing.end_sec(count)
        # Some tools fill up the last window and others leave it out; the metadata may be of another copy of the video.
        slack_sec = max(stride_sec, _SLACK * duration_sec)
        if last_sec > duration_sec + slack_sec or end_sec < duration_sec - stride_sec - slack_sec:
            raise ValueError(
                f"{count} rows end at second {end_sec:.2f}, by {self}; the metadata gives the video {duration_sec:.2f} s"
            )
        return timing

    def _grid(self, own_fps: float) -> clip_times.RowTiming:
        fps = own_fps if self.fps == "video" else self.fps
        return clip_times.RowTiming(fps or 0.0, self.stride or 0.0, self.window or 0.0, self.offset)


@dataclasses.dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
      videos: the names of the imported videos, sorted.
      channels: the number of channels.
      unknown: names of features that were skipped, because the metadata has no such video.
      absent: files of the metadata without features.
      failed: what is wrong with the videos that were left out because of a fault.
    """

    videos: tuple[str, ...]
    channels: int
    unknown: tuple[str, ...]
    absent: tuple[str, ...]
    failed: tuple[str, ...]


def import_features(
    paths: Sequence[str | Path],
    output: str | Path,
    rule: TimingRule,
    metadata_csv: str | Path,
    layout: feature_sources.Layout | None = None,
    *,
    names: video_names.Rule = video_names.DEFAULT,
    skip_unknown: bool = False,
    skip_failed: bool = False,
    overwrite: bool = False,
) -> Imported:
    """Writes features of another tool, with their timing, into one HDF5 file, whole or not at all.

    Everything is read and checked before anything is written, so that one message has all faults.

    Args:
      paths: folders with a file for each video, or HDF5 files; several are joined on the channels.
      output: the HDF5 file.
      rule: when the rows lie in their videos.
      metadata_csv: the metadata CSV, with the length of each video.
      layout: how folders name and store features.
      names: the rule by which the output names a video after its file in the metadata.
      skip_unknown: whether features of videos that the metadata does not have are left out. Otherwise they are a fault.
      skip_failed: whether videos whose features can't be read or do not fit are left out. Otherwise they are a fault.
      overwrite: whether to replace the output if it exists.

    Raises:
      OSError, ValueError, FeatureFileError: a file can't be read, or features do not fit their video.
    """
    output = Path(output)
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; name another file or pass --overwrite")
    for path in map(Path, paths):
        if output.exists() and path.exists() and path.samefile(output):
            raise ValueError(f"--output {output} is one of the files to import; name another")
    found = feature_sources.find(paths, layout or feature_sources.Layout())
    metadata = groundtruth.read_metadata(metadata_csv)
    videos, unknown, faults = _matched(found, metadata, names)
    if not skip_unknown:
        faults += [f"{found[name].where}: no video {name!r} in {metadata_csv}" for name in unknown]
    attributes: dict[str, features.Attributes] = {}
    widths: dict[str, int] = {}
    failed: list[str] = []
    for name, video in progress.each(videos.items(), "check", len(videos)):
        try:
            rows, channels = found[name].read()
            widths[name] = rows.shape[1]
            attributes[name] = _attributes(rule, len(rows), video, channels, found[name].where)
        except (OSError, ValueError, features.FeatureFileError) as error:
            failed.append(str(error))
    width = collections.Counter(widths.values()).most_common(1)[0][0] if widths else 0
    for name in [name for name, found_width in widths.items() if found_width != width]:
        attributes.pop(name, None)
        failed.append(f"{found[name].where}: {widths[name]} channels, most videos have {width}")
    faults += [] if skip_failed else failed
    remedy = "check --fps, --stride, --window and --offset, the metadata, and --prefix, --suffix and --on_unknown for names"
    tables.refuse(Path(paths[0]), [*faults, remedy] if 0 < len(faults) < 10 else faults, remedy)
    if not attributes:
        raise ValueError(f"{paths[0]}: none of its {len(found)} videos can be imported with {metadata_csv}; {remedy}")
    run = {
        clip_times.IMPORTED: str(rule),
        hdf5.NAMING: names,
        "imported_from": ", ".join(Path(path).name for path in paths),
        "tsp_jax_version": version.__version__,
    }
    stored: dict[str, str] = {name: video_names.feature_name(videos[name].filename, names) for name in attributes}
    with features.Writer(output, run, overwrite=True) as writer:
        for name, own in progress.each(attributes.items(), "import", len(attributes)):
            rows, _ = found[name].read()
            if rows.shape != (own["clips"], width):
                raise ValueError(f"{found[name].where}: changed while it was read; import it again")
            writer.commit(stored[name], rows, own)
    known = {videos[name].filename for name in found if name in videos}
    absent = [video.filename for video in metadata if video.filename not in known]
    return Imported(tuple(sorted(stored.values())), width, tuple(unknown), tuple(absent), tuple(failed))


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a video's features.

    Attributes:
      array: float32 [n, channels].
      start_sec: float64 [n], the start of each row in seconds.
      window_sec: the seconds that a row covers.
      duration_sec: the video's length in seconds.
    """

    array: Float32[np.ndarray, "n c"]
    start_sec: Float64[np.ndarray, " n"]
    window_sec: float
    duration_sec: float


def read_rows(path: str | Path, name: str, first: int = 0, end: int | None = None) -> Rows:
    """Returns the rows `first` to `end - 1` of a video's features, extracted or imported; only these are read from disk.

    Args:
      path: the file of features.
      name: the video's name; `tsp_jax.features.names` lists them.
      first: the first row, counted as in a slice.
      end: the row after the last, counted as in a slice; None reads to the last row.

    Raises:
      FeatureFileError: the file or the video is absent or damaged, or has no timing.
    """
    path = Path(path)
    with hdf5.reading(path) as file:
        if hdf5.find(file, name) is None:
            raise features.FeatureFileError(
                f"{path} has no video {name!r}; `python -m tsp_jax.features info {path}` lists them"
            )
        dataset = hdf5.clip_dataset(file, name, path)
        count, width = dataset.shape
        chosen = slice(*slice(first, end).indices(count))
        array = dataset[chosen] if chosen.stop > chosen.start else np.zeros((0, width), np.float32)
        # The times follow from the number of rows alone, so one value serves for all of them.
        whole = features.VideoFeatures(name, np.broadcast_to(np.float32(0), (count, width)), hdf5.attributes(dataset))
    start_sec, window_sec = clip_times.clip_times(whole)
    return Rows(array, start_sec[chosen], window_sec, clip_times.duration_sec(whole))


def shape(path: str | Path, name: str) -> tuple[int, int]:
    """Returns the number of rows and of channels of a video's features.

    Raises:
      FeatureFileError: the file or the video is absent or damaged.
    """
    with hdf5.reading(Path(path)) as file:
        return hdf5.clip_dataset(file, name, Path(path)).shape


def _matched(
    found: dict[str, feature_sources.Source], metadata: Sequence[groundtruth.VideoMetadata], names: video_names.Rule
) -> tuple[dict[str, groundtruth.VideoMetadata], list[str], list[str]]:
    """Returns the video of each name, the names that the metadata does not have, and faults."""
    by_file = {video.filename: video for video in metadata}
    index = video_names.Filenames(by_file)
    videos: dict[str, groundtruth.VideoMetadata] = {}
    owner: dict[str, str] = {}
    unknown, faults = [], []
    for name, source in found.items():
        matches = index.find(name) or index.find(name.rpartition("/")[2])  # a folder may be that of a subset
        if not matches:
            unknown.append(name)
            continue
        stored = video_names.feature_name(matches[0], names)
        if len(matches) > 1:
            faults.append(f"{source.where}: may be of {matches[0]} or of {matches[1]}; rename the file after one of them")
        elif stored in owner:
            faults.append(f"{source.where}: would be named {stored!r}, as would {owner[stored]}; rename one, or pass --names")
        else:
            owner[stored], videos[name] = source.where, by_file[matches[0]]
    return videos, unknown, faults


def _attributes(
    rule: TimingRule, count: int, video: groundtruth.VideoMetadata, channels: list[int], where: str
) -> features.Attributes:
    try:
        timing = rule.timing(count, video)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return {
        **timing.attributes(),
        "fps": video.fps,
        "frames": video.num_frames,
        "duration_sec": video.video_duration_sec,
        "clips": count,
        "damage": "",
        **({CHANNELS: np.array(channels)} if len(channels) > 1 else {}),
    }
