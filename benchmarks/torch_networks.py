"""The original networks, made of torchvision's parts. Benchmarks run them next to ours, and tests compare ours with them."""

import sys
from types import ModuleType

import torch
from torch import nn

BLOCKS = {"r2plus1d_34": (3, 4, 6, 3), "r2plus1d_18": (2, 2, 2, 2), "r3d_18": (2, 2, 2, 2)}
_LIBRARIES = []  # operators live as long as the library that declares them


def import_video_resnet() -> ModuleType:
    """Returns the module `torchvision.models.video.resnet`.

    If torchvision's compiled part does not fit PyTorch, the import fails at two operators that no video network uses. They are
    then declared without a body, and the import is tried again.
    """
    try:
        from torchvision.models.video import resnet
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        if not _LIBRARIES:
            library = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _LIBRARIES.append(library)
        from torchvision.models.video import resnet
    return resnet


class Reference(nn.Module):
    """A network with `features`, and `fc` or `fc1` and `fc2`, as in the released checkpoints."""

    def __init__(self, trunk: nn.Module, width: int, label_counts: tuple[int, ...], gvf: bool):
        super().__init__()
        self.features, self.gvf = trunk, gvf
        self.heads = ("fc",) if len(label_counts) == 1 else ("fc1", "fc2")[: len(label_counts)]
        for name, classes in zip(self.heads, label_counts, strict=True):
            self.add_module(name, nn.Linear(width * (2 if gvf and name == self.heads[-1] else 1), classes))

    def forward(self, clips: torch.Tensor, gvf: torch.Tensor | None = None) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Returns features and logits of clips `[b, c, t, h, w]`."""
        features = self.features(clips)
        inputs = [features] * len(self.heads)
        if self.gvf and gvf is not None:
            inputs[-1] = torch.cat([features, gvf], dim=1)
        return features, [getattr(self, name)(x) for name, x in zip(self.heads, inputs, strict=True)]


def build(
    backbone: str,
    label_counts: tuple[int, ...] = (),
    gvf: bool = False,
    *,
    blocks: tuple[int, ...] | None = None,
    widths: tuple[int, ...] = (64, 128, 256, 512),
    stem_widths: tuple[int, int] = (45, 64),
) -> Reference:
    """Returns a network of the backbone's family, in evaluation mode and float32; its state dict has the released keys.

    Smaller relatives have other `blocks` in each layer, `widths` of the four layers, and `stem_widths` (middle, output).
    """
    resnet = import_video_resnet()

    class SplitConv(resnet.Conv2Plus1D):
        """A (2+1)D convolution whose middle width follows from its own inputs and outputs, not from the block's."""

        def __init__(self, width_in, width, _, stride=1, padding=1):
            middle = 27 * width_in * width // (9 * width_in + 3 * width)
            super().__init__(width_in, width, middle, stride, padding)

    class Trunk(resnet.VideoResNet):
        """torchvision's network with other widths."""

        def _make_layer(self, block, conv_builder, planes, blocks, stride=1):
            index = (64, 128, 256, 512).index(planes)
            if index == 0:
                self.inplanes = stem_widths[1]
            return super()._make_layer(block, conv_builder, widths[index], blocks, stride)

    conv = {"r2plus1d_34": SplitConv, "r2plus1d_18": resnet.Conv2Plus1D, "r3d_18": resnet.Conv3DSimple}[backbone]
    trunk = Trunk(
        block=resnet.BasicBlock,
        conv_makers=[conv] * 4,
        layers=list(blocks or BLOCKS[backbone]),
        stem=lambda: _stem(backbone, stem_widths),
    )
    trunk.fc = nn.Sequential()
    if backbone == "r2plus1d_34":
        for module in trunk.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eps, module.momentum = 1e-3, 0.9
    return Reference(trunk, widths[-1], label_counts, gvf).eval()


def _stem(backbone: str, widths: tuple[int, int]) -> nn.Module:
    """Returns torchvision's stem, or the same with other widths."""
    resnet = import_video_resnet()
    if widths == (45, 64):
        return resnet.BasicStem() if backbone == "r3d_18" else resnet.R2Plus1dStem()
    middle, width = widths
    if backbone == "r3d_18":
        convs = [nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)]
    else:
        convs = [
            nn.Conv3d(3, middle, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False),
            nn.Conv3d(middle, width, (3, 1, 1), (1, 1, 1), (1, 0, 0), bias=False),
        ]
    return nn.Sequential(*(layer for conv in convs for layer in (conv, nn.BatchNorm3d(conv.out_channels), nn.ReLU())))
