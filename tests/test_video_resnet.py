"""Tests that the encoders compute what PyTorch's do: single layers, blocks and whole networks, mostly in float64."""

import dataclasses
import functools
import importlib
import math
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tsp_jax.models import backbones, convolution, functional, tsp, video_resnet
from tsp_jax.system import trees

FAMILIES = ("r2plus1d_34", "r2plus1d_18", "r3d_18")
# No two widths are alike, but layer1 keeps the stem's, because its block has no downsample.
SMALL = {"blocks": (1, 1, 1, 1), "stem_widths": (5, 6), "widths": (6, 8, 10, 12)}
# Two programs compute the same sums in float64. The largest difference seen was 1e-13 of an array's largest value.
EXACT = 1e-10
# These programs run once, so optimizing them would take longer than running them.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})


@pytest.fixture
def reference() -> ModuleType:
    """Returns the module with the networks in PyTorch."""
    pytest.importorskip("torch")
    return importlib.import_module("torch_reference")


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the three families as backbones `small_…`, at a size that float64 can afford."""
    for name in FAMILIES:
        spec = backbones.BACKBONES[name]
        smaller = dataclasses.replace(spec, build=functools.partial(spec.build, **SMALL), width=12)
        monkeypatch.setitem(backbones.BACKBONES, f"small_{name}", smaller)


@pytest.mark.parametrize(
    ("backbone", "parameters", "entries"),
    # Source: the released checkpoints.
    [("r2plus1d_34", 63_491_975, 418), ("r2plus1d_18", 31_300_125, 226), ("r3d_18", 33_166_272, 124)],
)
def test_networks_are_as_large_as_the_released_ones(backbone: str, parameters: int, entries: int) -> None:
    shapes = functional.shapes(tsp.ModelConfig(backbone))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"])) == parameters
    for label_counts, count in (((200, 2), entries), ((200,), entries - 2)):
        assert len(trees.flatten(functional.shapes(tsp.ModelConfig(backbone, label_counts)))) == count


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_features_are_as_wide_as_the_backbone_says(name: str) -> None:
    config = tsp.ModelConfig(name, (7, 2), True)
    clips = jax.ShapeDtypeStruct((2, 16, 112, 112, 3), jnp.float32)
    found = jax.eval_shape(functools.partial(tsp.encode, config), functional.shapes(config), clips)
    width = backbones.BACKBONES[name].width
    assert found.shape == (2, width) and config.head_inputs == (width, 2 * width)
    assert width == (128 if name == "r3d_tiny" else 512)


@pytest.mark.torch
@pytest.mark.parametrize("conv", ["r2plus1d", "r3d"])
def test_stem_strides_in_time_and_space(reference: ModuleType, x64: None, conv: Literal["r2plus1d", "r3d"]) -> None:
    """Only a backbone of this project has such strides. It equals torchvision's stem with these strides."""
    stride = (2, 4, 3)
    ours = video_resnet.VideoResNet(conv, (), stem_widths=(5, 6), stem_stride=stride, widths=(), rngs=nnx.Rngs(0)).stem
    x = np.random.RandomState(0).standard_normal((2, 5, 18, 20, 3))
    torch = reference.torch
    y = torch.tensor(x.transpose(0, 4, 1, 2, 3))
    kernels = [layer.weight[...] for layer in ours.layers if isinstance(layer, video_resnet.Conv)]
    strides = [stride] if conv == "r3d" else [(1, *stride[1:]), (stride[0], 1, 1)]
    for kernel, step in zip(kernels, strides, strict=True):
        weight = torch.tensor(np.asarray(kernel, np.float64).transpose(4, 3, 0, 1, 2))
        y = torch.nn.functional.conv3d(y, weight, stride=step, padding=tuple(n // 2 for n in weight.shape[2:]))
        # Fresh BatchNorm in evaluation mode divides by the root of 1 + epsilon.
        y = torch.relu(y / (1 + 1e-5) ** 0.5)
    # The fresh statistics are float32, and so is the root of their sum with epsilon.
    reference.assert_close(ours(jnp.asarray(x), train=False), channels_last(y), 1e-6)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("kernel", "stride"),
    [
        ((1, 7, 7), (1, 2, 2)),
        ((3, 7, 7), (1, 2, 2)),
        ((1, 3, 3), (1, 1, 1)),
        ((1, 3, 3), (1, 2, 2)),
        ((3, 1, 1), (1, 1, 1)),
        ((3, 1, 1), (2, 1, 1)),
        ((3, 3, 3), (1, 1, 1)),
        ((3, 3, 3), (2, 2, 2)),
        ((1, 1, 1), (2, 2, 2)),
    ],
)
def test_convolution_and_its_gradients_are_those_of_torch(
    reference: ModuleType, x64: None, kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    torch = reference.torch
    random = np.random.RandomState(0)
    weight = torch.tensor(random.standard_normal((4, 3, *kernel)), requires_grad=True)
    ours = quick_jit(lambda x, weight: convolution.convolve(x, weight, stride))
    for t, h, w in ((1, 7, 6), (2, 8, 5), (3, 5, 7), (5, 1, 9), (4, 7, 7)):
        x = torch.tensor(random.standard_normal((2, 3, t, h, w)), requires_grad=True)
        y = torch.nn.functional.conv3d(x, weight, stride=stride, padding=tuple(size // 2 for size in kernel))
        arguments = channels_last(x), weight.detach().numpy().transpose(2, 3, 4, 1, 0)
        reference.assert_close(ours(*arguments), channels_last(y), EXACT)

    def loss(x: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.sum(convolution.convolve(x, weight, stride) ** 2)

    (y**2).sum().backward()
    found = quick_jit(jax.grad(loss, argnums=(0, 1)))(*arguments)
    expected = channels_last(x.grad), weight.grad.numpy().transpose(2, 3, 4, 1, 0)
    reference.assert_close(found, expected, EXACT)


def test_temporal_convolution_that_strides_in_space_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strides in time alone; got stride \(1, 2, 1\)"):
        convolution.convolve(jnp.zeros((1, 3, 4, 4, 2)), jnp.zeros((3, 1, 1, 2, 2)), (1, 2, 1))


@pytest.mark.torch
def test_batch_norm_keeps_the_statistics_that_torch_keeps(reference: ModuleType, x64: None) -> None:
    torch = reference.torch
    theirs = torch.nn.BatchNorm3d(5, eps=1e-3, momentum=0.3).double()
    reference.randomize(theirs, 0)
    ours = video_resnet.BatchNorm(5, epsilon=1e-3, momentum=0.3)
    variables = reference.to_variables(theirs, np.float64)
    first = variables["batch_stats"]["num_batches_tracked"]
    for seed, train in ((1, False), (2, True), (3, True), (4, False)):
        x = 3 + 2 * np.random.RandomState(seed).standard_normal((2, 5, 3, 2, 2))
        y = theirs.train(train)(torch.tensor(x))
        found, variables["batch_stats"] = apply(ours, variables, x.transpose(0, 2, 3, 4, 1), train=train)
        reference.assert_close(found, channels_last(y), EXACT)
        reference.assert_close(variables["batch_stats"], reference.to_variables(theirs, np.float64)["batch_stats"], EXACT)
    assert variables["batch_stats"]["num_batches_tracked"] == first + 2


def test_batch_norm_normalizes_with_the_biased_variance_and_keeps_the_unbiased_one() -> None:
    x = np.random.RandomState(0).standard_normal((2, 1, 1, 2, 3)).astype(np.float32)
    norm = video_resnet.BatchNorm(3, epsilon=0.0, momentum=1.0)
    y = norm(jnp.asarray(x), train=True)
    np.testing.assert_allclose(norm.running_mean[...], x.mean((0, 1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(norm.running_var[...], x.var((0, 1, 2, 3), ddof=1), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(y).var((0, 1, 2, 3)), 1, rtol=1e-5)


def test_batch_norm_in_float32_survives_a_mean_far_from_zero() -> None:
    # The mean of squares minus the squared mean would keep no digit here.
    x = (3000 + np.random.RandomState(0).standard_normal((2, 4, 8, 8, 3))).astype(np.float32)
    norm = video_resnet.BatchNorm(3, epsilon=1e-5, momentum=1.0)
    norm(jnp.asarray(x), train=True)
    # float32 is spaced by 2.4e-4 there, so that the mean is right to about 1e-4 and the variance to its square.
    np.testing.assert_allclose(norm.running_var[...], x.astype(np.float64).var((0, 1, 2, 3), ddof=1), rtol=1e-5)


def test_batch_norm_of_bfloat16_takes_its_statistics_in_float32() -> None:
    x = jnp.asarray(3 + np.random.RandomState(0).standard_normal((2, 8, 8, 8, 3)), jnp.bfloat16)
    norm = video_resnet.BatchNorm(3, epsilon=1e-5, momentum=1.0)
    assert norm(x, train=True).dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    # bfloat16 has a precision of 4e-3.
    np.testing.assert_allclose(norm.running_mean[...], exact.mean((0, 1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(norm.running_var[...], exact.var((0, 1, 2, 3), ddof=1), rtol=1e-5)


@pytest.mark.torch
def test_batch_norm_of_one_value_a_channel_gives_its_bias_where_torch_refuses(reference: ModuleType) -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        reference.torch.nn.BatchNorm3d(3).train()(reference.torch.ones(1, 3, 1, 1, 1))
    norm = video_resnet.BatchNorm(3, epsilon=1e-5, momentum=0.1)
    norm.bias[...] = jnp.array([1.0, 2.0, 3.0])
    y = norm(jnp.full((1, 1, 1, 1, 3), 7.0), train=True)
    np.testing.assert_array_equal(y.ravel(), [1, 2, 3])
    # One value has no unbiased variance; it counts as 0, not as NaN.
    np.testing.assert_allclose(norm.running_var[...], 0.9)
    np.testing.assert_allclose(norm.running_mean[...], 0.7)


@pytest.mark.torch
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("path", ["stem", "layer1.0", "layer2.0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_block_is_that_of_torch(reference: ModuleType, x64: None, small: None, family: str, path: str, train: bool) -> None:
    net = reference.build(family, **SMALL).double()
    reference.randomize(net, 0)
    theirs = net.features.get_submodule(path).train(train)
    ours = nnx.eval_shape(lambda: tsp.ModelConfig(f"small_{family}").build(nnx.Rngs(0)).features)
    for name in path.split("."):
        ours = getattr(ours, name)
    assert getattr(ours, "reshapes", None) == {"layer1.0": False, "layer2.0": True}.get(path)
    width_in = 3 if path == "stem" else 6
    x = np.random.RandomState(1).standard_normal((2, width_in, 5, 7, 6))
    variables = reference.to_variables(theirs, np.float64)
    expected = channels_last(theirs(reference.torch.tensor(x)))
    found, batch_stats = apply(ours, variables, x.transpose(0, 2, 3, 4, 1), train=train)
    reference.assert_close(found, expected, EXACT)
    reference.assert_close(batch_stats, reference.to_variables(theirs, np.float64)["batch_stats"], EXACT)


@pytest.mark.torch
@pytest.mark.parametrize("family", FAMILIES)
def test_small_network_is_that_of_torch(reference: ModuleType, x64: None, small: None, family: str) -> None:
    net = reference.build(family, (7, 2), True, **SMALL).double()
    reference.randomize(net, 0)
    clips, gvf = small_batch()
    features, logits = net(reference.torch.tensor(clips), reference.torch.tensor(gvf))
    evaluate = quick_jit(tsp.evaluate, static_argnums=0)
    config, variables = tsp.ModelConfig(f"small_{family}", (7, 2), True), reference.to_variables(net, np.float64)
    found = evaluate(config, variables, clips.transpose(0, 2, 3, 4, 1), gvf)
    expected = features.detach().numpy(), tuple(x.detach().numpy() for x in logits)
    reference.assert_close(found, expected, EXACT)


@pytest.mark.torch
@pytest.mark.parametrize("family", FAMILIES)
def test_small_network_trains_as_that_of_torch(reference: ModuleType, x64: None, small: None, family: str) -> None:
    net = reference.build(family, (7, 2), True, **SMALL).double().train()
    reference.randomize(net, 0)
    config, variables = tsp.ModelConfig(f"small_{family}", (7, 2), True), reference.to_variables(net, np.float64)
    clips, gvf = small_batch()
    their_clips = reference.torch.tensor(clips, requires_grad=True)
    features, logits = net(their_clips, reference.torch.tensor(gvf))
    (features.sum() + sum((x**2).sum() for x in logits)).backward()

    def loss(params: Any, clips: jax.Array, batch_stats: Any) -> tuple[jax.Array, Any]:
        outputs = tsp.train(config, {"params": params, "batch_stats": batch_stats}, clips, jnp.asarray(gvf))
        features, logits, _ = outputs
        return features.sum() + sum((x**2).sum() for x in logits), outputs

    gradients, outputs = quick_jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(
        variables["params"], clips.transpose(0, 2, 3, 4, 1), variables["batch_stats"]
    )
    expected_outputs = (
        features.detach().numpy(),
        tuple(x.detach().numpy() for x in logits),
        reference.to_variables(net, np.float64)["batch_stats"],
    )
    reference.assert_close(outputs, expected_outputs, EXACT)
    their_gradients = {key: parameter.grad for key, parameter in net.named_parameters()}
    expected_gradients = reference.nest(their_gradients, np.float64), channels_last(their_clips.grad)
    reference.assert_close(gradients, expected_gradients, EXACT)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("backbone", FAMILIES)
def test_real_network_is_that_of_torch(reference: ModuleType, backbone: str) -> None:
    net = reference.build(backbone)
    reference.randomize(net, 0)
    clips = np.random.RandomState(1).standard_normal((1, 3, 16, 112, 112)).astype(np.float32)
    with reference.torch.no_grad():
        expected, _ = net(reference.torch.tensor(clips))
    encode = jax.jit(tsp.encode, static_argnums=0)
    found = encode(tsp.ModelConfig(backbone), reference.to_variables(net), clips.transpose(0, 2, 3, 4, 1))
    # Three seeds gave 1.2e-7 to 2.1e-7, which is as far as either is from float64. The mean over 98 places in time and space
    # evens out what a layer rounds.
    reference.assert_close(found, expected.numpy(), 2e-6)


@pytest.mark.slow
@pytest.mark.torch
def test_real_network_trains_as_that_of_torch(reference: ModuleType) -> None:
    net = reference.build("r3d_18").train()
    reference.randomize(net, 0)
    variables = reference.to_variables(net)
    clips = np.random.RandomState(1).standard_normal((2, 3, 8, 56, 56)).astype(np.float32)
    with reference.torch.no_grad():
        expected, _ = net(reference.torch.tensor(clips))
    train = jax.jit(tsp.train, static_argnums=0)
    found, _, batch_stats = train(tsp.ModelConfig("r3d_18"), variables, clips.transpose(0, 2, 3, 4, 1))
    # We saw 2.1e-6 and 3.1e-7. Each layer divides by a deviation that is itself rounded, the last by one of 32 values.
    reference.assert_close(found, expected.numpy(), 2e-5)
    reference.assert_close(batch_stats, reference.to_variables(net)["batch_stats"], 3e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_clips_leave_parameters_and_statistics_in_float32(small: None, family: str) -> None:
    config = tsp.ModelConfig(f"small_{family}", (7,))

    def loss(params: Any, batch_stats: Any, clips: jax.Array) -> tuple[jax.Array, Any]:
        outputs = tsp.train(config, {"params": params, "batch_stats": batch_stats}, clips)
        return outputs[1][0].sum(), outputs

    clips = jax.ShapeDtypeStruct((2, 4, 16, 16, 3), jnp.bfloat16)
    shapes = functional.shapes(config)
    gradients, outputs = jax.eval_shape(jax.grad(loss, has_aux=True), shapes["params"], shapes["batch_stats"], clips)
    features, (logits,), batch_stats = outputs
    assert features.dtype == logits.dtype == jnp.float32
    assert dtypes(gradients) == dtypes(shapes["params"])
    assert dtypes(batch_stats) == dtypes(shapes["batch_stats"])


@pytest.mark.slow
@pytest.mark.torch
def test_bfloat16_features_point_where_float32_ones_do(reference: ModuleType) -> None:
    net = reference.build("r3d_18")
    reference.randomize(net, 0)
    config, variables = tsp.ModelConfig("r3d_18"), reference.to_variables(net)
    clips = np.random.RandomState(1).standard_normal((1, 16, 112, 112, 3)).astype(np.float32)
    encode = quick_jit(tsp.encode, static_argnums=0)
    narrow, wide = encode(config, variables, clips.astype(jnp.bfloat16)), encode(config, variables, clips)
    assert narrow.dtype == wide.dtype == jnp.float32
    assert np.any(narrow != wide)
    # We saw 0.999997, and the same for PyTorch's autocast.
    assert np.vdot(narrow, wide) / (np.linalg.norm(narrow) * np.linalg.norm(wide)) >= 0.9999


@pytest.mark.parametrize("backbone", FAMILIES)
def test_float32_program_has_only_2d_convolutions_of_highest_precision(backbone: str) -> None:
    config = tsp.ModelConfig(backbone, (200, 2))
    shapes = functional.shapes(config)
    clips = jax.ShapeDtypeStruct((1, 16, 112, 112, 3), jnp.float32)
    program = accelerators_program(functools.partial(tsp.evaluate, config), shapes, clips)
    kernels = sum(len(leaf.shape) in (2, 5) for leaf in jax.tree.leaves(shapes["params"]))
    assert check_products(program) == kernels


def test_float32_gradients_have_only_2d_convolutions_of_highest_precision() -> None:
    config = tsp.ModelConfig("r3d_18", (200, 2))
    shapes = functional.shapes(config)
    clips = jax.ShapeDtypeStruct((1, 16, 112, 112, 3), jnp.float32)

    def loss(params: Any, batch_stats: Any, clips: jax.Array) -> jax.Array:
        _, logits, _ = tsp.train(config, {"params": params, "batch_stats": batch_stats}, clips)
        return logits[0].sum() + logits[1].sum()

    program = accelerators_program(jax.grad(loss), shapes["params"], shapes["batch_stats"], clips)
    kernels = sum(len(leaf.shape) in (2, 5) for leaf in jax.tree.leaves(shapes["params"]))
    # Each kernel has one product forward and two backward. The clips need no gradient, and the sum needs no logits.
    assert check_products(program) == 3 * kernels - 1 - len(config.label_counts)


def test_bfloat16_program_convolves_in_bfloat16() -> None:
    config = tsp.ModelConfig("r2plus1d_18")
    clips = jax.ShapeDtypeStruct((1, 16, 112, 112, 3), jnp.bfloat16)
    program = jax.jit(tsp.encode, static_argnums=0).lower(config, functional.shapes(config), clips).as_text()
    convolutions = re.findall(r"stablehlo\.convolution.*", program)
    assert len(convolutions) == 37
    assert all(convolution.count("xbf16>") == 3 for convolution in convolutions)


def accelerators_program(function: Callable[..., Any], *arguments: Any) -> str:
    """Returns the program that runs on a GPU, as StableHLO; a CPU has convolutions of its own (`test_convolution.py`)."""
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def check_products(program: str) -> int:
    """Checks the precision of each convolution and matrix product in StableHLO text. Returns the number of both."""
    products = re.findall(r"stablehlo\.(?:convolution|dot_general).*", program)
    for product in products:
        # At any other precision, GPU and TPU would round the factors to TF32 or bfloat16.
        assert product.count("HIGHEST") == 2, product
        ranks = [sizes.count("x") for sizes in re.findall(r"tensor<((?:\d+x)+)f32>", product)]
        assert len(ranks) == 3 and max(ranks) <= 4, product
    return len(products)


def apply(module: nnx.Module, variables: functional.Variables, x: np.ndarray, *, train: bool) -> tuple[jax.Array, Any]:
    """Returns a module's output with these variables, and its batch statistics afterwards."""
    graph, *states = nnx.split(module, nnx.Param, nnx.BatchStat)
    for state, values in zip(states, (variables["params"], variables["batch_stats"]), strict=True):
        nnx.replace_by_pure_dict(state, values)

    @quick_jit
    def call(states: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        module = nnx.merge(graph, *states)
        y = module(x, train=train)
        return y, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    return call(states, x)


def dtypes(tree: Any) -> dict[str, Any]:
    """Returns the dtype of each leaf, by dotted name."""
    return {key: leaf.dtype for key, leaf in trees.flatten({"": tree}).items()}


def channels_last(x: Any) -> np.ndarray:
    """Returns a tensor `[b, c, t, h, w]` as an array `[b, t, h, w, c]`."""
    return x.detach().numpy().transpose(0, 2, 3, 4, 1)


def small_batch() -> tuple[np.ndarray, np.ndarray]:
    """Returns clips `[b, c, t, h, w]` and global video features, float64."""
    random = np.random.RandomState(1)
    return random.standard_normal((3, 3, 9, 20, 24)), random.standard_normal((3, 12))
