"""Tests of the losses, against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsp_jax.training import losses


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
        # Two programs for the same float64 sums.
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
    assert losses.weighted_sum([jnp.asarray(3.0), jnp.asarray(5.0)], (0.5, 2.0)) == 11.5
    with pytest.raises(ValueError, match="shorter"):
        losses.weighted_sum([jnp.asarray(3.0)], (0.5, 2.0))


def mean_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss of one head over a whole batch."""
    return losses.mean(losses.cross_entropy_sum(logits, labels), losses.labelled(labels))
