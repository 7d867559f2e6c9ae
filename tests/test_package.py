"""Tests that the wheel holds all that the commands need, so that they run where only the wheel is installed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("tsp_jax", "convert", "data_builders")
HELP = """
import runpy, sys
for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, (module, end.code)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder into which the wheel is unpacked. The wheel is built from a copy of the sources."""
    pytest.importorskip("setuptools", "77")
    folder = tmp_path_factory.mktemp("package")
    source, site = folder / "source", folder / "site"
    source.mkdir()
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE", *ROOT.glob("requirements*.txt")]:
        shutil.copy(path, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", site, source], check=True, timeout=300)
    return site


def run(site: Path, *arguments: str) -> str:
    environment, command = {**os.environ, "PYTHONPATH": str(site)}, [sys.executable, *arguments]
    result = subprocess.run(command, cwd=site.parent, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, (result.stdout, result.stderr)
    return result.stdout


@pytest.mark.slow
def test_every_file_of_the_packages_is_in_the_wheel(installed: Path):
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("no git repository")
    files = tracked.stdout.split()
    assert len(files) > 40
    absent = [name for name in files if not (installed / name).is_file() and "/dummy_data/" not in name]
    assert not absent


@pytest.mark.slow
def test_every_command_runs_from_the_wheel_alone(installed: Path):
    commands = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if '__name__ == "__main__"' in path.read_text()
    ]
    assert {"tsp_jax.extract", "tsp_jax.train", "convert.torch_to_orbax", "data_builders.build"} <= set(commands)
    shown = run(installed, "-c", HELP, *commands)
    assert len(re.findall("^usage:|^ *USAGE:", shown, flags=re.MULTILINE)) >= len(commands) - 1, shown
    assert shown.count("example") >= len(commands)
    where = run(installed, "-c", "import tsp_jax; print(tsp_jax.__file__, tsp_jax.load_encoder.__name__, tsp_jax.__version__)")
    assert Path(where.split()[0]).is_relative_to(installed)
    (distribution,) = installed.glob("tsp_jax-*.dist-info")
    assert f"tsp_jax-{where.split()[2]}.dist-info" == distribution.name
