"""Whole files lack nothing and are one recording; cut ones lack what was cut."""

from pathlib import Path

import pytest

import media
from tsp_jax.video import containers

CUTTABLE = ["plain.mp4", "fragmented.mp4", "matroska.mkv", "mpeg4.avi", "av1.mp4"]


@pytest.mark.parametrize("name", sorted(media.WHOLE))
def test_a_whole_file_lacks_nothing(name: str, tmp_path: Path):
    assert containers.missing_bytes(media.make(tmp_path, name)) == 0


@pytest.mark.parametrize("name", CUTTABLE)
def test_a_cut_file_lacks_what_its_headers_promise(name: str, tmp_path: Path):
    whole = media.make(tmp_path, name)
    size = whole.stat().st_size
    for keep in (0.9, 0.6):
        cut = media.truncated(tmp_path / f"cut{whole.suffix}", whole, keep)
        # A file that is a row of boxes lacks the rest of the box that was cut.
        missing = containers.missing_bytes(cut)
        assert 0 < missing <= size - cut.stat().st_size


def test_a_gif_without_its_end_mark_is_cut_off(tmp_path: Path):
    whole = media.write(tmp_path / "x.gif", codec="gif", pix_fmt="rgb8", fps=10)
    assert containers.missing_bytes(whole) == 0
    whole.write_bytes(whole.read_bytes() + b"\0\0")
    assert containers.missing_bytes(whole) == 0
    assert containers.missing_bytes(media.truncated(tmp_path / "cut.gif", whole, 0.7)) == 1


@pytest.mark.parametrize("name", ["plain.mp4", "fragmented.mp4", "matroska.mkv", "vp9.webm", "mpeg4.avi", "stream.ts"])
def test_a_whole_file_is_one_recording(name: str, tmp_path: Path):
    assert containers.joined_at(media.make(tmp_path, name)) == []


def test_garbage_lacks_nothing_and_ends(tmp_path: Path):
    path = tmp_path / "x"
    for data in [b"", b"\x00" * 100, b"\x1a\x45\xdf\xa3", b"RIFF\x00\x00\x00\x00AVI ", b"\x00\x00\x00\x08ftyp" * 1000]:
        path.write_bytes(data)
        assert containers.missing_bytes(path) == 0 and containers.joined_at(path) == []
        assert not containers.counters_restart(path, 0, max(0, len(data) - 9))
    path.write_bytes(b"\x00\x00\x00\x03ftyp" + b"\x00" * 100)
    assert containers.missing_bytes(path) == 0


def test_the_shared_videos_are_whole(shared: Path):
    assert [containers.missing_bytes(path) for path in sorted((shared / "videos").iterdir())] == [0] * 5
