"""Tests of the build: three ways give the same result, and a build that is stopped at any moment leaves a sound state."""

import contextlib
import csv
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

import media
from data_builders import build, runners, shards, span_builder, spans
from data_builders.activitynet import activitynet_dataset_builder
from data_builders.thumos14 import thumos14_dataset_builder
from data_builders.video_folder import video_folder_dataset_builder
from tsp_jax import groundtruth, input_pipeline, records
from tsp_jax.system import files

ROOT = Path(__file__).parents[1]
LABELS = ["jump", "run", "sit"]
VIDEOS = {"train": ["a.mp4", "b.mp4", "c/c.mp4", "d.mp4", "e.mp4", "f.mp4"], "valid": ["名前.mp4", "h.mp4"]}
SECONDS = 6
FINAL = Path("video_folder") / "jpeg" / "1.0.0"
WORK = Path("video_folder") / "jpeg" / "incomplete.1.0.0"


def row(name: str, start: float, end: float, label: str) -> groundtruth.AnnotatedSegment:
    region = groundtruth.ACTION if label else groundtruth.NO_ACTION
    return groundtruth.AnnotatedSegment(Path(name).stem, start, end, label, SECONDS, name, 30.0, 30 * SECONDS, region)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the builders' manual directory, with videos, a ground truth for each split, and the labels."""
    folder = tmp_path_factory.mktemp("data")
    for split, names in VIDEOS.items():
        rows = []
        for number, name in enumerate(names):
            path = folder / "videos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            media.write(path, frames=30 * SECONDS, seed=number)
            rows += [row(name, 0, 2, LABELS[number % 3]), row(name, 2, 2.5, ""), row(name, 2.5, SECONDS, "")]
        groundtruth.write_groundtruth(folder / f"{split}.csv", rows)
    groundtruth.write_label_mapping(folder / "action_label_mapping.json", LABELS)
    return folder


def flags(data: Path, output: Path, *more: str) -> list[str]:
    tables = [str(data / f"{split}.csv") for split in VIDEOS]
    found = ["--dataset", "video_folder", "--videos", str(data / "videos"), "--data_dir", str(output)]
    return [*found, "--groundtruth", *tables, "--num_shards", "4", "--workers", "2", *more]


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes shards in this process, which is quicker if the test is not about processes."""

    def write_all(tasks: list[shards.Shard], workers: int) -> None:
        for shard in tasks:
            shards.write_shard(shard)

    monkeypatch.setattr(runners, "run_on_processes", write_all)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def command(data: Path, output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "data_builders.build", *flags(data, output, *more)]


def run(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, **{"env": environment(), "capture_output": True, "text": True, "timeout": 120, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_all(folder: Path, split: str) -> list[dict[str, Any]]:
    source = tfds.builder_from_directory(str(folder)).as_data_source(split)
    return [source[number] for number in range(len(source))]


def equal(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return len(a) == len(b) and all(
        one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
        for one, other in zip(a, b, strict=True)
    )


def check_agrees(folder: Path, split: str) -> records.Index:
    """Checks that the index and the records agree and that all frames decode, and returns the index."""
    index = records.read_index(folder, split)
    found = read_all(folder, split)
    assert len(found) == len(index.record_segment)
    out = np.zeros((128, 171, 3), np.uint8)
    for number, record in enumerate(found):
        segment = index.record_segment[number]
        assert record["first_start"] == index.record_first[number]
        assert record["num_starts"] == index.record_starts[number]
        assert record["segment"] == index.segment_row[segment]
        assert record["filename"].decode() == index.video_filename[index.segment_video[segment]]
        assert record["action"] == index.segment_action[segment]
        assert record["temporal_region"] == index.segment_temporal_region[segment]
        assert record["start_sec"] == np.float32(index.segment_start_sec[segment])
        assert record["end_sec"] == np.float32(index.segment_end_sec[segment])
        assert len(record["frame_ends"]) == index.record_starts[number] + 15
        for begin, end in itertools.pairwise([0, *record["frame_ends"].tolist()]):
            records.decode_frame(record["frames"][begin:end], index.codec, out)
    return index


@pytest.fixture(scope="module")
def built(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted build by processes, during which nothing may import TensorFlow."""
    output = tmp_path_factory.mktemp("built")
    trap = output / "trap" / "tensorflow"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text("raise RuntimeError('TensorFlow is imported')\n")
    path = f"{trap.parent}{os.pathsep}{ROOT}"
    result = run(command(data, output), env={**os.environ, "PYTHONPATH": path})
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    read = "import sys; from tsp_jax import input_pipeline; s = input_pipeline.open_split(sys.argv[1], 'train'); s.source[0]"
    result = run([sys.executable, "-c", read, str(output / FINAL)], env={**os.environ, "PYTHONPATH": path})
    assert result.returncode == 0, result.stderr
    return output / FINAL


# ------------------------------------------------------------------------------------------------------------- three ways


def test_a_built_folder_opens_with_its_counts_labels_and_texts(built: Path):
    builder = tfds.builder_from_directory(str(built))
    assert builder.info.features["action"].names == LABELS
    assert builder.info.features["temporal_region"].names == ["Action", "No action"]
    assert "untrimmed videos" in builder.info.description
    assert "alwassel2021tsp" in builder.info.citation
    # Each of six videos has an action of 2 s (15 starts) and background of 3.5 s (37 starts); 0.5 s is too short.
    assert {name: (info.num_examples, info.num_shards) for name, info in builder.info.splits.items()} == {
        "train": (12, 4),
        "valid": (4, 2),
    }
    index = check_agrees(built, "train")
    check_agrees(built, "valid")
    assert index.segment_row.tolist() == [row for row in range(18) if row % 3 != 1]
    assert index.segment_starts.tolist() == [15, 38] * 6
    assert index.video_filename == tuple(VIDEOS["train"])
    assert (built / build.ERRORS_FILE).read_text() == "filename,line,start_sec,starts,reason\n"
    assert not built.parent.joinpath("incomplete.1.0.0").exists()
    split = input_pipeline.open_split(built, "valid")
    assert split.labels == tuple(LABELS)


def test_the_build_prints_what_it_plans_and_what_it_made(
    data: Path, tmp_path: Path, one_process: None, capsys: pytest.CaptureFixture[str]
):
    assert build.main(flags(data, tmp_path)) == 0
    printed = capsys.readouterr()
    assert "train: 6 videos, 12 segments, 12 records of 498 frames, about 0.0 GB; 6 segments are shorter" in printed.out
    assert "train 12 records in 4 shards, valid 4 records in 2 shards" in printed.out
    assert str(tmp_path / FINAL) in printed.out


@pytest.mark.parametrize("way", ["source", "manual_dir"])
def test_tfds_alone_gives_the_same_records(way: str, data: Path, built: Path, tmp_path: Path):
    if way == "source":
        tables = {split: data / f"{split}.csv" for split in VIDEOS}
        source = span_builder.Source(data / "videos", tables, tuple(LABELS))
        builder = video_folder_dataset_builder.Builder(source=source, data_dir=tmp_path)
        builder.download_and_prepare()
    else:
        builder = video_folder_dataset_builder.Builder(data_dir=tmp_path)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=data))
    for split in VIDEOS:
        assert equal(read_all(tmp_path / FINAL, split), read_all(built, split))
        ours, plain = check_agrees(built, split), check_agrees(tmp_path / FINAL, split)
        for field in dataclasses.fields(ours):
            if not field.name.startswith("shard_"):
                assert np.array_equal(getattr(ours, field.name), getattr(plain, field.name)), field.name


def test_tfds_alone_refuses_a_damaged_video_and_leaves_nothing(data: Path, tmp_path: Path):
    tables = {"train": data / "train.csv"}
    source = span_builder.Source(tmp_path, tables, tuple(LABELS))
    builder = video_folder_dataset_builder.Builder(source=source, data_dir=tmp_path / "out")
    with pytest.raises(Exception, match=r"a\.mp4 from 0\.0 s can't be read: no such file"):
        builder.download_and_prepare()
    assert not (tmp_path / "out" / FINAL).exists()


@pytest.mark.slow
def test_beam_gives_the_same_bytes(data: Path, built: Path, tmp_path: Path):
    pytest.importorskip("apache_beam")
    result = run(command(data, tmp_path, "--beam_runner", "DirectRunner"))
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / FINAL) == contents(built)


@pytest.mark.slow
def test_beam_stops_at_a_damaged_video_and_goes_on_after_the_repair(data: Path, built: Path, tmp_path: Path):
    pytest.importorskip("apache_beam")
    broken = broken_copy(data, tmp_path)
    arguments = command(broken, tmp_path, "--on_error", "stop", "--beam_runner", "DirectRunner")
    result = run(arguments)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: DirectRunner: c/c.mp4 from 0.0 s: no such file; repair it")
    assert not (tmp_path / FINAL).exists()
    repair(data, broken)
    assert run(arguments).returncode == 0
    assert contents(tmp_path / FINAL) == contents(built)


def test_beam_that_is_not_there_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert build.main(flags(data, tmp_path, "--beam_runner", "DirectRunner")) == 1
    assert "pip install 'tsp_jax[beam]'" in capsys.readouterr().err


def test_lossless_frames_show_their_numbers(data: Path, tmp_path: Path, one_process: None):
    assert build.main(flags(data, tmp_path, "--config", "lossless")) == 0
    folder = tmp_path / "video_folder" / "lossless" / "1.0.0"
    assert check_agrees(folder, "valid").codec == "lossless"
    out = np.zeros((128, 171, 3), np.uint8)
    for record in read_all(folder, "valid"):
        places = itertools.count(int(record["first_start"]))
        for (begin, end), place in zip(itertools.pairwise([0, *record["frame_ends"].tolist()]), places, strict=False):
            records.decode_frame(record["frames"][begin:end], "lossless", out)
            assert media.number(out) == 2 * place


# ------------------------------------------------------------------------------------------------------------ interrupted


def children(pid: int) -> list[int]:
    """Returns the processes whose parent is this one, except for the tracker of multiprocessing."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and b"spawn_main" in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
    return found


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.005)


def notes(output: Path) -> list[Path]:
    return sorted((output / WORK / "done").glob("*.json"))


@contextlib.contextmanager
def running(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_looks_finished_and_goes_on(data: Path, built: Path, tmp_path: Path):
    """Only the parent is killed: at the beginning, in its first shard, and with one and three of six shards done."""
    moments: list[Callable[[int], object]] = [
        lambda pid: (tmp_path / WORK).exists(),
        lambda pid: children(pid) and any((tmp_path / WORK / "shards").glob(".*.tmp")),
        lambda pid: len(notes(tmp_path)) >= 1,
        lambda pid: len(notes(tmp_path)) >= 3,
    ]
    finished: dict[Path, int] = {}
    for moment in moments:
        with running(command(data, tmp_path)) as process:
            wait_for(lambda: moment(process.pid), "a moment to kill it")  # noqa: B023
            workers = children(process.pid)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not (tmp_path / FINAL).exists()
        wait_for(lambda: not any(map(is_alive, workers)), "the workers to end", 20)  # noqa: B023
        assert not (tmp_path / FINAL).exists()
        for path, written in finished.items():
            assert path.stat().st_mtime_ns == written
        paths = [tmp_path / WORK / "shards" / note.stem for note in notes(tmp_path)]
        finished |= {path: path.stat().st_mtime_ns for path in paths}
    assert 3 <= len(finished) < 6
    assert run(command(data, tmp_path)).returncode == 0
    for path, written in finished.items():
        assert (tmp_path / FINAL / path.name).stat().st_mtime_ns == written
    assert contents(tmp_path / FINAL) == contents(built)
    assert not (tmp_path / WORK).exists()


# This program writes shards in its own process, and dies when it is about to call the function that its first argument names.
DYING = """
import os, pathlib, shutil, signal, sys
import tensorflow_datasets as tfds
from data_builders import build, runners, shards
from tsp_jax import records
from tsp_jax.system import files
owner, _, name = sys.argv[1].rpartition(".")
owner, left = eval(owner), [int(sys.argv[2])]
real = getattr(owner, name)
def dying(*args, **kwargs):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
setattr(owner, name, dying)
runners.run_on_processes = lambda tasks, workers: [shards.write_shard(shard) for shard in tasks]
sys.exit(build.main(sys.argv[3:]))
"""


def die(at: str, calls: int, arguments: list[str]) -> None:
    result = run([sys.executable, "-c", DYING, at, str(calls), *arguments])
    assert result.returncode == -signal.SIGKILL, result.stderr


@pytest.mark.slow
def test_a_build_killed_while_it_finishes_goes_on(data: Path, built: Path, tmp_path: Path, one_process: None):
    moments = [
        ("files.replacing", 0),  # the recipe
        ("files.replacing", 2),  # the second shard has no note yet
        ("records.write_index", 1),
        ("tfds.core.DatasetInfo.write_dataset_info_json", 0),
        ("build.shutil.copyfile", 0),
        ("pathlib.Path.rename", 0),
    ]
    for at, calls in moments:
        die(at, calls, flags(data, tmp_path))
        assert not (tmp_path / FINAL).exists(), at
    # TFDS and numpy leave such files if they are killed while they write.
    (tmp_path / WORK / "shards" / "incomplete.ABC.dataset_info.json").write_text("{")
    (tmp_path / WORK / "shards" / ".x.1.tmp").write_text("")
    assert build.main(flags(data, tmp_path)) == 0
    assert contents(tmp_path / FINAL) == contents(built)


@pytest.mark.slow
def test_a_build_killed_after_its_last_step_but_one_is_finished(
    data: Path, built: Path, tmp_path: Path, one_process: None, capsys: pytest.CaptureFixture[str]
):
    die("shutil.rmtree", 0, flags(data, tmp_path))
    assert contents(tmp_path / FINAL) == contents(built)
    left = tmp_path / WORK
    assert left.exists()
    kept = shutil.copytree(left, tmp_path / "kept")
    assert build.main(flags(data, tmp_path)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert not left.exists()
    # Notes without their shards do not count.
    shutil.rmtree(tmp_path / FINAL)
    shutil.move(kept, left)
    assert len(notes(tmp_path)) == 6
    assert build.main(flags(data, tmp_path)) == 0
    assert contents(tmp_path / FINAL) == contents(built)


@pytest.mark.parametrize("damage", ["shard_gone", "shard_cut", "note_empty", "note_of_nothing", "recipe_empty"])
def test_what_a_crash_of_the_machine_leaves_is_not_trusted(
    damage: str,
    data: Path,
    built: Path,
    tmp_path: Path,
    one_process: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: Any,
):
    with interrupted_before_the_end():
        assert build.main(flags(data, tmp_path)) == 130
    assert "run the command again" in capsys.readouterr().err
    note = notes(tmp_path)[1]
    shard = tmp_path / WORK / "shards" / note.stem
    match damage:
        case "shard_gone":
            shard.unlink()
        case "shard_cut":
            shard.write_bytes(shard.read_bytes()[:-1])
        case "note_empty":
            note.write_bytes(b"")
        case "note_of_nothing":
            note.write_text("{}")
        case "recipe_empty":
            (tmp_path / WORK / "build.json").write_bytes(b"")
    status = build.main(flags(data, tmp_path))
    if damage == "recipe_empty":
        assert status == 1
        assert "no build.json of this command in it; name another --data_dir, or remove the folder" in capsys.readouterr().err
    else:
        assert status == 0
        assert contents(tmp_path / FINAL) == contents(built)


@contextlib.contextmanager
def interrupted_before_the_end() -> Iterator[None]:
    """Simulates Ctrl-C after all shards are written."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "finish", interrupt)
        yield


@pytest.mark.slow
def test_a_dying_worker_is_reported_and_the_next_run_finishes(data: Path, built: Path, tmp_path: Path):
    with running(command(data, tmp_path)) as process:
        wait_for(lambda: notes(tmp_path), "the first shard")
        os.kill(children(process.pid)[0], signal.SIGKILL)
        assert process.stderr
        error = process.stderr.read()
        assert process.wait(60) == 1
    assert "a worker died (killed, or out of memory)" in error
    assert "run the command again" in error
    assert "Traceback" not in error
    assert not (tmp_path / FINAL).exists()
    assert run(command(data, tmp_path)).returncode == 0
    assert contents(tmp_path / FINAL) == contents(built)


# -------------------------------------------------------------------------------------------------------------- disk full

LIMITED = """
import resource, sys
from data_builders import build
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
sys.exit(build.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_files_that_can_not_grow_end_the_build_with_a_message(data: Path, built: Path, tmp_path: Path):
    """No file may be larger than 200 kB, but a shard is."""
    result = run([sys.executable, "-c", LIMITED, *flags(data, tmp_path)])
    assert result.returncode == 1, result.stderr
    assert "is the disk full?" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / FINAL).exists()
    assert not notes(tmp_path)
    assert not list((tmp_path / WORK / "shards").iterdir())
    assert run(command(data, tmp_path)).returncode == 0
    assert contents(tmp_path / FINAL) == contents(built)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["0k", "900k", "3500k"])
def test_a_full_disk_ends_the_build_with_a_message(size: str, data: Path, built: Path, tmp_path: Path):
    """The disk is full at once, after a shard, or nearly at the end. Then there is room."""
    total = sum(map(len, contents(built).values()))
    assert total > 3_600_000
    disk = tmp_path / "disk"
    disk.mkdir()
    how = ["-o", f"size={'4k' if size == '0k' else size}"]
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", *how, "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a small disk can't be mounted here")
    try:
        result = run(command(data, disk))
        assert result.returncode == 1, result.stderr
        assert "is the disk full?" in result.stderr or "No space left on device" in result.stderr
        assert "Traceback" not in result.stderr
        assert not (disk / FINAL).exists()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert run(command(data, disk)).returncode == 0
        assert contents(disk / FINAL) == contents(built)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_shard_that_lacks_records_is_not_done(
    data: Path, tmp_path: Path, one_process: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """array_record might lose records without an error."""
    real = shards.array_record_module

    class Forgetful:
        ArrayRecordReader = real.ArrayRecordReader

        class ArrayRecordWriter(real.ArrayRecordWriter):
            def write(self, record: bytes) -> None:
                if not hasattr(self, "began"):
                    self.began = True
                    super().write(record)

    monkeypatch.setattr(shards, "array_record_module", Forgetful)
    assert build.main(flags(data, tmp_path)) == 1
    assert "holds 1 records after writing 2; is the disk full?" in capsys.readouterr().err
    assert not notes(tmp_path)
    assert not list((tmp_path / WORK / "shards").iterdir())


# ---------------------------------------------------------------------------------------------------------- broken videos


def broken_copy(data: Path, tmp_path: Path) -> Path:
    """Returns a copy of the data in which c.mp4 is missing and e.mp4 ends after 3 s."""
    copy = Path(shutil.copytree(data, tmp_path / "broken"))
    (copy / "videos" / "c" / "c.mp4").unlink()
    media.write(copy / "videos" / "e.mp4", frames=90, seed=4)
    return copy


def repair(data: Path, copy: Path) -> None:
    shutil.copytree(data, copy, dirs_exist_ok=True)


def test_skip_leaves_the_bad_parts_out_and_says_so(
    data: Path, tmp_path: Path, one_process: None, capsys: pytest.CaptureFixture[str]
):
    """Each video has its own shard, and that of c.mp4 is empty."""
    broken = broken_copy(data, tmp_path)
    arguments = flags(broken, tmp_path, "--num_shards", "6")
    assert build.main(arguments) == 1
    printed = capsys.readouterr()
    assert "left out: c/c.mp4 from 0.0 s: no such file" in printed.err
    assert f"error: {15 + 38 + 38} clip starts of 2 videos can't be read and are left out" in printed.err
    folder = tmp_path / FINAL
    with open(folder / build.ERRORS_FILE, newline="", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert [(line["filename"], line["line"], line["start_sec"], line["starts"]) for line in table] == [
        ("c/c.mp4", "8", "0.000", "15"),
        ("c/c.mp4", "10", "2.467", "38"),
        ("e.mp4", "16", "2.467", "38"),
    ]
    assert "the file ends before" in table[2]["reason"]
    index = check_agrees(folder, "train")
    assert index.segment_row.tolist() == [0, 2, 3, 5, 9, 11, 12, 15, 17]
    assert index.shard_records.tolist() == [2, 2, 0, 2, 1, 2]
    assert index.video_filename == tuple(name for name in VIDEOS["train"] if name != "c/c.mp4")
    check_agrees(folder, "valid")
    # A finished build stays as it is. Repaired videos need a new folder.
    repair(data, broken)
    assert build.main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_stop_leaves_no_folder_and_goes_on_after_the_repair(
    data: Path, built: Path, tmp_path: Path, one_process: None, capsys: pytest.CaptureFixture[str]
):
    broken = broken_copy(data, tmp_path)
    arguments = flags(broken, tmp_path, "--on_error", "stop")
    assert build.main(arguments) == 1
    error = capsys.readouterr().err
    assert error == "error: c/c.mp4 from 0.0 s: no such file; repair it, or pass --on_error skip\n"
    assert not (tmp_path / FINAL).exists()
    assert len(notes(tmp_path)) == 1
    repair(data, broken)
    assert build.main(arguments) == 0
    assert contents(tmp_path / FINAL) == contents(built)


def test_stop_does_not_take_over_what_skip_left_out(
    data: Path, built: Path, tmp_path: Path, one_process: None, capsys: pytest.CaptureFixture[str]
):
    broken = broken_copy(data, tmp_path)
    with interrupted_before_the_end():
        assert build.main(flags(broken, tmp_path)) == 130
    assert len(notes(tmp_path)) == 6
    assert build.main(flags(broken, tmp_path, "--on_error", "stop")) == 1
    assert "c/c.mp4 from 0.0 s: no such file; repair it" in capsys.readouterr().err
    repair(data, broken)
    assert build.main(flags(broken, tmp_path, "--on_error", "stop")) == 0
    assert contents(tmp_path / FINAL) == contents(built)


@pytest.mark.slow
def test_stop_ends_the_processes_too(data: Path, tmp_path: Path):
    broken = broken_copy(data, tmp_path)
    result = run(command(broken, tmp_path, "--on_error", "stop"))
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "pass --on_error skip" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / FINAL).exists()


def test_a_split_of_which_nothing_can_be_read_is_refused_until_it_can(
    data: Path, built: Path, tmp_path: Path, one_process: None, capsys: pytest.CaptureFixture[str]
):
    broken = Path(shutil.copytree(data, tmp_path / "broken"))
    for name in VIDEOS["valid"]:
        (broken / "videos" / name).write_bytes(b"no video")
    assert build.main(flags(broken, tmp_path)) == 1
    assert "split valid: no part of its 2 videos can be read, such as h.mp4: not a video" in capsys.readouterr().err
    assert not (tmp_path / FINAL).exists()
    repair(data, broken)
    assert build.main(flags(broken, tmp_path)) == 0
    assert contents(tmp_path / FINAL) == contents(built)


# --------------------------------------------------------------------------------------------------------------- refusals


def test_a_second_build_at_the_same_time_is_refused(
    data: Path, tmp_path: Path, one_process: None, capsys: pytest.CaptureFixture[str]
):
    with build._locked(tmp_path / WORK):
        assert build.main(flags(data, tmp_path)) == 1
    assert f"another build is writing in {tmp_path / WORK}; wait for it" in capsys.readouterr().err
    assert build.main(flags(data, tmp_path)) == 0


def test_a_build_that_another_one_finished_meanwhile_is_left_alone(
    data: Path, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The other build finishes after this one looked for the folder and before this one holds the lock."""
    locked = files.locked

    @contextlib.contextmanager
    def late(*args: Any) -> Iterator[None]:
        with locked(*args):
            shutil.copytree(built, tmp_path / FINAL)
            yield

    monkeypatch.setattr(files, "locked", late)
    assert build.main(flags(data, tmp_path)) == 1
    assert f"another build has just finished {tmp_path / FINAL}; run the command again" in capsys.readouterr().err
    monkeypatch.undo()
    assert build.main(flags(data, tmp_path)) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert not (tmp_path / WORK).exists()


def test_the_same_again_does_nothing(
    data: Path, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(built, tmp_path / FINAL)
    monkeypatch.setattr(runners, "run_on_processes", None)
    assert build.main(flags(data, tmp_path)) == 0
    assert "the same was built before; nothing to do" in capsys.readouterr().out
    assert not (tmp_path / WORK).exists()
    assert contents(tmp_path / FINAL) == contents(built)


@pytest.mark.parametrize("state", ["finished", "begun"])
def test_another_ground_truth_labels_or_shards_are_refused_with_the_difference(
    state: str, data: Path, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    if state == "finished":
        shutil.copytree(built, tmp_path / FINAL)
    else:
        (tmp_path / WORK).mkdir(parents=True)
        shutil.copy(built / "build.json", tmp_path / WORK)
    other = Path(shutil.copytree(data, tmp_path / "other"))
    rows = groundtruth.read_groundtruth(data / "train.csv")
    groundtruth.write_groundtruth(other / "train.csv", [dataclasses.replace(rows[0], end_sec=1.9), *rows[1:]])
    mapping = tmp_path / "labels.json"
    groundtruth.write_label_mapping(mapping, [*LABELS[:2], "lie", "sit"])
    for arguments, difference in [
        (flags(other, tmp_path), "segments_sha256: "),
        (
            flags(data, tmp_path, "--labels", str(mapping)),
            "labels: 3 there, 4 asked for; number 2 is 'sit' there, 'lie' asked for",
        ),
        (flags(data, tmp_path, "--num_shards", "1"), 'shards: {"train": 4, "valid": 2} there, {"train": 1, "valid": 1} asked'),
    ]:
        assert build.main(arguments) == (2 if state == "finished" else 1)
        error = capsys.readouterr().err
        assert "was built from something else; name another --data_dir, or remove the folder" in error
        assert difference in error
    if state == "finished":
        assert contents(tmp_path / FINAL) == contents(built)


def test_the_recipe_is_that_of_earlier_versions():
    """The hash comes from commit 6ef4969. With another one, its records would be refused as built from something else."""
    segment = spans.Segment(row=0, action=1, temporal_region=0, start_sec=0.5, end_sec=2.5, first=7, starts=15)
    video = spans.Video("a.mp4", 30.0, 300, (spans.Span(0, segment, 7, 15),))
    path = Path("shards/x.array_record-00000-of-00001")
    shard = shards.Shard("train", path, Path("note"), Path("videos"), (video,), ("jump", "run"), "jpeg", False)
    assert build._recipe([shard]) == {
        "format": 1,
        "codec": "jpeg",
        "labels": ["jump", "run"],
        "shards": {"train": 1},
        "segments_sha256": "8b566e679bbd9aaad995ecd49e3e9f6411d8cfbb4396f0a0c918304ef211458e",
    }


def test_a_folder_of_something_else_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / FINAL).mkdir(parents=True)
    (tmp_path / FINAL / "mine.txt").write_text("keep")
    assert build.main(flags(data, tmp_path)) == 2
    assert f"{tmp_path / FINAL}: no build.json of this command in it" in capsys.readouterr().err
    assert (tmp_path / FINAL / "mine.txt").read_text() == "keep"


def replaced(arguments: list[str], flag: str, *values: str) -> list[str]:
    """Returns the flags with other values for one of them."""
    at = arguments.index(flag) + 1
    end = next((i for i in range(at, len(arguments)) if arguments[i].startswith("--")), len(arguments))
    return [*arguments[:at], *values, *arguments[end:]]


def test_wrong_use_is_reported_with_status_2(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    right = flags(data, tmp_path / "out")
    train, valid = (str(data / f"{split}.csv") for split in VIDEOS)
    for name in ("latest.csv", "ground.csv", "trainvalid.csv"):
        shutil.copy(train, tmp_path / name)
    (tmp_path / "short.csv").write_text("video-name\n")
    groundtruth.write_groundtruth(tmp_path / "test_tiny.csv", [row("a.mp4", 0, 1, "jump")])
    groundtruth.write_label_mapping(tmp_path / "labels.json", ["jump"])
    cases = [
        (replaced(right, "--videos", str(tmp_path / "none")), "none: no such folder"),
        (replaced(right, "--groundtruth", train, train), "are both split train; write NAME=CSV"),
        (replaced(right, "--groundtruth", f"valid={train}", valid), "are both split valid"),
        (replaced(right, "--groundtruth", str(tmp_path / "latest.csv")), "which split is it? write train="),
        (replaced(right, "--groundtruth", str(tmp_path / "ground.csv")), "which split is it?"),
        (replaced(right, "--groundtruth", str(tmp_path / "trainvalid.csv")), "which split is it?"),
        (
            replaced(right, "--groundtruth", f"my-split={train}"),
            "and not 'all'; got 'my-split'",
        ),
        (replaced(right, "--groundtruth", f"all={train}"), "got 'all'"),
        (replaced(right, "--groundtruth", f"train={tmp_path / 'none.csv'}"), "none.csv: no such file"),
        (replaced(right, "--groundtruth", f"train={tmp_path / 'short.csv'}"), "no column t-start"),
        (replaced(right, "--groundtruth", str(tmp_path / "test_tiny.csv")), "no segment is as long as a clip, 1.07 s"),
        ([*right, "--labels", str(tmp_path / "labels.json")], "line 5: action-label 'run' is not among the 1 labels"),
        (replaced(right, "--dataset", "thumos14"), "thumos14 has 20 classes; got 3 labels; give its whole mapping"),
    ]
    for arguments, message in cases:
        assert build.main(arguments) == 2, message
        assert message in capsys.readouterr().err
    for arguments in ([*right, "--workers", "0"], replaced(right, "--dataset", "x"), [*right, "--config", "png"]):
        with pytest.raises(SystemExit) as caught:
            build.main(arguments)
        assert caught.value.code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("x/train.csv", "train"),
        ("x/activitynet_v1-3_validation_gt.csv", "valid"),
        ("x/thumos14_test_tsp_groundtruth.csv", "test"),
        ("x/TRAINING.csv", "train"),
        ("dev=x/latest.csv", "dev"),
        ("test=x/train.csv", "test"),
    ],
)
def test_splits_are_known_by_their_files_or_by_name(text: str, split: str):
    assert build._split_and_path(text) == (split, Path(text.split("=")[-1]))


# ------------------------------------------------------------------------------------------------------------- dummy data


@pytest.mark.parametrize(
    ("module", "splits", "classes"),
    [
        (activitynet_dataset_builder, ["train", "valid"], 200),
        (thumos14_dataset_builder, ["test", "valid"], 20),
        (video_folder_dataset_builder, ["train", "valid"], 3),
    ],
    ids=["activitynet", "thumos14", "video_folder"],
)
@pytest.mark.parametrize("config", ["jpeg", "lossless"])
def test_each_builder_prepares_its_dummy_data_by_tfds_alone(
    module: Any, splits: list[str], classes: int, config: str, tmp_path: Path
):
    dummy = Path(module.__file__).parent / "dummy_data"
    builder = module.Builder(data_dir=tmp_path, config=config)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=dummy))
    assert sorted(builder.info.splits) == splits
    assert builder.info.features["action"].num_classes == classes
    assert builder.info.description and builder.info.citation
    for split in splits:
        index = check_agrees(Path(builder.data_dir), split)
        assert index.segment_temporal_region.tolist() == [0, 1]
        assert index.segment_action[0] >= 0
    assert json.loads((dummy / "action_label_mapping.json").read_text()) == builder.info.features["action"].names
