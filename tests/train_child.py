"""Small networks that float64 can afford, and a process that trains one on several devices or as one of several processes.

`python train_child.py INPUTS OUTPUT [COORDINATOR NUM_PROCESSES PROCESS_ID]` reads variables and batches from an .npz file, and
writes one with the results.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from tsp_jax.models import backbones, functional, tsp
from tsp_jax.system import sharding, trees
from tsp_jax.training import classification, encoder_task, optim, processes, train_step

# No two widths are alike, but layer1 keeps the stem's, because its block has no downsample.
SMALL: dict[str, Any] = {"blocks": (1, 1, 1, 1), "stem_widths": (5, 6), "widths": (6, 8, 10, 12)}
FAMILIES = ("r2plus1d_34", "r2plus1d_18", "r3d_18")
RATES = {"backbone_lr": 0.02, "fc_lr": 0.1}
HEADS, ALPHAS = ("action", "temporal_region"), (1.0, 0.5)
# These programs run a few times, so optimizing them would take longer than running them.
QUICK = {"xla_backend_optimization_level": "0"}


def small_backbones() -> dict[str, Any]:
    """Returns the three families at this size, by name `train_…`. Their features have 12 numbers."""
    specs = {name: backbones.BACKBONES[name] for name in FAMILIES}
    return {
        f"train_{name}": dataclasses.replace(spec, build=functools.partial(spec.build, **SMALL), width=12)
        for name, spec in specs.items()
    }


def make_batch(seed: int, rows: int, action: bool = True) -> dict[str, np.ndarray]:
    """Returns rows of normalized clips, float64. Half of them have an action label, or none if `action` is false."""
    random = np.random.RandomState(seed)
    labels = random.randint(0, 7, rows)
    labels[1::2] = -1
    return {
        "clips": random.standard_normal((rows, 5, 20, 24, 3)),
        "gvf": random.standard_normal((rows, 12)),
        "action": np.asarray(labels if action else np.full(rows, -1), np.int32),
        "temporal_region": np.asarray(random.randint(-1, 2, rows), np.int32),
    }


def clips_of(batch: train_step.Batch, dtype: DTypeLike) -> jax.Array:
    """Returns the batch's clips, which are normalized already."""
    return batch["clips"].astype(dtype)


def sgd(stem_lr: float = 0.0) -> optim.Optimizer:
    """Returns SGD with two iterations of warm-up, and a tenth of the learning rates from iteration 3 and again from 4."""
    rates = {"stem": stem_lr, "backbone": RATES["backbone_lr"], "fc": RATES["fc_lr"]}
    schedule = optim.warmup_multistep(2, (3, 4), 0.1)
    return optim.sgd(rates, encoder_task.group_of, schedule, momentum=0.9, weight_decay=0.005)


def clip_loss(config: tsp.ModelConfig, **options: Any) -> classification.ClipLoss:
    """Returns the loss of the batches that `make_batch` draws, in float64."""
    defaults = {"labels": HEADS, "alphas": ALPHAS, "dtype": jnp.float64, "prepare": clips_of}
    return classification.ClipLoss(config, **{**defaults, **options})


def make_step(config: tsp.ModelConfig, optimizer: optim.Optimizer, **options: Any) -> Any:
    """Returns the step. `options` are those of `train_step.Options` and of `clip_loss`."""
    keys = ("mesh", "statistics", "accumulate", "average_decay")
    how = train_step.Options(**{key: options.pop(key) for key in keys if key in options})
    return train_step.make_step(clip_loss(config, **options), optimizer, how)


def train(
    config: tsp.ModelConfig,
    variables: functional.Variables,
    batches: list[Mapping[str, Any]],
    stem_lr: float = 0.0,
    **options: Any,
) -> tuple[train_step.TrainState, list[train_step.StepSums]]:
    """Returns the state after a step on each batch, and the numbers that the steps computed."""
    program, state = compiled(config, variables, batches[0], stem_lr, **options)
    seen = []
    for batch in batches:
        state, step_metrics = program(state, batch)
        seen.append(step_metrics)
    return state, seen


def compiled(
    config: tsp.ModelConfig, variables: functional.Variables, batch: Mapping[str, Any], stem_lr: float = 0.0, **options: Any
) -> tuple[Any, train_step.TrainState]:
    """Returns the step's program, and the state before the first step."""
    optimizer = sgd(stem_lr)
    step = make_step(config, optimizer, **options)
    state = train_step.init_state(jax.tree.map(jnp.asarray, variables), optimizer)
    if options.get("mesh") is not None:
        state = jax.device_put(state, sharding.replicated(options["mesh"]))
    return step.lower(state, batch).compile(compiler_options=QUICK), state


def results(state: train_step.TrainState, seen: list[train_step.StepSums]) -> dict[str, np.ndarray]:
    """Returns flat arrays of a run: the variables by dotted name, and each metric of all steps."""
    stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *seen)
    counts = {f"metrics.{name}": array for name, array in stacked.sums._asdict().items()}
    rest = {f"metrics.{name}": array for name, array in stacked._asdict().items() if name != "sums"}
    return {**{key: np.asarray(leaf) for key, leaf in trees.flatten(state.variables).items()}, **counts, **rest}


def save_inputs(
    path: Any, variables: functional.Variables, batches: list[dict[str, np.ndarray]], runs: list[dict[str, Any]]
) -> None:
    """Writes the file that `main` reads.

    `runs` holds options of `train`, and `cores`, the number of devices that count as one.
    """
    arrays = flax.traverse_util.flatten_dict({"variables": variables, "batches": dict(enumerate(batches))}, sep=None)
    np.savez(path, runs=json.dumps(runs), **{"/".join(map(str, key)): leaf for key, leaf in arrays.items()})


def main(inputs: str, output: str, *distributed: str) -> None:
    if distributed:
        coordinator, num_processes, process_id = distributed
        processes.start_processes(coordinator, int(num_processes), int(process_id))
    with np.load(inputs) as file:
        runs = json.loads(str(file["runs"]))
        arrays = flax.traverse_util.unflatten_dict({tuple(key.split("/")): file[key] for key in file.files if key != "runs"})
    backbones.BACKBONES.update(small_backbones())
    config, found = tsp.ModelConfig("train_r3d_18", (7, 2), True), {}
    count, process = jax.process_count(), jax.process_index()
    shares = [
        {key: rows.reshape(count, -1, *rows.shape[1:])[process] for key, rows in batch.items()}
        for batch in arrays["batches"].values()
    ]
    for index, options in enumerate(runs):
        mesh = sharding.make_mesh(cores=options.pop("cores", 1))
        batches = [sharding.make_global(share, mesh) for share in shares]
        outcome = results(*train(config, arrays["variables"], batches, mesh=mesh, **options))
        found |= {f"{index}/{key}": leaf for key, leaf in outcome.items()}
    np.savez(output, devices=jax.device_count(), processes=count, **found)


if __name__ == "__main__":
    with jax.enable_x64(True):
        main(*sys.argv[1:])
