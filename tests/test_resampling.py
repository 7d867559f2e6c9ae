"""Tests that features are resampled on the time axis as the original tools do it, to the bit."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.interpolate

from tsp_jax import features
from tsp_jax.localization import feature_exports, resampling


def test_linear_resampling_has_the_bits_of_the_originals(shared: Path):
    folder = shared / "reference" / "localization" / "actionformer"
    met = 0
    for name in ("f_data_af.npz", "f_data_iv.npz"):
        with np.load(folder / name) as golden:
            for key in golden:
                if key.startswith("interp/") and key.endswith("/in"):
                    given, expected = golden[key], golden[key.removesuffix("in") + "out"]
                    np.testing.assert_array_equal(resampling.resampled(given, len(expected), "linear"), expected, strict=True)
                    met += 1
            for key in golden:
                if re.fullmatch(r"(anet_tsp|anet_nocrop|anet_fixed_stride-1|iv_fixed_stride-1)/in\d", key):
                    expected = golden[key.replace("/in", "/test/") + "/feats"].T
                    np.testing.assert_array_equal(resampling.resampled(golden[key], 192, "linear"), expected)
                    met += 1
            for key in golden:
                if re.fullmatch(r"(anet_varlen_down2|thumos_down2_nocrop)/in\d", key):
                    expected = golden[key.replace("/in", "/test/") + "/feats"].T
                    np.testing.assert_array_equal(resampling.Plan(every=2).rows(golden[key]), expected)
                    met += 1
    assert met >= 36


def test_the_rescaled_features_of_g_tad_are_exported_to_the_bit(shared: Path, tmp_path: Path):
    folder = shared / "reference" / "localization" / "gtad" / "dev_anet_e2e"
    about = json.loads((folder / "features.json").read_text())
    with np.load(folder / "expected_features.npz") as golden:
        expected = {str(name): golden[f"item{index}_data"].T for index, name in enumerate(golden["videos"])}
    source = {}
    run = {"stride": 16, "clip_len": 16, "frame_rate": 15.0}
    with features.Writer(tmp_path / "f.h5", run) as writer:
        for index, (name, length) in enumerate(about["lengths"].items()):
            source[name] = smooth(about["rs"] + index, (16, length)).T
            writer.commit(name, source[name], {"clip_ranges": np.array([[0, length]])})
    feature_exports.export_features([tmp_path / "f.h5"], tmp_path / "npy", "npy", plan=resampling.Plan(length=20))
    for name, array in expected.items():
        np.testing.assert_array_equal(np.load(tmp_path / "npy" / f"{name}.npy"), array)


def smooth(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """Features as the goldens' make_weights.py draws them: a running mean of five numbers, cut off at 0."""
    drawn = np.random.RandomState(seed).standard_normal(shape)
    padded = np.concatenate([drawn[:, :1].repeat(2, 1), drawn, drawn[:, -1:].repeat(2, 1)], 1)
    sums = np.cumsum(np.concatenate([np.zeros((shape[0], 1)), padded], 1), 1)
    return np.maximum((sums[:, 5:] - sums[:, :-5]) / np.sqrt(5), 0).astype(np.float32)


@pytest.mark.torch
@pytest.mark.parametrize(("count", "length"), [(1, 100), (2, 5), (50, 192), (333, 100), (1000, 768), (13, 2304)])
def test_linear_resampling_has_the_bits_of_torch(count: int, length: int):
    torch = pytest.importorskip("torch")
    given = np.random.default_rng(count).standard_normal((count, 7), np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(given.T))[None]
    expected = torch.nn.functional.interpolate(tensor, size=length, mode="linear", align_corners=False)[0].T.numpy()
    np.testing.assert_array_equal(resampling.resampled(given, length, "linear"), expected)


@pytest.mark.parametrize(("count", "length"), [(1, 100), (2, 100), (5, 3), (77, 100), (100, 100), (400, 100)])
def test_bmn_resampling_equals_a_plain_loop(count: int, length: int):
    given = np.random.default_rng(count).standard_normal((count, 4), np.float32)
    expected = np.repeat(given, length, axis=0)
    if count > 1:
        middles = [0.5 + index for index in range(count)]
        at = scipy.interpolate.interp1d(middles, given, axis=0)
        for part in range(length):
            first = max(middles[0] + 0.0001, 1.0 / length * part * count)
            last = min(middles[-1] - 0.0001, 1.0 / length * (part + 1) * count)
            outside = last < middles[0] or first > middles[-1]
            step = (last - first) / 2
            points = [first + step * index for index in range(3)]
            expected = expected if part else np.zeros((length, 4), np.float32)
            expected[part] = 0 if outside else np.mean(at(points), axis=0)
    np.testing.assert_array_equal(resampling.resampled(given, length, "bmn"), expected, strict=True)
