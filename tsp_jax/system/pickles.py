"""Reads pickles of plain values, NumPy arrays and PyTorch tensors without running code from them.

Classes and functions that a pickle names are never called. Those with which NumPy and PyTorch pickle arrays and numbers are
replaced by descriptions, from which arrays are made here after a check of their sizes; any other name is refused. The memory
in use is about the file's size.
"""

import functools
import io
import itertools
import math
import pickle
import pickletools
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from tsp_jax.system import pickle_descriptions as descriptions

# A tuple is hashed with all its parts, however deep they are nested and however often each occurs in it. C's stack overflows
# at some 200,000 levels. Keys other than text can be chosen to collide, which takes time by the square of their number.
MAX_TUPLE_PARTS = 10_000
MAX_OTHER_KEYS = descriptions.MAX_OTHER_KEYS
_MAX_AXES = 32
_MAX_LEVELS = 50
_SAVED = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of `torch.save` before PyTorch 1.6 begin
_TEXT = (pickletools.pyunicode, pickletools.pybytes, pickletools.pybytes_or_str)

RefusedError = descriptions.RefusedError


def loads(data: bytes, where: str, *, storages: Mapping[str, bytes] | None = None) -> Any:
    """Returns the content of a pickle: None, bool, numbers, text, bytes, lists, tuples, sets, dicts and NumPy arrays.

    Tensors of PyTorch are given as NumPy arrays; those of bfloat16 as float32.

    Args:
      data: the pickle, or a file that `torch.save` wrote before PyTorch 1.6.
      where: the file's name, for messages.
      storages: the bytes of tensors that lie next to the pickle, by their key, as in newer files of `torch.save`.

    Raises:
      ValueError: the pickle is damaged, asks for something else, or claims more than it holds.
    """
    try:
        if data.startswith(_SAVED):
            return _saved(data, 0)
        check_instructions(io.BytesIO(data))
        described = _Describer(io.BytesIO(data), encoding="latin1").load()
        return _Builder(len(data) + sum(map(len, (storages or {}).values())), storages or {}).value(described)
    except RefusedError as refusal:
        raise ValueError(f"{where}: {refusal}") from refusal
    except Exception as error:  # pickle raises nearly anything on damaged bytes
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{where}: expected a pickle of plain values and NumPy arrays, found a damaged one or another file ({reason:.200})"
        ) from error


def check_instructions(stream: io.BytesIO) -> set[int]:
    """Checks that the next pickle of a stream can be read in little time and memory; returns the protocols that it names.

    The instructions are followed without building anything, since pickle would make room for strings and a memo of any size.

    Raises:
      RefusedError: the pickle has a memo, tuples or keys as no program writes them.
      Exception: of nearly any kind: it is damaged.
    """
    protocols: set[int] = set()
    # For each object, the number of parts that hashing it visits. It is 0 for text, whose hash is cached, and None for a mark.
    stack: list[int | None] = []
    memo: dict[int, int | None] = {}
    other_keys = 0
    for index, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        match instruction.name:
            case "PROTO":
                protocols.add(argument or 0)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                if (argument or 0) > index:
                    raise RefusedError("the pickle numbers its objects as no program does")
                memo[argument or 0] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument or 0])
            case "DUP":
                stack.append(stack[-1])
            case "POP":
                stack.pop()
            case "MARK":
                stack.append(None)
            case name:
                taken = [part for kind in reversed(instruction.stack_before) for part in _taken(stack, kind)]
                if name in ("SETITEM", "SETITEMS", "DICT"):
                    other_keys += sum(part != 0 for part in taken[1::2])
                if name in ("ADDITEMS", "FROZENSET"):
                    other_keys += sum(part != 0 for part in taken)
                parts = 1 + sum(taken)
                if any(kind in _TEXT for kind in instruction.stack_after):
                    parts = 0
                elif any(kind in (pickletools.pylist, pickletools.pydict) for kind in instruction.stack_after):
                    parts = 1  # lists and dicts can't be hashed
                if parts > MAX_TUPLE_PARTS or other_keys > MAX_OTHER_KEYS:
                    raise RefusedError("the pickle nests or numbers its objects as no program does")
                stack += [parts] * len(instruction.stack_after)
    return protocols


class _Describer(pickle.Unpickler):
    """Reads a pickle with descriptions in place of arrays.

    Attributes:
      kinds: the dtypes of the storages to which the pickle refers, by key.
    """

    def __init__(self, stream: io.BytesIO, *, encoding: str):
        super().__init__(stream, encoding=encoding)
        self.kinds: dict[str, str] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Returns what replaces a class or function; refuses names that are not known."""
        full_name = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if module == "torch" and name.removesuffix("Storage") in descriptions.STORAGES:
            return descriptions.StorageKind(descriptions.STORAGES[name.removesuffix("Storage")])
        if full_name not in descriptions.KNOWN:
            hint = "; export it as arrays (tensor.numpy()) or JSON" if module.startswith("torch") else ""
            raise RefusedError(f"the pickle asks for {full_name!r:.120}, which plain values do not need; nothing was run{hint}")
        # A pickle may set attributes of what it asked for; those of this object die with it.
        return functools.partial(descriptions.KNOWN[full_name])

    def persistent_load(self, pid: Any) -> descriptions.Storage:
        """Returns the description of a storage, to which a file of `torch.save` refers in this way."""
        match pid:
            # Before PyTorch 1.6 there is a sixth part, for views of a storage, which no program writes any more.
            case ("storage", descriptions.StorageKind(dtype), str(key), str(), int(size), *rest) if rest in ([], [None]):
                self.kinds[key] = dtype
                return descriptions.Storage(dtype, key, max(size, 0))
        raise RefusedError(f"the pickle refers to {pid!r:.80}, which is no plain tensor; export it as arrays (tensor.numpy())")


class _Builder:
    """Makes values in which arrays take the place of their descriptions."""

    def __init__(self, size: int, storages: Mapping[str, bytes], level: int = 0):
        """Prepares for the values of one pickle.

        Args:
          size: the size of the pickle in bytes, which bounds what is made of parts that the pickle refers to many times.
          storages: the bytes of tensors, by key.
          level: how many pickles this one lies in.
        """
        self._left = 8 * size + 1024
        self._made: dict[int, Any] = {}
        self._storages, self._level = storages, level

    def value(self, described: Any, level: int = 0) -> Any:
        """Returns the value that was described."""
        if level > _MAX_LEVELS:
            raise RefusedError(f"values are nested deeper than {_MAX_LEVELS} levels")
        if isinstance(described, None | bool | int | float | str | bytes | set | frozenset):
            return described
        if id(described) not in self._made:
            self._made[id(described)] = self._make(described, level)
        return self._made[id(described)]

    def _make(self, described: Any, level: int) -> Any:
        match described:
            case descriptions.Array() | descriptions.FromBuffer():
                return self._array(described.state, level)
            case descriptions.Scalar():
                return self._array(described.state, level)[()]
            case descriptions.Tensor():
                return self._tensor(described, level)
            case descriptions.Storage():
                return self._numbers(described)
            case descriptions.SavedStorage():
                data = self.value(described.data, level)
                if not (isinstance(data, bytes) and data.startswith(_SAVED)):
                    raise RefusedError("a tensor is written as no program writes it; the file is damaged")
                self._spend(len(data))
                return _saved(data, self._level + 1)
            case descriptions.Bytes():
                self._spend(len(described.text))
                return described.text.encode("latin1")
            case dict():
                return {key: self.value(item, level + 1) for key, item in described.items()}
            case list() | tuple():
                return type(described)(self.value(item, level + 1) for item in described)
        raise RefusedError(f"a value is of type {type(described).__name__}; expected plain values and arrays")

    def _array(self, state: Any, level: int) -> np.ndarray:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise RefusedError("an array has no content; the file is damaged")
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, descriptions.Dtype):
            raise RefusedError("an array has no dtype; the file is damaged")
        shape = (shape,) if isinstance(shape, int) else shape
        if not (
            isinstance(shape, tuple)
            and len(shape) <= _MAX_AXES
            and all(type(number) is int and 0 <= number < 1 << 48 for number in shape)
        ):
            raise RefusedError("an array's shape is not a few whole numbers; the file is damaged")
        count, kind, order = math.prod(shape), dtype.numpy(), "F" if fortran else "C"
        if kind.hasobject:
            if not (isinstance(data, list | tuple) and len(data) == count):
                raise RefusedError(f"an array of shape {shape} does not hold {count} values; the file is damaged")
            self._spend(count)
            array = np.empty(count, object)
            array[:] = [self.value(item, level + 1) for item in data]
            return array.reshape(shape, order=order)
        if isinstance(data, descriptions.Bytes):
            data = self.value(data, level)
        if isinstance(data, str):  # bytes of Python 2
            self._spend(len(data))
            data = data.encode("latin1")
        if not isinstance(data, bytes | bytearray) or len(data) != count * kind.itemsize:
            found = f"{len(data):,} bytes" if isinstance(data, bytes | bytearray) else type(data).__name__
            raise RefusedError(f"an array of shape {shape} and dtype {kind} has {found}; the file is damaged")
        return np.frombuffer(data, kind).reshape(shape, order=order)

    def _tensor(self, tensor: descriptions.Tensor, level: int) -> np.ndarray:
        storage = self.value(tensor.storage, level + 1)
        if not (isinstance(storage, np.ndarray) and storage.ndim == 1):
            raise RefusedError("a tensor has no content; the file is damaged")
        shape, strides = tensor.shape, tensor.strides
        sizes = (tensor.offset, *shape, *strides) if isinstance(shape, tuple) and isinstance(strides, tuple) else (None,)
        if len(sizes) != 1 + 2 * len(shape) or len(shape) > _MAX_AXES:
            raise RefusedError("a tensor's shape and strides do not fit; the file is damaged")
        if not all(type(number) is int and 0 <= number < 1 << 48 for number in sizes):
            raise RefusedError("a tensor's shape is not a few whole numbers; the file is damaged")
        count = math.prod(shape)
        last = tensor.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if count and last >= len(storage):
            raise RefusedError(f"a tensor of shape {shape} claims more than its {len(storage)} numbers; the file is damaged")
        if count > len(storage):  # a tensor may repeat its numbers, by strides of 0
            self._spend(count * storage.itemsize)
        if not count:
            return np.zeros(shape, storage.dtype)
        steps = [stride * storage.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(storage[tensor.offset :], shape, steps, writeable=False)

    def _numbers(self, storage: descriptions.Storage) -> np.ndarray:
        wide = storage.dtype == "bf16"
        kind = np.dtype("<u2" if wide else f"<{storage.dtype}")
        data = self._storages.get(storage.key, b"")
        if len(data) < storage.size * kind.itemsize:
            raise RefusedError(f"a tensor of {storage.size} numbers has {len(data):,} bytes; the file is damaged")
        numbers = np.frombuffer(data, kind, storage.size)
        return (numbers.astype("<u4") << 16).view("<f4") if wide else numbers  # bfloat16 is the upper half of float32

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise RefusedError("the pickle repeats its content more often than any program does")


def _saved(data: bytes, level: int) -> Any:
    """Returns the content of a file that `torch.save` wrote before PyTorch 1.6: five pickles, then the bytes of storages."""
    if level > _MAX_LEVELS:
        raise RefusedError(f"values are nested deeper than {_MAX_LEVELS} levels")
    stream, described, kinds = io.BytesIO(data), [], {}
    for _ in range(5):  # a magic number, a version, the sizes of types, the content, the keys of the storages
        first = stream.tell()
        check_instructions(stream)
        describer = _Describer(io.BytesIO(data[first : stream.tell()]), encoding="latin1")
        described.append(describer.load())
        kinds |= describer.kinds
    storages = {}
    for key in described[4] if isinstance(described[4], list) else [None]:
        (count,) = struct.unpack("<q", stream.read(8))
        if key not in kinds or not 0 <= count <= len(data):
            raise RefusedError("the storages of tensors are not those that the pickle refers to; the file is damaged")
        storages[key] = stream.read(count * int(kinds[key][-1] if kinds[key] != "bf16" else 2))
    return _Builder(len(data), storages, level).value(described[3])


def _taken(stack: list[int | None], kind: pickletools.StackObject) -> list[int]:
    """Takes one of the objects that an instruction needs off the stack; returns the parts of what was taken, last first."""
    if kind is pickletools.stackslice:
        above = list(itertools.takewhile(lambda part: part is not None, reversed(stack)))
        del stack[len(stack) - len(above) :]
        return [part for part in above if part is not None]
    part = stack.pop()
    if (part is None) != (kind is pickletools.markobject):
        raise ValueError("an instruction of the pickle finds other objects than it needs")
    return [] if part is None else [part]
