"""Files that appear under their names whole or not at all, and locks that die with their holder."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tsp_jax.system import errors


@contextlib.contextmanager
def replacing(path: str | Path, *, per_process: bool = False) -> Iterator[Path]:
    """Yields a temporary name. The file there takes the place of `path`, durably, if the block ends without an error.

    After an error the temporary file is removed. The folder is made if it is absent.

    Args:
      path: the file to write.
      per_process: names the temporary file `.NAME.PID.tmp`, so that several processes may write the file at once. Otherwise
        it is `.NAME.tmp`, for one writer at a time, and what a killed process left there is overwritten.

    Raises:
      OSError: something other than a file is at `path`, the folder can't be made, or the file can't be moved into place.
    """
    path = Path(path)
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp" if per_process else f".{path.name}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def check_replaceable(path: Path) -> None:
    """Checks that a file may take the place of what is there.

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


@contextlib.contextmanager
def locked(path: Path, busy: str, *, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds a lock file while the block runs. The kernel frees the lock if this process dies, however it dies.

    The block may remove the file, and its folder; otherwise the empty file stays. We do not use the library filelock: on
    file systems without flock it falls back to marker files, which a killed holder leaves behind.

    Args:
      path: the lock file. Its folder is made if it is absent.
      busy: the message of the error if another process holds the lock.
      waiting: is called once if another process holds the lock, before this one waits for it. None raises instead.

    Raises:
      InUseError: another process holds the lock, and `waiting` is None.
      OSError: the file can't be opened.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a")
        except FileNotFoundError:  # a holder that ended has just removed the folder
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if waiting is None:
                    raise errors.InUseError(busy) from error
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            # A holder may have removed the file after we opened it. Then the lock we got protects nothing.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield
                return
