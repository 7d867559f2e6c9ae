"""Trains a model: `python -m tsp_jax.train --config configs/anet_tsp.py --workdir DIR`. The same command continues a run.

A page describes what is learned (`config`). Its task (`training.task`) brings data, model, step and evaluation. The loop
(`training.loop`) steps, logs, evaluates and saves, so that a run that was stopped at any moment goes on to the same bits.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from tsp_jax import config
from tsp_jax.system import cli, compilation, malloc, sharding, startup
from tsp_jax.training import (
    encoder_task,
    interruption,
    loop,
    processes,
    run_checkpoints,
    run_folder,
    run_log,
    sums,
    task,
    train_step,
)

TASKS: dict[str, task.Kind] = {"encoder": encoder_task}  # a page names its task


def main(arguments: Sequence[str] | None = None, *, tasks: Mapping[str, task.Kind] = TASKS) -> int:
    """Runs the command. Returns the exit status: 0 all is well, 1 the run failed, 2 wrong use, 130 interrupted."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    malloc.keep_freed()
    compilation.keep_programs()
    with interruption.Interruption() as stop:
        return cli.run(functools.partial(_work, tasks=tasks, stop=stop), options, after_error=processes.leave)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tsp_jax.train",
        description="Trains a model by a recipe. Run the same command again to go on from the last checkpoint in the workdir.",
        epilog="example: python -m tsp_jax.train --config configs/anet_tsp.py:backbone=r2plus1d_18,gvf=none "
        "--workdir runs/anet_tsp --config.optim.epochs=4 --config.data.folder=records/activitynet/jpeg/1.0.0",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", required=True, metavar="PAGE", help="a recipe, configs/NAME.py; the page's arguments follow a colon")
    add(
        "--config.SECTION.KEY",
        dest="unused",
        metavar="VALUE",
        help="another value in the recipe; commas separate several values",
    )
    add("--workdir", required=True, metavar="DIR", help="the run's folder, for its checkpoints and metrics")
    add("--eval_only", action="store_true", help="only evaluate the workdir's last checkpoint, or the recipe's start weights")
    startup.add_device(parser)
    several = parser.add_argument_group(
        "several processes",
        "On TPU pods and under SLURM they find each other; elsewhere each process is started with the first three flags",
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="the address of process 0")
    several.add_argument("--num_processes", type=cli.positive_int, help="the number of processes; 1 alone looks for no others")
    several.add_argument("--process_id", type=cli.non_negative_int, help="this process's number, from 0")
    several.add_argument(
        "--join_timeout_sec",
        type=cli.positive_int,
        default=processes.JOIN_TIMEOUT_SEC,
        metavar="SECONDS",
        help=f"how long to wait for the others at the start ({processes.JOIN_TIMEOUT_SEC})",
    )
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


def _work(options: argparse.Namespace, *, tasks: Mapping[str, task.Kind], stop: interruption.Interruption) -> int:
    """Trains or evaluates as the flags ask. Returns the exit status of a run that all processes end alike."""
    try:
        with interruption.explained(stop):
            name, recipe = read_recipe(options.config, options.changes, tasks)
            kind = tasks[name]
            startup.choose_device(options.device)
            processes.start_processes(
                options.coordinator, options.num_processes, options.process_id, timeout_sec=options.join_timeout_sec
            )
            cores = startup.start_devices(options.device, kind.rows_per_device(recipe))
            finished = run(name, kind, recipe, Path(options.workdir), stop, cores=cores, eval_only=options.eval_only)
            return 0 if finished else 130
    except sums.NotFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status


def read_recipe(spec: str, changes: Sequence[str], tasks: Mapping[str, task.Kind] = TASKS) -> tuple[str, Any]:
    """Returns the name of a page's task, and the page's recipe with the changes that flags ask for.

    Args:
      spec: the page, as `config.load` takes it.
      changes: the flags, as `config.change` takes them.
      tasks: the kinds of task by name.

    Raises:
      OSError, ValueError: there is no such page or task, or something in the page or the flags is wrong.
    """
    content = config.load(spec)
    name = str(content.get("task", config.FIRST_TASK))
    if name not in tasks:
        raise ValueError(f"{spec}: the task is {name!r}; known are {', '.join(tasks)}")
    config.change(content, changes, tasks[name].Recipe)
    return name, config.read(content, tasks[name].Recipe)


def run(
    name: str,
    kind: task.Kind,
    recipe: Any,
    workdir: Path,
    stop: interruption.Interruption,
    *,
    cores: int = 1,
    eval_only: bool = False,
) -> bool:
    """Trains to the last epoch, or only evaluates. Returns False if it was interrupted first.

    Args:
      name: the task's name.
      kind: the module that describes the task.
      recipe: the recipe.
      workdir: the run's folder.
      stop: the object that says after every step whether the run has to end.
      cores: the number of CPU devices that count as one, from `startup.start_devices`.
      eval_only: whether to evaluate once and stop.

    Raises:
      ValueError, OSError, RuntimeError, ImportError, UserError: recipe, data, weights and workdir don't match or can't be
        read.
      NotFiniteError: a loss or gradient is not finite.
    """
    mesh = sharding.make_mesh(cores=cores)
    devices = mesh.shape[sharding.DATA]
    several = f"; {jax.process_count()} processes" if processes.are_several() else ""
    processes.say(startup.describe_devices(jax.devices(), cores) + several)
    data, content = kind.open_data(recipe), {"task": name, **dataclasses.asdict(recipe)}
    with contextlib.ExitStack() as stack:
        if not eval_only:
            stack.enter_context(run_folder.locked(workdir))
        beginning = run_folder.Beginning(content, devices, data.sizes)
        beginning = run_folder.begin(workdir, beginning, write=not eval_only)
        learned = kind.make(recipe, data, mesh, beginning.devices)
        processes.say("\n".join([*config.describe(content), *learned.describe()]))
        last, best = (
            stack.enter_context(run_folder.states(workdir / "checkpoints" / folder, read_only=eval_only))
            for folder in ("last", "best")
        )
        if eval_only and last.latest() is None and learned.untrained:
            raise ValueError(f"{workdir} has no checkpoint, and {learned.untrained}: nothing to evaluate")
        state, tally = _start(learned, last, sharding.replicated(mesh), workdir)
        if eval_only:
            return _evaluate(learned, state, stop)
        trained = loop.Loop(learned, recipe.run, workdir, stop, last=last, best=best, state=state, tally=tally)
        return trained.run(mesh)


def _start(
    learned: task.Task, last: run_checkpoints.Keeper, everywhere: jax.sharding.Sharding, workdir: Path
) -> tuple[train_step.TrainState, sums.Tally]:
    """Returns the state to go on from, on all devices, and the sums since the last line of the log."""
    zeros = learned.zero_sums()
    if last.latest() is None:
        state, lines = learned.start()
        processes.say("\n".join(lines))
        return jax.device_put(state, everywhere), sums.zero(zeros)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), learned.shapes())
    state, metadata = last.restore(shapes)
    total, folder = loop.total_steps(learned), workdir / "checkpoints" / "last"
    processes.say(f"weights: those after step {int(state.step)} of {total}, from {folder}")
    return state, sums.from_json(metadata["tally"], zeros)


def _evaluate(learned: task.Task, state: train_step.TrainState, stop: interruption.Interruption) -> bool:
    stop.be_patient()
    values = learned.evaluate(state, stop)
    if values is None:
        return False
    done = int(state.step)
    line = run_log.line(values, split="valid", step=done, epoch=max(done - 1, 0) // learned.steps_per_epoch)
    processes.say(f"{learned.result(line)}\n{json.dumps(line)}")
    return True


if __name__ == "__main__":
    sys.exit(main())
