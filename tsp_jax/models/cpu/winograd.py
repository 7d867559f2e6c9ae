"""Computes convolutions of three taps along an axis with half the products, by Winograd's minimal filtering.

The result is exact but for rounding. F(4, 3) computes four outputs along the axis from six products, where the definition needs
twelve. A factor of a product is a sum of inputs or a sum of taps, and the outputs are sums of the products. A product here is a
whole convolution over the other axes and the channels. The gradient of the taps is that of these three linear maps: it takes
six products of sums of inputs and sums of the output's gradient.

Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks".
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

TAPS, OUTPUTS = 3, 4
# The outputs are `_TO_OUTPUTS @ ((_OF_TAPS @ taps) * (_OF_INPUTS @ inputs))`. Toom and Cook's, for the points 0, ±3/4, ±3/2 and
# infinity: they add twice the rounding of a plain product; 0, ±1, ±2 and infinity, which are the common ones, three times.
_OF_INPUTS = np.array(
    [
        [81 / 64, 0, -45 / 16, 0, 1, 0],
        [0, -27 / 16, -9 / 4, 3 / 4, 1, 0],
        [0, 27 / 16, -9 / 4, -3 / 4, 1, 0],
        [0, -27 / 32, -9 / 16, 3 / 2, 1, 0],
        [0, 27 / 32, -9 / 16, -3 / 2, 1, 0],
        [0, 81 / 64, 0, -45 / 16, 0, 1],
    ]
)
_OF_TAPS = np.array(
    [
        [64 / 81, 0, 0],
        [-128 / 243, -32 / 81, -8 / 27],
        [-128 / 243, 32 / 81, -8 / 27],
        [32 / 243, 16 / 81, 8 / 27],
        [32 / 243, -16 / 81, 8 / 27],
        [0, 0, 1],
    ]
)
_TO_OUTPUTS = np.array(
    [
        [1, 1, 1, 1, 1, 0],
        [0, 3 / 4, -3 / 4, 3 / 2, -3 / 2, 0],
        [0, 9 / 16, 9 / 16, 9 / 4, 9 / 4, 0],
        [0, 27 / 64, -27 / 64, 27 / 8, -27 / 8, 1],
    ]
)


def convolve(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt kh kw c c2"],
    axis: int,
    block: Sequence[int],
    inner: Callable[[Array, Array], Array],
) -> Float[Array, "b t h w c2"]:
    """Returns the convolution of stride 1, padded by half its kernel.

    Args:
      x: the input.
      kernel: the kernel, three taps long along the axis.
      axis: the axis of `x` that is filtered: 1, 2 or 3.
      block: sizes along `b t h w` of what is made at a time: divisors of those of `x`, whole where the kernel has several taps.
      inner: the same for kernels of one tap along the axis, of which it is called six times a block.
    """
    taps = [lax.slice_in_dim(kernel, i, i + 1, axis=axis - 1) for i in range(TAPS)]
    kernels = [_sum(of_k, taps) for of_k in _OF_TAPS]

    def of_block(x: Array) -> list[Array]:
        inputs = _every_fourth(x, axis)
        products = [inner(_sum(of_x, inputs), of_k) for of_x, of_k in zip(_OF_INPUTS, kernels, strict=True)]
        return [_sum(weights, products) for weights in _TO_OUTPUTS]

    def add_block(i: Array, outputs: Array) -> Array:
        start = _start(x, block, i)
        for place, found in enumerate(of_block(_cut(x, start, block))):
            where = (*start[:axis], 0, place, *start[axis + 1 :], 0)
            outputs = lax.dynamic_update_slice(outputs, jnp.expand_dims(found, axis + 1), where)
        return outputs

    count = _count(x, block)
    if count == 1:
        outputs = jnp.stack(of_block(x), axis + 1)  # one pass over the products, which the loop leaves to the cache
    else:
        shape = (*x.shape[:axis], _tiles(x, axis), OUTPUTS, *x.shape[axis + 1 : -1], kernel.shape[-1])
        outputs = lax.fori_loop(0, count, add_block, jnp.zeros(shape, x.dtype))
    outputs = outputs.reshape(*outputs.shape[:axis], -1, *outputs.shape[axis + 2 :])
    return lax.slice_in_dim(outputs, 0, x.shape[axis], axis=axis)


def kernel_gradient(
    x: Float[Array, "b t h w c"],
    gradient: Float[Array, "b t h w c2"],
    axis: int,
    block: Sequence[int],
    inner: Callable[[Array, Array], Array],
) -> Float[Array, "c2 kt kh kw c"]:
    """Returns the gradient of `convolve`'s kernel, output channels first.

    Args:
      x: the input of the convolution.
      gradient: the gradient of its output.
      axis: the axis along which it was filtered.
      block: as in `convolve`.
      inner: the same for kernels of one tap along the axis, of which it is called six times a block.
    """

    def of_block(i: Array | int) -> list[Array]:
        start = _start(x, block, i)
        inputs, outputs = (_every_fourth(_cut(array, start, block), axis) for array in (x, gradient))
        outputs = outputs[TAPS // 2 : TAPS // 2 + OUTPUTS]  # without the neighbours
        return [inner(_sum(of_x, inputs), _sum(of_y, outputs)) for of_x, of_y in zip(_OF_INPUTS, _TO_OUTPUTS.T, strict=True)]

    def add_block(i: Array, total: list[Array]) -> list[Array]:
        return jax.tree.map(jnp.add, total, of_block(i))

    nothing = [jnp.zeros(product.shape, product.dtype) for product in jax.eval_shape(of_block, 0)]
    products = lax.fori_loop(0, _count(x, block), add_block, nothing)
    return jnp.concatenate([_sum(weights, products) for weights in _OF_TAPS.T], axis)


def _every_fourth(x: Array, axis: int) -> list[Array]:
    """Returns six arrays of every fourth place along the axis: array i has, for each tile of four, the place i - 1 of the tile.

    So they range from the place before a tile to the one after it. They are cut from a padded copy, because XLA would cut them
    again within each sum otherwise, which takes twice the time.
    """
    tiles, places = _tiles(x, axis), OUTPUTS + TAPS - 1
    around = [(0, 0)] * x.ndim
    around[axis] = (TAPS // 2, (tiles - 1) * OUTPUTS + places - TAPS // 2 - x.shape[axis])
    x = jnp.pad(x, around)
    return [lax.slice_in_dim(x, i, i + (tiles - 1) * OUTPUTS + 1, OUTPUTS, axis) for i in range(places)]


def _tiles(x: Array, axis: int) -> int:
    return -(-x.shape[axis] // OUTPUTS)


def _count(x: Array, block: Sequence[int]) -> int:
    """Returns the number of blocks of an array."""
    return math.prod(n // size for n, size in zip(x.shape[:-1], block, strict=True))


def _start(x: Array, block: Sequence[int], i: Array | int) -> list[Array]:
    """Returns the place along `b t h w` where the i-th block of an array starts."""
    numbers = jnp.unravel_index(i, [n // size for n, size in zip(x.shape[:-1], block, strict=True)])
    return [number * size for number, size in zip(numbers, block, strict=True)]


def _cut(x: Array, start: Sequence[Array], block: Sequence[int]) -> Array:
    """Returns a block with all its channels."""
    return lax.dynamic_slice(x, (*start, 0), (*block, x.shape[-1]))


def _sum(weights: np.ndarray, arrays: Sequence[Array]) -> Array:
    """Returns the weighted sum of the arrays."""
    terms = [array if weight == 1 else float(weight) * array for weight, array in zip(weights, arrays, strict=True) if weight]
    return functools.reduce(jnp.add, terms)
