"""Segments as columns of numbers: what scores and analyses of detections compute with."""

import array
import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from tsp_jax.system import errors

Column = Sequence[float] | np.ndarray | array.array


class EvaluationError(errors.UserError):
    """Detections can't be scored. The message says what was expected, what was found, where, and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Segments:
    """Annotated instances, detections, proposals or labels of videos: one row each, in the order of their file.

    Attributes:
      video: int64 [n], the number of each row's video.
      label: int64 [n], the number of each row's class.
      start_sec: float64 [n], the starts in seconds.
      end_sec: float64 [n], the ends in seconds. A file may hold an end before its start.
      score: float64 [n], the confidences, higher is better; of any range. Annotated instances have 1.
    """

    video: Int64[np.ndarray, " n"]
    label: Int64[np.ndarray, " n"]
    start_sec: Float64[np.ndarray, " n"]
    end_sec: Float64[np.ndarray, " n"]
    score: Float64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.video)

    def take(self, rows: np.ndarray) -> "Segments":
        """Returns the rows that a mask or an array of row numbers chooses."""
        return Segments(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


def make(video: Column, label: Column, start_sec: Column, end_sec: Column, score: Column | None = None) -> Segments:
    """Returns segments made of five sequences of one length; without scores, each row has 1."""
    # A copy also gives an array.array of 64-bit numbers the one dtype int64, of two that NumPy has.
    rows = np.array(video, np.int64)
    return Segments(
        rows,
        np.array(label, np.int64),
        np.array(start_sec, np.float64),
        np.array(end_sec, np.float64),
        np.ones(len(rows)) if score is None else np.array(score, np.float64),
    )
