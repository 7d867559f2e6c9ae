"""Files that appear under their names whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name that becomes `path`, durably, when the block ends without an error, and vanishes otherwise.

    It is `.NAME.tmp` beside the file, for one writer at a time; what a killed process left there is written over. The folder is
    made when absent.

    Raises:
      OSError: there is something else than a file, the folder can't be made, or the file can't be moved into place.
    """
    path = Path(path)
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def check_replaceable(path: Path) -> None:
    """Nothing, when a file may take the place of what is there.

    Raises:
      OSError: the name can't be a file's, or there is a folder, or a device: root could put a file in the place of /dev/null.
    """
    if not path.name or "\0" in str(path):
        raise OSError(f"{str(path)!r} can't be the name of a file; name another")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is a device or pipe; name a file")


def make_folder(path: Path) -> None:
    """Makes a folder where there is none.

    Raises:
      OSError: it can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except ValueError as error:  # of a name with a zero byte
        raise OSError(f"{str(path)!r} can't be the name of a folder; name another") from error


def sync(path: Path) -> None:
    """Has a file's or folder's content reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
