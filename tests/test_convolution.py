"""Tests that convolutions give the numbers of a plain 3-D one, by the right program on each platform."""

import functools
import re
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsp_jax.models import convolution
from tsp_jax.models.cpu import filtering as cpu_filtering
from tsp_jax.models.cpu import kernel_gradients

KERNELS = {
    "spatial": ((1, 3, 3), (1, 1, 1)),
    "spatial strided": ((1, 3, 3), (1, 2, 2)),
    "temporal": ((3, 1, 1), (1, 1, 1)),
    "temporal strided": ((3, 1, 1), (2, 1, 1)),
    "both": ((3, 3, 3), (1, 1, 1)),
    "both strided": ((3, 3, 3), (2, 2, 2)),
    "point": ((1, 1, 1), (2, 2, 2)),
    "stem": ((3, 7, 7), (1, 2, 2)),
    "spatial stem": ((1, 7, 7), (1, 4, 3)),
    "long": ((5, 3, 1), (3, 2, 1)),
}
# The sizes give clips of one pixel, and blocks of two clips, rows, many clips and some frames; they are odd and even.
SIZES = ((1, 1, 1, 1), (2, 5, 9, 7), (1, 3, 40, 30), (300, 2, 1, 3), (2, 9, 4, 50))
# These programs run once, so optimizing them would take longer than running them.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})
kinds = pytest.mark.parametrize(("size", "stride"), KERNELS.values(), ids=KERNELS.keys())


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["by size", "wherever it can be"])
def filtering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes small arrays filtered too, by lifting the limits on sizes."""
    if request.param == "wherever it can be":
        lift_limits(monkeypatch)


def lift_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_MIN_PRODUCTS", "_MIN_PIXELS", "_MIN_SIZE"):
        monkeypatch.setattr(cpu_filtering, name, 0)


def plain(x: jax.Array, kernel: jax.Array, stride: tuple[int, int, int]) -> jax.Array:
    """Returns the same convolution, as XLA computes it."""
    padding = [(size // 2, size // 2) for size in kernel.shape[:3]]
    return jax.lax.conv_general_dilated(
        x, kernel, stride, padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"), precision=jax.lax.Precision.HIGHEST
    )


def arrays(shape: tuple[int, ...], size: tuple[int, int, int], dtype: type = np.float64) -> tuple[jax.Array, jax.Array]:
    """Returns an input of 2 channels and a kernel with 3 outputs."""
    random = np.random.RandomState(0)
    return jnp.asarray(random.standard_normal((*shape, 2)), dtype), jnp.asarray(random.standard_normal((*size, 2, 3)), dtype)


@kinds
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_output_and_gradients_are_those_of_a_plain_3d_convolution(
    x64: None, filtering: None, shape: tuple[int, ...], size: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    x, kernel = arrays(shape, size)

    @quick_jit
    def both(x: jax.Array, kernel: jax.Array) -> tuple[object, object]:
        y, of_plain = jax.vjp(lambda x, kernel: plain(x, kernel, stride), x, kernel)
        found, of_ours = jax.vjp(lambda x, kernel: convolution.convolve(x, kernel, stride), x, kernel)
        gradient = jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return (found, *of_ours(gradient)), (y, *of_plain(gradient))

    for found, expected in zip(*both(x, kernel), strict=True):
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("pixels", [1, 8, 64, 1000])
def test_kernel_gradient_is_the_same_for_blocks_of_any_size(
    x64: None, monkeypatch: pytest.MonkeyPatch, pixels: int, stride: tuple[int, int, int]
) -> None:
    x, kernel = arrays((4, 3, 6, 5), (3, 3, 3))
    monkeypatch.setattr(kernel_gradients, "_BLOCK_PIXELS", pixels)

    @quick_jit
    def both(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, of_plain = jax.vjp(lambda kernel: plain(x, kernel, stride), kernel)
        return kernel_gradients.kernel_gradient(x, y, kernel.shape, stride), of_plain(y)[0]

    found, expected = both(x, kernel)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("size", [(1, 3, 3), (3, 1, 1), (3, 3, 3)], ids=str)
@pytest.mark.parametrize("pixels", [1, 14, 120, 1000])
def test_filtering_is_the_same_for_blocks_of_any_size(
    x64: None, monkeypatch: pytest.MonkeyPatch, pixels: int, size: tuple[int, int, int]
) -> None:
    """The blocks are a pixel, a frame, some frames, a clip, and all at once."""
    x, kernel = arrays((4, 3, 10, 4), size)
    lift_limits(monkeypatch)
    monkeypatch.setattr(cpu_filtering, "_FILTERED_PIXELS", pixels)

    @quick_jit
    def both(x: jax.Array, kernel: jax.Array) -> tuple[object, object]:
        y, of_plain = jax.vjp(lambda x, kernel: plain(x, kernel, (1, 1, 1)), x, kernel)
        found, of_ours = jax.vjp(lambda x, kernel: convolution.convolve(x, kernel, (1, 1, 1)), x, kernel)
        return (found, *of_ours(y)), (y, *of_plain(y))

    for found, expected in zip(*both(x, kernel), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@kinds
def test_bfloat16_and_float32_gradients_have_the_dtype_of_their_arrays(
    filtering: None, size: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    for dtype, precision in ((jnp.bfloat16, 2e-2), (jnp.float32, 1e-5)):
        x, kernel = arrays((2, 3, 6, 5), size, dtype)
        ours = jax.grad(lambda x, kernel: convolution.convolve(x, kernel, stride).sum(), argnums=(0, 1))
        wide = jax.grad(lambda x, kernel: plain(x, kernel, stride).sum(), argnums=(0, 1))
        expected = quick_jit(wide)(x.astype(jnp.float32), kernel.astype(jnp.float32))
        for found, exact in zip(quick_jit(ours)(x, kernel), expected, strict=True):
            assert found.dtype == dtype
            np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=0, atol=precision * np.abs(exact).max())


def program(platform: str, size: tuple[int, int, int], stride: tuple[int, int, int], dtype: type = np.float32) -> str:
    """Returns the program of output and gradients as StableHLO."""

    def step(x: jax.Array, kernel: jax.Array) -> tuple[object, object]:
        y, gradients = jax.vjp(lambda x, kernel: convolution.convolve(x, kernel, stride), x, kernel)
        return y, gradients(y)

    shapes = jax.ShapeDtypeStruct((2, 5, 9, 7, 2), dtype), jax.ShapeDtypeStruct((*size, 2, 3), dtype)
    return jax.export.export(jax.jit(step), platforms=[platform])(*shapes).mlir_module()


@kinds
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_run_2d_convolutions_alone(
    filtering: None, platform: str, size: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    """There are three: the output, and the two gradients by autodiff. There are none of the CPU's loops and products."""
    text = program(platform, size, stride)
    assert not re.findall(r"stablehlo\.(?:while|dot_general)", text)
    found = re.findall(r"stablehlo\.convolution.*", text)
    assert len(found) == 3
    for line in found:
        assert {sizes.count("x") for sizes in re.findall(r"tensor<((?:\d+x)+)f32>", line)} == {4}


@kinds
def test_cpu_takes_the_gradient_of_a_kernel_by_products(size: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
    text = program("cpu", size, stride)
    assert len(re.findall(r"stablehlo\.convolution", text)) == 2
    assert len(re.findall(r"stablehlo\.dot_general", text)) == (min(stride[0], size[0]))
    assert text.count("HIGHEST") == 2 * (2 + min(stride[0], size[0]))


@kinds
def test_cpu_filters_kernels_of_three_taps_that_do_not_stride(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    """Each becomes six smaller ones: convolutions for the output and the input's gradient, products for the kernel's."""
    lift_limits(monkeypatch)
    text, is_filtered = program("cpu", size, stride), 3 in size[:2] and stride == (1, 1, 1)
    by_products = size == (3, 1, 1)  # one tap is left of it
    convolutions, products = (len(re.findall(rf"stablehlo\.{name}", text)) for name in ("convolution", "dot_general"))
    if is_filtered:
        assert (convolutions, products) == ((0, 18) if by_products else (12, 6))
    else:
        assert (convolutions, products) == (2, min(stride[0], size[0]))


LAYERS = {  # layers of R3D-18 and R(2+1)D-34 for one clip: input, kernel, stride, and whether the layer is filtered
    "joined, 56": ((1, 16, 56, 56, 64), (3, 3, 3, 64, 64), 1, True),
    "joined, 14": ((1, 4, 14, 14, 256), (3, 3, 3, 256, 256), 1, True),
    "joined, 7: the kernel's sums are too many": ((1, 2, 7, 7, 512), (3, 3, 3, 512, 512), 1, False),
    "joined, strided": ((1, 16, 56, 56, 64), (3, 3, 3, 64, 128), 2, False),
    "spatial, 56": ((1, 16, 56, 56, 64), (1, 3, 3, 64, 144), 1, True),
    "temporal, 56": ((1, 16, 56, 56, 144), (3, 1, 1, 144, 64), 1, True),
    "temporal of the stem: too few products": ((1, 16, 56, 56, 45), (3, 1, 1, 45, 64), 1, False),
    "temporal, 28": ((1, 8, 28, 28, 288), (3, 1, 1, 288, 128), 1, True),
}


@pytest.mark.parametrize(("shape", "size", "step", "is_filtered"), LAYERS.values(), ids=LAYERS.keys())
def test_layers_are_filtered_where_it_was_measured_to_pay(
    shape: tuple[int, ...], size: tuple[int, ...], step: int, is_filtered: bool
) -> None:
    x, kernel, stride = jax.ShapeDtypeStruct(shape, np.float32), jax.ShapeDtypeStruct(size, np.float32), (step,) * 3
    text = jax.export.export(jax.jit(lambda x, kernel: convolution.convolve(x, kernel, stride)), platforms=["cpu"])(x, kernel)
    assert len(re.findall(r"stablehlo\.(?:convolution|dot_general)", text.mlir_module())) == (6 if is_filtered else 1)


def test_filtering_rounds_little_more_than_products_do() -> None:
    """Output and gradients of input and kernel are compared with those in float64, by root mean squares."""
    random = np.random.RandomState(0)
    x, gradient = (jnp.asarray(random.standard_normal((1, 8, 28, 28, 64)), jnp.float32) for _ in range(2))
    kernel = jnp.asarray(random.standard_normal((3, 3, 3, 64, 64)) / 64, jnp.float32)

    def all_three(convolve: Callable[..., jax.Array], *arrays: object) -> list[np.ndarray]:
        @jax.jit
        def both_ways(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[object, ...]:
            y, back = jax.vjp(lambda x, kernel: convolve(x, kernel, (1, 1, 1)), x, kernel)
            return y, *back(gradient)

        return [np.asarray(found) for found in both_ways(*arrays)]

    with jax.enable_x64(True):
        exact = all_three(plain, np.float64(x), np.float64(kernel), np.float64(gradient))
    filtered, joined = (
        [np.sqrt(np.mean((found - right) ** 2)) for found, right in zip(all_three(f, x, kernel, gradient), exact, strict=True)]
        for f in (convolution.convolve, convolution.convolve_joined)
    )
    assert filtered[0] > joined[0]
    for ours, plain_sums, right in zip(filtered, joined, exact, strict=True):
        assert ours < 4 * plain_sums < 4e-6 * np.abs(right).max()


@kinds
def test_cpu_has_the_accelerators_program_in_bfloat16(
    filtering: None, size: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    assert len(re.findall(r"stablehlo\.convolution", program("cpu", size, stride, jnp.bfloat16))) == 3
    assert "dot_general" not in program("cpu", size, stride, jnp.bfloat16)
