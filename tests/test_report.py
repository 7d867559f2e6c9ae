"""Tests that the report shows what the files hold, whatever that is, and that a browser shows it offline at any width."""

import base64
import html.parser
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import browser
import media
from tsp_jax import clip_segments, features, groundtruth, predictions, probe
from tsp_jax.report import __main__ as report
from tsp_jax.report import video_section

EVIL = "<script>alert(1)</script>"
EVIL_CLASS = 'jump" onload="alert(2)\u202e$\\frac$'
FPS, FRAMES = 30.0, 600  # 20 s
RUN = {
    "stride": 8,
    "clip_len": 16,
    "frame_rate": 15.0,
    "frame_selection": "reference",
    "checkpoint_sha256": "ab",
    "checkpoint": "m",
}
PARTS = ((0.0, 6.0, ""), (6.0, 11.0, "run"), (11.0, 15.0, ""), (15.0, 20.0, EVIL_CLASS))
STARTS = np.arange((300 - 16) // 8 + 1) * 8 / 15


def truth(names: Sequence[str]) -> list[groundtruth.AnnotatedSegment]:
    regions = {True: groundtruth.ACTION, False: groundtruth.NO_ACTION}
    return [
        groundtruth.AnnotatedSegment(name, start, end, label, FRAMES / FPS, f"{name}.mp4", FPS, FRAMES, regions[bool(label)])
        for name in names
        for start, end, label in PARTS
    ]


def acting(start: float) -> bool:
    return 6 <= start < 11 or start >= 15


def write_features(path: Path, names: Sequence[str], seed: int, run: dict[str, Any] = RUN, spoil: str = "") -> str:
    """Writes features that distinguish actions most of the time; those of one video hold a NaN."""
    draw = np.random.default_rng(seed)
    with features.Writer(path, run) as writer:
        for name in names:
            rows = draw.normal(size=(len(STARTS), 6)) + 1.5 * np.array([[acting(start), 1, 0, 0, 0, 0] for start in STARTS])
            if name == spoil:
                rows[3, 2] = np.nan
            attributes = {"fps": FPS, "frames": FRAMES, "clip_ranges": np.array([[0, len(STARTS)]])}
            writer.commit(name, rows.astype(np.float32), attributes)
    return str(path)


def write_predictions(path: Path, names: Sequence[str]) -> str:
    count = len(STARTS)
    found = predictions.Video(
        duration_sec=20.0,
        damage="",
        segments=(clip_segments.Segment(EVIL_CLASS, 0.8125, 14.5, 19.5), clip_segments.Segment("run", 0.625, 5.75, 11.25)),
        start_sec=STARTS,
        foreground=np.array([0.9 if acting(start) else 0.1 for start in STARTS], np.float32),
        top_classes=np.tile(np.array([[0, 1]], np.int32), (count, 1)),
        top_probabilities=np.tile(np.array([[0.75, 0.25]], np.float32), (count, 1)),
    )
    page = predictions.Predictions(
        "m", "ab", "", ("action", "temporal_region"), (EVIL_CLASS, "run"), (0.5,), 16 / 15, 8 / 15, dict.fromkeys(names, found)
    )
    predictions.write(path, page)
    return str(path)


def write_metrics(path: Path) -> str:
    path.parent.mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for epoch in range(3):
        lr = {"lr_stem": 0.1 / (epoch + 1), "lr_fc": 0.1 / (epoch + 1)}
        line = {"step": 10 * epoch + 10, "epoch": epoch, f"loss_{EVIL}": 2.0, "loss": 2.5 - epoch / 8, "mean_accuracy": 0.5}
        lines.append({"split": "train", **line, **lr, "grad_norm": None})
        lines.append({"split": "valid", **line, "mean_accuracy": [0.125, 0.8125, 0.5][epoch]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"split": "tr')
    return str(path)


class Parsed(html.parser.HTMLParser):
    """A page's tags with their attributes, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + " "

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


NAMES = ["a", EVIL.replace("/", "\u2215"), "c", "d", "e"]  # names in a feature file have no slash


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the files of two models, the second spoiled in one video, and the page made of them."""
    folder = tmp_path_factory.mktemp("report")
    write_features(folder / "one.h5", NAMES, seed=1)
    write_features(folder / "two.h5", NAMES, seed=2, run={**RUN, "checkpoint_sha256": "cd"}, spoil="d")
    groundtruth.write_groundtruth(folder / "truth.csv", truth([*NAMES[:4], "elsewhere"]))
    write_predictions(folder / "predictions.json", [*NAMES[1:], "unknown"])
    write_metrics(folder / EVIL.replace("/", "") / "metrics.jsonl")
    (folder / "videos").mkdir()
    media.write(folder / "videos" / "a.mp4", frames=60)
    (folder / "videos" / "c.mp4").write_text("no video")
    return folder


def flags(folder: Path) -> list[str]:
    return [
        *("--features", str(folder / "one.h5"), "--features", str(folder / "two.h5"), "--names", "TSP", EVIL),
        *("--groundtruth", str(folder / "truth.csv"), "--predictions", str(folder / "predictions.json")),
        *("--videos", str(folder / "videos"), "--metrics", str(folder / EVIL.replace("/", "") / "metrics.jsonl")),
    ]


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    output = folder / "report.html"
    assert report.main([*flags(folder), "--output", str(output)]) == 1  # because c.mp4 is no video
    return output


@pytest.fixture(scope="module")
def parsed(page: Path) -> Parsed:
    return Parsed(page.read_text(encoding="utf-8"))


def test_every_name_is_text_and_nothing_runs(page: Path, parsed: Parsed):
    tags = {tag for tag, _ in parsed.tags}
    assert "script" not in tags and not tags & {"iframe", "object", "embed", "form"}
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert NAMES[1] in parsed.text and EVIL in parsed.text
    assert 'jump" onload="alert(2)\ufffd$\\frac$' in parsed.text
    assert "\u202e" not in page.read_text(encoding="utf-8")


def test_the_page_refers_to_nothing_outside(page: Path, parsed: Parsed):
    texts = [page.read_text(encoding="utf-8")]
    for image in parsed.images():
        kind, data = str(image["src"]).split(";base64,")
        if kind == "data:image/svg+xml":
            texts.append(base64.b64decode(data).decode())
    assert len(texts) > 4
    for text in texts:
        assert {url for url in re.findall(r"\w+://[^\s\"'<)]*", text) if not url.startswith("http://www.w3.org/")} == set()
    for _, attributes in parsed.tags:
        for key in ("src", "href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:"))


def test_every_image_decodes_and_has_a_text(parsed: Parsed):
    images = parsed.images()
    # The pictures are a strip, the matrices, two projections of each model, three charts and the learning rates.
    assert len(images) == 1 + 2 * len(NAMES) + 4 + 4
    for image in images:
        assert image["alt"] and image["loading"] == "lazy"
        kind, data = str(image["src"]).split(";base64,")
        if kind == "data:image/svg+xml":
            assert ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg")
        else:
            PIL.Image.open(io.BytesIO(base64.b64decode(data))).load()


def test_numbers_are_those_of_the_probe_on_other_videos(folder: Path, parsed: Parsed):
    # The first and third video with ground truth, by name, are fitted on; the second and fourth are measured.
    usable = sorted(NAMES[:4])
    fitted, measured = (probe.labelled_clips(folder / "one.h5", truth(names)) for names in (usable[::2], usable[1::2]))
    found = probe.score(*fitted, *measured)
    assert 0.5 < found.held_out < 1
    for value in (found.held_out, found.action, found.background, found.train):
        assert f"{100 * value:.1f} %" in parsed.text
    assert f"{found.clips} clips of 2 videos" in parsed.text and f"{len(fitted[0])} clips of 2 videos" in parsed.text
    # The clip of the other model that holds a NaN lies within a segment.
    assert f"{found.clips - 1} clips of 2 videos" in parsed.text
    assert "first, third, fifth" in parsed.text


def test_predictions_and_training_are_shown(parsed: Parsed):
    assert predictions.READING.split(",")[0] in " ".join(parsed.text.split())
    assert "0.812" in parsed.text and "14.50 s" in parsed.text and "19.50 s" in parsed.text
    assert "75.0 %" in parsed.text and "25.0 %" in parsed.text  # probabilities of the classes, over all clips
    (curve, *_) = [attributes["points"] for tag, attributes in parsed.tags if tag == "polyline"]
    first = (STARTS[0] + 8 / 15) / 20 * 1000
    assert str(curve).startswith(f"{first:.1f},90.0 ") and len(str(curve).split()) == len(STARTS)
    assert "81.2 %" in parsed.text and "2.2500" in parsed.text and "stem, fc" in parsed.text


def test_what_does_not_belong_or_is_spoiled_is_noted(folder: Path, parsed: Parsed):
    text = parsed.text
    assert f"(video 'd'): 1 of {len(STARTS)} clips hold NaN or infinity, the first is row 3" in text
    assert re.search(r"1 video of \S+truth.csv without features, left out: elsewhere", text)
    assert re.search(r"1 video of \S+predictions.json without features, left out: unknown", text)
    assert re.search(r"1 video without segments in \S+truth.csv: e", text)
    assert re.search(r"c\.mp4: .*no frames of it are shown", text)
    assert "3 videos without a file in" in text


def test_bars_and_matrix_lie_where_the_times_say(folder: Path):
    spans = [(5.0, 10.0, "run", None), (7.5, 30.0, "sit", 0.5), (25.0, 26.0, "run", None)]
    bars = video_section.bars(spans, {"run": 0}, 0.0, 20.0)
    assert [(bar.left, bar.width, bar.lane, bar.colour) for bar in bars] == [(25.0, 25.0, 0, 0), (37.5, 62.5, 1, -1)]
    spoiled = features.read(folder / "two.h5", "d")
    matrix = video_section.matrix("m", spoiled, [], {})
    assert matrix is not None
    # Each clip shows the 8 frames around its middle, at 15 frames a second.
    assert matrix.start_sec == pytest.approx(4 / 15) and matrix.end_sec == pytest.approx(4 / 15 + len(STARTS) * 8 / 15)
    picture = np.array(PIL.Image.open(io.BytesIO(base64.b64decode(matrix.image.split(",")[1]))).convert("RGBA"))
    hole = np.zeros((len(STARTS), len(STARTS)), bool)
    hole[3], hole[:, 3] = True, True
    assert np.array_equal(picture[..., 3] == 0, hole)
    unit = spoiled.features / np.linalg.norm(spoiled.features, axis=1, keepdims=True)
    values, shade = unit @ unit.T, np.array(PIL.Image.open(io.BytesIO(base64.b64decode(matrix.image.split(",")[1]))))
    expected = np.clip(np.round((values - matrix.low) / (matrix.high - matrix.low) * 63), 0, 63)
    assert np.max(np.abs(shade[~hole] - expected[~hole])) <= 1


def test_a_long_list_has_few_pictures_and_says_so(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = [f"video_{number:03}" for number in range(120)]
    many = write_features(tmp_path / "many.h5", names, seed=0)
    output = tmp_path / "many.html"
    assert report.main(["--features", many, "--max_videos", "3", "--output", str(output)]) == 0
    assert "120 videos, 3 pictured" in capsys.readouterr().out
    found = Parsed(output.read_text(encoding="utf-8"))
    assert "The first 3 of 120 by name have pictures below" in found.text
    assert all(name in found.text for name in names)
    assert sum(tag == "details" for tag, _ in found.tags) == 3
    links = {attributes["href"] for tag, attributes in found.tags if tag == "a"}
    assert {str(link)[1:] for link in links} <= {str(attributes.get("id")) for _, attributes in found.tags}
    assert output.stat().st_size < 500_000


def test_training_alone_makes_a_page(folder: Path, tmp_path: Path):
    metrics = str(folder / EVIL.replace("/", "") / "metrics.jsonl")
    output = tmp_path / "curves.html"
    assert report.main(["--metrics", metrics, "--output", str(output)]) == 0
    found = Parsed(output.read_text(encoding="utf-8"))
    assert "Training curves" in found.text and len(found.images()) == 4 and "linear probe" not in found.text.lower()


def test_a_probe_fitted_on_videos_that_the_page_leaves_out(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    groundtruth.write_groundtruth(tmp_path / "fit.csv", truth(["a", "e"]))
    output = tmp_path / "r.html"
    given = ["--features", str(folder / "one.h5"), "--groundtruth", str(folder / "truth.csv"), "--output", str(output)]
    assert report.main([*given, "--probe_groundtruth", str(tmp_path / "fit.csv")]) == 0
    fit, measured = (probe.labelled_clips(folder / "one.h5", truth(names)) for names in (["a", "e"], NAMES[1:4]))
    found = probe.score(*fit, *measured)
    assert f"{100 * found.held_out:.1f} % balanced accuracy, {found.clips} clips" in capsys.readouterr().out
    text = Parsed(output.read_text(encoding="utf-8")).text
    assert f"{100 * found.held_out:.1f} %" in text and f"{len(fit[0])} clips of 2 videos" in text
    assert "measured on those of this page" in text and "e.mp4" not in text
    output.unlink()
    groundtruth.write_groundtruth(tmp_path / "all.csv", truth(NAMES))
    assert report.main([*given, "--probe_groundtruth", str(tmp_path / "all.csv")]) == 1
    assert "expected some of the 0 videos" in capsys.readouterr().err and not output.exists()


def test_files_that_cannot_be_used_are_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one, output = str(folder / "one.h5"), str(tmp_path / "r.html")
    groundtruth.write_groundtruth(tmp_path / "other.csv", truth(["z"]))
    other = write_features(tmp_path / "other.h5", ["z"], 0)
    bare = write_features(tmp_path / "bare.h5", ["a"], 0, {"stride": 8})
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"split": "train", "step": 1}\n{"split": "train", "step": 1e999}\n')
    deep = tmp_path / "deep.jsonl"
    deep.write_text("[" * 100_000 + "\n")
    for arguments, message in (
        (["--features", str(tmp_path / "no.h5")], "no such file"),
        (["--features", str(folder / "truth.csv")], "not a file of features"),
        (["--features", one, other], "no video in common"),
        (["--features", one, "--groundtruth", str(tmp_path / "other.csv")], "expected some of the 5 videos"),
        (["--features", one, "--predictions", str(tmp_path / "no.json")], "no such file"),
        (["--features", other, "--predictions", str(folder / "predictions.json")], "expected some of the 1 videos"),
        (["--features", one, one, "--names", "m", "m"], "two models are called 'm'"),
        (["--features", bare], "no attribute 'frame_rate'"),
        (["--metrics", str(tmp_path / "no.jsonl")], "no such file"),
        (["--metrics", str(broken)], "line 2"),
        (["--metrics", str(deep)], "no lines of JSON"),
    ):
        assert report.main([*arguments, "--output", output]) == 1, arguments
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error, (arguments, error)
        assert not Path(output).exists()
    for wrong in (
        [],
        ["--groundtruth", "x.csv", "--metrics", "m"],
        ["--features", one, "--names", "a", "b"],
        ["--features", one, "--probe_groundtruth", "x.csv"],
    ):
        with pytest.raises(SystemExit, match="2"):
            report.main([*wrong, "--output", output])
    with pytest.raises(SystemExit, match="2"):
        report.main(["--features", one, "--output", one])


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    chromium = browser.executable()
    if chromium is None:
        pytest.skip(f"no Chromium on this machine (looked for {', '.join(browser.NAMES)})")
    with browser.opened(chromium, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_a_word(page: Path, window: browser.Page, width: int, scheme: str):
    window.open(page, width, 900, scheme)
    window.value("document.querySelectorAll('details').forEach(item => { item.open = true; })")
    window.value("document.querySelectorAll('img').forEach(item => { item.loading = 'eager'; })")
    window.value("Promise.all([...document.images].map(item => item.decode())).then(() => 1)")
    assert window.complaints() == []
    assert [url for url in window.requests() if not url.startswith("data:")] == [page.resolve().as_uri()]
    assert window.value("[document.documentElement.scrollWidth, window.innerWidth]") == [width, width]
    # Content that is wider than the window scrolls in a box of its own, which the keyboard reaches.
    boxes = "[...document.querySelectorAll('.scroll')].filter(item => item.scrollWidth > item.clientWidth)"
    assert window.value(f"{boxes}.every(item => item.tabIndex === 0)")
    assert window.value(f"{boxes}.length > 0") == (width == 390)
    background = window.value("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]


@pytest.mark.slow
def test_a_link_of_the_list_opens_its_video(page: Path, window: browser.Page):
    window.open(page, 1280, 900, "light")
    closed = "document.querySelector('#v4').closest('details').open"
    assert window.value(closed) is False
    window.value("document.querySelector('a[href=\"#v4\"]').click()")
    assert window.value(f"new Promise(done => setTimeout(() => done({closed}), 200))") is True
