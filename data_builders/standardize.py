"""Brings videos to a constant 30 fps: `python -m data_builders.standardize --input DIR --output DIR` writes H.264 mp4."""

import argparse
import concurrent.futures
import csv
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from tsp_jax import video_list, video_names
from tsp_jax.system import cli, cpu, errors, files, progress, tables
from tsp_jax.video import scanning, searching, writing

FPS = 30  # the original's frame rate, in which its ground truth counts frames
ERRORS_FILE = "errors.csv"
_COLUMNS = ("filename", "outcome", "reason")
_LEFT_OUT, _CUT_SHORT, _DAMAGED = "left out", "cut short", "damaged"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    The status is 0 if all is well, 1 if videos are left out or cut short or the disk is full, 2 for wrong use, and 130 if it
    was interrupted.
    """
    return cli.run(_work, _parse(arguments))


def _work(options: argparse.Namespace) -> int:
    output = Path(options.output)
    found = searching.find(options.input, "--input")
    for line in found.notes:
        video_list.print_note(line)
    targets = plan(found, output)
    output.mkdir(parents=True, exist_ok=True)
    done = {path for path in targets if targets[path].exists() and not options.overwrite}
    failures = _Failures(output / ERRORS_FILE, {found.filename(path) for path in done})
    to_do = [path for path in targets if path not in done]
    num_frames = 0
    with cli.resumable("finished videos are kept; run the command again to go on"):
        with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
            jobs = pool.map(
                lambda path: _standardize_listed(path, targets[path], found.filename(path), options.crf, failures), to_do
            )
            for frames in progress.each(jobs, "standardize", len(to_do)):
                num_frames += frames
        rows = failures.close()
    for filename, outcome, reason in rows:
        print(f"{outcome}: {filename}: {reason}", file=sys.stderr)
    left_out = sum(outcome == _LEFT_OUT for _, outcome, _ in rows)
    print(
        f"{output}: {len(to_do) - left_out} videos written ({num_frames} frames at {FPS} fps), {len(done)} were there; "
        f"{len(rows) - left_out} damaged or cut short, {left_out} unreadable and left out"
    )
    if rows:
        raise errors.UnfinishedError(f"{len(rows)} of {len(targets)} videos are not whole; see {output / ERRORS_FILE}")
    return 0


def plan(found: searching.Found, output: Path) -> dict[Path, Path]:
    """Returns the file to write for each video. It has the video's subfolder and name, but ends with `.mp4`.

    Args:
      found: the videos. Those of a folder must lie outside the output, and the output outside the folder.
      output: the folder to write into.

    Raises:
      ValueError: the output is the input or lies within it, or two videos would become one file.
    """
    resolved = output.resolve()
    for folder in found.searched:
        if resolved.is_relative_to(folder.resolve()):
            raise ValueError(
                f"--output {output}: within --input {folder}, so the next run would take it for input; choose another folder"
            )
    targets = {path: output / f"{video_names.without_extension(found.filename(path))}.mp4" for path in found.paths}
    sources = defaultdict(list)
    for path, target in targets.items():
        if target.exists() and target.samefile(path):
            raise ValueError(f"--output {output}: {path} would be overwritten; choose another folder")
        sources[target].append(str(path))
    faults = [f"{' and '.join(same)} would both become {target}" for target, same in sources.items() if len(same) > 1]
    if faults:
        raise ValueError(f"{'; '.join(faults)}; rename or remove one")
    return targets


def standardize(
    source: Path, target: Path, crf: int, note_problem: Callable[[str, str], object] | None = None
) -> writing.Resampled:
    """Writes a video at 30 fps, whole or not at all, and returns what came of it.

    `writing.resample` explains which frames are chosen, and what becomes of damaged ones.

    Args:
      source: the video to read.
      target: the mp4 file to write. Its folder is made if it is absent.
      crf: x264's quality, from 0 (lossless) to 51.
      note_problem: is called with "damaged" or "cut short" and the reason, before such a video is moved into place.

    Raises:
      VideoError: the video can't be read.
      OSError: the file can't be written.
    """
    with files.replacing(target) as temporary:
        written = writing.resample(source, temporary, FPS, crf=crf)
        if written.problem and note_problem is not None:
            outcome = _CUT_SHORT if written.cut_short else _DAMAGED
            note_problem(outcome, f"{written.problem}; {written.frames} frames at {FPS} fps are kept")
    return written


class _Failures:
    """The CSV of videos that are not whole. It is written after each video, so that it outlives a killed run.

    A damaged video of an earlier run stays in the list as long as its output stays.
    """

    def __init__(self, path: Path, done: set[str]):
        self.path, self.lock = path, threading.Lock()
        self.rows: list[tuple[str, str, str]] = []
        if path.exists():
            with open(path, newline="", encoding="utf-8", errors="surrogateescape") as stream:
                rows = [row for row in csv.reader(stream) if len(row) == len(_COLUMNS)]
            # The last row of a video is the valid one.
            latest = {filename: (filename, outcome, reason) for filename, outcome, reason in rows if filename in done}
            self.rows = [row for row in latest.values() if row[1] != _LEFT_OUT]
        self._write()

    def add(self, filename: str, outcome: str, reason: str) -> None:
        with self.lock:
            self.rows.append((filename, outcome, reason))
            with open(self.path, "a", newline="", encoding="utf-8", errors="surrogateescape") as stream:
                csv.writer(stream, lineterminator="\n").writerow(self.rows[-1])

    def close(self) -> list[tuple[str, str, str]]:
        self.rows.sort()
        self._write()
        return self.rows

    def _write(self) -> None:
        tables.write_table(self.path, _COLUMNS, self.rows, errors="surrogateescape")


def _standardize_listed(source: Path, target: Path, filename: str, crf: int, failures: _Failures) -> int:
    """Writes a video and returns its number of frames. A video that fails is listed and has 0 frames."""
    try:
        if fault := searching.picture_fault(source):
            raise scanning.VideoError(fault)
        written = standardize(source, target, crf, lambda outcome, reason: failures.add(filename, outcome, reason))
        for note in written.notes:
            video_list.print_note(f"{source}: {note}")
        return written.frames
    except (scanning.VideoError, OSError) as error:
        target.unlink(missing_ok=True)  # with --overwrite, the output of an earlier run no longer matches its source
        failures.add(filename, _LEFT_OUT, str(error))
        return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_builders.standardize",
        description=f"Writes every video as H.264 mp4 at constant {FPS} fps, as `ffmpeg -filter:v fps=fps={FPS}` does, upright "
        f"and without sound. If it was stopped, the same command goes on. In place of damaged frames the picture before is "
        f"shown. Damaged and unreadable videos are listed in OUTPUT/{ERRORS_FILE}.",
        epilog="example: python -m data_builders.standardize --input downloads/ --output videos/",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--input", required=True, nargs="+", help=searching.HELP)
    add("--output", required=True, help="another folder; subfolders and names stay, but files end with .mp4")
    add("--workers", type=cli.positive_int, default=cpu.cores(), help="number of videos converted at once, one core each")
    add(
        "--crf",
        type=int,
        default=23,
        help="x264's quality, from 0 (lossless) to 51; the default is ffmpeg's, as in the original",
    )
    add("--overwrite", action="store_true", help="convert videos again whose output exists")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
