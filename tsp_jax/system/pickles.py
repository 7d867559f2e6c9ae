"""Reads pickles of plain values and NumPy arrays without running code from them, in memory of about the file's size.

Classes and functions that a pickle names are never called. Those with which NumPy pickles arrays and numbers are replaced by
descriptions, from which the arrays are made here after a check of their sizes; any other name is refused.
"""

import functools
import io
import itertools
import math
import pickle
import pickletools
import re
from typing import Any

import numpy as np

# A tuple is hashed with all its parts, however deep they are nested and however often each occurs in it. C's stack overflows
# at some 200,000 levels. Keys other than text can be chosen to collide, which takes time by the square of their number.
MAX_TUPLE_PARTS = 10_000
MAX_OTHER_KEYS = 2_000
_MAX_AXES = 32
_MAX_LEVELS = 50
_DTYPE = re.compile(r"[biuf][1248]|f16|S\d{1,4}|U\d{1,4}|O8?")
_TEXT = (pickletools.pyunicode, pickletools.pybytes, pickletools.pybytes_or_str)


class RefusedError(Exception):
    """The pickle must not be read; the message says why."""


def loads(data: bytes, where: str) -> Any:
    """Returns the content of a pickle: None, bool, numbers, text, bytes, lists, tuples, sets, dicts and NumPy arrays.

    Args:
      data: the pickle.
      where: the file's name, for messages.

    Raises:
      ValueError: the pickle is damaged, asks for something else, or claims more than it holds.
    """
    try:
        check_instructions(io.BytesIO(data))
        return _Builder(len(data)).value(_Describer(io.BytesIO(data), encoding="latin1").load())
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


class _Dtype:
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


class _Array:
    """Describes a NumPy array. `state` is what NumPy would make it from: (version, shape, dtype, Fortran order, data)."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Scalar:
    """Describes a number that NumPy pickled."""

    def __init__(self, dtype: Any, data: Any = None):
        self.state = (None, (), dtype, False, data)


class _FromBuffer:
    """Describes an array of pickle protocol 5."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any, *_rest: object):
        self.state = (None, shape, dtype, order == "F", data)


class _Bytes:
    """Describes bytes of protocol 2, which writes them as text for `codecs.encode`."""

    def __init__(self, text: object, encoding: object):
        if not (isinstance(text, str) and encoding in ("latin1", "latin-1")):
            raise RefusedError("bytes are written as no program writes them; the file is damaged")
        self.text = text


def _empty_array(*_arguments: object) -> _Array:
    return _Array()


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


_KNOWN: dict[str, Any] = {
    **{f"numpy.{core}.multiarray._reconstruct": _empty_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _Scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _FromBuffer for core in ("core", "_core")},
    "numpy.ndarray": _no_call,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _Bytes,
    "builtins.bytes": _empty_bytes,
    "builtins.set": _set,
    "collections.OrderedDict": _empty_dict,
}


class _Describer(pickle.Unpickler):
    """Reads a pickle with descriptions in place of arrays."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns what replaces a class or function; refuses names that are not known."""
        full_name = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full_name not in _KNOWN:
            hint = "; export it as arrays (tensor.numpy()) or JSON" if module.startswith("torch") else ""
            raise RefusedError(f"the pickle asks for {full_name!r:.120}, which plain values do not need; nothing was run{hint}")
        # A pickle may set attributes of what it asked for; those of this object die with it.
        return functools.partial(_KNOWN[full_name])


class _Builder:
    """Makes values in which arrays take the place of their descriptions."""

    def __init__(self, size: int):
        """Bounds what is made by the size of the pickle in bytes, for parts that a pickle refers to many times."""
        self._left = 8 * size + 1024
        self._made: dict[int, Any] = {}

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
            case _Array() | _FromBuffer():
                return self._array(described.state, level)
            case _Scalar():
                return self._array(described.state, level)[()]
            case _Bytes():
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
        if not isinstance(dtype, _Dtype):
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
        if isinstance(data, _Bytes):
            data = self.value(data, level)
        if isinstance(data, str):  # bytes of Python 2
            self._spend(len(data))
            data = data.encode("latin1")
        if not isinstance(data, bytes | bytearray) or len(data) != count * kind.itemsize:
            found = f"{len(data):,} bytes" if isinstance(data, bytes | bytearray) else type(data).__name__
            raise RefusedError(f"an array of shape {shape} and dtype {kind} has {found}; the file is damaged")
        return np.frombuffer(data, kind).reshape(shape, order=order)

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise RefusedError("the pickle repeats its content more often than any program does")


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
