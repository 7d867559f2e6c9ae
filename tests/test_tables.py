"""Tests of CSV tables in general: text that is not UTF-8, line ends, and numbers."""

import os
import threading
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


# -------------------------------------------------------------------------------------------------- tables as people have them

COLUMNS = ("filename", "t-start", "action-label")
PLAIN = "filename,t-start,action-label\nclip é.mp4,1.5,high jump\nb.mp4,2,run\n"
ROWS = [
    {"filename": "clip é.mp4", "t-start": "1.5", "action-label": "high jump"},
    {"filename": "b.mp4", "t-start": "2", "action-label": "run"},
]


def read(folder: Path, content: str | bytes) -> list[tables.TableRow]:
    (folder / "t.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    return tables.read_table(
        folder / "t.csv", COLUMNS, optional=["subset"], numbers=["t-start"], foreign={"videoid": "filename"}
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_every_encoding_separator_and_line_end_gives_the_same_rows(encoding: str, separator: str, end: str, tmp_path: Path):
    text = PLAIN.replace(",", separator).replace("\n", end)
    assert [row.fields for row in read(tmp_path, text.encode(encoding))] == ROWS


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.replace(",", ", "),
        PLAIN.replace("filename,t-start,action-label", "Filename , T_Start,\u00a0Action Label "),
        PLAIN.replace("filename", '"file\u200bname"'),
        PLAIN.replace("\n", ",,\n"),
        PLAIN.replace("run\n", "run\n,,\n\u00a0, ,\n\n"),
        "\n,,\n" + PLAIN,
        "sep=;\n" + PLAIN.replace(",", ";"),
        '"SEP=;"\n' + PLAIN.replace(",", ";"),
        PLAIN.replace("t-start,action-label", "T\u2011Start,action\u2013label"),
        PLAIN.replace(",", ";").replace("1.5", "1,5"),
        PLAIN.replace(",", "\t").replace("1.5", "1,5"),
        PLAIN.replace("1.5", '"1,5"'),
    ],
)
def test_other_ways_to_write_a_table_give_the_same_rows(text: str, tmp_path: Path):
    assert [row.fields for row in read(tmp_path, text)] == ROWS


def test_lines_are_those_of_the_file(tmp_path: Path):
    lines = [row.line for row in read(tmp_path, "sep=;\n;;\n" + PLAIN.replace(",", ";").replace("b.mp4", ';;\n"b\n.mp4"'))]
    assert lines == [4, 7]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        # The comma may separate thousands, unless semicolons or another number show that it does not.
        (PLAIN.replace("1.5", '"1,500"'), "t-start '1,500': the comma may separate thousands"),
        (PLAIN.replace(",", "\t").replace("1.5", "1,500"), "t-start '1,500': the comma may separate thousands"),
        (PLAIN.replace(",", ";").replace("1.5", "1,500"), ""),
        (PLAIN.replace("1.5", '"0,500"'), ""),
        (PLAIN.replace("1.5", '"1,500"').replace(",2,", ',"2,25",'), ""),
        (PLAIN.replace(",", ";").replace("1.5", "1,5").replace(";2;", ";2.25;"), "while line 3 has '2.25'; write points alone"),
        (PLAIN.replace("1.5", "1,5"), "expected 3 fields as in the header, found 4; quote a field that holds a comma"),
        (PLAIN.replace(",", ";").replace("1.5", "1;5"), "quote a field that holds a semicolon"),
    ],
)
def test_a_decimal_comma_is_read_where_it_can_be_nothing_else(text: str, fault: str, tmp_path: Path):
    first = read(tmp_path, text)[0]
    assert fault in first.fault and bool(first.fault) == bool(fault)
    assert fault or float(first.fields["t-start"]) in (0.5, 1.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column filename, t-start, action-label; expected .*; found an empty file"),
        (PLAIN.replace("filename", "Video_ID"), "no column filename;.*found Video_ID, .*; rename Video_ID to filename"),
        (PLAIN.replace(",", ":"), "found filename:t-start:action-label"),
        (PLAIN.replace("t-start", "start").replace(",", ";"), "found filename, start, action-label, separated by semicolons"),
        (PLAIN.replace("t-start", "T-Start").replace("label\n", "label,T_START\n"), "t-start heads two columns"),
        (PLAIN.replace("label\n", "label,subset,subset\n"), "subset heads two columns"),
        (PLAIN.encode("cp1252"), "in UTF-8, found a line in another encoding; if 'clip é.mp4,1.5,high jump' is right, convert"),
        (PLAIN.encode("utf-16")[:-1], "found no UTF-16"),
        (b"PK\x03\x04" + bytes(99), "found a ZIP archive or an Excel workbook"),
        (b"\x1f\x8b\x08" + bytes(99), "compressed by gzip"),
        (b"RIFF\x00\x00", "found binary data"),
        ("\n <!doctype html><html>", "found a web page"),
        ("version https://git-lfs.github.com/spec/v1\n", "found a pointer of Git LFS"),
        ('{"database": {}}', "no column .*found {\"database\": {}}; name the columns so in the first line"),
        (PLAIN.replace("b.mp4", '"b.mp4'), "line 3: no row of a CSV"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_named(content: str | bytes, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content)
    with pytest.raises(ValueError, match="a folder; expected a CSV of filename"):
        tables.read_table(tmp_path, COLUMNS)


def test_a_pipe_is_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=[PLAIN])
    writer.start()
    assert [row.fields for row in tables.read_table(tmp_path / "pipe", COLUMNS)] == ROWS
    writer.join()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1.5", 1.5),
        (" 1e1 ", 10.0),
        ("1:02", 62.0),
        ("0:01.08", 1.08),
        ("00:01:02,5", 62.5),
        ("\u00a001:00:00.25", 3600.25),
        ("75:00", 4500.0),
    ],
)
def test_clock_times_are_seconds(text: str, seconds: float):
    assert tables.parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["1:2", "0:75", "1:60:00", "1:02:03:04", "-0:01", "0:01:", ":05", "1:02 pm", "1_5", "1,5", "2s", "nan"]
)
def test_other_times_are_refused(text: str):
    with pytest.raises(ValueError, match="expected a number"):
        tables.parse_seconds(text)
