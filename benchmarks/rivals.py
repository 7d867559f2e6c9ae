"""PyTorch's sides of the benchmarks: `released`, which works as the original does, and `best`, the fastest that we know.

`released` is eager, float32, NCDHW. `best` measures each of its variants when it loads, on the very work to be timed, and
takes the fastest. A variant is names joined by plus signs:

  eager          as it is, in inference mode
  channels_last  weights and clips as channels_last_3d
  folded         BatchNorm folded into the convolutions
  frozen         traced, frozen and optimized for inference, which on a CPU hands whole blocks to oneDNN
  compiled       by torch.compile, with cudnn's and Inductor's autotuning
  cast           weights and clips in bfloat16, in place of autocast

With bfloat16, autocast is on in every variant but `cast`. In float32, products are float32 (no TF32), as ours are.
"""

import contextlib
import copy
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks import alternate, seeded

try:
    import torch
    import torch.fx.experimental.optimization
    from torch import nn

    from benchmarks import torch_networks
except ModuleNotFoundError as error:
    raise alternate.UnavailableError(f"PyTorch or torchvision is not installed ({error})") from error

FORWARD = {
    ("cpu", "float32"): ("channels_last", "folded+channels_last", "frozen"),
    ("cpu", "bfloat16"): ("channels_last", "folded+channels_last", "folded+channels_last+cast"),
    ("cuda", "float32"): ("eager", "folded", "folded+channels_last", "folded+channels_last+compiled"),
    ("cuda", "bfloat16"): (
        "channels_last",
        "folded+channels_last+cast",
        "channels_last+compiled",
        "folded+channels_last+cast+compiled",
    ),
}
STEP = {
    ("cpu", "float32"): ("eager", "channels_last"),
    ("cpu", "bfloat16"): ("eager", "channels_last"),
    ("cuda", "float32"): ("eager", "channels_last", "channels_last+compiled"),
    ("cuda", "bfloat16"): ("channels_last", "channels_last+compiled"),
}

Encode = Callable[["torch.Tensor"], "torch.Tensor"]


# ---------------------------------------------------------------------------------------------------------- for model.py


def forward(spec: dict[str, Any]) -> alternate.Side:
    """The features of a batch that lies on the device."""
    device = _prepare(spec)
    network = _network(spec, device).features
    clips = _to_torch(_batch(spec)["video"], device)
    encode, how = _encoder(spec, network, clips)
    features = encode(clips)

    def run(count: int) -> None:
        for _ in range(count):
            encode(clips)
        _finish(device)

    return alternate.Side(run, features.float().cpu().numpy(), _about(spec, device, how))


def step(spec: dict[str, Any]) -> alternate.Side:
    """Steps of training on one batch that lies on the device: forward, losses, backward, SGD; the stem is frozen.

    The outputs are losses and gradient norms of the first two steps.
    """
    device = _prepare(spec)
    batch = _batch(spec)
    clips = _to_torch(batch["video"], device)
    labels = [torch.from_numpy(batch[name]).long().to(device) for name in ("action", "temporal_region")]
    gvf = torch.from_numpy(batch["gvf"]).to(device)

    def make(variant: str) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        trainer = Trainer(_network(spec, device), variant, spec["dtype"] if spec["side"] != "released" else "float32")
        placed = trainer.place(clips)
        return lambda: trainer.step(placed, gvf, labels)

    variants = ["eager"] if spec["side"] == "released" else spec["variants"] or STEP[device.type, spec["dtype"]]
    chosen = _fastest(variants, make, device) if len(variants) > 1 else variants[0]
    one = make(chosen)
    outputs = [float(value) for _ in range(2) for value in one()]

    def run(count: int) -> None:
        for _ in range(count):
            one()
        _finish(device)

    return alternate.Side(run, np.array(outputs), _about(spec, device, "" if spec["side"] == "released" else chosen))


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
        """The clips in the layout that this variant takes."""
        return clips.contiguous(memory_format=torch.channels_last_3d) if self.channels_last else clips.contiguous()

    def step(
        self, clips: "torch.Tensor", gvf: "torch.Tensor | None", labels: Sequence["torch.Tensor"]
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Loss and norm of the gradient, on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        with _autocast(clips.device, self.dtype):
            _, logits = self.network(clips, gvf)
            of_heads = [nn.functional.cross_entropy(x, y, ignore_index=-1) for x, y in zip(logits, labels, strict=True)]
            loss = torch.stack(of_heads).sum()
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])
        self.optimizer.step()
        return loss.detach(), norm


# --------------------------------------------------------------------------------------------------------------- helpers


def _prepare(spec: dict[str, Any]) -> "torch.device":
    device = spec["device"]
    if device == "cuda" and not torch.cuda.is_available():
        raise alternate.UnavailableError("ours runs on CUDA, and this PyTorch has no CUDA")
    if device not in ("cpu", "cuda"):
        raise alternate.UnavailableError(f"ours runs on {device}, which is not compared with PyTorch")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(device)


def _batch(spec: dict[str, Any]) -> dict[str, np.ndarray]:
    return seeded.batch(spec["batch"], tuple(spec["clip"]), tuple(spec["label_counts"]), 512)


def _network(spec: dict[str, Any], device: "torch.device") -> "torch_networks.Reference":
    """The backbone with two heads and a GVF, its weights those of the spec's seed, in evaluation mode."""
    network = torch_networks.build(spec["backbone"], tuple(spec["label_counts"]), gvf=True)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    network.load_state_dict({key: torch.as_tensor(values) for key, values in seeded.state(shapes, 0).items()})
    return network.to(device)


def _to_torch(video: np.ndarray, device: "torch.device") -> "torch.Tensor":
    """Clips `b t h w c` as `b c t h w`."""
    return torch.from_numpy(video).permute(0, 4, 1, 2, 3).contiguous().to(device)


def _encoder(spec: dict[str, Any], network: nn.Module, clips: "torch.Tensor") -> tuple[Encode, str]:
    """The side's way from clips NCDHW to features, and its name; `clips` are to try on."""
    if spec["side"] == "released":

        def released(x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return network(x)

        return released, ""
    variants = spec["variants"] or FORWARD[clips.device.type, spec["dtype"]]

    def make(variant: str) -> Callable[[], torch.Tensor]:
        encode = _variant(network, clips, variant, spec["dtype"])
        return lambda: encode(clips)

    chosen = _fastest(variants, make, clips.device) if len(variants) > 1 else variants[0]
    return _variant(network, clips, chosen, spec["dtype"]), chosen


def _variant(network: nn.Module, clips: "torch.Tensor", variant: str, dtype: str) -> Encode:
    parts = set(variant.split("+"))
    cast = torch.bfloat16 if "cast" in parts else None
    layout = torch.channels_last_3d if "channels_last" in parts else torch.contiguous_format
    # Fusing copies the network; without it the weights' layout must not stay changed for the variants to come.
    network = torch.fx.experimental.optimization.fuse(network) if "folded" in parts else copy.deepcopy(network)
    network = network.to(memory_format=layout)  # type: ignore (likewise)
    if cast is not None:
        network = network.to(cast)
    autocast = contextlib.nullcontext if cast is not None else lambda: _autocast(clips.device, dtype)
    program: Any = network
    if "frozen" in parts:
        with torch.no_grad(), autocast():
            traced: Any = torch.jit.trace(network, clips.contiguous(memory_format=layout), check_trace=False)
            program = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    if "compiled" in parts:
        program = torch.compile(network, mode="max-autotune")
    # Frozen and compiled programs may not be given tensors of inference mode.
    mode = torch.no_grad if parts & {"frozen", "compiled"} else torch.inference_mode

    def encode(x: torch.Tensor) -> torch.Tensor:
        with mode(), autocast():
            return program(x.to(dtype=cast or x.dtype, memory_format=layout))

    return encode


def _autocast(device: "torch.device", dtype: str) -> "contextlib.AbstractContextManager[Any]":
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()


def _fastest(variants: Iterable[str], make: Callable[[str], Callable[[], Any]], device: "torch.device") -> str:
    """The variant that does its work soonest: the better of two runs after one to warm up."""
    seconds = {}
    for variant in variants:
        one = make(variant)
        one()
        _finish(device)
        times = []
        for _ in range(2):
            began = time.perf_counter()
            one()
            _finish(device)
            times.append(time.perf_counter() - began)
        seconds[variant] = min(times)
    return min(seconds, key=seconds.__getitem__)


def _finish(device: "torch.device") -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _about(spec: dict[str, Any], device: "torch.device", how: str) -> dict[str, Any]:
    return {
        "versions": alternate.versions("torch", "torchvision"),
        "platform": device.type,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "dtype": spec["dtype"] if spec["side"] != "released" else "float32",
        "how": how,
    }
