"""Tests that hostile and broken files give a right result or a clear error in bounded time and memory; `make fuzz` for more."""

import collections
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import fuzzing

ROOT = Path(__file__).parents[1]
COUNT = int(os.environ.get("FUZZ", "0"))  # inputs of each kind, for the long run
SHORT = {
    "pth": 20,
    "safetensors": 100,
    "video": 40,
    "csv": 100,
    "json": 100,
    "evaluate": 150,
    "hdf5": 40,
    "features": 150,
    "records": 12,
    "frames": 100,
    "checkpoint": 6,
}


def results(kind: str, count: int, folder: Path) -> list[dict[str, Any]]:
    """Returns what became of each input. If a process died or hung, another one goes on after the input that caused it."""
    found: list[dict[str, Any]] = []
    while len(found) < count:
        command = [sys.executable, str(ROOT / "tests" / "fuzzing.py"), kind, str(len(found)), str(count), str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with open(folder / "stderr", "w") as stderr:
            child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)
        lines: queue.Queue[str] = queue.Queue()

        def read(stream: Any = child.stdout, lines: queue.Queue[str] = lines) -> None:
            for line in stream:
                lines.put(line)
            lines.put("")

        reader = threading.Thread(target=read)
        reader.start()
        began, limit_sec, ending = len(found), 300.0, ""  # the process makes the real files first
        try:
            while line := lines.get(timeout=limit_sec):
                message = json.loads(line)
                limit_sec = fuzzing.KINDS[kind].limit_sec
                if "begin" in message:
                    assert message["begin"] == len(found)
                    ending = "crash"
                else:
                    found.append(message)
                    ending = ""
        except queue.Empty:
            ending = "hang"
            child.kill()
        finally:
            status = child.wait()
            reader.join()
            child.stdout.close()  # type: ignore (a pipe)
        error = (folder / "stderr").read_text()[-2000:]
        if ending:
            name = signal.Signals(-status).name if status < 0 else f"status {status}"
            found.append({"outcome": ending, "error": f"{name} {error}", "seconds": limit_sec, "grown_mb": 0.0})
        assert len(found) > began, error  # the process died before the first input
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzzing.KINDS)
def test_any_file_gives_a_right_result_or_a_clear_error_in_bounded_time_and_memory(kind: str, tmp_path: Path):
    if kind == "pth":
        pytest.importorskip("torch")
    count = COUNT or SHORT[kind]
    found = results(kind, count, tmp_path)
    outcomes = collections.Counter(result["outcome"] for result in found)
    slowest, largest = max(result["seconds"] for result in found), max(result["grown_mb"] for result in found)
    print(f"\n{kind}: {dict(outcomes)}; slowest {slowest:.2f} s, most memory {largest:.0f} MB")
    faults = [
        f"{result['outcome']}: {result.get('error', '')[:600]}\n  again: PYTHONPATH=. python tests/fuzzing.py {kind} {number} "
        f"{number + 1} /tmp/fuzz"
        for number, result in enumerate(found)
        if result["outcome"] not in ("right", "refused")
    ]
    assert not faults, "\n".join([f"{len(faults)} of {count}", *faults[:10]])
    assert outcomes["refused"] and (outcomes["right"] or kind == "pth")
