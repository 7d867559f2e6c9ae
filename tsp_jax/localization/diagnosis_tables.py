"""Shows a diagnosis as tables of text, for a terminal and a page."""

import dataclasses

from tsp_jax.localization import characteristics, false_positives
from tsp_jax.localization.diagnosis import Diagnosis


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      title: a sentence that says what the table shows.
      heads: the heads of the columns.
      rows: the rows, each as long as `heads`.
    """

    title: str
    heads: list[str]
    rows: list[list[str]]


def summary(found: Diagnosis) -> str:
    """Returns a sentence with the numbers that all tables start from."""
    return (
        f"normalized mAP {percent(found.scored.average_mAP_N)} % over {found.instances:,} instances of {found.classes:,} "
        f"classes (N = {found.instances_per_class:.4g} of a class), averaged over {len(found.scored.mAP_N)} tIoU thresholds"
    )


def tables(found: Diagnosis) -> list[Table]:
    """Returns the tables of a diagnosis. Shares are in percent; `-` is a number that is not defined."""
    return [*_false_positives(found), *_characteristics(found), *_coverage_and_length(found)]


def percent(value: float | None) -> str:
    """Returns a share as text, in percent with two decimals; `-` for None."""
    return "-" if value is None else f"{100 * value:.2f}"


def _false_positives(found: Diagnosis) -> list[Table]:
    wrong = found.false_positives
    if wrong is None:
        return []
    groups = [
        [name, f"{group.predictions:,}", *(percent(group.share[kind]) for kind in false_positives.KINDS)]
        for name, group in [*wrong.groups.items(), ("all", wrong.all)]
    ]
    costs = [[kind, percent(wrong.all.share[kind]), percent(wrong.cost[kind])] for kind in false_positives.KINDS[1:]]
    return [
        Table(
            "What predictions are, in % (1G: the first G predictions of each class with G instances; 2G: the next G)",
            ["group", "predictions", *false_positives.KINDS],
            groups,
        ),
        Table(
            f"What false positives cost, in points of normalized mAP (which is {percent(wrong.scored.average_mAP_N)} %)",
            ["kind", "% of predictions", "mAP without them"],
            [[kind, share, cost if cost.startswith("-") else f"+{cost}"] for kind, share, cost in costs],
        ),
    ]


def _characteristics(found: Diagnosis) -> list[Table]:
    buckets = characteristics.BUCKETS[found.buckets]
    return [
        Table(
            f"By {name} ({characteristics.MEANING[name]})",
            ["range", "values", "instances", "% of instances", "normalized mAP %", "missed %"],
            [
                [
                    label,
                    characteristics.span(buckets[name], label),
                    f"{item.instances:,}",
                    percent(item.share),
                    percent(item.average_mAP_N),
                    percent(item.missed),
                ]
                for label, item in ranges.items()
            ],
        )
        for name, ranges in found.characteristics.items()
    ]


def _coverage_and_length(found: Diagnosis) -> list[Table]:
    if not found.coverage_and_length:
        return []
    buckets = characteristics.BUCKETS[found.buckets]
    pairs, columns = found.coverage_and_length, buckets["length"].names
    rows = [
        [name, *(percent(pairs[f"{name}/{other}"].missed) if f"{name}/{other}" in pairs else "-" for other in columns)]
        for name in buckets["coverage"].names
    ]
    return [Table("Missed %, by coverage (rows) and length (columns)", ["coverage", *columns], rows)]
