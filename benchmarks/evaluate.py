"""Measures the evaluation of detections, in turn with a plain loop that works as the official code does.

    python -m benchmarks.evaluate                              29,556 synthetic predictions of 4,926 videos, both sides
    python -m benchmarks.evaluate --predictions 1000000 --sides ours
    python -m benchmarks.evaluate --protocols                  the same predictions under every protocol; nothing is timed

The input is random: videos, instances and classes as in ActivityNet's validation subset, with a few repeated and very short
instances, and predictions of a video without instances. Each turn is a process of its own
that reads the files and scores them with one thread. It reports its seconds of CPU, imports aside, and its most memory.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

VIDEOS, INSTANCES, CLASSES = 4926, 7654, 200
SIDES = ("ours", "loop")


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate", description=__doc__)
    parser.add_argument("--predictions", type=int, default=29_556, help="the number of predictions; default 29556")
    parser.add_argument("--repeats", type=int, default=3, help="the number of turns of each side; default 3")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="what is measured; default both")
    parser.add_argument("--one", nargs=3, metavar=("SIDE", "PREDICTIONS", "GROUNDTRUTH"), help=argparse.SUPPRESS)
    parser.add_argument("--protocols", action="store_true", help="print the scores of the predictions under every protocol")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_measure(*options.one)))
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = _write(Path(folder), options.predictions)
        size = os.path.getsize(paths[0]) / 1e6
        print(
            f"{options.predictions:,} predictions ({size:.0f} MB) of {VIDEOS:,} videos, {INSTANCES:,} instances, 10 thresholds"
        )
        if options.protocols:
            print("\n".join(_protocols(*paths)))
            return
        turns: dict[str, list[dict[str, float]]] = defaultdict(list)
        for _ in range(options.repeats):
            for side in options.sides:
                turns[side].append(_turn(side, paths))
    for side, found in turns.items():
        seconds = sorted(turn["seconds"] for turn in found)
        spread = f"median of {len(seconds)}, {seconds[0]:.2f} to {seconds[-1]:.2f}"
        memory = max(turn["memory_mb"] for turn in found)
        print(
            f"{side}: {seconds[len(seconds) // 2]:.2f} s of CPU ({spread}), {memory:.0f} MB, "
            f"average mAP {found[0]['average_mAP']:.6f}"
        )


def _write(folder: Path, count: int) -> tuple[Path, Path]:
    """Writes a ground truth and predictions, of which some lie near an instance of their class, as a detector's do."""
    draw = np.random.default_rng(0)
    video = np.concatenate([np.arange(VIDEOS), draw.integers(0, VIDEOS, INSTANCES - VIDEOS)])
    label = draw.integers(0, CLASSES, VIDEOS)[video]
    start = draw.uniform(0, 100, INSTANCES)
    end = start + draw.uniform(1, 80, INSTANCES)
    end[::500] = start[::500] + 5e-4 * (np.arange(len(start[::500])) % 2)
    for column in (video, label, start, end):
        column[1:40] = column[0:1]
    database: dict[str, dict[str, object]] = {
        f"v_{name:011d}": {"subset": "validation", "duration": 200.0, "annotations": []} for name in range(VIDEOS)
    }
    for row in range(INSTANCES):
        item = {"segment": [round(start[row], 4), round(end[row], 4)], "label": f"class {label[row]}"}
        database[f"v_{video[row]:011d}"]["annotations"].append(item)  # type: ignore (a list)
    results: dict[str, list[dict[str, object]]] = {name: [] for name in [*database, "v_elsewhere"]}
    of, noise = draw.integers(0, INSTANCES, count), draw.normal(0, 8, (count, 2))
    wrong, score = draw.random(count) < 0.3, draw.random(count)
    for row in range(count):
        name, where = label[of[row]], np.sort([start[of[row]] + noise[row, 0], end[of[row]] + noise[row, 1]])
        results[f"v_{video[of[row]]:011d}" if row % 100 else "v_elsewhere"].append({
            "label": f"class {(name + 1) % CLASSES if wrong[row] else name}",
            "score": round(float(score[row]), 6),
            "segment": [round(float(where[0]), 3), round(float(where[1]), 3)],
        })  # fmt: skip
    paths = folder / "predictions.json", folder / "groundtruth.json"
    for path, content in zip(paths, ({"results": results}, {"database": database}), strict=True):
        path.write_text(json.dumps(content))
    return paths


def _protocols(predictions: Path, groundtruth: Path) -> Iterator[str]:
    """Yields the rows of a table of the scores of the same files under every protocol."""
    from tsp_jax.localization import evaluation, protocols

    yield "| protocol | instances | tIoU | mAP at 0.50 | average mAP | Recall@1x |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, rules in protocols.PROTOCOLS.items():
        found = evaluation.evaluate(predictions, groundtruth, name, subset="validation", tiou=None if rules.tiou else [0.5])
        content, thresholds = found.to_json(), list(found.to_json()["mAP"])
        recall = f"{100 * found.detection.mean_recall[0].mean():.4f}" if rules.recall_at and found.detection else ""
        average, half = (f"{100 * value:.4f}" for value in (content["average_mAP"], content["mAP"]["0.50"]))
        yield f"| {name} | {content['instances']:,} | {thresholds[0]} to {thresholds[-1]} | {half} | {average} | {recall} |"


def _turn(side: str, paths: tuple[Path, Path]) -> dict[str, float]:
    threads = dict.fromkeys(["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"], "1")
    command = [sys.executable, "-m", "benchmarks.evaluate", "--one", side, *map(str, paths)]
    found = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


def _measure(side: str, predictions: str, groundtruth: str) -> dict[str, float]:
    from tsp_jax.localization import evaluation

    began = time.process_time()
    score = evaluation.evaluate(predictions, groundtruth).average_mAP if side == "ours" else _loop(predictions, groundtruth)
    seconds = time.process_time() - began
    return {"seconds": seconds, "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "average_mAP": score}


def _loop(predictions: str, groundtruth: str) -> float:
    """Returns the average mAP, one prediction and one threshold after the other."""
    thresholds = np.linspace(0.5, 0.95, 10)
    truth: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for name, entry in json.loads(Path(groundtruth).read_text())["database"].items():
        for item in entry["annotations"]:
            truth[item["label"]][name].append(item["segment"])
    predicted: dict[str, list[tuple[float, str, list[float]]]] = defaultdict(list)
    for name, items in json.loads(Path(predictions).read_text())["results"].items():
        for item in items:
            predicted[item["label"]].append((item["score"], name, item["segment"]))
    scores = []
    for label, by_video in truth.items():
        rows = predicted[label]
        order = np.argsort([row[0] for row in rows], kind="stable")[::-1]
        taken = {name: np.zeros((len(thresholds), len(items)), bool) for name, items in by_video.items()}
        hit = np.zeros((len(thresholds), len(rows)))
        for place, row in enumerate(order):
            _, name, (start, end) = rows[row]
            if name not in by_video:
                continue
            items = np.array(by_video[name])
            shared = np.maximum(np.minimum(end, items[:, 1]) - np.maximum(start, items[:, 0]), 0)
            tiou = shared / ((items[:, 1] - items[:, 0]) + (end - start) - shared)
            for column, threshold in enumerate(thresholds):
                for other in np.argsort(tiou)[::-1]:
                    if tiou[other] < threshold:
                        break
                    if not taken[name][column, other]:
                        taken[name][column, other] = True
                        hit[column, place] = 1
                        break
        found = np.cumsum(hit, axis=1)
        precision = np.maximum.accumulate((found / np.arange(1, len(rows) + 1))[:, ::-1], axis=1)[:, ::-1]
        scores.append((precision * hit).sum(1) / sum(map(len, by_video.values())))
    return float(np.mean(scores))


if __name__ == "__main__":
    main()
