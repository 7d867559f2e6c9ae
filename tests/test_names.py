"""Tests of the names of videos: the key of a video's features, and which file a name in annotations means."""

import json
import unicodedata
from pathlib import Path

import h5py
import numpy as np
import pytest

import media
from data_builders import build, gvf, labels, metadata, standardize, validate
from data_builders import groundtruth as groundtruth_command
from tsp_jax import (
    checkpoints,
    extract,
    features,
    groundtruth,
    input_pipeline,
    predict,
    predictions,
    probe,
    video_list,
    video_names,
)
from tsp_jax.features import global_features
from tsp_jax.models import functional, tsp
from tsp_jax.report import __main__ as report

SHARED = Path(__file__).parents[2] / "shared"
DOTTED = ["2018-03-11.11-25-00.school.G424", "2018-03-11.11-30-00.school.G299"]
FILES = video_names.Filenames(
    [
        "Holiday 1.mp4",
        unicodedata.normalize("NFD", "Café Zoë.mp4"),
        "trip.mp4",
        "2018-03-11.11-25-00.school.G424.mp4",
        "2018-03-11.11-30-00.school.G299.mp4",
        "sub/x.y.mp4",
        "cam1/same.mp4",
        "cam2/same.mp4",
        "v_abcdefghijk.mkv",
        "talk.ts.mp4",
    ]
)


@pytest.mark.parametrize(
    ("rule", "expected"), [("first_dot", "2018-03-11"), ("stem", "2018-03-11.school"), ("path", "cam1/2018-03-11.school")]
)
def test_each_rule_gives_its_name(rule: video_names.Rule, expected: str):
    assert video_names.feature_name("cam1/2018-03-11.school.MP4", rule) == expected


def test_a_name_is_composed_and_keeps_dots_that_are_no_extension():
    decomposed = unicodedata.normalize("NFD", "Zoë.mp4")
    assert {video_names.feature_name(decomposed, rule) for rule in video_names.RULES} == {"Zoë"}
    assert video_names.feature_name("2018-03-11.school", "stem") == "2018-03-11.school"
    assert video_names.feature_name(".mp4", "stem") == ".mp4"


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("Holiday 1.MOV", ["Holiday 1.mp4"]),
        ("Holiday 1", ["Holiday 1.mp4"]),
        ("./trip.avi", ["trip.mp4"]),
        (".\\trip.avi", ["trip.mp4"]),
        ("sub\\x.y.MOV", ["sub/x.y.mp4"]),
        ("sub//x.y", ["sub/x.y.mp4"]),
        ("x.y", ["sub/x.y.mp4"]),
        ("x", ["sub/x.y.mp4"]),
        ("2018-03-11.11-25-00.school.G424", ["2018-03-11.11-25-00.school.G424.mp4"]),
        ("2018-03-11.11-30-00.school.G299.avi", ["2018-03-11.11-30-00.school.G299.mp4"]),
        ("2018-03-11", ["2018-03-11.11-25-00.school.G424.mp4", "2018-03-11.11-30-00.school.G299.mp4"]),
        ("same", ["cam1/same.mp4", "cam2/same.mp4"]),
        ("cam2/same.MTS", ["cam2/same.mp4"]),
        ("abcdefghijk", ["v_abcdefghijk.mkv"]),
        ("v_abcdefghijk", ["v_abcdefghijk.mkv"]),
        ("v_trip", ["trip.mp4"]),
        ("sub/v_x.y.avi", ["sub/x.y.mp4"]),
        ("talk.ts", ["talk.ts.mp4"]),
        # What might be another video is none.
        ("cam3/same.mp4", []),
        ("trip.part2.mp4", []),
        ("Trip.avi", []),
        ("school", []),
        ("", []),
    ],
)
def test_a_name_in_annotations_finds_the_files_that_it_means(name: str, files: list[str]):
    assert FILES.find(name) == files


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC"])
def test_accents_may_be_composed_or_not(form: str):
    found = FILES.find(unicodedata.normalize(form, "Café Zoë.MOV"))  # type: ignore (a form's name)
    assert found == [unicodedata.normalize("NFD", "Café Zoë.mp4")]


def test_the_very_name_wins_over_others_that_are_written_alike():
    both = [unicodedata.normalize(form, "é.mp4") for form in ("NFC", "NFD")]
    files = video_names.Filenames([*both, "a.mp4", "v_a.mp4", "a.avi"])
    assert [files.find(name) for name in both] == [[name] for name in both]
    assert files.find("a.avi") == ["a.avi"] and files.find("a") == ["a.avi", "a.mp4", "v_a.mp4"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Holliday 1.mov", "Holiday 1.mp4"),
        ("TRIP.AVI", "trip.mp4"),
        ("holiday_1", "Holiday 1.mp4"),
        ("C:\\videos\\trip.avi", "trip.mp4"),
        ("cam3/same.mp4", "cam1/same.mp4"),
        ("another", ""),
        ("", ""),
    ],
)
def test_a_near_miss_is_shown(name: str, near: str):
    assert FILES.find(name) == [] and FILES.near(name) == near


def test_first_dots_that_clash_name_the_flag_and_what_it_gives():
    video_names.check_distinct(["a.mp4", "b.x.mp4", "a.mp4"])
    with pytest.raises(ValueError, match=r"a\.x\.mp4 and a\.y\.mp4 would both be named 'a'.*--names stem.*'a\.x' and 'a\.y'"):
        video_names.check_distinct(["a.x.mp4", "a.y.mp4", "b.mp4"])
    with pytest.raises(ValueError, match=r"s/a\.mp4 and t/a\.mp4 .* pass --names path, which names them 's/a' and 't/a'"):
        video_names.check_distinct(["s/a.mp4", "t/a.mp4"])
    with pytest.raises(ValueError, match=r"a\.mp4 and a\.mov .* no rule of --names keeps all videos apart; rename one"):
        video_names.check_distinct(["a.mp4", "a.mov"])


# -------------------------------------------------------------------------------------------------------------- features

RUN = {"stride": 16, "clip_len": 16, "frame_rate": 15.0, "checkpoint_sha256": "ab"}
ODD = ["cam1/a", "cam1/50%", "50%2Fa", "a", "Zoë"]


@pytest.mark.parametrize("rule", ["path", "stem"])
def test_any_name_is_stored_and_found(rule: video_names.Rule, tmp_path: Path):
    names = [name for name in ODD if rule == "path" or "/" not in name]
    run = {**RUN, "names": rule}
    rows = {name: np.full((2, 3), number, np.float32) for number, name in enumerate(names)}
    for half, chosen in enumerate([names[:2], names[2:]]):
        with features.Writer(tmp_path / f"{half}.h5", run) as writer:
            for name in chosen:
                writer.commit(name, rows[name], {"damage": ""})
    features.merge([tmp_path / "0.h5", tmp_path / "1.h5"], tmp_path / "f.h5")
    assert features.names(tmp_path / "f.h5") == sorted(names) and features.naming(tmp_path / "f.h5") == rule
    assert all(np.array_equal(features.read(tmp_path / "f.h5", name).features, rows[name]) for name in names)
    with features.Writer(tmp_path / "f.h5", run) as writer:
        assert set(writer.done) == set(names)
    with h5py.File(tmp_path / "f.h5") as file:  # one level, so that loops over the file find the videos
        assert all(isinstance(item, h5py.Dataset) for item in file.values())
        assert ("cam1%2F50%25" in file) == (rule == "path")
    assert gvf.main(["--features", str(tmp_path / "f.h5"), "--pool", "max", "--output", str(tmp_path / "g.h5")]) == 0
    assert set(global_features.read(tmp_path / "g.h5")) == set(names) and features.naming(tmp_path / "g.h5") == rule


def test_another_rule_of_names_is_another_run(tmp_path: Path):
    with features.Writer(tmp_path / "f.h5", RUN) as writer:  # as version 0.1.0 wrote it
        writer.commit("a", np.zeros((1, 3), np.float32), {})
    with features.Writer(tmp_path / "f.h5", {**RUN, "names": "first_dot"}) as writer:
        assert "a" in writer.done
    with pytest.raises(features.FeatureFileError, match="names: first_dot there, stem asked for"):
        features.Writer(tmp_path / "f.h5", {**RUN, "names": "stem"})


def test_decomposed_names_of_earlier_versions_are_found(tmp_path: Path):
    with features.Writer(tmp_path / "f.h5", RUN) as writer:
        writer.commit(unicodedata.normalize("NFD", "Zoë"), np.ones((1, 3), np.float32), {})
    assert features.names(tmp_path / "f.h5") == ["Zoë"]
    assert features.read(tmp_path / "f.h5", "Zoë").features.sum() == 3


def test_a_stored_path_that_leads_out_of_a_folder_is_refused(tmp_path: Path):
    with features.Writer(tmp_path / "f.h5", {**RUN, "names": "path"}) as writer:
        writer.commit("../stolen", np.ones((1, 3), np.float32), {})
    with pytest.raises(features.FeatureFileError, match=r"'\.\./stolen' is no relative path"):
        features.names(tmp_path / "f.h5")


# -------------------------------------------------------------------------------------------- from recordings to training

RECORDINGS = {
    "Holiday 1.MOV": "Holiday 1.MOV",
    "trip.AVI": ".\\trip.AVI",
    unicodedata.normalize("NFD", "Café Zoë.mp4"): "Café Zoë.mp4",
    f"cam1/{DOTTED[0]}.mp4": f"cam1\\{DOTTED[0]}.mp4",
    f"cam1/{DOTTED[1]}.mkv": f"./cam1/{DOTTED[1]}",
    "cam2/take.1": "cam2/take.1",
    "UPPER.MP4": "UPPER",
}
STEMS = ["Café Zoë", "Holiday 1", "UPPER", f"cam1/{DOTTED[0]}", f"cam1/{DOTTED[1]}", "cam2/take.1", "trip"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    config = tsp.ModelConfig("r3d_tiny", (2, 2))
    checkpoints.save(path, checkpoints.make(config, functional.init(config, 0), checkpoints.Origin("seed 0")))
    return str(path)


def test_recordings_with_names_of_all_kinds_go_from_annotations_to_training(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    lines = ["filename,t-start,t-end,action-label"]
    for number, (filename, annotated) in enumerate(RECORDINGS.items()):
        (Path("raw") / filename).parent.mkdir(parents=True, exist_ok=True)
        codec, container = {".AVI": ("mpeg4", "avi"), ".MOV": ("libx264", "mov"), ".mkv": ("libx264", "matroska")}.get(
            Path(filename).suffix, ("libx264", "mp4")
        )
        media.write(Path("raw") / filename, codec=codec, container=container, frames=100, fps=25, seed=number)
        lines.append(f"{annotated},{'0,2' if number % 2 else '1,3'},{'jump' if number % 2 else 'run'}")
    Path("mine.csv").write_text("\n".join(lines), encoding="utf-8")

    assert standardize.main(["--input", "raw", "--output", "videos", "--workers", "2"]) == 0
    assert "1 file is taken for a video by its content alone: cam2/take.1" in capsys.readouterr().err
    assert metadata.main(["--videos", "videos", "--output", "metadata.csv", "--workers", "2"]) == 0
    assert len(groundtruth.read_metadata("metadata.csv")) == len(RECORDINGS)
    annotating = ["--format", "csv", "--annotations", "mine.csv", "--metadata", "metadata.csv", "--output", "train.csv"]
    capsys.readouterr()
    assert groundtruth_command.main(annotating) == 2
    assert f"pass --names stem, which names them '{DOTTED[0]}' and '{DOTTED[1]}'" in capsys.readouterr().err
    assert groundtruth_command.main([*annotating, "--names", "path"]) == 0
    rows = groundtruth.read_groundtruth("train.csv")
    assert sorted({row.video_name for row in rows}) == sorted(STEMS)
    assert {row.filename for row in rows if row.video_name == STEMS[3]} == {f"cam1/{DOTTED[0]}.mp4"}

    text = Path("train.csv").read_text(encoding="utf-8")
    Path("train.csv").write_text(unicodedata.normalize("NFC", text), encoding="utf-8")  # as a spreadsheet may save it
    assert labels.main(["--groundtruth", "train.csv", "--output", "labels"]) == 0
    mappings = [str(path) for path in sorted(Path("labels").iterdir())]
    checking = ["--groundtruth", "train.csv", "--videos", "videos", "--labels", *mappings]
    assert validate.main(checking) == 0
    building = ["--dataset", "video_folder", "--videos", "videos", "--groundtruth", "train.csv", "--data_dir", "records"]
    assert build.main([*building, "--workers", "1"]) == 0

    extracting = ["--checkpoint", checkpoint, "--videos", "videos", "--output"]
    capsys.readouterr()
    assert extract.main([*extracting, "f.h5"]) == 2
    assert "pass --names stem" in capsys.readouterr().err and not Path("f.h5").exists()
    assert extract.main([*extracting, "f.h5", "--names", "path"]) == 0
    assert features.names("f.h5") == sorted(STEMS)
    assert extract.main([*extracting, "per_video/", "--names", "path"]) == 0
    assert Path("per_video/cam1", f"{DOTTED[1]}.npy").is_file() and Path("per_video/cam2/take.1.npy").is_file()
    assert gvf.main(["--features", "f.h5", "--pool", "max", "--output", "gvf.h5"]) == 0
    split = input_pipeline.open_split("records/video_folder/jpeg/1.0.0", "train", gvf="gvf.h5")
    assert split.gvf is not None and len(split.gvf) == len(RECORDINGS)
    found, acting = probe.labelled_clips("f.h5", rows)
    assert len(found) == len(acting) > 0

    predicting = ["--checkpoint", checkpoint, "--labels", mappings[0], "--output", "p.json"]
    assert predict.main([*predicting, "--videos", "videos", "--names", "path"]) == 0
    assert sorted(predictions.read("p.json").videos) == sorted(STEMS)
    assert sorted(json.loads(Path("p.json").read_text())["results"]) == sorted(STEMS)
    showing = ["--features", "f.h5", "--groundtruth", "train.csv", "--predictions", "p.json", "--videos", "videos"]
    assert report.main([*showing, "--output", "report.html"]) == 0
    assert f"{len(RECORDINGS)} videos, {len(RECORDINGS)} pictured" in capsys.readouterr().out


def test_names_are_found_whatever_rule_the_ground_truth_was_written_with(checkpoint: str, tmp_path: Path):
    """The first command of a user may lack the flag that a later one needs."""
    for number, stem in enumerate(DOTTED):
        media.write(tmp_path / f"{stem}.mp4", frames=100, seed=number)
    run = ["--checkpoint", checkpoint, "--videos", str(tmp_path), "--output", str(tmp_path / "f.h5"), "--names", "stem"]
    assert extract.main(run) == 0
    segment = groundtruth.AnnotatedSegment("2018-03-11", 0.0, 1.5, "x", 10 / 3, f"{DOTTED[0]}.mp4", 30.0, 100, "Action")
    rest = groundtruth.AnnotatedSegment("2018-03-11", 1.5, 3.4, "", 10 / 3, f"{DOTTED[0]}.mp4", 30.0, 100, "No action")
    _, acting = probe.labelled_clips(tmp_path / "f.h5", [segment, rest])
    assert sorted(acting.tolist()) == [False, True]


def test_the_case_of_own_names_goes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    case = SHARED / "cases" / "own_names"
    if not case.is_dir():
        pytest.skip(f"the case is not at hand ({case})")
    monkeypatch.chdir(tmp_path)
    assert standardize.main(["--input", str(case), "--output", "videos", "--workers", "2"]) == 0
    assert metadata.main(["--videos", "videos", "--output", "metadata.csv", "--workers", "2"]) == 0
    annotating = ["--format", "csv", "--annotations", str(case / "mine.csv"), "--metadata", "metadata.csv"]
    assert groundtruth_command.main([*annotating, "--output", "train.csv"]) == 0
    found = {row.filename for row in groundtruth.read_groundtruth("train.csv")}
    assert found == {"Holiday 1.mp4", "trip.mp4", unicodedata.normalize("NFD", "Café Zoë.mp4"), f"{DOTTED[0]}.mp4"}
    assert {item.name for item in video_list.list_videos("videos", names="stem")} >= set(DOTTED)
