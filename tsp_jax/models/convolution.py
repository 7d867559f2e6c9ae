"""Exact 3-D convolutions as 2-D ones. On a CPU, `models.cpu` computes the same sums faster in another order."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from tsp_jax.models import precision
from tsp_jax.models.cpu import filtering, kernel_gradients


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw c c2"], stride: tuple[int, int, int]
) -> Float[Array, "b t2 h2 w2 c2"]:
    """Returns the 3-D convolution, padded by half its kernel, computed as one 2-D convolution.

    Spatial kernels run over (b t, h, w), and temporal ones over (b, t, h w). A kernel that spans both runs over the shifted
    frames, joined along the channels. The result is exact. XLA's 3-D convolutions take about twice the time on a CPU, and on
    NVIDIA GPUs they force the NCHW layout.

    On a CPU, outputs and gradients are computed by `filtering` where that is faster, and gradients of kernels always by
    `kernel_gradients`: the same sums in another order. Programs for other platforms contain neither.

    Raises:
      ValueError: a temporal kernel has a stride in space.
    """
    plain = functools.partial(convolve_joined, stride=stride)
    axis = filtering.filtered_axis(x, kernel, stride)
    if axis is None:
        return plain(x, kernel)
    filtered = functools.partial(filtering.convolve, axis=axis, plain=convolve_joined)
    return lax.platform_dependent(x, kernel, cpu=filtered, default=plain)


def _forward(x: Array, kernel: Array, stride: tuple[int, int, int]) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel, stride), (x, kernel)


def _backward(stride: tuple[int, int, int], saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved

    def plain_input(kernel: Array, gradient: Array) -> Array:
        return jax.linear_transpose(lambda x: convolve_joined(x, kernel, stride), x)(gradient)[0]

    def plain_kernel(x: Array, kernel: Array, gradient: Array) -> Array:
        return jax.vjp(lambda kernel: convolve_joined(x, kernel, stride), kernel)[1](gradient)[0]

    def kernel_by_products(x: Array, kernel: Array, gradient: Array) -> Array:
        return kernel_gradients.kernel_gradient(x, gradient, kernel.shape, stride, axis)

    axis = filtering.filtered_axis(x, kernel, stride)
    if axis is None:
        of_x = plain_input(kernel, gradient)
    else:
        filtered = functools.partial(filtering.input_gradient, axis=axis, plain=convolve_joined)
        of_x = lax.platform_dependent(kernel, gradient, cpu=filtered, default=plain_input)
    if not precision.is_wide(x.dtype):
        return of_x, plain_kernel(x, kernel, gradient)
    return of_x, lax.platform_dependent(x, kernel, gradient, cpu=kernel_by_products, default=plain_kernel)


convolve.defvjp(_forward, _backward)


def convolve_joined(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw c c2"], stride: tuple[int, int, int]
) -> Float[Array, "b t2 h2 w2 c2"]:
    """Returns the same as `convolve` by the program of a GPU or TPU, which JAX can differentiate.

    Raises:
      ValueError: a temporal kernel has a stride in space.
    """
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
    """Returns the 2-D convolution, padded by half its kernel. Products of float32 are float32 on every device."""
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        [(k // 2, k // 2) for k in kernel.shape[:2]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision.matmul_precision(x.dtype),
    )


def _out(size: int, stride: int) -> int:
    """Returns the length of a padded convolution's output."""
    return (size - 1) // stride + 1
