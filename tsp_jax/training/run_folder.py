"""A run's folder: its lock, what the run began with, and the weights that it exports."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tsp_jax import checkpoints, config
from tsp_jax.system import files
from tsp_jax.training import processes, run_checkpoints, sums

CONFIG = "config.json"


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What a run began with, as `config.json` in its folder records it.

    Attributes:
      config: the recipe, as nested dicts.
      devices: the number of devices, which batch size and learning rates count; a run that goes on with another number keeps
        its batches and rates.
      segments: the number of annotated segments, or other items, of each split.
    """

    config: Mapping[str, Any]
    devices: int
    segments: Mapping[str, int]


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds a run's folder against other runs while the block runs; of several processes the first one holds it.

    Raises:
      InUseError: another run holds it.
    """
    if not processes.is_first():
        yield
        return
    busy = f"{workdir}: another run is training there; wait for it, or name another --workdir"
    with files.locked(workdir / ".lock", busy):
        yield


def begin(workdir: Path, now: Beginning, *, write: bool) -> Beginning:
    """Returns what the run in a folder began with: `now` for a new run.

    Args:
      workdir: the run's folder.
      now: what a new run begins with.
      write: whether a new run's `config.json` is written.

    Raises:
      ValueError: the run began with another recipe or other data; the message shows every difference.
    """
    path = workdir / CONFIG
    if path.is_file():
        try:
            found = Beginning(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: not what a run writes there ({error}); name another --workdir") from error
        lines = config.differences(found.config, now.config)
        lines += [
            f"segments of {name}: {found.segments.get(name)} there, {now.segments.get(name)} here"
            for name in sorted(found.segments.keys() | now.segments.keys())
            if found.segments.get(name) != now.segments.get(name)
        ]
        if lines:
            message = f"{path} is of a run with another config; give that one, or name another --workdir:"
            raise ValueError("\n  ".join([message, *lines]))
        return found
    processes.sync("no config yet")
    if write and processes.is_first():
        with files.replacing(path) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(now), indent=2) + "\n", encoding="utf-8")
    return now


@contextlib.contextmanager
def states(folder: Path, *, read_only: bool) -> Iterator[run_checkpoints.Keeper]:
    """Opens a folder of states. At the end of the block what is being saved is waited for.

    Args:
      folder: the folder of states.
      read_only: whether nothing is to be written there.
    """
    keeper = run_checkpoints.Keeper(folder, read_only=read_only)
    try:
        yield keeper
    except sums.NotFiniteError:  # all processes come here
        keeper.close()
        raise
    except BaseException:
        # The other processes do not come to meet this one.
        if not processes.are_several():
            keeper.close()
        raise
    keeper.close()


def export(workdir: Path, checkpoint: checkpoints.Checkpoint, *, is_best: bool) -> None:
    """Writes the weights as the checkpoint `last`, and as `best` if they are the best so far.

    Raises:
      OSError: they can't be written.
    """
    for name in ("last", "best") if is_best else ("last",):
        checkpoints.save(workdir / name, checkpoint, overwrite=True)
