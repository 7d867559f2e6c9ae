"""Tests that files which version 0.1.0 wrote still open, with the contents that version read from them."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tsp_jax import checkpoints, features, input_pipeline, predictions, weights
from tsp_jax.features import __main__ as features_command
from tsp_jax.training import run_log

ROOT = Path(__file__).parents[1]
FILES = ROOT / "tests" / "written_by_0_1_0"
RECORDS = "records/video_folder/jpeg/1.0.0"
# These hashes were computed with version 0.1.0.
FEATURES = "ae2b9a12fc3f8c569e30320407cdedfdfa27f3958a5b34c2f83a9131a8f780e7"
TRAIN_BATCH = "57936d6427dea781d76dbdb4ede52a07c38a0666cbeea6fba3bde6df74462f58"
VALID_BATCH = "60e626113b25ff553a7c1efc524c015bf0a48b05b93de2b0d25528ec151861a2"
START_WEIGHTS = "15aef4e0c617a164aae98e9806536751cf8cc0a33fe03557062ed5cb31c40cd6"
BEST_WEIGHTS = "5fb6cfa8575d0ef0be91aabcdcc954c47b4a50cb42599ab776f7674095350ad6"
TRAIN = (
    "--workdir run --config.data.folder=records/video_folder/jpeg/1.0.0 --config.model.label_counts=2, "
    "--config.init.checkpoint=start --config.init.heads=kept --config.data.batch_size=4 --config.data.clips_per_segment=1 "
    "--config.optim.epochs=1 --config.optim.milestones=1 --config.optim.fc_lr=0"
)
# The network and the flags are those of written_by_0_1_0/make_unfinished.py.
NARROW = (
    "import sys, train_driver; from tsp_jax import train; "
    "train_driver.TINY.update(stem_widths=(2, 2), widths=(2, 2, 2, 12)); train_driver.register(); sys.exit(train.main())"
)
UNFINISHED = (
    "--workdir unfinished --config.data.folder=records/video_folder/jpeg/1.0.0 --config.model.backbone=tiny "
    "--config.model.label_counts=2, --config.init.checkpoint=random --config.data.batch_size=4 "
    "--config.data.clips_per_segment=8 --config.optim.epochs=1 --config.optim.milestones=1 --config.run.log_every_steps=5 "
    "--config.run.checkpoint_every_steps=2"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in FILES.glob("*.tar.gz"):
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path, filter="data")
    return tmp_path


def sha256(arrays: Mapping[str, object]) -> str:
    """Returns the hash of the names, dtypes, shapes and bytes of arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(np.asarray(arrays[name]))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def test_features_open_and_export_to_the_same_arrays(folder: Path) -> None:
    path = folder / "tsp.h5"
    names = features.names(path)
    assert len(names) == 9
    assert sha256({name: features.read(path, name).features for name in names}) == FEATURES
    assert features_command.main(["export", str(path), "--output", str(folder / "npy")]) == 0
    assert sha256({name: np.load(folder / "npy" / f"{name}.npy") for name in names}) == FEATURES


def test_checkpoints_without_a_kind_open(folder: Path) -> None:
    metadata = json.loads((folder / "start" / "about" / "metadata").read_text(encoding="utf-8"))
    assert "kind" not in metadata
    start, best = checkpoints.load(folder / "start"), weights.open_any(folder / "run")
    for found, expected in ((start, START_WEIGHTS), (best, BEST_WEIGHTS)):
        assert found.kind == "tsp"
        assert found.config.backbone == "r3d_tiny"
        assert found.weights_sha256 == checkpoints.weights_sha256(found.variables) == expected


def test_predictions_open(folder: Path) -> None:
    content = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
    found = predictions.read(folder / "predictions.json")
    assert found.tasks == ("action", "temporal_region")
    assert list(found.videos) == list(content["tsp_jax"]["videos"])
    for name, video in found.videos.items():
        segments = content["results"][name]
        assert [item.score for item in video.segments] == [item["score"] for item in segments]


def test_records_give_the_same_first_batches(folder: Path) -> None:
    split = input_pipeline.open_split(folder / RECORDS, "train")
    for batches, expected in (
        (input_pipeline.train_batches(split, global_batch_size=4, seed=0), TRAIN_BATCH),
        (input_pipeline.valid_batches(split, global_batch_size=4), VALID_BATCH),
    ):
        assert sha256(next(batches)) == expected
        batches.close()


@pytest.mark.slow
def test_workdir_is_evaluated_to_the_numbers_in_its_log(folder: Path) -> None:
    """The loss and accuracy are those that version 0.1.0 logged, as far as the line of an evaluation shows them."""
    log = (folder / "run" / "metrics.jsonl").read_bytes()
    result = (folder / "run" / "results.txt").read_text(encoding="utf-8")
    assert "Accuracy 50.000 Loss 0.724" in result
    command = [sys.executable, "-m", "tsp_jax.train", "--config", str(ROOT / "configs" / "synthetic_tac.py"), *TRAIN.split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--eval_only"], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert result.strip() in done.stdout
    assert (folder / "run" / "metrics.jsonl").read_bytes() == log


@pytest.mark.slow
def test_unfinished_run_goes_on_to_the_numbers_of_0_1_0(folder: Path) -> None:
    """Version 0.1.0 stopped the run after step 3 of 8, between two lines of the log, and finished a copy of it itself."""
    workdir = folder / "unfinished"
    assert (workdir / "metrics.jsonl").read_bytes() == b""
    command = [sys.executable, "-c", NARROW, "--config", str(ROOT / "configs" / "synthetic_tac.py"), *UNFINISHED.split()]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "weights: those after step 3 of 8" in done.stdout
    found, expected = (run_log.read(path / "metrics.jsonl") for path in (workdir, folder / "finished"))
    assert [list(line) for line in found] == [list(line) for line in expected]
    for line, old in zip(found, expected, strict=True):
        assert (line["split"], line["step"], line["epoch"]) == (old["split"], old["step"], old["epoch"])
        # The bits are equal on the machine that wrote the files; other processors round otherwise in each step.
        for key in {"loss", "grad_norm"} & old.keys():
            assert line[key] == pytest.approx(old[key], rel=1e-3), (line["split"], line["step"], key)
    assert (workdir / "best" / "about" / "metadata").is_file()
