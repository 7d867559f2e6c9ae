"""Prints the table of docs/fidelity.md: our features next to the original's, a row for each backbone, stride and video.

It needs the original's outputs: a folder with reference/features.npz, reference/make_checkpoint.py, reference/metadata.csv and
videos/. The original ran on PyTorch; its checkpoints are written again from their seed.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tsp_jax import extract, features


def compare(shared: Path, scratch: Path, backbone: str, stride: int, names: list[str]) -> list[str]:
    """Returns the rows of the table for one backbone and stride."""
    checkpoint = scratch / f"{backbone}.pth"
    if not checkpoint.exists():
        script = [sys.executable, str(shared / "reference" / "make_checkpoint.py"), "--backbone", backbone]
        layout = ["--heads", "tsp_gvf", "--classes", "200", "--no-optimizer", "--out", str(checkpoint)]
        subprocess.run([*script, *layout], check=True, stdout=subprocess.DEVNULL)
    videos = scratch / f"{backbone}-s{stride}"
    videos.mkdir()
    for path in (shared / "videos").iterdir():
        if path.stem in names:
            (videos / path.name).symlink_to(path.resolve())
    for dtype in ("float32", "bfloat16"):
        flags = ["--stride", str(stride), "--dtype", dtype, "--output", str(videos / f"{dtype}.h5")]
        with contextlib.redirect_stdout(sys.stderr):
            extract.main(["--checkpoint", str(checkpoint), "--videos", str(videos), *flags])
    rows = []
    with np.load(shared / "reference" / "features.npz") as reference:
        for name in names:
            expected = reference[f"{backbone}-s{stride}/{name}"]
            exact, rough = (features.read(videos / f"{dtype}.h5", name).features for dtype in ("float32", "bfloat16"))
            error = np.abs(exact - expected).max() / np.abs(expected).max()
            norms = np.linalg.norm(rough, axis=1) * np.linalg.norm(expected, axis=1)
            cosine = (np.sum(rough * expected, axis=1) / norms).min()
            rows.append(f"| {backbone} | {stride} | {name} | {len(expected)} | {len(exact)} | {error:.1e} | {cosine:.6f} |")
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fidelity",
        description=__doc__,
        epilog="example: python -m benchmarks.fidelity --shared ../shared",
    )
    parser.add_argument("--shared", default="../shared", type=Path, help="the folder of the original's outputs")
    shared = parser.parse_args(arguments).shared
    with np.load(shared / "reference" / "features.npz") as reference:
        keys = [key.split("/") for key in reference.files]
    runs: dict[str, list[str]] = {}
    for run, name in keys:
        runs.setdefault(run, []).append(name)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for run, names in runs.items():
            backbone, stride = run.split("-s")
            rows += compare(shared, Path(scratch), backbone, int(stride), names)
    columns = ["backbone", "stride", "video", "rows, original", "rows, ours", "float32: max diff / max", "bfloat16: min cosine"]
    print("| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
