"""PyTorch files for the tests of conversion: ordinary ones, and ones that claim more than they hold."""

import collections
import io
import json
import pathlib
import pickle
import zipfile
from typing import Any

import numpy as np
import torch

FORMATS = ("legacy", "zip")
FOUR = np.arange(4, dtype=np.float32).tobytes()


def training_checkpoint(model: Any, args: Any) -> dict[str, Any]:
    """What the original's training writes, with the momentum of a few parameters."""
    parameters = [torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(5))]
    optimizer = torch.optim.SGD([{"params": parameters, "lr": 0.1, "name": "fc"}], momentum=0.9, weight_decay=0.005)
    for parameter in parameters:
        optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, 0.5)
    scheduler = {"milestones": [40, 60], "gamma": 0.01, "base_lrs": [0.1], "last_epoch": 7, "_last_lr": [0.1]}
    return {
        "model": model,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler,
        "epoch": 5,
        "args": args,
    }


def torch_save(content: Any, path: pathlib.Path, file_format: str, **options: Any) -> pathlib.Path:
    torch.save(content, path, _use_new_zipfile_serialization=file_format == "zip", **options)
    return path


class Storage:
    """Pickled as an array that lies elsewhere in the file."""

    def __init__(self, numel: int):
        self.numel = numel


class Tensor:
    """Pickled as PyTorch pickles tensors."""

    def __init__(self, storage: Storage, shape: tuple[int, ...], stride: tuple[int, ...] = (1,), offset: int = 0):
        self.call = torch._utils._rebuild_tensor_v2, (storage, offset, shape, stride, False, collections.OrderedDict())

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def write_claims(path: pathlib.Path, content: Any, file_format: str, values: bytes, header: int | None = None) -> None:
    """A file with one array, key 0, and a pickle that may say anything."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, found: Any) -> Any:
            if isinstance(found, Storage):
                view = (None,) if file_format == "legacy" else ()
                return ("storage", torch.FloatStorage, "0", "cpu", found.numel, *view)
            return None

    stream = io.BytesIO()
    Pickler(stream, 2).dump(content)
    if file_format == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", stream.getvalue())
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/data/0", values)
        return
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    parts += [stream.getvalue(), pickle.dumps(["0"], 2)]
    numel = len(values) // 4 if header is None else header
    path.write_bytes(b"".join(parts) + numel.to_bytes(8, "little") + values)


SAFETENSORS_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}


def safetensors_bytes(header: Any, data: bytes, length: int | None = None) -> bytes:
    """A safetensors file with a header that may say anything; text and bytes are written as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def safetensors(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file as its own library writes it: arrays one after the other, and a header padded by blanks."""
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    data = b""
    for key, tensor in tensors.items():
        values = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header[key] = {
            "dtype": SAFETENSORS_TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(values)],
        }
        data += values
    text = json.dumps(header).encode()
    return safetensors_bytes(text + b" " * (-len(text) % 8), data)
