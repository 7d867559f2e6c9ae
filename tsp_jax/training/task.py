"""The protocol of a task, which is all that training knows of what it trains, and of the module that describes a task."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh

from tsp_jax import checkpoints, config
from tsp_jax.training import interruption, run_log, train_step


class HostBatch(NamedTuple):
    """This process's rows of a batch, in host memory.

    Attributes:
      arrays: the rows by name, as the step reads them.
      describe: returns a line for each row that says what it is, for the message about a loss that is not finite.
    """

    arrays: Mapping[str, np.ndarray]
    describe: Callable[[], list[str]]


@runtime_checkable
class Task(Protocol):
    """The thing that a run trains. The loop knows nothing else of it."""

    @property
    def unit(self) -> str:
        """The name of the rows of a batch, in the plural, such as "clips"; the run's speed is given in it."""
        ...

    @property
    def rows_per_step(self) -> int:
        """The number of rows in a step's batch, over all devices and processes."""
        ...

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps from one evaluation to the next."""
        ...

    @property
    def epochs(self) -> int:
        """The number of epochs of the whole run."""
        ...

    @property
    def best_metric(self) -> str:
        """The key of `evaluate`'s result that is highest for the best weights, such as "mean_accuracy"."""
        ...

    @property
    def untrained(self) -> str:
        """The reason why an evaluation before the first step makes no sense, "the recipe's heads are new"; else empty."""
        ...

    @property
    def step(self) -> train_step.Step:
        """The jitted step, from `train_step.make_step`."""
        ...

    def describe(self) -> list[str]:
        """Returns lines for the start of the log, about the data, the steps and the learning rates."""
        ...

    def shapes(self) -> train_step.TrainState:
        """Returns the state as `jax.ShapeDtypeStruct`s."""
        ...

    def start(self) -> tuple[train_step.TrainState, list[str]]:
        """Returns the state before the first step, and lines that say which weights were loaded and which were not."""
        ...

    def batches(self, start_step: int) -> Iterator[HostBatch]:
        """Returns this process's share of the batches from a step on; a batch is a function of seed and step alone."""
        ...

    def zero_sums(self) -> train_step.Sums:
        """Returns the sums of no row, as float64 and int64 NumPy arrays of the shapes that the step returns."""
        ...

    def summarize(self, counts: train_step.Sums) -> dict[str, float]:
        """Returns the metrics that follow from some training steps' sums, by their keys in metrics.jsonl."""
        ...

    def learning_rates(self, done: int) -> dict[str, float]:
        """Returns each group's learning rate at an iteration, counted from 0."""
        ...

    def evaluate(self, state: train_step.TrainState, stop: interruption.Interruption) -> dict[str, float] | None:
        """Returns the metrics on the validation data; None if the run was asked to stop first."""
        ...

    def progress(self, line: run_log.Line) -> str:
        """Returns a training line's metrics other than the loss, for the console."""
        ...

    def result(self, line: run_log.Line) -> str:
        """Returns an evaluation as a line of results.txt."""
        ...

    def export(self, state: train_step.TrainState, run_name: str, line: run_log.Line) -> checkpoints.Checkpoint:
        """Returns the weights as a checkpoint; its origin names the run and shows the evaluation's line."""
        ...


@runtime_checkable
class Data(Protocol):
    """The data of a recipe, opened."""

    @property
    def sizes(self) -> dict[str, int]:
        """The number of annotated segments, or other items, of each split; a run that goes on refuses other numbers."""
        ...


@runtime_checkable
class Kind(Protocol):
    """A module that describes one kind of task, such as `encoder_task`."""

    @property
    def Recipe(self) -> type[config.AnyRecipe]:
        """The recipe's dataclass: its sections are dataclasses, one of them `run: config.Run`."""
        ...

    def rows_per_device(self, recipe: Any) -> int:
        """Returns the rows that the cores of a device share at a time."""
        ...

    def open_data(self, recipe: Any) -> Any:
        """Returns the `Data` of a recipe.

        Raises:
          ValueError, OSError, UserError: the data can't be read, or don't match the recipe.
        """
        ...

    def make(self, recipe: Any, data: Any, mesh: Mesh, devices: int) -> Task:
        """Returns the task.

        Args:
          recipe: the recipe.
          data: what `open_data` returned.
          mesh: the devices.
          devices: the number of devices that the run began with, which fixes its batches and learning rates.
        """
        ...
