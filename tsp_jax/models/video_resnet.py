"""R(2+1)D-34, R(2+1)D-18 and R3D-18: torchvision's VideoResNet in Flax NNX, name for name; and a tiny one of this project's.

Activations and the kernels used with them have the dtype asked for, that of the clips by default; BatchNorm statistics and the
pooled features stay in float32 (float64 for float64 clips). Submodules sit under PyTorch's names and indices, so that a
variable's path joined by dots is its state-dict key.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tsp_jax.models import convolution

WIDTHS = (64, 128, 256, 512)  # the widths of layer1 to layer4 in the three published backbones


class VideoResNet(nnx.Module):
    """Features `float32[b, f]` of normalized RGB clips `[b, t, h, w, 3]`; f, the last layer's width, is 512 as published.

    Source: torchvision.models.video.resnet.VideoResNet with BasicBlock; Tran et al. 2018, table 1.
    """

    def __init__(
        self,
        conv: Literal["r2plus1d", "r3d"],
        blocks: tuple[int, ...],
        *,
        width_per_conv: bool = False,
        bn_epsilon: float = 1e-5,
        bn_momentum: float = 0.1,
        float32_stages: tuple[str, ...] = (),
        stem_widths: tuple[int, int] = (45, 64),
        stem_stride: tuple[int, int, int] = (1, 2, 2),
        widths: tuple[int, ...] = WIDTHS,
        rngs: nnx.Rngs,
    ):
        """Builds the network with Kaiming-normal kernels.

        Args:
          conv: how a 3x3x3 convolution is made: whole (`r3d`) or as a spatial and a temporal one (`r2plus1d`).
          blocks: residual blocks in each layer.
          width_per_conv: each (2+1)D convolution takes its own middle width (the 34-layer network), rather than one a block.
          bn_epsilon: added to the variance.
          bn_momentum: weight of the new value in the running statistics, as PyTorch counts it.
          float32_stages: the stages, `stem` or `layer1` and so on, that a bfloat16 run computes in float32.
          stem_widths: middle and output width of the stem; the first is used by `r2plus1d` alone.
          stem_stride: the stem's stride in time, height and width.
          widths: output width of each layer.
          rngs: source of the `params` stream.
        """
        norm = functools.partial(BatchNorm, epsilon=bn_epsilon, momentum=bn_momentum)
        middle, width_in = stem_widths
        time, height, width = stem_stride
        if conv == "r2plus1d":
            self.stem = Seq(
                Conv(3, middle, (1, 7, 7), (1, height, width), rngs=rngs),
                norm(middle),
                jax.nn.relu,
                Conv(middle, width_in, (3, 1, 1), (time, 1, 1), rngs=rngs),
                norm(width_in),
                jax.nn.relu,
            )
        else:
            self.stem = Seq(Conv(3, width_in, (3, 7, 7), stem_stride, rngs=rngs), norm(width_in), jax.nn.relu)
        self.layer_names = tuple(f"layer{i + 1}" for i in range(len(blocks)))
        self.float32_stages = float32_stages
        for i, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            layer = []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                layer.append(BasicBlock(conv, width_in, width, stride, width_per_conv, norm, rngs=rngs))
                width_in = width
            setattr(self, self.layer_names[i], Seq(*layer))

    def __call__(
        self,
        clips: Float[Array | np.ndarray, "b t h w 3"],
        *,
        train: bool,
        dtype: DTypeLike | None = None,
        remat: bool = False,
        axes: tuple[str, ...] = (),
    ) -> Float[Array, "b f"]:
        x, dtype = jnp.asarray(clips), dtype or clips.dtype
        for name in ("stem", *self.layer_names):
            stage_dtype = statistics_dtype(dtype) if name in self.float32_stages else dtype
            stage = getattr(self, name)
            # The stem is usually frozen, and then nothing of it is kept for a backward pass.
            blocks = stage.layers if remat and name != "stem" else (stage,)
            x = x.astype(stage_dtype)
            for block in blocks:
                x = rematerialize(block, x, train=train, axes=axes) if remat else block(x, train=train, axes=axes)
        return jnp.mean(x, axis=(1, 2, 3), dtype=statistics_dtype(x.dtype))


class BasicBlock(nnx.Module):
    """Two 3x3x3 convolutions and a shortcut."""

    def __init__(
        self,
        conv: Literal["r2plus1d", "r3d"],
        width_in: int,
        width: int,
        stride: int,
        width_per_conv: bool,
        norm: Callable[[int], "BatchNorm"],
        *,
        rngs: nnx.Rngs,
    ):
        middle = middle_width(width_in, width)
        middle2 = middle_width(width, width) if width_per_conv else middle
        self.conv1 = Seq(make_conv(conv, width_in, middle, width, stride, norm, rngs=rngs), norm(width), jax.nn.relu)
        self.conv2 = Seq(make_conv(conv, width, middle2, width, 1, norm, rngs=rngs), norm(width))
        self.reshapes = stride != 1 or width_in != width
        if self.reshapes:
            self.downsample = Seq(Conv(width_in, width, (1, 1, 1), (stride, stride, stride), rngs=rngs), norm(width))

    def __call__(
        self, x: Float[Array, "b t h w c"], *, train: bool, axes: tuple[str, ...] = ()
    ) -> Float[Array, "b t2 h2 w2 c2"]:
        y = self.conv2(self.conv1(x, train=train, axes=axes), train=train, axes=axes)
        shortcut = self.downsample(x, train=train, axes=axes) if self.reshapes else x
        return jax.nn.relu(y + shortcut)


def middle_width(width_in: int, width: int) -> int:
    """Returns the middle width that gives a (2+1)D pair as many parameters as one 3x3x3 convolution.

    Source: Tran et al. 2018, section 3.5.
    """
    return (width_in * width * 27) // (width_in * 9 + 3 * width)


def make_conv(
    kind: Literal["r2plus1d", "r3d"],
    width_in: int,
    middle: int,
    width: int,
    stride: int,
    norm: Callable[[int], "BatchNorm"],
    *,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Returns one 3x3x3 convolution, whole or split in space and time."""
    if kind == "r3d":
        return Conv(width_in, width, (3, 3, 3), (stride, stride, stride), rngs=rngs)
    return Seq(
        Conv(width_in, middle, (1, 3, 3), (1, stride, stride), rngs=rngs),
        norm(middle),
        jax.nn.relu,
        Conv(middle, width, (3, 1, 1), (stride, 1, 1), rngs=rngs),
    )


class Seq(nnx.Module):
    """Layers called in turn, each an attribute named by its index: PyTorch's Sequential, plain functions included."""

    def __init__(self, *layers: nnx.Module | Callable[[Array], Array]):
        self.length = len(layers)
        for i, layer in enumerate(layers):
            setattr(self, str(i), layer)

    @property
    def layers(self) -> tuple[Any, ...]:
        """The layers in order."""
        return tuple(getattr(self, str(i)) for i in range(self.length))

    def __call__(self, x: Array, *, train: bool, axes: tuple[str, ...] = ()) -> Array:
        for layer in self.layers:
            x = layer(x, train=train, axes=axes) if isinstance(layer, nnx.Module) else layer(x)
        return x


def rematerialize(module: nnx.Module, x: Array, *, train: bool, axes: tuple[str, ...] = ()) -> Array:
    """Returns `module(x, train=train)`. Only the input is kept for the backward pass, which computes the rest again."""
    return nnx.remat(lambda module, x: module(x, train=train, axes=axes))(module, x)


class Conv(nnx.Module):
    """A 3-D convolution without bias, padded by half its kernel; kernel `[kt, kh, kw, in, out]`, Kaiming normal (fan out)."""

    def __init__(
        self,
        width_in: int,
        width: int,
        kernel: tuple[int, int, int],
        stride: tuple[int, int, int] = (1, 1, 1),
        *,
        rngs: nnx.Rngs,
    ):
        kt, kh, kw = kernel
        scale = (2.0 / (width * kt * kh * kw)) ** 0.5
        self.weight = nnx.Param(scale * normal(rngs.params(), (kt, kh, kw, width_in, width)))
        self.stride = stride

    def __call__(
        self, x: Float[Array, "b t h w c"], *, train: bool, axes: tuple[str, ...] = ()
    ) -> Float[Array, "b t2 h2 w2 c2"]:
        del train, axes
        return convolution.convolve(x, self.weight[...].astype(x.dtype), self.stride)


def normal(key: Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Returns standard normal draws, float32. They are drawn flat, since XLA compiles a draw of five axes slowly on a CPU."""
    return jax.random.normal(key, (math.prod(shape),), jnp.float32).reshape(shape)


def statistics_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Returns the dtype of sums over many values of `dtype`: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


class BatchNorm(nnx.Module):
    """PyTorch's BatchNorm3d: biased variance to normalize, unbiased variance kept, momentum the weight of the new value."""

    def __init__(self, width: int, *, epsilon: float, momentum: float):
        self.weight = nnx.Param(jnp.ones(width, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32))
        self.running_mean = nnx.BatchStat(jnp.zeros(width, jnp.float32))
        self.running_var = nnx.BatchStat(jnp.ones(width, jnp.float32))
        self.num_batches_tracked = nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.epsilon, self.momentum = epsilon, momentum

    def __call__(self, x: Float[Array, "b t h w c"], *, train: bool, axes: tuple[str, ...] = ()) -> Float[Array, "b t h w c"]:
        """Normalizes a batch; in training mode it also updates the running statistics.

        Args:
          x: the activations.
          train: whether to normalize with the statistics of this batch.
          axes: the mesh axes, under `jax.shard_map`, along which each device has an equal part of the batch. The statistics are
            those of all parts, as in PyTorch's SyncBatchNorm.
        """
        wide = x.astype(statistics_dtype(x.dtype))
        mean, var = self.running_mean[...], self.running_var[...]
        if train:
            mean = jnp.mean(wide, axis=(0, 1, 2, 3))
            var = jnp.mean(jnp.square(wide - mean), axis=(0, 1, 2, 3))
            count = x.size // x.shape[-1]
            if axes:
                each = jax.lax.all_gather(jnp.stack([mean, var]), axes)
                mean = jnp.mean(each[:, 0], axis=0)
                var = jnp.mean(each[:, 1] + jnp.square(each[:, 0] - mean), axis=0)
                count *= len(each)
            self._track(mean, var * (count / max(count - 1, 1)))
        scale = self.weight[...] * jax.lax.rsqrt(var + self.epsilon)
        return ((wide - mean) * scale + self.bias[...]).astype(x.dtype)

    def _track(self, mean: Float[Array, " c"], unbiased_var: Float[Array, " c"]) -> None:
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased_var)):
            old = running[...]
            running[...] = ((1 - self.momentum) * old + self.momentum * new).astype(old.dtype)
        self.num_batches_tracked[...] = self.num_batches_tracked[...] + 1
