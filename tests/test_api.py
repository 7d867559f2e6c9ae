"""Tests of the functions for Python: they give the command's numbers and clear errors, and their import costs little."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import media
import tsp_jax
from tsp_jax import checkpoints, extract, features
from tsp_jax.models import functional, tsp

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the smallest backbone, two videos and a damaged one, and what the command made of them."""
    folder = tmp_path_factory.mktemp("api")
    config = tsp.ModelConfig("r3d_tiny")
    checkpoints.save(folder / "model", checkpoints.make(config, functional.init(config, 0), checkpoints.Origin("seed 0")))
    (folder / "videos").mkdir()
    media.write(folder / "videos" / "one.mp4", frames=140)
    media.write(folder / "videos" / "two.mp4", frames=100, seed=1)
    media.make(folder / "videos", "vp8_hidden.webm")  # its packets promise other frames than the decoder gives
    media.make(folder / "videos", "cut_head_first.mp4")
    arguments = [folder / "model", "--videos", folder / "videos", "--output", folder / "features.h5"]
    flags = ["--batch_size", 4, "--clip_len", 4, "--stride", 2]
    assert extract.main(["--checkpoint", *map(str, [*arguments, *flags])]) == 1
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> tsp_jax.VideoEncoder:
    return tsp_jax.load_encoder(folder / "model", clip_len=4, stride=2, batch_size=4)


def test_features_are_the_commands_to_the_bit(folder: Path, encoder: tsp_jax.VideoEncoder):
    written = tsp_jax.read_features(folder / "features.h5")
    assert sorted(written) == ["cut_head_first", "one", "two", "vp8_hidden"] and len(written) == 4
    for path in sorted((folder / "videos").iterdir()):
        found, expected = encoder.extract(path, keep_damaged=True), written[path.stem]
        np.testing.assert_array_equal(found.array, expected.array)
        np.testing.assert_array_equal(found.start_sec, expected.start_sec)
        assert (found.geometry, found.duration_sec, found.damage) == (
            expected.geometry,
            expected.duration_sec,
            expected.damage,
        )
        assert found.array.dtype == np.float32 and found.array.shape == (len(found.start_sec), encoder.width)
    one = written["one"]
    assert encoder.geometry.frame_selection == "auto"
    assert one.geometry == dataclasses.replace(encoder.geometry, frame_selection="reference")
    assert written["vp8_hidden"].geometry.frame_selection == "uniform"  # frames are missing between those that are shown
    assert one.duration_sec == pytest.approx(140 / 30) and one.clip_len_sec == 4 / 15
    np.testing.assert_allclose(one.start_sec, np.arange(34) * 2 / 15, atol=1e-9)


def test_a_call_that_was_interrupted_leaves_nothing_behind(folder: Path, encoder: tsp_jax.VideoEncoder, monkeypatch):
    path = folder / "videos" / "one.mp4"
    expected = encoder.extract(path).array
    flush = encoder._encoder.flush

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(encoder._encoder, "flush", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encoder.extract(folder / "videos" / "two.mp4")
    monkeypatch.setattr(encoder._encoder, "flush", flush)
    np.testing.assert_array_equal(encoder.extract(path).array, expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [("empty.mp4", "the file is empty"), ("no_frames.mp4", "no video stream"), ("text.mp4", "not a video")],
)
def test_files_without_pictures_are_refused(name: str, message: str, encoder: tsp_jax.VideoEncoder, tmp_path: Path):
    path = media.make(tmp_path, name)
    with pytest.raises(ValueError, match=message) as raised:
        encoder.extract(path, keep_damaged=True)
    assert str(path) in str(raised.value)


def test_damaged_short_and_absent_videos_are_refused(folder: Path, encoder: tsp_jax.VideoEncoder, tmp_path: Path):
    with pytest.raises(ValueError, match=r"cut off.*keep_damaged=True"):
        encoder.extract(folder / "videos" / "cut_head_first.mp4")
    with pytest.raises(ValueError, match="shorter than one clip"):
        encoder.extract(media.write(tmp_path / "short.mp4", frames=5))
    with pytest.raises(FileNotFoundError, match="no such file"):
        encoder.extract(tmp_path / "absent.mp4")


def test_wrong_settings_are_refused(folder: Path):
    for wrong, message in [({"dtype": "float16"}, "dtype"), ({"batch_size": 0}, "batch_size"), ({"stride": 0}, "stride")]:
        with pytest.raises(ValueError, match=message):
            tsp_jax.load_encoder(folder / "model", **wrong)
    with pytest.raises(FileNotFoundError, match="no such file"):
        tsp_jax.load_encoder(folder / "absent")


@pytest.mark.wrong_arguments  # the check of the mapping that is returned would read the damaged items
def test_files_of_features_tell_what_is_missing(folder: Path, tmp_path: Path):
    with pytest.raises(features.FeatureFileError, match="no such file"):
        tsp_jax.read_features(tmp_path / "absent.h5")
    written = tsp_jax.read_features(folder / "features.h5")
    assert "one" in written and "three" not in written
    with pytest.raises(KeyError):
        written["three"]
    item = features.read(folder / "features.h5", "one")
    with features.Writer(tmp_path / "odd.h5", {}) as writer:
        writer.commit("one", item.features, {**item.attributes, "frame_selection": "random"})
        writer.commit("two", item.features, {"frames": 3})
    for name in ["one", "two"]:
        with pytest.raises(features.FeatureFileError, match="extract it again"):
            tsp_jax.read_features(tmp_path / "odd.h5")[name]


def test_importing_costs_nothing_and_the_version_needs_no_library():
    code = "import sys, tsp_jax; print(tsp_jax.__version__, sorted({'jax', 'numpy', 'h5py'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [tsp_jax.__version__, "[]"]
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        tsp_jax.absent  # type: ignore  # noqa: B018


def test_the_example_finds_where_its_video_changes(folder: Path, tmp_path: Path):
    def run(*arguments: Path) -> str:
        command = [sys.executable, str(ROOT / "examples" / "features.py"), *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    shown = run()
    assert "14 clips of 1.067 s, 128 numbers each" in shown
    match = re.search(r"the largest change is about ([\d.]+) s", shown)
    assert match and abs(float(match[1]) - 4.0) <= 8 / 15
    assert "one.mp4: 7 clips" in run(folder / "model", folder / "videos" / "one.mp4")
