"""From nothing to a page about what TSP's features know: `python -m examples.demo --output demo`.

Draws a data set, trains an encoder by TAC and one by TSP on it, extracts the features of both, and writes a page that compares
them. Each step is a command as you would give it, and is printed before it runs. What is done already is not done again: after
an interruption of any kind the same command goes on.
"""

import argparse
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

# Chosen for 11 minutes of two cores. The recipes' own eight epochs on 60 videos tell more: README, "Results".
FULL = {
    "train": "--videos 40",
    "held_out": "--videos 12",
    "recipe": "--config.optim.epochs=6 --config.optim.milestones=5",
}
QUICK = {
    "train": "--videos 6 --seconds 6 8",
    "held_out": "--videos 3 --seconds 6 8",
    "recipe": "--config.optim.epochs=1 --config.optim.milestones=1 --config.data.batch_size=8 "
    "--config.data.clips_per_segment=1",
}

# What a step is for, and its command; {d} is the folder.
STEPS = (
    (
        "Draw videos in which shapes move: six kinds of motion are actions, moves without aim are background",
        "data_builders.synthetic --output {d}/raw/train {train} --seed 0 --subset training",
    ),
    (
        "And others, drawn from another seed, that no training sees",
        "data_builders.synthetic --output {d}/raw/held_out {held_out} --seed 1 --subset validation",
    ),
    (
        "Bring every video to a constant 30 frames a second",
        "data_builders.standardize --input {d}/raw --output {d}/videos",
    ),
    (
        "Count their frames",
        "data_builders.metadata --videos {d}/videos --output {d}/metadata.csv",
    ),
    (
        "Add to the annotated actions the segments without one: the background",
        "data_builders.groundtruth --format activitynet --annotations {d}/raw/train/annotations.json --subset train "
        "--background union --min_background_sec 1.1 --metadata {d}/metadata.csv --output {d}/train.csv",
    ),
    (
        "The same for the videos held out",
        "data_builders.groundtruth --format activitynet --annotations {d}/raw/held_out/annotations.json --subset valid "
        "--background union --min_background_sec 1.1 --metadata {d}/metadata.csv --output {d}/valid.csv",
    ),
    (
        "Number the classes",
        "data_builders.labels --groundtruth {d}/train.csv {d}/valid.csv --output {d}/labels",
    ),
    (
        "Look for mistakes before hours of work begin",
        "data_builders.validate --groundtruth {d}/train.csv --videos {d}/videos --metadata {d}/metadata.csv "
        "--labels {d}/labels/action_label_mapping.json",
    ),
    (
        "Decode each video once, and write the frames of its segments as training records",
        "data_builders.build --dataset video_folder --videos {d}/videos --groundtruth {d}/train.csv {d}/valid.csv "
        "--labels {d}/labels/action_label_mapping.json --data_dir {d}/records",
    ),
    (
        "Train by TAC: name the action, and see no background",
        "tsp_jax.train --config configs/synthetic_tac.py --workdir {d}/tac "
        "--config.data.folder={d}/records/video_folder/jpeg/1.0.0 {recipe}",
    ),
    (
        "Features of all videos by TAC",
        "tsp_jax.extract --checkpoint {d}/tac/last --videos {d}/videos --output {d}/tac.h5 --stride 8",
    ),
    (
        "Pool them: a global feature of each video (GVF), beside which TSP looks at a clip",
        "data_builders.gvf --features {d}/tac.h5 --pool max --output {d}/gvf.h5",
    ),
    (
        "Train by TSP: name the action, and tell action from background",
        "tsp_jax.train --config configs/synthetic_tsp.py --workdir {d}/tsp "
        "--config.data.folder={d}/records/video_folder/jpeg/1.0.0 --config.data.gvf={d}/gvf.h5 {recipe}",
    ),
    (
        "Features of all videos by TSP",
        "tsp_jax.extract --checkpoint {d}/tsp/last --videos {d}/videos --output {d}/tsp.h5 --stride 8",
    ),
    (
        "What TSP's heads say of each clip",
        "tsp_jax.predict --checkpoint {d}/tsp/last --features {d}/tsp.h5 --gvf_features {d}/tac.h5 "
        "--labels {d}/labels/action_label_mapping.json --output {d}/predictions.json",
    ),
    (
        "A page that compares the two, on the videos held out",
        "tsp_jax.report --features {d}/tsp.h5 {d}/tac.h5 --names TSP TAC --groundtruth {d}/valid.csv --probe_groundtruth "
        "{d}/train.csv --predictions {d}/predictions.json --videos {d}/videos --metrics {d}/tsp/metrics.jsonl "
        "{d}/tac/metrics.jsonl --output {d}/report.html",
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: that of the first step that fails, or 0."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo", description=__doc__, epilog="example: python -m examples.demo --output demo"
    )
    parser.add_argument("--output", help="a folder (demo, or demo_quick)")
    parser.add_argument(
        "--quick", action="store_true", help="few videos and hardly any training: whether all runs, in 2 minutes"
    )
    options = parser.parse_args(arguments)
    folder = options.output or ("demo_quick" if options.quick else "demo")
    values = {"d": shlex.quote(folder), **(QUICK if options.quick else FULL)}
    try:
        return tell_and_run(folder, values)
    except KeyboardInterrupt:  # between two steps; within one, the step says what is kept
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130


def tell_and_run(folder: str, values: Mapping[str, str]) -> int:
    """The exit status of the first step that fails, or 0 after the last."""
    start = time.monotonic()
    for number, (purpose, command) in enumerate(STEPS, 1):
        minutes, seconds = divmod(round(time.monotonic() - start), 60)
        command = command.format(**values)
        print(f"\n[{number} of {len(STEPS)}, {minutes}:{seconds:02}] {purpose}\n$ python -m {command}", flush=True)
        status = run([sys.executable, "-m", *shlex.split(command)])
        if status:
            print(
                f"\nstep {number} of {len(STEPS)} ended with status {status}; the same command goes on from here",
                file=sys.stderr,
            )
            return status
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    print(f"\nDone in {minutes}:{seconds:02}. Open {folder}/report.html in a browser.")
    return 0


def run(command: Sequence[str]) -> int:
    """The exit status of a command, which ends in its own way when this process is asked to end."""
    process = subprocess.Popen(command)
    # A terminal sends Ctrl-C to both; SIGTERM reaches this process alone.
    before = signal.signal(signal.SIGINT, lambda *_: None), signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    status = process.wait()
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
