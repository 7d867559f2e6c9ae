"""Tests of the schedule, and of the updates against PyTorch's SGD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsp_jax.training import encoder_task, optim

SHAPES = {
    "features": {"stem": {"0": {"weight": (2, 3)}}, "layer1": {"0": {"bias": (3,)}}, "layer4": {"0": {"weight": (4,)}}},
    "fc1": {"bias": (2,)},
    "fc2": {"weight": (3, 2)},
}
GROUPS = {
    "features": {
        "stem": {"0": {"weight": "stem"}},
        "layer1": {"0": {"bias": "backbone"}},
        "layer4": {"0": {"weight": "backbone"}},
    },
    "fc1": {"bias": "fc"},
    "fc2": {"weight": "fc"},
}


def sgd(stem_lr: float = 0.0) -> optim.Optimizer:
    rates, schedule = {"stem": stem_lr, "backbone": 0.1, "fc": 0.5}, optim.warmup_multistep(3, (5, 8), 0.01)
    return optim.sgd(rates, encoder_task.group_of, schedule, momentum=0.9, weight_decay=0.005)


def draw(seed: int) -> optim.Params:
    random = np.random.RandomState(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(random.standard_normal(shape)), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )


@pytest.mark.parametrize(
    ("step", "factor"),
    # Computed by hand from the original's formula: 1e-5 (1 - i/3) + i/3, and a hundredth of it after each of 5 and 8.
    [(0, 1e-5), (1, 0.33334), (2, 0.66667), (3, 1), (4, 1), (5, 1e-2), (7, 1e-2), (8, 1e-4), (100, 1e-4)],
)
def test_schedule_warms_up_and_steps_down_at_the_milestones(step: int, factor: float) -> None:
    schedule = optim.warmup_multistep(3, (5, 8), 0.01)
    with jax.enable_x64(True):
        assert schedule(step) == pytest.approx(factor, rel=1e-12)
    assert schedule(step) == pytest.approx(factor, rel=1e-6)


def test_schedule_without_warm_up_starts_at_full_rate() -> None:
    assert optim.warmup_multistep(0, (), 0.01)(0) == 1


def test_milestone_within_the_warm_up_counts() -> None:
    assert optim.warmup_multistep(4, (2,), 0.1)(2) == pytest.approx(0.1 * (0.5e-5 + 0.5))


def test_each_parameter_belongs_to_a_group() -> None:
    assert encoder_task.group_of(draw(0)) == GROUPS


@pytest.mark.torch
@pytest.mark.parametrize("stem_lr", [0.0, 0.2])
def test_updates_are_those_of_torch(stem_lr: float) -> None:
    torch = pytest.importorskip("torch")
    with jax.enable_x64(True):
        params = draw(0)
        theirs = jax.tree.map(lambda leaf: torch.nn.Parameter(torch.tensor(np.array(leaf))), params)
        by_group = dict(zip(jax.tree.leaves(theirs), jax.tree.leaves(GROUPS), strict=True))
        rates = {"stem": stem_lr, "backbone": 0.1, "fc": 0.5}
        groups = [{"params": [p for p, g in by_group.items() if g == name], "lr": rate} for name, rate in rates.items()]
        reference = torch.optim.SGD(groups, lr=0.0, momentum=0.9, weight_decay=0.005)
        factors = [1e-5, 1e-5 * 2 / 3 + 1 / 3, 1e-5 / 3 + 2 / 3, 1, 1, 0.01, 0.01, 0.01, 1e-4]
        schedule = torch.optim.lr_scheduler.LambdaLR(reference, lambda step: factors[min(step, 8)])
        optimizer = sgd(stem_lr)
        state = optimizer.init(params)
        for step in range(9):
            grads = draw(step + 1)
            for parameter, gradient in zip(jax.tree.leaves(theirs), jax.tree.leaves(grads), strict=True):
                parameter.grad = torch.tensor(np.array(gradient))
            found = optimizer.learning_rates(step)
            assert [float(found[name]) for name in rates] == pytest.approx(schedule.get_last_lr(), rel=1e-12)
            reference.step()
            schedule.step()
            params, state = optimizer.update(params, optimizer.split(grads)[0], state)
        for ours, parameter in zip(jax.tree.leaves(params), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(ours, parameter.detach().numpy(), rtol=1e-12, atol=1e-14)


def test_split_takes_the_frozen_stem_out_and_merge_puts_it_back() -> None:
    params = draw(0)
    trainable, frozen = sgd().split(params)
    assert frozen == {"features": {"stem": params["features"]["stem"]}}
    assert trainable["features"].keys() == {"layer1", "layer4"}
    assert jax.tree.structure(optim.merge(trainable, frozen)) == jax.tree.structure(params)
    everything, nothing = sgd(1.0).split(params)
    assert nothing == {} and everything == params


def test_optimizer_keeps_no_buffer_for_the_frozen_stem() -> None:
    def buffers(optimizer: optim.Optimizer) -> int:
        return sum(leaf.ndim > 0 for leaf in jax.tree.leaves(optimizer.init(draw(0))))

    assert buffers(sgd()) == 4
    assert buffers(sgd(1.0)) == 5


@pytest.mark.torch
def test_adamw_with_clipping_and_groups_without_decay_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    with jax.enable_x64(True):
        params = draw(0)
        theirs = jax.tree.map(lambda leaf: torch.nn.Parameter(torch.tensor(np.array(leaf))), params)
        by_group = dict(zip(jax.tree.leaves(theirs), jax.tree.leaves(GROUPS), strict=True))
        rates = {"stem": 1e-3, "backbone": 1e-2, "fc": 1e-1}
        groups = [
            {
                "params": [p for p, g in by_group.items() if g == name],
                "lr": rate,
                "weight_decay": 0.0 if name == "fc" else 0.05,
            }
            for name, rate in rates.items()
        ]
        reference = torch.optim.AdamW(groups)
        # Computed by hand: two iterations of warm-up from 0, then half a cosine over six.
        factors = [0, 0.5, *((1 + np.cos(np.pi * share / 6)) / 2 for share in range(6))]
        schedule = torch.optim.lr_scheduler.LambdaLR(reference, lambda step: factors[min(step, 7)])
        optimizer = optim.adamw(
            rates,
            encoder_task.group_of,
            optim.warmup_cosine(2, 8),
            weight_decay=0.05,
            no_decay=frozenset({"fc"}),
            clip_norm=1.0,
        )
        state = optimizer.init(params)
        for step in range(8):
            grads = draw(step + 1)
            for parameter, gradient in zip(jax.tree.leaves(theirs), jax.tree.leaves(grads), strict=True):
                parameter.grad = torch.tensor(np.array(gradient))
            torch.nn.utils.clip_grad_norm_(jax.tree.leaves(theirs), 1.0)
            reference.step()
            schedule.step()
            params, state = optimizer.update(params, grads, state)
        for ours, parameter in zip(jax.tree.leaves(params), jax.tree.leaves(theirs), strict=True):
            # PyTorch adds 1e-6 to the norm that it clips by.
            np.testing.assert_allclose(ours, parameter.detach().numpy(), rtol=1e-5, atol=1e-7)


def test_moving_average_is_of_the_parameters() -> None:
    old, new = {"a": jnp.asarray(1.0)}, {"a": jnp.asarray(3.0)}
    assert float(optim.moving_average(old, new, 0.75)["a"]) == 0.75 * 1 + 0.25 * 3
