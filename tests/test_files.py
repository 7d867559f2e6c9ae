"""Tests that a file is replaced as a whole: the new one is there and on the disk, or the old one stays."""

import os
from pathlib import Path

import pytest

from tsp_jax.system import files


def test_the_old_file_stays_until_the_block_ends(tmp_path: Path):
    path = tmp_path / "f.h5"
    path.write_text("old")
    (tmp_path / ".f.h5.tmp").write_text("what a killed process left, longer than the new")
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary == tmp_path / ".f.h5.tmp" and path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(error: type[BaseException], tmp_path: Path):
    path = tmp_path / "f.h5"
    path.write_text("old")
    with pytest.raises(error), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    with pytest.raises(error), files.replacing(path):
        raise error  # before the file exists
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_moved_into_place_leaves_nothing(tmp_path: Path):
    (tmp_path / "f").mkdir()
    with pytest.raises(IsADirectoryError), files.replacing(tmp_path / "f") as temporary:
        temporary.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_its_folder_is_made(tmp_path: Path):
    with files.replacing(str(tmp_path / "a" / "b" / "c")) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a" / "b" / "c").read_text() == "new"


def test_its_bytes_are_on_the_disk_before_its_name_and_both_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    steps: list[str] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(descriptor: int) -> None:
        steps.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        sync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        steps.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    with files.replacing(tmp_path / "f") as temporary:
        temporary.write_text("new")
    assert steps == ["sync .f.tmp", "replace", f"sync {tmp_path.name}"]


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "empty name", "zero byte"])
def test_what_is_no_file_is_never_replaced(kind: str, tmp_path: Path):
    """Root can put a file in the place of a device such as /dev/null, for all programs of the machine."""
    path = tmp_path / "x"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to(os.devnull)  # a link, so that a failure of this test harms nothing
        case "empty name":
            path = Path("")
        case "zero byte":
            path = Path("a\0b")
    with pytest.raises(OSError, match="name a"), files.replacing(path) as temporary:
        temporary.write_text("new")
    assert sorted(item.name for item in tmp_path.iterdir()) == (["x"] if kind in ("folder", "pipe", "device") else [])
    assert kind != "device" or path.is_symlink()
