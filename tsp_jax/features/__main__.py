"""Lists, joins, imports and exports files of features: `python -m tsp_jax.features info|merge|import|export`."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from tsp_jax import features, video_names
from tsp_jax.localization import feature_exports, feature_formats, feature_sources, resampling
from tsp_jax.system import cli


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status: 0 if all is well, 1 if a file can't be used, 2 on wrong use."""
    return cli.run(_work, _parse(arguments), error_status=1)


def _work(options: argparse.Namespace) -> int:
    if options.command == "info":
        print("\n".join(info(options.file)))
    elif options.command == "merge":
        count = features.merge(options.files, options.output, overwrite=options.overwrite)
        print(f"{options.output}: {count} videos of {len(options.files)} files")
    elif options.command == "import":
        return _import(options)
    else:
        count = feature_exports.export_features(
            options.files,
            options.output,
            options.format,
            plan=resampling.Plan(options.every, options.length, options.resample),
            join=options.join,
            first_channels=options.first_channels,
        )
        print(
            f"{options.output}: {count} {options.format} files"
            if options.format != "h5"
            else f"{options.output}: {count} videos"
        )
    return 0


def info(path: str | Path) -> list[str]:
    """Returns lines that describe a file: the attributes of its run, then one line for each video.

    Raises:
      FeatureFileError: the file is no feature file.
    """
    path = Path(path)
    lines = []
    if waiting := features.unfinished(path):
        lines.append(f"{path}: not finished; {waiting} videos lie in {path}.parts. Run the same command again to finish.")
        if not path.exists():
            return lines
    found = features.contents(path)
    lines.append(f"{path}: {len(found.videos)} videos, {path.stat().st_size / 1e6:.1f} MB")
    lines += [f"  {key}: {value}" for key, value in sorted(found.attributes.items())]
    width = max([len(name) for name in found.videos] + [5])
    lines.append(f"{'video':{width}}  {'clips':>6}  {'fps':>7}  {'frames':>7}  notes")
    try:
        for name, (count, own) in found.videos.items():
            fps, frames = float(own.get("fps", math.nan)), int(own.get("frames", -1))
            lines.append(f"{name:{width}}  {count:6}  {fps:7.3f}  {frames:7}  {own.get('damage', '')}")
    except (ValueError, TypeError, OverflowError) as error:
        raise features.FeatureFileError(f"{path}: not a file of features, or a damaged one ({error}); make it again") from error
    return lines


def export(path: str | Path, folder: str | Path, kind: feature_exports.ExportFormat) -> int:
    """Writes the features of a file as they are, one file for each video; returns their number.

    Raises:
      FeatureFileError: the file is no feature file.
    """
    return feature_exports.export_features([path], folder, kind)


def _import(options: argparse.Namespace) -> int:
    rule = feature_formats.TimingRule(options.stride, options.window, options.fps, options.offset, options.rescaled)
    layout = feature_sources.Layout(
        format=options.format,
        prefix=options.prefix,
        suffixes=tuple(options.suffix),
        key=options.key,
        channels_first=options.channels_first,
        join=options.join,
    )
    done = feature_formats.import_features(
        options.files,
        options.output,
        rule,
        options.metadata_csv,
        layout,
        names=options.names,
        skip_unknown=options.on_unknown == "skip",
        skip_failed=options.on_error == "skip",
        overwrite=options.overwrite,
    )
    print(f"{options.output}: {len(done.videos)} videos of {done.channels} channels, {rule}")
    for names, what in (
        (done.unknown, "features skipped, of no video in the metadata"),
        (done.absent, "videos without features"),
    ):
        if names:
            print(f"{len(names)} {what}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}")
    for reason in done.failed:
        print(f"left out: {reason}", file=sys.stderr)
    return 1 if done.failed else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tsp_jax.features",
        description="Lists, joins, imports and exports files of features.",
        epilog="example: python -m tsp_jax.features merge shard0.h5 shard1.h5 --output features.h5",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("info", help="print what a file holds")
    command.add_argument("file")
    command = commands.add_parser("merge", help="join shards into one file; a video in two of them is refused")
    command.add_argument("files", nargs="+")
    command.add_argument("--output", required=True, help="the joined file")
    command.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    _add_import(commands)
    _add_export(commands)
    return parser.parse_args(arguments)


def _add_import(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "import",
        help="read features of another tool, with their timing, into a file of this project",
        description="Reads features of another tool, with their timing, into a file of this project.",
        epilog="example: python -m tsp_jax.features import i3d_features --output thumos14.h5 --metadata_csv thumos14.csv "
        "--stride 4 --window 16 --fps 30",
    )
    command.add_argument("files", nargs="+", help="folders with a file for each video, or HDF5 files; several are joined")
    command.add_argument("--output", required=True, help="the HDF5 file to write")
    command.add_argument("--metadata_csv", required=True, help="the metadata CSV with the length of each video")
    timing = command.add_argument_group("timing", "--stride, --window and --fps, or --rescaled; nothing of this is guessed")
    timing.add_argument("--stride", type=float, help="frames from the start of one row to the start of the next")
    timing.add_argument("--window", type=float, help="frames that a row covers")
    timing.add_argument(
        "--fps", type=_rate, help="frames per second by which frames count, or `video` for each video's own in the metadata"
    )
    timing.add_argument("--offset", type=float, default=0.0, help="frame at which the first row starts (default: 0)")
    timing.add_argument("--rescaled", type=cli.positive_int, help="rows to which each whole video was rescaled, such as 100")
    layout = command.add_argument_group("layout")
    layout.add_argument("--format", choices=sorted(feature_sources.FORMATS), help="kind of files (default: the folder's only)")
    layout.add_argument("--prefix", default="", help="what file names have before the video's name")
    layout.add_argument("--suffix", nargs="+", default=[""], help="what file names have after it; several are joined in order")
    layout.add_argument("--key", help="name of the array in an archive, dict or HDF5 file (default: the only or usual one)")
    layout.add_argument("--channels_first", action="store_true", help="arrays are [channels, n]")
    _add_join(layout)
    command.add_argument(
        "--names",
        choices=video_names.RULES,
        default=video_names.DEFAULT,
        help="how the output names a video after its file in the metadata (default: first_dot)",
    )
    for flag, cause in (
        ("--on_unknown", "features of a video that the metadata does not have"),
        ("--on_error", "features that can't be read or do not fit their video"),
    ):
        command.add_argument(flag, choices=["stop", "skip"], default="stop", help=f"what to do about {cause} (default: stop)")
    command.add_argument("--overwrite", action="store_true", help="replace the output if it exists")


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "export",
        help="write features for other tools",
        description="Writes features for other tools, one file for each video; h5 writes one file.",
        epilog="example: python -m tsp_jax.features export features.h5 --output csv_mean_100 --format csv --length 100 "
        "--resample bmn",
    )
    command.add_argument("files", nargs="+", help="files of features; several are joined on the channels")
    command.add_argument("--output", required=True, help="the folder to write to; for h5 the file")
    command.add_argument(
        "--format",
        choices=feature_exports.EXPORT_FORMATS,
        default="npy",
        help="pkl is what the original of TSP writes, csv BMN's, slowfast TCANet's, pgcn P-GCN's, bmt BMT's (default: npy)",
    )
    command.add_argument("--every", type=cli.positive_int, default=1, help="keep one row of this many (default: 1)")
    command.add_argument("--length", type=cli.positive_int, help="rows to which each video is resampled (default: as they are)")
    command.add_argument(
        "--resample",
        choices=resampling.METHODS,
        default="linear",
        help="linear as ActionFormer, OpenTAD and G-TAD do, bmn as BMN's features were made (default: linear)",
    )
    command.add_argument(
        "--first_channels",
        type=cli.positive_int,
        help="channels of the slow path (slowfast) or of _rgb (bmt); the rest are the fast path or _flow (default: those of "
        "the first part of joined features, or else all)",
    )
    _add_join(command)


def _rate(text: str) -> float | str:
    """Returns the flag's frames per second, or `video`; for argparse."""
    try:
        return text if text == "video" else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number, or video; got {text!r}") from error


def _add_join(command: "argparse._ActionsContainer") -> None:
    command.add_argument(
        "--join",
        choices=feature_sources.JOINS,
        default="equal",
        help="rows of joined parts: refuse different numbers (equal), cut to the shortest, or interpolate to the longest or "
        "the first (default: equal)",
    )


if __name__ == "__main__":
    sys.exit(main())
