"""Tests of CSV tables in general: text that is not UTF-8, line ends, and numbers."""

import os
from pathlib import Path

import pytest

from tsp_jax.system import tables


def test_names_that_are_not_utf_8_are_refused_or_kept_as_asked(tmp_path: Path):
    path, name = tmp_path / "t.csv", os.fsdecode(b"caf\xe9.mp4")
    with pytest.raises(UnicodeEncodeError):
        tables.write_table(path, ["filename"], [[name]])
    assert list(tmp_path.iterdir()) == []
    tables.write_table(path, ["filename"], [[name]], errors="surrogateescape")
    assert path.read_bytes() == b"filename\ncaf\xe9.mp4\n"
    tables.write_table(path, ["filename"], [[name]], errors="backslashreplace")
    assert path.read_bytes() == b"filename\ncaf\\udce9.mp4\n"


def test_a_field_with_a_carriage_return_comes_back_as_written(tmp_path: Path):
    """Lines end with a plain line feed, and a field with a carriage return is quoted."""
    tables.write_table(tmp_path / "t.csv", ["name"], [["a\rb"], ["c"]])
    assert (tmp_path / "t.csv").read_bytes() == b'name\n"a\rb"\nc\n'
    assert [row.fields for row in tables.read_table(tmp_path / "t.csv", ["name"])] == [{"name": "a\rb"}, {"name": "c"}]


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "1e999"])
def test_text_that_is_no_finite_number_is_refused(text: str):
    with pytest.raises(ValueError, match="expected a number"):
        tables.parse_number(text)


def test_faults_are_raised_together_and_ten_shown():
    tables.refuse(Path("t.csv"), [], "mend them")
    with pytest.raises(ValueError, match="and 2 more; mend them") as caught:
        tables.refuse(Path("t.csv"), [f"line {number}" for number in range(12)], "mend them")
    assert str(caught.value).splitlines()[:2] == ["t.csv:", "  line 0"]
