"""The backbones by name: how each is built, how wide its features are, and which pixels it reads."""

import dataclasses
import functools
from collections.abc import Callable

from flax import nnx

from tsp_jax import transforms
from tsp_jax.models import video_resnet


@dataclasses.dataclass(frozen=True)
class BackboneSpec:
    """What the rest of the program needs to know of a backbone.

    Attributes:
      build: the builder, called as `build(float32_stages=..., rngs=...)`. The module turns normalized clips `[b, t, h, w, 3]`
        into features `[b, width]`.
      width: the width of the features.
      preprocessing: the frames and pixels that the published weights were trained on.
      float32_stages: the names of the stages that a bfloat16 run computes in float32.
    """

    build: Callable[..., nnx.Module]
    width: int
    preprocessing: transforms.Preprocessing
    float32_stages: tuple[str, ...] = ()


BACKBONES: dict[str, BackboneSpec] = {
    # Source: ig65m (Ghadiyaram et al. 2019), whose Caffe2 weights bring epsilon and momentum. This epsilon amplifies early
    # rounding errors: bfloat16 in the stem or in layer1 moves the features more than bfloat16 in all later layers.
    "r2plus1d_34": BackboneSpec(
        functools.partial(
            video_resnet.VideoResNet, "r2plus1d", blocks=(3, 4, 6, 3), width_per_conv=True, bn_epsilon=1e-3, bn_momentum=0.9
        ),
        width=512,
        preprocessing=transforms.KINETICS,
        float32_stages=("stem", "layer1"),
    ),
    "r2plus1d_18": BackboneSpec(
        functools.partial(video_resnet.VideoResNet, "r2plus1d", blocks=(2, 2, 2, 2)),
        width=512,
        preprocessing=transforms.KINETICS,
    ),
    "r3d_18": BackboneSpec(
        functools.partial(video_resnet.VideoResNet, "r3d", blocks=(2, 2, 2, 2)), width=512, preprocessing=transforms.KINETICS
    ),
    # This project's own, to learn the synthetic data from random weights on a CPU; there are no published weights. The large
    # strides of the stem save most of the time.
    "r3d_tiny": BackboneSpec(
        functools.partial(
            video_resnet.VideoResNet,
            "r3d",
            blocks=(1, 1, 1, 1),
            stem_widths=(0, 16),
            stem_stride=(2, 4, 4),
            widths=(16, 32, 64, 128),
        ),
        width=128,
        preprocessing=transforms.KINETICS,
    ),
}
