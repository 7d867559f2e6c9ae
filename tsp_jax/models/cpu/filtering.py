"""When and in which blocks a convolution is computed by `winograd` on a CPU, and the two convolutions that are.

The plain convolution is an argument here, `Plain`: this module does not import the one that uses it.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tsp_jax.models import precision
from tsp_jax.models.cpu import blocks, winograd

Plain = Callable[[Array, Array, tuple[int, int, int]], Array]  # a convolution of an input and a kernel by a stride

# The sums of `winograd` move every input and output, so that it needs this many products for each of them to be faster. Below
# so many pixels the sums of the kernel take too long, and so do the sums along an axis that is shorter than _MIN_SIZE.
_MIN_PRODUCTS, _MIN_PIXELS, _MIN_SIZE = 128, 512, 4
_FILTERED_PIXELS = 4096  # the largest number of pixels in a block, where it can be cut: the cache holds their sums


def filtered_axis(x: Array, kernel: Array, stride: tuple[int, int, int]) -> int | None:
    """Returns the first axis of `x` along which `winograd` makes the convolution faster on a CPU; None if there is none."""
    taps, (c, width) = kernel.shape[:3], kernel.shape[3:]
    if stride != (1, 1, 1) or not precision.is_wide(x.dtype) or math.prod(x.shape[:4]) < _MIN_PIXELS:
        return None
    if math.prod(taps) * c * width < _MIN_PRODUCTS * (c + width):
        return None
    return next((axis for axis in (1, 2) if taps[axis - 1] == winograd.TAPS and x.shape[axis] >= _MIN_SIZE), None)


def filtered_block(shape: tuple[int, ...], taps: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the sizes along `b t h w` of a block of an array that `winograd` filters at a time, whose sums the cache holds.

    Clips are cut into frames or rows along the axes where the kernel has one tap. A kernel that spans time and space leaves no
    such axis, and then the batch is not cut either.

    Args:
      shape: shape of the array.
      taps: shape of the kernel.
    """
    if taps[0] > 1 and taps[1] > 1:
        return shape[:4]
    return blocks.block(shape[:4], _FILTERED_PIXELS, whole=1 if taps[0] > 1 else 2)


def convolve(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw c c2"], *, axis: int, plain: Plain
) -> Float[Array, "b t h w c2"]:
    """Returns the convolution of stride 1, padded by half its kernel, filtered along the axis.

    Args:
      x: the input.
      kernel: the kernel, three taps long along the axis.
      axis: the axis, as `filtered_axis` returned it.
      plain: the plain convolution, which computes the products.
    """
    return _convolve_filtered(x, kernel, axis, filtered_block(x.shape, kernel.shape), plain)


def input_gradient(
    kernel: Float[Array, "kt kh kw c c2"], gradient: Float[Array, "b t h w c2"], *, axis: int, plain: Plain
) -> Float[Array, "b t h w c"]:
    """Returns the gradient of the input of `convolve`, filtered along the axis.

    It is a convolution of the output's gradient by the kernel with its taps reversed and its channels exchanged.
    """
    taps, (c, width) = kernel.shape[:3], kernel.shape[3:]
    # The loop over taps transposes the channels once; without it XLA would transpose them again within each sum of taps.
    turned = lax.map(jnp.transpose, kernel.reshape(-1, c, width)[::-1]).reshape(*taps, width, c)
    return _convolve_filtered(gradient, turned, axis, filtered_block(gradient.shape, kernel.shape), plain)


@functools.partial(jax.jit, static_argnames=("axis", "block", "plain"))
def _convolve_filtered(x: Array, kernel: Array, axis: int, block: tuple[int, ...], plain: Plain) -> Array:
    """Returns the convolution by `winograd`. It is jitted so that layers of one kind are traced and lowered once."""

    def inner(x: Array, kernel: Array) -> Array:
        # One tap makes a matrix product, which XLA computes faster under that name.
        if kernel.shape[:3] == (1, 1, 1):
            return jnp.matmul(x, kernel[0, 0, 0], precision=precision.matmul_precision(x.dtype))
        return plain(x, kernel, (1, 1, 1))

    return winograd.convolve(x, kernel, axis, block, inner)
