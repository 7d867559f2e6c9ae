"""Tests of the features' file: whole at any moment, the same bytes on any way there, and safe to point at any file."""

import contextlib
import itertools
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import types
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tsp_jax import features
from tsp_jax.features import __main__ as features_command
from tsp_jax.features import global_features, hdf5
from tsp_jax.system import files

ROOT = Path(__file__).parents[1]
WIDTH = 512
RUN = {
    "stride": 16,
    "clip_len": 16,
    "frame_rate": 15.0,
    "frame_selection": "reference",
    "decoder": "pyav",
    "dtype": "float32",
    "checkpoint": "r2plus1d_34-tsp_on_activitynet",
    "checkpoint_sha256": "ab" * 32,
    "tsp_jax_version": "0.1.0",
}
VIDEOS = ("b_video", "Über", "a video", "视频_1", "v-3", "видео", "z" * 200)
TRACED = {module.__file__ for module in (features, hdf5, files)}  # the lines at which runs are killed
FORTY = tuple(f"video_{index:02}" for index in range(40))


def rows(name: str) -> np.ndarray:
    """A video's features: from its name alone, between 1 and 6 rows."""
    seed = zlib.crc32(name.encode())
    return np.random.default_rng(seed).standard_normal((1 + seed % 6, WIDTH), np.float32)


def own(name: str) -> features.Attributes:
    """A video's own attributes."""
    count = len(rows(name))
    return {"fps": 29.97, "frames": 40 * count, "clips": count, "clip_ranges": np.array([[0, count]]), "damage": ""}


def write(output: Path, videos: Sequence[str] = VIDEOS, run: features.Attributes = RUN, *, overwrite: bool = False) -> Path:
    """A run from its start to its end, over what is done already."""
    with features.Writer(output, run, overwrite=overwrite) as writer:
        for name in videos:
            if name not in writer.done:
                writer.commit(name, rows(name), own(name))
    return output


class Interrupted(Exception):
    pass


def write_and_fail(output: Path, videos: Sequence[str], run: features.Attributes = RUN) -> None:
    """A run that ends with an error after the last of the videos."""
    with pytest.raises(Interrupted), features.Writer(output, run) as writer:
        for name in videos:
            writer.commit(name, rows(name), own(name))
        raise Interrupted


def parts(output: Path) -> Path:
    return output.with_name(output.name + ".parts")


def contents(path: Path) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Everything that h5py alone finds in a file: bytes of features, attributes as plain values."""
    with h5py.File(path) as file:
        return {
            name: (dataset[()].tobytes(), {key: np.asarray(value).tolist() for key, value in plain(dataset).items()})
            for name, dataset in file.items()
        }


def plain(item: h5py.File | h5py.Dataset) -> dict[str, Any]:
    """Attributes as a reader with h5py alone sees them, text decoded."""
    return {key: value.decode() if isinstance(value, bytes) else value for key, value in item.attrs.items()}


def script(call: str, *arguments: object) -> list[str]:
    """A command line that calls a function of this module, in a process that may fork and be killed."""
    return [sys.executable, "-c", f"import sys, test_features; test_features.{call}(*sys.argv[1:])", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


# ---------------------------------------------------------------------------------------------------------------- writing


def test_a_finished_file_needs_nothing_but_h5py(tmp_path: Path):
    path = write(tmp_path / "new" / "folder" / "features.h5")
    with h5py.File(path) as file:
        assert plain(file) == {**RUN, "format_version": features.FORMAT_VERSION}
        assert set(file) == set(VIDEOS)
        for name in VIDEOS:
            dataset = file[name]
            assert dataset.dtype == np.float32 and dataset.compression == "gzip"
            np.testing.assert_array_equal(dataset[()], rows(name), strict=True)
            ranges = dataset.attrs["clip_ranges"]
            np.testing.assert_array_equal(ranges, [[0, len(rows(name))]])
            assert {**plain(dataset), "clip_ranges": None} == {**RUN, **own(name), "clip_ranges": None}
    assert os.listdir(path.parent) == ["features.h5"]


def test_read_gives_what_was_committed(tmp_path: Path):
    path = write(tmp_path / "f.h5")
    assert features.names(str(path)) == sorted(VIDEOS)
    for name in VIDEOS:
        found = features.read(str(path), name)
        assert found.name == name
        np.testing.assert_array_equal(found.features, rows(name), strict=True)
        assert {**found.attributes, "clip_ranges": None} == {**RUN, **own(name), "clip_ranges": None}
        assert type(found.attributes["stride"]) is int and type(found.attributes["fps"]) is float


def test_features_are_written_as_float32_whatever_they_come_in(tmp_path: Path):
    with features.Writer(tmp_path / "f.h5", RUN) as writer:
        writer.commit("float64", np.full((2, WIDTH), 1 / 3), {})
        writer.commit("float16", np.full((2, WIDTH), 0.5, np.float16), {})
        writer.commit("view", np.arange(4 * WIDTH, dtype=np.float32).reshape(4, WIDTH)[::2, ::-1], {})
    read = {name: features.read(tmp_path / "f.h5", name).features for name in features.names(tmp_path / "f.h5")}
    assert {array.dtype for array in read.values()} == {np.dtype(np.float32)}
    assert np.all(read["float64"] == np.float32(1 / 3)) and np.all(read["float16"] == 0.5)
    assert read["view"][1, 0] == 3 * WIDTH - 1


@pytest.mark.parametrize("count", [1, 256, 257, 2000])
def test_any_number_of_rows_survives(count: int, tmp_path: Path):
    # Equal values pack the best that deflate can, which the reader's bound on claims has to let pass.
    array = np.zeros((count, WIDTH), np.float32)
    with features.Writer(tmp_path / "f.h5", RUN) as writer:
        writer.commit("zeros", array, {})
    np.testing.assert_array_equal(features.read(tmp_path / "f.h5", "zeros").features, array, strict=True)


def test_a_run_without_videos_gives_a_file_without_videos(tmp_path: Path):
    path = write(tmp_path / "f.h5", [])
    assert features.names(path) == []
    with h5py.File(path) as file:
        assert plain(file) == {**RUN, "format_version": features.FORMAT_VERSION}


def test_order_and_interruptions_do_not_change_a_byte(tmp_path: Path):
    expected = write(tmp_path / "expected.h5").read_bytes()
    assert write(tmp_path / "backwards.h5", VIDEOS[::-1]).read_bytes() == expected

    interrupted = tmp_path / "interrupted.h5"
    write_and_fail(interrupted, VIDEOS[4:])
    write_and_fail(interrupted, VIDEOS[1:3])
    assert write(interrupted).read_bytes() == expected

    grown = tmp_path / "grown.h5"
    for count in [2, 2, 5, len(VIDEOS)]:
        write(grown, VIDEOS[:count])
    assert grown.read_bytes() == expected

    again = tmp_path / "again.h5"
    with features.Writer(again, RUN) as writer:
        for name in [*VIDEOS, *VIDEOS[:3]]:
            writer.commit(name, rows(name), own(name))
    assert again.read_bytes() == expected


def test_time_does_not_enter_the_bytes(tmp_path: Path):
    first = write(tmp_path / "a.h5", VIDEOS[:2]).read_bytes()
    time.sleep(1.01)  # HDF5's clock counts seconds
    assert write(tmp_path / "b.h5", VIDEOS[:2]).read_bytes() == first


def test_an_error_keeps_the_parts_for_the_next_run(tmp_path: Path):
    output = tmp_path / "f.h5"
    write_and_fail(output, VIDEOS[:3])
    assert not output.exists()
    with features.Writer(output, RUN) as writer:
        assert set(writer.done) == set(VIDEOS[:3])
        for name in VIDEOS[:3]:
            ranges = writer.done[name].pop("clip_ranges")
            np.testing.assert_array_equal(ranges, own(name)["clip_ranges"])
            assert writer.done[name] == {**RUN, **{key: own(name)[key] for key in ("fps", "frames", "clips", "damage")}}
    assert features.names(output) == sorted(VIDEOS[:3])
    assert not parts(output).exists()


def test_an_interrupt_is_an_error(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), features.Writer(tmp_path / "f.h5", RUN) as writer:
        writer.commit("a", rows("a"), {})
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["f.h5.parts"]


def test_an_error_before_the_first_video_leaves_nothing(tmp_path: Path):
    write_and_fail(tmp_path / "f.h5", [])
    assert not list(tmp_path.iterdir())


def test_a_later_run_adds_videos_and_leaves_the_others_as_they_are(tmp_path: Path):
    output = write(tmp_path / "f.h5", VIDEOS[:3])
    before = contents(output)
    newer = {**RUN, "tsp_jax_version": "0.2.0"}
    with features.Writer(output, newer) as writer:
        assert set(writer.done) == set(VIDEOS[:3])
        writer.commit("new", rows("new"), own("new"))
        assert contents(output) == before  # what readers see until the run ends
    after = contents(output)
    assert set(after) == {*VIDEOS[:3], "new"} and after.items() >= before.items()
    assert after["new"][1]["tsp_jax_version"] == "0.2.0"


def test_a_video_committed_again_replaces_the_older_one(tmp_path: Path):
    output = write(tmp_path / "f.h5", ["a", "b"])
    with pytest.raises(Interrupted), features.Writer(output, RUN) as writer:
        writer.commit("a", rows("a") + 1, {"damage": "once more"})
        raise Interrupted
    with features.Writer(output, RUN) as writer:
        assert writer.done["a"]["damage"] == "once more"
    np.testing.assert_array_equal(features.read(output, "a").features, rows("a") + 1)
    np.testing.assert_array_equal(features.read(output, "b").features, rows("b"))


def test_a_later_run_with_nothing_new_leaves_the_file_alone(tmp_path: Path):
    output = write(tmp_path / "f.h5")
    before = output.stat()
    write(output)
    assert (output.stat().st_ino, output.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_more_ranges_than_an_old_attribute_holds_are_kept(tmp_path: Path):
    ranges = np.arange(2 * 50_000).reshape(-1, 2)  # 800 kB; HDF5 before 1.8 ended at 64 kB
    with features.Writer(tmp_path / "f.h5", RUN) as writer:
        writer.commit("torn", rows("torn"), {"clip_ranges": ranges})
    np.testing.assert_array_equal(features.read(tmp_path / "f.h5", "torn").attributes["clip_ranges"], ranges)


def test_a_message_with_bytes_that_are_no_text_is_kept_readable(tmp_path: Path):
    with features.Writer(tmp_path / "f.h5", {**RUN, "checkpoint": "/models/\udce9t\udce9.pth"}) as writer:
        writer.commit("a", rows("a"), {"damage": "can't read /films/\udcff/a.mp4, нет"})
    found = features.read(tmp_path / "f.h5", "a").attributes
    assert found["damage"] == r"can't read /films/\udcff/a.mp4, нет"
    assert found["checkpoint"] == r"/models/\udce9t\udce9.pth"


def test_text_is_never_kept_in_heaps(tmp_path: Path):
    """The one place of a file without a checksum: where a heap is damaged, HDF5 may loop for ever, or crash."""
    global_features.write(tmp_path / "gvf.h5", {"a": rows("a")[0]}, {"pool": "max", "empty": ""})
    for path in [write(tmp_path / "f.h5"), tmp_path / "gvf.h5"]:
        assert b"GCOL" not in path.read_bytes()


# --------------------------------------------------------------------------------------------------------- kills and locks


def traced(function: Callable[[], object], at_line: Callable[[int], None]) -> None:
    """Runs a function and calls `at_line` with the count of lines of the store and its lock that were begun so far."""
    count = 0

    def trace(frame: Any, kind: str, _: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in TRACED:
            return None
        if kind == "line":
            count += 1
            at_line(count)
        return trace

    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(None)


def fork(function: Callable[[], object]) -> int:
    process = os.fork()
    if process == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return process


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at_lines(folder: str, before: str, count: str) -> None:
    """Kills a run at many of its lines, each time with the files of `before` to begin with, and has it done again."""
    output, videos = Path(folder) / "f.h5", VIDEOS[:5]
    expected = write(Path(folder) / "expected.h5", videos).read_bytes()
    earlier = videos[:3]

    def prepare() -> None:
        output.unlink(missing_ok=True)
        shutil.rmtree(parts(output), ignore_errors=True)
        if before == "output":
            write(output, earlier)
        if before == "parts":
            with contextlib.suppress(Interrupted), features.Writer(output, RUN) as writer:
                for name in videos:
                    writer.commit(name, rows(name), own(name))
                raise Interrupted

    lines: list[int] = []
    prepare()
    traced(lambda: write(output, videos), lines.append)
    for line in sorted(random.Random(before).sample(lines, int(count))):
        prepare()
        process = fork(lambda line=line: traced(lambda: write(output, videos), lambda now: now == line and kill_self()))
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        assert status == -signal.SIGKILL, (line, status)
        visible = features.names(output) if output.exists() else None
        allowed = [sorted(videos), sorted(earlier) if before == "output" else None]
        assert visible in allowed, (line, visible)
        write(output, videos)
        assert output.read_bytes() == expected, line
        assert not parts(output).exists(), line


@pytest.mark.parametrize(("before", "count"), [("nothing", 20), ("output", 12), ("parts", 12)])
def test_a_kill_at_any_line_loses_nothing_and_changes_nothing(before: str, count: int, tmp_path: Path):
    command = script("killed_at_lines", tmp_path, before, count)
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def killed_at_moments(output: str, seed: str, count: str) -> None:
    """Kills a run of 40 videos after random times, again and again, and lets the last one come to its end."""
    chance = random.Random(int(seed))
    statuses = []
    while len(statuses) < int(count) and 0 not in statuses:
        process = fork(lambda: write(Path(output), FORTY))
        time.sleep(chance.uniform(0, 0.04))
        os.kill(process, signal.SIGKILL)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
    assert set(statuses) <= {0, -signal.SIGKILL}
    write(Path(output), FORTY)
    print(statuses.count(-signal.SIGKILL))


def test_readers_see_no_file_or_whole_videos_while_runs_are_killed(tmp_path: Path):
    expected = write(tmp_path / "expected.h5", FORTY).read_bytes()
    for seed in range(2):
        output, seen = tmp_path / f"{seed}.h5", set()
        command = script("killed_at_moments", output, seed, 12)
        with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                time.sleep(0.001)
                if not output.exists():
                    seen.add("none")
                    continue
                assert features.names(output) == list(FORTY)
                name = random.choice(FORTY)
                np.testing.assert_array_equal(features.read(output, name).features, rows(name))
                seen.add("whole")
            printed, problems = process.communicate()
        assert process.returncode == 0, problems
        assert "none" in seen and int(printed) >= 1
        assert output.read_bytes() == expected
        assert not parts(output).exists()


def held(output: str) -> None:
    """Holds an output, with one video committed, until killed."""
    with features.Writer(output, RUN) as writer:
        writer.commit("a", rows("a"), own("a"))
        print("held", flush=True)
        time.sleep(600)


def test_a_second_writer_is_refused_until_the_first_is_dead(tmp_path: Path):
    output = tmp_path / "f.h5"
    with subprocess.Popen(script("held", output), env=environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            for overwrite in [False, True]:
                with pytest.raises(features.FeatureFileError, match=r"another run is writing here .*f\.h5\.parts.* merge"):
                    features.Writer(output, RUN, overwrite=overwrite)
            assert len(list(parts(output).glob("*.h5"))) == 1  # what the first has done is untouched
        finally:
            process.kill()
    with features.Writer(output, RUN) as writer:
        assert set(writer.done) == {"a"}
    np.testing.assert_array_equal(features.read(output, "a").features, rows("a"))


def test_writers_of_other_outputs_do_not_meet(tmp_path: Path):
    with features.Writer(tmp_path / "a.h5", RUN) as one, features.Writer(tmp_path / "b.h5", RUN) as other:
        one.commit("x", rows("x"), {})
        other.commit("y", rows("y"), {})
    assert features.names(tmp_path / "a.h5") == ["x"] and features.names(tmp_path / "b.h5") == ["y"]


def contended(output: str, times: str) -> None:
    """Two processes that open and leave one output again and again."""

    def compete() -> None:
        entered = 0
        while entered < int(times):
            with contextlib.suppress(features.FeatureFileError), features.Writer(output, RUN):
                claim = os.open(f"{output}.claim", os.O_CREAT | os.O_EXCL)  # fails where the other is inside, too
                entered += 1
                os.unlink(f"{output}.claim")
                os.close(claim)

    processes = [fork(compete) for _ in range(2)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    assert statuses == [0, 0]


def test_two_processes_are_never_inside_at_once(tmp_path: Path):
    command = script("contended", tmp_path / "f.h5", 150)
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_a_run_that_ends_just_now_does_not_stop_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made, real = [], Path.mkdir

    def mkdir_and_lose(path: Path, *arguments: Any, **options: Any) -> None:
        real(path, *arguments, **options)
        made.append(path)
        if len(made) == 1:
            path.rmdir()  # as the other run does between this one's two steps

    monkeypatch.setattr(Path, "mkdir", mkdir_and_lose)
    write(tmp_path / "f.h5", ["a"])
    assert made[:2] == [parts(tmp_path / "f.h5")] * 2 and features.names(tmp_path / "f.h5") == ["a"]


# ----------------------------------------------------------------------------------------------------- which runs go together

OTHER_RUN = {
    "stride": 8,
    "clip_len": 32,
    "frame_rate": 30.0,
    "frame_selection": "auto",
    "decoder": "decord",
    "dtype": "bfloat16",
    "checkpoint_sha256": "cd" * 32,
}


@pytest.mark.parametrize("finished", [True, False])
def test_another_kind_of_run_is_refused_by_every_difference(finished: bool, tmp_path: Path):
    output = tmp_path / "f.h5"
    write(output, VIDEOS[:2]) if finished else write_and_fail(output, VIDEOS[:2])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.h5")}
    for key, value in OTHER_RUN.items():
        with pytest.raises(features.FeatureFileError, match="--overwrite") as caught:
            features.Writer(output, {**RUN, key: value})
        assert re.findall(r"^  .*$", str(caught.value), re.MULTILINE) == [f"  {key}: {RUN[key]} there, {value} asked for"]
    with pytest.raises(features.FeatureFileError) as caught:
        features.Writer(output, {**RUN, **OTHER_RUN})
    assert re.findall(r"^  (\w+): ", str(caught.value), re.MULTILINE) == list(OTHER_RUN)
    with pytest.raises(features.FeatureFileError, match="stride: 16 there, absent asked for"):
        features.Writer(output, {})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.h5")} == before
    assert parts(output).exists() != finished


def test_other_versions_and_names_of_the_same_weights_go_on(tmp_path: Path):
    output = tmp_path / "f.h5"
    write_and_fail(output, VIDEOS[:2])
    renamed = {**RUN, "tsp_jax_version": "0.2.0", "checkpoint": "/elsewhere/model.pth"}
    write(output, run=renamed)
    assert features.names(output) == sorted(VIDEOS)
    assert features.read(output, VIDEOS[0]).attributes["tsp_jax_version"] == "0.1.0"
    assert features.read(output, VIDEOS[2]).attributes["tsp_jax_version"] == "0.2.0"


@pytest.mark.parametrize("finished", [True, False])
def test_overwrite_forgets_what_is_there(finished: bool, tmp_path: Path):
    output = tmp_path / "f.h5"
    write(output, VIDEOS[:2]) if finished else write_and_fail(output, VIDEOS[:2])
    with features.Writer(output, {**RUN, **OTHER_RUN}, overwrite=True) as writer:
        assert writer.done == {} and not output.exists()
        writer.commit("new", rows("new"), {})
    assert features.names(output) == ["new"]
    assert features.read(output, "new").attributes["stride"] == 8


def test_a_file_of_features_by_others_is_not_continued(tmp_path: Path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("a", data=rows("a"), chunks=True, compression="gzip")
    # An array where a value belongs is a difference, not a crash.
    with h5py.File(tmp_path / "g.h5", "w") as file:
        file.create_dataset("a", data=rows("a"), chunks=rows("a").shape, compression="gzip").attrs["stride"] = [16, 16]
    for name in ["f.h5", "g.h5"]:
        with pytest.raises(features.FeatureFileError, match=name):
            features.Writer(tmp_path / name, RUN)


# ------------------------------------------------------------------------------------------------------- where it can't go on


def test_a_folder_is_no_output(tmp_path: Path):
    with pytest.raises(features.FeatureFileError, match="is a folder; name a file, such as"):
        features.Writer(tmp_path, RUN)
    assert not parts(tmp_path).exists()


@pytest.mark.parametrize("place", ["file/f.h5", "file/deeper/f.h5"])
def test_a_place_below_a_file_is_no_output(place: str, tmp_path: Path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(features.FeatureFileError, match="can't be written: Not a directory"):
        features.Writer(tmp_path / place, RUN)


def test_a_file_in_the_place_of_the_parts_is_named(tmp_path: Path):
    parts(tmp_path / "f.h5").write_text("text")
    with pytest.raises(features.FeatureFileError, match=r"can't be written: File exists \(.*f\.h5\.parts"):
        features.Writer(tmp_path / "f.h5", RUN)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_folder_is_refused(tmp_path: Path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(features.FeatureFileError, match="can't be written: Permission denied"):
            features.Writer(tmp_path / "f.h5", RUN)
    finally:
        tmp_path.chmod(0o700)


def damaged(whole: bytes) -> dict[str, bytes]:
    """A file, spoiled in some ways."""
    middle = len(whole) // 2
    return {
        "empty": b"",
        "text": b"a text\n" * 1000,
        "cut": whole[:-1],
        "half": whole[:middle],
        "head flipped": bytes([whole[0] ^ 1]) + whole[1:],
        "data zeroed": whole[: middle - 500] + bytes(1000) + whole[middle + 500 :],
    }


def test_an_output_that_is_none_is_refused_and_left_as_it_is(tmp_path: Path):
    output = tmp_path / "f.h5"
    cases = damaged(write(output, VIDEOS[:3]).read_bytes())
    for case in ["empty", "text", "cut", "half", "head flipped"]:
        output.write_bytes(cases[case])
        with pytest.raises(features.FeatureFileError, match=r"f\.h5: not a file of features, or a damaged one"):
            features.Writer(output, RUN)
        assert output.read_bytes() == cases[case], case
    assert not parts(output).exists()


def test_a_part_that_is_spoiled_is_done_again(tmp_path: Path):
    expected = write(tmp_path / "expected.h5", VIDEOS[:3]).read_bytes()
    output = tmp_path / "f.h5"
    write_and_fail(output, VIDEOS[:3])
    part = next(path for path in parts(output).glob("*.h5") if features.names(path) == [VIDEOS[0]])
    for case, spoiled in damaged(part.read_bytes()).items():
        if output.exists():
            output.unlink()
            write_and_fail(output, VIDEOS[:3])
        part.write_bytes(spoiled)
        with features.Writer(output, RUN) as writer:
            assert set(writer.done) == set(VIDEOS[1:3]), case
            writer.commit(VIDEOS[0], rows(VIDEOS[0]), own(VIDEOS[0]))
        assert output.read_bytes() == expected, case


def test_what_a_kill_left_half_written_is_neither_read_nor_kept(tmp_path: Path):
    output = tmp_path / "f.h5"
    parts(output).mkdir()
    (parts(output) / ".0123.h5.tmp").write_bytes(b"half")
    (tmp_path / ".f.h5.tmp").write_bytes(b"half")
    write(output, ["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["f.h5"] and features.names(output) == ["a"]


def on_a_full_disk(folder: str) -> None:
    """Commits beyond what may be written, then with the limit gone, then joins."""
    output = Path(folder) / "f.h5"
    with features.Writer(output, RUN) as writer:
        writer.commit("a", rows("a"), own("a"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        for _ in range(3):
            try:
                writer.commit("b", rows("b"), own("b"))
            except OSError as error:
                print(error)
        assert set(writer.done) == {"a"} and len(list(parts(output).iterdir())) == 2  # a and the lock
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        writer.commit("b", rows("b"), own("b"))


def test_a_write_that_fails_is_an_error_and_no_crash(tmp_path: Path):
    # HDF5 itself ends the process with a segmentation fault, some time after.
    result = subprocess.run(script("on_a_full_disk", tmp_path), env=environment(), capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("File too large") == 3
    assert contents(tmp_path / "f.h5") == contents(write(tmp_path / "expected.h5", ["a", "b"]))


def test_no_room_to_join_is_said_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    output = tmp_path / "f.h5"
    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"No space left on device: joining takes"):
        patch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
        write(output)
    assert [path.name for path in tmp_path.iterdir()] == ["f.h5.parts"]
    with features.Writer(output, RUN) as writer:
        assert set(writer.done) == set(VIDEOS)
    assert features.names(output) == sorted(VIDEOS)


# ------------------------------------------------------------------------------------------------------------- hostile files


def packed(file: h5py.File, name: str = "a", **options: Any) -> None:
    """A dataset that is fine but for the options."""
    if "shape" in options:
        options["dtype"] = np.float32
    elif "data" not in options:
        options["data"] = rows("a")
    file.create_dataset(name, **{"chunks": (1, WIDTH), "compression": "gzip", **options})


def described(file: h5py.File, value: Any, **options: Any) -> None:
    """A dataset that is fine but for an attribute."""
    packed(file)
    file["a"].attrs.create("k", value, **options)


def external_storage(file: h5py.File) -> None:
    (Path(file.filename).parent / "secret").write_bytes(bytes(4 * WIDTH))
    file.create_dataset("a", (1, WIDTH), np.float32, external=[(str(Path(file.filename).parent / "secret"), 0, 4 * WIDTH)])


def virtual(file: h5py.File) -> None:
    with h5py.File(Path(file.filename).parent / "other.h5", "w") as other:
        packed(other)
    layout = h5py.VirtualLayout(rows("a").shape, np.float32)
    layout[:] = h5py.VirtualSource(Path(file.filename).parent / "other.h5", "a", rows("a").shape)
    file.create_virtual_dataset("a", layout)


def external_link(file: h5py.File) -> None:
    with h5py.File(Path(file.filename).parent / "other.h5", "w") as other:
        packed(other)
    file["a"] = h5py.ExternalLink(Path(file.filename).parent / "other.h5", "/a")


def link_to_pipe(file: h5py.File) -> None:
    # Whoever opens a pipe waits for its other end for ever.
    os.mkfifo(Path(file.filename).parent / "pipe")
    file["a"] = h5py.ExternalLink(Path(file.filename).parent / "pipe", "/a")


def soft_link(file: h5py.File) -> None:
    packed(file, "b")
    file["a"] = h5py.SoftLink("/b")


def bomb(file: h5py.File) -> None:
    # Two rounds of deflate pack zeros a million to one.
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk((1000, WIDTH))
    created.set_deflate(9)
    created.set_filter(h5py.h5z.FILTER_DEFLATE, h5py.h5z.FLAG_MANDATORY, (9,))
    dataset = h5py.h5d.create(
        file.id, b"a", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((1000, WIDTH), (1000, WIDTH)), dcpl=created
    )
    h5py.Dataset(dataset)[()] = np.zeros((1000, WIDTH), np.float32)


HOSTILE: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "external link": (external_link, "not a float32"),
    "link to a pipe": (link_to_pipe, "not a float32"),
    "soft link": (soft_link, "not a float32"),
    "soft link to nothing": (lambda file: file.__setitem__("a", h5py.SoftLink("/nothing")), "not a float32"),
    "soft link to itself": (lambda file: file.__setitem__("a", h5py.SoftLink("/a")), "not a float32"),
    "group": (lambda file: packed(file.create_group("a"), "b"), "not a float32"),
    "the root in itself": (lambda file: file.__setitem__("a", file["/"]), "not a float32"),
    "named type": (lambda file: file.__setitem__("a", np.dtype(np.float32)), "not a float32"),
    "float64": (lambda file: packed(file, dtype=np.float64), "not a float32"),
    "float16": (lambda file: packed(file, dtype=np.float16), "not a float32"),
    "big endian": (lambda file: packed(file, dtype=">f4"), "not a float32"),
    "integers": (lambda file: packed(file, dtype=np.int32), "not a float32"),
    "compound": (lambda file: packed(file, data=np.zeros((2, WIDTH), [("x", np.float32)])), "not a float32"),
    "strings": (lambda file: file.create_dataset("a", data=[["text"]]), "not a float32"),
    "scalar": (lambda file: file.create_dataset("a", data=np.float32(1)), "not a float32"),
    "no space": (lambda file: file.create_dataset("a", data=h5py.Empty(np.float32)), "not a float32"),
    "one axis": (lambda file: packed(file, data=rows("a")[0], chunks=(WIDTH,)), "not a float32"),
    "three axes": (lambda file: packed(file, data=rows("a")[None], chunks=(1, 1, WIDTH)), "not a float32"),
    "external storage": (external_storage, "chunks"),
    "virtual": (virtual, "chunks"),
    "contiguous": (lambda file: file.create_dataset("a", data=rows("a")), "chunks"),
    "lzf": (lambda file: packed(file, compression="lzf"), "chunks"),
    "shuffled": (lambda file: packed(file, shuffle=True), "chunks"),
    "unpacked": (lambda file: packed(file, compression=None), "chunks"),
    "deflated twice": (bomb, "chunks"),
    "chunk beyond the data": (lambda file: packed(file, chunks=(1000, WIDTH), maxshape=(None, WIDTH)), "chunks"),
    "text of any length": (lambda file: described(file, "text"), "has an attribute 'k' that is neither"),
    "texts of any length": (lambda file: described(file, ["a", "b"]), "has an attribute 'k' that is neither"),
    "numbers of any count": (
        lambda file: described(file, [np.arange(2), np.arange(3)], shape=(2,), dtype=h5py.vlen_dtype(np.int32)),
        "has an attribute 'k' that is neither",
    ),
    "reference": (lambda file: described(file, file.ref, dtype=h5py.ref_dtype), "has an attribute 'k' that is neither"),
    "pairs": (lambda file: described(file, np.zeros(1, [("x", np.int32)])), "has an attribute 'k' that is neither"),
    "terabytes": (lambda file: packed(file, shape=(10**9, 1000), chunks=(1, 1000)), "claims 4000000000000 bytes but stores 0"),
    "past 64 bits": (
        lambda file: packed(file, shape=(2**33, 2**31), chunks=(1, WIDTH)),
        "claims 73786976294838206464 bytes but stores 0",
    ),
    "gigabytes": (lambda file: packed(file, shape=(10**6, 1000), chunks=(1, 1000)), "claims 4000000000 bytes but stores 0"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_no_writer_made_is_refused_everywhere(case: str, tmp_path: Path):
    make, reason = HOSTILE[case]
    path = tmp_path / "hostile.h5"
    with h5py.File(path, "w") as file:
        make(file)
    assert "a" in features.names(path)
    for use in (
        lambda: features.read(path, "a"),
        lambda: features_command.info(path),
        lambda: features_command.export(path, tmp_path / "export", "npy"),
        lambda: features.merge([path], tmp_path / "merged.h5"),
        lambda: features.Writer(path, {}),
    ):
        with pytest.raises(features.FeatureFileError, match=rf"hostile\.h5: 'a' .*{reason}"):
            use()
    assert not (tmp_path / "merged.h5").exists() and not list(tmp_path.glob("export/*"))


def test_a_name_with_a_slash_leads_nowhere(tmp_path: Path):
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:  # the old format, which no checksum protects from what comes next
        packed(file, "..|stolen")
        packed(file.create_group(".."), "stolen")
        packed(file.create_group("inner"), "a")
    path.write_bytes(path.read_bytes().replace(b"..|stolen", b"../stolen"))
    assert "../stolen" in features.names(path)
    for name in ["../stolen", "inner/a", "/inner/a", "", "absent"]:
        with pytest.raises(features.FeatureFileError, match=f"has no video {re.escape(repr(name))}"):
            features.read(path, name)
    with pytest.raises(features.FeatureFileError):
        features_command.export(path, tmp_path / "folder" / "export", "npy")
    assert not list(tmp_path.rglob("stolen*"))


def test_a_file_of_a_later_format_is_not_guessed_at(tmp_path: Path):
    path = write(tmp_path / "f.h5")
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = features.FORMAT_VERSION + 1
    for use in (features.names, lambda path: features.read(path, "Über"), lambda path: features.Writer(path, RUN)):
        with pytest.raises(features.FeatureFileError, match=r"f\.h5: format 2; this tsp_jax reads 1"):
            use(path)


@pytest.mark.parametrize("place", ["absent.h5", "folder", "pipe", "deeper/absent.h5"])
def test_what_is_no_file_is_not_opened(place: str, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for use in (features.names, lambda path: features.read(path, "a"), lambda path: features_command.info(path)):
        with pytest.raises(features.FeatureFileError, match=f"{place}: no such file"):
            use(tmp_path / place)


def mutated(whole: bytes, seed: int) -> bytes:
    """A file with random damage."""
    chance = random.Random(seed)
    kind = chance.choice(["cut", "grow", "bit", "byte", "zeros", "ones", "noise", "swap"])
    if kind == "cut":
        return whole[: chance.randrange(len(whole))]
    if kind == "grow":
        return whole + chance.randbytes(chance.randrange(1, 5000))
    spoiled = bytearray(whole)
    # Half of the damage goes to the start, where most of what is not data lies.
    for _ in range(chance.choice([1, 1, 2, 10])):
        start = chance.randrange(len(whole) if chance.random() < 0.5 else 4096)
        length = 1 if kind in ("bit", "byte") else chance.randrange(1, 64)
        other = chance.randrange(len(whole) - 64)
        for place in range(start, min(start + length, len(whole))):
            changes = {
                "bit": spoiled[place] ^ 1 << chance.randrange(8),
                "zeros": 0,
                "ones": 255,
                "swap": whole[other + place - start],
            }
            spoiled[place] = changes.get(kind, chance.randrange(256))
    return bytes(spoiled)


def peak_mb() -> float:
    """The most memory that this program held; unlike getrusage's figure, without what its parent held when it forked."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def survive_mutations(folder: str, count: str) -> None:
    """Reads a file in many states of damage, each in bounded time; prints what became of them."""
    path, videos = Path(folder) / "f.h5", VIDEOS[:4]
    whole, true = write(path, videos).read_bytes(), {}
    for name in videos:
        true[name] = features.read(path, name)
    outcomes = {"right": 0, "refused": 0}

    def attempt(use: Callable[[], object], expected: Callable[[Any], bool]) -> None:
        try:
            result = use()
        except features.FeatureFileError:
            outcomes["refused"] += 1
        else:
            assert expected(result)
            outcomes["right"] += 1

    def is_true(found: features.VideoFeatures) -> bool:
        expected = true[found.name]
        return np.array_equal(found.features, expected.features) and str(found.attributes) == str(expected.attributes)

    for seed in range(int(count)):
        path.write_bytes(mutated(whole, seed))
        signal.alarm(20)  # ends the process
        try:
            attempt(lambda: features.names(path), lambda found: found == sorted(videos))
            for name in videos:
                attempt(lambda name=name: features.read(path, name), is_true)
            attempt(lambda: features_command.info(path), lambda _: True)
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error
        signal.alarm(0)
    print(json.dumps({**outcomes, "peak_mb": peak_mb()}))


def test_damage_anywhere_is_refused_or_does_no_harm(tmp_path: Path):
    count = 200
    command = script("survive_mutations", tmp_path, count)
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    outcomes = json.loads(result.stdout)
    assert outcomes["right"] + outcomes["refused"] == 6 * count
    assert outcomes["right"] > count and outcomes["refused"] > count
    assert outcomes["peak_mb"] < 1000


# ---------------------------------------------------------------------------------------------------- merging and exporting


def test_shards_join_into_the_file_of_one_run(tmp_path: Path):
    expected = write(tmp_path / "expected.h5").read_bytes()
    for index, videos in enumerate([VIDEOS[:3], VIDEOS[3:], []]):
        write(tmp_path / f"{index}.h5", videos)
    for order in itertools.permutations(range(3)):
        assert features.merge([tmp_path / f"{index}.h5" for index in order], tmp_path / "all.h5", overwrite=True) == len(VIDEOS)
        assert (tmp_path / "all.h5").read_bytes() == expected
    assert len(list(tmp_path.iterdir())) == 5


def test_a_video_in_two_files_is_refused(tmp_path: Path):
    write(tmp_path / "a.h5", VIDEOS[:4])
    write(tmp_path / "b.h5", VIDEOS[3:])
    with pytest.raises(features.FeatureFileError, match=r"'视频_1' is in both .*/a\.h5 and .*/b\.h5"):
        features.merge([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "all.h5")
    with pytest.raises(features.FeatureFileError, match=r"is in both .*/a\.h5 and .*/a\.h5"):
        features.merge([tmp_path / "a.h5", tmp_path / "a.h5"], tmp_path / "all.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]


@pytest.mark.parametrize("videos", [VIDEOS[3:], ()])
def test_different_runs_are_not_joined(videos: tuple[str, ...], tmp_path: Path):
    write(tmp_path / "a.h5", VIDEOS[:3])
    write(tmp_path / "b.h5", videos, {**RUN, "stride": 8, "dtype": "bfloat16", "tsp_jax_version": "0.2.0"})
    with pytest.raises(features.FeatureFileError) as caught:
        features.merge([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "all.h5")
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/b.h5 was made otherwise:",
        f"  stride: 8 there, 16 in {tmp_path}/a.h5",
        f"  dtype: bfloat16 there, float32 in {tmp_path}/a.h5",
        "only features of one kind of run can be joined",
    ]
    assert not (tmp_path / "all.h5").exists()


def test_one_video_of_another_run_is_found(tmp_path: Path):
    write(tmp_path / "a.h5", VIDEOS[:3])
    with h5py.File(tmp_path / "a.h5", "a") as file:  # as a join by hand may leave it
        file[VIDEOS[1]].attrs["stride"] = 8
    with pytest.raises(features.FeatureFileError, match="stride: 8 there, 16 in"):
        features.merge([tmp_path / "a.h5"], tmp_path / "all.h5")


def test_an_output_is_replaced_only_when_asked(tmp_path: Path):
    write(tmp_path / "a.h5", VIDEOS[:3])
    before = write(tmp_path / "all.h5", ["old"]).read_bytes()
    with pytest.raises(FileExistsError, match=r"all\.h5 exists; name another file or pass --overwrite"):
        features.merge([tmp_path / "a.h5"], tmp_path / "all.h5")
    with pytest.raises(features.FeatureFileError):
        features.merge([tmp_path / "a.h5", tmp_path / "absent.h5"], tmp_path / "all.h5", overwrite=True)
    assert (tmp_path / "all.h5").read_bytes() == before
    assert features.merge([tmp_path / "a.h5"], tmp_path / "all.h5", overwrite=True) == 3
    assert features.names(tmp_path / "all.h5") == sorted(VIDEOS[:3])


def test_the_output_may_be_one_of_the_inputs(tmp_path: Path):
    expected = write(tmp_path / "expected.h5").read_bytes()
    write(tmp_path / "a.h5", VIDEOS[:3])
    write(tmp_path / "b.h5", VIDEOS[3:])
    with pytest.raises(FileExistsError):
        features.merge([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "a.h5")
    features.merge([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "a.h5", overwrite=True)
    assert (tmp_path / "a.h5").read_bytes() == expected


def test_unfinished_files_are_not_joined(tmp_path: Path):
    write_and_fail(tmp_path / "begun.h5", VIDEOS[:2])
    write(tmp_path / "grown.h5", VIDEOS[2:4])
    write_and_fail(tmp_path / "grown.h5", VIDEOS[4:5])
    write(tmp_path / "a.h5", VIDEOS[5:])
    for name, count in {"begun.h5": 2, "grown.h5": 1}.items():
        for inputs, output in [(["a.h5", name], "all.h5"), (["a.h5"], name)]:
            with pytest.raises(
                features.FeatureFileError, match=rf"{name} isn't finished: {count} videos lie in .*{name}\.parts"
            ):
                features.merge([tmp_path / path for path in inputs], tmp_path / output, overwrite=True)


def test_a_merged_file_is_an_output_that_goes_on(tmp_path: Path):
    write(tmp_path / "a.h5", VIDEOS[:2])
    write(tmp_path / "b.h5", VIDEOS[2:4])
    features.merge([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "all.h5")
    assert write(tmp_path / "all.h5").read_bytes() == write(tmp_path / "expected.h5").read_bytes()


def test_exports_equal_the_file(tmp_path: Path):
    path = write(tmp_path / "f.h5")
    for kind in ["npy", "pkl"]:
        folder = tmp_path / "new" / kind
        assert features_command.export(path, folder, kind) == len(VIDEOS)
        assert {file.name for file in folder.iterdir()} == {f"{name}.{kind}" for name in VIDEOS}
        for name in VIDEOS:
            file = folder / f"{name}.{kind}"
            array = np.load(file) if kind == "npy" else pickle.loads(file.read_bytes())
            np.testing.assert_array_equal(array, rows(name), strict=True)


def test_global_features_are_one_vector_a_video_and_are_not_taken_for_clips(tmp_path: Path):
    path, vectors = tmp_path / "gvf.h5", {name: rows(name).max(axis=0) for name in VIDEOS}
    for _ in range(2):  # the second replaces the first
        global_features.write(path, vectors, {"pool": "max"})
    with h5py.File(path) as file:
        assert plain(file) == {"pool": "max"} and set(file) == set(VIDEOS)
        for name, vector in vectors.items():
            assert file[name].compression == "gzip"
            np.testing.assert_array_equal(file[name][()], vector, strict=True)
    with pytest.raises(features.FeatureFileError, match="not a float32"):
        features.read(path, VIDEOS[0])
    assert [file.name for file in tmp_path.iterdir()] == ["gvf.h5"]


# ---------------------------------------------------------------------------------------------------------------- command


def test_info_lists_the_run_and_its_videos(tmp_path: Path):
    with features.Writer(tmp_path / "f.h5", RUN) as writer:
        writer.commit("a", rows("a"), {"fps": 29.97, "frames": 1234, "damage": "damaged: after 28 frames"})
        writer.commit("b", rows("b"), {})
    first, *lines = features_command.info(tmp_path / "f.h5")
    assert first.startswith(f"{tmp_path}/f.h5: 2 videos, 0.0 MB")
    assert set(lines[: len(RUN) + 1]) == {f"  {key}: {value}" for key, value in {**RUN, "format_version": 1}.items()}
    assert [line.split(maxsplit=4) for line in lines[len(RUN) + 1 :]] == [
        ["video", "clips", "fps", "frames", "notes"],
        ["a", str(len(rows("a"))), "29.970", "1234", "damaged: after 28 frames"],
        ["b", str(len(rows("b"))), "nan", "-1"],
    ]


def test_info_says_that_a_run_is_unfinished(tmp_path: Path):
    output = tmp_path / "f.h5"
    write_and_fail(output, VIDEOS[:3])
    assert features_command.info(output) == [
        f"{output}: not finished; 3 videos lie in {output}.parts. Run the same command again to finish."
    ]
    write(output)
    write_and_fail(output, ["more"])
    first, second, *_ = features_command.info(output)
    assert "not finished; 1 videos lie in" in first
    assert second.startswith(f"{output}: {len(VIDEOS)} videos")


def test_the_command_merges_lists_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a, b, joined = write(tmp_path / "a.h5", VIDEOS[:3]), write(tmp_path / "b.h5", VIDEOS[3:]), str(tmp_path / "all.h5")
    assert features_command.main(["merge", str(a), str(b), "--output", joined]) == 0
    assert capsys.readouterr().out == f"{joined}: {len(VIDEOS)} videos of 2 files\n"
    assert features_command.main(["merge", str(a), str(b), "--output", joined]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert features_command.main(["merge", str(a), str(b), "--output", joined, "--overwrite"]) == 0
    assert features_command.main(["info", joined]) == 0
    assert "видео" in capsys.readouterr().out
    assert features_command.main(["export", joined, "--output", str(tmp_path / "pkl"), "--format", "pkl"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/pkl: {len(VIDEOS)} pkl files\n"
    assert features_command.main(["export", joined, "--output", str(tmp_path / "npy")]) == 0
    assert len(list((tmp_path / "npy").glob("*.npy"))) == len(list((tmp_path / "pkl").glob("*.pkl"))) == len(VIDEOS)


@pytest.mark.parametrize(
    "arguments",
    [["info", "absent.h5"], ["export", "absent.h5", "--output", "folder"], ["merge", "absent.h5", "--output", "new.h5"]],
)
def test_a_file_that_is_not_there_exits_with_1(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert features_command.main(arguments) == 1
    assert capsys.readouterr().err == "error: absent.h5: no such file; expected an HDF5 file of features\n"


@pytest.mark.parametrize("arguments", [[], ["list"], ["merge", "a.h5"], ["export", "a.h5", "--output", "x", "--format", "xls"]])
def test_wrong_use_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        features_command.main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m tsp_jax.features" in capsys.readouterr().err


def test_the_command_is_a_module_and_writes_names_on_any_terminal(tmp_path: Path):
    path = write(tmp_path / "f.h5")
    for encoding in ["utf-8", "latin-1"]:
        result = subprocess.run(
            [sys.executable, "-m", "tsp_jax.features", "info", path],
            env={**environment(), "PYTHONIOENCODING": encoding},
            capture_output=True,
            timeout=60,
        )
        assert (result.returncode, result.stderr) == (0, b"")
        shown = result.stdout.decode(encoding)
        assert "Über" in shown and ("видео" if encoding == "utf-8" else r"\u0432\u0438") in shown
    result = subprocess.run(
        [sys.executable, "-m", "tsp_jax.features", "info", tmp_path],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"error: {tmp_path}: no such file; expected an HDF5 file of features\n"
