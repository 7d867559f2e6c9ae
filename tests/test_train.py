"""Tests of the training command: runs that are stopped, killed and continued, on devices and processes, and their files."""

import dataclasses
import functools
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import media
import train_driver
from convert import orbax_to_torch
from data_builders import build, gvf, metadata, synthetic
from data_builders import groundtruth as groundtruth_command
from tsp_jax import checkpoints, config, extract, groundtruth, train
from tsp_jax.features import global_features
from tsp_jax.models import backbones, functional, tsp
from tsp_jax.system import trees
from tsp_jax.training import encoder_task, interruption, loop, run_checkpoints, run_folder, run_log, train_step, warm_start

ROOT = Path(__file__).parents[1]
DRIVER = Path(__file__).with_name("train_driver.py")
FRAMES = {"one": 300, "two": 240, "three": 330}  # number of frames of each video, at 30 fps
# Each part has its video, start and end in seconds, and label, which is empty for background. The first three parts are also
# those of the validation split.
PARTS = [
    ("one", 0.0, 4.0, "jump"),
    ("one", 4.0, 10.0, ""),
    ("two", 0.0, 1.9, "run"),
    ("two", 1.9, 8.0, ""),
    ("three", 0.5, 7.0, "jump"),
    ("three", 2.0, 5.0, "sit"),
    ("three", 7.0, 11.0, ""),
]
STEPS_PER_EPOCH, STEPS = 4, 12  # with two clips from each segment, four clips in a batch, for three epochs
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with records of the splits train and valid, the videos and a file of global features."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "videos").mkdir()
    for seed, (name, frames) in enumerate(FRAMES.items()):
        media.write(folder / "videos" / f"{name}.mp4", frames=frames, size=(160, 128), seed=seed)
    for split, parts in (("train", PARTS), ("valid", PARTS[:3])):
        rows = [
            groundtruth.AnnotatedSegment(
                name,
                start,
                end,
                label,
                FRAMES[name] / 30,
                f"{name}.mp4",
                30.0,
                FRAMES[name],
                groundtruth.ACTION if label else groundtruth.NO_ACTION,
            )
            for name, start, end, label in parts
        ]
        groundtruth.write_groundtruth(folder / f"{split}.csv", rows)
    flags = f"--dataset video_folder --num_shards 1 --data_dir {folder} --videos {folder}/videos --workers 1 --groundtruth"
    assert build.main([*flags.split(), *(str(folder / f"{split}.csv") for split in ("train", "valid"))]) == 0
    generator = np.random.default_rng(0)
    vectors = {name: generator.standard_normal(12).astype(np.float32) for name in FRAMES}
    global_features.write(folder / "gvf.h5", vectors, {})
    return folder


@pytest.fixture(scope="module")
def synthetic_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder like `data` with six short synthetic videos of all classes, made by the commands that prepare them."""
    folder = tmp_path_factory.mktemp("synthetic")
    assert synthetic.main(f"--output {folder} --videos 6 --seed 0 --subset training --seconds 5 6".split()) == 0
    assert metadata.main(["--videos", str(folder / "videos"), "--output", str(folder / "metadata.csv")]) == 0
    for split in ("train", "valid"):
        made = f"--format activitynet --annotations {folder}/annotations.json --subset train --background union "
        made += f"--min_background_sec 1.1 --metadata {folder}/metadata.csv --output {folder}/{split}.csv"
        assert groundtruth_command.main(made.split()) == 0
    flags = f"--dataset video_folder --num_shards 1 --data_dir {folder} --videos {folder}/videos --workers 1 --groundtruth"
    assert build.main([*flags.split(), *(str(folder / f"{split}.csv") for split in ("train", "valid"))]) == 0
    vectors = {path.stem: np.ones(12, np.float32) for path in (folder / "videos").iterdir()}
    global_features.write(folder / "gvf.h5", vectors, {})
    return folder


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the backbone `tiny` of train_driver."""
    spec = backbones.BACKBONES["r3d_18"]
    tiny = dataclasses.replace(spec, build=functools.partial(spec.build, **train_driver.TINY), width=12)
    monkeypatch.setitem(backbones.BACKBONES, "tiny", tiny)
    monkeypatch.setenv("SLURM_NTASKS", "1")  # JAX is in use in this process, so it can no longer look for other processes


def flags(data: Path, workdir: Path, *more: str, page: str = "synthetic_tsp") -> list[str]:
    """Returns the command's arguments for a small run. Of two values for a key, the later one counts."""
    changes = {
        "data.folder": data / "video_folder" / "jpeg" / "1.0.0",
        "data.train_split": "train",
        "data.valid_split": "valid",
        "data.batch_size": 4,
        "data.clips_per_segment": 2,
        "model.backbone": "tiny",
        "model.label_counts": "3,2",
        "init.checkpoint": "random",
        "optim.backbone_lr": 1e-2,
        "optim.fc_lr": 1e-2,
        "optim.stem_lr": 1e-2,
        "optim.epochs": 3,
        "optim.milestones": "1,2",
        "run.log_every_steps": 3,
        "run.checkpoint_every_steps": 2,
        "run.reader_threads": 1,
    }
    fixed = [f"--config.{key}={value}" for key, value in changes.items()]
    return ["--config", f"{ROOT}/configs/{page}.py", "--workdir", str(workdir), *fixed, *more]


def start(arguments: Sequence[str], log: Path, devices: int = 1) -> subprocess.Popen[str]:
    """Starts the command in a process of its own, with its output in a file."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, str(DRIVER), *arguments]
    with log.open("w") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, text=True)


def stop_at_random(process: subprocess.Popen[str], workdir: Path, number: int) -> int:
    """Sends a signal to a run at a random moment soon after its first checkpoint. Returns the run's exit status."""
    deadline, first = time.monotonic() + 300, 2
    while not any((workdir / "checkpoints" / "last" / str(step)).exists() for step in range(first, STEPS)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.05 * random.random())  # a step takes some milliseconds, a checkpoint some tens
    process.send_signal(number)
    return process.wait(180)


def saved(workdir: Path, name: str = "last") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays and the metadata of a state in a workdir."""
    keeper = run_checkpoints.Keeper(workdir / "checkpoints" / name, read_only=True)
    manager, step, here = keeper._manager, keeper.latest(), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert manager is not None and step is not None
    tree = manager.item_metadata(step)["state"].tree
    like = {key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here) for key, leaf in tree.items()}
    found = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))
    page = keeper.metadata()
    keeper.close()
    return {key: np.asarray(leaf) for key, leaf in found["state"].items()}, page


def assert_same_bits(left: Path, right: Path) -> None:
    """Checks that two runs left the same states, metrics and results behind."""
    for name in ("last", "best"):
        (first, page), (second, page_2) = saved(left, name), saved(right, name)
        assert page == page_2 and first.keys() == second.keys()
        assert [key for key in first if first[key].tobytes() != second[key].tobytes()] == []
        exported = [checkpoints.load(workdir / name).weights_sha256 for workdir in (left, right)]
        assert exported[0] == exported[1]
    for name in ("metrics.jsonl", "results.txt"):
        assert (left / name).read_bytes() == (right / name).read_bytes()


def assert_close(left: Path, right: Path) -> None:
    """Checks that two runs learned the same but for rounding."""
    (first, _), (second, _) = saved(left), saved(right)
    assert first.keys() == second.keys()
    for key in first:
        if key.startswith("variables"):
            np.testing.assert_allclose(
                first[key], second[key], rtol=0, atol=1e-5 * max(1, np.abs(first[key]).max()), err_msg=key
            )


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the workdir of a run that was not interrupted."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    log = workdir.with_suffix(".log")
    assert start(flags(data, workdir), log).wait(400) == 0, log.read_text()
    return workdir


# ------------------------------------------------------------------------------------------------------ stop and go on


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_run_stopped_at_a_random_step_goes_on_to_the_same_bits(
    data: Path, whole: Path, tmp_path: Path, tiny: None, number: signal.Signals
) -> None:
    workdir, log = tmp_path / "run", tmp_path / "log"
    status = stop_at_random(start(flags(data, workdir), log), workdir, number)
    assert status == (130 if number == signal.SIGTERM else -signal.SIGKILL), log.read_text()
    if number == signal.SIGTERM:
        assert "and saved; the same command again goes on from there" in log.read_text()
        assert f"step {saved(workdir)[1]['step']} of {STEPS}" in log.read_text()
    with (workdir / "metrics.jsonl").open("a") as file:  # a kill may leave such lines
        file.write('{"split": "train", "step": 999}\n{"split": "tr')
    assert train.main(flags(data, workdir)) == 0
    assert_same_bits(whole, workdir)


def test_run_stopped_within_the_evaluation_evaluates_again(
    data: Path, whole: Path, tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = encoder_task.EncoderTask.evaluate

    def interrupted(
        self: encoder_task.EncoderTask, state: train_step.TrainState, stop: interruption.Interruption
    ) -> dict[str, float] | None:
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(self, state, stop)

    with monkeypatch.context() as patch:
        patch.setattr(encoder_task.EncoderTask, "evaluate", interrupted)
        assert train.main(flags(data, tmp_path / "run")) == 130
    assert f"stopped after step {STEPS_PER_EPOCH} of {STEPS}" in capsys.readouterr().out
    assert train.main(flags(data, tmp_path / "run")) == 0
    assert_same_bits(whole, tmp_path / "run")


def test_run_that_is_done_does_nothing_more(data: Path, whole: Path, tmp_path: Path, tiny: None) -> None:
    workdir = shutil.copytree(whole, tmp_path / "run")
    assert train.main(flags(data, workdir)) == 0
    assert_same_bits(whole, workdir)


# ---------------------------------------------------------------------------------------------- devices and processes

# The learning rates are small, because in float32 a step enlarges the rounding of the one before.
RATES = tuple(f"--config.optim.{group}_lr=1e-3" for group in ("stem", "backbone", "fc"))
GLOBAL = ("--config.compute.batch_norm=global", "--config.data.batch_size=2", *RATES)


@pytest.fixture(scope="module")
def two_devices(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the workdir of a run on two devices with statistics of the whole batch."""
    workdir = tmp_path_factory.mktemp("two_devices") / "run"
    log = workdir.with_suffix(".log")
    assert start(flags(data, workdir, *GLOBAL), log, devices=2).wait(400) == 0, log.read_text()
    return workdir


def test_run_on_two_devices_goes_on_with_one(data: Path, two_devices: Path, tmp_path: Path, tiny: None) -> None:
    workdir = tmp_path / "run"
    process = start(flags(data, workdir, *GLOBAL), tmp_path / "log", devices=2)
    assert stop_at_random(process, workdir, signal.SIGTERM) == 130, (tmp_path / "log").read_text()
    assert train.main(flags(data, workdir, *GLOBAL)) == 0
    assert_close(two_devices, workdir)


def start_two(data: Path, workdir: Path, *more: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    several = [f"--coordinator=localhost:{port}", "--num_processes=2"]
    return [
        start(
            flags(data, workdir, *GLOBAL, *several, f"--process_id={index}", *more),
            workdir.with_name(f"{index}.log"),
        )
        for index in range(2)
    ]


def test_two_processes_agree_with_one_and_stop_at_the_same_step(data: Path, two_devices: Path, tmp_path: Path) -> None:
    # One process gets the signal, and both stop at the same state. A run that ended before the signal is tried again.
    for attempt in range(5):
        workdir = tmp_path / f"run{attempt}"
        processes = start_two(data, workdir)
        status = stop_at_random(processes[1], workdir, signal.SIGTERM)
        if status != 0:
            break
        assert processes[0].wait(180) == 0, (tmp_path / "0.log").read_text()
    assert status == 130, (tmp_path / "1.log").read_text()
    assert processes[0].wait(180) == 130, (tmp_path / "0.log").read_text()
    assert f"stopped after step {saved(workdir)[1]['step']} of {STEPS}" in (tmp_path / "0.log").read_text()
    assert [process.wait(400) for process in start_two(data, workdir)] == [0, 0], (tmp_path / "0.log").read_text()
    assert_close(two_devices, workdir)
    valid, valid_2 = (run_log.read(path / "metrics.jsonl")[-1] for path in (two_devices, workdir))
    assert valid["split"] == "valid" and valid.keys() == valid_2.keys()
    for key in set(valid) - {"split"}:
        assert valid[key] == pytest.approx(valid_2[key], rel=1e-4), key


def test_process_that_is_killed_ends_the_other_with_a_message(data: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    more = ["--config.run.checkpoint_every_steps=0", "--config.optim.epochs=100", "--config.run.log_every_steps=1"]
    processes = start_two(data, workdir, *more)
    deadline = time.monotonic() + 300
    while not any(line["step"] >= 2 for line in run_log.read(workdir / "metrics.jsonl")):
        assert time.monotonic() < deadline and processes[0].poll() is None, (tmp_path / "0.log").read_text()
        time.sleep(0.01)
    processes[1].kill()
    assert processes[1].wait(10) == -signal.SIGKILL
    assert processes[0].wait(180) != 0
    message = (tmp_path / "0.log").read_text()
    assert "another process of the run has ended" in message or "another task died" in message, message
    assert "Traceback" not in message


# -------------------------------------------------------------------------------------------------------------- refusals


def test_other_config_is_refused_with_the_difference(
    data: Path, whole: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(flags(data, whole, "--config.optim.gamma=0.5", "--config.run.log_every_steps=7", "--config.seed=9")) == 2
    message = capsys.readouterr().err
    assert message.splitlines()[1:] == ["  optim.gamma: 0.1 there, 0.5 here", "  seed: 0 there, 9 here"]


def test_workdir_in_use_is_refused(data: Path, tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    with run_folder.locked(tmp_path / "run"):
        assert train.main(flags(data, tmp_path / "run")) == 2
    assert "another run is training there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config.optim.bakbone_lr=1"], "optim.bakbone_lr: unknown; did you mean optim.backbone_lr"),
        (["--config.optim.epochs", "many"], "optim.epochs: expected int, found 'many'"),
        (["--config.optim.epochs=0"], "optim.epochs: expected a number above 0, found 0"),
        (["--config.model.label_counts=200,2"], "model.label_counts: 200 classes of action; the data set has 3"),
        (["--config.data.train_split=trian"], "no split 'trian'"),
        (["--config.data.folder=nowhere"], "nowhere"),
        (["--config.init.checkpoint=nowhere.pth"], "nowhere.pth: no such file"),
        (["--config.init.checkpoint=r3d_19-kinetics_init"], "r3d_19-kinetics_init"),
        (["--config.data.batch_size=3"], "balanced batches have an even number of rows"),
        (["--eval_only"], "has no checkpoint, and the recipe's heads are new"),
        (["--num_processes=2"], "['coordinator', 'process_id'] not given"),
    ],
)
def test_wrong_use_is_told_without_a_traceback(
    data: Path, tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert train.main(flags(data, tmp_path / "run", *more)) == 2
    assert message in capsys.readouterr().err


def test_page_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--config", "configs/none.py", "--workdir", str(tmp_path)]) == 2
    assert "configs/none.py: no such page" in capsys.readouterr().err


def test_unknown_flag_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(["--config", "p.py", "--workdir", "w", "--evalonly"])
    assert caught.value.code == 2 and "unrecognized arguments: --evalonly" in capsys.readouterr().err


def test_loss_that_is_not_finite_stops_the_run_and_names_the_clips(
    data: Path, tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    # The warm-up's first step is harmless, the next ones are not.
    more = ["--config.optim.backbone_lr=1e30", "--config.optim.fc_lr=1e30", "--config.run.checkpoint_every_steps=1"]
    assert train.main(flags(data, tmp_path / "run", *more)) == 1
    lines = capsys.readouterr().err.splitlines()
    (first,) = (number for number, line in enumerate(lines) if line.startswith("error: step "))
    failed = int(lines[first].split()[2].rstrip(":"))
    clips = lines[first + 1 : first + 5]
    assert len(lines) == first + 5 and all("line " in clip and ".mp4 from " in clip for clip in clips)
    state, page = saved(tmp_path / "run")
    assert page["step"] == failed - 1 and all(np.isfinite(leaf).all() for leaf in state.values())


def test_host_waits_for_each_step_on_a_cpu_alone(
    data: Path, whole: Path, tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, block = [], jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda tree: (waits.append(tree), block(tree))[1])
    assert train.main(flags(data, tmp_path / "cpu")) == 0
    assert len(waits) == STEPS
    waits.clear()
    monkeypatch.setattr(loop, "waits_for_steps", lambda mesh: False)  # as on a GPU or TPU
    assert train.main(flags(data, tmp_path / "gpu")) == 0
    assert waits == []
    for name in ("cpu", "gpu"):
        assert_same_bits(whole, tmp_path / name)


# ------------------------------------------------------------------------------------------------ what a run leaves behind


def test_evaluation_alone_equals_the_epochs(data: Path, whole: Path, tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert train.main(flags(data, whole, "--eval_only")) == 0
    results, line = capsys.readouterr().out.splitlines()[-2:]
    assert json.loads(line) == run_log.read(whole / "metrics.jsonl")[-1]
    assert results == (whole / "results.txt").read_text().splitlines()[-1]
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_metrics_and_results_show_every_epoch(whole: Path) -> None:
    lines = run_log.read(whole / "metrics.jsonl")
    assert [(line["split"], line["step"], line["epoch"]) for line in lines] == [
        ("train", 3, 0), ("train", 4, 0), ("valid", 4, 0),
        ("train", 6, 1), ("train", 8, 1), ("valid", 8, 1),
        ("train", 9, 2), ("train", 12, 2), ("valid", 12, 2),
    ]  # fmt: skip
    # The values follow from learning rate 1e-2, gamma 0.1, a warm-up of one epoch and milestones after epochs 1 and 2.
    assert [line["lr_fc"] for line in lines if line["split"] == "train"] == pytest.approx(
        [1e-2 * (1e-5 * 0.5 + 0.5), 1e-2 * (1e-5 * 0.25 + 0.75), 1e-3, 1e-3, 1e-4, 1e-4]
    )
    results = (whole / "results.txt").read_text().splitlines()
    assert len(results) == 3
    for epoch, (text, line) in enumerate(zip(results, lines[2::3], strict=True)):
        action, region = (
            f"Accuracy {line[f'accuracy_{head}'] * 100:.3f} Loss {line[f'loss_{head}']:.3f}"
            for head in ("action", "temporal_region")
        )
        total = f"Total Loss {line['loss']:.3f} Avg Accuracy {line['mean_accuracy'] * 100:.3f}"
        assert text == f"** Valid Epoch {epoch}:  <action-label> {action}; <temporal-region-label> {region}; {total}"
    assert any(path.name.startswith("events.out.tfevents") for path in (whole / "tensorboard").iterdir())


def test_best_is_the_first_epoch_of_the_highest_mean_accuracy(whole: Path, tiny: None) -> None:
    valid = [line for line in run_log.read(whole / "metrics.jsonl") if line["split"] == "valid"]
    best = max(valid, key=lambda line: (line["mean_accuracy"], -line["step"]))
    assert saved(whole, "best")[1] == {"step": best["step"], "mean_accuracy": best["mean_accuracy"]}
    assert f"for {best['step']} steps" in checkpoints.load(whole / "best").origin.note
    assert f"for {STEPS} steps" in checkpoints.load(whole / "last").origin.note


def test_best_weights_extract_as_any_checkpoint(data: Path, whole: Path, tmp_path: Path, tiny: None) -> None:
    for spec in (whole, whole / "best"):
        output = tmp_path / f"{spec.name}.h5"
        assert extract.main(["--checkpoint", str(spec), "--videos", str(data / "videos"), "--output", str(output)]) == 0
        with h5py.File(output) as file:
            assert sorted(file) == sorted(FRAMES)
            assert file["one"].attrs["checkpoint_sha256"].decode() == checkpoints.load(whole / "best").weights_sha256
            assert file["one"].attrs["checkpoint"].decode() == whole.name


# ----------------------------------------------------------------------------------------------------------------- start


def recipe_of(checkpoint: Path | str, heads: str, backbone: str = "tiny", label_counts: str = "3,2") -> encoder_task.Recipe:
    more = [
        f"model.backbone={backbone}",
        f"model.label_counts={label_counts}",
        f"init.checkpoint={checkpoint}",
        f"init.heads={heads}",
    ]
    return train.read_recipe(str(ROOT / "configs" / "synthetic_tsp.py"), more)[1]


def start_variables(recipe: encoder_task.Recipe) -> tuple[functional.Variables, list[str]]:
    init = recipe.init
    return warm_start.variables(recipe.model_config, init.checkpoint, keep_heads=init.heads == "kept", seed=recipe.seed)


def test_new_heads_are_drawn_and_the_backbone_is_loaded(whole: Path, tiny: None) -> None:
    loaded = checkpoints.load(whole / "best")
    variables, lines = start_variables(recipe_of(whole, "new", label_counts="5,2"))
    fresh = functional.init(tsp.ModelConfig("tiny", (5, 2)), 0)
    for key, leaf in trees.flatten(variables).items():
        source = loaded.variables if key.startswith("features") else fresh
        np.testing.assert_array_equal(leaf, trees.flatten(source)[key], err_msg=key)
    assert lines[1] == "heads: fc1, fc2 new, drawn by seed 0" and lines[2] == "not loaded: fc1, fc2"


def test_kept_heads_are_the_checkpoints(whole: Path, tiny: None) -> None:
    variables, lines = start_variables(recipe_of(whole / "last", "kept"))
    assert checkpoints.weights_sha256(variables) == checkpoints.load(whole / "last").weights_sha256
    assert lines[1] == "heads: fc1, fc2 kept"


@pytest.mark.parametrize(
    ("backbone", "label_counts", "message"),
    [
        ("r3d_18", "3,2", "its backbone is tiny; the recipe's is r3d_18"),
        ("tiny", "5,2", r"misshapen: fc1.bias expected \(5,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(whole: Path, tiny: None, backbone: str, label_counts: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        start_variables(recipe_of(whole, "kept", backbone, label_counts))


# ----------------------------------------------------------------------------------------------------------------- recipes

PAGES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("page", PAGES)
def test_page_runs_three_steps(
    page: str, synthetic_data: Path, tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = config.load(str(ROOT / "configs" / f"{page}.py")).to_dict()
    more = ["--config.optim.epochs=1", "--config.data.clips_per_segment=1", "--config.data.batch_size=3"]
    more += ["--config.run.log_every_steps=1"]
    if sections["data"]["gvf"]:
        more.append(f"--config.data.gvf={synthetic_data / 'gvf.h5'}")
    if sections["data"]["balanced"]:
        more.append("--config.data.batch_size=4")
        more.append("--config.data.clips_per_segment=2")  # four steps
    more.append(f"--config.model.label_counts={6 if sections['model']['labels'] == ('action',) else '6,2'}")
    assert train.main(flags(synthetic_data, tmp_path / "run", *more, page=page)) == 0, capsys.readouterr().err
    lines = [line for line in run_log.read(tmp_path / "run" / "metrics.jsonl") if line["split"] == "train"]
    assert len(lines) >= 3 and all(np.isfinite(line["loss"]) for line in lines)
    assert checkpoints.load(tmp_path / "run" / "best").config.gvf == bool(sections["data"]["gvf"])


# ------------------------------------------------------------------------------------------------------------------ README


def test_commands_of_the_readme_train(
    data: Path, whole: Path, tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs the blocks on training of README and docs in this process, with the small backbone and data in their places."""
    pages = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/train.md", "docs/cluster.md")}
    blocks = re.findall(r"^```bash\n(.*?)^```", "\n".join(pages.values()), flags=re.DOTALL | re.MULTILINE)
    commands = [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").strip().splitlines()]
    monkeypatch.chdir(tmp_path)
    for name in ("videos", "standard"):
        (tmp_path / name).symlink_to(data / "videos")
    mains: dict[str, Callable[[Sequence[str]], int]] = {
        "tsp_jax.extract": extract.main,
        "data_builders.gvf": gvf.main,
        "tsp_jax.train": train.main,
        "convert.orbax_to_torch": orbax_to_torch.main,
    }
    seen = set()
    for command in commands:
        module, arguments = command[command.index("-m") + 1], command[command.index("-m") + 2 :]
        arguments = [str(whole / "best") if part == "r2plus1d_34-kinetics_init" else part for part in arguments]
        if "--coordinator" in arguments:
            assert train._parse(arguments).process_id is not None
            continue
        if module == "tsp_jax.train":
            page = arguments[arguments.index("--config") + 1]
            assert (ROOT / page.split(":")[0]).is_file()
            vectors = config.load(str(ROOT / page)).data.gvf  # the page names the file that the previous command made
            small = [*flags(data, tmp_path)[4:], "--config.optim.epochs=1", "--config.optim.milestones=1"]
            arguments = [f"{ROOT}/{page}" if part == page else part for part in arguments]
            arguments += [*small, f"--config.data.gvf={vectors}"]
        assert mains[module](arguments) == 0, (command, capsys.readouterr().err)
        seen.add(module)
    assert seen == mains.keys()
    named = set(re.findall(r"^\| `([^`]+)`", pages["docs/train.md"], flags=re.MULTILINE))
    assert named == {path.name + "/" * path.is_dir() for path in (tmp_path / "runs" / "anet_tsp").iterdir()} - {".lock"}
