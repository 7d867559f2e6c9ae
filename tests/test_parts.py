"""Tests of features of parts of videos, and of folders of .npy files: the same rows, decoded alone, whole at any moment."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import media
from tsp_jax import checkpoints, clip_times, clips, extract, features, video_list
from tsp_jax.extraction import clip_stream
from tsp_jax.features import npy_folder
from tsp_jax.models import functional, tsp
from tsp_jax.system import timing
from tsp_jax.video import decoding, scanning

ROOT = Path(__file__).parents[1]
RUN = {"stride": 8, "clip_len": 2, "checkpoint_sha256": "ab"}
QUICK = ["--clip_len", "2", "--stride", "8", "--batch_size", "4"]
LONG = {  # 400 frames with key frames of every kind
    "closed.mp4": {"options": {"g": "50"}},
    "open.mkv": {"options": {"bf": "3", "g": "30", "x264-params": "open-gop=1:scenecut=0:min-keyint=4"}},
    "refresh.mp4": {"options": {"g": "40", "x264-params": "intra-refresh=1"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:pools=1:keyint=40:open-gop=1"}},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "0", "cpu-used": "8", "b": "500k", "g": "40"}},
    "one_key.mp4": {"options": {"g": "1000"}},
    "stream.ts": {"options": {"g": "40"}},
    "mpeg2.ts": {"codec": "mpeg2video", "b_frames": 2, "options": {"b": "800k", "g": "15"}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the smallest backbone, three videos, and the features of all of them."""
    folder = tmp_path_factory.mktemp("parts")
    config = tsp.ModelConfig("r3d_tiny")
    checkpoints.save(folder / "model", checkpoints.make(config, functional.init(config, 0), checkpoints.Origin("seed 0")))
    (folder / "videos").mkdir()
    for seed, name in enumerate("abc"):
        media.write(folder / "videos" / f"{name}.mp4", frames=150, seed=seed)
    assert run(folder, folder / "all.h5") == 0
    return folder


def run(folder: Path, output: Path | str, *flags: object) -> int:
    arguments = ["--checkpoint", folder / "model", "--videos", folder / "videos", "--output", output, *QUICK, *flags]
    return extract.main([str(item) for item in arguments])


def segments(path: Path, *rows: tuple[str, float | str, float | str]) -> Path:
    lines = ["video-name,t-end,filename,t-start,label"] + [f"x,{end},{name},{start},Jump" for name, start, end in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


# --------------------------------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("name", list(LONG))
def test_a_late_part_is_decoded_from_a_key_frame_to_the_same_pixels(name: str, tmp_path: Path):
    path = media.write(tmp_path / name, frames=400, **LONG[name])
    scan = scanning.scan(path)
    needed = np.zeros(len(scan.timeline.pts), bool)
    needed[[360, 361, 375]] = True
    reader, every = decoding.Reader(scan, needed), dict(decoding.Reader(scan, np.ones(len(needed), bool)))
    found = dict(reader)
    assert list(found) == [360, 361, 375] and not reader.damage and not reader.misdated
    for number, pixels in found.items():
        np.testing.assert_array_equal(pixels, every[number])
    spared = {"one_key.mp4": 0, "stream.ts": 20, "mpeg2.ts": 20}.get(name, 250)  # MPEG-TS has to search for a key frame
    assert reader.decoded <= 400 - spared


def test_damage_before_the_part_does_not_matter_and_damage_in_it_is_found(tmp_path: Path):
    source = media.write(tmp_path / "whole.mp4", frames=400, options={"g": "40"})
    for span, expected in [((0.3, 0.5), ""), ((0.85, 0.97), "damaged")]:
        path = media.flipped(tmp_path / "v.mp4", source, seed=1, count=40, span=span)
        item = video_list.Video("v", path, parts_sec=((11.7, 13.3),))
        *_, closed = clip_stream.read_video(0, item, clips.ClipGeometry(2, stride=4), "pyav", timing.Laps())
        assert isinstance(closed, clip_stream.Closed)
        assert (expected in closed.reason) and bool(closed.reason) == bool(expected), (span, closed.reason)


def test_rows_of_a_part_are_those_of_the_whole_run(folder: Path, tmp_path: Path):
    output = tmp_path / "part.h5"
    assert run(folder, output, "--start_sec", "1", "--end_sec", "0:03.2") == 0
    for name in "abc":
        whole, part = features.read(folder / "all.h5", name), features.read(output, name)
        (start_sec, clip_len_sec), (every_sec, _) = clip_times.clip_times(part), clip_times.clip_times(whole)
        within = np.flatnonzero((every_sec >= 1) & (every_sec + clip_len_sec <= 3.2 + 1e-9))
        np.testing.assert_array_equal(part.features, whole.features[within])
        np.testing.assert_array_equal(start_sec, every_sec[within])
        assert part.attributes["parts"] == "start_sec=1 end_sec=3.2" and part.attributes["parts_sec"].tolist() == [[1, 3.2]]
        assert part.attributes["frames_decoded"] < whole.attributes["frames_decoded"]


def test_rows_of_segments_are_their_union(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table = segments(tmp_path / "s.csv", ("a.mp4", 0, 0.8), ("a.mp4", 0.5, 1.3), ("a.mp4", 3.9, 3.95), ("b.MOV", "0:02.1", 4))
    output = tmp_path / "f.h5"
    assert run(folder, output, "--segments", table) == 0
    printed = capsys.readouterr().err
    assert (
        "1 of 3 videos have no segment" in printed
        and "1 of 3 parts hold no whole clip of 0.133 s, such as 3.9 to 3.95 s" in printed
    )
    assert features.names(output) == ["a", "b"]
    for name, rows in [("a", [0, 1, 2]), ("b", [4, 5, 6, 7])]:
        found = features.read(output, name)
        assert clip_times.clip_numbers(found).tolist() == rows
        np.testing.assert_array_equal(found.features, features.read(folder / "all.h5", name).features[rows])


def test_parts_without_a_clip_or_a_video_are_listed(folder: Path, tmp_path: Path):
    table = segments(tmp_path / "s.csv", ("a.mp4", 70, 80), ("A b.mp4", 1, 2), ("b.mp4", 1, 2))
    assert run(folder, tmp_path / "f.h5", "--segments", table) == 1
    listed = (tmp_path / "f.h5.errors.csv").read_text()
    assert "lies whole within the parts asked for; it lasts 5.00 s" in listed
    assert "s.csv names it, and it is not among --videos" in listed
    assert features.names(tmp_path / "f.h5") == ["b"]


def test_runs_of_other_parts_are_not_mixed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "f.h5"
    table = segments(tmp_path / "s.csv", ("a.mp4", 1, 2))
    assert run(folder, output, "--segments", table) == 0
    before = output.read_bytes()
    capsys.readouterr()
    for flags, message in [
        ([], "parts: segments there, absent asked for"),
        (["--start_sec", "1", "--end_sec", "2"], "parts: segments there, start_sec=1 end_sec=2 asked for"),
        (["--segments", segments(tmp_path / "t.csv", ("a.mp4", 1, 3))], "done before for 1 to 2 s, asked for 1 to 3 s"),
    ]:
        assert run(folder, output, *flags) == 2
        assert message in capsys.readouterr().err
    assert output.read_bytes() == before
    more = segments(tmp_path / "more.csv", ("b.mp4", 1, 2), ("a.mp4", 1, 2))
    assert run(folder, output, "--segments", more) == 0 and features.names(output) == ["a", "b"]
    assert run(folder, folder / "all.h5", "--start_sec", "1") == 2


@pytest.mark.parametrize(
    ("flags", "rows", "message"),
    [
        (["--start_sec", "2", "--end_sec", "2"], None, "--end_sec 2 is not after --start_sec 2"),
        (["--start_sec", "2"], [("a.mp4", 1, 2)], "do not go together"),
        ([], [("a.mp4", 2, 1), ("a.mp4", "x", 1)], "line 2: expected 0 <= t-start < t-end, found 2 and 1"),
        ([], [], "lists no segment"),
        (["--npy_dtype", "float16"], None, "--npy_dtype is for an --output that is a folder"),
    ],
)
def test_wrong_use_is_told(flags: list[str], rows: list | None, message: str, folder: Path, tmp_path: Path, capsys):
    csv = [] if rows is None else ["--segments", segments(tmp_path / "s.csv", *rows)]
    assert run(folder, tmp_path / "f.h5", *flags, *csv) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "f.h5").exists()


# -------------------------------------------------------------------------------------------------------------- the folder


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_folder_holds_an_array_and_the_attributes_of_each_video(dtype: str, folder: Path, tmp_path: Path, capsys):
    flags = [] if dtype == "float32" else ["--npy_dtype", dtype]
    assert run(folder, f"{tmp_path}/out/", *flags) == 0
    assert sorted(os.listdir(tmp_path / "out")) == [f"{name}.{kind}" for name in "abc" for kind in ("json", "npy")]
    for name in "abc":
        expected = features.read(folder / "all.h5", name)
        found = np.load(tmp_path / "out" / f"{name}.npy")
        np.testing.assert_array_equal(found, expected.features.astype(dtype), strict=True)
        about = json.loads((tmp_path / "out" / f"{name}.json").read_text())["attributes"]
        assert about.pop("npy_dtype") == dtype
        assert about == {key: np.asarray(value).tolist() for key, value in expected.attributes.items()}
    capsys.readouterr()
    assert run(folder, tmp_path / "out", *flags) == 0
    assert "0 videos done, 3 done before" in capsys.readouterr().out
    other = ["--npy_dtype", "float16" if dtype == "float32" else "float32"]
    assert run(folder, tmp_path / "out", *other) == 2 and "npy_dtype" in capsys.readouterr().err
    assert run(folder, tmp_path / "out", *flags, "--stride", "4") == 2 and "stride: 8 there" in capsys.readouterr().err
    assert run(folder, tmp_path / "out", *flags, "--stride", "4", "--overwrite") == 0


def test_files_of_others_stay_and_are_not_taken_for_ours(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    out.mkdir()
    (out / "labels.json").write_text('["a"]')
    assert run(folder, out) == 0 and (out / "labels.json").read_text() == '["a"]'
    np.save(out / "mine.npy", np.zeros(3))
    for flags in [[], ["--overwrite"]]:
        assert run(folder, out, *flags) == 2
        assert "mine.npy was not written by tsp_jax" in capsys.readouterr().err
    assert len(np.load(out / "mine.npy")) == 3 and len(list(out.glob("*.npy"))) == 4
    (out / "mine.npy").unlink()
    (out / "a.npy").write_bytes((out / "a.npy").read_bytes()[:-4])  # as a failing disk leaves it
    assert run(folder, out) == 0
    np.testing.assert_array_equal(np.load(out / "a.npy"), features.read(folder / "all.h5", "a").features)
    (out / "b.json").write_text("{}")
    (out / "b.npy").unlink()
    assert run(folder, out) == 2 and "b.json was not written by tsp_jax" in capsys.readouterr().err
    assert (out / "b.json").read_text() == "{}" and not (out / "b.npy").exists()


def test_a_second_writer_is_refused_while_the_first_writes(tmp_path: Path):
    with npy_folder.Writer(tmp_path, RUN) as writer:
        with pytest.raises(features.FeatureFileError, match="another run is writing here"):
            npy_folder.Writer(tmp_path, RUN)
        writer.commit("a", np.ones((2, 3), np.float32), {})
    with npy_folder.Writer(tmp_path, RUN) as writer:
        assert list(writer.done) == ["a"]
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.npy"]


def test_a_number_too_large_for_half_precision_is_named(tmp_path: Path):
    with (
        npy_folder.Writer(tmp_path, RUN, dtype="float16") as writer,
        pytest.raises(features.FeatureFileError, match="too large for float16; pass --npy_dtype float32"),
    ):
        writer.commit("a", np.full((1, 3), 1e5, np.float32), {})
    assert not list(tmp_path.glob("a*"))


KILLED = """
import sys
from pathlib import Path
import numpy as np
from tsp_jax.features import npy_folder
from tsp_jax.system import files
count, stop = 0, int(sys.argv[2])
def trace(frame, event, argument):
    global count
    if frame.f_code.co_filename not in (npy_folder.__file__, files.__file__):
        return None
    count += event == "line"
    if event == "line" and count == stop:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    return trace
sys.settrace(trace)
with npy_folder.Writer(sys.argv[1], {"stride": 8, "clip_len": 2, "checkpoint_sha256": "ab"}) as writer:
    for name in ("a", "b/c"):
        if name not in writer.done:
            writer.commit(name, np.full((3, 5), ord(name[0]), np.float32), {"damage": ""})
sys.settrace(None)
print(count)
"""


def test_a_kill_at_any_line_leaves_whole_arrays_and_is_made_good(tmp_path: Path):
    def child(folder: Path, stop: int) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", KILLED, str(folder), str(stop)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    def held(folder: Path) -> dict[str, bytes]:
        paths = [path for path in folder.rglob("*") if path.suffix in (".npy", ".json") and path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    whole = child(tmp_path / "whole", 0)
    lines, expected = int(whole.stdout), held(tmp_path / "whole")
    assert len(expected) == 4
    for stop in np.linspace(1, lines, 12).astype(int).tolist():
        folder = tmp_path / str(stop)
        assert child(folder, stop).returncode == -signal.SIGKILL
        for name, content in held(folder).items():
            assert content == expected[name]
        assert child(folder, 0).returncode == 0
        assert held(folder) == expected and not list(folder.rglob(".*"))
