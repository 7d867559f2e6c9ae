"""The log of a run: `metrics.jsonl`, `results.txt`, TensorBoard events, and the console.

`metrics.jsonl` holds only what follows from config and seed. So a run that was interrupted writes the same bytes as one that
was not. Speeds go only to the events and the console.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorboardX

from tsp_jax.system import files, progress

Line = dict[str, Any]


class Log:
    """Writes the files of a run and its console. Only the first of several processes has a log.

    A line has a `step`, the number of steps that are done, and a `split`: `train` for the steps since the line before, or
    `valid` for an evaluation.
    """

    def __init__(self, workdir: Path, *, result: Callable[[Line], str], unit: str, step: int, total_steps: int):
        """Opens the files where a run goes on, and cuts off lines past its step.

        Args:
          workdir: the run's folder.
          result: returns an evaluation as a line of results.txt.
          unit: what a row of a batch is, in the plural, such as "clips".
          step: the number of steps done.
          total_steps: the number of steps of the whole run.

        Raises:
          OSError: they can't be written.
        """
        self._metrics, self._results, self._result, self._unit = (
            workdir / "metrics.jsonl",
            workdir / "results.txt",
            result,
            unit,
        )
        self.lines = [line for line in read(self._metrics) if line["step"] <= step]
        with files.replacing(self._metrics) as temporary:
            temporary.write_text("".join(map(_as_text, self.lines)), encoding="utf-8")
        self._write_results()
        self._file = self._metrics.open("a", encoding="utf-8")
        self._events = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else None)
        self._progress = progress.Progress("train", total_steps, "steps", done=step, sparse=True)
        self._total = total_steps

    def advance(self, step: int) -> None:
        """Shows that this many steps are done."""
        self._progress.to(step)

    def train(self, line: Line, shown: str, *, rows_per_sec: float, wait_share: float, seconds_left: float) -> None:
        """Writes what the steps since the line before saw.

        Args:
          line: the line of `metrics.jsonl`; it has a `loss`, and learning rates under `lr_GROUP`.
          shown: other metrics of the line, for the console.
          rows_per_sec: the speed of all devices together.
          wait_share: the share of the time spent waiting for batches to be read.
          seconds_left: the estimated seconds to the end of training.
        """
        self._append(line)
        for name, value in ((f"{self._unit}_per_sec", rows_per_sec), ("wait_share", wait_share)):
            self._events.add_scalar(f"speed/{name}", value, line["step"])
        speed = f"{rows_per_sec:.1f} {self._unit}/s, waiting {wait_share:.0%}"
        rates = " ".join(f"{key.removeprefix('lr_')} {value:.2e}" for key, value in line.items() if key.startswith("lr_"))
        if self._progress.has_bar:
            self._progress.to(line["step"], f"loss {line['loss']:.4f}, {speed}, lr {rates}")
        else:
            self.say(
                f"step {line['step']}/{self._total} epoch {line['epoch']}: loss {line['loss']:.4f}, {shown}, "
                f"lr {rates}, {speed}, {progress.duration(seconds_left)} left"
            )

    def valid(self, line: Line) -> None:
        """Writes an evaluation."""
        self._append(line)
        self._write_results()
        self.sync()

    def evaluated(self, step: int) -> bool:
        """Returns whether the evaluation after this step is written."""
        return any(line["step"] == step and line["split"] == "valid" for line in self.lines)

    def say(self, text: str) -> None:
        """Prints a line, above the progress bar if there is one."""
        self._progress.say(text, on_stdout=True)

    def sync(self) -> None:
        """Makes the lines reach the disk. Call it before a checkpoint is saved, so that no checkpoint is ahead of the log.

        Raises:
          OSError: the writing failed.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        self._progress.close()
        self._file.close()
        self._events.close()

    def _append(self, line: Line) -> None:
        self.lines.append(line)
        self._file.write(_as_text(line))
        self._file.flush()
        for key, value in line.items():
            if key not in ("step", "split", "epoch") and value is not None:
                self._events.add_scalar(f"{line['split']}/{key}", value, line["step"])

    def _write_results(self) -> None:
        results = [self._result(line) for line in self.lines if line["split"] == "valid"]
        with files.replacing(self._results) as temporary:
            temporary.write_text("".join(f"{text}\n" for text in results), encoding="utf-8")


def line(values: Mapping[str, Any], *, split: str, step: int, epoch: int) -> Line:
    """Returns a line of `metrics.jsonl`; a number that is not finite becomes null."""
    finite = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()}
    return {"split": split, "step": step, "epoch": epoch, **finite}


def read(path: Path) -> list[Line]:
    """Returns the whole lines of a `metrics.jsonl`: none if there is no such file. A kill may leave a part of the last line."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _as_text(line: Line) -> str:
    return json.dumps(line, allow_nan=False) + "\n"
