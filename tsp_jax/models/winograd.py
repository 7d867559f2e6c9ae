"""Convolutions of three taps along an axis by half the products: Winograd's minimal filtering, exact but for rounding.

F(4, 3) has six products for four outputs along the axis, where the definition has twelve: they are of sums of inputs and sums
of taps, and the outputs are sums of them. A product here is a whole convolution over the other axes and the channels. The
gradient of the taps is that of these three linear maps: six products of sums of inputs and sums of the output's gradient.

Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks".
"""

import functools
from collections.abc import Callable, Sequence

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
    inner: Callable[[Array, Array], Array],
) -> Float[Array, "b t h w c2"]:
    """A convolution of stride 1, padded by half its kernel.

    Args:
      x: to convolve.
      kernel: of it, three taps long along the axis.
      axis: of `x`: 1, 2 or 3.
      inner: the same for kernels of one tap along the axis, of which it is called six times.
    """
    inputs = _every_fourth(x, axis, TAPS // 2, OUTPUTS + TAPS - 1)
    taps = [lax.slice_in_dim(kernel, i, i + 1, axis=axis - 1) for i in range(TAPS)]
    products = [inner(_sum(of_x, inputs), _sum(of_k, taps)) for of_x, of_k in zip(_OF_INPUTS, _OF_TAPS, strict=True)]
    outputs = jnp.stack([_sum(weights, products) for weights in _TO_OUTPUTS], axis + 1)
    outputs = outputs.reshape(*outputs.shape[:axis], -1, *outputs.shape[axis + 2 :])
    return lax.slice_in_dim(outputs, 0, x.shape[axis], axis=axis)


def kernel_gradient(
    x: Float[Array, "b t h w c"],
    gradient: Float[Array, "b t h w c2"],
    axis: int,
    inner: Callable[[Array, Array], Array],
) -> Float[Array, "c2 kt kh kw c"]:
    """The gradient of `convolve`'s kernel, outputs first.

    Args:
      x: that was convolved.
      gradient: of the output.
      axis: that it was filtered along.
      inner: the same for kernels of one tap along the axis, of which it is called six times.
    """
    inputs = _every_fourth(x, axis, TAPS // 2, OUTPUTS + TAPS - 1)
    outputs = _every_fourth(gradient, axis, 0, OUTPUTS)
    products = [inner(_sum(of_x, inputs), _sum(of_y, outputs)) for of_x, of_y in zip(_OF_INPUTS, _TO_OUTPUTS.T, strict=True)]
    return jnp.concatenate([_sum(weights, products) for weights in _OF_TAPS.T], axis)


def _every_fourth(x: Array, axis: int, before: int, count: int) -> list[Array]:
    """Of the axis, padded by zeros, the first places of all tiles, their second places, and so on to the last of `count`."""
    tiles = -(-x.shape[axis] // OUTPUTS)
    around = [(0, 0)] * x.ndim
    around[axis] = (before, (tiles - 1) * OUTPUTS + count - before - x.shape[axis])
    x = jnp.pad(x, around)
    return [lax.slice_in_dim(x, i, i + (tiles - 1) * OUTPUTS + 1, OUTPUTS, axis) for i in range(count)]


def _sum(weights: np.ndarray, arrays: Sequence[Array]) -> Array:
    """Of the arrays by their weights."""
    terms = [array if weight == 1 else float(weight) * array for weight, array in zip(weights, arrays, strict=True) if weight]
    return functools.reduce(jnp.add, terms)
