"""Tests that files of PyTorch tensors are read as PyTorch reads them, and that PyTorch reads those written here."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tsp_jax.system import pickles, tensor_files

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
ROWS = np.random.default_rng(0).standard_normal((5, 3), np.float32)


class Hostile:
    def __reduce__(self) -> tuple:
        return os.system, ("touch hostile_ran",)


@pytest.mark.torch
def test_tensors_of_any_view_and_dtype_are_read_from_pickles_and_both_layouts_of_torch_save(tmp_path: Path):
    torch = pytest.importorskip("torch")
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    views = [whole, whole.T, whole[1:, ::2], whole[None], whole[:1].expand(3, 6), torch.zeros(1, 0)]
    for tensor in [*views, whole.half(), whole.bfloat16(), whole.double(), whole.long(), whole.bool()]:
        expected = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        new, old = tmp_path / "new", tmp_path / "old"
        torch.save({"feats": tensor}, new)
        torch.save({"feats": tensor}, old, _use_new_zipfile_serialization=False)
        found = [tensor_files.load(path)["feats"] for path in (new, old)]
        found += [pickles.loads(pickle.dumps([tensor], protocol), "t.pkl")[0] for protocol in (2, 3, 4, 5)]
        for array in found:
            np.testing.assert_array_equal(array, expected, strict=True)


@pytest.mark.torch
def test_torch_reads_what_is_written(tmp_path: Path):
    torch = pytest.importorskip("torch")
    (tmp_path / "t").write_bytes(tensor_files.packed(ROWS))
    np.testing.assert_array_equal(torch.load(tmp_path / "t", weights_only=True).numpy(), ROWS, strict=True)
    found = pickle.loads(tensor_files.pickled({"slow_feature": ROWS.T[None], "feature_frames": 5}))
    np.testing.assert_array_equal(found["slow_feature"].numpy(), ROWS.T[None], strict=True)
    assert found["feature_frames"] == 5


def test_what_is_written_is_read(tmp_path: Path):
    (tmp_path / "t").write_bytes(tensor_files.packed(ROWS))
    np.testing.assert_array_equal(tensor_files.load(tmp_path / "t"), ROWS, strict=True)
    (tmp_path / "p").write_bytes(tensor_files.pickled({"a": ROWS, "none": ROWS[:0], "n": 7}))
    found = tensor_files.load(tmp_path / "p")
    np.testing.assert_array_equal(found["a"], ROWS, strict=True)
    assert found["none"].shape == (0, 3) and found["n"] == 7


def test_hostile_files_are_refused_and_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Hostile()))
    whole = tensor_files.packed(ROWS)
    plain = tensor_files.pickled({"a": ROWS})
    shape = plain.replace(b"\x8a\x08" + (5).to_bytes(8, "little"), b"\x8a\x08" + (1 << 40).to_bytes(8, "little"))
    for data, reason in [
        (bomb.getvalue(), "nothing was run"),
        (pickle.dumps(Hostile()), "nothing was run"),
        (whole[: len(whole) // 2], "damaged"),
        (plain[: len(plain) // 2], "damaged"),
        (shape, "claims more than its 15 numbers"),
    ]:
        (tmp_path / "file").write_bytes(data)
        with pytest.raises(ValueError, match=reason):
            tensor_files.load(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
