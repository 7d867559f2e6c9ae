"""Our sides of the benchmarks, as the commands of this project compute."""

import math
from typing import Any

import flax
import jax
import numpy as np
from jaxtyping import Array

from benchmarks import alternate, seeded
from convert import torch_names
from tsp_jax import checkpoints, encoder, optim, train_step
from tsp_jax.models import functional, tsp

# ---------------------------------------------------------------------------------------------------------- for model.py


def forward(spec: dict[str, Any]) -> alternate.Side:
    """The features of a batch that lies on the device, some clips at a time where the encoder does so."""
    checkpoint = seeded_checkpoint(spec)
    dtype = encoder.DTYPES[spec["dtype"]]
    at_once = math.gcd(spec["batch"], encoder._CPU_CLIPS_AT_ONCE) if jax.default_backend() == "cpu" else spec["batch"]

    @jax.jit
    def encode(variables: functional.Variables, clips: Array) -> Array:
        if at_once == spec["batch"]:
            return functional.encode(checkpoint.config, variables, clips, dtype)
        parts = clips.reshape(-1, at_once, *clips.shape[1:])
        found = jax.lax.map(lambda some: functional.encode(checkpoint.config, variables, some, dtype), parts)
        return found.reshape(spec["batch"], -1)

    variables = jax.device_put(checkpoint.variables)
    clips = jax.device_put(_batch(spec)["video"])
    features = encode(variables, clips)

    def run(count: int) -> None:
        jax.block_until_ready([encode(variables, clips) for _ in range(count)])

    return alternate.Side(run, np.asarray(features, np.float32), _about(spec))


def step(spec: dict[str, Any]) -> alternate.Side:
    """Steps of training on one batch that lies on the device; the clips come as they are, without augmentation.

    The outputs are losses and gradient norms of the first two steps.
    """
    checkpoint = seeded_checkpoint(spec)
    optimizer = optim.sgd(
        backbone_lr=seeded.BACKBONE_LR,
        fc_lr=seeded.FC_LR,
        momentum=seeded.MOMENTUM,
        weight_decay=seeded.WEIGHT_DECAY,
        warmup_steps=0,
        milestones=(),
    )
    one = train_step.make_train_step(
        checkpoint.config,
        optimizer,
        heads=("action", "temporal_region"),
        alphas=(1.0, 1.0),
        dtype=encoder.DTYPES[spec["dtype"]],
        prepare=lambda batch, dtype: batch["video"].astype(dtype),
    )
    batch = jax.device_put(_batch(spec))
    state = train_step.init_state(jax.device_put(checkpoint.variables), optimizer)
    outputs = []
    for _ in range(2):
        state, seen = one(state, batch)
        outputs += [float(seen.loss), float(seen.grad_norm)]

    def run(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, _ = one(state, batch)
        jax.block_until_ready(state)

    return alternate.Side(run, np.array(outputs), _about(spec))


# --------------------------------------------------------------------------------------------------------------- helpers


def seeded_checkpoint(spec: dict[str, Any]) -> checkpoints.Checkpoint:
    """The backbone with two heads and a GVF, and the weights that PyTorch's sides have too."""
    shapes = torch_names.torch_shapes(tsp.ModelConfig(spec["backbone"], tuple(spec["label_counts"]), gvf=True))
    values = {
        key: np.asarray(value, value.dtype if value.dtype.kind == "i" else np.float32)
        for key, value in seeded.state(shapes, 0).items()
    }
    config, variables = torch_names.from_state_dict(values)
    return checkpoints.make(config, variables, checkpoints.Origin("seeded weights of the benchmarks"))


def _batch(spec: dict[str, Any]) -> dict[str, np.ndarray]:
    return seeded.batch(spec["batch"], tuple(spec["clip"]), tuple(spec["label_counts"]), 512)


def _about(spec: dict[str, Any]) -> dict[str, Any]:
    device = jax.local_devices()[0]
    return {
        "versions": {**alternate.versions("jax", "jaxlib"), "flax": flax.__version__},
        "platform": device.platform,
        "device": device.device_kind,
        "dtype": spec["dtype"],
    }
