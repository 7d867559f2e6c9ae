"""The video files that a flag such as `--videos` means, and what was passed over on the way.

A path is a folder, which is searched with its subfolders, a file, a glob, or `@` with the path of a text file that lists such
paths, one a line.
"""

import dataclasses
import glob
import io
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tsp_jax import video_names
from tsp_jax.system import texts
from tsp_jax.video import sniffing

HELP = (
    "folders, which are searched with their subfolders, files, globs in quotes, or @FILE, a text file with one such path a line"
)
# fmt: off
_PICTURES = frozenset([
    "apng", "avif", "bmp", "cr2", "dng", "heic", "heif", "ico", "jpe", "jpeg", "jpg", "nef", "pgm", "png", "ppm", "psd", "svg",
    "thm", "tif", "tiff", "webp",
])
# Parts of videos, and small copies that cameras write next to their videos: FFmpeg may open them.
_UNFINISHED = frozenset(["aria2", "bak", "crdownload", "download", "lrv", "old", "part", "partial", "temp", "tmp", "ytdl"])
# Endings that are common next to videos; such files are not opened.
_OTHERS = frozenset([
    "7z", "aac", "ass", "bz2", "ckpt", "csv", "db", "doc", "docx", "flac", "gz", "h5", "hdf5", "htm", "html", "ipynb",
    "json", "jsonl", "log", "m4a", "mat", "md", "mp3", "npy", "npz", "onnx", "opus", "parquet", "pdf", "pickle", "pkl", "pt",
    "pth", "py", "rar", "safetensors", "sh", "srt", "sub", "tar", "tgz", "tsv", "txt", "url", "vtt", "wav", "wma", "xls",
    "xlsx", "xml", "xz", "yaml", "yml", "zip", "zst",
])
# fmt: on
_MAX_OPENED = 1000  # files whose names say nothing are opened; each takes milliseconds
_MAX_SHOWN = 5
# What is said of one file, and of several.
_BY_CONTENT = "1 file is taken for a video by its content alone", "{} files are taken for videos by their content alone"
_NOT_BY_NAME = "1 file is not a video by its name", "{} files are not videos by their names"
_PICTURE = "1 file is a picture", "{} files are pictures"
_STILL_GIF = "1 GIF holds one picture", "{} GIFs hold one picture each"
_SIDE_FILE = "1 file is a side file of macOS", "{} files are side files of macOS"
_PARTIAL = "1 file is a download, backup or preview by its name", "{} files are downloads, backups or previews by their names"
_NOT_OPENED = "1 more file was not opened", "{} more files, whose names do not say what they are, were not opened"
_LINK = "1 link to a folder is not followed", "{} links to folders are not followed"


@dataclasses.dataclass(frozen=True)
class Found:
    """The video files that some paths mean.

    Attributes:
      root: the folder that file names are relative to: the given folder, the folder of the given file, the part of a glob
        before its first wildcard, or the folder that all given paths or all paths of a list have in common.
      paths: the files, each once; those of a folder are sorted.
      searched: the folders that were searched.
      notes: lines for the user about the files that were passed over, or taken in spite of their names.
    """

    root: Path
    paths: list[Path]
    searched: list[Path]
    notes: list[str]

    def filename(self, path: Path) -> str:
        """Returns a file's path relative to the root, with `/` between folders."""
        return relative(path, self.root)


def find(videos: str | Path | Sequence[str | Path], flag: str = "--videos") -> Found:
    """Returns the video files that one path means, or several paths.

    In folders and globs, files with an ending of `video_names.EXTENSIONS` are videos. A file whose ending says nothing is one
    if FFmpeg opens it. Files that are named one by one are taken as they are. Links to files count; links to folders are not
    followed. Lines of a list that are empty or begin with `#` are ignored; its paths are relative to the list's folder, or to
    the working directory if more of them are found there.

    Args:
      videos: the path or paths.
      flag: the flag that they were given to, for messages.

    Raises:
      OSError: a path is not there or can't be read, or there is no video.
      ValueError: a list is no text, or lists nothing.
    """
    given = [videos] if isinstance(videos, str | Path) else list(videos)
    search, roots = _Search(), []
    where = f"{flag} {' '.join(map(str, given))}"
    for path in given:
        roots.append(_take(search, str(path), flag))
    passed_over = search.passed_over()
    if not search.videos:
        inside = "in this folder" if len(given) == 1 and Path(given[0]).is_dir() else "there"
        endings = ", ".join(sorted(video_names.EXTENSIONS))
        raise FileNotFoundError(f"{where}: no video {inside}; looked for {endings}{f'. {passed_over}' if passed_over else ''}")
    root = _common(roots)
    notes = [f"{where}: passed over: {passed_over}"] if passed_over else []
    if search.by_content:
        notes.append(f"{where}: {_counted(_BY_CONTENT, search.by_content)}")
    return Found(root, list(search.videos.values()), search.folders, notes)


def picture_fault(path: Path) -> str:
    """Returns why a file that was named one by one is no video, if its ending and its content are a picture's; otherwise ""."""
    is_picture = _ending(path) in _PICTURES and not sniffing.looks_like_video(path)
    return f"a picture by its name ({_ending(path)}), not a video" if is_picture else ""


def spelled(folder: Path, filename: str) -> Path:
    """Returns the file in a folder that a text names; the path as written if there is none.

    If there is no file of that very name, blanks around it are ignored, `\\` counts as `/`, and accents may be composed or not.
    """
    slashed = filename.strip().replace("\\", "/")
    for text in (filename, slashed, unicodedata.normalize("NFC", slashed), unicodedata.normalize("NFD", slashed)):
        if os.path.lexists(folder / text):
            return folder / text
    return folder / filename


def relative(path: Path, root: Path) -> str:
    """Returns a path relative to a folder, with `/` between folders; the path itself if it does not lie below the folder."""
    for inner, outer in ((path, root), (Path(os.path.abspath(path)), Path(os.path.abspath(root)))):
        if inner.is_relative_to(outer):
            return inner.relative_to(outer).as_posix()
    return path.as_posix()


class _Search:
    """Collects videos, each once, and what was passed over, by the reason."""

    def __init__(self) -> None:
        self.videos: dict[str, Path] = {}
        self.folders: list[Path] = []
        self.by_content: list[str] = []
        self._others: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._opened = 0

    def add(self, path: Path) -> None:
        self.videos.setdefault(os.path.abspath(path), path)

    def search(self, folder: Path) -> None:
        """Adds the videos below a folder."""
        self.folders.append(folder)
        paths = []
        for parent, folders, files in os.walk(folder, onerror=_raise):
            paths += [Path(parent, file) for file in files]
            links = [Path(parent, name) for name in folders if os.path.islink(os.path.join(parent, name))]
            for link in sorted(links):
                self._others[_LINK].append(relative(link, folder))
        for path in sorted(paths):
            self.consider(path, relative(path, folder))

    def consider(self, path: Path, shown: str) -> None:
        """Adds a file if it is a video, and otherwise counts it under the reason why it is none."""
        reason = self._reason(path)
        if reason in (None, _BY_CONTENT):
            self.add(path)
        if reason == _BY_CONTENT:
            self.by_content.append(shown)
        elif reason is not None:
            self._others[reason].append(shown)

    def passed_over(self) -> str:
        """Returns a line that counts and names what is no video; "" if there is nothing."""
        return "; ".join(_counted(reason, shown) for reason, shown in self._others.items())

    def _reason(self, path: Path) -> tuple[str, str] | None:
        """Returns why a file is no video, or that it is one by its content; None if its name says that it is one."""
        ending = _ending(path)
        if path.name.startswith("._") and sniffing.is_side_file(path):
            return _SIDE_FILE
        if ending in video_names.EXTENSIONS:
            return _STILL_GIF if ending == "gif" and sniffing.is_still_gif(path) else None
        if ending in _PICTURES:
            return _PICTURE
        if ending in _UNFINISHED:
            return _PARTIAL
        if ending in _OTHERS or not path.is_file():
            return _NOT_BY_NAME
        self._opened += 1
        if self._opened > _MAX_OPENED:
            return _NOT_OPENED
        return _BY_CONTENT if sniffing.looks_like_video(path) else _NOT_BY_NAME


def _take(search: _Search, text: str, flag: str) -> Path:
    """Adds the videos that a path on the command line means, and returns the folder that their names are relative to."""
    path = Path(text)
    if path.is_dir():
        search.search(path)
        return path
    if os.path.lexists(path):
        search.add(path)
        return path.parent
    if text.startswith("@"):
        return _take_list(search, Path(text[1:]), flag)
    if glob.has_magic(text):
        return _take_glob(search, text, f"{flag} {text}")
    raise FileNotFoundError(f"{flag} {text}: no such file or folder")


def _take_glob(search: _Search, pattern: str, where: str) -> Path:
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    if not matches:
        raise FileNotFoundError(f"{where}: no such file, and nothing matches the pattern")
    fixed = Path(*_fixed_parts(Path(pattern)))
    if "**" in pattern:
        search.folders.append(fixed)
    for match in matches:
        if not match.is_dir():
            search.consider(match, relative(match, fixed))
        elif "**" not in pattern:  # that pattern matches what is in the folder too
            search.search(match)
    return fixed


def _fixed_parts(pattern: Path) -> Iterator[str]:
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        yield part


def _take_list(search: _Search, path: Path, flag: str) -> Path:
    where = f"{flag} @{path}"
    with texts.opened(path, f"{flag} @FILE expected a text file of paths, one a line") as stream:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # names of files may be any bytes
        text = stream.read()
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise ValueError(f"{where}: lists no video")
    options = [[spelled(base, line) for line in lines] for base in (path.parent, Path())]
    found = [sum(map(_is_there, option)) for option in options]
    if not max(found):
        raise FileNotFoundError(
            f"{where}: none of its {len(lines)} paths is there, such as {lines[0]!r}; they are relative to the list's folder "
            f"({path.parent}) or to the working directory"
        )
    roots = []
    for item in options[found.index(max(found))]:
        if item.is_dir() or (glob.has_magic(str(item)) and _is_there(item) and not os.path.lexists(item)):
            roots.append(_take(search, str(item), flag))
        else:  # A file that is not there stays in the list, and the run reports it.
            search.add(item)
            roots.append(item.parent)
    return _common(roots)


def _is_there(path: Path) -> bool:
    return os.path.lexists(path) or (glob.has_magic(str(path)) and bool(glob.glob(str(path), recursive=True)))


def _common(roots: Iterable[Path]) -> Path:
    distinct = list(dict.fromkeys(roots))
    if len(distinct) == 1:
        return distinct[0]
    return Path(os.path.commonpath([os.path.abspath(root) for root in distinct]))


def _ending(path: Path) -> str:
    return path.suffix.lower().lstrip(".")


def _counted(reason: tuple[str, str], shown: Sequence[str]) -> str:
    """Returns for example `2 files are pictures: a.jpg, b.jpg`."""
    names = ", ".join([*shown[:_MAX_SHOWN], *(["…"] if len(shown) > _MAX_SHOWN else [])])
    return f"{reason[len(shown) > 1].format(len(shown))}: {names}"


def _raise(error: OSError) -> None:
    raise error
