"""Tests of the command groundtruth: released files from their actions, and the rules of background against simulations."""

import collections
import csv
import gzip
import json
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from data_builders import groundtruth as groundtruth_command
from tsp_jax import groundtruth

# A video's name, and start, end and label of an action in it.
Annotation = tuple[str, float, float, str]


def run(annotation_format: str, annotations: Path, metadata: Path, output: Path, *flags: str) -> int:
    files = ["--annotations", str(annotations), "--metadata", str(metadata), "--output", str(output)]
    return groundtruth_command.main(["--format", annotation_format, *files, *flags])


def write_per_class(folder: Path, actions: list[Annotation], ending: str) -> Path:
    """Writes THUMOS14's own layout, with one file per class."""
    folder.mkdir()
    lines = collections.defaultdict(list)
    for name, start_sec, end_sec, label in actions:
        lines[label].append(f"{name}  {start_sec} {end_sec}\n")
    for label, text in lines.items():
        (folder / f"{label}_{ending}.txt").write_text("".join(text))
    return folder


def write_csv(path: Path, actions: list[Annotation], key: str = "video-name") -> Path:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow([key, "t-start", "t-end", "action-label"])
        table.writerows(actions)
    return path


def write_json(path: Path, actions: list[Annotation], subset: str = "validation", empty: tuple[str, ...] = ()) -> Path:
    database = {name: {"subset": subset, "annotations": []} for name in [*dict.fromkeys(item[0] for item in actions), *empty]}
    for name, start_sec, end_sec, label in actions:
        database[name]["annotations"].append({"segment": [start_sec, end_sec], "label": label})
    path.write_text(json.dumps({"version": "VERSION 1.3", "database": database}))
    return path


def write_metadata(path: Path, durations_sec: dict[str, float]) -> Path:
    groundtruth.write_metadata(
        path,
        [groundtruth.VideoMetadata(name, duration, 30.0, round(30 * duration)) for name, duration in durations_sec.items()],
    )
    return path


def rounded(rows: list[groundtruth.AnnotatedSegment]) -> list[tuple[object, ...]]:
    """Returns the rows with times rounded to a thousandth of a second."""
    return [
        (
            *(row.video_name, row.filename, round(row.start_sec, 3), round(row.end_sec, 3), row.action_label),
            *(round(row.video_duration_sec, 3), row.fps, row.num_frames, row.temporal_region),
        )
        for row in rows
    ]


# ---------------------------------------------------------------------------------------------------- the released files


@pytest.fixture(params=["valid", "test"])
def split(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def released(split: str, shared: Path) -> list[groundtruth.AnnotatedSegment]:
    return groundtruth.read_groundtruth(shared / "annotations" / f"thumos14_{split}_tsp_groundtruth.csv")


@pytest.fixture
def actions(released: list[groundtruth.AnnotatedSegment]) -> list[Annotation]:
    return [(row.video_name, row.start_sec, row.end_sec, row.action_label) for row in released if row.action_label]


def differing(rows: list[groundtruth.AnnotatedSegment], released: list[groundtruth.AnnotatedSegment]) -> int:
    here, there = rounded(rows), rounded(released)
    assert len(here) == len(there)
    assert len(set(here)) == len(here)
    return len(set(there) - set(here))


def test_released_file_comes_back_from_per_class_files(
    split: str, released: list[groundtruth.AnnotatedSegment], actions: list[Annotation], shared: Path, tmp_path: Path
):
    """All rows agree but one of valid, where two actions start together. Within a video the order is that of the classes."""
    ending = {"valid": "val", "test": "test"}[split]
    folder = write_per_class(tmp_path / "thumos14", actions, ending)
    (folder / f"Ambiguous_{ending}.txt").write_text(f"{actions[0][0]}  0.0 1.0\n")
    output = tmp_path / "out.csv"
    assert run("thumos14", folder, shared / f"annotations/thumos14_{split}_metadata.csv", output, "--subset", split) == 0
    rows = groundtruth.read_groundtruth(output)
    assert differing(rows, released) <= {"valid": 1, "test": 0}[split]
    assert [(row.video_name, row.temporal_region) for row in rows] == [
        (row.video_name, row.temporal_region) for row in released
    ]


def test_released_file_comes_back_from_csv_in_its_order(
    split: str, released: list[groundtruth.AnnotatedSegment], actions: list[Annotation], shared: Path, tmp_path: Path
):
    annotations, output = write_csv(tmp_path / "actions.csv", actions), tmp_path / "out.csv"
    metadata = shared / f"annotations/thumos14_{split}_metadata.csv"
    assert run("csv", annotations, metadata, output, "--background", "reference") == 0
    rows = groundtruth.read_groundtruth(output)
    assert differing(rows, released) <= {"valid": 1, "test": 0}[split]
    assert sum(a != b for a, b in zip(rounded(rows), rounded(released), strict=True)) <= 1


def test_ground_truth_of_its_own_output_is_the_same(shared: Path, tmp_path: Path):
    """A complete ground truth serves as annotations, and its background is computed again."""
    metadata = shared / "annotations/thumos14_test_metadata.csv"
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    released = shared / "annotations/thumos14_test_tsp_groundtruth.csv"
    for source, output in ((released, first), (first, second)):
        assert run("csv", source, metadata, output, "--background", "reference") == 0
    assert first.read_bytes() == second.read_bytes()


def test_activitynet_validation_has_the_released_counts(shared: Path, tmp_path: Path):
    """The released files have 7,654 actions and 7,747 background segments in 4,926 videos. Durations are those of the JSON."""
    annotations = tmp_path / "activity_net.v1-3.min.json"
    annotations.write_bytes(gzip.decompress((shared / "annotations/anet13_val_gt.json.gz").read_bytes()))
    database = json.loads(annotations.read_text())["database"]
    metadata = write_metadata(
        tmp_path / "m.csv", {f"v_{name}.mp4": round(30 * entry["duration"]) / 30 for name, entry in database.items()}
    )
    labels = shared / "annotations/activitynet_v1-3_action_label_mapping.json"
    output = tmp_path / "out.csv"
    assert run("activitynet", annotations, metadata, output, "--subset", "valid", "--labels", str(labels)) == 0
    rows = groundtruth.read_groundtruth(output)
    regions = collections.Counter(row.temporal_region for row in rows)
    assert regions == {groundtruth.ACTION: 7654, groundtruth.NO_ACTION: 7747}
    assert len({row.filename for row in rows}) == 4926
    assert all(row.filename == f"{row.video_name}.mp4" for row in rows)
    assert min(row.end_sec - row.start_sec for row in rows if not row.action_label) >= 80 / 15 - 1e-6


# ------------------------------------------------------------------------------------------------------------ the rules

DURATION_SEC = 20.0
# On a grid of tenths, so that starts, ends and nested actions meet; some leave the video or are reversed.
tenths = st.integers(-20, 250).map(lambda value: value / 10)
some_actions = st.lists(st.tuples(tenths, tenths), max_size=8)


def is_action(actions: list[tuple[float, float]], moment_sec: float) -> bool:
    return any(start <= moment_sec < end for start, end in actions)


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(some_actions)
def test_union_covers_each_video_exactly_once(actions: list[tuple[float, float]]):
    """Every moment of the video is in an action or in exactly one background segment, never in both."""
    gaps = groundtruth_command.background(actions, DURATION_SEC, "union", 0)
    assert all(0 <= start < end <= DURATION_SEC for start, end in gaps)
    moments = [0.05 + tenth / 10 for tenth in range(200)]  # between the grid's points
    counts = [sum(start <= moment < end for start, end in gaps) for moment in moments]
    assert counts == [0 if is_action(actions, moment) else 1 for moment in moments]


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(some_actions, st.sampled_from([0.0, 0.5, 16 / 15, 5.0]))
def test_union_keeps_what_lasts_long_enough(actions: list[tuple[float, float]], min_background_sec: float):
    every = groundtruth_command.background(actions, DURATION_SEC, "union", 0)
    kept = groundtruth_command.background(actions, DURATION_SEC, "union", min_background_sec)
    assert kept == [(start, end) for start, end in every if end - start >= min_background_sec - 1e-6]


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(some_actions, st.sampled_from([0.0, 0.5, 16 / 15, 5.0]))
def test_reference_is_a_walk_from_one_action_to_the_next(actions: list[tuple[float, float]], min_background_sec: float):
    waiting, expected, end_before = list(actions), [], 0.0
    while waiting:
        first = min(range(len(waiting)), key=lambda place: waiting[place][0])
        start, end = waiting.pop(first)
        expected.append((end_before, start))
        end_before = end
    expected.append((end_before, DURATION_SEC))
    expected = [gap for gap in expected if gap[1] - gap[0] >= max(min_background_sec - 1e-6, 1e-9)]
    assert groundtruth_command.background(actions, DURATION_SEC, "reference", min_background_sec) == expected


def test_rules_differ_where_an_action_lies_within_another():
    """The original calls 5 to 9 s background, although the first action goes on."""
    actions = [(2.0, 9.0), (3.0, 5.0)]
    assert groundtruth_command.background(actions, 12.0, "reference", 0) == [(0.0, 2.0), (5.0, 12.0)]
    assert groundtruth_command.background(actions, 12.0, "union", 0) == [(0.0, 2.0), (9.0, 12.0)]


def test_background_as_long_as_the_minimum_is_kept_despite_rounding():
    """The background has 16 frames after an action that ends at 30.1 s."""
    duration_sec = 30.1 + 16 / 15
    assert duration_sec - 30.1 < 16 / 15
    assert groundtruth_command.background([(0.0, 30.1)], duration_sec, "reference", 16 / 15) == [(30.1, duration_sec)]
    assert groundtruth_command.background([(0.0, 30.1)], 30.1 + 15 / 15, "reference", 16 / 15) == []


@pytest.mark.parametrize(
    ("annotation_format", "rule", "shortest"),
    [("activitynet", "reference", 80), ("thumos14", "reference", 16), ("csv", "union", 16)],
)
def test_defaults_are_each_formats_own(annotation_format: str, rule: str, shortest: int, tmp_path: Path):
    """The gaps have `shortest` frames and one frame less, and a nested action shows which rule is used."""
    long, short = shortest / 15, (shortest - 1) / 15
    actions = [("a", long, 40.0, "Jump"), ("a", 20.0, 20.1, "Jump"), ("a", 40.0 + short, 50.0, "Jump")]
    source = {
        "activitynet": lambda: write_json(tmp_path / "a.json", actions),
        "thumos14": lambda: write_per_class(tmp_path / "a", actions, "val"),
        "csv": lambda: write_csv(tmp_path / "a.csv", actions),
    }[annotation_format]()
    metadata = write_metadata(tmp_path / "m.csv", {"a.mp4": 50.0})
    output = tmp_path / "out.csv"
    flags = [] if annotation_format == "csv" else ["--subset", "valid"]

    def gaps(*more: str) -> list[tuple[float, float]]:
        assert run(annotation_format, source, metadata, output, *flags, *more) == 0
        rows = groundtruth.read_groundtruth(output)
        return [(row.start_sec, row.end_sec) for row in rows if row.temporal_region == groundtruth.NO_ACTION]

    nested = [(20.1, 40.0 + short)]
    assert gaps() == [(0.0, long), *(nested if rule == "reference" else [])]
    assert gaps("--background", "union", "--min_background_sec", "0") == [(0.0, long), (40.0, 40.0 + short)]
    assert gaps("--background", "reference", "--min_background_sec", "10") == nested


# ------------------------------------------------------------------------------------------------------------- the input


@pytest.mark.parametrize("filename", ["v_abc.mp4", "abc.mp4", "sub/v_abc.mkv", "abc.x.webm"])
def test_activitynet_identifier_finds_its_file(filename: str, tmp_path: Path):
    source = write_json(tmp_path / "a.json", [("abc", 1.0, 2.0, "Jump")], subset="training")
    metadata = write_metadata(tmp_path / "m.csv", {"other.mp4": 5.0, filename: 3.0})
    assert run("activitynet", source, metadata, tmp_path / "out.csv", "--subset", "train") == 0
    row = groundtruth.read_groundtruth(tmp_path / "out.csv")[0]
    assert (row.filename, row.video_name) == (filename, filename.split("/")[-1].split(".")[0])
    assert (row.start_sec, row.end_sec, row.video_duration_sec, row.num_frames) == (1.0, 2.0, 3.0, 90)


def test_csv_may_name_files_or_videos_and_a_subset(tmp_path: Path):
    (tmp_path / "a.csv").write_text(
        "filename,video-name,t-start,t-end,action-label,subset,note\n"
        "sub/b.mp4,,1,2,Run,train,x\n,a,0.5,1.50,Jump,train,\nsub/b.mp4,,3,4,Jump,valid,\n"
    )
    metadata = write_metadata(tmp_path / "m.csv", {"a.mp4": 1.5, "sub/b.mp4": 4.0})
    assert run("csv", tmp_path / "a.csv", metadata, tmp_path / "out.csv", "--subset", "train") == 0
    rows = groundtruth.read_groundtruth(tmp_path / "out.csv")
    assert [(row.filename, row.start_sec, row.end_sec, row.action_label) for row in rows] == [
        ("sub/b.mp4", 1.0, 2.0, "Run"),
        ("a.mp4", 0.5, 1.5, "Jump"),
        ("sub/b.mp4", 2.0, 4.0, ""),
    ]


def test_actions_that_leave_their_video_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    metadata = write_metadata(tmp_path / "m.csv", {"a.mp4": 3.0})
    for end_sec, counted in [(3.05, False), (3.5, True)]:  # a rounded end is no fault, as in `validate`
        source = write_csv(tmp_path / "a.csv", [("a", 0.0, 1.0, "Jump"), ("a", 2.0, end_sec, "Jump")])
        assert run("csv", source, metadata, tmp_path / "out.csv") == 0
        assert ("  1 actions are empty, reversed or leave their video" in capsys.readouterr().out) == counted


def test_video_listed_without_actions_is_background_under_union_alone(tmp_path: Path):
    source = write_json(tmp_path / "a.json", [("a", 0.0, 3.0, "Jump")], empty=("b",))
    metadata = write_metadata(tmp_path / "m.csv", {"a.mp4": 3.0, "b.mp4": 9.0, "c.mp4": 9.0})
    found = {}
    for rule in ("reference", "union"):
        flags = ["--subset", "valid", "--background", rule]
        assert run("activitynet", source, metadata, tmp_path / "out.csv", *flags) == 0
        found[rule] = [(row.video_name, row.end_sec) for row in groundtruth.read_groundtruth(tmp_path / "out.csv")]
    assert found == {"reference": [("a", 3.0)], "union": [("a", 3.0), ("b", 9.0)]}


def test_missing_videos_are_listed_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write_csv(tmp_path / "a.csv", [("a", 0.0, 1.0, "Jump"), ("gone", 0.0, 1.0, "Jump")])
    metadata = write_metadata(tmp_path / "m.csv", {"a.mp4": 3.0, "unlabelled.mp4": 3.0})
    assert run("csv", source, metadata, tmp_path / "out.csv") == 1
    assert [row.video_name for row in groundtruth.read_groundtruth(tmp_path / "out.csv")] == ["a", "a"]
    printed = capsys.readouterr()
    assert "missing: gone\n" in printed.err
    assert "error: 1 of 2 annotated videos are not in" in printed.err
    assert "1 videos of" in printed.out
    assert "1 actions of 1 classes and 1 background segments (union background of at least 1.0667 s) in 1 videos" in printed.out


def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path, annotation_format: str, source: Path, *flags: str) -> str:
    """Returns the only error message of a command that writes nothing."""
    metadata = write_metadata(tmp_path / "m.csv", {"a.mp4": 3.0, "v_a.mp4": 3.0, "b.mp4": 3.0})
    assert run(annotation_format, source, metadata, tmp_path / "out.csv", *flags) == 2
    assert not (tmp_path / "out.csv").exists()
    message = capsys.readouterr().err
    assert message.count("error: ") == 1
    return message


def test_wrong_annotations_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def message(annotation_format: str, source: Path, *flags: str) -> str:
        return fails(capsys, tmp_path, annotation_format, source, *flags)

    valid = ("--subset", "valid")
    (tmp_path / "x.json").write_text('{"videos": {}}')
    assert 'expected JSON {"database"' in message("activitynet", tmp_path / "x.json", *valid)
    (tmp_path / "x.json").write_text("{")
    assert 'expected JSON {"database"' in message("activitynet", tmp_path / "x.json", *valid)
    for entry, said in [
        ("[" * 50_000, "it nests too deep"),
        ('{"subset": "validation", "annotations": 3}', 'b: expected a list of "annotations", found 3'),
        ('{"subset": "validation"}', "no action of subset 'valid'; its 1 videos have no annotations"),
        ("[]", 'b: expected {"subset": …, "annotations": […]}, found []'),
        ('{"subset": [], "annotations": []}', 'b: expected a name as "subset", found []'),
        ('{"subset": null, "annotations": []}', "no video of subset 'valid'; found none"),
    ]:
        (tmp_path / "x.json").write_text(f'{{"database": {{"b": {entry}}}}}')
        assert said in message("activitynet", tmp_path / "x.json", *valid)
    assert "no such file" in message("activitynet", tmp_path / "none.json", *valid)
    good = write_json(tmp_path / "g.json", [("b", 0.0, 1.0, "Jump")], empty=("a",))
    assert "no video of subset 'train'; found validation" in message("activitynet", good, "--subset", "train")
    bad = write_json(tmp_path / "b.json", [("b", 0.0, 1.0, "Jump"), ("b", 0.0, float("nan"), "Jump"), ("b", 0.0, 1.0, "")])
    said = message("activitynet", bad, *valid)
    assert 'b annotation 2: expected {"segment": [start, end]' in said
    assert "b annotation 3: the label is empty" in said
    large = write_json(tmp_path / "b.json", [("b", 0.0, 10**400, "Jump")])
    assert "a number is not finite" in message("activitynet", large, *valid)
    hidden = write_json(tmp_path / "h.json", [], empty=("a",), subset="testing")
    assert "have no annotations" in message("activitynet", hidden, "--subset", "test")
    assert "a.mp4 and v_a.mp4 both have this name" in message("activitynet", good, *valid, "--background", "union")

    assert "no files *_val.txt" in message("thumos14", tmp_path, *valid)
    folder = write_per_class(tmp_path / "per_class", [("b", 0.0, 1.0, "Jump")], "val")
    (folder / "Run_val.txt").write_text("b 1.0 2.0\n\nb 1.0\nb 1.0 x\n")
    said = message("thumos14", folder, *valid)
    assert ":\n  Run_val.txt line 3: expected VIDEO START END in seconds, found 'b 1.0'\n  Run_val.txt line 4" in said

    (folder / "Run_val.txt").write_bytes(b"b 1.0 2.0\nb\xe9 1.0 2.0\n")
    assert "Run_val.txt: expected lines VIDEO START END in UTF-8" in message("thumos14", folder, *valid)

    assert "no column t-start, t-end, action-label" in message("csv", tmp_path / "m.csv")
    assert "c.csv: no action" in message("csv", write_csv(tmp_path / "c.csv", []))
    said = message(
        "csv", write_csv(tmp_path / "c.csv", [("b", 0.0, float("nan"), "Jump"), ("", 0.0, 1.0, "Run"), ("b", 0.0, 1.0, "")])
    )
    assert "line 2: t-end 'nan': expected a number" in said
    assert "line 3: no filename or video-name" in said
    assert "line 4: no action-label" in said
    assert "no video of subset 'valid'; found no videos" in message("csv", write_csv(tmp_path / "c.csv", []), *valid)
    twice = write_csv(tmp_path / "c.csv", [("b", 0.0, 1.0, "Jump"), ("b.mp4", 0.0, 1.0, "Run")])
    assert "b.mp4: annotated as b and as b.mp4" in message("csv", twice)
    other = write_csv(tmp_path / "c.csv", [("c", 0.0, 1.0, "Jump")])
    assert "none of the 1 annotated videos is in it, such as c" in message("csv", other)
    groundtruth.write_label_mapping(tmp_path / "l.json", ["Jump"])
    unknown = write_csv(tmp_path / "c.csv", [("b", 0.0, 1.0, "Jump"), ("b", 0.0, 1.0, "Run")])
    assert "no label 'Run' (b)" in message("csv", unknown, "--labels", str(tmp_path / "l.json"))


@pytest.mark.parametrize(
    "flags",
    [
        ["--format", "thumos14"],
        ["--format", "csv", "--min_background_sec", "-1"],
        ["--format", "csv", "--min_background_sec", "nan"],
        ["--format", "xml"],
    ],
)
def test_wrong_use_is_status_2(flags: list[str]):
    with pytest.raises(SystemExit) as caught:
        groundtruth_command.main([*flags, "--annotations", "a", "--metadata", "m", "--output", "o"])
    assert caught.value.code == 2
