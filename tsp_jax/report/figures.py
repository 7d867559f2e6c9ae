"""Draws the pictures of a report, each as a data URI: frames of a video, similarity of its clips, points, curves.

This is the one door to matplotlib and Pillow. No text that comes from a file is drawn here: the page shows names next to a
picture.
"""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import matplotlib.ticker
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

# White text on each colour has a contrast of at least 4.5, and each colour one of at least 3 on a white and on a dark page.
COLOURS = ("#2b6cd4", "#c2410c", "#15803d", "#b8409f", "#8a6d00", "#0e7c86", "#d0284a", "#7c5bd6", "#5c7a1f", "#a8572f")
GREY = "#6b7280"
DASHES = ("solid", "dashed", "dotted", "dashdot")
_INK = "#010203"  # is replaced by the page's own colour of text, dark or light
_SVG_STYLE = "<style>svg{color:#434a54}@media(prefers-color-scheme:dark){svg{color:#b9c0ca}}</style>"
_SHADES = 64
_COLOUR_MAP = "viridis"
_STYLE: Any = {  # settings of matplotlib
    "font.size": 12,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "tsp_jax",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """Points of one colour.

    Attributes:
      places: x and y of each point.
      colour: the colour of all points, as #rrggbb.
      cross: whether the points are drawn as crosses; otherwise they are dots.
    """

    places: Float[np.ndarray, "n 2"]
    colour: str
    cross: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """A line through points.

    Attributes:
      x: x coordinates of the points, ascending.
      y: y coordinates of the points.
      colour: the line's colour.
      dash: the place of the line's style in `DASHES`.
      dots: whether each point is marked by a dot.
    """

    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    colour: str
    dash: int = 0
    dots: bool = False


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar of parts that lie on each other.

    Attributes:
      label: the text below the bar.
      parts: the height of each part, a share from -1 to 1, and its colour as #rrggbb, from the bottom up.
    """

    label: str
    parts: Sequence[tuple[float, str]]


def strip(frames: Sequence[UInt8[np.ndarray, "h w 3"] | None], width: int = 112) -> str:
    """Returns frames side by side as one JPEG. None leaves a grey place.

    Args:
      frames: RGB frames of any sizes; each is brought to the shape of the first one.
      width: width of each frame, in pixels.
    """
    height, whole = next((frame.shape[:2] for frame in frames if frame is not None), (3, 4))
    height = int(np.clip(round(width * height / whole), width // 3, 2 * width))
    joined = Image.new("RGB", (width * len(frames), height), "#808080")
    for place, frame in enumerate(frames):
        if frame is not None:
            small = Image.fromarray(frame).resize((width - 2, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
            joined.paste(small, (place * width + 1, 0))
    buffer = io.BytesIO()
    joined.save(buffer, "JPEG", quality=70, optimize=True)
    return _data_uri("image/jpeg", buffer.getvalue())


def matrix(values: Float[np.ndarray, "n m"], low: float, high: float) -> str:
    """Returns a matrix as a PNG with one pixel for each value, shaded from low to high.

    Values that are not finite are transparent.
    """
    finite = np.isfinite(values)
    share = np.clip((np.where(finite, values, low) - low) / max(high - low, 1e-12), 0, 1)
    shades = np.where(finite, np.round(share * (_SHADES - 1)), _SHADES).astype(np.uint8)
    image = Image.fromarray(shades)
    colours = matplotlib.colormaps[_COLOUR_MAP](np.linspace(0, 1, _SHADES), bytes=True)[:, :3]
    image.putpalette([*colours.ravel().tolist(), 0, 0, 0])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, transparency=_SHADES)
    return _data_uri("image/png", buffer.getvalue())


def shades(count: int) -> list[str]:
    """Returns the colours of `matrix` from low to high, as #rrggbb."""
    colours = matplotlib.colormaps[_COLOUR_MAP](np.linspace(0, 1, count), bytes=True)[:, :3]
    return ["#" + bytes(colour).hex() for colour in colours]


def scatter(groups: Sequence[Points]) -> str:
    """Returns points as a transparent PNG whose edges lie close to the outermost points. Later groups cover earlier ones."""
    with matplotlib.rc_context(_STYLE):
        figure = matplotlib.figure.Figure(figsize=(4, 3.2), dpi=160)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for group in groups:
            shape = {"marker": "x", "s": 9, "linewidths": 0.8} if group.cross else {"marker": "o", "s": 9, "linewidths": 0}
            axes.scatter(*group.places.T, color=group.colour, alpha=0.6, **shape)
        axes.margins(0.03)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", transparent=True)
    # Few colours are enough, and take a quarter of the bytes.
    packed = io.BytesIO()
    Image.open(buffer).quantize(128, method=Image.Quantize.FASTOCTREE).save(packed, "PNG", optimize=True)
    return _data_uri("image/png", packed.getvalue())


def curves(lines: Sequence[Curve], *, percent: bool = False, log: bool = False) -> str:
    """Returns lines over steps as an SVG, whose text is dark on a light page and light on a dark one.

    Args:
      lines: the lines, in the order of drawing.
      percent: whether values are shares, shown as percentages.
      log: whether the scale of values is logarithmic where they are positive.
    """
    with matplotlib.rc_context(_STYLE):
        figure = matplotlib.figure.Figure(figsize=(5, 3), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            look: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linewidth": 1.8} if line.dots else {"linewidth": 1.2}
            axes.plot(line.x, line.y, color=line.colour, linestyle=DASHES[line.dash], **look)
        axes.grid(True, color=_INK, alpha=0.15, linewidth=0.7)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
        if log and all(np.all(line.y > 0) for line in lines):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        else:
            axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        if percent:
            axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, symbol=" %"))
        return _svg(figure)


def bars(groups: Sequence[Sequence[Bar]], *, line: float | None = None) -> str:
    """Returns bars of shares as an SVG, in percent, with text like that of `curves`.

    Args:
      groups: the bars; between groups there is a gap. A bar of one part has its value above it, unless there are many bars.
      line: a height at which a dashed line is drawn; None for none.
    """
    with matplotlib.rc_context(_STYLE):
        figure = matplotlib.figure.Figure(figsize=(5, 3), layout="constrained")
        axes = figure.add_subplot()
        places: list[float] = []
        for number, group in enumerate(groups):
            for bar in group:
                x, base = len(places) + 0.7 * number, 0.0
                places.append(x)
                for height, colour in bar.parts:
                    axes.bar(x, height, bottom=base, width=0.8, color=colour, linewidth=0)
                    base += height
                if len(bar.parts) == 1 and sum(map(len, groups)) <= 16:
                    axes.text(x, max(base, 0), f"{100 * base:.1f}", ha="center", va="bottom", fontsize=8)
        if line is not None:
            axes.axhline(line, color=_INK, linestyle="dashed", linewidth=1)
        axes.set_xticks(places, [bar.label for group in groups for bar in group], fontsize=9)
        axes.tick_params(axis="x", length=0)
        axes.grid(True, axis="y", color=_INK, alpha=0.15, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, symbol=" %"))
        return _svg(figure)


def thinned(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], limit: int = 400
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Returns at most `limit` points of a line; where there are more, means of neighbouring points."""
    if len(x) <= limit:
        return x, y
    starts = np.linspace(0, len(x), limit, endpoint=False).astype(int)
    counts = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def _svg(figure: matplotlib.figure.Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor").replace("'DejaVu Sans'", "system-ui, sans-serif")
    start = svg.index(">") + 1
    return _data_uri("image/svg+xml", (svg[:start] + _SVG_STYLE + svg[start:]).encode())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
