"""Clips in, features out: clips of any videos packed into batches of one shape, each frame sent to the device once."""

import collections
import functools
import math
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32, UInt8

from tsp_jax import checkpoints, transforms
from tsp_jax.models import functional, tsp
from tsp_jax.system import compilation, malloc, timing

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
AXIS = "data"
_BATCHES_IN_FLIGHT = 2
# After each of the first and then of every so many batches freed memory is given back; that takes a CPU a fifth of a second.
_SETTLING_BATCHES, _GIVE_BACK_EVERY = 4, 16

Result = tuple[Any, np.ndarray]  # the tag that a clip was given, and its features, float32 [width]


class Batcher:
    """An encoder on all local devices, fed clip by clip; results come back a batch or two later.

    The device holds the frames of the previous batch and of the new one, and a clip is `clip_len` indices into them, so that
    overlapping clips send a frame once (where a batch spans at least a clip). All shapes are fixed when the encoder is built:
    one compilation.

    Attributes:
      width: numbers in a clip's features.
      batches: number of batches sent to the devices.
      frames_sent: number of frames sent, without padding.
      compute_sec: time during which the devices had work, as far as calls of `add` saw it.
    """

    def __init__(
        self,
        checkpoint: checkpoints.Checkpoint,
        *,
        clip_len: int,
        stride: int,
        dtype: str = "float32",
        batch_size: int = 32,
        also: Sequence[checkpoints.Checkpoint] = (),
        own: timing.Laps | None = None,
    ):
        """Places the weights on the devices; the program is compiled by the first batch.

        Args:
          checkpoint: the encoder's weights.
          clip_len: frames in a clip.
          stride: the number of frames from one clip's start to the next clip's, which decides how much clips overlap.
          dtype: the compute precision, a key of `DTYPES`.
          batch_size: clips in a batch, for each device; the cores of a CPU share it.
          also: more encoders of the same clips; their features stand to the right of the first one's.
          own: the calling thread's timer; records the time of packing, sending and waiting.
        """
        self._laps = own or timing.Laps()
        every = (checkpoint, *also)
        self.width = sum(item.config.spec.width for item in every)
        devices = jax.local_devices()
        self._one_by_one = is_one_by_one(devices[0])
        if self._one_by_one:
            batch_size = -(-batch_size // len(devices))
        # New frames that a batch may bring: all of its clips', or, where clips overlap, twice what a plain grid would need
        # (rounding puts neighbouring clips on different frames) and the beginnings of two videos.
        slots = min(batch_size * clip_len, 2 * stride * batch_size + 2 * clip_len)
        mesh = Mesh(np.array(devices), (AXIS,))
        self._split = NamedSharding(mesh, PartitionSpec(AXIS))
        variables = [item.variables for item in every]
        if self._one_by_one:  # from the host's view of them a CPU's cores share one copy
            variables = jax.tree.map(np.asarray, variables)
        self._variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
        configs = tuple(item.config for item in every)
        self._step = make_step(configs, mesh, dtype, self._one_by_one)
        self.preprocessing = configs[0].spec.preprocessing
        sizes = len(devices), slots, batch_size, clip_len, self.preprocessing
        # All at once: one made later would take a piece of what the program's activations left free, and those a new place.
        self._filling, self._spare = _Batch(*sizes), [_Batch(*sizes) for _ in range(_BATCHES_IN_FLIGHT)]
        self._lanes = [_Lane(i, slots, batch_size) for i in range(len(devices))]
        self._lane = 0
        shape = (len(devices) * slots, *self.preprocessing.crop, 3)
        self._frames = jax.device_put(jnp.zeros(shape, jnp.float32), self._split)
        self._in_flight: collections.deque[tuple[_Batch, list[list[Any]], Array]] = collections.deque()
        self.batches, self.frames_sent, self.compute_sec = 0, 0, 0.0
        self._busy_since = 0.0
        self._giving_back = malloc.GivingBack(_SETTLING_BATCHES, _GIVE_BACK_EVERY)
        self._laps.end(timing.OTHER)

    def add(self, tag: Any, video: Hashable, frames: Sequence[transforms.TappedFrame]) -> list[Result]:
        """Takes a clip; returns results that have come back since, each with the tag that its clip was given.

        Args:
          tag: comes back with the features.
          video: the video of the frames; with their numbers it shows which frames were sent already.
          frames: the clip's `clip_len` frames.
        """
        results = []
        while self._in_flight and _is_ready(self._in_flight[0][-1]):
            results += self._collect()
        while not self._lanes[self._lane].take(self._filling, tag, video, frames):
            self._lane += 1
            if self._lane == len(self._lanes):
                results += self._send()
        if self._one_by_one:  # lanes in turn, so that all have work when there is little
            self._lane = (self._lane + 1) % len(self._lanes)
        self._laps.end(timing.PACK)
        return results

    def flush(self) -> list[Result]:
        """Sends what is left and returns all results not yet returned."""
        results = self._send() if any(lane.tags for lane in self._lanes) else []
        while self._in_flight:
            results += self._collect()
        return results

    def _send(self) -> list[Result]:
        self._laps.end(timing.PACK)
        if not self._in_flight:
            self._busy_since = time.perf_counter()
        sent = self._filling
        sent.count[:] = [len(lane.tags) for lane in self._lanes]
        batch = jax.device_put(sent.arrays, self._split)
        self._laps.end(timing.TRANSFER)
        found, self._frames = self._step(self._variables, self._frames, *batch)
        self._giving_back.after_call()
        self._laps.end(timing.DISPATCH if self.batches else timing.COMPILE)
        self._in_flight.append((sent, [lane.tags for lane in self._lanes], found))
        self.batches += 1
        self.frames_sent += sum(len(lane.new) for lane in self._lanes)
        results = self._collect() if len(self._in_flight) > _BATCHES_IN_FLIGHT else []
        self._filling = self._spare.pop()
        for lane in self._lanes:
            lane.begin()
        self._lane = 0
        return results

    def _collect(self) -> list[Result]:
        """The results of the oldest batch; waits for it."""
        sent, lanes, found = self._in_flight.popleft()
        self._laps.end(timing.PACK)
        rows = np.asarray(found).reshape(len(lanes), -1, found.shape[-1])
        self._laps.end(timing.WAIT_FOR_RESULTS)
        self._spare.append(sent)
        if not self._in_flight:
            self.compute_sec += time.perf_counter() - self._busy_since
        return [(tag, rows[i, j].copy()) for i, tags in enumerate(lanes) for j, tag in enumerate(tags)]


class _Batch:
    """The host's memory of one batch. Devices may read it (a CPU in place) until its results are back, so it is kept.

    Attributes:
      arrays: the arguments of the step from `tapped` on, each device's part after the other's.
    """

    def __init__(self, devices: int, slots: int, batch_size: int, clip_len: int, preprocessing: transforms.Preprocessing):
        # Unused slots are never read.
        self.tapped = _aligned((devices * slots, *preprocessing.tapped, 3), np.uint8)
        self.row_weight = _aligned((devices * slots, preprocessing.crop[0]), np.float32)
        self.column_weight = _aligned((devices * slots, preprocessing.crop[1]), np.float32)
        self.index = _aligned((devices * batch_size, clip_len), np.int32)
        self.index[:] = 0
        self.count = _aligned((devices,), np.int32)
        self.arrays = self.tapped, self.row_weight, self.column_weight, self.index, self.count


def is_one_by_one(device: Any) -> bool:
    """Whether it encodes clips one by one: a CPU gains nothing from more at once, and activations take up to 140 MB a clip."""
    return device.platform == "cpu"


def _is_ready(found: Array) -> bool:
    return found.is_ready()  # type: ignore  # not in the stubs


def _aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array that begins where a CPU's program takes it without a copy, on a line of its cache."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + 64, np.uint8)
    begin = -room.ctypes.data % 64
    return room[begin : begin + size].view(dtype).reshape(shape)


class _Lane:
    """One device's share of the batch being filled.

    Attributes:
      tags: the tags of the clips taken.
      new: slot of each frame that this batch brings, by video and number.
    """

    def __init__(self, place: int, slots: int, batch_size: int):
        self.place, self.slots, self.batch_size = place, slots, batch_size
        self.new: dict[tuple[Hashable, int], int] = {}
        self.begin()

    def begin(self) -> None:
        """Empties the lane; its frames so far are the device's previous ones from now on."""
        self.previous, self.new, self.tags = self.new, {}, []

    def take(self, batch: _Batch, tag: Any, video: Hashable, frames: Sequence[transforms.TappedFrame]) -> bool:
        """Whether there was room for the clip, which is then written into the batch."""
        keys = [(video, frame.number) for frame in frames]
        missing = {
            key: frame for key, frame in zip(keys, frames, strict=True) if key not in self.new and key not in self.previous
        }
        if len(self.tags) == self.batch_size or len(self.new) + len(missing) > self.slots:
            return False
        for key, frame in missing.items():
            slot = self.new[key] = len(self.new)
            at = self.place * self.slots + slot
            batch.tapped[at] = frame.pixels
            batch.row_weight[at], batch.column_weight[at] = frame.taps.row_weight, frame.taps.column_weight
        # Slots are counted on the lane's own device.
        index = [self.slots + self.new[key] if key in self.new else self.previous[key] for key in keys]
        batch.index[self.place * self.batch_size + len(self.tags)] = index
        self.tags.append(tag)
        return True


@functools.cache
def make_step(
    configs: tuple[tsp.ModelConfig, ...], mesh: Mesh, dtype: str, one_by_one: bool
) -> Callable[..., tuple[Array, Array]]:
    """Returns the program of a batch: it blends and normalizes frames, gathers clips from previous and new ones, encodes them.

    The same arguments give the same program, so that a process compiles it once however many `Batcher`s it makes.

    Args:
      configs: the encoders, which read the same frames; their features are joined.
      mesh: the devices, each with its own part of the batch.
      dtype: the compute precision, a key of `DTYPES`.
      one_by_one: whether a device encodes its clips one after the other.
    """
    preprocessing = configs[0].spec.preprocessing

    def encode(variables: Sequence[functional.Variables], clips: Float32[Array, "b t h w 3"]) -> Float32[Array, "b f"]:
        every = zip(configs, variables, strict=True)
        return jnp.concatenate([tsp.encode(config, held, clips, DTYPES[dtype]) for config, held in every], axis=1)

    def step(
        variables: Sequence[functional.Variables],
        previous: Float32[Array, "s h w 3"],
        tapped: UInt8[Array, "s th tw 3"],
        row_weight: Float32[Array, "s h"],
        column_weight: Float32[Array, "s w"],
        index: Int32[Array, "b t"],
        count: Int32[Array, " 1"],
    ) -> tuple[Float32[Array, "b f"], Float32[Array, "s h w 3"]]:
        frames = transforms.normalize(transforms.blend(tapped, row_weight, column_weight), preprocessing)

        # Clips come from two arrays: a joined one would need memory of its own.
        def clips(index: Int32[Array, "n t"]) -> Float32[Array, "n t h w 3"]:
            of_previous, of_new = previous[index % len(previous)], frames[index - len(previous)]
            return jnp.where((index < len(previous))[..., None, None, None], of_previous, of_new)

        if not one_by_one:
            return encode(variables, clips(index)), frames

        def encode_one(i: Int32[Array, ""], found: Float32[Array, "b f"]) -> Float32[Array, "b f"]:
            return found.at[i].set(encode(variables, clips(index[i][None]))[0])

        # A partly filled batch costs only its clips.
        width = sum(config.spec.width for config in configs)
        return jax.lax.fori_loop(0, count[0], encode_one, jnp.zeros((len(index), width), jnp.float32)), frames

    one, split = PartitionSpec(), PartitionSpec(AXIS)
    sharded = jax.shard_map(
        step, mesh=mesh, in_specs=(one, split, split, split, split, split, split), out_specs=(split, split), check_vma=False
    )
    return jax.jit(sharded, compiler_options=compilation.options())
