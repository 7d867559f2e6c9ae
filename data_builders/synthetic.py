"""Makes a data set that needs no download: `python -m data_builders.synthetic --output DIR --videos N --seed S`."""

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
import tqdm
from jaxtyping import Float, UInt8

from tsp_jax.system import cli, cpu, files
from tsp_jax.video import writing

# Each is a way to move, and stays that way in a mirror: training mirrors clips. All are done by the same shapes, in the same
# places, at the same sizes and angles.
CLASSES = ("bounce", "circle", "diagonal", "pulse", "spin", "swing")
SUBSETS = ("training", "validation", "testing", "training", "training")  # of every five videos, so that three have each
FPS = 30
WIDTH, HEIGHT = 320, 240
MIN_PART_SEC, MAX_PART_SEC = 2.0, 8.0  # of an action, and of the background between two
_FORMAT = 3  # of the videos; another one makes others from the same seed
_NUM_SHAPES, _NUM_ACTORS = 4, 3
_REACH = 34.0  # pixels from a shape's place to the end of its swing
_BLEND_FRAMES = 8  # from a part's motion to the next one's
_TURNS_A_SEC = (0.9, 1.3)  # of an action's motion, and of a move without aim
_MOVE_SEC, _REST_SEC = (0.2, 0.4), (0.4, 1.2)  # of a move without aim, and between two
# What turns in a move without aim, as columns of `_Shape.turns`: each as often as in the six actions.
_MOVES = ((0,), (1,), (2,), (3,), (0, 1), (0, 1))
_TILE = 384  # pixels a side of the texture, which repeats


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0 all well, 1 files can't be written, 2 wrong use."""
    options = _parse(arguments)
    cli.show_any_name()
    output, seconds = Path(options.output), tuple(options.seconds)
    recipe = {"format": _FORMAT, "seed": options.seed, "seconds": list(seconds)}
    scripts = [script(options.seed, index, seconds, options.subset) for index in range(options.videos)]
    try:
        _check_recipe(output / "recipe.json", recipe)
        folder = output / "videos"
        folder.mkdir(parents=True, exist_ok=True)
        to_do = [item for item in scripts if not (folder / f"{item.name}.mp4").exists()]
        paths = [folder / f"{item.name}.mp4" for item in to_do]
        # New processes: drawing holds Python's lock, and a fork of a process with threads may hang.
        with concurrent.futures.ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
            made = map(write, to_do, paths) if options.workers == 1 else pool.map(write, to_do, paths)
            frames = sum(tqdm.tqdm(made, "synthetic", len(to_do), unit="video", disable=None))
        _write_json(output / "annotations.json", annotations(scripts))
    except KeyboardInterrupt:
        print("interrupted; run the command again to go on", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    length_sec = sum(item.num_frames for item in scripts) / FPS
    acting_sec = sum((act.end - act.start) / FPS for item in scripts for act in item.acts)
    print(
        f"{output}: {len(scripts)} videos of {length_sec / 60:.1f} minutes, {sum(len(item.acts) for item in scripts)} actions "
        f"of {len(CLASSES)} classes in {acting_sec / length_sec:.0%} of the time; {len(to_do)} written ({frames} frames), "
        f"{len(scripts) - len(to_do)} were there"
    )
    return 0


@dataclasses.dataclass(frozen=True)
class Act:
    """An action in a video: frames [start, end) and the class."""

    start: int
    end: int
    label: str


@dataclasses.dataclass(frozen=True)
class Script:
    """What happens in a video: a function of seed, index and the range of lengths, and of nothing else."""

    name: str
    subset: str
    seed: int
    index: int
    num_frames: int
    acts: tuple[Act, ...]


def script(seed: int, index: int, seconds: tuple[float, float], subset: str | None = None) -> Script:
    """The script of one video, whose length is drawn from a range of seconds; the subset is its turn's unless given.

    Actions and background take turns, each of MIN_PART_SEC to MAX_PART_SEC; which comes first is drawn. All classes come
    once before one comes again, and the videos begin with each in turn.
    """
    draw = np.random.default_rng((seed, index, 0))
    num_frames = round(FPS * draw.uniform(*seconds))
    bounds = _part_bounds(draw, num_frames)
    parts = list(itertools.pairwise(bounds))[draw.integers(2) :: 2]
    order = [int(kind) for _ in range(1 + len(parts) // len(CLASSES)) for kind in draw.permutation(len(CLASSES))]
    shift = index - order[0]  # the first one is the video's turn; the rest of the permutation moves along
    acts = tuple(
        Act(start, end, CLASSES[(kind + shift) % len(CLASSES)]) for (start, end), kind in zip(parts, order, strict=False)
    )
    subset = subset or SUBSETS[index % len(SUBSETS)]
    return Script(f"synthetic_{seed}_{index:05d}", subset, seed, index, num_frames, acts)


def annotations(scripts: Sequence[Script]) -> dict[str, Any]:
    """The annotations in the layout of ActivityNet's JSON, which keeps its testing subset back; here it has its actions."""
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
    """Draws and writes a video, whole or not at all; the number of frames."""
    scene = Scene(item)
    return writing.write(path, (scene.frame(number) for number in range(item.num_frames)), FPS)


class Scene:
    """A video's pictures, in any order.

    In all parts shapes drift and jitter, and the camera wanders over a texture under which another moves. In an action's part
    most of them keep moving as the action says; the others, and all of them in the background, make a short move now and then,
    each for itself, as fast as those do. Places, sizes and angles have the same distribution in both, so that one picture does
    not tell. A fast motion alone does not tell either: an action's goes on, and shapes share it.
    """

    def __init__(self, item: Script):
        """Draws all paths."""
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
        """The two textures, and noise: each larger than a picture."""
        draw = np.random.default_rng((self.item.seed, self.item.index, 2))
        noise = draw.integers(0, 8, (2 * HEIGHT, 2 * WIDTH, 3), dtype=np.uint8)
        return _texture(draw, 130), _texture(draw, 60), noise

    def frame(self, number: int) -> UInt8[np.ndarray, "h w 3"]:
        """The picture of one frame, RGB."""
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
        # Where its swing is centred, and what it swings by: the sides, up and down, size, angle, in turns.
        centre = np.array([WIDTH / 2, HEIGHT / 2]), np.array([WIDTH / 2 - 70, HEIGHT / 2 - 70])
        self.place = np.stack([c + r * np.sin(_wander(draw, num_frames, 0.03, 2.5)) for c, r in zip(*centre, strict=True)], -1)
        self.turns = np.stack([draw.uniform(0, 1) + _wander(draw, num_frames, 0.03, 0.4) for _ in range(4)], -1)
        self.jitter = draw.normal(0, 0.5, (num_frames, 2))

    def move(self, start: int, end: int, label: str | None, draw: np.random.Generator) -> None:
        """Lets the shape do an action in frames [start, end), or move without aim."""
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
            case "circle":  # either way round: cos and sin of one angle
                acting[:, 0], acting[:, 1] = slow[0, 0] + turn, slow[0, 0] + turn + draw.choice([-0.25, 0.25])
            case "diagonal":  # either of the two
                acting[:, 0], acting[:, 1] = slow[0, 0] + turn, slow[0, 0] + turn + draw.choice([0, 0.5])
            case None:
                acting += _restless(draw, len(frames))
        # Angles blend the short way round, so that nothing leaps.
        weight = np.clip(np.minimum(frames - start, end - 1 - frames) / _BLEND_FRAMES, 0, 1)[:, None]
        gap = acting - slow
        offset = np.round(gap[min(_BLEND_FRAMES, len(gap) - 1)]), np.round(gap[-1 - min(_BLEND_FRAMES, len(gap) - 1)])
        half = (np.arange(len(frames)) >= len(frames) // 2)[:, None]
        self.turns[frames] = slow + weight * (gap - np.where(half, offset[1], offset[0]))

    def draw(self, picture: UInt8[np.ndarray, "h w 3"], number: int) -> None:
        """Draws it, with soft edges, into the picture."""
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
        shade = self.colour * (1 + np.float32(0.5) * np.cos(toward))[..., None]  # one side darker: angles show
        part = picture[top:bottom, left:right]
        part += (cover * (np.clip(shade, 0, 245) - part)).astype(np.int16).astype(np.uint8)  # wraps back where it is negative


def _part_bounds(draw: np.random.Generator, num_frames: int) -> list[int]:
    """Ascending bounds in frames, from 0 to the end, of parts of about equal mean length in background and action."""
    length_sec = num_frames / FPS
    fewest, most = int(np.ceil(length_sec / MAX_PART_SEC)), int(length_sec / MIN_PART_SEC)
    middle = round(2 * length_sec / (MIN_PART_SEC + MAX_PART_SEC)) + draw.integers(-1, 2)
    count = int(np.clip(middle, max(2, fewest), most))
    attempt = 0
    while True:
        attempt += 1
        parts = draw.uniform(MIN_PART_SEC, MAX_PART_SEC, count)
        parts *= length_sec / parts.sum()
        # Where there are nearly too many or too few parts for the length, only nearly equal ones fit.
        parts += min(1.0, attempt / 100) * (length_sec / count - parts)
        bounds = np.round(FPS * np.cumsum([0.0, *parts])).astype(int)
        lengths = np.diff(bounds)
        if lengths.min() >= FPS * MIN_PART_SEC and lengths.max() <= FPS * MAX_PART_SEC:
            return bounds.tolist()


def _wander(draw: np.random.Generator, num_frames: int, hertz: float, amplitude: float) -> Float[np.ndarray, " n"]:
    """A smooth path without pattern: slow waves of unrelated periods, around and above this one."""
    time_sec = np.arange(num_frames)[:, None] / FPS
    rates = 2 * np.pi * hertz * draw.uniform(0.4, 2.0, 5)
    return amplitude * np.sin(rates * time_sec + draw.uniform(0, 2 * np.pi, 5)).mean(-1) * np.sqrt(5)


def _restless(draw: np.random.Generator, num_frames: int) -> Float[np.ndarray, "n 4"]:
    """Turns of short moves with rests between them, each of another kind, speed and direction."""
    speeds, frame = np.zeros((num_frames, 4)), -round(FPS * draw.uniform(0, sum(_REST_SEC) / 2))
    while frame < num_frames:
        begin = max(0, frame + round(FPS * draw.uniform(*_REST_SEC)))
        frame = begin + round(FPS * draw.uniform(*_MOVE_SEC))
        turned = list(_MOVES[draw.integers(len(_MOVES))])
        speeds[begin:frame, turned] = draw.uniform(*_TURNS_A_SEC) * draw.choice([-1, 1], len(turned))
    return np.cumsum(speeds, axis=0) / FPS


def _texture(draw: np.random.Generator, brightest: int) -> UInt8[np.ndarray, "h w 3"]:
    """Coloured noise of all scales, which repeats at its borders, enlarged so that a crop never crosses them."""
    rows, columns = np.fft.fftfreq(_TILE)[:, None], np.fft.rfftfreq(_TILE)[None, :]
    scale = 1 / np.maximum(np.hypot(rows, columns), 4 / _TILE) ** 1.4
    spectrum = np.fft.rfft2(draw.normal(size=(3, _TILE, _TILE))) * scale
    waves = np.fft.irfft2(spectrum, (_TILE, _TILE))
    waves = waves + 2 * waves.mean(0)  # channels have much in common
    waves = waves / waves.std((1, 2), keepdims=True)
    tile = (np.clip(0.5 + 0.2 * waves, 0, 1) * brightest).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(np.pad(tile, ((0, HEIGHT), (0, WIDTH), (0, 0)), mode="wrap"))


def _crop(texture: UInt8[np.ndarray, "h w 3"], at: Float[np.ndarray, " 2"]) -> UInt8[np.ndarray, "h w 3"]:
    left, top = (int(value) for value in np.round(at).astype(int) % _TILE)
    return texture[top : top + HEIGHT, left : left + WIDTH]


def _check_recipe(path: Path, recipe: dict[str, Any]) -> None:
    """Writes the recipe, or compares it with the one that videos in the folder were made by.

    Raises:
      ValueError: they differ.
    """
    if not path.exists():
        _write_json(path, recipe)
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != recipe:
        raise ValueError(f"{path}: the videos there were made by {found}, asked for is {recipe}; use another --output")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with files.replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_builders.synthetic",
        description="Draws untrimmed videos with actions that only motion tells from the background, and writes "
        "OUTPUT/videos/*.mp4 and OUTPUT/annotations.json in ActivityNet's layout. The same seed gives the same files. Run "
        "again, it goes on where it was stopped.",
        epilog="example: python -m data_builders.synthetic --output synthetic/ --videos 50 --seed 0",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output", required=True, help="the folder")
    add("--videos", required=True, type=cli.positive_int, help="how many; of five, three train, one validates, one tests")
    add("--seed", required=True, type=cli.non_negative_int, help="of all that is drawn at random")
    add("--subset", choices=sorted(set(SUBSETS)), help="of all videos, in place of turns")
    add("--seconds", type=float, nargs=2, default=[20.0, 60.0], metavar=("MIN", "MAX"), help="length of a video")
    add("--workers", type=cli.positive_int, default=cpu.cores(), help="processes")
    options = parser.parse_args(arguments)
    low, high = options.seconds
    if not 2 * MIN_PART_SEC <= low <= high < 3600:
        parser.error(f"--seconds: from {2 * MIN_PART_SEC:g} (an action and background) up to 3600, MIN first; got {low} {high}")
    return options


if __name__ == "__main__":
    sys.exit(main())
