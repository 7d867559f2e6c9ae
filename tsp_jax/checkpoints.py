"""Checkpoints on disk through Orbax: the variables of a model, next to JSON metadata that say what they are.

A checkpoint says of which kind its model is. Its reader names the kinds that it takes, with a function for each that makes the
configuration again. So this module need not know of detectors.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from tsp_jax.models import functional, tsp
from tsp_jax.system import errors, trees, version

FORMAT_VERSION = 1


# A function that makes a configuration from the JSON object that `dataclasses.asdict` made of it.
FromJson = Callable[[Mapping[str, Any]], functional.ModelConfig]


def _read_tsp(model: Mapping[str, Any]) -> tsp.ModelConfig:
    return tsp.ModelConfig(model["backbone"], tuple(model["label_counts"]), model["gvf"])


ENCODERS: dict[str, FromJson] = {tsp.ModelConfig.kind: _read_tsp}


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of weights.

    Attributes:
      source: the file, released name or run from which they were read, without its folder.
      source_sha256: the SHA-256 of that file, in hex; empty if there was none.
      note: remarks for a reader, such as the keys that were dropped.
    """

    source: str
    source_sha256: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model in memory.

    Attributes:
      config: the model's configuration, a `functional.ModelConfig`. It is typed as `Any`, since each caller knows which kind
        it reads.
      variables: the model's variables, nested dicts of float32 arrays.
      origin: the origin of the variables.
      weights_sha256: the hash of the variables, by `weights_sha256`.
    """

    config: Any
    variables: functional.Variables
    origin: Origin
    weights_sha256: str

    @property
    def kind(self) -> str:
        """The kind of the model."""
        return self.config.kind


def make(config: functional.ModelConfig, variables: functional.Variables, origin: Origin) -> Checkpoint:
    """Returns a checkpoint of these variables.

    Raises:
      ValueError: the variables are not those of the configuration; every missing, unexpected and misshapen key is named.
    """
    trees.check_keys(trees.shapes(functional.shapes(config)), trees.shapes(variables), f"the variables of {config}")
    return Checkpoint(config, variables, origin, weights_sha256(variables))


def save(path: str | Path, checkpoint: Checkpoint, *, overwrite: bool = False) -> None:
    """Writes a checkpoint folder, whole or not at all. One process writes it, without waiting for others of its run.

    Raises:
      FileExistsError: the folder exists and `overwrite` is false, or it exists and is no checkpoint.
    """
    check_output(path, overwrite)
    path = Path(path).absolute()
    about = {
        "format_version": FORMAT_VERSION,
        "tsp_jax_version": version.__version__,
        "kind": checkpoint.kind,
        "model": dataclasses.asdict(checkpoint.config),
        "origin": dataclasses.asdict(checkpoint.origin),
        "weights_sha256": checkpoint.weights_sha256,
    }
    new, old = (path.with_name(f".{path.name}.{suffix}") for suffix in ("new", "old"))
    with _checkpointer() as writer:
        variables = jax.tree.map(np.asarray, checkpoint.variables)
        items = ocp.args.Composite(variables=ocp.args.StandardSave(variables), about=ocp.args.JsonSave(about))
        writer.save(new, items, force=True)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def check_output(path: str | Path, overwrite: bool) -> None:
    """Checks that a checkpoint may be written to this folder.

    Raises:
      FileExistsError: the folder exists and `overwrite` is false, or it exists and is no checkpoint.
    """
    if not Path(path).exists():
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists; name another folder or pass --overwrite")
    if not is_checkpoint(path):
        raise FileExistsError(f"{path} is not a checkpoint folder, and will not be overwritten; name another folder")


def load(path: str | Path, kinds: Mapping[str, FromJson] = ENCODERS) -> Checkpoint:
    """Returns the checkpoint in a folder, its variables on the first local device.

    Args:
      path: the folder.
      kinds: the kinds of model that the caller takes.

    Raises:
      FileNotFoundError: the folder holds no checkpoint.
      ValueError: the folder has another format or kind, or its arrays are not those that its metadata describe.
    """
    path = Path(path).absolute()
    if not is_checkpoint(path):
        raise FileNotFoundError(
            f"{path}: no checkpoint of tsp_jax (no about/metadata in it); expected a folder written by "
            "convert.torch_to_orbax, a .pth or .safetensors file, or a released name (python -m convert.released --list)"
        )
    config, origin, sha256 = _read_metadata(_metadata(path), kinds)
    expected = functional.shapes(config)
    with _checkpointer() as reader:
        try:
            found = reader.metadata(path).item_metadata["variables"].tree
        except Exception as error:  # Orbax and TensorStore raise nearly anything on damaged files
            raise ValueError(f"{path}: its arrays can't be read ({errors.first_line(error)}); convert it again") from error
        trees.check_keys(trees.shapes(expected), trees.shapes(found or {}), str(path))
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), expected)
        try:
            restored = reader.restore(path, ocp.args.Composite(variables=ocp.args.StandardRestore(target)))
        except Exception as error:  # Exception itself is among them
            raise ValueError(f"{path}: its arrays can't be read ({errors.first_line(error)}); convert it again") from error
    variables = restored["variables"]
    actual = weights_sha256(variables)
    if actual != sha256:
        raise ValueError(
            f"{path}: the arrays have SHA-256 {actual[:8]}…, its metadata say {sha256[:8]}…; the folder was changed or "
            "damaged: convert it again"
        )
    return Checkpoint(config, variables, origin, sha256)


def weights_sha256(variables: functional.Variables) -> str:
    """Returns the SHA-256 of the names, dtypes, shapes and bytes of all leaves: equal for equal weights from any file."""
    return trees.sha256(trees.flatten(variables))


def is_checkpoint(path: str | Path) -> bool:
    """Returns whether a folder holds a checkpoint."""
    return _metadata(path).is_file()


def _metadata(path: str | Path) -> Path:
    return Path(path) / "about" / "metadata"


def _checkpointer() -> ocp.Checkpointer:
    alone = _this_process()
    handlers = {
        "variables": ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        "about": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
    }
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        **handlers,
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _this_process() -> ocp.options.MultiprocessingOptions:
    """Returns Orbax's options for a process that reads or writes without the others of its run."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )


def _read_metadata(path: Path, kinds: Mapping[str, FromJson]) -> tuple[functional.ModelConfig, Origin, str]:
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        found = about["format_version"]
        if found != FORMAT_VERSION:
            raise ValueError(f"format version {found}, this program reads {FORMAT_VERSION}")
        kind = about.get("kind", "tsp")  # version 0.1.0 wrote no kind
        if kind not in kinds:
            raise ValueError(f"a model of the kind {kind!r}, expected {', '.join(kinds)}")
        return kinds[kind](about["model"]), Origin(**about["origin"]), about["weights_sha256"]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not the metadata of a tsp_jax checkpoint ({errors.first_line(error)})") from error
