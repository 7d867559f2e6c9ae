"""Tests of the synthetic data set: it is repeatable and annotated correctly, and only its motion shows the actions."""

import csv
import functools
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from data_builders import groundtruth, metadata, synthetic
from tsp_jax.video import decoding, scanning


def run(output: Path, *flags: str) -> int:
    return synthetic.main(["--output", str(output), "--seconds", "6", "7", "--workers", "1", *flags])


def test_same_seed_gives_the_same_files_whatever_the_workers(tmp_path: Path):
    assert run(tmp_path / "one", "--videos", "3", "--seed", "7") == 0
    assert run(tmp_path / "two", "--videos", "3", "--seed", "7", "--workers", "2") == 0
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert [str(path) for path in files] == [
        "annotations.json",
        "recipe.json",
        *(f"videos/synthetic_7_{index:05d}.mp4" for index in range(3)),
    ]
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path


def test_another_seed_and_another_index_give_another_video():
    scripts = [synthetic.script(seed, index, (6, 6)) for seed, index in [(0, 0), (1, 0), (0, 1)]]
    first, other_seed, other_index = (synthetic.Scene(item).frame(0).astype(int) for item in scripts)
    assert np.abs(first - other_seed).mean() > 10
    assert np.abs(first - other_index).mean() > 10


def test_pictures_are_the_same_in_any_order():
    item = synthetic.script(0, 0, (6, 6))
    scene = synthetic.Scene(item)
    later = scene.frame(90)
    scene.frame(3)
    assert np.array_equal(scene.frame(90), later)
    assert np.array_equal(synthetic.Scene(item).frame(90), later)


@pytest.mark.parametrize("seconds", [(4.0, 4.0), (4.0, 9.0), (20.0, 60.0), (16.0, 16.0)])
def test_actions_and_background_take_turns(seconds: tuple[float, float]):
    scripts = [synthetic.script(3, index, seconds) for index in range(60)]
    acting = 0
    for item in scripts:
        assert seconds[0] <= item.num_frames / 30 <= seconds[1]
        bounds = [frame for act in item.acts for frame in (act.start, act.end)]
        inner = np.diff([*([0] if bounds[0] else []), *bounds, *([item.num_frames] if bounds[-1] < item.num_frames else [])])
        assert bounds[0] >= 0
        assert bounds[-1] <= item.num_frames
        assert inner.min() >= 60
        assert inner.max() <= 240
        acting += sum(act.end - act.start for act in item.acts)
    assert 0.4 < acting / sum(item.num_frames for item in scripts) < 0.6
    # Six consecutive videos have all classes, because each begins with another one.
    assert {item.acts[0].label for item in scripts[:6]} == set(synthetic.CLASSES)
    assert {item.subset for item in scripts[:3]} == {"training", "validation", "testing"}


def test_sets_of_two_seeds_share_no_name_and_one_can_be_of_one_subset(tmp_path: Path):
    names = []
    for seed, subset in ((0, "training"), (1, "validation")):
        assert run(tmp_path / subset, "--videos", "2", "--seed", str(seed), "--subset", subset) == 0
        database = json.loads((tmp_path / subset / "annotations.json").read_text())["database"]
        assert {entry["subset"] for entry in database.values()} == {subset}
        names += database
    assert len(set(names)) == 4


def test_groundtruth_takes_the_annotations(tmp_path: Path):
    """The test runs the commands from end to end. The first is stopped and resumed."""
    data = tmp_path / "data"
    assert run(data, "--videos", "2", "--seed", "0") == 0
    first = data / "videos" / "synthetic_0_00000.mp4"
    written = first.stat().st_mtime_ns
    (data / "annotations.json").unlink()
    (data / "videos" / "synthetic_0_00001.mp4").unlink()
    (data / "videos" / ".synthetic_0_00001.mp4.tmp").write_bytes(b"half a file")
    assert run(data, "--videos", "3", "--seed", "0") == 0
    assert first.stat().st_mtime_ns == written
    assert len(list((data / "videos").iterdir())) == 3

    table = tmp_path / "metadata.csv"
    assert metadata.main(["--videos", str(data / "videos"), "--output", str(table), "--workers", "1"]) == 0
    database = json.loads((data / "annotations.json").read_text())["database"]
    with open(table, newline="") as stream:
        measured = {Path(row["filename"]).stem: row for row in csv.DictReader(stream)}
    assert measured.keys() == database.keys()
    for name, entry in database.items():
        assert float(measured[name]["fps"]) == 30
        assert float(measured[name]["video-duration"]) == pytest.approx(entry["duration"], abs=1e-5)
        for action in entry["annotations"]:
            assert 0 <= action["segment"][0] < action["segment"][1] <= entry["duration"]
            assert action["label"] in synthetic.CLASSES
    for subset in ("train", "valid", "testing"):
        output = tmp_path / f"{subset}.csv"
        flags = ["--annotations", str(data / "annotations.json"), "--subset", subset, "--metadata", str(table)]
        flags += ["--min_background_sec", "1", "--output", str(output)]
        assert groundtruth.main(["--format", "activitynet", *flags]) == 0
        with open(output, newline="") as stream:
            assert {row["temporal-region-label"] for row in csv.DictReader(stream)} == {"Action", "No action"}


def test_other_flags_for_the_same_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "recipe.json").write_text('{"format": 1, "seed": 8, "seconds": [6.0, 7.0]}')
    assert run(tmp_path, "--videos", "1", "--seed", "0") == 2
    assert "'seed': 8" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tmp_path, "--videos", "1", "--seed", "0", "--seconds", "3", "7")


@functools.cache
def samples() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns, for seconds well inside of parts: features of one frame, motion features, is action, and the video's number."""
    still, motion, acting, owner = [], [], [], []
    for index in range(24):
        item = synthetic.script(11, index, (20, 30))
        scene = synthetic.Scene(item)
        draw = np.random.default_rng(index)
        inside = np.zeros(item.num_frames + 16, bool)
        edges = {0, item.num_frames, *(frame for act in item.acts for frame in (act.start, act.end))}
        for act in item.acts:
            inside[act.start : act.end] = True
        allowed = [n for n in range(item.num_frames) if all(abs(n + 16 - edge) > 24 for edge in edges)]
        for number in draw.choice(allowed, min(30, len(allowed)), replace=False):
            pictures = [scene.frame(n) for n in range(number, number + 33, 8)]
            still.append(still_features(pictures[0]))
            strength = [motion_features(now, later) for now, later in itertools.pairwise(pictures)]
            motion.append(np.concatenate([np.mean(strength, 0), np.min(strength, 0)]))
            acting.append(inside[number])
            owner.append(index)
    return np.array(still), np.array(motion), np.array(acting), np.array(owner)


def still_features(picture: np.ndarray) -> np.ndarray:
    """Returns the colours of a 12 x 16 grid, and sorted statistics of brightness and edges in a 6 x 8 grid."""
    grid = picture.reshape(12, 20, 16, 20, 3).mean((1, 3))
    grey = picture[..., 1].astype(np.float32)
    edges = np.abs(np.diff(grey, axis=0))[:, 1:] + np.abs(np.diff(grey, axis=1))[1:]
    cells = edges[:234, :312].reshape(6, 39, 8, 39).mean((1, 3))
    return np.concatenate([grid.ravel() / 64, np.sort(cells.ravel()), [grey.mean() / 64, grey.std() / 64]])


def motion_features(now: np.ndarray, later: np.ndarray) -> np.ndarray:
    """Returns the strength of the strongest and the typical frame differences in cells of 10 x 10, wherever they are."""
    change = np.abs(later[..., 1].astype(np.float32) - now[..., 1])
    cells = change.reshape(24, 10, 32, 10).mean((1, 3))
    return np.log1p(np.quantile(cells, [0.25, 0.5, 0.75, 0.85, 0.9, 0.93, 0.96, 0.98, 0.99, 1]))


def held_out_accuracy(features: np.ndarray, acting: np.ndarray, owner: np.ndarray) -> float:
    """Returns the balanced accuracy of ridge regression over three splits by video, for the better of two strengths."""
    accuracies = []
    for strength in (10.0, 1000.0):
        right = []
        for fold in range(3):
            train = owner % 3 != fold
            mean, scale = features[train].mean(0), features[train].std(0) + 1e-6
            inputs = np.c_[(features - mean) / scale, np.ones(len(features))]
            weight = np.where(acting, 0.5 / acting[train].mean(), 0.5 / (1 - acting[train].mean()))
            weighted = inputs[train].T * weight[train]
            penalty = strength * np.eye(inputs.shape[1])
            solution = np.linalg.solve(weighted @ inputs[train] + penalty, weighted @ (2.0 * acting[train] - 1))
            guess = inputs[~train] @ solution > 0
            right += [np.mean(guess[acting[~train]]), np.mean(~guess[~acting[~train]])]
        accuracies.append(float(np.mean(right)))
    return max(accuracies)


def test_one_picture_does_not_show_an_action_and_motion_does():
    still, motion, acting, owner = samples()
    single, moving = (held_out_accuracy(features, acting, owner) for features in (still, motion))
    assert single < 0.6
    # The features show only the strength of motion during a second. The kind of motion that goes on would show more.
    assert moving > 0.7
    assert moving > single + 0.15


def test_places_sizes_and_angles_are_distributed_alike():
    """The test compares quantiles, over many videos, of what one picture shows of a shape in actions and in background."""
    seen: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for index in range(150):
        item = synthetic.script(5, index, (20, 20))
        acting = np.zeros(item.num_frames, bool)
        for act in item.acts:
            acting[act.start : act.end] = True
        for shape in synthetic.Scene(item).shapes:
            offsets = np.cos(2 * np.pi * shape.turns)
            values = np.c_[shape.place + 34 * offsets[:, :2], offsets]
            for which in seen:
                seen[which].append(values[acting == which][::15])
    actions, background = (np.quantile(np.concatenate(seen[which]), np.linspace(0.05, 0.95, 10), axis=0) for which in seen)
    spread = actions[-1] - actions[0]
    assert np.all(np.abs(actions - background) < 0.12 * spread)


def test_classes_stay_themselves_in_a_mirror():
    """Training mirrors clips, so the way round, or the choice of a diagonal, must not distinguish two classes."""
    seen: dict[str, set[float]] = {"circle": set(), "diagonal": set(), "spin": set()}
    for index in range(24):
        item = synthetic.script(2, index, (20, 20))
        shapes = synthetic.Scene(item).shapes
        for act in item.acts:
            middle = (act.start + act.end) // 2
            for turns in (shape.turns for shape in shapes):
                speed = synthetic.FPS * np.median(np.diff(turns[act.start + 9 : act.end - 9], axis=0), axis=0)
                if act.label == "spin" and abs(speed[3]) > 0.8:
                    seen["spin"].add(float(np.sign(speed[3])))
                elif act.label in seen and speed[0] > 0.8 and speed[1] > 0.8:
                    seen[act.label].add(float(np.round(turns[middle, 1] - turns[middle, 0], 6) % 1))
    assert seen == {"circle": {0.25, 0.75}, "diagonal": {0.0, 0.5}, "spin": {-1.0, 1.0}}


def test_encoded_pictures_keep_the_shapes(tmp_path: Path):
    item = synthetic.script(0, 0, (4, 4))
    path = tmp_path / "x.mp4"
    assert synthetic.write(item, path) == 120
    scan = scanning.scan(path)
    needed = np.zeros(120, bool)
    needed[[0, 60]] = True
    scene = synthetic.Scene(item)
    for number, picture in decoding.Reader(scan, needed):
        assert np.abs(picture.astype(int) - scene.frame(number)).mean() < 6
