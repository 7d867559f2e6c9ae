"""Estimates the speed and duration of large jobs by arithmetic, from measured costs of host cores and assumed accelerators.

Nothing runs on an accelerator here. docs/scaling.md holds the tables that this prints, and says what each number rests on.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

# Measured: milliseconds of a core to scan, decode, convert and take the taps of a frame (docs/benchmarks.md, "Decoding for
# extraction").
FRAME_MS = {"320x240": (0.02, 0.32, 0.14, 0.13), "640x360": (0.04, 1.11, 0.35, 0.18), "1920x1080": (0.36, 7.63, 3.72, 0.27)}
# Measured: the slower end of 313 to 340 and the larger one of 0.9 to 1.2 (docs/benchmarks.md, "Training clips from records").
RECORD_CLIPS_PER_CORE_SEC, RECORD_MB = 313, 1.2

# Known by construction: frames a second of the grid, bytes of a frame as it is sent, parameters of the encoders in millions.
GRID_FPS, SENT_MB = 15, 224 * 224 * 3 / 1e6
PARAMETERS_M = {"r2plus1d_34": 63.5, "r2plus1d_18": 31.3, "r3d_18": 33.2}

# Assumed: clips a second of a forward pass on an H200 in bfloat16, bound by its memory's 4.8 TB/s.
ROOFLINE = {"r2plus1d_34": 2450, "r2plus1d_18": 4500, "r3d_18": 4800}
SHARE_OF_ROOFLINE = 0.35
STEP_IN_FORWARDS = 3  # the number of forward passes that take as long as a step of training
VIDEO_FPS, VIDEO_MB_PER_SEC = 30, 0.125
TRAIN_BATCH = 32  # a device


class Machine(NamedTuple):
    """A number of devices of one kind. Everything but their number is assumed.

    Attributes:
      devices: the number of devices.
      speed: a device's speed as a share of an H200's, which is the ratio of memory bandwidths.
      cores: host cores for each device.
      bus_mb_per_sec: rate from the host's memory to a device, MB/s.
      storage_mb_per_sec: rate from storage to a host for each device, MB/s.
      reduce_mb_per_sec: rate of a ring over all devices, one way, MB/s.
    """

    devices: int
    speed: float
    cores: int
    bus_mb_per_sec: float
    storage_mb_per_sec: float
    reduce_mb_per_sec: float


MACHINES = {
    "1 H200": Machine(1, 1.0, 12, 50_000, 1_250, 300_000),
    "8 H200": Machine(8, 1.0, 12, 50_000, 1_250, 300_000),
    "v5e-256": Machine(256, 0.819 / 4.8, 14, 8_000, 600, 45_000),
}
Rows = list[tuple[str, ...]]
JOBS = {"ActivityNet, 650 h": 650, "10,000 h": 10_000}


def core_sec_per_hour(size: str) -> float:
    """Returns the seconds of a core to read an hour of video. At stride 16 and below, every frame of the grid is needed."""
    scan, decode, convert, taps = FRAME_MS[size]
    return 3.6 * (VIDEO_FPS * (scan + decode) + GRID_FPS * (convert + taps))


def compute(machine: Machine, backbone: str) -> float:
    """Returns the assumed number of clips a second of a device in a forward pass."""
    return ROOFLINE[backbone] * SHARE_OF_ROOFLINE * machine.speed


def extraction(machine: Machine, backbone: str, size: str, stride: int) -> dict[str, float]:
    """Returns the clips a second of extraction on all devices that each resource allows by itself."""
    grid = machine.devices * GRID_FPS / stride  # of clips: a second of video, for each device
    return {
        "compute": machine.devices * compute(machine, backbone),
        "host decode": grid * machine.cores * 3600 / core_sec_per_hour(size),
        "bus": machine.devices * machine.bus_mb_per_sec / (SENT_MB * stride),
        "network": grid * machine.storage_mb_per_sec / VIDEO_MB_PER_SEC,
    }


def training(machine: Machine, backbone: str) -> dict[str, float]:
    """Returns the same for training. We assume that the all-reduce waits for the step, and the step for it."""
    step_sec = TRAIN_BATCH * STEP_IN_FORWARDS / compute(machine, backbone)
    share = (machine.devices - 1) / machine.devices
    reduce_sec = 2 * share * 4 * PARAMETERS_M[backbone] / machine.reduce_mb_per_sec
    return {
        "compute": machine.devices * TRAIN_BATCH / (step_sec + reduce_sec),
        "record reading": machine.devices * machine.cores * RECORD_CLIPS_PER_CORE_SEC,
        "network": machine.devices * machine.storage_mb_per_sec / RECORD_MB,
        "all-reduce": machine.devices * TRAIN_BATCH / max(reduce_sec, 1e-9),
    }


def tables() -> list[str]:
    """Returns the tables of docs/scaling.md, in their order there."""
    reading: Rows = [("video, 30 fps", "core seconds for an hour", "clips a core second, stride 16", "stride 1")]
    for size in FRAME_MS:
        seconds = core_sec_per_hour(size)
        reading.append((size, _short(seconds), *(_short(3600 * GRID_FPS / stride / seconds) for stride in (16, 1))))
    needed: Rows = [("backbone", "device", *(f"{size}, stride {stride}" for size in FRAME_MS for stride in (16, 1)))]
    for backbone in ROOFLINE:
        for name, machine in (("H200", MACHINES["1 H200"]), ("v5e", MACHINES["v5e-256"])):
            a_core = [extraction(machine, backbone, size, stride) for size in FRAME_MS for stride in (16, 1)]
            cores = [machine.devices * compute(machine, backbone) / (x["host decode"] / machine.cores) for x in a_core]
            needed.append((backbone, name, *map(_short, cores)))
    jobs: Rows = [("machine", "backbone", "stride", "clips a second", "bound by", *(f"{job}: hours" for job in JOBS))]
    for name, machine in MACHINES.items():
        for backbone, stride in (("r2plus1d_34", 16), ("r2plus1d_34", 1), ("r3d_18", 16), ("r3d_18", 1)):
            allowed = extraction(machine, backbone, "640x360", stride)
            bound, speed = min(allowed.items(), key=lambda item: item[1])
            hours = [_short(video_hours * GRID_FPS / stride / speed) for video_hours in JOBS.values()]
            jobs.append((name, backbone, str(stride), _short(speed), bound, *hours))
    learning: Rows = [("machine", "backbone", "clips a second", "bound by", "hours for a million clips", "cores for a device")]
    for name, machine in MACHINES.items():
        for backbone in ROOFLINE:
            allowed = training(machine, backbone)
            bound, speed = min(allowed.items(), key=lambda item: item[1])
            cores = speed / machine.devices / RECORD_CLIPS_PER_CORE_SEC
            learning.append((name, backbone, _short(speed), bound, _short(1e6 / 3600 / speed), _short(cores)))
    return [_table(rows) for rows in (reading, needed, jobs, learning)]


def _short(x: float) -> str:
    """Returns a number with two digits, or three from 100 up: none of them is known better."""
    return f"{x:.2g}" if x < 99.5 else f"{float(f'{x:.3g}'):,.0f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join(["---"] * len(rows[0])) + " |", *lines[1:]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status."""
    epilog = "example: python -m benchmarks.studies.scaling"
    argparse.ArgumentParser(prog="python -m benchmarks.studies.scaling", description=__doc__, epilog=epilog).parse_args(
        arguments
    )
    print("\n\n".join(tables()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
