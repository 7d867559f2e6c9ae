"""Tests of the names of videos: the key of a video's features, and which file a name in annotations means."""

import unicodedata

import pytest

from tsp_jax import video_names

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
