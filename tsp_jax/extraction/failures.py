"""Videos that gave no features, or fewer than planned: their list as CSV, and on the terminal."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from tsp_jax.system import tables

_MAX_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Failure:
    """A video that gave no features, or fewer than planned.

    Attributes:
      video: the video's path, or its name where only features are read.
      reason: what is wrong with it.
      clips_kept: number of clips whose features are kept all the same.
    """

    video: str
    reason: str
    clips_kept: int


def write(path: Path, failures: Sequence[Failure]) -> None:
    """Writes the failures as CSV, whole or not at all. Removes the file if there are no failures."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    rows = [(failure.video, failure.reason, failure.clips_kept) for failure in failures]
    tables.write_table(path, ("video", "reason", "clips_kept"), rows, errors="backslashreplace")


def lines(failures: Sequence[Failure], errors_csv: Path) -> Iterator[str]:
    """Yields the lines of a command's summary that show the first failures and name the CSV with all of them."""
    for failure in failures[:_MAX_SHOWN]:
        yield f"  {failure.video}: {failure.reason} ({failure.clips_kept} clips kept)"
    if len(failures) > _MAX_SHOWN:
        yield f"  and {len(failures) - _MAX_SHOWN} more"
    if failures:
        yield f"  all failures: {errors_csv}"
