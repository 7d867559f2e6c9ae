"""The task of training an encoder on clips: TSP (action and temporal region) and TAC (action alone).

Source: TSP (Alwassel et al. 2021), released training code.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from tsp_jax import checkpoints, config, groundtruth, input_pipeline
from tsp_jax.models import backbones, functional, tsp
from tsp_jax.system import progress, sharding
from tsp_jax.training import (
    classification,
    feed,
    interruption,
    optim,
    processes,
    run_log,
    sums,
    task,
    train_step,
    warm_start,
)

GROUPS = ("stem", "backbone", "fc")  # the groups of parameters that have a learning rate each


@dataclasses.dataclass(frozen=True)
class Model:
    """The network.

    Attributes:
      backbone: a key of `backbones.BACKBONES`.
      labels: what each head predicts: `action`, `temporal_region`, or both in that order.
      label_counts: the number of classes of each head.
    """

    backbone: str
    labels: tuple[str, ...]
    label_counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Data:
    """The clips.

    Attributes:
      folder: the folder of the records, as `python -m data_builders.build` prints it.
      train_split: the split to train on.
      valid_split: the split to validate on.
      gvf: the file of global video features; empty for a model without.
      batch_size: clips in a step's batch for each device.
      clips_per_segment: clips that an epoch draws from each segment.
      balanced: whether a batch has as many clips of each temporal region; the original's batches are not balanced.
    """

    folder: str
    train_split: str
    valid_split: str
    gvf: str = ""
    batch_size: int = 32
    clips_per_segment: int = 5
    balanced: bool = False


@dataclasses.dataclass(frozen=True)
class Optim:
    """SGD and its schedule; the defaults are the original's.

    Attributes:
      backbone_lr: the learning rate of layer1 to layer4.
      fc_lr: the learning rate of the heads.
      stem_lr: the learning rate of the stem; 0 freezes it.
      momentum: the share of the momentum buffer that a step keeps.
      weight_decay: the weight decay of every parameter.
      warmup_epochs: epochs of linear warm-up.
      milestones: epochs at which the learning rates are multiplied by `gamma`.
      gamma: the factor at each milestone.
      epochs: epochs of training.
      scale_lr_with_devices: whether the learning rates are multiplied by the number of devices.
    """

    backbone_lr: float
    fc_lr: float
    stem_lr: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 0.005
    warmup_epochs: int = 2
    milestones: tuple[int, ...] = (4, 6)
    gamma: float = 0.01
    epochs: int = 8
    scale_lr_with_devices: bool = True


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss; `alphas` holds the weight of each head's loss."""

    alphas: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a step is computed.

    Attributes:
      dtype: the precision of the activations; parameters and statistics are always float32.
      batch_norm: the rows over which BatchNorm takes its statistics; see `train_step.make_step`.
      accumulate: the number of parts that a device's clips are taken in, one after the other.
      remat: whether the backward pass computes activations again to save memory. On a CPU it saves nothing.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_norm: Literal["global", "per_device"] = "per_device"
    accumulate: int = 1
    remat: bool = False


@dataclasses.dataclass(frozen=True)
class Init:
    """What training starts from.

    Attributes:
      checkpoint: a released name, a `.pth` or `.safetensors` file, a checkpoint folder, an earlier run's workdir (its best
        weights), or `random`.
      heads: `new` draws the heads, `kept` takes the checkpoint's.
    """

    checkpoint: str
    heads: Literal["new", "kept"] = "new"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe, checked. Its sections are the dataclasses above; `seed` is the seed of every random draw."""

    model: Model
    data: Data
    optim: Optim
    loss: Loss
    compute: Compute = Compute()
    init: Init
    run: config.Run = dataclasses.field(default_factory=config.Run)
    seed: int = 0

    @property
    def model_config(self) -> tsp.ModelConfig:
        """The configuration that the network is built from."""
        return tsp.ModelConfig(self.model.backbone, self.model.label_counts, gvf=bool(self.data.gvf))

    @classmethod
    def mistakes(cls, values: Mapping[str, Any]) -> list[str]:
        """Returns a line for each value of the right type that makes no sense.

        Args:
          values: the values by `section.key`; those of a wrong type are missing.
        """
        check = config.Checks(values)
        check("seed", lambda value: value >= 0, "a whole number from 0 up")
        for key in ("data.batch_size", "data.clips_per_segment", "optim.epochs", "compute.accumulate"):
            check(key, lambda value: value > 0, "a number above 0")
        for key in ("backbone_lr", "fc_lr", "stem_lr", "weight_decay", "warmup_epochs"):
            check(f"optim.{key}", lambda value: value >= 0, "a number from 0 up")
        check("optim.momentum", lambda value: 0 <= value < 1, "a number from 0 up, below 1")
        check("optim.gamma", lambda value: 0 < value <= 1, "a number above 0, at most 1")
        check("optim.milestones", lambda value: list(value) == sorted(value), "epochs in order")
        for key in ("data.folder", "data.train_split", "data.valid_split", "init.checkpoint"):
            check(key, bool, "a name")
        either = (classification.LABELS, classification.LABELS[:1], classification.LABELS[1:])
        check("model.labels", lambda value: value in either, "action, temporal_region, or both in that order")
        if {"model.backbone", "model.label_counts"} <= values.keys():
            try:
                tsp.ModelConfig(values["model.backbone"], values["model.label_counts"])
            except ValueError as error:
                check.wrong.append(f"model: {error}")
        heads = len(values.get("model.labels", ()))
        for key in ("model.label_counts", "loss.alphas"):
            check(key, lambda value: not heads or len(value) == heads, f"one number for each of the {heads} labels")
        if values.keys() >= {"data.batch_size", "compute.accumulate"}:
            parts = max(values["compute.accumulate"], 1)
            check("data.batch_size", lambda value: value % parts == 0, f"a multiple of compute.accumulate, {parts}")
        return check.wrong


def recipe(**sections: Any) -> ml_collections.ConfigDict:
    """Returns a recipe page's content, made of the sections of `Recipe` as dicts, with the defaults filled in.

    Raises:
      TypeError: a section or key is misspelt or missing.
      ValueError: a value makes no sense.
    """
    return config.page("encoder", Recipe, sections)


@dataclasses.dataclass(frozen=True)
class Splits:
    """The opened splits of a recipe.

    Attributes:
      train: the split to train on.
      valid: the split to validate on.
      sizes: the number of segments of each, by role and name.
    """

    train: input_pipeline.Split
    valid: input_pipeline.Split
    sizes: dict[str, int]


def rows_per_device(recipe: Recipe) -> int:
    """Returns the number of clips that the cores of a device share at a time."""
    return recipe.data.batch_size // recipe.compute.accumulate


def open_data(recipe: Recipe) -> Splits:
    """Returns the opened records of both splits. Raises ValueError if the model's heads or inputs don't match them."""
    data = recipe.data
    names = {"train": data.train_split, "valid": data.valid_split}
    opened = {role: input_pipeline.open_split(data.folder, name, data.gvf or None) for role, name in names.items()}
    train = opened["train"]
    known = {"action": train.labels, "temporal_region": groundtruth.TEMPORAL_REGIONS}
    wrong = [
        f"model.label_counts: {count} classes of {name}; the data set has {len(known[name])} ({', '.join(known[name][:5])}…)"
        for name, count in zip(recipe.model.labels, recipe.model.label_counts, strict=True)
        if count != len(known[name])
    ]
    width = backbones.BACKBONES[recipe.model.backbone].width
    if train.gvf is not None and train.gvf.shape[1] != width:
        wrong.append(f"{data.gvf}: {train.gvf.shape[1]} numbers a video; the model reads {width}")
    if wrong:
        raise ValueError("\n  ".join([f"{train.folder} and the recipe do not fit:", *wrong]))
    sizes = {f"{role} {name}": len(opened[role].index.segment_row) for role, name in names.items()}
    return Splits(train, opened["valid"], sizes)


def group_of(params: optim.Params) -> optim.Params:
    """Returns the tree with the name of each parameter's group, one of GROUPS, in the parameter's place."""

    def name(path: tuple[Any, ...], _: Any) -> str:
        first, second = (getattr(key, "key", "") for key in (*path, None)[:2])
        if first != "features":
            return "fc"
        return "stem" if second == "stem" else "backbone"

    return jax.tree_util.tree_map_with_path(name, params)


def make_optimizer(chosen: Optim, steps_per_epoch: int, devices: int) -> optim.Optimizer:
    """Returns SGD with a learning rate for each of GROUPS, scaled by the number of devices if the recipe asks for it."""
    scale = devices if chosen.scale_lr_with_devices else 1
    rates = {group: getattr(chosen, f"{group}_lr") * scale for group in GROUPS}
    milestones = tuple(epoch * steps_per_epoch for epoch in chosen.milestones)
    schedule = optim.warmup_multistep(chosen.warmup_epochs * steps_per_epoch, milestones, chosen.gamma)
    return optim.sgd(rates, group_of, schedule, momentum=chosen.momentum, weight_decay=chosen.weight_decay)


def make(recipe: Recipe, data: Splits, mesh: Mesh, devices: int) -> "EncoderTask":
    """Returns the task; see `task.Kind.make`.

    Raises:
      ValueError: the batch of a run that began with `devices` devices can't be split evenly over those of the mesh.
    """
    batch_size, now = recipe.data.batch_size * devices, mesh.shape[sharding.DATA]
    if batch_size % (now * recipe.compute.accumulate):
        raise ValueError(
            f"the run began with {batch_size} clips a step on {devices} devices, which can't be split evenly over "
            f"{now} in {recipe.compute.accumulate} parts each; go on with a number of devices that divides them"
        )
    return EncoderTask(recipe, data, mesh, batch_size, devices)


class EncoderTask:
    """Trains an encoder by a recipe. It is a `task.Task`."""

    unit, best_metric = "clips", "mean_accuracy"

    def __init__(self, recipe: Recipe, data: Splits, mesh: Mesh, batch_size: int, devices: int):
        self._recipe, self._data, self._mesh, self.rows_per_step = recipe, data, mesh, batch_size
        self._labels, self._alphas = recipe.model.labels, recipe.loss.alphas
        self.epochs = recipe.optim.epochs
        self._readers = {"num_workers": recipe.run.reader_processes, "num_threads": recipe.run.reader_threads}
        self.untrained = "the recipe's heads are new" if recipe.init.heads == "new" else ""
        self.steps_per_epoch = input_pipeline.steps_per_epoch(data.train, batch_size, recipe.data.clips_per_segment)
        self._optimizer = make_optimizer(recipe.optim, self.steps_per_epoch, devices)
        compute = recipe.compute
        loss = classification.ClipLoss(recipe.model_config, self._labels, self._alphas, jnp.dtype(compute.dtype), compute.remat)
        options = train_step.Options(mesh, compute.batch_norm, compute.accumulate)
        self.step = train_step.make_step(loss, self._optimizer, options)
        self._evaluate = train_step.make_eval_step(loss.evaluate, mesh)

    def describe(self) -> list[str]:
        """Returns lines about the data, the steps and the learning rates."""
        data, opened = self._recipe.data, self._data
        used = (data.train_split, opened.train, "train"), (data.valid_split, opened.valid, "validate")
        counts = [f"{len(split.index.segment_row)} segments of {name} to {use} on" for name, split, use in used]
        rates = ", ".join(f"{group} {rate:g}" for group, rate in self._optimizer.base_rates.items())
        steps = f"{self.steps_per_epoch} an epoch, {self.steps_per_epoch * self.epochs} in all"
        return [
            f"data: {', '.join(counts)}; {len(self._data.train.labels)} actions",
            f"steps: {steps}, of {self.rows_per_step} clips each",
            f"learning rates: {rates}",
        ]

    def shapes(self) -> train_step.TrainState:
        """Returns the state as `jax.ShapeDtypeStruct`s."""
        return jax.eval_shape(lambda v: train_step.init_state(v, self._optimizer), functional.shapes(self._recipe.model_config))

    def start(self) -> tuple[train_step.TrainState, list[str]]:
        """Returns the state before the first step, and lines that say which weights were loaded; see `warm_start`."""
        model, init, seed = self._recipe.model_config, self._recipe.init, self._recipe.seed
        variables, lines = warm_start.variables(model, init.checkpoint, keep_heads=init.heads == "kept", seed=seed)
        return train_step.init_state(variables, self._optimizer), lines

    def batches(self, start_step: int) -> Iterator[task.HostBatch]:
        """Returns this process's share of the training batches from a step on."""
        data = self._recipe.data
        batches = input_pipeline.train_batches(
            self._data.train,
            **processes.rows(self.rows_per_step),
            **self._readers,
            seed=self._recipe.seed,
            clips_per_segment=data.clips_per_segment,
            balanced=data.balanced,
            start_step=start_step,
        )
        return host_batches(batches, self._data.train)

    def zero_sums(self) -> classification.Counts:
        """Returns the counts of no clip."""
        return classification.zero(len(self._labels))

    def summarize(self, counts: classification.Counts) -> dict[str, float]:
        """Returns losses and accuracies; see `classification.summarize`."""
        return classification.summarize(counts, self._labels, self._alphas)

    def learning_rates(self, done: int) -> dict[str, float]:
        """Returns the learning rate of each of GROUPS at an iteration."""
        return {group: float(rate) for group, rate in self._optimizer.learning_rates(done).items()}

    def evaluate(self, state: train_step.TrainState, stop: interruption.Interruption) -> dict[str, float] | None:
        """Returns the metrics of `classification.summarize` over all validation clips, which are always the same.

        Returns None if the run was asked to stop first.

        Raises:
          UserError: a record is damaged.
        """
        split, total = self._data.valid, self.zero_sums()
        batches = input_pipeline.valid_batches(split, **processes.rows(self.rows_per_step), **self._readers)
        count, silent = input_pipeline.VALID_CLIPS * len(split.index.segment_row), not processes.is_first()
        with (
            contextlib.closing(feed.Feed(host_batches(batches, split), self._mesh)) as clips,
            progress.Progress("evaluate", count, "clips", silent=silent) as shown,
        ):
            while clips.fetch():
                counts = self._evaluate(state.variables, clips.take()[0])
                clips.fetch()  # the next batch, while this one is computed
                total = sums.add(total, counts)
                shown.to(min(shown.done + self.rows_per_step, count))
                if stop.due():
                    return None
        return self.summarize(total)

    def progress(self, line: run_log.Line) -> str:
        """Returns the heads' accuracies of a training line."""
        return classification.accuracies(line, self._labels)

    def result(self, line: run_log.Line) -> str:
        """Returns an evaluation in the format of the original's results.txt."""
        return classification.result(line, self._labels)

    def export(self, state: train_step.TrainState, run_name: str, line: run_log.Line) -> checkpoints.Checkpoint:
        """Returns the weights as a checkpoint that extraction and `convert.orbax_to_torch` take."""
        note = f"trained from {self._recipe.init.checkpoint} for {line['step']} steps; {self.result(line)}"
        return checkpoints.make(self._recipe.model_config, state.variables, checkpoints.Origin(run_name, note=note))


def host_batches(batches: Iterator[input_pipeline.Batch], split: input_pipeline.Split) -> Iterator[task.HostBatch]:
    """Yields the batches without the arrays that name their clips; each batch has a function that describes them instead."""
    try:
        for batch in batches:
            arrays = {key: rows for key, rows in batch.items() if key not in ("segment", "place")}
            yield task.HostBatch(arrays, functools.partial(_describe, split, batch["segment"], batch["place"]))
    finally:
        if close := getattr(batches, "close", None):
            close()


def _describe(split: input_pipeline.Split, segments: np.ndarray, places: np.ndarray) -> list[str]:
    return [split.describe(int(segment), int(place)) for segment, place in zip(segments, places, strict=True)]
