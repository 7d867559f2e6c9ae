"""Sums over steps: read from the devices in one go, checked to be finite, and kept in checkpoints between two log lines."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tsp_jax.system import errors
from tsp_jax.training import train_step


class NotFiniteError(errors.UnfinishedError):
    """A step's loss or gradient is not finite. All processes of a run find this at the same step."""


class Unread(NamedTuple):
    """A step whose sums are still on the devices.

    Attributes:
      step: the number of steps done after it.
      seen: the step's sums, loss and gradient norm, on the devices.
      describe: returns a line for each of this process's rows in its batch.
    """

    step: int
    seen: train_step.StepSums
    describe: Callable[[], list[str]]


@dataclasses.dataclass(frozen=True)
class Tally:
    """Sums over the steps since the last line of the log. A checkpoint holds them too, so that no line is lost.

    Attributes:
      steps: the number of steps.
      loss: the sum of the steps' losses.
      grad_norm: the sum of the steps' gradient norms.
      sums: the sum of the task's sums, as NumPy arrays.
    """

    steps: int
    loss: float
    grad_norm: float
    sums: train_step.Sums

    def to_json(self) -> dict[str, Any]:
        """Returns the tally in JSON's types; the sums are a list of their arrays under "counts"."""
        values = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(self.sums)]
        return {"steps": self.steps, "loss": self.loss, "grad_norm": self.grad_norm, "counts": values}

    def with_steps(self, unread: Sequence[Unread]) -> "Tally":
        """Returns the tally with more steps, whose sums it fetches from the devices.

        Raises:
          NotFiniteError: a step's loss or gradient is not finite; the message describes the rows of its batch.
        """
        tally = self
        for item, values in zip(unread, jax.device_get([item.seen for item in unread]), strict=True):
            if not values.finite:
                raise NotFiniteError(
                    f"step {item.step}: loss {float(values.loss)}, gradient norm {float(values.grad_norm)}; the last "
                    "checkpoint is kept. Lower the learning rates, or look at the rows of this step's batch (process "
                    f"{jax.process_index()}):" + "".join(f"\n  {line}" for line in item.describe())
                )
            tally = Tally(
                tally.steps + 1,
                tally.loss + float(values.loss),
                tally.grad_norm + float(values.grad_norm),
                add(tally.sums, values.sums),
            )
        return tally

    def means(self) -> dict[str, float]:
        """Returns the mean loss, as the steps minimized it, and the mean gradient norm."""
        return {"loss": self.loss / self.steps, "grad_norm": self.grad_norm / self.steps}


def zero(sums: train_step.Sums) -> Tally:
    """Returns the tally of no step.

    Args:
      sums: the task's sums of no row.
    """
    return Tally(0, 0.0, 0.0, sums)


def from_json(content: Mapping[str, Any], zeros: train_step.Sums) -> Tally:
    """Returns the tally that `Tally.to_json` was called on, to the bit.

    Args:
      content: the JSON object that `Tally.to_json` returned.
      zeros: the task's sums of no row, whose structure and dtypes the result has.
    """
    leaves, structure = jax.tree.flatten(zeros)
    values = [np.asarray(value, leaf.dtype) for value, leaf in zip(content["counts"], leaves, strict=True)]
    return Tally(content["steps"], content["loss"], content["grad_norm"], jax.tree.unflatten(structure, values))


def add(total: train_step.Sums, more: train_step.Sums) -> train_step.Sums:
    """Returns the total plus the sums of a batch, in the total's dtypes: float32 would lose an epoch's last digits."""
    return jax.tree.map(lambda a, b: a + np.asarray(b).astype(a.dtype), total, more)
