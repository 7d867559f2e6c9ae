"""Makes hostile and broken inputs at random from real files. As a program it reads some of them, in a process that may die.

`python tests/fuzzing.py KIND FIRST END FOLDER` reads the inputs FIRST to END - 1 of a kind and prints two lines of JSON for
each: its number before it is read, and then what became of it. The same number gives the same input everywhere; the last one
stays in FOLDER/input.
"""

import collections
import contextlib
import io
import itertools
import json
import math
import pickle
import pickletools
import random
import resource
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import media
from tsp_jax import clip_segments, clips, features, groundtruth, predictions, records, video_list
from tsp_jax.extraction import clip_stream
from tsp_jax.features import __main__ as features_command
from tsp_jax.features import global_features
from tsp_jax.localization import feature_files, resampling, segments
from tsp_jax.system import tensor_files, timing
from tsp_jax.video import decoding, scanning

Parts = dict[str, bytes]
_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**62, 2**63, 2**64 - 1]
_WORDS = [
    *[
        "",
        "nan",
        "inf",
        "-1",
        "1e999",
        "0",
        "99999999999999999999",
        "1" * 5000,
        "-0.0",
        "null",
        "true",
        "{}",
        "[]",
        "\x00",
        '"',
    ],
    *[
        ",",
        "\n",
        "\r",
        "'",
        "\ufeff",
        "\ud800",
        "..",
        "../../etc/passwd",
        "/dev/zero",
        "é" * 100,
        "[" * 50_000,
        '{"a":' * 50_000,
    ],
    *["x" * 200_000, '"database"', "Action", "-", "1e-320", "0x10", "1_000", "٣"],
]


class Seed(NamedTuple):
    """A real input in parts, one of which is spoiled. `pack` makes files of the parts, with checksums that fit."""

    parts: Parts
    pack: Callable[[Parts], Parts] = dict
    is_text: bool = False


class Kind(NamedTuple):
    """A kind of input.

    Attributes:
      seeds: a function that makes the real inputs, in a folder of their own.
      use: a function that reads the files in a folder and checks the result.
      refusals: the errors that `use` may raise instead.
      names_file: whether a refusal names the file.
      limit_sec: the longest time for one input on a busy machine, in seconds.
      limit_mb: the most memory that one input may take, in MB.
    """

    seeds: Callable[[Path], list[Seed]]
    use: Callable[[Path], object]
    refusals: tuple[type[Exception], ...]
    names_file: bool = True
    limit_sec: float = 30.0
    limit_mb: float = 400.0


# ---------------------------------------------------------------------------------------------------------------- mutation


def spoiled(data: bytes, draw: random.Random, others: Sequence[bytes], is_text: bool) -> bytes:
    """Returns the data with some random damage."""
    result = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 4, 16])):
        size = len(result)
        # Formats keep their tables at the ends, so damage there is more frequent.
        span = draw.choice([size, size, min(size, 512), min(size, 64)])
        place = draw.randrange(span) if span else 0
        place = size - 1 - place if size and draw.random() < 0.25 else place
        length = draw.choice([1, 2, 4, 8, 64, 1024])
        match draw.choice(["bit", "byte", "number", "fill", "noise", "cut", "drop", "repeat", "move", "splice", "word"]):
            case "bit" if size:
                result[place] ^= 1 << draw.randrange(8)
            case "byte" if size:
                result[place] = draw.randrange(256)
            case "number":
                width = draw.choice([1, 2, 4, 8])
                value = draw.choice([*_NUMBERS, size, size - 1]) % 256**width
                result[place : place + width] = value.to_bytes(width, draw.choice(["little", "big"]))  # type: ignore
            case "fill":
                result[place : place + length] = bytes([draw.choice([0, 255])]) * length
            case "noise":
                result[place : place + length] = draw.randbytes(length)
            case "cut":
                del result[place:]
            case "drop":
                del result[place : place + length]
            case "repeat":
                times = draw.choice([2, 2, 2, 50, 2000])
                result[place:place] = result[place : place + min(length, 64)] * times
            case "move" if size:
                other = draw.randrange(size)
                result[place : place + length] = result[other : other + length]
            case "splice":
                other = draw.choice([*others, data])
                begin = draw.randrange(len(other)) if other else 0
                result[place : place + length] = other[begin : begin + length]
            case "word" if is_text:
                result[place : place + draw.choice([0, length])] = draw.choice(_WORDS).encode(errors="surrogatepass")
    return bytes(result)


def spoiled_field(data: bytes, draw: random.Random) -> bytes:
    """Returns a text with one of its fields replaced by another word."""
    marks = [0, *(i for i, byte in enumerate(data) if byte in b',\n"[]{}:'), len(data)]
    at = draw.randrange(len(marks) - 1)
    word = draw.choice(_WORDS).encode(errors="surrogatepass")
    return data[: marks[at] + (at > 0)] + word + data[marks[at + 1] :]


def spoiled_pickle(data: bytes, draw: random.Random) -> bytes:
    """Returns a pickle with instructions left out, repeated or in another order."""
    try:
        places = [place for _, _, place in pickletools.genops(data)]
    except ValueError:  # this is no longer a pickle
        return data
    parts = [data[begin:end] for begin, end in zip(places, [*places[1:], len(data)], strict=True)]
    for _ in range(draw.choice([1, 1, 2, 5])):
        at, other = draw.randrange(1, len(parts)), draw.randrange(1, len(parts))
        match draw.choice(["drop", "repeat", "swap", "insert"]):
            case "drop":
                del parts[at]
            case "repeat":
                parts[at:at] = parts[at : at + draw.choice([1, 2, 5])] * draw.choice([1, 10, 5000])
            case "swap":
                parts[at], parts[other] = parts[other], parts[at]
            case "insert":
                parts.insert(
                    at, draw.choice([b"2", b"\x85", b"\x86", b"}", b"]", b"(", b"R", b"b", b"s", b"Q", b"0", b"N", b"\x88"])
                )
    return b"".join(parts)


def make_input(seeds: Sequence[Seed], kind: str, number: int) -> Parts:
    """Returns the files of an input."""
    draw = random.Random(f"{kind} {number}")
    seed = draw.choice(seeds)
    name = draw.choice(sorted(seed.parts))
    data = seed.parts[name]
    if name.endswith(".pkl") and draw.random() < 0.6:
        data = spoiled_pickle(data, draw)
    elif seed.is_text and draw.random() < 0.5:
        data = spoiled_field(data, draw)
    else:
        data = spoiled(data, draw, list(seed.parts.values()), seed.is_text)
    return seed.pack({**seed.parts, name: data})


# -------------------------------------------------------------------------------------------------------------------- kinds


def files_below(folder: Path) -> Parts:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def zipped(members: Parts) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return stream.getvalue()


def unzipped(data: bytes) -> Parts:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pth_seeds(folder: Path) -> list[Seed]:
    import argparse

    import torch

    state = collections.OrderedDict((f"features.stem.{i}.weight", torch.full((3, i + 1), i / 3)) for i in range(4))
    momentum = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    schedule = {"milestones": collections.Counter([4, 6]), "gamma": 0.1}
    content = {
        "model": state,
        "optimizer": momentum,
        "lr_scheduler": schedule,
        "epoch": 5,
        "args": argparse.Namespace(a=1, b="x"),
    }
    seeds = []
    for is_zip in (False, True):
        torch.save(content, folder / "m.pth", _use_new_zipfile_serialization=is_zip)
        data = (folder / "m.pth").read_bytes()
        seeds.append(Seed({"m.pth": data}))
    seeds.append(Seed(unzipped(data), lambda members: {"m.pth": zipped(members)}))
    # The older format's pickles one by one, and the arrays behind them.
    older, bounds = seeds[0].parts["m.pth"], [0]
    for _ in range(5):
        stream = io.BytesIO(older)
        stream.seek(bounds[-1])
        collections.deque(pickletools.genops(stream), maxlen=0)
        bounds.append(stream.tell())
    pieces = {f"{i}.pkl": older[begin:end] for i, (begin, end) in enumerate(itertools.pairwise(bounds))}
    pieces["arrays"] = older[bounds[-1] :]
    seeds.append(Seed(pieces, lambda parts: {"m.pth": b"".join(parts[name] for name in sorted(parts))}))
    return seeds


def use_pth(folder: Path) -> object:
    from convert import torch_to_orbax

    return torch_to_orbax.read_pth(folder / "m.pth")


def safetensors_seeds(folder: Path) -> list[Seed]:
    arrays = {
        "model.features.stem.0.weight": ("F32", (3, 2)),
        "criterion.weight": ("F64", (0,)),
        "x": ("I64", ()),
        "y": ("F16", (5,)),
    }
    sizes = {"F64": 8, "F32": 4, "I64": 8, "F16": 2}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for number, (name, (dtype, shape)) in enumerate(arrays.items()):
        values = bytes([number]) * (math.prod(shape) * sizes[dtype])
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    parts = {"header": json.dumps(header).encode(), "data": data}

    def pack(parts: Parts) -> Parts:
        return {"m.safetensors": len(parts["header"]).to_bytes(8, "little") + parts["header"] + parts["data"]}

    return [Seed(parts, pack, is_text=True), Seed(pack(parts))]


def use_safetensors(folder: Path) -> object:
    from convert import safetensors_file, wrappers

    path = folder / "m.safetensors"
    with path.open("rb") as file:
        arrays = safetensors_file.read(file, str(path))
    assert sum(array.nbytes for array in arrays.values()) < path.stat().st_size
    names, _ = wrappers.rename({name: array.shape for name, array in arrays.items()}, str(path))
    return wrappers.normalise({name: arrays[key] for key, name in names.items()})


VIDEOS: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "hevc.mp4": {"codec": "libx265"},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "11", "crf": "20", "svtav1-params": "lp=1"}},
    "h264.mkv": {},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}},
    "vp8.webm": {"codec": "libvpx", "options": {"cpu-used": "8", "b": "500k"}},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 2, "options": {"b": "800k"}},
    "stream.ts": {},
    "program.mpg": {"codec": "mpeg2video", "b_frames": 2, "container": "vob", "options": {"b": "800k"}},
    "flash.flv": {"codec": "flv"},
    "windows.wmv": {"codec": "wmv2", "container": "asf"},
    "ten_bit.mov": {"pix_fmt": "yuv420p10le"},
    "rotated.3gp": {"rotation_deg": 90},
}


def video_seeds(folder: Path) -> list[Seed]:
    for name, how in VIDEOS.items():
        media.write(folder / name, frames=20, **{**how, "options": {"g": "8", **how.get("options", {})}})
    return [Seed({name: (folder / name).read_bytes()}) for name in VIDEOS]


def use_video(folder: Path) -> object:
    from data_builders import measurement

    (path,) = folder.iterdir()
    with contextlib.suppress(scanning.VideoError):
        measurement.measure(path, path.name)
    item = video_list.Video("v", path)
    *_, last = clip_stream.read_video(0, item, clips.ClipGeometry(clip_len=4, stride=2), "pyav", timing.Laps())
    assert isinstance(last, clip_stream.Closed)
    scan = scanning.scan(path)
    scanning.rescan(scan)
    reader, numbers = decoding.Reader(scan, np.ones(len(scan.timeline.pts), bool)), []
    for number, picture in reader:
        assert picture.ndim == 3 and picture.shape[2] == 3
        numbers.append(number)
    assert numbers == sorted(set(numbers)) and (len(numbers) == len(reader.needed) or reader.damage or reader.misdated)
    return len(numbers)


GROUNDTRUTH = [
    groundtruth.AnnotatedSegment("v_a", 0.5, 2.25, "jump", 10.0, "v_a.mp4", 30.0, 300, groundtruth.ACTION),
    groundtruth.AnnotatedSegment("v_a", 2.25, 10.0, "", 10.0, "v_a.mp4", 30.0, 300, groundtruth.NO_ACTION),
    groundtruth.AnnotatedSegment("名前", 1.0, 3.0, 'say "so", run', 4.0, "b/名前.mp4", 29.97, 120, groundtruth.ACTION),
]
METADATA = [groundtruth.VideoMetadata("v_a.mp4", 10.0, 30.0, 300), groundtruth.VideoMetadata("b/名前.mp4", 4.0, 29.97, 120)]


def csv_seeds(folder: Path) -> list[Seed]:
    groundtruth.write_groundtruth(folder / "groundtruth.csv", GROUNDTRUTH)
    groundtruth.write_metadata(folder / "metadata.csv", METADATA)
    return [Seed({name: (folder / name).read_bytes()}, is_text=True) for name in ("groundtruth.csv", "metadata.csv")]


def use_csv(folder: Path) -> object:
    from data_builders import annotation_formats, spans
    from data_builders import groundtruth as groundtruth_command

    (path,) = folder.iterdir()
    if path.name == "metadata.csv":
        for item in video_list.list_videos(folder, path):
            assert item.fault or (item.path.is_relative_to(folder) and ".." not in item.path.parts)
        return groundtruth.read_metadata(path)
    for row in groundtruth.read_groundtruth_rows(path):
        assert (row.value is None) == bool(row.faults)
    rows = groundtruth.read_groundtruth(path)
    with contextlib.suppress(ValueError):
        matched, _ = groundtruth_command.match(annotation_formats.read_actions("csv", path, None).actions, METADATA)
        groundtruth_command.ground_truth(matched, "union", 1.0)
    if all(row.num_frames < 10**7 and row.fps > 0.01 for row in rows):
        with contextlib.suppress(ValueError):
            spans.plan(rows, groundtruth.action_labels(rows))
    return rows


def json_seeds(folder: Path) -> list[Seed]:
    groundtruth.write_label_mapping(folder / "labels.json", ["jump", "run", "名前"])
    action = {"segment": [1.5, 4.0], "label": "run"}
    database = {"a": {"subset": "training", "annotations": [action]}, "b": {"subset": "validation", "annotations": []}}
    (folder / "activitynet.json").write_text(json.dumps({"version": "1.3", "database": database}))
    (folder / "Run_val.txt").write_text("video_validation_0000001 1.5 20.0\nvideo_validation_0000002  0.0 3.5\n")
    starts, top = np.array([0.0, 1.0667]), np.array([[1, 0], [0, 1]], np.int32)
    segment = clip_segments.Segment("run", 0.5, 0.0, 1.07)
    foreground, probabilities = np.float32([0.7, 0.2]), np.float32([[0.9, 0.1]] * 2)
    shown = predictions.Video(2.2, "", (segment,), starts, foreground, top, probabilities)
    run = ("a.pth", "00", "", predictions.TASKS, ("jump", "run"), (0.5,), 1.0667, 1.0667)
    predictions.write(folder / "predictions.json", predictions.Predictions(*run, {"a": shown}))
    names = ("labels.json", "activitynet.json", "predictions.json", "Run_val.txt")
    return [Seed({name: (folder / name).read_bytes()}, is_text=True) for name in names]


def use_json(folder: Path) -> object:
    from data_builders import annotation_formats

    (path,) = folder.iterdir()
    if path.name == "labels.json":
        return groundtruth.read_label_mapping(path)
    if path.name == "activitynet.json":
        return annotation_formats.read_actions("activitynet", path, "training")
    if path.name == "predictions.json":
        return predictions.read(path)
    return annotation_formats.read_actions("thumos14", folder, "valid")


def evaluate_seeds(folder: Path) -> list[Seed]:
    from tsp_jax.localization import annotations, detections, evaluation

    action = {"segment": [1.5, 4.0], "label": "run", "label_id": 1}
    database = {"a": {"subset": "validation", "duration": 9.0, "annotations": [action, action]}, "名前": {"subset": "testing"}}
    row = {"label": "run", "score": 0.5, "segment": [1.0, 4.5]}
    results = {"version": "VERSION 1.3", "results": {"a": [row, {**row, "score": 1}], "名前": []}, "external_data": {}}
    arrays = {"t-start": np.float32([1.0, 2.0]), "t-end": np.float32([3.0, 4.0]), "score": np.float32([0.5, 0.25])}
    arrays = {"video-id": ["a", "b"], **arrays, "label": np.array([1, 1])}
    epic = "video_id,start_timestamp,stop_timestamp,verb_class\na,00:00:01.08,0:03.38,1\na,5,6,2\n"
    texts = {"predictions.json": json.dumps(results), "groundtruth.json": json.dumps({"database": database})}
    texts |= {"epic.csv": epic, "run_test.txt": "a 1.5 20.0\nb  0.0 3.5\n"}
    truth = annotations.Instances()
    truth.add("a", "run", 1.5, 4.0)
    found = detections.Detections(("a",), ("run",), segments.make([0], [0], [1.0], [4.5], [0.5]))
    scores = evaluation.evaluate(found, truth.ground_truth(""), "custom", tiou=[0.5], diagnose=True)
    texts["scores.json"] = json.dumps(scores.to_json())
    seeds = [Seed({name: text.encode()}, is_text=True) for name, text in texts.items()]
    return [*seeds, Seed({"results.pkl": pickle.dumps(arrays)}), Seed({"results.pkl": pickle.dumps(arrays, 2)})]


def use_evaluate(folder: Path) -> object:
    from tsp_jax.localization import annotations, detections, evaluation
    from tsp_jax.report import diagnosis_section, page

    (path,) = folder.iterdir()
    if path.name == "scores.json":
        return page.render(page.Page("", diagnosis=diagnosis_section.read(str(path))))
    truth = annotations.Instances()
    truth.add("a", "run", 1.5, 4.0)
    if path.name in ("predictions.json", "results.pkl"):
        found = evaluation.evaluate(path, truth.ground_truth(""), "opentad", labels=["jump", "run"], diagnose=True)
    else:
        whole, subset = (folder, "test") if path.suffix == ".txt" else (path, "validation")
        predicted = detections.Detections(("a",), ("run",), segments.make([0], [0], [1.0], [4.5], [0.5]))
        flags = {"subset": subset, "label_column": "verb", "on_unknown": "skip"}
        found = evaluation.evaluate(predicted, whole, "opentad", diagnose=True, **flags)
    assert 0 <= found.average_mAP <= 1
    return json.dumps(found.to_json(), allow_nan=False)


def hdf5_seeds(folder: Path) -> list[Seed]:
    import h5py

    rows = {name: np.random.default_rng(i).standard_normal((3, 512), np.float32) for i, name in enumerate(["a", "名前", "c"])}
    run = {"stride": 16, "frame_rate": 15.0, "checkpoint": "tsp", "checkpoint_sha256": "ab" * 32, "dtype": "float32"}
    with features.Writer(folder / "f.h5", run) as writer:
        for name, array in rows.items():
            writer.commit(name, array, {"fps": 30.0, "frames": 300, "clip_ranges": np.array([[0, 3]]), "damage": ""})
    global_features.write(folder / "g.h5", {name: array[0] for name, array in rows.items()}, {"pool": "max"})
    # The format of older HDF5 has no checksums; others write it, and text of any length.
    for name, text in (("old.h5", {"damage": np.bytes_("none")}), ("texts.h5", {"damage": "none", "k": ["a", "b"]})):
        with h5py.File(folder / name, "w") as file:
            for video_name, array in rows.items():
                dataset = file.create_dataset(video_name, data=array, chunks=(1, 512), compression="gzip")
                dataset.attrs.update({"fps": 30.0, "frames": 300, **text})
    with h5py.File(folder / "old_g.h5", "w") as file:
        for name, array in rows.items():
            file.create_dataset(name, data=array[0], chunks=(512,), compression="gzip", compression_opts=9)
    names = ("f.h5", "g.h5", "old.h5", "old.h5", "old_g.h5", "texts.h5")
    return [Seed({name: (folder / name).read_bytes()}) for name in names]


def use_hdf5(folder: Path) -> object:
    (path,) = folder.iterdir()
    if path.name in ("g.h5", "old_g.h5"):
        return global_features.read(path)
    features_command.info(path)
    for name in features.names(path):
        features.read(path, name)
    features_command.export(path, folder.parent / "exported", "npy")
    return features.merge([path], folder.parent / "merged.h5", overwrite=True)


def feature_seeds(folder: Path) -> list[Seed]:
    import h5py

    rows = np.random.default_rng(0).standard_normal((6, 4), np.float32)
    with h5py.File(folder / "a.h5", "w") as file:
        file["a"] = rows
    content = {
        "a.npy": feature_files.npy(rows),
        "a.npz": feature_files.npz(rows),
        "a.pkl": feature_files.pkl(rows),
        "b.pkl": feature_files.slow_fast(rows, 3),
        "a.csv": feature_files.csv(rows),
        "a": tensor_files.packed(rows),
        "a.h5": (folder / "a.h5").read_bytes(),
    }
    seeds = [Seed({name: data}, is_text=name == "a.csv") for name, data in content.items()]
    # Damage within archives' members, under checksums that fit.
    seeds.append(Seed(unzipped(content["a.npz"]), lambda parts: {"a.npz": zipped(parts)}))
    seeds.append(Seed(unzipped(content["a"]), lambda parts: {"a": zipped(parts)}))
    return seeds


def use_features(folder: Path) -> object:
    (path,) = folder.iterdir()
    rows = feature_files.read(path)
    assert rows.dtype == np.float32 and rows.ndim == 2 and rows.size and np.all(np.isfinite(rows))
    return resampling.resampled(rows[:1000, :1000], 10, "linear")


def records_seeds(folder: Path) -> list[Seed]:
    from array_record.python import array_record_module  # type: ignore (a compiled module)

    from data_builders import build, runners, shards

    media.write(folder / "v_a.mp4", frames=120)
    rows = [
        groundtruth.AnnotatedSegment("v_a", 0.0, 2.0, "jump", 4.0, "v_a.mp4", 30.0, 120, groundtruth.ACTION),
        groundtruth.AnnotatedSegment("v_a", 2.0, 4.0, "", 4.0, "v_a.mp4", 30.0, 120, groundtruth.NO_ACTION),
    ]
    groundtruth.write_groundtruth(folder / "train.csv", rows)
    seeds = []
    for config in ("jpeg", "lossless"):
        flags = f"--dataset video_folder --videos {folder} --groundtruth {folder / 'train.csv'} --data_dir {folder / 'out'}"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            write = runners.run_on_processes
            runners.run_on_processes = lambda tasks, workers: [shards.write_shard(shard) for shard in tasks]
            try:
                assert build.main([*flags.split(), "--config", config]) == 0
            finally:
                runners.run_on_processes = write
        whole = files_below(folder / "out" / "video_folder" / config / "1.0.0")
        (shard,) = (name for name in whole if "array_record" in name)
        path = folder / "shard"
        path.write_bytes(whole[shard])
        reader = array_record_module.ArrayRecordReader(str(path))
        read = {f"record {i}": data for i, data in enumerate(reader.read_all())}
        reader.close()
        members = {f"index {name}": data for name, data in unzipped(whole["index-train.npz"]).items()}
        others = {
            name: data for name, data in whole.items() if name not in (shard, "index-train.npz", "build.json", "errors.csv")
        }

        def pack(parts: Parts, shard: str = shard, path: Path = path) -> Parts:
            """Returns the files with checksums and a shard size that fit, whatever the records hold."""
            writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
            for name in sorted(name for name in parts if name.startswith("record ")):
                writer.write(parts[name])
            writer.close()
            size = io.BytesIO()
            np.save(size, np.array([path.stat().st_size], np.int64))
            index = {name.removeprefix("index "): data for name, data in parts.items() if name.startswith("index ")}
            plain = {name: data for name, data in parts.items() if not name.startswith(("index ", "record "))}
            index["shard_bytes.npy"] = size.getvalue()
            return {**plain, "index-train.npz": zipped(index), shard: path.read_bytes()}

        seeds += [Seed({shard: whole[shard]}, lambda parts, whole=whole: {**whole, **parts}), Seed(whole)]
        seeds += [Seed(members, lambda parts, rest=read | others, pack=pack: pack({**rest, **parts}))]
        seeds += [Seed(read, lambda parts, rest=members | others, pack=pack: pack({**rest, **parts}))]
    return seeds


def use_records(folder: Path) -> object:
    from tsp_jax import input_pipeline

    split = input_pipeline.open_split(folder, "train")
    clip = input_pipeline.train_clips(split, clips_per_segment=5, balanced=False, seed=0)
    drawn = [clip(number) for number in range(8)]
    drawn += [
        input_pipeline._valid_clip(split.index, segment * input_pipeline.VALID_CLIPS + 2)
        for segment in range(len(split.index.segment_row))
    ][:8]
    batch = input_pipeline.read_clips(split, drawn)
    assert batch["video"].shape == (len(drawn), 16, 128, 171, 3)
    return [split.describe(item.segment, item.place) for item in drawn]


def frames_seeds(folder: Path) -> list[Seed]:
    frame = media.picture(5, (171, 128))
    return [Seed({codec: records.encode_frame(frame, codec)}) for codec in ("jpeg", "lossless")]


def use_frames(folder: Path) -> object:
    (path,) = folder.iterdir()
    records.decode_frame(path.read_bytes(), path.name, np.zeros((128, 171, 3), np.uint8))  # type: ignore (its codec)
    return path.name


def checkpoint_seeds(folder: Path) -> list[Seed]:
    from tsp_jax import checkpoints
    from tsp_jax.models import functional, tsp

    config = tsp.ModelConfig("r3d_tiny", (3, 2))
    made = checkpoints.make(config, functional.init(config, 0), checkpoints.Origin("seed 0", "", "nothing"))
    checkpoints.save(folder / "c", made)
    whole = files_below(folder / "c")
    page = {"about/metadata": whole["about/metadata"]}
    return [Seed(whole), Seed(page, lambda parts: {**whole, **parts}, is_text=True)]


def use_checkpoint(folder: Path) -> object:
    from tsp_jax import checkpoints

    return checkpoints.load(folder).weights_sha256


KINDS: dict[str, Kind] = {
    "pth": Kind(pth_seeds, use_pth, (ValueError,)),
    "safetensors": Kind(safetensors_seeds, use_safetensors, (ValueError,)),
    "video": Kind(video_seeds, use_video, (scanning.VideoError,), names_file=False),
    "csv": Kind(csv_seeds, use_csv, (ValueError,)),
    "json": Kind(json_seeds, use_json, (ValueError, predictions.PredictionsError)),
    "evaluate": Kind(evaluate_seeds, use_evaluate, (ValueError, segments.EvaluationError, FileNotFoundError)),
    "hdf5": Kind(hdf5_seeds, use_hdf5, (features.FeatureFileError,)),
    "features": Kind(feature_seeds, use_features, (ValueError, features.FeatureFileError)),
    "records": Kind(records_seeds, use_records, (records.RecordsError,)),
    "frames": Kind(frames_seeds, use_frames, (ValueError,), names_file=False),
    "checkpoint": Kind(checkpoint_seeds, use_checkpoint, (ValueError, FileNotFoundError)),
}


# ------------------------------------------------------------------------------------------------------------------ program


def status_mb(key: str) -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[key].split()[0]) / 1024


def read_one(kind: Kind, folder: Path) -> dict[str, Any]:
    """Returns what became of the input in the folder."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory is counted from here on
    before_mb, began = status_mb("VmRSS"), time.monotonic()
    try:
        kind.use(folder)
        found = {"outcome": "right"}
    except kind.refusals as error:
        clear = bool(str(error).strip()) and (not kind.names_file or str(folder) in str(error))
        found = {"outcome": "refused" if clear else "unclear", "error": f"{type(error).__name__}: {error}"}
    except BaseException as error:
        found = {"outcome": "unexpected", "error": f"{type(error).__name__}: {error}"[:1000]}
    grown_mb, seconds = status_mb("VmHWM") - before_mb, time.monotonic() - began
    if grown_mb > kind.limit_mb:
        found["outcome"] = "too much memory"
    return {**found, "seconds": seconds, "grown_mb": grown_mb}


def main(name: str, first: str, end: str, work: str) -> None:
    kind, folder = KINDS[name], Path(work)
    made = folder / "seeds"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    seeds = kind.seeds(made)
    for seed in seeds:  # whole inputs are read to their end, so that late imports are done
        if name != "pth":
            with contextlib.suppress(features.FeatureFileError):  # texts of any length
                put(seed.pack(seed.parts), folder / "input")
                kind.use(folder / "input")
        else:
            put(seed.pack(seed.parts), folder / "input")
            with contextlib.suppress(ValueError):  # no known backbone: those have 130 MB
                kind.use(folder / "input")
    limit = int((status_mb("VmSize") + 4096) * 1024**2)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in range(int(first), int(end)):
        put(make_input(seeds, name, number), folder / "input")
        print(json.dumps({"begin": number}), flush=True)
        print(json.dumps(read_one(kind, folder / "input")), flush=True)


def put(parts: Parts, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    main(*sys.argv[1:])
