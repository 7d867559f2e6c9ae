"""An encoder with its classification heads: TSP (action and temporal region, with or without GVF) or one label alone."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tsp_jax.models import convolution, video_resnet


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a model is made of; enough to build its shapes.

    Attributes:
      backbone: a key of `video_resnet.BACKBONES`.
      label_counts: classes of each head: `(action, temporal region)` for TSP, `(action,)` for TAC, `()` for no head.
      gvf: the last head reads the clip's features joined with the video's global feature.
    """

    backbone: str
    label_counts: tuple[int, ...] = ()
    gvf: bool = False

    def __post_init__(self):
        if self.backbone not in video_resnet.BACKBONES:
            raise ValueError(f"unknown backbone {self.backbone!r}; known: {', '.join(video_resnet.BACKBONES)}")
        if len(self.label_counts) > 2 or any(n < 1 for n in self.label_counts):
            raise ValueError(f"label_counts has 0, 1 or 2 positive numbers; got {self.label_counts}")
        if self.gvf and not self.label_counts:
            raise ValueError("gvf needs a head to read it")

    @property
    def head_names(self) -> tuple[str, ...]:
        """The heads' names in the released checkpoints: `fc` alone, or `fc1` and `fc2`."""
        return ("fc",) if len(self.label_counts) == 1 else ("fc1", "fc2")[: len(self.label_counts)]

    @property
    def head_inputs(self) -> tuple[int, ...]:
        """Input width of each head."""
        last = len(self.label_counts) - 1
        width = video_resnet.feature_size(self.backbone)
        return tuple(width * (2 if self.gvf and i == last else 1) for i in range(len(self.label_counts)))


class TSP(nnx.Module):
    """Features `[b, f]` and one logits array `[b, classes]` a head, all float32, from normalized RGB clips.

    Source: TSP (Alwassel et al. 2021), figure 2 and released code.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.features = video_resnet.BACKBONES[config.backbone](rngs=rngs)
        self.head_names, self.gvf = config.head_names, config.gvf
        for name, width, classes in zip(config.head_names, config.head_inputs, config.label_counts, strict=True):
            setattr(self, name, Linear(width, classes, rngs=rngs))

    def __call__(
        self,
        clips: Float[Array, "b t h w 3"],
        gvf: Float[Array, "b f"] | None = None,
        *,
        train: bool,
        dtype: jnp.dtype | None = None,
        remat: bool = False,
    ) -> tuple[Float[Array, "b f"], tuple[Float[Array, "b _"], ...]]:
        features = self.features(clips, train=train, dtype=dtype, remat=remat)
        return features, self.heads(features, gvf)

    def heads(self, features: Float[Array, "b f"], gvf: Float[Array, "b f"] | None = None) -> tuple[Float[Array, "b _"], ...]:
        """The logits of each head, from features.

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
        precision = convolution.matmul_precision(x.dtype)
        return jnp.matmul(x, self.weight[...].astype(x.dtype), precision=precision) + self.bias[...].astype(x.dtype)
