"""PyTorch's sides of the benchmark of a step of training."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import alternate, seeded
from benchmarks.rivals import common
from benchmarks.rivals.common import nn, torch, torch_networks


def step(spec: dict[str, Any]) -> alternate.Side:
    """Returns the side that trains on one batch that is already on the device: forward, losses, backward, SGD.

    The stem is frozen. The outputs are the losses, and the logarithms of gradient norms, of the first two steps.
    """
    device = common.prepare(spec)
    batch = common.batch(spec)
    clips = common.to_torch(batch["video"], device)
    labels = [torch.from_numpy(batch[name]).long().to(device) for name in ("action", "temporal_region")]
    gvf = torch.from_numpy(batch["gvf"]).to(device)

    def make(variant: str) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        trainer = Trainer(common.network(spec, device), variant, spec["dtype"] if spec["side"] != "released" else "float32")
        placed = trainer.place(clips)
        return lambda: trainer.step(placed, gvf, labels)

    variants = ["eager"] if spec["side"] == "released" else spec["variants"] or common.STEP[device.type, spec["dtype"]]
    chosen = common.fastest(variants, make, device)
    one = make(chosen)
    outputs = []
    for _ in range(2):
        loss, norm = one()
        outputs += [float(loss), math.log(float(norm))]

    def run(count: int) -> None:
        for _ in range(count):
            one()
        common.finish(device)

    return alternate.Side(run, np.array(outputs), common.about(spec, device, "" if spec["side"] == "released" else chosen))


class Trainer:
    """A network in training with the original's optimizer."""

    def __init__(self, network: "torch_networks.Reference", variant: str, dtype: str):
        self.channels_last, self.dtype = "channels_last" in variant, dtype
        network.train().features.stem.requires_grad_(False)
        if self.channels_last:
            network = network.to(memory_format=torch.channels_last_3d)  # type: ignore (its stubs lack this)
        backbone = [p for name, p in network.features.named_parameters() if not name.startswith("stem.")]
        heads = [p for name, p in network.named_parameters() if not name.startswith("features.")]
        groups = [{"params": backbone, "lr": seeded.BACKBONE_LR}, {"params": heads, "lr": seeded.FC_LR}]
        self.trained = backbone + heads
        self.optimizer = torch.optim.SGD(groups, momentum=seeded.MOMENTUM, weight_decay=seeded.WEIGHT_DECAY)
        self.network = torch.compile(network) if "compiled" in variant else network

    def place(self, clips: "torch.Tensor") -> "torch.Tensor":
        """Returns the clips in the layout that this variant takes."""
        return clips.contiguous(memory_format=torch.channels_last_3d) if self.channels_last else clips.contiguous()

    def step(
        self, clips: "torch.Tensor", gvf: "torch.Tensor | None", labels: Sequence["torch.Tensor"]
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Does one step. Returns the loss and the norm of the gradient, on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        with common.autocasting(clips.device, self.dtype):
            _, logits = self.network(clips, gvf)
            of_heads = [nn.functional.cross_entropy(x, y, ignore_index=-1) for x, y in zip(logits, labels, strict=True)]
            loss = torch.stack(of_heads).sum()
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        self.optimizer.step()
        return loss.detach(), norm
