"""Downloads one file into a folder, resumes a download that was cut, and checks the SHA-256 of the result.

We do not use pooch: it starts a cut file of 250 MB again from its first byte, and docs/reliability.md promises to go on.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import requests

from tsp_jax.system import errors, files, progress

# Several times the largest released file. A server that sends more is not sending a checkpoint.
MAX_BYTES = 2 * 1024**3
# Pauses between attempts, in seconds. There is one attempt more than there are pauses.
RETRY_PAUSES_SEC: tuple[float, ...] = (1.0, 2.0, 4.0)

# Small, because a cut connection loses up to one chunk that urllib3 had buffered.
_CHUNK_BYTES = 64 * 1024
_CONNECT_TIMEOUT_SEC = 10.0
_READ_TIMEOUT_SEC = 30.0

_log = logging.getLogger(__name__)


class DownloadError(errors.UserError, RuntimeError):
    """A file could not be downloaded. The message says what happened, where, and what to do."""


def fetch(
    url: str,
    target: Path,
    sha256_prefix: str,
    *,
    advice: str,
    retry_pauses_sec: Sequence[float] = RETRY_PAUSES_SEC,
) -> Path:
    """Returns `target` when the file is complete and its SHA-256 is verified; downloads it first if it is not there.

    The file appears under its name whole or not at all. Until then its bytes are in TARGET.part, where a later call goes on.
    Processes that want the same file wait for each other on TARGET.lock, so it is downloaded once.
    The hash is checked at every call. This takes about a second, and also covers a file that was put there by hand. A file
    with another hash is replaced, with a warning in the log.
    Eight hex digits find damage, not an attacker. Against an attacker we rely on https and on a loader that runs no code.

    Args:
      url: the address of the file.
      target: the absolute path of the complete file.
      sha256_prefix: the first hex digits of the file's SHA-256.
      advice: what the user can do if the folder cannot be written, for the message.
      retry_pauses_sec: the pauses in seconds between attempts if the connection fails or is cut, or the server is busy.

    Raises:
      DownloadError: the server cannot be reached, refuses, or sends too much or the wrong bytes; or the folder cannot be
        written.
    """
    part, lock = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.lock")

    def waiting() -> None:
        _log.warning("waiting for another process that downloads the same file (it holds %s)", lock)

    try:
        # Before the lock, so that a folder that is read-only still serves the files that it has.
        if _is_verified(target, sha256_prefix):
            return target
        with files.locked(lock, busy="", waiting=waiting):
            # Again: another process may have downloaded it while this one waited.
            if _is_verified(target, sha256_prefix):
                return target
            if target.exists():
                _log.warning("%s does not have the SHA-256 %s…; it will be replaced", target, sha256_prefix)
            # A process that was killed just before the last step leaves a whole TARGET.part.
            if not _is_verified(part, sha256_prefix):
                _download(url, part, target, retry_pauses_sec)
                _check_or_remove(url, part, sha256_prefix)
            os.replace(part, target)
    except OSError as error:
        raise DownloadError(f"cannot keep {target.name} in the cache: {error}; {advice}") from error
    return target


def _is_verified(path: Path, sha256_prefix: str) -> bool:
    """Returns True if the file exists and has the right SHA-256."""
    return path.is_file() and _sha256(path).startswith(sha256_prefix)


def _sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, part: Path, target: Path, retry_pauses_sec: Sequence[float]) -> None:
    """Completes `part` with the bytes at `url`, in several attempts; each goes on where the one before stopped.

    Raises:
      DownloadError: no attempt completed it; the bytes that have arrived stay in `part`.
    """
    attempts = 0
    failure: requests.RequestException | None = None
    for pause_sec in (0.0, *retry_pauses_sec):
        time.sleep(pause_sec)
        attempts += 1
        try:
            return _receive(url, part)
        except requests.RequestException as error:
            failure = error
            if not _may_pass(error):
                break
    kept_bytes = _size_bytes(part)
    kept = f"{kept_bytes:,} bytes are kept in {part}, and the next run continues there. " if kept_bytes else ""
    raise DownloadError(
        f"cannot download {url} (attempts: {attempts}): {failure}. {kept}"
        f"Run again, or get the file by other means and put it at {target}"
    ) from failure


def _may_pass(error: requests.RequestException) -> bool:
    """Returns True if another attempt may succeed: the connection failed or was cut, or the server is busy."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, requests.ConnectionError | requests.Timeout | requests.exceptions.ChunkedEncodingError)


def _receive(url: str, part: Path) -> None:
    """Makes one request for the bytes that `part` lacks, and writes them to disk.

    Raises:
      requests.RequestException: the request failed, or the body ended early.
      DownloadError: the file is larger than MAX_BYTES.
    """
    start = _size_bytes(part)
    response = _request(url, start)
    if start and response.status_code in (206, 416) and _range_start(response) != start:
        # The bytes that we kept do not fit the file that the server has.
        response.close()
        start = 0
        response = _request(url, start)
    with response:
        response.raise_for_status()
        if response.status_code == 200:
            start = 0
        elif response.status_code != 206 or _range_start(response) != start:
            raise requests.HTTPError(
                f"expected the file from byte {start:,}, found status {response.status_code} "
                f"with Content-Range {response.headers.get('Content-Range')!r}",
                response=response,
            )
        total = _total_bytes(response)
        if total is not None and total > MAX_BYTES:
            raise DownloadError(f"{url} has {total:,} bytes, more than the {MAX_BYTES:,} of any released file; check the URL")

        received = start
        shown = progress.Progress(part.stem, None if total is None else total / 1e6, "MB", done=start / 1e6)
        with shown, part.open("ab" if start else "wb") as file:
            for chunk in response.iter_content(_CHUNK_BYTES):
                received += len(chunk)
                if received > MAX_BYTES:
                    part.unlink()
                    raise DownloadError(f"{url} has more than {MAX_BYTES:,} bytes, more than any released file; check the URL")
                file.write(chunk)
                shown.to(received / 1e6)
            file.flush()
            os.fsync(file.fileno())
    # A server may send less than the rest of the file, and urllib3 1 accepts a cut body as whole.
    if total is not None and received < total:
        raise requests.ConnectionError(f"the connection ended after {received:,} of {total:,} bytes")


def _size_bytes(path: Path) -> int:
    """Size of the file in bytes, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def _request(url: str, start: int) -> requests.Response:
    """Requests the bytes from `start` on; returns the server's answer with its body not yet read."""
    # With a compressed body, neither the length nor the range would count the bytes of the file.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    return requests.get(url, headers=headers, stream=True, timeout=(_CONNECT_TIMEOUT_SEC, _READ_TIMEOUT_SEC))


def _range_start(response: requests.Response) -> int | None:
    """First byte of the range that the server sends; None if the headers do not say it."""
    found = _content_range(response)
    return int(found[1]) if found else None


def _total_bytes(response: requests.Response) -> int | None:
    """Length of the whole file in bytes by the headers; None if they do not say it."""
    if response.status_code == 206:
        found = _content_range(response)
        if found is None:
            return None
        return int(found[2]) + 1 if found[3] == "*" else int(found[3])
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _content_range(response: requests.Response) -> re.Match[str] | None:
    """Match of the header Content-Range, with the groups first byte, last byte, and whole length or `*`."""
    return re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))


def _check_or_remove(url: str, part: Path, sha256_prefix: str) -> None:
    """Checks the SHA-256 of a download, and removes a file of wrong bytes, since it would be useless to continue it.

    Raises:
      DownloadError: the SHA-256 is another one.
    """
    found = _sha256(part)
    if found.startswith(sha256_prefix):
        return
    size_bytes = part.stat().st_size
    part.unlink()
    raise DownloadError(
        f"{url}: expected a SHA-256 that starts with {sha256_prefix}, found {found[:8]} "
        f"in {size_bytes:,} bytes; they were removed. Run again to download the file from the start"
    )
