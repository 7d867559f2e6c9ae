"""Training: `python -m tsp_jax.train --config configs/anet_tsp.py --workdir DIR`; the same command again goes on.

A page says what is learned (`config`), records are read as batches (`input_pipeline`), a step updates the weights on all
devices (`train_step`); a run's state is saved in the background (`run_state`), and the best weights as a checkpoint that
`tsp_jax.extract` takes (`checkpoints`).
"""

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from tsp_jax import checkpoints, config, features, groundtruth, input_pipeline, records, weights
from tsp_jax.models import backbones, functional
from tsp_jax.system import cli, compilation, cpu, files, malloc, sharding, trees
from tsp_jax.training import interruption, metrics, optim, processes, run_checkpoints, run_log, train_step

# ---------------------------------------------------------------------------------------------------------------- command


class RunError(Exception):
    """A run can't go on, which all its processes find alike; the message says why, and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0 all well, 1 the run failed, 2 wrong use, 130 interrupted."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    cli.show_any_name()
    malloc.keep_freed()
    compilation.keep_programs()
    stop = interruption.Interruption()
    try:
        with stop:
            recipe = config.read(config.load(options.config, options.changes))
            processes.start_processes(options.coordinator, options.num_processes, options.process_id)
            cores = cpu.split_cpu(recipe.data.batch_size // recipe.compute.accumulate)
            finished = run(recipe, Path(options.workdir), stop, cores=cores, eval_only=options.eval_only)
        status = 0 if finished else 130
    except KeyboardInterrupt:
        print("interrupted; the same command again goes on from the last checkpoint", file=sys.stderr)
        status = _leave(130)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except jax.errors.JaxRuntimeError as error:
        print(f"error: {_explain(error)}", file=sys.stderr)
        status = _leave(1)
    except (OSError, ValueError, RuntimeError, ImportError, features.FeatureFileError, records.RecordsError) as error:
        kept = "; the last checkpoint is kept: the same command again goes on from there" if stop.patient else ""
        print(f"error: {error}{kept}", file=sys.stderr)
        status = _leave(1 if stop.patient else 2)
    return status


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tsp_jax.train",
        description="Trains an encoder by a recipe. The same command again goes on from the last checkpoint in the workdir.",
        epilog="example: python -m tsp_jax.train --config configs/anet_tsp.py:backbone=r2plus1d_18,gvf=none "
        "--workdir runs/anet_tsp --config.optim.epochs=4 --config.data.folder=records/activitynet/jpeg/1.0.0",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", required=True, metavar="PAGE", help="a recipe, configs/NAME.py, with arguments of the page after a colon")
    add(
        "--config.SECTION.KEY", dest="unused", metavar="VALUE", help="another value in the recipe; several are parted by commas"
    )
    add("--workdir", required=True, metavar="DIR", help="where checkpoints and metrics go, and a run goes on from")
    add("--eval_only", action="store_true", help="evaluate the workdir's last checkpoint, or the recipe's start, and stop")
    several = parser.add_argument_group(
        "several processes", "On TPU pods and under SLURM they find each other; elsewhere each is started with"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    several.add_argument("--num_processes", type=cli.positive_int, help="of the run")
    several.add_argument("--process_id", type=cli.non_negative_int, help="of this one, from 0")
    options, rest = parser.parse_known_args(arguments)
    options.changes, rest = [], list(rest)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--config."):
            parser.error(f"unrecognized arguments: {flag}")
        if "=" not in flag:
            if not rest:
                parser.error(f"{flag}: expected a value")
            flag = f"{flag}={rest.pop(0)}"
        options.changes.append(flag.removeprefix("--config."))
    return options


def _leave(status: int) -> int:
    """The status; of several processes this one ends here, since an orderly exit waits for the others, and they for it."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _explain(error: Exception) -> str:
    reason = str(error).strip().splitlines()[0][:300]
    if "RESOURCE_EXHAUSTED" in reason:
        return f"the devices' memory does not suffice ({reason}); raise compute.accumulate, or set compute.remat=true"
    if jax.process_count() > 1:
        return (
            f"process {jax.process_index()} can't go on: another process of the run has ended, or can't be reached ({reason}); "
            "the last checkpoint is kept: start all processes again to go on"
        )
    return f"{reason}; the last checkpoint is kept: the same command again goes on from there"


# ------------------------------------------------------------------------------------------------------------------ story


def run(
    recipe: config.Recipe, workdir: Path, stop: interruption.Interruption, *, cores: int = 1, eval_only: bool = False
) -> bool:
    """Trains to the last epoch's end, or evaluates; whether it came so far before someone asked it to stop.

    Args:
      recipe: what is learned.
      workdir: of the run.
      stop: who asks.
      cores: that share the work of a device: what `sharding.split_cpu` returned.
      eval_only: evaluate and stop.

    Raises:
      ValueError, OSError, RuntimeError, ImportError, FeatureFileError, RecordsError: recipe, data, weights and workdir don't
        fit, or can't be read.
      RunError: a number was not finite.
    """
    with contextlib.ExitStack() as stack:
        # --------------------------------------------------------------------------------------------------- devices
        mesh, lead = sharding.make_mesh(cores=cores), jax.process_index() == 0
        devices = mesh.shape[sharding.DATA]
        kind = mesh.devices.flat[0].device_kind + (f", {cores} cores" if cores > 1 else "")
        say(f"devices: {devices} ({kind}); processes: {jax.process_count()}")

        # ------------------------------------------------------------------------------------------------------ data
        train_split, valid_split = (
            input_pipeline.open_split(recipe.data.folder, name, recipe.data.gvf or None)
            for name in (recipe.data.train_split, recipe.data.valid_split)
        )
        check_data(recipe, train_split)
        if not eval_only:
            stack.enter_context(locked(workdir))
        beginning = begin(workdir, recipe, devices, train_split, valid_split, write=not eval_only)
        batch_size = recipe.data.batch_size * beginning.devices
        check_batch(recipe, batch_size, beginning.devices, devices)
        per_epoch = input_pipeline.steps_per_epoch(train_split, batch_size, recipe.data.clips_per_segment)
        total_steps = per_epoch * recipe.optim.epochs

        # ----------------------------------------------------------------------------------------------------- model
        heads, alphas, model_config = recipe.model.labels, recipe.loss.alphas, recipe.model_config
        optimizer = make_optimizer(recipe, per_epoch, beginning.devices)
        computed: dict[str, Any] = {"heads": heads, "dtype": jnp.dtype(recipe.compute.dtype), "mesh": mesh}
        step_program = train_step.make_train_step(
            model_config,
            optimizer,
            alphas=alphas,
            batch_norm=recipe.compute.batch_norm,
            accumulate=recipe.compute.accumulate,
            remat=recipe.compute.remat,
            **computed,
        )
        evaluator = Evaluator(recipe, valid_split, batch_size, train_step.make_eval_step(model_config, **computed), mesh, stop)
        say(describe(recipe, train_split, valid_split, batch_size, per_epoch, optimizer))

        # --------------------------------------------------------------------------------------------------- weights
        shapes = jax.eval_shape(lambda v: train_step.init_state(v, optimizer), functional.shapes(model_config))
        everywhere = sharding.replicated(mesh)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), shapes)
        last, best = (keeper(stack, workdir / "checkpoints" / name, read_only=eval_only) for name in ("last", "best"))
        tally = Tally.of_none(len(heads))
        if last.latest() is not None:
            state, page = last.restore(shapes)
            tally = Tally.from_page(page["tally"])
            say(f"weights: those after step {int(state.step)} of {total_steps}, from {workdir / 'checkpoints' / 'last'}")
        elif eval_only and recipe.init.heads == "new":
            raise ValueError(f"{workdir} has no checkpoint, and the recipe's heads are new: nothing to evaluate")
        else:
            variables, lines = starting_variables(recipe)
            say("\n".join(lines))
            state = jax.device_put(train_step.init_state(variables, optimizer), everywhere)
            del variables
        step = int(state.step)

        # ------------------------------------------------------------------------------------------- evaluation alone
        if eval_only:
            stop.be_patient()
            values = evaluator.evaluate(state.variables)
            if values is None:
                return False
            valid = run_log.line(values, split="valid", step=step, epoch=max(step - 1, 0) // per_epoch)
            say(f"{run_log.result(valid, heads)}\n{json.dumps(valid)}")
            return True

        # ------------------------------------------------------------------------------------------------------ loop
        batches = input_pipeline.train_batches(
            train_split,
            **rows_of_process(batch_size),
            **readers(recipe),
            seed=recipe.seed,
            clips_per_segment=recipe.data.clips_per_segment,
            balanced=recipe.data.balanced,
            start_step=step,
        )
        clips = stack.enter_context(contextlib.closing(Prefetch(batches, mesh)))
        log = None
        if lead:
            log = stack.enter_context(contextlib.closing(run_log.Log(workdir, heads=heads, step=step, total_steps=total_steps)))
        tell = say if log is None else log.say
        best_accuracy = None if best.latest() is None else float(best.page()["mean_accuracy"])

        def save(step: int, state: train_step.TrainState) -> None:
            if log is not None:
                log.sync()
            last.save(step, state, {"step": step, "tally": tally.to_page()})

        def end_epoch(step: int, state: train_step.TrainState) -> bool:
            """Evaluates and keeps the weights, unless asked to stop. The log's line comes last: where it is, all is done."""
            nonlocal best_accuracy
            values = evaluator.evaluate(state.variables)
            malloc.give_back()
            if values is None:
                return False
            last.wait()
            valid = run_log.line(values, split="valid", step=step, epoch=step // per_epoch - 1)
            accuracy = values["mean_accuracy"] if np.isfinite(values["mean_accuracy"]) else 0.0
            is_best = best_accuracy is None or accuracy > best_accuracy or best.latest() == step
            if is_best:
                best_accuracy = accuracy
                best.save(step, state, {"step": step, "mean_accuracy": accuracy})
                best.wait()
            if log is not None:
                export(workdir, recipe, state.variables, valid, is_best)
                log.valid(valid)
                log.say(run_log.result(valid, heads) + (" (the best so far)" if is_best else ""))
            return True

        def stopped(step: int) -> bool:
            tell(f"stopped after step {step} of {total_steps}, and saved; the same command again goes on from there")
            return False

        stop.be_patient()
        unfinished = step > 0 and step % per_epoch == 0 and not (log is not None and log.evaluated(step))
        if agreed(unfinished) and not end_epoch(step, state):
            return stopped(step)
        clock, unread, first = Clock(step), [], step
        while step < total_steps:
            batch, names = clips.take()
            state, seen = step_program(state, batch)
            step += 1
            unread.append(Seen(step, seen, names))
            clips.fetch()  # the next batch, while the step runs
            jax.block_until_ready(seen.loss)
            if step - first <= malloc.SETTLING_STEPS:
                malloc.give_back()
            if log is not None:
                log.advance(step)

            epoch_ends, stopping = step % per_epoch == 0, stop.due()
            logging = epoch_ends or step % recipe.run.log_every_steps == 0
            saving = epoch_ends or stopping or is_multiple(step, recipe.run.checkpoint_every_steps)
            if logging or saving:
                tally, unread = settle(tally, unread, train_split), []
            if logging:
                speed = clock.lap(step, batch_size, clips.take_waited_sec(), total_steps)
                if log is not None:
                    rates = {f"lr_{group}": float(rate) for group, rate in optimizer.learning_rates(step - 1).items()}
                    values = {**tally.summary(heads, alphas), **rates}
                    log.train(run_log.line(values, split="train", step=step, epoch=(step - 1) // per_epoch), **speed)
                tally = Tally.of_none(len(heads))
            if saving:
                save(step, state)
            if stopping or (epoch_ends and not end_epoch(step, state)):
                return stopped(step)
            if epoch_ends:
                clips.take_waited_sec()
                clock = Clock(step)
        tell(f"done: {total_steps} steps; the best weights are in {workdir / 'best'}, the last in {workdir / 'last'}")
        return True


# ---------------------------------------------------------------------------------------------------------- before the run


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What a run began with, as `config.json` in its workdir tells.

    Attributes:
      config: the recipe, as nested dicts.
      devices: that `batch_size` and learning rates count; a run that goes on with others keeps its batches and rates.
      segments: of each split.
    """

    config: Mapping[str, Any]
    devices: int
    segments: Mapping[str, int]


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds a workdir against other runs. Of several processes one does.

    Raises:
      ValueError: another run holds it.
    """
    if jax.process_index() > 0:
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{workdir}: another run is training there; wait for it, or name another --workdir") from error
        yield


def begin(
    workdir: Path,
    recipe: config.Recipe,
    devices: int,
    train_split: input_pipeline.Split,
    valid_split: input_pipeline.Split,
    *,
    write: bool,
) -> Beginning:
    """What the run in a workdir began with; a new one begins with this.

    Raises:
      ValueError: it began with another recipe or other data; the message shows every difference.
    """
    path = workdir / "config.json"
    counts = {
        f"{role} {name}": len(split.index.segment_row)
        for role, name, split in (
            ("train", recipe.data.train_split, train_split),
            ("valid", recipe.data.valid_split, valid_split),
        )
    }
    now = Beginning(dataclasses.asdict(recipe), devices, counts)
    if path.is_file():
        try:
            found = Beginning(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: not what a run writes there ({error}); name another --workdir") from error
        lines = config.differences(found.config, now.config)
        lines += [
            f"segments of {name}: {found.segments.get(name)} there, {counts.get(name)} here"
            for name in sorted(found.segments.keys() | counts.keys())
            if found.segments.get(name) != counts.get(name)
        ]
        if lines:
            message = f"{path} is of a run with another config; give that one, or name another --workdir:"
            raise ValueError("\n  ".join([message, *lines]))
        return found
    sync("no config yet")
    if write and jax.process_index() == 0:
        with files.replacing(path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(now), indent=2) + "\n", encoding="utf-8")
    return now


def check_data(recipe: config.Recipe, split: input_pipeline.Split) -> None:
    """Nothing, when the model's heads and inputs are those of the data.

    Raises:
      ValueError: they are not.
    """
    known = {"action": split.labels, "temporal_region": groundtruth.TEMPORAL_REGIONS}
    wrong = [
        f"model.label_counts: {count} classes of {name}; the data set has {len(known[name])} ({', '.join(known[name][:5])}…)"
        for name, count in zip(recipe.model.labels, recipe.model.label_counts, strict=True)
        if count != len(known[name])
    ]
    width = backbones.BACKBONES[recipe.model.backbone].width
    if split.gvf is not None and split.gvf.shape[1] != width:
        wrong.append(f"{recipe.data.gvf}: {split.gvf.shape[1]} numbers a video; the model reads {width}")
    if wrong:
        raise ValueError("\n  ".join([f"{split.folder} and the recipe do not fit:", *wrong]))


def check_batch(recipe: config.Recipe, batch_size: int, devices_then: int, devices: int) -> None:
    """Nothing, when a run that began on so many devices can go on with these.

    Raises:
      ValueError: its batch can't be split evenly.
    """
    if batch_size % (devices * recipe.compute.accumulate):
        raise ValueError(
            f"the run began with {batch_size} clips a step on {devices_then} devices, which can't be split evenly over "
            f"{devices} in {recipe.compute.accumulate} parts each; go on with a number of devices that divides them"
        )


def make_optimizer(recipe: config.Recipe, per_epoch: int, devices: int) -> optim.Optimizer:
    """The recipe's optimizer, its schedule in iterations and its learning rates those of all devices."""
    scale, chosen = devices if recipe.optim.scale_lr_with_devices else 1, recipe.optim
    return optim.sgd(
        backbone_lr=chosen.backbone_lr * scale,
        fc_lr=chosen.fc_lr * scale,
        stem_lr=chosen.stem_lr * scale,
        momentum=chosen.momentum,
        weight_decay=chosen.weight_decay,
        warmup_steps=chosen.warmup_epochs * per_epoch,
        milestones=tuple(epoch * per_epoch for epoch in chosen.milestones),
        gamma=chosen.gamma,
    )


def starting_variables(recipe: config.Recipe) -> tuple[functional.Variables, list[str]]:
    """The weights that training starts from, and lines that say which were loaded and which were not.

    Raises:
      OSError, ValueError, RuntimeError, ImportError: there is no such checkpoint, or its backbone, or heads to be kept, are
        not the model's; every key that differs is named.
    """
    wanted, spec = recipe.model_config, recipe.init.checkpoint
    if spec == "random":
        return functional.init(wanted, recipe.seed), [f"weights: random, drawn by seed {recipe.seed}"]
    checkpoint = weights.open_any(spec)
    if checkpoint.config.backbone != wanted.backbone:
        raise ValueError(f"{spec}: its backbone is {checkpoint.config.backbone}; the recipe's is {wanted.backbone}")
    kept = wanted.head_names if recipe.init.heads == "kept" else ()
    found = {"features", *checkpoint.config.head_names} if kept else {"features"}

    def taken(variables: functional.Variables, names: Iterable[str]) -> functional.Variables:
        return {kind: {name: tree[name] for name in names if name in tree} for kind, tree in variables.items()}

    parts, expected = taken(checkpoint.variables, found), taken(functional.shapes(wanted), {"features", *kept})
    trees.check_keys(trees.shapes(expected), trees.shapes(parts), spec)
    fresh = functional.init(wanted, recipe.seed)
    variables = {kind: {**tree, **parts[kind]} for kind, tree in fresh.items()}
    origin = checkpoint.origin
    left = [name for name in checkpoint.config.head_names if name not in found]
    lines = [
        f"weights: {wanted.backbone} from {spec} ({origin.source}; weights SHA-256 {checkpoint.weights_sha256[:8]}): "
        f"{len(trees.flatten(parts))} arrays loaded",
        f"heads: {', '.join(kept)} kept" if kept else f"heads: {', '.join(wanted.head_names)} new, drawn by seed {recipe.seed}",
        *([f"not loaded: {', '.join(left)}"] if left else []),
        *([f"note: {origin.note}"] if origin.note else []),
    ]
    return variables, lines


def describe(
    recipe: config.Recipe,
    train_split: input_pipeline.Split,
    valid_split: input_pipeline.Split,
    batch_size: int,
    per_epoch: int,
    optimizer: optim.Optimizer,
) -> str:
    """What is to be done, in lines."""
    sections = {name: value for name, value in dataclasses.asdict(recipe).items() if isinstance(value, dict)}
    shown = [f"  {name}: " + ", ".join(f"{key}={value!r}" for key, value in keys.items()) for name, keys in sections.items()]
    rates = ", ".join(f"{group} {rate:g}" for group, rate in optimizer.base_rates.items())
    parts = ((recipe.data.train_split, train_split, "train"), (recipe.data.valid_split, valid_split, "validate"))
    counts = [f"{len(split.index.segment_row)} segments of {name} to {use} on" for name, split, use in parts]
    lines = [
        "config:",
        *shown,
        f"  seed: {recipe.seed}",
        f"data: {', '.join(counts)}; {len(train_split.labels)} actions",
        f"steps: {per_epoch} an epoch, {per_epoch * recipe.optim.epochs} in all, of {batch_size} clips each",
        f"learning rates: {rates}",
    ]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------- during the run


@dataclasses.dataclass(frozen=True)
class Names:
    """Which clips stand in this process's rows of a batch."""

    segments: np.ndarray
    places: np.ndarray


class Seen(NamedTuple):
    """What a step saw, not yet fetched from the devices, and this process's rows of its batch."""

    step: int
    metrics: train_step.StepMetrics
    names: Names


@dataclasses.dataclass(frozen=True)
class Tally:
    """Sums over the steps since the last line of the log; a checkpoint has them too, so that no line is lost.

    Attributes:
      steps: how many.
      loss: of each step, summed.
      grad_norm: of each step, summed.
      counts: of each head.
    """

    steps: int
    loss: float
    grad_norm: float
    counts: metrics.Counts

    @classmethod
    def of_none(cls, num_heads: int) -> "Tally":
        """Before any step."""
        return cls(0, 0.0, 0.0, metrics.Counts(np.zeros(num_heads), np.zeros(num_heads, int), np.zeros(num_heads, int)))

    @classmethod
    def from_page(cls, page: Mapping[str, Any]) -> "Tally":
        """What `to_page` was of, to the bit."""
        counts = metrics.to_host(metrics.Counts(*(np.asarray(values) for values in page["counts"])))
        return cls(page["steps"], page["loss"], page["grad_norm"], counts)

    def to_page(self) -> dict[str, Any]:
        """As JSON's types."""
        return {**vars(self), "counts": [np.asarray(values).tolist() for values in self.counts]}

    def add(self, seen: train_step.StepMetrics) -> "Tally":
        """With another step."""
        counts = metrics.add(self.counts, metrics.to_host(seen.counts))
        return Tally(self.steps + 1, self.loss + float(seen.loss), self.grad_norm + float(seen.grad_norm), counts)

    def summary(self, heads: Sequence[str], alphas: Sequence[float]) -> dict[str, float]:
        """Means: `metrics.summarize`'s, but `loss` is that which the steps minimized; and `grad_norm`."""
        means = {"loss": self.loss / self.steps, "grad_norm": self.grad_norm / self.steps}
        return {**metrics.summarize(self.counts, heads, alphas), **means}


def settle(tally: Tally, unread: Sequence[Seen], split: input_pipeline.Split) -> Tally:
    """The tally with these steps, fetched from the devices.

    Raises:
      RunError: a step's loss or gradient is not finite; its clips are named.
    """
    for seen, values in zip(unread, jax.device_get([seen.metrics for seen in unread]), strict=True):
        if not values.finite:
            clips = [split.describe(int(s), int(p)) for s, p in zip(seen.names.segments, seen.names.places, strict=True)]
            raise RunError(
                f"step {seen.step}: loss {float(values.loss)}, gradient norm {float(values.grad_norm)}; the last checkpoint is "
                f"kept. Lower the learning rates, or look at the step's clips (process {jax.process_index()}):"
                + "".join(f"\n  {clip}" for clip in clips)
            )
        tally = tally.add(values)
    return tally


class Prefetch:
    """Batches on the mesh, one ahead of the one in use."""

    def __init__(self, batches: Iterator[input_pipeline.Batch], mesh: Mesh):
        self._batches, self._mesh = batches, mesh
        self._next: tuple[train_step.Batch, Names] | None = None
        self._waited_sec = 0.0

    def fetch(self) -> bool:
        """Reads the next batch and sends it to the devices, unless that is done; whether there is one.

        Raises:
          RecordsError: a record is damaged.
        """
        if self._next is not None:
            return True
        began = time.perf_counter()
        batch = next(self._batches, None)
        self._waited_sec += time.perf_counter() - began
        if batch is None:
            return False
        names = Names(batch["segment"], batch["place"])
        rows = {key: values for key, values in batch.items() if key not in ("segment", "place")}
        self._next = sharding.make_global(rows, self._mesh), names
        return True

    def take(self) -> tuple[train_step.Batch, Names]:
        """The next batch, and its clips' names.

        Raises:
          RecordsError: a record is damaged.
          IndexError: there is none.
        """
        self.fetch()
        if self._next is None:
            raise IndexError("no batch is left")
        taken, self._next = self._next, None
        return taken

    def take_waited_sec(self) -> float:
        """Seconds of waiting for batches to be read since this was asked for last."""
        waited, self._waited_sec = self._waited_sec, 0.0
        return waited

    def close(self) -> None:
        """Ends what reads ahead."""
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Goes through the validation clips; their order and batches are always the same."""

    recipe: config.Recipe
    split: input_pipeline.Split
    batch_size: int
    program: train_step.EvalStep
    mesh: Mesh
    stop: interruption.Interruption

    def evaluate(self, variables: functional.Variables) -> dict[str, float] | None:
        """What `metrics.summarize` tells of all clips; None when someone asked to stop.

        Raises:
          RecordsError: a record is damaged.
        """
        batches = input_pipeline.valid_batches(self.split, **rows_of_process(self.batch_size), **readers(self.recipe))
        heads, alphas = self.recipe.model.labels, self.recipe.loss.alphas
        total = metrics.Counts(np.zeros(len(heads)), np.zeros(len(heads), int), np.zeros(len(heads), int))
        with contextlib.closing(Prefetch(batches, self.mesh)) as clips:
            while clips.fetch():
                counts = self.program(variables, clips.take()[0])
                clips.fetch()  # the next batch, while this one is computed
                total = metrics.add(total, metrics.to_host(counts))
                if self.stop.due():
                    return None
        return metrics.summarize(total, heads, alphas)


@dataclasses.dataclass
class Clock:
    """The speed of a run, from one line of its log to the next."""

    step: int
    since: float = dataclasses.field(default_factory=time.perf_counter)

    def lap(self, step: int, batch_size: int, waited_sec: float, total_steps: int) -> dict[str, float]:
        """The arguments of `Log.train` that tell the speed since the lap before."""
        now = time.perf_counter()
        steps, seconds = max(step - self.step, 1), max(now - self.since, 1e-9)
        self.step, self.since = step, now
        return {
            "clips_per_sec": steps * batch_size / seconds,
            "wait_share": min(waited_sec / seconds, 1.0),
            "seconds_left": (total_steps - step) * seconds / steps,
        }


def export(workdir: Path, recipe: config.Recipe, variables: functional.Variables, valid: run_log.Line, is_best: bool) -> None:
    """Writes the weights as a checkpoint for `tsp_jax.extract` and `convert.orbax_to_torch`: `last`, and `best` where they are.

    Raises:
      OSError: it can't be written.
    """
    note = f"trained from {recipe.init.checkpoint} for {valid['step']} steps; {run_log.result(valid, recipe.model.labels)}"
    origin = checkpoints.Origin(workdir.absolute().name, note=note)
    checkpoint = checkpoints.make(recipe.model_config, variables, origin)
    for name in ("last", "best") if is_best else ("last",):
        checkpoints.save(workdir / name, checkpoint, overwrite=True)


def keeper(stack: contextlib.ExitStack, folder: Path, *, read_only: bool) -> run_checkpoints.Keeper:
    """A keeper that is closed when the stack is, so that what is being saved is there."""
    made = run_checkpoints.Keeper(folder, read_only=read_only)

    def close(kind: type[BaseException] | None, *_: object) -> None:
        # After an error of one process alone the others do not come to meet it.
        if kind is None or issubclass(kind, RunError) or jax.process_count() == 1:
            made.close()

    stack.push(close)
    return made


def rows_of_process(batch_size: int) -> dict[str, int]:
    """Which rows of a batch this process reads, for `input_pipeline`."""
    return {
        "global_batch_size": batch_size,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }


def readers(recipe: config.Recipe) -> dict[str, int]:
    """How records are read ahead, for `input_pipeline`."""
    return {"num_workers": recipe.run.reader_processes, "num_threads": recipe.run.reader_threads}


def say(text: str) -> None:
    """Prints; of several processes the first one does."""
    if jax.process_index() == 0:
        print(text, flush=True)


def sync(name: str) -> None:
    """Waits until all processes are here."""
    multihost_utils.sync_global_devices(name)


def agreed(answer: bool) -> bool:
    """The first process's answer."""
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(answer)))


def is_multiple(step: int, every: int) -> bool:
    """Whether a step is one of every so many; of every 0, none is."""
    return every > 0 and step % every == 0


if __name__ == "__main__":
    sys.exit(main())
