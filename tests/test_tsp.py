"""Tests of the heads, and of the door between NNX modules and nested dicts."""

import dataclasses
import functools
import importlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsp_jax.models import backbones, functional, tsp
from tsp_jax.system import trees

# A backbone that compiles in a moment; the heads see 12 features.
TINY = {"blocks": (1, 1, 1, 1), "stem_widths": (4, 4), "widths": (4, 4, 8, 12)}
HEADS = [((7,), False), ((7,), True), ((7, 2), False), ((7, 2), True)]
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """Returns the name of a small backbone."""
    spec = backbones.BACKBONES["r3d_18"]
    tiny = dataclasses.replace(spec, build=functools.partial(spec.build, **TINY), width=12)
    monkeypatch.setitem(backbones.BACKBONES, "tiny", tiny)
    return "tiny"


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("backbone", "label_counts", "gvf", "message"),
    [
        ("r2plus1d_50", (), False, "unknown backbone 'r2plus1d_50'; known: r2plus1d_34, r2plus1d_18, r3d_18, r3d_tiny"),
        ("r3d_18", (200, 2, 3), False, r"0, 1 or 2 positive numbers; got \(200, 2, 3\)"),
        ("r3d_18", (200, 0), False, r"0, 1 or 2 positive numbers; got \(200, 0\)"),
        ("r3d_18", (-1,), False, r"0, 1 or 2 positive numbers; got \(-1,\)"),
        ("r3d_18", (), True, "gvf needs a head"),
    ],
)
def test_impossible_model_is_refused(backbone: str, label_counts: tuple[int, ...], gvf: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tsp.ModelConfig(backbone, label_counts, gvf)


@pytest.mark.parametrize(
    ("label_counts", "gvf", "heads"),
    # Source: the released checkpoints.
    [
        ((), False, {}),
        ((200,), False, {"fc": (512, 200)}),
        ((2,), True, {"fc": (1024, 2)}),
        ((200, 2), False, {"fc1": (512, 200), "fc2": (512, 2)}),
        ((20, 2), True, {"fc1": (512, 20), "fc2": (1024, 2)}),
    ],
)
def test_heads_have_the_released_names_and_widths(
    label_counts: tuple[int, ...], gvf: bool, heads: dict[str, tuple[int, int]]
) -> None:
    config = tsp.ModelConfig("r3d_18", label_counts, gvf)
    assert dict(zip(config.head_names, zip(config.head_inputs, label_counts, strict=True), strict=True)) == heads
    params = functional.shapes(config)["params"]
    assert params.keys() == {"features", *heads}
    for name, (width_in, classes) in heads.items():
        assert {key: leaf.shape for key, leaf in params[name].items()} == {
            "weight": (width_in, classes),
            "bias": (classes,),
        }


@pytest.mark.torch
@pytest.mark.parametrize(("label_counts", "gvf"), HEADS)
def test_logits_are_those_of_torch(tiny: str, x64: None, label_counts: tuple[int, ...], gvf: bool) -> None:
    torch = pytest.importorskip("torch")
    reference = importlib.import_module("torch_reference")
    net = reference.build("r3d_18", label_counts, gvf, **TINY).double()
    reference.randomize(net, 0)
    random = np.random.RandomState(1)
    clips, video_feature = random.standard_normal((2, 3, 4, 16, 16)), random.standard_normal((2, 12))
    features, logits = net(torch.tensor(clips), torch.tensor(video_feature) if gvf else None)
    found = quick_jit(tsp.evaluate, static_argnums=0)(
        tsp.ModelConfig(tiny, label_counts, gvf),
        reference.to_variables(net, np.float64),
        clips.transpose(0, 2, 3, 4, 1),
        video_feature if gvf else None,
    )
    expected = features.detach().numpy(), tuple(x.detach().numpy() for x in logits)
    # The tolerance is for two programs that compute the same sums in float64.
    reference.assert_close(found, expected, 1e-10)


def test_only_the_last_head_reads_the_global_video_feature(tiny: str) -> None:
    config, variables, clips = made(tiny, (7, 2), True)
    evaluate = quick_jit(tsp.evaluate, static_argnums=0)
    features, logits = evaluate(config, variables, clips, jnp.zeros((2, 12)))
    features_2, logits_2 = evaluate(config, variables, clips, jnp.ones((2, 12)))
    np.testing.assert_array_equal(features, features_2)
    np.testing.assert_array_equal(logits[0], logits_2[0])
    # Features come first: the last 12 rows of the kernel meet the ones.
    added = variables["params"]["fc2"]["weight"][12:].sum(0)
    # The tolerance is for float32 sums of 24 products in another order.
    np.testing.assert_allclose(logits_2[1] - logits[1], np.tile(added, (2, 1)), atol=1e-6 * np.abs(logits[1]).max())


def test_model_with_gvf_refuses_clips_without_it(tiny: str) -> None:
    config = tsp.ModelConfig(tiny, (7, 2), True)
    clips = jax.ShapeDtypeStruct((2, 4, 16, 16, 3), jnp.float32)
    for call in (tsp.evaluate, tsp.train):
        with pytest.raises(ValueError, match="pass gvf"):
            jax.eval_shape(functools.partial(call, config), functional.shapes(config), clips)


def test_encode_gives_the_features_of_evaluate_without_the_gvf(tiny: str) -> None:
    config, variables, clips = made(tiny, (7, 2), True)
    features, _ = quick_jit(tsp.evaluate, static_argnums=0)(config, variables, clips, jnp.zeros((2, 12)))
    encoded = quick_jit(tsp.encode, static_argnums=0)(config, variables, clips)
    # Two programs for the same float32 sums.
    np.testing.assert_allclose(encoded, features, rtol=1e-5)


@pytest.mark.parametrize(("label_counts", "gvf"), HEADS)
def test_heads_of_features_give_the_logits_of_evaluate(tiny: str, label_counts: tuple[int, ...], gvf: bool) -> None:
    config, variables, clips = made(tiny, label_counts, gvf)
    vector = jnp.linspace(-1, 1, 24).reshape(2, 12) if gvf else None
    features, logits = quick_jit(tsp.evaluate, static_argnums=0)(config, variables, clips, vector)
    found = quick_jit(tsp.heads, static_argnums=0)(config, variables, features, vector)
    assert len(found) == len(logits) == len(label_counts)
    for ours, expected in zip(found, logits, strict=True):
        # Two programs for the same float32 sums.
        np.testing.assert_allclose(ours, expected, atol=1e-6 * np.abs(expected).max())


def test_features_and_logits_are_float32_for_bfloat16_clips(tiny: str) -> None:
    config = tsp.ModelConfig(tiny, (7, 2), True)
    clips = jax.ShapeDtypeStruct((2, 4, 16, 16, 3), jnp.bfloat16)
    for gvf_dtype in (jnp.float32, jnp.bfloat16):
        gvf = jax.ShapeDtypeStruct((2, 12), gvf_dtype)
        for call in (tsp.evaluate, tsp.train):
            outputs = jax.eval_shape(functools.partial(call, config), functional.shapes(config), clips, gvf)
            features, logits = outputs[:2]
            assert (features.shape, features.dtype) == ((2, 12), jnp.float32)
            assert [(x.shape, x.dtype) for x in logits] == [((2, 7), jnp.float32), ((2, 2), jnp.float32)]


def test_init_is_a_function_of_the_seed_alone(tiny: str) -> None:
    config = tsp.ModelConfig(tiny, (300, 2))
    first, again, other = (trees.flatten(functional.init(config, seed)) for seed in (0, 0, 1))
    constants = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
    for key, leaf in first.items():
        name = key.split(".")[-1]
        assert leaf.dtype == (jnp.int32 if name == "num_batches_tracked" else jnp.float32)
        np.testing.assert_array_equal(leaf, again[key], key)
        if leaf.ndim > 1:
            assert np.all(np.asarray(leaf != other[key])), key
        else:
            np.testing.assert_array_equal(leaf, constants[name], key)
    # 3,600 draws of normal(0, 0.01): the deviation of their deviation is 1.2%.
    assert np.std(first["fc1.weight"]) == pytest.approx(0.01, rel=0.05)
    # 2,592 draws of a Kaiming normal by fan out, with 12 filters of 27 values a channel: 1.4%.
    assert np.std(first["features.layer4.0.conv1.0.weight"]) == pytest.approx((2 / (12 * 27)) ** 0.5, rel=0.06)


def test_train_returns_new_statistics_and_leaves_the_old_ones(tiny: str) -> None:
    config, variables, clips = made(tiny, (7,), False)
    # Only NumPy's arrays could be written to, and only op by op: within a trace nothing can.
    variables = jax.tree.map(np.array, variables)
    before = {key: np.array(leaf) for key, leaf in trees.flatten(variables).items()}
    _, _, batch_stats = tsp.train(config, variables, clips)
    for key, leaf in trees.flatten(variables).items():
        np.testing.assert_array_equal(leaf, before[key], key)
    after = trees.flatten({"batch_stats": batch_stats})
    assert after.keys() == {key for key in before if key.split(".")[-1] not in ("weight", "bias")}
    for key, leaf in after.items():
        assert np.any(np.asarray(leaf) != before[key]), key


def test_variables_of_another_model_are_refused_by_name(tiny: str) -> None:
    config = tsp.ModelConfig(tiny, (7,))
    clips = jax.ShapeDtypeStruct((2, 4, 16, 16, 3), jnp.float32)

    def refused(variables: functional.Variables, message: str) -> None:
        for call in (tsp.encode, tsp.evaluate, tsp.train):
            with pytest.raises(ValueError, match=message):
                jax.eval_shape(functools.partial(call, config), variables, clips)

    whole = functional.shapes(config)
    params, stats, bias = whole["params"], whole["batch_stats"], jax.ShapeDtypeStruct((7,), jnp.float32)
    head = params["fc"]
    refused({**whole, "params": {**params, "fc": {"bias": bias}}}, r"missing: params\.fc\.weight \(12, 7\)")
    refused({**whole, "params": {**params, "fc": {**head, "scale": bias}}}, r"unexpected: params\.fc\.scale \(7,\)")
    refused({"params": params}, r"missing: batch_stats\..*running_mean \(")
    refused({"params": stats, "batch_stats": params}, r"missing: params\.(.|\n)*unexpected: params\.")
    # NNX by itself would accept this and broadcast it.
    one = jax.ShapeDtypeStruct((1,), jnp.float32)
    refused(
        {**whole, "params": {**params, "fc": {**head, "bias": one}}},
        r"misshapen: params\.fc\.bias expected \(7,\)",
    )


def made(backbone: str, label_counts: tuple[int, ...], gvf: bool) -> tuple[tsp.ModelConfig, functional.Variables, jax.Array]:
    """Returns a model, variables that no initializer gives, and two clips."""
    config = tsp.ModelConfig(backbone, label_counts, gvf)
    random = np.random.RandomState(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = random.normal(0, 0.1, leaf.shape) if len(leaf.shape) > 1 else random.uniform(0.5, 1.5, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    clips = jnp.asarray(random.standard_normal((2, 4, 16, 16, 3)), jnp.float32)
    return config, jax.tree.map(draw, functional.shapes(config)), clips
