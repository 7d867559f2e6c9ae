"""Tests of the files of detections: what is read of each kind, what is refused and how, and that nothing is lost on the way."""

import json
import pickle
import time
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from tsp_jax import clip_segments, predictions
from tsp_jax.localization import detections, segments
from tsp_jax.system import errors

RESULTS = {
    "v_a": [
        {"label": "run", "score": 0.5, "segment": [1.5, 4]},
        {"segment": [0.1, 2.0], "label": "jump", "score": 1, "extra": None},
    ],
    "名前": [],
    "b": [{"label": "run", "score": -2.5, "segment": [3.0, 2.0]}],
}


def read(tmp_path: Path, content: Any, task: detections.Task = "detection") -> detections.Detections:
    path = tmp_path / "p.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return detections.read(path, task)


def refused(tmp_path: Path, content: Any, task: detections.Task = "detection") -> str:
    with pytest.raises(errors.UserError) as error:
        read(tmp_path, content, task)
    message = str(error.value)
    assert "p.json" in message and "Error" not in message and "Traceback" not in message
    return message


def test_the_results_of_activitynet_and_opentad_are_read(tmp_path: Path):
    for extra in ({"version": "VERSION 1.3", "external_data": {"used": True, "details": "CUHK"}}, {}):
        found = read(tmp_path, {**extra, "results": RESULTS})
        assert found.videos == ("v_a", "名前", "b") and found.labels == ("run", "jump")
        assert found.class_scores == ("CUHK" if extra else "")
        assert found.rows.video.tolist() == [0, 0, 2] and found.rows.label.tolist() == [0, 1, 0]
        assert found.rows.start_sec.tolist() == [1.5, 0.1, 3.0] and found.rows.end_sec.tolist() == [4.0, 2.0, 2.0]
        assert found.rows.score.tolist() == [0.5, 1.0, -2.5]
    assert not len(read(tmp_path, {"results": {}}).rows)


def test_proposals_need_no_labels_and_labels_of_videos_no_segments(tmp_path: Path):
    proposals = {"a": [{"segment": [0, 1], "score": 0.5}]}
    assert len(read(tmp_path, {"results": proposals}, "proposals").rows) == 1
    assert "label nothing: expected a name" in refused(tmp_path, {"results": proposals})
    labels = {"a": [{"label": "run", "score": 0.5}]}
    assert read(tmp_path, {"results": labels}, "classification").labels == ("run",)
    assert "segment nothing: expected [start, end]" in refused(tmp_path, {"results": labels})


def test_what_the_predict_command_writes_is_read(tmp_path: Path):
    segment = clip_segments.Segment("run", 0.5, 0.25, 1.07)
    top, share = np.array([[1]], np.int32), np.float32([[0.9]])
    shown = predictions.Video(2.2, "", (segment,), np.array([0.0]), np.float32([0.7]), top, share)
    run = ("a.pth", "00", "", predictions.TASKS, ("jump", "run"), (0.5,), 1.0667, 1.0667)
    predictions.write(tmp_path / "p.json", predictions.Predictions(*run, {"v_a": shown}))
    found = detections.read(tmp_path / "p.json")
    assert (found.videos, found.labels) == (("v_a",), ("run",))
    assert (found.rows.start_sec.item(), found.rows.end_sec.item(), found.rows.score.item()) == (0.25, 1.07, 0.5)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    names = data.draw(st.lists(st.text(max_size=5), min_size=1, max_size=3, unique=True))
    labels = data.draw(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=3, unique=True))
    count = data.draw(st.integers(0, 6))
    finite = st.floats(allow_nan=False, allow_infinity=False)
    numbers = np.array(data.draw(st.lists(finite, min_size=3 * count, max_size=3 * count)), np.float64).reshape(3, count)
    video = np.sort(np.array(data.draw(st.lists(st.integers(0, len(names) - 1), min_size=count, max_size=count)), np.int64))
    label = np.array(data.draw(st.lists(st.integers(0, len(labels) - 1), min_size=count, max_size=count)), np.int64)
    rows = segments.Segments(video, label, *numbers)
    path = tmp_path_factory.mktemp("written") / "p.json"
    detections.write(path, detections.Detections(tuple(names), tuple(labels), rows), class_scores="cuhk.json")
    found = detections.read(path)
    assert found.videos == tuple(names) and found.class_scores == "cuhk.json"
    assert [found.labels[place] for place in found.rows.label] == [labels[place] for place in label]
    for name in ("video", "start_sec", "end_sec", "score"):
        np.testing.assert_array_equal(getattr(found.rows, name), getattr(rows, name))


def test_nothing_is_written_that_could_not_be_read(tmp_path: Path):
    for bad in (np.nan, np.inf):
        rows = segments.make([0], [0], [bad], [1.0], [0.5])
        with pytest.raises(ValueError):
            detections.write(tmp_path / "p.json", detections.Detections(("a",), ("run",), rows))
    assert not list(tmp_path.iterdir())


def entry(**changes: Any) -> dict[str, Any]:
    return {"label": "run", "score": 0.5, "segment": [1.0, 2.0], **changes}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (entry(score="0.9"), 'score "0.9": expected a number'),
        (entry(score=None), "score nothing: expected a number"),
        (entry(score=float("nan")), "score NaN: expected a number"),
        (entry(score=True), "score true: expected a number"),
        (entry(segment=[float("nan"), 2.0]), "segment [NaN, 2.0]: expected [start, end], two finite numbers of seconds"),
        (entry(segment=[0, float("inf")]), "segment [0, Infinity]: expected"),
        (entry(segment=[0, 10**400]), "a number is too large"),
        (entry(segment=["0", "1"]), 'segment ["0", "1"]: expected'),
        (entry(segment=[1.0]), "segment [1.0]: expected"),
        (entry(segment=None), "segment nothing: expected"),
        (entry(label=""), 'label "": expected a name'),
        (entry(label=1.5), "label 1.5: expected a name"),
        (entry(score=10**400), "a number is too large"),
        ([1.0, 2.0], "expected an object, found [1.0, 2.0]"),
    ],
)
def test_a_value_that_is_none_is_named_with_its_place(bad: Any, message: str, tmp_path: Path):
    found = refused(tmp_path, {"results": {"v_a": [entry(), bad]}})
    assert f"results 'v_a' prediction 2: {message}" in found


def test_all_faults_are_listed_at_once_and_counted(tmp_path: Path):
    found = refused(tmp_path, {"results": {f"v{i}": [entry(score=None), entry()] for i in range(30)}})
    assert found.count("prediction 1") == 10 and "and 20 more" in found
    assert "and 2990 more" in refused(tmp_path, {"results": {"a": [entry(score=None)] * 3000}})
    assert "labels are numbers, such as 3, and names, such as 'run'" in refused(
        tmp_path, {"results": {"a": [entry(), entry(label=3)]}}
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"results": {"a": [], "a": []}}', "the video is there twice"),
        ('{"results": {"a": {}}}', "expected a list of predictions, found {}"),
        ('{"results": []}', "`results` is no object"),
        ('{"database": {}}', "there is no `results`, but 'database'"),
        ("[]", "found '[]'"),
        ("", "found an empty file"),
        ('{"results": {}, "results": {}}', "`results` is there twice"),
        ('{"results": {"a": [}}', "found no JSON (line 1 column"),
        ('{"results": {}} x', "found no JSON (line 1 column 17: Extra data)"),
        ('{"results": {}', "found no JSON"),
        ('{"results" {}}', "found no JSON"),
        ('{"results": {"a": ' + "[" * 100_000, "nest too deep"),
        ('{"results": {"a": [' + "1" * 5000 + "]}}", "A number has thousands of digits"),
        ("<html>", "a web page"),
    ],
)
def test_other_files_are_refused_in_words(text: str, message: str, tmp_path: Path):
    assert message in refused(tmp_path, text)


def test_a_file_that_is_absent_a_folder_or_too_large_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such file; expected predictions"):
        detections.read(tmp_path / "absent.json")
    with pytest.raises(segments.EvaluationError, match="a folder"):
        detections.read(tmp_path)
    with open(tmp_path / "p.json", "wb") as stream:
        stream.truncate(2 * 1024**3)
    began = time.monotonic()
    with pytest.raises(segments.EvaluationError, match=r"2,147,483,648 bytes; expected at most 536,870,912"):
        detections.read(tmp_path / "p.json")
    assert time.monotonic() - began < 1


ACTIONFORMER = {
    "video-id": ["v_a", "v_a", "b"],
    "t-start": np.array([0.5, 2.0, 1.0], np.float32),
    "t-end": np.array([1.5, 3.0, 2.0], np.float32),
    "label": np.array([7, 3, 7], np.int64),
    "score": np.array([0.25, 0.5, 1.0], np.float32),
}


def test_the_results_of_actionformer_are_read_without_running_code(tmp_path: Path):
    path = tmp_path / "eval_results.pkl"
    path.write_bytes(pickle.dumps(ACTIONFORMER))
    found = detections.read(path)
    assert found.videos == ("v_a", "b") and found.labels == ("3", "7") and found.numbered
    assert found.rows.label.tolist() == [1, 0, 1] and found.rows.score.tolist() == [0.25, 0.5, 1.0]
    for changes, message in [
        ({"score": np.array([0.5, np.nan, 1.0])}, "row 1 ('v_a'): score nan: expected a number"),
        ({"t-end": np.array([np.inf, 1.0, 1.0])}, "row 0 ('v_a'): t-end inf: expected a number"),
        ({"label": np.array([0.5, 1.0, 1.0])}, "row 0 ('v_a'): label 0.5: expected a number"),
        ({"label": np.array([np.inf, 1.0, 1.0])}, "row 0 ('v_a'): label inf: expected a number"),
        ({"label": np.array([2**63 + 5, 1, 1], np.uint64)}, "row 0 ('v_a'): label 9223372036854775813: expected a number"),
        ({"t-start": np.zeros(2)}, "t-start is no array of 3 numbers"),
        ({"video-id": [1, 2, 3]}, "video-id is no list of names"),
    ]:
        path.write_bytes(pickle.dumps({**ACTIONFORMER, **changes}))
        with pytest.raises(segments.EvaluationError) as error:
            detections.read(path)
        assert message in str(error.value)
    path.write_bytes(pickle.dumps({"video-id": [], **{key: np.zeros(0) for key in list(ACTIONFORMER)[1:]}}))
    assert not len(detections.read(path).rows) and not detections.read(path).numbered
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(segments.EvaluationError, match=r"expected a dict of video-id.*found list; or write ActivityNet's JSON"):
        detections.read(path)
    path.write_bytes(pickle.dumps({"a": Path("/")}))
    with pytest.raises(segments.EvaluationError, match="nothing was run"):
        detections.read(path)
