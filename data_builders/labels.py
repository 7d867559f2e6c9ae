"""Writes the label mappings of a data set, or of one's own ground truth: `python -m data_builders.labels --output DIR …`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_builders import annotation_formats
from tsp_jax import groundtruth
from tsp_jax.system import cli

ACTION_FILE = "action_label_mapping.json"
TEMPORAL_REGION_FILE = "temporal_region_label_mapping.json"
NUM_CLASSES = {"activitynet": 200, "thumos14": 20}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0 all well, 2 wrong use or wrong input."""
    options = _parse(arguments)
    cli.show_any_name()
    try:
        if options.dataset:
            actions = annotation_formats.read_actions(options.dataset, options.annotations, None)
            labels = sorted({action.label for items in actions.values() for action in items})
            expected = NUM_CLASSES[options.dataset]
            if len(labels) != expected:
                raise ValueError(
                    f"{options.annotations}: {options.dataset} has {expected} classes, these annotations {len(labels)} "
                    f"({', '.join(labels[:3])}, …); give the complete annotations, of ActivityNet version 1.3"
                )
        else:
            labels = groundtruth.action_labels(
                row for path in options.groundtruth for row in groundtruth.read_groundtruth(path)
            )
            if not labels:
                raise ValueError(f"{', '.join(options.groundtruth)}: no action has a label")
        folder = Path(options.output)
        groundtruth.write_label_mapping(folder / ACTION_FILE, labels)
        groundtruth.write_label_mapping(folder / TEMPORAL_REGION_FILE, groundtruth.TEMPORAL_REGIONS)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{folder / ACTION_FILE}: {len(labels)} labels, {labels[0]} to {labels[-1]}")
    print(f"{folder / TEMPORAL_REGION_FILE}: {', '.join(groundtruth.TEMPORAL_REGIONS)}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_builders.labels",
        description=f"Writes {ACTION_FILE} and {TEMPORAL_REGION_FILE}: lists of labels, whose places are the class numbers.",
        epilog="example: python -m data_builders.labels --dataset activitynet --annotations activity_net.v1-3.min.json "
        "--output labels/",
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", choices=list(NUM_CLASSES), help="whose --annotations follow")
    source.add_argument("--groundtruth", nargs="+", metavar="CSV", help="one's own: all its files, training and validation")
    add("--annotations", help="activitynet: the JSON file; thumos14: the folder of CLASS_val.txt and CLASS_test.txt")
    add("--output", required=True, help="the folder of the two files")
    options = parser.parse_args(arguments)
    if bool(options.dataset) != bool(options.annotations):
        parser.error("--dataset and --annotations go together")
    return options


if __name__ == "__main__":
    sys.exit(main())
