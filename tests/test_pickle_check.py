"""Tests of the check that a PyTorch file passes before PyTorch reads it: hostile, damaged and other files are refused."""

import argparse
import collections
import os
import pathlib
import pickle
import re
import time
import zipfile
from typing import Any

import numpy as np
import pytest

from convert import pickle_check, torch_to_orbax

torch = pytest.importorskip("torch")
torch_files = pytest.importorskip("torch_files")
pytestmark = pytest.mark.torch


class Custom:
    """A class that PyTorch does not know."""


class Calls:
    """Unpickles as a call."""

    def __init__(self, function: Any, argument: Any):
        self.call = function, (argument,)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("file_format", torch_files.FORMATS)
@pytest.mark.parametrize(
    ("function", "code", "name"),
    [(os.system, "touch {}", f"{os.name}.system"), (eval, "open({!r}, 'w').close()", "builtins.eval")],
)
def test_file_that_would_run_code_is_refused_by_name(
    tmp_path: pathlib.Path, function: Any, code: str, name: str, file_format: str, protocol: int
) -> None:
    marker = tmp_path / "marker"
    args = argparse.Namespace(backbone=Calls(function, code.format(str(marker))))
    content = torch_files.training_checkpoint({"fc.bias": torch.ones(2)}, args)
    path = torch_files.torch_save(content, tmp_path / "hostile.pth", file_format, pickle_protocol=protocol)
    with pytest.raises(ValueError, match=rf"asks for '{re.escape(name)}'.*none of it was run.*save"):
        torch_to_orbax.read_pth(path)
    assert not marker.exists()
    if protocol == 2:  # the trap was a real one
        with open(path, "rb") as file:
            torch.load(file, weights_only=False)
        assert marker.exists()


@pytest.mark.parametrize("file_format", torch_files.FORMATS)
def test_classes_are_refused_by_name(tmp_path: pathlib.Path, file_format: str) -> None:
    content = torch_files.training_checkpoint({"fc.bias": torch.ones(2)}, [Custom(), np.float64(3)])
    path = torch_files.torch_save(content, tmp_path / "custom.pth", file_format)
    with pytest.raises(ValueError, match=rf"asks for '{__name__}\.Custom', which"):
        torch_to_orbax.read_pth(path)


def test_plain_pickle_with_code_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Calls(eval, "1 / 0")))
    with pytest.raises(ValueError, match=r"asks for 'builtins\.eval'"):
        torch_to_orbax.read_pth(path)


HUGE = 2**40


@pytest.mark.parametrize("file_format", torch_files.FORMATS)
def test_handmade_file_is_like_one_of_pytorch(tmp_path: pathlib.Path, file_format: str) -> None:
    torch_files.write_claims(
        tmp_path / "a.pth", {"x": torch_files.Tensor(torch_files.Storage(4), (2, 2), (2, 1))}, file_format, torch_files.FOUR
    )
    assert torch.load(tmp_path / "a.pth", weights_only=True)["x"].tolist() == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="expected a backbone"):  # read, and then it is no model
        torch_to_orbax.read_pth(tmp_path / "a.pth")


@pytest.mark.parametrize("file_format", torch_files.FORMATS)
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            torch_files.Tensor(torch_files.Storage(HUGE), (HUGE,)),
            "expected 4,398,046,511,|has 4,398,046,511,104 bytes by the pickle",
        ),
        (torch_files.Tensor(torch_files.Storage(4), (HUGE,)), "reaches beyond its storage of 4 values"),
        (torch_files.Tensor(torch_files.Storage(4), (4,), offset=HUGE), "reaches beyond its storage of 4 values"),
        (torch_files.Tensor(torch_files.Storage(4), (2, 2), (HUGE, 1)), "reaches beyond its storage of 4 values"),
        (torch_files.Tensor(torch_files.Storage(4), (HUGE,), (0,)), "reaches beyond its storage of 4 values"),
        (torch_files.Tensor(torch_files.Storage(4), (2,), (-1,)), "reaches beyond its storage of 4 values"),
        (torch_files.Tensor(torch_files.Storage(-4), (4,)), "expected a storage's description"),
        (
            [torch_files.Tensor(torch_files.Storage(4), (4,)), torch_files.Tensor(torch_files.Storage(8), (8,))],
            "storage 0 is described twice",
        ),
    ],
)
def test_file_that_claims_more_than_it_holds_is_refused_before_room_is_made(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tensor: Any, message: str, file_format: str
) -> None:
    monkeypatch.setattr(torch, "load", lambda *_args, **_kwargs: pytest.fail("PyTorch was asked to load it"))
    torch_files.write_claims(tmp_path / "claims.pth", {"fc.weight": tensor}, file_format, torch_files.FOUR)
    with pytest.raises(ValueError, match=message):
        torch_to_orbax.read_pth(tmp_path / "claims.pth")


def test_headers_and_lists_of_an_older_file_must_agree_with_its_pickle(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "claims.pth"
    torch_files.write_claims(
        path, {"x": torch_files.Tensor(torch_files.Storage(4), (4,))}, "legacy", torch_files.FOUR, header=HUGE
    )
    with pytest.raises(ValueError, match=r"storage 0 has 4 values by the pickle, 1,099,511,627,776 by its header"):
        torch_to_orbax.read_pth(path)
    torch_files.write_claims(path, {"x": 1}, "legacy", torch_files.FOUR)  # lists a storage that no tensor has
    with pytest.raises(ValueError, match="the arrays that the file lists are not those that it describes"):
        torch_to_orbax.read_pth(path)


def test_pickle_that_would_fill_memory_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "memo.pth"
    path.write_bytes(b"\x80\x02Nr\xff\xff\xff\x7f.")  # one object, kept under the number 2^31 - 1
    with pytest.raises(ValueError, match="numbers its objects as no program does"):
        torch_to_orbax.read_pth(path)
    path.write_bytes(b"\x80\x02X\xff\xff\xff\xffabc.")  # a string of 4 GB
    with pytest.raises(ValueError, match="expected a PyTorch checkpoint, found 11 bytes"):
        torch_to_orbax.read_pth(path)


def test_pickle_of_a_structure_that_takes_forever_to_hash_is_refused(tmp_path: pathlib.Path) -> None:
    """Without the check the first ends the process, and the others run for minutes or for ever."""
    modulus = 2**61 - 1  # Python hashes whole numbers by what they leave
    collisions = [pickle.dumps(number * modulus, 2)[2:-1] for number in range(1, 30_000)]
    shared_number = b"\x8b" + (100_000).to_bytes(4, "little") + b"\x7f" * 100_000 + b"q\x00" + b"h\x00" * 2000
    structures = {
        "deep": b"}N" + b"\x85" * 300_000 + b"Ns",
        "each level twice the one below": b"}N" + b"2\x86" * 60 + b"Ns",
        "each level a hundred times the one below": b"}N" + (b"q\x01(" + b"h\x01" * 100 + b"t") * 6 + b"Ns",
        "made of a part kept in the memo": b"}N" + b"q\x01h\x01h\x01\x87" * 40 + b"Ns",
        "keys of one hash": b"}(" + b"".join(key + b"N" for key in collisions) + b"u",
        "keys of one hash, of a class": b"ccollections\nCounter\n(](" + b"".join(collisions) + b"etR",
        "a tensor of huge numbers": b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00(" + shared_number + b"t(ttR",
        "a storage of nested lists": b"]q\x00" + b"](h\x00h\x00eq\x00" * 60 + b"Q",
        "marks that hide what is nested": b"}N" + b"(1\x85" * 20_000 + b"Ns",
        "bytes made of one text many times": b"](X"
        + (100_000).to_bytes(4, "little")
        + b"x" * 100_000
        + b"q\x000"
        + b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R" * 9000
        + b"e",
        "a set of keys of one hash": b"c__builtin__\nset\n](" + b"".join(collisions[:1500]) + b"e\x85R",
        "sets made of one list many times": b"]q\x00(" + b"N" * 900 + b"e0](" + b"c__builtin__\nset\nh\x00\x85R" * 9000 + b"e",
    }
    for file_format in torch_files.FORMATS:
        for name, structure in structures.items():
            content = b"\x80\x02" + structure + b"."
            if file_format == "zip":
                with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
                    archive.writestr("a/data.pkl", content)
            else:
                start = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})]
                (tmp_path / "a.pth").write_bytes(b"".join([*start, content, pickle.dumps([], 2)]))
            began = time.monotonic()
            with pytest.raises(
                ValueError, match=r"a\.pth: .*(no program (does|makes)|PyTorch never)|few whole numbers|storage's description"
            ):
                torch_to_orbax.read_pth(tmp_path / "a.pth")
            assert time.monotonic() - began < 20, name


def test_file_that_hides_its_dicts_methods_is_refused(tmp_path: pathlib.Path) -> None:
    class Hidden:
        def __reduce__(self) -> tuple[Any, ...]:
            return (
                collections.OrderedDict,
                (),
                {"items": 1, "get": 2, "keys": 3},
                None,
                iter([("x", torch_files.Tensor(torch_files.Storage(4), (4,)))]),
            )

    torch_files.write_claims(tmp_path / "state.pth", Hidden(), "legacy", torch_files.FOUR)
    with pytest.raises(ValueError, match=r"expected a backbone.*found 1 keys: 'x'"):
        torch_to_orbax.read_pth(tmp_path / "state.pth")


@pytest.mark.parametrize("file_format", torch_files.FORMATS)
def test_truncated_file_is_refused_wherever_it_ends(tmp_path: pathlib.Path, file_format: str) -> None:
    path = torch_files.torch_save(
        torch_files.training_checkpoint({"x": torch.ones(500)}, argparse.Namespace()), tmp_path / "whole.pth", file_format
    )
    content = path.read_bytes()
    for length in (*range(1, len(content), 101), len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: expected"):
            torch_to_orbax.read_pth(path)


def test_damaged_zip_is_refused(tmp_path: pathlib.Path) -> None:
    path = torch_files.torch_save({"x": torch.zeros(500)}, tmp_path / "flip.pth", "zip")
    content = bytearray(path.read_bytes())
    content[content.index(bytes(1000)) + 500] ^= 1  # within the tensor's values
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # PyTorch doesn't notice
    with pytest.raises(ValueError, match=r"the checksum of flip/data/0 is wrong"):
        torch_to_orbax.read_pth(path)


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        ({"a/data.pkl": bytes(10_000)}, {"compression": zipfile.ZIP_DEFLATED}, "are compressed"),
        ({"a/readme": b"x"}, {}, r"with one data\.pkl; found 2 keys: 'a/readme'"),
        ({"a/data.pkl": b"x", "b/data.pkl": b"x"}, {}, r"with one data\.pkl"),
        ({"a/data.pkl": b"x", "a/constants.pkl": b"x"}, {}, "TorchScript"),
        ({"a/data.pkl": bytes(5_000_000)}, {}, "at most 4,194,304 bytes of pickle"),
        ({"a/data.pkl": pickle.dumps({"x": 1}, 4)}, {}, "expected pickle protocol 2"),
        ({"a/data.pkl": b"\x80\x02I1\n."}, {}, r"PyTorch cannot load it.*Unsupported operand 73"),
        ({"a/data.pkl": pickle.dumps([1], 2)}, {}, "expected a dict with the state dict.*found list"),
        ({"a/data.pkl": pickle.dumps({"model": 3}, 2)}, {}, "found int under 'model'"),
        ({"a/data.pkl": pickle.dumps({"epoch": 3}, 2)}, {}, "found 1 keys: 'epoch'"),
    ],
)
def test_zip_of_something_else_is_refused(
    tmp_path: pathlib.Path, members: dict[str, bytes], options: dict[str, Any], message: str
) -> None:
    with zipfile.ZipFile(tmp_path / "other.pth", "w", **options) as archive:
        for name, content in {**members, "a/version": b"3\n"}.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=message):
        torch_to_orbax.read_pth(tmp_path / "other.pth")


def test_other_files_are_refused_with_what_was_found(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file.pth"
    for content, found in ((b"", "found 0 bytes"), (b"<!DOCTYPE html><html>", "<!DOCTYPE html>"), (bytes(10_000), "10,000")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: expected a PyTorch checkpoint.*{found}"):
            torch_to_orbax.read_pth(path)
    with path.open("wb") as file:  # a hole: takes no room on disk
        file.truncate(pickle_check.MAX_FILE_BYTES + 1)
    with pytest.raises(ValueError, match=r"expected at most 4,294,967,296 bytes, found 4,294,967,297"):
        torch_to_orbax.read_pth(path)
    with pytest.raises(ValueError, match="is a folder; expected a PyTorch checkpoint file"):
        torch_to_orbax.read_pth(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"missing\.pth: no such file"):
        torch_to_orbax.read_any("missing.pth")
