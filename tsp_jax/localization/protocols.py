"""The protocols by which detections are scored, as data: each says what its own code does, and where that code is."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from tsp_jax.localization import characteristics, matching


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How detections, proposals or labels of videos are scored.

    Attributes:
      source: the code that gives the same numbers.
      tiou: the tIoU thresholds of detection.
      subset: the subset of the ground truth that is scored by default.
      min_length_sec: shorter annotated instances are dropped, in seconds.
      drop_duplicates: whether an instance is dropped whose class and both times, within 1 ms, are those of an earlier one that
        is kept.
      min_union_sec: unions are at least so many seconds in tIoU; 0 keeps the official 0/0, which counts as a match.
      unknown_labels: what happens to predictions of a label without instances: `stop` is an error, as in code that crashes;
        `skip` drops them and says so.
      matcher: how predictions get instances; `matching.match` explains both ways.
      envelope: whether precision is replaced by the highest precision at any greater recall.
      ambiguous: what happens to THUMOS14's Ambiguous parts: `skip` does not count detections that overlap one and match
        nothing; `drop` acts as if there were none.
      recall_at: the multiples x of Recall@x; empty if the code gives none.
      proposal_tiou: the tIoU thresholds of proposals.
      max_proposals: the largest average number of proposals of a video.
      points: the points of the curve of proposals; None for as many as `max_proposals`.
      videos: the numbers of videos in the published results; empty if not known.
      blocked: the number of videos that the code's own list of blocked videos has.
      buckets: the data set whose ranges of length, coverage and number group the instances in a diagnosis. DETAD has ranges for
        ActivityNet and, for short actions in long videos, for THUMOS14.
    """

    source: str
    tiou: Sequence[float]
    subset: str = "validation"
    min_length_sec: float = -math.inf
    drop_duplicates: bool = False
    min_union_sec: float = 0.0
    unknown_labels: Literal["skip", "stop"] = "stop"
    matcher: matching.Matcher = "by_score"
    envelope: bool = True
    ambiguous: Literal["skip", "drop"] = "drop"
    recall_at: Sequence[int] = ()
    proposal_tiou: Sequence[float] = tuple(np.linspace(0.5, 0.95, 10).tolist())
    max_proposals: int = 100
    points: int | None = 100
    videos: Sequence[int] = ()
    blocked: int = 0
    buckets: characteristics.BucketSet = "activitynet"


def _thresholds(first: float, last: float, count: int) -> tuple[float, ...]:
    # The originals compare with these doubles, some of which are not the nearest ones of two decimals.
    return tuple(np.linspace(first, last, count).tolist())


_ACTIVITYNET = Protocol(
    source="ActivityNet's evaluation code (github.com/activitynet/ActivityNet), without its list of blocked videos",
    tiou=_thresholds(0.5, 0.95, 10),
)
_ABOVE_ZERO_SEC = math.ulp(0.0)  # the smallest positive number: instances of 0 seconds are dropped
_OPENTAD = Protocol(
    source="OpenTAD (github.com/sming256/OpenTAD)",
    tiou=_ACTIVITYNET.tiou,
    min_length_sec=_ABOVE_ZERO_SEC,
    drop_duplicates=True,
    min_union_sec=1e-8,
    unknown_labels="skip",
    recall_at=(1, 5),
    points=None,
)
_THUMOS14 = dataclasses.replace(
    _ACTIVITYNET,
    source="ActivityNet's evaluation code as used for THUMOS14, and the challenge's rule for Ambiguous parts",
    tiou=_thresholds(0.3, 0.7, 5),
    subset="test",
    ambiguous="skip",
    videos=(212, 213),
    buckets="thumos14",
)

PROTOCOLS: dict[str, Protocol] = {
    "activitynet": dataclasses.replace(_ACTIVITYNET, videos=(4926,)),
    "actionformer": Protocol(
        source="ActionFormer (github.com/happyharrycn/actionformer_release)",
        tiou=_ACTIVITYNET.tiou,
        min_length_sec=1e-3,
        drop_duplicates=True,
        unknown_labels="skip",
        recall_at=(1, 5),
    ),
    "opentad": dataclasses.replace(_OPENTAD, videos=(4728,), blocked=198),
    "thumos14": _THUMOS14,
    "thumos14-challenge": dataclasses.replace(
        _THUMOS14, source="the THUMOS14 challenge's evaluation code", matcher="by_instance", envelope=False
    ),
    "thumos14-opentad": dataclasses.replace(_OPENTAD, tiou=_THUMOS14.tiou, subset="test", buckets="thumos14"),
    "hacs": dataclasses.replace(_ACTIVITYNET, source="ActivityNet's evaluation code, as the HACS challenge used it"),
    "fineaction": dataclasses.replace(
        _ACTIVITYNET, source="ActivityNet's evaluation code, as FineAction uses it", buckets="thumos14"
    ),
    "epic-kitchens": dataclasses.replace(
        _ACTIVITYNET,
        source="EPIC-Kitchens' evaluation code (github.com/epic-kitchens/C2-Action-Detection) for verbs or nouns",
        tiou=_thresholds(0.1, 0.5, 5),
        unknown_labels="skip",
        buckets="thumos14",
    ),
    "custom": dataclasses.replace(_ACTIVITYNET, source="ActivityNet's evaluation code with other thresholds", tiou=()),
}
