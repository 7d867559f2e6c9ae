"""Tests of the global video feature: numpy's numbers in the original's layout."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from data_builders import gvf
from tsp_jax import features
from tsp_jax.features import global_features

RUN = {"stride": 16, "clip_len": 16, "frame_rate": 15.0, "checkpoint": "seed 0", "checkpoint_sha256": "00"}
CLIPS = {"video_b": 37, "a": 1, "名前": 3}


@pytest.fixture
def extracted(tmp_path: Path) -> Path:
    """A file of features as extraction writes it."""
    draw = np.random.default_rng(0)
    with features.Writer(tmp_path / "features.h5", RUN) as writer:
        for name, count in CLIPS.items():
            writer.commit(name, draw.normal(size=(count, 512)).astype(np.float32), {"damage": "cut off" if count == 3 else ""})
    return tmp_path / "features.h5"


def run(source: Path, output: Path, how: str) -> int:
    return gvf.main(["--features", str(source), "--pool", how, "--output", str(output)])


def read(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


@pytest.mark.parametrize(("how", "expected"), [("max", np.max), ("avg", np.mean)])
def test_pooled_features_are_numpys(how: str, expected, extracted: Path, tmp_path: Path):
    assert run(extracted, tmp_path / "gvf.h5", how) == 0
    pooled = read(tmp_path / "gvf.h5")
    assert set(pooled) == set(CLIPS)
    for name, clips in read(extracted).items():
        assert np.array_equal(pooled[name], expected(clips, axis=0)), name
        np.testing.assert_allclose(pooled[name], expected(clips.astype(np.float64), axis=0), atol=1e-6)


def test_layout_is_the_originals(extracted: Path, shared: Path, tmp_path: Path):
    assert run(extracted, tmp_path / "gvf.h5", "max") == 0

    def layouts(path: Path) -> set[tuple[object, ...]]:
        with h5py.File(path) as file:
            return {
                (item.shape, item.dtype, item.chunks, item.compression, item.compression_opts, len(item.attrs))
                for item in file.values()
            }

    assert layouts(tmp_path / "gvf.h5") == layouts(shared / "annotations" / "thumos14_r2plus1d_34-max_gvf.h5")


def test_file_says_how_it_was_made(extracted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(extracted, tmp_path / "gvf.h5", "avg") == 0
    with h5py.File(tmp_path / "gvf.h5") as file:
        assert dict(file.attrs) == {"pool": b"avg", "checkpoint": b"seed 0", "checkpoint_sha256": b"00", "stride": 16}
    printed = capsys.readouterr()
    assert "avg over clips of 3 videos, 512 numbers each; 0 left out" in printed.out
    assert "note: 名前: cut off; the feature is pooled from the clips that were read" in printed.err


def test_same_features_give_the_same_bytes(extracted: Path, tmp_path: Path):
    for name in ("one.h5", "two.h5"):
        assert run(extracted, tmp_path / name, "max") == 0
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_features_that_are_not_finite_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with features.Writer(tmp_path / "features.h5", RUN) as writer:
        writer.commit("good", np.ones((2, 8), np.float32), {"damage": ""})
        writer.commit("bad", np.array([[1, np.nan], [1, 2]], np.float32), {"damage": ""})
    assert run(tmp_path / "features.h5", tmp_path / "gvf.h5", "max") == 1
    assert set(read(tmp_path / "gvf.h5")) == {"good"}
    printed = capsys.readouterr()
    assert "left out: bad: a feature is not finite" in printed.err
    assert "error: 1 videos of" in printed.err


def test_video_without_clips_has_no_feature():
    with pytest.raises(ValueError, match="no clips"):
        global_features.pool(np.zeros((0, 512), np.float32), "max")


def test_wrong_files_are_refused(extracted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = extracted.read_bytes()
    (tmp_path / "text.h5").write_text("no features")
    assert run(tmp_path / "none.h5", tmp_path / "gvf.h5", "max") == 2
    assert run(tmp_path / "text.h5", tmp_path / "gvf.h5", "max") == 2
    assert run(extracted, extracted, "max") == 2
    assert run(extracted, tmp_path / "text.h5" / "gvf.h5", "max") == 1
    assert capsys.readouterr().err.count("error: ") == 4
    assert extracted.read_bytes() == before
    assert not (tmp_path / "gvf.h5").exists()


def test_a_global_feature_file_is_no_file_of_clips(extracted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(extracted, tmp_path / "gvf.h5", "max") == 0
    assert run(tmp_path / "gvf.h5", tmp_path / "again.h5", "max") == 2
    assert "is not a float32 [n_clips, width] dataset" in capsys.readouterr().err


def test_unknown_pool_is_status_2(extracted: Path, tmp_path: Path):
    with pytest.raises(SystemExit) as caught:
        run(extracted, tmp_path / "gvf.h5", "median")
    assert caught.value.code == 2


def test_global_features_are_read_by_name(extracted: Path, tmp_path: Path):
    gvf.main(["--features", str(extracted), "--pool", "max", "--output", str(tmp_path / "gvf.h5")])
    vectors = global_features.read(tmp_path / "gvf.h5")
    assert sorted(vectors) == features.names(extracted)
    for name, vector in vectors.items():
        np.testing.assert_array_equal(vector, features.read(extracted, name).features.max(axis=0))


def test_the_originals_global_features_are_read(shared: Path):
    vectors = global_features.read(shared / "annotations" / "thumos14_r2plus1d_34-max_gvf.h5")
    assert {(vector.shape, vector.dtype.name) for vector in vectors.values()} == {((512,), "float32")}


def test_files_of_something_else_are_no_global_features(extracted: Path, tmp_path: Path):
    with pytest.raises(features.FeatureFileError, match="not a file of global features"):
        global_features.read(extracted)
    with pytest.raises(features.FeatureFileError, match="no such file"):
        global_features.read(tmp_path / "none.h5")
    global_features.write(tmp_path / "two.h5", {"a": np.zeros(3, np.float32), "b": np.zeros(4, np.float32)}, {})
    with pytest.raises(features.FeatureFileError, match=r"vectors of one width, found \[3, 4\]"):
        global_features.read(tmp_path / "two.h5")
    global_features.write(tmp_path / "none_at_all.h5", {}, {})
    with pytest.raises(features.FeatureFileError, match="found none"):
        global_features.read(tmp_path / "none_at_all.h5")
