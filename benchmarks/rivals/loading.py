"""PyTorch's sides of the benchmark of reading training clips."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import alternate, reading, seeded
from benchmarks.rivals import common
from benchmarks.rivals.common import torch
from tsp_jax import clips
from tsp_jax.system import cpu


def loading(spec: dict[str, Any]) -> alternate.Side:
    """Returns the side that makes training clips for the network. The outputs are the first batch, averaged over blocks.

    `released` seeks each clip in its video. `best` reads our records by a DataLoader with one worker for each core.
    """
    device, released = common.prepare(spec), spec["side"] == "released"
    batches = sought_batches(spec) if released else _loaded_records(spec)

    def one() -> torch.Tensor:
        placed = {key: values.to(device, non_blocking=True) for key, values in next(batches).items()}
        return placed["clips"] if released else windows(placed)

    first = one().permute(0, 2, 3, 4, 1).float().cpu().numpy()

    def run(count: int) -> None:
        for _ in range(count):
            one()
        common.finish(device)

    return alternate.Side(run, seeded.small(first), common.about({**spec, "dtype": "float32"}, device, ""))


def _loaded_records(spec: dict[str, Any]) -> Iterator[dict[str, "torch.Tensor"]]:
    from tsp_jax import input_pipeline

    split = input_pipeline.open_split(spec["records"], "train")
    clip = input_pipeline.train_clips(split, clips_per_segment=5, balanced=True, seed=0)

    class Read(torch.utils.data.Dataset):
        """The clips of the epochs, one after another. Each is read from its record."""

        def __len__(self) -> int:
            return 1 << 24

        def __getitem__(self, number: int) -> dict[str, Any]:
            batch = input_pipeline.read_clips(split, [clip(number)])
            return {key: torch.from_numpy(batch[key])[0] for key in ("video", "crop", "flip")}

    loader = torch.utils.data.DataLoader(Read(), spec["batch"], num_workers=cpu.cores(), pin_memory=spec["device"] == "cuda")
    return iter(loader)


def sought_batches(spec: dict[str, Any]) -> Iterator[dict[str, "torch.Tensor"]]:
    from tsp_jax import groundtruth, input_pipeline

    split = input_pipeline.open_split(spec["records"], "train")
    clip = input_pipeline.train_clips(split, clips_per_segment=5, balanced=True, seed=0)
    rows = groundtruth.read_groundtruth(spec["truth"])

    class Sought(torch.utils.data.Dataset):
        """The clips of the epochs, one after another. Each is sought and decoded on its own."""

        def __len__(self) -> int:
            return 1 << 24

        def __getitem__(self, number: int) -> dict[str, Any]:
            drawn = clip(number)
            segment = rows[int(split.index.segment_row[drawn.segment])]
            grid = clips.resampled(segment.num_frames, segment.fps, common.RATE)[drawn.place : drawn.place + 16]
            read = reading.seek(
                Path(spec["videos"]) / segment.filename, grid[0] / segment.fps, grid[-1] / segment.fps + 1 / common.RATE
            )
            frames = common.resized(torch.from_numpy(np.stack([pixels for _, pixels in read])[grid - grid[0]]))
            frames = frames.flip(-1) if drawn.flip else frames
            frames = common.normalized(frames)[:, :, drawn.top : drawn.top + 112, drawn.left : drawn.left + 112]
            return {
                "clips": frames.transpose(0, 1),
                "action": int(split.index.segment_action[drawn.segment]),
                "temporal_region": int(split.index.segment_temporal_region[drawn.segment]),
            }

    loader = torch.utils.data.DataLoader(
        Sought(), spec["batch"], num_workers=common.DATA_LOADER_WORKERS, pin_memory=spec["device"] == "cuda"
    )
    return iter(loader)


def windows(batch: dict[str, "torch.Tensor"]) -> "torch.Tensor":
    """Returns clips `b c t 112 112`, mirrored, cut to their windows and normalized."""
    cut = []
    for frames, (top, left), flip in zip(batch["video"], batch["crop"].tolist(), batch["flip"].tolist(), strict=True):
        cut.append((frames.flip(2) if flip else frames)[:, top : top + 112, left : left + 112])
    return common.normalized(torch.stack(cut).permute(0, 1, 4, 2, 3).float() / 255).transpose(1, 2)
