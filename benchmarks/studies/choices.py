"""Times other ways to write our programs, in one process: convolutions, BatchNorm, widths, donation, dispatch.

The forward passes are written out here, over the weights that the product reads, and must give the product's features before
anything is timed. The fastest way belongs into `tsp_jax`; `ours` is the product's own program.
"""

import argparse
import functools
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import nnx
from jaxtyping import Array

from benchmarks import alternate, model, ours
from tsp_jax.extraction import batches
from tsp_jax.models import backbones, convolution
from tsp_jax.system import cli

FORWARD = ("written out", "3-D", "folded", "padded", "folded and padded", "waited for")
STEP = ("not donated",)
MULTIPLE = 8  # the multiple to which widths are padded: tensor cores take that many at once


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0 all is well, 1 a choice fails or differs, 2 wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.choices",
        description=__doc__,
        epilog="example: python -m benchmarks.studies.choices --backbone r2plus1d_18 --dtype bfloat16 --batch 32 64",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--backbone", nargs="+", choices=model.BACKBONES, default=["r2plus1d_34"])
    add("--dtype", nargs="+", choices=model.DTYPES, default=["float32"])
    add("--batch", type=cli.positive_int, nargs="+", default=[4], help="clips in a batch")
    alternate.add_clip(parser)
    add("--forward", nargs="*", choices=FORWARD, default=list(FORWARD), help="ways to compare with the product's forward pass")
    add("--step", nargs="*", choices=STEP, default=list(STEP), help="ways to compare with the product's step of training")
    add("--rounds", type=cli.positive_int, default=5, help="number of rounds; each way has one turn in a round")
    add("--seconds", type=float, default=1.0, help="about how long a turn takes")
    add("--json", metavar="FILE", help="the file to write all numbers to")
    options = parser.parse_args(arguments)

    def work(result: dict[str, Any]) -> None:
        for backbone, dtype, batch in itertools.product(options.backbone, options.dtype, options.batch):
            spec = {"backbone": backbone, "label_counts": model.LABEL_COUNTS, "gvf": True}
            spec |= {"dtype": dtype, "batch": batch, "clip": options.clip}
            for mode, names in (("forward", options.forward), ("step", options.step)):
                if names:
                    work = f"{mode} {backbone} {dtype}, {batch} clips"
                    alternate.add(result, _measure(work, mode, names, spec, options), options)

    return alternate.run(options, work)


def _measure(work: str, mode: str, names: Sequence[str], spec: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Returns measurements as `alternate.measure` does: the product's program and the choices, in changing order."""
    result: dict[str, Any] = {"work": work, "spec": spec, "clips": spec["batch"], "sides": {}, "left_out": {}}
    sides: dict[str, alternate.Side] = {}
    for name in tqdm.tqdm((alternate.OURS, *names), f"{work}: compile", disable=None):
        if name == alternate.OURS:
            side = ours.forward(spec) if mode == "forward" else ours.step(spec)
        else:
            side = forward(spec, name) if mode == "forward" else step_not_donated(spec)
        sides[name] = side
        expected = sides[alternate.OURS].outputs
        difference = alternate.difference(name, side.outputs, expected)
        if not difference <= model.TOLERANCES[mode][spec["dtype"]]:
            raise alternate.BenchmarkError(f"{work}: {name} differs from the product by {difference:.1e} of the largest value")
        result["sides"][name] = {"about": side.about, "difference": difference, "laps": []}
    counts = {name: max(1, round(options.seconds / _seconds(side, 1))) for name, side in sides.items()}
    for number in tqdm.trange(options.rounds, desc=work, unit="round", disable=None):
        for position in range(len(sides)):
            name = list(sides)[(number + position) % len(sides)]
            lap = {"clips": spec["batch"] * counts[name], "seconds": _seconds(sides[name], counts[name])}
            result["sides"][name]["laps"].append(lap)
    return result


def _seconds(side: alternate.Side, count: int) -> float:
    began = time.perf_counter()
    side.run(count)
    return time.perf_counter() - began


# ------------------------------------------------------------------------------------------------------------ the choices

Pairs = list[dict[str, Any]]  # a convolution's kernel, and the scale and shift of the BatchNorm after it


def forward(spec: dict[str, Any], choice: str) -> alternate.Side:
    """Returns the features of a batch that is already on the device, by the network as it is written out here."""
    ours.start(1)
    checkpoint, dtype = ours.seeded_checkpoint(spec), batches.DTYPES[spec["dtype"]]
    backbone = backbones.BACKBONES[spec["backbone"]]
    in_float32 = backbone.float32_stages
    module: Any = nnx.eval_shape(lambda: backbone.build(float32_stages=in_float32, rngs=nnx.Rngs(0)))
    epsilon = module.stem.layers[1].epsilon  # the BatchNorm after the first convolution; all have the same
    params, stats = (checkpoint.variables[kind]["features"] for kind in ("params", "batch_stats"))

    def pairs(*path: str) -> Pairs:
        found = _pairs(_at(params, path), _at(stats, path), epsilon)
        found = [_folded(pair) for pair in found] if "folded" in choice else found
        return [_padded(pair) for pair in found] if "padded" in choice else found

    layers = [name for name in params if name != "stem"]
    network: dict[str, Any] = {"stem": pairs("stem")}
    for layer in layers:
        for block, parts in params[layer].items():
            network[f"{layer}.{block}"] = {part: pairs(layer, block, part) for part in parts}
    convolve = _convolve_3d if choice == "3-D" else convolution.convolve

    @jax.jit
    def encode(network: dict[str, Any], clips: Array) -> Array:
        def chain(x: Array, pairs: Pairs, stride: tuple[int, int], relu_last: bool) -> Array:
            for number, pair in enumerate(pairs):
                kt, kh = pair["kernel"].shape[:2]
                time_step, step = stride[0] if kt > 1 or kh == 1 else 1, stride[1] if kt == 1 or kh > 1 else 1
                x = convolve(x, pair["kernel"].astype(x.dtype), (time_step, step, step))
                x = (x.astype(jnp.float32) * pair.get("scale", 1) + pair["shift"]).astype(x.dtype)
                x = jax.nn.relu(x) if relu_last or number < len(pairs) - 1 else x
            return x

        def stage_dtype(name: str) -> Any:
            return jnp.float32 if name in in_float32 else dtype

        x = chain(clips.astype(stage_dtype("stem")), network["stem"], (1, 2), True)
        for layer in layers:
            x = x.astype(stage_dtype(layer))
            for block in sorted(params[layer], key=int):
                parts, step = network[f"{layer}.{block}"], 2 if layer != "layer1" and block == "0" else 1
                y = chain(chain(x, parts["conv1"], (step, step), True), parts["conv2"], (1, 1), False)
                x = jax.nn.relu(y + (chain(x, parts["downsample"], (step, step), False) if "downsample" in parts else x))
        return jnp.mean(x, axis=(1, 2, 3), dtype=jnp.float32)

    placed, clips = jax.device_put(network), jax.device_put(ours.batch(spec)["video"])
    features = np.asarray(encode(placed, clips))

    def run(count: int) -> None:
        found = []
        for _ in range(count):
            found.append(encode(placed, clips))
            if choice == "waited for":
                found[-1].block_until_ready()
        jax.block_until_ready(found)

    return alternate.Side(run, features, ours.about(spec))


def step_not_donated(spec: dict[str, Any]) -> alternate.Side:
    """Returns the product's step of training without donation: the state before the step is kept."""
    jit = jax.jit

    def without(function: Callable[..., Any], **settings: Any) -> Any:
        return jit(function, **{key: value for key, value in settings.items() if not key.startswith("donate")})

    with mock.patch.object(jax, "jit", without):
        return ours.step(spec)


def _at(tree: Any, path: Sequence[str]) -> Any:
    return functools.reduce(lambda found, key: found[key], path, tree)


def _pairs(params: dict[str, Any], stats: dict[str, Any], epsilon: float) -> Pairs:
    """Yields the convolutions of a sequence and of the sequences in it, in order."""
    found: Pairs = []
    for key in sorted(params, key=int):
        held = {name: np.asarray(value) for name, value in params[key].items() if not isinstance(value, dict)}
        if not held:
            found += _pairs(params[key], stats.get(key, {}), epsilon)
        elif held["weight"].ndim == 5:
            found.append({"kernel": held["weight"]})
        else:
            scale = held["weight"] / np.sqrt(np.asarray(stats[key]["running_var"]) + epsilon)
            found[-1] |= {"scale": scale, "shift": held["bias"] - np.asarray(stats[key]["running_mean"]) * scale}
    return found


def _folded(pair: dict[str, Any]) -> dict[str, Any]:
    return {"kernel": pair["kernel"] * pair["scale"], "shift": pair["shift"]}


def _padded(pair: dict[str, Any]) -> dict[str, Any]:
    """Returns the arrays with widths filled up with zeros, but not the three channels of the clips."""
    kernel = pair["kernel"]
    width_in, width = ((0, -size % MULTIPLE if size > 3 else 0) for size in kernel.shape[3:])
    more = {name: np.pad(value, [width]) for name, value in pair.items() if name != "kernel"}
    return {"kernel": np.pad(kernel, [(0, 0)] * 3 + [width_in, width]), **more}


def _convolve_3d(x: Array, kernel: Array, stride: tuple[int, int, int]) -> Array:
    padding = [(size // 2, size // 2) for size in kernel.shape[:3]]
    names, precision = ("NDHWC", "DHWIO", "NDHWC"), jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=names, precision=precision)


if __name__ == "__main__":
    sys.exit(main())
