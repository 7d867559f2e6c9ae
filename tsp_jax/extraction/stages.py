"""Where the time of an extraction went: a JSON file and a table for the terminal."""

import json
from collections.abc import Iterator
from pathlib import Path

from tsp_jax.extraction import engine
from tsp_jax.system import files, timing


def write(path: Path, summary: engine.Summary) -> None:
    """Writes the seconds of each stage as JSON, and those of the main thread and of all decoding threads together."""
    content = {
        "wall_sec": summary.wall_sec,
        "stages_sec": _stages(summary),
        "devices_had_work_sec": summary.compute_sec,
        "bound_by": summary.bound_by,
        "main_thread_sec": summary.main_sec,
        "decoding_threads": summary.threads,
        "decoding_threads_sec": summary.threads_sec,
    }
    with files.replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def lines(summary: engine.Summary, folder: str) -> Iterator[str]:
    """Yields the same numbers as lines for the terminal. `folder` is where the file and the trace are."""
    shown = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in _stages(summary).items())
    yield f"  stages, which run at the same time: {shown} (of the devices)"
    for name, seconds in (
        ("main thread", summary.main_sec),
        (f"{summary.threads} decoding threads together", summary.threads_sec),
    ):
        yield f"  {name}:"
        whole = max(sum(seconds.values()), 1e-9)
        for what, spent in sorted(seconds.items(), key=lambda item: -item[1]):
            yield f"    {what:<16} {spent:9.2f} s {spent / whole:6.1%}"
    yield f"  in {folder}: stages.json; trace of the first {engine.TRACED_BATCHES} batches, for xprof, TensorBoard or Perfetto"


def _stages(summary: engine.Summary) -> dict[str, float]:
    return timing.stages(summary.main_sec, summary.threads_sec, summary.compute_sec)
