"""Tests of the losses, against PyTorch's, and of the counts, whose batches may be cut anywhere."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsp_jax.training import classification, sums

HEADS = ("action", "temporal_region")


def counts_of(rows: slice) -> classification.Counts:
    """Returns counts of some of 50 clips with two heads. Most have no action label, and some no temporal region."""
    random = np.random.RandomState(0)
    logits = [jnp.asarray(random.standard_normal((50, classes)), jnp.float32)[rows] for classes in (4, 2)]
    labels = [jnp.asarray(np.maximum(random.randint(-low, high, 50), -1))[rows] for low, high in ((6, 4), (1, 2))]
    totals = [classification.cross_entropy_sum(x, y) for x, y in zip(logits, labels, strict=True)]
    return classification.count(totals, logits, labels)


def test_accuracy_counts_the_labelled_clips_alone() -> None:
    logits = [jnp.array([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0], [1.0, 2.0]])]
    counts = classification.count([jnp.asarray(6.0)], logits, [jnp.array([0, 1, -1, 1])])
    assert classification.summarize(counts, ["action"], [0.5]) == {
        "loss_action": 2.0,
        "accuracy_action": pytest.approx(2 / 3),
        "loss": 1.0,
        "mean_accuracy": pytest.approx(2 / 3),
    }


@pytest.mark.parametrize("cuts", [(25,), (7, 11, 40), (1,), (49,)])
def test_sums_do_not_depend_on_where_batches_are_cut(cuts: tuple[int, ...]) -> None:
    batches = [counts_of(slice(*ends)) for ends in zip((0, *cuts), (*cuts, 50), strict=True)]
    whole, parts = counts_of(slice(0, 50)), functools.reduce(sums.add, batches, classification.zero(2))
    np.testing.assert_array_equal(parts.correct, whole.correct)
    np.testing.assert_array_equal(parts.labelled, whole.labelled)
    found, expected = (classification.summarize(counts, HEADS, (1.0, 2.0)) for counts in (parts, whole))
    # The tolerance is for float32 sums in another order.
    assert found == pytest.approx(expected, rel=1e-6)


def test_means_are_of_heads_and_not_of_clips() -> None:
    counts = classification.Counts(np.array([4.0, 90.0]), np.array([2, 30]), np.array([4, 90]))
    summary = classification.summarize(counts, HEADS, (1.0, 0.5))
    assert summary["mean_accuracy"] == pytest.approx((2 / 4 + 30 / 90) / 2)
    assert summary["loss"] == pytest.approx(1.5)


def test_head_without_a_labelled_clip_has_no_accuracy() -> None:
    counts = classification.Counts(np.array([0.0, 2.0]), np.array([0, 1]), np.array([0, 2]))
    summary = classification.summarize(counts, HEADS, (1.0, 1.0))
    assert math.isnan(summary["accuracy_action"]) and math.isnan(summary["mean_accuracy"])
    assert summary["accuracy_temporal_region"] == 0.5


def test_host_sums_keep_what_float32_would_lose() -> None:
    large = classification.Counts(np.array([2.0**25]), np.array([2**31 - 1]), np.array([2**31 - 1]))
    one = classification.Counts(jnp.ones(1, jnp.float32), jnp.ones(1, jnp.int32), jnp.ones(1, jnp.int32))
    total = sums.add(large, one)
    assert [int(x[0]) for x in total] == [2**25 + 1, 2**31, 2**31]


@pytest.mark.torch
def test_mean_over_labelled_rows_and_its_gradient_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    random = np.random.RandomState(0)
    logits, labels = 5 * random.standard_normal((6, 7)), np.array([3, -1, 0, 6, -1, 3])
    theirs = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(theirs, torch.tensor(labels), ignore_index=-1)
    expected.backward()
    with jax.enable_x64(True):
        found, gradient = jax.value_and_grad(mean_loss)(jnp.asarray(logits), jnp.asarray(labels, jnp.int32))
        # The tolerance is for two programs that compute the same sums in float64.
        np.testing.assert_allclose(found, expected.item(), rtol=1e-13)
        np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-15)


def test_batch_without_labels_has_loss_and_gradient_of_exactly_0() -> None:
    logits, labels = 100 * jnp.asarray(np.random.RandomState(0).standard_normal((4, 3))), jnp.full(4, -1)
    loss, gradient = jax.value_and_grad(mean_loss)(logits, labels)
    assert loss == 0
    np.testing.assert_array_equal(gradient, 0)


def test_rows_without_label_leave_loss_and_gradient_as_they_are() -> None:
    logits = jnp.asarray(np.random.RandomState(0).standard_normal((4, 3)))
    few, some = (jax.value_and_grad(mean_loss) for _ in range(2))
    loss, gradient = some(logits, jnp.array([2, -1, 0, -1]))
    expected, expected_gradient = few(logits[::2], jnp.array([2, 0]))
    assert loss == expected
    np.testing.assert_array_equal(gradient[::2], expected_gradient)
    np.testing.assert_array_equal(gradient[1::2], 0)


def test_loss_of_improbable_label_is_finite() -> None:
    loss, gradient = jax.value_and_grad(mean_loss)(jnp.array([[1e4, -1e4]]), jnp.array([1]))
    assert loss == 2e4
    np.testing.assert_array_equal(gradient, [[1, -1]])


def test_heads_are_weighted_by_alpha() -> None:
    assert classification.weighted_sum([jnp.asarray(3.0), jnp.asarray(5.0)], (0.5, 2.0)) == 11.5
    with pytest.raises(ValueError, match="shorter"):
        classification.weighted_sum([jnp.asarray(3.0)], (0.5, 2.0))


def mean_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the loss of one head over a whole batch."""
    return classification.mean(classification.cross_entropy_sum(logits, labels), classification.labelled(labels))
