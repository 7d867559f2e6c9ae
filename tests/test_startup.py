"""Tests of the start of a command: the device in use, --device, and JAX_PLATFORMS, in processes of their own."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tsp_jax import checkpoints, extract, predict, train
from tsp_jax.models import functional, tsp
from tsp_jax.system import cpu, startup

ROOT = Path(__file__).parents[1]
TRAIN = f"tsp_jax.train --config {ROOT}/configs/synthetic_tsp.py --workdir nowhere"
EXTRACT = "tsp_jax.extract --checkpoint nowhere --videos nowhere --output nowhere"
PREDICT = "tsp_jax.predict --checkpoint nowhere --features nowhere --output nowhere"


def run(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command where no GPU is visible."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **variables}
    return subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("command", "platforms", "asked", "remedy"),
    [
        (EXTRACT, "cuda", "JAX_PLATFORMS=cuda", "nvidia-smi|pip install '.\\[cuda\\]'"),
        (PREDICT, "nonsense", "JAX_PLATFORMS=nonsense", "nonsense is no kind of device; name cpu, cuda or tpu"),
        (f"{TRAIN} --device cuda:1", "cpu", "--device cuda:1", "nvidia-smi|pip install '.\\[cuda\\]'"),
    ],
)
def test_a_device_that_is_not_there_is_one_line_with_what_is_there_and_the_remedy(
    tmp_path: Path, command: str, platforms: str, asked: str, remedy: str
) -> None:
    found = run(command, tmp_path, JAX_PLATFORMS=platforms)
    assert found.returncode == 2, found.stderr
    cores = f"{cpu.cores()} core{'s' if cpu.cores() > 1 else ''}"
    there = rf"error: {asked} can't be used( \(.*\))?; found: CPU, {cores}; "
    assert re.fullmatch(rf"{there}.*({remedy}).*; or compute on the CPU by --device cpu\n", found.stderr), found.stderr


def test_the_flag_goes_before_the_environment_and_the_device_is_printed(tmp_path: Path) -> None:
    found = run(f"{EXTRACT} --device cpu", tmp_path, JAX_PLATFORMS="nonsense")
    assert re.fullmatch(r"device: CPU, \d+ cores?\n", found.stdout), found.stderr
    assert found.returncode == 2 and "nowhere" in found.stderr


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CPU", ""])
def test_a_device_of_no_kind_is_wrong_use(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for main, command in ((extract.main, EXTRACT), (predict.main, PREDICT), (train.main, TRAIN)):
        with pytest.raises(SystemExit) as error:
            main([*command.split()[1:], f"--device={text}"])
        assert error.value.code == 2
        assert f"cpu, cuda, tpu, or a GPU's number such as cuda:1; got {text}" in capsys.readouterr().err


def test_devices_are_named_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def device(platform: str, kind: str, version: str) -> SimpleNamespace:
        return SimpleNamespace(platform=platform, device_kind=kind, client=SimpleNamespace(platform_version=version))

    monkeypatch.setattr(cpu, "cores", lambda: 2)
    core, gpu = device("cpu", "cpu", "cpu"), device("gpu", "NVIDIA H100", "PJRT C API\ncuda 13000")
    rocm, tpu = device("gpu", "MI300", "PJRT C API\nrocm 70000"), device("tpu", "TPU v4", "libtpu")
    assert startup.describe_devices([core, core], 2) == "device: CPU, 2 cores"
    assert startup.describe_devices([core] * 3) == "devices: 3 x CPU, 2 cores"
    assert startup.describe_devices([gpu]) == "device: NVIDIA H100 (cuda)"
    assert startup.describe_devices([gpu] * 8) == "devices: 8 x NVIDIA H100 (cuda)"
    assert startup.describe_devices([rocm]) == "device: MI300 (rocm)"
    assert startup.describe_devices([tpu] * 4) == "devices: 4 x TPU v4 (tpu)"
    monkeypatch.setattr(cpu, "cores", lambda: 1)
    assert startup.describe_devices([core]) == "device: CPU, 1 core"


def test_every_kind_of_device_is_taken() -> None:
    parser = argparse.ArgumentParser()
    startup.add_device(parser)
    assert parser.parse_args([]).device is None
    for text in ("cpu", "cuda", "tpu", "cuda:0", "cuda:15"):
        assert parser.parse_args(["--device", text]).device == text


@pytest.mark.torch
def test_a_command_that_computes_nothing_needs_no_device(tmp_path: Path) -> None:
    config = tsp.ModelConfig("r3d_tiny")
    checkpoints.save(tmp_path / "model", checkpoints.make(config, functional.init(config, 0), checkpoints.Origin("seed 0")))
    found = run("convert.orbax_to_torch --checkpoint model --output model.pth", tmp_path, JAX_PLATFORMS="nonsense")
    assert found.returncode == 0 and "device" not in found.stdout, found.stderr
    assert (tmp_path / "model.pth").is_file()


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="there is no NVIDIA GPU")
def test_a_gpu_can_be_left_to_others(tmp_path: Path) -> None:
    code = "from tsp_jax.system import startup; startup.prepare_jax({!r}); import jax; print(len(jax.local_devices()))"
    for device, printed in (("cpu", "device: CPU, "), ("cuda", "(cuda)"), ("cuda:0", "(cuda)")):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": ""}
        command = [sys.executable, "-c", code.format(device)]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert printed in found and (":" not in device or found.endswith("\n1\n"))
