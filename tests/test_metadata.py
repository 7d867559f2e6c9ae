"""Tests of the measuring of videos: the original's numbers, every kind of file, and those that can't be read."""

import os
from fractions import Fraction
from pathlib import Path

import pytest

import media
from data_builders import measurement, metadata
from tsp_jax import groundtruth
from tsp_jax.video import scanning


def run(videos: Path, output: Path, *flags: str) -> int:
    return metadata.main(["--videos", str(videos), "--output", str(output), "--workers", "2", *flags])


def test_metadata_is_the_originals(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """28 of the 50 frames of corrupted.mp4 come before its first error."""
    assert run(shared / "videos", tmp_path / "metadata.csv") == 0
    assert (tmp_path / "metadata.csv").read_bytes() == (shared / "reference" / "metadata.csv").read_bytes()
    printed = capsys.readouterr()
    assert "corrupted.mp4: Invalid data found when processing input" in printed.err
    assert "; 28 frames count" in printed.err
    assert "5 videos, 0.01 hours, 924 frames; 1 damaged, 0 unreadable" in printed.out


@pytest.mark.parametrize(
    ("name", "fps", "num_frames"),
    [
        ("b_frames.mp4", Fraction(30), 60),
        ("short.mp4", Fraction(30), 30),
        ("ntsc.mp4", Fraction(30000, 1001), 60),
        ("mpeg4_b_frames.avi", Fraction(30), 60),
        ("h264_b_frames.avi", Fraction(30), 60),
        ("stream.ts", Fraction(30), 60),
        ("vp8_hidden.webm", Fraction(49, 2), 49),  # of 60 packets, in two seconds
        ("trimmed.mp4", Fraction(30), 50),  # an edit list hides ten
    ],
)
def test_frames_are_those_that_decode(name: str, fps: Fraction, num_frames: int, tmp_path: Path):
    found = measurement.measure(media.make(tmp_path, name), "x.mp4")
    assert found.metadata.num_frames == num_frames
    assert found.metadata.fps == pytest.approx(float(fps), rel=1e-12)
    assert found.metadata.video_duration_sec == num_frames / found.metadata.fps
    assert found.damage == ""


def test_intact_files_have_the_frames_of_their_packets(tmp_path: Path):
    for name in ("plain.mp4", "open_gop.mp4", "uneven.mkv"):
        path = media.make(tmp_path, name)
        scan = scanning.scan(path)
        measured = measurement.measure(path, name).metadata
        assert (measured.num_frames, measured.fps) == (len(scan.timeline.pts), scan.timeline.fps)


def test_damaged_video_counts_up_to_the_first_error(tmp_path: Path):
    """The file is cut off in the middle of a packet, which holds frame 30."""
    found = measurement.measure(media.make(tmp_path, "cut_fragmented.mp4"), "cut.mp4")
    assert found.damage
    assert found.metadata == groundtruth.VideoMetadata("cut.mp4", 1.0, 30.0, 30)


def test_unreadable_videos_are_listed_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    media.write(folder / "sub" / "good.mp4", frames=20)
    media.write(folder / "名前 видео.mp4", frames=10, fps=15)
    broken = ["text.mp4", "empty.mp4", "sound.mp4", "no_frames.mp4"]
    for name in broken:
        media.make(folder, name)
    assert run(folder, tmp_path / "m.csv") == 1
    assert groundtruth.read_metadata(tmp_path / "m.csv") == [
        groundtruth.VideoMetadata("sub/good.mp4", 20 / 30, 30.0, 20),
        groundtruth.VideoMetadata("名前 видео.mp4", 10 / 15, 15.0, 10),
    ]
    printed = capsys.readouterr()
    for name in broken:
        assert f"unreadable: {folder / name}: " in printed.err
    assert "error: 4 of 6 videos can't be read; repair or remove them" in printed.err


def test_videos_whose_features_would_share_a_name_are_measured(tmp_path: Path):
    """The CSV lists files. Names of features are a matter of the commands that write features."""
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    source = media.write(folder / "a.mp4", frames=5)
    (folder / "sub" / "a.x.mp4").write_bytes(source.read_bytes())
    (folder / "sub" / "a.y.mp4").write_bytes(source.read_bytes())
    assert run(folder, tmp_path / "m.csv") == 0
    assert [item.filename for item in groundtruth.read_metadata(tmp_path / "m.csv")] == ["a.mp4", "sub/a.x.mp4", "sub/a.y.mp4"]


def test_a_folder_whose_name_is_not_utf_8_is_listed_and_the_others_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "videos" / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir(parents=True)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    media.write(tmp_path / "videos" / "good.mp4", frames=5).rename(folder / "bad.mp4")
    media.write(tmp_path / "videos" / "good.mp4", frames=5)
    assert run(tmp_path / "videos", tmp_path / "m.csv") == 1
    assert [item.filename for item in groundtruth.read_metadata(tmp_path / "m.csv")] == ["good.mp4"]
    assert "bad.mp4: its folder's name is not UTF-8, but the CSV is; rename the folder" in capsys.readouterr().err


def test_one_file_is_named_by_itself(tmp_path: Path):
    path = media.write(tmp_path / "a.mp4", frames=5)
    assert run(path, tmp_path / "m.csv") == 0
    assert [item.filename for item in groundtruth.read_metadata(tmp_path / "m.csv")] == ["a.mp4"]


def test_wrong_use_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(tmp_path / "none", tmp_path / "m.csv") == 2
    assert run(tmp_path, tmp_path / "m.csv") == 2
    assert capsys.readouterr().err.count("error: --videos") == 2
    for flags in (["--workers", "0"], ["--fps", "3"]):
        with pytest.raises(SystemExit) as caught:
            run(tmp_path, tmp_path / "m.csv", *flags)
        assert caught.value.code == 2
    assert not (tmp_path / "m.csv").exists()
