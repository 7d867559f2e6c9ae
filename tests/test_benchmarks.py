"""The benchmarks run, on little, and what they print is what they measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import media
from benchmarks import alternate, choices, convolutions, ours
from tsp_jax.models import functional, tsp
from tsp_jax.system import trees

ROOT = Path(__file__).parents[1]


SMALL = ["--rounds", "1", "--seconds", "0.05", "--json", "result.json"]


def run(folder: Path, module: str, *flags: str, status: int = 0) -> str:
    """What a benchmark prints; its errors, where it is to fail."""
    result = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == status, result.stderr
    return result.stderr if status else result.stdout


def ratios(table: str) -> dict[str, float]:
    """By how much ours is faster than each other side, as the table tells."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    return {row[1].split()[0]: float(row[4].split()[0]) for row in rows if row[1].split()[0] in ("released", "best")}


@pytest.mark.slow
def test_the_input_pipelines_benchmark_compares_and_tells_what_bounds_it(tmp_path: Path):
    (tmp_path / "videos").mkdir()
    media.write(tmp_path / "videos" / "one.mp4", frames=300)
    flags = ["--source", "videos", "--rounds", "2", "--clips", "64", "--json", "result.json"]
    printed = run(tmp_path, "input_pipeline", *flags)
    measured = json.loads((tmp_path / "result.json").read_text())
    for name, values in measured["whole_ms_per_clip"].items():
        assert len(values) == 2 and min(values) > 0
        assert f"| {name} | " in printed
    assert "Bound by: " in printed


def test_convolutions_are_those_of_the_backbones():
    shapes = set()
    for backbone in ("r3d_18", "r2plus1d_34"):
        params = trees.flatten(functional.shapes(tsp.ModelConfig(backbone))["params"])
        shapes |= {
            leaf.shape for key, leaf in params.items() if len(leaf.shape) == 5 and "stem" not in key and "downsample" not in key
        }
    assert {kernel for _, kernel, _ in convolutions.layers()} == shapes


@pytest.mark.slow
@pytest.mark.torch
def test_one_call_compares_forward_passes_extraction_and_steps(tmp_path: Path):
    environment = {**os.environ, "TSP_BENCHMARK_SMALL": "1", "OUT": str(tmp_path), "PYTHON": sys.executable}
    script = ["bash", "benchmarks/gpu.sh"]
    result = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    for name in ("forward", "extract", "step"):
        (item,) = json.loads((tmp_path / f"{name}.json").read_text())["measured"]
        laps = {side: values["laps"][0] for side, values in item["sides"].items()}
        assert list(laps) == ["ours", "released", "best"]
        speeds = {side: lap["clips"] / lap["seconds"] for side, lap in laps.items()}
        table = (tmp_path / "tables.md").read_text().split(f"== {name}\n")[1].split("==")[0]
        for side, ratio in ratios(table).items():
            assert ratio == pytest.approx(speeds["ours"] / speeds[side], abs=0.006)
            assert 0 < item["sides"][side]["difference"] < 1e-3
    assert list(json.loads((tmp_path / "batch.json").read_text())["measured"][0]["sides"]) == ["ours"]
    forward, step = json.loads((tmp_path / "choices.json").read_text())["measured"]
    assert list(forward["sides"]) == ["ours", "3-D", "folded and padded"]
    assert all(0 < forward["sides"][choice]["difference"] < 1e-5 for choice in ("3-D", "folded and padded"))
    assert step["sides"]["not donated"]["difference"] == 0


@pytest.mark.parametrize("backbone", ["r2plus1d_34", "r2plus1d_18", "r3d_18"])
def test_the_networks_written_out_are_the_products(backbone: str):
    spec = {"backbone": backbone, "label_counts": (3, 2), "gvf": True, "dtype": "float32", "batch": 1, "clip": (4, 32, 32)}
    expected = ours.forward(spec).outputs
    for choice in ("waited for", "folded and padded"):
        assert 0 < alternate.difference(choice, choices.forward(spec, choice).outputs, expected) < 1e-4


@pytest.mark.slow
@pytest.mark.torch
def test_training_is_compared_on_the_same_clips(tmp_path: Path):
    (tmp_path / "videos").mkdir()
    media.write(tmp_path / "videos" / "one.mp4", size=(172, 128), frames=150)
    flags = ["--source", "videos", "--batch", "2", "--variants", "eager"]
    assert all(ratio > 0 for ratio in ratios(run(tmp_path, "train", *flags, *SMALL)).values())
    (item,) = json.loads((tmp_path / "result.json").read_text())["measured"]
    assert item["sides"]["best"]["difference"] < 1e-3  # the same records
    assert item["sides"]["released"]["difference"] < 0.02  # the source's frames, which the records keep as JPEG
    flags = ["--source", "videos", "--batch", "2", "--rival", "released", "best", *SMALL]
    assert all(ratio > 0 for ratio in ratios(run(tmp_path, "input_pipeline", *flags)).values())
    (item,) = json.loads((tmp_path / "result.json").read_text())["measured"]
    assert item["sides"]["best"]["difference"] < 1e-5


def test_decodings_benchmark_tells_each_stage(tmp_path: Path):
    (tmp_path / "videos").mkdir()
    media.write(tmp_path / "videos" / "one.mp4", frames=60, options={"bf": "2"})
    printed = run(tmp_path, "decoding", "--videos", "videos", "--rounds", "1", "--json", "result.json")
    (item,) = json.loads((tmp_path / "result.json").read_text())["videos"]
    assert (item["frames"], item["decoded"] < 60, len(item["left_out"])) == (60, True, 1)
    assert all(len(speeds) == 1 and speeds[0] > 0 for speeds in item["frames_per_sec"].values())
    assert min(item["milliseconds"][stage][0] for stage in ("scan", "decode", "taps")) > 0
    assert printed.count("| one.mp4 | ") == 3


@pytest.mark.slow
def test_start_and_memory_of_extraction_are_told(tmp_path: Path):
    flags = ["--backbone", "r3d_tiny", "--clip_len", "4", "--batch", "2", "--folder", "."]
    assert "| r3d_tiny float32 | warm |" in run(tmp_path, "extract", "--startup", *flags, *SMALL)
    told = json.loads((tmp_path / "result.json").read_text())["startup"]
    assert [item["cache"] for item in told] == ["empty", "warm"]
    assert told[1]["until_computing_sec"] < told[0]["until_computing_sec"]
    assert "| r3d_tiny, 0.002 hours |" in run(
        tmp_path, "extract", "--memory", "--memory_hours", "0.001", "0.002", *flags, *SMALL
    )
    told = json.loads((tmp_path / "result.json").read_text())["memory"]
    assert [item["hours"] for item in told] == [0.001, 0.002]
    assert all(item["peak"] >= max(rss for _, rss in item["samples"]) > 50e6 for item in told)


def test_sides_that_differ_are_not_timed(tmp_path: Path):
    flags = ["--backbone", "r3d_18", "--mode", "forward", "--dtype", "float32", "--batch", "1", "--clip", "2", "16", "16"]
    errors = run(tmp_path, "model", *flags, "--rival", "best", "--variants", "folded+cast", *SMALL, status=1)
    assert "best differs from ours by" in errors and "nothing was timed" in errors
    assert not (tmp_path / "result.json").exists()
