"""Tests of the command and the function `evaluate`: formats of ground truths, what is dropped and said, what is refused."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import tsp_jax
from tsp_jax import groundtruth
from tsp_jax.evaluate import main
from tsp_jax.localization import annotations, evaluation, segments
from tsp_jax.system import errors

ROOT = Path(__file__).parents[1]
DATABASE = {
    "v_a": {
        "subset": "validation",
        "duration": 60.0,
        "annotations": [
            {"segment": [10.0, 20.0], "label": "run", "label_id": 1},
            {"segment": [30.0, 40.0], "label": "jump", "label_id": 0},
        ],
    },
    "b": {"subset": "validation", "duration": 30.0, "annotations": [{"segment": [5.0, 9.0], "label": "run", "label_id": 1}]},
    "c": {"subset": "training", "annotations": [{"segment": ["wrong"], "label": "rest", "label_id": 2}]},
    "d": {"subset": "testing"},
}
PERFECT = {
    "v_a": [
        {"segment": [10.0, 20.0], "label": "run", "score": 0.9},
        {"segment": [30.0, 40.0], "label": "jump", "score": 0.8},
    ],
    "b": [{"segment": [5.0, 9.0], "label": "run", "score": 0.7}],
}


def save(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return save(tmp_path / "groundtruth.json", {"version": "1.3", "database": DATABASE})


def predicted(tmp_path: Path, results: Any = PERFECT) -> Path:
    return save(tmp_path / "predictions.json", {"results": results})


def with_more(name: str, **changes: Any) -> dict[str, Any]:
    extra = {"segment": [0.0, 1.0], "label": "run", "score": 0.99, **changes}
    return {**PERFECT, name: [*PERFECT.get(name, []), extra]}


def test_the_command_prints_a_table_and_writes_how_the_numbers_were_made(tmp_path: Path, truth: Path):
    predictions, output = predicted(tmp_path, with_more("elsewhere")), tmp_path / "out" / "scores.json"
    flags = [
        "--predictions",
        predictions,
        "--groundtruth",
        truth,
        "--protocol",
        "activitynet",
        "--output",
        output,
        "--per_class",
    ]
    command = [sys.executable, "-m", "tsp_jax.evaluate", *map(str, flags)]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("protocol: activitynet, ActivityNet's evaluation code")
    assert "2 videos of subset validation, 3 instances, 2 classes, 4 predictions" in lines
    assert any("count as false positives" in line and "1 of 1 video (elsewhere)" in line for line in lines)
    assert "average  83.33" in lines and "0.50     83.33" in lines
    assert any(line.split()[:2] == ["jump", "1"] for line in lines)
    found = json.loads(output.read_text())
    assert found["average_mAP"] == pytest.approx((1 + 2 / 3) / 2) and list(found["mAP"])[:2] == ["0.50", "0.55"]
    assert (found["protocol"], found["videos"], found["instances"], found["classes"]) == ("activitynet", 2, 3, 2)
    assert found["per_class"]["run"]["AP"]["0.75"] == pytest.approx(2 / 3)
    assert found["files"]["predictions"]["sha256"] == hashlib.sha256(predictions.read_bytes()).hexdigest()
    assert found["files"]["groundtruth"]["sha256"] == hashlib.sha256(truth.read_bytes()).hexdigest()
    assert found["tsp_jax_version"] == tsp_jax.__version__ and found["class_scores"] == ""


def test_the_function_and_the_module_of_one_name_can_be_used_in_any_order(tmp_path: Path, truth: Path):
    code = (
        "import tsp_jax, sys; call = tsp_jax.evaluate(sys.argv[1], sys.argv[2], protocol='activitynet');"
        "from tsp_jax.evaluate import evaluate, Scores; again = tsp_jax.evaluate(sys.argv[1], sys.argv[2]);"
        "assert isinstance(call, Scores) and call.average_mAP == again.average_mAP == 1.0; assert 'jax' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(predicted(tmp_path)), str(truth)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def test_scores_are_arrays_with_shapes(tmp_path: Path, truth: Path):
    found = tsp_jax.evaluate(predicted(tmp_path), truth, protocol="opentad")
    assert found.mAP.shape == found.tiou.shape == (10,) and found.labels == ("jump", "run")
    assert found.detection.ap.shape == (2, 10) and found.detection.recall.shape == (2, 2, 10)
    assert found.comparison.duration_sec.tolist() == [60.0, 30.0]
    with pytest.raises(AttributeError, match="task='proposals'"):
        _ = found.average_recall


# ----------------------------------------------------------------------------------------------------------- ground truths


def test_a_ground_truth_is_read_from_every_format(tmp_path: Path, truth: Path):
    whole = annotations.read(truth, "validation")
    assert whole.videos == ("v_a", "b") and whole.labels == ("jump", "run") and whole.class_names[2] == "rest"
    folder = tmp_path / "thumos"
    folder.mkdir()
    (folder / "run_test.txt").write_text("v_a  10.0 20.0\nb 5.0 9.0\n")
    (folder / "jump_test.txt").write_text("v_a 30 40\n\n")
    (folder / "jump_val.txt").write_text("v_z 30 40\n")
    rows = [
        groundtruth.AnnotatedSegment(name, start, end, label, 60.0, f"{name}.mp4", 30.0, 1800, region)
        for name, start, end, label, region in [
            ("v_a", 10.0, 20.0, "run", groundtruth.ACTION),
            ("v_a", 30.0, 40.0, "jump", groundtruth.ACTION),
            ("v_a", 20.0, 30.0, "", groundtruth.NO_ACTION),
            ("b", 5.0, 9.0, "run", groundtruth.ACTION),
        ]
    ]
    groundtruth.write_groundtruth(tmp_path / "ours.csv", rows)
    epic = "narration_id,video_id,start_timestamp,stop_timestamp,verb,verb_class,noun,noun_class,all_nouns\n"
    epic += "1,v_a,00:00:10.00,00:00:20.00,sprint,run,x,7,\"['x', 'y']\"\n2,v_a,00:00:30.00,00:00:40.00,hop,jump,y,8,['y']\n"
    (tmp_path / "epic.csv").write_text(epic + "3,b,00:00:05.00,00:00:09.00,run,run,x,7,['x']\n")
    without = {name: {**entry, "subset": "Validation"} for name, entry in DATABASE.items() if name in ("v_a", "b")}
    no_subset = {name: {"annotations": entry["annotations"]} for name, entry in without.items()}
    for path, flags in [
        (folder, {"subset": "test"}),
        (tmp_path / "ours.csv", {"subset": "validation"}),
        (tmp_path / "epic.csv", {"label_column": "verb"}),
        (save(tmp_path / "nowrap.json", without), {"subset": "val"}),
        (save(tmp_path / "nosubset.json", no_subset), {"subset": "test"}),
    ]:
        found = annotations.read(path, **flags)
        assert set(found.videos) == {"v_a", "b"} and found.labels == ("jump", "run")
        made = {
            (found.videos[video], found.labels[label], start, end)
            for video, label, start, end in zip(
                found.rows.video, found.rows.label, found.rows.start_sec, found.rows.end_sec, strict=True
            )
        }
        assert made == {("v_a", "run", 10, 20), ("v_a", "jump", 30, 40), ("b", "run", 5, 9)}
        assert tsp_jax.evaluate(predicted(tmp_path), found).average_mAP == 1.0


def test_the_ambiguous_parts_of_thumos14_are_not_counted(tmp_path: Path):
    (tmp_path / "run_test.txt").write_text("a 10 20\n")
    (tmp_path / "Ambiguous_test.txt").write_text("a 50 60\nb 1 2\n")
    rows = [{"segment": [55, 70], "label": "run", "score": 0.9}, {"segment": [10, 20], "label": "run", "score": 0.5}]
    predictions = predicted(tmp_path, {"a": rows})
    for protocol, expected in (("thumos14", 1.0), ("thumos14-challenge", 1.0), ("thumos14-opentad", 0.5)):
        found = tsp_jax.evaluate(predictions, tmp_path, protocol=protocol)
        assert found.labels == ("run",) and found.average_mAP == expected
        assert any("mbiguous" in note for note in found.notes)


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ({"database": DATABASE}, {"subset": "tset"}, "no video of subset 'tset'; found 'testing', 'training', 'validation'"),
        ({"database": DATABASE}, {"subset": "testing"}, "has an annotated instance, so there is nothing to score against"),
        ({"database": DATABASE}, {"subset": "train"}, "c annotation 1: expected a segment [start, end] in seconds and a label"),
        ({"results": PERFECT}, {}, "found an object of 'results'"),
        ([], {}, "found list"),
        ({"database": {"a": {"annotations": None, "subset": "validation"}}}, {}, "has an annotated instance"),
        ({"database": {"a": {"annotations": {}, "subset": "validation"}}}, {}, "a: annotations: expected a list, found {}"),
        ({"database": {**DATABASE, "z": {"annotations": []}}}, {}, "z: no subset, although other videos have one"),
        ({"database": {"a": {"subset": "Val"}, "b": {"subset": "VAL"}}}, {"subset": "val"}, "may be 'VAL' or 'Val'"),
        ({"database": {"a": {"annotations": 3, "subset": "validation"}}}, {}, "a: annotations: expected a list"),
        ({"database": {"a": {"annotations": [{"segment": [0, float("nan")], "label": "x"}]}}}, {}, "a annotation 1: expected"),
    ],
)  # fmt: skip
def test_a_ground_truth_that_cannot_be_used_is_refused_in_words(content: Any, flags: Any, message: str, tmp_path: Path):
    with pytest.raises(errors.UserError) as error:
        tsp_jax.evaluate(predicted(tmp_path), save(tmp_path / "g.json", content), **flags)
    assert message in str(error.value) and "g.json" in str(error.value)


def test_an_epic_kitchens_csv_needs_a_choice_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    header = "video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"
    (tmp_path / "epic.csv").write_text(header + "P01_01,0:01.08,0:03.38,2,5\nP01_01,00:00:10.0,00:00:12.0,0,5\n")
    flags = ["--groundtruth", str(tmp_path / "epic.csv"), "--protocol", "epic-kitchens"]
    rows = [{"segment": [1.08, 3.38], "label": 2, "score": 0.5}, {"segment": [10, 12], "label": 0, "score": 0.5}]
    flags += ["--predictions", str(predicted(tmp_path, {"P01_01": rows}))]
    assert main(flags) == 2 and "choose one by --label_column" in capsys.readouterr().err
    assert main([*flags, "--label_column", "verb"]) == 0 and "average  100.00" in capsys.readouterr().out
    assert main([*flags, "--label_column", "noun", "--on_unknown", "stop"]) == 2
    assert "labels that no instance has: 2 ('2', '0')" in capsys.readouterr().err
    both = [{"segment": row["segment"], "verb": row["label"], "noun": 5, "action": "2,5", "score": 0.5} for row in rows]
    submission = str(save(tmp_path / "submission.json", {"version": "0.2", "results": {"P01_01": both}}))
    for column in ("verb", "noun"):
        assert main([*flags, "--predictions", submission, "--label_column", column]) == 0
        assert "average  100.00" in capsys.readouterr().out
    names = save(tmp_path / "labels.json", ["take", "put", "wash"])
    assert main([*flags, "--label_column", "verb", "--labels", str(names), "--per_class"]) == 0
    assert "wash" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------- what is dropped and said


def test_unknown_labels_and_videos_are_treated_as_asked(tmp_path: Path, truth: Path):
    labels, videos = predicted(tmp_path, with_more("b", label="fly")), save(tmp_path / "v.json", {"results": with_more("z")})
    with pytest.raises(segments.EvaluationError, match=r"labels that no instance has: 1 \('fly'\).*--on_unknown skip"):
        tsp_jax.evaluate(labels, truth)
    for flags in ({"on_unknown": "skip"}, {"protocol": "opentad"}, {"protocol": "actionformer"}):
        found = tsp_jax.evaluate(labels, truth, **flags)
        assert found.average_mAP == 1.0 and found.comparison.dropped["predictions_of_unknown_labels"] == 1
        assert any("'fly'" in note for note in found.notes)
    assert tsp_jax.evaluate(videos, truth).average_mAP < 1
    assert tsp_jax.evaluate(videos, truth, on_unknown="skip").average_mAP == 1.0
    with pytest.raises(segments.EvaluationError, match=r"not in the ground truth: 1 of 1 video \(z\)"):
        tsp_jax.evaluate(videos, truth, on_unknown="stop")
    both = predicted(tmp_path, {**with_more("z"), "b": [{**PERFECT["b"][0], "label": "fly"}]})
    with pytest.raises(
        segments.EvaluationError, match=r"predictions\.json against .*groundtruth\.json: (?s:.*)'fly'(?s:.*)\(z\)"
    ):
        tsp_jax.evaluate(both, truth, on_unknown="stop")
    # A video of another subset is unknown, one of this subset without annotations is not.
    database = {**DATABASE, "e": {"subset": "validation", "annotations": []}}
    known = save(tmp_path / "more.json", {"database": database})
    found = tsp_jax.evaluate(predicted(tmp_path, with_more("e")), known, on_unknown="stop")
    assert found.average_mAP < 1 and found.comparison.num_videos == 2
    with pytest.raises(segments.EvaluationError, match=r"\(c\)"):
        tsp_jax.evaluate(predicted(tmp_path, with_more("c")), known, on_unknown="stop")


def test_labels_that_differ_in_case_or_blanks_alone_are_shown_together(tmp_path: Path, truth: Path):
    labels = predicted(tmp_path, with_more("b", label="Run "))
    with pytest.raises(segments.EvaluationError, match=r"1 \('Run ', where an instance has 'run'\); correct the labels"):
        tsp_jax.evaluate(labels, truth)
    twins = json.loads(json.dumps(DATABASE).replace('"label": "run"', '"label": "RUN"', 1))
    found = tsp_jax.evaluate(predicted(tmp_path), save(tmp_path / "twins.json", {"database": twins}))
    assert any("differ in case, blanks or punctuation alone: 'RUN' and 'run'" in note for note in found.notes)


def test_a_name_that_may_be_two_videos_is_neither(tmp_path: Path):
    database = {name: {**DATABASE["b"], "subset": "validation"} for name in ("a", "v_a")}
    both = save(tmp_path / "both.json", {"database": database})
    found = tsp_jax.evaluate(predicted(tmp_path, {"a.mp4": PERFECT["b"]}), both)
    assert found.average_mAP == 0 and any("1 of 1 video (a.mp4)" in note for note in found.notes)


def test_a_subset_that_the_ground_truth_cannot_choose_is_said(tmp_path: Path):
    whole = save(tmp_path / "g.json", {"database": {"b": {"annotations": [{"segment": [5, 9], "label": "run"}]}}})
    results = predicted(tmp_path, {"b": [{"segment": [5, 9], "label": "run", "score": 1}]})
    found = tsp_jax.evaluate(results, whole, subset="validation")
    assert found.average_mAP == 1.0 and "has no subsets, so all its videos are scored" in found.notes[0]
    assert not any("no subsets" in note for note in tsp_jax.evaluate(results, whole).notes)


def test_the_json_of_each_task_has_the_documented_keys(tmp_path: Path, truth: Path):
    made = {"protocol", "source", "task", "subset", "videos", "instances", "classes", "predictions", "dropped", "notes"}
    made |= {"class_scores", "files", "tsp_jax_version"}
    content = {"results": PERFECT, "external_data": {"used": True, "details": "UntrimmedNet's"}}
    path = save(tmp_path / "predictions.json", content)
    found = tsp_jax.evaluate(path, truth, protocol="opentad", diagnose=True).to_json()
    assert set(found) == made | {"tiou", "average_mAP", "mAP", "recall", "per_class", "diagnosis"}
    assert found["class_scores"] == "UntrimmedNet's" and found["recall"]["0.50"] == {"1x": 1.0, "5x": 1.0}
    assert set(found["files"]) == {"predictions", "groundtruth"} and next(iter(found["mAP"])) == "0.50"
    found = tsp_jax.evaluate(path, truth, task="proposals").to_json()
    assert set(found) == made | {"tiou", "AUC", "AR", "curve"} and list(found["AR"]) == ["1", "5", "10", "50", "100"]
    found = tsp_jax.evaluate(path, truth, task="proposals", max_proposals="all").to_json()
    assert found["AR"] == {"1.5": 1.0}  # 3 proposals of 2 videos
    found = tsp_jax.evaluate(path, truth, "opentad", task="proposals", max_proposals=1).to_json()
    assert found["AUC"] is None and list(found["AR"]) == ["1"]  # one point has no area
    found = tsp_jax.evaluate(path, truth, task="classification").to_json()
    assert set(found) == made | {"mAP", "hit", "average_hit", "per_class"}


def test_the_scores_do_not_take_the_place_of_a_file_that_is_read(
    tmp_path: Path, truth: Path, capsys: pytest.CaptureFixture[str]
):
    predictions = predicted(tmp_path)
    before = predictions.read_bytes()
    flags = ["--predictions", str(predictions), "--groundtruth", str(truth), "--protocol", "activitynet"]
    assert main([*flags, "--output", str(predictions)]) == 2
    assert "is a file that is read here" in capsys.readouterr().err and predictions.read_bytes() == before
    assert main([*flags[:1], "/dev/null", *flags[2:]]) == 2
    assert "a folder or device" in capsys.readouterr().err


def test_names_with_and_without_v_are_matched_and_it_is_said(tmp_path: Path, truth: Path):
    results = {"a.mp4": PERFECT["v_a"], "v_b": PERFECT["b"]}
    found = tsp_jax.evaluate(predicted(tmp_path, results), truth)
    assert found.average_mAP == 1.0
    assert any("with or without `v_`" in note and "2 videos (a.mp4 is v_a, …)" in note for note in found.notes)
    with pytest.raises(segments.EvaluationError, match="'b' and 'v_b', which both are 'b' of the ground truth"):
        tsp_jax.evaluate(predicted(tmp_path, {**PERFECT, "v_b": []}), truth)


def test_blocked_videos_leave_both_files(tmp_path: Path, truth: Path):
    results = {"v_a": PERFECT["v_a"], "b": [{**PERFECT["b"][0], "segment": [0, 1]}]}
    blocked = save(tmp_path / "blocked.json", ["v_b", "x"])
    found = tsp_jax.evaluate(predicted(tmp_path, results), truth, blocked_videos=blocked)
    assert found.average_mAP == 1.0 and len(found.comparison.truth) == 2 and len(found.comparison.predicted) == 2
    assert any("1 of the list's 2 are in the ground truth, with 1 prediction" in note for note in found.notes)
    with pytest.raises(segments.EvaluationError, match="no annotated instance is left"):
        tsp_jax.evaluate(predicted(tmp_path), truth, blocked_videos=["a", "b"])
    with pytest.raises(segments.EvaluationError, match="expected a JSON list of names"):
        tsp_jax.evaluate(predicted(tmp_path), truth, blocked_videos=save(blocked, {"a": 1}))


@hypothesis.given(st.lists(st.integers(0, 2), min_size=2, max_size=2), st.integers(0, 3))
@hypothesis.settings(max_examples=20, deadline=None)
def test_predictions_may_be_split_into_files(tmp_path_factory: pytest.TempPathFactory, cuts: list[int], seed: int):
    """The score is that of one file if each video is in one file, even if labels appear in another order."""
    folder = tmp_path_factory.mktemp("split")
    truth = save(folder / "groundtruth.json", {"database": DATABASE})
    draw = np.random.default_rng(seed)
    results = {
        name: [
            {"segment": sorted(draw.integers(0, 40, 2).tolist()), "label": ["run", "jump"][draw.integers(2)], "score": score}
            for score in draw.integers(0, 3, 8).tolist()
        ]
        for name in ("v_a", "b", "z")
    }
    items, (first, last) = list(results.items()), sorted(cuts)
    parts = [dict(items[:first]), dict(items[first:last]), dict(items[last:])]
    paths = [save(folder / f"{number}.json", {"results": part}) for number, part in enumerate(parts)]
    found = tsp_jax.evaluate(paths, truth, protocol="opentad")
    whole = tsp_jax.evaluate(predicted(folder, results), truth, protocol="opentad")
    np.testing.assert_array_equal(found.detection.ap, whole.detection.ap)
    assert [role for role in found.sources if role.startswith("pred")] == ["predictions_1", "predictions_2", "predictions_3"]
    with pytest.raises(
        segments.EvaluationError,
        match=r"predictions\.json and .*predictions\.json: both have predictions of .*\(3 are in several\)",
    ):
        tsp_jax.evaluate([predicted(folder, results)] * 2, truth)


def test_the_numbers_of_actionformer_are_classes_of_the_ground_truth(tmp_path: Path, truth: Path):
    results = {
        "video-id": ["v_a", "v_a", "b"],
        "t-start": np.array([10.0, 30.0, 5.0], np.float32),
        "t-end": np.array([20.0, 40.0, 9.0], np.float32),
        "label": np.array([1, 0, 1]),
        "score": np.array([0.9, 0.8, 0.7], np.float32),
    }
    path = tmp_path / "eval_results.pkl"
    path.write_bytes(pickle.dumps(results))
    assert tsp_jax.evaluate(path, truth, protocol="actionformer").average_mAP == 1.0
    unnumbered = json.loads(truth.read_text().replace('"label_id"', '"other"'))
    path_without = save(tmp_path / "unnumbered.json", unnumbered)
    with pytest.raises(segments.EvaluationError, match="give their names in the order of their numbers by --labels"):
        tsp_jax.evaluate(path, path_without)
    assert tsp_jax.evaluate(path, path_without, labels=["jump", "run"]).average_mAP == 1.0
    with pytest.raises(segments.EvaluationError, match="'class number 1'"):
        tsp_jax.evaluate(path, path_without, labels=["run"])


def test_times_that_are_out_of_order_are_scored_as_officially_and_said(tmp_path: Path, truth: Path):
    found = tsp_jax.evaluate(predicted(tmp_path, with_more("b", segment=[9.0, 5.0])), truth)
    assert any("end before they start are scored as by the protocol's own code: 1 (b)" in note for note in found.notes)
    found = tsp_jax.evaluate(predicted(tmp_path, with_more("b", segment=[-1.0, 5.0])), truth)
    assert any("start before second 0" in note for note in found.notes)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"protocol": "anet"}, "the protocol is one of activitynet, actionformer"),
        ({"protocol": "custom"}, "the protocol custom has no tIoU thresholds of its own"),
        ({"tiou": [0.0, 0.5]}, "tIoU thresholds are distinct numbers above 0"),
        ({"tiou": [0.5, 0.5]}, "tIoU thresholds are distinct numbers above 0"),
    ],
)
@pytest.mark.wrong_arguments
def test_wrong_arguments_are_refused(flags: dict[str, Any], message: str, tmp_path: Path, truth: Path):
    with pytest.raises(ValueError, match=message):
        tsp_jax.evaluate(predicted(tmp_path), truth, **flags)


def test_other_thresholds_keep_their_digits_in_names():
    assert evaluation.tiou_names([0.5, 0.95]) == ["0.50", "0.95"]
    assert evaluation.tiou_names([0.1, 0.125]) == ["0.100", "0.125"]


def test_the_command_prints_proposals_and_labels_of_videos(tmp_path: Path, truth: Path, capsys: pytest.CaptureFixture[str]):
    flags = ["--predictions", str(predicted(tmp_path)), "--groundtruth", str(truth), "--protocol", "activitynet", "--task"]
    assert main([*flags, "proposals", "--proposal_rule", "top_k", "--max_proposals", "2"]) == 0
    printed = capsys.readouterr().out
    # The area begins at one proposal, as officially, so that the largest AUC of two is 50 %.
    assert "2          100.00" in printed and "AUC 41.67 % up to 2 proposals" in printed
    assert main([*flags, "classification", "--per_class"]) == 0
    assert "mAP 100.00 %" in capsys.readouterr().out
    assert main([*flags, "detection", "--subset", "nowhere"]) == 2
    assert "error: " in capsys.readouterr().err
