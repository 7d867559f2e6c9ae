"""Tests of the conversion between PyTorch's checkpoints and this project's: exact and strict."""

import argparse
import collections
import functools
import hashlib
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from convert import orbax_to_torch, released, torch_names, torch_to_orbax, wrappers
from tsp_jax import checkpoints
from tsp_jax.models import functional, tsp
from tsp_jax.system import trees

torch = pytest.importorskip("torch")
torch_files = pytest.importorskip("torch_files")
torch_reference = pytest.importorskip("torch_reference")
pytestmark = pytest.mark.torch

ROOT = pathlib.Path(__file__).parents[1]
BACKBONES = ("r2plus1d_34", "r2plus1d_18", "r3d_18")
HEADS = (((), False), ((20,), False), ((2,), True), ((200, 2), False), ((200, 2), True))
TSP = tsp.ModelConfig("r3d_18", (200, 2), gvf=True)


@functools.lru_cache(maxsize=1)  # one backbone at a time: the largest has 254 MB
def random_backbone(backbone: str) -> dict[str, torch.Tensor]:
    """Tensors by key in PyTorch's order, no value at its default."""
    with torch.device("meta"):
        shapes = torch_reference.build(backbone).state_dict()
    random = np.random.default_rng(0)
    tensors = {}
    for key, tensor in shapes.items():
        if key.endswith("num_batches_tracked"):
            tensors[key] = torch.tensor(int(random.integers(1, 2**31)))
        else:
            tensors[key] = torch.from_numpy(random.random(tuple(tensor.shape), np.float32) + 0.1)
    return tensors


def random_state(config: tsp.ModelConfig) -> dict[str, torch.Tensor]:
    """The backbone's tensors and those of fresh heads."""
    state = dict(random_backbone(config.backbone))
    random = np.random.default_rng(1)
    for name, width, labels in zip(config.head_names, config.head_inputs, config.label_counts, strict=True):
        state[f"{name}.weight"] = torch.from_numpy(random.standard_normal((labels, width), np.float32))
        state[f"{name}.bias"] = torch.from_numpy(random.standard_normal(labels, np.float32))
    return state


def arrays_of(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {key: tensor.numpy() for key, tensor in state.items()}


def blank_state(config: tsp.ModelConfig) -> dict[str, np.ndarray]:
    """Arrays of the right shapes and types that take no memory."""
    dtypes = {key: np.int64 if key.endswith("num_batches_tracked") else np.float32 for key in torch_names.torch_shapes(config)}
    return {key: np.broadcast_to(dtypes[key](1), shape) for key, shape in torch_names.torch_shapes(config).items()}


def assert_same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert torch.equal(found[key], tensor), key


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)


def error_of(capsys: pytest.CaptureFixture[str], status: int) -> str:
    """The one message of a command that failed."""
    output = capsys.readouterr()
    assert status == 1
    assert output.out == ""
    assert output.err.startswith("error: ")
    return output.err


@pytest.fixture(autouse=True)
def no_litter(tmp_path: pathlib.Path) -> Iterator[None]:
    """Removes each test's files at once: they are large, and pytest would keep those of three runs."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def training_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """A TSP checkpoint of R3D-18 as PyTorch 1.4 wrote them."""
    args = argparse.Namespace(backbone="r3d_18", label_columns=["action-label", "temporal-region-label"], epochs=8)
    content = torch_files.training_checkpoint(collections.OrderedDict(random_state(TSP)), args)
    path = torch_files.torch_save(content, tmp_path_factory.mktemp("training") / "epoch_5.pth", "legacy")
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def converted(training_file: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[pathlib.Path, str]]:
    """The folder that the command line makes of the training checkpoint, and what it printed."""
    folder = tmp_path_factory.mktemp("converted") / "tsp"
    done = run("-m", "convert.torch_to_orbax", "--checkpoint", str(training_file), "--output", str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    yield folder, done.stdout
    shutil.rmtree(folder)


# The table


@pytest.mark.parametrize("backbone", BACKBONES)
def test_keys_shapes_and_their_order_are_those_of_pytorch(backbone: str) -> None:
    for label_counts, gvf in HEADS[1::3]:  # one head, and two
        with torch.device("meta"):
            state = torch_reference.build(backbone, label_counts, gvf).state_dict()
        shapes = torch_names.torch_shapes(tsp.ModelConfig(backbone, label_counts, gvf))
        assert list(shapes.items()) == [(key, tuple(tensor.shape)) for key, tensor in state.items()]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("label_counts", "gvf"), HEADS)
def test_every_model_is_recognised(backbone: str, label_counts: tuple[int, ...], gvf: bool) -> None:
    config = tsp.ModelConfig(backbone, label_counts, gvf)
    assert torch_names.recognise(torch_names.torch_shapes(config)) == config


@pytest.mark.parametrize("backbone", BACKBONES)
def test_round_trip_in_memory_is_bit_for_bit(backbone: str) -> None:
    expected = tsp.ModelConfig(backbone, (200, 2), gvf=True)
    state = random_state(expected)
    config, variables = torch_names.from_state_dict(arrays_of(state))
    assert config == expected
    assert jax.tree.structure(variables) == jax.tree.structure(functional.shapes(config))
    back = torch_names.to_state_dict(config, variables)
    assert_same_tensors({key: torch.from_numpy(array) for key, array in back.items()}, state)
    # And against the test suite's own conversion, since a wrong layout comes back right too.
    leaves, independent = trees.flatten(variables), trees.flatten({"": torch_reference.nest(state)})
    assert leaves.keys() == independent.keys()
    for key, leaf in independent.items():
        assert leaves[key].dtype == leaf.dtype
        np.testing.assert_array_equal(leaves[key], leaf, err_msg=key)


@pytest.mark.parametrize(("label_counts", "gvf"), HEADS)
def test_heads_come_back_bit_for_bit(label_counts: tuple[int, ...], gvf: bool) -> None:
    expected = tsp.ModelConfig("r3d_18", label_counts, gvf)
    state = blank_state(expected)
    for key, array in state.items():
        if key.startswith("fc"):
            state[key] = np.random.default_rng(0).standard_normal(array.shape, np.float32)
    config, variables = torch_names.from_state_dict(state)
    assert config == expected
    back = torch_names.to_state_dict(config, variables)
    assert list(back) == list(state)
    for key, array in back.items():
        np.testing.assert_array_equal(array, state[key], err_msg=key)
        if key.startswith("fc") and key.endswith("weight"):
            np.testing.assert_array_equal(variables["params"][key.split(".")[0]]["weight"], array.T)


def test_one_message_lists_missing_unexpected_and_misshapen_keys() -> None:
    state = blank_state(TSP)
    del state["features.stem.0.weight"], state["features.layer3.1.conv2.1.running_var"]
    state["features.layer5.0.weight"] = np.zeros((3, 2), np.float32)
    state["features.layer1.0.conv1.0.weight"] = np.zeros((64, 64, 1, 3, 3), np.float32)
    state["fc2.weight"] = np.zeros((2, 700), np.float32)
    with pytest.raises(ValueError, match="some file: 5 keys do not fit") as caught:
        torch_names.from_state_dict(state, "some file")
    assert sorted(line.strip() for line in str(caught.value).splitlines()[1:]) == [
        "misshapen: fc2.weight expected (2, 512), found (2, 700)",
        "misshapen: features.layer1.0.conv1.0.weight expected (64, 64, 3, 3, 3), found (64, 64, 1, 3, 3)",
        "missing: features.layer3.1.conv2.1.running_var (256,)",
        "missing: features.stem.0.weight (64, 3, 3, 7, 7)",
        "unexpected: features.layer5.0.weight (3, 2)",
    ]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbone_is_recognised_without_some_of_its_keys(backbone: str) -> None:
    shapes = torch_names.torch_shapes(tsp.ModelConfig(backbone))
    for part in ("stem", "layer1", "layer2", "layer4"):
        rest = {key: shape for key, shape in shapes.items() if not key.startswith(f"features.{part}.")}
        assert torch_names.recognise(rest).backbone == backbone


@pytest.mark.parametrize(
    ("heads", "found"), [(("fc", "fc1", "fc2"), "fc and fc1 and fc2"), (("fc1",), "fc1"), (("fc", "fc2"), "fc and fc2")]
)
def test_other_heads_are_refused(heads: tuple[str, ...], found: str) -> None:
    shapes = torch_names.torch_shapes(tsp.ModelConfig("r3d_18")) | {f"{head}.bias": (2,) for head in heads}
    with pytest.raises(ValueError, match=f"found {found}$"):
        torch_names.recognise(shapes)


def test_network_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a backbone under features\..*found 1 keys: 'encoder\.weight'"):
        torch_names.recognise({"encoder.weight": (3, 3)})


def test_values_that_would_be_changed_or_spoil_features_are_refused_by_name() -> None:
    state = blank_state(tsp.ModelConfig("r3d_18", (20,)))
    state["features.stem.0.weight"] = state["features.stem.0.weight"].astype(np.float16)
    state["features.stem.1.weight"] = state["features.stem.1.weight"].astype(np.float64)
    state["features.stem.1.num_batches_tracked"] = np.array(2**31)
    state["features.layer1.0.conv1.1.num_batches_tracked"] = np.array(1.0, np.float32)
    state["features.layer1.0.conv1.1.running_var"] = np.full(64, -1, np.float32)
    state["fc.bias"] = np.array([np.nan, np.inf] + [0] * 18, np.float32)
    with pytest.raises(ValueError, match="6 arrays") as caught:
        torch_names.from_state_dict(state)
    assert sorted(line.strip() for line in str(caught.value).splitlines()[1:]) == [
        "fc.bias: 2 of 20 values are not finite",
        "features.layer1.0.conv1.1.num_batches_tracked: expected int64, found float32",
        "features.layer1.0.conv1.1.running_var: 64 of 64 variances are negative",
        "features.stem.0.weight: expected float32, found float16",
        "features.stem.1.num_batches_tracked: expected a count from 0 to 2^31 - 1, found 2147483648",
        "features.stem.1.weight: expected float32, found float64",
    ]


def test_variables_of_another_model_or_type_are_not_written() -> None:
    config = tsp.ModelConfig("r3d_18", (20,))
    _, variables = torch_names.from_state_dict(blank_state(config))
    with pytest.raises(ValueError, match=r"(?s)missing: fc1\.bias.*unexpected: fc\.bias"):
        torch_names.to_state_dict(TSP, variables)
    variables["params"]["fc"]["bias"] = variables["params"]["fc"]["bias"].astype(np.float64)
    with pytest.raises(ValueError, match=r"fc\.bias: expected float32, found float64"):
        torch_names.to_state_dict(config, variables)


def test_prefix_of_distributed_training_is_removed_when_all_keys_have_it() -> None:
    shapes = {"module.features.stem.0.weight": (64, 3, 3, 7, 7), "module.fc.bias": (2,)}
    names, notes = wrappers.rename(shapes)
    assert names == {key: key.removeprefix("module.") for key in shapes}
    assert notes == ["the prefix module. was removed from all keys"]
    shapes = {"features.stem.0.weight": (64, 3, 3, 7, 7), "module.fc.bias": (2,)}
    assert wrappers.rename(shapes) == ({key: key for key in shapes}, [])


# Files


def test_command_converts_a_training_checkpoint(training_file: pathlib.Path, converted: tuple[pathlib.Path, str]) -> None:
    folder, printed = converted
    checkpoint = checkpoints.load(folder)
    sha256 = hashlib.sha256(training_file.read_bytes()).hexdigest()
    assert checkpoint.config == TSP
    assert checkpoint.origin == checkpoints.Origin("epoch_5.pth", sha256, "")
    _, variables = torch_names.from_state_dict(arrays_of(random_state(TSP)))
    assert checkpoint.weights_sha256 == checkpoints.weights_sha256(variables)
    # 33,166,272 without heads (torchvision's count), and two heads.
    parameters = 33_166_272 + 200 * 512 + 200 + 2 * 1024 + 2
    for fact in (
        "backbone: r3d_18",
        "heads: fc1 (200 labels), fc2 (2 labels); GVF: yes",
        f"124 arrays, {parameters:,} parameters",
        f"source: epoch_5.pth, SHA-256 {sha256}",
        f"weights: SHA-256 {checkpoint.weights_sha256}",
        f"written to {folder}",
    ):
        assert fact in printed.splitlines()


def test_command_writes_back_the_same_tensors_for_the_original(
    training_file: pathlib.Path, converted: tuple[pathlib.Path, str], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "back.pth"
    done = run("-m", "convert.orbax_to_torch", "--checkpoint", str(converted[0]), "--output", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"written to {path}" in done.stdout
    assert not zipfile.is_zipfile(path)  # PyTorch 1.4 would not read it
    state = torch.load(path, map_location="cpu", weights_only=True)["model"]
    assert_same_tensors(state, torch.load(training_file, map_location="cpu", weights_only=False)["model"])
    torch_reference.build("r3d_18", (200, 2), gvf=True).load_state_dict(state, strict=True)
    # What the original's extraction does with it: a classifier of its own, and nothing else missing.
    network = torch_reference.build("r3d_18", (1,))
    backbone = {key: tensor for key, tensor in state.items() if "fc" not in key}
    network.load_state_dict(backbone | {key: tensor for key, tensor in network.state_dict().items() if "fc" in key})

    again = torch_to_orbax.read_pth(path)
    assert again.config == TSP
    assert again.weights_sha256 == checkpoints.load(converted[0]).weights_sha256


def test_zip_of_distributed_training_gives_the_same_weights(
    converted: tuple[pathlib.Path, str], tmp_path: pathlib.Path
) -> None:
    model = {
        f"module.{key}": torch.nn.Parameter(tensor) if "fc" in key else tensor for key, tensor in random_state(TSP).items()
    }
    path = torch_files.torch_save({"model": model}, tmp_path / "ddp.pth", "zip")
    checkpoint = torch_to_orbax.read_pth(path)
    assert checkpoint.config == TSP
    assert checkpoint.weights_sha256 == checkpoints.load(converted[0]).weights_sha256
    assert checkpoint.origin.note == "the prefix module. was removed from all keys"


def test_kinetics_weights_lose_their_head_and_say_so(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {key.removeprefix("features."): tensor for key, tensor in random_backbone("r3d_18").items()}
    state |= {"fc.weight": torch.ones(400, 512), "fc.bias": torch.ones(400)}
    path = torch_files.torch_save(collections.OrderedDict(state), tmp_path / "r3d_18-b3b3357e.pth", "legacy")
    monkeypatch.setattr(released, "fetch", lambda model: path if model.name == "r3d_18-kinetics_init" else pytest.fail())
    folder = tmp_path / "kinetics"
    assert torch_to_orbax.main(["--checkpoint", "r3d_18-kinetics_init", "--output", str(folder)]) == 0
    printed = capsys.readouterr().out
    note = "a bare backbone: the prefix features. was added; dropped fc.weight and fc.bias of its Kinetics head"
    assert f"note: {note}" in printed.splitlines()
    assert "heads: none; GVF: no" in printed.splitlines()
    checkpoint = checkpoints.load(folder)
    assert checkpoint.config == tsp.ModelConfig("r3d_18")
    assert checkpoint.origin.source == "r3d_18-kinetics_init"
    assert checkpoint.origin.note == note
    _, variables = torch_names.from_state_dict(arrays_of(random_backbone("r3d_18")))
    assert checkpoint.weights_sha256 == checkpoints.weights_sha256(variables)


def test_nan_in_a_file_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    state = random_state(TSP)
    state["fc2.weight"] = state["fc2.weight"].to(torch.float16)
    state["fc2.bias"] = torch.tensor([0, torch.nan], dtype=torch.float16)
    path = torch_files.torch_save({"model": state}, tmp_path / "half.pth", "zip")
    with pytest.raises(ValueError, match=re.escape(f"{path}: 1 arrays")) as caught:
        torch_to_orbax.read_pth(path)
    assert str(caught.value).splitlines()[1:] == ["  fc2.bias: 1 of 2 values are not finite"]


@pytest.fixture(scope="module")
def made(shared: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """A checkpoint by the script that writes the original's layout, in the format of PyTorch 1.4."""
    script, path = shared / "reference" / "make_checkpoint.py", tmp_path_factory.mktemp("made") / "made.pth"
    if not script.is_file():
        pytest.skip(f"{script} is not at hand")
    done = run(str(script), "--backbone", "r3d_18", "--heads", "tsp_gvf", "--classes", "20", "--out", str(path))
    assert done.returncode == 0, done.stderr
    yield path
    path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("file_format", torch_files.FORMATS)
def test_checkpoint_in_the_originals_layout(made: pathlib.Path, tmp_path: pathlib.Path, file_format: str) -> None:
    content, path = torch.load(made, map_location="cpu", weights_only=False), made
    if file_format == "zip":  # the same call as the script's; its random numbers take longer than all else here
        path = torch_files.torch_save(content, tmp_path / "made.pth", "zip")
    checkpoint = torch_to_orbax.read_pth(path)
    assert checkpoint.config == tsp.ModelConfig("r3d_18", (20, 2), gvf=True)
    back = torch_names.to_state_dict(checkpoint.config, checkpoint.variables)
    assert_same_tensors({key: torch.from_numpy(array) for key, array in back.items()}, content["model"])


def test_unknown_name_is_refused_with_the_names_near_it(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"r3d_18-tsp_on_activitynt is no file here.*did you mean r3d_18-tsp_on_activitynet"):
        torch_to_orbax.read_any("r3d_18-tsp_on_activitynt")
    monkeypatch.chdir(tmp_path)
    pathlib.Path("converted").mkdir()
    with pytest.raises(ValueError, match="converted is a folder here"):
        torch_to_orbax.read_any("converted")


# The commands


def test_wrong_backbone_is_refused(
    training_file: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(training_file), "--output", str(tmp_path / "out"), "--backbone", "r2plus1d_34"]
    message = error_of(capsys, torch_to_orbax.main(arguments))
    assert "expected r2plus1d_34 (--backbone), found r3d_18" in message
    assert not (tmp_path / "out").exists()


def test_existing_output_is_kept_unless_asked(
    training_file: pathlib.Path, converted: tuple[pathlib.Path, str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--checkpoint", str(training_file), "--output"]
    assert "exists; name another folder or pass --overwrite" in error_of(
        capsys, torch_to_orbax.main([*arguments, str(converted[0])])
    )
    assert torch_to_orbax.main([*arguments, str(converted[0]), "--overwrite"]) == 0
    assert "written to" in capsys.readouterr().out
    assert checkpoints.load(converted[0]).config == TSP

    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.tex").write_text("…")
    message = error_of(capsys, torch_to_orbax.main([*arguments, str(other), "--overwrite"]))
    assert "is not a checkpoint folder, and will not be overwritten" in message
    with pytest.raises(FileExistsError, match="thesis is not a checkpoint folder"):
        checkpoints.save(other, checkpoints.load(converted[0]), overwrite=True)
    assert [path.name for path in other.iterdir()] == ["chapter1.tex"]


def test_existing_pytorch_file_is_replaced_whole_or_kept(
    converted: tuple[pathlib.Path, str],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "weights.pth"
    path.write_text("mine")
    arguments = ["--checkpoint", str(converted[0]), "--output", str(path)]
    assert "exists; name another file or pass --overwrite" in error_of(capsys, orbax_to_torch.main(arguments))

    def full_disk(_content: Any, file: Any, **_options: Any) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        assert "No space left" in error_of(capsys, orbax_to_torch.main([*arguments, "--overwrite"]))
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("weights.pth", "mine")]

    assert orbax_to_torch.main([*arguments, "--overwrite"]) == 0
    assert [found.name for found in tmp_path.iterdir()] == ["weights.pth"]
    assert list(torch.load(path)["model"]) == list(random_state(TSP))


def test_export_needs_a_checkpoint_and_a_place(
    converted: tuple[pathlib.Path, str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for checkpoint, output, message in (
        (tmp_path, tmp_path / "a.pth", "no checkpoint of tsp_jax"),
        (converted[0], tmp_path, "is a folder; expected the name of a file"),
        (converted[0], tmp_path / "missing" / "a.pth", "no such folder to write a.pth in"),
    ):
        status = orbax_to_torch.main(["--checkpoint", str(checkpoint), "--output", str(output)])
        assert message in error_of(capsys, status)


def test_command_reports_a_bad_file_in_one_message(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.pth"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    done = run("-m", "convert.torch_to_orbax", "--checkpoint", str(path), "--output", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"error: .*expected a PyTorch checkpoint, found 43 bytes that start with b'version https://'.*Git LFS.*\n", done.stderr
    )


def test_wrong_use_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for main in (torch_to_orbax.main, orbax_to_torch.main):
        with pytest.raises(SystemExit) as end:
            main(["--checkpoint", "any.pth"])
        assert end.value.code == 2
        assert "--output" in capsys.readouterr().err


def test_help_needs_no_pytorch_and_the_work_says_how_to_get_it(tmp_path: pathlib.Path) -> None:
    torch_files.write_claims(
        tmp_path / "any.pth", {"x": torch_files.Tensor(torch_files.Storage(4), (4,))}, "legacy", torch_files.FOUR
    )
    # Nor the other packages of the extra `convert`.
    program = f"""
import sys
sys.modules.update(torch=None, requests=None, platformdirs=None)
from convert import orbax_to_torch, torch_to_orbax
for module in (orbax_to_torch, torch_to_orbax):
    print(module.main(["--checkpoint", {str(tmp_path / "any.pth")!r}, "--output", {str(tmp_path / "out.pth")!r}]))
    try:
        module.main(["--help"])
    except SystemExit as end:
        print(end.code)
"""
    done = run("-c", program)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.isdecimal()] == ["1", "0", "1", "0"]
    assert [line.split()[2] for line in lines if line.startswith("  python -m ")] == [
        "convert.orbax_to_torch",
        "convert.torch_to_orbax",
    ]
    errors = done.stderr.splitlines()
    assert len(errors) == 2
    assert all(line.startswith("error: ") and line.endswith("pip install 'tsp_jax[convert]'") for line in errors)
