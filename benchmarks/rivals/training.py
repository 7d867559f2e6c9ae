"""PyTorch's sides of the benchmark of training from end to end."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import alternate
from benchmarks.rivals import common, loading
from benchmarks.rivals import step as steps
from benchmarks.rivals.common import torch


def training(spec: dict[str, Any]) -> alternate.Side:
    """Returns the side that trains on the clips of our side. The outputs are the losses of the first two steps.

    `released` seeks each clip in its video. `best` reads our records by our own pipeline, and crops the clips on the device.
    """
    device, released = common.prepare(spec), spec["side"] == "released"
    batches = loading.sought_batches(spec) if released else _batches_of_records(spec)
    variants = ["eager"] if released else spec["variants"] or common.STEP[device.type, spec["dtype"]]
    first = next(batches)

    def make(variant: str) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
        trainer = steps.Trainer(common.network(spec, device), variant, "float32" if released else spec["dtype"])

        def one(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            placed = {key: values.to(device, non_blocking=True) for key, values in batch.items()}
            labels = [placed["action"].long(), placed["temporal_region"].long()]
            clips = placed["clips"] if released else loading.windows(placed)
            return trainer.step(trainer.place(clips), None, labels)[0]

        return one

    chosen = common.fastest(variants, lambda variant: functools.partial(make(variant), first), device)
    one = make(chosen)
    losses = [float(one(first)), float(one(next(batches)))]

    def run(count: int) -> None:
        for _ in range(count):
            float(one(next(batches)))

    return alternate.Side(run, np.array(losses), common.about(spec, device, "" if released else chosen))


def _batches_of_records(spec: dict[str, Any]) -> Iterator[dict[str, "torch.Tensor"]]:
    from tsp_jax import config, input_pipeline

    split = input_pipeline.open_split(spec["records"], "train")
    threads = config.Run().reader_threads
    for batch in input_pipeline.train_batches(
        split, global_batch_size=spec["batch"], seed=0, balanced=True, num_threads=threads
    ):
        yield {key: torch.from_numpy(values) for key, values in batch.items()}
