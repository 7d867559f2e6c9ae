"""Describes what a pickle may ask for, so that it can be checked before anything is made of it."""

import re
from typing import Any, NamedTuple

import numpy as np

# Hashing keys other than text can take time by the square of their number, since they can be chosen to collide.
MAX_OTHER_KEYS = 2_000
_DTYPE = re.compile(r"[biuf][1248]|f16|S\d{1,4}|U\d{1,4}|O8?")
# fmt: off
STORAGES = {  # the dtypes of PyTorch's storages
    "Double": "f8", "Float": "f4", "Half": "f2", "BFloat16": "bf16", "Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1",
    "Byte": "u1", "Bool": "b1",
}
# fmt: on


class RefusedError(Exception):
    """The pickle must not be read; the message says why."""


class Dtype:
    """Describes a NumPy dtype.

    Attributes:
      name: the dtype's code, such as `f4`.
      order: the byte order, `<`, `>` or `|`.
    """

    def __init__(self, name: object, *_flags: object):
        if isinstance(name, bytes):
            name = name.decode("latin1")
        if not (isinstance(name, str) and _DTYPE.fullmatch(name)):
            raise RefusedError(f"an array's dtype is {name!r:.80}; expected numbers, text or bytes")
        self.name, self.order = name, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = {"<": "<", ">": ">", "|": "|", "=": "<"}[state[1]]

    def numpy(self) -> np.dtype:
        """Returns the NumPy dtype."""
        return np.dtype(self.name if self.name.startswith("O") else f"{self.order if self.order != '|' else '<'}{self.name}")


class Array:
    """Describes a NumPy array. `state` is what NumPy would make it from: (version, shape, dtype, Fortran order, data)."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Scalar:
    """Describes a number that NumPy pickled."""

    def __init__(self, dtype: Any, data: Any = None):
        self.state = (None, (), dtype, False, data)


class FromBuffer:
    """Describes an array of pickle protocol 5."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any, *_rest: object):
        self.state = (None, shape, dtype, order == "F", data)


class Bytes:
    """Describes bytes of protocol 2, which writes them as text for `codecs.encode`."""

    def __init__(self, text: object, encoding: object):
        if not (isinstance(text, str) and encoding in ("latin1", "latin-1")):
            raise RefusedError("bytes are written as no program writes them; the file is damaged")
        self.text = text


class StorageKind(NamedTuple):
    """Describes the class of a storage, by the dtype of its numbers."""

    dtype: str


class Storage(NamedTuple):
    """Describes the numbers of tensors: their dtype, the key under which their bytes are found, and their number."""

    dtype: str
    key: str
    size: int


class SavedStorage:
    """Describes a storage within a plain pickle, where it is a whole file of `torch.save`."""

    def __init__(self, data: object):
        self.data = data


class Tensor:
    """Describes a view of a storage, with its offset, shape and strides in numbers."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_rest: object):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides


def _empty_array(*_arguments: object) -> Array:
    return Array()


def _empty_bytes(*arguments: object) -> bytes:
    if arguments:
        raise RefusedError("bytes are written as no program writes them; the file is damaged")
    return b""


def _set(values: object = ()) -> set[Any]:
    if not isinstance(values, list | tuple) or sum(not isinstance(value, str) for value in values) > MAX_OTHER_KEYS:
        raise RefusedError("a set is made as no program makes it; the file is damaged")
    return set(values)


def _empty_dict(*arguments: object) -> dict[Any, Any]:
    if arguments and arguments != ([],):
        raise RefusedError("an OrderedDict or defaultdict is made as no program makes it; write a plain dict")
    return {}


def _no_call(*_arguments: object) -> None:
    raise RefusedError("the pickle calls a class as no program does; nothing was run")


KNOWN: dict[str, Any] = {
    **{f"numpy.{core}.multiarray._reconstruct": _empty_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": Scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": FromBuffer for core in ("core", "_core")},
    "numpy.ndarray": _no_call,
    "numpy.dtype": Dtype,
    "_codecs.encode": Bytes,
    "builtins.bytes": _empty_bytes,
    "builtins.set": _set,
    "collections.OrderedDict": _empty_dict,
    "torch._utils._rebuild_tensor": Tensor,
    "torch._utils._rebuild_tensor_v2": Tensor,
    "torch.storage._load_from_bytes": SavedStorage,
}
