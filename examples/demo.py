"""From nothing to a page about what TSP's features know: `python -m examples.demo --output demo`.

Draws a data set, trains one encoder by TAC and one by TSP, extracts the features of both, and writes a page that compares them.
A first page comes early, from a hardly trained encoder and a few of the videos. Each step is a command as you would give it,
and is printed before it runs. If the demo is interrupted, the same command goes on from there; finished steps are skipped.
"""

import argparse
import math
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_builders import synthetic
from tsp_jax.system import cpu

# The recipes' own eight epochs on 60 videos give better features: docs/results.md.
FULL = {
    "few_train": "--videos 6",  # as few as show each class: videos begin with each in turn
    "few_held_out": "--videos 4",
    "train": "--videos 28",
    "held_out": "--videos 10",
    "first_recipe": "--config.optim.epochs=1 --config.optim.milestones=1",
    "recipe": "--config.optim.epochs=6 --config.optim.milestones=5",
}
QUICK = {
    "few_train": "--videos 6 --seconds 6 8",
    "few_held_out": "--videos 2 --seconds 6 8",
    "train": "--videos 6 --seconds 6 8",
    "held_out": "--videos 3 --seconds 6 8",
    "first_recipe": "--config.optim.epochs=1 --config.optim.milestones=1 --config.data.batch_size=8 "
    "--config.data.clips_per_segment=1",
    "recipe": "--config.optim.epochs=1 --config.optim.milestones=1 --config.data.batch_size=8 "
    "--config.data.clips_per_segment=1",
}

# The purpose and the command of each step; {d} is the folder.
STEPS = (
    (
        "Draw a few videos in which shapes move: six kinds of motion are actions, moves without aim are background",
        "data_builders.synthetic --output {d}/raw/train {few_train} --seed 0 --subset training",
    ),
    (
        "Draw other videos from another seed, which are never trained on",
        "data_builders.synthetic --output {d}/raw/held_out {few_held_out} --seed 1 --subset validation",
    ),
    (
        "Count their frames (these videos have a constant 30 frames a second; "
        "yours may need `python -m data_builders.standardize` first)",
        "data_builders.metadata --videos {d}/raw --output {d}/first/metadata.csv",
    ),
    (
        "Add the segments without an action, the background, to the annotated actions",
        "data_builders.groundtruth --format activitynet --annotations {d}/raw/train/annotations.json --subset train "
        "--background union --min_background_sec 1.1 --metadata {d}/first/metadata.csv --output {d}/first/train.csv",
    ),
    (
        "Do the same for the held-out videos",
        "data_builders.groundtruth --format activitynet --annotations {d}/raw/held_out/annotations.json --subset valid "
        "--background union --min_background_sec 1.1 --metadata {d}/first/metadata.csv --output {d}/first/valid.csv",
    ),
    (
        "Number the classes",
        "data_builders.labels --groundtruth {d}/first/train.csv {d}/first/valid.csv --output {d}/labels",
    ),
    (
        "Decode each video once, and write the frames of its segments as training records",
        "data_builders.build --dataset video_folder --videos {d}/raw --groundtruth {d}/first/train.csv {d}/first/valid.csv "
        "--labels {d}/labels/action_label_mapping.json --data_dir {d}/first/records",
    ),
    (
        "Train an encoder for a moment on the few videos, which is far too little to learn the actions",
        "tsp_jax.train --config configs/synthetic_tac.py --workdir {d}/first/run "
        "--config.data.folder={d}/first/records/video_folder/jpeg/1.0.0 {first_recipe}",
    ),
    (
        "Extract the first features of held-out videos",
        "tsp_jax.extract --checkpoint {d}/first/run/last --videos {d}/raw/held_out --output {d}/first/features.h5 --stride 8",
    ),
    (
        "Write a first page: open {d}/first/report.html to see how similar a video's moments are to the hardly trained encoder",
        "tsp_jax.report --features {d}/first/features.h5 --names 'hardly trained' --groundtruth {d}/first/valid.csv "
        "--videos {d}/raw --output {d}/first/report.html",
    ),
    (
        "Draw the rest of the videos to train on",
        "data_builders.synthetic --output {d}/raw/train {train} --seed 0 --subset training",
    ),
    (
        "Draw the rest of the held-out videos",
        "data_builders.synthetic --output {d}/raw/held_out {held_out} --seed 1 --subset validation",
    ),
    (
        "Count the frames of all videos",
        "data_builders.metadata --videos {d}/raw --output {d}/metadata.csv",
    ),
    (
        "Add the background to the annotated actions of all videos to train on",
        "data_builders.groundtruth --format activitynet --annotations {d}/raw/train/annotations.json --subset train "
        "--background union --min_background_sec 1.1 --metadata {d}/metadata.csv --output {d}/train.csv",
    ),
    (
        "Do the same for all held-out videos",
        "data_builders.groundtruth --format activitynet --annotations {d}/raw/held_out/annotations.json --subset valid "
        "--background union --min_background_sec 1.1 --metadata {d}/metadata.csv --output {d}/valid.csv",
    ),
    (
        "Look for mistakes before the long steps begin",
        "data_builders.validate --groundtruth {d}/train.csv --videos {d}/raw --metadata {d}/metadata.csv "
        "--labels {d}/labels/action_label_mapping.json",
    ),
    (
        "Write the training records of all videos",
        "data_builders.build --dataset video_folder --videos {d}/raw --groundtruth {d}/train.csv {d}/valid.csv "
        "--labels {d}/labels/action_label_mapping.json --data_dir {d}/records",
    ),
    (
        "List the actions alone, for TAC: no background is as long as 1000 seconds",
        "data_builders.groundtruth --format activitynet --annotations {d}/raw/train/annotations.json --subset train "
        "--background union --min_background_sec 1000 --metadata {d}/metadata.csv --output {d}/actions_train.csv",
    ),
    (
        "Write their training records",
        "data_builders.build --dataset video_folder --videos {d}/raw --groundtruth {d}/actions_train.csv {d}/valid.csv "
        "--labels {d}/labels/action_label_mapping.json --data_dir {d}/actions",
    ),
    (
        "Train by TAC: classify the action, and never see the background",
        "tsp_jax.train --config configs/synthetic_tac.py --workdir {d}/tac "
        "--config.data.folder={d}/actions/video_folder/jpeg/1.0.0 --config.data.balanced=false {recipe}",
    ),
    (
        "Extract the TAC features of all videos",
        "tsp_jax.extract --checkpoint {d}/tac/last --videos {d}/raw --metadata_csv {d}/metadata.csv --output {d}/tac.h5 "
        "--stride 8",
    ),
    (
        "Pool them into a global feature of each video (GVF), which TSP sees together with a clip",
        "data_builders.gvf --features {d}/tac.h5 --pool max --output {d}/gvf.h5",
    ),
    (
        "Train by TSP: classify the action, and separate action from background",
        "tsp_jax.train --config configs/synthetic_tsp.py --workdir {d}/tsp "
        "--config.data.folder={d}/records/video_folder/jpeg/1.0.0 --config.data.gvf={d}/gvf.h5 {recipe}",
    ),
    (
        "Extract the TSP features of all videos",
        "tsp_jax.extract --checkpoint {d}/tsp/last --videos {d}/raw --metadata_csv {d}/metadata.csv --output {d}/tsp.h5 "
        "--stride 8",
    ),
    (
        "Predict the action and the temporal region of each clip with TSP's heads",
        "tsp_jax.predict --checkpoint {d}/tsp/last --features {d}/tsp.h5 --gvf_features {d}/tac.h5 "
        "--labels {d}/labels/action_label_mapping.json --output {d}/predictions.json",
    ),
    (
        "Write the page that compares the two on the held-out videos",
        "tsp_jax.report --features {d}/tsp.h5 {d}/tac.h5 --names TSP TAC --groundtruth {d}/valid.csv --probe_groundtruth "
        "{d}/train.csv --predictions {d}/predictions.json --videos {d}/raw --metrics {d}/tsp/metrics.jsonl "
        "{d}/tac/metrics.jsonl --output {d}/report.html",
    ),
)

# Costs of the full demo, summed over the cores, in units of the two measurements of `estimate_sec`.
PICTURES = 945_000  # drawing, decoding, compilation, pages
PRODUCTS = 1_200_000  # training and extraction


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status of the first step that fails, or 0."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo", description=__doc__, epilog="example: python -m examples.demo --output demo"
    )
    parser.add_argument("--output", help="the folder of all files that are made (demo, or demo_quick)")
    parser.add_argument(
        "--quick", action="store_true", help="few videos and hardly any training: checks in 2 minutes that every step runs"
    )
    options = parser.parse_args(arguments)
    folder = options.output or ("demo_quick" if options.quick else "demo")
    values = {"d": shlex.quote(folder), **(QUICK if options.quick else FULL)}
    try:
        if not options.quick:
            print(
                f"From nothing, the whole takes about {max(1, round(estimate_sec() / 60))} minutes while this machine is idle "
                "otherwise, by a short measurement of its speed. A first page comes after about a seventh of that time.",
                flush=True,
            )
        return show_and_run(folder, values)
    except KeyboardInterrupt:  # between two steps; within one, the step says what is kept
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130


def estimate_sec() -> float:
    """Returns the time that the full demo takes on this machine when it is idle, in seconds, from a measurement of one second.

    The measured work is drawing pictures, and matrix products that are too small for BLAS to use several threads.
    """
    scene = synthetic.Scene(synthetic.script(0, 0, (20.0, 20.0)))
    picture_sec = _shortest_sec(lambda number: scene.frame(number % scene.item.num_frames))
    matrices = np.ones((100, 64, 64), np.float32)
    product_sec = _shortest_sec(lambda _: matrices @ matrices)
    return (PICTURES * picture_sec + PRODUCTS * product_sec) / cpu.cores()


def show_and_run(folder: str, values: Mapping[str, str]) -> int:
    """Prints and runs all steps. Returns the exit status of the first step that fails, or 0 after the last."""
    start = time.monotonic()
    for number, (purpose, command) in enumerate(STEPS, 1):
        purpose, command = purpose.format(d=folder), command.format(**values)
        print(f"\n[{number} of {len(STEPS)}, {_clock(start)}] {purpose}\n$ python -m {command}", flush=True)
        status = run([sys.executable, "-m", *shlex.split(command)])
        if status:
            print(
                f"\nstep {number} of {len(STEPS)} ended with status {status}; the same command goes on from here",
                file=sys.stderr,
            )
            return status
    print(f"\nDone in {_clock(start)}. Open {folder}/report.html in a browser.")
    return 0


def run(command: Sequence[str]) -> int:
    """Runs a command, which ends in its own way if this process is asked to end. Returns its exit status."""
    process = subprocess.Popen(command)
    # A terminal sends Ctrl-C to both processes; SIGTERM reaches this process alone.
    before = signal.signal(signal.SIGINT, lambda *_: None), signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    status = process.wait()
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])
    return status if status >= 0 else 128 - status


def _shortest_sec(work: Callable[[int], object]) -> float:
    """Returns the shortest time of a call in seconds, over half a second of calls: the one that other work disturbed least."""
    work(0)  # prepares, which takes longer
    start, count, shortest = time.perf_counter(), 0, math.inf
    while (begin := time.perf_counter()) < start + 0.5:
        work(count)
        count += 1
        shortest = min(shortest, time.perf_counter() - begin)
    return shortest


def _clock(start: float) -> str:
    """Returns the time since a moment of `time.monotonic` as minutes:seconds."""
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    return f"{minutes}:{seconds:02}"


if __name__ == "__main__":
    sys.exit(main())
