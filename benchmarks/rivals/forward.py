"""PyTorch's sides of the benchmark of the forward pass."""

from typing import Any

from benchmarks import alternate
from benchmarks.rivals import common


def forward(spec: dict[str, Any]) -> alternate.Side:
    """Returns the side that computes the features of a batch that is already on the device."""
    device = common.prepare(spec)
    network = common.network(spec, device).features
    clips = common.to_torch(common.batch(spec)["video"], device)
    encode, how = common.encoder(spec, network, clips)
    features = encode(clips)

    def run(count: int) -> None:
        for _ in range(count):
            encode(clips)
        common.finish(device)

    return alternate.Side(run, features.float().cpu().numpy(), common.about(spec, device, how))
