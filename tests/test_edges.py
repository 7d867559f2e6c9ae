"""Tests that no command answers nonsense in place of files with a traceback."""

import contextlib
import importlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import media
from tsp_jax import checkpoints, features, groundtruth
from tsp_jax.models import functional, tsp

ROOT = Path(__file__).parents[1]
# In place of what is to be read, and of what is to be written.
IN = [
    "nowhere",
    "nowhere/x",
    "folder",
    "empty",
    "/dev/null",
    "text",
    "bytes",
    "deep",
    "text/x",
    "x\udcff",
    "",
    "a" * 300,
    "a\0b",
]
OUT = ["folder", "text/x", "pipe", "/dev/null/x", "a" * 300, "", "a\0b"]

ENTRIES = {
    name: f"{name}.__main__" for name in ("tsp_jax.features", "tsp_jax.report")
}  # the module that holds a command's `main`, if it is another
# A line is run once for each name in place of IN or OUT.
COMMANDS: dict[str, list[str]] = {
    "tsp_jax.extract": [
        "--checkpoint IN --videos videos --output o.h5",
        "--checkpoint model --videos IN --output o.h5",
        "--checkpoint model --videos videos --metadata_csv IN --output o.h5",
        "--checkpoint model --videos videos --output OUT",
        "--checkpoint model --videos videos --output OUT --overwrite",
    ],
    "tsp_jax.features": [
        "info IN",
        "merge IN --output o.h5",
        "merge good.h5 --output OUT",
        "merge good.h5 --output OUT --overwrite",
        "export IN --output o",
        "export good.h5 --output OUT",
    ],
    "tsp_jax.predict": [
        "--checkpoint IN --videos videos --output p.json",
        "--checkpoint model --gvf_checkpoint IN --videos videos --output p.json",
        "--checkpoint model --videos IN --output p.json",
        "--checkpoint model --features IN --output p.json",
        "--checkpoint model --features good.h5 --labels IN --output p.json",
        "--checkpoint model --features good.h5 --head action --output OUT",
    ],
    "tsp_jax.report": [
        "--features IN --output r.html",
        "--features good.h5 --groundtruth IN --output r.html",
        "--features good.h5 --predictions IN --output r.html",
        "--features good.h5 --videos IN --output r.html",
        "--metrics IN --output r.html",
        "--features good.h5 --output OUT",
    ],
    "tsp_jax.train": [
        "--config IN --workdir w",
        "--config configs/synthetic_tsp.py --workdir w --config.data.folder=IN",
        "--config configs/synthetic_tsp.py --workdir OUT",
    ],
    "convert.torch_to_orbax": ["--checkpoint IN --output o", "--checkpoint text --output OUT"],
    "convert.orbax_to_torch": ["--checkpoint IN --output o.pth", "--checkpoint model --output OUT"],
    "data_builders.metadata": ["--videos IN --output m.csv", "--videos videos --output OUT"],
    "data_builders.groundtruth": [
        "--format activitynet --subset valid --annotations IN --metadata m0.csv --output g.csv",
        "--format thumos14 --subset valid --annotations IN --metadata m0.csv --output g.csv",
        "--format csv --annotations IN --metadata m0.csv --output g.csv",
        "--format csv --annotations g0.csv --metadata IN --output g.csv",
        "--format csv --annotations g0.csv --metadata m0.csv --output g.csv --labels IN",
        "--format csv --annotations g0.csv --metadata m0.csv --output OUT",
    ],
    "data_builders.labels": [
        "--groundtruth IN --output l",
        "--dataset activitynet --annotations IN --output l",
        "--dataset thumos14 --annotations IN --output l",
        "--groundtruth g0.csv --output OUT",
    ],
    "data_builders.validate": [
        "--groundtruth IN --videos videos --labels l0.json",
        "--groundtruth g0.csv --videos IN --labels l0.json",
        "--groundtruth g0.csv --videos videos --labels IN",
        "--groundtruth g0.csv --videos videos --labels l0.json --metadata IN",
    ],
    "data_builders.gvf": ["--features IN --pool max --output g.h5", "--features good.h5 --pool max --output OUT"],
    "data_builders.standardize": ["--input IN --output s", "--input videos --output OUT"],
    "data_builders.synthetic": ["--videos 1 --seed 0 --seconds 4 4 --workers 1 --output OUT"],
    "data_builders.build": [
        "--dataset video_folder --videos IN --groundtruth train=g0.csv --data_dir d",
        "--dataset video_folder --videos videos --groundtruth train=IN --data_dir d",
        "--dataset video_folder --videos videos --groundtruth train=g0.csv --labels IN --data_dir d",
    ],
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one good input of each kind, and the bad ones."""
    folder = tmp_path_factory.mktemp("edges")
    for name in ("videos", "folder"):
        (folder / name).mkdir()
    media.write(folder / "videos" / "a.mp4", frames=20)
    (folder / "empty").touch()
    (folder / "text").write_text("hello\n")
    (folder / "bytes").write_bytes(bytes(range(256)) * 20)
    (folder / "deep").write_text("[" * 60_000)
    os.mkfifo(folder / "pipe")
    (folder / "configs").symlink_to(ROOT / "configs")
    config = tsp.ModelConfig("r3d_tiny", (1, 2))
    checkpoints.save(folder / "model", checkpoints.make(config, functional.init(config, 0), checkpoints.Origin("seed 0")))
    with features.Writer(folder / "good.h5", {"stride": 16}) as writer:
        writer.commit("a", np.ones((2, 128), np.float32), {"fps": 30.0, "frames": 20, "damage": ""})
    groundtruth.write_metadata(folder / "m0.csv", [groundtruth.VideoMetadata("a.mp4", 20 / 30, 30.0, 20)])
    row = groundtruth.AnnotatedSegment("a", 0.0, 0.6, "x", 20 / 30, "a.mp4", 30.0, 20, groundtruth.ACTION)
    groundtruth.write_groundtruth(folder / "g0.csv", [row])
    groundtruth.write_label_mapping(folder / "l0.json", ["x"])
    return folder


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Ends the process where a command waits for ever."""
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("module", COMMANDS)
def test_nonsense_in_place_of_files_is_told_without_a_traceback(
    module: str, good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(good)
    main = importlib.import_module(ENTRIES.get(module, module)).main
    for line in COMMANDS[module]:
        place, names = ("IN", IN) if "IN" in line.split() or "=IN" in line else ("OUT", OUT)
        for name in names:
            arguments = [name if word == place else word for word in line.split()]
            arguments = [word.removesuffix("=IN") + f"={name}" if word.endswith("=IN") else word for word in arguments]
            with at_most(60):
                try:
                    status = main(arguments)
                except SystemExit as error:
                    status = error.code
            printed = capsys.readouterr()
            # An empty name stands for no flag or this folder, and some commands write into a folder that is there.
            assert status in ((0, 1, 2) if name in ("", "folder") else (1, 2)), (arguments, printed)
            assert status == 0 or printed.err.strip(), arguments
            assert "Traceback" not in printed.err, arguments
    assert not Path("pipe").is_file()
    assert not list(good.glob("*.parts")) and not list(good.glob(".*.tmp"))
