"""Reads a safetensors file that may be damaged or hostile, in NumPy alone.

The file has three parts: 8 bytes that hold the header's length, a JSON header that gives each array its type, shape and place,
and the arrays' bytes without gaps. Source: github.com/huggingface/safetensors, "Format".
"""

import json
import math
import os
from typing import Any, BinaryIO

import jax
import numpy as np

# A header of the largest network takes 0.05 MB; the limits are those of PyTorch files.
MAX_HEADER_BYTES = 4 * 1024**2
MAX_FILE_BYTES = 4 * 1024**3

_MAX_AXES = 64
_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jax.numpy.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def starts_like_one(start: bytes) -> bool:
    """Returns whether a file that starts with these bytes, at least 9, may be a safetensors file."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_FILE_BYTES


def read(file: BinaryIO, where: str) -> dict[str, np.ndarray]:
    """Returns the arrays by name, as read-only views of one buffer that holds the file's bytes.

    Args:
      file: the open file, at any position.
      where: the name of the file in messages.

    Raises:
      ValueError: the file is no safetensors file, or its header does not describe exactly the bytes that follow it.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    try:
        if size > MAX_FILE_BYTES:
            raise ValueError(f"expected at most {MAX_FILE_BYTES:,} bytes, found {size:,}")
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise ValueError(f"expected a header of 2 to {MAX_HEADER_BYTES:,} bytes, found the length {length:,}")
        if 8 + length > size:
            raise ValueError(f"expected a header of {length:,} bytes, found {max(0, size - 8):,} bytes up to the file's end")
        entries = _header(file.read(length))
        data = file.read(size - 8 - length)
        _check_places(entries, len(data))
    except ValueError as error:
        raise ValueError(f"{where}: not a whole safetensors file: {error}; copy or download it again") from error
    arrays = {}
    for name, (dtype, shape, begin, _) in entries.items():
        count = math.prod(shape)
        # NumPy makes no empty view at the end of a buffer.
        flat = np.frombuffer(data, dtype, count, offset=begin) if count else np.empty(0, dtype)
        arrays[name] = flat.reshape(shape)
    return arrays


_Entry = tuple[np.dtype, tuple[int, ...], int, int]


def _header(text: bytes) -> dict[str, _Entry]:
    """Returns type, shape, first byte and end of each array by name; raises ValueError if the header is not in the format."""
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repetition)
    except RecursionError as error:
        raise ValueError("its header nests too deep") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object as the header, found {type(content).__name__}")
    content.pop("__metadata__", None)  # text for readers
    return {name: _entry(name, entry) for name, entry in content.items()}


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object's pairs as a dict; raises ValueError if a name occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in its header")
    return found


def _entry(name: str, entry: Any) -> _Entry:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]} if len(entry) == 3:
            numbers = [*shape, begin, end]
        case _:
            raise ValueError(f"{name!r:.80}: expected dtype, shape and data_offsets, found {entry!r:.80}")
    if dtype not in _DTYPES:
        raise ValueError(f"{name!r:.80} has the type {dtype!r:.20}, which is not read; save the arrays as F32")
    if len(shape) > _MAX_AXES or not all(type(number) is int and 0 <= number <= MAX_FILE_BYTES for number in numbers):
        raise ValueError(f"{name!r:.80}: its shape and offsets are not a few whole numbers")
    expected = math.prod(shape) * _DTYPES[dtype].itemsize
    if end - begin != expected:
        raise ValueError(f"{name!r:.80}: expected {expected:,} bytes for {dtype} {shape!r:.80}, found {end - begin:,}")
    return _DTYPES[dtype], tuple(shape), begin, end


def _check_places(entries: dict[str, _Entry], size: int) -> None:
    """Checks that the arrays cover all of the bytes once; raises ValueError if they overlap or leave some out."""
    position = 0
    for name, (*_, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            fault = "overlaps" if begin < position else "leaves a gap behind"
            raise ValueError(
                f"{name!r:.80} begins at byte {begin:,} and {fault} the array before it, which ends at {position:,}"
            )
        position = end
    if position != size:
        raise ValueError(f"the header describes {position:,} bytes of arrays, found {size:,}")
