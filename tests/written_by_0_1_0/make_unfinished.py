"""Writes the unfinished run of this folder with version 0.1.0, and the log of the same run when it is finished."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CODE = sys.argv[1]  # the checkout of version 0.1.0
TRAIN = (
    "--config.data.folder=records/video_folder/jpeg/1.0.0 --config.model.backbone=tiny --config.model.label_counts=2, "
    "--config.init.checkpoint=random --config.data.batch_size=4 --config.data.clips_per_segment=8 --config.optim.epochs=1 "
    "--config.optim.milestones=1 --config.run.log_every_steps=5 --config.run.checkpoint_every_steps=2"
)
# A narrow network keeps the files small.
DRIVER = (
    "import sys, train_driver; from tsp_jax import train; "
    "train_driver.TINY.update(stem_widths=(2, 2), widths=(2, 2, 2, 12)); train_driver.register(); sys.exit(train.main())"
)


def start(workdir: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", DRIVER, "--config", f"{CODE}/configs/synthetic_tac.py", "--workdir", workdir]
    return subprocess.Popen([*command, *TRAIN.split()], env=os.environ | {"PYTHONPATH": f"{CODE}:{CODE}/tests"})


run = start("unfinished")
states = Path("unfinished/checkpoints/last")
while not (states / "2").exists():
    time.sleep(0.005)
run.send_signal(signal.SIGTERM)
# The run stops between two lines of its log, so the sums since the last line are part of its state.
if run.wait() != 130 or any((states / step).exists() for step in ("5", "8")):
    sys.exit("the run was not stopped in time: start again")
shutil.copytree("unfinished", "finished")
if start("finished").wait() != 0:
    sys.exit("the run was not finished")
