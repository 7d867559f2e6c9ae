"""Extraction as a user runs it: the original's numbers, every kind of input, kills, resumption, devices."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import h5py
import jax.numpy as jnp
import numpy as np
import pytest

import media
from tsp_jax import checkpoints, clips, extract, features, transforms, video_list
from tsp_jax.extraction import batches, clip_stream
from tsp_jax.models import functional, tsp

ROOT = Path(__file__).parents[1]
REFERENCE_KEYS = {  # (backbone, stride): videos in ../shared/reference/features.npz
    ("r3d_18", 16): ["corrupted.mp4", "mm_demo.mp4", "part_0.mp4", "test.avi", "v_ZNVhz7ctTq0.mp4"],
    ("r2plus1d_18", 8): ["mm_demo.mp4", "test.avi"],
    ("r2plus1d_34", 16): ["v_ZNVhz7ctTq0.mp4"],
    ("r2plus1d_34", 1): ["corrupted.mp4"],
}
# Float32 sums taken in another order; measured at 1e-6 for the 18 layers (docs/fidelity.md).
TOLERANCE = {"r3d_18": 1e-4, "r2plus1d_18": 1e-4, "r2plus1d_34": 5e-4}
# Two-frame clips: an eighth of the work, where a test is not about pixels.
QUICK = ["--clip_len", "2", "--stride", "8", "--batch_size", "4"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An R3D-18 without heads, of seeded random weights."""
    config = tsp.ModelConfig("r3d_18")
    path = tmp_path_factory.mktemp("checkpoint") / "r3d_18"
    checkpoints.save(path, checkpoints.make(config, functional.init(config, 0), checkpoints.Origin("seed 0")))
    return path


@pytest.fixture(scope="session")
def six_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("six")
    for i in range(6):
        media.write(folder / f"video_{i}.mp4", frames=40 + 11 * i, seed=i)
    return folder


def run(checkpoint: Path, videos: Path, output: Path, *flags: str) -> int:
    return extract.main(["--checkpoint", str(checkpoint), "--videos", str(videos), "--output", str(output), *flags])


def command(checkpoint: Path, videos: Path, output: Path, *flags: str) -> list[str]:
    arguments = ["--checkpoint", str(checkpoint), "--videos", str(videos), "--output", str(output), *flags]
    return [sys.executable, "-m", "tsp_jax.extract", *arguments]


def read(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def failures(output: Path) -> dict[str, tuple[str, int]]:
    """Reason and clips kept, by file name."""
    with open(f"{output}.errors.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return {Path(row["video"]).name: (row["reason"], int(row["clips_kept"])) for row in rows}


# ------------------------------------------------------------------------------------------------------- the original's


@pytest.fixture(scope="session")
def reference_checkpoints(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a converted checkpoint of each backbone, the weights of which the reference features are."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("reference")
    for backbone in TOLERANCE:
        pth = folder / f"{backbone}.pth"
        script = [sys.executable, shared / "reference" / "make_checkpoint.py", "--backbone", backbone]
        layout = ["--heads", "tsp_gvf", "--classes", "200", "--no-optimizer", "--out", pth]
        subprocess.run([*script, *layout], check=True, capture_output=True)
        converting = ["--checkpoint", pth, "--output", folder / backbone]
        subprocess.run([sys.executable, "-m", "convert.torch_to_orbax", *converting], check=True, cwd=ROOT)
        pth.unlink()
    return folder


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("how", ["with_metadata", "without_metadata", "bfloat16"])
@pytest.mark.parametrize(("backbone", "stride"), list(REFERENCE_KEYS))
def test_features_are_the_originals(
    backbone: str, stride: int, how: str, shared: Path, reference_checkpoints: Path, tmp_path: Path
):
    """Every row of the original's; bfloat16 keeps their direction."""
    names = REFERENCE_KEYS[backbone, stride]
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(shared / "videos" / name)
    flags = ["--stride", str(stride)]
    if how == "with_metadata":
        with open(shared / "reference" / "metadata.csv", newline="") as stream:
            rows = [row for row in csv.reader(stream) if row[0] in ["filename", *names]]
        with open(tmp_path / "metadata.csv", "w", newline="") as stream:
            csv.writer(stream).writerows(rows)
        flags += ["--metadata_csv", str(tmp_path / "metadata.csv")]
    if how == "bfloat16":
        flags += ["--dtype", "bfloat16"]

    status = run(reference_checkpoints / backbone, folder, tmp_path / "f.h5", *flags)

    # Without a CSV, corrupted.mp4 promises 50 frames of which 28 decode: it is listed. Its CSV counts the 28.
    assert status == (1 if "corrupted.mp4" in names and how != "with_metadata" else 0)
    ours = read(tmp_path / "f.h5")
    with np.load(shared / "reference" / "features.npz") as reference:
        for name in names:
            expected, found = reference[f"{backbone}-s{stride}/{Path(name).stem}"], ours[Path(name).stem]
            assert found.shape == expected.shape and found.dtype == np.float32
            if how == "bfloat16":
                lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
                assert np.min(np.sum(found * expected, axis=1) / lengths) >= 0.999
            else:
                assert np.max(np.abs(found - expected)) / np.max(np.abs(expected)) <= TOLERANCE[backbone]


def plain_features(checkpoint: Path, path: Path, stride: int, frames: int) -> np.ndarray:
    """Features the long way: all frames decoded at once, clips cut by hand, each frame resized by torch."""
    torch = pytest.importorskip("torch")
    with av.open(str(path)) as container:
        decoded = {frame.pts: frame for frame in container.decode(video=0)}
        colours = {"format": "rgb24", "src_colorspace": av.video.reformatter.Colorspace.ITU601}
        rgb = np.stack([decoded[pts].reformat(**colours).to_ndarray() for pts in sorted(decoded)])
    pixels = torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255
    small = torch.nn.functional.interpolate(pixels, (128, 171), mode="bilinear", align_corners=False)[:, :, 8:120, 30:142]
    normal = (small.permute(0, 2, 3, 1).numpy() - np.float32(transforms.KINETICS.mean)) / np.float32(transforms.KINETICS.std)
    starts = range(0, (frames + 1) // 2 - 16 + 1, stride)
    taken = np.stack([normal[2 * start : 2 * start + 32 : 2] for start in starts])
    held = checkpoints.load(checkpoint)
    return np.asarray(tsp.encode(held.config, held.variables, jnp.asarray(taken)))


@pytest.mark.torch
@pytest.mark.parametrize("name", ["b_frames.mp4", "odd_vp9.webm", "hevc.mp4"])
def test_features_equal_those_made_the_long_way(name: str, checkpoint: Path, tmp_path: Path):
    path = media.make(tmp_path, name)
    assert run(checkpoint, path, tmp_path / "f.h5", "--stride", "8", "--frame_selection", "uniform", "--batch_size", "4") == 0
    expected = plain_features(checkpoint, path, stride=8, frames=60)
    found = read(tmp_path / "f.h5")[path.stem]
    assert found.shape == expected.shape == (2, 512)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


# ------------------------------------------------------------------------------------------------------------- bad input

# Rows of two-frame clips at stride 8, and what the reason says where there is one.
WHOLE_ROWS = {"full_hd.mp4": 2, "名前 видео.mp4": 8, "short.mp4": 2, "uneven.mp4": 5, "uneven.mkv": 5, "trimmed.mp4": 3}
LISTED = {
    "sound.mp4": (0, "no video stream"),
    "empty.mp4": (0, "empty"),
    "text.mp4": (0, "not a video"),
    "playlist.mp4": (0, "not a video"),
    "no_frames.mp4": (0, "no video stream"),
    "no_frames.mkv": (0, "not a video"),
    "cut_head_last.mp4": (0, "not a video"),
    "cut_head_first.mp4": (2, "cut off"),
    "cut_fragmented.mp4": (2, "cut off"),
    "cut.mkv": (2, "cut off"),
    "flipped.mp4": (3, "damaged"),
}


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """A folder with every kind of video, no two of one name, and their features in features.h5."""
    folder = tmp_path_factory.mktemp("every kind")
    for name in [*media.WHOLE, *media.BROKEN]:
        media.make(folder, name).rename(folder / own_name(name))
    media.write(folder / "intact.mp4", options={"g": "12"})  # what the damaged ones were made from
    assert run(checkpoint, folder, folder / "features.h5", *QUICK) == 1
    return folder


def own_name(name: str) -> str:
    return name.replace(".", "-") + Path(name).suffix


def test_every_kind_of_input_gives_features_or_a_reason(every_kind: Path):
    rows = {name: len(array) for name, array in read(every_kind / "features.h5").items()}
    listed = failures(every_kind / "features.h5")
    for name in [*media.WHOLE, *media.BROKEN]:
        expected, reason = LISTED.get(name, (WHOLE_ROWS.get(name, 4), ""))
        assert rows.get(Path(own_name(name)).stem, 0) == expected, name
        found, kept = listed.get(own_name(name), ("", expected))
        assert bool(found) == bool(reason) and reason in found, (name, found)
        assert kept == expected, name


def test_damaged_videos_keep_the_rows_of_the_intact_one(every_kind: Path):
    with h5py.File(every_kind / "features.h5") as file:
        intact = file["intact"][()]
        for name in ["cut_head_first-mp4", "cut-mkv", "flipped-mp4"]:
            kept = np.concatenate([np.arange(*pair) for pair in file[name].attrs["clip_ranges"]])
            np.testing.assert_array_equal(file[name][()], intact[kept])
            assert file[name].attrs["damage"]


def test_a_video_shorter_than_one_clip_is_listed(every_kind: Path, checkpoint: Path, tmp_path: Path):
    assert run(checkpoint, every_kind / own_name("short.mp4"), tmp_path / "f.h5") == 1
    assert read(tmp_path / "f.h5") == {}
    reason, kept = failures(tmp_path / "f.h5")[own_name("short.mp4")]
    assert reason == "shorter than one clip: 30 frames at 30 fps; a clip takes 1.067 s" and kept == 0


def test_decord_gives_the_features_that_pyav_gives(six_videos: Path, checkpoint: Path, tmp_path: Path):
    pytest.importorskip("decord")
    for decoder in ["pyav", "decord"]:
        assert run(checkpoint, six_videos, tmp_path / f"{decoder}.h5", *QUICK, "--decoder", decoder) == 0
    expected, found = read(tmp_path / "pyav.h5"), read(tmp_path / "decord.h5")
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_metadata_rows_that_cannot_be_used_are_listed(six_videos: Path, checkpoint: Path, tmp_path: Path):
    table = tmp_path / "metadata.csv"
    table.write_text(
        "filename,video-duration,fps,video-frames\n"
        "video_0.mp4,1.33,30,40\nvideo_1.mp4,1.7,0,51\nvideo_2.mp4,2,NaN,62\nvideo_3.mp4,9,30,273\nabsent.mp4,1,30,30\n"
    )
    assert run(checkpoint, six_videos, tmp_path / "f.h5", "--metadata_csv", str(table), *QUICK) == 1
    listed = failures(tmp_path / "f.h5")
    assert {name: len(array) for name, array in read(tmp_path / "f.h5").items()} == {"video_0": 3, "video_3": 5}
    assert "line 3" in listed["video_1.mp4"][0] and "0.0 fps" in listed["video_1.mp4"][0]
    assert "'NaN'" in listed["video_2.mp4"][0]
    assert "the metadata says 273 frames, the file has 73" in listed["video_3.mp4"][0]
    assert "no such file" in listed["absent.mp4"][0]


def test_two_videos_of_one_name_are_both_refused(checkpoint: Path, tmp_path: Path):
    for folder in ["a", "b"]:
        (tmp_path / "videos" / folder).mkdir(parents=True)
        media.write(tmp_path / "videos" / folder / "same.mp4", frames=20)
    media.write(tmp_path / "videos" / "other.mp4", frames=20)
    assert run(checkpoint, tmp_path / "videos", tmp_path / "f.h5", *QUICK) == 2  # before anything is extracted
    assert run(checkpoint, tmp_path / "videos", tmp_path / "f.h5", "--names", "first_dot", *QUICK) == 1
    assert list(read(tmp_path / "f.h5")) == ["other"]
    reason, _ = failures(tmp_path / "f.h5")["same.mp4"]
    assert "a/same.mp4" in reason and "b/same.mp4" in reason


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--videos", "nowhere"], "no such file or folder"),
        (["--checkpoint", "nothing"], "released name"),
        (["--metadata_csv", "nowhere.csv"], "no such file"),
        (["--num_shards", "2", "--shard_id", "2"], "--shard_id"),
        (["--frame_rate", "nan"], "frame_rate"),
    ],
)
def test_wrong_use_exits_with_2_and_says_why(
    flags: list[str], message: str, six_videos: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(checkpoint, six_videos, tmp_path / "f.h5", *flags) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_csv_without_its_columns_is_wrong_use(six_videos: Path, checkpoint: Path, tmp_path: Path, capsys):
    (tmp_path / "m.csv").write_text("file,fps\nvideo_0.mp4,30\n")
    assert run(checkpoint, six_videos, tmp_path / "f.h5", "--metadata_csv", str(tmp_path / "m.csv")) == 2
    assert "no column filename, video-frames" in capsys.readouterr().err


def test_stop_on_error_keeps_what_is_done(checkpoint: Path, tmp_path: Path):
    videos = tmp_path / "videos"
    videos.mkdir()
    media.make(videos, "empty.mp4").rename(videos / "a.mp4")
    media.write(videos / "b.mp4", frames=20)
    assert run(checkpoint, videos, tmp_path / "f.h5", "--on_error", "stop", "--workers", "1", *QUICK) == 1
    assert failures(tmp_path / "f.h5") == {"a.mp4": ("the file is empty", 0)}
    (videos / "a.mp4").unlink()
    assert run(checkpoint, videos, tmp_path / "f.h5", "--on_error", "stop", *QUICK) == 0
    assert list(read(tmp_path / "f.h5")) == ["b"]
    assert not (tmp_path / "f.h5.errors.csv").exists()


# --------------------------------------------------------------------------------------------------- resuming, sharding


def test_the_same_command_again_skips_and_another_is_refused(six_videos: Path, checkpoint: Path, tmp_path: Path, capsys):
    output = tmp_path / "f.h5"
    assert run(checkpoint, six_videos, output, *QUICK) == 0
    before = output.read_bytes()
    capsys.readouterr()
    assert run(checkpoint, six_videos, output, *QUICK) == 0
    assert "0 videos done, 6 done before" in capsys.readouterr().out
    assert output.read_bytes() == before
    assert run(checkpoint, six_videos, output, *QUICK, "--stride", "4") == 2
    assert "stride: 8 there, 4 asked for" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert run(checkpoint, six_videos, output, *QUICK, "--stride", "4", "--overwrite") == 0
    assert all(len(array) > 3 for array in read(output).values())


def test_a_video_measured_otherwise_is_not_mixed_in(six_videos: Path, checkpoint: Path, tmp_path: Path, capsys):
    assert run(checkpoint, six_videos / "video_0.mp4", tmp_path / "f.h5", *QUICK) == 0
    (tmp_path / "m.csv").write_text("filename,fps,video-frames\nvideo_0.mp4,25,40\n")
    assert run(checkpoint, six_videos, tmp_path / "f.h5", *QUICK, "--metadata_csv", str(tmp_path / "m.csv")) == 2
    assert "done before with fps 30.0, the metadata now says 25.0" in capsys.readouterr().err


def test_shards_together_are_the_whole(six_videos: Path, checkpoint: Path, tmp_path: Path):
    assert run(checkpoint, six_videos, tmp_path / "whole.h5", *QUICK) == 0
    parts = [tmp_path / f"part{i}.h5" for i in range(4)]
    for i, part in enumerate(parts):
        assert run(checkpoint, six_videos, part, *QUICK, "--num_shards", "4", "--shard_id", str(i)) == 0
    assert [len(read(part)) for part in parts] == [1, 2, 1, 2]
    features.merge(parts, tmp_path / "merged.h5")
    assert (tmp_path / "merged.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.slow
def test_kills_at_any_moment_lose_nothing_and_change_nothing(six_videos: Path, checkpoint: Path, tmp_path: Path):
    whole, output = tmp_path / "whole.h5", tmp_path / "killed.h5"
    subprocess.run(command(checkpoint, six_videos, whole, *QUICK), check=True, cwd=ROOT, capture_output=True)
    draw, kills = random.Random(0), 0
    # Each run is killed soon after so many videos lie finished, some of them from the runs before.
    for finished, kind in enumerate([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL]):
        process = subprocess.Popen(command(checkpoint, six_videos, output, *QUICK), cwd=ROOT, stderr=subprocess.PIPE)
        try:
            while len(list(output.with_name("killed.h5.parts").glob("*.h5"))) < finished and process.poll() is None:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.5))
            kills += process.poll() is None
            process.send_signal(kind)
            error = process.communicate(timeout=60)[1].decode()
        finally:
            process.kill()
        assert process.returncode in (0, -signal.SIGKILL, -signal.SIGTERM, 130), error
        if output.exists():
            complete = read(whole)
            for name, array in read(output).items():
                np.testing.assert_array_equal(array, complete[name])
    assert kills
    subprocess.run(command(checkpoint, six_videos, output, *QUICK), check=True, cwd=ROOT, capture_output=True)
    assert output.read_bytes() == whole.read_bytes()
    assert not output.with_name("killed.h5.parts").exists()


@pytest.mark.slow
@pytest.mark.parametrize("free_bytes", [4096, 24_576])
def test_a_full_disk_is_told_and_the_same_command_goes_on(free_bytes: int, six_videos: Path, checkpoint: Path, tmp_path: Path):
    """Full at once, and after some videos; then there is room."""
    whole, disk = tmp_path / "whole.h5", tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={free_bytes}", "tmpfs", str(disk)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can't be mounted here")
    output = disk / "f.h5"
    try:
        result = subprocess.run(command(checkpoint, six_videos, output, *QUICK), cwd=ROOT, capture_output=True, text=True)
        assert result.returncode in (1, 2), result.stderr
        assert "No space left on device" in result.stderr and "Traceback" not in result.stderr
        assert not output.exists()
        finished = list(disk.glob("f.h5.parts/*.h5"))
        assert bool(finished) == (free_bytes > 4096)
        assert not list(disk.rglob(".*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert run(checkpoint, six_videos, output, *QUICK) == 0
        assert run(checkpoint, six_videos, whole, *QUICK) == 0
        assert output.read_bytes() == whole.read_bytes()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ------------------------------------------------------------------------------------------------------- the machinery


def test_extraction_runs_where_torch_is_not_installed(six_videos: Path, checkpoint: Path, tmp_path: Path):
    arguments = command(checkpoint, six_videos / "video_0.mp4", tmp_path / "f.h5", *QUICK)[3:]
    code = (
        "import sys; sys.modules.update(torch=None, torchvision=None, tensorflow=None)\n"
        "from tsp_jax import extract\nsys.exit(extract.main(sys.argv[1:]))"
    )
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=ROOT)
    assert len(read(tmp_path / "f.h5")["video_0"]) == 3


def test_stride_1_decodes_and_sends_each_frame_once(tmp_path: Path, checkpoint: Path):
    path = media.write(tmp_path / "v.mp4", frames=90)
    model = batches.Batcher(checkpoints.load(checkpoint), clip_len=4, stride=1, batch_size=8)
    geometry = clips.ClipGeometry(clip_len=4, stride=1)
    with clip_stream.ClipStream([video_list.Video("v", path)], geometry, "pyav", workers=1) as stream:
        messages = list(stream)
    taken = [message for message in messages if isinstance(message, clip_stream.Clip)]
    distinct = {frame.number for clip in taken for frame in clip.frames}
    results = []
    for clip in taken:
        results += model.add(clip.row, "v", clip.frames)
    results += model.flush()
    assert sorted(row for row, _ in results) == list(range(45 - 4 + 1))
    assert model.batches > 4
    assert messages[-1].frames_decoded <= 90
    assert model.frames_sent == len(distinct)


def test_a_clips_features_do_not_depend_on_its_company(six_videos: Path, checkpoint: Path, tmp_path: Path):
    outputs = []
    for order in [1, -1]:
        model = batches.Batcher(checkpoints.load(checkpoint), clip_len=2, stride=8, batch_size=4)
        videos = video_list.list_videos(six_videos)[::order]
        found = {}
        with clip_stream.ClipStream(videos, clips.ClipGeometry(2, stride=8), "pyav", workers=2) as stream:
            for message in stream:
                if isinstance(message, clip_stream.Clip):
                    tag = (videos[message.job].name, message.row)
                    found |= dict(model.add(tag, message.job, message.frames))
        outputs.append(found | dict(model.flush()))
    assert outputs[0].keys() == outputs[1].keys()
    for tag, vector in outputs[0].items():
        np.testing.assert_array_equal(vector, outputs[1][tag])


def test_a_batchs_memory_is_not_written_while_a_device_reads_it(checkpoint: Path):
    """Batches are sent faster than they are computed, and a CPU reads them in place."""
    draw, held, results = np.random.default_rng(0), checkpoints.load(checkpoint), {}
    taps = transforms.centre_taps(64, 96)
    pictures = draw.integers(0, 256, (24, 2, *transforms.KINETICS.tapped, 3), np.uint8)
    model = batches.Batcher(held, clip_len=2, stride=8, batch_size=2)
    for i, pair in enumerate(pictures):
        results |= dict(model.add(i, i, [transforms.TappedFrame(j, pixels, taps) for j, pixels in enumerate(pair)]))
    results |= dict(model.flush())
    assert model.batches == 12
    weights = [np.tile(weight, (48, 1)) for weight in (taps.row_weight, taps.column_weight)]
    frames = transforms.normalize(transforms.blend(jnp.asarray(pictures.reshape(-1, *pictures.shape[2:])), *weights))
    expected = np.asarray(tsp.encode(held.config, held.variables, frames.reshape(24, 2, *frames.shape[1:])))
    np.testing.assert_allclose(np.stack([results[i] for i in range(24)]), expected, atol=2e-5 * np.abs(expected).max())


def test_profile_tells_where_the_time_went(six_videos: Path, checkpoint: Path, tmp_path: Path, capsys):
    assert run(checkpoint, six_videos, tmp_path / "f.h5", *QUICK, "--workers", "2", "--profile", str(tmp_path / "p")) == 0
    told = json.loads((tmp_path / "p" / "stages.json").read_text())
    assert sum(told["main_thread_sec"].values()) == pytest.approx(told["wall_sec"], rel=0.05, abs=0.05)
    assert told["decoding_threads"] == 2
    assert sum(told["decoding_threads_sec"].values()) == pytest.approx(2 * told["wall_sec"], rel=0.1, abs=0.1)
    assert {"scan", "decode", "convert", "taps", "wait for room", "idle"} <= told["decoding_threads_sec"].keys()
    assert {"compile", "dispatch", "transfer", "wait for results", "write"} <= told["main_thread_sec"].keys()
    assert 0 < told["devices_had_work_sec"] <= told["wall_sec"]
    stages = told["stages_sec"]
    assert list(stages) == ["decode", "resize", "transfer", "compute", "write", "idle"]
    assert min(stages.values()) > 0
    assert stages["compute"] + stages["idle"] == pytest.approx(told["wall_sec"], rel=0.05, abs=0.05)
    assert list((tmp_path / "p").rglob("*.xplane.pb"))
    printed = capsys.readouterr().out
    assert f"bound by {told['bound_by']}" in printed
    assert "wait for results" in printed and f"compute {stages['compute']:.2f} s" in printed
    assert run(checkpoint, six_videos, tmp_path / "g.h5", *QUICK) == 0
    assert "wait for results" not in capsys.readouterr().out
    assert read(tmp_path / "f.h5").keys() == read(tmp_path / "g.h5").keys()


def test_a_program_compiled_before_is_not_compiled_again(checkpoint: Path, tmp_path: Path):
    """From the checkpoint's reading to the first clips' submission; 0.9 s on a quiet machine, 3 s are promised."""
    code = """if True:
        import sys, time
        import numpy as np
        from tsp_jax import checkpoints, transforms
        from tsp_jax.extraction import batches
        from tsp_jax.system import compilation
        compilation.keep_programs()
        held = checkpoints.load(sys.argv[1])
        began = time.perf_counter()
        model = batches.Batcher(held, clip_len=2, stride=8, batch_size=4)
        taps, pixels = transforms.centre_taps(64, 96), np.zeros((*transforms.KINETICS.tapped, 3), np.uint8)
        for clip in range(5):
            model.add(clip, clip, [transforms.TappedFrame(frame, pixels, taps) for frame in range(2)])
        print(model.batches, time.perf_counter() - began)
    """
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"TSP_JAX_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for _ in range(2):
        arguments = [sys.executable, "-c", code, str(checkpoint)]
        shown = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stdout.split()
        assert shown[0] == "1"
        kept = sorted(path.name for path in tmp_path.rglob("*-cache"))
        assert any("step" in name for name in kept)
    assert float(shown[1]) < 6


@pytest.mark.slow
def test_four_devices_give_what_one_gives(six_videos: Path, checkpoint: Path, tmp_path: Path):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    four = command(checkpoint, six_videos, tmp_path / "four.h5", *QUICK)
    subprocess.run(four, check=True, cwd=ROOT, env=environment, capture_output=True)
    assert run(checkpoint, six_videos, tmp_path / "one.h5", *QUICK) == 0
    one, four = read(tmp_path / "one.h5"), read(tmp_path / "four.h5")
    assert one.keys() == four.keys()
    for name, array in one.items():
        np.testing.assert_allclose(four[name], array, atol=1e-5 * np.abs(array).max())


def test_a_cpus_cores_share_the_weights_and_are_dealt_clips_in_turn(checkpoint: Path):
    """Few clips keep all cores of a CPU at work; many of them come back in any number of batches, none lost."""
    code = """
import sys
import jax
import numpy as np
from tsp_jax import checkpoints, transforms
from tsp_jax.extraction import batches
held, taps = checkpoints.load(sys.argv[1]), transforms.centre_taps(64, 96)
model = batches.Batcher(held, clip_len=2, stride=2, batch_size=12)
pixels = np.random.default_rng(0).integers(0, 256, (40, *transforms.KINETICS.tapped, 3), np.uint8)
found = []
for row in range(20):
    frames = [transforms.TappedFrame(number, pixels[number], taps) for number in (2 * row, 2 * row + 1)]
    found += model.add(row, "v", frames)
    if row == 3:
        print([len(lane.tags) for lane in model._lanes])
found += model.flush()
print(sorted(row for row, _ in found) == list(range(20)), model.batches, len({vector.tobytes() for _, vector in found}))
shards = [leaf.addressable_shards for leaf in jax.tree.leaves(model._variables)]
print({(len(of_leaf), len({shard.data.unsafe_buffer_pointer() for shard in of_leaf})) for of_leaf in shards})
"""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(checkpoint)]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == ["[1, 1, 1, 1]", "True 2 20", "{(4, 1)}"]


def test_every_command_explains_itself_with_an_example():
    for module in [
        "tsp_jax.extract",
        "tsp_jax.features",
        "convert.torch_to_orbax",
        "convert.orbax_to_torch",
        "convert.released",
    ]:
        shown = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert "example: python -m" in " ".join(shown.stdout.split()), module
