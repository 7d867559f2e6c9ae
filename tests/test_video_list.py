"""Tests of the lists of videos: each file and row once, in order, with its name or with what is wrong with it."""

import itertools
import os
import time
from pathlib import Path

import numpy as np
import pytest

from tsp_jax import video_list, video_names

HEADER = "filename,video-duration,fps,video-frames\n"
APART = "another rule of --names may keep them apart"


def touch(folder: Path, *files: str) -> Path:
    """A folder with empty files; no video is opened to be listed."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


def table(folder: Path, text: str | bytes) -> Path:
    """A metadata CSV, next to a folder `root`."""
    (folder / "root").mkdir(exist_ok=True)
    path = folder / "metadata.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def listed(folder: Path, rows: str) -> list[video_list.Video]:
    return video_list.list_videos(folder / "root", table(folder, HEADER + rows))


# ---------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_is_searched_whole_and_sorted(tmp_path: Path):
    files = ["b.mp4", "a/z.MKV", "a/b/c.WebM", "A.mp4", "a.avi", ".hidden/d.ts", "with space.mov", "видео.mp4"]
    others = ["notes.txt", "mp4", "a.mp4.part", "a/thumb.jpg", "no_extension", ".mp4"]
    touch(tmp_path, *files, *others)
    (tmp_path / "folder.mp4").mkdir()
    touch(tmp_path / "folder.mp4", "inside.mp4")
    videos = video_list.list_videos(str(tmp_path))
    assert [item.path.relative_to(tmp_path).as_posix() for item in videos] == [
        ".hidden/d.ts",
        "A.mp4",
        "a/b/c.WebM",
        "a/z.MKV",
        "a.avi",
        "b.mp4",
        "folder.mp4/inside.mp4",
        "with space.mov",
        "видео.mp4",
    ]
    assert [item.name for item in videos] == ["d", "A", "c", "z", "a", "b", "inside", "with space", "видео"]
    assert all((item.fps, item.num_frames, item.fault) == (None, None, "") for item in videos)


@pytest.mark.parametrize("extension", sorted(video_names.EXTENSIONS))
def test_each_extension_is_found_in_either_case(extension: str, tmp_path: Path):
    touch(tmp_path, f"lower.{extension}", f"upper.{extension.upper()}", f"other.{extension}x")
    assert [item.name for item in video_list.list_videos(tmp_path)] == ["lower", "upper"]


def test_one_file_is_taken_whatever_its_extension(tmp_path: Path):
    touch(tmp_path, "a.video", "b.mp4")
    assert video_list.list_videos(tmp_path / "a.video") == [video_list.Video("a", tmp_path / "a.video")]


def test_a_name_ends_at_the_first_dot(tmp_path: Path):
    # The original's rule: `Video_test.1080p.mp4` gives `Video_test.pkl`.
    assert video_names.feature_name("folder.x/a.b.c.mp4") == "a"
    touch(tmp_path, "a.b.mp4")
    assert [item.name for item in video_list.list_videos(tmp_path)] == ["a"]


def test_links_to_files_count_and_links_to_folders_do_not(tmp_path: Path):
    touch(tmp_path / "elsewhere", "a.mp4", "b.mp4")
    root = touch(tmp_path / "root", "c.mp4")
    (root / "a.mp4").symlink_to(tmp_path / "elsewhere" / "a.mp4")
    (root / "broken.mp4").symlink_to(tmp_path / "nowhere.mp4")  # stays, for the run to tell that it is not there
    (root / "folder").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    assert [item.path for item in video_list.list_videos(root)] == [root / "a.mp4", root / "broken.mp4", root / "c.mp4"]
    (tmp_path / "link").symlink_to(root)
    assert len(video_list.list_videos(tmp_path / "link")) == 3


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path, "a.mp4", "closed/b.mp4")
    scandir = os.scandir

    def guarded(path: str | Path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(PermissionError, match="closed"):
        video_list.list_videos(tmp_path)


def test_no_videos_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no video in this folder; looked for 3g2, 3gp, .*wmv. 1 file .*a.txt"):
        video_list.list_videos(touch(tmp_path, "a.txt"))
    with pytest.raises(FileNotFoundError, match=r"--videos .*absent: no such file or folder"):
        video_list.list_videos(tmp_path / "absent")


# ------------------------------------------------------------------------------------------------------------------ names


def test_two_files_of_one_name_both_get_a_fault_that_names_both(tmp_path: Path):
    touch(tmp_path, "a/same.mp4", "b/same.mkv", "c/same.part2.mp4", "other.mp4")
    *shared, other = video_list.list_videos(tmp_path)
    assert (other.name, other.fault) == ("other", "")
    expected = ", ".join(str(tmp_path / file) for file in ["a/same.mp4", "b/same.mkv", "c/same.part2.mp4"])
    assert [item.fault for item in shared] == [f"3 videos share the name 'same': {expected}; {APART}"] * 3


def test_many_files_of_one_name_are_told_in_short(tmp_path: Path):
    """Names such as 2026.11.21-cam1.mp4 end at the first dot; to show all of 3,000 in the fault of each takes a minute."""
    (tmp_path / "m.csv").write_text("filename,fps,video-frames\n" + "".join(f"2026.{i}.mp4,30,9\n" for i in range(3000)))
    began = time.monotonic()
    videos = video_list.list_videos(tmp_path, tmp_path / "m.csv")
    assert time.monotonic() - began < 5
    assert all(item.fault == videos[0].fault for item in videos) and len(videos) == 3000
    assert videos[0].fault.startswith("3000 videos share the name '2026': ") and videos[0].fault.count(".mp4") == 10


def test_names_that_differ_in_case_alone_are_two(tmp_path: Path):
    touch(tmp_path, "a.mp4", "A.mp4")
    assert [item.fault for item in video_list.list_videos(tmp_path)] == ["", ""]


def test_a_leading_dot_leaves_no_name(tmp_path: Path):
    touch(tmp_path, "._a.mp4", ".b.c.mkv", "a.mp4")
    videos = video_list.list_videos(tmp_path)
    assert [item.name for item in videos] == ["", "", "a"]
    assert ["begins with a dot" in item.fault for item in videos] == [True, True, False]


def test_a_name_that_is_no_text_is_a_fault(tmp_path: Path):
    # HDF5's names are UTF-8; a file's may be any bytes, which Python shows as lone surrogates.
    folder = tmp_path / os.fsdecode(b"\xe9t\xe9")
    try:
        touch(folder, os.fsdecode(b"caf\xe9.mp4"), "plain.mp4")
    except OSError:
        pytest.skip("this file system has no such names")
    broken, plain = video_list.list_videos(tmp_path)
    assert "is not UTF-8" in broken.fault and broken.fault.isascii()
    assert (plain.name, plain.fault) == ("plain", "")  # its folder's name is nobody's key


# -------------------------------------------------------------------------------------------------------------------- CSV


def test_a_csv_lists_its_rows_in_order_with_their_numbers(tmp_path: Path):
    videos = listed(tmp_path, "z.mp4,33.7,30,1012\nsub/a.b.mp4,8,29.97,240\nempty.mp4,0,25.0,0\nwhole.mp4,1,1e1,10.0\n")
    root = tmp_path / "root"
    assert videos == [
        video_list.Video("z", root / "z.mp4", 30.0, 1012),
        video_list.Video("a", root / "sub/a.b.mp4", 29.97, 240),
        video_list.Video("empty", root / "empty.mp4", 25.0, 0),
        video_list.Video("whole", root / "whole.mp4", 10.0, 10),
    ]
    assert all(type(item.fps) is float and type(item.num_frames) is int for item in videos)


@pytest.mark.parametrize(
    "text",
    [
        "\ufefffilename,fps,video-frames\na.mp4,30,7\n",
        "fps,note,video-frames,filename\n30,x,7,a.mp4\n",
        'filename,fps,video-frames\r\n"a.mp4","30","7"\r\n',
        "filename,fps,video-frames\n\na.mp4,30,7\n\n",
        "filename,fps,video-frames\na.mp4,30,7",
        'filename,note,fps,video-frames\na.mp4,"two\nlines",30,7\n',
    ],
    ids=["byte order mark", "other columns and order", "quotes and CRLF", "empty lines", "no last newline", "a long field"],
)
def test_ways_to_write_the_same_csv(text: str, tmp_path: Path):
    videos = video_list.list_videos(tmp_path / "root", table(tmp_path, text))
    assert videos == [video_list.Video("a", tmp_path / "root" / "a.mp4", 30.0, 7)]


def test_filenames_are_taken_as_they_are(tmp_path: Path):
    videos = listed(tmp_path, '"one, two.mp4",1,30,7\n"say ""hi"".mp4",1,30,7\n视频.mp4,1,30,7\n a.mp4 ,1,30,7\n')
    assert [item.path.name for item in videos] == ["one, two.mp4", 'say "hi".mp4', "视频.mp4", " a.mp4 "]
    assert [item.name for item in videos] == ["one, two", 'say "hi"', "视频", " a"]
    assert not any(item.fault for item in videos)


def test_files_that_are_not_there_are_found_out_later(tmp_path: Path):
    assert [item.fault for item in listed(tmp_path, "absent.mp4,1,30,7\n")] == [""]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a.mp4,1,0,7", "got 0.0 fps"),
        ("a.mp4,1,-30,7", "got -30.0 fps"),
        ("a.mp4,1,nan,7", "fps is a number; got 'nan'"),
        ("a.mp4,1,inf,7", "fps is a number; got 'inf'"),
        ("a.mp4,1,1e999,7", "fps is a number; got '1e999'"),
        ("a.mp4,1,,7", "fps is a number; got ''"),
        ("a.mp4,1,30000/1001,7", "fps is a number; got '30000/1001'"),
        ('a.mp4,1,"29,970",7', "fps '29,970': the comma may separate thousands; write a point, or no comma"),
        ("a.mp4,1,30,7.5", "video-frames is a whole number; got '7.5'"),
        ("a.mp4,1,30,-1", "video-frames is a whole number; got '-1'"),
        ("a.mp4,1,30,inf", "video-frames is a number; got 'inf'"),
        ("a.mp4,1,30,nan", "video-frames is a number; got 'nan'"),
        ("a.mp4,1,30,", "video-frames is a number; got ''"),
        ("a.mp4,1,30,many", "video-frames is a number; got 'many'"),
        ("a.mp4,1,30", "expected 4 fields as in the header, found 3"),
        ("a.mp4", "expected 4 fields as in the header, found 1"),
        ("a.mp4,1,30,7,8", "expected 4 fields as in the header, found 5"),
        # Unquoted, its duration would pass for the frame rate.
        ("one, two.mp4,12.5,30,375", "expected 4 fields as in the header, found 5; quote a field that holds a comma"),
        (",1,30,7", "no filename"),
        ("../a.mp4,1,30,7", "'../a.mp4' leads out of"),
        ("sub/../../a.mp4,1,30,7", "'sub/../../a.mp4' leads out of"),
        ("sub/../a.mp4,1,30,7", "leads out of"),  # it may: `sub` can be a link
        ("/etc/a.mp4,1,30,7", "'/etc/a.mp4' leads out of"),
        (".a.mp4,1,30,7", "begins with a dot"),
    ],
)
def test_a_row_that_cannot_be_used_is_a_fault_and_the_others_stay(row: str, reason: str, tmp_path: Path):
    before, broken, after = listed(tmp_path, f"before.mp4,1,30,7\n{row}\nafter.mp4,1,30,8\n")
    assert reason in broken.fault
    assert broken.fault.startswith("metadata.csv line 3: ") or "begins with a dot" in reason
    assert (broken.fps, broken.num_frames) == (None, None) or "begins with a dot" in reason
    assert (before.fault, after.fault, after.num_frames) == ("", "", 8)


def test_absolute_filenames_below_the_root_are_taken(tmp_path: Path):
    videos = listed(tmp_path, f"{tmp_path}/root/sub/a.mp4,1,30,7\n{tmp_path}/roots/b.mp4,1,30,7\n")
    assert [item.path for item in videos] == [tmp_path / "root/sub/a.mp4", tmp_path / "roots/b.mp4"]
    assert videos[0].fault == "" and "leads out of" in videos[1].fault


@pytest.mark.parametrize("root", [".", "root", "../here/root"])
def test_a_relative_root_is_a_root(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here" / "root").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    Path("metadata.csv").write_text(HEADER + "a.mp4,1,30,7\n../b.mp4,1,30,7\n/c.mp4,1,30,7\n")
    videos = video_list.list_videos(root, "metadata.csv")
    assert videos[0] == video_list.Video("a", Path(root) / "a.mp4", 30.0, 7)
    assert all("leads out of" in item.fault for item in videos[1:])


def test_two_rows_of_one_name_both_get_a_fault(tmp_path: Path):
    root = tmp_path / "root"
    videos = listed(tmp_path, "a/same.mp4,1,30,7\nother.mp4,1,30,7\nb/same.mp4,1,30,7\n")
    expected = f"2 videos share the name 'same': {root}/a/same.mp4, {root}/b/same.mp4; {APART}"
    assert videos[0].fault == videos[2].fault == expected
    assert videos[1].fault == ""


def test_a_video_listed_twice_is_refused(tmp_path: Path):
    # As a file of segments has it, which is easily taken for one of metadata; and the two rows may differ.
    videos = listed(tmp_path, "a.mp4,1,30,7\na.mp4,1,30,8\nb.mp4,1,30,7\na.mp4,1,30,7\n")
    assert [item.fault for item in videos] == ["listed 3 times; a video has one row"] * 2 + ["", videos[0].fault]


def test_a_row_keeps_its_own_fault_beside_a_shared_name(tmp_path: Path):
    videos = listed(tmp_path, "a/same.mp4,1,0,7\nb/same.mp4,1,30,7\n")
    assert "line 2" in videos[0].fault and "share the name" in videos[1].fault


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column filename, fps, video-frames; expected filename, fps, video-frames; found an empty file"),
        (
            "file,fps\na.mp4,30\n",
            "no column filename, video-frames; expected .*; found file, fps; name the columns .*$",
        ),
        ("a.mp4,1,30,7\n", "no column .*; found a.mp4, 1, 30, 7; name the columns .*$"),
        (
            "filename;fps\na.mp4;30\n",
            "no column .*; found filename, fps, separated by semicolons; name the columns .*$",
        ),
        ("filename,fps,fps,video-frames\na.mp4,30,25,7\n", "fps heads two columns; leave one$"),
        (HEADER, "lists no video"),
        (HEADER + "\n\n", "lists no video"),
        (b"\x89HDF\r\n\x1a\n" + bytes(range(256)), "expected a CSV of .*, found binary data$"),
        ((HEADER + "a.mp4,1,30,7\n").encode("utf-16")[:-1], ".*found no UTF-16"),
        (HEADER.encode() + b"caf\xe9.mp4,1,30,7\n", ".*in another encoding; if 'café.mp4,1,30,7' is right"),
        (HEADER + '"a.mp4,1,30,7\nb.mp4,1,30,7\n', r".*line 2: no row of a CSV \(unexpected end of data"),
        (HEADER + '"a"b.mp4,1,30,7\n', r".*line 2: no row of a CSV \(',' expected after"),
        ("x" * 200_000, r".*no header of a CSV \(field larger"),
    ],
)
def test_what_is_no_metadata_is_an_error(text: str | bytes, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"metadata.csv: {message}"):
        video_list.list_videos(tmp_path / "root", table(tmp_path, text))


def test_a_csv_and_its_root_are_to_be_there(tmp_path: Path):
    path = table(tmp_path, HEADER + "a.mp4,1,30,7\n")
    for absent in [tmp_path / "absent.csv", tmp_path / "root"]:
        with pytest.raises(FileNotFoundError, match=r"--metadata_csv .*: no such file"):
            video_list.list_videos(tmp_path / "root", absent)
    with pytest.raises(FileNotFoundError, match=r"--videos .*: no such file or folder"):
        video_list.list_videos(tmp_path / "absent", path)
    with pytest.raises(ValueError, match=r"--videos .*: no folder"):
        video_list.list_videos(path, path)


# ----------------------------------------------------------------------------------------------------------------- shards


def videos_of(count: int) -> list[video_list.Video]:
    return [video_list.Video(str(index), Path(str(index))) for index in range(count)]


def test_shards_are_the_originals_and_together_the_list():
    for count, num_shards in itertools.product([0, 1, 2, 7, 10, 64, 413], [1, 2, 3, 7, 10, 64, 100]):
        videos = videos_of(count)
        shards = [video_list.shard(videos, num_shards, shard_id) for shard_id in range(num_shards)]
        assert list(itertools.chain(*shards)) == videos
        # The original: np.linspace(0, len(df), args.num_shards + 1).astype(int), rows from one bound to the next.
        assert [len(shard) for shard in shards] == np.diff(np.linspace(0, count, num_shards + 1).astype(int)).tolist()
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_shard_by_hand():
    # linspace(0, 10, 4) is 0, 3.33, 6.67, 10.
    assert [[item.name for item in video_list.shard(videos_of(10), 3, index)] for index in range(3)] == [
        ["0", "1", "2"],
        ["3", "4", "5"],
        ["6", "7", "8", "9"],
    ]


@pytest.mark.parametrize(("num_shards", "shard_id"), [(1, 1), (3, 3), (3, -1), (0, 0), (-1, 0)])
def test_a_shard_that_is_none_is_refused(num_shards: int, shard_id: int):
    with pytest.raises(ValueError, match=f"--shard_id is from 0 to --num_shards - 1; got {shard_id} of {num_shards}"):
        video_list.shard(videos_of(5), num_shards, shard_id)
