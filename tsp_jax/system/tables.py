"""Reads CSV tables and JSON files strictly, with the line of each fault, and writes tables whole or not at all."""

import csv
import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from tsp_jax.system import files

# A number in a CSV file keeps about 15 digits. A comparison of two such numbers, in seconds or in frames, allows for this much.
ROUNDING = 1e-6
_MAX_FAULTS_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of a CSV file.

    Attributes:
      line: the row's line number in the file; the number of its last line if a quoted field holds line breaks.
      fields: the text of each column, by the column's name.
      fault: says that the row has too few or too many fields; empty if it has neither.
    """

    line: int
    fields: dict[str, str]
    fault: str


def read_table(path: str | Path, columns: Sequence[str]) -> list[TableRow]:
    """Returns the rows of a CSV file below its header. Blank lines are skipped.

    Args:
      path: the CSV file.
      columns: names of the columns that the file must have. Other columns are kept too.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing or occurs twice, or the file is no CSV of UTF-8 text.
    """
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            missing = [column for column in columns if column not in header]
            if missing:
                raise ValueError(
                    f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)}; "
                    f"found {', '.join(header) or 'an empty file'}"
                )
            repeated = [column for column in columns if header.count(column) > 1]
            if repeated:
                raise ValueError(f"{path}: {', '.join(repeated)} heads two columns; leave one")
            return [_table_row(reader.line_num, header, fields) for fields in reader if fields]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file; expected a CSV of {', '.join(columns)}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV of UTF-8 text ({error})") from error


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


def read_json(path: Path, expected: str) -> Any:
    """Returns the content of a JSON file.

    Args:
      path: the JSON file.
      expected: what the file should hold, for messages.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no JSON of UTF-8 text, or nests too deep.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file; {expected}") from error
    except (ValueError, RecursionError) as error:  # json raises ValueError for bad JSON and for bad UTF-8
        raise ValueError(f"{path}: {expected}, found no JSON ({error})") from error


def parse_number(text: str) -> float:
    """Returns the number that a text says.

    Raises:
      ValueError: the text is no number, or the number is not finite.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("expected a number")
    return number


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


def _table_row(line: int, header: Sequence[str], fields: Sequence[str]) -> TableRow:
    fault = ""
    if len(fields) != len(header):
        fault = f"expected {len(header)} fields as in the header, found {len(fields)}; quote a field that holds a comma"
    return TableRow(line, dict(zip(header, fields, strict=False)), fault)


class _PlainLineEnds:
    """A text stream for a csv.writer that ends lines with a plain line feed.

    With another `lineterminator`, csv.writer would not quote a carriage return, and the field would read back wrongly.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, row: str) -> int:
        return self._stream.write(row.removesuffix("\r\n") + "\n")
