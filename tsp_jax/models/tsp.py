"""An encoder with its classification heads: TSP (action and temporal region, with or without GVF) or one label alone."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tsp_jax.models import backbones, functional, precision, video_resnet


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The configuration of an encoder and its heads, which suffices to build it.

    Attributes:
      backbone: a key of `backbones.BACKBONES`.
      label_counts: number of classes of each head: `(action, temporal region)` for TSP, `(action,)` for TAC, `()` for no head.
      gvf: whether the last head reads the clip's features joined with the video's global feature.
    """

    kind: ClassVar[str] = "tsp"
    backbone: str
    label_counts: tuple[int, ...] = ()
    gvf: bool = False

    def __post_init__(self):
        if self.backbone not in backbones.BACKBONES:
            raise ValueError(f"unknown backbone {self.backbone!r}; known: {', '.join(backbones.BACKBONES)}")
        if len(self.label_counts) > 2 or any(n < 1 for n in self.label_counts):
            raise ValueError(f"label_counts has 0, 1 or 2 positive numbers; got {self.label_counts}")
        if self.gvf and not self.label_counts:
            raise ValueError("gvf needs a head to read it")

    @property
    def spec(self) -> backbones.BackboneSpec:
        """The backbone's builder, width and preprocessing."""
        return backbones.BACKBONES[self.backbone]

    def build(self, rngs: nnx.Rngs) -> "TSP":
        """Returns the model with fresh variables."""
        return TSP(self, rngs=rngs)

    @property
    def head_names(self) -> tuple[str, ...]:
        """The heads' names in the released checkpoints: `fc` alone, or `fc1` and `fc2`."""
        return ("fc",) if len(self.label_counts) == 1 else ("fc1", "fc2")[: len(self.label_counts)]

    @property
    def head_inputs(self) -> tuple[int, ...]:
        """The input width of each head."""
        last = len(self.label_counts) - 1
        width = self.spec.width
        return tuple(width * (2 if self.gvf and i == last else 1) for i in range(len(self.label_counts)))


def encode(
    config: ModelConfig,
    variables: functional.Variables,
    clips: Float[Array | np.ndarray, "b t h w 3"],
    dtype: DTypeLike | None = None,
) -> Float[Array, "b f"]:
    """Returns the features in evaluation mode, without the heads, computed in `dtype`. Pure: call it under `jax.jit`."""
    return _module(config, variables).features(clips, train=False, dtype=dtype)


def heads(
    config: ModelConfig,
    variables: functional.Variables,
    features: Float[Array | np.ndarray, "b f"],
    gvf: Float[Array | np.ndarray, "b f"] | None = None,
) -> tuple[Float[Array, "b _"], ...]:
    """Returns the heads' logits from the features that `encode` returned: the logits of `evaluate`. Pure."""
    return _module(config, variables).heads(features, gvf)


def evaluate(
    config: ModelConfig,
    variables: functional.Variables,
    clips: Float[Array | np.ndarray, "b t h w 3"],
    gvf: Float[Array | np.ndarray, "b f"] | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[Float[Array, "b f"], tuple[Float[Array, "b _"], ...]]:
    """Returns the features and the heads' logits in evaluation mode, computed in `dtype`. Pure."""
    return _module(config, variables)(clips, gvf, train=False, dtype=dtype)


def train(
    config: ModelConfig,
    variables: functional.Variables,
    clips: Float[Array | np.ndarray, "b t h w 3"],
    gvf: Float[Array | np.ndarray, "b f"] | None = None,
    dtype: DTypeLike | None = None,
    remat: bool = False,
    axes: tuple[str, ...] = (),
) -> tuple[Float[Array, "b f"], tuple[Float[Array, "b _"], ...], functional.Variables]:
    """Returns the features, the logits and the batch statistics after this batch, in training mode. Pure.

    Args:
      config: the model's configuration.
      variables: the model's variables, which are left as they are.
      clips: normalized RGB clips.
      gvf: global video features; needed if the last head reads them.
      dtype: the compute precision; by default the dtype of the clips.
      remat: whether the backward pass computes the activations within each block again. Then only the inputs of the blocks are
        kept in memory.
      axes: the mesh axes, under `jax.shard_map`, over which batch statistics are taken together.
    """
    model = _module(config, variables)
    features, logits = model(clips, gvf, train=True, dtype=dtype, remat=remat, axes=axes)
    return features, logits, functional.batch_stats(model)


class TSP(nnx.Module):
    """Features `[b, f]` and one logits array `[b, classes]` a head, all float32, from normalized RGB clips.

    Source: TSP (Alwassel et al. 2021), figure 2 and released code.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.features = config.spec.build(float32_stages=config.spec.float32_stages, rngs=rngs)
        self.head_names, self.gvf = config.head_names, config.gvf
        for name, width, classes in zip(config.head_names, config.head_inputs, config.label_counts, strict=True):
            setattr(self, name, Linear(width, classes, rngs=rngs))

    def __call__(
        self,
        clips: Float[Array | np.ndarray, "b t h w 3"],
        gvf: Float[Array | np.ndarray, "b f"] | None = None,
        *,
        train: bool,
        dtype: DTypeLike | None = None,
        remat: bool = False,
        axes: tuple[str, ...] = (),
    ) -> tuple[Float[Array, "b f"], tuple[Float[Array, "b _"], ...]]:
        features = self.features(clips, train=train, dtype=dtype, remat=remat, axes=axes)
        return features, self.heads(features, gvf)

    def heads(
        self, features: Float[Array | np.ndarray, "b f"], gvf: Float[Array | np.ndarray, "b f"] | None = None
    ) -> tuple[Float[Array, "b _"], ...]:
        """Returns the logits of each head from features.

        Raises:
          ValueError: the last head reads a global video feature, and there is none.
        """
        if self.gvf and gvf is None:
            raise ValueError("this model's last head reads a global video feature: pass gvf [b, features]")
        logits = []
        for name in self.head_names:
            head_input = features
            if gvf is not None and self.gvf and name == self.head_names[-1]:
                head_input = jnp.concatenate([features, gvf.astype(features.dtype)], axis=-1)
            logits.append(getattr(self, name)(head_input))
        return tuple(logits)


class Linear(nnx.Module):
    """An affine map; kernel `[in, out]` drawn from normal(0, 0.01), bias 0."""

    def __init__(self, width_in: int, width: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(0.01 * video_resnet.normal(rngs.params(), (width_in, width)))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32))

    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b c2"]:
        product = jnp.matmul(x, self.weight[...].astype(x.dtype), precision=precision.matmul_precision(x.dtype))
        return product + self.bias[...].astype(x.dtype)


def _module(config: ModelConfig, variables: functional.Variables) -> TSP:
    model = functional.module(config, variables)
    assert isinstance(model, TSP)
    return model
