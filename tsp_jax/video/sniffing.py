"""Whether a file is a video by its content, for files whose names do not say so."""

from pathlib import Path

import av.error

from tsp_jax.video import scanning

_HEAD_BYTES = 1024
_MAX_PACKETS = 64  # of the video stream, to find two frames


def looks_like_video(path: Path) -> bool:
    """Returns whether the file opens as a video and has at least two frames that decode. It reads the file's beginning.

    Text, pictures and a GIF of one frame are no videos; neither is a file that can't be read.
    """
    try:
        with open(path, "rb") as stream:
            head = stream.read(_HEAD_BYTES)
        return bool(head) and not _is_text(head) and frames_up_to_two(path) == 2
    except (scanning.VideoError, OSError):
        return False


def frames_up_to_two(path: Path) -> int:
    """Returns how many frames of the video decode, at most 2.

    Raises:
      VideoError: the file does not open as a video.
    """
    count = 0
    with scanning.open_container(path) as container:
        stream = scanning.video_stream(container)
        for number, (packet, _) in enumerate(scanning.packets(container, stream)):
            try:
                count += len(stream.decode(packet))
            except av.error.FFmpegError:
                continue
            if count >= 2 or number >= _MAX_PACKETS:
                break
    return min(count, 2)


def is_still_gif(path: Path) -> bool:
    """Returns whether the file is a GIF of one frame. A file that does not open as a GIF is none."""
    try:
        with open(path, "rb") as stream:
            # Most animations say that they repeat, which saves the look at their frames.
            return b"NETSCAPE2.0" not in stream.read(_HEAD_BYTES) and frames_up_to_two(path) == 1
    except (scanning.VideoError, OSError):
        return False


def is_side_file(path: Path) -> bool:
    """Returns whether the file is the half of a file that macOS keeps next to it as `._NAME` on foreign disks."""
    try:
        with open(path, "rb") as stream:
            return path.name.startswith("._") and stream.read(4) == b"\x00\x05\x16\x07"
    except OSError:
        return False


def _is_text(head: bytes) -> bool:
    """Returns whether bytes are text: no control characters other than white space."""
    return not any(byte < 9 or (13 < byte < 32 and byte != 27) for byte in head)
