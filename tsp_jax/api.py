"""Features from Python: `tsp_jax.load_encoder`, and `tsp_jax.read_features` for files that the command wrote."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast, get_args

import numpy as np
from jaxtyping import Float32, Float64

from tsp_jax import checkpoints, clip_times, clips, features, video_list, video_names, weights
from tsp_jax.extraction import batches, clip_stream


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """A video's features.

    Attributes:
      array: float32 [n_clips, width], a row for each clip.
      start_sec: float64 [n_clips], the start of each clip in seconds, ascending.
      clip_len_sec: the length of a clip in seconds.
      geometry: how clips are laid over the video; `frame_selection` is the one that was used, `reference` or `uniform`. None if
        the features were imported from another tool.
      duration_sec: the video's length in seconds.
      damage: the reason why clips are missing; empty if none are.
    """

    array: Float32[np.ndarray, "n f"]
    start_sec: Float64[np.ndarray, " n"]
    clip_len_sec: float
    geometry: clips.ClipGeometry | None
    duration_sec: float
    damage: str


class VideoEncoder:
    """An encoder on all local devices, for one video after the other, from one thread. `load_encoder` makes it.

    Attributes:
      geometry: how clips are laid over videos.
      width: numbers in a clip's features.
    """

    def __init__(self, checkpoint: checkpoints.Checkpoint, geometry: clips.ClipGeometry, *, batch_size: int, dtype: str):
        """Places the weights on the devices. Arguments are those of `load_encoder`."""
        self.geometry = geometry
        self._encoder = batches.Batcher(
            checkpoint, clip_len=geometry.clip_len, stride=geometry.stride, dtype=dtype, batch_size=batch_size
        )
        self.width = self._encoder.width

    def extract(self, path: str | Path, *, keep_damaged: bool = False) -> Features:
        """The features of a video file: those that `python -m tsp_jax.extract` writes with the same settings.

        The first call compiles the program.

        Args:
          path: the file.
          keep_damaged: give the clips that can be read of a damaged video, whose `damage` then says what is wrong.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is no video or shorter than one clip; or it is damaged, and `keep_damaged` is false.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected a video")
        job, rows, attributes, reason = object(), {}, {}, ""
        item = video_list.Video(video_names.feature_name(path), path)
        with clip_stream.ClipStream(
            [item], self.geometry, "pyav", workers=1, preprocessing=self._encoder.preprocessing
        ) as stream:
            results: list[batches.Result] = []
            for message in stream:
                match message:
                    case clip_stream.Opened():  # a second one voids the clips since the first
                        job, attributes = object(), message.attributes
                    case clip_stream.Clip():
                        results += self._encoder.add((job, message.row), job, message.frames)
                    case clip_stream.Closed():
                        reason = message.reason
            results += self._encoder.flush()
        # Clips of a call that was interrupted, or of a plan made void, may have come back too.
        rows = {row: vector for (owner, row), vector in results if owner is job}
        if not rows or (reason and not keep_damaged):
            kept = f" ({len(rows)} clips can be read: pass keep_damaged=True for them)" if rows else ""
            raise ValueError(f"{path}: {reason or 'no clips'}{kept}")
        numbers = sorted(rows)
        ranges = np.array([[number, number + 1] for number in numbers])
        run = {**dataclasses.asdict(self.geometry), **attributes, "clip_ranges": ranges, "damage": reason}
        return _features(features.VideoFeatures(item.name, np.stack([rows[number] for number in numbers]), run))


def load_encoder(
    name_or_path: str | Path,
    *,
    clip_len: int = 16,
    frame_rate: float = 15.0,
    stride: int = 16,
    frame_selection: clips.FrameSelection = "auto",
    batch_size: int = 32,
    dtype: str = "float32",
) -> VideoEncoder:
    """Returns an encoder. Its settings are the flags of `python -m tsp_jax.extract`, with their defaults.

    Args:
      name_or_path: a released name, a checkpoint folder, a run's workdir or a `.pth` or `.safetensors` file.
      clip_len: frames in a clip.
      frame_rate: frames a second that videos are resampled to.
      stride: resampled frames from one clip's start to the next's.
      frame_selection: the original's frames (`reference`), those that are shown at the seconds of the grid (`uniform`), or
        whichever suits the video (`auto`): the original's where the rate is constant and they give every clip.
      batch_size: clips in a batch, for each device.
      dtype: compute precision, `float32` or `bfloat16`; features are always float32.

    Raises:
      OSError, ValueError, RuntimeError, ImportError: there is no such checkpoint, it can't be used, or a setting is out of
        range; the message says what to do.
    """
    geometry = clips.ClipGeometry(clip_len, frame_rate, stride, frame_selection)
    if dtype not in batches.DTYPES:
        raise ValueError(f"dtype is one of {', '.join(batches.DTYPES)}; got {dtype!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1; got {batch_size}")
    return VideoEncoder(weights.open_any(name_or_path), geometry, batch_size=batch_size, dtype=dtype)


class FeatureFile(Mapping[str, Features]):
    """The videos of a feature file, by name; each is read when it is asked for. `read_features` makes it."""

    def __init__(self, path: str | Path):
        """Reads the names of the videos. The argument and errors are those of `read_features`."""
        self._path = Path(path)
        self._names = dict.fromkeys(features.names(path))

    def __getitem__(self, name: str) -> Features:
        if name not in self._names:
            raise KeyError(name)
        return _features(features.read(self._path, name))

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_features(path: str | Path) -> FeatureFile:
    """The videos of a file that `extract` or `features import` wrote: a mapping from name to `Features`.

    Raises:
      FeatureFileError: there is no such file, or it is no file of features; in the mapping, a video's part is damaged.
    """
    return FeatureFile(path)


def _features(item: features.VideoFeatures) -> Features:
    start_sec, clip_len_sec = clip_times.clip_times(item)
    found, damage = item.attributes, str(item.attributes.get("damage", ""))
    if clip_times.IMPORTED in found:
        return Features(item.features, start_sec, clip_len_sec, None, clip_times.duration_sec(item), damage)
    try:
        selection = str(found.get("frame_selection"))
        if selection not in get_args(clips.FrameSelection):
            raise ValueError(f"frame_selection is one of {get_args(clips.FrameSelection)}; got {selection!r}")
        selection = cast(clips.FrameSelection, selection)
        geometry = clips.ClipGeometry(int(found["clip_len"]), float(found["frame_rate"]), int(found["stride"]), selection)
    except ValueError as error:
        raise features.FeatureFileError(f"video {item.name!r}: {error}; extract it again") from error
    return Features(item.features, start_sec, clip_len_sec, geometry, clip_times.duration_sec(item), damage)
