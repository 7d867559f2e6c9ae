"""Pixels: the host picks the few that the network's input is made of, the device blends and normalizes them.

The original resizes each frame to 128x171 by bilinear interpolation without antialiasing and crops the central 112x112.
Every pixel of that crop is a blend of 2x2 source pixels, so a frame of any size travels as 224x224 uint8 values and one
shape serves all videos.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, Int64, UInt8

RESIZED = (128, 171)  # height, width
CROP = (112, 112)
TAPPED = (2 * CROP[0], 2 * CROP[1])
MEAN = (0.43216, 0.394666, 0.37645)  # of Kinetics, RGB in [0, 1]
STD = (0.22803, 0.22145, 0.216989)


class Taps(NamedTuple):
    """Which source pixels the crop is blended from.

    Attributes:
      pixels: flat index into the frame's pixels of the two rows by two columns behind each pixel of the crop.
      row_weight: share of the second row, in [0, 1).
      column_weight: share of the second column, in [0, 1).
    """

    pixels: Int64[np.ndarray, "224 224"]
    row_weight: Float32[np.ndarray, " 112"]
    column_weight: Float32[np.ndarray, " 112"]


class TappedFrame(NamedTuple):
    """All that the network reads of a frame.

    Attributes:
      number: of the frame in its video.
      pixels: those that the taps name.
      taps: where they were and how they blend.
    """

    number: int
    pixels: UInt8[np.ndarray, "224 224 3"]
    taps: Taps


@functools.lru_cache(maxsize=64)
def centre_taps(height: int, width: int) -> Taps:
    """The taps of the central crop for frames of this size.

    Source: TSP, released transforms (Resize, CenterCrop); torch's upsample_bilinear2d with align_corners false.
    """
    rows, row_weight = _axis_taps(height, RESIZED[0], CROP[0])
    columns, column_weight = _axis_taps(width, RESIZED[1], CROP[1])
    return Taps(rows[:, None] * width + columns, row_weight, column_weight)


def take_taps(frame: UInt8[np.ndarray, "h w 3"], taps: Taps) -> UInt8[np.ndarray, "224 224 3"]:
    """The tapped pixels of an RGB frame."""
    return frame.reshape(-1, 3).take(taps.pixels, axis=0)


def resize(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "128 171 3"]:
    """An RGB frame of any size at the size that records keep, rounded to the nearest value. On the host.

    Source: TSP, released transforms (Resize): bilinear, without antialiasing.
    """
    (rows, row_weight), (columns, column_weight) = _resize_taps(*frame.shape[:2])
    tall = frame.take(rows, axis=0).reshape(RESIZED[0], 2, -1).astype(np.float32)
    tall = (tall[:, 0] + row_weight[:, None] * (tall[:, 1] - tall[:, 0])).reshape(RESIZED[0], -1, 3)
    left, right = tall.take(columns[::2], axis=1), tall.take(columns[1::2], axis=1)
    right -= left
    right *= column_weight[:, None]
    right += left
    return np.rint(right, out=right).astype(np.uint8)


def blend(
    tapped: UInt8[Array, "n 224 224 3"], row_weight: Float[Array, "n 112"], column_weight: Float[Array, "n 112"]
) -> Float32[Array, "n 112 112 3"]:
    """Resized and cropped frames in [0, 1]. On the device."""
    x = tapped.astype(jnp.float32).reshape(-1, CROP[0], 2, CROP[1], 2, 3) / 255
    row, column = row_weight[:, :, None, None, None], column_weight[:, None, :, None]
    x = x[:, :, 0] * (1 - row) + x[:, :, 1] * row
    return x[:, :, :, 0] * (1 - column) + x[:, :, :, 1] * column


def window(
    video: UInt8[Array, "b t 128 171 3"], crop: Int32[Array, "b 2"], flip: Bool[Array, " b"]
) -> UInt8[Array, "b t 112 112 3"]:
    """Clips mirrored where `flip` says so, then cut to the 112x112 window whose top and left `crop` gives. On the device."""

    def cut(
        frames: UInt8[Array, "t 128 171 3"], at: Int32[Array, " 2"], mirrored: Bool[Array, ""]
    ) -> UInt8[Array, "t 112 112 3"]:
        # The window of the mirrored frame is that of the frame from the other side, mirrored.
        left = jnp.where(mirrored, RESIZED[1] - CROP[1] - at[1], at[1])
        zero = jnp.zeros((), at.dtype)
        part = jax.lax.dynamic_slice(frames, (zero, at[0], left, zero), (frames.shape[0], *CROP, 3))
        return jnp.where(mirrored, part[:, :, ::-1], part)

    return jax.vmap(cut)(video, crop, flip)


def augment(
    video: UInt8[Array, "b t 128 171 3"],
    crop: Int32[Array, "b 2"],
    flip: Bool[Array, " b"],
    dtype: jnp.dtype = jnp.float32,
) -> Float[Array, "b t 112 112 3"]:
    """Clips for the network: mirrored, cut to their windows, normalized. On the device.

    A window must lie within the frame, which is checked nowhere.

    Source: TSP, released training transforms; flip and crop come first here, since they commute with what is done to each
      value and move a quarter of the bytes.
    """
    return normalize(window(video, crop, flip).astype(dtype) / 255)


def normalize(clips: Float[Array, "*b 3"]) -> Float[Array, "*b 3"]:
    """RGB in [0, 1] to zero mean and unit variance over Kinetics. On the device."""
    return (clips - jnp.asarray(MEAN, clips.dtype)) / jnp.asarray(STD, clips.dtype)


@functools.lru_cache(maxsize=64)
def _resize_taps(height: int, width: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    return _axis_taps(height, RESIZED[0], RESIZED[0]), _axis_taps(width, RESIZED[1], RESIZED[1])


def _axis_taps(size: int, resized: int, cropped: int) -> tuple[Int64[np.ndarray, " m"], Float32[np.ndarray, " n"]]:
    offset = round((resized - cropped) / 2)  # half to even: columns start at round(29.5) = 30
    out = np.arange(offset, offset + cropped, dtype=np.float32)
    scale = float(np.float32(size) / np.float32(resized))
    # Rounded to float32 once, as by the fused multiply-add that PyTorch's processor has.
    source = np.maximum(np.float32(scale * (out.astype(np.float64) + 0.5) - 0.5), np.float32(0))
    first = np.minimum(source.astype(np.int64), size - 1)
    second = np.minimum(first + 1, size - 1)
    return np.stack([first, second], axis=1).reshape(-1), (source - first).astype(np.float32)
