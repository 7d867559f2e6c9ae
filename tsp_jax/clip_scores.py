"""What the heads of a clip classifier say of clips: the task of each head, the names of its classes, probabilities."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32, Float64

from tsp_jax import checkpoints, groundtruth, predictions
from tsp_jax.models import tsp

_ROWS_AT_ONCE = 256  # one shape to compile, whatever a video's number of clips


_heads = jax.jit(tsp.heads, static_argnums=0)


def head_tasks(model: checkpoints.Checkpoint, asked: str | None) -> tuple[str, ...]:
    """Returns the task of each head, from `predictions.TASKS`, in the order of the heads.

    Args:
      model: a trained model. Its number of heads and of classes decides most cases.
      asked: the task of a single head with two classes, which is ambiguous; None if the classes decide.

    Raises:
      ValueError: there is no head, a single head has two classes and no task is given, or the given task is impossible.
    """
    counts, name = model.config.label_counts, model.origin.source
    regions = len(groundtruth.TEMPORAL_REGIONS)
    if not counts:
        raise ValueError(f"{name}: expected a trained model with heads, found an encoder alone; give a run's workdir")
    if len(counts) == 2:
        if counts[1] != regions or asked is not None:
            raise ValueError(
                f"{name}: expected heads of actions and of {regions} temporal regions, and no --head; "
                f"found heads of {counts[0]} and {counts[1]} classes, --head {asked}"
            )
        return predictions.TASKS
    if counts[0] != regions:
        if asked == "temporal_region":
            raise ValueError(f"{name}: expected {regions} classes of a temporal-region head, found {counts[0]}; drop --head")
        return ("action",)
    if asked is None:
        raise ValueError(
            f"{name}: its one head has two classes, which may be actions or temporal regions; say --head action or "
            "--head temporal_region"
        )
    return (asked,)


def action_labels(model: checkpoints.Checkpoint, tasks: Sequence[str], mapping: str | Path | None) -> tuple[str, ...]:
    """Returns the names of the action classes in their order, from a mapping, or else their numbers as text.

    The result is empty if no head predicts actions.

    Raises:
      OSError: the mapping can't be read.
      ValueError: the mapping has another number of classes, or no head predicts actions.
    """
    if "action" not in tasks:
        if mapping is not None:
            raise ValueError(f"{mapping}: this model has no action head whose classes it could name; drop --labels")
        return ()
    count = model.config.label_counts[0]
    if mapping is None:
        return tuple(str(number) for number in range(count))
    labels = groundtruth.read_label_mapping(mapping)
    if len(labels) != count:
        raise ValueError(
            f"{mapping}: {len(labels)} labels, expected the {count} classes that {model.origin.source} was trained with"
        )
    return tuple(labels)


def probabilities(
    model: checkpoints.Checkpoint, rows: Float32[np.ndarray, "n f"], gvf: Float32[np.ndarray, " f"] | None
) -> list[Float64[np.ndarray, "n _"]]:
    """Returns each head's class probabilities for each clip, which add up to 1.

    Args:
      model: a model with heads.
      rows: the features of the clips of one video.
      gvf: the video's global feature, if the model reads one.
    """
    parts = []
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        part = np.zeros((_ROWS_AT_ONCE, rows.shape[1]), np.float32)
        taken = rows[begin : begin + _ROWS_AT_ONCE]
        part[: len(taken)] = taken
        vectors = None if gvf is None else np.tile(gvf, (_ROWS_AT_ONCE, 1))
        parts.append([_softmax(np.asarray(x)[: len(taken)]) for x in _heads(model.config, model.variables, part, vectors)])
    return [np.concatenate(head) for head in zip(*parts, strict=True)]


def _softmax(logits: Float32[np.ndarray, "n k"]) -> Float64[np.ndarray, "n k"]:
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
