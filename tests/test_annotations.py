"""Tests of annotations as people have them: what can be read is read and noted, and the rest is named in words."""

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_builders import annotation_formats, annotations
from data_builders import groundtruth as groundtruth_command
from tsp_jax import groundtruth

VIDEOS = [groundtruth.VideoMetadata(name, 8.0, 30.0, 240) for name in ("clipA.mp4", "v_00000001.mp4", "sub/clipB.mp4")]
ARCHERY = {"segment": [1.0, 3.0], "label": "Archery"}
# Words of Python's own errors, which are no message for a user.
PYTHON = re.compile(r"Error\b|NoneType|object (is|has|of)|'(dict|list|str|int|float|bool)'|codec|unhashable|Traceback|unpack")


def read(path: Path, subset: str | None, annotation_format: str = "activitynet") -> annotations.Annotations:
    return annotation_formats.read_actions(annotation_format, path, subset)


def read_database(folder: Path, database: object, subset: str | None = "training") -> annotations.Annotations:
    (folder / "a.json").write_text(json.dumps({"database": database}))
    return read(folder / "a.json", subset)


def read_rows(folder: Path, text: str, subset: str | None = None) -> annotations.Annotations:
    (folder / "a.csv").write_text(text, encoding="utf-8")
    return read(folder / "a.csv", subset, "csv")


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that runs the command and returns its status, its actions (file, start, end, label), and what it printed."""

    def command(annotation_format: str, path: Path, *flags: str, videos: list[groundtruth.VideoMetadata] = VIDEOS) -> Any:
        groundtruth.write_metadata(tmp_path / "m.csv", videos)
        output = tmp_path / "out.csv"
        output.unlink(missing_ok=True)
        files = ["--annotations", str(path), "--metadata", str(tmp_path / "m.csv"), "--output", str(output)]
        status = groundtruth_command.main(["--format", annotation_format, *files, *flags])
        rows = groundtruth.read_groundtruth(output) if output.exists() else []
        found = [(row.filename, row.start_sec, row.end_sec, row.action_label) for row in rows if row.action_label]
        return status, found, "".join(capsys.readouterr())

    return command


# ------------------------------------------------------------------------------------------------------ the cases at hand


@pytest.mark.parametrize(
    ("name", "subset", "expected", "said"),
    [
        ("hacs.json", "training", [(1.0, 3.0, "Archery")], ""),
        ("charades.json", "training", [(1.0, 3.0, "12"), (2.0, 5.0, "4")], "note: an action [class, start, end] is read as"),
        ("nowrap.json", "training", [(1.0, 3.0, "Archery")], "note: subset 'training' is read from 'train'"),
        ("numeric.json", "training", [(1.0, 3.0, "7")], "note: a label that is a number is read as text (1 times)"),
        ("thumos_af.json", "valid", [(1.0, 3.0, "Archery")], "note: subset 'valid' is read from 'Validation'"),
        ("clock.csv", "train", [(1.08, 3.38, "take")], ""),
        ("empty_rows.csv", "train", [(1.5, 3.25, "jump")], ""),
        (
            "label_spaces.csv",
            "train",
            [(1, 2, "jump"), (3, 4, "jump"), (5, 6, "jump")],
            "'jump ' (1) as 'jump', ' Jump' (1) as",
        ),
        ("semicolon.csv", "train", [(1.5, 3.25, "jump")], ""),
        ("spaces.csv", "train", [(1.5, 3.25, "jump")], ""),
        ("tab.tsv", "train", [(1.5, 3.25, "jump")], ""),
        (
            "epic.csv",
            "train",
            [],
            "rename video_id to video-name, start_timestamp to t-start, stop_timestamp to t-end, verb to",
        ),
    ],
)
def test_each_case_gives_its_right_result(
    name: str, subset: str, expected: list[tuple[float, float, str]], said: str, shared: Path, run: Any
):
    path = shared / "cases" / "annotations" / name
    if not path.is_file():
        pytest.skip(f"{path} is not at hand")
    kind = "activitynet" if path.suffix == ".json" else "csv"
    status, found, printed = run(kind, path, "--subset", subset)
    assert found == [("clipA.mp4", *action) for action in expected]
    assert status == (0 if expected else 2)
    assert said in printed and (said or "note:" not in printed)


# --------------------------------------------------------------------------------------------------------------- labels


def test_labels_that_differ_in_blanks_case_or_accents_are_one_class(tmp_path: Path):
    """The most frequent spelling wins, over all subsets, so that the files of two subsets agree."""
    names = ["High  jump", "high jump", "high jump\u00a0", "\u200bHIGH JUMP", "Zoë", unicodedata.normalize("NFD", "zoë"), "run"]
    lines = [f"a.mp4,{place},{place + 1},{name},{'train' if place else 'valid'}" for place, name in enumerate(names)]
    text = "\n".join(["filename,t-start,t-end,action-label,subset", *lines])
    train, valid = (read_rows(tmp_path, text, subset) for subset in ("train", "valid"))
    assert [action.label for action in train.actions["a.mp4"]] == ["high jump"] * 3 + ["Zoë", "Zoë", "run"]
    assert [action.label for action in valid.actions["a.mp4"]] == ["high jump"]
    assert [len(found.notes) for found in (train, valid)] == [1, 1]
    assert "'high jump\\xa0' (1) as 'high jump'" in train.notes[0] and "'High  jump' (1) as" in valid.notes[0]


def test_a_mapping_decides_the_spelling_and_keeps_apart_what_it_has_twice(tmp_path: Path, run: Any):
    (tmp_path / "a.csv").write_text(
        "filename,t-start,t-end,action-label\nclipA,0,1,jump\nclipA,1,2,jump\nclipA,2,3,Jump \nclipA,3,4,RUN\nclipA,4,5,run\n"
    )
    for mapping, expected in [
        (["Jump", "Run"], ["Jump", "Jump", "Jump", "Run", "Run"]),
        (["Jump", "jump", "RUN", "run"], ["jump", "jump", "Jump", "RUN", "run"]),
    ]:
        groundtruth.write_label_mapping(tmp_path / "l.json", mapping)
        status, found, _ = run("csv", tmp_path / "a.csv", "--labels", str(tmp_path / "l.json"))
        assert status == 0 and [label for *_, label in found] == expected


def test_numbers_are_labels_as_text(tmp_path: Path):
    items = [{"segment": ["0:01", 3], "label": label} for label in (7, 7.0, "7", 1e20)]
    found = read_database(tmp_path, {"a": {"subset": "training", "annotations": items}})
    assert [action.label for action in found.actions["a"]] == ["7", "7", "7", "1" + "0" * 20]
    assert found.notes == ("a label that is a number is read as text (3 times)",)


# -------------------------------------------------------------------------------------------------------------- subsets


@pytest.mark.parametrize(
    ("asked", "written", "taken"),
    [
        ("train", ["training", "test"], ["training"]),
        ("Training ", ["TRAIN", "train", "training", "test"], ["training"]),
        ("TRAIN", ["train", "Train", "training"], ["train", "Train"]),
        ("valid", ["val", "Val", "testing"], ["val", "Val"]),
        ("val", ["Validation"], ["Validation"]),
        ("testing", ["test\u00a0", "trainval"], ["test\u00a0"]),
        ("fold 1", ["Fold  1", "fold 10"], ["Fold  1"]),
    ],
)
def test_a_subset_is_found_however_it_is_written(asked: str, written: list[str], taken: list[str], tmp_path: Path):
    found = read_database(tmp_path, {name: {"subset": name, "annotations": [ARCHERY]} for name in written}, asked)
    assert sorted(found.actions) == sorted(taken)
    assert any(note.startswith(f"subset {asked!r} is read from") for note in found.notes)


def test_a_subset_that_may_be_two_is_refused(tmp_path: Path):
    database = {name: {"subset": name, "annotations": [ARCHERY]} for name in ("val", "validation", "train")}
    with pytest.raises(ValueError, match="subset 'valid' may be 'val' or 'validation'; name one of them"):
        read_database(tmp_path, database, "valid")
    assert read_database(tmp_path, database, "val").notes == ("subset 'validation' is another one here, and is left out",)
    with pytest.raises(ValueError, match=r"no video of subset 'test'; found train, val, validation$"):
        read_database(tmp_path, database, "test")
    with pytest.raises(ValueError, match=r"found none; a JSON entry names it by \"subset\", a CSV in the column subset"):
        read_rows(tmp_path, "filename,t-start,t-end,action-label\na,0,1,jump\n", "train")


def test_bad_entries_of_another_subset_are_counted_and_block_nothing(tmp_path: Path):
    database = {
        "a": {"subset": "training", "annotations": [ARCHERY]},
        "b": {"subset": "validation", "annotations": [{"segment": [1], "label": "x"}, ARCHERY, 7]},
        "c": {"subset": "validation", "annotations": 3},
        "d": {"annotations": [ARCHERY]},
        "e": {"subset": "training"},
    }
    found = read_database(tmp_path, database)
    assert list(found.actions) == ["a"]
    assert [note.split(",")[0] for note in found.notes] == [
        "3 bad entries of other subsets are passed over",
        "1 videos have no subset and are left out",
        "1 videos are listed without annotations and are left out",
    ]
    with pytest.raises(ValueError, match=r"b annotation 1: expected.*\n.*b annotation 3: expected.*\n.*c: expected a list"):
        read_database(tmp_path, database, "validation")
    text = "filename,t-start,t-end,action-label,subset\na,0,1,jump,train\na,x,1,jump,valid\n,0,1,jump,valid\na,0,1,,valid\n"
    assert (
        "3 bad entries of other subsets are passed over, such as line 3: t-start 'x'"
        in read_rows(tmp_path, text, "train").notes[0]
    )
    with pytest.raises(ValueError, match="line 2: expected 5 fields as in the header, found 4"):  # its subset is not known
        read_rows(tmp_path, text.replace(",0,1,jump,train", ",0,1,jump"), "valid")


def test_a_video_without_annotations_is_not_background(tmp_path: Path, run: Any):
    """A test set hides its actions; an empty list says that there are none."""
    entries = {"clipA": {"subset": "test"}, "clipB": {"subset": "test", "annotations": []}}
    entries["v_00000001"] = {"subset": "test", "annotations": [ARCHERY]}
    (tmp_path / "a.json").write_text(json.dumps({"database": entries}))
    assert run("activitynet", tmp_path / "a.json", "--subset", "test", "--background", "union")[0] == 0
    assert {row.filename for row in groundtruth.read_groundtruth(tmp_path / "out.csv")} == {"v_00000001.mp4", "sub/clipB.mp4"}


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", ["Café Zoë.MOV", "./Café Zoë", ".\\Café Zoë.avi ", "\u00a0Café Zoë.mp4", "Cafe\u0301 Zoe\u0308"]
)
def test_a_name_finds_its_file_in_any_form(name: str, tmp_path: Path, run: Any):
    filename = unicodedata.normalize("NFD", "Café Zoë.mp4")
    (tmp_path / "a.csv").write_text(
        f"filename,t-start,t-end,action-label\n{name},0,1,jump\n{filename},2,3,jump\n", encoding="utf-8"
    )
    status, found, _ = run("csv", tmp_path / "a.csv", videos=[groundtruth.VideoMetadata(filename, 8.0, 30.0, 240)])
    if unicodedata.normalize("NFC", name.strip()) == "Café Zoë.mp4":
        assert status == 0 and [item[1] for item in found] == [0.0, 2.0]
    else:  # two names of one file may be a mistake
        assert status == 2
    (tmp_path / "a.csv").write_text(f"filename,t-start,t-end,action-label\n{name},0,1,jump\n", encoding="utf-8")
    status, found, _ = run("csv", tmp_path / "a.csv", videos=[groundtruth.VideoMetadata(filename, 8.0, 30.0, 240)])
    assert (status, found) == (0, [(filename, 0.0, 1.0, "jump")])


def test_a_missing_video_is_shown_with_its_near_miss(tmp_path: Path, run: Any):
    (tmp_path / "a.csv").write_text(
        "filename,t-start,t-end,action-label\nclipA,0,1,jump\nClip_B.avi,0,1,jump\nother,0,1,jump\n"
    )
    status, found, printed = run("csv", tmp_path / "a.csv")
    assert status == 1 and len(found) == 1
    assert "missing: Clip_B.avi (is it sub/clipB.mp4?)\n" in printed and "missing: other\n" in printed


def test_names_that_features_would_share_need_a_rule(tmp_path: Path, run: Any):
    names = ["2018-03-11.school.G424.mp4", "2018-03-11.school.G299.mp4"]
    videos = [groundtruth.VideoMetadata(name, 8.0, 30.0, 240) for name in names]
    (tmp_path / "a.csv").write_text(f"filename,t-start,t-end,action-label\n{names[0]},0,1,jump\n{names[1][:-4]},0,1,run\n")
    status, _, printed = run("csv", tmp_path / "a.csv", videos=videos)
    assert status == 2 and "pass --names stem, which names them '2018-03-11.school.G424'" in printed
    assert run("csv", tmp_path / "a.csv", "--names", "stem", videos=videos)[0] == 0
    rows = groundtruth.read_groundtruth(tmp_path / "out.csv")
    assert {(row.filename, row.video_name) for row in rows} == {(name, name[:-4]) for name in names}
    assert set(groundtruth.by_video(rows)) == {name[:-4] for name in names}
    hidden = [groundtruth.VideoMetadata(".hidden.mp4", 8.0, 30.0, 240)]
    (tmp_path / "a.csv").write_text("filename,t-start,t-end,action-label\n.hidden,0,1,jump\n")
    status, _, printed = run("csv", tmp_path / "a.csv", videos=hidden)
    assert status == 2 and "leaves no name for its features; pass --names stem" in printed
    assert run("csv", tmp_path / "a.csv", "--names", "stem", videos=hidden)[0] == 0


# ---------------------------------------------------------------------------------------------------- whatever is in a file

JUNK = [
    None,
    True,
    3,
    -1.5,
    "x",
    "",
    "1:60",
    "\ud800",
    [],
    {},
    [1],
    [[]],
    {"a": 1},
    [1, 2, 3],
    float("nan"),
    10**400,
    "x" * 500,
]


def mutations(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Yields every place in a JSON value, with the kinds of change that are made there."""
    yield path, "replace"
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key), "delete"
        yield from mutations(value[key], (*path, key))


def mutated(value: Any, path: tuple[Any, ...], change: str, junk: Any) -> Any:
    if not path:
        return junk
    found = json.loads(json.dumps(value))  # unlike copy.deepcopy, this leaves nothing shared
    parent = found
    for key in path[:-1]:
        parent = parent[key]
    if change == "delete":
        del parent[path[-1]]
    else:
        parent[path[-1]] = junk
    return found


GOOD = {
    "wrapped": {
        "version": "1",
        "database": {
            "a": {"subset": "training", "duration": 8, "annotations": [ARCHERY, {"segment": ["1", "2.5"], "label": 7}]},
            "b": {"subset": "testing", "annotations": [ARCHERY]},
        },
    },
    "bare": {"a": {"subset": "train", "actions": [[12, 1.0, 3.0], ["x", 2.0, 5.0]]}, "b": {"subset": "testing", "actions": []}},
}


@pytest.mark.parametrize("kind", GOOD)
def test_no_change_of_a_json_file_gives_an_error_of_python(kind: str, tmp_path: Path):
    """The result is right or refused in words with the file's name, and a change in another subset changes nothing."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps(GOOD[kind]))
    whole = read(path, "training").actions
    refused = 0
    for place, change in mutations(GOOD[kind]):
        for junk in JUNK if change == "replace" else JUNK[:1]:
            path.write_text(json.dumps(mutated(GOOD[kind], place, change, junk)))
            try:
                found = read(path, "training").actions
            except ValueError as error:
                assert str(error).startswith(str(path))
                assert not PYTHON.search(str(error).replace(str(path), "")), error
                assert "b" not in place[:-1] or place[-1] == "subset"
                refused += 1
                continue
            assert "b" not in place or place[-1] == "subset" or found == whole
            assert all(label.strip() and "\ud800" not in label for items in found.values() for *_, label in map(vars_of, items))
    assert refused > 100


def vars_of(action: annotations.Action) -> tuple[float, float, str]:
    return action.start_sec, action.end_sec, action.label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"database": {"a": {}, "a": {"subset": "training"}}}', "the name 'a' has two values in one object; keep one"),
        ('{"database": []}', r"expected JSON \{\"database\".*, found \{\"database\": \[\]\}"),
        ('{"results": {"a": [{"label": "x"}]}}', 'found no "database" and no entry of a video'),
        ("filename,t-start\n", r"found no JSON \(line 1 column 1: Expecting value\)"),
        ('{"database": {"a": ' + "1" * 5000 + "}}", r"found no JSON \(a number has thousands of digits\)"),
        (
            '{"database": {"a": {"subset": "training", "annotations": ["x"]}}}',
            'a annotation 1: expected {"segment".*, found "x"',
        ),
        (
            '{"database": {"a": {"subset": "training", "annotations": [{"segment": "12", "label": "x"}]}}}',
            r'a annotation 1: expected {"segment": \[start, end\].*, found {"segment": "12"',
        ),
    ],
)
def test_what_is_no_annotation_file_is_named(text: str, message: str, tmp_path: Path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.json", "training")


def test_the_wrapper_may_have_another_name_and_columns_of_other_tools_are_recognised(tmp_path: Path):
    entries = {"a": {"subset": "training", "annotations": [{"segment": [1, 3], "label": "x"}]}}
    (tmp_path / "a.json").write_text(json.dumps({"version": "1", "videos": entries}))
    assert list(read(tmp_path / "a.json", "training").actions) == ["a"]
    (tmp_path / "a.json").write_text(json.dumps({"first": entries, "second": entries}))
    with pytest.raises(ValueError, match='no "database" and no entry of a video'):
        read(tmp_path / "a.json", "training")
    renames = "rename videoId to video-name, Start (s) to t-start, endSeconds to t-end, class_name to action-label"
    with pytest.raises(ValueError, match=re.escape(renames)):
        read_rows(tmp_path, "videoId,Start (s),endSeconds,class_name\na,1,2,x\n")


def test_thumos14_folder_with_a_damaged_file_of_another_subset_is_read(tmp_path: Path):
    (tmp_path / "Run_val.txt").write_bytes(b"\xef\xbb\xbfb 1.0 2.0\r\na 0:01.5 3\r\n")
    (tmp_path / "Run_test.txt").write_bytes(b"caf\xe9 1.0 2.0\n")
    found = read(tmp_path, "Validation", "thumos14")
    assert found.actions == {
        "a": [annotations.Action(1.5, 3.0, "Run")],
        "b": [annotations.Action(1.0, 2.0, "Run")],
    }
    assert any("1 bad entries of other subsets are passed over, such as Run_test.txt" in note for note in found.notes)
