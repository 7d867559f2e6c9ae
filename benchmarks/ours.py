"""Our sides of the benchmarks, which compute as the commands of this project do."""

import json
import math
import time
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from benchmarks import alternate, seeded
from convert import torch_names
from tsp_jax import checkpoints, transforms, weights
from tsp_jax.extraction import batches
from tsp_jax.models import functional, tsp
from tsp_jax.system import compilation, cpu, malloc, sharding, timing
from tsp_jax.training import classification, encoder_task, optim, train_step

# ---------------------------------------------------------------------------------------------------------- for model.py


def forward(spec: dict[str, Any]) -> alternate.Side:
    """Returns the side that encodes a batch that is already on the device. On a CPU each core encodes its clips one by one."""
    start()
    checkpoint = seeded_checkpoint(spec)
    dtype = batches.DTYPES[spec["dtype"]]
    devices = jax.local_devices()
    devices = devices[: math.gcd(spec["batch"], len(devices))]

    def encode_part(variables: functional.Variables, clips: Array) -> Array:
        if not batches.is_one_by_one(devices[0]):
            return tsp.encode(checkpoint.config, variables, clips, dtype)
        return jax.lax.map(lambda clip: tsp.encode(checkpoint.config, variables, clip[None], dtype)[0], clips)

    one, split = PartitionSpec(), PartitionSpec(batches.AXIS)
    mesh = Mesh(np.array(devices), (batches.AXIS,))
    mapped = jax.shard_map(encode_part, mesh=mesh, in_specs=(one, split), out_specs=split, check_vma=False)
    encode = jax.jit(mapped, compiler_options=compilation.options())
    variables = jax.device_put(checkpoint.variables, NamedSharding(mesh, one))
    clips = jax.device_put(batch(spec)["video"], NamedSharding(mesh, split))
    features = encode(variables, clips)

    def run(count: int) -> None:
        jax.block_until_ready([encode(variables, clips) for _ in range(count)])

    return alternate.Side(run, np.asarray(features, np.float32), about(spec))


def step(spec: dict[str, Any]) -> alternate.Side:
    """Returns the side that trains on one batch that is already on the device, without augmentation.

    The outputs are the losses, and the logarithms of gradient norms, of the first two steps.
    """
    cores = start(spec["batch"])
    checkpoint, mesh = seeded_checkpoint(spec), sharding.make_mesh(jax.devices()[:cores], cores=cores)
    optimizer, one = _train_step(checkpoint, spec, mesh=mesh, prepare=lambda batch, dtype: batch["video"].astype(dtype))
    placed = jax.device_put(batch(spec), sharding.batch_sharding(mesh))
    state = jax.device_put(train_step.init_state(checkpoint.variables, optimizer), sharding.replicated(mesh))
    outputs = []
    giving_back = malloc.GivingBack(malloc.SETTLING_STEPS)
    for _ in range(malloc.SETTLING_STEPS + 2):
        state, seen = one(state, placed)
        outputs += [float(seen.loss), math.log(float(seen.grad_norm))]
        giving_back.after_call()  # as the command does

    def run(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, seen = one(state, placed)
            jax.block_until_ready(seen.loss)  # as the command does: steps sent ahead would all hold memory
        jax.block_until_ready(state)

    return alternate.Side(run, np.array(outputs[:4]), about(spec))


# -------------------------------------------------------------------------------------------------------- for extract.py


def extraction(spec: dict[str, Any]) -> alternate.Side:
    """Returns the side that writes the features of a folder's videos to a file: the command without its start.

    The outputs are the features.
    """
    from tsp_jax import clips, features, video_list  # timing the networks alone needs none of their packages
    from tsp_jax.extraction import engine, flags

    start()
    # Each run makes a new Batcher, as a new process does; `batches.make_step` keeps the program from run to run.
    checkpoint, output = seeded_checkpoint(spec), Path(spec["folder"]) / "features.h5"
    videos = video_list.list_videos(spec["videos"])
    geometry = clips.ClipGeometry(clip_len=spec["clip_len"], stride=spec["stride"])
    settings = engine.Settings(geometry, "pyav", spec["dtype"], spec["batch"], flags.default_workers())

    def run(count: int) -> None:
        for _ in range(count):
            with features.Writer(output, engine.run_attributes(checkpoint, settings), overwrite=True) as writer:
                summary = engine.extract(checkpoint, videos, writer, settings)
            if summary.failures:
                raise RuntimeError(f"{summary.failures[0]}")

    run(1)
    rows = [features.read(output, item.name).features for item in videos]
    return alternate.Side(run, np.concatenate(rows), about(spec))


def write_checkpoint(spec_json: str, path: str) -> None:
    """Writes seeded weights to the checkpoint folder `path`."""
    checkpoints.save(path, seeded_checkpoint(json.loads(spec_json)))


def startup(spec_json: str) -> None:
    """Prints, as JSON, the seconds from the start of this process to its first features, which are those of one clip."""
    spec, times = json.loads(spec_json), [time.time()]
    start()
    checkpoint = weights.open_any(spec["checkpoint"])
    times.append(time.time())
    pixels, taps = np.zeros((*transforms.KINETICS.tapped, 3), np.uint8), transforms.centre_taps(240, 320)
    frames = [transforms.TappedFrame(number, pixels, taps) for number in range(spec["clip_len"])]
    given = {"clip_len": spec["clip_len"], "stride": 16, "dtype": spec["dtype"], "batch_size": spec["batch"]}
    own = timing.Laps()
    made = batches.Batcher(checkpoint, **given, own=own)
    made.add("clip", "video", frames)
    made.flush()
    times += [time.time() - own.seconds[timing.WAIT_FOR_RESULTS], time.time()]
    stages = ("imports", "read_checkpoint", "until_computing", "first_features")
    seconds = np.diff([spec["began"], *times]).tolist()
    print(json.dumps({f"{stage}_sec": value for stage, value in zip(stages, seconds, strict=True)}))


# ---------------------------------------------------------------------------------------------------------- for train.py


def training(spec: dict[str, Any]) -> alternate.Side:
    """Returns the side that trains from records, which it reads ahead as the command does.

    The outputs are the losses of the first two steps.
    """
    from tsp_jax import config, input_pipeline  # timing the networks alone needs none of their packages
    from tsp_jax.training import feed

    cores = start(spec["batch"])
    checkpoint, mesh = seeded_checkpoint(spec), sharding.make_mesh(cores=cores)
    split = input_pipeline.open_split(spec["records"], "train")
    optimizer, one = _train_step(checkpoint, spec, mesh=mesh)
    batches = input_pipeline.train_batches(
        split, global_batch_size=spec["batch"], seed=0, balanced=True, num_threads=config.Run().reader_threads
    )
    ahead = feed.Feed(encoder_task.host_batches(batches, split), mesh)
    state = jax.device_put(train_step.init_state(checkpoint.variables, optimizer), sharding.replicated(mesh))
    losses = []

    def run(count: int) -> None:
        nonlocal state
        for _ in range(count):
            batch, _ = ahead.take()
            state, seen = one(state, batch)
            ahead.fetch()
            losses.append(float(seen.loss))

    run(2)
    return alternate.Side(run, np.array(losses), about(spec))


# ------------------------------------------------------------------------------------------------- for input_pipeline.py


def loading(spec: dict[str, Any]) -> alternate.Side:
    """Returns the side that reads training clips from records and mirrors, crops and normalizes them on the device.

    The outputs are the first batch, averaged over blocks of pixels.
    """
    from tsp_jax import config, input_pipeline

    start(1)
    split = input_pipeline.open_split(spec["records"], "train")
    recipe = config.Run()
    batches = input_pipeline.train_batches(
        split,
        global_batch_size=spec["batch"],
        seed=0,
        balanced=True,
        num_workers=recipe.reader_processes,
        num_threads=recipe.reader_threads,
    )
    prepare = jax.jit(transforms.augment)

    def one() -> Array:
        batch = next(batches)
        return prepare(*jax.device_put((batch["video"], batch["crop"], batch["flip"])))

    first = np.asarray(one())

    def run(count: int) -> None:
        for _ in range(count):
            one().block_until_ready()

    return alternate.Side(run, seeded.small(first), about({**spec, "dtype": "float32"}))


# --------------------------------------------------------------------------------------------------------------- helpers


def start(rows: int | None = None) -> int:
    """Prepares JAX as the commands do. Returns the number of devices that a CPU became, which share the rows evenly."""
    malloc.keep_freed()
    return cpu.split_cpu(rows)


def seeded_checkpoint(spec: dict[str, Any]) -> checkpoints.Checkpoint:
    """Returns the backbone with two heads and a GVF. PyTorch's sides have the same weights."""
    wanted = tsp.ModelConfig(spec["backbone"], tuple(spec["label_counts"]), gvf=spec["gvf"])
    origin = checkpoints.Origin("seeded weights of the benchmarks")
    if spec["backbone"] == "r3d_tiny":  # PyTorch has no such network
        return checkpoints.make(wanted, functional.init(wanted, 0), origin)
    shapes = torch_names.torch_shapes(wanted)
    values = {
        key: np.asarray(value, value.dtype if value.dtype.kind == "i" else np.float32)
        for key, value in seeded.state(shapes, 0).items()
    }
    found, variables = torch_names.from_state_dict(values)
    return checkpoints.make(found, variables, origin)


def _train_step(checkpoint: checkpoints.Checkpoint, spec: dict[str, Any], **options: Any) -> tuple[optim.Optimizer, Any]:
    """Returns the optimizer and the step of training. `options` are those of `classification.ClipLoss`, and `mesh`."""
    rates = {"stem": 0.0, "backbone": seeded.BACKBONE_LR, "fc": seeded.FC_LR}
    optimizer = optim.sgd(
        rates,
        encoder_task.group_of,
        optim.warmup_multistep(0, (), 0.01),
        momentum=seeded.MOMENTUM,
        weight_decay=seeded.WEIGHT_DECAY,
    )
    dtype, how = batches.DTYPES[spec["dtype"]], train_step.Options(mesh=options.pop("mesh"))
    loss = classification.ClipLoss(checkpoint.config, classification.LABELS, (1.0, 1.0), dtype, **options)
    return optimizer, train_step.make_step(loss, optimizer, how)


def batch(spec: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns the clips and labels on which the networks alone are timed."""
    return seeded.batch(spec["batch"], tuple(spec["clip"]), tuple(spec["label_counts"]), 512)


def about(spec: dict[str, Any]) -> dict[str, Any]:
    """Returns the facts about our sides that a result records."""
    device = jax.local_devices()[0]
    return {
        "versions": {**alternate.versions("jax", "jaxlib"), "flax": flax.__version__},
        "platform": device.platform,
        "device": device.device_kind,
        "dtype": spec["dtype"],
    }
