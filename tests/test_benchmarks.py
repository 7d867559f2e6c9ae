"""The benchmarks run, on little, and what they print is what they measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import media
from benchmarks import convolutions
from tsp_jax import checkpoints
from tsp_jax.models import functional, tsp

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_input_pipelines_benchmark_compares_and_tells_what_bounds_it(tmp_path: Path):
    (tmp_path / "videos").mkdir()
    media.write(tmp_path / "videos" / "one.mp4", frames=300)
    flags = ["--source", "videos", "--rounds", "2", "--clips", "64", "--json", "result.json"]
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.input_pipeline", *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    measured = json.loads((tmp_path / "result.json").read_text())
    for name, values in measured["whole_ms_per_clip"].items():
        assert len(values) == 2 and min(values) > 0
        assert f"| {name} | " in result.stdout
    assert "Bound by: " in result.stdout


def test_convolutions_are_those_of_the_backbones():
    shapes = set()
    for backbone in ("r3d_18", "r2plus1d_34"):
        params = checkpoints.flatten(functional.shapes(tsp.ModelConfig(backbone))["params"])
        shapes |= {
            leaf.shape for key, leaf in params.items() if len(leaf.shape) == 5 and "stem" not in key and "downsample" not in key
        }
    assert {kernel for _, kernel, _ in convolutions.layers()} == shapes
