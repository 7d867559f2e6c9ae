"""Describes the errors of detections for a report, from the JSON that `python -m tsp_jax.evaluate --diagnose` writes."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import msgspec

from tsp_jax.localization import characteristics, detections, diagnosis, diagnosis_tables, false_positives
from tsp_jax.report import figures, training_section
from tsp_jax.system import texts

_GREEN = figures.COLOURS[2]
COLOURS = (_GREEN, *(colour for colour in figures.COLOURS if colour != _GREEN))  # of `false_positives.KINDS`
_EXPECTED = "expected the JSON that `python -m tsp_jax.evaluate --diagnose --output` writes"


@dataclasses.dataclass(frozen=True)
class Section:
    """The error analysis of a report.

    Attributes:
      source: the file of scores.
      protocol: the protocol of the scores.
      found: the analysis.
      summary: a sentence with the numbers that all tables start from.
      legend: the colours of the kinds of predictions, with their names.
      charts: the pictures.
      tables: the numbers.
    """

    source: str
    protocol: str
    found: diagnosis.Diagnosis
    summary: str
    legend: list[tuple[str, str]]
    charts: list[training_section.Chart]
    tables: list[diagnosis_tables.Table]


def read(path: str) -> Section:
    """Returns the error analysis of a file of scores.

    Raises:
      OSError, ValueError: the file is missing, or holds something else.
    """
    detections.check_size(Path(path), _EXPECTED)
    content = texts.read_json(Path(path), _EXPECTED)
    if not isinstance(content, dict) or "diagnosis" not in content:
        what = "scores without a diagnosis" if isinstance(content, dict) and "protocol" in content else "something else"
        raise ValueError(f"{path}: {_EXPECTED}, found {what}")
    try:
        found = msgspec.convert(content["diagnosis"], diagnosis.Diagnosis)
        _check(found)
    except (msgspec.ValidationError, ValueError) as error:
        raise ValueError(f"{path}: {_EXPECTED}; its diagnosis does not fit: {error}") from error
    return Section(
        source=str(path),
        protocol=str(content.get("protocol")),
        found=found,
        summary=diagnosis_tables.summary(found),
        legend=list(zip(COLOURS, false_positives.KINDS, strict=False)),
        charts=[*_false_positives(found), *_characteristics(found)],
        tables=diagnosis_tables.tables(found),
    )


def _check(found: diagnosis.Diagnosis) -> None:
    """Checks that the names are those that a diagnosis has, and that what is drawn are shares.

    Raises:
      ValueError: another name or number is there.
    """
    values = [found.scored.average_mAP_N, *(pair.missed for pair in found.coverage_and_length.values())]
    wrong = found.false_positives
    if wrong is not None:
        _same("groups of false positives", wrong.groups, [f"{k + 1}G" for k in range(false_positives.GROUPS)])
        _same("costs", wrong.cost, false_positives.KINDS[1:])
        values += [wrong.scored.average_mAP_N, *wrong.cost.values()]
        for group in (*wrong.groups.values(), wrong.all):
            _same("kinds of predictions", group.share, false_positives.KINDS)
            values += group.share.values()
    table = characteristics.BUCKETS[found.buckets]
    for name, ranges in found.characteristics.items():
        if name not in table:
            raise ValueError(f"expected characteristics from {', '.join(table)}, found {name!r:.80}")
        _same(f"ranges of {name}", ranges, table[name].names)
        for item in ranges.values():
            values += [item.share, item.average_mAP_N, item.missed]
    if not all(value is None or -1 <= value <= 1 for value in values):
        raise ValueError("expected shares and their differences, found a number below -1 or above 1")


def _same(what: str, found: Iterable[str], expected: Iterable[str]) -> None:
    if list(found) != list(expected):
        raise ValueError(f"expected the {what} {', '.join(expected)}, found {', '.join(found)!r:.80}")


def _false_positives(found: diagnosis.Diagnosis) -> list[training_section.Chart]:
    wrong = found.false_positives
    if wrong is None:
        return []
    colours = dict(zip(false_positives.KINDS, COLOURS, strict=False))
    profile = [
        figures.Bar(name, [(group.share[kind] or 0.0, colour) for kind, colour in colours.items()])
        for name, group in wrong.groups.items()
    ]
    costs = [figures.Bar(kind.replace(" ", "\n"), [(cost or 0.0, colours[kind])]) for kind, cost in wrong.cost.items()]
    said = "; ".join(f"{kind} {diagnosis_tables.percent(value)} %" for kind, value in wrong.all.share.items())
    gains = "; ".join(f"{kind} {diagnosis_tables.percent(value)}" for kind, value in wrong.cost.items())
    return [
        training_section.Chart("What predictions are", figures.bars([profile]), f"over all groups: {said}"),
        training_section.Chart("Normalized mAP gained without each kind", figures.bars([costs]), f"in points: {gains}"),
    ]


def _characteristics(found: diagnosis.Diagnosis) -> list[training_section.Chart]:
    charts = []
    for title, attribute, line in (
        ("Normalized mAP by range", "average_mAP_N", found.scored.average_mAP_N),
        ("Missed instances by range", "missed", None),
    ):
        groups, said = [], []
        for number, (name, ranges) in enumerate(found.characteristics.items()):
            colour = figures.COLOURS[number]
            labels = list(ranges)
            labels[len(labels) // 2] += f"\n{name.replace('-', ' ')}"
            values: list[float | None] = [getattr(item, attribute) for item in ranges.values()]
            groups.append([figures.Bar(label, [(value or 0.0, colour)]) for label, value in zip(labels, values, strict=True)])
            texts_of = (f"{key} {diagnosis_tables.percent(value)}" for key, value in zip(ranges, values, strict=True))
            said.append(f"{name}: {', '.join(texts_of)}")
        if groups:
            charts.append(training_section.Chart(title, figures.bars(groups, line=line), f"in %: {'; '.join(said)}"))
    return charts
