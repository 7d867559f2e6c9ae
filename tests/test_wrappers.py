"""Tests of checkpoints as people have them: wrapped, in other precisions and formats, or of something else."""

import argparse
import collections
import datetime
import functools
import math
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from convert import orbax_to_torch, other_files, safetensors_file, torch_names, torch_to_orbax, wrappers
from tsp_jax import checkpoints, weights
from tsp_jax.models import backbones, tsp

torch = pytest.importorskip("torch")
torch_files = pytest.importorskip("torch_files")
torch_reference = pytest.importorskip("torch_reference")
pytestmark = pytest.mark.torch

CONFIG = tsp.ModelConfig("r3d_tiny", (6, 2), gvf=True)

State = dict[str, Any]


@functools.cache
def random_state(config: tsp.ModelConfig = CONFIG, seed: int = 0) -> State:
    """Tensors of the model by released key, different ones under each key, and exact in half precision."""
    tensors = collections.OrderedDict()
    for number, (key, shape) in enumerate(torch_names.torch_shapes(config).items(), 17 * seed):
        if key.endswith("num_batches_tracked"):
            tensors[key] = torch.tensor(number)
        else:
            values = torch.arange(math.prod(shape), dtype=torch.float32) + number
            tensors[key] = ((values % 251 + 1) / 256).reshape(shape)
    return tensors


BACKBONE = {key: value for key, value in random_state().items() if key.startswith("features.")}
HEADS = {key: value for key, value in random_state().items() if key not in BACKBONE}
BARE = {key.removeprefix("features."): value for key, value in BACKBONE.items()}
EXPECTED = checkpoints.weights_sha256(
    torch_names.from_state_dict({key: value.numpy() for key, value in random_state().items()})[1]
)


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def cast(state: State, dtype: Any) -> State:
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}


def read(content: Any, folder: pathlib.Path) -> checkpoints.Checkpoint:
    return torch_to_orbax.read_pth(torch_files.torch_save(content, folder / "x.pth", "zip"))


@pytest.fixture(autouse=True)
def no_litter(tmp_path: pathlib.Path) -> Iterator[None]:
    """Removes each test's files at once."""
    yield
    shutil.rmtree(tmp_path)


STATE, OTHER = random_state(), random_state(seed=1)
WRAPPED: dict[str, tuple[Any, str]] = {
    "state_dict": ({"state_dict": STATE, "epoch": 1}, "read from 'state_dict'"),
    "model_state_dict": ({"model_state_dict": STATE, "optimizer_state_dict": {"state": {}}}, "read from 'model_state_dict'"),
    "net within state within checkpoint": (
        {"checkpoint": {"state": {"net": STATE}}},
        "read from 'checkpoint' > 'state' > 'net'",
    ),
    "Lightning": (
        {
            "state_dict": under("model.", STATE),
            "pytorch-lightning_version": "2.4.0",
            "callbacks": {"M{}": {"best": torch.ones(1)}},
        },
        "the prefix model. was removed",
    ),
    "Lightning with class weights of a loss": (
        {"state_dict": under("net.", STATE) | {"criterion.weight": torch.ones(6)}},
        "no part of the network: criterion.weight\nnote: * the prefix net. was removed",
    ),
    "compiled": ({"model": under("_orig_mod.", STATE)}, "the prefix _orig_mod. was removed"),
    "compiled in DataParallel": (under("module._orig_mod.", STATE), "the prefix module._orig_mod. was removed"),
    "DataParallel in compiled in Lightning": (
        {"state_dict": under("model._orig_mod.module.", STATE)},
        "the prefix model._orig_mod.module. was removed",
    ),
    "only the backbone compiled": (
        {"model": under("features._orig_mod.", BARE) | HEADS},
        "_orig_mod. was removed within keys",
    ),
    "each stage wrapped": (
        {key.replace("layer1.", "layer1._checkpoint_wrapped_module."): value for key, value in STATE.items()},
        "_checkpoint_wrapped_module. was removed within keys",
    ),
    "backbone under its own name": (
        {"state_dict": under("model.backbone.", BARE) | under("model.", HEADS)},
        "backbone. was read as features.",
    ),
    "heads above the network": (
        {"state_dict": under("encoder.net.features.", BARE) | HEADS},
        "encoder.net.features. was read as features.",
    ),
    "bare with heads": (BARE | HEADS, "a bare backbone: the prefix features. was added"),
    "with numbers": ({**STATE, "epoch": 3, "name": "r3d_tiny"}, "passed over what is no array: 2 keys: 'epoch', 'name'"),
    "EMA in a dict": (
        {"model": STATE, "model_ema": OTHER},
        "under 'model_ema' was passed over, and the weights under 'model' were",
    ),
    "EMA in nested dicts": (
        {"model": STATE, "ema": {"decay": 0.99, "shadow": under("module.", OTHER)}},
        "the running average (EMA) under 'ema' > 'shadow' was passed over",
    ),
    "EMA in keys": (
        {"state_dict": under("model.", STATE) | under("ema_model.module.", OTHER) | {"ema_model.step": torch.tensor(1)}},
        "(EMA) under ema_model. was passed over\nnote: * the prefix model. was removed",
    ),
    "EMA alone": ({"ema_state_dict": STATE}, "it is a running average (EMA) of weights"),
    "AveragedModel": ({"n_averaged": torch.tensor(3)} | under("module.", STATE), "no part of the network: n_averaged"),
    "old head of torchvision": (
        {"model": {**STATE, "features.fc.weight": torch.ones(400, 128), "features.fc.bias": torch.ones(400)}},
        "dropped features.fc.weight and features.fc.bias, which the other heads replace",
    ),
    "no counters": (
        {"model": {key: value for key, value in STATE.items() if "num_batches" not in key}},
        "12 num_batches_tracked are missing and were set to 0",
    ),
    "float16": ({"model": cast(STATE, torch.float16)}, "64 arrays of float16 were converted to float32"),
    "bfloat16": ({"model": cast(STATE, torch.bfloat16)}, "64 arrays of bfloat16 were converted to float32"),
    "float64": ({"model": cast(STATE, torch.float64)}, "64 arrays of float64 were rounded to float32"),
    "counters of other types": (
        {"model": {key: value.to(torch.float16) if "num_batches" in key else value for key, value in STATE.items()}},
        "",
    ),
    "parameters": (
        {"model": {key: torch.nn.Parameter(value, value.is_floating_point() and False) for key, value in STATE.items()}},
        "",
    ),
    "plain": ({"model": STATE, "model_ema": {"decay": 0.9}}, ""),
    "numbers and arrays of NumPy": (
        {"model": STATE, "best": np.float64(0.5), "epoch": np.int64(3), "rng": np.random.RandomState(0).get_state()},
        "",
    ),
    "values that programs save next to weights": (
        {
            "model": STATE,
            "args": argparse.Namespace(device=torch.device("cuda", 1), root=pathlib.Path("a/b"), crop=torch.Size([112, 112])),
            "optimizer": {"state": collections.defaultdict(dict, {0: {"step": 3}}), "param_groups": []},
            "losses": collections.deque([1.5, 2.5], 5),
            "others": [{1, 2}, b"x", b"", 1j, range(3), torch.float16, datetime.datetime(2026, 1, 2), collections.Counter("a")],
        },
        "",
    ),
}


def without_counters(checkpoint: checkpoints.Checkpoint) -> list[tuple[str, bytes]]:
    arrays = torch_names.to_state_dict(checkpoint.config, checkpoint.variables)
    return [(key, array.tobytes()) for key, array in arrays.items() if "num_batches" not in key]


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_network_is_read_with_a_line_for_each_change(
    name: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, expected = WRAPPED[name]
    checkpoint = read(content, tmp_path)
    assert checkpoint.config == CONFIG
    if name == "no counters":
        assert without_counters(checkpoint) == without_counters(read(STATE, tmp_path))
    else:
        assert checkpoint.weights_sha256 == EXPECTED
    lines = capsys.readouterr().err.splitlines()
    start = f"note: {tmp_path / 'x.pth'}: "
    assert all(line.startswith(start) for line in lines)
    assert "; ".join(line.removeprefix(start) for line in lines) == checkpoint.origin.note
    assert bool(lines) == bool(expected)
    for part in expected.split("\nnote: * "):
        assert any(part in line for line in lines) or not part


def test_head_of_a_bare_backbone_is_kept_unless_it_is_that_of_a_published_pretraining(tmp_path: pathlib.Path) -> None:
    for rows, label_counts in ((400, ()), (359, ()), (7, (7,))):
        head = {"fc.weight": torch.ones(rows, 128), "fc.bias": torch.ones(rows)}
        for state in (BARE | head, under("backbone.", BARE | head), under("features.", BARE | head)):
            assert read(state, tmp_path).config == tsp.ModelConfig("r3d_tiny", label_counts)
    # Next to features. it is the head of TAC, whatever its number of labels.
    head = {"fc.weight": torch.ones(400, 128), "fc.bias": torch.ones(400)}
    for state in (BACKBONE | head, under("backbone.", BARE) | head):
        assert read(state, tmp_path).config == tsp.ModelConfig("r3d_tiny", (400,))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"student": STATE, "teacher": OTHER},
            r"found 2, under 'student' and 'teacher'; .*torch\.save\(\{'model': content\['student'\]\}",
        ),
        (
            under("online.", STATE) | under("target.", OTHER),
            r"found 2, under the prefixes online\.features\., target\.features\.",
        ),
        ({**STATE, "features.module.stem.0.weight": STATE["features.stem.0.weight"]}, r"1 arrays have several keys"),
        (
            BACKBONE | under("module.", HEADS),
            r"4 keys do not fit r3d_tiny, the nearest.*\n  unexpected: module\.fc1\.bias \(6,\)",
        ),
        ({**STATE, "cls_head.weight": torch.ones(3, 128)}, r"unexpected: cls_head\.weight \(3, 128\)"),
        (BACKBONE | {"fc1.weight": torch.ones(6, 128), "fc1.bias": torch.ones(6)}, r"fc1 and fc2 \(leave out or.*found fc1$"),
        (
            {key: value for key, value in STATE.items() if ".conv2." not in key},
            r"missing: features\.layer1\.0\.conv2\.0\.weight",
        ),
        (
            {"model": {**STATE, "fc1.bias": torch.full((6,), 1e300, dtype=torch.float64)}},
            r"fc1\.bias: 6 of 6 values are not finite",
        ),
        ({"model": {**STATE, "fc1.bias": torch.ones(6, dtype=torch.int8)}}, r"fc1\.bias: expected float32, found int8"),
        (
            {"model": {**STATE, "features.stem.1.num_batches_tracked": torch.tensor(torch.inf)}},
            r"num_batches_tracked: expected int64, found float32",
        ),
        (
            {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
            "state of an optimizer without its net",
        ),
        ({"optimizer": {"state": {}, "param_groups": []}, "epoch": 3}, "state of an optimizer without its net"),
        ({"epoch": 3, "model": None}, "found NoneType under 'model'; save the network"),
        ({"model": {key: value.numpy() for key, value in STATE.items()}}, "arrays of NumPy in place of tensors; save the"),
        ([STATE, 3], "found list; save the network where it was made"),
    ],
)
def test_what_may_be_read_in_two_ways_or_does_not_fit_is_refused(content: Any, message: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        read(content, tmp_path)


def test_other_networks_are_named(tmp_path: pathlib.Path) -> None:
    ones = torch.ones
    for state, name in (
        ({"module.conv1.weight": ones(64, 3, 7, 7), "module.layer1.0.conv1.weight": ones(64, 64, 3, 3)}, "a 2-D ResNet"),
        (
            {"conv1.weight": ones(64, 3, 7, 7, 7), "layer1.0.conv1.weight": ones(64, 64, 3, 3, 3)},
            "a 3-D ResNet of another code",
        ),
        ({"patch_embed.proj.weight": ones(8, 3, 2, 16, 16)}, "a vision transformer for videos"),
        (
            {"module.encoder.weight": ones(3, 3)},
            r"expected a backbone under features\..*found 1 keys: 'module\.encoder\.weight'",
        ),
        (
            {"stem.0.weight": ones(96, 3, 4, 4), "stages.0.weight": ones(2)},
            r"found another network\. The nearest is \w+, with 0 of",
        ),
    ):
        with pytest.raises(ValueError, match=name):
            read({"model": state}, tmp_path)


def test_mixed_convolutions_are_named_after_torchvisions_network() -> None:
    resnet = torch_reference.import_video_resnet()
    with torch.device("meta"):
        networks = {name: getattr(resnet, name)(weights=None).state_dict() for name in ("mc3_18", "r3d_18", "r2plus1d_18")}
    for name, state in networks.items():
        shapes = {f"model.{key}": tuple(tensor.shape) for key, tensor in state.items()}
        found = other_files.network(shapes)
        assert found is None if name != "mc3_18" else found and found.startswith("torchvision's mc3_18")


# Formats


def zip_of(*names: str) -> Callable[[pathlib.Path], None]:
    def write(path: pathlib.Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(name, bytes(100))

    return write


FILES: dict[str, tuple[bytes | Callable[[pathlib.Path], None], str]] = {
    "LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 132745\n",
        r"found 1.. bytes .*: a Git LFS pointer in place of the file; run `git lfs pull`",
    ),
    "HTML": (b"\n<!DOCTYPE html>\n<html><title>Sign in</title>", "an HTML page in place of the file"),
    "HTML with BOM": (b"\xef\xbb\xbf<HTML>", "an HTML page in place of the file"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML text, such as a server's error"),
    "JSON": (b'{"error": "Entry not found"}', "a JSON text"),
    "text": (b"checkpoints are on the other disk\n" * 20, "a text file"),
    "empty": (b"", "found 0 bytes .*: the file is empty"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file, such as Keras weights"),
    "NumPy": (b"\x93NUMPY\x01\x00", "an array of NumPy"),
    "gzip": (b"\x1f\x8b\x08" + bytes(50), "compressed by gzip"),
    "tar": (b"epoch_5.pth".ljust(257, b"\0") + b"ustar\x0000" + bytes(300), "a tar archive; unpack it"),
    "ONNX": (b"\x08\x07\x12\x07pytorch\x1a\x051.9.0:", "an ONNX program"),
    "TensorFlow": (b"\x08\x01\x12\xa0\x1f\n", "a program of TensorFlow"),
    "video": (b"\x00\x00\x00\x20ftypisom", "a video; a checkpoint is needed here"),
    "one byte of ONNX": (b"\x08", "found 1 bytes .*another kind of file or damaged"),
    "zeros": (bytes(10_000), "found 10,000 bytes .*another kind of file or damaged"),
    "TorchScript": (
        zip_of("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"),
        "a TorchScript program; save its state_dict",
    ),
    "Keras 3": (zip_of("config.json", "metadata.json", "model.weights.h5"), "a Keras model"),
    "npz": (zip_of("a.npy", "b.npy"), r"arrays of NumPy \(\.npz\)"),
    "zipped checkpoint": (zip_of("release/epoch_5.pth", "release/README"), r"a zip that holds release/epoch_5\.pth; unpack it"),
    "Office": (zip_of("[Content_Types].xml", "word/document.xml"), "an Office document"),
}


@pytest.mark.parametrize("name", FILES)
def test_other_files_are_named_with_what_to_do(name: str, tmp_path: pathlib.Path) -> None:
    content, message = FILES[name]
    path = tmp_path / "model.pth"
    content(path) if callable(content) else path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.pth: expected a PyTorch checkpoint, .*{message}"):
        torch_to_orbax.read_pth(path)


def test_a_part_of_weights_in_several_files_is_named(tmp_path: pathlib.Path) -> None:
    for name in ("model-00001-of-00002.safetensors", "pytorch_model.bin.index.json"):
        (tmp_path / name).write_text('{"weight_map": {}}')
        with pytest.raises(ValueError, match="a part, or the index, of weights in several files; load and save them as one"):
            torch_to_orbax.read_pth(tmp_path / name)


def test_folder_with_a_file_of_weights_names_it(tmp_path: pathlib.Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=r"a folder without a checkpoint of tsp_jax, but with model\.safetensors; name"):
        weights.open_any(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_safetensors_gives_the_same_weights_without_pytorch(
    dtype: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(torch_files.safetensors(cast(under("model.", STATE), dtype)))
    monkeypatch.setattr(torch_to_orbax, "import_torch", lambda: pytest.fail("PyTorch was imported"))
    assert torch_to_orbax.read_any(str(path)).weights_sha256 == EXPECTED


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch_files.safetensors_bytes({"x": entry()}, bytes(15)), "describes 16 bytes of arrays, found 15"),
        (torch_files.safetensors_bytes({"x": entry()}, bytes(17)), "describes 16 bytes of arrays, found 17"),
        (torch_files.safetensors_bytes({"x": entry(shape=(2**40,))}, bytes(16)), "not a few whole numbers"),
        (torch_files.safetensors_bytes({"x": entry(shape=(8,))}, bytes(16)), r"expected 32 bytes for F32 \[8\], found 16"),
        (torch_files.safetensors_bytes({"x": entry(offsets=(0, 2**70))}, bytes(16)), "not a few whole numbers"),
        (torch_files.safetensors_bytes({"x": entry(offsets=(16, 0))}, bytes(16)), "expected 16 bytes .*, found -16"),
        (torch_files.safetensors_bytes({"x": entry(shape=(-4,))}, bytes(16)), "not a few whole numbers"),
        (torch_files.safetensors_bytes({"x": entry(shape=(True,) * 4)}, bytes(16)), "not a few whole numbers"),
        (torch_files.safetensors_bytes({"x": entry(shape=(1,) * 100)}, bytes(16)), "not a few whole numbers"),
        (torch_files.safetensors_bytes({"x": entry("F8_E4M3")}, bytes(16)), "the type 'F8_E4M3', which is not read"),
        (torch_files.safetensors_bytes({"x": {"dtype": "F32"}}, bytes(16)), "expected dtype, shape and data_offsets"),
        (torch_files.safetensors_bytes({"x": entry(), "y": entry(offsets=(8, 24))}, bytes(24)), "overlaps the array before it"),
        (
            torch_files.safetensors_bytes({"x": entry(), "y": entry(offsets=(20, 36))}, bytes(36)),
            "leaves a gap behind the array",
        ),
        (torch_files.safetensors_bytes(b'{"x": 1, "x": 2}', b""), "a name occurs twice"),
        (torch_files.safetensors_bytes(b'{"a":' * 100_000, b""), "nests too deep|safetensors file"),
        (torch_files.safetensors_bytes(b'{"x": ' + b"1" * 5000 + b"}", b""), "safetensors file"),
        (torch_files.safetensors_bytes(b'{"x": \xff}', b""), "safetensors file"),
        (torch_files.safetensors_bytes({"x": entry()}, bytes(16), length=10**8), "a header of 2 to 4,194,304 bytes, found the"),
        (
            torch_files.safetensors_bytes({"x": entry()}, bytes(16), length=10**6),
            "expected a header of 1,000,000 bytes, found 78",
        ),
        (torch_files.safetensors_bytes({"x": entry()}, bytes(16))[:30], "expected a header of"),
    ],
)
def test_safetensors_that_claims_other_than_it_holds_is_refused(content: bytes, message: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*({message})"):
        torch_to_orbax.read_pth(path)


def test_empty_and_scalar_arrays_of_safetensors_are_read(tmp_path: pathlib.Path) -> None:
    tensors = {"x": torch.zeros(0, 3), "y": torch.tensor(3), "z": torch.arange(6.0).reshape(2, 3), "e": torch.zeros(2, 0)}
    path = tmp_path / "model.safetensors"
    path.write_bytes(torch_files.safetensors(tensors))
    with path.open("rb") as file:
        found = safetensors_file.read(file, "x")
    assert {key: array.tolist() for key, array in found.items()} == {key: tensor.tolist() for key, tensor in tensors.items()}
    assert {key: array.shape for key, array in found.items()} == {key: tuple(tensor.shape) for key, tensor in tensors.items()}


# Round trips, and the commands


@pytest.mark.parametrize(
    "backbone", [pytest.param(name, marks=[pytest.mark.slow] * (name != "r3d_tiny")) for name in backbones.BACKBONES]
)
def test_every_backbone_exported_comes_back_bit_for_bit(backbone: str, tmp_path: pathlib.Path) -> None:
    config = tsp.ModelConfig(backbone, (3,))
    _, variables = torch_names.from_state_dict({key: tensor.numpy() for key, tensor in random_state(config).items()})
    expected = checkpoints.make(config, variables, checkpoints.Origin("test"))
    orbax_to_torch.write_pth(tmp_path / "x.pth", expected)
    found = torch_to_orbax.read_pth(tmp_path / "x.pth")
    assert (found.config, found.weights_sha256, found.origin.note) == (config, expected.weights_sha256, "")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lightning", "state_dict", "compiled", "no_tracked"])
def test_variants_of_the_cases_are_converted(
    kind: str, shared: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = shared / "cases" / "checkpoint_variants.py"
    if not script.is_file():
        pytest.skip(f"{script} is not at hand")
    # The script imports the writer of the safetensors library, which is no requirement of this project.
    package = tmp_path / "packages" / "safetensors"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "torch.py").write_text("save_file = None")
    path = tmp_path / f"{kind}.pth"
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    subprocess.run([sys.executable, str(script), ".", kind, str(path)], env=environment, check=True)
    assert torch_to_orbax.main(["--checkpoint", str(path), "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "heads: fc1 (6 labels), fc2 (2 labels); GVF: no" in printed.out.splitlines()
    assert printed.err.startswith(f"note: {path}: ")


def test_renaming_keeps_names_where_there_is_no_backbone() -> None:
    for keys in (["encoder.weight"], ["module.encoder.weight", "module.fc.bias"], [""]):
        assert wrappers.rename({key: (3,) for key in keys}) == ({key: key for key in keys}, [])
