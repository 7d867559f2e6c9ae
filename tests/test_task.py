"""Tests that the training command runs a second task: it is killed, goes on to the same bits, and is exported."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import second_task
from tsp_jax import checkpoints
from tsp_jax.system import trees
from tsp_jax.training import run_checkpoints, run_log

PAGE = "import second_task\n\nget_config = second_task.get_config\n"
COMMAND = "import sys, second_task; sys.exit(second_task.main(sys.argv[1:]))"
TESTS = Path(__file__).parent
STEPS = 12


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")  # JAX is in use in this process, so it can no longer look for other processes


def flags(folder: Path, name: str) -> list[str]:
    (folder / "page.py").write_text(PAGE)
    return ["--config", str(folder / "page.py"), "--workdir", str(folder / name)]


def left_behind(workdir: Path) -> tuple[dict[str, bytes], bytes, bytes]:
    """Returns the bytes of the last state, of the log and of the exported weights."""
    shapes = jax.eval_shape(lambda: second_task.Waves(second_task.Recipe(second_task.Optim(0.1)), None).start()[0])
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    keeper = run_checkpoints.Keeper(workdir / "checkpoints" / "last", read_only=True)
    state, _ = keeper.restore(like)
    keeper.close()
    arrays = {key: np.asarray(leaf).tobytes() for key, leaf in trees.leaves(state).items()}
    return (
        arrays,
        (workdir / "metrics.jsonl").read_bytes(),
        checkpoints.load(workdir / "last", second_task.KINDS).weights_sha256.encode(),
    )


@pytest.mark.slow
def test_second_task_trains_goes_on_after_a_kill_to_the_same_bits_and_is_exported(tmp_path: Path, alone: None) -> None:
    assert second_task.main(flags(tmp_path, "whole")) == 0
    lines = run_log.read(tmp_path / "whole" / "metrics.jsonl")
    assert [line["step"] for line in lines if line["split"] == "valid"] == [4, 8, 12]
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["mean_accuracy"] >= 0.75  # it learns

    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1"
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *flags(tmp_path, "killed")], env=environment)
    deadline = time.monotonic() + 120
    while not any((tmp_path / "killed" / "checkpoints" / "last" / str(step)).exists() for step in range(3, STEPS)):
        assert time.monotonic() < deadline and process.poll() in (None, 0)
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert second_task.main(flags(tmp_path, "killed")) == 0
    assert left_behind(tmp_path / "killed") == left_behind(tmp_path / "whole")

    exported = checkpoints.load(tmp_path / "whole" / "best", second_task.KINDS)
    assert exported.kind == "waves" and exported.config == second_task.Convolution()
    with pytest.raises(ValueError, match="a model of the kind 'waves', expected tsp"):
        checkpoints.load(tmp_path / "whole" / "best")


def test_page_of_an_unknown_task_is_refused(tmp_path: Path, alone: None, capsys: pytest.CaptureFixture[str]) -> None:
    from tsp_jax import train

    assert train.main(flags(tmp_path, "run")) == 2
    assert "the task is 'waves'; known are encoder" in capsys.readouterr().err
