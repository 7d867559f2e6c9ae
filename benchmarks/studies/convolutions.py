"""Times the convolutions of the backbones and their gradients on a CPU, layer by layer, next to XLA's own and PyTorch's.

The numbers are GFLOP in a second of processor time, in float32. A multiplication and an addition are two operations.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tsp_jax.system import cli, malloc

Layer = tuple[tuple[int, int, int, int], tuple[int, int, int, int, int], tuple[int, int, int]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0 all is well, 2 wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.convolutions",
        description=__doc__,
        epilog="example: taskset -c 1 python -m benchmarks.studies.convolutions --batch 4 --rounds 3",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--batch", type=cli.positive_int, default=4, help="clips in a batch, 16x112x112 each")
    parser.add_argument("--rounds", type=cli.positive_int, default=3, help="number of rounds; the fastest one counts")
    parser.add_argument("--torch", action="store_true", help="also measure PyTorch, in channels_last_3d")
    options = parser.parse_args(arguments)
    malloc.keep_freed()
    columns = ["output", "of the input", "of the kernel", "of the kernel, XLA"]
    columns += [f"{name}, PyTorch" for name in columns[:3] if options.torch]
    print(f"| input | kernel | stride | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 3)}")
    random = np.random.default_rng(0)
    for layer in layers():
        size, shape, stride = layer
        x = random.standard_normal((options.batch, *size), np.float32)
        kernel = random.standard_normal(shape, np.float32)
        runs = [*jax_runs(x, kernel, stride), *(torch_runs(x, kernel, stride) if options.torch else ())]
        outputs = [options.batch, *(-(-n // step) for n, step in zip(size, stride, strict=False))]
        operations = 2 * np.prod([*outputs, *shape], dtype=float)
        rates = [f"{operations / _fastest(run, options.rounds) / 1e9:.0f}" for run in runs]
        print(f"| {_joined(size)} | {_joined(shape)} | {_joined(stride)} | {' | '.join(rates)} |", flush=True)
    return 0


def layers() -> Iterator[Layer]:
    """Returns input `t h w c`, kernel and stride of each kind of convolution in layers 1 to 4, those of R3D-18 first."""
    from tsp_jax.models import video_resnet

    for whole in (True, False):
        for i, width in enumerate(video_resnet.WIDTHS):
            for stride in (2, 1) if i else (1,):
                before = width // stride
                t, h = (16 >> i) * stride, (56 >> i) * stride
                middle = video_resnet.middle_width(before, width)
                if whole:
                    yield (t, h, h, before), (3, 3, 3, before, width), (stride, stride, stride)
                else:
                    yield (t, h, h, before), (1, 3, 3, before, middle), (1, stride, stride)
                    yield (t, h // stride, h // stride, middle), (3, 1, 1, middle, width), (stride, 1, 1)


def jax_runs(x: np.ndarray, kernel: np.ndarray, stride: tuple[int, int, int]) -> list[Callable[[], Any]]:
    """Returns programs for the output, its gradients by input and kernel, and the latter as XLA computes it by itself."""
    import jax

    from tsp_jax.models import convolution

    arrays = jax.device_put((x, kernel))
    forward = jax.jit(lambda x, kernel: convolution.convolve(x, kernel, stride))
    y = forward(*arrays)

    def gradient(convolve: Callable[..., Any], of: int) -> Callable[[], Any]:
        def differentiate(x: Any, kernel: Any, y: Any) -> Any:
            return jax.vjp(lambda x, kernel: convolve(x, kernel, stride), x, kernel)[1](y)[of]

        program = jax.jit(differentiate)
        return lambda: jax.block_until_ready(program(*arrays, y))

    ours, plain = convolution.convolve, convolution.convolve_joined
    return [lambda: jax.block_until_ready(forward(*arrays)), gradient(ours, 0), gradient(ours, 1), gradient(plain, 1)]


def torch_runs(x: np.ndarray, kernel: np.ndarray, stride: tuple[int, int, int]) -> list[Callable[[], Any]]:
    """Returns PyTorch's programs for the first three, in channels_last_3d, with one thread for each core."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    layout = torch.channels_last_3d
    tensor = torch.from_numpy(x).permute(0, 4, 1, 2, 3)
    weight = torch.from_numpy(kernel).permute(4, 3, 0, 1, 2).contiguous(memory_format=layout)
    padding = tuple(size // 2 for size in kernel.shape[:3])
    y = torch.nn.functional.conv3d(tensor, weight, stride=stride, padding=padding)

    def gradient(of_x: bool) -> Any:
        mask = [of_x, not of_x, False]
        return torch.ops.aten.convolution_backward(
            y, tensor, weight, None, stride, padding, (1, 1, 1), False, (0, 0, 0), 1, mask
        )

    def forward() -> Any:
        with torch.inference_mode():
            return torch.nn.functional.conv3d(tensor, weight, stride=stride, padding=padding)

    return [forward, lambda: gradient(True), lambda: gradient(False)]


def _fastest(run: Callable[[], Any], rounds: int) -> float:
    """Returns the shortest processor time in seconds, after a first call that is not counted."""
    run()
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def _joined(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


if __name__ == "__main__":
    sys.exit(main())
