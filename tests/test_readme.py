"""Every command of README runs as it stands there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import media
from convert import released

ROOT = Path(__file__).parents[1]
MAKE = {"make demo", "make test"}  # `make test` is what runs this; `make demo` is run below


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [block for kind, block in found if kind == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README's reader has: model.pth, a folder of videos."""
    torch = pytest.importorskip("torch")
    torch_reference = pytest.importorskip("torch_reference")
    folder = tmp_path_factory.mktemp("reader")
    torch.manual_seed(0)
    torch.save({"model": torch_reference.build("r3d_18", (200, 2), gvf=True).state_dict()}, folder / "model.pth")
    (folder / "videos").mkdir()
    for name in ["one", "two"]:
        media.write(folder / "videos" / f"{name}.mp4", frames=40)
    _write_activitynet(folder)
    names = [f"synthetic_0_{number:05d}.mp4" for number in range(5)]  # of the data set that the commands before draw
    rows = [f"{name},1.0,2.5,jump,{'train' if number < 4 else 'valid'}\n" for number, name in enumerate(names)]
    (folder / "mine.csv").write_text("".join(["filename,t-start,t-end,action-label,subset\n", *rows]))
    return folder


def _write_activitynet(folder: Path) -> None:
    """Two videos of ActivityNet's layout, and an annotation file with all of its 200 classes."""
    (folder / "downloads").mkdir()
    database = {}
    for name, subset in [("aaaaaaaaaaa", "training"), ("bbbbbbbbbbb", "validation")]:
        media.write(folder / "downloads" / f"v_{name}.mp4", frames=240)
        database[name] = {"subset": subset, "annotations": [{"segment": [0.3, 2.1], "label": "action 000"}]}
    others = [{"segment": [0, 1], "label": f"action {number:03d}"} for number in range(200)]
    database["ccccccccccc"] = {"subset": "testing", "annotations": others}
    (folder / "activity_net.v1-3.min.json").write_text(json.dumps({"version": "VERSION 1.3", "database": database}))


def run(command: list[str], folder: Path, patience_sec: int = 300) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TSP_JAX_CACHE": str(folder / "cache"),
        "HTTPS_PROXY": "http://127.0.0.1:9",  # offline, wherever this runs
        "https_proxy": "http://127.0.0.1:9",
    }
    command = [sys.executable if part == "python" else part for part in command]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=patience_sec)


Results = list[tuple[list[str], subprocess.CompletedProcess[str]]]


@pytest.fixture(scope="module")
def ran(folder: Path) -> Results:
    """The commands in their order, and what became of each."""
    commands = [line.split() for block in blocks("sh") for line in block.strip().splitlines()]
    return [(command, run(command, folder)) for command in commands]


@pytest.mark.slow
@pytest.mark.torch
def test_the_commands_run_in_their_order(folder: Path, ran: Results):
    assert len(ran) >= 20
    for command, result in ran:
        named = [released.RELEASED[part] for part in command if part in released.RELEASED]
        if named:  # can't be fetched here: the message says from where, and where to put it
            assert result.returncode == 2, result.stderr
            assert named[0].url in result.stderr and str(folder / "cache") in result.stderr
            assert "Traceback" not in result.stderr
        else:
            assert result.returncode == 0, (command, result.stdout, result.stderr)
    shown = [run(["python", "-c", block], folder) for block in blocks("python")]
    assert [result.returncode for result in shown] == [0, 0, 0], [result.stderr for result in shown]
    assert "one (1, 512) 30.0" in shown[0].stdout
    assert "(1, 512) [0.] 1.0666666666666667 ClipGeometry" in shown[1].stdout and "two (1, 512) [0.]" in shown[1].stdout
    assert "(8, 16, 128, 171, 3) uint8 [0, 1, 0, 1, 0, 1, 0, 1]" in shown[2].stdout
    assert sorted(path.name for path in (folder / "per_video").iterdir()) == ["one.pkl", "two.pkl"]


@pytest.mark.slow
@pytest.mark.torch
def test_the_clusters_commands_run_on_beams_own_runner(folder: Path, ran: Results):
    """The runner of each is replaced by the one that needs no cluster, and its flags stay."""
    (block,) = blocks("beam")
    commands = [line.split() for line in block.strip().splitlines()]
    assert len(commands) == 3
    for command in commands:
        runner = command.index("--beam_runner") + 1
        assert command[runner] in {"FlinkRunner", "SparkRunner", "DataflowRunner"}
        command[runner] = "DirectRunner"
        result = run(command, folder)
        assert result.returncode == 0, (command, result.stdout, result.stderr)


@pytest.mark.slow
def test_the_commands_of_the_results_run_on_a_few_videos(tmp_path: Path):
    (block,) = blocks("results")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for line in block.strip().splitlines():
        command = line.replace("--videos 60", "--videos 6").replace("--videos 24", "--videos 6").split()
        if "data_builders.synthetic" in command:
            command += ["--seconds", "5", "6"]
        if "tsp_jax.train" in command:
            command += ["--config.optim.epochs=1", "--config.optim.milestones=1", "--config.data.batch_size=4"]
            command += ["--config.data.clips_per_segment=1"]
        result = run(command, tmp_path)
        assert result.returncode == 0, (command, result.stdout, result.stderr)
    assert re.search(r"^\| tac_held_out\.h5 \| \d+ \| \d+\.\d % \|", result.stdout, flags=re.MULTILINE), result.stdout


@pytest.mark.slow
def test_the_demo_runs_on_few_videos_and_a_second_time_does_little(tmp_path: Path):
    recipe = re.search(r"^demo:.*\n\t(.*)\n\n", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert recipe and recipe[1].startswith("$(BIN)/python ")
    command = ["python", *recipe[1].split()[1:], "--quick"]
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    first = run(command, tmp_path, patience_sec=900)
    assert first.returncode == 0, (first.stdout, first.stderr)
    steps = re.findall(r"^\[(\d+) of (\d+), .*\n\$ python -m (\S+) ", first.stdout, flags=re.MULTILINE)
    assert [int(number) for number, _, _ in steps] == list(range(1, int(steps[0][1]) + 1))
    assert {"tsp_jax.train", "tsp_jax.extract", "tsp_jax.predict", "tsp_jax.report"} <= {name for _, _, name in steps}
    assert re.search(r"^linear probe of TAC: \d+\.\d % ", first.stdout, flags=re.MULTILINE)
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert all(part in page for part in ("TSP", "TAC", "Linear probe", "Predicted segments"))
    weights = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").glob("t*/last/**/*") if path.is_file()}
    assert weights
    # As after a kill while features were extracted.
    (tmp_path / "demo" / "tsp.h5").unlink()
    (tmp_path / "demo" / "report.html").unlink()
    second = run(command, tmp_path, patience_sec=900)
    assert second.returncode == 0, (second.stdout, second.stderr)
    assert "0 written" in second.stdout and (tmp_path / "demo" / "report.html").exists()
    assert {path: path.stat().st_mtime_ns for path in weights} == weights


def test_other_blocks_are_the_two_commands():
    lines = [line.split("#")[0].strip() for block in blocks("") for line in block.strip().splitlines()]
    assert set(lines) == MAKE
