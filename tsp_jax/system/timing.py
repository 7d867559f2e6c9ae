"""Where a run's time went: the seconds of each thread by what it did, and what bound the run."""

import time
from collections.abc import Iterable

# Activities of the main thread.
WAIT_FOR_CLIPS, WAIT_FOR_RESULTS, DISPATCH, COMPILE = "wait for clips", "wait for results", "dispatch", "compile"
PACK, TRANSFER, WRITE, OTHER = "pack", "transfer", "write", "other"
# Activities of a decoding thread.
SCAN, DECODE, CONVERT, TAPS, ASSEMBLE = "scan", "decode", "convert", "taps", "assemble"
WAIT_FOR_ROOM, IDLE = "wait for room", "idle"

_BOUND_BY = {
    "computing": (WAIT_FOR_RESULTS, DISPATCH),
    "decoding": (WAIT_FOR_CLIPS,),
    "compiling": (COMPILE,),
    "packing and transfer": (PACK, TRANSFER),
    "writing": (WRITE, OTHER),
}


class Laps:
    """The time of one thread by activity. Each moment counts for the activity that ends next, so the sum is the whole time.

    Attributes:
      seconds: the thread's seconds by activity.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def end(self, what: str) -> None:
        """Counts the time since the last call for this activity."""
        now = time.perf_counter()
        self.seconds[what] = self.seconds.get(what, 0.0) + now - self._since
        self._since = now


def total(threads: Iterable[Laps]) -> dict[str, float]:
    """Returns the seconds of several threads by activity, summed."""
    seconds: dict[str, float] = {}
    for thread in threads:
        for what, spent in thread.seconds.items():
            seconds[what] = seconds.get(what, 0.0) + spent
    return seconds


def bound_by(main: dict[str, float]) -> tuple[str, float]:
    """Returns what the main thread spent most of its time on or waiting for, and the share of its time.

    A run is bound by decoding when it waits for clips, by computing when it waits for the devices; else the main thread
    itself is what the others wait for.
    """
    spent = {name: sum(main.get(what, 0.0) for what in parts) for name, parts in _BOUND_BY.items()}
    name = max(spent, key=spent.__getitem__)
    return name, spent[name] / max(sum(main.values()), 1e-9)


def stages(main: dict[str, float], threads: dict[str, float], devices_had_work_sec: float) -> dict[str, float]:
    """Returns the seconds of each stage of extraction by its name. The stages run at the same time.

    `decode` (scanning and converting too) and `resize` are those of all decoding threads together; `compute` is the time in
    which the devices had work, `idle` the rest of the main thread's time, in which they had none.
    """
    return {
        "decode": sum(threads.get(what, 0.0) for what in (SCAN, DECODE, CONVERT)),
        "resize": threads.get(TAPS, 0.0),
        "transfer": main.get(PACK, 0.0) + main.get(TRANSFER, 0.0),
        "compute": devices_had_work_sec,
        "write": main.get(WRITE, 0.0),
        "idle": max(0.0, sum(main.values()) - devices_had_work_sec),
    }
