"""Tests that pickles of plain values and arrays are read as pickle reads them, and that nothing in them is run."""

import collections
import io
import os
import pickle
import struct

import numpy as np
import pytest

from tsp_jax.system import pickles

CONTENT = {
    "video-id": ["a", "名前", "a"],
    "t-start": np.array([0.5, 2.0, 3.25], np.float32),
    "matrix": np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
    "names": np.array(["x", "long name"]),
    "objects": np.array(["x", None, 3], dtype=object),
    "scalar": np.float64(2.5),
    "empty": np.zeros((0, 4)),
    "flags": np.array([True, False]),
    "nested": [(1, 2.5, None, True, b"\x00\xff"), {"k": {1, 2}}],
    "ordered": collections.OrderedDict(a=1),
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_and_arrays_are_read_as_pickle_reads_them(protocol: int):
    found = pickles.loads(pickle.dumps(CONTENT, protocol=protocol), "r.pkl")
    assert list(found) == list(CONTENT)
    for name, value in CONTENT.items():
        if not isinstance(value, np.ndarray):
            assert found[name] == value
        else:
            np.testing.assert_array_equal(found[name], value)
            assert found[name].dtype == value.dtype and found[name].shape == value.shape


class _Hostile:
    def __reduce__(self) -> tuple:
        return os.system, ("touch hostile_ran",)


def test_code_is_refused_by_name_and_not_run(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"r\.pkl: the pickle asks for 'posix.system'.*nothing was run"):
        pickles.loads(pickle.dumps({"a": _Hostile()}), "r.pkl")
    assert not list(tmp_path.iterdir())


def test_a_repeated_part_is_made_once():
    value: list = [1.0]
    for _ in range(40):
        value = [value, value]
    found = pickles.loads(pickle.dumps(value), "r.pkl")
    assert found[0] is found[1]


def test_what_a_pickle_claims_beyond_its_size_is_refused():
    whole = pickle.dumps(np.zeros(1000), protocol=4)
    shape = whole.replace(struct.pack("<cH", b"M", 1000), struct.pack("<cH", b"M", 60000))
    for data in (
        shape,
        whole[:-20],
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40),
        b"r" + b"\xff\xff\xff\x7f" + b"N.",
        b"",
        b"{}",
    ):
        with pytest.raises(ValueError, match=r"r\.pkl"):
            pickles.loads(data, "r.pkl")
    nested: tuple = ()
    stream = io.BytesIO(pickle.dumps(nested).replace(b")", b")" + b"\x85" * 300_000))
    with pytest.raises(ValueError, match="no program does"):
        pickles.loads(stream.getvalue(), "r.pkl")
