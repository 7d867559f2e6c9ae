"""Measures how well a linear classifier separates action from background on frozen features.

The classifier is fitted on some videos and measured on others. A clip that lies within a segment of the ground truth takes the
segment's temporal region. All other clips are left out. The classifier is a logistic regression on features of zero mean and
unit variance, with equal weight for both classes and one fixed penalty. Nothing is chosen by looking at the held-out videos.
Balanced accuracy is the mean of the two classes' shares of correctly classified clips; chance is 50 %.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence

from tsp_jax import groundtruth, probe
from tsp_jax.system import cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0 if all is well, 1 if a file can't be used, 2 on wrong use."""
    return cli.run(_work, _parse(arguments), error_status=1)


def _work(options: argparse.Namespace) -> None:
    scores = []
    truth, test_truth = (groundtruth.read_groundtruth(path) for path in (options.groundtruth, options.test_groundtruth))
    for path, test_path in zip(options.features, options.test_features, strict=True):
        scores.append(probe.score(*probe.labelled_clips(path, truth), *probe.labelled_clips(test_path, test_truth)))
    print("| features | held-out clips | balanced accuracy | of actions | of background | on the fitted videos |")
    print("| --- | --- | --- | --- | --- | --- |")
    for path, found in zip(options.test_features, scores, strict=True):
        shares = " | ".join(f"{100 * x:.1f} %" for x in (found.held_out, found.action, found.background, found.train))
        print(f"| {path} | {found.clips} | {shares} |")
    if len(scores) > 1:
        found = [100 * item.held_out for item in scores]
        spread = f"{min(found):.1f} to {max(found):.1f} %, standard deviation {statistics.stdev(found):.1f}"
        print(f"\nMean balanced accuracy of {len(found)}: {statistics.mean(found):.1f} % ({spread})")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tsp_jax.linear_probe",
        description=__doc__,
        epilog="example: python -m tsp_jax.linear_probe --features tsp_train.h5 --groundtruth train.csv "
        "--test_features tsp_test.h5 --test_groundtruth test.csv",
    )
    add = parser.add_argument
    add("--features", required=True, nargs="+", metavar="H5", help="features of the videos to fit on; one file or several, "
        "such as one for each training seed")  # fmt: skip
    add("--groundtruth", required=True, metavar="CSV",
        help="the segments of these videos, as `python -m data_builders.groundtruth` writes them")  # fmt: skip
    add("--test_features", required=True, nargs="+", metavar="H5",
        help="features of the held-out videos, one file for each of --features")  # fmt: skip
    add("--test_groundtruth", required=True, metavar="CSV", help="the segments of the held-out videos")
    options = parser.parse_args(arguments)
    if len(options.features) != len(options.test_features):
        parser.error(
            f"--features has {len(options.features)} files and --test_features has {len(options.test_features)}; give as many"
        )
    return options


if __name__ == "__main__":
    sys.exit(main())
