"""Tests of the clip geometry, against a simulation of what the original does for each clip."""

import dataclasses
import itertools
import math
from fractions import Fraction

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from tsp_jax import clips

NTSC = 30000 / 1001


def simulated(timeline: clips.Timeline, geometry: clips.ClipGeometry, num_frames: int) -> list[list[int]]:
    """Frame numbers of each clip, [-1, …] where the original raises, one clip after another as it decodes them.

    Source: TSP's released extraction code over torchvision 0.5's read_video, with a dict of frames as its decoder fills it.
    """
    shown = {pts: number for number, pts in enumerate(timeline.pts.tolist())}
    step = timeline.fps / geometry.frame_rate
    if step.is_integer():
        grid = list(range(0, num_frames, int(step)))
    else:
        grid = every_float32_step(int(num_frames * (geometry.frame_rate / timeline.fps)), step)
    rows = []
    for first in range(0, len(grid) - geometry.clip_len + 1, geometry.stride):
        start_sec = grid[first] / timeline.fps
        end_sec = start_sec + geometry.clip_len / geometry.frame_rate
        start = math.floor(start_sec * (1 / timeline.time_base))  # a float by a Fraction, which makes it a float
        end = math.ceil(end_sec * (1 / timeline.time_base))
        window = [shown[pts] for pts in sorted(shown) if start <= pts <= end]
        if start > 0 and start not in shown:
            before = [pts for pts in shown if pts < start]
            window = [shown[max(before)], *window] if before else window
        if step.is_integer():
            row = window[:: int(step)][: geometry.clip_len]
        else:
            wanted = every_float32_step(geometry.clip_len, step)
            row = [window[index] for index in wanted] if wanted[-1] < len(window) else []
        rows.append(row if len(row) == geometry.clip_len else [-1] * geometry.clip_len)
    return rows


def every_float32_step(count: int, step: float) -> list[int]:
    return [int(np.floor(np.float32(index) * np.float32(step))) for index in range(count)]


def evenly_spaced(num_frames: int, fps: float, time_base: Fraction, first_pts: int = 0) -> clips.Timeline:
    pts = [first_pts + round(index / fps / time_base) for index in range(num_frames)]
    return clips.Timeline(np.asarray(pts, np.int64), time_base, fps)


def check_against_simulation(timeline: clips.Timeline, geometry: clips.ClipGeometry, num_frames: int) -> np.ndarray:
    planned = clips.plan(timeline, dataclasses.replace(geometry, frame_selection="reference"), num_frames)
    assert planned.dtype == np.int64
    assert planned.shape[1:] == (geometry.clip_len,)
    assert planned.tolist() == simulated(timeline, geometry, num_frames)
    complete = planned[planned[:, 0] >= 0]
    assert np.all(np.diff(complete, axis=1) >= 0)
    if len(timeline.pts) and timeline.pts[0] >= 0:
        assert np.all(np.diff(complete, axis=0) >= 0)
    assert np.all(complete < len(timeline.pts))
    assert np.all(planned[planned[:, 0] < 0] == -1)
    return planned


FPS = (30.0, NTSC, 29.97, 25.0, 24000 / 1001, 19.62, 24.83, 15.0, 10.0, 12.5, 60.0, 7.0)
TIME_BASES = (Fraction(1, 90000), Fraction(1, 1000), Fraction(1, 15360), Fraction(1, 12800), Fraction(1001, 30000))


@pytest.mark.parametrize("fps", FPS)
@pytest.mark.parametrize("time_base", [*TIME_BASES, None], ids=str)
def test_clips_of_evenly_spaced_frames_are_those_of_the_original(fps: float, time_base: Fraction | None) -> None:
    time_base = time_base or 1 / Fraction(fps).limit_denominator(1001)
    geometries = [
        clips.ClipGeometry(clip_len, frame_rate, stride)
        for clip_len, frame_rate, stride in ((16, 15.0, 1), (16, 15.0, 16), (8, 30.0, 8), (16, 12.5, 3), (1, 12.5, 40))
    ]
    for first_pts, geometry in itertools.product((0, round(Fraction(7, 5) / time_base), -3), geometries):
        timeline = evenly_spaced(90, fps, time_base, first_pts)
        if np.any(np.diff(timeline.pts) <= 0):
            continue  # more frames a second than the time base can date
        for num_frames in (90, 60, 130):
            check_against_simulation(timeline, geometry, num_frames)


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(
    fps=st.one_of(st.sampled_from(FPS), st.floats(1, 120)),
    time_base=st.sampled_from(TIME_BASES),
    first_pts=st.integers(-200_000, 200_000),
    gaps=st.lists(st.integers(1, 9000), max_size=150),
    stride=st.sampled_from((1, 3, 8, 16, 40)),
    clip_len=st.sampled_from((16, 1, 8)),
    frame_rate=st.sampled_from((15.0, 30.0, 12.5)),
    surplus=st.integers(-40, 40),
)
def test_clips_of_unevenly_spaced_frames_are_those_of_the_original(
    fps: float,
    time_base: Fraction,
    first_pts: int,
    gaps: list[int],
    stride: int,
    clip_len: int,
    frame_rate: float,
    surplus: int,
) -> None:
    """Gaps of any length, and an annotation that counts other frames than there are."""
    pts = np.cumsum([first_pts, *gaps], dtype=np.int64)
    timeline = clips.Timeline(pts, time_base, fps)
    check_against_simulation(timeline, clips.ClipGeometry(clip_len, frame_rate, stride), max(len(pts) + surplus, 0))


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(
    fps=st.sampled_from(FPS),
    time_base=st.sampled_from(TIME_BASES),
    jitter=st.lists(st.floats(-0.45, 0.45), max_size=150),
    stride=st.sampled_from((1, 3, 16)),
    surplus=st.integers(-5, 5),
)
def test_clips_of_jittered_frames_are_those_of_the_original(
    fps: float, time_base: Fraction, jitter: list[float], stride: int, surplus: int
) -> None:
    """Each frame somewhere near its time, as in recordings of variable frame rate."""
    pts = np.unique([round((index + shift) / fps / time_base) for index, shift in enumerate(jitter)]).astype(np.int64)
    timeline = clips.Timeline(pts, time_base, fps)
    check_against_simulation(timeline, clips.ClipGeometry(stride=stride), max(len(pts) + surplus, 0))


@pytest.mark.parametrize(
    ("fps", "fewest"),
    # Source: measured with the released code.
    [(30.0, 31), (29.97, 32), (NTSC, 32), (25.0, 27), (19.62, 21), (15.0, 16), (10.0, 11)],
)
def test_video_shorter_than_clip_gives_no_clips(fps: float, fewest: int) -> None:
    def planned(num_frames: int) -> np.ndarray:
        return clips.plan(evenly_spaced(num_frames, fps, Fraction(1, 90000)), clips.ClipGeometry())

    assert planned(fewest - 1).shape == (0, 16)
    assert planned(fewest).shape == (1, 16)
    assert planned(fewest)[0, 0] == 0 and planned(fewest)[0, -1] < fewest
    assert planned(0).shape == (0, 16)


def test_annotation_that_counts_more_frames_than_there_are_gives_rows_without_frames() -> None:
    timeline = evenly_spaced(100, 30.0, Fraction(1, 15360))
    planned = check_against_simulation(timeline, clips.ClipGeometry(stride=8), 200)
    lacking = planned[:, 0] < 0
    assert len(planned) == len(range(0, 100 - 16 + 1, 8))
    assert not lacking[0] and lacking[-1]
    assert np.all(np.diff(lacking.astype(int)) >= 0)


def test_annotation_that_counts_fewer_frames_gives_fewer_clips_of_the_same_frames() -> None:
    timeline = evenly_spaced(100, 30.0, Fraction(1, 15360))
    whole = clips.plan(timeline, clips.ClipGeometry(stride=8))
    part = clips.plan(timeline, clips.ClipGeometry(stride=8), 60)
    assert len(part) < len(whole)
    np.testing.assert_array_equal(part, whole[: len(part)])


def test_first_timestamp_after_zero_shifts_the_clips() -> None:
    """As in the original, whose windows begin at 0 s: those that end before the first frame lack frames."""
    timeline = evenly_spaced(200, 30.0, Fraction(1, 90000), first_pts=90000)
    planned = check_against_simulation(timeline, clips.ClipGeometry(), 200)
    assert planned[0, 0] == -1
    assert planned[-1, 0] > 0


def test_frame_before_zero_is_in_later_clips_alone() -> None:
    """As in the original: the window from 0 s never looks back, while one that begins before the second frame does."""
    timeline = clips.Timeline(np.asarray([-1800, *range(9000, 9000 + 7200 * 40, 7200)]), Fraction(1, 90000), 12.5)
    planned = check_against_simulation(timeline, clips.ClipGeometry(stride=1), 41)
    assert planned[:3, 0].tolist() == [1, 1, 0]


def test_products_are_float32_as_in_the_original() -> None:
    """In float64, 214 of the first 60,000 frames at 29.97 fps would be others (source: measured with the released code)."""
    grid = clips.resampled(120_000, NTSC, 15.0)[:60_000]
    in_float64 = np.floor(np.arange(60_000) * (NTSC / 15)).astype(np.int64)
    assert len(grid) == 60_000
    assert np.count_nonzero(grid != in_float64) == 214


@pytest.mark.parametrize("fps", FPS)
def test_uniform_clips_are_the_plain_grid(fps: float) -> None:
    timeline = evenly_spaced(200, fps, Fraction(1, 90000))
    geometry = clips.ClipGeometry(stride=3, frame_selection="uniform")
    grid = clips.resampled(200, fps, 15.0)
    expected = [grid[first : first + 16] for first in range(0, len(grid) - 15, 3)]
    np.testing.assert_array_equal(clips.plan(timeline, geometry), expected)
    lacking = clips.plan(timeline, geometry, 260)
    assert lacking[-1, 0] == -1
    np.testing.assert_array_equal(lacking[: len(expected)], expected)


def test_uniform_clips_are_the_originals_but_for_its_rounding_of_times() -> None:
    """At 15 fps all frames are taken, and a clip begins one frame early where its start in seconds is rounded down."""
    timeline = evenly_spaced(300, 15.0, Fraction(1, 15360))
    reference = clips.plan(timeline, clips.ClipGeometry(stride=1, frame_selection="reference"))
    uniform = clips.plan(timeline, clips.ClipGeometry(stride=1, frame_selection="uniform"))
    assert reference.shape == uniform.shape == (285, 16)
    shift = uniform - reference
    assert np.all((shift == 0) | (shift == 1)) and np.all(shift == shift[:, :1])
    starts_sec = np.arange(285) / 15
    np.testing.assert_array_equal(shift[:, 0] == 1, np.floor(starts_sec * 15360) < np.arange(285) * 1024)
    assert np.flatnonzero(shift[:, 0]).tolist() == [123, 245, 246, 247]  # fifteenths of a second, in float64


@pytest.mark.parametrize("fps", [0.0, -25.0, math.nan, math.inf, -math.inf])
def test_frame_rate_that_is_no_positive_number_is_refused(fps: float) -> None:
    with pytest.raises(ValueError, match="frame rate is a positive number"):
        clips.check_fps(fps)
    timeline = clips.Timeline(np.arange(50), Fraction(1, 25), fps, duration_sec=2.0)
    with pytest.raises(ValueError, match="frame rate is a positive number"):
        clips.plan(timeline, clips.ClipGeometry())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_len": 0}, "clip_len and stride"),
        ({"clip_len": -16}, "clip_len and stride"),
        ({"stride": 0}, "clip_len and stride"),
        ({"frame_rate": 0.0}, "frame_rate is a positive number"),
        ({"frame_rate": -15.0}, "frame_rate is a positive number"),
        ({"frame_rate": math.nan}, "frame_rate is a positive number"),
        ({"frame_rate": math.inf}, "frame_rate is a positive number"),
        ({"frame_selection": "exact"}, "frame_selection is one of"),
    ],
)
@pytest.mark.wrong_arguments
def test_impossible_geometry_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clips.ClipGeometry(**arguments)


def test_metadata_that_claims_too_much_is_refused_before_memory_is_taken() -> None:
    timeline = clips.Timeline(np.arange(100), Fraction(1, 30), 30.0)
    with pytest.raises(ValueError, match="more than 2097152"):
        clips.plan(timeline, clips.ClipGeometry(), num_frames=10**15)
    with pytest.raises(ValueError, match="more than 2097152"):
        clips.plan(dataclasses.replace(timeline, fps=1e-9), clips.ClipGeometry(frame_selection="reference"))
    with pytest.raises(ValueError, match="more than 2097152"):
        clips.plan(dataclasses.replace(timeline, duration_sec=1e12), clips.ClipGeometry(), method="time")
