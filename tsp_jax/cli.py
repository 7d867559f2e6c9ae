"""What the commands share: numbers in flags, names of files on the terminal, the cores to use."""

import argparse
import contextlib
import io
import os
import sys
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def positive_int(text: str) -> int:
    """The whole number from 1 up that a flag's text says, for argparse."""
    return _int_from(1, text)


def non_negative_int(text: str) -> int:
    """The whole number from 0 up that a flag's text says, for argparse."""
    return _int_from(0, text)


def show_any_name() -> None:
    """Lets names of files be printed that are not UTF-8 or that this terminal can't show: escaped, with backslashes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def cores() -> int:
    """How many cores this process may use: those that it is bound to, fewer where a container's share of time is less."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, _cores_by_time(_CGROUP) or bound))


def _cores_by_time(cgroup: Path) -> int:
    """Whole cores that Linux's control group gives time for, rounded up; 0 where it sets no limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # version 2, version 1
        with contextlib.suppress(OSError, ValueError):
            quota, period = (int(word) for name in names for word in (cgroup / name).read_text().split())
            if quota > 0 and period > 0:
                return -(-quota // period)
    return 0


def _int_from(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"a whole number from {least} up; got {text}")
    return value
