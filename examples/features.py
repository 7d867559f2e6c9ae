"""Features of a video from Python, as cells of a notebook: `python examples/features.py [CHECKPOINT VIDEO]`.

Without arguments it draws a video that changes after four seconds, and makes a small network with random weights.
"""

# %% A checkpoint and a video: yours, or small ones made here.
import sys
import tempfile
from pathlib import Path

import numpy as np

import tsp_jax
from tsp_jax import checkpoints
from tsp_jax.models import functional, tsp
from tsp_jax.video import writing


def make_checkpoint(path: Path) -> Path:
    """Writes a checkpoint of the smallest backbone with random weights, and returns its path."""
    config = tsp.ModelConfig("r3d_tiny")
    checkpoints.save(path, checkpoints.make(config, functional.init(config, 0), checkpoints.Origin("random weights, seed 0")))
    return path


def make_video(path: Path, fps: int = 30, seconds: int = 8) -> Path:
    """Writes a video of slowly drifting waves, which turn and speed up halfway, and returns its path."""
    y, x = np.mgrid[:120, :160] / 20
    frames = []
    for number in range(fps * seconds):
        late = number >= fps * seconds // 2
        wave = np.sin(3 * y + 0.6 * number) if late else np.sin(x + 0.05 * number)
        frames.append(np.repeat((127 + 90 * wave).astype(np.uint8)[..., None], 3, axis=2))
    writing.write(path, iter(frames), fps)
    return path


if len(sys.argv) == 3:
    checkpoint, video = map(Path, sys.argv[1:])
else:
    folder = Path(tempfile.mkdtemp())
    checkpoint, video = make_checkpoint(folder / "checkpoint"), make_video(folder / "waves.mp4")
    print(f"made a checkpoint and a video in {folder}")

# %% The features: a row for each clip of 16 frames, 15 a second. A stride of 8 lets clips overlap by half.
encoder = tsp_jax.load_encoder(checkpoint, stride=8, batch_size=4)
found = encoder.extract(video)
print(f"{video.name}: {found.array.shape[0]} clips of {found.clip_len_sec:.3f} s, {found.array.shape[1]} numbers each")

# %% When the clips begin and end.
for start_sec, row in zip(found.start_sec, found.array, strict=True):
    print(f"  {start_sec:5.2f} s to {start_sec + found.clip_len_sec:5.2f} s: {np.round(row[:3], 3)} …")

# %% How similar the clips are: cosines between rows, after their mean is subtracted. Similarity ends where the picture changes.
rows = found.array - found.array.mean(axis=0)
rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
similarity = rows @ rows.T
boundary = int(np.argmin(np.diag(similarity, 2))) + 1 if len(rows) > 2 else 0
print(f"the largest change is about {found.start_sec[boundary] + found.clip_len_sec / 2:.2f} s; similarity around it:")
around = slice(max(boundary - 3, 0), boundary + 4)
print(np.array2string(similarity[around, around], precision=2, suppress_small=True))
