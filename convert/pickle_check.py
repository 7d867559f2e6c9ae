"""Checks a PyTorch file that may be damaged or hostile before PyTorch reads it.

`torch.load(weights_only=True)` runs no code from a file, but it believes the sizes that the file claims: storages of any
length, and tensors that reach beyond their storage. So we read each pickle of the file twice. The first pass follows its
instructions without building anything. The second pass builds only descriptions, which are then compared with the bytes in
the file.
"""

import collections
import dataclasses
import io
import math
import os
import pickle
import reprlib
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

from convert import other_files, torch_names
from tsp_jax.system import pickles

# Several times the largest released file. A larger file is no checkpoint of these networks.
MAX_FILE_BYTES = 4 * 1024**3
# The pickles hold everything but the tensors' values: 0.1 MB in a full training checkpoint of the largest network.
MAX_PICKLE_BYTES = 4 * 1024**2

_Refusal = pickles.RefusedError
_MAX_INT = 1 << 63
_MAX_IN_SET = 1000
_MAX_NUMBERS = 129  # offset, shape and strides of one tensor; PyTorch's tensors have at most 64 axes


def check(file: BinaryIO, where: str) -> None:
    """Checks that PyTorch can load the file within memory of about the file's size, and that it asks for nothing but data.

    Args:
      file: the open file, at its start. Its position afterwards is anywhere.
      where: the name of the file in messages.

    Raises:
      ValueError: the file is not a PyTorch checkpoint, is damaged, claims more than it holds, or asks for code.
    """
    size, head = os.fstat(file.fileno()).st_size, file.read(300)
    start = head[:16]
    found = f"expected a PyTorch checkpoint, found {size:,} bytes that start with {start!r}"
    kind = other_files.by_start(head)
    if kind is not None:
        raise ValueError(f"{where}: {found}: {kind}")
    try:
        if size > MAX_FILE_BYTES:
            raise _Refusal(f"expected at most {MAX_FILE_BYTES:,} bytes, found {size:,}")
        _check_zip(file, size) if start[:4] == b"PK\3\4" else _check_legacy(file, size)
    except _Refusal as refusal:
        raise ValueError(f"{where}: {refusal}") from refusal
    except Exception as error:  # pickle and zipfile raise nearly anything on damaged bytes
        if other_files.is_text(head):
            raise ValueError(f"{where}: {found}: a text file; name the file of the weights") from error
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{where}: {found} ({reason:.200}); it is another kind of file or damaged: copy or download it again"
        ) from error


@dataclasses.dataclass(frozen=True)
class _StorageType:
    """An element type of arrays in a checkpoint.

    Attributes:
      name: the type's name in PyTorch, without `Storage`.
      itemsize: bytes of one element.
    """

    name: str
    itemsize: int


@dataclasses.dataclass(frozen=True)
class _Storage:
    """An array that a pickle says the file holds.

    Attributes:
      type: the type of its elements.
      numel: the number of its elements.
    """

    type: _StorageType
    numel: int

    @property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return self.type.itemsize * self.numel


class _Refused:
    """Replaces an unknown class or function of a pickle and does nothing."""

    def __init__(self, *_args, **_kwargs):
        pass

    def __setstate__(self, _state):
        pass


def _describe_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_rest: object) -> None:
    """Replaces the call that makes a tensor; checks that the tensor lies within its storage and repeats no value.

    The arguments come from the file, so they may be anything. PyTorch would enlarge the storage. An expanded tensor, small in
    the file, would become large when it is copied.
    """
    numbers = (offset, *shape, *strides)
    if len(numbers) > _MAX_NUMBERS or not all(type(number) is int and abs(number) <= _MAX_INT for number in numbers):
        raise _Refusal("a tensor's offset, shape and strides are not a few whole numbers; the file is damaged")
    end = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
    if min(numbers) < 0 or (
        math.prod(shape) > 0 and max(end, math.prod(shape)) > storage.numel  # an empty tensor reads nothing
    ):
        raise _Refusal(
            f"a tensor of shape {shape!r:.80} reaches beyond its storage of {storage.numel} values; "
            "the file is damaged: copy or download it again"
        )


class PassedOver:
    """Replaces a value next to the weights that they do not need, such as a number of NumPy or a path. It holds nothing."""

    def __init__(self, *_args: object):
        pass

    def __setstate__(self, _state: object):
        pass


class NumpyArray(PassedOver):
    """Replaces an array of NumPy."""


def _plain_dict(*_factory: object) -> dict[Any, Any]:
    """Replaces the class defaultdict, which pickle makes empty and then fills."""
    return {}


def _plain_list(*_items: object) -> list[Any]:
    """Replaces the class deque, which pickle makes empty and then fills."""
    return []


def _ordered_dict(*items: object) -> collections.OrderedDict:
    """Replaces the class OrderedDict, which pickle makes empty and then fills."""
    if items:
        raise _Refusal("an OrderedDict is made as PyTorch never makes one; save the file again where it was made")
    return collections.OrderedDict()


def _counter(counts: object) -> collections.Counter:
    """Replaces the class Counter, which pickle makes from a dict."""
    if not isinstance(counts, dict):
        raise _Refusal("a Counter is made as PyTorch never makes one; save the file again where it was made")
    return collections.Counter(counts)


# What programs save next to the weights, by the stand-in that is made of it, both here and by PyTorch.
STAND_INS: dict[str, Callable[..., object]] = {
    **{f"numpy.{core}.multiarray._reconstruct": NumpyArray for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": PassedOver for core in ("core", "_core")},
    **dict.fromkeys(["argparse.Namespace", "builtins.bytes", "numpy.dtype", "numpy.ndarray"], PassedOver),
    **{f"pathlib.{kind}": PassedOver for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")},
    **{f"datetime.{kind}": PassedOver for kind in ("date", "datetime", "time", "timedelta", "timezone")},
    **{f"builtins.{kind}": PassedOver for kind in ("bool", "dict", "float", "int", "list", "range", "str", "tuple", "xrange")},
    "collections.defaultdict": _plain_dict,
    "collections.deque": _plain_list,
}
# The names that a checkpoint of weights may ask for. OrderedDict and Counter only hold data; all else is described, not made.
_ITEMSIZES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1}
_DTYPES = ("float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool")
_ALLOWED: dict[str, Callable[..., object] | _StorageType] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,  # the milestones of PyTorch's own schedulers
    "torch._utils._rebuild_tensor_v2": _describe_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_rest: data,
    **{f"torch.{name}Storage": _StorageType(name, size) for name, size in (_ITEMSIZES | {"Bool": 1}).items()},
    **STAND_INS,
    # PyTorch makes these by itself.
    **dict.fromkeys(["builtins.complex", "torch.device", *(f"torch.{name}" for name in _DTYPES)], PassedOver),
}


class _Describer(pickle.Unpickler):
    """Reads a checkpoint's pickle as descriptions.

    Attributes:
      content: the object that the pickle holds, with None in place of each tensor.
      protocols: the pickle protocols that the pickle names.
      refused: full names of classes and functions that the pickle asks for and may not have.
      storages: the arrays that the pickle describes, by key.
    """

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data))
        self.content: Any = None
        self.protocols: set[int] = set()
        self.refused: list[str] = []
        self.storages: dict[str, _Storage] = {}
        self._left = len(data)

    def find_class(self, module: str, name: str) -> Any:
        """Returns the harmless replacement of a class or function; notes its name if it is not allowed."""
        full_name = f"{'builtins' if module == '__builtin__' else module}.{name}"
        made_by_pytorch = {"_codecs.encode": self._bytes, "builtins.set": self._set, "torch.Size": self._size}
        if full_name in made_by_pytorch:
            return made_by_pytorch[full_name]
        if full_name not in _ALLOWED:
            self.refused.append(full_name)
        return _ALLOWED.get(full_name, _Refused)

    def _bytes(self, text: object, encoding: object) -> PassedOver:
        """Replaces the call that makes bytes, which protocol 2 writes as text."""
        if not (isinstance(text, str) and encoding in ("latin1", "latin-1")):
            raise _Refusal("bytes are written as no program writes them; the file is damaged")
        self._spend(len(text))
        return PassedOver()

    def _set(self, items: object = ()) -> PassedOver:
        """Replaces the call that makes a set. It is small, because hashes can be chosen to collide."""
        if not isinstance(items, list) or len(items) > _MAX_IN_SET:
            raise _Refusal("a set is made as no program makes it; save the file again where it was made")
        self._spend(len(items))
        return PassedOver()

    def _size(self, sizes: object = ()) -> PassedOver:
        """Replaces the call that makes a tensor's size."""
        if not isinstance(sizes, tuple | list):
            raise _Refusal("a size is made as no program makes it; save the file again where it was made")
        self._spend(len(sizes))
        return PassedOver()

    def _spend(self, size: int) -> None:
        """Bounds what is made of parts that a pickle may name many times."""
        self._left -= size
        if self._left < 0:
            raise _Refusal("the pickle repeats its content as no program does; save the file again where it was made")

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the description of the array that a pickle refers to."""
        match pid:
            case ("storage", _StorageType() as kind, str(key), _, int(numel)) if 0 <= numel <= _MAX_INT:
                pass
            case ("storage", _StorageType() as kind, str(key), _, int(numel), None) if 0 <= numel <= _MAX_INT:
                pass
            case _:
                raise _Refusal(f"expected a storage's description, found {reprlib.repr(pid)}")
        storage = _Storage(kind, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise _Refusal(f"storage {key} is described twice: {self.storages[key]} and {storage}")
        return storage


def _check_zip(file: BinaryIO, size: int) -> None:
    """Checks that the arrays that the pickle of a zip describes are the members of the zip."""
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise _Refusal("two members of the zip have the same name")
        kind = other_files.by_members(members)
        if kind is not None:
            raise _Refusal(f"expected a PyTorch checkpoint, found {kind}")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise _Refusal("members of the zip are compressed, which PyTorch never does; a zip of a checkpoint? unpack it")
        if sum(member.file_size for member in members.values()) > size:
            raise _Refusal(f"the members of the zip claim more than its {size:,} bytes")
        inside = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(inside) != 1:
            raise pickles.RefusedError(
                f"expected a zip written by torch.save, with one data.pkl; found {torch_names.summarise(members)}"
            )
        folder = inside[0].removesuffix("data.pkl")
        if members[inside[0]].file_size > MAX_PICKLE_BYTES:
            raise pickles.RefusedError(
                f"expected at most {MAX_PICKLE_BYTES:,} bytes of pickle, found {members[inside[0]].file_size:,}"
            )
        described = _describe_pickle(io.BytesIO(archive.read(inside[0])))
        damaged = archive.testzip()  # PyTorch compares no checksums
        if damaged:
            raise _Refusal(f"the checksum of {damaged} is wrong; the file is damaged: copy or download it again")
    _check_protocol(described)
    for key, storage in described.storages.items():
        member = members.get(f"{folder}data/{key}")
        if member is None or member.file_size != storage.nbytes:
            found = "nothing" if member is None else f"{member.file_size:,}"
            raise _Refusal(f"storage {key} has {storage.nbytes:,} bytes by the pickle; found {found} in the zip")


def _check_legacy(file: BinaryIO, size: int) -> None:
    """Checks that the arrays that the pickles of an older file describe are the bytes that follow them."""
    file.seek(0)
    stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    magic = _describe_pickle(stream).content
    if magic != 0x1950A86A20F9469CFC6C:
        raise _Refusal(f"expected a file written by torch.save, found a pickle of {type(magic).__name__}")
    for _ in ("protocol version", "system"):
        _describe_pickle(stream)
    described = _describe_pickle(stream)
    _check_protocol(described)
    storages, keys = described.storages, _describe_pickle(stream).content
    if not isinstance(keys, list) or sorted(keys) != sorted(storages):
        raise _Refusal("the arrays that the file lists are not those that it describes; copy or download it again")
    position = stream.tell()
    for key in keys:
        file.seek(position)
        numel = int.from_bytes(file.read(8), "little", signed=True)
        position += 8 + storages[key].nbytes
        if position > size:
            raise _Refusal(
                f"expected {position:,} bytes up to the end of storage {key}, found {size:,}; the file was cut short or "
                "lies: copy or download it again"
            )
        if numel != storages[key].numel:
            raise _Refusal(f"storage {key} has {storages[key].numel:,} values by the pickle, {numel:,} by its header")


def _check_protocol(described: _Describer) -> None:
    """Checks that the pickle has the protocol that torch.save uses."""
    if described.protocols != {2}:
        found = ", ".join(map(str, sorted(described.protocols))) or "none"
        raise _Refusal(f"expected pickle protocol 2, torch.save's own, found {found}; save it without pickle_protocol")


def _describe_pickle(stream: io.BytesIO) -> _Describer:
    """Reads the next pickle of a stream as descriptions."""
    start = stream.tell()
    protocols = pickles.check_instructions(stream)
    end = stream.tell()
    stream.seek(start)
    describer = _Describer(stream.read(end - start))
    try:
        describer.content = describer.load()
    finally:
        if describer.refused:  # even if their absence has led to another error
            raise _Refusal(
                f"the file asks for {', '.join(map(repr, dict.fromkeys(describer.refused)))}, which a checkpoint of weights "
                "does not need; none of it was run. If you trust the file, load it where it was made, and save "
                "{'model': its state dict} alone"
            )
    describer.protocols = protocols
    return describer
