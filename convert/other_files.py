"""Names what a file or a network is that is no checkpoint of this project's networks, and what the user can do."""

import re
from collections.abc import Collection, Mapping

# By the first bytes of a file. No PyTorch file starts with any of them.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer in place of the file; run `git lfs pull` in its clone, or download it",
    ),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras weights or features; a PyTorch file is needed"),
    (b"\x93NUMPY", "an array of NumPy; a whole state dict is needed, saved by torch.save"),
    (b"GGUF", "a GGUF file of a language model"),
    (b"\x1f\x8b", "a file compressed by gzip; unpack it by gunzip or tar"),
    (b"BZh", "a file compressed by bzip2; unpack it by bunzip2 or tar"),
    (b"\xfd7zXZ\0", "a file compressed by xz; unpack it by unxz or tar"),
    (b"\x28\xb5\x2f\xfd", "a file compressed by Zstandard; unpack it by unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"Rar!", "a RAR archive; unpack it"),
    (b"MATLAB 5.0", "a file of MATLAB"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"\x1aE\xdf\xa3", "a video; a checkpoint is needed here"),
    (b"RIFF", "a video or a picture; a checkpoint is needed here"),
)

_ONNX = "an ONNX program; convert the state dict that it was exported from"
_TENSORFLOW = "a program of TensorFlow; convert the PyTorch state dict"

# By a member of a zip, the first that fits.
_MEMBERS: tuple[tuple[str, str], ...] = (
    (r"(^|/)(constants\.pkl|bytecode\.pkl|code/.*)$", "a TorchScript program; save its state_dict() by torch.save"),
    (r"(^|/)(archive_format|serialized_exported_program\.json|models/.*\.json)$", "a program by torch.export"),
    (r"(^|/)model\.weights\.h5$", "a Keras model; a PyTorch state dict is needed"),
    (r"\.npy$", "arrays of NumPy (.npz); save the state dict by torch.save"),
    (r"^\[Content_Types\]\.xml$", "an Office document"),
    (r"^(META-INF/MANIFEST\.MF|.*\.class)$", "a Java program"),
)

# By keys of a state dict that no network of ours has, and the number of axes of the array there.
_NETWORKS: tuple[tuple[str, int, str], ...] = (
    (r"(^|\.)visual\.conv1\.weight$", 4, "CLIP, which sees single pictures"),
    (r"(^|\.)conv1\.weight$", 4, "a 2-D ResNet, which sees single pictures"),
    (r"(^|\.)conv1\.weight$", 5, "a 3-D ResNet of another code (conv1 in place of stem)"),
    (r"(^|\.)conv1\.conv(\.conv_[st])?\.weight$", 5, "a 3-D ResNet of MMAction2 (its keys and layers differ)"),
    (r"(^|\.)Conv3d_1a_7x7\.", 5, "I3D"),
    (r"(^|\.)(s1\.pathway\d|blocks\.0\.multipathway)", 5, "a network of SlowFast or PyTorchVideo"),
    (r"(^|\.)blocks\.0\.conv\.conv", 5, "a network of PyTorchVideo, such as X3D"),
    (r"(^|\.)(patch_embed|conv_proj)(\.proj)?\.weight$", 5, "a vision transformer for videos"),
    (r"(^|\.)(patch_embed|conv_proj)(\.proj)?\.weight$", 4, "a vision transformer for pictures"),
    (r"(^|\.)(backbone\.embd|fpnT|tdm|x1d)\b", 3, "a detector that reads features; extraction needs the encoder's checkpoint"),
)


def by_start(start: bytes) -> str | None:
    """Returns what a file is by its first bytes, about 300, and what to do; None if they are of no kind that is known."""
    if not start:
        return "the file is empty; copy or download it again"
    for magic, kind in _MAGIC:
        if start.startswith(magic):
            return kind
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if re.match(rb"<(!doctype html|html|head|body|!--)", text):
        return "an HTML page in place of the file; open its address in a browser and download the file itself"
    if text.startswith((b"<?xml", b"<error")):
        return "an XML text, such as a server's error, in place of the file; download it again"
    if re.match(rb'[{\[]\s*["{\[]', text):
        return "a JSON text, such as a configuration, an index or a server's error; name the file of the weights"
    if start[4:8] == b"ftyp":
        return "a video; a checkpoint is needed here"
    if start[4:8] == b"TFL3" or start[:3] == b"\x08\x01\x12":
        return _TENSORFLOW
    if re.match(rb"\x08[\x03-\x1f][\x12:]", start):
        return _ONNX
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it"
    return None


def by_members(names: Collection[str]) -> str | None:
    """Returns what a zip is by the names of its members, and what to do; None if they are of no kind that is known."""
    for pattern, kind in _MEMBERS:
        if any(re.search(pattern, name) for name in names):
            return kind
    inside = [name for name in names if re.search(r"\.(pth|pt|tar|ckpt|bin|safetensors)$", name)]
    return f"a zip that holds {', '.join(inside[:3])}; unpack it and name that file" if inside else None


def is_text(start: bytes) -> bool:
    """Returns whether a file's first bytes, at least one, are printable text."""
    return bool(start) and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start)


def network(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Returns the name of a network of another kind by its state dict's keys and shapes; None if it is not known."""
    kernels = {key: shape for key, shape in shapes.items() if re.search(r"(^|\.)layer[234]\.\d+\.conv\d\.0\.weight$", key)}
    if kernels and all(len(shape) == 5 and shape[2:] == (1, 3, 3) for shape in kernels.values()):
        return "torchvision's mc3_18 (3-D convolutions in the first stage alone)"
    if any(len(shape) == 5 and re.search(r"(^|\.)stem\.\d+\.weight$", key) for key, shape in shapes.items()):
        return None  # a relative of ours, whose misfits are listed
    for pattern, axes, name in _NETWORKS:
        if any(len(shape) == axes and re.search(pattern, key) for key, shape in shapes.items()):
            return name
    return None
