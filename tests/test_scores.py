"""Tests of the scores: against plain loops, by properties that must hold, and against the originals' numbers."""

import dataclasses
import gzip
import json
import math
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import plain_scores
from tsp_jax.localization import annotations, detections, evaluation, matching, protocols, scores, segments

NUM_LABELS = 3
TIOU = [0.3, 0.5, 0.75]
PROTOCOL_OF = {"official": "activitynet", "actionformer": "actionformer", "opentad": "opentad"}


@st.composite
def some_segments(draw: st.DrawFn, least: int, most: int, *, distinct: bool = False) -> segments.Segments:
    """Draws segments on a grid of whole seconds, so that ties of tIoU, thresholds and scores are common."""
    count = draw(st.integers(least, most))

    def column(low: int, high: int) -> np.ndarray:
        return np.array(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)), np.int64)

    start, length = column(0, 6).astype(np.float64), column(0 if not distinct else 1, 6)
    score = np.array(draw(st.permutations(range(count))), np.float64) if distinct else column(0, 3) / 4
    return segments.Segments(column(0, 2), column(0, NUM_LABELS - 1), start, start + length, score)


@hypothesis.given(some_segments(1, 8), some_segments(0, 24), st.sampled_from([0.0, 1e-8]))
@hypothesis.settings(max_examples=150, deadline=None)
def test_ap_equals_that_of_a_plain_loop(truth: segments.Segments, predicted: segments.Segments, min_union_sec: float):
    found = scores.detection(truth, predicted, NUM_LABELS, TIOU, min_union_sec=min_union_sec, recall_at=(1, 5))
    for label in range(NUM_LABELS):
        if label not in truth.label:
            assert np.isnan(found.ap[label]).all() and np.isnan(found.recall[:, label]).all()
            continue
        for column, threshold in enumerate(TIOU):
            expected = plain_scores.average_precision(truth, predicted, label, threshold, min_union_sec)
            assert found.ap[label, column] == pytest.approx(expected, abs=1e-12)
            for row, multiple in enumerate((1, 5)):
                expected = plain_scores.recall_at(truth, predicted, label, threshold, multiple)
                if not min_union_sec:
                    assert found.recall[row, label, column] == pytest.approx(expected, abs=1e-12)


@hypothesis.given(some_segments(1, 8), some_segments(1, 24), st.sampled_from([1, 4, 100]))
@hypothesis.settings(max_examples=60, deadline=None)
def test_average_recall_equals_that_of_a_plain_loop(truth: segments.Segments, proposals: segments.Segments, largest: int):
    try:
        found = scores.average_recall(truth, proposals, TIOU, max_proposals=largest)
    except segments.EvaluationError:
        known = np.isin(proposals.video, truth.video)
        assert not known.any() or largest * len(np.unique(truth.video)) < len(proposals)
        return
    expected = plain_scores.average_recall(truth, proposals, TIOU, largest)
    np.testing.assert_allclose(found.average_recall, expected, rtol=0, atol=1e-12)


@hypothesis.given(some_segments(1, 8), some_segments(0, 24))
@hypothesis.settings(max_examples=60, deadline=None)
def test_hits_equal_those_of_a_plain_loop(truth: segments.Segments, predicted: segments.Segments):
    found = scores.classification(truth, predicted, NUM_LABELS, top_k=(1, 3))
    for row, k in enumerate((1, 3)):
        assert (found.hit[row], found.mean_hit[row]) == pytest.approx(plain_scores.hits(truth, predicted, k))


@hypothesis.given(some_segments(1, 8, distinct=True), some_segments(1, 24, distinct=True), st.randoms(use_true_random=False))
@hypothesis.settings(max_examples=60, deadline=None)
def test_map_depends_on_the_order_of_scores_alone(truth: segments.Segments, predicted: segments.Segments, draw: Any):
    expected = scores.detection(truth, predicted, NUM_LABELS, TIOU).map_by_tiou
    order = list(range(len(predicted)))
    draw.shuffle(order)
    shuffled = predicted.take(np.array(order))
    mapped = dataclasses.replace(predicted, score=np.exp(3 * predicted.score) - 7)
    for other in (shuffled, mapped):
        np.testing.assert_array_equal(scores.detection(truth, other, NUM_LABELS, TIOU).map_by_tiou, expected)


@hypothesis.given(some_segments(1, 8), some_segments(1, 24), st.data())
@hypothesis.settings(max_examples=60, deadline=None)
def test_a_false_positive_never_raises_the_map(truth: segments.Segments, predicted: segments.Segments, data: st.DataObject):
    label, score = data.draw(st.integers(0, NUM_LABELS - 1)), data.draw(st.floats(-1, 2))
    false = segments.make([9], [label], [0], [1], [score])  # of a video without instances
    place = data.draw(st.integers(0, len(predicted)))
    columns = (field.name for field in dataclasses.fields(predicted))
    more = segments.Segments(*(np.insert(getattr(predicted, name), place, getattr(false, name)[0]) for name in columns))
    before, after = (scores.detection(truth, rows, NUM_LABELS, TIOU).map_by_tiou for rows in (predicted, more))
    assert np.all(after <= before + 1e-15)


@hypothesis.given(some_segments(1, 12))
@hypothesis.settings(max_examples=40, deadline=None)
def test_the_ground_truth_as_its_own_prediction_scores_1(truth: segments.Segments):
    found = scores.detection(truth, truth, NUM_LABELS, TIOU)
    np.testing.assert_array_equal(found.map_by_tiou, 1.0)


@hypothesis.given(some_segments(1, 8), some_segments(0, 24))
@hypothesis.settings(max_examples=40, deadline=None)
def test_an_instance_goes_to_one_prediction_of_its_video_and_class(truth: segments.Segments, predicted: segments.Segments):
    for matcher in ("by_score", "by_instance"):
        found = matching.match(truth, predicted, TIOU, matcher=matcher)
        for column in range(len(TIOU)):
            rows = np.flatnonzero(found[:, column] >= 0)
            taken = found[rows, column]
            assert len(set(taken.tolist())) == len(taken)
            np.testing.assert_array_equal(truth.video[taken], predicted.video[rows])
            np.testing.assert_array_equal(truth.label[taken], predicted.label[rows])


def test_the_challenge_gives_instances_the_best_prediction_and_counts_none_in_ambiguous_parts():
    truth = segments.make([0, 0], [0, 0], [10, 30], [20, 40])
    #       on the second instance, better; on the first; as good as the threshold; in an ambiguous part; a false positive
    predicted = segments.make([0] * 5, [0] * 5, [31, 10, 0, 50, 80], [40, 20, 5, 60, 90], [0.5, 0.9, 0.8, 0.95, 0.99])
    ambiguous = segments.make([0], [0], [55], [70])
    rules = {"matcher": "by_instance", "envelope": False}
    found = scores.detection(truth, predicted, 1, [0.5], ambiguous=ambiguous, **rules)
    # By rank: false positive, (not counted), match, false positive, match.
    assert found.ap[0, 0] == pytest.approx((1 / 2 + 2 / 4) / 2)
    half = segments.make([0], [0], [10], [15], [1.0])
    assert scores.detection(truth, half, 1, [0.5], **rules).ap[0, 0] == 0  # the tIoU must be above the threshold
    assert scores.detection(truth, half, 1, [0.5]).ap[0, 0] == 0.5


def test_top_k_uses_the_first_proposals_of_every_video():
    truth = segments.make([0, 1], [0, 0], [0, 0], [10, 10])
    rows = segments.make([0] * 3 + [1], [0] * 4, [50, 0, 50, 0], [60, 10, 60, 10], [0.9, 0.8, 0.7, 0.1])
    found = scores.average_recall(truth, rows, [0.5], max_proposals=3, points=3, rule="top_k")
    np.testing.assert_array_equal(found.proposals, [1, 2, 3])
    np.testing.assert_array_equal(found.average_recall, [0.5, 1, 1])


# ------------------------------------------------------------------------------------------------------ originals' numbers


@pytest.fixture(scope="module")
def goldens(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the original evaluators' inputs, unpacked, and their numbers."""
    source = shared / "reference" / "localization" / "evaluate"
    if not source.is_dir():
        pytest.skip(f"the original evaluators' numbers are not at hand ({source})")
    folder = tmp_path_factory.mktemp("goldens")
    annotated = shared / "annotations"
    for path in [*source.iterdir(), annotated / "anet13_val_gt.json.gz", annotated / "thumos_test_gt.json.gz"]:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        (folder / path.name.removesuffix(".gz")).write_bytes(content)
    return folder


def golden(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def check_detection(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compares scores as JSON with an original's."""
    counts = [found["instances"], found["predictions"], found["classes"]]
    assert counts == [expected["n_gt"], expected["n_pred"], expected["n_class"]]
    assert found["mAP"] == pytest.approx(expected["mAP"], abs=1e-9)
    assert found["average_mAP"] == pytest.approx(expected["average_mAP"], abs=1e-9)
    assert found.get("recall", {}) == {tiou: pytest.approx(row, abs=1e-9) for tiou, row in expected.get("recall", {}).items()}
    for tiou, row in expected["AP_per_class"].items():
        assert {label: scored["AP"][tiou] for label, scored in found["per_class"].items()} == pytest.approx(row, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "truth", "flags"),
    [
        ("official", "anet_gt.json", {}),
        ("official_full_val_gt", "anet13_val_gt.json", {}),
        ("official_blocked", "anet_gt.json", {"blocked_videos": "anet_blocked.json"}),
        ("actionformer", "anet_gt.json", {"protocol": "actionformer"}),
        ("opentad", "anet_gt.json", {"protocol": "opentad"}),
        ("opentad_blocked", "anet_gt.json", {"protocol": "opentad", "blocked_videos": "anet_blocked.json"}),
    ],
)
def test_activitynet_scores_are_the_originals(name: str, truth: str, flags: dict[str, Any], goldens: Path):
    if "blocked_videos" in flags:
        flags = {**flags, "blocked_videos": goldens / flags["blocked_videos"]}
    found = evaluation.evaluate(goldens / "anet.json", goldens / truth, **flags).to_json()
    check_detection(found, golden(goldens, "anet_result.json")[name])


@pytest.mark.parametrize("name", ["official", "gtad", "actionformer", "opentad"])
def test_thumos14_scores_are_the_originals(name: str, goldens: Path):
    protocol = {"actionformer": "actionformer", "opentad": "thumos14-opentad"}.get(name, "thumos14")
    flags: dict[str, Any] = {"tiou": protocols.PROTOCOLS["thumos14"].tiou, "subset": "test"} if name == "actionformer" else {}
    found = evaluation.evaluate(goldens / "thumos.json", goldens / "thumos_test_gt.json", protocol, **flags).to_json()
    check_detection(found, golden(goldens, "thumos_result.json")[name])


@pytest.mark.parametrize(
    ("name", "protocol", "largest"),
    [
        ("official_100", "activitynet", 100),
        ("official_none", "activitynet", "all"),
        ("official_20", "activitynet", 20),
        ("opentad_100", "opentad", 100),
        ("opentad_20", "opentad", 20),
    ],
)
def test_proposal_scores_are_the_originals(name: str, protocol: str, largest: Any, goldens: Path):
    expected = golden(goldens, "anet_prop_result.json")[name]
    made = evaluation.evaluate(
        goldens / "anet_prop.json", goldens / "anet_prop_gt.json", protocol, task="proposals", max_proposals=largest
    )
    found = made.to_json()
    counts = [found["instances"], found["videos"], found["predictions"]]
    assert counts == [expected["n_gt"], expected["n_videos"], expected["n_prop"]]
    assert found["AUC"] == pytest.approx(expected["AUC_percent"], abs=1e-9)
    assert found["curve"]["AR"] == pytest.approx(expected["avg_recall_curve"], abs=1e-9)
    ends = [found["curve"]["proposals"][place] for place in (0, -1)]
    assert ends == pytest.approx(expected["proposals_per_video_first_last"], abs=1e-9)
    for entry, recalls in expected["recall_per_tiou@"].items():  # the number of a point of the curve
        row = [curve[int(entry) - 1] for curve in found["curve"]["recall"].values()]
        assert row == pytest.approx(list(recalls.values()) if isinstance(recalls, dict) else recalls, abs=1e-9)
    if largest == 100:
        assert found["AR"] == pytest.approx(expected["AR@"], abs=1e-9)


def test_classification_scores_are_the_originals(goldens: Path):
    expected = golden(goldens, "anet_cls_result.json")
    found = evaluation.evaluate(goldens / "anet_cls.json", goldens / "anet_gt.json", task="classification").to_json()
    assert (found["predictions"], found["classes"]) == (expected["n_pred"], expected["n_class"])
    assert sum(row["videos"] for row in found["per_class"].values()) == expected["n_gt"]
    assert found["mAP"] == pytest.approx(expected["mAP"], abs=1e-9)
    assert {label: row["AP"] for label, row in found["per_class"].items()} == pytest.approx(expected["AP_per_class"], abs=1e-9)
    for k in ("1", "3", "5"):
        assert (found["hit"][k], found["average_hit"][k]) == pytest.approx((expected[f"hit@{k}"], expected[f"avg_hit@{k}"]))


@pytest.mark.parametrize("truth", ["anet13_val_gt.json", "thumos_test_gt.json"])
def test_a_whole_ground_truth_as_its_own_prediction_scores_1_officially(truth: str, goldens: Path, tmp_path: Path):
    predictions = as_predictions(golden(goldens, truth), tmp_path)
    for protocol in ["activitynet", "hacs", "fineaction"] if truth.startswith("anet") else ["thumos14", "thumos14-challenge"]:
        assert evaluation.evaluate(predictions, goldens / truth, protocol).average_mAP == 1.0


@pytest.mark.parametrize(("protocol", "short"), [("actionformer", 3), ("opentad", 3)])
def test_the_ground_truth_as_its_own_prediction_scores_less_where_instances_are_dropped(
    protocol: str, short: int, goldens: Path, tmp_path: Path
):
    """The 24 instances that both drop of ActivityNet's 7,654 (NOTES, 7) are false positives when they are predicted."""
    truth = goldens / "anet13_val_gt.json"
    found = evaluation.evaluate(as_predictions(golden(goldens, truth.name), tmp_path), truth, protocol)
    compared = found.comparison
    assert compared.dropped == {"short_instances": short, "duplicate_instances": 21} and len(compared.truth) == 7630
    assert found.average_mAP == pytest.approx(0.99882467849, abs=1e-9)
    rows = np.flatnonzero(found.detection.ap.min(axis=1) < 1)  # the classes of those that are dropped
    for threshold in (0.5, 0.95):
        expected = [
            plain_scores.average_precision(compared.truth, compared.predicted, label, threshold) for label in rows.tolist()
        ]
        column = int(np.argmin(np.abs(found.tiou - threshold)))
        np.testing.assert_allclose(found.detection.ap[rows, column], expected, rtol=0, atol=1e-12)


def as_predictions(content: dict[str, Any], folder: Path) -> Path:
    """Writes the instances of a ground truth as predictions of equal scores."""
    results = {
        name: [{"segment": item["segment"], "label": item["label"], "score": 1.0} for item in entry["annotations"]]
        for name, entry in content["database"].items()
    }
    (folder / "p.json").write_text(json.dumps({"results": results}))
    return folder / "p.json"


def arrays(case: dict[str, Any], labels: dict[str, int]) -> tuple[detections.Detections, annotations.GroundTruth]:
    """Makes arrays of an edge case, whose predictions are [label,] start, end, score."""
    predictions = case["pred"]
    if isinstance(predictions, str):  # of more_than_200_preds, in words
        many = [["A", 60 + 0.01 * i, 70, 1 - 0.001 * i] for i in range(250)]
        predictions = {"v": [*many, ["A", 10, 20, 0.1]]}
    truth = annotations.Instances()
    for name, items in case["gt"].items():
        for item in items:
            label, start, end = item if isinstance(item, list) else (item, 0, 1)
            truth.add(name, label, start, end)
    names = list(labels)
    rows = [
        (video, names.index(row[0]) if isinstance(row[0], str) and row[0] in labels else 0, *map(number, row[-3:]))
        if len(row) > 2
        else (video, names.index(row[0]), 0.0, 1.0, number(row[1]))
        for video, items in enumerate(predictions.values())
        for row in items
    ]
    columns = zip(*rows, strict=True) if rows else [[]] * 5
    return detections.Detections(tuple(predictions), tuple(names), segments.make(*columns)), truth.ground_truth("")


def number(value: Any) -> float:
    return math.nan if value is None else float(value)


def test_edge_cases_of_detection_have_the_originals_outcome(goldens: Path):
    content = golden(goldens, "edge_cases.json")
    for case in content["detection"]:
        if case["name"] == "string_score":  # the originals sort text; test_detections.py shows that the reader refuses it
            continue
        predicted, truth = arrays(case, content["label_ids"])
        for original, protocol in PROTOCOL_OF.items():
            expected, where = case[original], f"{case['name']} {original}"
            if "error" in expected or expected["AP"] == "NaN":
                with pytest.raises(segments.EvaluationError):
                    evaluation.evaluate(predicted, truth, protocol, tiou=case["tiou"])
                continue
            found = evaluation.evaluate(predicted, truth, protocol, tiou=case["tiou"])
            assert found.detection is not None
            assert (len(found.comparison.truth), len(found.labels)) == (expected["n_gt"], expected["n_class"]), where
            if where == "af_label_collision actionformer":  # an unknown label is dropped and never taken for another class
                assert found.average_mAP == 1.0
                continue
            values = expected["AP"].values() if isinstance(expected["AP"], dict) else [expected["AP"]]
            assert found.mAP.tolist() == pytest.approx(list(values), abs=1e-12), where
            for recalls in expected.get("recall", {}).values():
                assert found.detection.mean_recall[:, 0].tolist() == pytest.approx(recalls, abs=1e-12), where


# The proposals that overlap an instance, by video and rank. The file has only the number of proposals and the scores, of which
# each step follows from one of these ranks.
GOOD_PROPOSALS: dict[str, dict[str, dict[int, tuple[float, float]]]] = {
    "p_unequal": {"v": {120: (10, 20)}, "w": {0: (5, 25)}},
    "p_ratio_cut": {"v": {10: (10, 15.2)}},
    "p_single_many": {"w": {0: (5, 25)}},
    "p_unknown_counts": {"v": {5: (10, 20)}, "w": {0: (5, 25)}},
    "p_max20": {"v": {2: (10, 20), 15: (30, 40)}},
    "p_none": {"v": {2: (10, 20), 15: (30, 40)}},
}


def many_proposals(counts: dict[str, int], good: dict[str, dict[int, tuple[float, float]]]) -> dict[str, list[list[float]]]:
    """Makes so many proposals of each video by falling score; those that are not `good` overlap no instance."""
    return {
        video: [[*good.get(video, {}).get(rank, (60, 70)), 1 - 0.001 * rank] for rank in range(count)]
        for video, count in counts.items()
    }


def test_edge_cases_of_proposals_have_the_originals_outcome(goldens: Path):
    for case in golden(goldens, "edge_cases.json")["proposal"]:
        if "pred" not in case:  # in too many rows for the file
            case["pred"] = many_proposals(case["n_pred_per_video"], GOOD_PROPOSALS[case["name"]])
        predicted, truth = arrays(case, {"": 0})
        for original in ("official", "opentad"):
            expected, flags = case[original], {"task": "proposals", "max_proposals": case["max_avg"] or "all"}
            if "error" in expected:
                if expected["error"].startswith("TypeError"):  # OpenTAD has no such option
                    continue
                with pytest.raises(segments.EvaluationError):
                    evaluation.evaluate(predicted, truth, PROTOCOL_OF[original], **flags)
                continue
            found = evaluation.evaluate(predicted, truth, PROTOCOL_OF[original], **flags).proposals
            assert found is not None and found.auc == pytest.approx(expected["AUC_percent"], abs=1e-9), case["name"]
            curve = np.zeros(expected["n_points"])
            for place, value in expected["curve_steps(an,avg_recall)"]:
                curve[place - 1 :] = value
            np.testing.assert_allclose(found.average_recall, curve, rtol=0, atol=1e-12, err_msg=case["name"])


def test_edge_cases_of_classification_have_the_originals_outcome(goldens: Path):
    content = golden(goldens, "edge_cases.json")
    for case in content["classification"]:
        predicted, truth = arrays(case, content["label_ids"])
        expected = case["official"]
        if "error" in expected:
            with pytest.raises(segments.EvaluationError):
                evaluation.evaluate(predicted, truth, task="classification")
            continue
        found = evaluation.evaluate(predicted, truth, task="classification").to_json()
        assert {label: row["AP"] for label, row in found["per_class"].items()} == expected["AP_per_class"], case["name"]
        assert found["mAP"] == expected["mAP"]
        for k in ("1", "3", "5"):
            assert (found["hit"][k], found["average_hit"][k]) == (expected[f"hit@{k}"], expected[f"avg_hit@{k}"]), case["name"]
