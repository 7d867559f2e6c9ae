"""Exports features for other tools, as they are or resampled on the time axis as those tools do."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from tsp_jax import clip_times, features
from tsp_jax.features import hdf5
from tsp_jax.localization import feature_files, feature_formats, feature_sources, resampling
from tsp_jax.system import errors, files, progress, tables

ExportFormat = Literal["npy", "npz", "pkl", "csv", "slowfast", "pgcn", "bmt", "h5"]
EXPORT_FORMATS: tuple[str, ...] = get_args(ExportFormat)


def export_features(
    paths: Sequence[str | Path],
    output: str | Path,
    kind: ExportFormat,
    *,
    plan: resampling.Plan | None = None,
    join: feature_sources.Join = "equal",
    first_channels: int | None = None,
) -> int:
    """Writes features for other tools; returns the number of videos.

    Everything that can be checked is checked before anything is written. Each file is written whole.

    Args:
      paths: files of features of this project; several are joined on the channels.
      output: the folder; for `h5` the file.
      kind: the format.
      plan: how the features are resampled; None keeps the rows.
      join: which number of rows joined features have.
      first_channels: channels of the slow path (`slowfast`) or of `_rgb` (`bmt`). None takes those of the first part of a
        joined import, or else all.

    Raises:
      OSError, ValueError, FeatureFileError: a file can't be read or written, or the features do not fit the format.
    """
    plan = plan or resampling.Plan()
    jobs = _jobs([Path(path) for path in paths], join, plan, kind, first_channels)
    if kind == "h5":
        return _export_file(jobs, Path(output), plan, join, [Path(path) for path in paths])
    folder, lock = Path(output), Path(output) / ".lock"
    files.make_folder(folder)
    try:
        with (
            files.locked(lock, f"another export is writing here ({folder}); name another --output"),
            contextlib.ExitStack() as end,
        ):
            end.callback(lock.unlink, missing_ok=True)
            for name, job in progress.each(jobs.items(), "export", len(jobs)):
                for ending, data in _files(plan.rows(job.read()), kind, job.first_channels).items():
                    with files.replacing(folder / f"{name}{ending}") as temporary:
                        temporary.write_bytes(data)
    except errors.InUseError as error:
        raise features.FeatureFileError(str(error)) from error
    return len(jobs)


@dataclasses.dataclass(frozen=True)
class _Job:
    """A video to export: how its joined features are read, the channels of the first part, and its first file's attributes."""

    read: Callable[[], feature_files.Rows]
    first_channels: int
    attributes: features.Attributes
    counts: list[int]


def _jobs(
    paths: list[Path], join: feature_sources.Join, plan: resampling.Plan, kind: ExportFormat, first_channels: int | None
) -> dict[str, _Job]:
    """Returns the videos to export, after the checks that need no features."""
    held = [_held(path) for path in paths]
    partly = sorted(set.union(*map(set, held)) - set.intersection(*map(set, held)))
    faults = [f"video {name!r} is not in all of {', '.join(map(str, paths))}" for name in partly]
    jobs: dict[str, _Job] = {}
    for name in [] if partly else held[0]:
        shapes, own = [part[name][0] for part in held], held[0][name][1]
        counts, channels = [count for count, _ in shapes], [width for _, width in shapes]
        first = first_channels or _first_part(own, channels)
        if join == "equal" and len(set(counts)) > 1:
            faults.append(f"video {name!r}: {counts} rows in {', '.join(map(str, paths))}; pass --join with a rule")
        if kind in ("slowfast", "bmt") and first > sum(channels):
            faults.append(f"video {name!r}: {sum(channels)} channels, of which the first {first} can't be split off")
        elif kind == "bmt" and first not in (sum(channels), sum(channels) / 2):
            faults.append(
                f"video {name!r}: {first} of {sum(channels)} channels for _rgb; BMT adds _flow to it, which must be as many"
            )
        if (plan.changes() or len(paths) > 1) and _has_gaps(own, counts[0]):
            faults.append(f"video {name!r} is damaged and lacks clips; rows with gaps can't be resampled or joined")
        if min(counts) < 1 and plan.changes():
            faults.append(f"video {name!r} has no rows to resample")

        def read(name: str = name) -> feature_files.Rows:
            parts = [features.read(path, name).features for path in paths]
            return feature_sources.joined(parts, join, f"video {name!r}")

        jobs[name] = _Job(read, first, own, counts)
    tables.refuse(paths[0], faults, "export other videos, or change the flags")
    return jobs


def _held(path: Path) -> dict[str, tuple[tuple[int, int], features.Attributes]]:
    """Returns the shape and the attributes of each video of a file, by name."""
    found = {}
    with hdf5.reading(path) as file:
        for name in hdf5.names(file):
            dataset = hdf5.clip_dataset(file, name, path)
            found[name] = dataset.shape, hdf5.attributes(dataset)
    return found


def _first_part(attributes: features.Attributes, channels: list[int]) -> int:
    """Returns the channels of the first part of joined features, of several files or of one import; of others, all."""
    stored = np.ravel(attributes.get(feature_formats.CHANNELS, ())).tolist()
    known = len(channels) == 1 and all(type(number) is int and number > 0 for number in stored) and sum(stored) == channels[0]
    return stored[0] if known else channels[0]


def _has_gaps(attributes: features.Attributes, count: int) -> bool:
    """Returns whether clips are missing before the last of a damaged video."""
    return "clip_ranges" in attributes and not np.array_equal(np.ravel(attributes["clip_ranges"]), [0, count])


def _files(rows: feature_files.Rows, kind: ExportFormat, first_channels: int) -> dict[str, bytes]:
    """Returns the bytes of a video's files, by what their names have after the video's."""
    if kind == "slowfast":
        return {".pkl": feature_files.slow_fast(rows, first_channels)}
    if kind == "bmt":
        rest = rows[:, first_channels:]
        flow = rest if rest.shape[1] else np.zeros_like(rows)
        return {"_rgb.npy": feature_files.npy(rows[:, :first_channels]), "_flow.npy": feature_files.npy(flow)}
    return {"" if kind == "pgcn" else f".{kind}": feature_files.WRITERS[kind](rows)}


def _export_file(
    jobs: dict[str, _Job], output: Path, plan: resampling.Plan, join: feature_sources.Join, paths: Sequence[Path]
) -> int:
    """Writes one HDF5 file. Rows that changed have a timing of their own, and no claim to be an encoder's."""
    if output.exists():
        raise FileExistsError(f"{output} exists; name another file, or remove it")
    with hdf5.reading(paths[0]) as file:
        run = hdf5.attributes(file)
        naming = hdf5.naming(file)
    changed = plan.changes() or len(paths) > 1
    if changed:
        run = {clip_times.IMPORTED: f"rows of {' + '.join(path.name for path in paths)}, {plan}", hdf5.NAMING: naming}
    run.pop("format_version", None)
    with features.Writer(output, run, overwrite=True) as writer:
        for name, job in progress.each(jobs.items(), "export", len(jobs)):
            rows, own = job.read(), job.attributes
            if changed:
                item = features.VideoFeatures(name, np.broadcast_to(np.float32(0), (job.counts[0], 1)), own)
                timing, seconds = clip_times.row_timing(item), clip_times.duration_sec(item)
                if join != "shortest" and len(rows) != job.counts[0]:
                    timing = timing.resampled(job.counts[0], len(rows))
                timing, rows = plan.timing(timing, len(rows)), plan.rows(rows)
                own = {key: own[key] for key in ("fps", "frames", "damage") if key in own}
                own |= {**timing.attributes(), "duration_sec": seconds, "clips": len(rows)}
            writer.commit(name, rows, own)
    return len(jobs)
