"""Writes the label mappings of a data set, or of your own ground truth: `python -m data_builders.labels --output DIR …`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_builders import annotation_formats, annotations
from tsp_jax import groundtruth
from tsp_jax.system import cli

ACTION_FILE = "action_label_mapping.json"
TEMPORAL_REGION_FILE = "temporal_region_label_mapping.json"
NUM_CLASSES = {"activitynet": 200, "thumos14": 20}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0 if all is well, 2 for wrong use or wrong input."""
    return cli.run(_work, _parse(arguments))


def _work(options: argparse.Namespace) -> None:
    labels = _labels_of_dataset(options) if options.dataset else _labels_of_groundtruth(options.groundtruth)
    folder = Path(options.output)
    groundtruth.write_label_mapping(folder / ACTION_FILE, labels)
    groundtruth.write_label_mapping(folder / TEMPORAL_REGION_FILE, groundtruth.TEMPORAL_REGIONS)
    print(f"{folder / ACTION_FILE}: {len(labels)} labels, {labels[0]} to {labels[-1]}")
    print(f"{folder / TEMPORAL_REGION_FILE}: {', '.join(groundtruth.TEMPORAL_REGIONS)}")


def _labels_of_dataset(options: argparse.Namespace) -> list[str]:
    """Returns the sorted labels of a data set's annotations; raises ValueError unless their number is the data set's."""
    annotated = annotation_formats.read_actions(options.dataset, options.annotations, None)
    for note in annotated.notes:
        print(f"note: {note}")
    labels = sorted({action.label for items in annotated.actions.values() for action in items})
    expected = NUM_CLASSES[options.dataset]
    if len(labels) != expected:
        raise ValueError(
            f"{options.annotations}: {options.dataset} has {expected} classes, these annotations {len(labels)} "
            f"({', '.join(labels[:3])}, …); give the complete annotations, of ActivityNet version 1.3"
        )
    return labels


def _labels_of_groundtruth(paths: Sequence[str]) -> list[str]:
    """Returns the sorted labels of several ground-truth files; raises ValueError if there are none."""
    labels = groundtruth.action_labels(row for path in paths for row in groundtruth.read_groundtruth(path))
    if not labels:
        raise ValueError(f"{', '.join(paths)}: no action has a label")
    for group in annotations.alike(labels):
        print(
            f"warning: the labels {' and '.join(map(repr, group))} differ only in blanks, case or accents' encoding; if they "
            "are one class, write them alike in all files",
            file=sys.stderr,
        )
    return labels


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_builders.labels",
        description=f"Writes {ACTION_FILE} and {TEMPORAL_REGION_FILE}: lists of labels. "
        "A label's place in its list is its class number.",
        epilog="example: python -m data_builders.labels --dataset activitynet --annotations activity_net.v1-3.min.json "
        "--output labels/",
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", choices=list(NUM_CLASSES), help="the data set that --annotations belong to")
    source.add_argument(
        "--groundtruth", nargs="+", metavar="CSV", help="all files of your own ground truth, for training and validation"
    )
    add("--annotations", help="activitynet: the JSON file; thumos14: the folder of CLASS_val.txt and CLASS_test.txt")
    add("--output", required=True, help="the folder to write the two files into")
    options = parser.parse_args(arguments)
    if bool(options.dataset) != bool(options.annotations):
        parser.error("--dataset and --annotations go together")
    return options


if __name__ == "__main__":
    sys.exit(main())
