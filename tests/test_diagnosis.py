"""Tests of the error analysis: against plain loops, on cases made by hand, and against DETAD's own numbers."""

import base64
import dataclasses
import gzip
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plain_diagnosis
import tsp_jax.evaluate
from tsp_jax.localization import (
    annotations,
    characteristics,
    comparison,
    diagnosis,
    diagnosis_tables,
    evaluation,
    false_positives,
    protocols,
    segments,
)
from tsp_jax.report import __main__ as report

TIOU = {"0.30": 0.3, "0.75": 0.75}
LABELS = ("dive", "jump", "run")
NAMES = {
    "True Positive": "true positive",
    "Double Detection Err": "double detection",
    "Wrong Label Err": "wrong label",
    "Localization Err": "localization",
    "Confusion Err": "confusion",
    "Background Err": "background",
}


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def compared(truth: segments.Segments, predicted: segments.Segments, videos: tuple[str, ...]) -> comparison.Comparison:
    """Returns a comparison of rows that are numbered alike already."""
    none, rows = truth.take(np.zeros(len(truth), bool)), np.arange(len(truth))
    labels = LABELS[: 1 + truth.label.max()]
    return comparison.Comparison(videos, len(videos), labels, truth, rows, predicted, none, np.full(len(videos), 100.0), {}, ())


def some_rows(draw: np.random.Generator, count: int, videos: int) -> segments.Segments:
    """Draws rows on a coarse grid, so that ties of scores and tIoU are common."""
    start = draw.integers(0, 8, count)
    label = np.concatenate([[0, 1, 2], draw.integers(0, 3, count - 3)])
    return segments.make(
        draw.integers(0, videos, count), label, start, start + draw.integers(1, 8, count), draw.integers(0, 9, count) / 8
    )


@pytest.mark.parametrize("seed", range(12))
def test_the_analysis_equals_that_of_plain_loops(seed: int):
    draw = np.random.default_rng(seed)
    truth, predicted = some_rows(draw, 9, 3), some_rows(draw, 60, 4)  # the fourth video has no instances
    length = (truth.end_sec - truth.start_sec) * 20  # from 20 to 140 s, in four ranges
    values = {"coverage": np.full(len(truth), np.nan), "length": length}
    found = diagnosis.diagnose(compared(truth, predicted, ("a", "b", "c", "d")), values, TIOU)
    plain = plain_diagnosis.Plain(truth, predicted, 3)
    thresholds = list(TIOU.values())

    wrong = found.false_positives
    assert wrong is not None
    for name, threshold in TIOU.items():
        assert found.scored.mAP_N[name] == pytest.approx(plain.mean_ap(lambda *_: True, threshold), abs=1e-12)
        kinds = plain.kinds(threshold)
        for number in range(10):
            expected = dict.fromkeys(false_positives.KINDS, 0)
            for label, of_class in zip(plain.classes, kinds, strict=True):
                count = plain.instances[label]
                for kind in list(of_class.values())[number * count : (number + 1) * count]:
                    expected[kind] += 1
            assert wrong.groups[f"{number + 1}G"].counts[name] == expected
    for kind in false_positives.KINDS[1:]:
        without = np.mean(
            [
                plain.mean_ap(lambda row, _, at=at, kind=kind: all(part.get(row) != kind for part in plain.kinds(at)), at, 10)
                for at in thresholds
            ]
        )
        assert wrong.cost[kind] == pytest.approx(without - (wrong.scored.average_mAP_N or 0), abs=1e-12)
    for label, low, high in (("XS", -1, 30), ("S", 30, 60), ("M", 60, 120), ("L", 120, 180)):
        inside = np.flatnonzero((length > low) & (length <= high)).tolist()
        item = found.characteristics["length"][label]
        assert item.instances == len(inside)
        if not inside:
            assert item.average_mAP_N is None and item.missed is None
            continue
        assert item.average_mAP_N == pytest.approx(plain.range_map(inside, thresholds), abs=1e-12)
        for name, threshold in TIOU.items():
            assert item.missed_at[name] == pytest.approx(plain.missed(inside, threshold), abs=1e-12)


def test_each_kind_of_false_positive_has_its_place():
    truth = segments.make([0, 0], [0, 1], [0, 50], [10, 60])
    rows = [
        (0, 0, 10, 0.9, "true positive"),
        (0, 1, 10, 0.8, "double detection"),
        (0, 51, 60, 0.7, "wrong label"),
        (0, 7, 12, 0.6, "localization"),
        (0, 58, 63, 0.5, "confusion"),
        (0, 30, 40, 0.4, "background"),
        (1, 0, 10, 0.3, "background"),  # a video without instances
    ]
    video, start, end, score, expected = zip(*rows, strict=True)
    predicted = segments.make(video, [0] * len(rows), start, end, score)
    values = {"coverage": np.array([0.1, 0.1]), "length": np.array([10.0, 10.0])}
    found = diagnosis.diagnose(compared(truth, predicted, ("a", "b")), values, {"0.50": 0.5})
    assert found.false_positives is not None
    groups = found.false_positives.groups
    assert [next(kind for kind, n in groups[f"{k}G"].counts["0.50"].items() if n) for k in range(1, 8)] == list(expected)
    assert groups["8G"].predictions == 0 and groups["8G"].share["background"] is None
    # The class "jump" has no predictions: it counts as 0 here, and ends DETAD's code.
    assert found.scored.average_mAP_N == pytest.approx(0.5)
    assert found.characteristics["coverage"]["XS"].missed == pytest.approx(0.5)
    faithful = diagnosis.diagnose(compared(truth, predicted, ("a", "b")), values, {"0.50": 0.5}, detad="faithful")
    assert faithful.characteristics["coverage"]["XS"].average_mAP_N is None
    assert faithful.characteristics["coverage"]["XS"].missed == pytest.approx(0.5)
    assert any("a class has no predictions" in note for note in faithful.notes)


def test_only_the_faithful_analysis_compares_with_instances_of_another_video():
    truth = segments.make([1], [0], [0], [10])
    predicted = segments.make([1, 2, 2], [0, 0, 0], [1, 0, 0], [9, 10, 10], [0.9, 0.8, 0.7])
    values = {"coverage": np.array([0.1]), "length": np.array([10.0])}

    def kinds(names: tuple[str, ...], detad: diagnosis.Detad) -> dict[str, int] | None:
        # The first prediction is an error at tIoU 0.95, so that its video is visited.
        found = diagnosis.diagnose(compared(truth, predicted, names), values, {"0.95": 0.95}, detad=detad).false_positives
        return found and {kind: count for kind, count in found.all.counts["0.95"].items() if count}

    assert kinds(("", "a", "b"), "mended") == {"localization": 1, "background": 2}
    assert kinds(("", "a", "b"), "faithful") == {"localization": 1, "background": 1, "double detection": 1}
    assert kinds(("", "b", "a"), "mended") == {"localization": 1, "background": 2}
    assert kinds(("", "b", "a"), "faithful") is None  # DETAD's code ends with an error


def test_a_class_whose_instances_are_all_left_out_is_in_no_average():
    truth = segments.make([0, 0], [0, 1], [0, 0], [10, 500])
    predicted = segments.make([0, 0], [0, 1], [0, 0], [10, 10], [0.9, 0.8])
    values = {"coverage": np.array([0.1, 5.0]), "length": np.array([10.0, 500.0])}
    found = diagnosis.diagnose(compared(truth, predicted, ("a",)), values, {"0.50": 0.5})
    assert (found.instances, found.instances_per_class, found.scored.average_mAP_N) == (1, 1, 1)
    assert any("longer than their video are left out: 1" in note for note in found.notes)
    faithful = diagnosis.diagnose(compared(truth, predicted, ("a",)), values, {"0.50": 0.5}, detad="faithful")
    assert (faithful.instances_per_class, faithful.scored.average_mAP_N) == (0.5, None)
    with pytest.raises(segments.EvaluationError, match="no instance is left"):
        diagnosis.diagnose(compared(truth.take(np.array([1])), predicted, ("a",)), {"coverage": np.array([5.0])}, TIOU)


def test_no_predictions_miss_everything():
    truth = segments.make([0], [0], [0], [10])
    values = {"coverage": np.array([0.1]), "length": np.array([10.0])}
    found = diagnosis.diagnose(compared(truth, truth.take(np.zeros(1, bool)), ("a",)), values, TIOU)
    assert found.scored.average_mAP_N == 0 and found.characteristics["length"]["XS"].missed == 1
    assert found.relative_change["length"] == [None, None]
    assert found.false_positives is not None and found.false_positives.all.predictions == 0
    json.dumps(dataclasses.asdict(found), allow_nan=False)
    assert diagnosis_tables.tables(found)


def test_characteristics_follow_from_instances_and_durations(tmp_path: Path):
    items = [{"segment": [0, 20], "label": "run"}, {"segment": [0, 20], "label": "run"}, {"segment": [5, 65], "label": "dive"}]
    given = {"segment": [0, 9], "label": "dive", "coverage": 0.3, "context-size": 2, "agreement": None, "length": 77}
    content = {"database": {"a": {"duration": 80, "annotations": items}, "b": {"annotations": [given]}}}
    found = characteristics.of(annotations.read(write_json(tmp_path / "truth.json", content)))
    np.testing.assert_array_equal(found["coverage"], [0.25, 0.25, 0.75, 0.3])  # the file's own without a duration
    np.testing.assert_array_equal(found["length"], [20, 20, 60, 9])
    np.testing.assert_array_equal(found["num-instances"], [3, 3, 3, 1])  # of any class, repeated ones too
    np.testing.assert_array_equal(found["context-size"], [np.nan, np.nan, np.nan, 2])
    assert set(found) == {"coverage", "length", "num-instances", "context-size"}


def test_the_command_prints_and_writes_the_diagnosis(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    items = [{"segment": [0, 20], "label": "run", "agreement": 0.5}, {"segment": [30, 70], "label": "run", "agreement": 0.7}]
    truth = {"database": {"v_a": {"subset": "validation", "duration": 100, "annotations": items}}}
    rows = [{"segment": [0, 20], "label": "run", "score": 0.9}, {"segment": [0, 19], "label": "run", "score": 0.8}]
    flags = ["--groundtruth", str(write_json(tmp_path / "truth.json", truth)), "--protocol", "activitynet", "--diagnose"]
    flags += ["--predictions", str(write_json(tmp_path / "found.json", {"results": {"v_a": rows}}))]
    assert tsp_jax.evaluate.main([*flags, "--output", str(tmp_path / "scores.json")]) == 0
    printed = capsys.readouterr().out
    assert "double detection" in printed and "By agreement" in printed and "left out: context-size, context-distance" in printed
    found = json.loads((tmp_path / "scores.json").read_text())["diagnosis"]
    assert found["detad"] == "mended" and found["characteristics"]["length"]["S"]["missed"] == 1
    assert found["false_positives"]["all"]["counts"]["0.50"]["double detection"] == 1
    assert found["characteristics"]["agreement"]["M"]["missed"] == 0
    with pytest.raises(SystemExit) as stopped:
        tsp_jax.evaluate.main([*flags, "--task", "proposals"])
    assert stopped.value.code == 2 and "--diagnose is for detections" in capsys.readouterr().err
    with pytest.raises(ValueError, match="only detections are diagnosed"):
        evaluation.evaluate(tmp_path / "found.json", tmp_path / "truth.json", task="proposals", diagnose=True)


def test_a_report_draws_the_diagnosis(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    evil = "<script>alert(1)</script>"
    items = [{"segment": [0, 20], "label": "run"}, {"segment": [30, 70], "label": "run"}]
    truth = write_json(tmp_path / "truth.json", {"database": {evil: {"duration": 100, "annotations": items}}})
    rows = [{"segment": [0, 20], "label": "run", "score": 0.9}, {"segment": [40, 79], "label": "run", "score": 0.8}]
    found = evaluation.evaluate(write_json(tmp_path / "found.json", {"results": {evil: rows}}), truth, diagnose=True)
    content, output = found.to_json(), tmp_path / "report.html"
    scores = write_json(tmp_path / "scores.json", {**content, "protocol": evil})
    assert report.main(["--scores", str(scores), "--output", str(output)]) == 0
    text = output.read_text(encoding="utf-8")
    assert "Errors of detections" in text and "Missed instances by range" in text and "<script" not in text
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', text)
    assert len(pictures) == 4
    for picture in pictures:
        assert ElementTree.fromstring(base64.b64decode(picture)).tag.endswith("svg")
    assert found.diagnosis is not None
    for table in diagnosis_tables.tables(found.diagnosis):
        assert all(f"<td>{cell}</td>" in text for row in table.rows for cell in row[1:])

    def spoiled(*place: str, value: Any) -> dict[str, Any]:
        changed = json.loads(json.dumps(content))
        inner = changed["diagnosis"]
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        return changed

    output.unlink()
    for wrong, message in (
        ([], "found something else"),
        (rows[0], "found something else"),
        ({**content, "diagnosis": None}, "does not fit"),
        (dataclasses.replace(found, diagnosis=None).to_json(), "found scores without a diagnosis"),
        (spoiled("detad", value="other"), "does not fit"),
        (spoiled("instances", value="1"), "does not fit"),
        (spoiled("scored", "average_mAP_N", value=1e300), "found a number below -1 or above 1"),
        (spoiled("characteristics", evil, value={}), "expected characteristics from coverage"),
        (spoiled("characteristics", "length", value={}), "expected the ranges of length XS, S"),
        (spoiled("false_positives", "cost", value={}), "expected the costs double detection"),
        (spoiled("false_positives", "groups", "1G", "share", value={evil: 0.5}), "expected the kinds of predictions"),
    ):
        assert report.main(["--scores", str(write_json(tmp_path / "wrong.json", wrong)), "--output", str(output)]) == 1
        error = capsys.readouterr().err
        assert message in error and "wrong.json" in error and "Traceback" not in error
    assert report.main(["--scores", str(tmp_path / "no.json"), "--output", str(output)]) == 1
    assert "no such file" in capsys.readouterr().err and not output.exists()


# ---------------------------------------------------------------------------------------------------------- DETAD's numbers


@pytest.fixture(scope="module")
def source(shared: Path) -> Path:
    """The folder of the original's inputs and numbers."""
    folder = shared / "reference" / "localization" / "evaluate"
    if not folder.is_dir():
        pytest.skip(f"the original's numbers are not at hand ({folder})")
    return folder


def unpacked(packed: Path, folder: Path) -> Path:
    path = folder / packed.name.removesuffix(".gz")
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    return path


def check_false_positives(found: diagnosis.Diagnosis, expected: dict[str, Any]) -> None:
    wrong = found.false_positives
    assert wrong is not None

    def renamed(values: dict[str, Any]) -> dict[str, Any]:
        return {NAMES[name]: value for name, value in values.items()}

    assert wrong.scored.average_mAP_N == pytest.approx(expected["average_mAP_N"], abs=1e-9)
    assert wrong.all.counts == {name: renamed(counts) for name, counts in expected["counts_per_tiou"].items()}
    assert wrong.cost == pytest.approx(renamed(expected["average_mAP_gain_removing"]), abs=1e-9)
    for name, shares in expected["top_kG_share_avg_over_tiou"].items():
        assert wrong.groups[name].share == pytest.approx(renamed(shares), abs=1e-9)
    for name, count in expected.get("top_kG_count_avg", {}).items():
        assert wrong.groups[name].predictions == count
    if "average_mRecall" in expected:
        assert wrong.scored.average_recall == pytest.approx(expected["average_mRecall"], abs=1e-9)
        assert wrong.scored.average_precision == pytest.approx(expected["average_mPrecision"], abs=1e-9)
        assert wrong.scored.mAP_N == pytest.approx(expected["mAP_N"], abs=1e-9)


def check_sensitivity(found: diagnosis.Diagnosis, expected: dict[str, Any], without: str = "", bound: float = 1e-9) -> None:
    assert found.scored.average_mAP_N == pytest.approx(expected["average_mAP_N"], abs=1e-9)
    for name, ranges in expected["average_mAP_N_per_bucket"].items():
        if name != without:
            scores = {label: item.average_mAP_N for label, item in found.characteristics[name].items()}
            assert scores == pytest.approx(ranges, abs=bound)


def check_missed(found: diagnosis.Diagnosis, expected: dict[str, Any], without: str = "") -> None:
    assert found.found.average_mAP_N == pytest.approx(expected["average_mAP_N"], abs=1e-9)
    assert found.found.average_precision == pytest.approx(expected["average_mPrecision"], abs=1e-9)
    for name, ranges in expected["buckets"].items():
        for label, values in ranges.items() if name != without else ():
            item = found.characteristics[name][label]
            assert item.share == pytest.approx(values["gt_share"], abs=1e-9)
            assert item.missed == pytest.approx(values["false_negative_rate_avg"], abs=1e-9)
            assert item.missed_at["0.50"] == pytest.approx(values["false_negative_rate_tiou0.5"], abs=1e-9)
    if not without:
        pairs = {name: values["false_negative_rate_avg"] for name, values in expected["pair_coverage_length"].items()}
        assert {name: pair.missed for name, pair in found.coverage_and_length.items()} == pytest.approx(pairs, abs=1e-9)


def test_the_analysis_of_activitynet_has_detads_numbers(source: Path, tmp_path: Path):
    expected = json.loads((source / "anet_detad.json").read_text())
    files = [unpacked(source / name, tmp_path) for name in ("anet.json.gz", "anet_gt.json.gz")]
    mended, faithful = (
        evaluation.evaluate(files[0], files[1], diagnose=True, detad=detad).diagnosis for detad in ("mended", "faithful")
    )
    assert mended is not None and faithful is not None
    check_false_positives(mended, expected["false_positive_fixed"])
    check_false_positives(faithful, expected["false_positive"])
    check_sensitivity(mended, expected["sensitivity_stable_order"])
    # NumPy's unstable sort gives other orders of equal scores on other processors.
    check_sensitivity(faithful, expected["sensitivity"], bound=3e-3)
    counts = {name: [item.instances for item in ranges.values()] for name, ranges in mended.characteristics.items()}
    assert counts == {name: list(r.values()) for name, r in expected["sensitivity"]["gt_count_per_bucket"].items()}
    for found in (mended, faithful):
        check_missed(found, expected["false_negative"])


def test_the_analysis_of_thumos14_has_detads_numbers(shared: Path, source: Path, tmp_path: Path):
    expected = json.loads((source / "thumos_detad.json").read_text())
    content = json.loads(unpacked(source / "thumos.json.gz", tmp_path).read_text())
    content["results"].setdefault("video_test_0000004", []).append({"segment": [1, 2], "label": "Billiards", "score": 0.01})
    known = {**content, "results": {name: rows for name, rows in content["results"].items() if "unknown" not in name}}
    # DETAD's own file has other durations, which put one instance into another range of coverage.
    truth = annotations.read(shared / "annotations" / "thumos14_test_tsp_groundtruth.csv")
    everything, without_unknown = (
        evaluation.evaluate(
            write_json(tmp_path / name, rows), truth, "thumos14", tiou=[0.5], diagnose=True, detad="faithful"
        ).diagnosis
        for name, rows in (("all.json", content), ("known.json", known))
    )
    assert everything is not None and without_unknown is not None
    check_false_positives(without_unknown, expected["false_positive"])
    assert everything.false_positives is None and any("ends with an error" in note for note in everything.notes)
    check_sensitivity(everything, expected["sensitivity"], without="coverage", bound=3e-3)
    check_missed(everything, expected["false_negative"], without="coverage")


def test_ranges_have_detads_borders(source: Path):
    for bucket_set, table in json.loads((source / "detad_buckets.json").read_text()).items():
        for name, expected in table.items():
            buckets = characteristics.BUCKETS[bucket_set][name]
            assert list(buckets.names) == expected["labels"]
            assert [float(border) for border in buckets.borders] == [float(border) for border in expected["borders"]]
            values = np.array([float(value) for value in expected["examples"]])
            places = characteristics.bucket_of(values, buckets)
            assert [buckets.names[p] if p >= 0 else None for p in places] == list(expected["examples"].values())
    assert {rules.buckets for rules in protocols.PROTOCOLS.values()} == set(characteristics.BUCKETS)
