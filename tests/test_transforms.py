"""Tests that taps, blend and normalization give the pixels of PyTorch's resize, crop and normalization."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsp_jax import transforms

MEAN, STD = transforms.KINETICS.mean, transforms.KINETICS.std
COMMON_SIZES = [
    (128, 171), (180, 320), (240, 320), (256, 342), (288, 352), (271, 481), (360, 640),
    (480, 640), (480, 853), (480, 854), (540, 960), (720, 1280), (1080, 1920), (1920, 1080),
]  # fmt: skip
SIZES = [
    *COMMON_SIZES,
    (112, 112),
    (120, 160),
    (144, 176),
    (1, 1),
    (2, 3),
    (3, 2),
    (1, 400),
    (17, 23),
    (64, 96),
    (127, 170),
    (129, 172),
    (131, 1201),
]


def tolerance(height: int, width: int) -> float:
    """Returns the largest accepted difference from PyTorch for pixels in [0, 1].

    Both blend in float32, and differed by about 2e-7 in common sizes. Where the product of position and scale is not exact,
    PyTorch rounds it on some processors and not on others, so that the blend's weight is one rounding of a position away. The
    difference was 3e-6 in frames that grow, 7e-6 in 129x172, and 5e-5 in some widths below 2,000.
    """
    return 5e-7 if (height, width) in COMMON_SIZES else max(6e-6, float(np.spacing(np.float32(width))))


def random_frame(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 10007 + width).integers(0, 256, (height, width, 3), np.uint8)


def cropped(frame: np.ndarray) -> np.ndarray:
    """Returns the crop of one frame in [0, 1], by the functions under test."""
    taps = transforms.centre_taps(*frame.shape[:2])
    tapped = transforms.take_taps(frame, taps)
    return np.asarray(transforms.blend(tapped[None], taps.row_weight[None], taps.column_weight[None])[0])


@pytest.mark.torch
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crop_is_that_of_torch(height: int, width: int) -> None:
    torch = pytest.importorskip("torch")
    frame = random_frame(height, width)
    video = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
    resized = torch.nn.functional.interpolate(video, size=(128, 171), mode="bilinear", align_corners=False)
    expected = resized[0, :, 8 : 8 + 112, 30 : 30 + 112]
    ours = cropped(frame)
    atol = tolerance(height, width)
    np.testing.assert_allclose(ours, expected.permute(1, 2, 0).numpy(), rtol=0, atol=atol)

    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    normalized = ((expected - mean) / std).permute(1, 2, 0).numpy()
    # A standard deviation of 0.22 enlarges the difference 4.6 times.
    np.testing.assert_allclose(transforms.normalize(jnp.asarray(ours)), normalized, rtol=0, atol=5 * atol)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crop_is_the_bilinear_formula(height: int, width: int) -> None:
    """The formula is the definition in float64, with sample centres, repeated edges, rows from 8 and columns from 30."""
    frame = random_frame(height, width)
    columns = axis_matrix(width, 171)[30 : 30 + 112]
    rows = axis_matrix(height, 128)[8 : 8 + 112]
    expected = np.einsum("yh,xw,hwc->yxc", rows, columns, frame / 255, optimize=True)
    # We follow PyTorch's float32 positions, which are up to 1e-4 of a pixel away in a width of 1,920.
    np.testing.assert_allclose(cropped(frame), expected, rtol=0, atol=2e-4)


def axis_matrix(size: int, resized: int) -> np.ndarray:
    """Returns the share of each source sample in each resized one, [resized, size]."""
    centres = np.clip((np.arange(resized) + 0.5) * size / resized - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size)))


def test_column_offset_is_half_to_even() -> None:
    """(171 - 112) / 2 = 29.5 is rounded to 30, as Python rounds: a frame of 128x171 is only cropped."""
    frame = random_frame(128, 171)
    np.testing.assert_allclose(cropped(frame) * 255, frame[8:120, 30:142], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (64, 96), (1080, 1920)])
def test_taps_of_every_size_have_one_shape(height: int, width: int) -> None:
    taps = transforms.centre_taps(height, width)
    assert taps.pixels.shape == (224, 224) and taps.pixels.dtype == np.int64
    assert taps.pixels.min() >= 0 and taps.pixels.max() < height * width
    for weight in (taps.row_weight, taps.column_weight):
        assert weight.shape == (112,) and weight.dtype == np.float32
        assert np.all((weight >= 0) & (weight < 1))
    tapped = transforms.take_taps(random_frame(height, width), taps)
    assert tapped.shape == (224, 224, 3) and tapped.dtype == np.uint8


def test_taps_of_a_frame_that_is_a_view_are_those_of_its_copy() -> None:
    """Decoders may give rows with padding behind them."""
    padded = random_frame(64, 128)
    view = padded[:, :96]
    taps = transforms.centre_taps(64, 96)
    np.testing.assert_array_equal(transforms.take_taps(view, taps), transforms.take_taps(view.copy(), taps))


def test_constant_frame_stays_constant() -> None:
    for value in (0, 1, 128, 255):
        crop = cropped(np.full((57, 91, 3), value, np.uint8))
        np.testing.assert_allclose(crop, value / 255, rtol=0, atol=1e-7)  # one rounding of a weight's complement
        assert np.all((crop >= 0) & (crop <= 1))


def test_normalize_gives_zero_mean_and_unit_variance() -> None:
    mean, std = np.asarray(MEAN, np.float32), np.asarray(STD, np.float32)
    pixels = jnp.stack([jnp.asarray(mean), jnp.asarray(mean + std), jnp.zeros(3)])
    expected = np.stack([np.zeros(3), np.ones(3), -mean / std])
    np.testing.assert_allclose(transforms.normalize(pixels), expected, rtol=0, atol=1e-6)
    assert transforms.normalize(pixels.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_blend_of_a_frame_does_not_depend_on_its_batch() -> None:
    """The bits are equal: a feature must not change with the clips that share its batch."""
    frames = [random_frame(64, 96), random_frame(360, 640), random_frame(271, 481)]
    taps = [transforms.centre_taps(*frame.shape[:2]) for frame in frames]
    tapped = np.stack([transforms.take_taps(*pair) for pair in zip(frames, taps, strict=True)])
    rows, columns = (np.stack([getattr(tap, name) for tap in taps]) for name in ("row_weight", "column_weight"))
    blend = jax.jit(lambda *arguments: transforms.normalize(transforms.blend(*arguments)))
    forward = np.asarray(blend(tapped, rows, columns))
    backward = np.asarray(blend(tapped[::-1], rows[::-1], columns[::-1]))
    np.testing.assert_array_equal(forward, backward[::-1])
    assert forward.dtype == np.float32 and forward.shape == (3, 112, 112, 3)
    assert len(np.unique(forward.reshape(3, -1)[:, 0])) == 3


def test_taps_are_computed_once_a_size() -> None:
    assert transforms.centre_taps(64, 96) is transforms.centre_taps(64, 96)
    assert isinstance(transforms.centre_taps, functools._lru_cache_wrapper)


@pytest.mark.torch
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_resized_frames_are_pytorchs_rounded(height: int, width: int):
    torch = pytest.importorskip("torch")
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    resized = transforms.resize(frame)
    assert resized.dtype == np.uint8 and resized.shape == (128, 171, 3)
    source = torch.tensor(frame).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(source, (128, 171), mode="bilinear", align_corners=False)
    expected = expected[0].permute(1, 2, 0).numpy()
    # The tolerance is half a step of rounding, plus the difference of the two blends.
    assert np.abs(resized - expected).max() <= 0.5 + 255 * tolerance(height, width)


def test_window_is_cut_from_the_mirrored_clip():
    draw = np.random.default_rng(0)
    video = draw.integers(0, 256, (6, 3, 128, 171, 3), dtype=np.uint8)
    crop = np.array([(0, 0), (16, 59), (8, 30), (16, 0), (0, 59), (3, 7)], np.int32)
    flip = np.array([False, False, True, True, True, False])
    windows = np.asarray(jax.jit(transforms.window)(video, crop, flip))
    for clip, (top, left), mirrored, found in zip(video, crop, flip, windows, strict=True):
        whole = clip[:, :, ::-1] if mirrored else clip
        np.testing.assert_array_equal(found, whole[:, top : top + 112, left : left + 112])


@pytest.mark.torch
def test_augmented_clips_are_those_of_the_originals_order() -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    video = random.integers(0, 256, (5, 2, 128, 171, 3), np.uint8)
    crop, flip = np.array([[0, 0], [16, 59], [16, 0], [3, 41], [8, 30]], np.int32), np.array([True, False, True, True, False])
    found = jax.jit(transforms.augment)(video, crop, flip)
    assert found.dtype == jnp.float32
    for clip, (top, left), mirrored, ours in zip(video, crop, flip, found, strict=True):
        theirs = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255
        theirs = theirs.flip(-1) if mirrored else theirs
        mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
        theirs = ((theirs - mean) / std)[..., top : top + 112, left : left + 112]
        # The compiler may multiply by a reciprocal, which rounds values up to 2.7 once.
        np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=5e-7)


def test_augment_normalizes_in_float64_where_asked() -> None:
    with jax.enable_x64(True):
        video, crop = np.full((1, 1, 128, 171, 3), 7, np.uint8), np.zeros((1, 2), np.int32)
        found = transforms.augment(video, crop, np.array([False]), jnp.float64)
        np.testing.assert_allclose(found[0, 0, 0, 0], (7 / 255 - np.array(MEAN)) / STD, rtol=1e-14)
