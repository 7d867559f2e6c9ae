"""What a command does before it first uses JAX: which device it computes on, and what is said of it."""

import argparse
import collections
import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence
from typing import Any

import jax

from tsp_jax.system import compilation, cpu, errors, malloc

_PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "tpu": "tpu"}  # by the flag's word, JAX's name


class DeviceError(errors.UserError):
    """The device that was asked for is not there, or JAX can't use it. The message says what JAX found and what to do."""


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds --device to a command. Its value, or None, goes to `choose_device`."""
    parser.add_argument(
        "--device",
        type=_device,
        metavar="DEVICE",
        help="where to compute: cpu, cuda, tpu, or one GPU by its number, such as cuda:1; without it JAX takes the best that "
        "it finds, or what the environment variable JAX_PLATFORMS says",
    )


def prepare_jax(device: str | None = None) -> None:
    """Prepares this process for JAX, and prints the device that it computes on.

    It keeps freed memory, splits a CPU into devices, and keeps compiled programs on disk. Call it before any other use of JAX.

    Args:
      device: the value of --device.

    Raises:
      DeviceError: the device is not there.
    """
    malloc.keep_freed()
    choose_device(device)
    cores = start_devices(device)
    compilation.keep_programs()
    print(describe_devices(jax.local_devices(), cores), flush=True)


def choose_device(device: str | None) -> None:
    """Makes JAX use one kind of device, or one GPU, when it starts. Call it before any other use of JAX.

    Args:
      device: cpu, cuda, tpu or cuda:N, where N counts the GPUs that CUDA_VISIBLE_DEVICES leaves; None for JAX's own choice.
    """
    if device is None:
        return
    kind, _, number = device.partition(":")
    jax.config.update("jax_platforms", kind if kind == "cpu" else f"{kind},cpu")  # a CPU is at hand in any case
    if number:
        jax.config.update("jax_cuda_visible_devices", number)


def use_no_device() -> None:
    """Makes JAX use a CPU alone. For commands that compute nothing, so that they run anywhere and leave a GPU to others."""
    jax.config.update("jax_platforms", "cpu")


def start_devices(device: str | None = None, rows: int | None = None) -> int:
    """Starts JAX's devices. Returns how many devices a CPU became, as `cpu.split_cpu` does.

    Args:
      device: the value of --device, which `choose_device` got before.
      rows: the number of rows that the devices share evenly; None for any number.

    Raises:
      DeviceError: JAX can't start the devices that --device or JAX_PLATFORMS asks for.
    """
    wanted = jax.config.values["jax_platforms"] or ""
    try:
        cores = cpu.split_cpu(rows)
        found = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # an assertion fails where no GPU is visible
        reason = re.sub(r"^Unable to initialize backend '[^']*': |\.?\s*\((set JAX_PLATFORMS|you may need).*", "", str(error))
        reason = reason.strip().split("\n")[0][:300]
        raise DeviceError(_explain(device, wanted, reason)) from error
    if device is not None and found != _PLATFORMS[device.partition(":")[0]]:
        raise DeviceError(_explain(device, wanted, ""))
    return cores


def describe_devices(devices: Sequence[Any], per_device: int = 1) -> str:
    """Returns a line that says in words what is computed on: "device: CPU, 2 cores" or "devices: 8 x NVIDIA H100 (cuda)".

    Args:
      devices: JAX's devices in use.
      per_device: how many of JAX's devices are one CPU, from `start_devices`.
    """
    count = len(devices) // per_device
    if devices[0].platform == "cpu":
        cores = cpu.cores()
        kinds, more = {"CPU": count}, f", {cores} core{'s' if cores > 1 else ''}"
    else:
        kinds, more = collections.Counter(item.device_kind for item in devices), f" ({_platform(devices[0])})"
    listed = ", ".join(f"{number} x {kind}" if count > 1 else kind for kind, number in kinds.items())
    return f"device{'s' if count > 1 else ''}: {listed}{more}"


def _device(text: str) -> str:
    if text not in _PLATFORMS and not re.fullmatch(r"cuda:\d{1,4}", text):
        raise argparse.ArgumentTypeError(f"cpu, cuda, tpu, or a GPU's number such as cuda:1; got {text}")
    return text


def _platform(device: Any) -> str:
    """Returns the device's kind as the flag names it."""
    version = device.client.platform_version.lower()
    return "rocm" if "rocm" in version else "cuda" if device.platform == "gpu" else device.platform


def _explain(device: str | None, wanted: str, reason: str) -> str:
    """Returns a message about devices that JAX can't start: what was asked for, what there is, and what to do."""
    jax.config.update("jax_platforms", "")
    try:
        there = jax.local_devices()
        found = describe_devices(there, len(there) if there[0].platform == "cpu" else 1).partition(": ")[2]
    except (RuntimeError, AssertionError):
        found = "none"
    finally:
        jax.config.update("jax_platforms", wanted)
    asked = f"--device {device}" if device else f"JAX_PLATFORMS={wanted}" if wanted else "the device of JAX's choice"
    words = {word.partition(":")[0] for word in (device or wanted).split(",")}
    advice = []
    if words & {"cuda", "gpu"}:
        plugins = [plugin.name for plugin in importlib.metadata.entry_points(group="jax_plugins") if "cuda" in plugin.name]
        advice.append(
            "see by nvidia-smi whether the GPU works, and in CUDA_VISIBLE_DEVICES whether it is hidden"
            if plugins
            else "for an NVIDIA GPU, JAX needs its CUDA plugin: pip install '.[cuda]'"
        )
    if "tpu" in words and importlib.util.find_spec("libtpu") is None:
        advice.append("for a TPU, JAX needs libtpu: pip install '.[tpu]'")
    if unknown := sorted(words - {"", "cpu", "cuda", "gpu", "rocm", "tpu"}):
        advice.append(f"{', '.join(unknown)} is no kind of device; name cpu, cuda or tpu")
    advice.append("or compute on the CPU by --device cpu" if advice else "compute on the CPU by --device cpu")
    return f"{asked} can't be used{f' ({reason})' if reason else ''}; found: {found}; {'; '.join(advice)}"
