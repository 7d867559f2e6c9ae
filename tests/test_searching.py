"""Tests of the paths of `--videos`: folders, files, globs and lists, and what is said of the files that are passed over."""

import os
import unicodedata
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

import media
from data_builders import metadata, standardize
from tsp_jax import groundtruth, video_list
from tsp_jax.video import scanning, searching

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return media.write(tmp_path_factory.mktemp("video") / "a.mp4", frames=8).read_bytes()


def fill(folder: Path, *files: str, content: bytes = b"") -> Path:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    return folder


def write_gif(path: Path, frames: int, loop: int | None = None) -> Path:
    pictures = [PIL.Image.fromarray(np.full((8, 12, 3), 20 * number, np.uint8)) for number in range(frames)]
    how = {} if loop is None else {"loop": loop}
    pictures[0].save(path, "GIF", save_all=True, append_images=pictures[1:], duration=100, **how)
    return path


def found(*videos: str | Path) -> tuple[str, list[str], list[str]]:
    """The root, the files relative to it, and the notes without the flag."""
    result = searching.find(list(videos))
    notes = [note.removeprefix(f"--videos {' '.join(map(str, videos))}: ") for note in result.notes]
    return str(result.root), [result.filename(path) for path in result.paths], notes


# ------------------------------------------------------------------------------------------------- what a folder holds


def test_what_is_passed_over_is_counted_and_named(video: bytes, tmp_path: Path):
    fill(tmp_path, "a.mp4", "sub/b.QT", content=video)
    fill(tmp_path, *(f"{name}.txt" for name in "abcdefg"), "cover.JPG", "sub/page.webp", "c.mp4.part", "empty", content=b"text")
    fill(tmp_path, "._a.mp4", content=b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    write_gif(tmp_path / "logo.gif", 1)
    write_gif(tmp_path / "wave.gif", 3)
    write_gif(tmp_path / "loop.gif", 3, loop=0)
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    root, files, notes = found(tmp_path)
    assert (root, files) == (str(tmp_path), ["a.mp4", "loop.gif", "sub/b.QT", "wave.gif"])
    assert notes == [
        "passed over: 1 link to a folder is not followed: link; 1 file is a side file of macOS: ._a.mp4; "
        "8 files are not videos by their names: a.txt, b.txt, c.txt, d.txt, e.txt, …; "
        "1 file is a download, backup or preview by its name: c.mp4.part; "
        "2 files are pictures: cover.JPG, sub/page.webp; 1 GIF holds one picture: logo.gif"
    ]


def test_files_without_an_ending_are_videos_by_their_content(video: bytes, tmp_path: Path):
    fill(tmp_path, "clip", "2018-03-11.school", "d/x.dat", content=video)
    fill(tmp_path, "notes", "read.me", content=b"some text\n" * 99)
    fill(tmp_path, "noise", content=np.random.default_rng(0).bytes(1 << 16))
    fill(tmp_path, "cut", content=video[: len(video) // 4])
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "photo", "JPEG")
    write_gif(tmp_path / "still", 1)
    os.mkfifo(tmp_path / "pipe")
    _, files, notes = found(tmp_path)
    assert files == ["2018-03-11.school", "clip", "d/x.dat"]
    assert notes == [
        "passed over: 7 files are not videos by their names: cut, noise, notes, photo, pipe, …",
        "3 files are taken for videos by their content alone: 2018-03-11.school, clip, d/x.dat",
    ]


@pytest.mark.parametrize(
    ("ending", "container", "codec"),
    [
        ("qt", "mov", "libx264"),
        ("asf", "asf", "mpeg4"),
        ("divx", "avi", "mpeg4"),
        ("m2v", "mpeg2video", "mpeg2video"),
        ("mts", "mpegts", "libx264"),
        ("m2ts", "mpegts", "libx264"),
        ("vob", "vob", "mpeg2video"),
        ("mxf", "mxf", "mpeg2video"),
    ],
)
def test_each_ending_is_read(ending: str, container: str, codec: str, tmp_path: Path):
    path = media.write(tmp_path / f"a.{ending}", container=container, codec=codec, frames=20, fps=25)
    assert found(tmp_path) == (str(tmp_path), [path.name], [])
    assert len(scanning.scan(path).timeline.pts) == 20


def test_an_animated_gif_is_a_video_with_its_times(tmp_path: Path):
    path = write_gif(tmp_path / "a.gif", 7)
    assert metadata.main(["--videos", str(path), "--output", str(tmp_path / "m.csv")]) == 0
    (row,) = groundtruth.read_metadata(tmp_path / "m.csv")
    assert (row.num_frames, round(row.fps, 2)) == (7, 10.0)


def test_a_folder_without_videos_says_what_it_holds(tmp_path: Path):
    fill(tmp_path, "a.jpg", "b.jpg", "c.csv")
    with pytest.raises(
        FileNotFoundError, match=r"no video in this folder; looked for .*\. 2 files are pictures: a\.jpg, b\.jpg; 1"
    ):
        found(tmp_path)


def test_many_files_of_unknown_kinds_are_not_all_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(searching, "_MAX_OPENED", 3)
    fill(tmp_path, "a.mp4", *(f"{number}.x" for number in range(5)))
    assert found(tmp_path)[2] == [
        "passed over: 3 files are not videos by their names: 0.x, 1.x, 2.x; "
        "2 more files, whose names do not say what they are, were not opened: 3.x, 4.x"
    ]


def test_a_picture_that_is_named_is_refused_as_one(tmp_path: Path):
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    media.write(tmp_path / "b.png", container="mp4", frames=3)  # a video by its content
    item, video = video_list.list_videos([tmp_path / "a.png", tmp_path / "b.png"])
    assert video.fault == "" and item.fault == "a picture by its name (png), not a video"


# ----------------------------------------------------------------------------------------------------- several paths


def test_several_paths_have_the_folder_that_they_share(tmp_path: Path):
    fill(tmp_path, "x/a.mp4", "x/d/b.mp4", "y/c.mp4", "y/any.ending")
    assert found(tmp_path / "x", tmp_path / "y" / "c.mp4") == (str(tmp_path), ["x/a.mp4", "x/d/b.mp4", "y/c.mp4"], [])
    assert found(tmp_path / "x" / "d", tmp_path / "x" / "a.mp4")[:2] == (str(tmp_path / "x"), ["d/b.mp4", "a.mp4"])
    assert found(tmp_path / "x", tmp_path / "x" / "a.mp4")[1] == ["a.mp4", "d/b.mp4"]  # each once
    assert found(tmp_path / "y" / "any.ending", tmp_path / "y" / "c.mp4")[1] == ["any.ending", "c.mp4"]
    with pytest.raises(FileNotFoundError, match=r"--videos .*absent\.mp4: no such file or folder"):
        found(tmp_path / "x", tmp_path / "absent.mp4")


def test_a_glob_is_expanded_and_its_root_is_the_part_without_wildcards(tmp_path: Path):
    fill(tmp_path, "v/a1.mp4", "v/a2.mov", "v/b.mp4", "v/a.txt", "v/s1/c.mp4", "v/s2/d.mp4", "v/clip [1].mp4")
    root = str(tmp_path / "v")
    assert found(f"{root}/a*") == (root, ["a1.mp4", "a2.mov"], ["passed over: 1 file is not a video by its name: a.txt"])
    assert found(f"{root}/s?") == (root, ["s1/c.mp4", "s2/d.mp4"], [])
    assert found(f"{root}/s?/*.mp4")[:2] == (root, ["s1/c.mp4", "s2/d.mp4"])
    assert found(f"{root}/**/*.mp4")[1] == ["a1.mp4", "b.mp4", "clip [1].mp4", "s1/c.mp4", "s2/d.mp4"]
    assert found(f"{root}/**")[1] == ["a1.mp4", "a2.mov", "b.mp4", "clip [1].mp4", "s1/c.mp4", "s2/d.mp4"]
    assert found(f"{root}/clip [1].mp4")[1] == ["clip [1].mp4"]  # a file of that very name is no pattern
    with pytest.raises(FileNotFoundError, match="nothing matches the pattern"):
        found(f"{root}/*.webm")


# -------------------------------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_is_relative_to_its_folder_or_the_working_directory(
    encoding: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fill(tmp_path, "v/a.mp4", f"v/s/{unicodedata.normalize('NFD', 'é')}.mp4", "v/t/c.mp4", "v/t/n.txt", "v/noise.mp4")
    lines = ["# the videos of Monday", "a.mp4", "", "  s\\é.mp4 ", "./t", "gone.mp4"]
    (tmp_path / "v" / "list.txt").write_bytes(end.join(lines).encode(encoding))
    here = [f"v/{line.strip()}" if line and line[0] != "#" else line for line in lines]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.txt").write_bytes(end.join(here).encode(encoding))
    monkeypatch.chdir(tmp_path)
    for path in ("v/list.txt", "lists/list.txt"):
        result = searching.find(f"@{path}")
        assert [unicodedata.normalize("NFC", result.filename(item)) for item in result.paths] == [
            "a.mp4",
            "s/é.mp4",
            "t/c.mp4",
            "gone.mp4",  # stays, and the run reports it
        ]
        assert result.root.resolve() == tmp_path / "v"
        assert result.notes == [f"--videos @{path}: passed over: 1 file is not a video by its name: n.txt"]


def test_a_list_that_cannot_be_used_says_why(tmp_path: Path):
    for content, message in [
        (b"", "lists no video"),
        (b"# none\n\n", "lists no video"),
        (b"x.mp4\ny.mp4\n", r"none of its 2 paths is there, such as 'x\.mp4'; they are relative to the list's folder"),
        (b"\x89HDF\r\n\x1a\n\0\0", "expected a text file of paths, one a line, found binary data"),
    ]:
        (tmp_path / "list.txt").write_bytes(content)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            found(f"@{tmp_path / 'list.txt'}")
    with pytest.raises(FileNotFoundError, match=r"no such file; .*expected a text file of paths"):
        found(f"@{tmp_path / 'absent.txt'}")


def test_names_of_any_bytes_can_be_listed(tmp_path: Path):
    try:
        fill(tmp_path, os.fsdecode(b"caf\xe9.mp4"))
    except OSError:
        pytest.skip("this file system has no such names")
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.mp4\n")
    assert found(f"@{tmp_path / 'list.txt'}")[1] == [os.fsdecode(b"caf\xe9.mp4")]


# ----------------------------------------------------------------------------------------------------------- commands


def test_commands_take_all_of_them_and_say_once_what_is_passed_over(
    video: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    fill(Path("raw"), "a/1.mp4", "b/2.x.mp4", "b/2.y.mp4", "c/3", content=video)
    fill(Path("raw"), "b/readme.txt")
    Path("list.txt").write_text("raw/c/3\n")
    assert standardize.main(["--input", "raw/a/1.mp4", "raw/b/*", "@list.txt", "--output", "out", "--workers", "1"]) == 0
    assert capsys.readouterr().err.count("readme.txt") == 1
    assert standardize.main(["--input", "raw/b/2.?.mp4", "raw/a", "--output", "raw/a/out"]) == 2
    assert "within --input raw/a" in capsys.readouterr().err
    assert metadata.main(["--videos", "out/a", "out/b", "out/c", "--output", "m.csv"]) == 0
    assert [row.filename for row in groundtruth.read_metadata("m.csv")] == ["a/1.mp4", "b/2.x.mp4", "b/2.y.mp4", "c/3.mp4"]
    # The names of features would clash, but the CSV has none.
    with pytest.raises(ValueError, match=r"b/2\.x\.mp4 and b/2\.y\.mp4 would both be named '2'.*pass --names stem"):
        video_list.list_videos("out", names=None)
    assert [item.name for item in video_list.list_videos("out", "m.csv", names="stem")] == ["1", "2.x", "2.y", "3"]


def test_the_case_of_other_extensions_is_read_whole():
    case = SHARED / "cases" / "other_extensions"
    if not case.is_dir():
        pytest.skip(f"the case is not at hand ({case})")
    assert found(case)[1:] == (["anim.gif", "camera.asf", "clip.qt", "fine.mp4"], [])
    with av.open(str(case / "anim.gif")) as container:
        assert len(scanning.scan(case / "anim.gif").timeline.pts) == sum(1 for _ in container.decode(video=0))


def test_a_name_in_a_csv_finds_its_file_with_blanks_around_it(tmp_path: Path):
    for name in ("a.mp4", " b.mp4"):
        (tmp_path / name).touch()
    found = [searching.spelled(tmp_path, text).name for text in (" a.mp4 ", " b.mp4", "./a.mp4", "c.mp4 ")]
    assert found == ["a.mp4", " b.mp4", "a.mp4", "c.mp4 "]
