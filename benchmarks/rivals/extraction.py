"""PyTorch's sides of the benchmark of feature extraction."""

import collections
import pickle
import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import alternate, reading
from benchmarks.rivals import common
from benchmarks.rivals.common import torch
from tsp_jax import clips, transforms
from tsp_jax.system import cpu


def extraction(spec: dict[str, Any]) -> alternate.Side:
    """Returns the side that writes the features of a folder's videos to one pickle for each. The outputs are the features."""
    device = common.prepare(spec)
    network = common.network(spec, device).features
    geometry = clips.ClipGeometry(clip_len=spec["clip_len"], stride=spec["stride"])
    plans = [reading.plan(path, geometry) for path in sorted(Path(spec["videos"]).iterdir())]
    shape = spec["batch"], 3, spec["clip_len"], *transforms.KINETICS.crop
    encode, how = common.encoder(spec, network, torch.randn(shape, device=device))
    once = _extract_seeking if spec["side"] == "released" else _extract_decoding_once
    found: list[torch.Tensor] = []

    def run(count: int) -> None:
        for _ in range(count):
            found[:] = [rows.float().cpu() for rows in once(plans, encode, spec["batch"], device)]
            for item, rows in zip(plans, found, strict=True):
                with (Path(spec["folder"]) / f"{item.path.stem}.pkl").open("wb") as file:
                    pickle.dump(rows.numpy(), file)

    run(1)
    return alternate.Side(run, torch.cat(found).numpy(), common.about(spec, device, how))


class _Seeking(torch.utils.data.Dataset):
    """A data set of clips. Each is sought and decoded on its own."""

    def __init__(self, plans: Sequence["reading.Plan"]):
        self.clips = [(item, numbers) for item in plans for numbers in item.clips]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> "torch.Tensor":
        item, numbers = self.clips[index]
        begin_sec = float(item.frame_sec[numbers[0]])
        read = reading.seek(item.path, begin_sec, begin_sec + len(numbers) / common.RATE)
        pixels = torch.from_numpy(np.stack([pixels for _, pixels in read])[numbers - numbers[0]])
        return common.centre(pixels).transpose(0, 1)


def _extract_seeking(
    plans: Sequence["reading.Plan"], encode: common.Encode, batch: int, device: "torch.device"
) -> "tuple[torch.Tensor, ...]":
    loader = torch.utils.data.DataLoader(
        _Seeking(plans), batch, num_workers=common.DATA_LOADER_WORKERS, pin_memory=device.type == "cuda"
    )
    rows = [encode(clips.to(device, non_blocking=True)).cpu() for clips in loader]
    return torch.cat(rows).split([len(item.clips) for item in plans])


def _extract_decoding_once(
    plans: Sequence["reading.Plan"], encode: common.Encode, batch: int, device: "torch.device"
) -> "tuple[torch.Tensor, ...]":
    """Extracts features with threads that decode one video each, once. A frame is resized once, and sent once in a batch."""
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
    """Yields each clip of a video as soon as its last frame is there."""
    row, kept = 0, {}
    for number, pixels in reading.once(item.path, set(item.clips.ravel().tolist())):
        kept[number] = common.centre(torch.from_numpy(pixels)[None])[0]
        while row < len(item.clips) and item.clips[row, -1] <= number:
            yield row, [kept[number] for number in item.clips[row].tolist()]
            row += 1
        for old in [old for old in kept if row == len(item.clips) or old < item.clips[row, 0]]:
            del kept[old]
