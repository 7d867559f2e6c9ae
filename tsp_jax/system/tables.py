"""Reads CSV tables as people have them, with the line of each fault, and writes them whole or not at all."""

import contextlib
import csv
import dataclasses
import decimal
import io
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from tsp_jax.system import files, texts

# A number in a CSV file keeps about 15 digits. A comparison of two such numbers, in seconds or in frames, allows for this much.
ROUNDING = 1e-6
_MAX_FAULTS_SHOWN = 10
_MAX_HEADER_CHARS = 1 << 20
_MAX_HEADER_SHOWN = 200
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}", re.ASCII)
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*$', re.IGNORECASE)  # Excel reads and writes this line
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212"), "-")  # which word processors write for a hyphen
_CLOCK = re.compile(r"(?:(\d+):(?=\d\d:))?(\d+):(\d\d(?:[.,]\d+)?)", re.ASCII)


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of a CSV file.

    Attributes:
      line: the row's line number in the file; the number of its last line if a quoted field holds line breaks.
      fields: the text of each column, by the column's name.
      fault: says why the row can't be used, such as too few fields; empty if it can.
    """

    line: int
    fields: dict[str, str]
    fault: str


def read_table(
    path: str | Path,
    columns: Sequence[str],
    *,
    optional: Sequence[str] = (),
    numbers: Sequence[str] = (),
    foreign: Mapping[str, str] | None = None,
) -> list[TableRow]:
    """Returns the rows of a CSV file below its header. Rows of empty fields are skipped.

    Fields may be separated by commas, semicolons, tabs or bars. The text may be UTF-8 or UTF-16. In the header, case, blanks
    around names, and `_` or blanks in place of `-` do not matter. Fields are given as they are, except that a comma within a
    number becomes a point where it can only be the decimal mark.

    Args:
      path: the CSV file.
      columns: names of the columns that the file must have. Other columns are kept too, under `column_name`.
      optional: names of columns that the file may have, but not twice.
      numbers: names of the columns of numbers.
      foreign: names that other tools give to these columns, in small letters without `-` and blanks, with our names, for
        messages.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing or occurs twice, or the file is no CSV of text.
    """
    path = Path(path)
    with texts.opened(path, f"expected a CSV{' of ' if columns else ''}{', '.join(columns)}") as stream:
        separator, rows = _read_rows(path, stream, columns, optional, foreign or {})
    return _with_points(rows, numbers, separator)


def write_table(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[object]], *, errors: str = "strict") -> None:
    """Writes a CSV file, whole or not at all.

    Args:
      path: the CSV file.
      columns: names of the columns, for the header.
      rows: the fields of each row.
      errors: how text that is not UTF-8, such as a file's name, is written; as in `open`.

    Raises:
      UnicodeEncodeError: there is such text, and `errors` is "strict".
    """
    with files.replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8", errors=errors) as stream:
        table = csv.writer(_PlainLineEnds(stream))
        table.writerow(columns)
        table.writerows(rows)


def column_name(text: str) -> str:
    """Returns a column's name in small letters with `-` between words: `Video_Name` becomes `video-name`."""
    return "-".join(texts.clean(text).translate(_DASHES).casefold().replace("_", " ").split())


def bare_name(text: str) -> str:
    """Returns the letters of a column's name, without a unit of seconds in brackets: `Start time (s)` becomes `starttime`."""
    return "".join(filter(str.isalnum, re.sub(r"[(\[]\s*s(ec(onds?)?)?\.?\s*[)\]]", "", column_name(text))))


def parse_number(text: str) -> float:
    """Returns the number that a text says.

    Raises:
      ValueError: the text is no number, or the number is not finite.
    """
    try:
        number = math.nan if "_" in text else float(text)  # float() reads 1_5 as 15
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"expected a number{', with a point and not a comma' if _DECIMAL_COMMA.fullmatch(text.strip()) else ''}"
        )
    return number


def parse_seconds(text: str) -> float:
    """Returns the seconds that a text says as a number, or as a clock time: `1:02` or `0:01:02.5`, with a point or a comma.

    Raises:
      ValueError: the text is neither, or not finite.
    """
    if _DECIMAL_COMMA.fullmatch(text.strip()):
        return parse_number(text)  # raises an error about the comma
    if ":" not in text:
        with contextlib.suppress(ValueError):
            return parse_number(text)
    found = _CLOCK.fullmatch(text.strip())
    if found:
        hours, minutes, seconds = found[1], found[2], decimal.Decimal(found[3].replace(",", "."))
        if seconds < 60 and (hours is None or (len(minutes) == 2 and minutes < "60")):
            exact = 3600 * decimal.Decimal(hours or 0) + 60 * decimal.Decimal(minutes) + seconds
            return parse_number(str(exact))
    raise ValueError("expected a number of seconds, or a clock time such as 1:02 or 0:01:02.5")


def refuse(path: Path, faults: Sequence[str], remedy: str) -> None:
    """Raises one error for all faults of a file, if there are any.

    Args:
      path: the file with the faults.
      faults: the faults, each of which begins with its place in the file.
      remedy: what to do if there are more faults than the message shows.

    Raises:
      ValueError: there are faults; the message shows the first ten.
    """
    if faults:
        more = f"\n  and {len(faults) - _MAX_FAULTS_SHOWN} more; {remedy}" if len(faults) > _MAX_FAULTS_SHOWN else ""
        raise ValueError(f"{path}:\n  " + "\n  ".join(faults[:_MAX_FAULTS_SHOWN]) + more)


def _read_rows(
    path: Path, stream: io.TextIOWrapper, columns: Sequence[str], optional: Sequence[str], foreign: Mapping[str, str]
) -> tuple[str, list[TableRow]]:
    """Returns what separates the fields of a CSV file, and its rows."""
    separators, skipped, line = list(_SEPARATORS), 0, stream.readline(_MAX_HEADER_CHARS)
    while line and ((said := _SEPARATOR_LINE.match(line)) or not line.strip("".join(_SEPARATORS) + " \u00a0\r\n")):
        if said and said[1] in _SEPARATORS:
            separators = [said[1]]
        skipped, line = skipped + 1, stream.readline(_MAX_HEADER_CHARS)
    first = [line]
    while sum(part.count('"') for part in first) % 2 and len(first) < 10:  # a quoted name holds a line break
        first.append(stream.readline(_MAX_HEADER_CHARS))
    try:
        headers = {separator: next(csv.reader(first, delimiter=separator), []) for separator in separators}
    except csv.Error as error:
        raise ValueError(f"{path}: line {skipped + 1}: no header of a CSV ({error})") from error
    known = [*columns, *optional]
    named = {separator: _column_names(header, known) for separator, header in headers.items()}
    separator = max(
        separators, key=lambda key: (*(len(set(some) & set(named[key])) for some in (columns, known)), len(named[key]))
    )
    names = named[separator]
    _check_header(path, headers[separator], names, separator, columns, known, foreign)
    spaced = any(name.startswith(" ") for name in headers[separator][1:])
    reader = csv.reader(itertools.chain(first, stream), delimiter=separator, strict=True, skipinitialspace=spaced)
    rows, last = [], 0
    try:
        next(reader, [])
        last = reader.line_num
        for fields in reader:
            last = reader.line_num
            if any(map(str.strip, fields)):
                rows.append(_table_row(last + skipped, names, fields, separator))
    except csv.Error as error:
        raise ValueError(f"{path}: line {last + skipped + 1}: no row of a CSV ({error}); check its quotation marks") from error
    return separator, rows


def _column_names(header: Sequence[str], known: Sequence[str]) -> list[str]:
    """Returns the names under which a file's columns are given: the known ones as they are known, others in small letters."""
    found = [texts.clean(name) for name in header]
    while found and not found[-1]:
        found.pop()
    exact = set(found).intersection(known)
    # Where a known name is there as it is, a name that is only similar is that of another column.
    return [name if name in exact or column_name(name) in exact else column_name(name) for name in found]


def _check_header(
    path: Path,
    header: Sequence[str],
    names: Sequence[str],
    separator: str,
    columns: Sequence[str],
    known: Sequence[str],
    foreign: Mapping[str, str],
) -> None:
    missing = [column for column in columns if column not in names]
    if missing:
        written = [texts.clean(name) for name in header[: len(names)]]
        renames = [
            f"{as_written} to {known_name}"
            for as_written in written
            if (known_name := foreign.get(bare_name(as_written), "")) and known_name not in names
        ]
        found = ", ".join(written)
        raise ValueError(
            f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)}; found "
            f"{found[:_MAX_HEADER_SHOWN]}{'…' if len(found) > _MAX_HEADER_SHOWN else ''}{'' if names else 'an empty file'}"
            f"{'' if separator == ',' else f', separated by {_SEPARATORS[separator]}s'}"
            f"{'; rename ' if renames else '; name the columns so in the first line'}{', '.join(renames)}"
        )
    repeated = [column for column in known if names.count(column) > 1]
    if repeated:
        raise ValueError(f"{path}: {', '.join(repeated)} heads two columns; leave one")


def _table_row(line: int, names: Sequence[str], fields: Sequence[str], separator: str) -> TableRow:
    fault = ""
    while len(fields) > len(names) and not fields[-1].strip():
        fields = fields[:-1]
    if len(fields) != len(names):
        what = _SEPARATORS[separator]
        fault = f"expected {len(names)} fields as in the header, found {len(fields)}; quote a field that holds a {what}"
    return TableRow(line, dict(zip(names, fields, strict=False)), fault)


def _with_points(rows: list[TableRow], numbers: Sequence[str], separator: str) -> list[TableRow]:
    """Returns the rows with decimal points for decimal commas.

    A comma before three digits may also separate thousands. It is decimal if the fields are separated by semicolons, or if the
    file has a number with a comma that can't separate thousands. If there are points as well, nothing is sure.
    """
    places = [(row, column) for row in rows for column in numbers if "," in row.fields.get(column, "")]
    places = [(row, column) for row, column in places if _DECIMAL_COMMA.fullmatch(row.fields[column].strip())]
    if not places:
        return rows
    texts = [row.fields[column].strip() for row, column in places]
    point = next(((row, column) for row in rows for column in numbers if "." in row.fields.get(column, "")), None)
    reason = ""
    if point:
        reason = f"a number with a comma, while line {point[0].line} has {point[0].fields[point[1]]!r}; write points alone"
    elif separator != ";" and all(map(_THOUSANDS.fullmatch, texts)):
        reason = "the comma may separate thousands; write a point, or no comma"
    faults = {}
    for (row, column), text in zip(places, texts, strict=True):
        if reason:
            faults.setdefault(row.line, f"{column} {text!r}: {reason}")
        else:
            row.fields[column] = text.replace(",", ".")
    return [dataclasses.replace(row, fault=row.fault or faults.get(row.line, "")) for row in rows]


class _PlainLineEnds:
    """A text stream for a csv.writer that ends lines with a plain line feed.

    With another `lineterminator`, csv.writer would not quote a carriage return, and the field would read back wrongly.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, row: str) -> int:
        return self._stream.write(row.removesuffix("\r\n") + "\n")
