"""One step of training and one of evaluation: pure, jitted, over one device or a mesh of many."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from tsp_jax import transforms
from tsp_jax.models import functional, tsp
from tsp_jax.system import compilation, sharding
from tsp_jax.training import losses, metrics, optim

Batch = dict[str, Array]
Prepare = Callable[[Batch, jnp.dtype], Float[Array, "b t h w 3"]]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["step", "variables", "opt_state"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes: the iteration to come (int32), the model's variables, the optimizer's buffers."""

    step: Array
    variables: functional.Variables
    opt_state: Any


class StepMetrics(NamedTuple):
    """What a step saw of its batch, before its update.

    Attributes:
      counts: of each head, over the whole batch.
      loss: what was minimized; with per-device statistics the mean of the devices' losses.
      grad_norm: L2 norm of the gradient of the trainable parameters, weight decay not in it.
      finite: loss and gradient norm are numbers. Where not, the new state is of no use.
    """

    counts: metrics.Counts
    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    finite: Bool[Array, ""]


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]
EvalStep = Callable[[functional.Variables, Batch], metrics.Counts]


def init_state(variables: functional.Variables, optimizer: optim.Optimizer) -> TrainState:
    """The state before the first step; it holds these variables, which that step then gives away."""
    return TrainState(jnp.zeros((), jnp.int32), variables, optimizer.init(variables["params"]))


def augmented_clips(batch: Batch, dtype: jnp.dtype) -> Float[Array, "b t h w 3"]:
    """Normalized clips of a batch's `video`, `crop` and `flip`."""
    return transforms.augment(batch["video"], batch["crop"], batch["flip"], dtype)


def make_train_step(
    model_config: tsp.ModelConfig,
    optimizer: optim.Optimizer,
    *,
    heads: Sequence[str],
    alphas: Sequence[float],
    dtype: jnp.dtype = jnp.float32,
    batch_norm: Literal["global", "per_device"] = "global",
    mesh: Mesh | None = None,
    accumulate: int = 1,
    remat: bool = False,
    prepare: Prepare = augmented_clips,
) -> TrainStep:
    """The jitted step `(state, batch) -> (state, StepMetrics)`; the state passed in is donated.

    A batch has `video` uint8[b, t, 128, 171, 3], `crop` int32[b, 2], `flip` bool[b], the labels of each head, int32[b] with
    -1 for a missing one, and `gvf` float32[b, 512] where the model reads it.

    The loss is the sum over heads of alpha times the mean cross-entropy over the rows that have that head's label. The frozen
    stem is differentiated nowhere, but its running statistics move with the others.

    Batch norm:
      global: statistics and losses are those of the whole batch, however many devices share it (the original's --sync-bn,
        PyTorch's SyncBatchNorm).
      per_device: each device normalizes and takes its losses' means over its own rows, and the gradients are averaged over
        the devices: PyTorch's DistributedDataParallel, the original's default. That hands rank 0's buffers to all before
        each forward pass, so that the running statistics are those which the first device's rows make. The cores of a CPU
        that is split are one device.

    Accumulation goes through each device's rows in `accumulate` equal parts, one after the other, and adds their gradients
    up. Losses and gradients count each row as one pass over the whole batch does. BatchNorm does not: each part is
    normalized with its own statistics, and the running ones move once a part.

    Args:
      model_config: of the state's variables.
      optimizer: from `optim`.
      heads: the batch's label of each of the model's heads, such as `("action", "temporal_region")`.
      alphas: weight of each head's loss.
      dtype: of the activations. Pixels are normalized in float32 from any narrower one.
      batch_norm: whose statistics normalize.
      mesh: from `sharding.make_mesh`; the state is replicated over it and the batch split. None is one device.
      accumulate: parts that a device's rows are taken in.
      remat: the backward pass computes activations within blocks again, to save memory. The same numbers but for rounding.
        On a CPU nothing is saved: the compiler merges what is computed twice.
      prepare: batch to normalized clips of a dtype; it is called for each part of the batch.

    Raises:
      ValueError: heads, alphas and the model disagree, or an option is none of those above; when the step is traced: the
        rows can't be split evenly.
    """
    _check_heads(model_config, heads, alphas)
    if batch_norm not in ("global", "per_device"):
        raise ValueError(f"batch_norm is 'global' or 'per_device'; got {batch_norm!r}")
    if accumulate < 1:
        raise ValueError(f"accumulate is at least 1; got {accumulate}")
    every = () if mesh is None else tuple(name for name in mesh.axis_names if mesh.shape[name] > 1)
    together = tuple(name for name in every if batch_norm == "global" or name == sharding.CORE)
    apart = tuple(name for name in every if name not in together)

    def loss_of_part(
        trainable: optim.Params, frozen: optim.Params, batch_stats: Any, part: Batch, labelled: Sequence[Array]
    ) -> tuple[Array, tuple[Any, metrics.Counts]]:
        variables = {"params": optim.merge(trainable, frozen), "batch_stats": batch_stats}
        clips = prepare(part, _wide(dtype))
        _, logits, batch_stats = tsp.train(
            model_config, variables, clips, part.get("gvf"), dtype=dtype, remat=remat, axes=together
        )
        labels = [part[name] for name in heads]
        sums = [losses.cross_entropy_sum(x, y) for x, y in zip(logits, labels, strict=True)]
        loss = losses.weighted_sum([losses.mean(total, n) for total, n in zip(sums, labelled, strict=True)], alphas)
        return loss, (batch_stats, metrics.count(sums, logits, labels))

    def gradient(variables: functional.Variables, batch: Batch) -> tuple[optim.Params, Any, metrics.Counts, Float[Array, ""]]:
        """Of a device's rows: with those of its fellows, which `together` names, it gives the gradient of all their rows."""
        trainable, frozen = optimizer.split(variables["params"])
        # All rows' counts divide each part's sums, so that parts of unequal labels weigh as they should.
        labelled = jax.lax.psum([losses.labelled(batch[name]) for name in heads], together)
        differentiate = jax.value_and_grad(loss_of_part, has_aux=True)

        def of_part(batch_stats: Any, part: Batch) -> tuple[optim.Params, Any, metrics.Counts, Float[Array, ""]]:
            (loss, (batch_stats, counts)), grads = differentiate(trainable, frozen, batch_stats, part, labelled)
            return grads, batch_stats, counts, loss

        if accumulate == 1:
            return of_part(variables["batch_stats"], batch)

        def add_part(carry: Any, part: Batch) -> tuple[Any, None]:
            total, batch_stats = carry
            grads, batch_stats, counts, loss = of_part(batch_stats, part)
            return (jax.tree.map(jnp.add, total, (grads, counts, loss)), batch_stats), None

        parts = {key: rows.reshape(accumulate, -1, *rows.shape[1:]) for key, rows in batch.items()}
        of_one = jax.eval_shape(of_part, variables["batch_stats"], jax.tree.map(lambda rows: rows[0], parts))
        grads, _, counts, loss = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), of_one)
        start = (grads, counts, loss), variables["batch_stats"]
        ((grads, counts, loss), batch_stats), _ = jax.lax.scan(add_part, start, parts)
        return grads, batch_stats, counts, loss

    def gradient_of_devices(
        variables: functional.Variables, batch: Batch
    ) -> tuple[optim.Params, Any, metrics.Counts, Float[Array, ""]]:
        grads, batch_stats, counts, loss = gradient(variables, batch)
        grads, loss = jax.lax.pmean(jax.lax.psum((grads, loss), together), apart)
        if apart:
            first = jax.lax.axis_index(apart) == 0
            batch_stats = jax.tree.map(lambda leaf: jnp.where(first, leaf, jnp.zeros_like(leaf)), batch_stats)
        return grads, jax.lax.psum(batch_stats, apart), jax.lax.psum(counts, every), loss

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        batch = _inputs(batch, model_config, heads)
        devices = 1 if mesh is None else mesh.size
        rows = len(batch[heads[0]])
        if rows % (devices * accumulate):
            raise ValueError(f"{rows} rows can't be split evenly over {devices} devices in {accumulate} parts each")
        on_devices = gradient_of_devices
        if mesh is not None:
            # Nothing is differentiated through the mapped function, so that its outputs' replication needs no proof.
            one, split = PartitionSpec(), sharding.BATCH
            on_devices = jax.shard_map(on_devices, mesh=mesh, in_specs=(one, split), out_specs=one, check_vma=False)
        grads, batch_stats, counts, loss = on_devices(state.variables, batch)
        params, opt_state = optimizer.update(state.variables["params"], grads, state.opt_state)
        norm = optim.norm(grads)
        step_metrics = StepMetrics(counts, loss, norm, jnp.isfinite(loss) & jnp.isfinite(norm))
        return TrainState(state.step + 1, {"params": params, "batch_stats": batch_stats}, opt_state), step_metrics

    if mesh is None:
        return jax.jit(step, donate_argnums=0, compiler_options=compilation.options())
    same, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return jax.jit(
        step, donate_argnums=0, in_shardings=(same, split), out_shardings=(same, same), compiler_options=compilation.options()
    )


def make_eval_step(
    model_config: tsp.ModelConfig,
    *,
    heads: Sequence[str],
    dtype: jnp.dtype = jnp.float32,
    mesh: Mesh | None = None,
    prepare: Prepare = augmented_clips,
) -> EvalStep:
    """The jitted `(variables, batch) -> Counts` in evaluation mode, the batch as in training.

    No row knows of another: a last batch is filled up with rows of label -1, which count nowhere.
    """
    _check_heads(model_config, heads, [1.0] * len(heads))

    def step(variables: functional.Variables, batch: Batch) -> metrics.Counts:
        batch = _inputs(batch, model_config, heads)
        clips, labels = prepare(batch, _wide(dtype)), [batch[name] for name in heads]
        _, logits = tsp.evaluate(model_config, variables, clips, batch.get("gvf"), dtype=dtype)
        return metrics.count([losses.cross_entropy_sum(x, y) for x, y in zip(logits, labels, strict=True)], logits, labels)

    if mesh is None:
        return jax.jit(step, compiler_options=compilation.options())
    same, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return jax.jit(step, in_shardings=(same, split), out_shardings=same, compiler_options=compilation.options())


def _check_heads(model_config: tsp.ModelConfig, heads: Sequence[str], alphas: Sequence[float]) -> None:
    expected = len(model_config.label_counts)
    if not expected or not len(heads) == len(alphas) == expected:
        raise ValueError(
            f"a model of {expected} heads ({', '.join(model_config.head_names) or 'none'}) trains with one label and one alpha "
            f"a head; got labels {tuple(heads)} and alphas {tuple(alphas)}"
        )


def _inputs(batch: Batch, model_config: tsp.ModelConfig, heads: Sequence[str]) -> Batch:
    """The batch without what this model does not read: labels of other heads, and the global video feature."""
    labels = {"action", "temporal_region"} - set(heads)
    unread = labels if model_config.gvf else labels | {"gvf"}
    return {key: rows for key, rows in batch.items() if key not in unread}


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)
