"""Losses: cross-entropy over the rows that have a label, and the weighted sum over heads."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

MISSING = -1  # the label of a row without one


def cross_entropy_sum(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Float[Array, ""]:
    """Cross-entropy summed over the labelled rows; rows whose label is -1 add exactly 0, to the gradient too."""
    return -jnp.sum(jnp.where(labels == MISSING, 0, _log_likelihood(logits, labels)))


def labelled(labels: Int[Array, " b"]) -> Int[Array, ""]:
    """The number of rows that have a label, int32."""
    return jnp.sum(labels != MISSING, dtype=jnp.int32)


def mean(total: Float[Array, ""], count: Int[Array, ""]) -> Float[Array, ""]:
    """A mean cross-entropy from its sum; 0 where no row is labelled, as is its gradient.

    Source: TSP, released training code; differs: without any label the original logs 0 (PyTorch 1.4) or NaN (2.x).
    """
    return total / jnp.maximum(count, 1)


def weighted_sum(head_losses: Sequence[Float[Array, ""]], alphas: Sequence[float]) -> Float[Array, ""]:
    """The heads' losses, each times its alpha, added up."""
    return sum((alpha * loss for alpha, loss in zip(alphas, head_losses, strict=True)), start=jnp.zeros(()))


def _log_likelihood(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Log-probability of each row's label; of class 0 where it has none."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[:, None], axis=-1)[:, 0]
