"""The only door between NNX modules and the plain nested dicts that are trained, sharded, saved and converted.

`Variables` is `{"params": {...}, "batch_stats": {...}}`: nested dicts of arrays whose keys joined by dots are the state-dict
keys of the released PyTorch checkpoints.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tsp_jax.models import tsp, video_resnet

Variables = dict[str, Any]


def init(config: tsp.ModelConfig, seed: int) -> Variables:
    """Fresh float32 variables, a function of the seed alone."""

    def build(key: Array) -> Variables:
        model = tsp.TSP(config, rngs=nnx.Rngs(params=key))
        return _variables(nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat))

    return jax.jit(build)(jax.random.key(seed))


@functools.lru_cache
def shapes(config: tsp.ModelConfig) -> Variables:
    """The variables as `jax.ShapeDtypeStruct`s; nothing is computed."""
    return jax.eval_shape(lambda: init(config, 0))


def encode(
    config: tsp.ModelConfig,
    variables: Variables,
    clips: Float[Array, "b t h w 3"],
    dtype: jnp.dtype | None = None,
) -> Float[Array, "b f"]:
    """Features in evaluation mode, without the heads, computed in `dtype`. Pure: call it under `jax.jit`."""
    return _module(config, variables).features(clips, train=False, dtype=dtype)


def heads(
    config: tsp.ModelConfig,
    variables: Variables,
    features: Float[Array, "b f"],
    gvf: Float[Array, "b f"] | None = None,
) -> tuple[Float[Array, "b _"], ...]:
    """The heads' logits of features that `encode` gave; those of `evaluate`. Pure."""
    return _module(config, variables).heads(features, gvf)


def evaluate(
    config: tsp.ModelConfig,
    variables: Variables,
    clips: Float[Array, "b t h w 3"],
    gvf: Float[Array, "b f"] | None = None,
    dtype: jnp.dtype | None = None,
) -> tuple[Float[Array, "b f"], tuple[Float[Array, "b _"], ...]]:
    """Features and the heads' logits in evaluation mode, computed in `dtype`. Pure."""
    return _module(config, variables)(clips, gvf, train=False, dtype=dtype)


def train(
    config: tsp.ModelConfig,
    variables: Variables,
    clips: Float[Array, "b t h w 3"],
    gvf: Float[Array, "b f"] | None = None,
    dtype: jnp.dtype | None = None,
    remat: bool = False,
    axes: tuple[str, ...] = (),
) -> tuple[Float[Array, "b f"], tuple[Float[Array, "b _"], ...], Variables]:
    """Features and logits in training mode, computed in `dtype`, and the batch statistics after this batch. Pure.

    With `remat` the backward pass computes the activations within each block again, and memory holds the blocks' inputs
    alone. With `axes`, under `jax.shard_map`, the batch of which statistics are taken is that of all devices along them.
    """
    model = _module(config, variables)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, video_resnet.BatchNorm):
            module.axes = axes
    features, logits = model(clips, gvf, train=True, dtype=dtype, remat=remat)
    return features, logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


@functools.lru_cache
def _blueprint(config: tsp.ModelConfig) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    model = nnx.eval_shape(lambda: tsp.TSP(config, rngs=nnx.Rngs(0)))
    graph, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, params, batch_stats


def _module(config: tsp.ModelConfig, variables: Variables) -> tsp.TSP:
    # nnx.replace_by_pure_dict takes a missing leaf or another shape in silence: names and shapes are compared here.
    expected, found = _leaf_shapes(shapes(config)), _leaf_shapes(variables)
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        lines = [f"{key}: expected {expected.get(key, 'none')}, found {found.get(key, 'none')}" for key in wrong[:10]]
        message = f"these variables are not those of {config}: {len(wrong)} leaves differ"
        raise ValueError("\n  ".join([message, *lines, *["…"] * (len(wrong) > len(lines))]))
    graph, params, batch_stats = _blueprint(config)
    return nnx.merge(graph, _replace(params, variables["params"]), _replace(batch_stats, variables["batch_stats"]))


def _replace(state: nnx.State, values: Variables) -> nnx.State:
    state = jax.tree.map(lambda leaf: leaf, state)  # a copy: replacing works in place
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, values))  # NumPy arrays would be updated in place
    return state


def _leaf_shapes(variables: Variables) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}


def _variables(params: nnx.State, batch_stats: nnx.State) -> Variables:
    return {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(batch_stats)}
