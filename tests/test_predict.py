"""Tests of predictions: the rule by hand, the heads' numbers, the global feature of one pass, kills, refusals."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import media
from data_builders import gvf
from tsp_jax import checkpoints, clip_segments, extract, features, groundtruth, predict, predictions
from tsp_jax.features import global_features
from tsp_jax.models import functional, tsp

ROOT = Path(__file__).parents[1]
LABELS = ["jump", "run", "sit"]
MODELS = {
    "tsp_gvf": ((3, 2), True),
    "tsp": ((3, 2), False),
    "tac": ((3,), False),
    "region": ((2,), False),
    "start": ((), False),
}
FRAMES = {"a": 140, "b": 100, "c": 80}  # at 30 fps: four, three and two clips of 16 frames at 15 fps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the smallest backbone, videos, labels, and features of the videos by two of the checkpoints."""
    folder = tmp_path_factory.mktemp("predict")
    for seed, (name, (counts, reads_gvf)) in enumerate(MODELS.items()):
        config = tsp.ModelConfig("r3d_tiny", counts, reads_gvf)
        variables = functional.init(config, seed)
        for head in config.head_names:  # drawn with a spread of 0.01: all probabilities would be nearly the same
            variables["params"][head]["weight"] = 30 * variables["params"][head]["weight"]
        made = checkpoints.make(config, variables, checkpoints.Origin(name))
        checkpoints.save(folder / name, made)
    checkpoints.save(folder / "run" / "best", checkpoints.load(folder / "tsp_gvf"))  # what a run's workdir holds
    (folder / "videos").mkdir()
    for seed, (name, frames) in enumerate(FRAMES.items()):
        media.write(folder / "videos" / f"{name}.mp4", frames=frames, seed=seed)
    groundtruth.write_label_mapping(folder / "labels.json", LABELS)
    for name in ["tsp_gvf", "start"]:
        arguments = ["--checkpoint", folder / name, "--videos", folder / "videos", "--output", folder / f"{name}.h5"]
        assert extract.main([str(item) for item in [*arguments, "--batch_size", 4]]) == 0
    return folder


def command(folder: Path, output: Path, *flags: object, checkpoint: str = "tsp_gvf") -> list[str]:
    arguments = ["--checkpoint", folder / checkpoint, "--output", output, "--batch_size", 4, *flags]
    return [str(item) for item in arguments]


def from_videos(folder: Path) -> list[object]:
    return ["--videos", folder / "videos", "--gvf_checkpoint", folder / "start", "--labels", folder / "labels.json"]


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """Predictions of an undisturbed run."""
    assert predict.main(command(folder, folder / "whole.json", *from_videos(folder))) == 0
    return folder / "whole.json"


# --------------------------------------------------------------------------------------------------------------- the rule

CELLS = np.stack([np.arange(8.0), np.arange(8.0) + 1], axis=1)
FOREGROUND = np.array([0.9, 0.7, 0.1, 0.5, 0.6, 0.2, 0.8, 0.9])
ACTION = np.array([[0.6, 0.4], [0.1, 0.9], [1, 0], [0.7, 0.3], [0.5, 0.5], [0, 1], [0, 1], [0.2, 0.8]])


def test_runs_above_the_threshold_are_segments_with_the_likeliest_label():
    found = clip_segments.read_segments(CELLS, np.arange(8), FOREGROUND, ACTION, ["x", "y"], [0.5])
    assert [(item.label, item.start_sec, item.end_sec) for item in found] == [("y", 6, 8), ("y", 0, 2), ("x", 3, 5)]
    np.testing.assert_allclose([item.score for item in found], [0.85 * 0.9, 0.8 * 0.65, 0.55 * 0.6])


def test_a_clip_that_is_missing_ends_a_run():
    numbers = np.array([0, 1, 2, 3, 5, 6, 7, 8])
    found = clip_segments.read_segments(CELLS, numbers, FOREGROUND, ACTION, ["x", "y"], [0.5])
    assert sorted((item.start_sec, item.end_sec) for item in found) == [(0, 2), (3, 4), (4, 5), (6, 8)]


def test_several_thresholds_give_a_segment_once():
    found = clip_segments.read_segments(CELLS, np.arange(8), FOREGROUND, ACTION, ["x", "y"], [0.15, 0.5, 0.8])
    spans = sorted((item.start_sec, item.end_sec) for item in found)
    assert spans == [(0, 1), (0, 2), (3, 5), (3, 8), (6, 8)]


def test_one_head_alone_decides_alone():
    (only, *_) = found = clip_segments.read_segments(CELLS, np.arange(8), FOREGROUND, None, [], [0.5])
    assert len(found) == 3 and only.label == "Action" and only.score == pytest.approx(0.85)
    found = clip_segments.read_segments(CELLS, np.arange(8), None, ACTION, ["x", "y"], [0.85])
    assert [(item.label, item.start_sec, item.end_sec) for item in found] == [("y", 5, 7), ("x", 1, 3)]
    np.testing.assert_allclose([item.score for item in found], [1, 0.55])


def test_nothing_above_the_threshold_gives_no_segment():
    assert clip_segments.read_segments(CELLS, np.arange(8), FOREGROUND, ACTION, ["x", "y"], [1.0]) == ()


# ------------------------------------------------------------------------------------------------------------ the numbers


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_probabilities_are_those_of_the_heads_on_the_training_s_global_feature(folder: Path, whole: Path, tmp_path: Path):
    """The long way: features of two extractions, the pooled ones by data_builders.gvf, and the heads as plain products."""
    assert gvf.main(["--features", str(folder / "start.h5"), "--pool", "max", "--output", str(tmp_path / "g.h5")]) == 0
    vectors = global_features.read(tmp_path / "g.h5")
    params = checkpoints.load(folder / "tsp_gvf").variables["params"]
    found = predictions.read(whole)
    assert found.tasks == predictions.TASKS and found.labels == tuple(LABELS)
    assert found.gvf == "max over the clips' features of start"
    assert {name: len(video.start_sec) for name, video in found.videos.items()} == {"a": 4, "b": 3, "c": 2}
    for name, video in found.videos.items():
        rows = features.read(folder / "tsp_gvf.h5", name).features
        joined = np.concatenate([rows, np.tile(vectors[name], (len(rows), 1))], axis=1)
        action = softmax(rows @ np.asarray(params["fc1"]["weight"]) + np.asarray(params["fc1"]["bias"]))
        region = softmax(joined @ np.asarray(params["fc2"]["weight"]) + np.asarray(params["fc2"]["bias"]))
        # Written to five decimals.
        np.testing.assert_allclose(video.foreground, region[:, 0], atol=1e-5)
        assert video.top_classes is not None
        np.testing.assert_allclose(video.top_probabilities, np.take_along_axis(action, video.top_classes, 1), atol=1e-5)
        np.testing.assert_array_equal(video.top_classes[:, 0], action.argmax(axis=1))
        np.testing.assert_allclose(video.start_sec, np.arange(len(rows)) * 16 / 15, atol=1e-3)


def test_one_pass_with_two_encoders_gives_the_features_of_each(folder: Path, whole: Path):
    for name, file in [("tsp_gvf", "features"), ("start", "gvf_features")]:
        assert features.names(f"{whole}.{file}.h5") == sorted(FRAMES)
        for video in FRAMES:
            expected, found = features.read(folder / f"{name}.h5", video), features.read(f"{whole}.{file}.h5", video)
            assert found.attributes["checkpoint_sha256"] == expected.attributes["checkpoint_sha256"]
            # Two programs for the same float32 sums.
            np.testing.assert_allclose(found.features, expected.features, atol=1e-6 * np.abs(expected.features).max())


def test_features_extracted_before_give_the_same_predictions(folder: Path, whole: Path, tmp_path: Path):
    output = tmp_path / "p.json"
    flags = ["--features", f"{whole}.features.h5", "--gvf_features", f"{whole}.gvf_features.h5"]
    assert predict.main(command(folder, output, *flags, "--labels", folder / "labels.json")) == 0
    assert output.read_bytes() == whole.read_bytes()
    assert list(tmp_path.iterdir()) == [output]


def test_the_same_command_again_decodes_nothing_and_a_workdir_is_a_checkpoint(folder: Path, tmp_path: Path):
    videos = tmp_path / "videos"
    videos.mkdir()
    media.write(videos / "a.mp4", frames=140)
    flags = ["--videos", videos, "--gvf_checkpoint", folder / "start"]
    assert predict.main(command(folder, tmp_path / "p.json", *flags, checkpoint="run")) == 0
    before = (tmp_path / "p.json").read_bytes()
    (videos / "a.mp4").write_bytes(b"no video any more")
    assert predict.main(command(folder, tmp_path / "p.json", *flags, checkpoint="run")) == 0
    assert (tmp_path / "p.json").read_bytes() == before


def test_without_the_start_weights_own_features_are_pooled_and_a_note_says_so(folder: Path, tmp_path: Path, capsys):
    assert predict.main(command(folder, tmp_path / "p.json", "--features", folder / "tsp_gvf.h5", "--gvf", "avg")) == 0
    told = capsys.readouterr()
    assert "the head never saw" in told.err and "the labels are class numbers" in told.err
    assert "not those of a trained detector" in told.out
    found = predictions.read(tmp_path / "p.json")
    assert found.gvf == "avg over the clips' features of tsp_gvf" and found.labels == ("0", "1", "2")


@pytest.mark.parametrize(("name", "flags"), [("tsp", []), ("tac", []), ("region", ["--head", "temporal_region"])])
def test_models_of_other_heads_predict(name: str, flags: list[str], folder: Path, tmp_path: Path):
    low = ["--thresholds", "0.01"]
    one = folder / "videos" / "b.mp4"
    assert predict.main(command(folder, tmp_path / "p.json", "--videos", one, *flags, *low, checkpoint=name)) == 0
    found = predictions.read(tmp_path / "p.json")
    video = found.videos["b"]
    assert (video.foreground is None, video.top_classes is None) == (name == "tac", name == "region")
    (segment,) = video.segments  # every clip is above so low a threshold
    assert (segment.start_sec, segment.end_sec) == (0, pytest.approx(3 * 16 / 15))
    assert segment.label in (("Action",) if name == "region" else ("0", "1", "2"))


def test_damaged_videos_are_listed_and_predicted_as_far_as_they_go(folder: Path, tmp_path: Path):
    (tmp_path / "videos").mkdir()
    for name in ["cut_head_first.mp4", "text.mp4"]:
        media.make(tmp_path / "videos", name)
    flags = ["--videos", tmp_path / "videos", "--clip_len", 2, "--stride", 8]
    assert predict.main(command(folder, tmp_path / "p.json", *flags, checkpoint="tac")) == 1
    found = predictions.read(tmp_path / "p.json").videos
    assert list(found) == ["cut_head_first"] and "cut off" in found["cut_head_first"].damage
    with open(tmp_path / "p.json.errors.csv", newline="") as stream:
        rows = [(Path(row["video"]).name, row["clips_kept"]) for row in csv.DictReader(stream)]
    assert sorted(rows) == [("cut_head_first.mp4", "2"), ("text.mp4", "0")]
    again = ["--features", tmp_path / "p.json.features.h5"]
    assert predict.main(command(folder, tmp_path / "again.json", *again, checkpoint="tac")) == 1
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "p.json").read_bytes()


@pytest.mark.slow
def test_killed_run_loses_no_video_and_changes_nothing(folder: Path, whole: Path, tmp_path: Path):
    arguments = command(folder, tmp_path / "p.json", *from_videos(folder), "--workers", 1)
    process = subprocess.Popen([sys.executable, "-m", "tsp_jax.predict", *arguments], cwd=ROOT, stderr=subprocess.PIPE)
    parts = tmp_path / "p.json.gvf_features.h5.parts"
    try:
        while not list(parts.glob("*.h5")) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        error = process.communicate(timeout=60)[1].decode()
    finally:
        process.kill()
    assert process.returncode in (0, -signal.SIGKILL), error
    kept = len(list(parts.glob("*.h5"))) or len(FRAMES)
    assert kept and (process.returncode == 0) == (tmp_path / "p.json").exists()
    again = subprocess.run([sys.executable, "-m", "tsp_jax.predict", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "p.json").read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.parts"))


# -------------------------------------------------------------------------------------------------------------- wrong use


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("start", [], "an encoder alone"),
        ("region", [], "--head action or --head temporal_region"),
        ("tac", ["--head", "temporal_region"], "expected 2 classes of a temporal-region head, found 3"),
        ("tsp", ["--head", "action"], "and no --head"),
        ("tsp", ["--gvf_features", "start.h5"], "reads no global video feature"),
        ("tsp", ["--labels", "two.json"], "2 labels, expected the 3 classes"),
        ("tsp", ["--labels", "absent.json"], "no such file"),
        ("region", ["--head", "temporal_region", "--labels", "labels.json"], "no action head"),
        ("tsp", [], "extracted by weights of SHA-256"),
        ("tsp_gvf", ["--features", "absent.h5"], "no such file"),
        ("absent", [], "released name"),
    ],
)
def test_wrong_use_is_told(name: str, flags: list[str], message: str, folder: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    groundtruth.write_label_mapping("two.json", LABELS[:2])
    flags = flags if "--features" in flags else [*flags, "--features", "tsp_gvf.h5"]
    assert predict.main(command(Path(), tmp_path / "p.json", *flags, checkpoint=name)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags",
    [
        ["--videos", "v", "--features", "f"],
        [],
        ["--videos", "v", "--gvf_features", "f"],
        ["--features", "f", "--gvf_checkpoint", "c"],
        ["--videos", "v", "--thresholds", "0"],
        ["--videos", "v", "--thresholds", "nan"],
        ["--videos", "v", "--top_classes", "65"],
    ],
)
def test_flags_that_do_not_go_together_are_wrong_use(flags: list[str], folder: Path, tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as left:
        predict.main(command(folder, tmp_path / "p.json", *flags))
    assert left.value.code == 2 and "usage" in capsys.readouterr().err


def test_a_video_that_the_second_file_lacks_is_listed(folder: Path, tmp_path: Path):
    with features.Writer(tmp_path / "some.h5", {}) as writer:
        item = features.read(folder / "start.h5", "a")
        writer.commit("a", item.features, item.attributes)
        writer.commit("b", np.full_like(item.features, np.nan), item.attributes)
    flags = ["--features", folder / "tsp_gvf.h5", "--gvf_features", tmp_path / "some.h5"]
    assert predict.main(command(folder, tmp_path / "p.json", *flags)) == 1
    assert list(predictions.read(tmp_path / "p.json").videos) == ["a"]
    listed = (tmp_path / "p.json.errors.csv").read_text()
    assert "no video 'c'" in listed and "not finite" in listed


def test_help_says_what_it_is_not():
    shown = subprocess.run(
        [sys.executable, "-m", "tsp_jax.predict", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    told = " ".join(shown.stdout.split())
    assert "not those of a trained detector" in told and "example: python -m tsp_jax.predict" in told


def test_results_are_activitynets(whole: Path):
    page = json.loads(whole.read_text())
    assert {"version", "results", "external_data"} <= page.keys()
    for items in page["results"].values():
        for item in items:
            assert item.keys() == {"label", "score", "segment"} and item["label"] in LABELS
