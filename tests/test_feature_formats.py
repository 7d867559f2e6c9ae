"""Tests that features of other tools are imported with the right times, and exported as those tools read them."""

import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import tsp_jax
from tsp_jax import clip_times, features, groundtruth
from tsp_jax.features import __main__ as command
from tsp_jax.localization import feature_exports, feature_files, feature_formats, feature_sources, resampling
from tsp_jax.system import files, tensor_files

CHANNELS = 6
VIDEOS = {"v_a": 40.0, "v_b": 55.5, "video_test_01": 7.25}  # seconds, at 30 frames per second
GRID = ["--stride", "16", "--window", "32", "--fps", "15"]


def rows(name: str, count: int | None = None, channels: int = CHANNELS) -> np.ndarray:
    """A video's features, by its name alone; a row for every 16 of 15 frames a second unless the number is given."""
    count = int(VIDEOS[name] * 15 / 16) if count is None else count
    return np.random.default_rng(sorted(VIDEOS).index(name)).standard_normal((count, channels), np.float32)


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    path = tmp_path / "metadata.csv"
    groundtruth.write_metadata(
        path, [groundtruth.VideoMetadata(f"{name}.mp4", sec, 30.0, round(30 * sec)) for name, sec in VIDEOS.items()]
    )
    return path


@pytest.fixture
def run(metadata: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A function that runs the command; imports get the metadata. It returns the exit status and what was printed."""

    def call(*arguments: object) -> tuple[int, str, str]:
        given = list(map(str, arguments))
        given += ["--metadata_csv", str(metadata)] if given[0] == "import" and "--metadata_csv" not in given else []
        status = command.main(given)
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return call


def npy_folder(folder: Path, suffix: str = "", **options: Any) -> Path:
    folder.mkdir(parents=True)
    for name in VIDEOS:
        np.save(folder / f"{name}{suffix}.npy", rows(name, **options))
    return folder


@pytest.fixture
def imported(tmp_path: Path, run: Any) -> Path:
    """A file of features, imported from a folder of .npy files."""
    path = tmp_path / "imported.h5"
    assert run("import", npy_folder(tmp_path / "npy"), "--output", path, *GRID)[0] == 0
    return path


def contents(path: Path) -> dict[str, tuple[bytes, tuple[int, ...], list[float]]]:
    found = {}
    for name in features.names(path):
        item = features.read(path, name)
        found[name] = item.features.tobytes(), item.features.shape, clip_times.clip_times(item)[0].tolist()
    return found


# ------------------------------------------------------------------------------------------------------------- round trips

BACK = {  # how a folder of each export is imported
    "npy": [],
    "npz": [],
    "pkl": [],
    "csv": [],
    "slowfast": [],
    "pgcn": ["--format", "pgcn"],
    "bmt": ["--suffix", "_rgb", "_flow"],
    "h5": [],
}


@pytest.mark.parametrize("kind", feature_exports.EXPORT_FORMATS)
def test_an_export_imported_again_is_the_same_file_of_features_and_gives_the_same_exports(
    kind: str, imported: Path, tmp_path: Path, run: Any
):
    first, again = tmp_path / f"first.{kind}", tmp_path / "again.h5"
    split = ["--first_channels", 4] if kind == "slowfast" else ["--first_channels", 3] if kind == "bmt" else []
    assert run("export", imported, "--output", first, "--format", kind, *split)[0] == 0
    status, _, err = run("import", first, "--output", again, *GRID, *BACK[kind])
    assert status == 0, err
    assert contents(again) == contents(imported)
    for other in feature_exports.EXPORT_FORMATS:
        if other == "h5":
            continue
        written = []
        for number, path in enumerate((imported, again)):
            folder = tmp_path / f"{other}{number}"
            split = ["--first_channels", 3] if other in ("bmt", "slowfast") else []
            assert run("export", path, "--output", folder, "--format", other, *split)[0] == 0
            written.append({item.name: item.read_bytes() for item in folder.iterdir()})
        assert written[0] == written[1] and len(written[0]) == len(VIDEOS) * (1 + (other == "bmt"))


def test_a_released_file_of_tsp_is_imported_and_exported_as_it_is(tmp_path: Path, run: Any):
    released, back = tmp_path / "released.h5", tmp_path / "back.h5"
    with h5py.File(released, "w") as file:
        for name in VIDEOS:
            file.create_dataset(name, data=rows(name), compression="gzip", compression_opts=9)
    assert run("import", released, "--output", tmp_path / "f.h5", *GRID)[0] == 0
    assert run("export", tmp_path / "f.h5", "--output", back, "--format", "h5")[0] == 0
    with h5py.File(back) as file:
        assert {name: file[name][()].tobytes() for name in file} == {name: rows(name).tobytes() for name in VIDEOS}


def test_exports_are_what_the_tools_read(imported: Path, tmp_path: Path, run: Any):
    for kind in ("npz", "pkl", "csv", "bmt"):
        assert run("export", imported, "--output", tmp_path / kind, "--format", kind)[0] == 0
    expected = rows("v_a")
    with np.load(tmp_path / "npz" / "v_a.npz") as archive:
        np.testing.assert_array_equal(archive["feats"], expected, strict=True)
    np.testing.assert_array_equal(pickle.loads((tmp_path / "pkl" / "v_a.pkl").read_bytes()), expected, strict=True)
    lines = (tmp_path / "csv" / "v_a.csv").read_text().splitlines()
    assert lines[0] == "f0,f1,f2,f3,f4,f5" and len(lines) == 1 + len(expected)
    assert np.float32(lines[1].split(",")[0]) == expected[0, 0]
    np.testing.assert_array_equal(np.load(tmp_path / "bmt" / "v_a_rgb.npy"), expected, strict=True)
    np.testing.assert_array_equal(np.load(tmp_path / "bmt" / "v_a_flow.npy"), np.zeros_like(expected), strict=True)
    assert run("import", tmp_path / "bmt", "--output", tmp_path / "back.h5", *GRID, "--suffix", "_rgb")[0] == 0
    assert contents(tmp_path / "back.h5") == contents(imported)


@pytest.mark.torch
def test_torch_reads_the_exports_for_p_gcn_and_tcanet_and_its_own_are_imported(imported: Path, tmp_path: Path, run: Any):
    torch = pytest.importorskip("torch")
    assert run("export", imported, "--output", tmp_path / "pgcn", "--format", "pgcn")[0] == 0
    assert run("export", imported, "--output", tmp_path / "sf", "--format", "slowfast", "--first_channels", 4)[0] == 0
    for name in VIDEOS:
        assert np.array_equal(torch.load(tmp_path / "pgcn" / name), rows(name))
        found = pickle.loads((tmp_path / "sf" / f"{name}.pkl").read_bytes())
        assert found["slow_feature"].shape == (1, 4, len(rows(name))) and found["fast_feature"].shape[1] == 2
        joined = torch.cat([found["slow_feature"], found["fast_feature"]], dim=1)
        assert np.array_equal(joined[0].T, rows(name))
    for name in VIDEOS:
        tensor = torch.from_numpy(rows(name))
        for folder in ("old", "new", "dicts"):
            (tmp_path / folder).mkdir(exist_ok=True)
        torch.save(tensor, tmp_path / "old" / name, _use_new_zipfile_serialization=False)
        torch.save(tensor, tmp_path / "new" / f"{name}.pt")
        slow, fast = tensor[:, :2].T[None], tensor[:, 2:].T[None]
        content = {"slow_feature": slow, "fast_feature": fast, "feature_frames": 9}
        (tmp_path / "dicts" / f"{name}.pkl").write_bytes(pickle.dumps(content))
    for folder in ("old", "new", "dicts"):
        assert run("import", tmp_path / folder, "--output", tmp_path / f"{folder}.h5", *GRID)[0] == 0
        assert contents(tmp_path / f"{folder}.h5") == contents(imported)


# ----------------------------------------------------------------------------------------------------------------- layouts


def test_arrays_of_other_shapes_and_dtypes_are_read(tmp_path: Path):
    plain = rows("v_a")
    for name, array in {
        "half": plain.astype(np.float16),
        "double": plain.astype(np.float64),
        "big": plain.astype(">f4"),
        "fortran": np.asfortranarray(plain),
        "pooled": plain[:, :, None, None],
        "batch": plain[None],
    }.items():
        np.save(tmp_path / f"{name}.npy", array)
        expected = plain.astype(np.float16).astype(np.float32) if name == "half" else plain
        np.testing.assert_array_equal(feature_files.read(tmp_path / f"{name}.npy"), expected, strict=True)
    np.save(tmp_path / "first.npy", plain.T)
    np.testing.assert_array_equal(feature_files.read(tmp_path / "first.npy", channels_first=True), plain, strict=True)


def test_arrays_are_found_in_archives_dicts_groups_and_pandas_files(tmp_path: Path):
    plain = rows("v_a")
    np.savez_compressed(tmp_path / "a.npz", feats=plain, fps=np.float64(30))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"features": plain, "name": "v_a"}))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"rgb": plain, "flow": plain * 2}))
    with h5py.File(tmp_path / "a.h5", "w") as file:  # ActivityNet's own C3D features
        file.create_group("v_a").create_dataset("c3d_features", data=plain)
    lines = [f"{index},{','.join(map(repr, row.tolist()))}" for index, row in enumerate(plain)]
    (tmp_path / "a.csv").write_text("\n".join([",0,1,2,3,4,5", *lines]) + "\n")
    for name in ("a.npz", "a.pkl", "a.h5", "a.csv"):
        np.testing.assert_array_equal(feature_files.read(tmp_path / name), plain, strict=True)
    np.testing.assert_array_equal(feature_files.read(tmp_path / "b.pkl", key="flow"), plain * 2, strict=True)
    with pytest.raises(ValueError, match=r"b\.pkl: holds rgb, flow; pass --key"):
        feature_files.read(tmp_path / "b.pkl")


def test_streams_are_joined_on_the_channels_by_suffix_and_by_folder(tmp_path: Path, run: Any):
    both = tmp_path / "both"
    npy_folder(both, "_rgb")
    for name in VIDEOS:
        np.save(both / f"{name}_flow.npy", 2 * rows(name))
        np.save(both / f"{name}_fps.npy", np.array(30.0))  # video_features writes such files next to the features
    assert run("import", both, "--output", tmp_path / "a.h5", *GRID, "--suffix", "_rgb", "_flow")[0] == 0
    npy_folder(tmp_path / "rgb")
    for name in VIDEOS:
        (tmp_path / "flow").mkdir(exist_ok=True)
        np.savez(tmp_path / "flow" / f"{name}.npz", feats=2 * rows(name))
    assert run("import", tmp_path / "rgb", tmp_path / "flow", "--output", tmp_path / "b.h5", *GRID)[0] == 0
    assert contents(tmp_path / "a.h5") == contents(tmp_path / "b.h5")
    found = features.read(tmp_path / "a.h5", "v_a").features
    np.testing.assert_array_equal(found, np.concatenate([rows("v_a"), 2 * rows("v_a")], axis=1), strict=True)
    assert run("export", tmp_path / "a.h5", "--output", tmp_path / "bmt", "--format", "bmt")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "bmt" / "v_a_flow.npy"), 2 * rows("v_a"), strict=True)


def test_parts_of_different_numbers_of_rows_are_joined_only_by_a_rule(tmp_path: Path, run: Any):
    npy_folder(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for name in VIDEOS:
        np.save(tmp_path / "b" / f"{name}.npy", rows(name, len(rows(name)) + 1))
    count = len(rows("v_a"))
    status, _, err = run("import", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "f.h5", *GRID)
    assert status == 1 and f"{count} rows next to {count + 1}" in err and not (tmp_path / "f.h5").exists()
    parts = [rows("v_a"), rows("v_a", count + 1)]
    for how, length in [("shortest", count), ("first", count), ("longest", count + 1)]:
        output = tmp_path / f"{how}.h5"
        assert run("import", tmp_path / "a", tmp_path / "b", "--output", output, *GRID, "--join", how)[0] == 0
        found = features.read(output, "v_a").features
        assert found.shape == (length, 2 * CHANNELS)
        left = parts[0] if length == count else resampling.resampled(parts[0], length, "linear")
        np.testing.assert_array_equal(found[:, :CHANNELS], left)


# ------------------------------------------------------------------------------------------------------------------ timing


def test_times_are_those_of_the_given_grid(imported: Path):
    item = tsp_jax.read_features(imported)["v_a"]
    np.testing.assert_allclose(item.start_sec, np.arange(len(rows("v_a"))) * 16 / 15, rtol=1e-15)
    assert item.clip_len_sec == 32 / 15 and item.duration_sec == 40.0 and item.geometry is None
    np.testing.assert_array_equal(item.array, rows("v_a"), strict=True)


def test_the_first_row_may_start_elsewhere_and_each_video_has_its_own_rate(tmp_path: Path, run: Any):
    path = tmp_path / "f.h5"
    folder = npy_folder(tmp_path / "npy")
    assert run("import", folder, "--output", path, "--stride", 32, "--window", 64, "--fps", "video", "--offset", -16)[0] == 0
    start_sec, length_sec = clip_times.clip_times(features.read(path, "v_b"))
    np.testing.assert_allclose(start_sec, (np.arange(len(start_sec)) * 32 - 16) / 30, rtol=1e-15)
    assert length_sec == 64 / 30


def test_rescaled_rows_cover_the_whole_video(tmp_path: Path, run: Any):
    path, folder = tmp_path / "f.h5", npy_folder(tmp_path / "npy", count=100)
    assert run("import", folder, "--output", path, "--rescaled", 100)[0] == 0
    start_sec, length_sec = clip_times.clip_times(features.read(path, "v_b"))
    np.testing.assert_allclose(start_sec, np.arange(100) * 55.5 / 100, rtol=1e-12)
    np.testing.assert_allclose(length_sec, 0.555, rtol=1e-12)
    np.save(folder / "v_a.npy", rows("v_a", 99))
    status, _, err = run("import", folder, "--output", tmp_path / "g.h5", "--rescaled", 100)
    assert status == 1 and "v_a.npy: 99 rows, expected 100" in err and not (tmp_path / "g.h5").exists()


@pytest.mark.parametrize(
    ("timing", "second"),
    [
        (["--stride", 16, "--window", 16, "--fps", 30], "19.73"),
        (["--stride", 16, "--window", 16, "--fps", "video"], "19.73"),
        (["--stride", 8, "--window", 16, "--fps", 15], "20.27"),
        (["--stride", 16, "--window", 16, "--fps", 13], "45.54"),
        (["--stride", 16, "--window", 16, "--fps", 15, "--offset", 60], "43.47"),
    ],
)
def test_rows_that_do_not_fit_are_refused_with_both_numbers(timing: list[Any], second: str, tmp_path: Path, run: Any):
    folder = npy_folder(tmp_path / "npy")
    status, _, err = run("import", folder, "--output", tmp_path / "f.h5", *timing)
    assert status == 1, err
    assert re.search(rf"v_a\.npy: 37 rows end at second {second}, by .*; the metadata gives the video 40\.00 s", err)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["metadata.csv", "npy"]


def test_a_last_window_may_be_left_out_or_filled_up():
    video = groundtruth.VideoMetadata("a.mp4", 60.0, 25.0, 1500)
    rule = feature_formats.TimingRule(stride=4, window=16, fps="video")
    whole, filled = (1500 - 16) // 4 + 1, 1500 // 4
    for count in (whole - 1, whole, filled, filled + 1):
        assert rule.timing(count, video) == clip_times.RowTiming(25.0, 4.0, 16.0, 0.0)
    for count in (whole - 20, filled + 20):
        with pytest.raises(ValueError, match=r"60\.00 s"):
            rule.timing(count, video)


@pytest.mark.parametrize(
    ("timing", "reason"),
    [
        ([], "the timing is needed"),
        (["--stride", 16, "--window", 16], "the timing is needed"),
        (["--stride", 16, "--fps", 15], "the timing is needed"),
        (["--stride", 16, "--rescaled", 100], "no stride, window"),
        (["--rescaled", 100, "--fps", 15], "no stride, window, frame rate or offset"),
        (["--stride", 0, "--window", 16, "--fps", 15], "a stride of 0"),
        (["--stride", "nan", "--window", 16, "--fps", 15], "a stride of nan"),
        (["--stride", 16, "--window", 16, "--fps", -15], "-15 fps"),
    ],
)
def test_an_unclear_timing_is_refused(timing: list[Any], reason: str, tmp_path: Path, run: Any):
    status, _, err = run("import", npy_folder(tmp_path / "npy"), "--output", tmp_path / "f.h5", *timing)
    assert status == 1 and reason in err and not (tmp_path / "f.h5").exists()


# --------------------------------------------------------------------------------------------------------------- resampling


def test_a_resampled_file_keeps_the_times(imported: Path, tmp_path: Path, run: Any):
    """A row of a resampled file lies in the middle of the part of the video from which it was made."""
    for length in (9, 100):
        path = tmp_path / f"{length}.h5"
        assert run("export", imported, "--output", path, "--format", "h5", "--length", length)[0] == 0
        item = features.read(path, "v_a")
        assert len(item.features) == length and "checkpoint_sha256" not in item.attributes
        start_sec, window_sec = clip_times.clip_times(item)
        middles = (np.arange(37) * 16 + 16) / 15
        cells = np.interp((np.arange(length) + 0.5) * 37 / length - 0.5, np.arange(37), middles)
        inner = slice(length // 30 + 1, -(length // 30 + 1))
        np.testing.assert_allclose((start_sec + window_sec / 2)[inner], cells[inner], rtol=1e-12)


def test_a_file_with_every_third_row_keeps_their_times(imported: Path, tmp_path: Path, run: Any):
    assert run("export", imported, "--output", tmp_path / "f.h5", "--format", "h5", "--every", 3)[0] == 0
    item, whole = features.read(tmp_path / "f.h5", "v_a"), features.read(imported, "v_a")
    np.testing.assert_array_equal(item.features, whole.features[::3], strict=True)
    np.testing.assert_allclose(clip_times.clip_times(item)[0], clip_times.clip_times(whole)[0][::3], rtol=1e-15)
    assert clip_times.clip_times(item)[1] == clip_times.clip_times(whole)[1]


def test_joined_files_are_no_encoders_any_more(imported: Path, tmp_path: Path, run: Any):
    assert run("export", imported, imported, "--output", tmp_path / "f.h5", "--format", "h5")[0] == 0
    item = features.read(tmp_path / "f.h5", "v_a")
    assert item.features.shape == (37, 2 * CHANNELS) and item.attributes["timing"].startswith(
        "rows of imported.h5 + imported.h5"
    )
    np.testing.assert_array_equal(clip_times.clip_times(item)[0], clip_times.clip_times(features.read(imported, "v_a"))[0])


def test_rows_with_gaps_are_not_resampled(tmp_path: Path):
    with features.Writer(tmp_path / "f.h5", {"stride": 16, "clip_len": 16, "frame_rate": 15.0}) as writer:
        writer.commit("v_a", rows("v_a"), {"clip_ranges": np.array([[0, 10], [13, 40]]), "damage": "broken"})
    with pytest.raises(ValueError, match=r"'v_a' is damaged and lacks clips"):
        feature_exports.export_features([tmp_path / "f.h5"], tmp_path / "out", "npy", plan=resampling.Plan(length=10))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------------- names


def test_names_are_those_of_the_metadata(tmp_path: Path, run: Any):
    folder = tmp_path / "npy"
    folder.mkdir()
    np.save(folder / "pre_a.npy", rows("v_a"))
    status, out, _ = run("import", folder, "--output", tmp_path / "f.h5", *GRID, "--prefix", "pre_")
    assert status == 0 and "1 videos of 6 channels, a row every 16 frames, of 32, from frame 0, at 15 fps" in out
    assert "2 videos without features" in out
    assert features.names(tmp_path / "f.h5") == ["v_a"]


def test_features_of_unknown_videos_stop_or_are_skipped(tmp_path: Path, run: Any):
    folder = npy_folder(tmp_path / "npy")
    np.save(folder / "stranger.npy", rows("v_a"))
    status, _, err = run("import", folder, "--output", tmp_path / "f.h5", *GRID)
    assert status == 1 and "no video 'stranger' in" in err and not (tmp_path / "f.h5").exists()
    status, out, _ = run("import", folder, "--output", tmp_path / "f.h5", *GRID, "--on_unknown", "skip")
    assert status == 0 and "1 features skipped, of no video in the metadata: stranger" in out


def test_two_files_of_one_video_are_refused(tmp_path: Path, run: Any):
    folder = npy_folder(tmp_path / "npy")
    np.save(folder / "a.npy", rows("v_a"))
    status, _, err = run("import", folder, "--output", tmp_path / "f.h5", *GRID)
    assert status == 1 and "would be named 'v_a', as would" in err
    (folder / "sub").mkdir()
    np.save(folder / "sub" / "v_a.npy", rows("v_a"))
    status, _, err = run("import", folder, "--output", tmp_path / "f.h5", *GRID)
    assert status == 1 and "sub/v_a.npy: would be named 'v_a'" in err


def test_files_in_folders_of_subsets_are_found_and_a_folder_is_part_of_a_name(tmp_path: Path, run: Any):
    folder = tmp_path / "hacs"
    for subset, name in (("training", "v_a"), ("training", "v_b"), ("validation", "video_test_01")):
        (folder / subset).mkdir(parents=True, exist_ok=True)
        np.save(folder / subset / f"{name}.npy", rows(name))
    assert run("import", folder, "--output", tmp_path / "f.h5", *GRID)[0] == 0
    assert features.names(tmp_path / "f.h5") == sorted(VIDEOS)
    cameras = [groundtruth.VideoMetadata(f"cam{number}/a.mp4", 40.0, 30.0, 1200) for number in range(2)]
    groundtruth.write_metadata(tmp_path / "cameras.csv", cameras)
    for number in range(2):
        (tmp_path / "npy" / f"cam{number}").mkdir(parents=True)
        np.save(tmp_path / "npy" / f"cam{number}" / "a.npy", rows("v_a") + number)
    given = ["--metadata_csv", tmp_path / "cameras.csv", "--names", "path"]
    assert run("import", tmp_path / "npy", "--output", tmp_path / "c.h5", *GRID, *given)[0] == 0
    assert features.names(tmp_path / "c.h5") == ["cam0/a", "cam1/a"]
    assert run("export", tmp_path / "c.h5", "--output", tmp_path / "back")[0] == 0
    assert run("import", tmp_path / "back", "--output", tmp_path / "again.h5", *GRID, *given)[0] == 0
    assert contents(tmp_path / "again.h5") == contents(tmp_path / "c.h5")


def test_videos_that_fail_are_left_out_only_when_asked_and_set_the_status(tmp_path: Path, run: Any):
    folder = npy_folder(tmp_path / "npy")
    np.save(folder / "v_b.npy", rows("v_b", 9))
    (folder / "video_test_01.npy").write_bytes(b"")
    status, out, err = run("import", folder, "--output", tmp_path / "f.h5", *GRID, "--on_error", "skip")
    assert status == 1 and "f.h5: 1 videos" in out
    assert "left out: " in err and "v_b.npy: 9 rows end at second" in err and "55.50 s" in err and "video_test_01.npy" in err
    assert features.names(tmp_path / "f.h5") == ["v_a"]


def test_a_folder_of_several_formats_or_of_none_is_refused(tmp_path: Path, run: Any):
    folder = npy_folder(tmp_path / "npy")
    (folder / "README").write_text("three videos")
    assert run("import", folder, "--output", tmp_path / "readme.h5", *GRID)[0] == 0
    (folder / "notes.csv").write_text("a\n1\n")
    status, _, err = run("import", folder, "--output", tmp_path / "f.h5", *GRID)
    assert status == 1 and "1 of csv, 3 of npy" in err and "--format" in err
    assert run("import", folder, "--output", tmp_path / "f.h5", *GRID, "--format", "npy")[0] == 0
    (tmp_path / "none").mkdir()
    for place in (tmp_path / "none", tmp_path / "absent", folder / "notes.csv"):
        status, _, err = run("import", place, "--output", tmp_path / "g.h5", *GRID)
        assert status == 1 and str(place) in err and "expected" in err


# -------------------------------------------------------------------------------------------------------------- hostile files


class Hostile:
    def __reduce__(self) -> tuple:
        return os.system, ("touch hostile_ran",)


def header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def zipped(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return stream.getvalue()


def objects() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Hostile()], dtype=object), allow_pickle=True)
    return stream.getvalue()


BAD = {
    "claims.npy": (header((1 << 40, 512)), "damaged"),
    "objects.npy": (objects(), "Python objects are not read"),
    "nothing.npy": (b"", "damaged"),
    "cut.npy": (header((4, 4)) + b"\0" * 60, "damaged"),
    "text.npy": (header((2, 2), "<U4") + b"\0" * 64, "expected numbers"),
    "vector.npy": (header((4,)) + b"\0" * 16, r"found the shape \[4\]"),
    "empty.npy": (header((0, 4)), "found 0 rows of 4"),
    "nan.npy": (header((1, 2)) + np.array([1, np.nan], "<f4").tobytes(), "row 0 of 1"),
    "huge.npy": (header((1, 1), "<f8") + np.array([1e300]).tobytes(), "row 0 of 1"),
    "claims.npz": (zipped("feats.npy", header((1 << 40, 512))), "damaged"),
    "objects.npz": (zipped("feats.npy", objects()), "Python objects are not read"),
    "not.npz": (b"PK\x03\x04" + b"x" * 50, "damaged"),
    "code.pkl": (pickle.dumps(Hostile()), "nothing was run"),
    "inside.pkl": (pickle.dumps({"feats": [Hostile()]}), "nothing was run"),
    "text.pkl": (pickle.dumps("features"), "found str"),
    "code.pt": (zipped("archive/data.pkl", pickle.dumps(Hostile())), "nothing was run"),
    "code": (pickle.dumps(Hostile()), "nothing was run"),
    "ragged.csv": (b"f0,f1\n1,2\n3\n", "a number in each field"),
    "words.csv": (b"f0,f1\n1,two\n", "a number in each field"),
    "wide.csv": (b"f0,f1\n1,2,3\n", "2 columns in the header, 3 in the rows"),
    "binary.csv": (b"\xff\xfe\x00\x01" * 9, "binary.csv"),
    "not.h5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 200, "damaged"),
    "uneven.pkl": (
        tensor_files.pickled({"slow_feature": rows("v_a").T[None], "fast_feature": rows("v_a", 5).T[None]}),
        "slow_feature has 37 rows and fast_feature 5",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_with_its_fault_and_nothing_in_it_is_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metadata: Path, run: Any
):
    monkeypatch.chdir(tmp_path)
    data, reason = BAD[name]
    (tmp_path / "bad").mkdir()
    path = tmp_path / "bad" / f"v_a{Path(name).suffix}"
    path.write_bytes(data)
    status, _, err = run("import", path.parent, "--output", "f.h5", *GRID)
    assert status == 1 and str(path) in err and re.search(reason.replace(name, path.name), err), err
    assert not (tmp_path / "f.h5").exists() and not list(tmp_path.rglob("hostile_ran"))


def test_a_foreign_hdf5_file_that_leads_elsewhere_or_claims_too_much_is_refused(tmp_path: Path, run: Any):
    def external(file: h5py.File) -> None:
        file.create_dataset("v_a", (4, 4), "f4", external=[("/etc/passwd", 0, 64)])

    def link(file: h5py.File) -> None:
        file["v_a"] = h5py.ExternalLink("/etc/passwd", "/a")

    def bomb(file: h5py.File) -> None:
        file.create_dataset("v_a", (1 << 30, 64), "f4", chunks=(1 << 10, 64), compression="gzip")

    def filtered(file: h5py.File) -> None:
        file.create_dataset("v_a", data=rows("v_a"), compression="lzf")

    def vector(file: h5py.File) -> None:
        file.create_dataset("v_a", data=rows("v_a")[0])

    for number, fill in enumerate((external, link, bomb, filtered, vector)):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            fill(file)
        status, _, err = run("import", path, "--output", tmp_path / "f.h5", *GRID)
        assert status == 1 and str(path) in err and not (tmp_path / "f.h5").exists(), err


# ----------------------------------------------------------------------------------------------------------- writing, reading


def test_all_faults_are_in_one_message_and_nothing_is_written(tmp_path: Path, run: Any):
    folder = npy_folder(tmp_path / "npy")
    np.save(folder / "v_a.npy", rows("v_a", 5))
    np.save(folder / "video_test_01.npy", rows("video_test_01", channels=3))
    status, _, err = run("import", folder, "--output", tmp_path / "f.h5", *GRID)
    assert status == 1 and "v_a.npy: 5 rows" in err and "video_test_01.npy: 3 channels, most videos have 6" in err
    assert not list(tmp_path.glob("f.h5*"))


def test_an_output_is_replaced_only_when_asked_and_not_by_a_bad_import(imported: Path, tmp_path: Path, run: Any):
    before = imported.read_bytes()
    assert run("import", tmp_path / "npy", "--output", imported, *GRID)[0] == 1
    assert (
        run("import", tmp_path / "npy", "--output", imported, "--stride", 3, "--window", 3, "--fps", 30, "--overwrite")[0] == 1
    )
    assert imported.read_bytes() == before
    assert (
        run("import", tmp_path / "npy", "--output", imported, "--stride", 32, "--window", 32, "--fps", 30, "--overwrite")[0]
        == 0
    )
    assert imported.read_bytes() != before
    assert run("export", imported, "--output", tmp_path / "npy.h5", "--format", "h5")[0] == 0
    assert run("export", imported, "--output", tmp_path / "npy.h5", "--format", "h5")[0] == 1


def test_the_output_is_none_of_the_inputs(imported: Path, run: Any):
    before = imported.read_bytes()
    status, _, err = run("import", imported, "--output", imported, *GRID, "--overwrite")
    assert status == 1 and "is one of the files to import" in err and imported.read_bytes() == before


def test_a_second_writer_is_refused(imported: Path, tmp_path: Path, run: Any):
    with files.locked(tmp_path / "out" / ".lock", "busy"):
        status, _, err = run("export", imported, "--output", tmp_path / "out")
    assert status == 1 and "another export is writing here" in err
    with files.locked(tmp_path / "f.h5.parts" / "lock", "busy"):
        status, _, err = run("import", tmp_path / "npy", "--output", tmp_path / "f.h5", *GRID)
    assert status == 1 and "another run is writing here" in err


def test_slices_are_read_with_their_times(imported: Path):
    whole = feature_formats.read_rows(imported, "v_a")
    np.testing.assert_array_equal(whole.array, rows("v_a"), strict=True)
    assert feature_formats.shape(imported, "v_a") == (37, CHANNELS)
    for first, end in [(0, 5), (3, 9), (36, 37), (-4, None), (5, 5), (30, 99), (9, 3)]:
        part = feature_formats.read_rows(imported, "v_a", first, end)
        np.testing.assert_array_equal(part.array, rows("v_a")[first:end], strict=True)
        np.testing.assert_array_equal(part.start_sec, whole.start_sec[first:end], strict=True)
        assert part.window_sec == 32 / 15 and part.duration_sec == 40.0
    with pytest.raises(features.FeatureFileError, match="has no video 'b'"):
        feature_formats.read_rows(imported, "b")


def test_info_shows_the_timing(imported: Path, run: Any):
    status, out, _ = run("info", imported)
    assert status == 0 and "timing: a row every 16 frames, of 32, from frame 0, at 15 fps" in out


def test_layouts_have_an_importer_each():
    assert {kind for kinds in feature_sources.FORMATS.values() for kind in kinds} <= set(feature_files.ENDINGS)
