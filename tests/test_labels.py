"""Tests of the label mappings: the released ones from their annotations, and those of one's own ground truth."""

import gzip
from pathlib import Path

import pytest

from data_builders import labels
from tsp_jax import groundtruth


def run(output: Path, *flags: str) -> int:
    return labels.main(["--output", str(output), *flags])


def write_groundtruth(path: Path, names: list[str]) -> str:
    rows = [
        groundtruth.AnnotatedSegment(
            "a", 0.0, 1.0, name, 2.0, "a.mp4", 30.0, 60, groundtruth.ACTION if name else groundtruth.NO_ACTION
        )
        for name in names
    ]
    groundtruth.write_groundtruth(path, rows)
    return str(path)


def test_thumos14_mappings_are_the_released_ones_byte_for_byte(shared: Path, tmp_path: Path):
    released = shared / "annotations"
    for name in {row.action_label for row in groundtruth.read_groundtruth(released / "thumos14_test_tsp_groundtruth.csv")} - {
        ""
    }:
        (tmp_path / f"{name}_test.txt").write_text("video_test_0000001  0.0 1.0\n")
    (tmp_path / "Ambiguous_test.txt").write_text("video_test_0000001  0.0 1.0\n")
    assert run(tmp_path / "labels", "--dataset", "thumos14", "--annotations", str(tmp_path)) == 0
    for name in (labels.ACTION_FILE, labels.TEMPORAL_REGION_FILE):
        assert (tmp_path / "labels" / name).read_bytes() == (released / f"thumos14_{name}").read_bytes()


def test_activitynet_mapping_is_the_released_one(shared: Path, tmp_path: Path):
    annotations = tmp_path / "a.json"
    annotations.write_bytes(gzip.decompress((shared / "annotations/anet13_val_gt.json.gz").read_bytes()))
    assert run(tmp_path, "--dataset", "activitynet", "--annotations", str(annotations)) == 0
    released = groundtruth.read_label_mapping(shared / "annotations/activitynet_v1-3_action_label_mapping.json")
    assert groundtruth.read_label_mapping(tmp_path / labels.ACTION_FILE) == released


@pytest.mark.parametrize("split", ["valid", "test"])
def test_mapping_of_the_released_ground_truth_is_the_released_one(split: str, shared: Path, tmp_path: Path):
    released = shared / "annotations"
    assert run(tmp_path, "--groundtruth", str(released / f"thumos14_{split}_tsp_groundtruth.csv")) == 0
    assert (tmp_path / labels.ACTION_FILE).read_bytes() == (released / "thumos14_action_label_mapping.json").read_bytes()


def test_own_labels_are_those_of_all_files_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Capitals come first, as ActivityNet's BMX comes before Baking cookies."""
    train = write_groundtruth(tmp_path / "train.csv", ["jump", "Jump", "", "jump"])
    valid = write_groundtruth(tmp_path / "valid.csv", ["Run", "", "Éclair"])
    assert run(tmp_path, "--groundtruth", train, valid) == 0
    assert groundtruth.read_label_mapping(tmp_path / labels.ACTION_FILE) == ["Jump", "Run", "jump", "Éclair"]
    assert groundtruth.read_label_mapping(tmp_path / labels.TEMPORAL_REGION_FILE) == ["Action", "No action"]
    assert "4 labels, Jump to Éclair" in capsys.readouterr().out


def test_incomplete_annotations_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "Jump_val.txt").write_text("a 0.0 1.0\n")
    assert run(tmp_path / "out", "--dataset", "thumos14", "--annotations", str(tmp_path)) == 2
    assert run(tmp_path / "out", "--dataset", "activitynet", "--annotations", str(tmp_path / "none.json")) == 2
    assert run(tmp_path / "out", "--groundtruth", write_groundtruth(tmp_path / "g.csv", [""])) == 2
    assert run(tmp_path / "out", "--groundtruth", str(tmp_path / "none.csv")) == 2
    messages = capsys.readouterr().err
    assert messages.count("error: ") == 4
    assert "thumos14 has 20 classes, these annotations 1 (Jump, …)" in messages
    assert "no action has a label" in messages
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags",
    [[], ["--dataset", "thumos14"], ["--groundtruth", "g.csv", "--annotations", "a"], ["--dataset", "x", "--annotations", "a"]],
)
def test_wrong_use_is_status_2(flags: list[str], tmp_path: Path):
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, *flags)
    assert caught.value.code == 2
