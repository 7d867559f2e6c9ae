"""Converts a PyTorch checkpoint of TSP, of torchvision or of ig65m into a checkpoint folder of this project."""

import argparse
import collections
import dataclasses
import hashlib
import io
import itertools
import logging
import math
import os
import pathlib
import pickle
import pickletools
import reprlib
import sys
import types
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np

from convert import torch_names
from tsp_jax import checkpoints
from tsp_jax.models import video_resnet
from tsp_jax.system import cli

# Several times the largest released file: what is larger is no checkpoint of these networks.
MAX_FILE_BYTES = 4 * 1024**3
# All but the tensors' values. A full training checkpoint of the largest network has 0.1 MB of it.
MAX_PICKLE_BYTES = 4 * 1024**2
# A tuple is hashed with all its parts, however deep they nest and as often as each stands in it; the stack of C overflows at
# some 200,000 levels. Other keys than text can be chosen to collide, which takes time by the square of their number.
MAX_TUPLE_PARTS = 10_000
MAX_OTHER_KEYS = 2_000
FILE_SUFFIXES = (".pth", ".pt", ".tar")

_log = logging.getLogger(__name__)


def read_any(spec: str) -> checkpoints.Checkpoint:
    """The checkpoint in a PyTorch file, or that of a released name, which is downloaded first unless it is in the cache.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the name is unknown, or the file is not a checkpoint of a known model.
      convert.released.DownloadError: the released file could not be had.
      ModuleNotFoundError: PyTorch is not installed.
    """
    path = pathlib.Path(spec)
    if path.is_file() or path.suffix in FILE_SUFFIXES or len(path.parts) > 1:
        return read_pth(path)
    import_torch()  # before a download that would be of no use
    from convert import released  # here, so that --help and files need no more than PyTorch

    try:
        model = released.find(spec)
    except ValueError as error:
        found = "a folder" if path.is_dir() else "no file"
        raise ValueError(f"expected a .pth file or a released name; {spec} is {found} here, and {error}") from error
    return read_pth(released.fetch(model), source=model.name)


def read_pth(path: str | pathlib.Path, source: str = "") -> checkpoints.Checkpoint:
    """The checkpoint in a PyTorch file of either format, without running any code from it.

    Reads the original's training checkpoints (dicts with `model` and more), bare state dicts, and bare backbones with
    or without their Kinetics head; see `torch_names.rename`. What was changed stands in the origin's note.

    Args:
      path: the file.
      source: what the origin calls it; by default the file's name.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a checkpoint, is damaged, asks for code to be run, or does not fit a known model.
      ModuleNotFoundError: PyTorch is not installed.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; expected a PyTorch checkpoint")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise ValueError(f"{path} is {kind}; expected a PyTorch checkpoint file")
    with path.open("rb") as file:
        _check_file(file, str(path))
        torch = import_torch()
        content = _load(torch, file, str(path))
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    tensors = _state_dict(torch, content, str(path))
    names, note = torch_names.rename(tensors)
    if note:
        _log.info("%s: %s", path, note)
    arrays = {name: _to_numpy(torch, tensors[key]) for key, name in names.items()}
    config, variables = torch_names.from_state_dict(arrays, str(path))
    return checkpoints.make(config, variables, checkpoints.Origin(source or path.name, sha256, note))


def import_torch() -> types.ModuleType:
    """PyTorch, imported at the first call: it is an optional dependency, and takes seconds.

    Raises:
      ModuleNotFoundError: it is not installed; the message says how to install it.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        message = "PyTorch checkpoints are read and written by PyTorch, which is not installed: "
        raise ModuleNotFoundError(f"{message}pip install 'tsp_jax[convert]'", name="torch") from error
    return torch


def describe(checkpoint: checkpoints.Checkpoint) -> str:
    """Lines that say what a checkpoint holds and where it comes from."""
    config, origin = checkpoint.config, checkpoint.origin
    heads = [f"{name} ({n} labels)" for name, n in zip(config.head_names, config.label_counts, strict=True)]
    params = jax.tree.leaves(checkpoint.variables["params"])
    lines = [
        f"backbone: {config.backbone}",
        f"heads: {', '.join(heads) or 'none'}; GVF: {'yes' if config.gvf else 'no'}",
        f"{len(jax.tree.leaves(checkpoint.variables))} arrays, {sum(leaf.size for leaf in params):,} parameters",
        f"source: {origin.source}, SHA-256 {origin.source_sha256 or 'none'}",
        *([f"note: {origin.note}"] if origin.note else []),
        f"weights: SHA-256 {checkpoint.weights_sha256}",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of the command line: 0, or 1 with one message on stderr.

    Raises:
      SystemExit: with status 2 after wrong use, 0 after --help, as argparse does.
    """
    parser = argparse.ArgumentParser(
        prog="python -m convert.torch_to_orbax",
        description="Convert a PyTorch checkpoint into a checkpoint folder. No code from the file is run.",
        epilog="example:\n  python -m convert.torch_to_orbax --checkpoint r2plus1d_34-tsp_on_activitynet --output tsp_34",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="FILE|NAME",
        help="a .pth file, or a released name (python -m convert.released --list shows them)",
    )
    parser.add_argument("--output", required=True, type=pathlib.Path, metavar="DIR", help="the folder to write")
    parser.add_argument("--backbone", choices=video_resnet.BACKBONES, help="fail unless it is this backbone")
    parser.add_argument("--overwrite", action="store_true", help="replace the checkpoint in DIR")
    args = parser.parse_args(argv)
    cli.show_any_name()
    try:
        checkpoints.check_output(args.output, args.overwrite)  # before the work
        checkpoint = read_any(args.checkpoint)
        if args.backbone and args.backbone != checkpoint.config.backbone:
            raise ValueError(
                f"{args.checkpoint}: expected {args.backbone} (--backbone), found {checkpoint.config.backbone}; "
                "give that one or leave the flag out"
            )
        checkpoints.save(args.output, checkpoint, overwrite=args.overwrite)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{describe(checkpoint)}\nwritten to {args.output}")
    return 0


def _state_dict(torch: types.ModuleType, content: Any, where: str) -> Mapping[str, Any]:
    """The tensors by name in what a file holds."""
    expected = "expected a dict with the state dict under 'model', or a state dict itself"
    if not isinstance(content, dict):
        raise ValueError(f"{where}: {expected}; found {type(content).__name__}")
    state = dict.get(content, "model", content)
    if not isinstance(state, dict):
        raise ValueError(f"{where}: {expected}; found {type(state).__name__} under 'model'")
    state = dict(dict.items(state))  # the class's methods: a file may hide those of an OrderedDict
    if not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()):
        raise ValueError(f"{where}: {expected}; found {torch_names.summarise(state)}")
    return state


def _to_numpy(torch: types.ModuleType, tensor: Any) -> np.ndarray:
    """The tensor's values, not copied."""
    if tensor.dtype == torch.bfloat16:  # has no conversion of its own
        return tensor.detach().view(torch.int16).numpy().view(jax.numpy.bfloat16)
    return tensor.detach().numpy()


# From here on: reading a file that may be damaged or hostile. `torch.load(weights_only=True)` runs no code from a file,
# but believes what it says on sizes: storages of any length, tensors that reach beyond them. So the file's pickles are
# read twice, first with nothing but descriptions built from them, and those compared with the bytes that are there.


_MAX_INT = 1 << 63
_MAX_NUMBERS = 129  # of a tensor: PyTorch's has at most 64 axes
_TEXT = (pickletools.pyunicode, pickletools.pybytes, pickletools.pybytes_or_str)


class _Refusal(Exception):
    """Why a file is not loaded."""


@dataclasses.dataclass(frozen=True)
class _StorageType:
    """A kind of array in a checkpoint."""

    name: str
    itemsize: int


@dataclasses.dataclass(frozen=True)
class _Storage:
    """An array that a pickle says the file holds."""

    type: _StorageType
    numel: int

    @property
    def nbytes(self) -> int:
        return self.type.itemsize * self.numel


class _Refused:
    """What an unknown class or function of a pickle is read as; does nothing."""

    def __init__(self, *_args, **_kwargs):
        pass

    def __setstate__(self, _state):
        pass


def _describe_tensor(storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int], *_rest: object) -> None:
    """Stands for the call that makes a tensor, and checks that it lies within its storage, no value shown twice.

    PyTorch would enlarge the storage; and an expanded tensor, small in the file, would be large when copied.
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


def _ordered_dict(*items: object) -> collections.OrderedDict:
    """Stands for the class: pickle makes it empty and then fills it."""
    if items:
        raise _Refusal("an OrderedDict is made as PyTorch never makes one; save the file anew where it was made")
    return collections.OrderedDict()


def _counter(counts: object) -> collections.Counter:
    """Stands for the class, which pickle makes from a dict."""
    if not isinstance(counts, dict):
        raise _Refusal("a Counter is made as PyTorch never makes one; save the file anew where it was made")
    return collections.Counter(counts)


# Everything that a checkpoint of weights may name. The three classes only hold data; the rest is described, not made.
_ITEMSIZES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1}
_ALLOWED: dict[str, Callable[..., object] | _StorageType] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,  # the milestones of PyTorch's own schedulers
    "argparse.Namespace": argparse.Namespace,
    "torch._utils._rebuild_tensor_v2": _describe_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_rest: data,
    **{f"torch.{name}Storage": _StorageType(name, size) for name, size in (_ITEMSIZES | {"Bool": 1}).items()},
}


class _Describer(pickle.Unpickler):
    """Reads a checkpoint's pickle as descriptions: tensors as None, what it may not ask for by name in `refused`."""

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data))
        self.content: Any = None
        self.protocols: set[int] = set()
        self.refused: list[str] = []
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full_name not in _ALLOWED:
            self.refused.append(full_name)
        return _ALLOWED.get(full_name, _Refused)

    def persistent_load(self, pid: Any) -> _Storage:
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


def _check_file(file: BinaryIO, where: str) -> None:
    """Passes when PyTorch can load the file within memory of about its size, and it asks for nothing but data."""
    size, start = os.fstat(file.fileno()).st_size, file.read(16)
    try:
        if size > MAX_FILE_BYTES:
            raise _Refusal(f"expected at most {MAX_FILE_BYTES:,} bytes, found {size:,}")
        _check_zip(file, size) if start[:4] == b"PK\3\4" else _check_legacy(file, size)
    except _Refusal as refusal:
        raise ValueError(f"{where}: {refusal}") from refusal
    except Exception as error:  # pickle and zipfile raise nearly anything on damaged bytes
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{where}: expected a PyTorch checkpoint, found {size:,} bytes that start with {start!r} ({reason:.200}); "
            "it is another kind of file or damaged: copy or download it again"
        ) from error


def _load(torch: types.ModuleType, file: BinaryIO, where: str) -> Any:
    """What a checked file holds: tensors, containers, numbers, strings and argparse.Namespace."""
    file.seek(0)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch too
        # Only the cause is passed on, not the advice around it to load the file with weights_only=False.
        cause = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0]
        reason = f"{type(error).__name__}: {cause}"
        raise ValueError(f"{where}: PyTorch cannot load it ({reason:.200}); save it anew where it was made") from error


def _check_zip(file: BinaryIO, size: int) -> None:
    """Compares the arrays that the pickle of a zip describes with its members."""
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise _Refusal("two members of the zip have the same name")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise _Refusal("members of the zip are compressed, which PyTorch never does; a zip of a checkpoint? unpack it")
        if sum(member.file_size for member in members.values()) > size:
            raise _Refusal(f"the members of the zip claim more than its {size:,} bytes")
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _Refusal(f"expected a zip written by torch.save, with one data.pkl; found {torch_names.summarise(members)}")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members:
            raise _Refusal("expected a checkpoint, found a TorchScript program; save its state_dict() by torch.save")
        if members[pickles[0]].file_size > MAX_PICKLE_BYTES:
            raise _Refusal(f"expected at most {MAX_PICKLE_BYTES:,} bytes of pickle, found {members[pickles[0]].file_size:,}")
        described = _describe_pickle(io.BytesIO(archive.read(pickles[0])))
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
    """Compares the arrays that the pickles of an older file describe with the bytes that follow them."""
    file.seek(0)
    pickles = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    magic = _describe_pickle(pickles).content
    if magic != 0x1950A86A20F9469CFC6C:
        raise _Refusal(f"expected a file written by torch.save, found a pickle of {type(magic).__name__}")
    for _ in ("protocol version", "system"):
        _describe_pickle(pickles)
    described = _describe_pickle(pickles)
    _check_protocol(described)
    storages, keys = described.storages, _describe_pickle(pickles).content
    if not isinstance(keys, list) or sorted(keys) != sorted(storages):
        raise _Refusal("the arrays that the file lists are not those that it describes; copy or download it again")
    position = pickles.tell()
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
    if described.protocols != {2}:
        found = ", ".join(map(str, sorted(described.protocols))) or "none"
        raise _Refusal(f"expected pickle protocol 2, torch.save's own, found {found}; save it without pickle_protocol")


def _describe_pickle(stream: BinaryIO) -> _Describer:
    """The next pickle of a stream, read."""
    start = stream.tell()
    protocols = _check_instructions(stream)
    end = stream.tell()
    stream.seek(start)
    describer = _Describer(stream.read(end - start))
    try:
        describer.content = describer.load()
    finally:
        if describer.refused:  # even where their absence has led to another error
            raise _Refusal(
                f"the file asks for {', '.join(map(repr, dict.fromkeys(describer.refused)))}, which a checkpoint of weights "
                "does not need; none of it was run. If you trust the file, load it where it was made, and save "
                "{'model': its state dict} alone"
            )
    describer.protocols = protocols
    return describer


def _check_instructions(stream: BinaryIO) -> set[int]:
    """The protocols that the next pickle of a stream names, when it can be read in little time and memory.

    Its instructions are followed without building anything: pickle would make room for strings and a memo of any size.
    """
    protocols: set[int] = set()
    # Of each object the parts that hashing it goes through; none for text, whose hash is cached. None for a mark.
    stack: list[int | None] = []
    memo: dict[int, int | None] = {}
    other_keys = 0
    for index, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        match instruction.name:
            case "PROTO":
                protocols.add(argument or 0)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                if (argument or 0) > index:
                    raise _Refusal("the pickle numbers its objects as PyTorch never does")
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
                parts = 1 + sum(taken)
                if any(kind in _TEXT for kind in instruction.stack_after):
                    parts = 0
                elif any(kind in (pickletools.pylist, pickletools.pydict) for kind in instruction.stack_after):
                    parts = 1  # can't be hashed
                if parts > MAX_TUPLE_PARTS or other_keys > MAX_OTHER_KEYS:
                    raise _Refusal("the pickle nests or numbers its objects as PyTorch never does")
                stack += [parts] * len(instruction.stack_after)
    return protocols


def _taken(stack: list[int | None], kind: pickletools.StackObject) -> list[int]:
    """What an instruction takes off the stack, the last first, for one of the objects that it asks for."""
    if kind is pickletools.stackslice:
        above = list(itertools.takewhile(lambda part: part is not None, reversed(stack)))
        del stack[len(stack) - len(above) :]
        return [part for part in above if part is not None]
    part = stack.pop()
    if (part is None) != (kind is pickletools.markobject):
        raise ValueError("an instruction of the pickle finds other objects than it needs")
    return [] if part is None else [part]


if __name__ == "__main__":
    sys.exit(main())
