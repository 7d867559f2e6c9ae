"""Tests of what the commands share."""

import argparse
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tsp_jax.system import cli, cpu


@pytest.mark.parametrize(("read", "least"), [(cli.positive_int, 1), (cli.non_negative_int, 0)])
def test_whole_numbers_from_the_least_up_are_taken(read: Callable[[str], int], least: int):
    assert [read(text) for text in (str(least), "7", " 12 ", str(1 << 70))] == [least, 7, 12, 1 << 70]
    for text in (str(least - 1), "-5", "1.5", "1e3", "many", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=rf"^a whole number from {least} up; got {text}$"):
            read(text)


def test_names_that_are_no_text_are_printed_escaped(monkeypatch: pytest.MonkeyPatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    cli.show_any_name()
    for stream in streams.values():
        print("caf\udce9 走", file=stream, flush=True)
    assert [stream.buffer.getvalue() for stream in streams.values()] == [b"caf\\udce9 \\u8d70\n"] * 2  # type: ignore[attr-defined]


def test_cores_are_those_that_the_process_is_bound_to():
    whole = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(whole)})
    try:
        assert cpu.cores() == 1
    finally:
        os.sched_setaffinity(0, whole)
    assert 1 <= cpu.cores() <= len(whole)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 0),
        ({"cpu.max": "max 100000"}, 0),
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "nonsense"}, 0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 0),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
    ],
)
def test_a_containers_share_of_time_bounds_the_cores(tmp_path: Path, files: dict[str, str], cores: int):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert cpu._cores_by_time(tmp_path) == cores
