"""The state that a run goes on from, with metadata in JSON, written in the background by Orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from tsp_jax.system import errors, trees

Metadata = dict[str, Any]
_DIGEST = "state_sha256"  # a key of the stored metadata; TensorStore's arrays have no checksum


class Keeper:
    """Keeps the last state saved, in a folder with one folder inside that is named by the step.

    A state appears whole or not at all, and the state before is removed only when the new one is there. What a killed process
    left unfinished is removed. Every process of a run has a keeper of the same folder, and calls it as the others do. A state
    can be read with other numbers of devices and processes than it was written with.
    """

    def __init__(self, folder: str | Path, *, read_only: bool = False):
        self._folder = Path(folder).absolute()
        # Orbax's own read_only warns of itself at every start.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(1),
            cleanup_tmp_directories=not read_only,
            create=not read_only,
        )
        # The metadata's item is called `page` on disk, as in version 0.1.0.
        handlers = {"state": ocp.StandardCheckpointHandler(), "page": ocp.JsonCheckpointHandler()}
        empty = read_only and not self._folder.is_dir()
        self._manager = None if empty else ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        """Returns the step of the state in the folder; None if there is none."""
        return None if self._manager is None else self._manager.latest_step()

    def metadata(self) -> Metadata:
        """Returns the metadata of the state in the folder.

        Raises:
          ValueError: the metadata can't be read.
        """
        stored = self._read(ocp.args.Composite(page=ocp.args.JsonRestore()))["page"]
        return {key: value for key, value in stored.items() if key != _DIGEST}

    def save(self, step: int, state: Any, metadata: Metadata) -> None:
        """Saves a state in the background. On return its arrays may be donated, although the files are still being written.

        If a state of this step is there already, it stays as it is.

        Raises:
          OSError: this state, or the one before, can't be written.
        """
        if self._manager is None or self.latest() == step:
            return
        flat = trees.leaves(state)
        stored = {**metadata, _DIGEST: trees.sha256(flat)}
        items = ocp.args.Composite(state=ocp.args.StandardSave(flat), page=ocp.args.JsonSave(stored))
        try:
            self._manager.save(step, args=items)
        except (ValueError, RuntimeError) as error:  # Orbax's, for what happened in the background
            raise OSError(f"{self._folder}: the state of step {step} can't be saved ({errors.first_line(error)})") from error

    def restore(self, like: Any) -> tuple[Any, Metadata]:
        """Returns the state in the folder, placed as `like` says, and its metadata.

        Args:
          like: the state as a tree of `jax.ShapeDtypeStruct`s with shardings.

        Raises:
          ValueError: the state can't be read, or has another structure than `like`.
        """
        wanted, latest, found = trees.leaves(like), self.latest(), {}
        if self._manager is not None and latest is not None:
            try:
                saved = self._manager.item_metadata(latest)["state"]
            except Exception as error:  # as in `_read`
                raise self._unreadable(error) from error
            found = {} if saved is None else trees.path_shapes(saved.tree)
        trees.check_keys(trees.path_shapes(wanted), found, f"{self._folder}/{latest}")
        read = self._read(ocp.args.Composite(state=ocp.args.StandardRestore(wanted), page=ocp.args.JsonRestore()))
        metadata = dict(read["page"])
        if metadata.pop(_DIGEST, "") != trees.sha256({key: read["state"][key] for key in wanted}):
            raise self._unreadable(ValueError("the arrays are not those that were saved"))
        structure = jax.tree_util.tree_structure(like)
        return jax.tree_util.tree_unflatten(structure, [read["state"][key] for key in wanted]), metadata

    def wait(self) -> None:
        """Waits until the state that was saved is in the folder.

        Raises:
          OSError: the state can't be written.
        """
        try:
            if self._manager is not None:
                self._manager.wait_until_finished()
        except (ValueError, RuntimeError) as error:
            raise OSError(f"{self._folder}: a state can't be saved ({errors.first_line(error)})") from error

    def close(self) -> None:
        """Waits as `wait` does, and ends the threads that work in the background.

        Raises:
          OSError: the state that was saved can't be written.
        """
        self.wait()
        if self._manager is not None:
            self._manager.close()

    def _read(self, items: ocp.args.Composite) -> Any:
        if self._manager is None or self.latest() is None:
            raise ValueError(f"{self._folder}: no state there")
        try:
            return self._manager.restore(self.latest(), args=items)
        except Exception as error:  # Orbax and TensorStore raise nearly anything on damaged files
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> ValueError:
        where = f"{self._folder}/{self.latest()}"
        return ValueError(f"{where}: can't be read ({errors.first_line(error)}); remove it to begin again")
