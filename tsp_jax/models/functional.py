"""The only door between NNX modules and the plain nested dicts that are trained, sharded, saved and converted.

It works for any module whose configuration is a `ModelConfig`. `Variables` is `{"params": {...}, "batch_stats": {...}}`: nested
dicts of arrays whose keys, joined by dots, are state-dict keys of PyTorch. `batch_stats` is empty for a module without
BatchNorm.
"""

import functools
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from tsp_jax.system import trees

Variables = dict[str, Any]


@runtime_checkable
class ModelConfig(Protocol):
    """A frozen, hashable description of a model that suffices to build it: a frozen dataclass.

    Attributes:
      kind: the name of the class of models, by which checkpoints are read again.
    """

    kind: ClassVar[str]

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the module with fresh variables, drawn from the `params` stream."""
        ...

    def __hash__(self) -> int: ...


def init(config: ModelConfig, seed: int) -> Variables:
    """Returns fresh variables, float32. They depend on the configuration and the seed alone."""

    def build(key: Array) -> Variables:
        model = config.build(nnx.Rngs(params=key))
        return {"params": nnx.to_pure_dict(nnx.state(model, nnx.Param)), "batch_stats": batch_stats(model)}

    return jax.jit(build)(jax.random.key(seed))


@functools.lru_cache
def shapes(config: ModelConfig) -> Variables:
    """Returns the variables as `jax.ShapeDtypeStruct`s, without computing them."""
    return jax.eval_shape(lambda: init(config, 0))


def module(config: ModelConfig, variables: Variables) -> nnx.Module:
    """Returns the module that holds these variables.

    The module is a new one, so that its updates leave `variables` as they are. Call this within a pure function.

    Raises:
      ValueError: the variables are not those of the configuration; every missing, unexpected and misshapen leaf is named.
    """
    # nnx.replace_by_pure_dict accepts a missing leaf or another shape silently.
    trees.check_keys(trees.path_shapes(shapes(config)), trees.path_shapes(variables), f"the variables of {config}")
    graph, params, stats = _blueprint(config)
    return nnx.merge(graph, _replace(params, variables["params"]), _replace(stats, variables["batch_stats"]))


def batch_stats(module: nnx.Module) -> dict[str, Any]:
    """Returns the module's batch statistics as nested dicts."""
    return nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


@functools.lru_cache
def _blueprint(config: ModelConfig) -> tuple[Any, Any, Any]:
    """Returns the graph, the parameters and the statistics of the module, as `nnx.split` does."""
    graph, params, stats = nnx.split(nnx.eval_shape(lambda: config.build(nnx.Rngs(0))), nnx.Param, nnx.BatchStat)
    return graph, params, stats


def _replace(state: Any, values: Variables) -> Any:
    state = jax.tree.map(lambda leaf: leaf, state)  # a copy, since the replacement works in place
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, values))  # NumPy arrays would be updated in place
    return state
