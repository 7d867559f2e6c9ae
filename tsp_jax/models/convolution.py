"""3-D convolutions as 2-D ones, exact; on a CPU by fewer products, and the gradients of their kernels by matrix products."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tsp_jax.models.cpu import winograd

# On a CPU `winograd` pays from so many products for each number in and out, which its sums move; from so many pixels, below
# which the sums of the kernel weigh; and along an axis of so many.
_MIN_PRODUCTS, _MIN_PIXELS, _MIN_SIZE = 128, 512, 4
_BLOCK_PIXELS = 1024  # positions that a matrix product of `kernel_gradient` sums over, at most: patches that a cache holds
_FILTERED_PIXELS = 4096  # positions that `winograd` filters at a time, where they can be cut: a cache holds their sums
_TRANSPOSED_ROWS = 48  # that `_transpose` reads at a time, at most: a line of each stays in the cache until it is used up


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw c c2"], stride: tuple[int, int, int]
) -> Float[Array, "b t2 h2 w2 c2"]:
    """A 3-D convolution, padded by half its kernel, as one 2-D convolution.

    Spatial kernels run over (b t, h, w), temporal ones over (b, t, h w), and a kernel that spans both runs over the shifted
    frames joined along the channels. Exact. XLA's 3-D convolutions take about twice the time on a CPU, and are held to the
    NCHW layout on NVIDIA GPUs.

    On a CPU outputs and gradients come by `winograd` where it is faster, and gradients of kernels always by `kernel_gradient`:
    the same sums in another order. Programs of other platforms hold nothing of either.

    Raises:
      ValueError: a temporal kernel strides in space.
    """
    by_2d = functools.partial(convolve_joined, stride=stride)
    axis = _filtered_axis(x, kernel, stride)
    if axis is None:
        return by_2d(x, kernel)
    by_filtering = functools.partial(_convolve_filtered, axis=axis, block=_filtered_block(x.shape, kernel.shape))
    return lax.platform_dependent(x, kernel, cpu=by_filtering, default=by_2d)


def _filtered_axis(x: Array, kernel: Array, stride: tuple[int, int, int]) -> int | None:
    """The first axis of `x` along which `winograd` makes the convolution faster on a CPU, if there is one."""
    taps, (c, width) = kernel.shape[:3], kernel.shape[3:]
    if stride != (1, 1, 1) or not _is_wide(x.dtype) or math.prod(x.shape[:4]) < _MIN_PIXELS:
        return None
    if math.prod(taps) * c * width < _MIN_PRODUCTS * (c + width):
        return None
    return next((axis for axis in (1, 2) if taps[axis - 1] == winograd.TAPS and x.shape[axis] >= _MIN_SIZE), None)


def _filtered_block(shape: tuple[int, ...], taps: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes along `b t h w` of what `winograd` makes at a time of an array of this shape, for its sums to stay in the cache.

    Clips are cut into frames or rows, along which the kernel has one tap; those that it spans in time and space are not, and
    neither is their batch.
    """
    if taps[0] > 1 and taps[1] > 1:
        return shape[:4]
    return _block(shape[:4], _FILTERED_PIXELS, whole=1 if taps[0] > 1 else 2)


def _block(sizes: tuple[int, ...], pixels: int, whole: int | None = None) -> tuple[int, ...]:
    """Sizes along `b t h w` of a block: some clips, some frames of one, or some rows, of at most so many pixels.

    Neither a row nor the axis that is to stay whole is cut: a block may have more.
    """
    kept = {whole, 3}
    block = list(sizes)
    for axis in {0, 1, 2} - kept:
        inside = math.prod(size for i, size in enumerate(sizes) if i != axis and (i > axis or i in kept))
        block[axis] = _largest_divisor(sizes[axis], pixels // inside)
    return tuple(block)


@functools.partial(jax.jit, static_argnames=("axis", "block"))
def _convolve_filtered(x: Array, kernel: Array, axis: int, block: tuple[int, ...]) -> Array:
    """By `winograd`. Jitted for layers of one kind to be traced and lowered once; the compiler sees no difference."""
    return winograd.convolve(x, kernel, axis, block, _convolve_block)


def _convolve_block(x: Array, kernel: Array) -> Array:
    """A convolution of stride 1; by a single tap it is a matrix product, which XLA computes faster under that name."""
    if kernel.shape[:3] == (1, 1, 1):
        return jnp.matmul(x, kernel[0, 0, 0], precision=matmul_precision(x.dtype))
    return convolve_joined(x, kernel, (1, 1, 1))


def _forward(x: Array, kernel: Array, stride: tuple[int, int, int]) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel, stride), (x, kernel)


def _backward(stride: tuple[int, int, int], saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def by_convolution(x: Array, kernel: Array, gradient: Array) -> Array:
        return jax.vjp(lambda kernel: convolve_joined(x, kernel, stride), kernel)[1](gradient)[0]

    def by_products(x: Array, kernel: Array, gradient: Array) -> Array:
        return kernel_gradient(x, gradient, kernel.shape, stride, axis)

    def of_input(kernel: Array, gradient: Array) -> Array:
        return jax.linear_transpose(lambda x: convolve_joined(x, kernel, stride), x)(gradient)[0]

    axis = _filtered_axis(x, kernel, stride)
    if axis is None:
        of_x = of_input(kernel, gradient)
    else:
        by_filtering = functools.partial(_input_gradient, axis=axis)
        of_x = lax.platform_dependent(kernel, gradient, cpu=by_filtering, default=of_input)
    if not _is_wide(x.dtype):
        return of_x, by_convolution(x, kernel, gradient)
    return of_x, lax.platform_dependent(x, kernel, gradient, cpu=by_products, default=by_convolution)


def _input_gradient(kernel: Array, gradient: Array, axis: int) -> Array:
    """By filtering along the axis: a convolution of the output's gradient, taps the other way round, channels in for out."""
    taps, (c, width) = kernel.shape[:3], kernel.shape[3:]
    # Channels are turned in a loop over taps: else XLA turns them anew within each sum of taps.
    turned = lax.map(jnp.transpose, kernel.reshape(-1, c, width)[::-1]).reshape(*taps, width, c)
    return _convolve_filtered(gradient, turned, axis, _filtered_block(gradient.shape, kernel.shape))


convolve.defvjp(_forward, _backward)


def convolve_joined(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw c c2"], stride: tuple[int, int, int]
) -> Float[Array, "b t2 h2 w2 c2"]:
    """`convolve` as it is on a GPU or TPU, to be differentiated by JAX."""
    (b, t, h, w, c), (kt, kh, kw, _, width), (st, sh, sw) = x.shape, kernel.shape, stride
    sizes = _out(t, st), _out(h, sh), _out(w, sw)
    if kt > 1 and kh == kw == 1:
        if sh != 1 or sw != 1:
            raise ValueError(f"a temporal convolution strides in time alone; got stride {stride}")
        return convolve_2d(x.reshape(b, t, h * w, c), kernel[:, 0], (st, 1)).reshape(b, *sizes, width)
    if kt == 1:
        x = x[:, ::st]
    else:
        x = jnp.pad(x, ((0, 0), (kt // 2, kt // 2), (0, 0), (0, 0), (0, 0)))
        x = jnp.concatenate([x[:, i : i + (sizes[0] - 1) * st + 1 : st] for i in range(kt)], axis=-1)
    kernel = jnp.moveaxis(kernel, 0, 2).reshape(kh, kw, kt * c, width)
    return convolve_2d(x.reshape(-1, h, w, kt * c), kernel, (sh, sw)).reshape(b, *sizes, width)


def convolve_2d(
    x: Float[Array, "n h w c"], kernel: Float[Array, "kh kw c c2"], stride: tuple[int, int]
) -> Float[Array, "n h2 w2 c2"]:
    """A 2-D convolution padded by half its kernel; float32 products are float32 on every device."""
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        [(k // 2, k // 2) for k in kernel.shape[:2]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=matmul_precision(x.dtype),
    )


def kernel_gradient(
    x: Float[Array, "b t h w c"],
    gradient: Float[Array, "b t2 h2 w2 c2"],
    shape: tuple[int, ...],
    stride: tuple[int, int, int],
    axis: int | None = None,
) -> Float[Array, "kt kh kw c c2"]:
    """The gradient of `convolve`'s kernel by matrix products over blocks of pixels; XLA's own program takes ten times as long.

    Args:
      x: that was convolved.
      gradient: of the output.
      shape: of the kernel.
      stride: of the convolution.
      axis: of `x`, along which `winograd` halves the products; None for none.
    """
    if axis is None:
        found = _turned_gradient(x, gradient, shape, stride)
    else:
        one_tap = (*shape[: axis - 1], 1, *shape[axis:])
        inner = functools.partial(_turned_gradient, shape=one_tap, stride=stride)
        found = winograd.kernel_gradient(x, gradient, axis, _filtered_block(x.shape, shape), inner)
    return _transpose(found.reshape(shape[-1], -1)).reshape(shape)


def _turned_gradient(
    x: Array, gradient: Array, shape: tuple[int, ...], stride: tuple[int, int, int]
) -> Float[Array, "c2 kt kh kw c"]:
    """The gradient of the kernel, outputs first.

    A block is some clips, some frames of one, or some rows of a frame: its spatial patches, and beside them the gradients of
    all frames that they went to. So a patch is formed once, whatever the kernel's length in time, and more of the time goes
    into products.
    """
    (kt, kh, kw, c, width), (st, sh, sw) = shape, stride
    x = jnp.pad(x, ((0, 0), (0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))
    gradient = jnp.pad(gradient, ((0, 0), (kt // 2, kt // 2), (0, 0), (0, 0), (0, 0)))
    found = [jnp.zeros((width, kh * kw * c), x.dtype)] * kt
    for phase in range(min(st, x.shape[1])):
        # Of every st-th frame from this one on: the frames of the kernel that meet it, and by how many outputs they move it.
        moves = {i: (phase - i + kt // 2) // st + kt // 2 for i in range(kt) if (phase - i + kt // 2) % st == 0}
        if moves:
            of_phase = _sum_of_products(x[:, phase::st], gradient, list(moves.values()), (kh, kw), (sh, sw))
            for i, total in zip(moves, of_phase, strict=True):
                found[i] = total
    return jnp.stack(found, 1).reshape(width, kt, kh, kw, c)


def _transpose(x: Float[Array, "n m"]) -> Float[Array, "m n"]:
    """By some rows at a time: of large matrices XLA's own transposition takes three times as long."""
    n, m = x.shape
    rows = _largest_divisor(n, _TRANSPOSED_ROWS)

    def copy(i: Array, found: Array) -> Array:
        return lax.dynamic_update_slice(found, lax.dynamic_slice(x, (i * rows, 0), (rows, m)).T, (0, i * rows))

    return lax.fori_loop(0, n // rows, copy, jnp.zeros((m, n), x.dtype))


def _sum_of_products(
    x: Array, gradient: Array, moves: list[int], size: tuple[int, int], stride: tuple[int, int]
) -> Float[Array, "i c2 k"]:
    """For each move: the outer products of gradients, that many frames on, with the patches of `x`, summed over all pixels."""
    (b, t, _, w_in, c), (_, _, h, w, width) = x.shape, gradient.shape
    (kh, kw), (sh, sw) = size, stride
    clips, frames, rows, _ = _block((b, t, h, w), _BLOCK_PIXELS)

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
        # Of the two orders of the factors, the one that Eigen takes half the time for.
        return total + jnp.matmul(
            gradients.reshape(-1, len(moves) * width).T,
            patches.reshape(-1, kh * kw * c),
            precision=matmul_precision(x.dtype),
        )

    blocks = (b // clips) * (t // frames) * (h // rows)
    total = jnp.zeros((len(moves) * width, kh * kw * c), x.dtype)
    return lax.fori_loop(0, blocks, add_block, total).reshape(len(moves), width, -1)


def matmul_precision(dtype: jnp.dtype) -> lax.Precision:
    """HIGHEST from float32 up, where GPU and TPU would round factors to TF32 or bfloat16; the native product below."""
    return lax.Precision.HIGHEST if jnp.dtype(dtype).itemsize >= 4 else lax.Precision.DEFAULT


def _is_wide(dtype: jnp.dtype) -> bool:
    """Of float32 or float64, which alone the products on a CPU are for."""
    return jnp.dtype(dtype).itemsize >= 4


def _out(size: int, stride: int) -> int:
    """Length of a padded convolution's output."""
    return (size - 1) // stride + 1


def _largest_divisor(n: int, limit: int) -> int:
    return max(i for i in range(1, max(1, min(n, limit)) + 1) if n % i == 0)
