"""Tests that row k shows second k * stride / frame_rate, whatever the file's rate, holes and first timestamp."""

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import media
from tsp_jax import checkpoints, clip_times, clips, extract, features, video_list
from tsp_jax.extraction import clip_stream
from tsp_jax.models import functional, tsp
from tsp_jax.system import timing

SHARED = Path(__file__).parents[2] / "shared"
RATES = [1, 2, 3, 4, 5, 15, Fraction(24000, 1001), 24, 25, Fraction(30000, 1001), 30, 50, Fraction(60000, 1001), 60, 120, 240]
MS = Fraction(1, 1000)
# When each frame is shown, in milliseconds.
UNEVEN = {
    "fast, slow, fast": [*range(0, 2000, 40), *range(2000, 6000, 500), *range(6000, 8000, 40)],
    "slow then fast": [*range(0, 4000, 500), *range(4000, 7000, 20)],
    "dropped": [40 * number for number in range(200) if number % 7 != 3],
    "one dropped": [40 * number for number in range(100) if number != 50],
    "hole": [*range(0, 2000, 40), *range(6000, 8000, 40)],
    "jitter": (40 * np.arange(150) + np.random.default_rng(0).integers(-15, 16, 150) * (np.arange(150) > 0)).tolist(),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tsp.ModelConfig("r3d_tiny")
    path = tmp_path_factory.mktemp("model") / "tiny"
    checkpoints.save(path, checkpoints.make(config, functional.init(config, 0), checkpoints.Origin("seed 0")))
    return path


def even(count: int, fps: Fraction | int, time_base: Fraction, first: int = 0) -> clips.Timeline:
    pts = np.array([first + round(number / Fraction(fps) / time_base) for number in range(count)], np.int64)
    return clips.Timeline(pts, time_base, float(fps))


def read(path: Path, **how: Any) -> tuple[list[list[int]], dict, str, tuple[str, ...]]:
    """The numbers of the frames in each row, the attributes, the reason and the notes of a video."""
    item = video_list.Video(path.stem, path, **{key: how.pop(key) for key in ("fps", "num_frames", "parts_sec") if key in how})
    rows, opened, reason = [], None, ""
    for message in clip_stream.read_video(0, item, clips.ClipGeometry(**how), "pyav", timing.Laps()):
        match message:
            case clip_stream.Opened():
                rows, opened = [], message
            case clip_stream.Clip():
                rows.append([frame.number for frame in message.frames])
            case clip_stream.Closed():
                reason = message.reason
    assert opened is not None
    return rows, opened.attributes, reason, opened.notes


# ------------------------------------------------------------------------------------------------------------ the geometry


@pytest.mark.parametrize("fps", RATES, ids=str)
def test_constant_rates_keep_the_frames_of_before_in_every_time_base(fps: Fraction | int):
    """The grid by number is what `uniform` gave in version 0.1.0, and the original's rule what `reference` gave."""
    count = max(4, int(20 * fps))
    for time_base, first in itertools.product([Fraction(1, 90000), MS, Fraction(1, 15360), 1 / Fraction(fps)], [0, 1]):
        timeline = even(count, fps, time_base, first)
        assert clips.is_constant(timeline)
        uniform = clips.plan(timeline, clips.ClipGeometry(frame_selection="uniform"))
        grid = clips.resampled(count, float(fps), 15.0)
        np.testing.assert_array_equal(uniform, [grid[k : k + 16] for k in range(0, len(grid) - 15, 16)])
        reference = clips.plan(timeline, clips.ClipGeometry(frame_selection="reference"))
        expected = reference if np.all(reference >= 0) else uniform
        np.testing.assert_array_equal(clips.plan(timeline, clips.ClipGeometry()), expected)
        assert len(expected) == (20 * 15 - 16) // 16 + 1


@pytest.mark.parametrize("fps", RATES, ids=str)
def test_frames_by_time_are_those_of_the_grid_where_the_rate_is_constant(fps: Fraction | int):
    """But for a frame that comes within the millisecond by which containers round."""
    timeline = even(max(4, int(20 * fps)), fps, Fraction(1, 90000))
    by_time = clips.plan(timeline, clips.ClipGeometry(), method="time")
    by_number = clips.plan(timeline, clips.ClipGeometry(), method="grid")
    shift = by_time - by_number[: len(by_time)]
    asked_sec = (16 * np.arange(len(by_time))[:, None] + np.arange(16)) / 15
    shown_sec = timeline.pts[by_time] * float(timeline.time_base)
    assert abs(len(by_time) - len(by_number)) <= 1 and np.all(np.isin(shift, [0, 1]))
    assert np.all(shown_sec[shift == 1] >= asked_sec[shift == 1] - 1e-4)
    assert np.all((shown_sec <= asked_sec + 2e-3) & (shown_sec > asked_sec - 1 / float(fps) - 1e-3))


@pytest.mark.parametrize("name", list(UNEVEN))
def test_frames_by_time_are_the_last_ones_shown(name: str):
    timeline = clips.Timeline(np.array(UNEVEN[name]) + 700, MS, 25.0)
    assert not clips.is_constant(timeline)
    planned = clips.plan(timeline, clips.ClipGeometry(stride=5))
    for row, frames in enumerate(planned.tolist()):
        for place, number in enumerate(frames):
            asked_ms = 1000 * (5 * row + place) / 15
            assert number == max(index for index, at in enumerate(UNEVEN[name]) if at <= asked_ms + 1.5)
    assert len(planned) == int((timeline.duration_sec * 15 + 0.03 - 16) // 5 + 1)


def test_what_counts_as_constant():
    draw = np.random.default_rng(0)
    smooth = even(300, 30, Fraction(1, 90000))

    def moved(pts: np.ndarray, fps: float = 30.0) -> bool:
        return clips.is_constant(clips.Timeline(np.sort(pts), Fraction(1, 90000), fps))

    assert moved(smooth.pts + draw.integers(-600, 600, 300))  # 7 ms, as phones do
    assert not moved(smooth.pts + draw.integers(-1400, 1400, 300))
    assert moved(np.append(smooth.pts, smooth.pts[-1] + 6000)) and moved(np.append(-6000, smooth.pts))  # a cut's ends
    assert not moved(np.delete(smooth.pts, 150))
    assert not moved(smooth.pts, 29.0) and not moved(smooth.pts, 60.0)
    assert clips.is_constant(even(100, Fraction(30000, 1001), Fraction(1, 30)))  # whole frames of a rate that is nearly it
    assert not clips.is_constant(clips.Timeline(np.array([0]), MS, 1.0, duration_sec=20.0))
    assert not clips.is_constant(clips.Timeline(np.array([0, 20_000]), MS, 2 / 21, duration_sec=21.0))
    dropped = np.array([number for number in range(240) if number % 6 != 3])  # as AVI dates them
    assert not clips.is_constant(clips.Timeline(dropped, Fraction(1, 30), 25.0, duration_sec=8.0))


# ---------------------------------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts", "webm", "flv"])
@pytest.mark.parametrize("name", ["fast, slow, fast", "dropped", "hole"])
def test_rows_of_uneven_files_show_their_seconds(name: str, container: str, tmp_path: Path):
    codec = {"webm": {"codec": "libvpx", "options": {"auto-alt-ref": "0", "cpu-used": "8", "b": "500k"}}}
    shown_ms = UNEVEN[name]
    path = media.write(
        tmp_path / f"v.{container}", fps=25, frames=len(shown_ms), pts=shown_ms, time_base=MS, b_frames=0,
        **codec.get(container, {"options": {"g": "50"}}),
    )  # fmt: skip
    rows, found, reason, notes = read(path)
    assert not reason and found["frame_selection"] == "uniform" and found["frames_by"] == "time"
    assert any("uneven" in note for note in notes)
    expected = [
        [max(index for index, at in enumerate(shown_ms) if at <= 1000 * (16 * row + place) / 15 + 1.5) for place in range(16)]
        for row in range(int((found["duration_sec"] * 15 + 0.03 - 16) // 16 + 1))
    ]
    assert rows == expected and len(rows) >= 6


def test_frames_dropped_from_avi_leave_their_chunks_empty(tmp_path: Path):
    shown = [number for number in range(240) if number % 6 != 3]
    path = media.write(tmp_path / "v.avi", codec="mpeg4", frames=200, pts=shown, b_frames=0, options={"b": "800k"})
    rows, found, reason, _ = read(path)
    assert found["frames_by"] == "time" and not reason
    assert rows == [[max(i for i, at in enumerate(shown) if at <= 2 * (16 * k + j)) for j in range(16)] for k in range(7)]


@pytest.mark.parametrize(("fps", "frames"), [(1, 8), (2, 16), (4, 32), (5, 40), (120, 960), (240, 1920)])
def test_low_and_high_rates_give_all_rows(fps: int, frames: int, tmp_path: Path):
    path = media.write(tmp_path / "v.mp4", fps=fps, frames=frames, size=(48, 32), options={"g": "60"})
    for selection in ("auto", "uniform"):
        rows, _, reason, _ = read(path, frame_selection=selection)
        assert len(rows) == 7 and not reason, (selection, reason)
        asked = (16 * np.arange(7)[:, None] + np.arange(16)) * fps / 15
        assert np.max(np.abs(np.array(rows) - asked)) <= (1 if selection == "uniform" else max(2, fps / 15))


@pytest.mark.parametrize("container", ["mpegts", "vob"])
def test_a_clock_that_starts_anywhere_loses_no_row(container: str, tmp_path: Path):
    path = tmp_path / ("v.ts" if container == "mpegts" else "v.vob")
    codec = "libx264" if container == "mpegts" else "mpeg2video"
    options = {"g": "30"} if container == "mpegts" else {"b": "800k"}
    media.write(path, codec=codec, container=container, frames=240, pts=range(9000, 9240), b_frames=0, options=options)
    rows, found, reason, _ = read(path)
    assert [row[0] for row in rows] == list(range(0, 7 * 32, 32)) and not reason
    assert found["frame_selection"] == "uniform" and found["frames_by"] == "number"
    _, _, reason, _ = read(path, frame_selection="reference")
    assert "its clock starts at 300." in reason and "--frame_selection auto" in reason and "uneven" not in reason


def test_reference_on_an_uneven_file_says_what_helps(tmp_path: Path):
    shown_ms = UNEVEN["fast, slow, fast"]
    path = media.write(tmp_path / "v.mp4", fps=25, frames=len(shown_ms), pts=shown_ms, time_base=MS)
    _, found, reason, notes = read(path, frame_selection="reference")
    assert "uneven" in reason and "--frame_selection auto" in reason and "data_builders.standardize" in reason
    assert any("uneven" in note for note in notes) and found["frame_selection"] == "reference"


def test_metadata_decides_for_constant_rates_alone(tmp_path: Path):
    constant = media.write(tmp_path / "constant.mp4", frames=140)
    _, found, _, _ = read(constant, fps=30.0, num_frames=100)
    assert (found["frames"], found["frame_selection"]) == (100, "reference")
    shown_ms = UNEVEN["fast, slow, fast"]
    uneven = media.write(tmp_path / "uneven.mp4", fps=25, frames=len(shown_ms), pts=shown_ms, time_base=MS)
    alone, (rows, found, reason, notes) = read(uneven)[0], read(uneven, fps=30.0, num_frames=100)
    assert rows == alone and found["frames"] == len(shown_ms) and not reason
    assert any("the metadata says 100 frames at 30 fps" in note and "the file is used" in note for note in notes)


# -------------------------------------------------------------------------------------------------------------- the features


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The cosine of each pair of rows, less the mean row."""
    mean = right.mean(axis=0)
    a, b = left - mean, right - mean
    return np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def test_features_of_uneven_files_are_those_of_a_constant_rate(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same pictures at 25 frames a second, each repeated until the next one is shown."""
    shown_ms = UNEVEN["fast, slow, fast"]
    number_at = [max(i for i, at in enumerate(shown_ms) if at <= 40 * slot) for slot in range(200)]
    quality = {"crf": "1", "g": "25"}
    (tmp_path / "v").mkdir()
    media.write(tmp_path / "v" / "uneven.mp4", fps=25, frames=len(shown_ms), pts=shown_ms, time_base=MS, options=quality)
    pictures = {number: media.picture(number) for number in set(number_at)}
    with monkeypatch.context() as context:
        context.setattr(media, "picture", lambda slot, *_: pictures[number_at[slot]])
        media.write(tmp_path / "v" / "even.mp4", fps=25, frames=200, options=quality)
    arguments = ["--checkpoint", str(model), "--videos", str(tmp_path / "v"), "--batch_size", "4"]
    output = tmp_path / "f.h5"
    assert extract.main([*arguments, "--output", str(output)]) == 0
    uneven, truth = (features.read(output, name) for name in ("uneven", "even"))
    assert [item.attributes["frame_selection"] for item in (uneven, truth)] == ["uniform", "reference"]
    assert len(uneven.features) == len(truth.features) == 7
    uniform = tmp_path / "u.h5"
    assert extract.main([*arguments, "--output", str(uniform), "--frame_selection", "uniform"]) == 0
    assert np.min(cosines(uneven.features, features.read(uniform, "even").features)) >= 0.99
    starts, clip_len_sec = clip_times.clip_times(uneven)
    np.testing.assert_array_equal(starts, np.arange(7) * 16 / 15)
    assert clip_len_sec == 16 / 15 and clip_times.duration_sec(uneven) == pytest.approx(8.0, abs=0.05)
    # The whole file is of one kind, though its videos are of two.
    assert extract.main([*arguments, "--output", str(output)]) == 0


def test_runs_of_another_selection_are_not_continued(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, output = media.write(tmp_path / "v.mp4", frames=40), tmp_path / "f.h5"
    run = {"stride": 16, "clip_len": 16, "frame_rate": 15.0, "decoder": "pyav", "dtype": "float32"}
    run["checkpoint_sha256"] = checkpoints.load(model).weights_sha256
    for selection, message in [
        ("reference", "pass --frame_selection reference to go on as it began"),
        ("uniform", "frame_selection: uniform by frame number, as version 0.1.0 took it there, auto asked for"),
    ]:
        with features.Writer(output, {**run, "frame_selection": selection}) as writer:  # what version 0.1.0 wrote
            ranges = np.array([[0, 1]])
            own = {"fps": 30.0, "frames": 40, "clips": 1, "clip_ranges": ranges, "damage": ""}
            writer.commit("v", np.ones((1, 128), np.float32), own)
        item = features.read(output, "v")
        assert clip_times.clip_times(item)[0] == [0.0] and clip_times.duration_sec(item) == 40 / 30
        arguments = ["--checkpoint", str(model), "--videos", str(path), "--output", str(output)]
        assert extract.main(arguments) == 2
        assert message in capsys.readouterr().err
        assert extract.main([*arguments, "--frame_selection", selection]) == (0 if selection == "reference" else 2)
        output.unlink()


@pytest.mark.parametrize(
    ("name", "rows", "selection"),
    [("screen_recording.mp4", 15, "time"), ("browser_recording.webm", 16, "time"), ("dvr_2h.ts", 7, "number")],
)
def test_recordings_as_people_have_them_give_all_rows(name: str, rows: int, selection: str):
    path = SHARED / "cases" / name
    if not path.is_file():
        pytest.skip(f"the cases are not at hand ({path})")
    found, attributes, reason, _ = read(path)
    assert (len(found), attributes["frames_by"], reason) == (rows, selection, "")
