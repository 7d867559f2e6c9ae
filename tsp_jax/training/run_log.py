"""What a run tells: `metrics.jsonl`, `results.txt` in the original's format, TensorBoard events, and the console.

`metrics.jsonl` holds nothing but what follows from config and seed, so that a run that was interrupted writes the same bytes
as one that was not; speeds stand in the events and on the console.
"""

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorboardX
import tqdm

from tsp_jax.system import files

Line = dict[str, Any]


class Log:
    """The files of a run, and its console. Of several processes one has it.

    Lines are of a `step`, the number of steps that are done, and of a `split`: `train` for those since the line before, or
    `valid` for an evaluation.
    """

    def __init__(self, workdir: Path, *, heads: Sequence[str], step: int, total_steps: int):
        """Opens the files where a run goes on; lines past its step are cut off.

        Raises:
          OSError: they can't be written.
        """
        self._metrics, self._results, self._heads = workdir / "metrics.jsonl", workdir / "results.txt", heads
        self.lines = [line for line in read(self._metrics) if line["step"] <= step]
        with files.replacing(self._metrics) as temporary:
            temporary.write_text("".join(map(_as_text, self.lines)), encoding="utf-8")
        self._write_results()
        self._file = self._metrics.open("a", encoding="utf-8")
        self._events = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else None)
        terminal = sys.stderr.isatty()
        self._bar = (
            tqdm.tqdm(total=total_steps, initial=step, desc="train", unit="step", dynamic_ncols=True) if terminal else None
        )
        self._began, self._step, self._first, self._total = time.perf_counter(), step, step, total_steps

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def train(self, line: Line, *, clips_per_sec: float, wait_share: float, seconds_left: float) -> None:
        """Writes what the steps since the line before saw.

        Args:
          line: of `metrics.jsonl`.
          clips_per_sec: of all devices together.
          wait_share: of the time, spent waiting for clips to be read.
          seconds_left: of training.
        """
        self._append(line)
        for name, value in (("clips_per_sec", clips_per_sec), ("wait_share", wait_share)):
            self._events.add_scalar(f"speed/{name}", value, line["step"])
        speed = f"{clips_per_sec:.1f} clips/s, waiting {wait_share:.0%}"
        rates = " ".join(f"{key.removeprefix('lr_')} {value:.2e}" for key, value in line.items() if key.startswith("lr_"))
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {line['loss']:.4f}, {speed}, lr {rates}", refresh=False)
        else:
            accuracies = " ".join(
                f"{head} {line[f'accuracy_{head}']:.1%}" for head in self._heads if line[f"accuracy_{head}"] is not None
            )
            self.say(
                f"step {line['step']}/{self._total} epoch {line['epoch']}: loss {line['loss']:.4f}, accuracy {accuracies}, "
                f"lr {rates}, {speed}, {_duration(seconds_left)} left"
            )

    def valid(self, line: Line) -> None:
        """Writes an evaluation."""
        self._append(line)
        self._write_results()
        self.sync()

    def evaluated(self, step: int) -> bool:
        """Whether the evaluation after this step is written."""
        return any(line["step"] == step and line["split"] == "valid" for line in self.lines)

    def say(self, text: str) -> None:
        """Prints a line beside the bar."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def sync(self) -> None:
        """Brings the lines to the disk: no checkpoint may know of more than they do.

        Raises:
          OSError: that failed.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        if self._bar is not None:
            self._bar.close()
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
        results = [result(line, self._heads) for line in self.lines if line["split"] == "valid"]
        with files.replacing(self._results) as temporary:
            temporary.write_text("".join(f"{text}\n" for text in results), encoding="utf-8")


def line(values: Mapping[str, Any], *, split: str, step: int, epoch: int) -> Line:
    """A line of `metrics.jsonl`; numbers that are none are null."""
    finite = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()}
    return {"split": split, "step": step, "epoch": epoch, **finite}


def result(valid: Line, heads: Sequence[str]) -> str:
    """An evaluation as a line of the original's results.txt: accuracies in percent, epochs from 0.

    Source: TSP, released training code.
    """

    def number(value: float | None, scale: float = 1) -> str:
        return f"{math.nan if value is None else value * scale:.3f}"

    parts = [f"** Valid Epoch {valid['epoch']}: "]
    for head in heads:
        column = f"{head.replace('_', '-')}-label"
        parts.append(f" <{column}> Accuracy {number(valid[f'accuracy_{head}'], 100)} Loss {number(valid[f'loss_{head}'])};")
    return "".join(parts) + f" Total Loss {number(valid['loss'])} Avg Accuracy {number(valid['mean_accuracy'], 100)}"


def read(path: Path) -> list[Line]:
    """The whole lines of a `metrics.jsonl`, none where it is not; a kill may have left part of the last one."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _as_text(line: Line) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
