"""CSV tables and JSON files: read strictly, with the line of each fault, and written whole."""

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
    """A line of a CSV file as text by column; `fault` says when it has too few or too many fields, and is empty otherwise."""

    line: int
    fields: dict[str, str]
    fault: str


def read_table(path: str | Path, columns: Sequence[str]) -> list[TableRow]:
    """The lines of a CSV file below its header.

    Args:
      path: the file.
      columns: those that it must have; others are kept too.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a column is missing, or it is no CSV of text.
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
      path: the file.
      columns: its header.
      rows: the fields of each.
      errors: what becomes of names of files that are not UTF-8, as `open` has it.

    Raises:
      UnicodeEncodeError: there is such a name, and `errors` is "strict".
    """
    with files.replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8", errors=errors) as stream:
        table = csv.writer(_PlainLineEnds(stream))
        table.writerow(columns)
        table.writerows(rows)


def read_json(path: Path, expected: str) -> Any:
    """The content of a JSON file.

    Args:
      path: the file.
      expected: what it should be, for messages.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no JSON of UTF-8 text, or nests too deep.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file; {expected}") from error
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8
        raise ValueError(f"{path}: {expected}, found no JSON ({error})") from error


def parse_number(text: str) -> float:
    """The number that a text says.

    Raises:
      ValueError: it says none, or none that is finite.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("expected a number")
    return number


def refuse(path: Path, faults: Sequence[str], remedy: str) -> None:
    """Raises one error for all faults, when there are any.

    Args:
      path: the file that they stand in.
      faults: each beginning with its place in the file.
      remedy: what to do when there are more than the message shows.

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
    """A text stream for a csv.writer, which with a plain line end of its own would leave a carriage return unquoted."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, row: str) -> int:
        return self._stream.write(row.removesuffix("\r\n") + "\n")
