"""Reads and writes files of PyTorch tensors without PyTorch, and without running code from them."""

import io
import math
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from tsp_jax.system import pickles

# Deflate packs at most 1032 to 1, so an archive that claims more lies.
MAX_PACKED_RATIO = 1100
_MAX_UNPACKED = 1 << 32  # bytes
_ZIP = b"PK\x03\x04"
_TENSOR = re.compile(r"[^/]+/data/([^/]+)")


def load(path: Path) -> Any:
    """Returns the content of a pickle or of a file that `torch.save` wrote; tensors are given as NumPy arrays.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, asks for code, or claims more than it holds.
    """
    data = path.read_bytes()
    if not data.startswith(_ZIP):
        return pickles.loads(data, str(path))
    members = unzipped(data, str(path))
    content = [name for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(content) != 1:
        raise ValueError(f"{path}: expected a file that torch.save wrote, found an archive of {sorted(members)[:3]}")
    if members.get(content[0].replace("data.pkl", "byteorder"), b"little") != b"little":
        raise ValueError(f"{path}: its numbers are in big-endian order, which is not read; save it on a common machine")
    storages = {found[1]: members[name] for name in members if (found := _TENSOR.fullmatch(name))}
    return pickles.loads(members[content[0]], str(path), storages=storages)


def unzipped(data: bytes, where: str) -> dict[str, bytes]:
    """Returns the members of an archive, by name.

    Args:
      data: the archive.
      where: the file's name, for messages.

    Raises:
      ValueError: the archive is damaged, encrypted, or claims more than it holds.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if any(item.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for item in members):
                raise ValueError("it is compressed otherwise than by deflate")
            if sum(item.file_size for item in members) > min(MAX_PACKED_RATIO * len(data), _MAX_UNPACKED):
                raise ValueError("it claims more than it holds")
            return {item.filename: archive.read(item) for item in members}
    # Which error zipfile raises on damage depends on its place; RuntimeError is for encrypted members.
    except (zipfile.BadZipFile, zlib.error, struct.error, ValueError, RuntimeError, EOFError, OSError, LookupError) as error:
        raise ValueError(f"{where}: expected an archive of arrays, found a damaged one ({error})") from error


def packed(array: Float32[np.ndarray, "..."]) -> bytes:
    """Returns the bytes of a file from which `torch.load` reads one tensor, float32 as the array."""
    data = np.ascontiguousarray(array, "<f4")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:  # without compression, as torch.load needs it
        for name, content in (
            ("data.pkl", b"\x80\x02" + _tensor(_reference("0", data.size) + b"Q", data.shape) + b"."),
            ("byteorder", b"little"),
            ("data/0", data.tobytes()),
            ("version", b"3\n"),
        ):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
    return stream.getvalue()


def pickled(content: Mapping[str, Float32[np.ndarray, "..."] | int]) -> bytes:
    """Returns a pickle of a dict whose arrays `pickle.load` gives as PyTorch tensors."""
    parts = [b"\x80\x03}("]
    for key, value in content.items():
        parts.append(_text(key))
        parts.append(_number(value) if isinstance(value, int) else _tensor(_storage(value), value.shape))
    return b"".join([*parts, b"u."])


def _tensor(storage: bytes, shape: tuple[int, ...]) -> bytes:
    """Returns instructions that make a contiguous tensor of the storage that other instructions make."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    sizes = [b"(" + b"".join(map(_number, numbers)) + b"t" for numbers in (shape, strides)]
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + _number(0) + b"".join(sizes) + hooks + b"tR"


def _storage(array: Float32[np.ndarray, "..."]) -> bytes:
    """Returns instructions that make a storage within a plain pickle, from a whole file of PyTorch's older layout."""
    data = np.ascontiguousarray(array, "<f4").tobytes()
    about = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    reference = b"\x80\x02" + _reference("0", array.size, b"N") + b"Q."
    plain = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, about)]
    file = b"".join([*plain, reference, pickle.dumps(["0"], 2), struct.pack("<q", array.size), data])
    return b"ctorch.storage\n_load_from_bytes\n(B" + struct.pack("<I", len(file)) + file + b"tR"


def _reference(key: str, size: int, view: bytes = b"") -> bytes:
    """Returns instructions that make the tuple by which PyTorch refers to a storage."""
    return b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(key) + _text("cpu") + _number(size) + view + b"t"


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _number(number: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", number)
