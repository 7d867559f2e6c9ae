"""Writes one HTML page about features: `python -m tsp_jax.report --features F.h5 --groundtruth T.csv --output report.html`.

The page is one file that needs no network. It shows the features of each video next to its ground truth and predictions, all
clips in two dimensions, how well a linear probe separates actions from background, how training went, and where detections
fail.
"""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from tsp_jax.report import diagnosis_section, page, training_section
from tsp_jax.system import cli, files
from tsp_jax.video import searching


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0 if all is well, 1 if a file can't be used or read, 2 on wrong use."""
    return cli.run(_work, _parse(arguments), error_status=1)


def _work(options: argparse.Namespace) -> int:
    with cli.resumable(f"{options.output} is not written"):
        title = "Training curves" if options.metrics else "Errors of detections"
        shown = page.of_features(options) if options.features else page.Page(title=title)
        if options.metrics:
            shown = dataclasses.replace(shown, training=training_section.read(options.metrics))
        if options.scores:
            shown = dataclasses.replace(shown, diagnosis=diagnosis_section.read(options.scores))
        text = page.render(shown)
        with files.replacing(options.output) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for note in shown.notes:
        print(f"note: {note}", file=sys.stderr)
    for probe in shown.probes:
        print(f"linear probe of {probe.model}: {100 * probe.score.held_out:.1f} % balanced accuracy, {probe.score.clips} clips")
    runs = len(shown.training.runs) if shown.training else 0
    pictured = sum(part.pictures is not None for part in shown.videos)
    print(f"{options.output}: {len(text.encode()) / 1e6:.1f} MB; {len(shown.videos)} videos, {pictured} pictured; {runs} runs")
    return 1 if shown.unread else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tsp_jax.report",
        description="Writes one HTML page about features, predictions and training, which needs no network.",
        epilog="example: python -m tsp_jax.report --features tsp.h5 tac.h5 --names TSP TAC --groundtruth valid.csv "
        "--videos videos --metrics runs/tsp/metrics.jsonl runs/tac/metrics.jsonl --output report.html",
    )
    add = parser.add_argument
    add("--features", nargs="+", action="extend", default=[], metavar="H5",
        help="features of the same videos, one file for each model")  # fmt: skip
    add("--names", nargs="+", action="extend", metavar="NAME", help="names of the models, one for each of --features")
    add("--groundtruth", metavar="CSV", help="segments, as `python -m data_builders.groundtruth` writes them")
    add("--probe_groundtruth", metavar="CSV",
        help="segments of other videos of --features, on which the linear probe is fitted; the page shows the rest. By default "
        "the probe is fitted on the first, third, … video of --groundtruth by name, and measured on the others")  # fmt: skip
    add("--predictions", metavar="JSON", help="predictions of these videos, as `python -m tsp_jax.predict` writes them")
    add("--videos", nargs="+", metavar="PATH", help=f"the videos, of which frames are shown: {searching.HELP}")
    add("--metrics", "--plot", nargs="+", action="extend", default=[], metavar="JSONL",
        help="metrics.jsonl of training runs, whose curves are drawn")  # fmt: skip
    add("--scores", metavar="JSON",
        help="scores of detections with an analysis of their errors, which is drawn, as `python -m tsp_jax.evaluate --diagnose "
        "--output` writes them")  # fmt: skip
    add("--max_videos", type=cli.non_negative_int, default=50, metavar="N",
        help="the number of videos that get pictures, the first by name (50)")  # fmt: skip
    add("--output", required=True, metavar="HTML", help="the page")
    options = parser.parse_args(arguments)
    if not options.features and not options.metrics and not options.scores:
        parser.error("give --features, --metrics or --scores, or several of them")
    if not options.features:
        needless = ("names", "groundtruth", "probe_groundtruth", "predictions", "videos")
        given = [f"--{name}" for name in needless if getattr(options, name)]
        if given:
            parser.error(f"{', '.join(given)} can only be used with --features")
    if options.names is not None and len(options.names) != len(options.features):
        parser.error(f"--features has {len(options.features)} files and --names has {len(options.names)} names; give one each")
    if options.probe_groundtruth and not options.groundtruth:
        parser.error("--probe_groundtruth needs --groundtruth, on which the probe is measured")
    output = Path(options.output)
    tables = (options.groundtruth, options.probe_groundtruth, options.predictions, options.scores)
    inputs = [*options.features, *options.metrics, *(path for path in tables if path)]
    with contextlib.suppress(ValueError, OSError):  # names that no file can have are reported when they are used
        if output.is_dir():
            parser.error(f"--output {output} is a folder; name a file, such as {output / 'report.html'}")
        if output.resolve() in {Path(path).resolve() for path in inputs}:
            parser.error(f"--output {output} is one of the files to read")
    return options


if __name__ == "__main__":
    sys.exit(main())
