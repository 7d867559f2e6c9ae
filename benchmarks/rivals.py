"""PyTorch's sides of the benchmarks: `released`, which works as the original does, and `best`, the fastest that we know.

`released` is eager, float32, NCDHW. `best` measures each of its variants when it loads, on the very work to be timed, and
takes the fastest. A variant is names joined by plus signs:

  eager          as it is, in inference mode
  channels_last  weights and clips as channels_last_3d
  folded         BatchNorm folded into the convolutions
  frozen         traced, frozen and optimized for inference, which on a CPU hands whole blocks to oneDNN
  compiled       by torch.compile
  cast           weights and clips in bfloat16, in place of autocast

Cudnn chooses its algorithms by trying them, for all sides. On a CPU, torch.compile was tried and left out: it takes more than a
minute to load, and its forward pass was slower than `frozen` (R3D-18, four clips, two x86-64 cores: 824 to 614 ms a clip).

With bfloat16, autocast is on in every variant but `cast`. In float32, products are float32 (no TF32), as ours are.
"""

import collections
import contextlib
import copy
import functools
import math
import pickle
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import alternate, reading, seeded
from tsp_jax import clips, transforms
from tsp_jax.system import cpu, malloc

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
DATA_LOADER_WORKERS = 2  # the original's default
RATE = 15.0  # frames a second within a clip

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

    The outputs are losses, and logarithms of gradient norms, of the first two steps.
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
    chosen = _fastest(variants, make, device)
    one = make(chosen)
    outputs = []
    for _ in range(2):
        loss, norm = one()
        outputs += [float(loss), math.log(float(norm))]

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


# -------------------------------------------------------------------------------------------------------- for extract.py


def extraction(spec: dict[str, Any]) -> alternate.Side:
    """All features of a folder's videos, written to a pickle for each. The outputs are the features."""
    device = _prepare(spec)
    network = _network(spec, device).features
    geometry = clips.ClipGeometry(clip_len=spec["clip_len"], stride=spec["stride"])
    plans = [reading.plan(path, geometry) for path in sorted(Path(spec["videos"]).iterdir())]
    shape = spec["batch"], 3, spec["clip_len"], *transforms.CROP
    encode, how = _encoder(spec, network, torch.randn(shape, device=device))
    once = _extract_seeking if spec["side"] == "released" else _extract_decoding_once
    found: list[torch.Tensor] = []

    def run(count: int) -> None:
        for _ in range(count):
            found[:] = [rows.float().cpu() for rows in once(plans, encode, spec["batch"], device)]
            for item, rows in zip(plans, found, strict=True):
                with (Path(spec["folder"]) / f"{item.path.stem}.pkl").open("wb") as file:
                    pickle.dump(rows.numpy(), file)

    run(1)
    return alternate.Side(run, torch.cat(found).numpy(), _about(spec, device, how))


class _Seeking(torch.utils.data.Dataset):
    """Clips, each sought and decoded for itself."""

    def __init__(self, plans: Sequence["reading.Plan"]):
        self.clips = [(item, numbers) for item in plans for numbers in item.clips]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> "torch.Tensor":
        item, numbers = self.clips[index]
        begin_sec = float(item.frame_sec[numbers[0]])
        read = reading.seek(item.path, begin_sec, begin_sec + len(numbers) / RATE)
        pixels = torch.from_numpy(np.stack([pixels for _, pixels in read])[numbers - numbers[0]])
        return _centre(pixels).transpose(0, 1)


def _extract_seeking(
    plans: Sequence["reading.Plan"], encode: Encode, batch: int, device: "torch.device"
) -> "tuple[torch.Tensor, ...]":
    loader = torch.utils.data.DataLoader(
        _Seeking(plans), batch, num_workers=DATA_LOADER_WORKERS, pin_memory=device.type == "cuda"
    )
    rows = [encode(clips.to(device, non_blocking=True)).cpu() for clips in loader]
    return torch.cat(rows).split([len(item.clips) for item in plans])


def _extract_decoding_once(
    plans: Sequence["reading.Plan"], encode: Encode, batch: int, device: "torch.device"
) -> "tuple[torch.Tensor, ...]":
    """Threads decode a video each, once; a frame is resized once, and sent once a batch however many clips share it."""
    ready: queue.Queue[tuple[int, int, list[torch.Tensor]] | None] = queue.Queue(2 * batch)
    jobs = collections.deque(range(len(plans)))

    def decode() -> None:
        try:
            while jobs:
                try:
                    job = jobs.popleft()
                except IndexError:  # another thread took the last one
                    return
                for row, frames in _clips_decoded_once(plans[job]):
                    ready.put((job, row, frames))
        finally:
            ready.put(None)

    threads = [threading.Thread(target=decode, daemon=True) for _ in range(min(cpu.cores(), len(plans)))]
    for thread in threads:
        thread.start()
    places: list[tuple[int, int]] = []
    rows: list[torch.Tensor] = []
    waiting: list[tuple[int, int, list[torch.Tensor]]] = []

    def send() -> None:
        frames = {id(frame): frame for _, _, clip in waiting for frame in clip}
        slots = {key: slot for slot, key in enumerate(frames)}
        index = torch.tensor([[slots[id(frame)] for frame in clip] for _, _, clip in waiting])
        if device.type == "cuda":  # one shape for compiled programs
            index = torch.cat([index, index[:1].expand(batch - len(index), -1)])
        pool = torch.stack(list(frames.values()))
        pool = pool.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else pool
        rows.append(encode(pool[index.to(device)].transpose(1, 2))[: len(waiting)])
        places.extend((job, row) for job, row, _ in waiting)
        waiting.clear()

    ended = 0
    while ended < len(threads):
        clip = ready.get()
        ended += clip is None
        waiting += [clip] if clip is not None else []
        if len(waiting) == batch:
            send()
    if waiting:
        send()
    order = sorted(range(len(places)), key=places.__getitem__)
    return torch.cat(rows)[order].split([len(item.clips) for item in plans])


def _clips_decoded_once(item: "reading.Plan") -> Iterator[tuple[int, list["torch.Tensor"]]]:
    """Each clip of a video once its last frame is there."""
    row, kept = 0, {}
    for number, pixels in reading.once(item.path, set(item.clips.ravel().tolist())):
        kept[number] = _centre(torch.from_numpy(pixels)[None])[0]
        while row < len(item.clips) and item.clips[row, -1] <= number:
            yield row, [kept[number] for number in item.clips[row].tolist()]
            row += 1
        for old in [old for old in kept if row == len(item.clips) or old < item.clips[row, 0]]:
            del kept[old]


def _resized(pixels: "torch.Tensor") -> "torch.Tensor":
    """Frames uint8 `t h w c` as float `t c 128 171` in [0, 1]."""
    return nn.functional.interpolate(
        pixels.permute(0, 3, 1, 2).float() / 255, transforms.RESIZED, mode="bilinear", align_corners=False
    )


def _normalized(frames: "torch.Tensor") -> "torch.Tensor":
    """Frames `... t c h w` in [0, 1] to zero mean and unit variance over Kinetics."""
    mean, std = (torch.tensor(values, device=frames.device)[:, None, None] for values in (transforms.MEAN, transforms.STD))
    return (frames - mean) / std


def _centre(pixels: "torch.Tensor") -> "torch.Tensor":
    """Frames uint8 `t h w c` as the network takes them, float `t c 112 112`."""
    return _normalized(_resized(pixels)[:, :, 8:120, 30:142])


# ---------------------------------------------------------------------------------------------------------- for train.py


def training(spec: dict[str, Any]) -> alternate.Side:
    """Steps of training on the clips that ours trains on. The outputs are the losses of the first two.

    `released` seeks each clip in its video; `best` reads our records by our own pipeline, and trims them on the device.
    """
    device, released = _prepare(spec), spec["side"] == "released"
    batches = _sought_batches(spec) if released else _batches_of_records(spec)
    variants = ["eager"] if released else spec["variants"] or STEP[device.type, spec["dtype"]]
    first = next(batches)

    def make(variant: str) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
        trainer = Trainer(_network(spec, device), variant, "float32" if released else spec["dtype"])

        def one(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            placed = {key: values.to(device, non_blocking=True) for key, values in batch.items()}
            labels = [placed["action"].long(), placed["temporal_region"].long()]
            clips = placed["clips"] if released else _windows(placed)
            return trainer.step(trainer.place(clips), None, labels)[0]

        return one

    chosen = _fastest(variants, lambda variant: functools.partial(make(variant), first), device)
    one = make(chosen)
    losses = [float(one(first)), float(one(next(batches)))]

    def run(count: int) -> None:
        for _ in range(count):
            float(one(next(batches)))

    return alternate.Side(run, np.array(losses), _about(spec, device, "" if released else chosen))


def loading(spec: dict[str, Any]) -> alternate.Side:
    """Training clips as they go into the network. The outputs are the first batch, made small.

    `released` seeks each clip in its video; `best` reads our records by a DataLoader of a worker a core.
    """
    device, released = _prepare(spec), spec["side"] == "released"
    batches = _sought_batches(spec) if released else _loaded_records(spec)

    def one() -> torch.Tensor:
        placed = {key: values.to(device, non_blocking=True) for key, values in next(batches).items()}
        return placed["clips"] if released else _windows(placed)

    first = one().permute(0, 2, 3, 4, 1).float().cpu().numpy()

    def run(count: int) -> None:
        for _ in range(count):
            one()
        _finish(device)

    return alternate.Side(run, seeded.small(first), _about({**spec, "dtype": "float32"}, device, ""))


def _loaded_records(spec: dict[str, Any]) -> Iterator[dict[str, "torch.Tensor"]]:
    from tsp_jax import input_pipeline

    split = input_pipeline.open_split(spec["records"], "train")
    clip = input_pipeline.train_clips(split, clips_per_segment=5, balanced=True, seed=0)

    class Read(torch.utils.data.Dataset):
        """The clips of the epochs, one after another, each from its record."""

        def __len__(self) -> int:
            return 1 << 24

        def __getitem__(self, number: int) -> dict[str, Any]:
            batch = input_pipeline.read_clips(split, [clip(number)])
            return {key: torch.from_numpy(batch[key])[0] for key in ("video", "crop", "flip")}

    loader = torch.utils.data.DataLoader(Read(), spec["batch"], num_workers=cpu.cores(), pin_memory=spec["device"] == "cuda")
    return iter(loader)


def _sought_batches(spec: dict[str, Any]) -> Iterator[dict[str, "torch.Tensor"]]:
    from tsp_jax import groundtruth, input_pipeline

    split = input_pipeline.open_split(spec["records"], "train")
    clip = input_pipeline.train_clips(split, clips_per_segment=5, balanced=True, seed=0)
    rows = groundtruth.read_groundtruth(spec["truth"])

    class Sought(torch.utils.data.Dataset):
        """The clips of the epochs, one after another, each sought and decoded for itself."""

        def __len__(self) -> int:
            return 1 << 24

        def __getitem__(self, number: int) -> dict[str, Any]:
            drawn = clip(number)
            segment = rows[int(split.index.segment_row[drawn.segment])]
            grid = clips.resampled(segment.num_frames, segment.fps, RATE)[drawn.place : drawn.place + 16]
            read = reading.seek(
                Path(spec["videos"]) / segment.filename, grid[0] / segment.fps, grid[-1] / segment.fps + 1 / RATE
            )
            frames = _resized(torch.from_numpy(np.stack([pixels for _, pixels in read])[grid - grid[0]]))
            frames = frames.flip(-1) if drawn.flip else frames
            frames = _normalized(frames)[:, :, drawn.top : drawn.top + 112, drawn.left : drawn.left + 112]
            return {
                "clips": frames.transpose(0, 1),
                "action": int(split.index.segment_action[drawn.segment]),
                "temporal_region": int(split.index.segment_temporal_region[drawn.segment]),
            }

    loader = torch.utils.data.DataLoader(
        Sought(), spec["batch"], num_workers=DATA_LOADER_WORKERS, pin_memory=spec["device"] == "cuda"
    )
    return iter(loader)


def _batches_of_records(spec: dict[str, Any]) -> Iterator[dict[str, "torch.Tensor"]]:
    from tsp_jax import config, input_pipeline

    split = input_pipeline.open_split(spec["records"], "train")
    threads = config.Run().reader_threads
    for batch in input_pipeline.train_batches(
        split, global_batch_size=spec["batch"], seed=0, balanced=True, num_threads=threads
    ):
        yield {key: torch.from_numpy(values) for key, values in batch.items()}


def _windows(batch: dict[str, "torch.Tensor"]) -> "torch.Tensor":
    """Clips `b c t 112 112`, mirrored, cut to their windows and normalized."""
    cut = []
    for frames, (top, left), flip in zip(batch["video"], batch["crop"].tolist(), batch["flip"].tolist(), strict=True):
        cut.append((frames.flip(2) if flip else frames)[:, top : top + 112, left : left + 112])
    return _normalized(torch.stack(cut).permute(0, 1, 4, 2, 3).float() / 255).transpose(1, 2)


# --------------------------------------------------------------------------------------------------------------- helpers


def _prepare(spec: dict[str, Any]) -> "torch.device":
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


def _batch(spec: dict[str, Any]) -> dict[str, np.ndarray]:
    return seeded.batch(spec["batch"], tuple(spec["clip"]), tuple(spec["label_counts"]), 512)


def _network(spec: dict[str, Any], device: "torch.device") -> "torch_networks.Reference":
    """The backbone with two heads and, where asked for, a GVF, its weights those of the spec's seed, in evaluation mode."""
    network = torch_networks.build(spec["backbone"], tuple(spec["label_counts"]), gvf=spec["gvf"])
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

    chosen = _fastest(variants, make, clips.device)
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
        program = torch.compile(network)
    # Frozen and compiled programs may not be given tensors of inference mode.
    mode = torch.no_grad if parts & {"frozen", "compiled"} else torch.inference_mode

    def encode(x: torch.Tensor) -> torch.Tensor:
        with mode(), autocast():
            return program(x.to(dtype=cast or x.dtype, memory_format=layout))

    return encode


def _autocast(device: "torch.device", dtype: str) -> "contextlib.AbstractContextManager[Any]":
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()


def _fastest(variants: Sequence[str], make: Callable[[str], Callable[[], Any]], device: "torch.device") -> str:
    """The variant that does its work soonest: the better of two runs after one to warm up."""
    if len(variants) == 1:
        return variants[0]
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
