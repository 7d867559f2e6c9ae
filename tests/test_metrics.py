"""Tests of the metrics: what they count, and that batches may be cut anywhere."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from tsp_jax.training import losses, metrics

HEADS = ("action", "temporal_region")


def counts_of(rows: slice) -> metrics.Counts:
    """Counts of some of 50 clips with two heads; most have no action label, some no temporal region."""
    random = np.random.RandomState(0)
    logits = [jnp.asarray(random.standard_normal((50, classes)), jnp.float32)[rows] for classes in (4, 2)]
    labels = [jnp.asarray(np.maximum(random.randint(-low, high, 50), -1))[rows] for low, high in ((6, 4), (1, 2))]
    sums = [losses.cross_entropy_sum(x, y) for x, y in zip(logits, labels, strict=True)]
    return metrics.count(sums, logits, labels)


def test_accuracy_counts_the_labelled_clips_alone() -> None:
    logits = [jnp.array([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0], [1.0, 2.0]])]
    counts = metrics.count([jnp.asarray(6.0)], logits, [jnp.array([0, 1, -1, 1])])
    assert metrics.summarize(counts, ["action"], [0.5]) == {
        "loss_action": 2.0,
        "accuracy_action": pytest.approx(2 / 3),
        "loss": 1.0,
        "mean_accuracy": pytest.approx(2 / 3),
    }


@pytest.mark.parametrize("cuts", [(25,), (7, 11, 40), (1,), (49,)])
def test_sums_do_not_depend_on_where_batches_are_cut(cuts: tuple[int, ...]) -> None:
    batches = [counts_of(slice(*ends)) for ends in zip((0, *cuts), (*cuts, 50), strict=True)]
    whole, parts = counts_of(slice(0, 50)), functools.reduce(metrics.add, batches)
    np.testing.assert_array_equal(parts.correct, whole.correct)
    np.testing.assert_array_equal(parts.labelled, whole.labelled)
    found, expected = (metrics.summarize(counts, HEADS, (1.0, 2.0)) for counts in (parts, whole))
    # The losses are float32 sums in another order.
    assert found == pytest.approx(expected, rel=1e-6)


def test_means_are_of_heads_and_not_of_clips() -> None:
    counts = metrics.Counts(np.array([4.0, 90.0]), np.array([2, 30]), np.array([4, 90]))
    summary = metrics.summarize(counts, HEADS, (1.0, 0.5))
    assert summary["mean_accuracy"] == pytest.approx((2 / 4 + 30 / 90) / 2)
    assert summary["loss"] == pytest.approx(1.5)


def test_head_without_a_labelled_clip_has_no_accuracy() -> None:
    counts = metrics.Counts(np.array([0.0, 2.0]), np.array([0, 1]), np.array([0, 2]))
    summary = metrics.summarize(counts, HEADS, (1.0, 1.0))
    assert math.isnan(summary["accuracy_action"]) and math.isnan(summary["mean_accuracy"])
    assert summary["accuracy_temporal_region"] == 0.5


def test_host_sums_keep_what_float32_would_lose() -> None:
    large = metrics.Counts(np.array([2.0**25]), np.array([2**31 - 1]), np.array([2**31 - 1]))
    one = metrics.Counts(jnp.ones(1, jnp.float32), jnp.ones(1, jnp.int32), jnp.ones(1, jnp.int32))
    total = metrics.add(metrics.to_host(large), metrics.to_host(one))
    assert [int(x[0]) for x in total] == [2**25 + 1, 2**31, 2**31]
