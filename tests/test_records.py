"""Tests of records on disk: encoded frames, the index against brute force, and messages about damaged data sets."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tsp_jax import records

SHAPE = (128, 171, 3)


def smooth() -> np.ndarray:
    """Returns a picture like those of videos, with slowly changing colours and a little noise."""
    y, x = np.mgrid[:128, :171]
    waves = [120 + 60 * np.sin(x / 15 + channel) + 40 * np.cos(y / 11) for channel in range(3)]
    return (np.stack(waves, -1) + np.random.default_rng(0).normal(0, 2, SHAPE)).astype(np.uint8)


def decoded(data: bytes, codec: records.Codec) -> np.ndarray:
    out = np.full(SHAPE, 7, np.uint8)
    records.decode_frame(data, codec, out)
    return out


@pytest.mark.parametrize("kind", ["smooth", "noise", "black", "white"])
def test_lossless_frames_come_back_to_the_bit(kind: str):
    noise = np.random.default_rng(1).integers(0, 256, SHAPE, np.uint8)
    frame = {"smooth": smooth(), "noise": noise, "black": np.zeros_like(noise), "white": np.full_like(noise, 255)}[kind]
    kept = frame.copy()
    assert np.array_equal(decoded(records.encode_frame(frame, "lossless"), "lossless"), frame)
    assert np.array_equal(frame, kept)


def test_jpeg_frames_come_back_close():
    """The quality is 96 with full chroma, and noise of 2 values in each channel is the hardest part to encode."""
    frame = smooth()
    back = decoded(records.encode_frame(frame, "jpeg"), "jpeg")
    assert psnr(back, frame) > 40
    coloured = np.zeros(SHAPE, np.uint8)
    coloured[:, :85, 0], coloured[:, 85:, 2] = 255, 255  # half the chroma would smear the edge over two columns
    assert np.abs(decoded(records.encode_frame(coloured, "jpeg"), "jpeg").astype(int) - coloured).max() < 12


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9)))


def test_encoding_takes_views_and_decoding_fills_a_row_of_a_batch():
    view = np.repeat(smooth(), 2, axis=1)[:, ::2]
    batch = np.zeros((2, *SHAPE), np.uint8)
    for codec in ("jpeg", "lossless"):
        assert records.encode_frame(view, codec) == records.encode_frame(view.copy(), codec)
        records.decode_frame(records.encode_frame(view, codec), codec, batch[1])
        assert not batch[0].any()
        assert psnr(batch[1], view) > 40


@pytest.mark.parametrize("codec", ["jpeg", "lossless"])
@pytest.mark.parametrize("damage", ["empty", "text", "half", "cut", "other_size", "larger"])
@pytest.mark.wrong_arguments
def test_bytes_that_are_no_frame_are_refused(codec: records.Codec, damage: str):
    data = records.encode_frame(smooth(), codec)
    bad = {
        "empty": b"",
        "text": b"not a frame at all",
        "half": data[: len(data) // 2],
        "cut": data[:-3],  # in a JPEG file, these are the end mark and a byte of pixels
        "other_size": records.encode_frame(smooth()[:112, :112], codec),
        "larger": records.encode_frame(np.concatenate([smooth()] * 2), codec),
    }[damage]
    with pytest.raises(ValueError, match=r".") as caught:
        decoded(bad, codec)
    if codec == "jpeg" and damage == "other_size":
        assert "a frame of shape (112, 112, 3); expected (128, 171, 3)" in str(caught.value)


def test_a_flipped_bit_in_a_lossless_frame_is_noticed():
    data = bytearray(records.encode_frame(smooth(), "lossless"))
    data[len(data) // 2] ^= 1
    with pytest.raises(ValueError, match="damaged frame"):
        decoded(bytes(data), "lossless")


def test_place_is_that_of_the_frame_before():
    """1.6 s is place 24, though 1.6 * 15 may be a little less in floating point. CSV files keep about 15 digits."""
    for place in range(2000):
        assert records.place(place / 15) == place
        assert records.place(float(f"{place / 15:.14g}")) == place
        assert records.place((place + 0.9) / 15) == place


# -------------------------------------------------------------------------------------------------------------- the index


def make_index(seed: int = 0, shards: int = 3) -> tuple[records.Index, dict[int, list[tuple[int, int]]]]:
    """Returns an index of segments that lack some spans, and each segment's starts as (place, record)."""
    draw = np.random.default_rng(seed)
    made, counts = [], []
    for segment in range(8):
        first, starts = int(draw.integers(0, 400)), int(draw.integers(1, 300))
        spans = [(place, min(64, first + starts - place)) for place in range(first, first + starts, 64)]
        kept = [span for span in spans if draw.random() < 0.6] or spans[-1:]
        made += [(segment, place, length) for place, length in kept]
        counts.append((first, starts))
    made = [made[i] for i in draw.permutation(len(made))]  # shards hold overlapping segments in any order
    table = np.array(made, np.int32)
    per_shard = np.bincount(np.sort(draw.integers(0, shards, len(made))), minlength=shards)
    index = records.Index(
        codec="jpeg",
        record_segment=table[:, 0],
        record_first=table[:, 1],
        record_starts=table[:, 2],
        segment_row=np.arange(0, 16, 2, dtype=np.int32),
        segment_video=np.array([0, 0, 1, 1, 1, 1, 1, 1], np.int32),
        segment_action=np.array([0, -1] * 4, np.int32),
        segment_temporal_region=np.array([0, 1] * 4, np.int32),
        segment_start_sec=np.array([first / 15 for first, _ in counts]),
        segment_end_sec=np.array([(first + starts + 15) / 15 for first, starts in counts]),
        segment_first=np.array([first for first, _ in counts], np.int32),
        segment_starts=np.array([starts for _, starts in counts], np.int32),
        video_filename=("a/one.mp4", "two.mp4"),
        shard_name=tuple(f"x-{k}" for k in range(shards)),
        shard_records=per_shard.astype(np.int64),
        shard_bytes=np.arange(10, 10 + shards),
    )
    allowed: dict[int, list[tuple[int, int]]] = {segment: [] for segment in range(8)}
    for record, (segment, place, length) in enumerate(made):
        allowed[segment] += [(at, record) for at in range(place, place + length)]
    return index, {segment: sorted(starts) for segment, starts in allowed.items()}


@pytest.mark.parametrize("seed", range(20))
def test_starts_are_those_of_brute_force(seed: int):
    index, allowed = make_index(seed)
    for segment, starts in allowed.items():
        assert index.starts(segment) == len(starts)
        assert [index.start(segment, number)[::-1] for number in range(len(starts))] == starts


@pytest.mark.parametrize("seed", range(20))
def test_nearest_start_is_that_of_brute_force(seed: int):
    index, allowed = make_index(seed)
    for segment, starts in allowed.items():
        for place in range(starts[0][0] - 5, starts[-1][0] + 6):
            expected = min(starts, key=lambda start: (abs(start[0] - place), start[0]))
            assert index.nearest_start(segment, place)[::-1] == expected, (segment, place)


def test_shard_of_a_record_is_the_one_that_counts_to_it():
    index, _ = make_index(3, shards=5)
    names = [name for name, count in zip(index.shard_name, index.shard_records, strict=True) for _ in range(count)]
    assert 0 in index.shard_records or len(set(names)) == 5
    assert [index.shard_of(record) for record in range(len(names))] == names


def write(folder: Path, **changes: Any) -> records.Index:
    index = dataclasses.replace(make_index()[0], **changes)
    for name, size in zip(index.shard_name, index.shard_bytes.tolist(), strict=True):
        (folder / name).write_bytes(b"x" * size)
    records.write_index(records.index_path(folder, "train"), index)
    return index


def test_an_index_comes_back_from_its_file(tmp_path: Path):
    index = write(tmp_path)
    found = records.read_index(str(tmp_path), "train")
    for field in dataclasses.fields(index):
        expected, value = getattr(index, field.name), getattr(found, field.name)
        assert type(value) is type(expected), field.name
        assert np.array_equal(value, expected), field.name
        if isinstance(expected, np.ndarray):
            assert value.dtype == expected.dtype, field.name
    first = records.index_path(tmp_path, "train").read_bytes()
    write(tmp_path)
    assert records.index_path(tmp_path, "train").read_bytes() == first


def test_no_such_split_names_those_that_are_there(tmp_path: Path):
    with pytest.raises(records.RecordsError, match=r"no split 'train'; found no index-SPLIT\.npz at all"):
        records.read_index(tmp_path, "train")
    write(tmp_path)
    with pytest.raises(records.RecordsError, match="no split 'valid'; found train; name the folder"):
        records.read_index(tmp_path, "valid")


def test_shards_that_are_missing_or_of_another_size_are_all_named(tmp_path: Path):
    write(tmp_path)
    (tmp_path / "x-0").unlink()
    (tmp_path / "x-2").write_bytes(b"")
    with pytest.raises(records.RecordsError) as caught:
        records.read_index(tmp_path, "train")
    message = str(caught.value)
    assert "2 of 3 shards can't be used" in message
    assert "x-0 is missing" in message
    assert "x-2 has 0 bytes; expected 12" in message
    assert "x-1" not in message


def test_many_missing_shards_are_counted(tmp_path: Path):
    index, _ = make_index(shards=15)
    records.write_index(records.index_path(tmp_path, "train"), index)
    with pytest.raises(records.RecordsError, match=r"15 of 15 shards[^Z]*x-9 is missing\n  and 5 more$"):
        records.read_index(tmp_path, "train")


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "lacks a part", "pickled"])
def test_a_damaged_index_is_refused(damage: str, tmp_path: Path):
    write(tmp_path)
    path = records.index_path(tmp_path, "train")
    data = path.read_bytes()
    with np.load(path) as arrays:
        parts = dict(arrays)
    if damage == "lacks a part":
        del parts["record_first"]
        np.savez(path, **parts)
    elif damage == "pickled":
        np.savez(path, **{**parts, "video_filename": np.array([object()])})
    else:
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "text": b"text"}[damage])
    with pytest.raises(records.RecordsError, match=r"index-train\.npz: damaged, or no index .*; build the records again"):
        records.read_index(tmp_path, "train")


def test_an_index_of_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "FORMAT_VERSION", 2)
    write(tmp_path)
    monkeypatch.undo()
    with pytest.raises(records.RecordsError, match="format 2; this tsp_jax reads 1"):
        records.read_index(tmp_path, "train")


MISFITS: dict[str, dict[str, Any]] = {
    "codec": {"codec": "png"},
    "record": {"record_first": np.zeros(2, np.int32)},
    "segment": {"segment_end_sec": np.zeros(7)},
    "row": {"segment_row": np.arange(7, dtype=np.int32)},
    "video": {"segment_video": np.full(8, 2, np.int32)},
    "negative": {"segment_video": np.full(8, -1, np.int32)},
    "shards": {"shard_records": np.array([1, 1, 1])},
    "sizes": {"shard_bytes": np.array([1, 1])},
    "names": {"video_filename": ("one",)},
}


@pytest.mark.parametrize("part", [*MISFITS, "segment of a record", "starts"])
@pytest.mark.wrong_arguments
def test_parts_that_do_not_fit_are_refused(part: str, tmp_path: Path):
    index, _ = make_index()
    change = (
        MISFITS.get(part)
        or {
            "segment of a record": {"record_segment": np.where(index.record_segment == 7, 8, index.record_segment)},
            "starts": {"record_starts": index.record_starts + 64},
        }[part]
    )
    records.write_index(records.index_path(tmp_path, "train"), dataclasses.replace(index, **change))
    for name, size in zip(index.shard_name, index.shard_bytes.tolist(), strict=True):
        (tmp_path / name).write_bytes(b"x" * size)
    with pytest.raises(records.RecordsError, match="its parts don't match each other; build the records again"):
        records.read_index(tmp_path, "train")
