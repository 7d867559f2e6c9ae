"""Tests of writing videos: the pictures come back, in the right colours and upright, and a failure leaves no file."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import media
from tsp_jax.video import decoding, scanning, writing


def test_written_frames_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "written.mp4"
    assert writing.write(path, (media.picture(number) for number in range(20)), Fraction(15)) == 20
    scan = scanning.scan(path)
    assert (len(scan.timeline.pts), scan.timeline.fps, scan.trimmed) == (20, 15.0, False)
    frames = dict(decoding.Reader(scan, np.ones(20, bool)))
    assert [media.number(frames[number]) for number in range(20)] == list(range(20))


def test_interrupted_writing_leaves_no_file(tmp_path: Path) -> None:
    def breaking() -> Iterator[np.ndarray]:
        yield media.picture(0)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        writing.write(tmp_path / "written.mp4", breaking(), 15)
    with pytest.raises(ValueError, match="no frames"):
        writing.write(tmp_path / "written.mp4", iter(()), 15)
    assert list(tmp_path.iterdir()) == []


def test_a_video_shorter_than_a_frame_becomes_one_frame(tmp_path: Path):
    source = media.write(tmp_path / "x.mkv", fps=1000, frames=1)
    assert writing.resample(source, tmp_path / "y.mp4", 30).frames == 1


@pytest.mark.parametrize("rotation_deg", [90, 180, 270])
def test_picture_is_upright(rotation_deg: int, tmp_path: Path):
    """FFmpeg counts a display matrix's degrees leftwards, and so does numpy's rot90."""
    source = media.write(tmp_path / "x.mp4", frames=3, rotation_deg=rotation_deg)
    stored = [frame for _, frame in decoding.Reader(scanning.scan(source), np.ones(3, bool))]
    writing.resample(source, tmp_path / "y.mp4", 30, crf=10)
    turned = [frame for _, frame in decoding.Reader(scanning.scan(tmp_path / "y.mp4"), np.ones(3, bool))]
    quarters = scanning.scan(source).rotation_deg // 90
    for before, after in zip(stored, turned, strict=True):
        assert np.abs(np.rot90(before, quarters).astype(int) - after).mean() < 5


@pytest.mark.parametrize("name", ["full_range.mp4", "bt709.mp4", "odd_444.mp4", "ten_bit.mp4"])
def test_colours_stay(name: str, tmp_path: Path):
    source = media.make(tmp_path, name)
    needed = np.arange(60) < 1
    ((_, before),) = decoding.Reader(scanning.scan(source), needed)
    writing.resample(source, tmp_path / "y.mp4", 30, crf=10)
    ((_, after),) = decoding.Reader(scanning.scan(tmp_path / "y.mp4"), needed)
    height, width = after.shape[:2]
    assert (height, width) == tuple(side // 2 * 2 for side in before.shape[:2])
    difference = after.astype(int) - before[:height, :width]
    assert np.abs(difference).mean() < 5
    assert np.abs(difference.mean((0, 1))).max() < 2
