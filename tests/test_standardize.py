"""Tests of bringing videos to 30 fps: FFmpeg's fps filter chooses the frames, and a kill or a bad file loses nothing else."""

import csv
import itertools
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import media
from data_builders import standardize
from tsp_jax.video import decoding, scanning

ROOT = Path(__file__).parents[1]


def run(source: Path, output: Path, *flags: str) -> int:
    return standardize.main(["--input", str(source), "--output", str(output), "--workers", "2", *flags])


def numbers(path: Path) -> list[int]:
    """Returns the numbers that a standardized video's pictures show, and checks that its frames are 1/30 s apart."""
    scan = scanning.scan(path)
    assert scan.timeline.fps == 30
    assert (scan.codec, scan.rotation_deg, scan.trimmed) == ("h264", 0, False)
    assert np.all(np.diff(scan.timeline.pts) * scan.timeline.time_base == Fraction(1, 30))
    assert scan.timeline.pts[0] == 0
    return [media.number(picture) for _, picture in decoding.Reader(scan, np.ones(len(scan.timeline.pts), bool))]


def errors(output: Path) -> dict[str, tuple[str, str]]:
    with open(output / "errors.csv", newline="") as stream:
        return {row["filename"]: (row["outcome"], row["reason"]) for row in csv.DictReader(stream)}


def chosen(times_sec: list[Fraction], end_sec: Fraction) -> list[int]:
    """Returns the frames that the fps filter chooses.

    Times are rounded to the grid, halves up. At each tick, the last frame at or before it is shown.
    """
    ticks = [math.floor(30 * at + Fraction(1, 2)) for at in (*times_sec, end_sec)]
    return [max(k for k, tick in enumerate(ticks[:-1]) if tick <= shown) for shown in range(ticks[0], ticks[-1])]


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001), Fraction(24), Fraction(60), Fraction(15), Fraction(30)])
def test_frames_are_those_of_the_fps_filter(fps: Fraction, tmp_path: Path):
    """The source has Matroska's clock of milliseconds, so times are read from the file."""
    source = media.write(tmp_path / "x.mkv", fps=fps, frames=80)
    times = scanning.scan(source).timeline
    times_sec = [int(pts) * times.time_base for pts in times.pts]
    assert run(source, tmp_path / "out") == 0
    found = numbers(tmp_path / "out" / "x.mp4")
    end_sec = times_sec[-1] + int(1 / fps / times.time_base) * times.time_base
    expected = chosen(times_sec, end_sec)
    # FFmpeg guesses the length of the last frame, and may round it either way by a tick.
    shorter = min(len(found), len(expected))
    assert abs(len(found) - len(expected)) <= 1
    assert found[:shorter] == expected[:shorter]
    assert found[-1] == 79 or fps == 60


def test_uneven_frames_are_those_of_the_fps_filter(tmp_path: Path):
    gaps = random.Random(4).choices([3, 10, 17, 33, 40, 90, 210], k=79)
    pts = list(itertools.accumulate(gaps, initial=0))
    source = media.write(tmp_path / "x.mp4", frames=80, fps=25, pts=pts, time_base=Fraction(1, 1000))
    times = scanning.scan(source).timeline
    assert [round(1000 * int(at) * times.time_base) for at in times.pts] == pts
    assert run(source, tmp_path / "out") == 0
    found = numbers(tmp_path / "out" / "x.mp4")
    expected = chosen([Fraction(at, 1000) for at in pts], Fraction(pts[-1], 1000))
    assert found[: len(expected)] == expected
    assert set(found[len(expected) :]) <= {79}  # the file says for how long the last frame is shown


@pytest.mark.parametrize(
    ("name", "first", "num_frames"),
    [("late.mkv", 0, 60), ("trimmed.mp4", 10, 50), ("mpeg4_b_frames.avi", 0, 60), ("resized.ts", 0, 60), ("stream.ts", 0, 60)],
)
def test_frames_of_odd_files(name: str, first: int, num_frames: int, tmp_path: Path):
    """Late starts move to 0 s, hidden frames stay hidden, AVI's undated frames count, and the size stays the same."""
    source = media.make(tmp_path, name)
    assert run(source, tmp_path / "out") == 0
    (target,) = (tmp_path / "out").glob("*.mp4")
    assert numbers(target) == list(range(first, first + num_frames))


def test_bad_files_are_listed_and_the_others_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, output = tmp_path / "in", tmp_path / "out"
    (source / "sub").mkdir(parents=True)
    names = ["sound.mp4", "empty.mp4", "text.mp4", "cut_fragmented.mp4"]
    for name in names:
        media.make(source, name)
    media.write(source / "sub" / "good.avi", codec="mpeg4", frames=10)
    media.write(source / "two.dots.webm", codec="libvpx", frames=10, options={"cpu-used": "8"})
    expected = {
        "sound.mp4": ("left out", "the file has no video stream"),
        "empty.mp4": ("left out", "the file is empty"),
        "text.mp4": ("left out", "not a video that FFmpeg can open, or cut off: Invalid data found when processing input"),
        "cut_fragmented.mp4": ("cut short", "a packet is cut off, after 30 frames; 30 frames at 30 fps are kept"),
    }
    written = ["cut_fragmented.mp4", "errors.csv", "sub", "sub/good.mp4", "two.dots.mp4"]
    for skipped in (0, 3):  # a second run knows what the first one cut short
        assert run(source, output) == 1
        assert errors(output) == expected
        assert sorted(path.relative_to(output).as_posix() for path in output.rglob("*")) == written
        assert f"{skipped} were there; 1 damaged or cut short, 3 unreadable and left out" in capsys.readouterr().out
    assert numbers(output / "cut_fragmented.mp4") == list(range(30))
    # After a repair it is converted again on request, and no longer listed.
    media.write(source / "cut_fragmented.mp4")
    for name in names[:3]:
        (source / name).unlink()
    assert run(source, output, "--overwrite") == 0
    assert errors(output) == {}
    assert len(numbers(output / "cut_fragmented.mp4")) == 60


def test_two_inputs_of_one_output_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.avi").touch()
    (source / "a.mkv").touch()
    assert run(source, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert str(source / "a.avi") in said
    assert str(source / "a.mkv") in said
    assert not (tmp_path / "out").exists()


def test_wrong_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(tmp_path / "nowhere", tmp_path / "out") == 2
    assert "--input" in capsys.readouterr().err
    source = media.write(tmp_path / "in.mp4", frames=2)
    assert run(tmp_path, tmp_path / "out") == 2  # its own output would be input the next time
    assert run(source, tmp_path) == 2  # the file itself
    assert len(scanning.scan(source).timeline.pts) == 2 and source.name == "in.mp4"


def test_killed_and_run_again(tmp_path: Path):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    first = media.write(source / "0.mp4", size=(192, 128), frames=100)
    for index in range(1, 6):
        shutil.copy(first, source / f"{index}.mp4")
    command = [sys.executable, "-m", "data_builders.standardize", "--input", source, "--output", output, "--workers", "1"]
    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    # We kill it in the middle, when some videos are finished and one is being written.
    while not (any(output.glob("[0-9].mp4")) and any(output.glob(".*.tmp"))):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    finished = {path: path.stat().st_mtime_ns for path in output.glob("[0-9].mp4")}
    assert 0 < len(finished) < 6
    assert all(len(scanning.scan(path).timeline.pts) == 100 for path in finished)
    assert run(source, output) == 0
    assert sorted(path.name for path in output.iterdir()) == [*(f"{index}.mp4" for index in range(6)), "errors.csv"]
    assert all(path.stat().st_mtime_ns == at for path, at in finished.items())
    assert all(numbers(output / f"{index}.mp4") == list(range(100)) for index in (0, 5))
