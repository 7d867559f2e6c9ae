"""Metrics of a classifier with several heads: sums and counts, added up over batches and divided once."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num


class Counts(NamedTuple):
    """Sums over clips, one entry a head. `+` of two is not theirs: `add` is.

    Attributes:
      loss_sum: cross-entropy of the labelled clips.
      correct: labelled clips whose highest logit is their label's.
      labelled: clips that have a label.
    """

    loss_sum: Num[Array | np.ndarray, " h"]
    correct: Num[Array | np.ndarray, " h"]
    labelled: Num[Array | np.ndarray, " h"]


def count(
    loss_sums: Sequence[Float[Array, ""]], logits: Sequence[Float[Array, "b _"]], labels: Sequence[Int[Array, " b"]]
) -> Counts:
    """The counts of one batch; label -1 is a missing one. On the device; int32 but for the losses."""
    hits = [jnp.sum((jnp.argmax(x, axis=-1) == y) & (y >= 0), dtype=jnp.int32) for x, y in zip(logits, labels, strict=True)]
    rows = [jnp.sum(y >= 0, dtype=jnp.int32) for y in labels]
    return Counts(jnp.stack(list(loss_sums)), jnp.stack(hits), jnp.stack(rows))


def add(first: Counts, second: Counts) -> Counts:
    """Both batches' counts together, on the device or, for NumPy's, on the host."""
    return Counts(*(a + b for a, b in zip(first, second, strict=True)))


def to_host(counts: Counts) -> Counts:
    """Counts as NumPy's float64 and int64, which an epoch's sums need: float32 would lose the last batches' digits."""
    loss_sum, correct, rows = (np.asarray(x) for x in counts)
    return Counts(loss_sum.astype(np.float64), correct.astype(np.int64), rows.astype(np.int64))


def summarize(counts: Counts, heads: Sequence[str], alphas: Sequence[float]) -> dict[str, float]:
    """What the counts come to.

    Keys: `loss_HEAD` and `accuracy_HEAD` (0 to 1) for each head, over the clips that have its label; `loss`, the heads'
    losses weighted by alpha; `mean_accuracy`, the plain mean of the heads' accuracies. A head without any labelled clip has
    NaN, and so have the means that it takes part in.

    Source: TSP, released training code (accuracies and their mean); differs: the original's validation loss is the mean
    over batches of each batch's mean, so that it depends on how the clips fell into batches.
    """
    loss_sum, correct, rows = to_host(counts)
    total = np.where(rows > 0, rows, np.nan)
    losses, accuracies = loss_sum / total, correct / total
    per_head = {}
    for head, loss, accuracy in zip(heads, losses, accuracies, strict=True):
        per_head |= {f"loss_{head}": float(loss), f"accuracy_{head}": float(accuracy)}
    loss = sum(alpha * float(x) for alpha, x in zip(alphas, losses, strict=True))
    return {**per_head, "loss": loss, "mean_accuracy": float(np.mean(accuracies))}
