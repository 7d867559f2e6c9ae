"""Draws a data set that needs no download: `python -m data_builders.synthetic --output DIR --videos N --seed S`."""

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import multiprocessing
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from tsp_jax.system import cli, cpu, files, progress
from tsp_jax.video import writing

# Each class is a way to move that looks the same in a mirror, because training mirrors clips. The same shapes do all of
# them, in the same places, at the same sizes and angles.
CLASSES = ("bounce", "circle", "diagonal", "pulse", "spin", "swing")
SUBSETS = ("training", "validation", "testing", "training", "training")  # repeats every five videos
FPS = 30
WIDTH, HEIGHT = 320, 240
MIN_PART_SEC, MAX_PART_SEC = 2.0, 8.0  # length of an action, and of the background between two
_FORMAT = 3  # number of this way to draw; another draws other videos from the same seed
_NUM_SHAPES, _NUM_ACTORS = 4, 3
_REACH = 34.0  # pixels from a shape's place to the end of its swing
_BLEND_FRAMES = 8  # length of the transition from a part's motion to the next one's
_TURNS_A_SEC = (0.9, 1.3)  # speed of an action's motion, and of an aimless move
_MOVE_SEC, _REST_SEC = (0.2, 0.4), (0.4, 1.2)  # length of an aimless move, and of the rest after it
# The columns of `_Shape.turns` that an aimless move changes. Each occurs as often as in the six actions.
_MOVES = ((0,), (1,), (2,), (3,), (0, 1), (0, 1))
_TILE = 384  # side of the repeating texture in pixels


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    The status is 0 if all is well, 1 if files can't be written, 2 for wrong use, and 130 if it was interrupted.
    """
    return cli.run(_work, _parse(arguments))


def _work(options: argparse.Namespace) -> None:
    output, seconds = Path(options.output), tuple(options.seconds)
    recipe = {"format": _FORMAT, "seed": options.seed, "seconds": list(seconds)}
    scripts = [script(options.seed, index, seconds, options.subset) for index in range(options.videos)]
    with cli.resumable("finished videos are kept; run the command again to go on"):
        _check_recipe(output / "recipe.json", recipe)
        folder = output / "videos"
        folder.mkdir(parents=True, exist_ok=True)
        to_do = [item for item in scripts if not (folder / f"{item.name}.mp4").exists()]
        paths = [folder / f"{item.name}.mp4" for item in to_do]
        # We spawn processes, because drawing holds Python's lock, and a fork of a process with threads may hang.
        with concurrent.futures.ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
            made = map(write, to_do, paths) if options.workers == 1 else pool.map(write, to_do, paths)
            frames = sum(progress.each(made, "synthetic", len(to_do)))
        _write_json(output / "annotations.json", annotations(scripts))
    length_sec = sum(item.num_frames for item in scripts) / FPS
    acting_sec = sum((act.end - act.start) / FPS for item in scripts for act in item.acts)
    print(
        f"{output}: {len(scripts)} videos of {length_sec / 60:.1f} minutes, {sum(len(item.acts) for item in scripts)} actions "
        f"of {len(CLASSES)} classes in {acting_sec / length_sec:.0%} of the time; {len(to_do)} written ({frames} frames), "
        f"{len(scripts) - len(to_do)} were there"
    )


@dataclasses.dataclass(frozen=True)
class Act:
    """An action in a video.

    Attributes:
      start: first frame of the action.
      end: frame after its last one.
      label: the action's class.
    """

    start: int
    end: int
    label: str


@dataclasses.dataclass(frozen=True)
class Script:
    """The course of a video, which depends only on the seed, the index and the range of lengths.

    Attributes:
      name: the video's name.
      subset: the video's subset.
      seed: seed of the data set.
      index: number of the video in the data set, from 0.
      num_frames: number of frames.
      acts: the actions, in the order of time.
    """

    name: str
    subset: str
    seed: int
    index: int
    num_frames: int
    acts: tuple[Act, ...]


def script(seed: int, index: int, seconds: tuple[float, float], subset: str | None = None) -> Script:
    """Returns the script of one video.

    Actions and background alternate, and each lasts MIN_PART_SEC to MAX_PART_SEC. It is random which comes first. All classes
    occur once before one occurs again, and consecutive videos begin with consecutive classes.

    Args:
      seed: seed of the data set.
      index: number of the video in the data set, from 0.
      seconds: the shortest and the longest length in seconds, between which the length is drawn.
      subset: the video's subset; None for the one at its position in `SUBSETS`.
    """
    draw = np.random.default_rng((seed, index, 0))
    num_frames = round(FPS * draw.uniform(*seconds))
    bounds = _part_bounds(draw, num_frames)
    parts = list(itertools.pairwise(bounds))[draw.integers(2) :: 2]
    order = [int(kind) for _ in range(1 + len(parts) // len(CLASSES)) for kind in draw.permutation(len(CLASSES))]
    shift = index - order[0]  # the index sets the first class; the others shift along
    acts = tuple(
        Act(start, end, CLASSES[(kind + shift) % len(CLASSES)]) for (start, end), kind in zip(parts, order, strict=False)
    )
    subset = subset or SUBSETS[index % len(SUBSETS)]
    return Script(f"synthetic_{seed}_{index:05d}", subset, seed, index, num_frames, acts)


def annotations(scripts: Sequence[Script]) -> dict[str, Any]:
    """Returns the annotations in the layout of ActivityNet's JSON. Unlike there, the testing subset has its actions."""
    database = {
        item.name: {
            "subset": item.subset,
            "duration": round(item.num_frames / FPS, 6),
            "resolution": f"{WIDTH}x{HEIGHT}",
            "annotations": [
                {"segment": [round(act.start / FPS, 6), round(act.end / FPS, 6)], "label": act.label} for act in item.acts
            ],
        }
        for item in scripts
    }
    return {"version": f"synthetic {_FORMAT}", "taxonomy": [], "database": database}


def write(item: Script, path: Path) -> int:
    """Draws and writes a video, whole or not at all, and returns its number of frames."""
    scene = Scene(item)
    return writing.write(path, (scene.frame(number) for number in range(item.num_frames)), FPS)


class Scene:
    """Draws a video's pictures, in any order.

    In all parts, shapes drift and jitter, and the camera wanders over a texture on which another one moves. During an action
    most shapes keep making the action's motion. The others, and all shapes during background, make a short move now and then,
    each on its own and equally fast. Places, sizes and angles have the same distribution in both, so that a single picture
    does not show the class. A fast motion alone does not show it either: an action's motion goes on, and shapes share it.
    """

    def __init__(self, item: Script):
        """Draws the random paths of the camera and the shapes.

        Args:
          item: the video's script.
        """
        self.item = item
        draw = np.random.default_rng((item.seed, item.index, 1))
        n = item.num_frames
        self.noise_at = draw.integers(0, (HEIGHT, WIDTH), (n, 2))
        self.camera = np.stack([_wander(draw, n, 0.05, 20.0) + _wander(draw, n, 0.6, 0.5) for _ in range(2)], -1)
        self.drift = np.stack([_wander(draw, n, 0.08, 10.0) for _ in range(2)], -1)
        self.shapes = [_Shape(draw, n) for _ in range(_NUM_SHAPES)]
        labels = {(act.start, act.end): act.label for act in item.acts}
        bounds = sorted({0, n, *itertools.chain(*labels)})
        for part in itertools.pairwise(bounds):
            order = draw.permutation(_NUM_SHAPES)
            for rank, shape in enumerate(order):
                self.shapes[shape].move(*part, labels.get(part) if rank < _NUM_ACTORS else None, draw)

    @functools.cached_property
    def layers(self) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "noise_h noise_w 3"]]:
        """The two textures and the noise, each larger than a picture."""
        draw = np.random.default_rng((self.item.seed, self.item.index, 2))
        noise = draw.integers(0, 8, (2 * HEIGHT, 2 * WIDTH, 3), dtype=np.uint8)
        return _texture(draw, 130), _texture(draw, 60), noise

    def frame(self, number: int) -> UInt8[np.ndarray, "h w 3"]:
        """Returns the picture of one frame, RGB."""
        ground, overlay, noise = self.layers
        picture = _crop(ground, self.camera[number]) + _crop(overlay, self.camera[number] + self.drift[number])
        for shape in self.shapes:
            shape.draw(picture, number)
        top, left = self.noise_at[number]
        picture += noise[top : top + HEIGHT, left : left + WIDTH]
        return picture


class _Shape:
    """A coloured shape and its path: place, size and angle in each frame."""

    def __init__(self, draw: np.random.Generator, num_frames: int):
        self.colour = draw.uniform(60, 240, 3).astype(np.float32)
        self.radius = draw.uniform(22, 28)
        self.corners = float(draw.choice([2.0, 3.0, 4.0]))
        # `place` is the centre of the swing. `turns` holds the phases of sideways swing, upright swing, size and angle.
        centre = np.array([WIDTH / 2, HEIGHT / 2]), np.array([WIDTH / 2 - 70, HEIGHT / 2 - 70])
        self.place = np.stack([c + r * np.sin(_wander(draw, num_frames, 0.03, 2.5)) for c, r in zip(*centre, strict=True)], -1)
        self.turns = np.stack([draw.uniform(0, 1) + _wander(draw, num_frames, 0.03, 0.4) for _ in range(4)], -1)
        self.jitter = draw.normal(0, 0.5, (num_frames, 2))

    def move(self, start: int, end: int, label: str | None, draw: np.random.Generator) -> None:
        """Makes the shape do an action in frames [start, end), or move aimlessly if the label is None."""
        frames = np.arange(start, end)
        slow = self.turns[frames]
        turn = draw.uniform(*_TURNS_A_SEC) * (frames - start) / FPS
        acting = slow.copy()
        match label:
            case "bounce":
                acting[:, 1] = slow[0, 1] + turn
            case "swing":
                acting[:, 0] = slow[0, 0] + turn
            case "pulse":
                acting[:, 2] = slow[0, 2] + turn
            case "spin":  # either way round
                acting[:, 3] = slow[0, 3] + turn * draw.choice([-1, 1])
            case "circle":  # either way round; the two phases differ by a quarter turn
                acting[:, 0], acting[:, 1] = slow[0, 0] + turn, slow[0, 0] + turn + draw.choice([-0.25, 0.25])
            case "diagonal":  # either of the two
                acting[:, 0], acting[:, 1] = slow[0, 0] + turn, slow[0, 0] + turn + draw.choice([0, 0.5])
            case None:
                acting += _restless(draw, len(frames))
        # Phases blend the short way round, so that nothing jumps.
        weight = np.clip(np.minimum(frames - start, end - 1 - frames) / _BLEND_FRAMES, 0, 1)[:, None]
        gap = acting - slow
        offset = np.round(gap[min(_BLEND_FRAMES, len(gap) - 1)]), np.round(gap[-1 - min(_BLEND_FRAMES, len(gap) - 1)])
        half = (np.arange(len(frames)) >= len(frames) // 2)[:, None]
        self.turns[frames] = slow + weight * (gap - np.where(half, offset[1], offset[0]))

    def draw(self, picture: UInt8[np.ndarray, "h w 3"], number: int) -> None:
        """Draws the shape into a picture, with soft edges."""
        sideways, upright, size, angle = 2 * np.pi * self.turns[number]
        x, y = self.place[number] + self.jitter[number] + _REACH * np.cos([sideways, upright])
        radius = self.radius * (1 + 0.5 * np.cos(size))
        reach = int(1.5 * radius) + 2
        left, right = max(0, int(x) - reach), min(WIDTH, int(x) + reach + 1)
        top, bottom = max(0, int(y) - reach), min(HEIGHT, int(y) + reach + 1)
        if left >= right or top >= bottom:
            return
        dx = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(x)
        dy = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(y)
        toward = np.arctan2(dy, dx) - np.float32(angle)
        edge = np.float32(radius) * (1 + np.float32(0.35) * np.cos(np.float32(self.corners) * toward))
        cover = np.clip(edge - np.sqrt(dx * dx + dy * dy) + np.float32(0.5), 0, 1)[..., None]
        shade = (
            self.colour * (1 + np.float32(0.5) * np.cos(toward))[..., None]
        )  # one side is darker, so that the angle is visible
        part = picture[top:bottom, left:right]
        part += (cover * (np.clip(shade, 0, 245) - part)).astype(np.int16).astype(np.uint8)  # wraps back where it is negative


def _part_bounds(draw: np.random.Generator, num_frames: int) -> list[int]:
    """Returns the ascending bounds of the parts, in frames, from 0 to num_frames."""
    length_sec = num_frames / FPS
    fewest, most = int(np.ceil(length_sec / MAX_PART_SEC)), int(length_sec / MIN_PART_SEC)
    middle = round(2 * length_sec / (MIN_PART_SEC + MAX_PART_SEC)) + draw.integers(-1, 2)
    count = int(np.clip(middle, max(2, fewest), most))
    attempt = 0
    while True:
        attempt += 1
        parts = draw.uniform(MIN_PART_SEC, MAX_PART_SEC, count)
        parts *= length_sec / parts.sum()
        # If there are nearly too many or too few parts for the length, only parts of nearly equal length fit.
        parts += min(1.0, attempt / 100) * (length_sec / count - parts)
        bounds = np.round(FPS * np.cumsum([0.0, *parts])).astype(int)
        lengths = np.diff(bounds)
        if lengths.min() >= FPS * MIN_PART_SEC and lengths.max() <= FPS * MAX_PART_SEC:
            return bounds.tolist()


def _wander(draw: np.random.Generator, num_frames: int, hertz: float, amplitude: float) -> Float[np.ndarray, " n"]:
    """Returns a smooth path without pattern, the mean of slow waves whose frequencies lie around `hertz`."""
    time_sec = np.arange(num_frames)[:, None] / FPS
    rates = 2 * np.pi * hertz * draw.uniform(0.4, 2.0, 5)
    return amplitude * np.sin(rates * time_sec + draw.uniform(0, 2 * np.pi, 5)).mean(-1) * np.sqrt(5)


def _restless(draw: np.random.Generator, num_frames: int) -> Float[np.ndarray, "n 4"]:
    """Returns the phases of short moves with rests between them, each of a random kind, speed and direction."""
    speeds, frame = np.zeros((num_frames, 4)), -round(FPS * draw.uniform(0, sum(_REST_SEC) / 2))
    while frame < num_frames:
        begin = max(0, frame + round(FPS * draw.uniform(*_REST_SEC)))
        frame = begin + round(FPS * draw.uniform(*_MOVE_SEC))
        turned = list(_MOVES[draw.integers(len(_MOVES))])
        speeds[begin:frame, turned] = draw.uniform(*_TURNS_A_SEC) * draw.choice([-1, 1], len(turned))
    return np.cumsum(speeds, axis=0) / FPS


def _texture(draw: np.random.Generator, brightest: int) -> UInt8[np.ndarray, "h w 3"]:
    """Returns coloured noise of all scales that repeats, and is enlarged so that a crop never crosses its border."""
    rows, columns = np.fft.fftfreq(_TILE)[:, None], np.fft.rfftfreq(_TILE)[None, :]
    scale = 1 / np.maximum(np.hypot(rows, columns), 4 / _TILE) ** 1.4
    spectrum = np.fft.rfft2(draw.normal(size=(3, _TILE, _TILE))) * scale
    waves = np.fft.irfft2(spectrum, (_TILE, _TILE))
    waves = waves + 2 * waves.mean(0)  # makes the channels similar
    waves = waves / waves.std((1, 2), keepdims=True)
    tile = (np.clip(0.5 + 0.2 * waves, 0, 1) * brightest).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(np.pad(tile, ((0, HEIGHT), (0, WIDTH), (0, 0)), mode="wrap"))


def _crop(texture: UInt8[np.ndarray, "texture_h texture_w 3"], at: Float[np.ndarray, " 2"]) -> UInt8[np.ndarray, "h w 3"]:
    left, top = (int(value) for value in np.round(at).astype(int) % _TILE)
    return texture[top : top + HEIGHT, left : left + WIDTH]


def _check_recipe(path: Path, recipe: dict[str, Any]) -> None:
    """Writes the recipe, or checks that the videos in the folder were made by the same recipe.

    Raises:
      ValueError: the recipes differ.
    """
    if not path.exists():
        _write_json(path, recipe)
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != recipe:
        raise ValueError(f"{path}: the videos there were made by {found}, but {recipe} is asked for; use another --output")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with files.replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_builders.synthetic",
        description="Draws untrimmed videos, in which only motion distinguishes actions from background, and writes "
        "OUTPUT/videos/*.mp4 and OUTPUT/annotations.json in ActivityNet's layout. The same seed gives the same files. If it "
        "was stopped, the same command goes on.",
        epilog="example: python -m data_builders.synthetic --output synthetic/ --videos 50 --seed 0",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output", required=True, help="the folder to write")
    add(
        "--videos",
        required=True,
        type=cli.positive_int,
        help="number of videos; of every five, three are for training, one for validation, one for testing",
    )
    add("--seed", required=True, type=cli.non_negative_int, help="seed of every random draw")
    add("--subset", choices=sorted(set(SUBSETS)), help="the subset of all videos (default: they take turns)")
    add(
        "--seconds",
        type=float,
        nargs=2,
        default=[20.0, 60.0],
        metavar=("MIN", "MAX"),
        help="range of the videos' lengths in seconds",
    )
    add("--workers", type=cli.positive_int, default=cpu.cores(), help="number of processes")
    options = parser.parse_args(arguments)
    low, high = options.seconds
    if not 2 * MIN_PART_SEC <= low <= high < 3600:
        parser.error(f"--seconds: from {2 * MIN_PART_SEC:g} (an action and background) up to 3600, MIN first; got {low} {high}")
    return options


if __name__ == "__main__":
    sys.exit(main())
