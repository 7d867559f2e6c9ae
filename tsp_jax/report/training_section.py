"""Describes training runs for a report: their last numbers, and curves of all that their metrics.jsonl holds."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from tsp_jax.report import figures
from tsp_jax.training import run_log

SPLITS = ("train", "valid")
CHARTS = 24
_MAX_METRICS_BYTES = 1 << 28
_MAX_NUMBER = 1e100


@dataclasses.dataclass(frozen=True)
class Chart:
    """A picture of one quantity over training.

    Attributes:
      title: the quantity's name.
      image: the picture as a data URI.
      said: the values at the end, in words, for readers who do not see the picture.
    """

    title: str
    image: str
    said: str


@dataclasses.dataclass(frozen=True)
class Run:
    """The last numbers of a training run.

    Attributes:
      name: the run's name.
      colour: the colour of the run's curves, as #rrggbb.
      steps: number of steps.
      evaluations: number of evaluations.
      last_loss: the last training loss; None if none was logged.
      best_accuracy: the highest mean accuracy of an evaluation, 0 to 1; None if there was none.
      best_epoch: the epoch of that evaluation, counted from 0.
    """

    name: str
    colour: str
    steps: int
    evaluations: int
    last_loss: float | None
    best_accuracy: float | None
    best_epoch: int | None


@dataclasses.dataclass(frozen=True)
class Training:
    """The training runs of a report.

    Attributes:
      runs: the runs, in the order of the files.
      charts: the pictures.
      dropped: number of charts that are left out.
    """

    runs: list[Run]
    charts: list[Chart]
    dropped: int


def read(paths: Sequence[str]) -> Training:
    """Returns the numbers and curves of the runs with these metrics.jsonl.

    Raises:
      OSError, ValueError: a file is missing, or is not a metrics.jsonl.
    """
    folders = [Path(path).absolute().parent.name if Path(path).name == "metrics.jsonl" else Path(path).stem for path in paths]
    names = folders if len(set(folders)) == len(folders) else list(paths)
    lines = [_metrics(Path(path)) for path in paths]
    colours = [figures.COLOURS[place % len(figures.COLOURS)] for place in range(len(paths))]
    runs = [_run(*item) for item in zip(names, colours, lines, strict=True)]
    keys = list(dict.fromkeys(key for run in lines for line in run for key in line if key not in ("split", "step", "epoch")))
    rates = [key for key in keys if key.startswith("lr_")]
    charts = [_chart(key, names, colours, lines) for key in sorted(set(keys) - set(rates), key=_rank)]
    if rates:
        charts.append(_rates_chart(rates, names, colours, lines))
    return Training(runs, charts[:CHARTS], max(len(charts) - CHARTS, 0))


def _metrics(path: Path) -> list[run_log.Line]:
    """Returns the lines of a metrics.jsonl, reduced to finite numbers and the split.

    Raises:
      OSError, ValueError: the file is missing, or holds something else.
    """
    remedy = "expected the metrics.jsonl of a training run's workdir"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {remedy}")
    if path.stat().st_size > _MAX_METRICS_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; {remedy}, of at most {_MAX_METRICS_BYTES} bytes")
    try:
        found = run_log.read(path)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {remedy}, found no lines of JSON ({error})") from error
    lines: list[run_log.Line] = []
    for number, line in enumerate(found, 1):
        if not isinstance(line, dict) or line.get("split") not in SPLITS or _finite(line.get("step")) is None:
            raise ValueError(f"{path} line {number}: {remedy}, each line with a step and a split of {' or '.join(SPLITS)}")
        numbers = {key: _finite(value) for key, value in line.items()}
        lines.append({**{key: value for key, value in numbers.items() if value is not None}, "split": line["split"]})
    if not lines:
        raise ValueError(f"{path}: {remedy}, found no whole line")
    return sorted(lines, key=lambda line: line["step"])


def _finite(value: Any) -> float | None:
    """Returns a number that is finite and small enough to be drawn; None for any other value of JSON."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and abs(value) < _MAX_NUMBER else None  # NaN is not below


def _rank(key: str) -> tuple[object, ...]:
    """Returns the key by which charts are sorted: first the loss and the mean accuracy, then those of single heads."""
    return key != "loss", key != "mean_accuracy", not key.startswith("loss_"), not key.startswith("accuracy_"), key


def _run(name: str, colour: str, lines: Sequence[run_log.Line]) -> Run:
    losses = _series(lines, "train", "loss")
    evaluations = [line for line in lines if line["split"] == "valid"]
    scored = [line for line in evaluations if "mean_accuracy" in line]
    best = max(scored, key=lambda line: line["mean_accuracy"], default={})
    return Run(
        name=name,
        colour=colour,
        steps=round(lines[-1]["step"]),
        evaluations=len(evaluations),
        last_loss=float(losses[1][-1]) if len(losses[1]) else None,
        best_accuracy=best.get("mean_accuracy"),
        best_epoch=round(best["epoch"]) if "epoch" in best else None,
    )


def _series(lines: Sequence[run_log.Line], split: str, key: str) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Returns the steps and the values of a key in the lines of a split."""
    pairs = [(line["step"], line[key]) for line in lines if line["split"] == split and key in line]
    x, y = np.array(pairs, np.float64).reshape(-1, 2).T
    return x, y


def _chart(key: str, names: Sequence[str], colours: Sequence[str], runs: Sequence[Sequence[run_log.Line]]) -> Chart:
    """Returns the chart of a quantity of all runs: training as a thin line, evaluations with dots."""
    percent = key == "mean_accuracy" or key.startswith("accuracy_")
    curves, said = [], []
    for name, colour, lines in zip(names, colours, runs, strict=True):
        for split in SPLITS:
            x, y = _series(lines, split, key)
            if len(x):
                curves.append(figures.Curve(*figures.thinned(x, y), colour, dots=split == "valid"))
                value = f"{y[-1]:.1%}" if percent else f"{y[-1]:.4g}"
                said.append(f"{name} {'in evaluation' if split == 'valid' else 'in training'} {value}")
    # One early step with a large loss would flatten all that follows.
    values = np.concatenate([curve.y for curve in curves])
    log = not percent and bool(np.all(values > 0) and values.max() > 10 * np.median(values))
    return Chart(key.replace("_", " "), figures.curves(curves, percent=percent, log=log), f"at the end: {'; '.join(said)}")


def _rates_chart(
    rates: Sequence[str], names: Sequence[str], colours: Sequence[str], runs: Sequence[Sequence[run_log.Line]]
) -> Chart:
    """Returns the chart of all runs' learning rates. Groups of parameters with the same learning rate are drawn once."""
    groups: dict[tuple[bytes, ...], list[str]] = {}
    for key in rates:
        groups.setdefault(tuple(_series(lines, "train", key)[1].tobytes() for lines in runs), []).append(key)
    shown = list(groups.values())[: len(figures.DASHES)]
    curves = [
        figures.Curve(*figures.thinned(*_series(lines, "train", keys[0])), colour, dash=dash)
        for dash, keys in enumerate(shown)
        for colour, lines in zip(colours, runs, strict=True)
    ]
    said = "; ".join(f"{figures.DASHES[dash]}: {', '.join(keys)}" for dash, keys in enumerate(shown))
    said = ", ".join(shown[0]) if len(shown) == 1 else said
    return Chart(
        "learning rate", figures.curves([curve for curve in curves if len(curve.x)], log=True), said.replace("lr_", "")
    )
