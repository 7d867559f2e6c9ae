"""Tests of progress: plain lines where there is no terminal, a bar on one, in every long command."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import media
from data_builders import gvf, metadata, standardize, synthetic
from tsp_jax import checkpoints, extract, predict
from tsp_jax.features import __main__ as features_command
from tsp_jax.models import functional, tsp
from tsp_jax.report import __main__ as report_command
from tsp_jax.system import progress
from tsp_jax.training import run_log

ROOT = Path(__file__).parents[1]
# Arguments: the number of items, the seconds of each.
WORK = """
import sys, time
from tsp_jax.system import progress

count, seconds = int(sys.argv[1]), float(sys.argv[2])
for item in progress.each(range(count), "work", count):
    time.sleep(seconds)
"""
COMMAND = [sys.executable, "-c", WORK]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines after hundredths of seconds, in place of seconds."""
    monkeypatch.setattr(progress, "_POLL_SEC", 0.01)


def test_lines_say_what_is_done_how_fast_and_what_is_left() -> None:
    found = subprocess.run([*COMMAND, "25", "0.1"], env=ENVIRONMENT, capture_output=True, check=True).stderr.decode()
    assert "\r" not in found and found.endswith("\n")
    *lines, last = found.splitlines()
    assert 1 <= len(lines) <= 3  # one a second at most, though ten tenths were done
    for line in lines:
        assert re.fullmatch(r"work: \d+ of 25 videos, \d\.\d\d videos/s, 0:00:0[0-3] left", line), line
    assert re.fullmatch(r"work: 25 of 25 videos, \d\.\d\d videos/s, 0:00:0[2-5] in all", last), last


def test_work_of_less_than_a_second_prints_nothing() -> None:
    assert subprocess.run([*COMMAND, "20", "0.01"], env=ENVIRONMENT, capture_output=True, check=True).stderr == b""


@pytest.mark.parametrize("columns", [100, 0])
def test_a_terminal_shows_a_bar_with_rate_and_time_left(columns: int) -> None:
    terminal, end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    process = subprocess.Popen([*COMMAND, "4", "0.2"], env=ENVIRONMENT, stdout=end, stderr=end)
    os.close(end)
    found = b""
    with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
        while part := os.read(terminal, 1 << 16):
            found += part
    os.close(terminal)
    assert process.wait(20) == 0
    assert re.search(r"\rwork: 100%\|.*\| 4/4 videos \[00:0\d<00:00, \d\.\d\d videos/s\]", found.decode()), found


def test_work_that_does_not_move_is_reported_every_thirty_seconds(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert progress.EVERY_SEC == 30
    monkeypatch.setattr(progress, "EVERY_SEC", 0.1)
    with progress.Progress("work", 3, "videos"):
        time.sleep(0.45)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines[:-1]) <= 4 and set(lines[:-1]) == {"work: 0 of 3 videos"}
    assert lines[-1] == "work: 0 of 3 videos, 0:00:00 in all"


def test_a_line_for_every_tenth_and_none_between(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress("work", 1000, "frames", done=500) as shown:  # what was done before counts, but not for the rate
        for done in range(510, 1001, 10):
            shown.to(done)
            time.sleep(0.02)
    lines = capsys.readouterr().err.splitlines()
    assert [int(line.split()[1].replace(",", "")) // 100 for line in lines] == [6, 7, 8, 9, 10]
    rates = [float(found[1]) for line in lines if (found := re.search(r", ([\d.]+) frames/s, ", line))]
    assert len(rates) == len(lines) and max(rates) <= 600  # at most 10 in 0.02 s, and counted before the next wait
    assert lines[-1].startswith("work: 1,000 of 1,000 frames, ")


def test_a_size_that_is_not_known_is_left_out(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress("file.pth", None, "MB") as shown:
        shown.to(12.7)
        time.sleep(0.05)
    assert re.fullmatch(r"file\.pth: 12 MB, [\d.]+ MB/s, 0:00:00 in all\n", capsys.readouterr().err)


def test_work_that_fails_says_how_far_it_came(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="bad"), progress.Progress("work", 3, "videos") as shown:
        shown.advance()
        time.sleep(0.05)
        raise ValueError("bad")
    assert capsys.readouterr().err.splitlines()[-1].startswith("work: 1 of 3 videos, ")


def test_a_log_of_training_is_silent_while_it_has_lines_of_its_own(
    quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY_SEC", 0.3)
    with contextlib.closing(run_log.Log(tmp_path, result=str, unit="clips", step=0, total_steps=10)) as log:
        for step in range(1, 6):
            log.advance(step)
            log.say(f"step {step}")
            time.sleep(0.1)
        printed = capsys.readouterr()
        assert printed.out.splitlines() == [f"step {step}" for step in range(1, 6)] and printed.err == ""
        time.sleep(0.5)  # a long step or evaluation
        assert capsys.readouterr().err.startswith("train: 5 of 10 steps, ")
    assert capsys.readouterr() == ("", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two videos and a model."""
    folder = tmp_path_factory.mktemp("progress")
    (folder / "videos").mkdir()
    for seed in range(2):
        media.write(folder / "videos" / f"video_{seed}.mp4", frames=90, seed=seed)
    config = tsp.ModelConfig("r3d_tiny", (1, 2))
    checkpoints.save(folder / "model", checkpoints.make(config, functional.init(config, 0), checkpoints.Origin("seed 0")))
    return folder


def test_every_long_command_ends_with_a_line_and_writes_no_carriage_return(
    quick: None, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(progress, "_POLL_SEC", 0.0001)  # the shortest of these takes a millisecond
    commands: list[tuple[str, Callable[[list[str]], int], str]] = [
        ("extract", extract.main, "--checkpoint model --videos videos --output f.h5"),
        ("predict", predict.main, "--checkpoint model --features f.h5 --output p.json"),
        ("export", features_command.main, "export f.h5 --output exported"),
        ("gvf", gvf.main, "--features f.h5 --pool max --output g.h5"),
        ("report", report_command.main, "--features f.h5 --videos videos --output r.html"),
        ("metadata", metadata.main, "--videos videos --output m.csv"),
        ("standardize", standardize.main, "--input videos --output standard"),
        ("synthetic", synthetic.main, "--videos 2 --seed 0 --seconds 4 4 --workers 1 --output drawn"),
    ]
    for name, main, arguments in commands:
        assert main(arguments.split()) == 0
        printed = capsys.readouterr()
        assert re.search(rf"^{name}: 2 of 2 videos, .*, 0:00:0\d in all$", printed.err, re.MULTILINE), (name, printed)
        assert "\r" not in printed.err + printed.out
        assert ("device: CPU, " in printed.out) == (name in ("extract", "predict"))  # the others compute nothing
    assert np.load(folder / "exported" / "video_0.npy").shape[1] == 128
