"""Opens text files as people have them, in UTF-8 or UTF-16, reads JSON, and says what a file is that is neither."""

import codecs
import contextlib
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_MARKS = {  # a longer mark comes before the one that it begins with
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NO_TEXT = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook; unpack it, or save the sheet as `CSV UTF-8`",
    b"\xd0\xcf\x11\xe0": "an Excel workbook; save the sheet as `CSV UTF-8`",
    b"\x1f\x8b": "compressed by gzip; unpack it with gunzip",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; run `git lfs pull`",
    b"<!DOCTYPE": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
}
_WIDTHLESS = dict.fromkeys(map(ord, "\u200b\u2060\ufeff"))  # characters without width, which editors and web pages leave


@contextlib.contextmanager
def opened(path: Path, expected: str) -> Iterator[io.TextIOWrapper]:
    """Opens a text file in UTF-8 or UTF-16 for reading, with its line ends as they are.

    Args:
      path: the text file. A pipe works too.
      expected: what the file should hold, for messages, as in "expected a CSV of …".

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file can't be read, or is no such text. The block raises it where it meets such bytes.
    """
    try:
        binary = open(path, "rb")  # noqa: SIM115 (closed by the `with` below; the errors here are those of opening alone)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file; {expected}") from error
    except IsADirectoryError as error:
        raise ValueError(f"{path}: a folder; {expected}") from error
    except OSError as error:
        raise ValueError(f"{path}: can't be read ({error.strerror}); {expected}") from error
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: no path of a file ({error}); {expected}") from error
    with binary, io.TextIOWrapper(binary, _encoding(path, binary, expected), newline="") as stream:
        try:
            yield stream
        except UnicodeDecodeError as error:
            raise ValueError(_not_unicode(path, expected, error)) from error


def read_text(path: Path, expected: str) -> str:
    """Returns the content of a text file in UTF-8 or UTF-16, with its line ends as they are.

    Args:
      path: the text file.
      expected: what the file should hold, for messages.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no such text.
    """
    with opened(path, expected) as stream:
        return stream.read()


def read_json(path: Path, expected: str) -> Any:
    """Returns the content of a JSON file.

    Args:
      path: the JSON file.
      expected: what the file should hold, for messages.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no JSON text, nests too deep, or gives one name two values.
    """
    text = read_text(path, expected)
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno} column {error.colno}: {error.msg}"
    except RecursionError:
        reason = "it nests too deep"
    except _RepeatedError as error:
        raise ValueError(f"{path}: the name {str(error)[:80]!r} has two values in one object; keep one") from error
    except ValueError:  # from int()
        reason = "a number has thousands of digits"
    raise ValueError(f"{path}: {expected}, found no JSON ({reason})")


def clean(text: str) -> str:
    """Returns a text in Unicode's form NFC, without characters of no width, and with single blanks between words alone."""
    return " ".join(unicodedata.normalize("NFC", text.translate(_WIDTHLESS)).split())


def _encoding(path: Path, stream: io.BufferedReader, expected: str) -> str:
    """Returns the encoding of a text by its first bytes; raises ValueError if they are known as those of something else."""
    head = stream.peek(512)[:512]
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    if len(head) >= 4 and head.count(0, 0, 4) == 2 and head[0] != 0 != head[2]:
        return "utf-16-le"
    if len(head) >= 4 and head.count(0, 0, 4) == 2 and head[1] != 0 != head[3]:
        return "utf-16-be"
    start = head.lstrip().lower()
    found = next((what for mark, what in _NO_TEXT.items() if start.startswith(mark.lower())), "")
    if found or 0 in head:
        raise ValueError(f"{path}: {expected}, found {found or 'binary data'}")
    return "utf-8"


def _not_unicode(path: Path, expected: str, error: UnicodeDecodeError) -> str:
    """Returns the message for a text that does not decode, with its first bad line as a Western European Windows reads it."""
    if not error.encoding.replace("-", "").startswith("utf8"):
        return f"{path}: {expected}, found no {error.encoding.upper()}, which its first bytes promise; save it as UTF-8"
    before, after = error.object[: error.start], error.object[error.start :]
    line = (re.split(rb"[\r\n]", before)[-1][-40:] + re.split(rb"[\r\n]", after)[0][:40]).decode("cp1252", "replace")
    return (
        f"{path}: {expected} in UTF-8, found a line in another encoding; if {line!r} is right, convert the file by "
        "`iconv -f WINDOWS-1252 -t UTF-8`, otherwise save it as UTF-8 (in Excel: `CSV UTF-8`)"
    )


class _RepeatedError(Exception):
    """A name occurs twice in a JSON object, with two values."""


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, value in pairs:
            if value != found[name]:
                raise _RepeatedError(name)
    return found
