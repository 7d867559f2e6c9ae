"""How well a linear classifier separates action from background on frozen features: fitted on some videos, measured on others.

A clip that lies within a segment of the ground truth takes the segment's temporal region. All other clips are left out. The
classifier is a logistic regression on features of zero mean and unit variance, with equal weight for both classes and one fixed
penalty. Nothing is chosen by looking at the held-out videos. Balanced accuracy is the mean of the two classes' shares of
correctly classified clips; chance is 50 %.
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.optimize
from jaxtyping import Bool, Float

from tsp_jax import clip_times, features, groundtruth
from tsp_jax.system import cli

PENALTY = 1e-3  # the mean loss includes half of this times the squared norm of the weights


@dataclasses.dataclass(frozen=True)
class Score:
    """Shares of correctly classified clips, 0 to 1.

    Attributes:
      train: balanced accuracy on the videos that the probe is fitted on.
      held_out: balanced accuracy on the held-out videos.
      action: share of the held-out clips of actions.
      background: share of the held-out clips of background.
      clips: number of held-out clips.
    """

    train: float
    held_out: float
    action: float
    background: float
    clips: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0 if all is well, 1 if a file can't be used, 2 on wrong use."""
    return cli.run(_work, _parse(arguments), error_status=1)


def _work(options: argparse.Namespace) -> None:
    scores = []
    truth, test_truth = (groundtruth.read_groundtruth(path) for path in (options.groundtruth, options.test_groundtruth))
    for path, test_path in zip(options.features, options.test_features, strict=True):
        scores.append(score(*labelled_clips(path, truth), *labelled_clips(test_path, test_truth)))
    print("| features | held-out clips | balanced accuracy | of actions | of background | on the fitted videos |")
    print("| --- | --- | --- | --- | --- | --- |")
    for path, found in zip(options.test_features, scores, strict=True):
        shares = " | ".join(f"{100 * x:.1f} %" for x in (found.held_out, found.action, found.background, found.train))
        print(f"| {path} | {found.clips} | {shares} |")
    if len(scores) > 1:
        found = [100 * item.held_out for item in scores]
        spread = f"{min(found):.1f} to {max(found):.1f} %, standard deviation {statistics.stdev(found):.1f}"
        print(f"\nMean balanced accuracy of {len(found)}: {statistics.mean(found):.1f} % ({spread})")


def labelled_clips(
    path: str | Path, truth: Sequence[groundtruth.AnnotatedSegment]
) -> tuple[Float[np.ndarray, "n f"], Bool[np.ndarray, " n"]]:
    """Returns the features of the clips that lie within a segment, and whether that segment is an action.

    Raises:
      FeatureFileError: the file is no feature file, or lacks a video of the ground truth.
      ValueError: only one of the two temporal regions has clips, or a clip holds a value that is not finite.
    """
    rows: list[np.ndarray] = []
    acting: list[np.ndarray] = []
    for name, items in groundtruth.by_video(truth).items():
        video = features.read(path, name)
        times = clip_times.clip_times(video)
        for item in items:
            found = video.features[groundtruth.clips_within(*times, item)]
            if not np.all(np.isfinite(found)):
                raise ValueError(f"{path} (video {name!r}): expected finite features, found NaN or infinity; extract it again")
            rows.append(found)
            acting.append(np.full(len(found), item.temporal_region == groundtruth.ACTION))
    found, labels = np.concatenate(rows or [np.zeros((0, 1))]), np.concatenate(acting or [np.zeros(0, bool)])
    if not 0 < np.count_nonzero(labels) < len(labels):
        raise ValueError(
            f"{path}: {np.count_nonzero(labels)} of the {len(labels)} clips in segments are of actions; both temporal regions "
            "are needed: give the ground truth of these videos, or extract with a smaller --stride"
        )
    return found.astype(np.float64), labels


def score(
    train: Float[np.ndarray, "n f"],
    train_labels: Bool[np.ndarray, " n"],
    held_out: Float[np.ndarray, "m f"],
    held_out_labels: Bool[np.ndarray, " m"],
) -> Score:
    """Fits a linear probe on the first clips and returns how well it classifies them and the second, held-out clips."""
    mean, scale = train.mean(0), train.std(0) + 1e-6
    weight, bias = fit((train - mean) / scale, train_labels)

    def recalls(inputs: Float[np.ndarray, "k f"], labels: Bool[np.ndarray, " k"]) -> tuple[float, float]:
        guess = (inputs - mean) / scale @ weight + bias > 0
        return float(np.mean(guess[labels])), float(np.mean(~guess[~labels]))

    action, background = recalls(held_out, held_out_labels)
    return Score(statistics.mean(recalls(train, train_labels)), (action + background) / 2, action, background, len(held_out))


def fit(inputs: Float[np.ndarray, "n f"], labels: Bool[np.ndarray, " n"]) -> tuple[Float[np.ndarray, " f"], float]:
    """Returns the weights and bias of the logistic regression. Both classes weigh the same, however many clips they have."""
    sign, share = np.where(labels, 1.0, -1.0), np.mean(labels)
    weight = np.where(labels, 0.5 / share, 0.5 / (1 - share)) / len(labels)

    def loss(solution: Float[np.ndarray, " g"]) -> tuple[float, Float[np.ndarray, " g"]]:
        margin = sign * (inputs @ solution[:-1] + solution[-1])
        slope = -sign * weight * np.exp(-np.logaddexp(0, margin))
        gradient = np.append(inputs.T @ slope + PENALTY * solution[:-1], slope.sum())
        return float(weight @ np.logaddexp(0, -margin) + PENALTY / 2 * solution[:-1] @ solution[:-1]), gradient

    found = scipy.optimize.minimize(loss, np.zeros(inputs.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 5000})
    return found.x[:-1], float(found.x[-1])


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
        parser.error(f"{len(options.features)} files of --features and {len(options.test_features)} of --test_features")
    return options


if __name__ == "__main__":
    sys.exit(main())
