"""Tests that the commands use imported features with their own times, or refuse them with a reason."""

import re
from pathlib import Path

import numpy as np
import pytest

from data_builders import gvf
from tsp_jax import checkpoints, clip_times, features, groundtruth, linear_probe, predict, probe
from tsp_jax.features import __main__ as command
from tsp_jax.features import global_features
from tsp_jax.localization import feature_formats
from tsp_jax.models import functional, tsp
from tsp_jax.report import __main__ as report

FPS, SEC = 30.0, 40.0
NAMES = [f"v_{index}" for index in range(6)]
# Row k of eight channels starts at second (k * 6 - 3) / 30 and covers half a second. The first channel is larger in actions.
STARTS = (np.arange(199) * 6 - 3) / FPS
BOUNDS = [0.0, 9.0, 17.0, 30.0, 40.0]


def acting(start_sec: np.ndarray) -> np.ndarray:
    return ((start_sec >= 9.0) & (start_sec + 0.5 <= 17.0)) | (start_sec >= 30.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with imported features, their metadata and their ground truth."""
    (tmp_path / "npy").mkdir()
    for number, name in enumerate(NAMES):
        rows = np.random.default_rng(number).standard_normal((len(STARTS), 8), np.float32)
        rows[:, 0] += 20 * acting(STARTS)
        np.save(tmp_path / "npy" / f"{name}.npy", rows)
    videos = [groundtruth.VideoMetadata(f"{name}.mp4", SEC, FPS, round(SEC * FPS)) for name in NAMES]
    groundtruth.write_metadata(tmp_path / "metadata.csv", videos)
    segments = [
        groundtruth.AnnotatedSegment(
            name, start, end, "run" if region == "Action" else "", SEC, f"{name}.mp4", FPS, 1200, region
        )
        for name in NAMES
        for start, end, region in zip(BOUNDS[:-1], BOUNDS[1:], ["No action", "Action"] * 2, strict=True)
    ]
    groundtruth.write_groundtruth(tmp_path / "truth.csv", segments)
    assert imported(tmp_path, tmp_path / "f.h5") == 0
    return tmp_path


def imported(folder: Path, output: Path, *flags: str) -> int:
    timing = ["--stride", "6", "--window", "15", "--fps", "video", "--offset", "-3"]
    given = ["import", str(folder / "npy"), "--output", str(output), "--metadata_csv", str(folder / "metadata.csv")]
    return command.main([*given, *timing, *flags])


def test_the_linear_probe_finds_the_rows_in_segments(folder: Path, capsys: pytest.CaptureFixture[str]):
    path, table = str(folder / "f.h5"), str(folder / "truth.csv")
    rows, labels = probe.labelled_clips(path, groundtruth.read_groundtruth(table))
    starts = clip_times.clip_times(features.read(path, NAMES[0]))[0]
    np.testing.assert_array_equal(starts, STARTS)
    assert np.all((rows[:, 0] > 10) == labels) and 0 < np.count_nonzero(labels) < len(labels)
    flags = ["--groundtruth", table, "--test_groundtruth", table]
    assert linear_probe.main(["--features", path, "--test_features", path, *flags]) == 0
    assert "100.0 %" in capsys.readouterr().out


def test_the_report_shows_imported_features(folder: Path):
    page = folder / "page.html"
    status = report.main(
        ["--features", str(folder / "f.h5"), "--groundtruth", str(folder / "truth.csv"), "--output", str(page)]
    )
    assert status == 0 and all(name in page.read_text() for name in NAMES)


def test_global_features_are_pooled_of_all_rows(folder: Path):
    output = folder / "gvf.h5"
    assert gvf.main(["--features", str(folder / "f.h5"), "--pool", "max", "--output", str(output)]) == 0
    expected = np.load(folder / "npy" / "v_0.npy").max(axis=0)
    np.testing.assert_array_equal(global_features.read(output)["v_0"], expected)


def test_predict_refuses_them_because_a_head_reads_its_own_encoder_alone(folder: Path):
    config = tsp.ModelConfig("r3d_tiny", (3, 2))
    model = checkpoints.make(config, functional.init(config, 0), checkpoints.Origin("seed 0", "", "nothing"))
    item = features.read(folder / "f.h5", "v_0")
    with pytest.raises(features.FeatureFileError, match=r"'v_0'\): imported from another tool; the heads of seed 0 read"):
        predict.check_made_by(model, item, folder / "f.h5")


def test_extraction_does_not_add_to_them(folder: Path):
    run = {"stride": 16, "clip_len": 16, "frame_rate": 15.0, "checkpoint_sha256": "ab"}
    with pytest.raises(features.FeatureFileError, match="timing: a row every 6 frames"):
        features.Writer(folder / "f.h5", run)


def test_imports_of_one_timing_are_merged_and_others_are_not(folder: Path, capsys: pytest.CaptureFixture[str]):
    parts = []
    for number in range(2):
        part = folder / f"part{number}"
        (part / "npy").mkdir(parents=True)
        for name in NAMES[number::2]:
            (part / "npy" / f"{name}.npy").write_bytes((folder / "npy" / f"{name}.npy").read_bytes())
        (part / "metadata.csv").write_bytes((folder / "metadata.csv").read_bytes())
        parts.append(folder / f"{number}.h5")
        assert imported(part, parts[-1]) == 0
    assert command.main(["merge", *map(str, parts), "--output", str(folder / "all.h5")]) == 0
    for name in NAMES:
        whole, one = features.read(folder / "all.h5", name), features.read(folder / "f.h5", name)
        np.testing.assert_array_equal(whole.features, one.features)
        np.testing.assert_array_equal(clip_times.clip_times(whole)[0], clip_times.clip_times(one)[0])
    assert imported(folder / "part1", parts[1], "--window", "30", "--overwrite") == 0
    assert command.main(["merge", *map(str, parts), "--output", str(folder / "none.h5")]) == 1
    assert "timing: " in capsys.readouterr().err and not (folder / "none.h5").exists()


def test_a_slice_unpacks_only_its_chunks(tmp_path: Path):
    long = np.zeros((40_000, 512), np.float32)
    with features.Writer(tmp_path / "f.h5", {"timing": "all"}) as writer:
        timing = clip_times.RowTiming(30.0, 4.0, 16.0)
        writer.commit("v_a", long, {**timing.attributes(), "duration_sec": 5333.0})
    before = peak_mb()
    assert feature_formats.read_rows(tmp_path / "f.h5", "v_a", 20_000, 20_010).array.shape == (10, 512)
    assert peak_mb() - before < 20  # the whole video has 82 MB


def peak_mb() -> float:
    Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


def test_spoiled_timing_is_refused(tmp_path: Path):
    for number, value in enumerate([np.nan, 0.0, "x", -1.0]):
        path = tmp_path / f"{number}.h5"
        with features.Writer(path, {"timing": "a row every frame"}) as writer:
            attributes = clip_times.RowTiming(30.0, 4.0, 16.0).attributes()
            writer.commit("v_a", np.ones((37, 6), np.float32), {**attributes, "duration_sec": 40.0, "row_stride": value})
        with pytest.raises(features.FeatureFileError, match="import it again"):
            feature_formats.read_rows(path, "v_a")
