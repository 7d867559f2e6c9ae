"""A second, tiny task for the training command (tests/test_task.py).

A two-layer masked 1-D convolution decides which of two waves a row shows. To the loop it is like a detector: AdamW with
warm-up and cosine, clipping, no weight decay on biases, an average of the weights, and no pixel anywhere.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from tsp_jax import checkpoints, config, train
from tsp_jax.models import functional
from tsp_jax.training import classification, optim, run_log, task, train_step


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The model's configuration."""

    kind: ClassVar[str] = "waves"
    width: int = 8

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the module."""
        return Net(self.width, rngs)


class Net(nnx.Module):
    """Two masked convolutions over time, and a mean over the frames that the mask keeps."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.first, self.second = nnx.Conv(1, width, 3, rngs=rngs), nnx.Conv(width, 2, 3, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns logits [b, 2] of rows [b, t, 1] and their masks [b, t, 1]."""
        for layer in (self.first, self.second):
            x = nnx.tanh(layer(x) * mask)
        return x.sum(axis=1) / mask.sum(axis=1)


KINDS = {Convolution.kind: lambda found: Convolution(**found)}


@dataclasses.dataclass(frozen=True)
class Optim:
    """AdamW."""

    lr: float
    epochs: int = 3


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The whole recipe."""

    optim: Optim
    run: config.Run = dataclasses.field(default_factory=config.Run)
    seed: int = 0

    @classmethod
    def mistakes(cls, values: Mapping[str, Any]) -> list[str]:
        """Returns nothing: only the types can be wrong."""
        return []


def get_config() -> ml_collections.ConfigDict:
    """Returns the recipe: this file is a page too."""
    return config.page("waves", Recipe, {"optim": {"lr": 3e-2}, "run": {"log_every_steps": 2, "checkpoint_every_steps": 3}})


@dataclasses.dataclass(frozen=True)
class WaveLoss:
    """The mean cross-entropy over all rows."""

    def inputs(self, batch: train_step.Batch) -> train_step.Batch:
        return batch

    def divisors(self, batch: train_step.Batch) -> jax.Array:
        return classification.labelled(batch["label"])

    def __call__(self, variables: Any, part: Any, divisors: Any, axes: Any) -> Any:
        net: Any = functional.module(Convolution(), variables)
        logits = net(part["x"], part["mask"])
        total = classification.cross_entropy_sum(logits, part["label"])
        counts = classification.count([total], [logits], [part["label"]])
        return total / divisors, ({"batch_stats": variables["batch_stats"]}, counts)


def rows_per_device(recipe: Recipe) -> int:
    return 8


@dataclasses.dataclass(frozen=True)
class Data:
    """The data, whose rows are drawn from (seed, step)."""

    sizes: dict[str, int] = dataclasses.field(default_factory=lambda: {"train": 32})


def open_data(recipe: Recipe) -> Data:
    return Data()


def make(recipe: Recipe, data: Data, mesh: Any, devices: int) -> task.Task:
    return Waves(recipe, mesh)


def draw(seed: int, step: int) -> task.HostBatch:
    """Returns eight rows, each a slow or a fast wave of 12 to 16 frames, filled up to 16."""
    random = np.random.default_rng((seed, step))
    label, length = random.integers(0, 2, 8), random.integers(12, 17, 8)
    time = np.arange(16)
    wave = np.sin(time * np.where(label, 1.5, 0.5)[:, None] + random.uniform(0, 6, (8, 1)))
    arrays = {"x": wave[..., None], "mask": (time < length[:, None])[..., None]}
    values = {key: rows.astype(np.float32) for key, rows in arrays.items()}
    return task.HostBatch(
        {**values, "label": label.astype(np.int32)}, lambda: [f"row {row} of step {step}" for row in range(8)]
    )


class Waves:
    """The task."""

    unit, best_metric, untrained, rows_per_step, steps_per_epoch = "rows", "mean_accuracy", "", 8, 4

    def __init__(self, recipe: Recipe, mesh: Any):
        self._seed, self.epochs = recipe.seed, recipe.optim.epochs
        schedule, options = optim.warmup_cosine(2, 4 * self.epochs), train_step.Options(mesh, average_decay=0.9)
        rates = {"kernel": recipe.optim.lr, "bias": recipe.optim.lr}
        self._optimizer = optim.adamw(
            rates, self._groups, schedule, weight_decay=1e-2, no_decay=frozenset({"bias"}), clip_norm=1.0
        )
        self._options, self.step = options, train_step.make_step(WaveLoss(), self._optimizer, options)

    @staticmethod
    def _groups(params: optim.Params) -> optim.Params:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key, params)

    def describe(self) -> list[str]:
        return ["data: waves"]

    def shapes(self) -> train_step.TrainState:
        return jax.eval_shape(lambda: self.start()[0])

    def start(self) -> tuple[train_step.TrainState, list[str]]:
        return train_step.init_state(functional.init(Convolution(), self._seed), self._optimizer, self._options), ["new"]

    def batches(self, start_step: int) -> Iterator[task.HostBatch]:
        return (draw(self._seed, step) for step in range(start_step, 10**9))

    def zero_sums(self) -> classification.Counts:
        return classification.zero(1)

    def summarize(self, counts: classification.Counts) -> dict[str, float]:
        return classification.summarize(counts, ["wave"], [1.0])

    def learning_rates(self, done: int) -> dict[str, float]:
        return {group: float(rate) for group, rate in self._optimizer.learning_rates(done).items()}

    def evaluate(self, state: train_step.TrainState, stop: Any) -> dict[str, float] | None:
        variables = {**state.variables, "params": state.average}
        batch = draw(self._seed + 1, 0).arrays
        arrays = {key: jnp.asarray(rows) for key, rows in batch.items()}
        loss = WaveLoss()
        return None if stop.due() else self.summarize(loss(variables, arrays, loss.divisors(arrays), ())[1][1])

    def progress(self, line: run_log.Line) -> str:
        return f"accuracy {line['mean_accuracy']:.1%}"

    def result(self, line: run_log.Line) -> str:
        return f"epoch {line['epoch']}: {line['mean_accuracy']:.3f}"

    def export(self, state: train_step.TrainState, run_name: str, line: run_log.Line) -> checkpoints.Checkpoint:
        variables = {**state.variables, "params": state.average}
        return checkpoints.make(Convolution(), variables, checkpoints.Origin(run_name, note=self.result(line)))


def main(arguments: list[str] | None = None) -> int:
    """Runs the training command, which knows this task too."""
    return train.main(arguments, tasks={**train.TASKS, "waves": sys.modules[__name__]})
