"""What the bytes of a video file say that demuxers pass over without a word: a cut end, joints, a second recording."""

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

_MATROSKA = b"\x1a\x45\xdf\xa3"  # EBML header
_SEGMENT = b"\x18\x53\x80\x67"  # the element that holds all of a Matroska file
_MAX_BOXES = 1 << 20
_HEADERS = {  # of formats whose files do not say where they end
    b"FLV\x01": (b"FLV\x01\x01\0\0\0\t\0\0\0\0", b"FLV\x01\x04\0\0\0\t\0\0\0\0", b"FLV\x01\x05\0\0\0\t\0\0\0\0"),
    b"\x30\x26\xb2\x75": (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",),  # ASF
}
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")
_TS_SYNC, _TS_BYTES = 0x47, 188
_TABLES_BYTES = 1 << 21  # within which MPEG-TS repeats its tables


def missing_bytes(path: str | Path) -> int:
    """Bytes that an MP4, Matroska, AVI or GIF file promises beyond its end; 0 for a whole file, or another format.

    A GIF promises no more than its last byte. Source: ISO/IEC 14496-12 section 4.2 (boxes), RFC 8794 (EBML), RFC 9559
    (Segment), Microsoft RIFF, GIF89a section 27 (trailer).
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] == _MATROSKA:
            end = _segment_end(file)
        elif head[:4] == b"RIFF" and head[8:] == b"AVI ":
            end = max(_riff_ends(file, size), default=0)
        elif head[:4] == b"GIF8":
            end = size + (not _has_trailer(file, size))
        elif head[4:8] in _BOXES:
            end = max((start + length for start, length, _ in _boxes(file, size)), default=0)
        else:
            end = 0
    return max(0, end - size)


def joined_at(path: str | Path) -> list[int]:
    """Returns the bytes at which further recordings begin in an MP4, Matroska, AVI, FLV or ASF file, ascending.

    FFmpeg does not read all of them.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] == _MATROSKA:
            return list(_segments_after(file, size))
        if head[:4] == b"RIFF" and head[8:] == b"AVI ":
            return [start for start in _riff_ends(file, size) if start < size and _bytes_at(file, start + 8, 4) == b"AVI "]
        if head[4:8] in _BOXES:
            boxes = list(_boxes(file, size))
            films = [start for start, _, kind in boxes if kind == b"moov"]
            begins = [start for start, _, kind in boxes[1:] if kind == b"ftyp"]
            return begins if len(films) > 1 and begins else films[1:]
        return _found_after(file, _HEADERS.get(head[:4], ()))


def avi_rate(path: str | Path, start: int) -> tuple[int, int]:
    """Returns the two numbers that give the rate of the first video stream of a recording in an AVI file; zeros if none do."""
    with open(path, "rb") as file:
        head = _bytes_at(file, start, 1 << 16)
        at = head.find(b"vids")
        numbers = head[at + 20 : at + 28] if at > 0 else b""
        return int.from_bytes(numbers[:4], "little"), int.from_bytes(numbers[4:], "little")


def counters_restart(path: str | Path, start: int, stop: int) -> bool:
    """Returns whether the packets of MPEG-TS count from elsewhere on in several streams, as where recordings are joined.

    A lost packet breaks the count of one stream. Where recordings are joined the program's tables come again, and their count
    breaks too.

    Args:
      path: the file.
      start: byte at which a packet of the video begins, at or before the joint.
      stop: byte at which a packet of the video begins, after the joint.

    Source: ISO/IEC 13818-1, 2.4.3.2.
    """
    with open(path, "rb") as file:
        file.seek(stop)
        lead = file.read(5)
        if len(lead) < 5 or _TS_SYNC not in (lead[0], lead[4]):
            return False
        # In M2TS, each packet has four bytes of time before it. FFmpeg's positions count from either.
        sizes = [_TS_BYTES, _TS_BYTES + 4]
        for size in sizes:
            count = min(stop, stop - start + _TABLES_BYTES) // size
            file.seek(stop - count * size)
            raw = np.frombuffer(file.read(count * size), np.uint8).reshape(-1, size)
            packets = raw[:, 4:] if lead[0] != _TS_SYNC else raw
            if count and np.all(packets[-3:, 0] == _TS_SYNC):
                return _breaks(packets[:, :4], count - -(-(stop - start) // size))
    return False


def _breaks(heads: np.ndarray, first: int) -> bool:
    """Returns whether a table and the count of a stream other than the video's break at or after a packet."""
    pids = (heads[:, 1].astype(int) & 0x1F) << 8 | heads[:, 2]
    counted = (heads[:, 3] & 0x10) > 0
    if not np.any(pids[first:] == 0):
        return False
    video = pids[first]
    for pid in np.unique(pids[first:]):
        places = np.flatnonzero((pids == pid) & counted)
        steps = np.diff(heads[places, 3].astype(int) & 15) & 15
        if pid not in (video, 0x1FFF) and np.any(steps[places[1:] >= first] > 1):
            return True
    return False


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[int, int, bytes]]:
    """Yields where each top-level box starts, its length and its kind, up to one that lasts to the end of the file."""
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
        yield start, max(length, shortest), header[4:8]
        if length < shortest:
            return
        start += length


def _has_trailer(file: BinaryIO, size: int) -> bool:
    """Returns whether a GIF ends with its mark, or with padding after it."""
    file.seek(max(0, size - 1024))
    return file.read().rstrip(b"\0\r\n ").endswith(b";")


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


def _segment_end(file: BinaryIO, start: int = 0) -> int:
    """Where the Segment of the recording that begins at a byte ends; 0 when it says nothing, as in a live stream."""
    file.seek(start + 4)
    header_length = _vint(file)
    if header_length is None:
        return 0
    file.seek(header_length, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return 0
    length = _vint(file)
    return 0 if length is None else file.tell() + length


def _segments_after(file: BinaryIO, size: int) -> Iterator[int]:
    """Yields where each Matroska header after the first one begins."""
    start = 0
    for _ in range(_MAX_BOXES):
        end = _segment_end(file, start)
        if not end:  # a live recording, of unknown length
            yield from _found_after(file, (_MATROSKA,), start)
            return
        if end >= size or _bytes_at(file, end, 4) != _MATROSKA:
            return
        yield end
        start = end


def _found_after(file: BinaryIO, headers: Sequence[bytes], start: int = 0) -> list[int]:
    """Returns the bytes after a start at which one of the headers is found; of a Matroska header, its type has to follow."""
    places = []
    if headers:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for header in headers:
                at = data.find(header, start + 1)
                while at > 0:
                    if header != _MATROSKA or b"\x42\x82" in data[at : at + 64]:
                        places.append(at)
                    at = data.find(header, at + 1)
    return sorted(places)


def _bytes_at(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)


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
