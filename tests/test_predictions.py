"""Tests of the file of predictions: what is written is read again, ActivityNet's keys are there, everything else is refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tsp_jax import clip_segments, predictions

VIDEO = predictions.Video(
    duration_sec=5.0,
    damage="cut off at \udcff",
    segments=(clip_segments.Segment("名前", 0.75, 0.0, 2.133), clip_segments.Segment("run", 0.5, 3.2, 4.267)),
    start_sec=np.array([0.0, 1.067, 3.2]),
    foreground=np.array([0.9, 0.6, 0.5], np.float32),
    top_classes=np.array([[1, 0], [1, 2], [0, 1]], np.int32),
    top_probabilities=np.array([[0.5, 0.25], [0.75, 0.25], [0.5, 0.5]], np.float32),
)
EMPTY = predictions.Video(
    duration_sec=0.5,
    damage="",
    segments=(),
    start_sec=np.zeros(0),
    foreground=np.zeros(0, np.float32),
    top_classes=np.zeros((0, 1), np.int32),
    top_probabilities=np.zeros((0, 1), np.float32),
)
WHOLE = predictions.Predictions(
    checkpoint="runs",
    checkpoint_sha256="00",
    gvf="",
    tasks=("action", "temporal_region"),
    labels=("run", "名前", "sit"),
    thresholds=(0.5,),
    clip_len_sec=16 / 15,
    stride_sec=16 / 15,
    videos={"one": VIDEO, "none": EMPTY},
)


def fields(video: predictions.Video) -> list[Any]:
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in vars(video).values()]


def test_what_is_written_is_read_again(tmp_path: Path):
    predictions.write(tmp_path / "p.json", WHOLE)
    found = predictions.read(tmp_path / "p.json")
    assert {**vars(found), "videos": None} == {**vars(WHOLE), "videos": None}
    assert found.videos.keys() == WHOLE.videos.keys()
    np.testing.assert_allclose(found.videos["one"].foreground, [0.9, 0.6, 0.5])
    for name, video in WHOLE.videos.items():
        kept = dataclasses.replace(found.videos[name], foreground=video.foreground)
        assert fields(kept) == fields(video)
        assert [array.dtype for array in vars(kept).values() if isinstance(array, np.ndarray)] == [
            np.float64,
            np.float32,
            np.int32,
            np.float32,
        ]


@pytest.mark.parametrize("task", predictions.TASKS)
def test_one_task_alone_is_read_again(task: str, tmp_path: Path):
    action = task == "action"
    kept = {"foreground": None} if action else {"top_classes": None, "top_probabilities": None}
    segment = clip_segments.Segment("run" if action else "Action", 0.5, 0.0, 1.0)
    video = dataclasses.replace(VIDEO, **kept, segments=(segment,))
    one = dataclasses.replace(WHOLE, tasks=(task,), labels=WHOLE.labels if action else (), videos={"one": video})
    predictions.write(tmp_path / "p.json", one)
    assert (predictions.read(tmp_path / "p.json").videos["one"].foreground is None) == action


def test_activitynets_keys_are_there(tmp_path: Path):
    predictions.write(tmp_path / "p.json", WHOLE)
    page = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert page["version"] == "VERSION 1.3"
    assert page["results"]["one"][1] == {"label": "run", "score": 0.5, "segment": [3.2, 4.267]}
    assert page["results"]["none"] == []
    assert page["external_data"]["used"] is True
    assert "not those of a trained detector" in page["external_data"]["details"]


def of(name: str) -> Callable[[Any], Any]:
    return lambda page: page["tsp_jax"]["videos"][name]


@pytest.mark.parametrize(
    ("place", "key", "value", "message"),
    [
        (lambda page: page, "tsp_jax", [], r"Expected `object`, got `array` - at `\$\.tsp_jax`"),
        (lambda page: page, "results", {}, "0 videos and tsp_jax 2"),
        (lambda page: page["tsp_jax"], "format_version", 2, "format version 2"),
        (lambda page: page["tsp_jax"], "heads", ["temporal_region", "action"], "heads"),
        (lambda page: page["tsp_jax"], "heads", [], "heads"),
        (lambda page: page["tsp_jax"], "labels", [], "labels"),
        (lambda page: page["tsp_jax"], "labels", ["run", "run"], "labels: expected distinct"),
        (
            lambda page: page["tsp_jax"],
            "labels",
            ["run", 3],
            r"Expected `str`, got `int` - at `\$\.tsp_jax\.labels\[\.?1?\.*\]`",
        ),
        (lambda page: page["tsp_jax"], "checkpoint", 3, r"Expected `str`, got `int` - at `\$\.tsp_jax\.checkpoint`"),
        (lambda page: page["tsp_jax"], "thresholds", [1.5], r"<= 1\.0 - at `\$\.tsp_jax\.thresholds"),
        (lambda page: page["tsp_jax"], "stride_sec", 0, r"> 0\.0 - at `\$\.tsp_jax\.stride_sec`"),
        (lambda page: page["tsp_jax"], "clip_len_sec", True, r"Expected `float`, got `bool` - at `\$\.tsp_jax\.clip_len_sec`"),
        (of("one"), "duration_sec", 10**400, r"one: Number out of range - at `\$\.duration_sec`"),
        (of("one"), "start_sec", [0, 2, 1], "ascend"),
        (of("one"), "start_sec", [0, 2, 9], "at most 5"),
        (of("one"), "start_sec", [-1, 1, 2], ">= 0"),
        (of("one"), "start_sec", [0, 1], "foreground: expected one for each of 2 clips"),
        (of("one"), "start_sec", ["0", 1, 2], r"one: Expected `float`, got `str` - at `\$\.start_sec"),
        (of("one"), "foreground", [0.5, 0.5], "one for each of 3 clips"),
        (of("one"), "foreground", [0.5, 0.5, 1.5], r"one: Expected `float` <= 1\.0 - at `\$\.foreground"),
        (of("one"), "foreground", None, "expected one for each of 3 clips, found None"),
        (of("one"), "top_classes", [[0, 3], [1, 2], [0, 1]], "from 0 to 2"),
        (of("one"), "top_classes", [[0, 0.5], [1, 2], [0, 1]], r"one: Expected `int`, got `float` - at `\$\.top_classes"),
        (of("one"), "top_classes", [[0, 1], [1], [0, 1]], "one length"),
        (of("one"), "top_classes", [[-1, 1], [1, 2], [0, 1]], "from 0 to 2"),
        (of("one"), "top_classes", [[0] * 65] * 3, "of length <= 64"),
        (of("one"), "top_classes", [[], [], []], r"one: Expected `array` of length >= 1 - at `\$\.top_classes"),
        (of("one"), "top_classes", 3, r"one: Expected `array \| null`, got `int` - at `\$\.top_classes`"),
        (of("one"), "top_probabilities", [[0.1, 0.2]] * 3, "falling"),
        (of("one"), "top_probabilities", [[0.1]] * 3, "one for each"),
        (lambda page: page["results"], "one", 3, "results: one: Expected `array`, got `int`"),
        (lambda page: page["results"], "one", [3], "results: one: Expected `object`, got `int`"),
        (lambda page: page["results"]["one"][0], "label", "jump", "none of the model's"),
        (lambda page: page["results"]["one"][0], "score", -0.1, r"results: one: Expected `float` >= 0\.0"),
        (lambda page: page["results"]["one"][0], "segment", [2, 1], "start, end"),
        (lambda page: page["results"]["one"][0], "segment", [1], "results: one: Expected `array` of length 2, got 1"),
        (lambda page: page["results"]["one"][0], "segment", [1, 9], "within 0 to 5"),
    ],
)
def test_anything_else_is_refused(place: Callable, key: str, value: object, message: str, tmp_path: Path):
    path = tmp_path / "p.json"
    predictions.write(path, WHOLE)
    page = json.loads(path.read_text(encoding="utf-8"))
    place(page)[key] = value
    path.write_text(json.dumps(page))
    with pytest.raises(predictions.PredictionsError, match=message):
        predictions.read(path)
    del place(page)[key]
    path.write_text(json.dumps(page))
    with pytest.raises(predictions.PredictionsError, match=r"missing required field|videos and tsp_jax"):
        predictions.read(path)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"[]", b'{"tsp_jax": NaN}', b"{}"])
def test_no_json_of_predictions_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(predictions.PredictionsError, match="make it again"):
        predictions.read(tmp_path / "p.json")


def test_absent_and_oversized_files_are_refused(tmp_path: Path):
    with pytest.raises(predictions.PredictionsError, match="no such file"):
        predictions.read(tmp_path / "p.json")
    with open(tmp_path / "p.json", "wb") as stream:
        stream.truncate(predictions.MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(predictions.PredictionsError, match="expected at most"):
        predictions.read(tmp_path / "p.json")
