"""Features of videos: `python -m tsp_jax.extract --checkpoint C --videos DIR --output F.h5`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tsp_jax import features, video_list, video_names, weights
from tsp_jax.extraction import engine, failures, flags, parts, stages
from tsp_jax.features import npy_folder
from tsp_jax.system import cli, startup
from tsp_jax.video import searching

_KEPT = "finished videos are kept; run the same command again to continue"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    The status is 0 if all is well, 1 if videos failed or the disk is full, 2 for wrong use, and 130 if it was interrupted.
    """
    return cli.run(_work, _parse(arguments))


def _work(options: argparse.Namespace) -> int:
    startup.prepare_jax(options.device)
    if options.profile is not None:
        Path(options.profile).mkdir(parents=True, exist_ok=True)
    videos = video_list.list_videos(options.videos, options.metadata_csv, options.names, video_list.print_note)
    videos = parts.confine(videos, options, video_list.print_note)
    videos = video_list.shard(videos, options.num_shards, options.shard_id)
    settings = flags.read_settings(options)
    checkpoint = weights.open_any(options.checkpoint)
    errors_csv = Path(f"{Path(options.output)}.errors.csv")
    attributes = engine.run_attributes(checkpoint, settings, parts.kind(options))
    attributes["names"] = options.names or video_names.DEFAULT
    with cli.resumable(_KEPT):
        with cli.terminable(), _writer(options, attributes) as writer:
            summary = engine.extract(
                checkpoint, videos, writer, settings, stop_on_error=options.on_error == "stop", trace_dir=options.profile
            )
            failures.write(errors_csv, summary.failures)
        if options.profile is not None:
            stages.write(Path(options.profile) / "stages.json", summary)
    _print_summary(summary, options.output, errors_csv)
    if options.profile is not None:
        print(*stages.lines(summary, options.profile), sep="\n")
    return 1 if summary.failures else 0


def _writer(options: argparse.Namespace, attributes: features.Attributes) -> features.Writer | npy_folder.Writer:
    if options.output.endswith("/") or Path(options.output).is_dir():
        dtype = options.npy_dtype or "float32"
        return npy_folder.Writer(options.output, attributes, dtype=dtype, overwrite=options.overwrite)
    if options.npy_dtype is not None:
        raise ValueError(f"--npy_dtype is for an --output that is a folder, such as {options.output}/")
    return features.Writer(options.output, attributes, overwrite=options.overwrite)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tsp_jax.extract",
        description="Writes the features of videos into one HDF5 file, or into a folder of .npy files. The same command again "
        "skips finished videos.",
        epilog="example: python -m tsp_jax.extract --checkpoint r2plus1d_34-tsp_on_activitynet --videos videos/ "
        "--output features.h5",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        help="a checkpoint folder, a run's workdir, a .pth or .safetensors file, or a released name",
    )
    add("--videos", required=True, nargs="+", help=f"{searching.HELP}; with --metadata_csv, the folder of its filenames")
    add("--names", choices=video_names.RULES, help=video_names.HELP)
    add("--metadata_csv", help="a CSV with the columns filename, fps, video-frames; without it the files are scanned")
    add(
        "--output",
        required=True,
        help="the HDF5 file to write; or a folder, which exists or ends with /, for a .npy file and a .json file with its "
        "attributes for each video",
    )
    add("--npy_dtype", choices=npy_folder.DTYPES, help="with a folder: the precision of the arrays, by default float32")
    parts.add_flags(parser)
    flags.add_settings(parser)
    startup.add_device(parser)
    add("--num_shards", type=cli.positive_int, default=1, help="number of parts that the list of videos is divided into")
    add("--shard_id", type=int, default=0, help="the part to do, from 0")
    add("--on_error", choices=["skip", "stop"], default="skip", help="what to do after a video that fails")
    add("--overwrite", action="store_true", help="discard what the output holds")
    add(
        "--profile",
        metavar="DIR",
        help="a folder to write stages.json, which shows where the time goes, and a JAX trace of the first batches into",
    )
    return parser.parse_args(arguments)


def _print_summary(summary: engine.Summary, output: str, errors_csv: Path) -> None:
    bound = f"; bound by {summary.bound_by}" if summary.bound_by else ""
    print(
        f"{output}: {summary.videos} videos done, {summary.skipped} done before, {len(summary.failures)} failed or damaged\n"
        f"  {summary.clips} clips in {summary.wall_sec:.1f} s ({summary.clips / max(summary.wall_sec, 1e-9):.2f} clips/s); "
        f"{summary.frames_decoded} frames decoded in {summary.decode_sec:.1f} s of the decoding threads; "
        f"computing for {summary.compute_sec:.1f} s{bound}"
    )
    for line in failures.lines(summary.failures, errors_csv):
        print(line)
    if summary.stopped:
        print("  stopped at the first failure because of --on_error stop; run the same command again to try the rest")


if __name__ == "__main__":
    sys.exit(main())
