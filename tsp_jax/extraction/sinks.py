"""A sink that splits the rows of two encoders, extracted in one pass, into two files of features."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32

from tsp_jax import features


class TwoFiles:
    """Stores the left part of each row in one file and the right part in another.

    Attributes:
      done: attributes of the videos that both files hold, by name.
    """

    def __init__(self, first: features.Writer, second: features.Writer, width: int):
        """Joins two writers.

        Args:
          first: the writer of the first encoder's features.
          second: the writer of the second encoder's features.
          width: the number of features that the first encoder has.
        """
        self._first, self._second, self._width = first, second, width
        self.done: dict[str, features.Attributes] = {name: first.done[name] for name in first.done if name in second.done}

    def commit(self, name: str, features: Float32[np.ndarray, "n f"], attributes: Mapping[str, object]) -> None:
        """Stores one video in both files, durably."""
        self._first.commit(name, features[:, : self._width], dict(attributes))
        self._second.commit(name, features[:, self._width :], dict(attributes))
        self.done[name] = dict(attributes)
