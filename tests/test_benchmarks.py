"""Tests that the benchmarks run on little data and print what they measured."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import media
from benchmarks import alternate

ROOT = Path(__file__).parents[1]

SMALL = ["--rounds", "1", "--seconds", "0.05", "--json", "result.json"]


def run(folder: Path, module: str, *flags: str) -> str:
    """Runs a benchmark in that folder. Returns what it prints."""
    result = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def ratios(table: str) -> dict[str, float]:
    """Returns by how much ours is faster than each other side, as the table says."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    return {row[1].split()[0]: float(row[4].split()[0]) for row in rows if row[1].split()[0] in ("released", "best")}


def run_sides(folder: Path, monkeypatch: pytest.MonkeyPatch, **rivals: str) -> tuple[int, dict[str, Any] | None]:
    """Times `right` as ours next to functions of `benchmark_sides` as rivals. Returns the exit status and the result."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    parser = argparse.ArgumentParser()
    alternate.add_flags(parser)
    options = parser.parse_args(["--rounds", "2", "--seconds", "0.05", "--json", str(folder / "result.json")])
    sides = {name: f"benchmark_sides:{function}" for name, function in {"ours": "right", **rivals}.items()}

    def work(result: dict[str, Any]) -> None:
        measured = alternate.measure("wait", sides, {}, clips=3, tolerance=1e-3, options=options)
        alternate.add(result, measured, options)

    status, path = alternate.run(options, work), folder / "result.json"
    return status, json.loads(path.read_text()) if path.exists() else None


def test_the_table_shows_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    status, result = run_sides(tmp_path, monkeypatch, released="right", best="absent")
    assert status == 0 and result is not None
    (item,) = result["measured"]
    assert item["left_out"] == {"best": "its library is not installed"}
    assert list(item["sides"]) == ["ours", "released"]
    speeds = {name: [lap["clips"] / lap["seconds"] for lap in side["laps"]] for name, side in item["sides"].items()}
    assert all(len(found) == 2 and min(found) > 0 for found in speeds.values())
    printed = capsys.readouterr().out
    expected = sum(a / b for a, b in zip(speeds["ours"], speeds["released"], strict=True)) / 2  # the median of two
    assert ratios(printed)["released"] == pytest.approx(expected, abs=0.006)
    assert ratios(printed)["released"] > 1
    assert "best is left out: its library is not installed" in printed
    assert "libraries print" not in printed


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ("wrong", "best differs from ours by 5.0e-02 of the largest value"),
        ("misshapen", "best gives outputs of shape (1,), ours are (2,)"),
        ("broken", "best ended with status 3"),
    ],
)
def test_sides_that_differ_or_fail_are_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], side: str, message: str
):
    assert run_sides(tmp_path, monkeypatch, best=side) == (1, None)
    errors = capsys.readouterr().err
    assert message in errors
    assert ("nothing was timed" in errors) == (side == "wrong")


def test_the_script_for_a_gpu_names_commands_that_exist():
    script = (ROOT / "benchmarks" / "gpu.sh").read_text()
    named = {line.split(") run ")[1].split()[2] for line in script.splitlines() if ") run " in line}
    assert named == {"model", "extract", "studies.choices"}
    assert all((ROOT / "benchmarks" / f"{name.replace('.', '/')}.py").is_file() for name in named)
    subprocess.run(["bash", "-n", "benchmarks/gpu.sh"], cwd=ROOT, check=True)


@pytest.mark.slow
def test_the_input_pipelines_benchmark_compares_and_says_what_bounds_it(tmp_path: Path):
    (tmp_path / "videos").mkdir()
    media.write(tmp_path / "videos" / "one.mp4", frames=300)
    flags = ["--source", "videos", "--rounds", "2", "--clips", "64", "--json", "result.json"]
    printed = run(tmp_path, "input_pipeline", *flags)
    measured = json.loads((tmp_path / "result.json").read_text())
    for name, values in measured["whole_ms_per_clip"].items():
        assert len(values) == 2 and min(values) > 0
        assert f"| {name} | " in printed
    assert "Bound by: " in printed


@pytest.mark.slow
@pytest.mark.torch
def test_one_call_compares_forward_passes_extraction_and_steps(tmp_path: Path):
    environment = {**os.environ, "TSP_BENCHMARK_SMALL": "1", "OUT": str(tmp_path), "PYTHON": sys.executable}
    environment["PARTS"] = "forward extract step batch"  # without the finished study
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


@pytest.mark.slow
def test_start_and_memory_of_extraction_are_measured(tmp_path: Path):
    flags = ["--backbone", "r3d_tiny", "--clip_len", "4", "--batch", "2", "--folder", "."]
    assert "| r3d_tiny float32 | warm |" in run(tmp_path, "extract", "--startup", *flags, *SMALL)
    starts = json.loads((tmp_path / "result.json").read_text())["startup"]
    assert [item["cache"] for item in starts] == ["empty", "warm"]
    assert starts[1]["until_computing_sec"] < starts[0]["until_computing_sec"]
    assert "| r3d_tiny, 0.002 hours |" in run(
        tmp_path, "extract", "--memory", "--memory_hours", "0.001", "0.002", *flags, *SMALL
    )
    runs = json.loads((tmp_path / "result.json").read_text())["memory"]
    assert [item["hours"] for item in runs] == [0.001, 0.002]
    assert all(item["peak"] >= max(rss for _, rss in item["samples"]) > 50e6 for item in runs)


def test_evaluation_is_measured_next_to_a_loop_of_the_same_score(tmp_path: Path):
    printed = run(tmp_path, "evaluate", "--predictions", "3000", "--repeats", "1").splitlines()
    scores = [line.rpartition(" ")[2] for line in printed[1:]]
    assert [line.partition(":")[0] for line in printed[1:]] == ["ours", "loop"] and scores[0] == scores[1]
    table = run(tmp_path, "evaluate", "--predictions", "3000", "--protocols")
    assert "| opentad | 7,607 | 0.50 to 0.95 |" in table
