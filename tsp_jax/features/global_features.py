"""Global video features (GVF): how a video's clips are pooled into one vector, and the HDF5 file of such vectors."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from tsp_jax import video_names
from tsp_jax.features import hdf5
from tsp_jax.system import files

# The mean adds up float32 rows in their order, as numpy does and as the original did.
POOLS: dict[str, Callable[[Float32[np.ndarray, "n f"]], Float32[np.ndarray, " f"]]] = {
    "max": lambda rows: np.max(rows, axis=0),
    "avg": lambda rows: np.mean(rows, axis=0),
}


def pool(rows: Float32[np.ndarray, "n f"], how: str) -> Float32[np.ndarray, " f"]:
    """Returns the global feature of a video: the features of its clips, pooled.

    Args:
      rows: the features of all its clips.
      how: a key of `POOLS`.

    Raises:
      ValueError: there is no clip, or a number is not finite.
    """
    if not len(rows):
        raise ValueError("no clips; the video is shorter than one")
    vector = POOLS[how](rows)
    if not np.all(np.isfinite(vector)):
        raise ValueError("a feature is not finite; extract the video again")
    return vector


def write(path: str | Path, vectors: Mapping[str, Float32[np.ndarray, " f"]], attributes: hdf5.Attributes) -> None:
    """Writes one vector for each video, whole or not at all: `file[video_name][()]` is float32 [width], gzip, as the original.

    Args:
      path: the HDF5 file.
      vectors: the global features, by the video's name.
      attributes: how they were made, as attributes of the file.
    """

    naming = attributes.get(hdf5.NAMING, video_names.DEFAULT)

    def fill(file: hdf5.File) -> None:
        hdf5.set_attributes(file, attributes)
        for name, vector in sorted(vectors.items()):
            key, data = hdf5.key(name, naming), vector.astype(hdf5.DTYPE)
            file.create_dataset(key, data=data, chunks=vector.shape, compression="gzip", compression_opts=9)

    with files.replacing(path) as temporary:
        temporary.write_bytes(hdf5.packed(fill))


def read(path: str | Path) -> dict[str, Float32[np.ndarray, " f"]]:
    """Returns the vector of each video, by name, from a file that `write` or the original wrote.

    Raises:
      FeatureFileError: the file is absent, or holds something else.
    """
    path = Path(path)
    vectors: dict[str, np.ndarray] = {}
    with hdf5.reading(path) as file:
        for name in hdf5.names(file):
            vectors[name] = hdf5.vector_dataset(file, name, path)[()]
    widths = {len(vector) for vector in vectors.values()}
    if len(widths) != 1:
        raise hdf5.FeatureFileError(f"{path}: expected vectors of one width, found {sorted(widths) or 'none'}")
    return vectors
