"""The work that PyTorch's sides share: networks, their variants, pixels, and the choice of the fastest variant.

`released` is eager, float32, NCDHW, as the original. `best` is the fastest program that we know. It measures each of its
variants when it loads, on the very work that is timed later, and takes the fastest. A variant is a list of names joined by
plus signs:

  eager          the network as it is, in inference mode
  channels_last  weights and clips in the layout channels_last_3d
  folded         BatchNorm folded into the convolutions
  frozen         traced, frozen and optimized for inference; on a CPU this hands whole blocks to oneDNN
  compiled       compiled by torch.compile
  cast           weights and clips in bfloat16, without autocast

For every side, cuDNN chooses its algorithms by trying them. On a CPU, torch.compile is left out: it takes more than a minute
to load, and its forward pass was slower than `frozen`.

With bfloat16, autocast is on in every variant but `cast`. In float32, products are float32 (no TF32), as in our own sides.
"""

import contextlib
import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import alternate, seeded
from tsp_jax import transforms
from tsp_jax.system import malloc

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
    ("cuda", "float32"): ("folded", "folded+channels_last"),
    ("cuda", "bfloat16"): ("folded+channels_last+cast", "folded+channels_last+cast+compiled"),
}
STEP = {
    ("cpu", "float32"): ("eager", "channels_last"),
    ("cpu", "bfloat16"): ("eager", "channels_last"),
    ("cuda", "float32"): ("eager", "channels_last"),
    ("cuda", "bfloat16"): ("channels_last", "channels_last+compiled"),
}
DATA_LOADER_WORKERS = 2  # the default of the original
RATE = 15.0  # frames a second within a clip

Encode = Callable[["torch.Tensor"], "torch.Tensor"]


def prepare(spec: dict[str, Any]) -> "torch.device":
    device = spec["device"]
    if device == "cuda" and not torch.cuda.is_available():
        raise alternate.UnavailableError("ours runs on CUDA, and this PyTorch has no CUDA")
    if device not in ("cpu", "cuda"):
        raise alternate.UnavailableError(f"ours runs on {device}, which is not compared with PyTorch")
    if spec["side"] != "released":
        malloc.keep_freed()  # as our sides do: it is as good for PyTorch on a CPU
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(device)


def batch(spec: dict[str, Any]) -> dict[str, np.ndarray]:
    return seeded.batch(spec["batch"], tuple(spec["clip"]), tuple(spec["label_counts"]), 512)


def network(spec: dict[str, Any], device: "torch.device") -> "torch_networks.Reference":
    """Returns the backbone with two heads, and a GVF if the spec asks for it, with weights of the spec's seed."""
    network = torch_networks.build(spec["backbone"], tuple(spec["label_counts"]), gvf=spec["gvf"])
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    network.load_state_dict({key: torch.as_tensor(values) for key, values in seeded.state(shapes, 0).items()})
    return network.to(device)


def to_torch(video: np.ndarray, device: "torch.device") -> "torch.Tensor":
    """Returns clips `b t h w c` as `b c t h w`."""
    return torch.from_numpy(video).permute(0, 4, 1, 2, 3).contiguous().to(device)


def encoder(spec: dict[str, Any], network: nn.Module, clips: "torch.Tensor") -> tuple[Encode, str]:
    """Returns the side's program from clips NCDHW to features, and its name. Variants are tried on `clips`."""
    if spec["side"] == "released":

        def released(x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return network(x)

        return released, ""
    variants = spec["variants"] or FORWARD[clips.device.type, spec["dtype"]]

    def make(variant: str) -> Callable[[], torch.Tensor]:
        encode = _variant(network, clips, variant, spec["dtype"])
        return lambda: encode(clips)

    chosen = fastest(variants, make, clips.device)
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
    autocast = contextlib.nullcontext if cast is not None else lambda: autocasting(clips.device, dtype)
    program: Any = network
    if "frozen" in parts:
        with torch.no_grad(), autocast():
            traced: Any = torch.jit.trace(network, clips.contiguous(memory_format=layout), check_trace=False)
            program = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    if "compiled" in parts:
        program = torch.compile(network)
    # Frozen and compiled programs may not be given tensors of inference mode.
    mode = torch.no_grad if parts & {"frozen", "compiled"} else torch.inference_mode

    def encode(x: torch.Tensor) -> torch.Tensor:
        with mode(), autocast():
            return program(x.to(dtype=cast or x.dtype, memory_format=layout))

    return encode


def autocasting(device: "torch.device", dtype: str) -> "contextlib.AbstractContextManager[Any]":
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()


def fastest(variants: Sequence[str], make: Callable[[str], Callable[[], Any]], device: "torch.device") -> str:
    """Returns the fastest variant, by the better of two runs after one to warm up."""
    if len(variants) == 1:
        return variants[0]
    seconds = {}
    for variant in variants:
        one = make(variant)
        one()
        finish(device)
        times = []
        for _ in range(2):
            began = time.perf_counter()
            one()
            finish(device)
            times.append(time.perf_counter() - began)
        seconds[variant] = min(times)
    return min(seconds, key=seconds.__getitem__)


def finish(device: "torch.device") -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def about(spec: dict[str, Any], device: "torch.device", how: str) -> dict[str, Any]:
    return {
        "versions": alternate.versions("torch", "torchvision"),
        "platform": device.type,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "dtype": spec["dtype"] if spec["side"] != "released" else "float32",
        "how": how,
    }


def resized(pixels: "torch.Tensor") -> "torch.Tensor":
    """Returns frames uint8 `t h w c` as float `t c 128 171` in [0, 1]."""
    return nn.functional.interpolate(
        pixels.permute(0, 3, 1, 2).float() / 255, transforms.KINETICS.resize, mode="bilinear", align_corners=False
    )


def normalized(frames: "torch.Tensor") -> "torch.Tensor":
    """Returns frames `... t c h w` in [0, 1] with zero mean and unit variance over Kinetics."""
    mean, std = (
        torch.tensor(values, device=frames.device)[:, None, None]
        for values in (transforms.KINETICS.mean, transforms.KINETICS.std)
    )
    return (frames - mean) / std


def centre(pixels: "torch.Tensor") -> "torch.Tensor":
    """Returns frames uint8 `t h w c` as the network takes them, float `t c 112 112`."""
    return normalized(resized(pixels)[:, :, 8:120, 30:142])
