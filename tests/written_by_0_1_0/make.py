"""Writes the records, checkpoint and workdir of this folder with version 0.1.0. README.md here says how to run it."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import av
import jax
import numpy as np

from tsp_jax import checkpoints
from tsp_jax.models import functional, tsp

CODE = sys.argv[1]  # the checkout of version 0.1.0
COLUMNS = "video-name,t-start,t-end,action-label,video-duration,filename,fps,video-frames,temporal-region-label"
TRAIN = (
    "--workdir run --config.data.folder=records/video_folder/jpeg/1.0.0 --config.model.label_counts=2, "
    "--config.init.checkpoint=start --config.init.heads=kept --config.data.batch_size=4 --config.data.clips_per_segment=1 "
    "--config.optim.epochs=1 --config.optim.milestones=1 --config.optim.fc_lr=0"
)


def run(command: str) -> None:
    subprocess.run([sys.executable, "-m", *command.split()], check=True)


Path("videos").mkdir()
for n in range(2):
    with av.open(f"videos/v{n}.mp4", "w") as out:
        stream = out.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 170, 128, "yuv420p"
        for k in range(90):
            picture = np.empty((128, 170, 3), np.uint8)
            picture[:] = (2 * k, 40 + 90 * n, 250 - 2 * k)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
with open("train.csv", "w") as file:
    rows = csv.writer(file)
    rows.writerow(COLUMNS.split(","))
    for n in range(2):
        rows.writerow([f"v{n}", 0.0, 1.5, "ab"[n], 3.0, f"v{n}.mp4", 30.0, 90, "Action"])
        rows.writerow([f"v{n}", 1.5, 3.0, "", 3.0, f"v{n}.mp4", 30.0, 90, "No action"])
shutil.copy("train.csv", "valid.csv")
BUILD = "--videos videos --groundtruth train.csv valid.csv --data_dir records --workers 1"
run(f"data_builders.build --dataset video_folder {BUILD}")
# Constant weights without a gradient make files that compress to little.
config = tsp.ModelConfig("r3d_tiny", (2,))
variables = jax.tree.map(
    lambda leaf: np.full(leaf.shape, 0.03125 if leaf.ndim > 1 else 1, leaf.dtype), functional.shapes(config)
)
for name, head in variables["params"].items():
    if name != "features":
        head["weight"][:] = 0
        head["bias"][:] = (0.25, -0.25)
checkpoints.save("start", checkpoints.make(config, variables, checkpoints.Origin("constants")))
run(f"tsp_jax.train --config {CODE}/configs/synthetic_tac.py {TRAIN}")
