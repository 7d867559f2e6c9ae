"""The optimizer: SGD in three groups, stem, backbone and heads, under a linear warm-up and steps down."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

GROUPS = ("stem", "backbone", "fc")
WARMUP_START = 1e-5  # share of the learning rate at iteration 0

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer of the parameters that move.

    Attributes:
      transform: an optax transformation of the trainable parameters alone.
      base_rates: learning rate of each of GROUPS before the schedule; the schedule multiplies all of them.
      schedule: iteration, int32, to the factor on the learning rates.
    """

    transform: optax.GradientTransformation
    base_rates: dict[str, float]
    schedule: Callable[[Int[Array, ""] | int], Float[Array, ""]]

    def split(self, params: Params) -> tuple[Params, Params]:
        """The parameters that move, and the frozen ones: those of groups whose learning rate is 0. No gradient is due them."""
        groups = jax.tree.map(lambda group: self.base_rates[group] != 0, group_of(params))
        return _filter(params, groups, True), _filter(params, groups, False)

    def init(self, params: Params) -> Any:
        """The optimizer's state before the first update, of all parameters; it is about the trainable ones alone."""
        return self.transform.init(self.split(params)[0])

    def update(self, params: Params, grads: Params, state: Any) -> tuple[Params, Any]:
        """The parameters and the state after an update by the trainable parameters' gradients."""
        trainable, frozen = self.split(params)
        updates, state = self.transform.update(grads, state, trainable)
        moved: Any = optax.apply_updates(trainable, updates)
        return merge(moved, frozen), state

    def learning_rates(self, step: Int[Array, ""] | int) -> dict[str, Float[Array, ""]]:
        """Each group's learning rate at an iteration, for the log."""
        factor = self.schedule(step)
        return {group: rate * factor for group, rate in self.base_rates.items()}


def sgd(
    *,
    backbone_lr: float,
    fc_lr: float,
    stem_lr: float = 0.0,
    momentum: float = 0.9,
    weight_decay: float = 0.005,
    warmup_steps: int,
    milestones: tuple[int, ...],
    gamma: float = 0.01,
) -> Optimizer:
    """SGD with momentum, weight decay on every parameter, and `warmup_multistep`'s schedule.

    `g += weight_decay * p; buffer = momentum * buffer + g; p -= learning_rate * buffer`, the buffer 0 at first. BatchNorm's
    parameters and biases decay too. `milestones` are iterations.

    Source: TSP, released training code; torch.optim.SGD. Differs: a frozen group has no momentum buffer, which at learning
    rate 0 changes nothing.
    """
    base_rates = {"stem": stem_lr, "backbone": backbone_lr, "fc": fc_lr}
    schedule = warmup_multistep(warmup_steps, milestones, gamma)

    def group_transform(rate: float) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(weight_decay),
            optax.trace(momentum),
            optax.scale_by_learning_rate(lambda step: rate * schedule(jnp.asarray(step))),
        )

    transforms: dict[Hashable, optax.GradientTransformation] = {
        group: group_transform(rate) for group, rate in base_rates.items() if rate != 0
    }
    return Optimizer(optax.partition(transforms, group_of), base_rates, schedule)


def warmup_multistep(
    warmup_steps: int, milestones: tuple[int, ...], gamma: float
) -> Callable[[Int[Array, ""] | int], Float[Array, ""]]:
    """The factor on every learning rate at iteration i, counted from 0.

    `(1e-5 * (1 - i / W) + i / W)` below W = warmup_steps and 1 from there on, times `gamma ** k` once k milestones are
    reached. Source: TSP, released scheduler, which torchvision's video references share.
    """

    def factor(step: Int[Array, ""] | int) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.int32)
        share = jnp.minimum(step.astype(jnp.result_type(float)) / max(warmup_steps, 1), 1)
        warm = jnp.where(step < warmup_steps, WARMUP_START * (1 - share) + share, 1)
        passed = sum((step >= milestone).astype(jnp.int32) for milestone in milestones)
        return warm * gamma ** jnp.asarray(passed, warm.dtype)

    return factor


def norm(tree: Params) -> Float[Array, ""]:
    """L2 norm of all leaves together."""
    return optax.tree.norm(tree)


def group_of(params: Params) -> Params:
    """The same tree with each parameter's group in its place."""

    def name(path: tuple[Any, ...], _: Any) -> str:
        first, second = (getattr(key, "key", "") for key in (*path, None)[:2])
        if first != "features":
            return "fc"
        return "stem" if second == "stem" else "backbone"

    return jax.tree_util.tree_map_with_path(name, params)


def merge(first: Params, second: Params) -> Params:
    """One tree of two that share no leaf: what `Optimizer.split` took apart."""
    both = first.keys() & second.keys()
    return {**first, **second, **{key: merge(first[key], second[key]) for key in both}}


def _filter(tree: Params, keep: Params, value: bool) -> Params:
    """The leaves where `keep` is `value`; branches without any are left out."""
    kept = {}
    for key, branch in tree.items():
        if isinstance(branch, dict):
            branch = _filter(branch, keep[key], value)
            if branch:
                kept[key] = branch
        elif keep[key] == value:
            kept[key] = branch
    return kept
