"""One step of training, and one of evaluation, for any task: pure, jitted, on one device or over a mesh of many."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from tsp_jax.models import functional
from tsp_jax.system import compilation, sharding
from tsp_jax.training import optim

Variables = functional.Variables  # "params", and collections that a step replaces, such as "batch_stats"
Batch = dict[str, Array]  # arrays whose first axes are the rows of the batch
Sums = Any  # a pytree of arrays that a task adds up over rows


@functools.partial(jax.tree_util.register_dataclass, data_fields=["step", "variables", "opt_state", "average"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of training: all that a step changes.

    Attributes:
      step: the number of steps done, int32.
      variables: the model's parameters and statistics.
      opt_state: the optimizer's state.
      average: the exponential moving average of the parameters; None for a step without one.
    """

    step: Any  # an array; JAX also builds states of shapes and shardings
    variables: Variables
    opt_state: Any
    average: Any = None


class StepSums(NamedTuple):
    """The numbers that a step computed from its batch before the update.

    Attributes:
      sums: the task's sums over all rows of the batch.
      loss: the minimized loss; with per-device statistics the mean of the devices' losses.
      grad_norm: the L2 norm of the gradient of the trainable parameters, without weight decay, before clipping.
      finite: whether loss and gradient norm are finite. If not, the new state is of no use.
    """

    sums: Sums
    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    finite: Bool[Array, ""]


Step = Callable[[TrainState, Batch], tuple[TrainState, StepSums]]
EvalStep = Callable[[Variables, Batch], Sums]


@runtime_checkable
class Loss(Protocol):
    """The loss that a step minimizes. It is made of sums and their divisors, because a batch may be taken in parts."""

    def inputs(self, batch: Batch) -> Batch:
        """Returns the arrays of the batch that this loss reads."""
        ...

    def divisors(self, batch: Batch) -> Any:
        """Returns a pytree of counts over the rows; the counts of all parts and devices are added up before they divide."""
        ...

    def __call__(
        self, variables: Variables, part: Batch, divisors: Any, axes: tuple[str, ...]
    ) -> tuple[Float[Array, ""], tuple[Variables, Sums]]:
        """Returns this part's share of the loss, the variables other than "params" after it, and the task's sums over it.

        Args:
          variables: the model's variables.
          part: some rows of the batch.
          divisors: the result of `divisors`, added up over all rows.
          axes: the mesh axes along which devices share one batch's statistics, for BatchNorm.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Options:
    """How a step is computed.

    Attributes:
      mesh: the devices, from `sharding.make_mesh`; the state is replicated over it and the batch split. None is one device.
      statistics: `global` or `per_device`, see `make_step`.
      accumulate: the number of equal parts that a device's rows are taken in, one after the other.
      average_decay: the decay of the moving average of the parameters, in [0, 1); None keeps no average.
    """

    mesh: Mesh | None = None
    statistics: Literal["global", "per_device"] = "global"
    accumulate: int = 1
    average_decay: float | None = None

    def __post_init__(self):
        if self.statistics not in ("global", "per_device"):
            raise ValueError(f"batch_norm is 'global' or 'per_device'; got {self.statistics!r}")
        if self.accumulate < 1:
            raise ValueError(f"accumulate is at least 1; got {self.accumulate}")

    @property
    def axes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The mesh axes along which devices share statistics and losses, and the axes along which each device has its own."""
        every = () if self.mesh is None else tuple(name for name in self.mesh.axis_names if self.mesh.shape[name] > 1)
        together = tuple(name for name in every if self.statistics == "global" or name == sharding.CORE)
        return together, tuple(name for name in every if name not in together)


def init_state(variables: Variables, optimizer: optim.Optimizer, options: Options = Options()) -> TrainState:
    """Returns the state before the first step. It holds these very variables, which the first step donates."""
    average = None if options.average_decay is None else jax.tree.map(jnp.copy, variables["params"])
    return TrainState(jnp.zeros((), jnp.int32), variables, optimizer.init(variables["params"]), average)


def make_step(loss: Loss, optimizer: optim.Optimizer, options: Options = Options()) -> Step:
    """Returns the jitted step `(state, batch) -> (state, StepSums)`. The state passed in is donated.

    Frozen parameters (learning rate 0) are not differentiated. Statistics move in all layers.

    Statistics:
      global: BatchNorm's statistics and the losses are those of the whole batch, however many devices share it (the
        original's --sync-bn, PyTorch's SyncBatchNorm).
      per_device: each device normalizes with its own rows and takes its losses' means over them; gradients are averaged over
        the devices, and the first device's statistics are kept. This is what PyTorch's DistributedDataParallel does, the
        original's default. The cores of a CPU that is split count as one device.

    With accumulation the gradients of a device's parts are added up. Losses and gradients count each row as one pass over the
    whole batch would. BatchNorm does not: each part is normalized with its own statistics, and the running ones move once for
    each part.

    Raises:
      ValueError: when the step is traced, if the rows can't be split evenly over devices and parts.
    """
    step = functools.partial(_update, loss, optimizer, options)
    if options.mesh is None:
        return jax.jit(step, donate_argnums=0, compiler_options=compilation.options())
    same, split = sharding.replicated(options.mesh), sharding.batch_sharding(options.mesh)
    shardings: dict[str, Any] = {"in_shardings": (same, split), "out_shardings": (same, same)}
    return jax.jit(step, donate_argnums=0, compiler_options=compilation.options(), **shardings)


def make_eval_step(sums: EvalStep, mesh: Mesh | None = None) -> EvalStep:
    """Returns the jitted evaluation `(variables, batch) -> sums over the rows`; the batch is split over the mesh.

    Args:
      sums: the task's function from variables and a batch to sums. It must not count the rows that fill up the last batch.
      mesh: the devices; None is one device.
    """
    if mesh is None:
        return jax.jit(sums, compiler_options=compilation.options())
    same, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    return jax.jit(sums, in_shardings=(same, split), out_shardings=same, compiler_options=compilation.options())


def _update(
    loss: Loss, optimizer: optim.Optimizer, options: Options, state: TrainState, batch: Batch
) -> tuple[TrainState, StepSums]:
    batch = loss.inputs(batch)
    devices = 1 if options.mesh is None else options.mesh.size
    rows = len(next(iter(batch.values())))
    if rows % (devices * options.accumulate):
        raise ValueError(f"{rows} rows can't be split evenly over {devices} devices in {options.accumulate} parts each")
    on_devices = functools.partial(_gradient_of_devices, loss, optimizer, options)
    if options.mesh is not None:
        # Nothing is differentiated through the mapped function, so that its outputs' replication needs no proof.
        one, split = PartitionSpec(), sharding.BATCH
        on_devices = jax.shard_map(on_devices, mesh=options.mesh, in_specs=(one, split), out_specs=one, check_vma=False)
    grads, statistics, sums, value = on_devices(state.variables, batch)
    params, opt_state = optimizer.update(state.variables["params"], grads, state.opt_state)
    norm = optim.norm(grads)
    average = state.average
    if options.average_decay is not None:
        average = optim.moving_average(average, params, options.average_decay)
    seen = StepSums(sums, value, norm, jnp.isfinite(value) & jnp.isfinite(norm))
    return TrainState(state.step + 1, {"params": params, **statistics}, opt_state, average), seen


def _gradient_of_devices(
    loss: Loss, optimizer: optim.Optimizer, options: Options, variables: Variables, batch: Batch
) -> tuple[optim.Params, Variables, Sums, Float[Array, ""]]:
    """Returns gradient, statistics, sums and loss of all devices' rows, from within a device's program."""
    together, apart = options.axes
    grads, statistics, sums, value = _gradient(loss, optimizer, options, variables, batch)
    grads, value = jax.lax.pmean(jax.lax.psum((grads, value), together), apart)
    if apart:
        first = jax.lax.axis_index(apart) == 0
        statistics = jax.tree.map(lambda leaf: jnp.where(first, leaf, jnp.zeros_like(leaf)), statistics)
    return grads, jax.lax.psum(statistics, apart), jax.lax.psum(sums, together + apart), value


def _gradient(
    loss: Loss, optimizer: optim.Optimizer, options: Options, variables: Variables, batch: Batch
) -> tuple[optim.Params, Variables, Sums, Float[Array, ""]]:
    """Returns one device's share. Added up over the devices that share statistics, it is the gradient of all their rows."""
    together, _ = options.axes
    # The counts of all rows divide each part's sums, so that parts with few labels weigh as they should.
    divisors = jax.lax.psum(loss.divisors(batch), together)
    of_part = functools.partial(_gradient_of_part, loss, optimizer, together, variables["params"], divisors)
    statistics = {name: tree for name, tree in variables.items() if name != "params"}
    if options.accumulate == 1:
        return of_part(statistics, batch)
    parts = {key: rows.reshape(options.accumulate, -1, *rows.shape[1:]) for key, rows in batch.items()}
    of_one = jax.eval_shape(of_part, statistics, jax.tree.map(lambda rows: rows[0], parts))
    grads, _, sums, value = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), of_one)

    def add_part(carry: Any, part: Batch) -> tuple[Any, None]:
        total, statistics = carry
        grads, statistics, sums, value = of_part(statistics, part)
        return (jax.tree.map(jnp.add, total, (grads, sums, value)), statistics), None

    ((grads, sums, value), statistics), _ = jax.lax.scan(add_part, ((grads, sums, value), statistics), parts)
    return grads, statistics, sums, value


def _gradient_of_part(
    loss: Loss,
    optimizer: optim.Optimizer,
    together: tuple[str, ...],
    params: optim.Params,
    divisors: Any,
    statistics: Variables,
    part: Batch,
) -> tuple[optim.Params, Variables, Sums, Float[Array, ""]]:
    trainable, frozen = optimizer.split(params)

    def of_trainable(trainable: optim.Params) -> tuple[Float[Array, ""], tuple[Variables, Sums]]:
        return loss({"params": optim.merge(trainable, frozen), **statistics}, part, divisors, together)

    (value, (statistics, sums)), grads = jax.value_and_grad(of_trainable, has_aux=True)(trainable)
    return grads, statistics, sums, value
