"""Tests of the check of a ground truth: every kind of bad row is named with its line, value and remedy, and good ones pass."""

import dataclasses
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import media
from data_builders import measurement, row_checks, validate
from tsp_jax import groundtruth

Rows = list[groundtruth.AnnotatedSegment]
ACTION, NO_ACTION = groundtruth.TEMPORAL_REGIONS


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two videos, one of 60 frames at 30 fps and one of 45 frames at 15 fps."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "sub").mkdir()
    media.write(folder / "a.mp4")
    media.write(folder / "sub" / "b.mp4", fps=15, frames=45)
    (folder / "text.mp4").write_text("no video")
    return folder


def good() -> Rows:
    """Returns lines 2 to 7 of a ground truth without a fault."""
    a = groundtruth.AnnotatedSegment("a", 0.0, 0.5, "Jump", 2.0, "a.mp4", 30.0, 60, ACTION)
    b = groundtruth.AnnotatedSegment("b", 1.0, 3.04, "Run", 3.0, "sub/b.mp4", 15.0, 45, ACTION)
    return [
        a,
        dataclasses.replace(a, start_sec=0.5, end_sec=1.0),
        b,
        dataclasses.replace(a, start_sec=0.25, end_sec=0.75, action_label="Run"),
        dataclasses.replace(a, start_sec=1.0, end_sec=2.0, action_label="", temporal_region=NO_ACTION),
        dataclasses.replace(b, start_sec=0.0, end_sec=1.0, action_label="", temporal_region=NO_ACTION),
    ]


@pytest.fixture
def check(videos: Path, tmp_path: Path) -> Callable[..., int]:
    """A function that runs the command on rows, or on a file, with the labels Jump and Run."""
    groundtruth.write_label_mapping(tmp_path / "labels.json", ["Jump", "Run"])
    groundtruth.write_label_mapping(tmp_path / "regions.json", groundtruth.TEMPORAL_REGIONS)

    def run(rows: Rows | Path, *flags: str, folder: Path = videos, labels: Sequence[str] = ("labels", "regions")) -> int:
        path = rows if isinstance(rows, Path) else tmp_path / "truth.csv"
        if not isinstance(rows, Path):
            groundtruth.write_groundtruth(path, rows)
        mappings = [str(tmp_path / f"{name}.json") for name in labels]
        files = ["--groundtruth", str(path), "--videos", str(folder), "--labels", *mappings]
        return validate.main([*files, "--workers", "2", *flags])

    return run


def changed(place: int, **values: object) -> Rows:
    """Returns the good rows with one row changed."""
    rows = good()
    rows[place] = dataclasses.replace(rows[place], **values)  # type: ignore
    return rows


def test_good_ground_truth_passes_with_its_counts(check: Callable[..., int], capsys: pytest.CaptureFixture[str]):
    assert check(good()) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert lines[0].endswith("truth.csv: 6 rows, 0 errors, 0 warnings, 2 videos")
    assert [line.split() for line in lines[2:]] == [
        ["Jump", "2", "0.0"],
        ["Run", "2", "0.0"],
        ["(No", "action)", "2", "0.0"],
    ]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (changed(1, action_label="jump"), ["line 3: action-label 'jump' is unknown; write 'Jump', or add it to the mapping"]),
        (changed(1, action_label="Swim"), ["line 3: action-label 'Swim' is unknown; correct it, or add it to the mapping"]),
        (
            changed(1, action_label=""),
            ["line 3: no action-label in a row of 'Action'; name the action, or make it 'No action'"],
        ),
        (changed(4, action_label="Run"), ["line 6: action-label 'Run' in a row of 'No action'; empty it"]),
        (
            changed(1, temporal_region="no"),
            ["line 3: temporal-region-label 'no': expected 'Action' or 'No action'; correct it"],
        ),
        (changed(1, start_sec=1.5), ["line 3: t-start 1.5 lies after t-end 1.0; swap or correct them"]),
        (
            changed(1, start_sec=1.0),
            ["line 3: t-start and t-end are both 1.0, an empty segment; correct them or remove the row"],
        ),
        (changed(1, start_sec=-0.5), ["line 3: t-start -0.5 lies before the video; begin at 0"]),
        (changed(2, end_sec=3.2), ["line 4: t-end 3.2 s exceeds the video's 3.0 s; clip it or correct the row"]),
        (changed(2, start_sec=3.0), ["line 4: t-start 3.0 s lies beyond the video's 3.0 s; remove or correct the row"]),
        (changed(3, filename="c.mp4"), ["line 5: filename 'c.mp4' can't be read: no such file in "]),
        (changed(3, filename="../a.mp4"), ["line 5: filename '../a.mp4' can't be read: it leads out of the folder"]),
        (changed(3, filename="/a.mp4"), ["line 5: filename '/a.mp4' can't be read: it leads out of the folder"]),
        (changed(3, filename="text.mp4"), ["line 5: filename 'text.mp4' can't be read: not a video that FFmpeg can open"]),
        (changed(3, filename="sub"), ["line 5: filename 'sub' can't be read: no such file"]),
        (changed(3, fps=25.0), ["line 5: fps 25.0, but the file has 30.0; run `python -m data_builders.metadata`"]),
        (changed(3, num_frames=61), ["line 5: video-frames 61, but the file has 60; run `python -m data_builders.metadata`"]),
        (changed(3, num_frames=59), ["line 5: video-frames 59, but the file has 60"]),
        (changed(3, video_duration_sec=2.1), ["line 5: video-duration 2.1, but video-frames / fps is 2.0"]),
        ([*good(), good()[2]], ["line 8: the same video, times and label as line 4; remove one"]),
        (
            [*changed(0, fps=25.0, action_label="Swim"), dataclasses.replace(good()[5], end_sec=9.0)],
            ["line 2: action-label 'Swim' is unknown", "line 2: fps 25.0", "line 8: t-end 9.0 s exceeds"],
        ),
    ],
)
def test_bad_row_is_named_with_line_value_and_remedy(
    rows: Rows, expected: list[str], check: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    assert check(rows) == 1
    printed = capsys.readouterr()
    findings = [line for line in printed.out.splitlines() if line.startswith("truth.csv line")]
    assert len(findings) == len(expected)
    for line, start in zip(findings, expected, strict=True):
        assert line.startswith(f"truth.csv {start}")
    bad_rows = len({line.split(":")[0] for line in findings})
    assert f"{bad_rows} of {len(rows)} rows are bad" in printed.err
    assert printed.err.count("error: ") == 1


def test_every_row_of_a_missing_video_is_named(check: Callable[..., int], capsys: pytest.CaptureFixture[str]):
    rows = [dataclasses.replace(row, filename=row.filename.replace("a.", "gone.")) for row in good()]
    assert check(rows) == 1
    found = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "gone.mp4" in line]
    assert found == ["truth.csv line 2", "truth.csv line 3", "truth.csv line 5", "truth.csv line 6"]


@pytest.mark.parametrize(
    ("column", "text", "message"),
    [
        (
            "t-start",
            "soon",
            "t-start 'soon': expected a number of seconds, or a clock time such as 1:02 or 0:01:02.5; correct it",
        ),
        ("t-end", "inf", "t-end 'inf': expected a number of seconds, or a clock time such as 1:02 or 0:01:02.5; correct it"),
        ("fps", "0", "fps '0': expected a number above 0; correct it"),
        ("video-frames", "59.5", "video-frames '59.5': expected a whole number above 0; correct it"),
        ("action-label", "Jump,high", "expected 9 fields as in the header, found 10; quote a field that holds a comma"),
    ],
)
def test_unreadable_field_is_named(
    column: str, text: str, message: str, check: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "g.csv"
    groundtruth.write_groundtruth(path, good())
    lines = path.read_text().splitlines()
    place = lines[0].split(",").index(column)
    fields = lines[3].split(",")
    lines[3] = ",".join([*fields[:place], text, *fields[place + 1 :]])
    path.write_text("\n".join(lines))
    assert check(path) == 1
    assert f"g.csv line 4: {message}" in capsys.readouterr().out


def test_row_with_several_bad_fields_names_each(check: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "g.csv"
    groundtruth.write_groundtruth(path, good())
    path.write_text(path.read_text().replace("a,0.5,1.0", "a,x,y"))
    assert check(path) == 1
    printed = capsys.readouterr().out
    assert "g.csv line 3: t-start 'x'" in printed
    assert "g.csv line 3: t-end 'y'" in printed


def test_missing_columns_are_a_bad_ground_truth(check: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "g.csv").write_text("video-name,t-start,t-end\n")
    assert check(tmp_path / "g.csv") == 1
    assert "no column action-label, video-duration, filename, fps" in capsys.readouterr().err
    assert check([]) == 1
    assert "no rows below the header" in capsys.readouterr().err


def test_background_that_overlaps_an_action_is_a_warning(check: Callable[..., int], capsys: pytest.CaptureFixture[str]):
    assert check(changed(4, start_sec=0.9)) == 0
    printed = capsys.readouterr()
    assert "warning: truth.csv line 6: background 0.9 to 2.0 overlaps the action 0.5 to 1.0 of line 3" in printed.out
    assert printed.err == ""


def test_labels_that_differ_only_in_blanks_or_case_are_a_warning(
    check: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    groundtruth.write_label_mapping(tmp_path / "both.json", ["Jump", "Run", "jump\u00a0", "Swim"])
    assert check([*changed(1, action_label="jump\u00a0"), good()[2]], "--released", labels=("both",)) == 0
    printed = capsys.readouterr().out
    assert printed.count("differs from") == 2
    assert "warning: truth.csv line 2: action-label 'Jump' differs from 'jump\\xa0' only in blanks, case" in printed
    assert "warning: truth.csv line 3: action-label 'jump\\xa0' differs from 'Jump'" in printed


def test_what_released_files_have_is_a_warning_on_demand(check: Callable[..., int], capsys: pytest.CaptureFixture[str]):
    rows = [
        *good(),
        good()[0],
        dataclasses.replace(good()[2], end_sec=9.0),
        dataclasses.replace(good()[2], start_sec=8.0, end_sec=9.0),
        dataclasses.replace(good()[0], end_sec=0.0),
    ]
    assert check(rows) == 1
    assert "4 errors, 0 warnings" in capsys.readouterr().out
    assert check(rows, "--released") == 0
    assert "0 errors, 4 warnings" in capsys.readouterr().out
    assert check([*rows, dataclasses.replace(good()[0], action_label="Swim")], "--released") == 1


def test_metadata_is_compared_on_demand(
    check: Callable[..., int], videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    measured = [measurement.measure(videos / name, name).metadata for name in ("a.mp4", "sub/b.mp4")]
    groundtruth.write_metadata(tmp_path / "m.csv", measured)
    assert check(good(), "--metadata", str(tmp_path / "m.csv")) == 0
    groundtruth.write_metadata(tmp_path / "m.csv", [dataclasses.replace(measured[0], num_frames=61)])
    capsys.readouterr()
    assert check(good(), "--metadata", str(tmp_path / "m.csv")) == 1
    printed = capsys.readouterr().out
    assert "line 2: video-frames 60 disagrees with 61 in " in printed
    assert "line 4: filename 'sub/b.mp4' is not in " in printed
    assert "6 errors" in printed


def test_metadata_has_a_name_in_any_form(check: Callable[..., int], videos: Path, tmp_path: Path):
    for form in ("NFC", "NFD"):
        shutil.copy(videos / "a.mp4", tmp_path / unicodedata.normalize(form, "Café.mp4"))
        row = dataclasses.replace(good()[0], filename="./Café.mp4", video_name="Café")
        item = measurement.measure(videos / "a.mp4", unicodedata.normalize(form, "Café.mp4")).metadata
        groundtruth.write_metadata(tmp_path / "m.csv", [item])
        assert check([row], "--metadata", str(tmp_path / "m.csv"), folder=tmp_path) == 0
    other = dataclasses.replace(item, filename="Café.avi")
    groundtruth.write_metadata(tmp_path / "m.csv", [other])
    assert check([row], "--metadata", str(tmp_path / "m.csv"), folder=tmp_path) == 1


def test_frame_rate_may_be_rounded(check: Callable[..., int], tmp_path: Path):
    """29.97 may be written for 30000/1001, but 30 may not."""
    media.make(tmp_path, "ntsc.mp4")
    row = groundtruth.AnnotatedSegment("ntsc", 0.0, 1.0, "Jump", 2.002, "ntsc.mp4", 29.97, 60, ACTION)
    assert check([row], folder=tmp_path) == 0
    assert check([dataclasses.replace(row, fps=30.0)], folder=tmp_path) == 1


def test_damaged_video_passes_with_the_frames_that_decode(
    check: Callable[..., int], shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """28 of 50 frames decode, and the original counts these."""
    shutil.copy(shared / "videos" / "corrupted.mp4", tmp_path)
    row = groundtruth.AnnotatedSegment("corrupted", 0.0, 1.0, "Jump", 2.8, "corrupted.mp4", 10.0, 28, ACTION)
    assert check([row, dataclasses.replace(row, start_sec=0.5)], folder=tmp_path) == 0
    assert capsys.readouterr().out.count("'corrupted.mp4': 28 of 50 frames decode (Invalid data") == 1
    assert check([dataclasses.replace(row, num_frames=29, video_duration_sec=2.9)], folder=tmp_path) == 1
    assert "video-frames 29, but the file has 28" in capsys.readouterr().out


@pytest.mark.parametrize(("split", "outside", "overlapping"), [("valid", 7, 1), ("test", 52, 2)])
def test_released_files_have_the_flaws_that_are_known(split: str, outside: int, overlapping: int, shared: Path):
    """In the released files, 3 rows call a part of an action background, and 59 leave their video."""
    folder = shared / "annotations"
    rows = groundtruth.read_groundtruth_rows(folder / f"thumos14_{split}_tsp_groundtruth.csv")
    labels = validate.read_labels([folder / "thumos14_action_label_mapping.json"])
    findings = list(row_checks.check_rows(rows, labels, lenient=False))
    assert sum(not finding.is_warning for finding in findings) == outside
    assert sum(finding.is_warning for finding in findings) == overlapping
    assert all(finding.is_warning for finding in row_checks.check_rows(rows, labels, lenient=True))


def test_wrong_use_is_status_2(check: Callable[..., int], videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    groundtruth.write_label_mapping(tmp_path / "swapped.json", [NO_ACTION, ACTION])
    (tmp_path / "bad.json").write_text("{}")
    assert check(tmp_path / "none.csv") == 2
    assert check(good(), folder=tmp_path / "none") == 2
    assert check(good(), "--metadata", str(tmp_path / "none.csv")) == 2
    for labels in (["none"], ["bad"], ["regions"], ["labels", "labels2"], ["labels", "swapped"]):
        groundtruth.write_label_mapping(tmp_path / "labels2.json", ["Jump"])
        assert check(good(), labels=labels) == 2, labels
    messages = capsys.readouterr().err
    assert messages.count("error: ") == 8
    assert "expected ['Action', 'No action'] in this order" in messages
    assert "found the temporal-region mapping alone" in messages
    with pytest.raises(SystemExit) as caught:
        check(good(), "--workers", "0")
    assert caught.value.code == 2
