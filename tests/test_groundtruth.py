"""Tests of the ground truth, metadata and label files: they read back as written, and errors are named with their lines."""

import csv
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from tsp_jax import groundtruth

HEADER = "video-name,t-start,t-end,action-label,video-duration,filename,fps,video-frames,temporal-region-label"
GOOD = "a,0.5,1.5,Jump,2.0,sub/a.mp4,30.0,60,Action"
SEGMENT = groundtruth.AnnotatedSegment("a", 0.5, 1.5, "Jump", 2.0, "sub/a.mp4", 30.0, 60, "Action")


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------- ground truth


@pytest.mark.parametrize(("split", "actions", "background"), [("valid", 3007, 2178), ("test", 3358, 2573)])
def test_released_ground_truth_reads_and_writes_back_byte_for_byte(
    split: str, actions: int, background: int, shared: Path, tmp_path: Path
):
    """The numbers of rows are those of the released files."""
    released = shared / "annotations" / f"thumos14_{split}_tsp_groundtruth.csv"
    rows = groundtruth.read_groundtruth(released)
    regions = [row.temporal_region for row in rows]
    assert (regions.count(groundtruth.ACTION), regions.count(groundtruth.NO_ACTION)) == (actions, background)
    assert all(bool(row.action_label) == (row.temporal_region == groundtruth.ACTION) for row in rows)
    groundtruth.write_groundtruth(tmp_path / "copy.csv", rows)
    assert (tmp_path / "copy.csv").read_bytes() == released.read_bytes()


names = st.text("ab ,;\"'\r\n\tж走", min_size=1, max_size=6)
seconds = st.floats(-1e6, 1e6)
positive = st.floats(1e-3, 1e6)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(
    st.lists(
        st.builds(
            groundtruth.AnnotatedSegment,
            video_name=names,
            start_sec=seconds,
            end_sec=seconds,
            action_label=st.just("") | names,
            video_duration_sec=positive,
            filename=names,
            fps=positive,
            num_frames=st.integers(1, 1 << 40),
            temporal_region=st.sampled_from(groundtruth.TEMPORAL_REGIONS),
        ),
        max_size=2,
    )
)
def test_segments_come_back_as_written(tmp_path_factory: pytest.TempPathFactory, rows: list[groundtruth.AnnotatedSegment]):
    """Commas, quotes, line breaks and all digits are kept."""
    path = tmp_path_factory.getbasetemp() / "round_trip.csv"
    groundtruth.write_groundtruth(path, rows)
    assert groundtruth.read_groundtruth(path) == rows


def test_columns_may_have_any_order_among_others(tmp_path: Path):
    columns, values = HEADER.split(","), GOOD.split(",")
    path = write(tmp_path / "g.csv", ",".join(["note", *columns[::-1]]), ",".join(["x", *values[::-1]]))
    assert groundtruth.read_groundtruth(path) == [SEGMENT]


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path):
    path = tmp_path / "g.csv"
    path.write_bytes(f"\ufeff{HEADER}\r\n{GOOD}\r\n\r\n".encode())
    assert groundtruth.read_groundtruth(path) == [SEGMENT]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",0.5,", ",half,", "line 3: t-start 'half': expected a number"),
        (",1.5,", ",nan,", "line 3: t-end 'nan': expected a number"),
        (",1.5,", ",,", "line 3: t-end '': expected a number"),
        (",2.0,", ",0,", "line 3: video-duration '0': expected a number above 0"),
        (",30.0,", ",-30,", "line 3: fps '-30': expected a number above 0"),
        (",60,", ",60.5,", "line 3: video-frames '60.5': expected a whole number above 0"),
        ("sub/a.mp4", "", "line 3: filename '': expected a name"),
        (",Action", ",action", "line 3: temporal-region-label 'action': expected 'Action' or 'No action'"),
        (",Jump,", ",Jump,up,", "line 3: expected 9 fields as in the header, found 10"),
        (",Action", "", "line 3: expected 9 fields as in the header, found 8"),
    ],
)
def test_bad_field_is_named_with_its_line(old: str, new: str, message: str, tmp_path: Path):
    path = write(tmp_path / "g.csv", HEADER, GOOD, GOOD.replace(old, new), GOOD)
    with pytest.raises(ValueError, match=r"g\.csv:\n  line") as caught:
        groundtruth.read_groundtruth(path)
    assert message in str(caught.value)
    assert "line 2" not in str(caught.value)
    rows = groundtruth.read_groundtruth_rows(path)
    assert [row.value is None for row in rows] == [False, True, False]
    assert [row.line for row in rows] == [2, 3, 4]


def test_all_faults_are_raised_at_once_and_ten_shown(tmp_path: Path):
    bad = GOOD.replace(",0.5,", ",x,").replace(",30.0,", ",y,")
    path = write(tmp_path / "g.csv", HEADER, *[bad] * 7)
    with pytest.raises(ValueError, match="and 4 more") as caught:
        groundtruth.read_groundtruth(path)
    assert str(caught.value).count("line ") == 10


def test_wrong_files_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such file; expected a CSV"):
        groundtruth.read_groundtruth(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="no column t-start, fps; expected video-name"):
        groundtruth.read_groundtruth(write(tmp_path / "c.csv", HEADER.replace("t-start", "start").replace("fps,", "")))
    with pytest.raises(ValueError, match="t-end heads two columns"):
        groundtruth.read_groundtruth(write(tmp_path / "d.csv", f"{HEADER},t-end"))
    with pytest.raises(ValueError, match="an empty file"):
        groundtruth.read_groundtruth(write(tmp_path / "e.csv"))
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="found no UTF-16"):
        groundtruth.read_groundtruth(tmp_path / "b.csv")


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "g.csv"
    groundtruth.write_groundtruth(path, [SEGMENT])
    before = path.read_bytes()

    def broken():
        yield SEGMENT
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        groundtruth.write_groundtruth(path, broken())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("other", "same"), [(29.97, True), (30000 / 1001, True), (30.0, False)])
def test_frame_rates_agree_within_rounding(other: float, same: bool):
    assert groundtruth.same_fps(30000 / 1001, other) == same
    assert groundtruth.same_fps(other, 30000 / 1001) == same


# ----------------------------------------------------------------------------------------------------------- metadata


@pytest.mark.parametrize("name", ["reference/metadata.csv", "annotations/thumos14_valid_metadata.csv"])
def test_metadata_is_read_as_plain_csv(name: str, shared: Path):
    with open(shared / name, newline="") as stream:
        expected = [
            (row["filename"], float(row["video-duration"]), float(row["fps"]), int(row["video-frames"]))
            for row in csv.DictReader(stream)
        ]
    read = groundtruth.read_metadata(shared / name)
    assert [(item.filename, item.video_duration_sec, item.fps, item.num_frames) for item in read] == expected


def test_metadata_comes_back_as_written(tmp_path: Path):
    videos = [groundtruth.VideoMetadata("a.mp4", 2.002, 30000 / 1001, 60), groundtruth.VideoMetadata("b, c.mp4", 0.1, 10.0, 1)]
    groundtruth.write_metadata(tmp_path / "m.csv", videos)
    assert groundtruth.read_metadata(tmp_path / "m.csv") == videos


# ------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("name", ["thumos14_action", "thumos14_temporal_region", "activitynet_v1-3_action"])
def test_released_mapping_reads_and_writes_back(name: str, shared: Path, tmp_path: Path):
    released = shared / "annotations" / f"{name}_label_mapping.json"
    labels = groundtruth.read_label_mapping(released)
    assert len(labels) == {"thumos14_action": 20, "thumos14_temporal_region": 2, "activitynet_v1-3_action": 200}[name]
    groundtruth.write_label_mapping(tmp_path / "labels.json", labels)
    # ActivityNet's mapping has no space before each name.
    assert (tmp_path / "labels.json").read_bytes().replace(b"\n ", b"\n") == released.read_bytes().replace(b"\n ", b"\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "found no JSON"),
        ("[" * 50_000, "found no JSON"),
        ("[" + "1" * 5000 + "]", "found no JSON"),
        ('{"Jump": 0}', "found {"),
        ("[]", "found \\[\\]"),
        ('["Jump", 1]', 'found \\["Jump", 1\\]'),
        ('["Jump", ""]', "expected a JSON list"),
        ('["Jump", "Run", "Jump"]', "Jump occur twice"),
    ],
)
def test_bad_mapping_is_refused(text: str, message: str, tmp_path: Path):
    path = write(tmp_path / "labels.json", text)
    with pytest.raises(ValueError, match=message):
        groundtruth.read_label_mapping(path)


def test_missing_mapping_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such file; expected a JSON list"):
        groundtruth.read_label_mapping(tmp_path / "none.json")


def test_labels_keep_any_letters(tmp_path: Path):
    labels = ['say "hi"', "прыжок", "走る", "a, b"]
    groundtruth.write_label_mapping(tmp_path / "labels.json", labels)
    assert groundtruth.read_label_mapping(tmp_path / "labels.json") == labels
