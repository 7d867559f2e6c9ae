"""Tests of the linear probe: which clips it takes, what it finds, and that it finds nothing where there is nothing."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tsp_jax import features, groundtruth, linear_probe, probe

FRAMES, FPS = 900, 30.0  # 30 s
CLIP_SEC = 16 / 15
RUN = {"stride": 8, "clip_len": 16, "frame_rate": 15.0}
BOUNDS = (0.0, 6.0, 13.0, 19.0, 30.0)  # background, action, background, action


def truth(videos: Sequence[str]) -> list[groundtruth.AnnotatedSegment]:
    regions = ((groundtruth.NO_ACTION, ""), (groundtruth.ACTION, "wave")) * 2
    return [
        groundtruth.AnnotatedSegment(name, start, end, label, 30.0, f"{name}.mp4", FPS, FRAMES, region)
        for name in videos
        for start, end, (region, label) in zip(BOUNDS[:-1], BOUNDS[1:], regions, strict=True)
    ]


def write(folder: Path, kind: str, videos: Sequence[str], gap: float, missing: range = range(0)) -> tuple[str, str]:
    """Writes a feature file and its ground truth. The fourth number is larger in actions, by `gap` deviations of its noise."""
    path, table = folder / f"{kind}.h5", folder / f"{kind}.csv"
    groundtruth.write_groundtruth(table, truth(videos))
    with features.Writer(path, RUN) as writer:
        for number, name in enumerate(videos):
            draw = np.random.default_rng((len(kind), number))
            starts = np.arange((450 - 16) // 8 + 1) * 8 / 15
            acting = (starts > 6) & (starts < 13) | (starts > 19)
            rows = draw.normal(size=(len(starts), 7))
            rows[:, 3] += gap * acting
            kept = np.setdiff1d(np.arange(len(starts)), missing)
            ranges = [[0, len(starts)]] if not missing else [[0, missing.start], [missing.stop, len(starts)]]
            attributes = {"fps": FPS, "frames": FRAMES, "clip_ranges": np.array(ranges)}
            writer.commit(name, (5 + 100 * rows[kept]).astype(np.float32), attributes)
    return str(path), str(table)


def test_probe_finds_the_one_number_that_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted, table = write(tmp_path, "train", [f"a{i}" for i in range(8)], 20.0)
    held_out, test_table = write(tmp_path, "test", ["b0", "b1"], 20.0)
    flags = ["--groundtruth", table, "--test_groundtruth", test_table]
    assert linear_probe.main(["--features", fitted, "--test_features", held_out, *flags]) == 0
    row = capsys.readouterr().out.splitlines()[2]
    assert row.startswith(f"| {held_out} | ") and row.count("100.0 %") == 4
    assert linear_probe.main(["--features", fitted, fitted, "--test_features", held_out, held_out, *flags]) == 0
    assert "Mean balanced accuracy of 2: 100.0 % (100.0 to 100.0 %, standard deviation 0.0)" in capsys.readouterr().out


def test_probe_is_at_chance_where_nothing_differs(tmp_path: Path) -> None:
    fitted, table = write(tmp_path, "train", [f"a{i}" for i in range(40)], 0.0)
    held_out, test_table = write(tmp_path, "test", [f"b{i}" for i in range(40)], 0.0)
    pairs = [
        probe.labelled_clips(path, groundtruth.read_groundtruth(csv)) for path, csv in ((fitted, table), (held_out, test_table))
    ]
    found = probe.score(*pairs[0], *pairs[1])
    # About 2,000 clips: the deviation of a share is 1.1 %.
    assert found.held_out == pytest.approx(0.5, abs=0.04)
    assert found.held_out == (found.action + found.background) / 2


def test_clips_across_a_border_are_left_out(tmp_path: Path) -> None:
    missing = range(20, 24)
    path, table = write(tmp_path, "train", ["a"], 1.0, missing)
    found, acting = probe.labelled_clips(path, groundtruth.read_groundtruth(table))
    starts = np.array([k * 8 / 15 for k in range(55) if k not in missing])
    inside = [
        (start, index % 2 == 1)
        for start in starts
        for index in range(4)
        if start >= BOUNDS[index] - 1e-9 and start + CLIP_SEC <= BOUNDS[index + 1] + 1e-9
    ]
    assert len(inside) < len(starts)
    assert len(found) == len(inside) and np.count_nonzero(acting) == sum(label for _, label in inside)
    video = features.read(path, "a")
    expected = np.isin(starts, [start for start, _ in inside])
    assert {tuple(row) for row in found} == {tuple(row) for row in video.features[expected].astype(float)}


def test_both_classes_weigh_the_same() -> None:
    draw = np.random.default_rng(0)
    inputs = np.concatenate([draw.normal(1, 1, (3000, 1)), draw.normal(-1, 1, (100, 1))])
    weight, bias = probe.fit(inputs, np.arange(3100) < 3000)
    # The border lies in the middle. If clips were counted, it would be at -1.7, which is log(30) / 2 away.
    assert weight[0] > 1 and abs(bias / weight[0]) < 0.25


def test_unusable_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, table = write(tmp_path, "train", ["a"], 1.0)
    only_actions = tmp_path / "actions.csv"
    groundtruth.write_groundtruth(only_actions, [item for item in truth(["a"]) if item.temporal_region == groundtruth.ACTION])
    other = tmp_path / "other.csv"
    groundtruth.write_groundtruth(other, truth(["z"]))
    for wrong, message in ((only_actions, "both temporal regions are needed"), (other, "no video 'z'")):
        flags = ["--groundtruth", table, "--test_groundtruth", str(wrong)]
        assert linear_probe.main(["--features", path, "--test_features", path, *flags]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        linear_probe.main(
            ["--features", path, path, "--test_features", path, "--groundtruth", table, "--test_groundtruth", table]
        )
