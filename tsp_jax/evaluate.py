"""Scores predictions by the protocol of a data set: `python -m tsp_jax.evaluate --predictions P.json --groundtruth G`.

It prints a table headed by the protocol, what was compared, and what was dropped and why. From Python, `tsp_jax.evaluate` gives
the same scores as arrays.
"""

import argparse
import json
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from tsp_jax.localization import (
    annotations,
    comparison,
    detections,
    diagnosis,
    diagnosis_tables,
    evaluation,
    protocols,
    segments,
)
from tsp_jax.localization.evaluation import Scores, evaluate
from tsp_jax.system import cli, files

__all__ = ["Scores", "evaluate", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0 if the predictions were scored, 2 if they or the flags can't be used."""
    return cli.run(_work, _parse(arguments))


class _Callable(types.ModuleType):
    """Lets `tsp_jax.evaluate` be called, although it is this module as soon as something has imported it."""

    def __call__(self, *arguments: Any, **flags: Any) -> Scores:
        return evaluate(*arguments, **flags)


sys.modules[__name__].__class__ = _Callable


def _work(options: argparse.Namespace) -> None:
    inputs = [*options.predictions, options.groundtruth, options.blocked_videos, options.labels]
    output = options.output
    if output and output.exists() and any(path and path.exists() and output.samefile(path) for path in inputs):
        raise segments.EvaluationError(f"--output {output} is a file that is read here; name another")
    found = evaluate(
        options.predictions,
        options.groundtruth,
        options.protocol,
        task=options.task,
        subset=options.subset,
        blocked_videos=options.blocked_videos,
        on_unknown=options.on_unknown,
        labels=options.labels,
        label_column=options.label_column,
        tiou=options.tiou,
        max_proposals=options.max_proposals,
        proposal_rule=options.proposal_rule,
        diagnose=options.diagnose,
        detad=options.detad,
    )
    if output:
        with files.replacing(output) as temporary:
            temporary.write_text(json.dumps(found.to_json(), ensure_ascii=False, indent=1, allow_nan=False), encoding="utf-8")
    print("\n".join(_page(found, options.per_class)))


def _page(found: Scores, per_class: bool) -> Iterator[str]:
    """Yields the lines that the command prints."""
    compared = found.comparison
    yield f"protocol: {found.protocol}, {found.rules.source}"
    for role, source in found.sources.items():
        yield f"{role}: {source.path} (SHA-256 {source.sha256[:12]}…)"
    subset = f" of subset {found.subset}" if found.subset else ""
    counts = [
        comparison.counted(compared.num_videos, "video") + subset,
        comparison.counted(len(compared.truth), "instance"),
        f"{len(compared.labels):,} class{'es' if len(compared.labels) != 1 else ''}",
        comparison.counted(len(compared.predicted), "prediction"),
    ]
    yield ", ".join(counts)
    if found.class_scores:
        yield f"scores of classes from elsewhere: {found.class_scores}"
    for note in found.notes:
        yield f"note: {note}"
    yield ""
    if found.detection is not None:
        scored = found.detection
        heads = [f"Recall@{multiple}x" for multiple in scored.recall_at]
        rows = [
            [name, _percent(value), *map(_percent, recalls)]
            for name, value, recalls in zip(
                evaluation.tiou_names(scored.tiou), scored.map_by_tiou, scored.mean_recall.T, strict=True
            )
        ]
        averages = [_percent(scored.average_map), *(_percent(values.mean()) for values in scored.mean_recall)]
        yield from _table(["tIoU", "mAP %", *(f"{head} %" for head in heads)], [*rows, ["average", *averages]])
        if per_class:
            names = evaluation.tiou_names(scored.tiou)
            lines = [
                [label, f"{scored.instances[row]:,}", *map(_percent, scored.ap[row]), _percent(scored.ap[row].mean())]
                for row, label in enumerate(found.labels)
            ]
            yield ""
            yield from _table(["AP % of class", "instances", *names, "average"], lines)
    if found.diagnosis is not None:
        yield from _diagnosis_page(found.diagnosis)
    if found.proposals is not None:
        rows = [[f"{number:.10g}", _percent(value)] for number, value in found.average_recall.items()]
        yield from _table(["proposals", "AR %"], rows)
        last = f"up to {found.proposals.proposals[-1]:.10g} proposals of a video on average"
        auc = found.proposals.auc
        yield f"AUC {auc:.2f} % {last}" if auc is not None else f"no AUC: the curve {last} has one point"
    if found.classification is not None:
        scored = found.classification
        rows = [
            [f"{k}", _percent(hit), _percent(mean)]
            for k, hit, mean in zip(scored.top_k, scored.hit, scored.mean_hit, strict=True)
        ]
        yield from _table(["top", "hit %", "average hit %"], rows)
        yield f"mAP {_percent(scored.mean_ap)} %"
        if per_class:
            lines = [[label, f"{scored.instances[row]:,}", _percent(scored.ap[row])] for row, label in enumerate(found.labels)]
            yield ""
            yield from _table(["AP % of class", "videos", "AP %"], lines)


def _diagnosis_page(found: diagnosis.Diagnosis) -> Iterator[str]:
    yield f"\ndiagnosis ({found.detad}, after DETAD): {diagnosis_tables.summary(found)}"
    for note in found.notes:
        yield f"note: {note}"
    for table in diagnosis_tables.tables(found):
        yield f"\n{table.title}"
        yield from _table(table.heads, table.rows)


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields the lines of a table whose first column is aligned left and whose others are aligned right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in [heads, *rows]:
        first, *others = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
        yield "  ".join([row[0].ljust(len(first)), *others])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tsp_jax.evaluate",
        description=__doc__,
        epilog="protocols: "
        + "; ".join(f"{name}: {rules.source}" for name, rules in protocols.PROTOCOLS.items())
        + ". example: python -m tsp_jax.evaluate --predictions detections.json --groundtruth activity_net.v1-3.min.json "
        "--protocol activitynet --output scores.json",
    )
    add = parser.add_argument
    # fmt: off
    add("--predictions", required=True, type=Path, nargs="+", metavar="FILE",
        help="ActivityNet's result JSON, as OpenTAD and `python -m tsp_jax.predict` write it too, or ActionFormer's pickle; "
        "several files of different videos are joined")
    add("--groundtruth", required=True, type=Path, metavar="FILE",
        help="JSON in ActivityNet's layout (HACS, FineAction, THUMOS14), THUMOS14's folder of text files, an EPIC-Kitchens CSV "
        "or the CSV of `python -m data_builders.groundtruth`")
    add("--protocol", required=True, choices=list(protocols.PROTOCOLS), help="whose rules are followed; see below")
    add("--task", default="detection", choices=get_args(detections.Task),
        help="what is scored: segments with labels (mAP), segments alone (AR@AN), or labels of whole videos; default detection")
    add("--subset", help="the subset of the ground truth; the protocol's by default")
    add("--blocked_videos", type=Path, metavar="LIST.json", help="a JSON list of videos to drop, with or without `v_`")
    add("--on_unknown", choices=get_args(comparison.OnUnknown),
        help="predictions of videos and labels that the ground truth does not have are dropped (skip) or an error (stop). By "
        "default such videos count as false positives, and such labels are treated as the protocol's own code does")
    add("--labels", type=Path, metavar="LIST.json",
        help="a JSON list of class names in the order of their numbers, if labels are numbers")
    add("--label_column", choices=get_args(annotations.LabelColumn), help="the classes of an EPIC-Kitchens CSV to compare")
    add("--tiou", type=float, nargs="+", metavar="T", help="tIoU thresholds; the protocol's by default")
    add("--max_proposals", type=_count_or_all, metavar="N",
        help="the largest average number of proposals of a video, or `all` for the file's; the protocol's by default")
    add("--proposal_rule", default="ratio", choices=get_args(evaluation.ProposalRule),
        help="which proposals are used at each number: the same share of every video's (ratio, the official rule, default), or "
        "every video's first ones (top_k)")
    add("--per_class", action="store_true", help="also print the scores of each class")
    add("--diagnose", action="store_true",
        help="also analyse the errors of detections as DETAD does: kinds of false positives, what each costs, and how well "
        "instances of each length, coverage and number are found")
    add("--detad", default="mended", choices=get_args(diagnosis.Detad),
        help="whether the analysis repeats the faults of DETAD's code (faithful) or not (mended, default)")
    add("--output", type=Path, metavar="SCORES.json", help="also write all scores, and how they were made, as JSON")
    # fmt: on
    options = parser.parse_args(arguments)
    if options.diagnose and options.task != "detection":
        parser.error(f"--diagnose is for detections; --task is {options.task}")
    return options


def _count_or_all(text: str) -> int | str:
    return text if text == "all" else cli.positive_int(text)


if __name__ == "__main__":
    sys.exit(main())
