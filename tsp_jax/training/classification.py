"""Classification of clips by several heads: the loss of a step, and sums and counts that are divided once."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from tsp_jax import transforms
from tsp_jax.models import tsp
from tsp_jax.training import train_step

LABELS = ("action", "temporal_region")  # the labels that a head can predict
MISSING = -1  # the label of a row without one


Prepare = Callable[[train_step.Batch, DTypeLike], Float[Array, "b t h w 3"]]


class Counts(NamedTuple):
    """Sums over clips, one entry for each head. They are added by `sums.add`: the `+` of two named tuples joins them.

    Attributes:
      loss_sum: the cross-entropy summed over the labelled clips.
      correct: the number of labelled clips whose highest logit is their label's.
      labelled: the number of clips that have a label.
    """

    loss_sum: Num[Array | np.ndarray, " h"]
    correct: Num[Array | np.ndarray, " h"]
    labelled: Num[Array | np.ndarray, " h"]


def cross_entropy_sum(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Float[Array, ""]:
    """Returns the cross-entropy summed over the labelled rows. Rows whose label is -1 add exactly 0, to the gradient too."""
    return -jnp.sum(jnp.where(labels == MISSING, 0, _log_likelihood(logits, labels)))


def labelled(labels: Int[Array, " b"]) -> Int[Array, ""]:
    """Returns the number of rows that have a label, int32."""
    return jnp.sum(labels != MISSING, dtype=jnp.int32)


def mean(total: Float[Array, ""], count: Int[Array, ""]) -> Float[Array, ""]:
    """Returns a mean cross-entropy from its sum. If no row is labelled, the mean and its gradient are 0.

    Source: TSP, released training code; differs: without any label the original logs 0 (PyTorch 1.4) or NaN (2.x).
    """
    return total / jnp.maximum(count, 1)


def weighted_sum(head_losses: Sequence[Float[Array, ""]], alphas: Sequence[float]) -> Float[Array, ""]:
    """Returns the sum of the heads' losses, each times its alpha."""
    return sum((alpha * loss for alpha, loss in zip(alphas, head_losses, strict=True)), start=jnp.zeros(()))


def count(
    loss_sums: Sequence[Float[Array, ""]], logits: Sequence[Float[Array, "b _"]], labels: Sequence[Int[Array, " b"]]
) -> Counts:
    """Returns the counts of one batch, on the device; all but the losses are int32. A label of -1 is a missing one."""
    hits = [jnp.sum((jnp.argmax(x, axis=-1) == y) & (y >= 0), dtype=jnp.int32) for x, y in zip(logits, labels, strict=True)]
    rows = [jnp.sum(y >= 0, dtype=jnp.int32) for y in labels]
    return Counts(jnp.stack(list(loss_sums)), jnp.stack(hits), jnp.stack(rows))


def zero(heads: int) -> Counts:
    """Returns the counts of no clip, as NumPy arrays."""
    return Counts(np.zeros(heads), np.zeros(heads, np.int64), np.zeros(heads, np.int64))


def summarize(counts: Counts, heads: Sequence[str], alphas: Sequence[float]) -> dict[str, float]:
    """Returns metrics from counts.

    The keys are `loss_HEAD` and `accuracy_HEAD` (0 to 1) for each head, over the clips that have its label; `loss`, the heads'
    losses weighted by alpha; and `mean_accuracy`, the plain mean of the heads' accuracies. The values of a head without any
    labelled clip are NaN, and so are the means that it takes part in.

    Source: TSP, released training code (accuracies and their mean); differs: the original's validation loss is the mean
    over batches of each batch's mean, so that it depends on how the clips fell into batches.
    """
    loss_sum, correct, rows = (np.asarray(x) for x in counts)
    total = np.where(rows > 0, rows, np.nan)
    losses, accuracies = loss_sum.astype(np.float64) / total, correct / total
    per_head = {}
    for head, loss, accuracy in zip(heads, losses, accuracies, strict=True):
        per_head |= {f"loss_{head}": float(loss), f"accuracy_{head}": float(accuracy)}
    loss = sum(alpha * float(x) for alpha, x in zip(alphas, losses, strict=True))
    return {**per_head, "loss": loss, "mean_accuracy": float(np.mean(accuracies))}


@dataclasses.dataclass(frozen=True)
class ClipLoss:
    """The loss of clips: the sum over heads of alpha times the head's mean cross-entropy over its labelled rows.

    It is a `train_step.Loss`.

    A batch has `video` uint8[b, t, 128, 171, 3], `crop` int32[b, 2], `flip` bool[b], the labels of each head, int32[b] with
    -1 for a missing one, and `gvf` float32[b, f] if the model reads it.

    Attributes:
      model: the model's configuration.
      labels: the batch's label that each head predicts, such as `("action", "temporal_region")`.
      alphas: the weight of each head's loss.
      dtype: the precision of the activations. Pixels are normalized in float32 or wider.
      remat: whether the backward pass computes the activations within blocks again, to save memory.
      prepare: returns the normalized clips of a batch in a dtype; it is called for each part of the batch. None makes them of
        `video`, `crop` and `flip`, as the backbone's preprocessing asks.
    """

    model: tsp.ModelConfig
    labels: tuple[str, ...]
    alphas: tuple[float, ...]
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    prepare: Prepare | None = None

    def __post_init__(self):
        expected = len(self.model.label_counts)
        if not expected or not len(self.labels) == len(self.alphas) == expected:
            raise ValueError(
                f"a model of {expected} heads ({', '.join(self.model.head_names) or 'none'}) trains with one label and one "
                f"alpha a head; got labels {tuple(self.labels)} and alphas {tuple(self.alphas)}"
            )

    def inputs(self, batch: train_step.Batch) -> train_step.Batch:
        """Returns the batch without what this model does not read: other labels, and the global video feature."""
        unread = set(LABELS) - set(self.labels)
        unread = unread if self.model.gvf else unread | {"gvf"}
        return {key: rows for key, rows in batch.items() if key not in unread}

    def divisors(self, batch: train_step.Batch) -> list[Array]:
        """Returns the number of labelled rows of each head."""
        return [labelled(batch[name]) for name in self.labels]

    def __call__(
        self, variables: train_step.Variables, part: train_step.Batch, divisors: Any, axes: tuple[str, ...]
    ) -> tuple[Float[Array, ""], tuple[train_step.Variables, Counts]]:
        """Returns the part's share of the loss, the batch statistics after it, and its counts: see `train_step.Loss`."""
        clips = self._clips(part)
        _, logits, batch_stats = tsp.train(
            self.model, variables, clips, part.get("gvf"), dtype=self.dtype, remat=self.remat, axes=axes
        )
        labels = [part[name] for name in self.labels]
        totals = [cross_entropy_sum(x, y) for x, y in zip(logits, labels, strict=True)]
        means = [mean(total, n) for total, n in zip(totals, divisors, strict=True)]
        loss = weighted_sum(means, self.alphas)
        return loss, ({"batch_stats": batch_stats}, count(totals, logits, labels))

    def evaluate(self, variables: train_step.Variables, batch: train_step.Batch) -> Counts:
        """Returns the counts of a batch in evaluation mode. Rows whose labels are -1 count nowhere."""
        batch = self.inputs(batch)
        clips, labels = self._clips(batch), [batch[name] for name in self.labels]
        _, logits = tsp.evaluate(self.model, variables, clips, batch.get("gvf"), dtype=self.dtype)
        totals = [cross_entropy_sum(x, y) for x, y in zip(logits, labels, strict=True)]
        return count(totals, logits, labels)

    def _clips(self, batch: train_step.Batch) -> Float[Array, "b t h w 3"]:
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        if self.prepare is not None:
            return self.prepare(batch, dtype)
        preprocessing = self.model.spec.preprocessing
        return transforms.augment(batch["video"], batch["crop"], batch["flip"], dtype, preprocessing)


def accuracies(metrics: Mapping[str, Any], labels: Sequence[str]) -> str:
    """Returns the accuracy of each head in percent as text, without those that are None.

    Args:
      metrics: what `summarize` returns.
      labels: what each head predicts.
    """
    shown = {label: metrics[f"accuracy_{label}"] for label in labels}
    return "accuracy " + " ".join(f"{label} {value:.1%}" for label, value in shown.items() if value is not None)


def result(metrics: Mapping[str, Any], labels: Sequence[str]) -> str:
    """Returns an evaluation as a line of the original's results.txt, with accuracies in percent.

    Args:
      metrics: what `summarize` returns, and the `epoch`, counted from 0.
      labels: what each head predicts.
    """

    def number(value: float | None, scale: float = 1) -> str:
        return f"{math.nan if value is None else value * scale:.3f}"

    heads = "".join(
        f" <{label.replace('_', '-')}-label> Accuracy {number(metrics[f'accuracy_{label}'], 100)} "
        f"Loss {number(metrics[f'loss_{label}'])};"
        for label in labels
    )
    total, accuracy = number(metrics["loss"]), number(metrics["mean_accuracy"], 100)
    return f"** Valid Epoch {metrics['epoch']}: {heads} Total Loss {total} Avg Accuracy {accuracy}"


def _log_likelihood(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Returns the log-probability of each row's label, and that of class 0 for a row without a label."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[:, None], axis=-1)[:, 0]
