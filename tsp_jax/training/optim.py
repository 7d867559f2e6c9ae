"""Optimizers: SGD and AdamW for groups of parameters, and their schedules. The only door to optax."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

WARMUP_START = 1e-5  # the share of the learning rate at iteration 0 of `warmup_multistep`

Params = dict[str, Any]
Step = Int[Array, ""] | int
Schedule = Callable[[Any], Float[Array, ""]]  # a function from the iteration, an int or int32[], to a factor
GroupOf = Callable[[Params], Params]  # a function to the tree that has each parameter's group in the parameter's place


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer of the parameters that move.

    Attributes:
      transform: an optax transformation of the trainable parameters alone.
      base_rates: each group's learning rate before the schedule; a group with rate 0 is frozen.
      schedule: a function from the iteration, int32, to the factor on all learning rates.
      group_of: the function that names each parameter's group.
    """

    transform: optax.GradientTransformation
    base_rates: dict[str, float]
    schedule: Schedule
    group_of: GroupOf

    def split(self, params: Params) -> tuple[Params, Params]:
        """Returns the parameters that move, and the frozen ones, which need no gradient."""
        moves = jax.tree.map(lambda group: self.base_rates[group] != 0, self.group_of(params))
        return _filter(params, moves, True), _filter(params, moves, False)

    def init(self, params: Params) -> Any:
        """Returns the state before the first update; it has entries for the trainable parameters alone."""
        return self.transform.init(self.split(params)[0])

    def update(self, params: Params, grads: Params, state: Any) -> tuple[Params, Any]:
        """Returns parameters and state after one update by the gradients of the trainable parameters."""
        trainable, frozen = self.split(params)
        updates, state = self.transform.update(grads, state, trainable)
        moved: Any = optax.apply_updates(trainable, updates)
        return merge(moved, frozen), state

    def learning_rates(self, step: Step) -> dict[str, Float[Array, ""]]:
        """Returns each group's learning rate at an iteration."""
        factor = self.schedule(step)
        return {group: rate * factor for group, rate in self.base_rates.items()}


def sgd(
    rates: Mapping[str, float], group_of: GroupOf, schedule: Schedule, *, momentum: float = 0.9, weight_decay: float = 0.0
) -> Optimizer:
    """Returns SGD with momentum, and weight decay on every parameter, including biases and those of BatchNorm.

    `g += weight_decay * p; buffer = momentum * buffer + g; p -= rate * schedule(step) * buffer`; the buffer is 0 at first.

    Source: torch.optim.SGD. Differs: a frozen group has no momentum buffer, which changes nothing at learning rate 0.
    """

    def of_group(group: str, rate: float) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(weight_decay), optax.trace(momentum), optax.scale_by_learning_rate(_times(rate, schedule))
        )

    return Optimizer(_by_group(of_group, rates, group_of), dict(rates), schedule, group_of)


def adamw(
    rates: Mapping[str, float],
    group_of: GroupOf,
    schedule: Schedule,
    *,
    weight_decay: float = 0.0,
    no_decay: frozenset[str] = frozenset(),
    clip_norm: float | None = None,
) -> Optimizer:
    """Returns AdamW (b1 0.9, b2 0.999, eps 1e-8) with decoupled weight decay.

    Args:
      rates: each group's learning rate.
      group_of: the function that names each parameter's group.
      schedule: the factor on all learning rates.
      weight_decay: the decay of each step is `rate * weight_decay * p`.
      no_decay: the groups without weight decay, such as biases and norms.
      clip_norm: gradients are scaled down to this L2 norm, taken over all trainable parameters; None does not clip.

    Source: torch.optim.AdamW; torch.nn.utils.clip_grad_norm_.
    """

    def of_group(group: str, rate: float) -> optax.GradientTransformation:
        return optax.adamw(_times(rate, schedule), weight_decay=0.0 if group in no_decay else weight_decay)

    transform = _by_group(of_group, rates, group_of)
    if clip_norm is not None:
        transform = optax.chain(optax.clip_by_global_norm(clip_norm), transform)
    return Optimizer(transform, dict(rates), schedule, group_of)


def warmup_multistep(warmup_steps: int, milestones: tuple[int, ...], gamma: float) -> Schedule:
    """Returns the factor on every learning rate at iteration i, counted from 0.

    It is `(1e-5 * (1 - i / W) + i / W)` below W = warmup_steps and 1 from there on, times `gamma ** k` once k milestones (in
    iterations) are reached.

    Source: TSP, released scheduler, which torchvision's video references share.
    """

    def factor(step: Step) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.int32)
        share = jnp.minimum(step.astype(jnp.result_type(float)) / max(warmup_steps, 1), 1)
        warm = jnp.where(step < warmup_steps, WARMUP_START * (1 - share) + share, 1)
        passed = sum((step >= milestone).astype(jnp.int32) for milestone in milestones)
        return warm * gamma ** jnp.asarray(passed, warm.dtype)

    return factor


def warmup_cosine(warmup_steps: int, total_steps: int) -> Schedule:
    """Returns the factor on every learning rate at iteration i.

    It is `i / W` below W = warmup_steps, and then half a cosine from 1 to 0.
    """

    def factor(step: Step) -> Float[Array, ""]:
        at = jnp.asarray(step, jnp.result_type(float))
        share = jnp.clip((at - warmup_steps) / max(total_steps - warmup_steps, 1), 0, 1)
        return jnp.where(at < warmup_steps, at / max(warmup_steps, 1), (1 + jnp.cos(math.pi * share)) / 2)

    return factor


def moving_average(average: Params, params: Params, decay: float) -> Params:
    """Returns `decay * average + (1 - decay) * params`, leaf by leaf."""
    moved: Any = optax.incremental_update(params, average, 1 - decay)
    return moved


def norm(tree: Params) -> Float[Array, ""]:
    """Returns the L2 norm of all leaves together."""
    return optax.tree.norm(tree)


def merge(first: Params, second: Params) -> Params:
    """Returns one tree from two that share no leaf, such as the two that `Optimizer.split` returned."""
    both = first.keys() & second.keys()
    return {**first, **second, **{key: merge(first[key], second[key]) for key in both}}


def _times(rate: float, schedule: Schedule) -> Schedule:
    return lambda step: rate * schedule(jnp.asarray(step))


def _by_group(
    of_group: Callable[[str, float], optax.GradientTransformation], rates: Mapping[str, float], group_of: GroupOf
) -> optax.GradientTransformation:
    transforms: dict[Hashable, optax.GradientTransformation] = {
        group: of_group(group, rate) for group, rate in rates.items() if rate != 0
    }
    return optax.partition(transforms, group_of)


def _filter(tree: Params, keep: Params, value: bool) -> Params:
    """Returns the leaves where `keep` is `value`; branches without any are left out."""
    kept = {}
    for key, branch in tree.items():
        if isinstance(branch, dict):
            branch = _filter(branch, keep[key], value)
            if branch:
                kept[key] = branch
        elif keep[key] == value:
            kept[key] = branch
    return kept
