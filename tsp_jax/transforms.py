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
from jaxtyping import Array, Bool, Float, Float32, Int, Int64, UInt8

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


def blend(
    tapped: UInt8[Array, "n 224 224 3"], row_weight: Float[Array, "n 112"], column_weight: Float[Array, "n 112"]
) -> Float32[Array, "n 112 112 3"]:
    """Resized and cropped frames in [0, 1]. On the device."""
    x = tapped.astype(jnp.float32).reshape(-1, CROP[0], 2, CROP[1], 2, 3) / 255
    row, column = row_weight[:, :, None, None, None], column_weight[:, None, :, None]
    x = x[:, :, 0] * (1 - row) + x[:, :, 1] * row
    return x[:, :, :, 0] * (1 - column) + x[:, :, :, 1] * column


def augment(
    video: UInt8[Array, "b t 128 171 3"],
    crop: Int[Array, "b 2"],
    flip: Bool[Array, " b"],
    dtype: jnp.dtype = jnp.float32,
) -> Float[Array, "b t 112 112 3"]:
    """Clips for the network: mirrored left to right where `flip` says so, cropped, normalized. On the device.

    `crop` is the window's top and left in the frame after the flip; it must lie within the frame, which is checked nowhere.

    Source: TSP, released training transforms; flip and crop come first here, since they commute with what is done to each
    value and move a quarter of the bytes.
    """

    def window(video: UInt8[Array, "t h w 3"], crop: Int[Array, " 2"], flip: Bool[Array, ""]) -> UInt8[Array, "t h2 w2 3"]:
        (top, left), zero = crop, jnp.zeros((), crop.dtype)
        left = jnp.where(flip, video.shape[2] - CROP[1] - left, left)  # the same window, before the flip
        pixels = jax.lax.dynamic_slice(video, (zero, top, left, zero), (len(video), *CROP, 3))
        return jnp.where(flip, pixels[:, :, ::-1], pixels)

    return normalize(jax.vmap(window)(video, crop, flip).astype(dtype) / 255)


def normalize(clips: Float[Array, "*b 3"]) -> Float[Array, "*b 3"]:
    """RGB in [0, 1] to zero mean and unit variance over Kinetics. On the device."""
    return (clips - jnp.asarray(MEAN, clips.dtype)) / jnp.asarray(STD, clips.dtype)


def _axis_taps(size: int, resized: int, cropped: int) -> tuple[Int64[np.ndarray, " m"], Float32[np.ndarray, " n"]]:
    offset = round((resized - cropped) / 2)  # half to even: columns start at round(29.5) = 30
    out = np.arange(offset, offset + cropped, dtype=np.float32)
    scale = float(np.float32(size) / np.float32(resized))
    # Rounded to float32 once, as by the fused multiply-add that PyTorch's processor has.
    source = np.maximum(np.float32(scale * (out.astype(np.float64) + 0.5) - 0.5), np.float32(0))
    first = np.minimum(source.astype(np.int64), size - 1)
    second = np.minimum(first + 1, size - 1)
    return np.stack([first, second], axis=1).reshape(-1), (source - first).astype(np.float32)
