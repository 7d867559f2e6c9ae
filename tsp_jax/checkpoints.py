"""Checkpoints on disk through Orbax: a model's variables beside a JSON page that says what they are."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from tsp_jax import version
from tsp_jax.models import functional, tsp
from tsp_jax.system import trees

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where weights came from.

    Attributes:
      source: the file, released name or run that they were read from, without its folder.
      source_sha256: of that file, in hex; empty when there was none.
      note: what a reader should know, such as the keys that were dropped.
    """

    source: str
    source_sha256: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model in memory: configuration, variables (nested dicts, float32), origin, and the hash of the variables."""

    config: tsp.ModelConfig
    variables: functional.Variables
    origin: Origin
    weights_sha256: str


def make(config: tsp.ModelConfig, variables: functional.Variables, origin: Origin) -> Checkpoint:
    """A checkpoint of these variables.

    Raises:
      ValueError: the variables are not those of the configuration; every missing, unexpected and misshapen key is named.
    """
    trees.check_keys(trees.shapes(functional.shapes(config)), trees.shapes(variables), f"the variables of {config}")
    return Checkpoint(config, variables, origin, weights_sha256(variables))


def save(path: str | Path, checkpoint: Checkpoint, *, overwrite: bool = False) -> None:
    """Writes a checkpoint folder, whole or not at all. One process writes; others of its run are not waited for.

    Raises:
      FileExistsError: the folder exists and `overwrite` is false, or what exists there is no checkpoint.
    """
    check_output(path, overwrite)
    path = Path(path).absolute()
    about = {
        "format_version": FORMAT_VERSION,
        "tsp_jax_version": version.__version__,
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
    """Nothing, when a checkpoint may be written there.

    Raises:
      FileExistsError: the folder exists and `overwrite` is false, or what exists there is no checkpoint.
    """
    if not Path(path).exists():
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists; name another folder or pass --overwrite")
    if not _page(path).is_file():
        raise FileExistsError(f"{path} is not a checkpoint folder, and will not be overwritten; name another folder")


def load(path: str | Path) -> Checkpoint:
    """The checkpoint in a folder, its variables on the first local device.

    Raises:
      FileNotFoundError: there is no checkpoint there.
      ValueError: the folder is of another format, or its arrays are not those that its page promises.
    """
    path = Path(path).absolute()
    page = _page(path)
    if not page.is_file():
        raise FileNotFoundError(
            f"{path}: no checkpoint of tsp_jax (no about/metadata in it); expected a folder written by "
            "convert.torch_to_orbax, a .pth file, or a released name (python -m convert.released --list)"
        )
    config, origin, sha256 = _read_about(page)
    expected = functional.shapes(config)
    with _checkpointer() as reader:
        try:
            found = reader.metadata(path).item_metadata["variables"].tree
        except Exception as error:  # Orbax and TensorStore raise nearly anything on damaged files
            raise ValueError(f"{path}: its arrays can't be read ({_first_line(error)}); convert it again") from error
        trees.check_keys(trees.shapes(expected), trees.shapes(found or {}), str(path))
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), expected)
        try:
            restored = reader.restore(path, ocp.args.Composite(variables=ocp.args.StandardRestore(target)))
        except Exception as error:  # Exception itself is among them
            raise ValueError(f"{path}: its arrays can't be read ({_first_line(error)}); convert it again") from error
    variables = restored["variables"]
    actual = weights_sha256(variables)
    if actual != sha256:
        raise ValueError(
            f"{path}: the arrays have SHA-256 {actual[:8]}…, its page says {sha256[:8]}…; the folder was changed or "
            "damaged: convert it again"
        )
    return Checkpoint(config, variables, origin, sha256)


def weights_sha256(variables: functional.Variables) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all leaves: the same for the same weights from any file."""
    return trees.sha256(trees.flatten(variables))


def is_checkpoint(path: str | Path) -> bool:
    """Whether a folder holds a checkpoint."""
    return _page(path).is_file()


def _page(path: str | Path) -> Path:
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
    """Orbax's options for a process that reads or writes without the others of its run."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )


def _read_about(page: Path) -> tuple[tsp.ModelConfig, Origin, str]:
    try:
        about = json.loads(page.read_text(encoding="utf-8"))
        version = about["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(f"format version {version}, this program reads {FORMAT_VERSION}")
        model = about["model"]
        config = tsp.ModelConfig(model["backbone"], tuple(model["label_counts"]), model["gvf"])
        return config, Origin(**about["origin"]), about["weights_sha256"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{page}: not a page of a tsp_jax checkpoint ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]
