"""Tests of reading H.264's headers, of videos whose encoding is known and of bytes that are no H.264."""

import random
from pathlib import Path

import av
import pytest

import media
from tsp_jax.video import h264


def packets(path: Path) -> tuple[bytes, list[bytes]]:
    """Returns the decoder's configuration, and the packets in the order of decoding."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.codec_context.extradata or b"", [bytes(packet) for packet in container.demux(stream) if packet.size]


@pytest.mark.parametrize("name", ["b_frames.mp4", "odd_444.mp4", "ten_bit.mp4", "matroska.mkv", "interlaced.mp4", "stream.ts"])
def test_configuration_says_whether_frames_are_whole(tmp_path: Path, name: str) -> None:
    extradata, _ = packets(media.make(tmp_path, name))
    assert h264.length_bytes(extradata) == (0 if name in ("interlaced.mp4", "stream.ts") else 4)


def test_b_frames_that_nothing_refers_to_may_be_left_out(tmp_path: Path) -> None:
    """Without a pyramid x264 refers to no B-frame."""
    how = {"bf": "2", "x264-params": "b-pyramid=none:b-adapt=0:scenecut=0", "g": "60"}
    path = media.write(tmp_path / "v.mp4", options=how)
    _, data = packets(path)
    told = [h264.may_be_left_out(memoryview(packet), 4) for packet in data]
    with av.open(str(path)) as container:
        kinds = [av.video.frame.PictureType(frame.pict_type).name for frame in container.decode(video=0)]
    assert sum(told) == kinds.count("B") >= 30
    assert not told[0]


def test_packets_with_anything_else_are_not_left_out(tmp_path: Path) -> None:
    extradata, data = packets(media.write(tmp_path / "v.mp4", options={"bf": "2", "g": "60"}))
    free = next(packet for packet in data if h264.may_be_left_out(memoryview(packet), 4))
    for more in (b"\0\0\0\2\x68\x01", b"\0\0\0\2\x41\x01", b"\0\0\0\2\x14\x01", b"\0\0\0\0", b"\0\0\1\0\x01", b"\0"):
        assert not h264.may_be_left_out(memoryview(free + more), 4)
        assert not h264.may_be_left_out(memoryview(more), 4)
    assert h264.may_be_left_out(memoryview(free + b"\0\0\0\2\x06\x01"), 4)
    held = extradata[8 : 8 + int.from_bytes(extradata[6:8], "big")]
    for unit, other in ((held, False), (held[:-1] + b"\x01", True)):
        packet = len(unit).to_bytes(4, "big") + unit
        assert h264.has_other_parameters(memoryview(packet), 4, extradata) == other


def test_any_bytes_are_read_without_an_error(tmp_path: Path) -> None:
    extradata, (first, *_) = packets(media.make(tmp_path, "b_frames.mp4"))
    draw, sizes = random.Random(0), set()
    for _ in range(500):
        configuration, packet = bytearray(extradata), bytearray(first)
        for data in (configuration, packet):
            data[draw.randrange(min(60, len(data)))] = draw.randrange(256)
            del data[draw.randrange(len(data)) :]
        sizes.add(h264.length_bytes(bytes(configuration)))
        h264.may_be_left_out(memoryview(packet), 4)
        h264.has_other_parameters(memoryview(packet), 4, bytes(configuration))
    assert sizes <= {0, 1, 2, 3, 4}
    assert h264.length_bytes(b"") == 0
