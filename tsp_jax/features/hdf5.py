"""HDF5 files of features, read without trust and written so that damage shows.

The one door to h5py. A file may come from anyone: nothing here follows a link to another file, runs another decoder than
gzip's, or reserves more memory than the bytes on disk can fill.
"""

import contextlib
import io
import math
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tsp_jax import video_names
from tsp_jax.system import errors, files

FORMAT_VERSION = 1
DTYPE = np.dtype(np.float32)
NAMING = "names"  # the attribute that says by which rule of `video_names` the videos are named
# The format of HDF5 1.10 (2016): unlike the older default it has checksums, and room for attributes of more than 64 kB.
_VERSIONS = ("v110", "v110")
_MAX_GZIP_RATIO = 1100  # Deflate packs at most 1032 to 1, so a header that claims more lies.
_MAX_CHUNK = 1 << 28  # bytes; HDF5 unpacks whole chunks
_COMMON_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_MAX_VECTOR = 1 << 16  # numbers in a dataset of one dimension
# The errors that h5py raises on damaged files. Which one it is depends on the place of the damage.
_DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError)
_NUMBERS = (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID, h5py.h5t.TypeEnumID)

Attributes = dict[str, Any]
File = h5py.File


class FeatureFileError(errors.UserError):
    """A feature file can't be used as asked. The message says what was expected, what was found, and what to do."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """Opens a file of features for the block, which must do nothing but read it.

    Raises:
      FeatureFileError: the file is absent, damaged, of another format, or no HDF5 file. Errors of h5py within the block count
        as damage.
    """
    if not path.is_file():
        raise FeatureFileError(f"{path}: no such file; expected an HDF5 file of features")
    try:
        with h5py.File(path, "r") as file:
            version = _attribute(file, "format_version") if "format_version" in file.attrs else FORMAT_VERSION
            if version != FORMAT_VERSION:
                raise FeatureFileError(
                    f"{path}: format {version}; this tsp_jax reads {FORMAT_VERSION}: install the version that wrote the file"
                )
            yield file
    except _DAMAGE as error:
        raise FeatureFileError(f"{path}: not a file of features, or a damaged one ({error}); make it again") from error


def naming(file: h5py.File) -> video_names.Rule:
    """Returns the rule by which files named the videos. Files that do not say so have the original's rule.

    Raises:
      FeatureFileError: the file names a rule that is not known here.
    """
    rule = _attribute(file, NAMING) if NAMING in file.attrs else video_names.DEFAULT
    if rule not in video_names.RULES:
        raise FeatureFileError(
            f"{file.filename}: names by the rule {rule!r}; this tsp_jax knows {', '.join(video_names.RULES)}"
        )
    return rule


def names(file: h5py.File) -> list[str]:
    """Returns the names of the videos, sorted, in Unicode's composed form where no two names become one."""
    found, rule = [], naming(file)
    for key in map(str, file):
        name = key.replace("%2F", "/").replace("%25", "%") if rule == "path" else key
        if rule == "path" and {"", ".", ".."} & set(name.split("/")):
            raise FeatureFileError(f"{file.filename}: {name!r} is no relative path; not a file of features")
        composed = video_names.composed(name)
        found.append(name if composed != name and find(file, composed) != key else composed)
    return sorted(found)


def key(name: str, rule: str) -> str:
    """Returns the name of a video's dataset. By the rule `path`, it holds `%2F` for `/`, which makes groups in HDF5."""
    return name.replace("%", "%25").replace("/", "%2F") if rule == "path" else name


def find(file: h5py.File, name: str) -> str | None:
    """Returns the name of a video's dataset in a file; None if the file has none of this name."""
    own = key(name, naming(file))
    for text in dict.fromkeys([own, unicodedata.normalize("NFD", own)]):  # files of version 0.1.0 have names of both forms
        if text and "/" not in text and file.get(text, getlink=True) is not None:
            return text
    return None


def clip_dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """Returns a video's dataset, float32 [n_clips, width], after checks that make it safe to read.

    Raises:
      FeatureFileError: it is not such a dataset, does not lie in this file alone, has a filter other than gzip, or claims more
        numbers than its bytes on disk can hold.
    """
    dataset = _linked(file, name)
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype != DTYPE or dataset.ndim != 2:
        raise FeatureFileError(f"{path}: {name!r} is not a float32 [n_clips, width] dataset; not a file of features")
    created = dataset.id.get_create_plist()
    filters = [created.get_filter(index)[0] for index in range(created.get_nfilters())]
    # Only chunks are sure to lie in this file. Any other filter is one more decoder to trust.
    if dataset.chunks is None or np.any(np.array(dataset.chunks) > dataset.shape) or filters != [h5py.h5z.FILTER_DEFLATE]:
        raise FeatureFileError(f"{path}: {name!r} is not stored in gzip's chunks; not a file of features")
    claimed = math.prod(dataset.shape) * DTYPE.itemsize
    stored = min(dataset.id.get_storage_size(), path.stat().st_size)
    if claimed > _MAX_GZIP_RATIO * stored:
        raise FeatureFileError(f"{path}: {name!r} claims {claimed} bytes but stores {stored}; the file is damaged")
    return dataset


def foreign_dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """Returns a video's dataset of numbers as other tools write it, after checks that make it safe to read.

    It may lie in a group of its own, as in ActivityNet's file of C3D features, and in one piece or in chunks.

    Raises:
      FeatureFileError: it is not such a dataset, does not lie in this file alone, has an uncommon filter, or claims more
        numbers than its bytes on disk can hold.
    """
    item = _linked(file, name)
    if isinstance(item, h5py.Group) and len(item) == 1 and isinstance(item.get(next(iter(item)), getlink=True), h5py.HardLink):
        item = item[next(iter(item))]
    if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiu" or not item.ndim:
        raise FeatureFileError(f"{path}: {name!r} is not a dataset of numbers; not a file of features")
    created = item.id.get_create_plist()
    filters = {created.get_filter(index)[0] for index in range(created.get_nfilters())}
    if item.external or item.is_virtual or filters - _COMMON_FILTERS:
        raise FeatureFileError(
            f"{path}: {name!r} does not lie in this file alone, or is compressed otherwise than by gzip; write it again with "
            "`h5repack -f GZIP=4`"
        )
    stored = min(item.id.get_storage_size(), path.stat().st_size)
    claimed, chunk = (math.prod(shape) * item.dtype.itemsize for shape in (item.shape, item.chunks or (1,)))
    if claimed > (_MAX_GZIP_RATIO if filters else 1) * stored or chunk > _MAX_CHUNK:
        raise FeatureFileError(f"{path}: {name!r} claims {claimed} bytes but stores {stored}; the file is damaged")
    return item


def vector_dataset(file: h5py.File, name: str, path: Path) -> h5py.Dataset:
    """Returns a video's global feature, float32 [width], after checks that make it safe to read.

    Raises:
      FeatureFileError: it is not such a dataset, does not lie in this file, or is too large.
    """
    dataset = _linked(file, name)
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype != DTYPE or dataset.ndim != 1:
        raise FeatureFileError(f"{path}: {name!r} is not a float32 [width] dataset; not a file of global features")
    if dataset.external or dataset.is_virtual or len(dataset) > _MAX_VECTOR:
        raise FeatureFileError(f"{path}: {name!r} is not stored here, or too large; not a file of global features")
    return dataset


def attributes(item: h5py.File | h5py.Dataset) -> Attributes:
    """Returns all attributes of a file or dataset as plain numbers, text and arrays.

    Raises:
      FeatureFileError: an attribute is of a kind that this project never writes.
    """
    return {key: _attribute(item, key) for key in item.attrs}


def set_attributes(item: h5py.File | h5py.Dataset, values: Attributes) -> None:
    """Gives a file or dataset attributes, in the order of their names."""
    for key, value in sorted(values.items()):
        # A path in a message may hold bytes that are not text.
        text = value.encode(errors="backslashreplace") if isinstance(value, str) else None
        # Text has a fixed length: HDF5 keeps other text in heaps without a checksum, and hangs or crashes on a damaged heap.
        dtype = None if text is None else h5py.string_dtype("utf-8", max(1, len(text)))
        item.attrs.create(key, value if text is None else text, dtype=dtype)


def packed(fill: Callable[[h5py.File], None]) -> bytes:
    """Returns the bytes of a new file that `fill` fills.

    The file is made in memory: HDF5 crashes the process if a write fails, as it does on a full disk.
    """
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=_VERSIONS) as file:
        fill(file)
    return buffer.getvalue()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[h5py.File]:
    """Opens a new file that takes the place of `path`, durably, if the block ends without an error.

    The disk must have room for it: HDF5 crashes the process if a write fails.
    """
    with files.replacing(path) as temporary, h5py.File(temporary, "w", libver=_VERSIONS) as file:
        yield file


def _linked(file: h5py.File, name: str) -> Any:
    """Returns what a name leads to within the file, or None. A link that could lead to another file is not followed."""
    own = find(file, name)
    return file[own] if own is not None and isinstance(file.get(own, getlink=True), h5py.HardLink) else None


def _attribute(item: h5py.File | h5py.Dataset, key: str) -> Any:
    """Returns an attribute's value if it is stored in its own place, as all attributes are that this project writes."""
    kind = item.attrs.get_id(key).get_type()
    in_place = isinstance(kind, _NUMBERS) or (isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str())
    if not in_place:
        raise FeatureFileError(
            f"{item.file.filename}: {str(item.name).lstrip('/') or '/'!r} has an attribute {key!r} that is neither a number "
            "nor text of fixed length; not a file of features, or one of an early tsp_jax: make it again"
        )
    value = item.attrs[key]
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode() if isinstance(value, bytes) else value
