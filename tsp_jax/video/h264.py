"""Which packets of an H.264 stream hold a frame that no other frame refers to, according to their headers alone."""

from collections.abc import Iterator

_SLICE, _SEI, _PARAMETERS, _DELIMITER, _FILLER = 1, 6, 7, 9, 12
_WITH_CHROMA_FORMAT = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})


def length_bytes(extradata: bytes) -> int:
    """Returns the size in bytes of a packet's unit lengths, if all frames are stored whole; 0 if the headers don't show that.

    A frame that is stored as two fields may lie in two packets, of which one alone is of no use.

    Args:
      extradata: the decoder's configuration as MP4, Matroska and FLV keep it (ISO/IEC 14496-15, 5.3.3.1).
    """
    try:
        if extradata[0] != 1:
            return 0  # units begin with start codes
        count, at = extradata[5] & 31, 6
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2], "big")
            if not _frames_are_whole(extradata[at + 2 : at + 2 + size]):
                return 0
            at += 2 + size
        return (extradata[4] & 3) + 1 if count else 0
    except (IndexError, ValueError):
        return 0


def may_be_left_out(packet: memoryview, length_bytes: int) -> bool:
    """Whether the packet holds slices to which no other frame refers, and nothing else that matters.

    Source: ISO/IEC 14496-10, 7.4.1: nal_ref_idc 0.
    """
    slices = 0
    for unit in _units(packet, length_bytes):
        kind = unit[0] & 31 if len(unit) else -1
        if kind == _SLICE and not unit[0] & 0x60:
            slices += 1
        elif kind not in (_SEI, _DELIMITER, _FILLER):
            return False
    return slices > 0


def has_other_parameters(packet: memoryview, length_bytes: int, extradata: bytes) -> bool:
    """Whether the packet brings sequence parameters that the configuration does not hold, or can't be read."""
    for unit in _units(packet, length_bytes):
        if not len(unit) or (unit[0] & 31 == _PARAMETERS and bytes(unit) not in extradata):
            return True
    return False


def _units(packet: memoryview, length_bytes: int) -> Iterator[memoryview]:
    """The packet's units; an empty one, and no more, where the lengths do not fill it."""
    at = 0
    while at < len(packet):
        begin = at + length_bytes
        at = begin + int.from_bytes(packet[at:begin], "big")
        if at > len(packet) or begin == at:
            yield packet[:0]
            return
        yield packet[begin:at]


def _frames_are_whole(parameters: bytes) -> bool:
    """frame_mbs_only_flag of a sequence parameter set; false too where scaling matrices stand before it.

    Raises:
      ValueError: it is cut off.
    """
    data = parameters[1:].replace(b"\0\0\3", b"\0\0")
    bits = iter(f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}")

    def read(count: int) -> int:
        value = 0
        for _ in range(count):
            bit = next(bits, None)
            if bit is None:
                raise ValueError("cut off")
            value = 2 * value + int(bit)
        return value

    def read_golomb() -> int:
        zeros = 0
        while not read(1):
            zeros += 1
        return (1 << zeros) - 1 + read(zeros)

    profile = read(8)
    read(16)  # constraints, level
    read_golomb()  # id
    if profile in _WITH_CHROMA_FORMAT:
        if read_golomb() == 3:
            read(1)  # planes apart
        for _ in range(2):  # bits of luma and chroma
            read_golomb()
        if read(2) & 1:  # bypass, scaling matrices
            return False
    read_golomb()  # bits of the frame number
    order = read_golomb()
    if order == 0:
        read_golomb()
    elif order == 1:
        read(1)
        for _ in range(2):
            read_golomb()
        for _ in range(read_golomb()):
            read_golomb()
    read_golomb()  # references
    read(1)  # gaps
    for _ in range(2):  # width, height
        read_golomb()
    return read(1) == 1
