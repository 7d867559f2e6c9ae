"""Whether a video file is all there, by its own headers: demuxers read one that is cut off to its end without a word."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_MATROSKA = b"\x1a\x45\xdf\xa3"  # EBML header
_SEGMENT = b"\x18\x53\x80\x67"  # the element that holds all of a Matroska file
_MAX_BOXES = 1 << 20


def missing_bytes(path: str | Path) -> int:
    """Bytes that the headers of an MP4, Matroska or AVI file promise beyond its end; 0 for a whole file, or another format.

    Source: ISO/IEC 14496-12 section 4.2 (boxes), RFC 8794 (EBML), RFC 9559 (Segment), Microsoft RIFF.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] == _MATROSKA:
            end = _segment_end(file)
        elif head[:4] == b"RIFF" and head[8:] == b"AVI ":
            end = max(_riff_ends(file, size), default=0)
        elif head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp"):
            end = max(_box_ends(file, size), default=0)
        else:
            end = 0
    return max(0, end - size)


def _box_ends(file: BinaryIO, size: int) -> Iterator[int]:
    """Where each top-level box ends."""
    start = 0
    for _ in range(_MAX_BOXES):
        if start >= size:
            return
        file.seek(start)
        header = file.read(16)
        length, shortest = int.from_bytes(header[:4], "big"), 8
        if length == 1:
            length, shortest = int.from_bytes(header[8:16], "big"), 16
        if length == 0 and len(header) >= 8:
            return  # the last box, up to the end of the file whatever that is
        start += max(length, shortest)
        yield start
        if length < shortest:
            return


def _riff_ends(file: BinaryIO, size: int) -> Iterator[int]:
    """Where each RIFF chunk ends; large AVI files have several."""
    start = 0
    for _ in range(_MAX_BOXES):
        file.seek(start)
        header = file.read(8)
        length = int.from_bytes(header[4:8], "little")
        if header[:4] != b"RIFF" or not length:
            return  # what follows the chunks, or a length that was never filled in
        start += 8 + length + length % 2
        yield start if start < size or length % 2 == 0 else start - 1  # the padding byte may be left out at the end


def _segment_end(file: BinaryIO) -> int:
    """Where the Segment ends; 0 when it says nothing, as in a live stream."""
    file.seek(4)
    header_length = _vint(file)
    if header_length is None:
        return 0
    file.seek(header_length, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return 0
    length = _vint(file)
    return 0 if length is None else file.tell() + length


def _vint(file: BinaryIO) -> int | None:
    """An EBML length; None when it is unknown or broken."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    rest = file.read(extra)
    if len(rest) < extra:
        return None
    bits = 7 * (extra + 1)
    value = int.from_bytes(first + rest, "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value
