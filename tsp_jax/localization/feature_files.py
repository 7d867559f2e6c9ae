"""Reads and writes the features of one video in a file of its own, in the layouts of other tools.

Files may come from anyone: nothing in them is run, and no more memory is used than their bytes can fill.
"""

import io
import math
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from tsp_jax.features import hdf5
from tsp_jax.system import tables, tensor_files, texts

Rows = Float32[np.ndarray, "n c"]
# The endings of files of features; a file without one is a tensor of P-GCN.
ENDINGS = (".npy", ".npz", ".pkl", ".pickle", ".csv", ".pt", ".pth", ".h5", ".hdf5", "")
SLOW, FAST, FRAMES = "slow_feature", "fast_feature", "feature_frames"  # the dict of TCANet
_KEYS = ("feats", "features", "feature", "feat")  # names under which tools store an array next to others
_MAX_BYTES = 1 << 32  # half a million rows of 2,304 channels
_MAX_HEADER = 10_000  # bytes of a header of NumPy


def read(path: Path, *, key: str | None = None, channels_first: bool = False) -> Rows:
    """Returns the features in a file, float32 [n, channels].

    Args:
      path: the file; its ending decides how it is read.
      key: the name of the array in an archive, a dict or an HDF5 file; None takes the only one, or one of a usual name.
      channels_first: whether the file has [channels, n]. TCANet's dicts say so themselves.

    Raises:
      ValueError: the file is damaged, is no array of rows, or holds a number that is not finite.
      OSError: it can't be read.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes; expected the features of one video, at most {_MAX_BYTES:,}")
    ending = path.suffix.lower() if path.suffix.lower() in ENDINGS else ""
    match ending:
        case ".npy":
            found = _npy(path.read_bytes(), str(path))
        case ".npz":
            members = tensor_files.unzipped(path.read_bytes(), str(path))
            found = {name.removesuffix(".npy"): (data, f"{path} ({name})") for name, data in members.items()}
            found = _npy(*_chosen(found, key, path))
        case ".csv":
            found = _csv(path)
        case ".h5" | ".hdf5":
            found = _hdf5(path, key)
        case _:
            found = tensor_files.load(path)
    if isinstance(found, dict) and SLOW in found:
        return checked(_slow_fast(found, path), path)
    if isinstance(found, dict):
        found = _chosen(found, key, path)
    rows = _two_axes(found, path)
    return checked(rows.T if channels_first else rows, path)


def checked(rows: np.ndarray, where: object) -> Rows:
    """Returns features as float32 after a check of their numbers.

    Args:
      rows: the features, [n, channels], of any dtype of numbers.
      where: the file, for messages.

    Raises:
      ValueError: there are no rows or no channels, or a number is not finite as float32.
    """
    if not rows.size:
        raise ValueError(f"{where}: expected rows of features, found {rows.shape[0]} rows of {rows.shape[1]}")
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(rows, np.float32)
    finite = np.all(np.isfinite(rows), axis=1)
    if not np.all(finite):
        raise ValueError(
            f"{where}: row {int(np.argmin(finite))} of {len(rows)} (counted from 0) holds NaN, infinity or a number too large "
            "for float32; extract the video again"
        )
    return rows


def npy(rows: Rows) -> bytes:
    """Returns the bytes of an `.npy` file, [n, channels]."""
    stream = io.BytesIO()
    np.save(stream, rows)
    return stream.getvalue()


def npz(rows: Rows) -> bytes:
    """Returns the bytes of an `.npz` file with the array `feats`, as ActionFormer reads for EPIC-Kitchens and Ego4D."""
    stream = io.BytesIO()
    np.savez(stream, feats=rows)
    return stream.getvalue()


def pkl(rows: Rows) -> bytes:
    """Returns a pickled array, as the original of TSP writes it."""
    return pickle.dumps(rows)


def csv(rows: Rows) -> bytes:
    """Returns a CSV with a header f0, f1, …, as BSN and BMN write it; each number reads back exactly as float32."""
    stream = io.StringIO()
    stream.write(",".join(f"f{column}" for column in range(rows.shape[1])) + "\n")
    np.savetxt(stream, rows, fmt="%.9g", delimiter=",")
    return stream.getvalue().encode()


def slow_fast(rows: Rows, channels: int) -> bytes:
    """Returns a pickled dict of tensors, [1, channels, n], as TCANet reads it.

    Args:
      rows: the features, the slow path's on the left.
      channels: the number of the slow path's channels.
    """
    slow, fast = (np.ascontiguousarray(part.T[None]) for part in (rows[:, :channels], rows[:, channels:]))
    # TCANet joins the fast parts of several folders before it looks whether there are any, so they are there, with no channels.
    return tensor_files.pickled({SLOW: slow, FAST: fast, FRAMES: len(rows)})


WRITERS: Mapping[str, Callable[[Rows], bytes]] = {"npy": npy, "npz": npz, "pkl": pkl, "csv": csv, "pgcn": tensor_files.packed}


def _chosen(found: Mapping[Any, Any], key: str | None, path: Path) -> Any:
    keys = [str(name) for name in found]
    usual = [name for name in _KEYS if name in found]
    wanted = key if key is not None else keys[0] if len(keys) == 1 else usual[0] if len(usual) == 1 else None
    if wanted not in found:
        names = ", ".join(keys[:8]) + ("…" if len(keys) > 8 else "")
        raise ValueError(f"{path}: holds {names or 'nothing'}; pass --key with the name of the array of features")
    return found[wanted]


def _npy(data: bytes, where: str) -> np.ndarray:
    """Returns an array of NumPy's format. Its size is checked first, because NumPy makes room for whatever a header claims."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(stream, max_header_size=_MAX_HEADER)
    except Exception as error:  # the header is parsed as Python, which fails in many ways
        raise ValueError(f"{where}: expected an array of NumPy, found a damaged one or another file ({error})") from error
    if dtype.kind not in "fiub" or dtype.hasobject:
        raise ValueError(f"{where}: expected numbers, found an array of {dtype}; Python objects are not read from .npy files")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError(f"{where}: an array of shape {shape} has {len(data) - stream.tell():,} bytes; the file is damaged")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")


def _csv(path: Path) -> np.ndarray:
    with texts.opened(path, "expected a CSV of features") as stream:
        first = stream.readline()
        names = [texts.clean(name) for name in first.split(",")]
        try:
            header = [tables.parse_number(name) for name in names] and None
        except ValueError:
            header = names
        try:
            with warnings.catch_warnings(action="ignore"):  # NumPy warns of a file without rows, which `checked` refuses
                rows = np.loadtxt(stream if header else _with_line(first, stream), delimiter=",", ndmin=2, comments=None)
        except ValueError as error:
            raise ValueError(f"{path}: expected a CSV with a number in each field, one line a row ({error})") from error
    if header and rows.size and rows.shape[1] != len(header):
        raise ValueError(f"{path}: {len(header)} columns in the header, {rows.shape[1]} in the rows; the file is damaged")
    # pandas writes its index as a first column without a name, unless it is asked not to.
    index = bool(header) and not header[0] and rows.size and np.array_equal(rows[:, 0], np.arange(len(rows)))
    return rows[:, 1:] if index else rows


def _with_line(first: str, stream: io.TextIOWrapper) -> Any:
    yield first
    yield from stream


def _hdf5(path: Path, key: str | None) -> np.ndarray:
    with hdf5.reading(path) as file:
        return hdf5.foreign_dataset(file, _chosen({name: name for name in hdf5.names(file)}, key, path), path)[()]


def _slow_fast(found: Mapping[str, Any], path: Path) -> np.ndarray:
    """Returns the features of TCANet's dict: those of the slow path, then those of the fast path, on the channels."""
    parts = [np.asarray(found[name]) for name in (SLOW, FAST) if np.size(found.get(name, ())) > 0]
    if not parts or any(part.ndim != 3 or part.shape[0] != 1 for part in parts):
        raise ValueError(
            f"{path}: {SLOW} and {FAST} have the shapes {[part.shape for part in parts]}; expected [1, channels, n] for each"
        )
    counts = [part.shape[2] for part in parts]
    if len(set(counts)) > 1:
        raise ValueError(f"{path}: {SLOW} has {counts[0]} rows and {FAST} {counts[1]}; expected as many")
    return np.concatenate([part[0].T for part in parts], axis=1)


def _two_axes(found: Any, path: Path) -> np.ndarray:
    """Returns an array of two axes. Axes of one entry are left out before the rows and after the channels."""
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiub":
        kind = f"an array of {found.dtype}" if isinstance(found, np.ndarray) else type(found).__name__
        raise ValueError(f"{path}: expected an array of numbers, found {kind}")
    shape = found.shape
    while found.ndim > 2 and found.shape[-1] == 1:
        found = found[..., 0]
    while found.ndim > 2 and found.shape[0] == 1:
        found = found[0]
    if found.ndim != 2:
        raise ValueError(f"{path}: expected an array of [n, channels], found the shape {list(shape)}")
    return found
