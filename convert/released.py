"""The released models known by name, each downloaded once and verified."""

import argparse
import contextlib
import dataclasses
import difflib
import fcntl
import hashlib
import logging
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Sequence

import platformdirs
import requests
import tqdm


@dataclasses.dataclass(frozen=True)
class Released:
    """One released file. Its SHA-256 must start with the 8 hex digits of sha256_prefix."""

    name: str
    description: str
    sha256_prefix: str
    url: str

    @property
    def filename(self) -> str:
        """Last part of the URL, which is also the name of the file in the cache."""
        return self.url.rsplit("/", 1)[-1]


_TSP = "https://github.com/HumamAlwassel/TSP/releases/download/model_weights"
_IG65M = "https://github.com/moabitcoin/ig65m-pytorch/releases/download/v1.0.0"
_TORCHVISION = "https://download.pytorch.org/models"

# Source: the README tables of HumamAlwassel/TSP, of moabitcoin/ig65m-pytorch, and torchvision's model URLs.
RELEASED: dict[str, Released] = {
    model.name: model
    for model in (
        Released(
            "r2plus1d_34-tsp_on_activitynet",
            "R(2+1)D-34 pretrained with TSP on ActivityNet",
            "0d2cf854",
            f"{_TSP}/r2plus1d_34-tsp_on_activitynet-max_gvf-backbone_lr_0.0001-fc_lr_0.002-epoch_5-0d2cf854.pth",
        ),
        Released(
            "r2plus1d_34-tsp_on_thumos14",
            "R(2+1)D-34 pretrained with TSP on THUMOS14",
            "e6a30b2f",
            f"{_TSP}/r2plus1d_34-tsp_on_thumos14-max_gvf-backbone_lr_0.0001-fc_lr_0.004-epoch_4-e6a30b2f.pth",
        ),
        Released(
            "r2plus1d_34-tac_on_activitynet",
            "R(2+1)D-34 pretrained with TAC on ActivityNet",
            "98ccac94",
            f"{_TSP}/r2plus1d_34-tac_on_activitynet-backbone_lr_0.0001-fc_lr_0.002-epoch_5-98ccac94.pth",
        ),
        Released(
            "r2plus1d_34-tac_on_thumos14",
            "R(2+1)D-34 pretrained with TAC on THUMOS14",
            "54b5c8aa",
            f"{_TSP}/r2plus1d_34-tac_on_thumos14-backbone_lr_0.00001-fc_lr_0.002-epoch_3-54b5c8aa.pth",
        ),
        Released(
            "r2plus1d_34-tac_on_kinetics",
            "R(2+1)D-34 pretrained with TAC on Kinetics",
            "0547130e",
            f"{_TSP}/r2plus1d_34-tac_on_kinetics-0547130e.pth",
        ),
        Released(
            "r2plus1d_34-tsp_on_activitynet-avg_gvf",
            "R(2+1)D-34 pretrained with TSP on ActivityNet (average GVF)",
            "8b74eaa2",
            f"{_TSP}/r2plus1d_34-tsp_on_activitynet-avg_gvf-backbone_lr_0.0001-fc_lr_0.004-epoch_5-8b74eaa2.pth",
        ),
        Released(
            "r2plus1d_34-tsp_on_activitynet-no_gvf",
            "R(2+1)D-34 pretrained with TSP on ActivityNet (without GVF)",
            "fb38fdd2",
            f"{_TSP}/r2plus1d_34-tsp_on_activitynet-no_gvf-backbone_lr_0.0001-fc_lr_0.004-epoch_5-fb38fdd2.pth",
        ),
        Released(
            "r2plus1d_18-tsp_on_activitynet",
            "R(2+1)D-18 pretrained with TSP on ActivityNet",
            "22835b73",
            f"{_TSP}/r2plus1d_18-tsp_on_activitynet-max_gvf-backbone_lr_0.0001-fc_lr_0.002-epoch_6-22835b73.pth",
        ),
        Released(
            "r2plus1d_18-tac_on_activitynet",
            "R(2+1)D-18 pretrained with TAC on ActivityNet",
            "9f56941a",
            f"{_TSP}/r2plus1d_18-tac_on_activitynet-backbone_lr_0.0001-fc_lr_0.004-epoch_5-9f56941a.pth",
        ),
        Released(
            "r2plus1d_18-tac_on_kinetics",
            "R(2+1)D-18 pretrained with TAC on Kinetics",
            "76ce975c",
            f"{_TSP}/r2plus1d_18-tac_on_kinetics-76ce975c.pth",
        ),
        Released(
            "r3d_18-tsp_on_activitynet",
            "R3D-18 pretrained with TSP on ActivityNet",
            "85584422",
            f"{_TSP}/r3d_18-tsp_on_activitynet-max_gvf-backbone_lr_0.0001-fc_lr_0.002-epoch_6-85584422.pth",
        ),
        Released(
            "r3d_18-tac_on_activitynet",
            "R3D-18 pretrained with TAC on ActivityNet",
            "31fd6e95",
            f"{_TSP}/r3d_18-tac_on_activitynet-backbone_lr_0.001-fc_lr_0.01-epoch_5-31fd6e95.pth",
        ),
        Released(
            "r3d_18-tac_on_kinetics",
            "R3D-18 pretrained with TAC on Kinetics",
            "dcd952c6",
            f"{_TSP}/r3d_18-tac_on_kinetics-dcd952c6.pth",
        ),
        Released(
            "r2plus1d_34-kinetics_init",
            "R(2+1)D-34 from IG-65M, fine-tuned on Kinetics (start of TSP training)",
            "0aa0550b",
            f"{_IG65M}/r2plus1d_34_clip8_ft_kinetics_from_ig65m-0aa0550b.pth",
        ),
        Released(
            "r2plus1d_18-kinetics_init",
            "R(2+1)D-18 from torchvision, trained on Kinetics (start of TSP training)",
            "91a641e6",
            f"{_TORCHVISION}/r2plus1d_18-91a641e6.pth",
        ),
        Released(
            "r3d_18-kinetics_init",
            "R3D-18 from torchvision, trained on Kinetics (start of TSP training)",
            "b3b3357e",
            f"{_TORCHVISION}/r3d_18-b3b3357e.pth",
        ),
    )
}

# Several times the largest released file: a server that sends more is not sending a checkpoint.
MAX_BYTES = 2 * 1024**3
# The pauses between attempts; there is one attempt more than there are pauses.
RETRY_PAUSES_SEC: tuple[float, ...] = (1.0, 2.0, 4.0)

# Small, because a cut connection loses up to one chunk that urllib3 had buffered.
_CHUNK_BYTES = 64 * 1024
_CONNECT_TIMEOUT_SEC = 10.0
_READ_TIMEOUT_SEC = 30.0
_LIST_COMMAND = "python -m convert.released --list"

_log = logging.getLogger(__name__)


class DownloadError(RuntimeError):
    """A released file could not be had. The message says what happened, where, and what to do."""


def cache_dir() -> pathlib.Path:
    """Root of the cache: the environment variable TSP_JAX_CACHE, else the user's cache folder. It may not exist yet.

    Released files lie in its subfolder `checkpoints`.
    """
    from_environment = os.environ.get("TSP_JAX_CACHE")
    if from_environment:
        return pathlib.Path(from_environment).expanduser()
    return platformdirs.user_cache_path("tsp_jax")


def find(name: str) -> Released:
    """The released model of that name.

    Raises:
      ValueError: no released model has that name; the message suggests close ones.
    """
    if name in RELEASED:
        return RELEASED[name]
    close = difflib.get_close_matches(name, RELEASED, n=3)
    suggestion = f"did you mean {' or '.join(close)}? " if close else ""
    raise ValueError(f"no released model is named {name!r}; {suggestion}{_LIST_COMMAND} shows all {len(RELEASED)}")


def fetch(
    released: Released,
    cache: pathlib.Path | None = None,
    *,
    retry_pauses_sec: Sequence[float] = RETRY_PAUSES_SEC,
) -> pathlib.Path:
    """Path of the complete file in the cache, its SHA-256 verified; downloaded first if it is not there.

    The file appears under its name whole or not at all. Until then its bytes are in FILE.part, where a later call
    continues. Processes that want the same file wait for each other on FILE.lock, so it is downloaded once.
    The hash is checked at every call: it takes a second or so, and also covers a file that was put there by hand. A
    file with another hash is replaced, with a warning in the log.
    Eight hex digits find damage, not an attacker: against that stand https and a loader that runs no code of the file.

    Args:
      released: what to fetch.
      cache: root of the cache, in place of cache_dir().
      retry_pauses_sec: the pauses between attempts when the connection fails or is cut, or the server is busy.

    Raises:
      DownloadError: the server cannot be reached, refuses, or sends too much or the wrong bytes; or the cache cannot
        be written.
    """
    target = _path_in_cache(released, cache)
    part = target.with_name(f"{target.name}.part")
    try:
        # Before the lock, so that a cache that is read only serves what it has.
        if _is_verified(target, released):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(target.with_name(f"{target.name}.lock")):
            # Again: another process may have brought it while this one waited.
            if _is_verified(target, released):
                return target
            if target.exists():
                _log.warning("%s does not have the SHA-256 %s…; it will be replaced", target, released.sha256_prefix)
            # A process killed just before the last step leaves a whole FILE.part.
            if not _is_verified(part, released):
                _download(released.url, part, target, retry_pauses_sec)
                _check_or_remove(part, released)
            os.replace(part, target)
    except OSError as error:
        raise DownloadError(
            f"cannot keep {released.filename} in the cache: {error}; "
            f"make {target.parent} writable and free space there, or set TSP_JAX_CACHE to another folder"
        ) from error
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of the command line: 0, or 1 when a download failed.

    Raises:
      SystemExit: with status 2 after wrong use, 0 after --help, as argparse does.
    """
    parser = argparse.ArgumentParser(
        prog="python -m convert.released",
        description="List the released models, or download them into the cache "
        "(the environment variable TSP_JAX_CACHE, else the user's cache folder).",
        epilog="example:\n  python -m convert.released --download r2plus1d_34-tsp_on_activitynet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--list", action="store_true", help="print the released models and which are in the cache")
    action.add_argument("--download", nargs="+", metavar="NAME", help="download these models and print their paths")
    args = parser.parse_args(argv)

    if args.list:
        print(_table())
        return 0

    try:
        models = [find(name) for name in args.download]
    except ValueError as error:
        parser.error(str(error))
    status = 0
    for model in models:
        try:
            print(fetch(model))
        except DownloadError as error:
            print(f"{model.name}: {error}", file=sys.stderr)
            status = 1
    return status


def _table() -> str:
    """The released models as aligned columns. In the cache means that the file is there; its hash is checked on use."""
    rows = [("NAME", "DESCRIPTION", "SHA-256", "IN CACHE")]
    for model in RELEASED.values():
        present = "yes" if _path_in_cache(model).is_file() else "no"
        rows.append((model.name, model.description, model.sha256_prefix, present))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:{widths[2]}}  {row[3]}" for row in rows]
    return "\n".join(lines)


def _path_in_cache(released: Released, cache: pathlib.Path | None = None) -> pathlib.Path:
    """Where the complete file belongs, absolute, whether or not it is there."""
    root = cache_dir() if cache is None else cache
    return (root / "checkpoints" / released.filename).absolute()


def _is_verified(path: pathlib.Path, released: Released) -> bool:
    """True when the file exists and has the right SHA-256."""
    return path.is_file() and _sha256(path).startswith(released.sha256_prefix)


def _sha256(path: pathlib.Path) -> str:
    """SHA-256 of the file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _exclusive(lock: pathlib.Path) -> Iterator[None]:
    """Holds the lock file; waits for another holder, and the kernel frees it if the holder dies.

    The empty file stays: were it removed, a process that waits on it and one that makes it anew would both go on.
    """
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("waiting for another process that downloads the same file (it holds %s)", lock)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(url: str, part: pathlib.Path, target: pathlib.Path, retry_pauses_sec: Sequence[float]) -> None:
    """Completes part with the bytes at url, in several attempts, each of which continues where the last one stopped.

    Raises:
      DownloadError: no attempt completed it; what has arrived stays in part.
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
    """True when another attempt may succeed: the connection failed or was cut, or the server is busy."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, requests.ConnectionError | requests.Timeout | requests.exceptions.ChunkedEncodingError)


def _receive(url: str, part: pathlib.Path) -> None:
    """Makes one request for the bytes that part lacks and writes them to disk.

    Raises:
      requests.RequestException: the request failed, or the body ended early.
      DownloadError: the file is larger than MAX_BYTES.
    """
    start = _size_bytes(part)
    response = _request(url, start)
    if start and response.status_code in (206, 416) and _range_start(response) != start:
        # What is kept does not fit what the server has.
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
        progress = tqdm.tqdm(
            total=total,
            initial=start,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            desc=part.stem,
            disable=None,  # no bar in a log file
        )
        with progress, part.open("ab" if start else "wb") as file:
            for chunk in response.iter_content(_CHUNK_BYTES):
                received += len(chunk)
                if received > MAX_BYTES:
                    part.unlink()
                    raise DownloadError(f"{url} has more than {MAX_BYTES:,} bytes, more than any released file; check the URL")
                file.write(chunk)
                progress.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    # A server may send less than the rest of the file, and urllib3 1 lets a body that was cut pass as whole.
    if total is not None and received < total:
        raise requests.ConnectionError(f"the connection ended after {received:,} of {total:,} bytes")


def _size_bytes(path: pathlib.Path) -> int:
    """Size of the file, 0 when there is none."""
    return path.stat().st_size if path.exists() else 0


def _request(url: str, start: int) -> requests.Response:
    """The server's answer, its body not yet read, to a request for the bytes from start on."""
    # identity: with a compressed body neither the length nor the range would count the bytes of the file.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    return requests.get(url, headers=headers, stream=True, timeout=(_CONNECT_TIMEOUT_SEC, _READ_TIMEOUT_SEC))


def _range_start(response: requests.Response) -> int | None:
    """First byte of the range that the server sends; None when it does not say."""
    found = _content_range(response)
    return int(found[1]) if found else None


def _total_bytes(response: requests.Response) -> int | None:
    """Length of the whole file, by the headers; None when they do not say."""
    if response.status_code == 206:
        found = _content_range(response)
        if found is None:
            return None
        return int(found[2]) + 1 if found[3] == "*" else int(found[3])
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _content_range(response: requests.Response) -> re.Match[str] | None:
    """Match of the header Content-Range: groups first byte, last byte, and whole length or `*`."""
    return re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))


def _check_or_remove(part: pathlib.Path, released: Released) -> None:
    """Passes when the downloaded file has the right SHA-256.

    Raises:
      DownloadError: it has not; the file is removed, since to continue it would be useless.
    """
    found = _sha256(part)
    if found.startswith(released.sha256_prefix):
        return
    size_bytes = part.stat().st_size
    part.unlink()
    raise DownloadError(
        f"{released.url}: expected a SHA-256 that starts with {released.sha256_prefix}, found {found[:8]} "
        f"in {size_bytes:,} bytes; they were removed. Run again to download the file from the start"
    )


if __name__ == "__main__":
    sys.exit(main())
