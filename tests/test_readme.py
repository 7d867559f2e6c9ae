"""Tests that every command of README and docs/ runs as it is written, and that README's facts are those of the code."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest

import media
from convert import released
from tsp_jax import train
from tsp_jax.models import functional, tsp
from tsp_jax.report import __main__ as report

ROOT = Path(__file__).parents[1]
# The pages in the order in which a reader goes through them: later commands use what earlier ones wrote.
TASKS = ("extract", "models", "predict", "report", "data", "train", "cluster", "evaluate", "features", "results")
PAGES = ["README.md", *(f"docs/{name}.md" for name in TASKS)]
# What `make test` would run again is not run here; `make demo` is run below.
NOT_RUN = {"git clone URL-OF-THIS-REPOSITORY tsp_jax", "cd tsp_jax", "make demo"}
# The blocks that no command runs, and where the others are run: `bash` in tests/test_train.py.
KINDS = {"", "sh", "bash", "console", "python", "beam", "results", "csv", "bibtex"}


def page_blocks() -> list[tuple[str, str]]:
    """Returns the language and the text of every code block of the pages, in order."""
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    return re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    return [block for kind, block in page_blocks() if kind == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader, who has model.pth, a folder of videos and annotations."""
    torch = pytest.importorskip("torch")
    torch_reference = pytest.importorskip("torch_reference")
    folder = tmp_path_factory.mktemp("reader")
    torch.manual_seed(0)
    torch.save({"model": torch_reference.build("r3d_18", (200, 2), gvf=True).state_dict()}, folder / "model.pth")
    (folder / "videos").mkdir()
    for name in ["one", "two"]:
        media.write(folder / "videos" / f"{name}.mp4", frames=40)
    _write_activitynet(folder)
    names = [f"synthetic_0_{number:05d}.mp4" for number in range(5)]  # those that data_builders.synthetic draws
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
    """The commands in their order, and the result of each."""
    commands = [line.split() for block in blocks("sh") for line in block.strip().splitlines()]
    return [(command, run(command, folder)) for command in commands]


@pytest.mark.slow
@pytest.mark.torch
def test_the_commands_run_in_their_order(folder: Path, ran: Results):
    assert len(ran) >= 20
    for command, result in ran:
        named = [released.RELEASED[part] for part in command if part in released.RELEASED]
        if named:  # it can't be fetched here; the message says from where to fetch it, and where to put it
            assert result.returncode == 2, result.stderr
            assert named[0].url in result.stderr and str(folder / "cache") in result.stderr
            assert "Traceback" not in result.stderr
        else:
            assert result.returncode == 0, (command, result.stdout, result.stderr)
    shown = [run(["python", "-c", block], folder) for block in blocks("python")]
    assert [result.returncode for result in shown] == [0, 0, 0, 0, 0], [result.stderr for result in shown]
    assert "(1, 512) [0.] 1.0666666666666667 ClipGeometry" in shown[0].stdout and "two (1, 512) [0.]" in shown[0].stdout
    assert "one (1, 512) 30.0" in shown[1].stdout
    assert "(8, 16, 128, 171, 3) uint8 [0, 1, 0, 1, 0, 1, 0, 1]" in shown[2].stdout
    assert "(10,)\n(1, 10) ('action 000',)" in shown[3].stdout
    assert "(1, 512) 0.0 1.0666666666666667" in shown[4].stdout
    assert sorted(path.name for path in (folder / "per_video").iterdir()) == ["one.pkl", "two.pkl"]


@pytest.mark.slow
@pytest.mark.torch
def test_the_clusters_commands_run_on_beams_own_runner(folder: Path, ran: Results):
    """The runner of each command is replaced by the one that needs no cluster; its flags stay."""
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


def test_other_blocks_install_with_extras_that_the_package_has():
    lines = [line.split("#")[0].strip() for block in blocks("") for line in block.strip().splitlines()]
    installs = [line for line in lines if line.startswith("pip install ")]
    assert {*lines} - {*installs} == NOT_RUN
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["dynamic"]["optional-dependencies"]
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    named = re.findall(r"pip install '\.\[(\w+)\]'", text)
    assert {"cuda", "tpu", "convert", "beam"} <= set(named) <= set(extras)


def test_every_page_and_every_kind_of_block_has_its_test():
    assert {kind for kind, _ in page_blocks()} == KINDS
    for path in (ROOT / "docs").glob("*.md"):
        commands = re.findall(r"^python -m ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert not commands or f"docs/{path.name}" in PAGES, path


def test_commands_that_are_only_shown_have_flags_and_recipes_that_exist():
    commands = [shlex.split(line) for block in blocks("console") for line in block.replace("\\\n", " ").strip().splitlines()]
    modules = {"tsp_jax.report": report, "tsp_jax.train": train}
    seen = set()
    for command in commands:
        assert command[:2] == ["python", "-m"]
        options = modules[command[2]]._parse(command[3:])
        seen.add(command[2])
        if command[2] == "tsp_jax.train":
            train.read_recipe(str(ROOT / options.config), options.changes)
    assert seen == modules.keys()


def test_links_between_the_pages_lead_to_files_that_exist():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        absent = [link for link in links if "://" not in link and not (page.parent / link).exists()]
        assert not absent, page


def test_the_table_of_models_is_the_list_that_the_code_knows():
    rows = re.findall(r"^\| `(\S+)` \| (.*) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    backbones = {"r2plus1d_34": "R(2+1)D-34", "r2plus1d_18": "R(2+1)D-18", "r3d_18": "R3D-18"}
    sizes = {name: _parameters(name) for name in backbones}
    expected = []
    for model in released.RELEASED.values():
        backbone, _, origin = model.name.partition("-")
        if origin == "kinetics_init":
            pretraining, data_set = "start of TSP training", "Kinetics"
        else:
            how, _, where = origin.split("-")[0].partition("_on_")
            pretraining, data_set = how.upper(), {"activitynet": "ActivityNet", "thumos14": "THUMOS14"}.get(where, "Kinetics")
        pooling = "max" if "-max_gvf-" in model.url else "average" if "-avg_gvf-" in model.url else "none"
        cells = (backbones[backbone], pretraining, data_set, pooling, f"{sizes[backbone] / 1e6:.1f} M")
        expected.append((model.name, " | ".join(cells)))
    assert rows == expected


def _parameters(backbone: str) -> int:
    """Returns how many parameters a backbone has, without heads and running statistics."""
    return sum(leaf.size for leaf in jax.tree.leaves(functional.shapes(tsp.ModelConfig(backbone))["params"]))
