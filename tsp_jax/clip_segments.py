"""Reads segments from a clip classifier's probabilities. This is a plain rule, not a trained detector of actions.

A detector is another model, trained on features with the borders of segments in view. The rule:

1. The heads give each clip the probability of every action class, and the probability of the temporal region "Action", which
   is called the foreground. If the model predicts no temporal region, the probability of the clip's most probable class takes
   the place of the foreground in step 3.
2. A clip represents the time of one stride around its middle, so that neighbours meet without a gap. If the stride is the
   clip's length, this is the whole clip. The time is cut off at the ends of the video.
3. For each threshold, the longest runs of neighbouring clips whose foreground is at least the threshold are segments. A clip
   that could not be read ends a run. A run that several thresholds give is listed once.
4. The label of a segment is the action class with the largest mean probability over its run, or "Action" if the model predicts
   no action classes.
5. Its score is the product of the mean foreground and the label's mean probability, as far as the model predicts them.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int64

from tsp_jax import groundtruth


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a video that is predicted to be an action.

    Attributes:
      label: the name of its class.
      score: the score, 0 to 1.
      start_sec: the start in seconds.
      end_sec: the end in seconds, not included.
    """

    label: str
    score: float
    start_sec: float
    end_sec: float


def clip_cells(
    start_sec: Float[np.ndarray, " n"], clip_len_sec: float, stride_sec: float, duration_sec: float
) -> Float[np.ndarray, "n 2"]:
    """Returns the time [start, end) in seconds that each clip represents, by step 2 of the rule.

    Args:
      start_sec: the starts of the clips in seconds.
      clip_len_sec: the length of a clip in seconds.
      stride_sec: the time from one clip's start to the next clip's start in seconds.
      duration_sec: the length of the video in seconds.
    """
    middles = start_sec + clip_len_sec / 2
    return np.clip(np.stack([middles - stride_sec / 2, middles + stride_sec / 2], axis=1), 0, duration_sec)


def read_segments(
    cells: Float[np.ndarray, "n 2"],
    numbers: Int64[np.ndarray, " n"],
    foreground: Float[np.ndarray, " n"] | None,
    action: Float[np.ndarray, "n k"] | None,
    labels: Sequence[str],
    thresholds: Sequence[float],
) -> tuple[Segment, ...]:
    """Returns the segments of a video by the rule above, in order of falling score.

    Args:
      cells: the time [start, end) in seconds that each clip represents.
      numbers: the numbers of the clips among the video's planned clips; neighbours differ by 1.
      foreground: the probability of the temporal region "Action"; None if the model predicts no temporal region.
      action: the probabilities of the action classes; None if the model predicts none.
      labels: the names of the action classes.
      thresholds: the foreground thresholds, each of which gives segments.

    Raises:
      ValueError: both foreground and action are None.
    """
    if foreground is not None:
        deciding = foreground
    elif action is not None:
        deciding = action.max(axis=1)
    else:
        raise ValueError("expected foreground or action probabilities, found neither")
    found: dict[tuple[int, int], Segment] = {}
    for threshold in thresholds:
        kept = np.flatnonzero(deciding >= threshold)
        for run in np.split(kept, np.flatnonzero(np.diff(numbers[kept]) > 1) + 1):
            if not len(run):
                continue
            label, score = groundtruth.ACTION, 1.0
            if foreground is not None:
                score *= float(foreground[run].mean())
            if action is not None:
                means = action[run].mean(axis=0)
                label, score = labels[int(means.argmax())], score * float(means.max())
            start_sec, end_sec = float(cells[run[0], 0]), float(cells[run[-1], 1])
            found[int(run[0]), int(run[-1])] = Segment(label, min(score, 1.0), start_sec, end_sec)
    return tuple(sorted(found.values(), key=lambda item: (-item.score, item.start_sec, item.end_sec)))
