"""The linear probe: a logistic regression that separates action from background on frozen features.

A clip that lies within a segment of the ground truth takes the segment's temporal region. All other clips are left out. The
features are brought to zero mean and unit variance, both classes have equal weight, and the penalty is fixed, so nothing is
chosen by looking at the held-out videos.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.optimize
from jaxtyping import Bool, Float

from tsp_jax import clip_times, features, groundtruth

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
    for name, items in groundtruth.by_video(truth, features.naming(path)).items():
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
