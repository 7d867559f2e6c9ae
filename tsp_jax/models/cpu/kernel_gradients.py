"""The gradient of a convolution's kernel by matrix products over blocks of pixels. XLA's program takes ten times as long."""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tsp_jax.models import precision
from tsp_jax.models.cpu import blocks, filtering, winograd

_BLOCK_PIXELS = 1024  # the largest number of pixels that one matrix product sums over: the cache holds their patches
_TRANSPOSED_ROWS = 48  # the largest number of rows transposed at a time: the cache holds a line of each until it is used up


def kernel_gradient(
    x: Float[Array, "b t h w c"],
    gradient: Float[Array, "b t2 h2 w2 c2"],
    shape: tuple[int, ...],
    stride: tuple[int, int, int],
    axis: int | None = None,
) -> Float[Array, "kt kh kw c c2"]:
    """Returns the gradient of the kernel of `convolution.convolve`.

    Args:
      x: the input of the convolution.
      gradient: the gradient of its output.
      shape: the kernel's shape.
      stride: the convolution's stride.
      axis: the axis of `x` along which `winograd` halves the products; None if there is none.
    """
    if axis is None:
        found = _turned_gradient(x, gradient, shape, stride)
    else:
        one_tap = (*shape[: axis - 1], 1, *shape[axis:])
        inner = functools.partial(_turned_gradient, shape=one_tap, stride=stride)
        found = winograd.kernel_gradient(x, gradient, axis, filtering.filtered_block(x.shape, shape), inner)
    return _transpose(found.reshape(shape[-1], -1)).reshape(shape)


def _turned_gradient(
    x: Array, gradient: Array, shape: tuple[int, ...], stride: tuple[int, int, int]
) -> Float[Array, "c2 kt kh kw c"]:
    """Returns the gradient of the kernel, output channels first.

    A block is some clips, some frames of one clip, or some rows of a frame. Its spatial patches are formed once, whatever the
    kernel's length in time, and multiplied by the gradients of all the output frames to which they contributed. So more of the
    time goes into products.
    """
    (kt, kh, kw, c, width), (st, sh, sw) = shape, stride
    x = jnp.pad(x, ((0, 0), (0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))
    gradient = jnp.pad(gradient, ((0, 0), (kt // 2, kt // 2), (0, 0), (0, 0), (0, 0)))
    found = [jnp.zeros((width, kh * kw * c), x.dtype)] * kt
    for phase in range(min(st, x.shape[1])):
        # This phase has every st-th frame from frame number `phase` on. `moves` maps each frame of the kernel that meets
        # them to the number of output frames by which it moves them.
        moves = {i: (phase - i + kt // 2) // st + kt // 2 for i in range(kt) if (phase - i + kt // 2) % st == 0}
        if moves:
            of_phase = _sum_of_products(x[:, phase::st], gradient, list(moves.values()), (kh, kw), (sh, sw))
            for i, total in zip(moves, of_phase, strict=True):
                found[i] = total
    return jnp.stack(found, 1).reshape(width, kt, kh, kw, c)


def _sum_of_products(
    x: Array, gradient: Array, moves: list[int], size: tuple[int, int], stride: tuple[int, int]
) -> Float[Array, "i c2 k"]:
    """Returns the outer products of gradients with patches of `x`, summed over all pixels, for each move.

    Args:
      x: the padded frames.
      gradient: the padded gradient of the output.
      moves: the numbers of frames by which the gradients are ahead of the patches.
      size: the kernel's height and width.
      stride: the stride in height and width.
    """
    (b, t, _, w_in, c), (_, _, h, w, width) = x.shape, gradient.shape
    (kh, kw), (sh, sw) = size, stride
    clips, frames, rows, _ = blocks.block((b, t, h, w), _BLOCK_PIXELS)

    def add_block(block: Array, total: Array) -> Array:
        clip, frame, row = jnp.unravel_index(block, (b // clips, t // frames, h // rows))
        start = clip * clips, frame * frames, row * rows
        of_x = lax.dynamic_slice(x, (start[0], start[1], start[2] * sh, 0, 0), (clips, frames, (rows - 1) * sh + kh, w_in, c))
        shifted = [
            of_x[:, :, i : i + (rows - 1) * sh + 1 : sh, j : j + (w - 1) * sw + 1 : sw] for i in range(kh) for j in range(kw)
        ]
        of_y = [
            lax.dynamic_slice(gradient, (start[0], start[1] + move, start[2], 0, 0), (clips, frames, rows, w, width))
            for move in moves
        ]
        patches, gradients = (jnp.concatenate(parts, -1) for parts in (shifted, of_y))
        # Eigen takes half the time with the factors in this order.
        return total + jnp.matmul(
            gradients.reshape(-1, len(moves) * width).T,
            patches.reshape(-1, kh * kw * c),
            precision=precision.matmul_precision(x.dtype),
        )

    count = (b // clips) * (t // frames) * (h // rows)
    total = jnp.zeros((len(moves) * width, kh * kw * c), x.dtype)
    return lax.fori_loop(0, count, add_block, total).reshape(len(moves), width, -1)


def _transpose(x: Float[Array, "n m"]) -> Float[Array, "m n"]:
    """Returns the transposed matrix, made some rows at a time. XLA's program takes three times as long for large ones."""
    n, m = x.shape
    rows = blocks.largest_divisor(n, _TRANSPOSED_ROWS)

    def copy(i: Array, found: Array) -> Array:
        return lax.dynamic_update_slice(found, lax.dynamic_slice(x, (i * rows, 0), (rows, m)).T, (0, i * rows))

    return lax.fori_loop(0, n // rows, copy, jnp.zeros((m, n), x.dtype))
