"""What the TFDS builders of span records share: configs, features, and generation in one process."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer

from data_builders import spans
from tsp_jax import groundtruth, records

# Up to this size, TFDS holds the records in memory. For more it needs TensorFlow.
_MAX_BYTES_AT_ONCE = 1 << 30
BYTES_A_FRAME = {"jpeg": 15_000, "lossless": 39_000}  # approximate, for estimates of sizes


@dataclasses.dataclass(frozen=True)
class Source:
    """What records are made from.

    Attributes:
      videos: the folder that the ground truth's file names are relative to.
      groundtruth: the ground-truth CSV of each split.
      labels: action labels, by class number.
    """

    videos: Path
    groundtruth: Mapping[str, Path]
    labels: tuple[str, ...]

    def plan(self) -> dict[str, tuple[list[spans.Video], int]]:
        """Returns the videos of each split, and the number of its segments that are too short for a clip.

        Raises:
          OSError, ValueError: a ground truth is missing, can't be read, or has no segment that is long enough.
        """
        plans = {}
        for split, path in self.groundtruth.items():
            try:
                plans[split] = spans.plan(groundtruth.read_groundtruth(path), self.labels)
            except ValueError as error:
                raise ValueError(f"split {split}, {path}: {error}") from error
            if not plans[split][0]:
                raise ValueError(f"{path}: no segment is as long as a clip, {records.CLIP_SEC:.2f} s")
        return plans


@dataclasses.dataclass(eq=False)
class SpanConfig(tfds.core.BuilderConfig):
    """A way to encode frames.

    Attributes:
      codec: the encoding of the frames.
    """

    codec: records.Codec = "jpeg"


CONFIGS = [
    SpanConfig(name="jpeg", description="Frames are JPEG of quality 96, 4:4:4: about 15 kB each.", codec="jpeg"),
    SpanConfig(name="lossless", description="Frames are stored without loss: about 39 kB each.", codec="lossless"),
]


def source_from_folder(folder: Path, labels_file: str = "action_label_mapping.json") -> Source:
    """Returns the source in a folder that holds `videos/`, SPLIT.csv files, and the label mapping.

    Raises:
      OSError, ValueError: one of them is missing or can't be read.
    """
    csvs = {path.stem: path for path in sorted(folder.glob("*.csv"))}
    if not csvs:
        raise FileNotFoundError(f"{folder}: no ground truth; expected train.csv, valid.csv, …")
    return Source(folder / "videos", csvs, tuple(groundtruth.read_label_mapping(folder / labels_file)))


def features(labels: Sequence[str] | None) -> tfds.features.FeaturesDict:
    """Returns the features of a record. With labels None, they may be set later."""
    return tfds.features.FeaturesDict(
        {
            "frames": tfds.features.Text(doc="encoded frames of 128x171 RGB at 15 a second, joined"),
            "frame_ends": tfds.features.Tensor(
                shape=(None,), dtype=np.int64, doc="offset in `frames` at which each frame ends"
            ),
            "first_start": tfds.features.Scalar(np.int64, doc="place of the first frame on the video's 15 fps grid"),
            "num_starts": tfds.features.Scalar(
                np.int64, doc="number of frames, from the first on, at which a clip of 16 frames may start"
            ),
            "filename": tfds.features.Text(doc="the video's file name"),
            "segment": tfds.features.Scalar(np.int64, doc="row of the ground truth, counted from 0"),
            # A record stores these in float32. The index has all digits.
            "start_sec": tfds.features.Scalar(np.float32, doc="second of the video at which the segment begins"),
            "end_sec": tfds.features.Scalar(np.float32, doc="second of the video at which the segment ends"),
            "action": tfds.features.ClassLabel(names=labels and list(labels), doc="-1 for background"),
            "temporal_region": tfds.features.ClassLabel(names=list(groundtruth.TEMPORAL_REGIONS)),
        }
    )


def serializer(labels: Sequence[str]) -> Callable[[spans.Example], bytes]:
    """Returns a function that turns a record into bytes, always the same bytes for the same record.

    TFDS's own serialization has another order of features in each process.
    """
    described = features(labels)
    serialize = example_serializer.ExampleSerializer(described.get_serialized_info())  # type: ignore (TFDS has two types for it)
    return lambda example: serialize.get_tf_example(described.encode_example(example)).SerializeToString(deterministic=True)


class SpanBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Spans of annotated videos. `python -m data_builders.build` runs the same generation in parallel, and resumes it."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Spans of 64 starts."}
    BUILDER_CONFIGS = CONFIGS
    HOMEPAGE = "https://github.com/HumamAlwassel/TSP"
    NUM_CLASSES: int | None = None  # None allows any number

    def __init__(self, *, source: Source | None = None, file_format: str = "array_record", **kwargs: Any):
        """Prepares the builder.

        Args:
          source: what to build from; None for the content of TFDS's manual directory.
          file_format: the shards' file format. `tsp_jax.input_pipeline` reads only array_record.
          **kwargs: TFDS's own arguments, such as data_dir and config.
        """
        self._source = source
        self._keys: dict[str, list[int]] = {}
        super().__init__(file_format=file_format, **kwargs)

    @property
    def codec(self) -> records.Codec:
        """The encoding of the frames."""
        return self.builder_config.codec  # type: ignore (of CONFIGS)

    def set_labels(self, labels: Sequence[str]) -> None:
        """Sets the action labels.

        Raises:
          ValueError: their number is not the data set's number of classes.
        """
        if self.NUM_CLASSES not in (None, len(labels)):
            raise ValueError(f"{self.name} has {self.NUM_CLASSES} classes; got {len(labels)} labels; give its whole mapping")
        self.info.features["action"].names = list(labels)  # type: ignore (a ClassLabel)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=features(None), disable_shuffling=True, homepage=self.HOMEPAGE)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, spans.Example]]]:
        source = self._source or source_from_folder(Path(dl_manager.manual_dir))
        self.set_labels(source.labels)
        self._plans = {split: videos for split, (videos, _) in source.plan().items()}
        frames = sum(item.num_kept_frames for videos in self._plans.values() for item in videos)
        if frames * BYTES_A_FRAME[self.codec] > _MAX_BYTES_AT_ONCE:
            raise ValueError(f"{self.name}: {frames} frames are too many for TFDS alone; run `python -m data_builders.build`")
        return {split: self._generate_examples(split, source.videos) for split in self._plans}

    def _generate_examples(self, split: str, folder: Path) -> Iterator[tuple[int, spans.Example]]:
        self._keys[split] = []
        for item in self._plans[split]:
            for key, example in spans.examples(folder, item, self.codec, _refuse, dated_by_decoding=True):
                self._keys[split].append(key)
                yield key, example

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        for split, keys in self._keys.items():
            info, shards, done = self.info.splits[split], [], 0
            for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
                shards.append(spans.Shard(path.name, Path(path).stat().st_size, tuple(keys[done : done + length])))
                done += length
            index = spans.index(self._plans[split], self.codec, shards)
            records.write_index(records.index_path(self.data_dir, split), index)


def _refuse(failure: spans.Failure) -> None:
    raise ValueError(
        f"{failure.filename} from {failure.start_sec:.1f} s can't be read: {failure.reason}; repair or remove it, or run "
        "`python -m data_builders.build`, which leaves out such parts"
    )
