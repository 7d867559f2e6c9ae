"""Pixels: the host picks the few that the network's input is made of, the device blends and normalizes them.

The original resizes each frame to 128x171 by bilinear interpolation without antialiasing and crops the central 112x112.
Every pixel of that crop is a blend of 2x2 source pixels, so a frame of any size travels as 224x224 uint8 values and one
shape serves all videos.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int32, Int64, UInt8


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The frames and pixels that a backbone reads.

    Attributes:
      frame_rate: the rate of a clip's frames, in frames per second.
      clip_len: the number of frames in a clip.
      resize: the height and width, in pixels, to which frames are resized.
      crop: the height and width, in pixels, of the crop that the network reads.
      mean: the mean of each RGB channel, which normalization subtracts; pixels are in [0, 1].
      std: the standard deviation of each RGB channel, by which normalization divides.
    """

    frame_rate: float
    clip_len: int
    resize: tuple[int, int]
    crop: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def tapped(self) -> tuple[int, int]:
        """The rows and columns of `TappedFrame.pixels`: two for each row and column of the crop."""
        return 2 * self.crop[0], 2 * self.crop[1]


# Source: TSP, released transforms and flags; mean and standard deviation of Kinetics.
KINETICS = Preprocessing(
    frame_rate=15.0,
    clip_len=16,
    resize=(128, 171),
    crop=(112, 112),
    mean=(0.43216, 0.394666, 0.37645),
    std=(0.22803, 0.22145, 0.216989),
)


class Taps(NamedTuple):
    """Which source pixels the crop is blended from.

    Attributes:
      pixels: flat index into the frame's pixels of the two rows by two columns behind each pixel of the crop.
      row_weight: share of the second row, in [0, 1).
      column_weight: share of the second column, in [0, 1).
    """

    pixels: Int64[np.ndarray, "th tw"]
    row_weight: Float32[np.ndarray, " h"]
    column_weight: Float32[np.ndarray, " w"]


class TappedFrame(NamedTuple):
    """The part of a frame that the network reads.

    Attributes:
      number: the frame's number in its video.
      pixels: uint8 [th, tw, 3], the pixels at the places that the taps name.
      taps: the pixels' source places and blending weights.
    """

    number: int
    pixels: UInt8[np.ndarray, "th tw 3"]
    taps: Taps


@functools.lru_cache(maxsize=64)
def centre_taps(height: int, width: int, preprocessing: Preprocessing = KINETICS) -> Taps:
    """Returns the taps of the central crop for frames of this size.

    Source: TSP, released transforms (Resize, CenterCrop); torch's upsample_bilinear2d with align_corners false.
    """
    rows, row_weight = _axis_taps(height, preprocessing.resize[0], preprocessing.crop[0])
    columns, column_weight = _axis_taps(width, preprocessing.resize[1], preprocessing.crop[1])
    return Taps(rows[:, None] * width + columns, row_weight, column_weight)


def take_taps(frame: UInt8[np.ndarray, "h w 3"], taps: Taps) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns the tapped pixels of an RGB frame."""
    return frame.reshape(-1, 3).take(taps.pixels, axis=0)


def resize(frame: UInt8[np.ndarray, "h w 3"], size: tuple[int, int] = KINETICS.resize) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns an RGB frame resized to `size` (height, width), rounded to the nearest value. It runs on the host.

    Source: TSP, released transforms (Resize): bilinear, without antialiasing.
    """
    (rows, row_weight), (columns, column_weight) = _resize_taps(*frame.shape[:2], *size)
    tall = frame.take(rows, axis=0).reshape(size[0], 2, -1).astype(np.float32)
    tall = (tall[:, 0] + row_weight[:, None] * (tall[:, 1] - tall[:, 0])).reshape(size[0], -1, 3)
    left, right = tall.take(columns[::2], axis=1), tall.take(columns[1::2], axis=1)
    right -= left
    right *= column_weight[:, None]
    right += left
    return np.rint(right, out=right).astype(np.uint8)


def blend(
    tapped: UInt8[Array | np.ndarray, "n th tw 3"],
    row_weight: Float[Array | np.ndarray, "n h"],
    column_weight: Float[Array | np.ndarray, "n w"],
) -> Float32[Array, "n h w 3"]:
    """Returns resized and cropped frames in [0, 1], on the device, from the pixels of `take_taps`: twice `h` by twice `w`."""
    height, width = row_weight.shape[1], column_weight.shape[1]
    x = jnp.asarray(tapped).astype(jnp.float32).reshape(-1, height, 2, width, 2, 3) / 255
    row, column = row_weight[:, :, None, None, None], column_weight[:, None, :, None]
    x = x[:, :, 0] * (1 - row) + x[:, :, 1] * row
    return x[:, :, :, 0] * (1 - column) + x[:, :, :, 1] * column


def window(
    video: UInt8[Array | np.ndarray, "b t h w 3"],
    crop: Int32[Array | np.ndarray, "b 2"],
    flip: Bool[Array | np.ndarray, " b"],
    size: tuple[int, int] = KINETICS.crop,
) -> UInt8[Array, "b t h2 w2 3"]:
    """Returns clips mirrored where `flip` is true, then cut to a window. It runs on the device.

    Args:
      video: whole frames.
      crop: the top and left edge of each clip's window, in pixels of the mirrored frame.
      flip: whether to mirror each clip.
      size: the height and width of the window.
    """

    def cut(frames: UInt8[Array, "t h w 3"], at: Int32[Array, " 2"], mirrored: Bool[Array, ""]) -> UInt8[Array, "t h2 w2 3"]:
        # A window of the mirrored frame is the opposite window of the frame, mirrored.
        left = jnp.where(mirrored, frames.shape[2] - size[1] - at[1], at[1])
        zero = jnp.zeros((), at.dtype)
        part = jax.lax.dynamic_slice(frames, (zero, at[0], left, zero), (frames.shape[0], *size, 3))
        return jnp.where(mirrored, part[:, :, ::-1], part)

    return jax.vmap(cut)(jnp.asarray(video), jnp.asarray(crop), jnp.asarray(flip))


def augment(
    video: UInt8[Array | np.ndarray, "b t h w 3"],
    crop: Int32[Array | np.ndarray, "b 2"],
    flip: Bool[Array | np.ndarray, " b"],
    dtype: DTypeLike = jnp.float32,
    preprocessing: Preprocessing = KINETICS,
) -> Float[Array, "b t h2 w2 3"]:
    """Returns clips for the network: mirrored, cut to their windows, and normalized. It runs on the device.

    A window must lie within the frame; nothing checks this.

    Source: TSP, released training transforms. Here the flip and the crop come first: they commute with what is done to each
      value, and then a quarter of the bytes is moved.
    """
    return normalize(window(video, crop, flip, preprocessing.crop).astype(dtype) / 255, preprocessing)


def normalize(clips: Float[Array | np.ndarray, "*b 3"], preprocessing: Preprocessing = KINETICS) -> Float[Array, "*b 3"]:
    """Returns RGB values of [0, 1] less the mean, divided by the standard deviation. It runs on the device."""
    clips = jnp.asarray(clips)
    return (clips - jnp.asarray(preprocessing.mean, clips.dtype)) / jnp.asarray(preprocessing.std, clips.dtype)


@functools.lru_cache(maxsize=64)
def _resize_taps(
    height: int, width: int, new_height: int, new_width: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    return _axis_taps(height, new_height, new_height), _axis_taps(width, new_width, new_width)


def _axis_taps(size: int, resized: int, cropped: int) -> tuple[Int64[np.ndarray, " m"], Float32[np.ndarray, " n"]]:
    offset = round((resized - cropped) / 2)  # half to even: columns start at round(29.5) = 30
    out = np.arange(offset, offset + cropped, dtype=np.float32)
    scale = float(np.float32(size) / np.float32(resized))
    # Rounded to float32 once, as by the fused multiply-add that PyTorch's processor has.
    source = np.maximum(np.float32(scale * (out.astype(np.float64) + 0.5) - 0.5), np.float32(0))
    first = np.minimum(source.astype(np.int64), size - 1)
    second = np.minimum(first + 1, size - 1)
    return np.stack([first, second], axis=1).reshape(-1), (source - first).astype(np.float32)
