"""Tests of the released models: over real HTTP, a file arrives whole and verified or not at all."""

import contextlib
import csv
import dataclasses
import hashlib
import http.server
import pathlib
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from convert import download, released

PROJECT = pathlib.Path(__file__).resolve().parents[1]
REFERENCE_CSV = PROJECT.parent / "shared" / "reference" / "released_models.csv"
# Not a multiple of any buffer, and several chunks long.
BODY = random.Random(0).randbytes(300_001)
NO_PAUSES = (0.0, 0.0, 0.0)


@dataclasses.dataclass
class Page:
    """How the server answers for one path. The fields may change between requests."""

    body: bytes = BODY
    status: int = 200
    honours_range: bool = True
    range_shift: int = 0  # a 206 starts this many bytes after the byte that was asked for
    range_bytes: int | None = None  # a 206 has at most this many bytes
    range_total: bool = True  # a 206 says the length of the whole file
    declared_bytes: int | None = None  # Content-Length, if it is not the true one
    sends_length: bool = True
    cut_after: list[int] = dataclasses.field(default_factory=list)  # bytes sent in request 0, 1, …; then no more cuts
    always_cut_after: int | None = None
    failures: int = 0  # the first requests that are answered by 503
    delay_sec: float = 0.0
    stall: threading.Event | None = None  # after a cut body, waits for it before the connection is closed
    ranges: list[str | None] = dataclasses.field(default_factory=list)  # the Range header of every request


class Server:
    """A running server: pages by path, and the URL of each."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.pages: dict[str, Page] = {}

    def add(self, page: Page, sha256_prefix: str | None = None) -> released.Released:
        """A released model whose file is that page; the hash is the right one unless given."""
        name = f"model_{len(self.pages)}"
        path = f"/files/{name}.pth"
        self.pages[path] = page
        prefix = sha256_prefix or hashlib.sha256(page.body).hexdigest()[:8]
        return released.Released(name, "a test model", prefix, self.address + path)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = state.pages[self.path]
            index = len(page.ranges)
            page.ranges.append(self.headers["Range"])
            time.sleep(page.delay_sec)
            if index < page.failures:
                return self.send_error(503)
            if page.status != 200:
                return self.send_error(page.status)
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
            start, end = 0, len(page.body)
            if asked and page.honours_range:
                start = int(asked[1]) + page.range_shift
                if start >= end:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{end}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                self.send_response(206)
                if page.range_bytes is not None:
                    end = min(end, start + page.range_bytes)
                total = len(page.body) if page.range_total else "*"
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{total}")
            else:
                self.send_response(200)
            if page.sends_length:
                length = end - start if page.declared_bytes is None else page.declared_bytes
                self.send_header("Content-Length", str(length))
            self.end_headers()
            cut = page.cut_after[index] if index < len(page.cut_after) else page.always_cut_after
            body = page.body[start : end if cut is None else start + cut]
            with contextlib.suppress(ConnectionError):  # the client may leave early
                self.wfile.write(body)
            if cut is not None and page.stall is not None:
                page.stall.wait(10)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        state = Server(f"http://127.0.0.1:{httpd.server_address[1]}")
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        httpd.shutdown()
        thread.join()


def fetch(model: released.Released, cache: pathlib.Path) -> pathlib.Path:
    return released.fetch(model, cache, retry_pauses_sec=NO_PAUSES)


def part_of(model: released.Released, cache: pathlib.Path) -> pathlib.Path:
    return cache / "checkpoints" / f"{model.filename}.part"


def write_part(model: released.Released, cache: pathlib.Path, content: bytes) -> pathlib.Path:
    part = part_of(model, cache)
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    return part


def test_good_file_arrives_whole_under_its_name(server: Server, tmp_path: pathlib.Path) -> None:
    model = server.add(Page())
    path = fetch(model, tmp_path)
    assert path == tmp_path / "checkpoints" / "model_0.pth"
    assert path.read_bytes() == BODY
    assert not part_of(model, tmp_path).exists()


def test_second_fetch_makes_no_request(server: Server, tmp_path: pathlib.Path) -> None:
    page = Page()
    model = server.add(page)
    assert fetch(model, tmp_path) == fetch(model, tmp_path)
    assert page.ranges == [None]


def test_good_file_put_by_hand_makes_no_request(server: Server, tmp_path: pathlib.Path) -> None:
    page = Page()
    model = server.add(page)
    target = tmp_path / "checkpoints" / model.filename
    target.parent.mkdir()
    target.write_bytes(BODY)
    assert fetch(model, tmp_path) == target
    assert page.ranges == []


def test_damaged_file_in_the_cache_is_replaced_with_a_warning(
    server: Server, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = server.add(Page())
    target = tmp_path / "checkpoints" / model.filename
    target.parent.mkdir()
    target.write_bytes(BODY[:-1])
    assert fetch(model, tmp_path).read_bytes() == BODY
    assert str(target) in caplog.text


def test_wrong_hash_leaves_nothing_and_names_both(server: Server, tmp_path: pathlib.Path) -> None:
    model = server.add(Page(), sha256_prefix="00000000")
    with pytest.raises(download.DownloadError) as caught:
        fetch(model, tmp_path)
    for expected in ("00000000", hashlib.sha256(BODY).hexdigest()[:8], model.url):
        assert expected in str(caught.value)
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["model_0.pth.lock"]


def test_connection_cut_for_good_keeps_part_and_the_next_run_resumes_there(server: Server, tmp_path: pathlib.Path) -> None:
    page = Page(always_cut_after=70_000)
    model = server.add(page)
    with pytest.raises(download.DownloadError, match="next run continues") as caught:
        fetch(model, tmp_path)
    part = part_of(model, tmp_path)
    kept = part.stat().st_size
    # Four attempts, each of which may lose what was buffered of the last 64 KiB chunk, but not more.
    assert 4 * 65_536 <= kept <= 4 * 70_000
    assert part.read_bytes() == BODY[:kept]
    assert str(part) in str(caught.value)
    assert model.url in str(caught.value)
    assert not (tmp_path / "checkpoints" / model.filename).exists()

    page.always_cut_after = None
    page.ranges.clear()
    assert fetch(model, tmp_path).read_bytes() == BODY
    assert page.ranges == [f"bytes={kept}-"]
    assert not part.exists()


def test_connection_cut_once_is_continued_within_one_call(server: Server, tmp_path: pathlib.Path) -> None:
    page = Page(cut_after=[200_000])
    model = server.add(page)
    assert fetch(model, tmp_path).read_bytes() == BODY
    assert len(page.ranges) == 2
    resumed = re.fullmatch(r"bytes=(\d+)-", page.ranges[1] or "")
    assert resumed
    assert 200_000 - 65_536 < int(resumed[1]) <= 200_000


def test_server_that_ignores_range_is_read_from_the_start(server: Server, tmp_path: pathlib.Path) -> None:
    page = Page(honours_range=False)
    model = server.add(page)
    write_part(model, tmp_path, BODY[:1000])
    assert fetch(model, tmp_path).read_bytes() == BODY
    assert page.ranges == ["bytes=1000-"]


def test_part_longer_than_the_file_is_started_afresh_after_416(server: Server, tmp_path: pathlib.Path) -> None:
    page = Page()
    model = server.add(page)
    write_part(model, tmp_path, BODY + b"more")
    assert fetch(model, tmp_path).read_bytes() == BODY
    assert page.ranges == ["bytes=300005-", None]


def test_range_that_starts_elsewhere_is_not_appended(server: Server, tmp_path: pathlib.Path) -> None:
    page = Page(range_shift=1)
    model = server.add(page)
    write_part(model, tmp_path, BODY[:1000])
    assert fetch(model, tmp_path).read_bytes() == BODY
    assert page.ranges == ["bytes=1000-", None]


def test_range_shorter_than_the_rest_is_continued(server: Server, tmp_path: pathlib.Path) -> None:
    page = Page(range_bytes=200_000)
    model = server.add(page)
    write_part(model, tmp_path, BODY[:1000])
    assert fetch(model, tmp_path).read_bytes() == BODY
    assert page.ranges == ["bytes=1000-", "bytes=201000-"]


def test_range_of_unknown_total_is_accepted(server: Server, tmp_path: pathlib.Path) -> None:
    page = Page(range_total=False)
    model = server.add(page)
    write_part(model, tmp_path, BODY[:1000])
    assert fetch(model, tmp_path).read_bytes() == BODY
    assert page.ranges == ["bytes=1000-"]


def test_whole_part_of_a_killed_run_is_used_without_a_request(server: Server, tmp_path: pathlib.Path) -> None:
    page = Page()
    model = server.add(page)
    part = write_part(model, tmp_path, BODY)
    assert fetch(model, tmp_path).read_bytes() == BODY
    assert page.ranges == []
    assert not part.exists()


def test_part_of_other_bytes_is_removed_so_that_the_next_run_succeeds(server: Server, tmp_path: pathlib.Path) -> None:
    model = server.add(Page())
    part = write_part(model, tmp_path, b"x" * 1000)
    with pytest.raises(download.DownloadError, match="expected a SHA-256"):
        fetch(model, tmp_path)
    assert not part.exists()
    assert fetch(model, tmp_path).read_bytes() == BODY


def test_404_is_reported_at_once(server: Server, tmp_path: pathlib.Path) -> None:
    page = Page(status=404)
    model = server.add(page)
    with pytest.raises(download.DownloadError, match="404") as caught:
        fetch(model, tmp_path)
    assert model.url in str(caught.value)
    assert len(page.ranges) == 1


def test_busy_server_is_asked_again(server: Server, tmp_path: pathlib.Path) -> None:
    page = Page(failures=2)
    model = server.add(page)
    assert fetch(model, tmp_path).read_bytes() == BODY
    assert len(page.ranges) == 3


def test_unreachable_server_gives_url_and_where_to_put_the_file(tmp_path: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    model = released.Released("model", "nobody listens", "00000000", f"http://127.0.0.1:{port}/model.pth")
    with pytest.raises(download.DownloadError) as caught:
        fetch(model, tmp_path)
    assert model.url in str(caught.value)
    assert str(tmp_path / "checkpoints" / "model.pth") in str(caught.value)
    assert "kept" not in str(caught.value)


def test_declared_size_over_the_limit_is_refused_unread(server: Server, tmp_path: pathlib.Path) -> None:
    page = Page(declared_bytes=2 * 1024**3 + 1)
    model = server.add(page)
    with pytest.raises(download.DownloadError, match="2,147,483,649"):
        fetch(model, tmp_path)
    assert not part_of(model, tmp_path).exists()
    assert len(page.ranges) == 1


def test_undeclared_size_over_the_limit_is_stopped(
    server: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_BYTES", len(BODY) - 1)
    page = Page(sends_length=False)
    model = server.add(page)
    with pytest.raises(download.DownloadError, match=r"more than 300,000 bytes"):
        fetch(model, tmp_path)
    assert not part_of(model, tmp_path).exists()
    assert len(page.ranges) == 1


def test_undeclared_size_within_the_limit_is_accepted(server: Server, tmp_path: pathlib.Path) -> None:
    model = server.add(Page(sends_length=False))
    assert fetch(model, tmp_path).read_bytes() == BODY


def test_fetches_at_the_same_time_download_once(server: Server, tmp_path: pathlib.Path) -> None:
    page = Page(delay_sec=0.2)  # long enough that all four want it before the first has it
    model = server.add(page)
    paths: list[pathlib.Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(model, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == BODY for path in paths] == [True] * 4
    assert page.ranges == [None]


def test_killed_process_loses_neither_the_lock_nor_the_bytes(server: Server, tmp_path: pathlib.Path) -> None:
    page = Page(cut_after=[200_000], stall=threading.Event())
    model = server.add(page)
    program = (
        f"import pathlib; from convert import released; released.fetch(released.{model!r}, pathlib.Path({str(tmp_path)!r}))"
    )
    part = part_of(model, tmp_path)
    with subprocess.Popen([sys.executable, "-c", program], cwd=PROJECT) as process:
        deadline_sec = time.monotonic() + 10
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline_sec:
            time.sleep(0.01)
        process.kill()
    assert page.stall
    page.stall.set()
    kept = part.stat().st_size
    assert 0 < kept <= 200_000
    assert fetch(model, tmp_path).read_bytes() == BODY
    assert page.ranges == [None, f"bytes={kept}-"]


def test_cache_that_cannot_be_written_is_a_download_error(server: Server, tmp_path: pathlib.Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder belongs")
    with pytest.raises(download.DownloadError, match="TSP_JAX_CACHE"):
        fetch(server.add(Page()), tmp_path)


def test_table_equals_the_reference() -> None:
    if not REFERENCE_CSV.exists():
        pytest.skip(f"the reference outputs are not beside the project: {REFERENCE_CSV} is missing")
    with REFERENCE_CSV.open(newline="") as file:
        expected = {row["name"]: released.Released(**row) for row in csv.DictReader(file)}
    assert len(expected) == 14
    torchvision = {"r2plus1d_18-kinetics_init", "r3d_18-kinetics_init"}
    assert {name: model for name, model in released.RELEASED.items() if name not in torchvision} == expected
    assert torchvision <= released.RELEASED.keys()


def test_every_file_name_ends_in_its_hash_prefix_and_is_unique() -> None:
    # All three publishers name a file by the first eight digits of its SHA-256, so a slip in the table shows.
    for model in released.RELEASED.values():
        assert re.fullmatch(r"[0-9a-f]{8}", model.sha256_prefix)
        assert model.filename.endswith(f"-{model.sha256_prefix}.pth")
        assert model.url.startswith("https://")
    assert len({model.filename for model in released.RELEASED.values()}) == len(released.RELEASED) == 16


def test_unknown_name_suggests_close_ones_and_how_to_list() -> None:
    with pytest.raises(ValueError, match="did you mean r2plus1d_34-tsp_on_activitynet ") as caught:
        released.find("r2plus1d_34-tsp-on-activitynet")
    assert "--list" in str(caught.value)
    with pytest.raises(ValueError, match="--list"):
        released.find("zzz")


def test_list_prints_every_name_and_what_is_in_the_cache(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TSP_JAX_CACHE", str(tmp_path))
    present = released.RELEASED["r3d_18-tac_on_kinetics"]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / present.filename).touch()
    assert released.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(released.RELEASED)
    assert [line.split()[0] for line in lines if line.endswith(" yes")] == [present.name]


def test_download_prints_paths_and_goes_on_after_a_failure(
    server: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TSP_JAX_CACHE", str(tmp_path))
    missing, good = server.add(Page(status=404)), server.add(Page())
    monkeypatch.setattr(released, "RELEASED", {model.name: model for model in (missing, good)})
    assert released.main(["--download", good.name]) == 0
    assert released.main(["--download", missing.name, good.name]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [str(tmp_path / "checkpoints" / good.filename)] * 2
    assert captured.err.startswith(f"{missing.name}: cannot download {missing.url}")
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("argv", [[], ["--download"], ["--list", "--download", "x"], ["--download", "no_such_model"]])
def test_wrong_use_exits_with_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        released.main(argv)
    assert caught.value.code == 2


def test_help_of_the_module_shows_an_example() -> None:
    command = [sys.executable, "-m", "convert.released", "--help"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "python -m convert.released --download r2plus1d_34-tsp_on_activitynet" in done.stdout
